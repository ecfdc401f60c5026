# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Converge one network: look, plan, and if a change is due lock, look and plan again, execute.

Steps are in such an order that a process killed between any two leaves a record from which the next
run goes on: the name first, then the record in phase ``creating``, then the kernel; a removal marks
the record, clears the kernel, then the record, then the name.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    ChangeRefusedError,
    ConflictError,
    NotFoundError,
    StateError,
    UnsupportedError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._network import (
    attachments,
    guests,
    leases,
    links,
    plan,
    ports,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._records import is_damaged
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, locked, remove_tree, write_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record, new_id, now

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkRecord

CREATING = "creating"
UPDATING = "updating"
FOLDERS = ("leases", "ports", "users")


def checkpoint(_name: str) -> None:
    """Called after each step of a change; tests end the process here."""


_Subnet = t.Literal["subnet", "subnet6"]


class Gone(t.NamedTuple):
    """What else would be gone by the time that a network's turn comes: ids of VMs, and names of networks."""

    vms: t.Collection[str] = ()
    networks: t.Collection[str] = ()


NOBODY = Gone()


def converge(params: t.Mapping[str, t.Any], check_mode: bool, gone: Gone = NOBODY) -> Record:
    """Bring one network to its definition.

    :param params: the options of ``cocoon_network``.
    :param gone: in check mode, what a run would have removed by then.
    :return: ``changed``, ``action``, ``network`` (the record, ``None`` if absent) and ``diff``.
    :raises CocoonError: see :mod:`_plan`; and whatever the kernel or nft has against it.
    """
    definition = plan.define(params)
    paths = Paths.from_params(params)
    absent = params["state"] == "absent"
    store = Store.load(paths)
    # What the host has against it is asked under the lock: before, half of another task's work may be seen.
    decision, facts = _decide(store, definition, absent, check_mode, gone)
    if decision.changed and not check_mode:
        store = Store.open(paths)
        with locked(paths, ["host", f"network:{definition['name']}"], params["lock_timeout"]):
            decision, facts = _decide(store, definition, absent, ask_host=True)
            if decision.changed:
                _execute(store, definition, decision, facts)
        record = attachments.load(store, definition["name"])
    elif absent:
        record = None
    else:
        record = {**(facts.record or {}), **(decision.target or {})}
    return {
        "changed": decision.changed,
        "action": decision.action,
        "network": plan.shown(record),
        "diff": {"before": decision.before, "after": decision.after},
    }


def checked(params: t.Mapping[str, t.Any], paths: Paths) -> plan.Definition:
    """The options of one network in canonical form, without a look at the host.

    :raises InputError: an option that can never work, alone or with the others given.
    """
    definition = plan.define(params)
    store = Store.load(paths)
    with contextlib.suppress(StateError):  # a damaged name fails when its turn comes, and alone
        new = store is None or store.index("network").lookup(definition["name"]) is None
        if params["state"] != "absent" and new:
            plan.target(definition, None, None)
    return definition


# -- looking --------------------------------------------------------------------------------------------------------


def facts_of(store: Store | None, name: str, absent: bool, without: t.Collection[str] = ()) -> plan.Facts:
    """What there is of the network *name*, of whose users the VMs *without* do not count."""
    network_id = store.index("network").lookup(name) if store else None
    if store is None or network_id is None:
        return plan.Facts()
    record = leases.seen(store, network_id, name)
    if record is None:
        return plan.Facts(bare=True)
    foreign: list[str] = []
    missing: list[str] = []
    nics: dict[str, str] = {}
    if not absent:
        # A record whose making did not end may have the name of a bridge that it never got.
        if record.get("phase") != CREATING and not is_damaged(record):
            missing = attachments.missing(store, record)
            nics = guests.troubles(store, record)
    else:
        from ansible_collections.cocoon.microvm.plugins.module_utils._network import kernel

        foreign = kernel.foreign_ports(record)
    # After the interfaces: whose is there already is noted already.
    users = leases.users(store, network_id)
    return plan.Facts(
        record=record,
        users=tuple(sorted(leases.vm_name(store, vm_id) for vm_id in users if vm_id not in without)),
        leases=len(leases.names(store, network_id, "leases")),
        chosen6=len(leases.names(store, network_id, leases.CHOSEN6)),
        ports=tuple(str(ports.of_record(item)) for item in ports.published(store, network_id)),
        missing=tuple(missing),
        nics=nics,
        foreign_ports=() if users else tuple(foreign),
    )


def _decide(
    store: Store | None, definition: plan.Definition, absent: bool, ask_host: bool, gone: Gone = NOBODY
) -> tuple[plan.Plan, plan.Facts]:
    facts = facts_of(store, definition["name"], absent, gone.vms)
    if absent:
        return plan.plan_absent(definition, facts), facts
    if facts.record is not None and facts.record.get("phase") == leases.REMOVING:
        facts = plan.Facts(bare=True)  # its removal is finished first
    decision = plan.plan_present(definition, facts, store.store_id if store else None)
    if decision.changed and decision.target is not None and ask_host:
        _check_host(store, decision.target, facts, gone.networks)
    return decision, facts


def _check_host(store: Store | None, made: NetworkRecord, facts: plan.Facts, gone: t.Collection[str]) -> None:
    """What only the host can tell: tools, the bridge, and whether the subnet is free, once the networks *gone* are."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import backends, kernel

    record = facts.record
    backends.of(made).check_host(made)
    _check_ipv6(made)
    if record is not None and record.get("dhcp") and not made["dhcp"]:
        _check_asking(store, record)
    if record is None:
        _check_bridge(store, made, gone)
    if made["subnet"] and made["adopted"]:
        link = links.look(made["bridge"])
        plan.check_room(made, link.address.partition("/")[0] if link and link.address else None)
    for key in ("subnet", "subnet6"):
        subnet = made[key]
        if subnet and (record is None or subnet != record[key]):
            plan.check_overlap(made["name"], subnet, _used(store, made, gone, key))
    if made["uplink"]:
        name, link = made["uplink"], links.look(made["uplink"])
        address6 = kernel.global_address6(link.index) if link else None
        plan.check_uplink(made, link, kernel.kind(name), kernel.master(name), address6)


def _check_asking(store: Store | None, record: NetworkRecord) -> None:
    """:raises ChangeRefusedError: VMs would ask for their addresses, and nobody would answer."""
    vms = [store.load_vm(vm_id) or {} for vm_id in leases.users(store, record["id"])] if store else []
    asking = [
        vm["config"]["name"]
        for vm in vms
        if any(nic.get("dhcp") and nic.get("network_id") == record["id"] for nic in vm.get("network_configs") or ())
    ]
    if asking:
        raise ChangeRefusedError(
            f"cannot be switched off while guests ask on network '{record['name']}': {', '.join(sorted(asking)[:10])}",
            "dhcp",
            "Leave dhcp out of those VMs' nics first.",
        )


def _check_bridge(store: Store | None, made: NetworkRecord, gone: t.Collection[str] = ()) -> None:
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import kernel

    name = made["bridge"]
    if not name:
        return
    for other in _others(store, made["name"]):
        if other["bridge"] == name and other["name"] in gone:
            return
        if other["bridge"] == name:
            raise ConflictError(f"{name} is the bridge of network '{other['name']}'", "bridge", "Name another bridge.")
    kind = kernel.kind(name)
    if made["adopted"]:
        if kind is None:
            raise NotFoundError(f"the bridge {name} is not there", "bridge", "Make it first, or leave out adopt.")
        if kind != "bridge":
            raise ConflictError(f"{name} is not a bridge", "bridge", "Name a Linux bridge.")
    elif kind is not None and not _is_left_over(store, made["name"], name):
        raise ConflictError(
            f"an interface {name} is there already", "bridge", "Name another one, or use the bridge with adopt: true."
        )


def _is_left_over(store: Store | None, name: str, bridge: str) -> bool:
    """Whether the interface is our own bridge of an earlier try."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import kernel

    network_id = store.index("network").lookup(name) if store else None
    link = links.look(bridge)
    return bool(network_id and link and link.mac == kernel.bridge_mac(network_id))


def _others(store: Store | None, name: str) -> list[NetworkRecord]:
    if store is None:
        return []
    found = [leases.seen(store, network_id, other) for other, network_id in leases.every(store) if other != name]
    return [record for record in found if record]


def _check_ipv6(made: NetworkRecord) -> None:
    """:raises UnsupportedError: the host does not do for IPv6 what the network needs."""
    if made["subnet6"] and not links.has_ipv6():
        raise UnsupportedError(
            "the host has no IPv6", "subnet6", "Boot it without ipv6.disable=1, or leave subnet6 out."
        )
    if made["routing6"] != "none" and links.get_sysctl("ipv6", "all", "forwarding") != "1":
        raise UnsupportedError(
            "the host does not forward IPv6, which is a switch for all of its interfaces",
            "routing6",
            "Set net.ipv6.conf.all.forwarding=1, and accept_ra=2 of the uplink if it learns its own routes that way.",
        )


def _used(store: Store | None, made: NetworkRecord, gone: t.Collection[str], key: _Subnet) -> list[tuple[str, str]]:
    """Subnets that others have; those of an adopted bridge's own interface are what it is adopted for."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import kernel

    others = _others(store, made["name"])
    used = [(other[key] or "", f"network '{other['name']}'") for other in others if other["name"] not in gone]
    used = [(subnet, holder) for subnet, holder in used if subnet]
    own = made.get("bridge")
    if own is None and store is not None:
        own = _left_over_bridge(store, made["name"])
    if not made["adopted"]:
        left = [own, *(other["bridge"] for other in others if other["name"] in gone)]
        used += kernel.used_ranges(left, kernel.AF_INET if key == "subnet" else kernel.AF_INET6)
    return used


def _left_over_bridge(store: Store, name: str) -> str | None:
    """The bridge that an unfinished making or removal of this network has left, if any."""
    network_id = store.index("network").lookup(name)
    for bridge in (f"cm-{name}", plan.default_bridge(name, network_id, True)):
        if bridge and len(bridge) < 16 and _is_left_over(store, name, bridge):
            return bridge
    return None


# -- doing ----------------------------------------------------------------------------------------------------------


def _execute(store: Store, definition: plan.Definition, decision: plan.Plan, facts: plan.Facts) -> None:
    name = definition["name"]
    if decision.action == "remove" or facts.bare:
        _remove(store, name, bool(definition.get("force")))
    if decision.action == "create":
        _create(store, t.cast("NetworkRecord", decision.target))
    elif decision.action in ("update", "repair"):
        _update(store, t.cast("NetworkRecord", decision.target), t.cast("NetworkRecord", facts.record))


def _path(store: Store, network_id: str) -> str:
    return leases.directory(store, network_id, "network.json")


def _create(store: Store, made: NetworkRecord) -> None:
    name = made["name"]
    network_id = new_id()
    store.index("network").reserve(name, network_id)
    checkpoint("name")
    try:
        _create_as(store, made, network_id)
    except Exception:
        with contextlib.suppress(Exception):  # the first error tells more
            _remove(store, name)
        raise


def _create_as(store: Store, made: NetworkRecord, network_id: str) -> None:
    directory = leases.directory(store, network_id).rstrip("/")
    for folder in FOLDERS:
        os.makedirs(os.path.join(directory, folder), 0o700, exist_ok=True)
    os.chmod(directory, 0o700)
    checkpoint("directory")
    stamp = now()
    record: NetworkRecord = {**made, "id": network_id, "created_at": stamp, "updated_at": stamp}
    if made.get("bridge") is None:
        record["bridge"] = _free_bridge(store, made["name"], network_id)
    write_json(_path(store, network_id), {**record, "phase": CREATING})
    checkpoint("record")
    _finish(store, record)


def _free_bridge(store: Store, name: str, network_id: str) -> str:
    plain = f"cm-{name}"
    taken = any(other["bridge"] == plain for other in _others(store, name))
    if not taken and links.index_of(plain[:15]) is not None:
        taken = not _is_left_over(store, name, plain[:15])
    return t.cast(str, plan.default_bridge(name, network_id, taken))


def _finish(store: Store, record: NetworkRecord) -> None:
    """Bring the kernel to the record, then declare the record complete."""
    _bring_up(store, record)
    checkpoint("kernel")
    write_json(_path(store, record["id"]), record)
    checkpoint("complete")


def _bring_up(store: Store, record: NetworkRecord) -> None:
    """:func:`attachments.ensure`, step by step for the tests."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import firewall, kernel, serving

    with locked(store.paths, firewall.lock_names(), attachments.LOCK_TIMEOUT):
        if not record["adopted"]:
            kernel.create(record)
            checkpoint("bridge")
        firewall.apply(store)
        checkpoint("rules")
        if not record["adopted"]:
            kernel.activate(record)
    if not record["adopted"]:
        checkpoint("bridge up")
        serving.ensure(store, record)
        checkpoint("dnsmasq")
    else:
        attachments.ensure(store, record)
    guests.mend(store, record)


def _update(store: Store, made: NetworkRecord, old: NetworkRecord) -> None:
    record = _settled({**old, **made})
    if plan.public(record) != plan.public(old):
        record["updated_at"] = now()
    if old.get("phase") == CREATING and record["bridge"] == f"cm-{record['name']}":
        # Its making did not end; the name may have been taken by others since.
        record["bridge"] = _free_bridge(store, record["name"], record["id"])
    write_json(_path(store, record["id"]), {**record, "phase": old.get("phase") or UPDATING})
    checkpoint("record")
    try:
        if record["subnet"] != old["subnet"] and leases.users(store, record["id"]):
            raise ChangeRefusedError(
                f"network '{record['name']}' came into use meanwhile", "subnet", "Remove its VMs first."
            )
        _finish(store, record)
    except Exception:
        write_json(_path(store, record["id"]), {**old, "phase": old.get("phase") or UPDATING})
        with contextlib.suppress(Exception):  # the next run finds the phase and tries again
            _finish(store, _settled(old))
        raise


def _settled(record: NetworkRecord) -> NetworkRecord:
    """*record* once nothing is going on with it."""
    return t.cast("NetworkRecord", {key: value for key, value in record.items() if key != "phase"})


def _remove(store: Store, name: str, force: bool = False) -> None:
    network_id = store.index("network").lookup(name)
    if network_id is None:
        return
    record = leases.seen(store, network_id, name)
    if record is not None:
        _mark_removed(store, record)
        checkpoint("marked")
        from ansible_collections.cocoon.microvm.plugins.module_utils._network import (
            backends,
            firewall,
            kernel,
            serving,
        )

        try:
            backends.of(record).clear(store, record, force)
        except ChangeRefusedError:
            if not is_damaged(record):
                write_json(_path(store, record["id"]), record)
            raise
        serving.stop(store, network_id)
        checkpoint("dnsmasq")
        with locked(store.paths, firewall.lock_names(), attachments.LOCK_TIMEOUT):
            # The bridge first: while it has its address and is up, the rules are there.
            kernel.delete(record)
            checkpoint("bridge")
            firewall.apply(store)
        checkpoint("rules")
    remove_tree(leases.directory(store, network_id).rstrip("/"))
    checkpoint("directory")
    store.index("network").release(name, network_id)
    checkpoint("name")


def _mark_removed(store: Store, record: NetworkRecord) -> None:
    """From here on nobody can attach to it, as nobody can to a damaged one; who did before is seen now."""
    damaged = is_damaged(record)
    if not damaged:
        write_json(_path(store, record["id"]), {**record, "phase": leases.REMOVING})
    users = leases.users(store, record["id"])
    if users:
        if not damaged:
            write_json(_path(store, record["id"]), record)
        names = ", ".join(sorted(leases.vm_name(store, vm_id) for vm_id in users[:10]))
        raise ChangeRefusedError(f"network '{record['name']}' has VMs: {names}", "state", "Remove those VMs first.")
