# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks without a kernel: definitions, plans, rules as text, addresses and ports as files."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    ChangeRefusedError,
    CocoonError,
    ConflictError,
    InputError,
    NotFoundError,
    ResourceError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._network import (
    attachments,
    dnsmasq,
    firewall,
    forwarding,
    guests,
    kernel,
    leases,
    links,
    plan,
    ports,
    ruleset,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import subnets
from ansible_collections.cocoon.microvm.plugins.module_utils._process import boot_id
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, write_json

OLD: dict[str, Any] = {
    "id": "abcdefghijklmnopqrstuvwxyz",
    "name": "lab",
    "backend": "bridge",
    "bridge": "cm-lab",
    "adopted": False,
    "uplink": None,
    "vlan_filtering": False,
    "subnet": "10.1.0.0/24",
    "gateway": "10.1.0.1",
    "subnet6": None,
    "addresses6": "advertised",
    "routing6": "none",
    "range_start": None,
    "range_end": None,
    "nat": True,
    "isolated": False,
    "anti_spoofing": True,
    "mtu": None,
    "dns": ["8.8.8.8", "1.1.1.1"],
    "dns_search": [],
    "reserved": [],
    "names": False,
    "dhcp": False,
    "dhcp_range": None,
    "owner": "me",
    "labels": {},
}


SUBNET = {"subnet": "10.0.0.0/24"}


def network(**changes: Any) -> dict[str, Any]:
    return {**OLD, **changes}


@pytest.fixture()
def store(tmp_path: Path) -> Store:
    """A store with the network lab."""
    made = Store.open(Paths(*(str(tmp_path / name) for name in ("root", "run", "log"))))
    add(made, network())
    return made


def add(store: Store, record: dict[str, Any]) -> None:
    for folder in ("leases", "ports", "users"):
        os.makedirs(leases.directory(store, record["id"], folder))
    store.index("network").reserve(record["name"], record["id"])
    write_json(os.path.join(leases.directory(store, record["id"]), "network.json"), record)


# -- definitions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"name": "-x"}, "name"),
        ({"subnet": "10.0.0.0"}, "subnet"),
        ({"subnet": "10.0.0.0/33"}, "subnet"),
        ({"subnet": "10.0.0.0/31"}, "subnet"),
        ({"subnet": "0.0.0.0/0"}, "subnet"),
        ({"subnet": "10.0.0.5/24"}, "subnet"),
        ({"subnet": "127.0.0.0/24"}, "subnet"),
        ({"subnet": "224.0.0.0/24"}, "subnet"),
        ({"subnet": "fd00::/64"}, "subnet"),
        ({"subnet": "lab"}, "subnet"),
        ({"subnet": "10.0.0.0/24", "gateway": "10.0.1.1"}, "gateway"),
        ({"subnet": "10.0.0.0/24", "gateway": "10.0.0.0"}, "gateway"),
        ({"subnet": "10.0.0.0/24", "gateway": "10.0.0.255"}, "gateway"),
        ({"subnet": "10.0.0.0/24", "gateway": "gw"}, "gateway"),
        ({"gateway": "10.0.0.1"}, "gateway"),
        ({"range_start": "10.0.0.9"}, "range_start"),
        ({"subnet": "10.0.0.0/24", "range_end": "10.1.0.9"}, "range_end"),
        ({"subnet": "10.0.0.0/24", "range_start": "10.0.0.9", "range_end": "10.0.0.8"}, "range_end"),
        ({"subnet": "10.0.0.0/24", "range_start": "10.0.0.1", "range_end": "10.0.0.1"}, "range_end"),
        ({"subnet": "10.0.0.0/24", "range_end": "10.0.0.1"}, "range_end"),
        ({"subnet": "10.0.0.0/24", "gateway": "10.0.0.254", "range_start": "10.0.0.254"}, "range_end"),
        ({"bridge": "br0\n", "adopt": True}, "bridge"),
        ({"bridge": "a" * 16}, "bridge"),
        ({"bridge": "all"}, "bridge"),
        ({"bridge": "default"}, "bridge"),
        ({"bridge": "a/b"}, "bridge"),
        ({"bridge": 'a"b'}, "bridge"),
        ({"adopt": True}, "bridge"),
        ({"adopt": True, "bridge": "br0", "nat": True}, "nat"),
        ({"nat": True}, "nat"),
        ({"mtu": 100}, "mtu"),
        ({"mtu": 70000}, "mtu"),
        ({"dns": ["one"]}, "dns"),
        ({"dns_search": ["a b"]}, "dns_search"),
        ({"dns_search": ["lab,example"]}, "dns_search"),
        ({"dns_search": ["-lab.example"]}, "dns_search"),
        ({"dns_search": [f"d{number}.example" for number in range(7)]}, "dns_search"),
        ({"dns": ["1.1.1.1", "1.0.0.1", "8.8.8.8"]}, "dns"),
        ({"uplink": "a b"}, "uplink"),
        ({"uplink": "br0", "bridge": "br0"}, "uplink"),
        ({"adopt": True, "bridge": "br0", "uplink": "eth1"}, "uplink"),
        ({"adopt": True, "bridge": "br0", "vlan_filtering": True}, "vlan_filtering"),
        ({**SUBNET, "uplink": "eth1", "nat": True}, "nat"),
        ({**SUBNET, "uplink": "eth1", "dhcp": True}, "dhcp"),
        ({"uplink": "eth1", "subnet6": "fd00::/64"}, "subnet6"),
        ({**SUBNET, "uplink": "eth1"}, "subnet"),
        ({"subnet6": "10.0.0.0/24"}, "subnet6"),
        ({"subnet6": "fd00::/48"}, "subnet6"),
        ({"subnet6": "fd00::1/64"}, "subnet6"),
        ({"subnet6": "fe80::/64"}, "subnet6"),
        ({**SUBNET, "adopt": True, "bridge": "br0", "subnet6": "fd00::/64"}, "subnet6"),
        ({**SUBNET, "routing6": "nat"}, "routing6"),
        ({**SUBNET, "addresses6": "static"}, "addresses6"),
        ({"names": True}, "names"),
        ({"dhcp": True}, "dhcp"),
        ({**SUBNET, "adopt": True, "bridge": "br0", "dhcp": True}, "dhcp"),
        ({**SUBNET, "name": "a..b", "names": True}, "names"),
        ({**SUBNET, "names": True, "dns": ["10.0.0.1"]}, "dns"),
        ({**SUBNET, "dhcp_range": "10.0.0.9"}, "dhcp_range"),
        ({**SUBNET, "dhcp": True, "dhcp_range": "10.0.0.9-10.0.0.8"}, "dhcp_range"),
        ({**SUBNET, "dhcp": True, "dhcp_range": "10.0.0.9-10.0.1.8"}, "dhcp_range"),
        ({**SUBNET, "dhcp": True, "dhcp_range": "10.0.0.0-10.0.0.8"}, "dhcp_range"),
        ({**SUBNET, "dhcp": True, "dhcp_range": "10.0.0.2-10.0.0.254"}, "dhcp_range"),
        ({**SUBNET, "reserved": ["10.0.0.9-"]}, "reserved"),
        ({**SUBNET, "reserved": ["10.0.1.9"]}, "reserved"),
        ({**SUBNET, "reserved": ["10.0.0.2-10.0.0.99", "10.0.0.80-10.0.0.254"]}, "reserved"),
        ({"reserved": ["10.0.0.9"]}, "reserved"),
    ],
)
def test_definitions_that_cannot_work(options: dict[str, Any], option: str) -> None:
    with pytest.raises(InputError) as caught:
        plan.target(plan.define({"name": "lab", **options}), None, "store")
    assert caught.value.option == option
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("reserved", "dhcp_range", "wanted"),
    [
        ([], None, [*range(1, 15)]),
        (["10.0.0.1-10.0.0.3", "10.0.0.14"], None, [*range(4, 14)]),
        (["10.0.0.5", "10.0.0.3-10.0.0.6", "10.0.0.4"], "10.0.0.9-10.0.0.12", [1, 2, 7, 8, 13, 14]),
        (["10.0.0.0-10.0.0.15"], None, []),
    ],
)
def test_what_is_given_out(reserved: list[str], dhcp_range: str | None, wanted: list[int]) -> None:
    free = subnets.Free(network(subnet="10.0.0.0/28", reserved=reserved, dhcp_range=dhcp_range))
    assert [free[number] for number in range(free.size)] == [f"10.0.0.{number}" for number in wanted]
    first = int(ipaddress.IPv4Address("10.0.0.0"))
    assert [number for number in range(16) if first + number in free] == wanted
    with pytest.raises(IndexError):
        free[free.size]


PLACE = dnsmasq.Place("/run/x", "/var/x/leases", "nobody", "nogroup")


def test_what_dnsmasq_is_told() -> None:
    served = network(names=True, dhcp=True, dhcp_range="10.1.0.9", mtu=1400, dns_search=["example.com"])
    lines = dnsmasq.config(served, PLACE).splitlines()
    assert {
        *("interface=cm-lab", "bind-dynamic", "user=nobody", "no-hosts", "no-resolv", "domain=lab", "local=/lab/"),
        *("server=8.8.8.8", "server=1.1.1.1", "dhcp-ignore-names", "dhcp-leasefile=/var/x/leases"),
        *("dhcp-range=10.1.0.0,static,255.255.255.0,12h", "dhcp-range=10.1.0.9,10.1.0.9,255.255.255.0,1h"),
        *("dhcp-option=option:router,10.1.0.1", "dhcp-option=option:dns-server,10.1.0.1"),
        *("dhcp-option=option:domain-search,lab,example.com", "dhcp-option=option:mtu,1400"),
    } <= set(lines)
    alone = dnsmasq.config(network(dhcp=True, nat=False, dns=[]), PLACE).splitlines()
    assert {"port=0", "dhcp-option=option:router", "dhcp-option=option:dns-server"} <= set(alone)
    assert not [line for line in alone if line.startswith(("server=", "hostsdir=", "domain="))]
    assert not [line for line in dnsmasq.config(network(names=True), PLACE).splitlines() if "dhcp" in line]


@pytest.mark.parametrize(
    ("vm", "line"),
    [
        ("web1", "10.1.0.5 web1.lab web1\n"),
        ("Web_1", "10.1.0.5 web_1.lab web_1\n"),
        ("www.example.com", "10.1.0.5 www.example.com.lab\n"),
        ("odd.", ""),
        ("odd-", ""),
    ],
)
def test_names_of_a_guest(vm: str, line: str) -> None:
    entry = dnsmasq.Entry("10.1.0.5", "02:00:00:00:00:01", vm)
    assert dnsmasq.host_lines(network(name="Lab", names=True), entry) == line
    dual = dnsmasq.host_lines(network(name="Lab", names=True), entry._replace(ip6="fd00:1::5"))
    assert dual == line + line.replace("10.1.0.5", "fd00:1::5")
    assert dnsmasq.host_lines(network(), entry) == ""
    assert dnsmasq.reservation(entry) == "02:00:00:00:00:01,10.1.0.5,12h\n"


def test_leases_of_guests_that_are_gone() -> None:
    """Whoever asks may keep what is given to anybody; the rest is the guests'."""
    given = network(subnet="10.1.0.0/24", dhcp=True, dhcp_range="10.1.0.200-10.1.0.203")
    leased = {"10.1.0.9": "02:00:00:00:00:01", "10.1.0.10": "02:00:00:00:00:02", "10.1.0.201": "02:00:00:00:00:03"}
    holds = dnsmasq.Entry("10.1.0.9", "02:00:00:00:00:01", "web1")
    assert dnsmasq.outdated(given, leased, [holds]) == {"10.1.0.10"}
    assert dnsmasq.outdated(given, leased, [holds._replace(mac="02:00:00:00:00:09")]) == {"10.1.0.9", "10.1.0.10"}
    moved = dnsmasq.Entry("10.1.0.201", "02:00:00:00:00:09", "web2")
    assert dnsmasq.outdated(given, leased, [holds, moved]) == {"10.1.0.10", "10.1.0.201"}


def test_leases_of_dnsmasq() -> None:
    text = "170 02:00:00:00:00:AA 10.1.0.5 * 01:02\nduid 00:01\n171 02:00:00:00:00:0b 10.1.0.6 x *\n"
    assert dnsmasq.read_leases(text) == {"10.1.0.5": "02:00:00:00:00:aa", "10.1.0.6": "02:00:00:00:00:0b"}
    assert dnsmasq.read_leases(f"{text}172 02:00:00:00:00:0c x y *\n") == dnsmasq.read_leases(text)
    assert dnsmasq.without(text, {"10.1.0.5"}) == text[text.index("duid") :]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, {"subnet": None, "gateway": None, "nat": False, "dns": []}),
        ({"subnet": "10.0.0.0/24"}, {"gateway": "10.0.0.1", "nat": True, "dns": ["8.8.8.8", "1.1.1.1"]}),
        ({"subnet": "10.0.0.0/24", "nat": False}, {"gateway": "10.0.0.1", "nat": False, "dns": []}),
        ({"subnet": "10.0.0.0/24", "gateway": "10.0.0.254"}, {"gateway": "10.0.0.254"}),
        (
            {"adopt": True, "bridge": "br0", "subnet": "10.0.0.0/24"},
            {"adopted": True, "bridge": "br0", "gateway": None, "nat": False, "dns": []},
        ),
        ({"labels": {"a": 1}, "owner": "you"}, {"labels": {"a": "1"}, "owner": "you"}),
        ({}, {"owner": "store", "mtu": None, "labels": {}, "adopted": False, "backend": "bridge"}),
    ],
)
def test_defaults_at_creation(options: dict[str, Any], wanted: dict[str, Any]) -> None:
    made = plan.target(plan.define({"name": "lab", **options}), None, "store")
    assert {key: made[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("name", "taken", "bridge"),
    [
        ("lab", False, "cm-lab"),
        ("lab", True, "cmb-abcdefgh"),
        ("twelve-chars", False, "cm-twelve-chars"),
        ("thirteen-char", False, "cmb-abcdefgh"),
    ],
)
def test_bridge_names(name: str, taken: bool, bridge: str) -> None:
    assert plan.default_bridge(name, OLD["id"], taken) == bridge


# -- plans ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "facts", "action", "changes"),
    [
        ({}, {}, "none", {}),
        ({"subnet": "10.1.0.0/24", "nat": True, "dns": ["8.8.8.8", "1.1.1.1"], "labels": {}}, {}, "none", {}),
        ({"adopt": False, "bridge": "cm-lab", "gateway": "10.1.0.1", "owner": "me"}, {}, "none", {}),
        ({"mtu": 1400}, {"users": ("a",)}, "update", {"mtu": 1400}),
        ({"dns": []}, {"users": ("a",)}, "update", {"dns": []}),
        ({"nat": False}, {"users": ("a",)}, "update", {"nat": False}),
        ({"labels": {"a": "b"}}, {"users": ("a",)}, "update", {"labels": {"a": "b"}}),
        ({"range_start": "10.1.0.9"}, {"users": ("a",)}, "update", {"range_start": "10.1.0.9"}),
        ({"reserved": [" 10.1.0.9 - 10.1.0.9"]}, {"users": ("a",)}, "update", {"reserved": ["10.1.0.9"]}),
        ({"names": True, "dhcp": True}, {"users": ("a",)}, "update", {"names": True, "dhcp": True}),
        ({"dhcp_range": ""}, {}, "none", {}),
        ({"subnet6": "", "routing6": "none"}, {}, "none", {}),
        (
            {"subnet6": "FD00:0:0:1::/64", "routing6": "routed"},
            {"users": ("a",)},
            "update",
            {"subnet6": "fd00:0:0:1::/64", "routing6": "routed"},
        ),
        ({}, {"missing": ("dnsmasq",)}, "repair", {}),
        ({"isolated": False}, {"users": ("a",)}, "none", {}),
        ({"dns_search": []}, {"users": ("a",)}, "none", {}),
        ({"dns_search": ["Lab.Example.com."]}, {"users": ("a",)}, "update", {"dns_search": ["lab.example.com"]}),
        ({"isolated": True}, {"users": ("a",)}, "update", {"isolated": True}),
        ({}, {"nics": {"nics[0] of a": "down"}}, "repair", {}),
        ({"subnet": "10.2.0.0/24"}, {}, "update", {"subnet": "10.2.0.0/24", "gateway": "10.2.0.1"}),
        ({"owner": "you", "force": True}, {}, "update", {"owner": "you"}),
        ({}, {"missing": ("rules",)}, "repair", {}),
        ({"mtu": 1400}, {"missing": ("bridge",)}, "update", {"mtu": 1400}),
    ],
)
def test_plans(options: dict[str, Any], facts: dict[str, Any], action: str, changes: dict[str, Any]) -> None:
    decision = plan.plan_present(
        plan.define({"name": "lab", **options}), plan.Facts(record=network(), **facts), "store"
    )
    assert decision.action == action
    assert decision.changed is (action != "none")
    before, after = dict(decision.before), dict(decision.after)
    host = (before.pop("host", None), after.pop("host", None))
    assert {key: after[key] for key in after if after[key] != before.get(key)} == changes
    assert (host != (None, None)) is bool(facts.get("missing") or facts.get("nics"))


def test_an_unfinished_network_is_finished() -> None:
    facts = plan.Facts(record=network(phase="creating"))
    assert plan.plan_present(plan.define({"name": "lab"}), facts, "store").action == "repair"


@pytest.mark.parametrize(
    ("options", "facts", "error", "message"),
    [
        ({"subnet": "10.2.0.0/24"}, {"users": ("web1", "web2")}, ChangeRefusedError, "VMs: web1, web2"),
        ({"subnet": "10.2.0.0/24"}, {"leases": 3}, ChangeRefusedError, "3 leased addresses"),
        ({"subnet6": "fd00:2::/64"}, {"chosen6": 2}, ChangeRefusedError, "NICs of VMs ask for 2 addresses of it"),
        ({"gateway": "10.1.0.9"}, {"users": ("web1",)}, ChangeRefusedError, "^gateway: "),
        ({"bridge": "br7"}, {}, ChangeRefusedError, "^bridge: .*never changed"),
        ({"adopt": True}, {}, ChangeRefusedError, "^adopt: |^nat: "),
        (
            {"uplink": "eth1"},
            {"record": network(subnet=None, gateway=None, nat=False)},
            ChangeRefusedError,
            "^uplink: .*never changed",
        ),
        ({"nat": False}, {"ports": ("8080:80",)}, ChangeRefusedError, "^nat: .*8080:80"),
        ({"owner": "you"}, {}, ConflictError, "^owner: .*'me'"),
        ({"range_start": "10.2.0.1"}, {}, InputError, "^range_start: "),
    ],
)
def test_changes_that_are_refused(
    options: dict[str, Any], facts: dict[str, Any], error: type[CocoonError], message: str
) -> None:
    options = {"nat": False, **options} if "adopt" in options else options
    facts = {"record": network(), **facts}
    with pytest.raises(error, match=message):
        plan.plan_present(plan.define({"name": "lab", **options}), plan.Facts(**facts), "store")


LINK = links.Link(7, "02:00:00:00:00:01", True, 1500, None)


@pytest.mark.parametrize(
    ("link", "kind", "master", "mtu", "error", "message"),
    [
        (None, None, None, None, NotFoundError, "^uplink: there is no interface eth1"),
        (LINK, "bridge", None, None, ConflictError, "^uplink: eth1 is a bridge"),
        (LINK, "", "bond0", None, ConflictError, "^uplink: eth1 is part of bond0"),
        (
            dataclasses.replace(LINK, address="192.0.2.1/24"),
            "",
            None,
            None,
            ConflictError,
            "^uplink: eth1 has the address 192.0.2.1/24",
        ),
        (LINK, "", None, 9000, InputError, "^mtu: 9000 is beyond the 1500 of the uplink eth1"),
        (LINK, "", "cm-lab", 1400, None, ""),
    ],
)
def test_what_can_be_an_uplink(
    link: Any, kind: str | None, master: str | None, mtu: int | None, error: type[CocoonError] | None, message: str
) -> None:
    made = network(uplink="eth1", mtu=mtu, nat=False)
    if error is None:
        plan.check_uplink(made, link, kind, master)
        with pytest.raises(ConflictError, match="^uplink: eth1 has the address 2001:db8::5 of the host"):
            plan.check_uplink(made, link, kind, master, "2001:db8::5")
        return
    with pytest.raises(error, match=message):
        plan.check_uplink(made, link, kind, master)


@pytest.mark.parametrize(
    ("options", "facts", "result"),
    [
        ({}, {"record": None}, "none"),
        ({}, {"record": None, "bare": True}, "remove"),
        ({}, {}, "remove"),
        ({"force": True}, {"foreign_ports": ("veth9",)}, "remove"),
        ({}, {"foreign_ports": ("veth9",)}, "veth9"),
        ({}, {"users": ("web1",)}, "web1"),
        ({"force": True}, {"users": ("web1",)}, "web1"),
        ({"owner": "you"}, {}, "'me'"),
        ({"owner": "you", "force": True}, {}, "remove"),
    ],
)
def test_removals(options: dict[str, Any], facts: dict[str, Any], result: str) -> None:
    definition = plan.define({"name": "lab", **options})
    found = plan.Facts(**{"record": network(), **facts})
    if result in ("none", "remove"):
        decision = plan.plan_absent(definition, found)
        assert (decision.action, decision.after) == (result, {})
        assert bool(decision.before) is (result == "remove")
    else:
        with pytest.raises((ChangeRefusedError, ConflictError), match=result):
            plan.plan_absent(definition, found)


@pytest.mark.parametrize(
    ("subnet", "free"),
    [
        ("10.1.0.0/24", False),
        ("10.1.0.128/25", False),
        ("10.0.0.0/8", False),
        ("10.1.1.0/24", True),
        ("192.168.0.0/16", True),
    ],
)
def test_overlap(subnet: str, free: bool) -> None:
    used = [("10.1.0.0/24", "network 'lab'")]
    if free:
        plan.check_overlap("new", subnet, used)
    else:
        with pytest.raises(ConflictError, match="overlaps 10.1.0.0/24, which is network 'lab'"):
            plan.check_overlap("new", subnet, used)


# -- rules ----------------------------------------------------------------------------------------------------------

PORTS = (
    {"protocol": "tcp", "host_ip": None, "host_port": 8080, "ip": "10.1.0.5", "guest_port": 80, "vm_id": "a"},
    {"protocol": "tcp", "host_ip": "192.0.2.1", "host_port": 443, "ip": "10.1.0.5", "guest_port": 443, "vm_id": "a"},
    {"protocol": "udp", "host_ip": None, "host_port": 53, "ip": "10.1.0.6", "guest_port": 5353, "vm_id": "b"},
)


def rendered(*networks: dict[str, Any], **named: Any) -> ruleset.Ruleset:
    values: dict[str, Any] = {"ports": (), "uplinks": ("eth0",), "guarded": (), **named}
    found = ruleset.render("cocoon_x", ruleset.Inputs(networks=networks, **values))
    assert found
    return found


def test_no_network_no_rules() -> None:
    assert ruleset.render("cocoon_x", ruleset.Inputs((), (), ("eth0",), ())) is None
    assert ruleset.table_name("abcdefghijkl") == "cocoon_abcdefgh"


def test_what_guests_may_ask_the_host() -> None:
    text = rendered(network(names=True, dhcp=True)).text
    asked = 'iifname "cm-lab" ip saddr 10.1.0.0/24 ip daddr 10.1.0.1'
    assert f"{asked} udp dport 53 accept" in text and f"{asked} tcp dport 53 accept" in text
    assert 'iifname "cm-lab" meta nfproto ipv4 udp sport 68 udp dport 67 accept' in text
    assert "dport" not in rendered(network()).text


@pytest.mark.parametrize(
    ("routing6", "out", "masked"), [("none", False, False), ("routed", True, False), ("nat", True, True)]
)
def test_the_way_out_of_ipv6(routing6: str, out: bool, masked: bool) -> None:
    text = rendered(network(subnet6="fd00:1::/64", routing6=routing6, nat=False), uplinks=(), uplinks6=("eth0",)).text
    lines = [line.strip() for line in text.splitlines()]
    way = 'iifname "cm-lab" meta nfproto ipv6 ip6 saddr fd00:1::/64 oifname { "eth0" } accept'
    assert (way in lines) is out
    assert ('ip6 saddr fd00:1::/64 oifname != "cm-lab" masquerade' in lines) is masked
    assert ("type nat hook postrouting priority 100; policy accept;" in lines) is masked
    assert 'iifname "cm-lab" ip6 daddr fd00:1::1 icmpv6 type echo-request accept' in lines
    assert sum("nfproto ipv6 ct state established" in line for line in lines) == 2 * out


def test_what_is_advertised() -> None:
    lines = dnsmasq.config(network(subnet6="fd00:1::/64", names=True), PLACE).splitlines()
    assert {"enable-ra", "dhcp-range=fd00:1::,ra-only,64,12h", "ra-param=cm-lab,600,0"} <= set(lines)
    assert "dhcp-option=option6:dns-server,[fd00:1::1]" in lines
    out = dnsmasq.config(network(subnet6="fd00:1::/64", routing6="nat"), PLACE)
    assert "ra-param" not in out and "dns-server" not in out and "port=0" in out
    told = network(subnet6="fd00:1::/64", addresses6="static")
    assert not leases.is_served(told) and leases.is_served({**told, "names": True})
    assert "enable-ra" not in dnsmasq.config({**told, "names": True}, PLACE)


def test_the_whole_text() -> None:
    found = rendered(network(), guarded=("eth0",), ports=PORTS)
    assert found.text.replace(found.digest, "DIGEST").splitlines() == [
        "add table inet cocoon_x",
        "delete table inet cocoon_x",
        "table inet cocoon_x {",
        "  chain from_guest {",
        '    iifname "cm-lab" oifname "cm-lab" accept',
        '    oifname { "cm-lab" } drop',
        "    meta nfproto != ipv4 drop",
        "    ct state invalid drop",
        '    iifname "cm-lab" ip saddr != 10.1.0.0/24 drop',
        '    iifname { "cm-lab" } oifname { "eth0" } accept',
        '    iifname { "cm-lab" } ct state established,related accept',
        "    drop",
        "  }",
        "  chain to_guest {",
        '    oifname { "cm-lab" } ct state established,related accept',
        '    oifname { "cm-lab" } ct status dnat accept',
        "    drop",
        "  }",
        "  chain guest_to_host {",
        "    ct state established,related accept",
        '    iifname "cm-lab" ip saddr 10.1.0.0/24 ip daddr 10.1.0.1 icmp type echo-request accept',
        "    drop",
        "  }",
        "  chain forward {",
        "    type filter hook forward priority 0; policy accept;",
        '    iifname { "cm-lab" } goto from_guest comment "DIGEST"',
        '    oifname { "cm-lab" } goto to_guest',
        '    meta nfproto ipv4 iifname { "eth0" } ct state new ct status & dnat == 0 drop',
        "  }",
        "  chain input {",
        "    type filter hook input priority 0; policy accept;",
        '    iifname { "cm-lab" } goto guest_to_host',
        "  }",
        "  chain arriving {",
        "    type filter hook prerouting priority -300; policy accept;",
        '    iifname { "cm-lab" } ip daddr 127.0.0.0/8 drop',
        '    iifname { "cm-lab" } ip saddr 127.0.0.0/8 drop',
        "  }",
        "  chain postrouting {",
        "    type nat hook postrouting priority 100; policy accept;",
        '    ip saddr 10.1.0.0/24 oifname != "cm-lab" masquerade',
        '    ip saddr 127.0.0.0/8 oifname { "cm-lab" } masquerade',
        "  }",
        "  chain published {",
        "    dnat ip to ip daddr . tcp dport map { 192.0.2.1 . 443 : 10.1.0.5 . 443 }",
        "    dnat ip to tcp dport map { 8080 : 10.1.0.5 . 80 }",
        "    dnat ip to udp dport map { 53 : 10.1.0.6 . 5353 }",
        "  }",
        "  chain prerouting {",
        "    type nat hook prerouting priority -100; policy accept;",
        '    iifname { "cm-lab" } accept',
        "    fib daddr type local goto published",
        "  }",
        "  chain output {",
        "    type nat hook output priority -100; policy accept;",
        "    fib daddr type local goto published",
        "  }",
        "}",
    ]
    assert found.rules == 28


@pytest.mark.parametrize(
    ("networks", "named", "absent"),
    [
        ([network(nat=False)], {}, ["masquerade", "eth0", "to_guest {\n    oif", "dnat"]),
        ([network(isolated=True)], {}, ['iifname "cm-lab" oifname "cm-lab" accept']),
        ([network(nat=False, subnet=None, gateway=None)], {}, ["ip saddr 10.", "echo-request", "None"]),
        ([network()], {"uplinks": ()}, ["eth0", "{  }"]),
        ([network()], {}, ["published", "priority -100", "status & dnat", "ip saddr 127.0.0.0/8 oifname"]),
    ],
)
def test_what_is_not_asked_for_is_not_there(
    networks: list[dict[str, Any]], named: dict[str, Any], absent: list[str]
) -> None:
    text = rendered(*networks, **named).text
    assert [word for word in absent if word in text] == []
    assert '"cm-lab" } goto guest_to_host' in text


def test_every_difference_is_in_the_digest() -> None:
    other = network(name="other", bridge="cm-other", subnet="10.2.0.0/24", gateway="10.2.0.1")
    found = [
        rendered(network()),
        rendered(network(), uplinks=("eth1",)),
        rendered(network(), guarded=("eth0",)),
        rendered(network(nat=False)),
        rendered(network(isolated=True)),
        rendered(network(), other),
        rendered(network(), ports=PORTS),
        rendered(network(), ports=PORTS[:2]),
        rendered(network(subnet="10.1.0.0/25")),
    ]
    assert len({item.digest for item in found}) == len(found)
    assert rendered(network()) == rendered(network())


# -- addresses ------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_address(store: Store) -> None:
    seeds = [f"web{number}/0" for number in range(20)]
    first = [attachments.choose_ip(store, network(), seed) for seed in seeds]
    assert first == [attachments.choose_ip(store, network(), seed) for seed in seeds]
    assert len(set(first)) > 10
    assert all(ip.startswith("10.1.0.") and ip not in ("10.1.0.0", "10.1.0.1", "10.1.0.255") for ip in first)


def test_every_address_is_given_once_and_then_none(store: Store) -> None:
    net = network(range_start="10.1.0.250")
    given = [attachments.allocate(store, net, f"vm{number}", "seed") for number in range(5)]
    assert sorted(given) == [f"10.1.0.{number}" for number in range(250, 255)]
    with pytest.raises(ResourceError, match="no free address"):
        attachments.allocate(store, net, "vm9", "seed")
    attachments.release(store, net["id"], given[2], "another")
    with pytest.raises(ResourceError):
        attachments.choose_ip(store, net, "seed")
    attachments.release(store, net["id"], given[2], "vm2")
    assert attachments.allocate(store, net, "vm9", "seed") == given[2]
    assert attachments.allocate(store, net, "vm10", "seed", wanted="10.1.0.7") == "10.1.0.7"


def test_addresses_promised_in_a_batch(store: Store) -> None:
    taken: set[str] = set()
    for number in range(200):
        taken.add(attachments.choose_ip(store, network(), f"web{number}", taken=taken))
    assert len(taken) == 200
    with pytest.raises(ConflictError, match="given twice"):
        attachments.choose_ip(store, network(), "x", wanted=min(taken), taken=taken)


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        ("10.1.0.1", InputError, "gateway"),
        ("10.1.0.0", InputError, "network or broadcast"),
        ("10.1.0.255", InputError, "network or broadcast"),
        ("10.2.0.5", InputError, "not in 10.1.0.0/24"),
        ("ten", InputError, "not an IPv4 address"),
        ("10.1.0.9", ConflictError, "belongs to VM 'vm1'"),
    ],
)
def test_addresses_that_cannot_be_had(store: Store, wanted: str, error: type[CocoonError], message: str) -> None:
    attachments.lease(store, network(), "10.1.0.9", "vm1")
    attachments.lease(store, network(), "10.1.0.9", "vm1")
    with pytest.raises(error, match=message) as caught:
        attachments.choose_ip(store, network(), "seed", wanted)
    assert caught.value.option == "ip"
    assert attachments.choose_ip(store, network(), "seed", "10.1.0.9", vm_id="vm1") == "10.1.0.9"


def test_a_lease_needs_the_network_as_it_is_now(store: Store) -> None:
    write_json(os.path.join(leases.directory(store, OLD["id"]), "network.json"), network(subnet="10.9.0.0/24"))
    with pytest.raises(ConflictError, match="not in 10.9.0.0/24"):
        attachments.lease(store, network(), "10.1.0.9", "vm1")
    with pytest.raises(NotFoundError):
        attachments.lease(store, network(id="gone"), "10.1.0.9", "vm1")


# -- users ----------------------------------------------------------------------------------------------------------


def test_users(store: Store) -> None:
    for vm_id in ("vm1", "vm2"):
        os.makedirs(store.paths.vm_dir(vm_id))
        attachments.attach(store, OLD["id"], vm_id)
        attachments.attach(store, OLD["id"], vm_id)
    attachments.attach(store, OLD["id"], "gone")
    assert attachments.users(store, OLD["id"]) == ["vm1", "vm2"]
    attachments.detach(store, OLD["id"], "vm1")
    attachments.detach(store, OLD["id"], "vm1")
    assert attachments.users(store, OLD["id"]) == ["vm2"]


def test_a_network_that_goes_takes_no_users(store: Store) -> None:
    write_json(os.path.join(leases.directory(store, OLD["id"]), "network.json"), network(phase="removing"))
    with pytest.raises(NotFoundError):
        attachments.attach(store, OLD["id"], "vm1")
    assert leases.names(store, OLD["id"], "users") == []
    assert attachments.load(store, "lab") is None
    with pytest.raises(NotFoundError):
        attachments.attach(store, "nothing", "vm1")


def test_ipv6_addresses_that_are_chosen(store: Store) -> None:
    write_json(os.path.join(leases.directory(store, OLD["id"]), "network.json"), network(subnet6="fd00:1::/64"))
    for vm_id in ("vm1", "vm1"):
        attachments.lease(store, network(), "fd00:1::5", vm_id)
    with pytest.raises(ConflictError, match="ip6: fd00:1::5 on network 'lab' belongs to VM 'vm1'"):
        attachments.lease(store, network(), "fd00:1::5", "vm2")
    with pytest.raises(ConflictError, match="ip6: fd00:2::5 is not in fd00:1::/64"):
        attachments.lease(store, network(), "fd00:2::5", "vm2")
    with pytest.raises(NotFoundError):
        attachments.lease(store, network(id="gone"), "fd00:1::6", "vm1")
    attachments.release(store, OLD["id"], "fd00:1::5", "vm2")
    assert attachments.lease_holder(store, OLD["id"], "fd00:1::5") == "vm1"
    attachments.release(store, OLD["id"], "fd00:1::5", "vm1")
    attachments.lease(store, network(), "fd00:1::5", "vm2")
    leases.purge(store, "vm2")
    assert leases.names(store, OLD["id"], leases.CHOSEN6) == []


@pytest.mark.parametrize(
    ("ip", "mac", "words"),
    [
        ("fd00:1::5", None, None),
        ("fd00:1::ff:fe00:1", "02:00:00:00:00:01", None),
        ("fd00:1::ff:fe00:1", None, "follows from another MAC"),
        ("fd00:1::ff:fe00:1", "02:00:00:00:00:02", "follows from another MAC"),
        ("fd00:1::1", None, "is the host's"),
        ("fd00:1::", None, "is the host's"),
        ("fd00:2::5", None, "is not in fd00:1::/64"),
    ],
)
def test_which_ipv6_addresses_a_guest_can_have(ip: str, mac: str | None, words: str | None) -> None:
    trouble = subnets.why_not6(network(subnet6="fd00:1::/64"), ip, mac)
    assert words in trouble if words and trouble else trouble is words
    nic = {"mac": "02:00:00:00:00:01"}
    assert subnets.address6(network(subnet6="fd00:1::/64"), nic) == "fd00:1::ff:fe00:1"
    assert subnets.address6(network(subnet6="fd00:1::/64"), {**nic, "ip6": ip}) == ip
    assert subnets.address6(network(), nic) is None


def test_purge(store: Store) -> None:
    add(store, network(id="second", name="second", bridge="cm-second"))
    for network_id in (OLD["id"], "second"):
        attachments.attach(store, network_id, "vm1")
        attachments.lease(store, network(id=network_id), "10.1.0.9", "vm1")
    attachments.lease(store, network(), "10.1.0.10", "vm2")
    assert attachments.purge(store, "vm1") is False
    assert [leases.names(store, network_id, "leases") for network_id in (OLD["id"], "second")] == [["10.1.0.10"], []]
    assert leases.names(store, OLD["id"], "users") == []


# -- ports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "port", "shown"),
    [
        ("8080:80", ("tcp", None, 8080, 80), "8080:80"),
        ("8080:80/tcp", ("tcp", None, 8080, 80), "8080:80"),
        (" 53:5353/UDP ", ("udp", None, 53, 5353), "53:5353/udp"),
        ("192.0.2.1:443:443", ("tcp", "192.0.2.1", 443, 443), "192.0.2.1:443:443"),
        ("0.0.0.0:443:443", ("tcp", None, 443, 443), "443:443"),
    ],
)
def test_ports(text: str, port: tuple[Any, ...], shown: str) -> None:
    parsed = ports.parse_port(text)
    assert parsed == ports.Port(*port)
    assert str(parsed) == shown
    assert ports.parse_port(shown) == parsed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["80"], "quotes"),
        (["133342"], "quotes"),
        (["0:80"], "0 is not a port"),
        (["80:65536"], "65536 is not a port"),
        (["80:80/sctp"], "Write it as"),
        (["a:b"], "Write it as"),
        (["300.0.0.1:80:80"], "not an IPv4 address"),
        (["224.0.0.1:80:80"], "cannot be published"),
        (["80:80", "80:81"], "given twice"),
        (["80:80", "0.0.0.0:80:81/tcp"], "given twice"),
    ],
)
def test_ports_that_are_none(given: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        attachments.check_ports(given)
    assert caught.value.option == "ports"


def free_port() -> int:
    with socket.create_server(("0.0.0.0", 0)) as server:
        return int(server.getsockname()[1])


def test_publish_and_unpublish(store: Store) -> None:
    number = free_port()
    texts = [f"{number}:80", f"{number}:80/udp"]
    attachments.publish(store, network(), "vm1", "10.1.0.9", texts)
    attachments.publish(store, network(), "vm1", "10.1.0.10", texts)
    assert {item["ip"] for item in ports.published(store, OLD["id"])} == {"10.1.0.10"}
    with pytest.raises(ConflictError, match="published by VM 'vm1' on network 'lab'"):
        attachments.publish(store, network(), "vm2", "10.1.0.11", texts)
    assert not attachments.unpublish(store, OLD["id"], "vm2", texts)
    assert attachments.unpublish(store, OLD["id"], "vm1", texts[:1])
    assert [item["protocol"] for item in ports.published(store, OLD["id"])] == ["udp"]
    assert attachments.unpublish(store, OLD["id"], "vm1")
    assert ports.published(store, OLD["id"]) == []


def test_a_port_of_the_host_is_not_taken_away(store: Store) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        number = server.getsockname()[1]
        with pytest.raises(ConflictError, match="in use by a process of the host"):
            attachments.publish(store, network(), "vm1", "10.1.0.9", [f"{number}:22"])
    assert ports.published(store, OLD["id"]) == []
    with pytest.raises(ChangeRefusedError, match="no NAT"):
        attachments.publish(store, network(nat=False), "vm1", "10.1.0.9", [f"{number}:22"])


def test_one_port_on_two_networks_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both write their file before either looks again: nobody keeps what the other has."""
    add(store, network(id="second", name="second", bridge="cm-second"))
    number, write = free_port(), ports._publish

    def both(*words: Any) -> bool:
        write(store, network(id="second", name="second"), "vm2", "10.2.0.9", words[-1])
        return write(*words)

    monkeypatch.setattr(ports, "_publish", both)
    with pytest.raises(ConflictError, match="VM 'vm2' on network 'second'"):
        attachments.publish(store, network(), "vm1", "10.1.0.9", [f"{number}:80"])
    assert ports.published(store, OLD["id"]) == []


# -- the host -------------------------------------------------------------------------------------------------------


def test_networks_that_have_rules(store: Store) -> None:
    add(store, network(id="second", name="second", adopted=True, bridge="br0"))
    add(store, network(id="third", name="third", phase="removing"))
    store.index("network").reserve("bare", "fourth")
    assert [item["name"] for item in firewall.networks(store)] == ["lab"]


def test_a_kernel_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers with addresses of other families when it is asked for those of IPv6, so it is not asked."""

    class Anything:
        def __enter__(self) -> object:
            return self

        def __exit__(self, *_exc: object) -> None: ...

        def __getattr__(self, _name: str) -> Callable[..., None]:
            return lambda *_words, **_named: None

        def get_addr(self, **_named: int) -> list[dict[str, int]]:
            return [{"family": socket.AF_INET, "index": 7}]

    def no_netlink() -> Anything:
        raise AssertionError("asked")

    monkeypatch.setattr(kernel, "missing", lambda _record: ["up"])
    monkeypatch.setattr(kernel.links, "set_sysctl", lambda *_words: None)
    monkeypatch.setattr(kernel.links, "index_of", lambda _name: 7)
    monkeypatch.setattr(kernel.links, "Control", Anything)
    monkeypatch.setattr(kernel, "route_socket", no_netlink)
    kernel.activate(network(subnet=None, gateway=None, nat=False))
    monkeypatch.setattr(kernel, "route_socket", Anything)
    kernel.activate(network(subnet=None, gateway=None, nat=False, subnet6="fd00:1::/64"))


def test_uplinks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = tmp_path / "route"
    table.write_text(
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
        "eth1\t00000000\t010300C0\t0003\t0\t0\t200\t00000000\t0\t0\t0\n"
        "tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n"
        "eth2\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n"
        "*\t00000000\t00000000\t0200\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth3\t00000000\t00000000\t0201\t0\t0\t0\t00000000\t0\t0\t0\n"
    )
    monkeypatch.setattr(forwarding, "ROUTES", str(table))
    assert forwarding.uplinks() == ("eth0", "eth1", "tun0")


OWN = os.stat("/proc/thread-self/ns/net").st_ino
NO_NAMESPACE = 7


@pytest.mark.parametrize(
    ("boot", "note", "stays"),
    [
        ("this", {"netns": OWN}, True),
        ("this", {}, True),
        ("this", {"netns": NO_NAMESPACE}, False),
        ("earlier", {"netns": OWN}, False),
        ("this", {"netns": OWN, "root_dir": "/nonexistent"}, False),
        ("this", None, False),
    ],
    ids=["alive", "of a version that did not note it", "namespace gone", "earlier boot", "store gone", "damaged"],
)
def test_notes_about_forwarding_go_with_what_they_are_of(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: str, note: dict[str, Any] | None, stays: bool
) -> None:
    """Nobody comes back for those of a network namespace that has vanished: the next run in any other finds them."""
    monkeypatch.setattr(forwarding, "REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setattr(forwarding.links, "set_sysctl", lambda *_words: None)
    name = f"{boot_id()[:8] if boot == 'this' else '01234567'}-4711"
    folder = tmp_path / "registry" / name / "eth0"
    folder.mkdir(parents=True)
    content = "{" if note is None else json.dumps({"root_dir": store.paths.root, **note})
    (folder / f"user-{store.store_id}").write_text(content)
    (folder / "switched").write_text('{"by": "x"}')
    forwarding.claim(store, ["lo"])
    assert (tmp_path / "registry" / name).exists() is stays
    assert forwarding._noted(store) == ["lo"], "what this namespace needs stays noted"
    forwarding.release(store)
    assert (tmp_path / "registry").exists() is stays


def test_a_damaged_record_of_a_vm_is_no_affair_of_its_network(store: Store) -> None:
    directory = store.paths.vm_dir("vm1")
    os.makedirs(directory)
    Path(directory, "vm.json").write_text('{"config": {"na')
    leases.attach(store, OLD["id"], "vm1")
    assert leases.vm_name(store, "vm1") == "vm1"
    assert guests.troubles(store, network()) == {}
    Path(directory, "vm.json").write_text("[]")
    assert leases.vm_name(store, "vm1") == "vm1"
