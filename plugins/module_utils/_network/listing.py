# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told of networks: who is on them, under which addresses and names, behind which ports, with what traffic."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ConflictError, NotFoundError, StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._network import (
    attachments,
    backends,
    dnsmasq,
    guests,
    leases,
    plan,
    ports,
    serving,
    wires,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._records import is_damaged
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.module_utils._types import ERROR, Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkRecord

# What is said of a network that cannot be read.
_NOTHING: Record = {"state": ERROR, "owner": None, "missing": [], "faults": []}
_NOBODY: Record = {key: [] for key in ("users", "leases", "other_leases", "ports", "nics")}


def describe(params: t.Mapping[str, t.Any]) -> list[Record]:
    """All networks, or the one named: their records, and beside them what uses them."""
    store = Store.load(Paths.from_params(params))
    if store is None:
        return []
    name = params.get("name")
    names = [name] if name else [entry for entry, _id in store.index("network").entries()]
    return [found for item in names for found in [_described(store, item)] if found is not None]


def _described(store: Store, name: str) -> Record | None:
    """A network as users see it, ``None`` if there is none; one that is damaged says so, alone."""
    try:
        network_id = store.index("network").lookup(name)
    except StateError as exc:
        return {**_NOTHING, **_NOBODY, "id": None, "name": name, "reason": str(exc)}
    record = leases.seen(store, network_id, name) if network_id else None
    if record is None or record.get("phase") == leases.REMOVING:
        return None
    if is_damaged(record):
        return {**_NOTHING, "id": network_id, "name": name, "reason": record["reason"], **_held(store, record)}
    return {
        **t.cast(Record, plan.shown(record)),
        "missing": _missing(store, record),
        "faults": [f"{label}: {trouble}" for label, trouble in guests.troubles(store, record).items()],
        **_held(store, record),
    }


def _held(store: Store, record: NetworkRecord) -> Record:
    """Who uses a network, and what they have of it."""
    known: dict[str, str] = {}

    def vm_name(vm_id: str) -> str:
        if vm_id not in known:
            known[vm_id] = leases.vm_name(store, vm_id)
        return known[vm_id]

    return {
        "users": [{"id": vm_id, "name": vm_name(vm_id)} for vm_id in leases.users(store, record["id"])],
        "leases": _leases(store, record, vm_name),
        "other_leases": serving.other_leases(store, record),
        "nics": list(_nics(store, record)),
        "ports": [
            {**item, "vm": vm_name(item["vm_id"]), "port": str(ports.of_record(item))}
            for item in ports.published(store, record["id"])
        ],
    }


def _leases(store: Store, record: NetworkRecord, vm_name: t.Callable[[str], str]) -> list[Record]:
    addresses = sorted(leases.names(store, record["id"], "leases"), key=lambda ip: tuple(map(int, ip.split("."))))
    found = []
    for ip in addresses:
        vm_id = leases.lease_holder(store, record["id"], ip)
        if vm_id:
            entry = serving.entry_of(store, record, ip)
            found.append(
                {
                    **{"ip": ip, "ip6": entry.ip6 if entry else None, "mac": entry.mac if entry else None},
                    **{"vm_id": vm_id, "vm": vm_name(vm_id)},
                    "names": dnsmasq.names_of(record, entry.vm) if entry else [],
                }
            )
    for item in backends.of(record).given(store, record):
        found.append({**item, "vm": vm_name(item["vm_id"]), "names": []})
    return found


def _nics(store: Store, record: NetworkRecord) -> t.Iterator[Record]:
    """The NICs of running VMs, with what has gone through them. What a TAP has sent, its guest has received."""
    links: wires.Wires | None = None
    for vm, index, nic in guests.running(store, record):
        links = wires.look() if links is None else links
        config, wire = nic.config, backends.of(nic.config).look(nic.config, links)
        traffic = wire.traffic if wire else wires.Traffic()
        yield {
            **{"vm": vm, "nic": index, "tap": config["tap"], "mac": config["mac"]},
            **{"ip": (config.get("network") or {}).get("ip"), "up": bool(wire and wire.up)},
            "received": {"packets": traffic.sent_packets, "bytes": traffic.sent_bytes, "dropped": traffic.sent_dropped},
            "sent": {
                **{"packets": traffic.received_packets, "bytes": traffic.received_bytes},
                "dropped": traffic.received_dropped,
            },
        }


def _missing(store: Store, record: NetworkRecord) -> list[str]:
    try:
        return attachments.missing(store, record)
    except (ConflictError, NotFoundError):
        return ["bridge"]
