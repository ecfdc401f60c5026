# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules that hold a guest to its own addresses, as text; what they do is tested with frames."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._network import guard

NIC: dict[str, t.Any] = {"tap": "cmaaaaaaaa-0", "mac": "02:ab:00:00:00:0a", "bridge_dev": "cm-lab"}
WITH_ADDRESS = {**NIC, "network": {"ip": "10.1.0.7", "prefix": 24}}
SECOND = {**NIC, "tap": "cmaaaaaaaa-1", "mac": "02:ab:00:00:00:0b", "network": {"ip": "10.1.0.8", "prefix": 24}}
OURS, ADOPTED = {"adopted": False}, {"adopted": True}


@pytest.mark.parametrize(
    ("config", "network", "wanted"),
    [
        (NIC, OURS, True),
        (NIC, {**OURS, "anti_spoofing": True}, True),
        (NIC, {**OURS, "anti_spoofing": False}, False),
        (NIC, ADOPTED, False),
        (NIC, {**ADOPTED, "anti_spoofing": True}, True),
        ({**NIC, "netns_path": "/run/netns/x"}, OURS, False),
        ({"tap": "t", "mac": NIC["mac"]}, OURS, False),
    ],
)
def test_who_is_guarded(config: dict, network: dict, wanted: bool) -> None:
    assert guard.is_wanted(guard.Nic(config, network, ())) is wanted


def nics(*configs: dict) -> list[guard.Nic]:
    """The NICs of one VM."""
    return list(guard.nics(configs, lambda _config: OURS))


def rules(*configs: dict) -> list[str]:
    """The rules of the first of a VM's NICs."""
    return guard.rules(nics(*configs)[0])


def test_rules_of_a_guest_with_an_address() -> None:
    assert rules(WITH_ADDRESS) == [
        "ether saddr != 02:ab:00:00:00:0a drop",
        "ether type { 8021q, 0x88a8 } drop",
        "arp saddr ether != 02:ab:00:00:00:0a drop",
        "arp saddr ip != { 0.0.0.0, 10.1.0.7 } drop",
        "ip saddr != { 10.1.0.7 } drop",
        "ip6 saddr != { ::, fe80::ab:ff:fe00:a } drop",
        "icmpv6 type nd-neighbor-advert @th,64,128 != 0xfe8000000000000000ab00fffe00000a drop",
        "icmpv6 type { nd-router-advert, nd-redirect } drop",
        "ether type ip udp sport 67 drop",
        "ether type ip6 udp sport 547 drop",
    ]


def test_without_an_address_only_the_mac_counts() -> None:
    assert rules(NIC) == rules(WITH_ADDRESS)[:3]
    assert rules(NIC, WITH_ADDRESS) == rules(NIC)


def test_a_guest_answers_for_all_of_its_addresses_on_each_of_its_nics() -> None:
    found = rules(WITH_ADDRESS, SECOND, NIC)
    assert found[0] == "ether saddr != 02:ab:00:00:00:0a drop"
    assert found[3:5] == [
        "arp saddr ip != { 0.0.0.0, 10.1.0.7, 10.1.0.8 } drop",
        "ip saddr != { 10.1.0.7, 10.1.0.8 } drop",
    ]
    assert found[5:] == rules(WITH_ADDRESS)[5:]


def test_what_leads_to_an_unknown_network_is_nobodys() -> None:
    assert list(guard.nics([NIC], lambda _config: None)) == []


def test_one_transaction_for_many() -> None:
    other = {**WITH_ADDRESS, "tap": "cmbbbbbbbb-0"}
    lines = guard.text("cocoon_x", nics(NIC) + nics(other)).splitlines()
    assert lines[0] == "add table bridge cocoon_x"
    for nic in (NIC, other):
        mine = [line for line in lines if f" {nic['tap']}" in line]
        assert mine[:2] == [f"add chain bridge cocoon_x {nic['tap']}", f"flush chain bridge cocoon_x {nic['tap']}"]
        assert mine[-1] == f'add element bridge cocoon_x guards {{ "{nic["tap"]}" : goto {nic["tap"]} }}'
        assert len(mine) == 3 + len(rules(nic))
    assert all("comment" in line for line in lines if line.startswith("add rule"))


def test_a_guest_may_ask_by_dhcp_where_somebody_answers() -> None:
    (nic,) = guard.nics([WITH_ADDRESS], lambda _config: {**OURS, "dhcp": True})
    found = guard.rules(nic)
    asks = "ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept"
    assert found.index("ether saddr != 02:ab:00:00:00:0a drop") < found.index(asks)
    assert found.index("ip frag-off & 0x3fff != 0 udp dport 67 drop") < found.index(asks)
    assert found.index("udp dport 67 @th,288,48 != 0x02ab0000000a drop") < found.index(asks)
    assert found.index(asks) < found.index("ip saddr != { 10.1.0.7 } drop")
    assert found[-1] == "ether type ip6 udp sport 547 drop"


def test_a_guest_with_ipv6_has_the_addresses_that_follow_from_its_mac() -> None:
    for config in (WITH_ADDRESS, NIC):
        (nic,) = guard.nics([config], lambda _config: {**OURS, "subnet6": "fd00:1::/64"})
        found = guard.rules(nic)
        assert "ip6 saddr != { ::, fe80::ab:ff:fe00:a, fd00:1::ab:ff:fe00:a } drop" in found
        wanted = "@th,64,128 != 0xfe8000000000000000ab00fffe00000a @th,64,128 != 0xfd0000010000000000ab00fffe00000a"
        assert f"icmpv6 type nd-neighbor-advert {wanted} drop" in found
        assert ("ip saddr != { 10.1.0.7 } drop" in found) is (config is WITH_ADDRESS)


def test_a_guest_with_a_chosen_address_has_that_and_what_advertisements_may_give_it() -> None:
    for addresses6, heard in (("static", ""), ("advertised", ", fd00:1::ab:ff:fe00:a")):
        network = {**OURS, "subnet6": "fd00:1::/64", "addresses6": addresses6}
        (nic,) = guard.nics([{**NIC, "ip6": "fd00:1::5"}], lambda _config, network=network: network)
        assert f"ip6 saddr != {{ ::, fe80::ab:ff:fe00:a, fd00:1::5{heard} }} drop" in guard.rules(nic)


def test_how_fast_a_guest_may_send() -> None:
    config = {**NIC, "limits": {"tx": {"rate": 1000, "burst": 2000}}}
    rule = "limit rate over 1000 bytes/second burst 2000 bytes drop"
    held, free = (guard.Nic(config, network, ()) for network in (OURS, ADOPTED))
    assert guard.is_wanted(held) and guard.is_wanted(free)
    assert guard.rules(held)[0] == rule and len(guard.rules(held)) > 1, "some that follow let through for good"
    assert guard.rules(free) == [rule]
    assert not guard.is_wanted(guard.Nic({**NIC, "limits": {"rx": {"rate": 1, "burst": 1}}}, ADOPTED, ()))
