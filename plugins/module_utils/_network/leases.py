# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who uses a network, and which addresses they have: one file each, made whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    ConflictError,
    InputError,
    NotFoundError,
    ResourceError,
    StateError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import subnets
from ansible_collections.cocoon.microvm.plugins.module_utils._records import damaged_network, read_network
from ansible_collections.cocoon.microvm.plugins.module_utils._state import (
    Store,
    create_json,
    read_json,
    remove_file,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._state import read_record as load_record
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record, check_ip

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkRecord

REMOVING = "removing"
# The note of a network's dnsmasq, and what of the network stands there, too.
NOTE = "dnsmasq.json"
# Interfaces that plugins have made; the folder is there once there was one.
ATTACHMENTS = "attachments"
# Leases of IPv6 addresses, of those that were chosen; all others follow from MACs, of which each is there once.
CHOSEN6 = "leases6"
SERVED = ("names", "dhcp", "subnet6", "routing6")
DAMAGED = (
    "Put it back from a backup, or remove its VMs and then the network by its name (state: absent); until then its"
    " running VMs keep what the kernel has of it."
)


def directory(store: Store, network_id: str, kind: str = "") -> str:
    """``networks/<id>`` or one of its folders ``leases``, ``ports``, ``users``."""
    return os.path.join(store.paths.object_dir("network", network_id), kind)


def every(store: Store) -> list[tuple[str, str]]:
    """(name, id) of each network that has a folder, sorted; its id stands for a name that cannot be read.

    A network gets its name before its folder, and loses it after, so none is missed, whatever became of its name.
    """
    folder = os.path.join(store.paths.root, "networks")
    there = [name for name in os.listdir(folder) if not name.endswith(".tmp")] if os.path.isdir(folder) else []
    known = {network_id: name for name, network_id in store.index("network").entries()}
    return sorted((known.get(network_id, network_id), network_id) for network_id in there)


def names(store: Store, network_id: str, kind: str) -> list[str]:
    """The files of one of those folders, sorted; for listings and removal."""
    try:
        found = os.listdir(directory(store, network_id, kind))
    except FileNotFoundError:
        return []
    return sorted(name for name in found if not name.endswith(".tmp"))


def read_record(store: Store, network_id: str) -> NetworkRecord | None:
    """:raises StateError: it is damaged, or is missing although VMs use the network."""
    path = os.path.join(directory(store, network_id), "network.json")
    try:
        record = load_record(path, read_network, network_id)
        if record is None and names(store, network_id, "users"):
            raise StateError(f"{path} is missing")
    except StateError as exc:
        exc.remedy = DAMAGED
        raise
    return record


def seen(store: Store, network_id: str, name: str) -> NetworkRecord | None:
    """The record of a network, or ``None`` if there is none; if it is damaged, what stands for it."""
    try:
        return read_record(store, network_id)
    except StateError as exc:
        from ansible_collections.cocoon.microvm.plugins.module_utils._network import kernel

        found = kernel.found(network_id)
        return damaged_network(network_id, name, str(exc), {**found, **_served(store, network_id)} if found else {})


def _served(store: Store, network_id: str) -> Record:
    """What a network's dnsmasq was started for, which the kernel does not show, and guests go on to use."""
    with contextlib.suppress(StateError):
        served = (read_json(directory(store, network_id, NOTE)) or {}).get("served")
        if isinstance(served, dict):
            return {key: served[key] for key in SERVED if key in served}
    return {}


# -- their dnsmasqs: no more than whether there are any, of which :mod:`serving` does the rest -----------------------


def is_served(network: NetworkRecord) -> bool:
    """Whether a network is to have a dnsmasq of its own."""
    return bool(network.get("names") or network.get("dhcp") or subnets.is_advertised(network))


def runtime(paths: Paths, network_id: str) -> str:
    """The folder of a network's dnsmasq."""
    return os.path.join(paths.run, "networks", network_id)


def was_served(store: Store, network_id: str) -> bool:
    """Whether a dnsmasq was begun, noted or not, and nobody has ended it to the end."""
    return os.path.lexists(directory(store, network_id, NOTE)) or os.path.isdir(runtime(store.paths, network_id))


# -- files ----------------------------------------------------------------------------------------------------------


def holder(path: str) -> str | None:
    """The id of the VM that a lease or a port belongs to: ``None`` if there is no file, ``""`` if it does not tell."""
    try:
        document = read_json(path)
    except StateError:
        return ""
    vm_id = None if document is None else document.get("vm_id")
    return None if document is None else vm_id if isinstance(vm_id, str) else ""


# -- users ----------------------------------------------------------------------------------------------------------


def attach(store: Store, network_id: str, vm_id: str) -> None:
    """Note that the VM uses the network; again for the same VM is fine.

    The VM's directory must be there before this: a note of a VM without one counts as left behind.

    :raises NotFoundError: the network is not there, or is being removed.
    """
    path = os.path.join(directory(store, network_id, "users"), vm_id)
    try:
        made = create_json(path, {"vm_id": vm_id})
    except FileNotFoundError:
        raise _gone(network_id) from None
    # Removal marks the record and then looks at the users; we note the user and then look at the record.
    # Whichever comes second sees the other.
    try:
        record = read_record(store, network_id)
    except StateError:
        if made:
            remove_file(path)
        raise
    if record is None or record.get("phase") == REMOVING:
        if made:
            remove_file(path)
        raise _gone(record["name"] if record else network_id)


def _gone(name: str) -> NotFoundError:
    return NotFoundError(f"network '{name}' does not exist", "network", "Create it with cocoon_network.")


def detach(store: Store, network_id: str, vm_id: str) -> None:
    """The VM uses the network no more. Give its ports and addresses back first."""
    remove_file(os.path.join(directory(store, network_id, "users"), vm_id))


def users(store: Store, network_id: str) -> list[str]:
    """IDs of the VMs that use the network, sorted; notes left behind by VMs that are gone do not count."""
    return [vm for vm in names(store, network_id, "users") if os.path.isdir(store.paths.vm_dir(vm))]


def is_attached(store: Store, vm_id: str) -> bool:
    """Whether there are interfaces that plugins have made for a VM, whatever its record says."""
    return any(
        name.startswith(vm_id) for _name, network_id in every(store) for name in names(store, network_id, ATTACHMENTS)
    )


def vm_name(store: Store, vm_id: str) -> str:
    """The VM's name, or its id where there is no record."""
    return store.vm_name(vm_id) or vm_id


# -- addresses ------------------------------------------------------------------------------------------------------


def _reserved(network: NetworkRecord) -> set[str]:
    """Addresses of the host and the gateway."""
    found = set(filter(None, [network.get("gateway")]))
    if network.get("adopted"):
        from ansible_collections.cocoon.microvm.plugins.module_utils._network import links

        link = links.look(network["bridge"])
        if link and link.address:
            found.add(link.address.partition("/")[0])
    return found


def check_wanted(network: NetworkRecord, wanted: str) -> str:
    """*wanted* if a guest may have it on this network.

    :raises InputError: not an address of the subnet, or the gateway's, or that of the subnet itself.
    """
    ip = check_ip(wanted, "ip")
    if not network.get("subnet"):
        raise InputError(
            f"network '{network['name']}' has no subnet", "ip", "Give the network a subnet, or leave the address out."
        )
    subnet = ipaddress.IPv4Network(network["subnet"])
    address = ipaddress.IPv4Address(ip)
    if address not in subnet:
        raise InputError(f"{ip} is not in {subnet} of network '{network['name']}'", "ip", "Use an address of it.")
    if address in (subnet.network_address, subnet.broadcast_address):
        raise InputError(f"{ip} is the network or broadcast address of {subnet}", "ip", "Use another address.")
    for first, last in subnets.ranges(network.get("dhcp_range")):
        if first <= address <= last:
            raise InputError(
                f"{ip} is in dhcp_range of network '{network['name']}'", "ip", "Use an address outside of it."
            )
    if ip in _reserved(network):
        raise InputError(
            f"{ip} is the gateway or the host on network '{network['name']}'", "ip", "Use another address."
        )
    return ip


def choose_ip(
    store: Store,
    network: NetworkRecord,
    seed: str,
    wanted: str | None = None,
    taken: t.Container[str] = (),
    vm_id: str | None = None,
) -> str:
    """A free address: *wanted*, or the first free one from a place that *seed* decides.

    Looks at one file an attempt, so that its cost does not grow with the number of leases.

    :param seed: the VM's name and NIC, say; the same seed on an empty network gives the same address.
    :param taken: addresses that are promised already, in a batch whose leases are not written yet.
    :param vm_id: the VM it is for, if it has an id already: what it has leased itself is free for it.
    :raises InputError: *wanted* can never be had on this network.
    :raises ConflictError: *wanted* is leased or promised.
    :raises ResourceError: no address is free.
    """
    leases = directory(store, network["id"], "leases")
    if wanted is not None:
        ip = check_wanted(network, wanted)
        if ip in taken:
            raise ConflictError(f"{ip} is given twice", "ip", "Use another address.")
        there = lease_holder(store, network["id"], ip)
        if there not in (None, vm_id):
            raise _leased(store, network, ip, there or "")
        return ip
    if not network.get("subnet"):
        raise InputError(f"network '{network['name']}' has no subnet", "network", "Give it one with cocoon_network.")
    free, reserved = subnets.Free(network), _reserved(network)
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
    for attempt in range(free.size):
        ip = free[(start + attempt) % free.size]
        if ip not in reserved and ip not in taken and not os.path.lexists(os.path.join(leases, ip)):
            return ip
    raise ResourceError(
        f"network '{network['name']}' has no free address in {network['subnet']}",
        "network",
        "Remove VMs, widen what is given out (range_start, range_end, reserved), or use another network.",
    )


def lease_holder(store: Store, network_id: str, ip: str) -> str | None:
    """The id of the VM that has *ip*, or ``None``; see :func:`holder`."""
    return holder(_lease(store, network_id, ip))


def _lease(store: Store, network_id: str, ip: str) -> str:
    return os.path.join(directory(store, network_id, CHOSEN6 if ":" in ip else "leases"), ip)


def _leased(store: Store, network: NetworkRecord, ip: str, vm_id: str) -> ConflictError:
    whose = f"belongs to VM '{vm_name(store, vm_id)}'" if vm_id else "is taken; the file that says by whom is damaged"
    option = "ip6" if ":" in ip else "ip"
    return ConflictError(f"{ip} on network '{network['name']}' {whose}", option, "Use another address.")


def lease(store: Store, network: NetworkRecord, ip: str, vm_id: str) -> None:
    """Take *ip*, or an IPv6 address that was chosen, for the VM; again for the same VM is fine.

    :raises ConflictError: another VM has it, or the network's subnet has changed meanwhile.
    :raises NotFoundError: the network is gone.
    """
    record = read_record(store, network["id"])
    if record is None:
        raise _gone(network["name"])
    option, subnet = ("ip6", record.get("subnet6")) if ":" in ip else ("ip", record.get("subnet"))
    if not subnet or ipaddress.ip_address(ip) not in ipaddress.ip_network(subnet):
        raise ConflictError(f"{ip} is not in {subnet} of network '{record['name']}'", option, "Try again.")
    path = _lease(store, network["id"], ip)
    try:
        if option == "ip6":  # a folder that there is only where somebody chooses
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.path.dirname(path))
        if create_json(path, {"ip": ip, "vm_id": vm_id}):
            return
    except FileNotFoundError:
        raise _gone(network["name"]) from None
    there = lease_holder(store, network["id"], ip)
    if there != vm_id:
        raise _leased(store, network, ip, there or "")


def allocate(store: Store, network: NetworkRecord, vm_id: str, seed: str, wanted: str | None = None) -> str:
    """Choose and lease in one go, for any number of processes at once."""
    while True:
        ip = choose_ip(store, network, seed, wanted, vm_id=vm_id)
        try:
            lease(store, network, ip, vm_id)
        except ConflictError:
            if wanted is not None or lease_holder(store, network["id"], ip) is None:
                raise
            continue
        return ip


def release(store: Store, network_id: str, ip: str, vm_id: str) -> None:
    """Give *ip* back if the VM has it."""
    if lease_holder(store, network_id, ip) == vm_id:
        remove_file(_lease(store, network_id, ip))


def purge(store: Store, vm_id: str) -> bool:
    """Take everything from a VM on every network: for records whose writer died. Looks at all leases.

    :return: whether published ports were among it (:func:`sync` is due then).
    """
    ported = False
    for _name, network_id in every(store):
        for kind in ("ports", "leases", CHOSEN6):
            for name in names(store, network_id, kind):
                path = os.path.join(directory(store, network_id, kind), name)
                if holder(path) == vm_id:
                    remove_file(path)
                    ported = ported or kind == "ports"
        with contextlib.suppress(FileNotFoundError):
            detach(store, network_id, vm_id)
    return ported
