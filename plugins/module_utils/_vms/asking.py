# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engine asks of the agent inside a VM's guest, where one listens."""

from __future__ import annotations

import contextlib
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, ConflictError, UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.guests import access

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.agent import Access
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.standard_agent import StandardAgent
    from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm

# For the answer of an agent whose guest has just gone on: it may have to be read from a disk first.
COMES_TO = 10.0


def listening(vm: Vm, patience: float) -> Access:
    """The way to the agent in a running guest, where somebody is at its end: nothing is waited for that is not there.

    :raises CocoonError: nobody is, or there is no way.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.agent import NoAgentError
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import vsock

    if not vm.driver.capabilities.agent:
        raise UnsupportedError(f"{vm.record['hypervisor']} has no way to an agent in the guest")
    if vm.record.get("state") == types.PAUSED:
        raise ConflictError("its guest is paused")
    way = access(vm.paths, vm.record)
    if way.channel.kind == "vsock":  # a port that nobody listens at refuses at once
        vsock.dial(way.channel, time.monotonic() + patience).close()
    elif not vm.driver.agent_listens(vm.run_dir):
        raise NoAgentError("no agent listens in the guest")
    return way


def agent_of(vm: Vm, patience: float, more: float = 0.0) -> StandardAgent:
    """The agent in a running guest, which is at its end and the standard one.

    :param patience: seconds for somebody to be there; and, with as many as *more*, for its first answer.
    :raises CocoonError: none is.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest import agent as agents
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.standard_agent import StandardAgent

    agent = agents.find(listening(vm, patience), time.monotonic() + patience + more)
    if not isinstance(agent, StandardAgent):
        raise UnsupportedError("the Cocoon agent neither sets clocks nor thaws file systems")
    return agent


def shut_down(vm: Vm, patience: float) -> bool:
    """Have a guest shut itself down, in the way that ends the VM; whether it was told."""
    ends = vm.driver.guest_actions
    if "ends" not in (ends.poweroff, ends.reboot):
        return False
    with contextlib.suppress(CocoonError, OSError):
        agent_of(vm, patience).shut_down(time.monotonic() + patience, reboot=ends.poweroff != "ends")
        return True
    return False


def set_time(vm: Vm, patience: float) -> None:
    """Tell a guest that stood still what time it is. One without an agent finds out by itself, or does not."""
    with contextlib.suppress(CocoonError, OSError):
        agent_of(vm, patience, COMES_TO).set_time(time.monotonic() + patience + COMES_TO)


def wake(vm: Vm, patience: float) -> None:
    """Have a guest go on that whoever was killed had stopped, or its file systems, and tell it the time."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.freezing import THAW
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.standard_agent import RefusedError

    with contextlib.suppress(CocoonError, OSError):
        agent = agent_of(vm, patience, COMES_TO)
        with contextlib.suppress(RefusedError):
            agent.ask(THAW, time.monotonic() + patience + COMES_TO)
        agent.set_time(time.monotonic() + patience)
