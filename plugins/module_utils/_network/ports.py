# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports of the host that lead to guests: ``[hostip:]8080:80[/udp]``."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import ipaddress
import os
import re
import socket
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    ConflictError,
    InputError,
    NotFoundError,
    StateError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._network import backends, leases
from ansible_collections.cocoon.microvm.plugins.module_utils._state import (
    Store,
    create_json,
    read_json,
    remove_file,
    write_json,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkRecord

PORT_RE = re.compile(
    r"^(?:(?P<ip>[0-9]+(?:\.[0-9]+){3}):)?(?P<host>[0-9]{1,5}):(?P<guest>[0-9]{1,5})(?:/(?P<protocol>tcp|udp))?\Z"
)
SOCKET_TYPES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


@dataclasses.dataclass(frozen=True, order=True)
class Port:
    """One published port; ``host_ip`` is ``None`` for every address of the host, loopback too."""

    protocol: str
    host_ip: str | None
    host_port: int
    guest_port: int

    @property
    def key(self) -> str:
        """The name of its file: what can be held by one VM only."""
        return f"{self.protocol}-{self.host_ip or 'any'}-{self.host_port}"

    def __str__(self) -> str:
        """The shortest form that :func:`parse_port` takes back."""
        where = f"{self.host_ip}:" if self.host_ip else ""
        suffix = "/udp" if self.protocol == "udp" else ""
        return f"{where}{self.host_port}:{self.guest_port}{suffix}"


def of_record(item: Record) -> Port:
    """A published port from what is noted of it."""
    return Port(item["protocol"], item["host_ip"], item["host_port"], item["guest_port"])


def parse_port(text: str) -> Port:
    """One item of ``ports``.

    :raises InputError: not of the form, or a port outside 1 to 65535, or a host address that cannot be published.
    """
    match = PORT_RE.match(str(text).strip().lower())
    if not match:
        remedy = "Write it as 8080:80, 5353:53/udp or 192.0.2.1:443:443."
        if re.match(r"^[0-9]+\Z", str(text)):
            remedy = "Put it in quotes: YAML reads 2222:22 as a number (of base 60)."
        raise InputError(f"'{text}' is not a published port", "ports", remedy)
    host, guest = int(match.group("host")), int(match.group("guest"))
    for number in (host, guest):
        if not 1 <= number <= 65535:
            raise InputError(f"'{text}': {number} is not a port", "ports", "Ports go from 1 to 65535.")
    return Port(match.group("protocol") or "tcp", _host_ip(match.group("ip"), text), host, guest)


def _host_ip(ip: str | None, text: str) -> str | None:
    if ip is None:
        return None
    try:
        address = ipaddress.IPv4Address(ip)
    except ValueError:
        raise InputError(f"'{text}': {ip} is not an IPv4 address", "ports", "Use an address of the host.") from None
    if address.is_unspecified:
        return None
    if address.is_multicast:
        raise InputError(f"'{text}': {ip} cannot be published", "ports", "Use an address of the host.")
    return str(address)


def check_ports(ports: t.Iterable[str]) -> list[Port]:
    """The parsed list.

    :raises InputError: see :func:`parse_port`, or one host port given twice.
    """
    found: dict[str, Port] = {}
    for text in ports:
        port = parse_port(text)
        if port.key in found:
            raise InputError(f"'{text}': host port {port.host_port}/{port.protocol} is given twice", "ports")
        found[port.key] = port
    return list(found.values())


def published(store: Store, network_id: str) -> list[Record]:
    """The published ports of a network: ``protocol, host_ip, host_port, ip, guest_port, vm_id``, in order.

    A file that is damaged publishes nothing; the doctor finds it.
    """
    found = []
    for name in leases.names(store, network_id, "ports"):
        with contextlib.suppress(StateError):
            document = read_json(os.path.join(leases.directory(store, network_id, "ports"), name))
            if document is not None:
                found.append(read_port(document))
    return found


def read_port(document: Record) -> Record:
    """:raises StateError: what a published port has is not there."""
    whole = {field.name for field in dataclasses.fields(Port)} | {"ip", "vm_id"} <= set(document)
    if not whole or not isinstance(document["vm_id"], str):
        raise StateError("it is no published port")
    return document


def check_free(
    store: Store, network: NetworkRecord, vm_id: str | None, ports: t.Iterable[Port], moving: bool = False
) -> None:
    """That the VM (``None``: one to be made) may publish these ports on this network.

    :param moving: those that it has on another network are given back first.
    :raises ChangeRefusedError: the network has no NAT, and no plugin for it.
    :raises ConflictError: another VM or a process of the host has one of them; the message names the holder.
    """
    wanted = list(ports)
    if not wanted:
        return
    backends.of(network).check_ports(network)
    networks = leases.every(store)
    for port in wanted:
        ours = False
        for name, network_id in networks:
            holder = leases.holder(os.path.join(leases.directory(store, network_id, "ports"), port.key))
            if holder is None:
                continue
            if holder != vm_id or not (moving or network_id == network["id"]):
                raise _taken(store, port, name, holder)
            ours = True
        if not ours:
            _check_host(port)


def _taken(store: Store, port: Port, network: str, vm_id: str) -> ConflictError:
    holder = f"VM '{leases.vm_name(store, vm_id)}'" if vm_id else "a VM that its file, which is damaged, does not tell"
    return ConflictError(
        f"host port {port.host_port}/{port.protocol} is published by {holder} on network '{network}'",
        "ports",
        "Use another host port.",
    )


def _check_host(port: Port) -> None:
    """Refuse a port on which the host itself listens: the guest would take it away (ssh, say)."""
    with socket.socket(socket.AF_INET, SOCKET_TYPES[port.protocol] | socket.SOCK_CLOEXEC) as probe:
        if port.protocol == "tcp":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections do not count
        try:
            probe.bind((port.host_ip or "0.0.0.0", port.host_port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise ConflictError(
                    f"host port {port.host_port}/{port.protocol} is in use by a process of the host",
                    "ports",
                    "Use another host port.",
                ) from exc
            if exc.errno == errno.EADDRNOTAVAIL:  # an address that the host has not got yet: a floating one, say
                return
            raise


def publish(store: Store, network: NetworkRecord, vm_id: str, ip: str, ports: t.Iterable[str]) -> None:
    """Write the files of the VM's ports; they work after the next ``sync``. Again for the same VM is fine.

    :param ip: the guest's address.
    :raises InputError: a port that can never be published.
    :raises ChangeRefusedError: the network has no NAT.
    :raises ConflictError: somebody else has one of them; none is taken then.
    """
    wanted = check_ports(ports)
    check_free(store, network, vm_id, wanted)
    made: list[Port] = []
    try:
        for port in wanted:
            if _publish(store, network, vm_id, ip, port):
                made.append(port)
        # Two networks may have been given one port at once; each sees the other now.
        check_free(store, network, vm_id, wanted)
    except ConflictError:
        unpublish(store, network["id"], vm_id, [str(port) for port in made])
        raise


def _publish(store: Store, network: NetworkRecord, vm_id: str, ip: str, port: Port) -> bool:
    path = os.path.join(leases.directory(store, network["id"], "ports"), port.key)
    document = {**dataclasses.asdict(port), "ip": ip, "vm_id": vm_id}
    try:
        if create_json(path, document):
            return True
    except FileNotFoundError:
        raise NotFoundError(f"network '{network['name']}' does not exist", "network") from None
    holder = leases.holder(path)
    if holder not in (None, vm_id):
        raise _taken(store, port, network["name"], holder or "")
    if read_json(path) != document:
        write_json(path, document, locked=True)
    return False


def unpublish(store: Store, network_id: str, vm_id: str, ports: t.Iterable[str] | None = None) -> bool:
    """Remove the files of those ports, or of all (``None``), if the VM has them; ``sync`` makes it so.

    :return: whether any was removed.
    """
    keys = leases.names(store, network_id, "ports") if ports is None else [parse_port(port).key for port in ports]
    removed = False
    for key in keys:
        path = os.path.join(leases.directory(store, network_id, "ports"), key)
        if leases.holder(path) == vm_id:
            remove_file(path)
            removed = True
    return removed
