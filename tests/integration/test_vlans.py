# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An uplink on a bridge of ours, and VLANs: frames of guests' TAPs, seen from behind the uplink and from each other."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ConflictError, InputError, UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._network import kernel, links, wires
from ansible_collections.cocoon.microvm.plugins.module_utils._network.tap import join_bridge, open_tap
from ansible_collections.cocoon.microvm.tests.integration.support.hosts import Host, MakeNetns, make_host
from ansible_collections.cocoon.microvm.tests.integration.support.machine import command
from ansible_collections.cocoon.microvm.tests.integration.support.networking import address, inside, plug

KIND = 0x88B5  # for experiments
MACS = {"a": "02:00:00:00:00:0a", "b": "02:00:00:00:00:0b", "c": "02:00:00:00:00:0c"}
VLANS = {"a": 20, "b": 30, "c": None}
VNET = bytes(10)
ANSWER, SILENCE = 5.0, 0.3


@pytest.fixture(name="host")
def fixture_host(make_netns: MakeNetns, make_store: Callable[[], dict[str, str]]) -> Iterator[Host]:
    """A host with an interface that leads to two VLANs, and to what is in none."""
    host = make_host(make_netns, make_store())
    plug(host.netns, "trunk0", host.outside, "t0")
    yield host
    host.network("trunk", state="absent", force=True)


def config(name: str) -> Any:
    vlan = {"vlan": VLANS[name]} if VLANS[name] else {}
    return {"tap": f"cmtestaaaa-{name}", "mac": MACS[name], "bridge_dev": "cm-trunk", **vlan}


def frame(mac: str, text: bytes) -> bytes:
    return b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) + struct.pack("!H", KIND) + text.ljust(46, b"\0")


class Ears:
    """All who may hear: TAPs of guests, and interfaces behind the uplink."""

    def __init__(self, host: Host, taps: dict[str, int], links: tuple[str, ...]) -> None:
        self.taps = taps
        self.outside = {}
        for name in links:
            self.outside[name] = inside(
                host.outside, socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(KIND)
            )
            self.outside[name].bind((name, KIND))

    def __enter__(self) -> Ears:
        return self

    def __exit__(self, *_exc: object) -> None:
        for fd in self.taps.values():
            os.close(fd)
        for sock in self.outside.values():
            sock.close()

    def who_hears(self, text: bytes, expected: set[str]) -> set[str]:
        """Those that are expected are given time, the others a little."""
        found = set()
        for name in sorted([*self.taps, *self.outside], key=lambda name: name not in expected):
            source = self.taps.get(name) or self.outside[name]
            if hears(source, text, ANSWER if name in expected else SILENCE):
                found.add(name)
        return found

    def says(self, name: str, text: bytes, expected: set[str]) -> bool:
        """Whether what a guest sends is heard by these and nobody else. It is said again until somebody does."""
        os.write(self.taps[name], VNET + frame(MACS[name], text))
        return self.who_hears(text, expected) == expected


def hears(source: int | socket.socket, text: bytes, wait: float) -> bool:
    """Whether a frame with that text arrives."""
    deadline = time.monotonic() + wait
    while (left := deadline - time.monotonic()) > 0 and select.select([source], [], [], left)[0]:
        got = os.read(source, 4096) if isinstance(source, int) else source.recv(4096)
        if text in got:
            return True
    return False


def until_forwarding(ears: Ears, guest: str, link: str) -> None:
    """A port needs a moment before it forwards."""
    for _attempt in range(50):
        os.write(ears.taps[guest], VNET + frame(MACS[guest], b"first"))
        if hears(ears.outside[link], b"first", 0.1):
            return
    raise AssertionError("nobody heard")


def test_an_uplink(host: Host) -> None:
    assert host.network("trunk", uplink="trunk0")["changed"] and not host.network("trunk")["changed"]
    taps = {"c": inside(host.netns, open_tap, config("c"), 1)[0]}
    with Ears(host, taps, ("t0",)) as ears:
        until_forwarding(ears, "c", "t0")
        ears.outside["t0"].send(frame("02:00:00:00:00:99", b"hello"))
        assert ears.who_hears(b"hello", {"c"}) >= {"c"}
        for damage in ("nomaster", "down"):
            command("ip", "-n", host.netns.name, "link", "set", "trunk0", damage)
            assert host.network("trunk", check=True)["diff"]["before"]["host"] == {"port": "missing"}
            assert host.network("trunk")["changed"] and not host.network("trunk")["changed"]
            until_forwarding(ears, "c", "t0")
    host.network("trunk", state="absent")
    assert inside(host.netns, kernel.kind, "cm-trunk") is None and inside(host.netns, kernel.kind, "trunk0") == "veth"


def test_vlans(host: Host) -> None:
    try:
        assert host.network("trunk", uplink="trunk0", vlan_filtering=True)["changed"]
    except UnsupportedError:
        pytest.skip("this kernel has no VLANs on bridges")
    assert not host.network("trunk")["changed"]
    for vlan in (20, 30):
        words = f"link add link t0 name t0.{vlan} type vlan id {vlan}".split()
        command("ip", "-n", host.outside.name, *words)
        command("ip", "-n", host.outside.name, "link", "set", f"t0.{vlan}", "up")
    taps = {name: inside(host.netns, open_tap, config(name), 1, name != "b")[0] for name in MACS}
    for _time in range(2):
        inside(host.netns, join_bridge, config("b"))  # as a clone does, and who comes after one that was killed
    with Ears(host, taps, ("t0.20", "t0.30")) as ears:
        for guest, link in (("a", "t0.20"), ("b", "t0.30")):
            until_forwarding(ears, guest, link)
            assert ears.says(guest, b"said by " + guest.encode(), {link})
            text = b"told " + guest.encode()
            ears.outside[link].send(frame("02:00:00:00:00:99", text))
            assert ears.who_hears(text, {guest}) == {guest}
        assert ears.says("c", b"said by c", set())
        # What somebody has changed, or a run that was killed has not done, is seen, and put back.
        command("bridge", "-n", host.netns.name, "vlan", "del", "dev", "trunk0", "vid", "2-4094")
        assert host.network("trunk", check=True)["diff"]["before"]["host"] == {"port": "missing"}
        assert host.network("trunk")["changed"] and not host.network("trunk")["changed"]
        command("bridge", "-n", host.netns.name, "vlan", "add", "dev", "cmtestaaaa-a", "vid", "30")
        network = host.record("trunk")
        assert inside(host.netns, lambda: wires.faults(config("a"), network, wires.look())) == ["not in VLAN 20"]
        inside(host.netns, wires.mend, config("a"), network)
        assert inside(host.netns, lambda: wires.faults(config("a"), network, wires.look())) == []


def test_what_is_refused(host: Host) -> None:
    with pytest.raises(InputError, match="mtu: 9000 is beyond the 1500 of the uplink trunk0"):
        host.network("trunk", uplink="trunk0", mtu=9000)
    for own in [*(["2001:db8::9/64"] if links.has_ipv6() else []), "192.0.2.9/24"]:
        address(host.netns, "trunk0", own)
        with pytest.raises(ConflictError, match=f"uplink: trunk0 has the address {own.partition('/')[0]}"):
            host.network("trunk", uplink="trunk0")
    assert inside(host.netns, links.index_of, "cm-trunk") is None
    host.network("trunk")
    with pytest.raises(ConflictError, match="vlan: the bridge cm-trunk keeps no VLANs apart"):
        inside(host.netns, open_tap, config("a"), 1)
    assert inside(host.netns, links.index_of, "cmtestaaaa-a") is None
