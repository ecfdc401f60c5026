# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a guest is, asked of its QEMU. Small, as every look at a running VM needs it."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import sockets
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.qmp import Qmp

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import RunState

# QEMU's words that are the engine's as well.
SAME: t.Final = ("running", "io-error", "internal-error", "guest-panicked", "watchdog", "shutdown")
# Refused a `cont` until the machine has been reset.
NEEDS_RESET: t.Final = ("internal-error", "shutdown", "guest-panicked")


def word(qmp: Qmp) -> str:
    """QEMU's own word.

    :raises HypervisorError: it sent no sensible one.
    """
    answer = qmp.execute("query-status")
    status = answer.get("status") if isinstance(answer, dict) else None
    if not isinstance(status, str) or not status.replace("-", "").isalpha() or len(status) > 32:
        raise HypervisorError("the hypervisor sent no sensible status")
    return status


def meaning(status: str) -> RunState:
    """QEMU's word as the engine has it: a guest that is about to be loaded, or has been saved, stands still."""
    return t.cast("RunState", status) if status in SAME else "paused"


def ask(run_dir: str, timeout: float) -> RunState:
    """How the guest is.

    :raises BusyError: no turn within *timeout* seconds. :raises HypervisorError: QEMU does not answer.
    """
    with Qmp.connect(sockets.qmp_path(run_dir), timeout) as qmp:
        return meaning(word(qmp))


def go_on(qmp: Qmp) -> None:
    """Let the guest run, whatever stopped it."""
    if word(qmp) in NEEDS_RESET:
        qmp.execute("system_reset")
    qmp.execute("cont")
