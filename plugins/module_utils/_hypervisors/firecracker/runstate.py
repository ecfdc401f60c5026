# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a guest is, asked of its Firecracker. Small, as every look at a running VM needs it."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.firecracker import places

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import RunState

# A machine that was never started is one whose start was cut short.
STATES: t.Final[t.Mapping[str, RunState]] = {"Running": "running", "Paused": "paused", "Not started": "shutdown"}


def ask(run_dir: str, timeout: float) -> RunState:
    """How the guest is.

    :raises HypervisorError: it does not answer, or nothing sensible.
    """
    try:
        answer = places.connect(run_dir, timeout).look("/")
    except OSError as exc:
        raise HypervisorError(f"Firecracker does not run: {exc.strerror}") from exc
    state = answer.get("state") if isinstance(answer, dict) else None
    if not isinstance(state, str) or state not in STATES:
        raise HypervisorError("the hypervisor sent no sensible status")
    return STATES[state]
