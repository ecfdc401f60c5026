# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest asks of its network, from a network namespace: an address by DHCP, and names."""

from __future__ import annotations

import os
import select
import socket
import struct
import time

from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns
from ansible_collections.cocoon.microvm.tests.integration.support.networking import inside

ETH_P_IP = 0x0800
A, AAAA = 1, 28
COOKIE = b"\x63\x82\x53\x63"
DISCOVER, OFFER, REQUEST, ACK = 1, 2, 3, 5
ROUTER, SERVERS, ADDRESS, KIND, SERVER, MTU, SEARCH = 3, 6, 50, 53, 54, 26, 119


def name(guest: Netns, server: str, wanted: str, wait: float = 3.0, kind: int = A) -> str | None:
    """The address that a name server tells; empty if there is none, None if nobody answers."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in wanted.split("."))
    query = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, 1)
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with inside(guest, socket.socket, family, socket.SOCK_DGRAM) as sock:
        sock.connect((server, 53))
        try:
            sock.send(query)
            if not select.select([sock], [], [], wait)[0]:
                return None
            answer = sock.recv(512)
        except ConnectionRefusedError:
            return None
    if not struct.unpack("!H", answer[6:8])[0]:
        return ""
    return socket.inet_ntop(*((socket.AF_INET, answer[-4:]) if kind == A else (socket.AF_INET6, answer[-16:])))


def lease(guest: Netns, link: str = "eth0", wait: float = 5.0) -> dict[int, bytes] | None:
    """What a DHCP server gives the guest, by option, the address as option 50; None if nobody answers."""
    with inside(guest, socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP)) as sock:
        sock.bind((link, ETH_P_IP))
        mac = sock.getsockname()[4]
        offer = _exchange(sock, mac, DISCOVER, OFFER, {}, wait)
        if offer is None:
            return None
        return _exchange(sock, mac, REQUEST, ACK, {ADDRESS: offer[ADDRESS], SERVER: offer[SERVER]}, wait)


def _exchange(
    sock: socket.socket, mac: bytes, kind: int, wanted: int, options: dict[int, bytes], wait: float
) -> dict[int, bytes] | None:
    number = os.urandom(4)
    asked = {KIND: bytes([kind]), **options, 55: bytes([1, ROUTER, SERVERS, MTU, SEARCH])}
    body = struct.pack("!4B4sHH16x6s202x", 1, 1, 6, 0, number, 0, 0x8000, mac) + COOKIE
    body += b"".join(bytes([key, len(value)]) + value for key, value in asked.items()) + b"\xff"
    deadline = time.monotonic() + wait
    sock.send(_frame(mac, body))
    while (left := deadline - time.monotonic()) > 0 and select.select([sock], [], [], left)[0]:
        udp = sock.recv(2048)[34:]
        if udp[2:4] == b"\0D" and udp[12:16] == number:
            found = _options(udp[8:])
            if found[KIND] == bytes([wanted]):
                return {**found, ADDRESS: udp[24:28]}
    return None


def _frame(mac: bytes, body: bytes) -> bytes:
    udp = struct.pack("!HHHH", 68, 67, 8 + len(body), 0) + body
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
    total = sum(struct.unpack("!10H", head))
    total = (total >> 16) + (total & 0xFFFF)
    head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
    return b"\xff" * 6 + mac + struct.pack("!H", ETH_P_IP) + head + udp


def _options(message: bytes) -> dict[int, bytes]:
    found, at = {}, 240
    while at < len(message) and message[at] != 255:
        if message[at] == 0:
            at += 1
            continue
        length = message[at + 1]
        found[message[at]] = message[at + 2 : at + 2 + length]
        at += 2 + length
    return found
