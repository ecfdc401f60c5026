# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Traffic between network namespaces: work done inside one, sockets opened in one, pseudo guests on a bridge."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns, command

CLONE_NEWNET = 0x40000000
# How long an answer may take on one machine, and how long silence is taken for a refusal.
ANSWER = 10.0
SILENCE = 0.4

T = TypeVar("T")


def enter(netns: Netns) -> None:
    """Move this thread into the namespace for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(netns.path, "rb") as stream:
        if libc.setns(stream.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def inside(netns: Netns, work: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """What *work* gives when a thread does it in the namespace. A socket stays in the namespace it was opened in."""
    found: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            enter(netns)
            found.append(work(*arguments, **named))
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


def in_child(netns: Netns, work: Callable[[], Any]) -> int:
    """Do *work* in a forked process in the namespace. :returns: its exit status, negative for a signal."""
    number = os.fork()
    if number == 0:
        status = 1
        try:
            enter(netns)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def plug(first: Netns, name: str, second: Netns, other: str) -> None:
    """Connect two namespaces by a veth pair."""
    command("ip", "link", "add", name, "netns", first.name, "type", "veth", "peer", "name", other, "netns", second.name)
    for netns, link in ((first, name), (second, other)):
        command("ip", "-n", netns.name, "link", "set", link, "up")


def address(netns: Netns, link: str, cidr: str) -> None:
    command("ip", "-n", netns.name, "addr", "add", cidr, "dev", link)


def route(netns: Netns, *words: str) -> None:
    command("ip", "-n", netns.name, "route", "add", *words)


@dataclass
class Guest:
    """A namespace with an address on a bridge: it stands for a guest."""

    netns: Netns
    ip: str


def guest(make_netns: Callable[[], Netns], host: Netns, bridge: str, cidr: str, gateway: str | None) -> Guest:
    netns = make_netns()
    plug(host, f"g{netns.name.rpartition('-')[2]}", netns, "eth0")
    command("ip", "-n", host.name, "link", "set", f"g{netns.name.rpartition('-')[2]}", "master", bridge)
    address(netns, "eth0", cidr)
    if gateway:
        route(netns, "default", "via", gateway)
    return Guest(netns, cidr.partition("/")[0])


def _socket(kind: int, port: int, ip: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((ip, port))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    sock.settimeout(ANSWER)
    return sock


def tcp_reaches(
    source: Netns, target: Netns, ip: str, port: int, at: int | None = None, wait: float = ANSWER
) -> str | None:
    """Connect from *source* to ip:port while *target* listens on port *at*. :returns: the peer it sees, or None."""
    with inside(target, _socket, socket.SOCK_STREAM, at or port, "0.0.0.0") as server:
        client = inside(source, socket.socket, socket.AF_INET, socket.SOCK_STREAM)
        with client:
            client.setblocking(False)
            client.connect_ex((ip, port))
            ready, _writable, _failed = select.select([server], [], [], wait)
            if not ready:
                return None
            connection, peer = server.accept()
            with connection:
                connection.sendall(b"hello")
                client.settimeout(ANSWER)
                assert client.recv(5) == b"hello"
            return str(peer[0])


def tcp_blocked(source: Netns, target: Netns, ip: str, port: int, at: int | None = None) -> bool:
    """Whether nothing comes of it."""
    return tcp_reaches(source, target, ip, port, at, wait=SILENCE) is None


def udp_reaches(
    source: Netns,
    target: Netns,
    ip: str,
    port: int,
    at: int | None = None,
    reply: bool = True,
    wait: float = ANSWER,
) -> bool:
    """Send a datagram from *source* to ip:port while *target* waits at port *at*; its answer must come back."""
    with inside(target, _socket, socket.SOCK_DGRAM, at or port, "0.0.0.0" if at else ip) as server:
        with inside(source, _socket, socket.SOCK_DGRAM, 0, "0.0.0.0") as client:
            client.sendto(b"hello", (ip, port))
            if not select.select([server], [], [], wait)[0]:
                return False
            data, peer = server.recvfrom(64)
            if reply:
                server.sendto(data, peer)
                assert client.recvfrom(64) == (b"hello", (ip, port))
            return True


def udp_blocked(source: Netns, target: Netns, ip: str, port: int, at: int | None = None) -> bool:
    """Whether nothing comes of it."""
    return not udp_reaches(source, target, ip, port, at, reply=False, wait=SILENCE)


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def ping(source: Netns, ip: str, wait: float = ANSWER) -> bool:
    """Whether an ICMP echo request is answered."""
    with inside(source, socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        head = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, 1)
        packet = struct.pack("!BBHHH", 8, 0, _checksum(head + b"ping"), os.getpid() & 0xFFFF, 1) + b"ping"
        sock.sendto(packet, (ip, 0))
        deadline = time.monotonic() + wait
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([sock], [], [], left)[0]:
                return False
            data, peer = sock.recvfrom(2048)
            if peer[0] == ip and data[20] == 0:
                return True
    return False


def ping_blocked(source: Netns, ip: str) -> bool:
    """Whether there is no answer."""
    return not ping(source, ip, SILENCE)


ECHO = (
    'perl -e \'socket S, 2, 2, 17; bind S, pack "S n x12", 2, 7777;'
    " while (defined($from = recv S, $data, 65535, 0)) { send S, $data, 0, $from }' > /dev/null 2>&1 &"
)


def carries_much(netns: Netns, ip: str, shell: Callable[[str], object]) -> None:
    """A guest of the tiny image gives back datagrams of many frames, and sends a file by TCP, whole.

    :param shell: runs a script in the guest.
    """
    shell(f"{ECHO} head -c 3000000 /dev/urandom > /srv/www/much; sha256sum < /srv/www/much > /srv/www/sum")
    content = os.urandom(60000)

    def by_udp() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            line.settimeout(5)
            line.connect((ip, 7777))
            for _turn in range(12):  # it may not listen yet
                with contextlib.suppress(OSError):
                    line.send(content)
                    return line.recv(65535)
                time.sleep(1)
        raise AssertionError(f"no datagram of {len(content)} bytes comes back from {ip}")

    def by_tcp(name: str) -> bytes:
        with socket.create_connection((ip, 80), 60) as line:
            line.sendall(f"GET /{name} HTTP/1.0\r\n\r\n".encode())
            return b"".join(iter(lambda: line.recv(65536), b"")).partition(b"\r\n\r\n")[2]

    assert inside(netns, by_udp) == content
    much, digest = inside(netns, by_tcp, "much"), inside(netns, by_tcp, "sum").split()[0].decode()
    assert len(much) == 3000000 and hashlib.sha256(much).hexdigest() == digest
