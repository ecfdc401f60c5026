# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames that guests have no right to send: each TAP has a chain of rules that drops them before the bridge sees them.

A table of the bridge family, beside the store's other one. A map leads from a TAP's name to its chain, so what a
frame costs does not depend on how many guests there are, and a VM's chains come and go without the others being read.
"""

from __future__ import annotations

import hashlib
import ipaddress
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._network import nftables
from ansible_collections.cocoon.microvm.plugins.module_utils._network.ruleset import table_name
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import subnets
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkRecord

MAP = "guards"
ARRIVING = "arriving"
UNGUARDED = "not guarded"
# What every table has; all of it may be there already.
_BASE = (
    "add table bridge {table}",
    "add map bridge {table} {map} {{ type ifname : verdict; }}",
    "add chain bridge {table} {arriving} {{ type filter hook prerouting priority -300; policy accept; }}",
    "flush chain bridge {table} {arriving}",
    'add rule bridge {table} {arriving} iifname vmap @{map} comment "{map}"',
)

Config = t.Mapping[str, t.Any]


class Nic(t.NamedTuple):
    """A NIC, its network's record, and the addresses that its VM was given, on whichever of its NICs.

    A guest answers for any of its addresses on any of its NICs (Linux does, with two of them on one network).
    """

    config: Config
    network: NetworkRecord
    addresses: tuple[str, ...]


def nics(configs: t.Sequence[Config], network_of: t.Callable[[Config], NetworkRecord | None]) -> t.Iterator[Nic]:
    """The NICs of one VM; those whose network is not known are left out."""
    addresses = tuple(sorted(filter(None, map(_address, configs))))
    for config in configs:
        network = network_of(config)
        if network is not None:
            yield Nic(config, network, addresses)


def _address(config: Config) -> str | None:
    return (config.get("network") or {}).get("ip")


def is_wanted(nic: Nic) -> bool:
    """Whether a NIC has rules: against spoofing on our own bridges unless told otherwise, on others only if told."""
    if not nic.config.get("bridge_dev") or nic.config.get("netns_path"):
        return False
    return _is_held(nic) or bool(_sending(nic))


def _is_held(nic: Nic) -> bool:
    told = nic.network.get("anti_spoofing")
    return bool(not nic.network.get("adopted") if told is None else told)


def _sending(nic: Nic) -> t.Mapping[str, int] | None:
    """How fast a guest may send, if that is limited."""
    return (nic.config.get("limits") or {}).get("tx")


def rules(nic: Nic) -> list[str]:
    """What is dropped of what comes from one guest. Pure."""
    limit = _sending(nic)
    # First, as what comes after it may end the chain.
    found = [f"limit rate over {limit['rate']} bytes/second burst {limit['burst']} bytes drop"] if limit else []
    return found + (_holding(nic) if _is_held(nic) else [])


def _holding(nic: Nic) -> list[str]:
    """What it has no right to send.

    Another source MAC, tags of a VLAN; where we gave the address, any but the VM's own in IPv4 and ARP, and in IPv6
    any but the NIC's own, claims to other neighbours' addresses, and what only routers
    and servers send; where we answer to DHCP, what it asks for others.
    """
    mac = nic.config["mac"]
    found = [
        f"ether saddr != {mac} drop",
        "ether type { 8021q, 0x88a8 } drop",
        f"arp saddr ether != {mac} drop",
    ]
    if nic.network.get("dhcp"):
        # Whose lease it is about stands in the message (chaddr), which nothing shows in a part of one.
        found += [
            "ip frag-off & 0x3fff != 0 udp dport 67 drop",
            f"udp dport 67 @th,288,48 != 0x{mac.replace(':', '')} drop",
            "ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept",
        ]
    if _address(nic.config):
        own = ", ".join(nic.addresses)
        found += [f"arp saddr ip != {{ 0.0.0.0, {own} }} drop", f"ip saddr != {{ {own} }} drop"]
    if _address(nic.config) or nic.network.get("subnet6"):
        own6 = _own6(nic)
        found += [
            f"ip6 saddr != {{ ::, {', '.join(map(str, own6))} }} drop",
            f"icmpv6 type nd-neighbor-advert {' '.join(f'@th,64,128 != {int(ip):#034x}' for ip in own6)} drop",
            "icmpv6 type { nd-router-advert, nd-redirect } drop",
            "ether type ip udp sport 67 drop",
            "ether type ip6 udp sport 547 drop",
        ]
    return found


def _own6(nic: Nic) -> list[ipaddress.IPv6Address]:
    """The IPv6 addresses of a guest: that of the link, which follows from its MAC, and those of the subnet."""
    link = ipaddress.IPv6Address((0xFE80 << 112) + subnets.interface_id(nic.config["mac"]))
    return [link, *map(ipaddress.IPv6Address, subnets.owned6(nic.network, nic.config))]


def _digest(nic: Nic) -> str:
    return hashlib.sha256("\n".join(rules(nic)).encode()).hexdigest()[:32]


def text(table: str, guarded: t.Iterable[Nic]) -> str:
    """One transaction that guards those NICs, whatever was there. Pure."""
    lines = [line.format(table=table, map=MAP, arriving=ARRIVING) for line in _BASE]
    for nic in guarded:
        chain, digest = nic.config["tap"], _digest(nic)
        lines += [f"add chain bridge {table} {chain}", f"flush chain bridge {table} {chain}"]
        lines += [f'add rule bridge {table} {chain} {rule} comment "{digest}"' for rule in rules(nic)]
        lines.append(f'add element bridge {table} {MAP} {{ "{chain}" : goto {chain} }}')
    return "\n".join([*lines, ""])


def removal(table: str, taps: t.Iterable[str]) -> str:
    """One transaction after which those TAPs have no rules, whether they had or not. Pure."""
    lines = [line.format(table=table, map=MAP, arriving=ARRIVING) for line in _BASE]
    for tap in taps:
        lines += [
            f"add chain bridge {table} {tap}",
            f'add element bridge {table} {MAP} {{ "{tap}" : goto {tap} }}',
            f'delete element bridge {table} {MAP} {{ "{tap}" }}',
            f"flush chain bridge {table} {tap}",
            f"delete chain bridge {table} {tap}",
        ]
    return "\n".join([*lines, ""])


def faults(store_id: str, nic: Nic) -> list[str]:
    """Whether a NIC lacks its guard, in words; usually nothing. No process is started."""
    table, config = table_name(store_id), nic.config
    if not is_wanted(nic):
        stale = nftables.has_element(table, MAP, config["tap"]) if config.get("bridge_dev") else False
        return ["guarded"] if stale else []
    digest = _digest(nic).encode()
    comments = nftables.comments(table, config["tap"], nftables.BRIDGE)
    right = len(comments) == len(rules(nic)) and all(digest in comment for comment in comments)
    entry = nftables.comments(table, ARRIVING, nftables.BRIDGE)
    hooked = len(entry) == 1 and nftables.has_element(table, MAP, config["tap"])
    return [] if right and hooked else [UNGUARDED]


def ensure(store: Store, among: t.Iterable[Nic]) -> None:
    """Guard those of the NICs that are to be guarded, and no others.

    :raises ToolError: nft is missing or refused it.
    """
    wrong = [nic for nic in among if faults(store.store_id, nic)]
    wanted = [nic for nic in wrong if is_wanted(nic)]
    if wanted:
        nftables.load(text(table_name(store.store_id), wanted))
    remove(store, [nic.config["tap"] for nic in wrong if not is_wanted(nic)])


def remove(store: Store, taps: t.Iterable[str]) -> None:
    """Drop the guards of TAPs that are gone for good."""
    table = table_name(store.store_id)
    there = [tap for tap in taps if nftables.has_element(table, MAP, tap)]
    if there:
        nftables.load(removal(table, there))


def guarded(store: Store) -> list[str]:
    """The TAPs that have rules, whether they are there or not."""
    return [chain for chain in nftables.chains(table_name(store.store_id), nftables.BRIDGE) if chain != ARRIVING]


def remove_all(store: Store) -> None:
    """Drop the table, with the last network."""
    table = table_name(store.store_id)
    if not nftables.is_absent(table, nftables.BRIDGE):
        nftables.load(f"add table bridge {table}\ndelete table bridge {table}\n")
