# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan would meet when it takes things: the errors of an allocation, without allocating.

The planner is pure and does not know who holds a MAC, an address or a port. Asking beforehand makes
check mode say what a run would say, and lets a run fail before it touches anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ConflictError, ResourceError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.changes import current_nics
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.exchange import port_key
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import RESTART, Change, Plan
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.steps import (
    Create,
    Remove,
    SetNics,
    SetPorts,
    Start,
    Stop,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import admission, reserve
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkRecord, VmRecord

# What says in a plan's changes how other NICs come about.
NIC_OPTIONS = ("network", "nics")


def check(run: Run, record: VmRecord | None, plan: Plan) -> Plan:
    """Raise what carrying out *plan* would raise about MACs, addresses, ports, memory and disk.

    :returns: the plan, with the addresses that NICs would get whose networks change.

    :raises CocoonError: something is taken, or does not fit beside what the run has planned before.
    """
    vm_id = record["id"] if record else None
    create, nics, ports = plan.step(Create), plan.step(SetNics), plan.step(SetPorts)
    if create:
        _check_nics(run, vm_id, create.wanted["nics"], create.wanted.get("network"))
        _check_ports(run, vm_id, create.wanted["nics"], create.wanted["ports"])
    if nics:
        _check_nics(run, vm_id, nics.nics, nics.network)
        _check_ports(run, vm_id, nics.nics, (record or {}).get("ports") or () if nics.ports is None else nics.ports)
    if ports and record:
        _check_ports(run, vm_id, current_nics(record), ports.ports)
    _check_state(run, record, plan)
    _check_memory(run, record, plan)
    _check_disk(run, record, plan)
    return _with_addresses(run, record, plan, nics) if record and nics else plan


def _with_addresses(run: Run, record: VmRecord, plan: Plan, step: SetNics) -> Plan:
    """*plan* with a row for each address that is not asked for and not what it was: what the guest will be found by."""
    have = current_nics(record)
    how = next((change.how for change in plan.changes if change.option in NIC_OPTIONS), RESTART)
    rows = []
    for index, nic in enumerate(step.nics):
        before, network = have[index]["ip"] if index < len(have) else None, nic.get("network") or step.network or ""
        after = None if nic.get("ip") else _free_address(run, plan.name, index, network)
        if after:
            rows.append(Change(f"nics[{index}].ip", before, after, how))
    options = {row.option for row in rows}
    return dataclasses.replace(plan, changes=(*(row for row in plan.changes if row.option not in options), *rows))


def _free_address(run: Run, name: str, index: int, network_name: str) -> str | None:
    """The address that a NIC would be given; ``None`` where only the run can tell, or there is none to give."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import attachments

    network = run.network(network_name)
    if not network or not network.get("subnet"):
        return None
    taken = run.addresses_planned.setdefault(network_name, set())
    with contextlib.suppress(ResourceError):  # some may be let go before
        address = attachments.choose_ip(run.store, network, reserve.address_seed(name, index), taken=taken)
        taken.add(address)
        return address
    return None


def _check_state(run: Run, record: VmRecord | None, plan: Plan) -> None:
    """Whether the hypervisor of this host can take up the saved state that a VM goes on from."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._vms import resuming

    wanted = plan.wanted or {}
    if plan.step(Create) and wanted.get("snapshot"):
        snapshot = run.snapshot(wanted["snapshot"], wanted.get("disks_only", False))
        if snapshot is not None:
            resuming.check_snapshot(run, snapshot, snapshot, "snapshot")
    elif record and record.get("resume") and plan.step(Start) and not plan.step(Stop):
        vm = Vm(run, record)
        resuming.check(vm)
        resuming.check_driver(vm.driver, record, vm.saved["layout"])


def _check_memory(run: Run, record: VmRecord | None, plan: Plan) -> None:
    """What a start takes, less what the same VM, or one that goes before it, holds until then."""
    start = plan.step(Start)
    if record and (start or plan.step(Remove) or plan.step(Stop)):
        run.memory_planned -= admission.held_memory(run, record["id"])
    if start is None:
        return
    free, _idle = admission.free_memory(run)
    admission.check_memory(run, start.memory, free - admission.promise(run, run.memory_planned))
    run.memory_planned += start.memory


def _check_disk(run: Run, record: VmRecord | None, plan: Plan) -> None:
    """What new and larger disks may come to hold beyond what the VM is promised."""
    more, option = 0, "data_disks"
    present: VmRecord = record or {}
    for step in plan.steps:
        growth = step.more_disk(present)
        more, option = more + growth, step.disk_option if growth else option
        if isinstance(step, Create):  # what a clone gets besides comes on top
            present = t.cast("VmRecord", {"config": step.wanted, "data_disks": step.wanted["data_disks"]})
    if more > 0 and os.path.isdir(run.store.paths.root):
        admission.check_disk(run, admission.promised_disk(run) + run.disk_planned, more, option)
        run.disk_planned += more


def _check_nics(run: Run, vm_id: str | None, nics: t.Sequence[Record], default: str | None) -> None:
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import attachments

    for index, nic in enumerate(nics):
        if nic.get("mac"):
            holder = run.store.index("mac").lookup(nic["mac"])
            if holder not in (None, vm_id, *run.leaving, run.passing.get(("mac", nic["mac"]))):
                raise ConflictError(
                    f"{nic['mac']} belongs to another VM", f"nics[{index}].mac", "Choose another one, or leave it out."
                )
        name = nic.get("network") or default or ""
        network = run.network(name)
        if not nic.get("ip") or not network or not network.get("subnet"):
            continue
        holder = attachments.lease_holder(run.store, network["id"], nic["ip"])
        if holder not in run.leaving and (holder is None or holder != run.passing.get(("ip", name, nic["ip"]))):
            attachments.choose_ip(run.store, network, "", nic["ip"], vm_id=vm_id)


def _check_ports(run: Run, vm_id: str | None, nics: t.Sequence[Record], ports: t.Sequence[str]) -> None:
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import attachments

    if not ports or run.leaving:  # with ports that are about to be free, only the run itself can tell
        return
    networks = [run.network(nic.get("network") or "") for nic in nics]
    target = reserve.port_target(nics, networks)
    if target is not None:
        network = t.cast("NetworkRecord", networks[target])
        free = [port for port in ports if port_key(port) not in run.passing]
        attachments.check_free(run.store, network, vm_id, attachments.check_ports(free), moving=True)
