# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engine asks of the agent inside a VM's guest, where its hypervisor knows that one listens."""

from __future__ import annotations

import contextlib
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.guests import access

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.standard_agent import StandardAgent
    from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm


def agent_of(vm: Vm, patience: float) -> StandardAgent | None:
    """The agent in a running guest, where its hypervisor knows that one listens."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.standard_agent import StandardAgent

    driver = vm.driver
    if not driver.capabilities.agent or vm.record.get("state") == types.PAUSED or not driver.agent_listens(vm.run_dir):
        return None
    return StandardAgent(access(vm.paths, vm.record), time.monotonic() + patience)


def shut_down(vm: Vm, patience: float) -> bool:
    """Have a guest shut itself down; whether it was told. Only where that ends the VM."""
    if vm.driver.guest_actions.poweroff != "ends":
        return False
    with contextlib.suppress(CocoonError, OSError):
        agent = agent_of(vm, patience)
        if agent is not None:
            agent.shut_down(time.monotonic() + patience)
            return True
    return False


def set_time(vm: Vm, patience: float) -> None:
    """Tell a guest that stood still what time it is. One without an agent finds out by itself, or does not."""
    with contextlib.suppress(CocoonError, OSError):
        agent = agent_of(vm, patience)
        if agent is not None:
            agent.set_time(time.time(), time.monotonic() + patience)
