# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan would meet when it takes things: the errors of an allocation, without allocating.

The planner is pure and does not know who holds a MAC, an address or a port. Asking beforehand makes
check mode say what a run would say, and lets a run fail before it touches anything.
"""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ConflictError
from ansible_collections.cocoon.microvm.plugins.module_utils._execution import admission
from ansible_collections.cocoon.microvm.plugins.module_utils._execution.run import Run
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import Plan
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record


def check(run: Run, record: Record | None, plan: Plan) -> None:
    """Raise what carrying out *plan* would raise about MACs, addresses, ports, memory and disk.

    :raises CocoonError: something is taken, or does not fit.
    """
    vm_id = record["id"] if record else None
    create, nics, ports = plan.step("create"), plan.step("set_nics"), plan.step("set_ports")
    if create:
        wanted = create.args["wanted"]
        _check_nics(run, vm_id, wanted["nics"], wanted.get("network"))
        _check_ports(run, vm_id, [nic.get("network") for nic in wanted["nics"]], wanted["ports"])
        if plan.step("start"):
            admission.check_memory(run, wanted["memory"])
    if nics:
        _check_nics(run, vm_id, nics.args["nics"], nics.args.get("network"))
    if ports and record:
        names = [config.get("network_name") for config in record.get("network_configs") or []]
        _check_ports(run, vm_id, names, ports.args["ports"])


def _check_nics(run: Run, vm_id: str | None, nics: t.Sequence[Record], default: str | None) -> None:
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import manager

    for index, nic in enumerate(nics):
        if nic.get("mac"):
            holder = run.store.index("mac").lookup(nic["mac"])
            if holder not in (None, vm_id):
                raise ConflictError(
                    f"{nic['mac']} belongs to another VM", f"nics[{index}].mac", "Choose another one, or leave it out."
                )
        network = run.network(nic.get("network") or default or "")
        if nic.get("ip") and network:
            manager.choose_ip(run.store, network, "", nic["ip"], vm_id=vm_id)


def _check_ports(run: Run, vm_id: str | None, names: t.Sequence[str | None], ports: t.Sequence[str]) -> None:
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import manager

    if not ports:
        return
    networks = [network for network in (run.network(name) for name in names if name) if network]
    reachable = [network for network in networks if network.get("subnet")]
    target = next((network for network in reachable if network.get("nat")), None) or next(iter(reachable), None)
    if target is not None:
        manager.check_free(run.store, target, vm_id, manager.check_ports(list(ports)))
