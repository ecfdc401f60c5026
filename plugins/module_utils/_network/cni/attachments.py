# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Interfaces that plugins have made for VMs: one file each, written before the first plugin runs and removed after DEL.

It has all that DEL needs, so that what was set up is taken down whatever became of the VM, the network or the conflist.
A file whose DEL failed stays; whoever comes next tries again.
"""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._network import leases, namespaces, ports
from ansible_collections.cocoon.microvm.plugins.module_utils._network.cni import conflists, plugins
from ansible_collections.cocoon.microvm.plugins.module_utils._network.cni.plugins import Call
from ansible_collections.cocoon.microvm.plugins.module_utils._state import (
    Store,
    flock,
    read_json,
    remove_file,
    write_json,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkRecord

FOLDER = leases.ATTACHMENTS
ADDING, ADDED = "adding", "added"
LOCK_TIMEOUT = 120.0


def checkpoint(_name: str) -> None:
    """Called between two side effects; tests end the process here."""


class Wish(t.NamedTuple):
    """What an interface is to have. *ip* and *prefix* are those of earlier, or what the user asked for.

    *cidr6* is the IPv6 address of earlier.
    """

    mac: str
    ip: str | None
    prefix: int
    ports: tuple[str, ...]
    cidr6: str | None = None


def path_of(store: Store, network_id: str, vm_id: str, ifname: str) -> str:
    return os.path.join(leases.directory(store, network_id, FOLDER), f"{vm_id}-{ifname}")


def read(path: str) -> Record | None:
    """:raises StateError: it is damaged."""
    document = read_json(path)
    return None if document is None else check(document)


def check(document: Record) -> Record:
    """:raises StateError: what DEL needs is not there."""
    texts = ("vm_id", "ifname", "netns", "args", "state")
    whole = all(isinstance(document.get(key), str) for key in texts)
    conflist = document.get("conflist")
    whole = whole and isinstance(conflist, dict) and {"name", "version", "plugins"} <= set(conflist)
    if not whole or not isinstance(document.get("folders"), list):
        raise StateError("it is no interface of a plugin's")
    return document


def every(store: Store, network_id: str) -> list[Record]:
    """Those of a network, but for what cannot be read."""
    found = []
    for name in leases.names(store, network_id, FOLDER):
        with contextlib.suppress(StateError):
            note = read(os.path.join(leases.directory(store, network_id, FOLDER), name))
            if note is not None:
                found.append(note)
    return found


def of_vm(store: Store, vm_id: str) -> list[tuple[str, str, str]]:
    """(network's id, interface, path) of each that a VM has, whatever its record says."""
    found = []
    for _name, network_id in leases.every(store):
        for name in leases.names(store, network_id, FOLDER):
            owner, _dash, ifname = name.rpartition("-")
            if owner == vm_id:
                found.append((network_id, ifname, path_of(store, network_id, vm_id, ifname)))
    return found


def leftovers(store: Store, network_id: str) -> list[str]:
    """Files of interfaces that no VM has any more: DEL failed, or its writer died."""
    return [
        os.path.join(leases.directory(store, network_id, FOLDER), name)
        for name in leases.names(store, network_id, FOLDER)
        if not _has(store, name.rpartition("-")[0], network_id, name.rpartition("-")[2])
    ]


def _has(store: Store, vm_id: str, network_id: str, ifname: str) -> bool:
    """Whether a VM has that NIC; one of which that cannot be told has it."""
    if not os.path.isdir(store.paths.vm_dir(vm_id)):
        return False
    record = store.load_vm(vm_id)
    if record is None or record.get("bare") or record.get("damaged"):
        return True
    nics = [*enumerate(record.get("network_configs") or ()), *enumerate(record.get("planned_nics") or ())]
    return any(f"eth{index}" == ifname and nic.get("network_id") == network_id for index, nic in nics)


def matches(note: Record, wish: Wish) -> bool:
    """Whether an interface is complete and has what it is to have."""
    return bool(
        note["state"] == ADDED
        and note.get("mac") == wish.mac
        and note.get("ports") == list(wish.ports)
        and wish.ip in (None, note.get("ip"))
        and wish.cidr6 in (None, note.get("cidr6"))
    )


def add(store: Store, network: NetworkRecord, vm_id: str, ifname: str, wish: Wish) -> Record:
    """Have the plugins make an interface in the VM's namespace; what is noted of it, with ``result``.

    :raises CocoonError: a plugin failed, or the conflist is not there; what had been done is taken back.
    """
    conflist = conflists.of_network(network)
    path = path_of(store, network["id"], vm_id, ifname)
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    note: Record = {
        **{"vm_id": vm_id, "ifname": ifname, "netns": namespaces.path_of(vm_id), "state": ADDING},
        **{"conflist": conflist.record(), "folders": list(network["cni_bin_dir"] or ())},
        **{"args": arguments(conflist, wish), "capabilities": capabilities(wish), "result": None},
        **{"mac": wish.mac, "ip": None, "ports": list(wish.ports)},
    }
    write_json(path, note)
    checkpoint("cni.noted")
    try:
        namespaces.create(note["netns"])
        checkpoint("cni.netns")
        with _held(path) as lock:
            result = plugins.add(conflist, _call(note, lock))
    except Exception:
        with contextlib.suppress(CocoonError):  # the first error tells more, and the file stays
            delete(path)
        raise
    checkpoint("cni.added")
    return {**note, "state": ADDED, "result": result}


def complete(path: str, note: Record, ip: str | None, cidr6: str | None) -> None:
    """Note that an interface is whole, and which addresses it has."""
    write_json(path, {**note, "ip": ip, "cidr6": cidr6})
    checkpoint("cni.complete")


def delete(path: str) -> None:
    """Have the plugins take an interface down, and forget it.

    :raises CocoonError: one of them failed; the file stays.
    """
    note = read(path)
    if note is None:
        return
    with _held(path) as lock:
        if read(path) is None:  # somebody else was at it, too
            return
        plugins.delete(conflists.of_record(note["conflist"]), _call(note, lock), note.get("result"))
        checkpoint("cni.deleted")
        remove_file(path)
    remove_file(f"{path}.lock.tmp")
    checkpoint("cni.forgotten")


def _call(note: Record, lock: int) -> Call:
    return Call(
        **{key: note[key] for key in ("vm_id", "ifname", "netns", "args", "folders")},
        capabilities=note.get("capabilities") or {},
        lock=lock,
    )


@contextlib.contextmanager
def _held(path: str) -> t.Iterator[int]:
    """Nobody else has plugins work on this interface; they hold the lock, too, should this process be killed."""
    fd = os.open(f"{path}.lock.tmp", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        flock(fd, f"the interface {os.path.basename(path)}", time.monotonic() + LOCK_TIMEOUT, LOCK_TIMEOUT)
        yield fd
    finally:
        os.close(fd)


# -- what plugins are told; pure ------------------------------------------------------------------------------------


def arguments(conflist: conflists.Conflist, wish: Wish) -> str:
    """CNI_ARGS. An ipam that has its addresses from its own configuration would stumble over one without a prefix."""
    static = any(str((plugin.get("ipam") or {}).get("type")) == "static" for plugin in conflist.plugins)
    words = ["IgnoreUnknown=1"]
    words += [f"IP={wish.ip}"] if wish.ip and not static else []
    return ";".join([*words, f"MAC={wish.mac}"])


def capabilities(wish: Wish) -> Record:
    """The conventional arguments for plugins that have those capabilities."""
    found: Record = {"mac": wish.mac}
    asked = [*([f"{wish.ip}/{wish.prefix}"] if wish.ip and wish.prefix else ()), *filter(None, [wish.cidr6])]
    if asked:
        found["ips"] = asked
    if wish.ports:
        found["portMappings"] = [_mapping(port) for port in ports.check_ports(wish.ports)]
    return found


def _mapping(port: ports.Port) -> Record:
    found = {"hostPort": port.host_port, "containerPort": port.guest_port, "protocol": port.protocol}
    return {**found, **({"hostIP": port.host_ip} if port.host_ip else {})}
