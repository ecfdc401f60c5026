# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Netlink without a library, for what a run without changes looks at: a socket, messages, attributes."""

from __future__ import annotations

import socket
import struct
import typing as t

ROUTE, NETFILTER = 0, 12
REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
INTERRUPTED = 0x10
ERROR, DONE = 2, 3
HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")
TYPE_MASK = 0x3FFF


def channel(protocol: int) -> socket.socket:
    """A socket, of the network namespace that it is opened in."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    made.settimeout(10)
    made.bind((0, 0))
    return made


def attribute(kind: int, data: bytes) -> bytes:
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(data), kind) + data + b"\0" * (-len(data) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes that *data* is made of, by their type."""
    found, offset = {}, 0
    while offset + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < ATTRIBUTE.size:
            break
        found[kind & TYPE_MASK] = data[offset + ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


def request(kind: int, flags: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, REQUEST | flags, 1, 0) + body


def messages(protocol: int, message: bytes) -> t.Iterator[tuple[int, int, bytes]]:
    """(type, flags, body) of each message of a dump, which :data:`DONE` or :data:`ERROR` ends."""
    with channel(protocol) as line:
        line.send(message)
        while True:
            data = line.recv(1 << 18)
            offset = 0
            while offset + HEADER.size <= len(data):
                length, kind, flags, _sequence, _port = HEADER.unpack_from(data, offset)
                yield kind, flags, data[offset + HEADER.size : offset + length]
                if kind in (DONE, ERROR):
                    return
                offset += max((length + 3) & ~3, HEADER.size)


def ask(protocol: int, kind: int, body: bytes, flags: int = 0) -> int:
    """One change, with the kernel's answer: 0 or an errno."""
    with channel(protocol) as line:
        line.send(request(kind, ACK | flags, body))
        reply = line.recv(1 << 16)
    return -int(struct.unpack_from("=i", reply, HEADER.size)[0])
