# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""MACs, addresses and host ports that pass from one VM to another in one run: all are let go before any is taken."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._planning.changes import current_nics
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.checks import split_port
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import Definition, Plan
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.steps import (
    Create,
    SetNics,
    SetPorts,
    Step,
    Stop,
)

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import VmRecord

# ("mac", MAC), ("ip", network, address) or ("port", protocol, port of the host)
Key = tuple[str, ...]


def port_key(port: str) -> Key:
    """What is held of the host; on which of its addresses does not count."""
    _address, host_port, _guest_port, protocol = split_port(port)
    return "port", protocol, str(host_port)


def keys_of(nics: t.Iterable[t.Mapping[str, t.Any]], ports: t.Iterable[str]) -> set[Key]:
    """What NICs and ports hold, as far as it is chosen."""
    found: set[Key] = {port_key(port) for port in ports}
    for nic in nics:
        found |= {("mac", str(nic["mac"]))} if nic.get("mac") else set()
        found |= {("ip", str(nic["network"]), str(nic[key])) for key in ("ip", "ip6") if nic.get(key)}
    return found


def before(record: VmRecord | None) -> set[Key]:
    """What a VM holds."""
    return keys_of(current_nics(record), record.get("ports") or ()) if record else set()


def after(record: VmRecord | None, plan: Plan) -> set[Key]:
    """What it holds once *plan* is carried out."""
    create, nics, ports = plan.step(Create), plan.step(SetNics), plan.step(SetPorts)
    if create:
        return keys_of(create.wanted["nics"], create.wanted["ports"])
    if nics:
        return keys_of(nics.nics, (record or {}).get("ports") or () if nics.ports is None else nics.ports)
    return keys_of(current_nics(record or {}), ports.ports) if ports else before(record)


def passing(plans: t.Iterable[tuple[VmRecord | None, Plan]]) -> dict[Key, str]:
    """What VMs of one run let go and others take: ``{key: id of the VM that has it}``."""
    given: dict[Key, str] = {}
    taken: set[Key] = set()
    for record, plan in plans:
        have, want = before(record), after(record, plan)
        taken |= want - have
        if record is not None and not plan.step(Create):
            given.update((key, str(record["id"])) for key in have - want)
    return {key: holder for key, holder in given.items() if key in taken}


def gives(record: VmRecord | None, plan: Plan, keys: t.Container[Key]) -> bool:
    """Whether the VM has any of *keys* and lets it go."""
    return not plan.step(Create) and any(key in keys for key in before(record) - after(record, plan))


def first_half(record: VmRecord, plan: Plan, keys: t.Container[Key]) -> Plan:
    """The part of *plan* that lets *keys* go: what takes their place is anybody's choice until the rest is done."""
    ports = [port for port in record.get("ports") or () if port_key(port) not in keys]
    stop = plan.step(Stop)
    steps: list[Step] = [stop] if stop else []
    nics = plan.step(SetNics)
    if nics:
        steps.append(SetNics([_without(nic, keys) for nic in current_nics(record)], record["config"]["network"], ports))
    else:
        steps.append(SetPorts(ports))
    return dataclasses.replace(plan, steps=tuple(steps))


def _without(nic: Definition, keys: t.Container[Key]) -> Definition:
    gone = [key for key in ("ip", "ip6") if ("ip", nic["network"], nic.get(key)) in keys]
    gone += ["mac"] if ("mac", nic["mac"]) in keys else []
    return {**nic, **dict.fromkeys(gone)}
