# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with a TAP, by a look at the interfaces."""

from __future__ import annotations

import dataclasses
import struct
import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._network import netlink, wires
from ansible_collections.cocoon.microvm.plugins.module_utils._network.wires import Wire, Wires

BRIDGE = Wire(index=3, up=True, mtu=1500, master=0)
TAP = Wire(index=7, up=True, mtu=1500, master=3)
OURS, ADOPTED = {"adopted": False}, {"adopted": True}


@pytest.mark.parametrize(
    ("change", "network", "config", "words"),
    [
        ({}, OURS, {}, []),
        ({"up": False}, OURS, {}, ["down"]),
        ({"master": 0}, OURS, {}, ["not on br0"]),
        ({"master": 4}, OURS, {}, ["not on br0"]),
        ({"master": 0, "up": False}, OURS, {}, ["not on br0", "down"]),
        ({"mtu": 1400}, OURS, {}, ["MTU 1400 and not 1500"]),
        ({"mtu": 1400}, OURS, {"mtu": 1400}, []),
        ({"mtu": 9000}, ADOPTED, {}, []),
        ({"mtu": 9000}, ADOPTED, {"mtu": 1400}, ["MTU 9000 and not 1400"]),
        ({"hairpin": True}, OURS, {}, ["in hairpin mode"]),
        ({"hairpin": True}, ADOPTED, {}, []),
        ({"isolated": True}, OURS, {}, ["isolated"]),
        ({"isolated": True}, {**OURS, "isolated": True}, {}, []),
        ({}, {**OURS, "isolated": True}, {}, ["not isolated"]),
        ({}, {**ADOPTED, "isolated": True}, {}, ["not isolated"]),
        ({"isolated": True}, ADOPTED, {}, []),
    ],
)
def test_faults(change: dict[str, t.Any], network: dict, config: dict, words: list[str]) -> None:
    links = Wires({"br0": BRIDGE, "cm1-0": dataclasses.replace(TAP, **change)})
    assert wires.faults({"tap": "cm1-0", "bridge_dev": "br0", **config}, network, links) == words


def test_what_is_gone() -> None:
    config = {"tap": "cm1-0", "bridge_dev": "br0"}
    assert wires.faults(config, OURS, Wires({"br0": BRIDGE})) == [wires.GONE]
    assert wires.faults(config, OURS, Wires({"cm1-0": TAP})) == ["not on br0"]


def test_a_nic_that_is_on_no_bridge_of_ours() -> None:
    assert wires.faults({"tap": "cm1-0"}, OURS, Wires()) == []
    assert wires.faults({"tap": "tap0", "bridge_dev": "br0", "netns_path": "/run/netns/x"}, OURS, Wires()) == []


@pytest.mark.parametrize(
    ("record", "settled"),
    [
        ({}, True),
        ({"state": "paused"}, True),
        ({"state": "stopped"}, False),
        ({"phase": "start"}, False),
        ({"identity_pending": ["02:00:00:00:00:01"]}, False),  # kept off its network until it has another MAC
        ({"network_configs": []}, False),
    ],
)
def test_which_vms_are_looked_at(record: dict[str, t.Any], settled: bool) -> None:
    assert wires.is_settled({"state": "running", "network_configs": [{}], **record}) is settled


def test_attributes_are_read_as_they_are_written() -> None:
    data = netlink.attribute(3, b"cm1-0\0") + netlink.attribute(4, b"\x01\0\0\0") + netlink.attribute(0x8000 | 18, b"")
    assert netlink.attributes(data) == {3: b"cm1-0\0", 4: b"\x01\0\0\0", 18: b""}


def test_attributes_that_end_early() -> None:
    assert netlink.attributes(b"\x08\0\x03\0ab") == {3: b"ab"}
    assert netlink.attributes(b"\0\0\x03\0abcd") == {}


def test_what_many_nics_are_asked_for_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(wires.shaping, "rates", lambda: asked.append("rates") or {7: 1000})
    monkeypatch.setattr(wires, "vlans", lambda: asked.append("vlans") or {7: {20: 6}})
    links = Wires({"br0": BRIDGE, **{f"cm{number}-0": TAP for number in range(5)}})
    config = {"bridge_dev": "br0", "limits": {"rx": {"rate": 1000, "burst": 2000}}, "vlan": 20}
    for number in range(5):
        plain = {"tap": f"cm{number}-0", "bridge_dev": "br0"}
        assert wires.faults(plain, OURS, links) == []
    assert asked == []
    for number in range(5):
        assert wires.faults({**config, "tap": f"cm{number}-0"}, OURS, links) == []
    assert sorted(asked) == ["rates", "vlans"]
    other = {**config, "tap": "cm0-0", "vlan": 30, "limits": {"rx": {"rate": 1, "burst": 2}}}
    assert wires.faults(other, OURS, links) == ["not limited", "not in VLAN 30"]


def test_vlans_of_a_port() -> None:
    """Ranges stand there by their ends, with a flag each."""
    entries = [(2, 1), (8, 5), (16, 7), (0, 9), (8, 20), (16, 21)]
    spec = b"".join(netlink.attribute(2, struct.pack("=HH", *entry)) for entry in entries)
    assert wires._listed(spec) == {1: 2, 5: 0, 6: 0, 7: 0, 9: 0, 20: 0, 21: 0}
