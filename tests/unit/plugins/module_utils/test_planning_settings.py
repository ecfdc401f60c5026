# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What guests are told of their networks: which NIC is the way out, and the words for each way of telling it."""

from __future__ import annotations

import copy
import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import settings
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.reserve import port_target

NAT: Record = {"name": "pub", "subnet": "10.1.0.0/24", "gateway": "10.1.0.1", "nat": True, "adopted": False}
NAT2: Record = {**NAT, "name": "pub2", "subnet": "10.4.0.0/24", "gateway": "10.4.0.1"}
INSIDE: Record = {"name": "lab", "subnet": "10.2.0.0/24", "gateway": "10.2.0.1", "nat": False, "adopted": False}
OFFICE: Record = {"name": "office", "subnet": "10.3.0.0/24", "gateway": "10.3.0.9", "nat": False, "adopted": True}
ISLAND: Record = {"name": "island", "subnet": "10.5.0.0/24", "gateway": None, "nat": False, "adopted": True}
LAN: Record = {"name": "lan", "subnet": None, "gateway": None, "nat": False, "adopted": True}
FLAT: Record = {"name": "flat", "subnet": None, "gateway": None, "nat": False, "adopted": False}
DUAL: Record = {**NAT, "name": "dual", "subnet6": "fd00:1::/64", "routing6": "nat", "addresses6": "advertised"}
STATIC6: Record = {**DUAL, "addresses6": "static"}
INSIDE6: Record = {**STATIC6, "name": "lab6", "subnet6": "fd00:2::/64", "routing6": "none"}
ONLY6: Record = {**FLAT, "name": "six", "subnet6": "fd00:6::/64", "routing6": "routed", "addresses6": "static"}
FAR: Record = {**FLAT, "name": "pods", "conflist": "pods"}
YES, NO = {"default_route": True}, {"default_route": False}


@pytest.mark.parametrize(
    ("networks", "nics", "ways"),
    [
        ([NAT], [{}], [0]),
        ([INSIDE], [{}], []),
        ([NAT, INSIDE], [{}, {}], [0]),
        ([INSIDE, NAT], [{}, {}], [1]),
        ([NAT, NAT2], [{}, {}], [0]),
        ([INSIDE, OFFICE, NAT], [{}, {}, {}], [1]),
        ([ISLAND, NAT], [{}, {}], [1]),
        ([LAN, NAT], [{}, {}], [0]),
        ([FLAT, NAT], [{}, {}], [1]),
        ([INSIDE, FLAT], [{}, {}], [1]),
        ([FLAT, FLAT], [{}, {}], [0]),
        ([NAT, INSIDE], [{}, YES], [1]),
        ([NAT, NAT2], [NO, {}], [1]),
        ([NAT], [NO], []),
        ([FLAT], [NO], []),
        ([INSIDE, NAT], [{"gateway": "10.2.0.9"}, {}], [0]),
        ([NAT, NAT2], [{**YES, "metric": 20}, {**YES, "metric": 10}], [1, 0]),
        ([NAT, NAT2], [{**YES, "metric": 20}, YES], [1, 0]),
        ([], [], []),
        ([None], [{}], []),
    ],
)
def test_one_way_out(networks: list[Record], nics: list[Record], ways: list[int]) -> None:
    assert settings.ways_out(nics, networks) == ways


@pytest.mark.parametrize(
    ("networks", "nics", "target"),
    [
        ([INSIDE, NAT], [{}, {}], 1),
        ([NAT, OFFICE], [{}, {}], 0),
        ([OFFICE, NAT], [{}, {}], 0),
        ([OFFICE, NAT], [{}, YES], 1),
        ([LAN, NAT], [{}, {}], 1),
        ([INSIDE], [{}], 0),
        ([FLAT], [{}], None),
        ([NAT, NAT2], [{**YES, "metric": 20}, {**YES, "metric": 10}], 1),
    ],
)
def test_ports_lead_to_the_way_out(networks: list[Record], nics: list[Record], target: int | None) -> None:
    assert port_target(nics, networks) == target


def told(*pairs: tuple[Record, Record]) -> tuple[settings.GuestNic, ...]:
    """The settings of a VM with NICs on those networks, each with options of its own."""
    configs: list[t.Any] = []
    for index, (network, more) in enumerate(pairs):
        config = {"mac": f"02:00:00:00:00:0{index}", "mtu": 0, "dns": [], **copy.deepcopy(more)}
        if network["subnet"]:
            config["network"] = {"ip": network["subnet"].replace("0/24", "7"), "gateway": "left", "prefix": 24}
        configs.append(config)
    settings.route(configs, [network for network, _more in pairs])
    return settings.settings_of({"network_configs": configs})


ROUTES = [{"to": "10.9.0.0/16"}, {"to": "10.8.0.0/16", "via": "10.2.0.3", "metric": 5}]
CASES: list[tuple[list[tuple[Record, Record]], list[str], list[str], list[Record]]] = [
    (
        [(NAT, {"dns": ["9.9.9.9", "1.1.1.1"]}), (INSIDE, {})],
        [
            "ip=10.1.0.7::10.1.0.1:255.255.255.0:web1:eth0:off:9.9.9.9:1.1.1.1",
            "ip=10.2.0.7:::255.255.255.0:web1:eth1:off",
        ],
        [
            "nic old0 02:00:00:00:00:00 10.1.0.7/24 10.1.0.1 9.9.9.9,1.1.1.1",
            "nic old1 02:00:00:00:00:01 10.2.0.7/24 - -",
        ],
        [
            {
                "addresses": ["10.1.0.7/24"],
                "routes": [{"to": "0.0.0.0/0", "via": "10.1.0.1"}],
                "nameservers": {"addresses": ["9.9.9.9", "1.1.1.1"]},
            },
            {"addresses": ["10.2.0.7/24"]},
        ],
    ),
    (
        [(INSIDE, {"routes": ROUTES, "mtu": 1400}), (NAT, {"metric": 50})],
        [
            "ip=10.2.0.7:::255.255.255.0:web1:eth0:off",
            "cocoon.nic=eth0,mtu=1400,route=10.9.0.0/16@10.2.0.1@,route=10.8.0.0/16@10.2.0.3@5",
            "ip=10.1.0.7::10.1.0.1:255.255.255.0:web1:eth1:off",
            "cocoon.nic=eth1,metric=50",
        ],
        [
            "options mtu=1400,route=10.9.0.0/16@10.2.0.1@,route=10.8.0.0/16@10.2.0.3@5",
            "nic old0 02:00:00:00:00:00 10.2.0.7/24 - -",
            "options metric=50",
            "nic old1 02:00:00:00:00:01 10.1.0.7/24 10.1.0.1 -",
        ],
        [
            {
                "mtu": 1400,
                "addresses": ["10.2.0.7/24"],
                "routes": [
                    {"to": "10.9.0.0/16", "via": "10.2.0.1"},
                    {"to": "10.8.0.0/16", "via": "10.2.0.3", "metric": 5},
                ],
            },
            {"addresses": ["10.1.0.7/24"], "routes": [{"to": "0.0.0.0/0", "via": "10.1.0.1", "metric": 50}]},
        ],
    ),
    (
        [(FLAT, {}), (NAT, {}), (LAN, {"default_route": False, "metric": 9})],
        [
            "cocoon.nic=eth0,noroute",
            "ip=10.1.0.7::10.1.0.1:255.255.255.0:web1:eth1:off",
            "cocoon.nic=eth2,noroute,metric=9",
        ],
        [
            "options noroute",
            "nic old0 02:00:00:00:00:00 - - -",
            "nic old1 02:00:00:00:00:01 10.1.0.7/24 10.1.0.1 -",
            "options noroute,metric=9",
            "nic old2 02:00:00:00:00:02 - - -",
        ],
        [
            {"dhcp4": True, "dhcp4-overrides": {"use-routes": False}},
            {"addresses": ["10.1.0.7/24"], "routes": [{"to": "0.0.0.0/0", "via": "10.1.0.1"}]},
            {"dhcp4": True, "dhcp4-overrides": {"use-routes": False, "route-metric": 9}},
        ],
    ),
    (
        [(NAT, {"dns": ["9.9.9.9"], "dns_search": ["lab.example", "example"]})],
        [
            "ip=10.1.0.7::10.1.0.1:255.255.255.0:web1:eth0:off:9.9.9.9",
            "cocoon.nic=eth0,search=lab.example,search=example",
        ],
        [
            "options search=lab.example,search=example",
            "nic old0 02:00:00:00:00:00 10.1.0.7/24 10.1.0.1 9.9.9.9",
        ],
        [
            {
                "addresses": ["10.1.0.7/24"],
                "routes": [{"to": "0.0.0.0/0", "via": "10.1.0.1"}],
                "nameservers": {"addresses": ["9.9.9.9"], "search": ["lab.example", "example"]},
            }
        ],
    ),
    (
        # It asks for what it would be told.
        [(NAT, {"dhcp": True, "dns": ["10.1.0.1"], "dns_search": ["lab"]})],
        [],
        ["nic old0 02:00:00:00:00:00 - - -"],
        [{"dhcp4": True}],
    ),
    (
        [(FLAT, {})],
        [],
        ["nic old0 02:00:00:00:00:00 - - -"],
        [{"dhcp4": True}],
    ),
    (
        [(NAT, {"gateway": "10.1.0.9", "routes": [{"to": "10.9.0.0/16"}]}), (NAT2, YES | {"metric": 5}), (NAT, NO)],
        [
            "ip=10.1.0.7:::255.255.255.0:web1:eth0:off",
            "cocoon.nic=eth0,route=10.9.0.0/16@10.1.0.9@",
            "ip=10.4.0.7::10.4.0.1:255.255.255.0:web1:eth1:off",
            "cocoon.nic=eth1,metric=5",
            "ip=10.1.0.7:::255.255.255.0:web1:eth2:off",
        ],
        [
            "options route=10.9.0.0/16@10.1.0.9@",
            "nic old0 02:00:00:00:00:00 10.1.0.7/24 - -",
            "options metric=5",
            "nic old1 02:00:00:00:00:01 10.4.0.7/24 10.4.0.1 -",
            "nic old2 02:00:00:00:00:02 10.1.0.7/24 - -",
        ],
        [
            {"addresses": ["10.1.0.7/24"], "routes": [{"to": "10.9.0.0/16", "via": "10.1.0.9"}]},
            {"addresses": ["10.4.0.7/24"], "routes": [{"to": "0.0.0.0/0", "via": "10.4.0.1", "metric": 5}]},
            {"addresses": ["10.1.0.7/24"]},
        ],
    ),
    (
        # Ways of IPv6 by hand: over the network's gateway or another one, and also of a NIC that asks for IPv4.
        [
            (INSIDE6, {"routes": [{"to": "fd00:8::/64", "metric": 3}, {"to": "10.9.0.0/16"}]}),
            (STATIC6, {"gateway6": "fe80::9", "dhcp": True, "routes": [{"to": "fd00:9::/64"}]}),
        ],
        [
            "ip=10.1.0.7::10.1.0.1:255.255.255.0:web1:eth0:off",
            "cocoon.nic=eth0,ip6=fd00:2::ff:fe00:0/64,route=fd00:8::/64@fd00:2::1@3,route=10.9.0.0/16@10.1.0.1@",
            "cocoon.nic=eth1,noroute,ip6=fd00:1::ff:fe00:1/64,gateway6=fe80::9,route=fd00:9::/64@fe80::9@",
        ],
        [
            "options ip6=fd00:2::ff:fe00:0/64,route=fd00:8::/64@fd00:2::1@3,route=10.9.0.0/16@10.1.0.1@",
            "nic old0 02:00:00:00:00:00 10.1.0.7/24 10.1.0.1 -",
            "options noroute,ip6=fd00:1::ff:fe00:1/64,gateway6=fe80::9,route=fd00:9::/64@fe80::9@",
            "nic old1 02:00:00:00:00:01 - - -",
        ],
        [],
    ),
    (
        # What routers say is nothing to tell; a chosen address is.
        [(DUAL, {}), (DUAL, {"ip6": "fd00:1::5", "metric": 5})],
        [
            "ip=10.1.0.7::10.1.0.1:255.255.255.0:web1:eth0:off",
            "ip=10.1.0.7:::255.255.255.0:web1:eth1:off",
            "cocoon.nic=eth1,metric=5,ip6=fd00:1::5/64",
        ],
        [
            "nic old0 02:00:00:00:00:00 10.1.0.7/24 10.1.0.1 -",
            "options metric=5,ip6=fd00:1::5/64",
            "nic old1 02:00:00:00:00:01 10.1.0.7/24 - -",
        ],
        [
            {"addresses": ["10.1.0.7/24"], "routes": [{"to": "0.0.0.0/0", "via": "10.1.0.1"}]},
            {"addresses": ["10.1.0.7/24", "fd00:1::5/64"], "accept-ra": False},
        ],
    ),
    (
        # The way out of IPv6 is where it leads out.
        [(INSIDE6, {}), (STATIC6, {"default_route": False}), (STATIC6, {"dhcp": True, "metric": 7})],
        [
            "ip=10.1.0.7::10.1.0.1:255.255.255.0:web1:eth0:off",
            "cocoon.nic=eth0,ip6=fd00:2::ff:fe00:0/64",
            "ip=10.1.0.7:::255.255.255.0:web1:eth1:off",
            "cocoon.nic=eth1,ip6=fd00:1::ff:fe00:1/64",
            "cocoon.nic=eth2,noroute,metric=7,ip6=fd00:1::ff:fe00:2/64,gateway6=fd00:1::1",
        ],
        [
            "options ip6=fd00:2::ff:fe00:0/64",
            "nic old0 02:00:00:00:00:00 10.1.0.7/24 10.1.0.1 -",
            "options ip6=fd00:1::ff:fe00:1/64",
            "nic old1 02:00:00:00:00:01 10.1.0.7/24 - -",
            "options noroute,metric=7,ip6=fd00:1::ff:fe00:2/64,gateway6=fd00:1::1",
            "nic old2 02:00:00:00:00:02 - - -",
        ],
        [
            {
                "addresses": ["10.1.0.7/24", "fd00:2::ff:fe00:0/64"],
                "routes": [{"to": "0.0.0.0/0", "via": "10.1.0.1"}],
                "accept-ra": False,
            },
            {"addresses": ["10.1.0.7/24", "fd00:1::ff:fe00:1/64"], "accept-ra": False},
            {
                "dhcp4": True,
                "dhcp4-overrides": {"use-routes": False, "route-metric": 7},
                "addresses": ["fd00:1::ff:fe00:2/64"],
                "gateway6": "fd00:1::1",
                "accept-ra": False,
            },
        ],
    ),
    (
        # Somebody may answer by DHCP on a bridge without a subnet; where plugins gave no IPv4, nobody does.
        [(ONLY6, {})],
        ["cocoon.nic=eth0,ip6=fd00:6::ff:fe00:0/64,gateway6=fd00:6::1"],
        ["options ip6=fd00:6::ff:fe00:0/64,gateway6=fd00:6::1", "nic old0 02:00:00:00:00:00 - - -"],
        [
            {
                "dhcp4": True,
                "addresses": ["fd00:6::ff:fe00:0/64"],
                "gateway6": "fd00:6::1",
                "accept-ra": False,
            }
        ],
    ),
    (
        [
            (
                {**FAR, "gateway6": "fe80::1"},
                {
                    "network6": {"ip": "fd00:9::5", "prefix": 128, "gateway": "left"},
                    "offered": {"routes": [{"to": "fd00:8::/64", "via": "fd00:7::1"}], "onlink": True},
                    "dns": ["2001:db8::53", "192.0.2.53"],
                },
            )
        ],
        [
            "cocoon.nic=eth0,only6,onlink,ip6=fd00:9::5/128,gateway6=fe80::1,dns=2001:db8::53,"
            "route=fd00:8::/64@fd00:7::1@"
        ],
        [
            "options only6,onlink,ip6=fd00:9::5/128,gateway6=fe80::1,dns=2001:db8::53,route=fd00:8::/64@fd00:7::1@",
            "nic old0 02:00:00:00:00:00 - - -",
        ],
        [
            {
                "addresses": ["fd00:9::5/128"],
                "routes": [
                    {"to": "::/0", "via": "fe80::1", "on-link": True},
                    {"to": "fd00:8::/64", "via": "fd00:7::1", "on-link": True},
                ],
                "accept-ra": False,
                "nameservers": {"addresses": ["2001:db8::53", "192.0.2.53"]},
            }
        ],
    ),
]


@pytest.mark.parametrize(("nics", "words", "lines", "ethernets"), CASES)
def test_every_writer_says_the_same(
    nics: list[tuple[Record, Record]], words: list[str], lines: list[str], ethernets: list[Record]
) -> None:
    found = told(*nics)
    assert settings.kernel_words(found, "web1") == words
    assert settings.identity_lines(found, ["old0", "old1", "old2"]) == lines
    document = settings.netplan(found)
    assert document["version"] == 2
    for index, expected in enumerate(ethernets):
        match = {"match": {"macaddress": f"02:00:00:00:00:0{index}"}, "set-name": f"eth{index}"}
        assert document["ethernets"][f"eth{index}"] == {**match, **expected}
    assert sum(nic.gateway is not None for nic in found) <= 1, "one default route"
    assert sum(nic.gateway6 is not None for nic in found) <= 1, "one default route"


def test_a_record_of_an_earlier_version() -> None:
    """It is told anew what is the way out at its next start; until then it is as it was."""
    record = {"network_configs": [{"mac": "m", "network": {"ip": "10.1.0.7", "gateway": "10.1.0.1", "prefix": 24}}]}
    (nic,) = settings.settings_of(record)
    assert (nic.gateway, nic.dns, nic.way_out) == ("10.1.0.1", settings.DEFAULT_DNS, True)


@pytest.mark.parametrize(
    ("nics", "networks", "option"),
    [
        ([{**YES}, {**YES}], [NAT, NAT2], "nics[1].default_route"),
        ([{**YES, "metric": 5}, {**YES, "metric": 5}], [NAT, NAT2], "nics[1].default_route"),
        ([YES], [ISLAND], "nics[0].default_route"),
        ([{"gateway": "10.2.0.1"}], [NAT], "nics[0].gateway"),
        ([{"gateway": "10.1.0.7", "ip": "10.1.0.7"}], [NAT], "nics[0].gateway"),
        ([{"gateway": "10.1.0.7"}], [FLAT], "nics[0].gateway"),
        ([{}, {"routes": [{"to": "10.9.0.0/16", "via": "10.9.0.1"}]}], [NAT, NAT2], "nics[1].routes[0].via"),
        ([{"routes": [{"to": "10.9.0.0/16"}]}], [ISLAND], "nics[0].routes[0].via"),
        ([{"routes": [{"to": "10.9.0.0/16", "via": "10.1.0.1"}]}], [LAN], "nics[0].routes[0].via"),
        ([{"dhcp": True}], [NAT], "nics[0].dhcp"),
        ([{"vlan": 20}], [FLAT], "nics[0].vlan"),
        ([{"gateway6": "fd00:1::9"}], [NAT], "nics[0].gateway6"),
        ([{"gateway6": "fd00:1::9"}], [FAR], "nics[0].gateway6"),
        ([{"gateway6": "fd00:1::9"}], [DUAL], "nics[0].gateway6"),
        ([{"gateway6": "fd00:9::9"}], [STATIC6], "nics[0].gateway6"),
        ([{"gateway6": "fd00:1::9", "ip6": "fd00:1::9"}], [STATIC6], "nics[0].gateway6"),
        ([{"routes": [{"to": "fd00:8::/64"}]}], [DUAL], "nics[0].routes[0].via"),
        ([{"routes": [{"to": "fd00:8::/64", "via": "fd00:9::1"}]}], [STATIC6], "nics[0].routes[0].via"),
        ([{"routes": [{"to": "fd00:8::/64"}]}], [{**STATIC6, "adopted": True}], "nics[0].routes[0].via"),
        ([{"ip6": "fd00:1::5"}], [NAT], "nics[0].ip6"),
        ([{"ip6": "fd00:1::5"}], [FAR], "nics[0].ip6"),
        ([{"ip6": "fd00:1::1"}], [DUAL], "nics[0].ip6"),
        ([{"ip6": "fd00:2::5"}], [DUAL], "nics[0].ip6"),
        ([{"ip6": "fd00:1::ff:fe00:1"}], [DUAL], "nics[0].ip6"),
        ([{"vlan": 20}], [{**INSIDE, "vlan_filtering": True}], "nics[0].vlan"),
        ([{"dhcp": True, "gateway": "10.1.0.9"}], [{**NAT, "dhcp": True}], "nics[0].gateway"),
        ([{"dhcp": True, "routes": [{"to": "10.9.0.0/16"}]}], [{**NAT, "dhcp": True}], "nics[0].routes[0].via"),
        ([{"dhcp": True, **YES}], [{**INSIDE, "dhcp": True}], "nics[0].default_route"),
    ],
)
def test_routes_that_cannot_work(nics: list[Record], networks: list[Record], option: str) -> None:
    with pytest.raises(InputError) as caught:
        settings.check(nics, networks)
    assert caught.value.option == option and caught.value.remedy


@pytest.mark.parametrize(
    ("nics", "networks"),
    [
        ([{**YES}, {**YES, "metric": 5}], [NAT, NAT2]),
        ([{**YES, "gateway": "10.5.0.1"}], [ISLAND]),
        ([YES], [LAN]),
        ([YES], [INSIDE]),
        ([{"dhcp": True}, {"dhcp": True}], [{**NAT, "dhcp": True}, FLAT]),
        ([{"dhcp": True}], [{**INSIDE, "dhcp": True}]),
        ([{"ip6": "fd00:1::5"}, {"ip6": "fd00:6::5"}], [DUAL, ONLY6]),
        ([{"vlan": 20}, {"vlan": 30}], [{**FLAT, "vlan_filtering": True}, LAN]),
        ([{"gateway": "10.5.0.1", "routes": [{"to": "10.9.0.0/16"}]}], [ISLAND]),
        ([{"gateway6": "fe80::9", "routes": [{"to": "fd00:8::/64"}]}], [STATIC6]),
        ([{"ip6": "fd00:1::5", "routes": [{"to": "fd00:8::/64"}]}], [DUAL]),
        ([{"routes": [{"to": "fd00:8::/64", "via": "fd00:2::9"}]}], [INSIDE6]),
    ],
)
def test_routes_that_can(nics: list[Record], networks: list[Record]) -> None:
    settings.check(nics, networks)


@pytest.mark.parametrize("text", ["0.0.0.0/0", "default", "10.0.0.1/8", "::/0", "fd00::1/8", "", "10.0.0.0/33"])
def test_what_is_no_route(text: str) -> None:
    with pytest.raises(InputError):
        settings.check_route(text, "nics[0].routes[0].to")


def test_a_route_to_one_machine() -> None:
    assert settings.check_route(" 10.0.0.1 ", "to") == "10.0.0.1/32"
    assert settings.check_route("FD00::1", "to") == "fd00::1/128"


@pytest.mark.parametrize(
    ("network", "servers", "domains"),
    [
        ({"name": "Lab", "gateway": "10.1.0.1", "dns": ["9.9.9.9"]}, ["9.9.9.9"], []),
        ({"name": "Lab", "gateway": "10.1.0.1", "dns": ["9.9.9.9"], "names": True}, ["10.1.0.1"], ["lab"]),
        ({"name": "lab", "gateway": "10.1.0.1", "names": True, "dns_search": ["x", "lab"]}, ["10.1.0.1"], ["lab", "x"]),
    ],
)
def test_whom_guests_ask_for_names(network: Record, servers: list[str], domains: list[str]) -> None:
    assert settings.servers(network) == servers
    assert settings.domains(network) == domains


def test_a_nic_that_does_not_ask_is_as_one_that_says_nothing() -> None:
    assert settings.asked({"dhcp": False, "default_route": False}) == {"default_route": False}
    assert settings.asked({"dhcp": True}) == {"dhcp": True}
