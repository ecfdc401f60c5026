# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How guests are, by their hypervisors: apart from the drivers, as whoever only looks has no use for those."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import RunState

# One that somebody else talks to, or that hangs, is not worth waiting for.
ASK_TIMEOUT = 0.5


def run_state(name: str, run_dir: str, timeout: float = ASK_TIMEOUT) -> RunState | None:
    """How the guest of a running VM is, with no more imported than that needs; ``None`` if it cannot be told now."""
    if name == "qemu":
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.runstate import ask
    elif name == "cloud-hypervisor":
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.cloud_hypervisor.runstate import ask
    elif name == "firecracker":
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.firecracker.runstate import ask
    else:
        return None
    try:
        return ask(run_dir, timeout)
    except CocoonError:
        return None
