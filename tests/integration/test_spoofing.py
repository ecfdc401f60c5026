# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a hostile guest sends under another's name: crafted frames on a guarded TAP, looked for on its neighbour's."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._network import attachments, guard, nftables
from ansible_collections.cocoon.microvm.plugins.module_utils._network.tap import open_tap
from ansible_collections.cocoon.microvm.tests.integration.support import audit
from ansible_collections.cocoon.microvm.tests.integration.support.engine import GUEST, IDLE, Engine, idle_image
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns
from ansible_collections.cocoon.microvm.tests.integration.support.networking import inside
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules

MAC, OTHER_MAC = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
IP, OTHER_IP, GATEWAY = "10.97.0.10", "10.97.0.11", "10.97.0.1"
SECOND_IP = "10.97.0.12"  # of the same VM, on another NIC
LOCAL, OTHER_LOCAL = "fe80::ff:fe00:a", "fe80::ff:fe00:b"
TAP, NEIGHBOUR = "cmspoofaaa-0", "cmspoofbbb-0"
PATIENCE = 10.0


def packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def frame(kind: int, payload: bytes, source: str = MAC, target: str = "ff:ff:ff:ff:ff:ff") -> bytes:
    return (packed(target) + packed(source) + struct.pack("!H", kind) + payload).ljust(60, b"\0")


def arp(operation: int = 1, hardware: str = MAC, address: str = IP, source: str = MAC) -> bytes:
    head = struct.pack("!HHBBH", 1, 0x800, 6, 4, operation)
    body = packed(hardware) + socket.inet_aton(address) + bytes(6) + socket.inet_aton(OTHER_IP)
    return frame(0x806, head + body, source)


def ipv4(address: str = IP, port: int = 5000, source: str = MAC) -> bytes:
    udp = struct.pack("!HHHH", port, 9, 12, 0) + b"data"
    addresses = socket.inet_aton(address) + socket.inet_aton(OTHER_IP)
    head = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(udp), 0, 0, 64, 17)
    total = sum(struct.unpack("!9H", head + addresses))
    # Some bridges look at it.
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return frame(0x800, head + struct.pack("!H", checksum) + addresses + udp, source)


def dhcp(hardware: str = MAC) -> bytes:
    """Of a guest without an address, which asks about that of *hardware*."""
    udp = struct.pack("!HHHH", 68, 67, 44, 0) + struct.pack("!BBBBI", 1, 1, 6, 0, 7) + bytes(20) + packed(hardware)
    udp += bytes(2)
    addresses = bytes(4) + b"\xff" * 4
    head = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(udp), 0, 0, 64, 17)
    total = sum(struct.unpack("!9H", head + addresses))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return frame(0x800, head + struct.pack("!H", checksum) + addresses + udp)


def ipv6(address: str, header: int, payload: bytes, source: str = MAC) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(payload), header, 255)
    addresses = socket.inet_pton(socket.AF_INET6, address) + socket.inet_pton(socket.AF_INET6, "ff02::1")
    return frame(0x86DD, head + addresses + payload, source, "33:33:00:00:00:01")


def neighbour(kind: int, about: str, address: str = LOCAL) -> bytes:
    """A neighbour solicitation (135) or advertisement (136)."""
    return ipv6(address, 58, struct.pack("!BBHI", kind, 0, 0, 0) + socket.inet_pton(socket.AF_INET6, about))


def tagged(inner: bytes, kind: int) -> bytes:
    return inner[:12] + struct.pack("!HH", kind, 5) + inner[12:]


RIGHT = {
    "arp": arp(),
    "arp reply": arp(2),
    "arp probe": arp(address="0.0.0.0"),
    "arp for its other address": arp(2, address=SECOND_IP),
    "ipv4": ipv4(),
    "ipv4 of its other address": ipv4(SECOND_IP),
    "solicitation": neighbour(135, OTHER_LOCAL),
    "duplicate address detection": neighbour(135, LOCAL, "::"),
    "advertisement": neighbour(136, LOCAL),
}
# What is wrong even where the network gives no addresses.
ALIEN = {
    "foreign MAC": ipv4(source=OTHER_MAC),
    "foreign MAC in arp": arp(hardware=OTHER_MAC),
    "foreign MAC of an arp": arp(source=OTHER_MAC, hardware=OTHER_MAC),
    "foreign MAC and ipv6": ipv6(LOCAL, 59, b"nothing!", OTHER_MAC),
    "vlan": tagged(ipv4(), 0x8100),
    "vlan in vlan": tagged(ipv4(), 0x88A8),
}
WRONG = {
    "foreign address": ipv4(OTHER_IP),
    "gateway's address": ipv4(GATEWAY),
    "no address": ipv4("0.0.0.0"),
    "arp for another": arp(address=OTHER_IP),
    "arp reply for the gateway": arp(2, address=GATEWAY),
    "dhcp server": ipv4(port=67),
    "foreign ipv6": ipv6("fd00::1", 59, b"nothing!"),
    "neighbour's ipv6": ipv6(OTHER_LOCAL, 59, b"nothing!"),
    "advertisement for another": neighbour(136, OTHER_LOCAL),
    "router advertisement": ipv6(LOCAL, 58, struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)),
    "redirect": neighbour(137, OTHER_LOCAL),
    "dhcpv6 server": ipv6(LOCAL, 17, struct.pack("!HHHH", 547, 546, 8, 0)),
}


# Where the network answers to DHCP.
ASKED = {"its own lease": dhcp(), "another's lease": dhcp(OTHER_MAC)}


@pytest.fixture(scope="module", name="engine")
def fixture_engine(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    scratch: Path,
) -> Iterator[Engine]:
    engine = Engine(make_netns(), make_store())
    modules(engine.netns, engine.dirs)("cocoon_image", name=IDLE, **idle_image(scratch))
    try:
        engine.network(subnet="10.97.0.0/24", nat=False)
        yield engine
    finally:
        audit.clean(engine)
    assert not audit.held(engine)


@contextlib.contextmanager
def tap(engine: Engine, name: str, mac: str) -> Iterator[int]:
    """A TAP on the network's bridge, held as a hypervisor does."""
    (fd,) = inside(engine.netns, open_tap, {"tap": name, "mac": mac, "bridge_dev": "cm-lab"}, 1)
    try:
        yield fd
    finally:
        os.close(fd)


def arrived(sender: int, receiver: int, frames: dict[str, bytes]) -> set[str]:
    """Which of the frames come out at the neighbour. A last one, that nothing may stop, says that no more will come."""
    last = ipv4(port=9999)
    for data in frames.values():
        os.write(sender, bytes(10) + data)
    found: set[str] = set()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        os.write(sender, bytes(10) + last)
        while select.select([receiver], [], [], 0.1)[0]:
            data = os.read(receiver, 4096)[10:]
            if last[: len(data)] == data:  # without the padding, perhaps
                return found
            found |= {name for name, sent in frames.items() if sent[: len(data)] == data}
    raise AssertionError("nothing comes through")


def config(**more: Any) -> dict[str, Any]:
    return {"tap": TAP, "mac": MAC, "bridge_dev": "cm-lab", "network": {"ip": IP, "prefix": 24}, **more}


@pytest.mark.parametrize("address", [True, False])
def test_only_what_is_its_own_leaves_a_guest(engine: Engine, address: bool) -> None:
    first = config() if address else config(network={})
    nic = guard.Nic(first, {"adopted": False}, (IP, SECOND_IP))
    everything = {**RIGHT, **ALIEN, **WRONG}
    with tap(engine, TAP, MAC) as sender, tap(engine, NEIGHBOUR, OTHER_MAC) as receiver:
        whole = {**everything, **ASKED}
        assert arrived(sender, receiver, whole) == set(whole), "the frames are such as a bridge passes on"
        inside(engine.netns, guard.ensure, engine.store, [nic])
        assert inside(engine.netns, guard.faults, engine.store.store_id, nic) == []
        right = {**RIGHT} if address else {**RIGHT, **WRONG}
        assert arrived(sender, receiver, everything) == set(right)
        asking = nic._replace(network={"adopted": False, "dhcp": True})
        inside(engine.netns, guard.ensure, engine.store, [asking])
        assert arrived(sender, receiver, whole) == {*right, "its own lease"}
        # Of a neighbour that has no rules nothing is stopped.
        assert arrived(receiver, sender, ALIEN) == set(ALIEN)
        off = nic._replace(network={"adopted": False, "anti_spoofing": False})
        inside(engine.netns, guard.ensure, engine.store, [off])
        assert arrived(sender, receiver, everything) == set(everything)
    assert not inside(engine.netns, nftables.has_element, table(engine), guard.MAP, TAP)


def table(engine: Engine) -> str:
    return f"cocoon_{engine.store.store_id[:8]}"


def test_a_vm_is_guarded_for_as_long_as_it_is_there(engine: Engine) -> None:
    vm = {"name": "one", **GUEST}
    made = engine.vm(**vm, state="started")["vm"]
    (nic,) = made["network_configs"]
    network = attachments.load(engine.store, "lab")
    assert network

    def faults() -> list[str]:
        (one,) = guard.nics(made["network_configs"], lambda _config: network)
        return inside(engine.netns, guard.faults, engine.store.store_id, one)

    assert faults() == []
    damages = [
        "nft flush ruleset",
        f"nft delete table bridge {table(engine)}",
        f"nft flush map bridge {table(engine)} guards",
        f"nft flush chain bridge {table(engine)} arriving",
        f"nft flush chain bridge {table(engine)} {nic['tap']}",
        f"nft insert rule bridge {table(engine)} {nic['tap']} accept",
    ]
    for number, damage in enumerate(damages):
        engine.netns.run(*damage.split())
        assert faults() == [guard.UNGUARDED], damage
        if number % 2:
            told = engine.network()
            assert told["diff"]["before"]["host"]["nics[0] of one"] == guard.UNGUARDED
        else:
            told = engine.vm(**vm, state="started")
            assert told["diff"]["before"]["nics[0]"] == guard.UNGUARDED
        assert told["changed"] and faults() == [], damage
        assert not engine.vm(**vm, state="started")["changed"]
        if not number:
            engine.network()  # the other table went with it
    assert engine.network(anti_spoofing=False)["changed"]
    assert nic["tap"] not in engine.netns.run("nft", "list", "ruleset")
    assert not engine.vm(**vm, state="started")["changed"]
    assert engine.network(anti_spoofing=True)["changed"]
    assert nic["tap"] in engine.netns.run("nft", "list", "ruleset")
    engine.vm(name="one", state="absent", force=True)
    assert nic["tap"] not in engine.netns.run("nft", "list", "ruleset")


def test_nothing_is_left_of_the_last_network(engine: Engine) -> None:
    engine.network(name="other", subnet="10.98.0.0/24")
    engine.vm(**{"name": "two", **GUEST, "network": "other"}, state="started")
    engine.vm(name="two", state="absent", force=True)
    engine.network(name="other", state="absent")
    assert table(engine) in engine.netns.run("nft", "list", "tables")
    engine.network(state="absent")
    assert engine.netns.run("nft", "list", "ruleset") == ""
    engine.network(subnet="10.97.0.0/24", nat=False)
