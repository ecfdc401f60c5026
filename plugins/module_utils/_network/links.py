# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Interfaces by ioctl: quick looks and small changes that need no netlink library."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import ipaddress
import os
import socket
import struct
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError

IFNAMSIZ = 16
IFF_UP = 0x1
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
SIOCGIFADDR = 0x8915
SIOCGIFNETMASK = 0x891B
SIOCGIFMTU = 0x8921
SIOCSIFMTU = 0x8922
SIOCSIFHWADDR = 0x8924
SIOCGIFHWADDR = 0x8927
SIOCSIFTXQLEN = 0x8943
SIOCBRADDIF = 0x89A2
ARPHRD_ETHER = 1


@dataclasses.dataclass(frozen=True)
class Link:
    """What an interface is like; ``address`` is its first IPv4 address with prefix (``10.0.0.1/24``)."""

    index: int
    mac: str
    up: bool
    mtu: int
    address: str | None


def index_of(name: str) -> int | None:
    """The interface's index in the current network namespace, or ``None``."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def name_of(index: int) -> str | None:
    """The name of the interface with that index, or ``None``."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return None


class Control:
    """A socket for interface ioctls; it belongs to the network namespace it was opened in."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.close()

    def call(self, request: int, name: str, payload: bytes = b"") -> bytes:
        """One ioctl on ``struct ifreq``; gives the bytes after the name."""
        block = struct.pack("16s24s", name.encode(), payload)
        return fcntl.ioctl(self._socket.fileno(), request, block)[IFNAMSIZ:]

    def flags(self, name: str) -> int:
        return t.cast(int, struct.unpack_from("H", self.call(SIOCGIFFLAGS, name))[0])

    def set_up(self, name: str) -> None:
        self.call(SIOCSIFFLAGS, name, struct.pack("H", self.flags(name) | IFF_UP))

    def set_down(self, name: str) -> None:
        self.call(SIOCSIFFLAGS, name, struct.pack("H", self.flags(name) & ~IFF_UP))

    def mtu(self, name: str) -> int:
        return t.cast(int, struct.unpack_from("i", self.call(SIOCGIFMTU, name))[0])

    def set_mtu(self, name: str, mtu: int) -> None:
        self.call(SIOCSIFMTU, name, struct.pack("i", mtu))

    def set_queue_length(self, name: str, length: int) -> None:
        self.call(SIOCSIFTXQLEN, name, struct.pack("i", length))

    def mac(self, name: str) -> str:
        return self.call(SIOCGIFHWADDR, name)[2:8].hex(":")

    def set_mac(self, name: str, mac: str) -> None:
        self.call(SIOCSIFHWADDR, name, struct.pack("H6s", ARPHRD_ETHER, bytes.fromhex(mac.replace(":", ""))))

    def add_port(self, bridge: str, index: int) -> None:
        self.call(SIOCBRADDIF, bridge, struct.pack("i", index))

    def address(self, name: str) -> str | None:
        try:
            ip = self.call(SIOCGIFADDR, name)[4:8]
            mask = self.call(SIOCGIFNETMASK, name)[4:8]
        except OSError as exc:
            if exc.errno == errno.EADDRNOTAVAIL:
                return None
            raise
        return f"{ipaddress.IPv4Address(ip)}/{bin(int.from_bytes(mask, 'big')).count('1')}"


def look(name: str) -> Link | None:
    """The interface *name* in the current network namespace, or ``None``."""
    index = index_of(name)
    if index is None:
        return None
    with Control() as control, contextlib.suppress(OSError):  # it may go away while we look
        return Link(
            index, control.mac(name), bool(control.flags(name) & IFF_UP), control.mtu(name), control.address(name)
        )
    return None


def has_ipv6() -> bool:
    """Whether the kernel does IPv6 at all."""
    return os.path.isdir("/proc/sys/net/ipv6/conf")


def _sysctl(family: str, name: str, key: str) -> str:
    return os.path.join("/proc/sys/net", family, "conf", name, key)


def get_sysctl(family: str, name: str, key: str) -> str | None:
    """``net.<family>.conf.<name>.<key>``, or ``None`` where the interface or the family is not there."""
    try:
        with open(_sysctl(family, name, key), encoding="ascii") as stream:
            return stream.read().strip()
    except FileNotFoundError:
        return None


def set_sysctl(family: str, name: str, key: str, value: str) -> None:
    """Write it if it differs; where it does not exist nothing is done."""
    if get_sysctl(family, name, key) in (None, value):
        return
    try:
        with open(_sysctl(family, name, key), "w", encoding="ascii") as stream:
            stream.write(value)
    except OSError as exc:
        raise CocoonError(
            f"cannot set net.{family}.conf.{name}.{key}: {exc.strerror}",
            remedy="/proc/sys must be writable on a hypervisor host.",
        ) from exc
