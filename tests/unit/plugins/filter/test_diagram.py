# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t
from xml.etree import ElementTree

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.cocoon.microvm.plugins.filter.cocoon_diagram import cocoon_diagram

LAB: dict[str, t.Any] = {
    **{"name": "lab", "bridge": "cm-lab", "adopted": False, "subnet": "10.89.0.0/24", "nat": True, "names": True},
    "users": [{"id": "a", "name": "web1"}, {"id": "b", "name": "db1"}],
    "leases": [{"ip": "10.89.0.17", "vm": "web1", "vm_id": "a"}, {"ip": "10.89.0.9", "vm": "db1", "vm_id": "b"}],
    "ports": [{"vm": "web1", "port": "8080:80"}],
}
TRUNK: dict[str, t.Any] = {
    **{"name": "trunk", "bridge": "cm-trunk", "adopted": False, "subnet": None, "nat": False},
    **{"uplink": "eth1", "vlan_filtering": True, "users": [{"id": "b", "name": "db1"}], "leases": [], "ports": []},
}
OFFICE = {"name": "office", "bridge": "br0", "adopted": True, "subnet": None, "nat": False}
DAMAGED = {"name": "bad", "state": "error", "reason": 'cut off <"here">', "users": [], "leases": [], "ports": []}


def test_mermaid() -> None:
    assert cocoon_diagram({"hv1": [LAB, TRUNK]}).splitlines() == [
        "flowchart LR",
        '  subgraph h0["hv1"]',
        '    h0n2["lab<br>cm-lab, 10.89.0.0/24, names"]',
        '    h0n3["trunk<br>cm-trunk"]',
        '    h0n4["db1"]',
        '    h0n5["web1"]',
        "  end",
        '  h0n0(["outside"])',
        '  h0n1(["eth1"])',
        '  h0n0 ---|"NAT"| h0n2',
        '  h0n2 ---|"10.89.0.9"| h0n4',
        '  h0n2 ---|"10.89.0.17"| h0n5',
        '  h0n0 -->|"8080:80"| h0n5',
        '  h0n1 ---|"VLANs"| h0n3',
        "  h0n3 --- h0n4",
    ]


def test_an_image() -> None:
    picture = cocoon_diagram({"hv1": [LAB, TRUNK, OFFICE], "hv2": [DAMAGED]}, "svg")
    root = ElementTree.fromstring(picture)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for word in ("hv1", "hv2", "lab", "web1", "10.89.0.17", "8080:80", "NAT", "VLANs", "br0 of the host", "bad"):
        assert word in texts, word
    height = float(root.attrib["height"])
    for box in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(box.attrib.get("y", 0)) + float(box.attrib["height"]) <= height


def test_a_port_of_a_vm_of_which_nothing_else_is_known() -> None:
    network = {**LAB, "users": [], "leases": []}
    assert '  h0n0 -->|"8080:80"| h0n2' in cocoon_diagram({"hv1": [network]}).splitlines()
    assert "web1" in cocoon_diagram({"hv1": [network]}, "svg")


def test_nothing_to_draw() -> None:
    assert cocoon_diagram({}) == "flowchart LR\n"
    assert ElementTree.fromstring(cocoon_diagram({"hv1": []}, "svg")) is not None
    assert "#quot;here#quot;" in cocoon_diagram({"hv1": [DAMAGED]}) and "<br>cut off &lt;" in cocoon_diagram(
        {"hv1": [DAMAGED]}
    )


@pytest.mark.parametrize(("value", "format"), [([], "svg"), ({"hv1": [{}]}, "svg"), ({"hv1": 5}, "svg"), ({}, "png")])
def test_what_is_no_picture(value: t.Any, format: str) -> None:
    with pytest.raises(AnsibleFilterError, match="cocoon_diagram"):
        cocoon_diagram(value, format)
