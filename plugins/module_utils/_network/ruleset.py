# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The nftables rules of a store as text: a pure function of its networks, their ports and the host's uplinks.

What is not on one of our bridges is not matched, with one exception: see :func:`_forward`.
Sets and maps are anonymous, so that nothing but whole rules can be changed from outside, and
:mod:`_nftables` need only count rules to know that the table is as we made it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._planning import subnets
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkRecord

# Chains in the order in which the kernel is to get them: what is jumped to comes first.
Chains = dict[str, list[str]]


@dataclasses.dataclass(frozen=True)
class Ruleset:
    """Rules ready to be loaded. ``digest`` stands in a rule's comment, ``rules`` is how many there are."""

    table: str
    text: str
    digest: str
    rules: int


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the rules are made from.

    :param networks: records of networks whose bridge is ours (not adopted, not being removed).
    :param ports: published ports of those networks, see :func:`_ports.published`.
    :param uplinks: interfaces that lead out.
    :param uplinks6: interfaces that lead out with IPv6.
    :param guarded: uplinks whose forwarding was off before us, on a host that does not forward otherwise.
    """

    networks: tuple[NetworkRecord, ...]
    ports: tuple[Record, ...]
    uplinks: tuple[str, ...]
    guarded: tuple[str, ...]
    uplinks6: tuple[str, ...] = ()


def table_name(store_id: str) -> str:
    return f"cocoon_{store_id[:8]}"


def _names(interfaces: t.Iterable[str]) -> str:
    return "{ " + ", ".join(f'"{name}"' for name in sorted(interfaces)) + " }"


def _from_guest(inputs: Inputs) -> list[str]:
    """Forwarded packets that come from a guest."""
    nets = inputs.networks
    nat = [net for net in nets if net["nat"]]
    # A bridge's own traffic comes by here where br_netfilter is loaded.
    # Isolated guests do not get to each other by way of the gateway either.
    shared = [net for net in nets if not net.get("isolated")]
    rules = [f'iifname "{net["bridge"]}" oifname "{net["bridge"]}" accept' for net in shared]
    rules.append(f"oifname {_names(net['bridge'] for net in nets)} drop")
    rules += _from_guest6(inputs)
    if nat:
        bridges = _names(net["bridge"] for net in nat)
        rules += ["meta nfproto != ipv4 drop", "ct state invalid drop"]
        rules += [f'iifname "{net["bridge"]}" ip saddr != {net["subnet"]} drop' for net in nat]
        if inputs.uplinks:
            rules.append(f"iifname {bridges} oifname {_names(inputs.uplinks)} accept")
        rules.append(f"iifname {bridges} ct state established,related accept")
    return [*rules, "drop"]


def _from_guest6(inputs: Inputs) -> list[str]:
    """The same of IPv6, where a network's leads out."""
    rules = []
    for net in _leading6(inputs):
        mine = f'iifname "{net["bridge"]}" meta nfproto ipv6'
        rules.append(f"{mine} ct state established,related accept")
        if inputs.uplinks6:
            rules.append(f"{mine} ip6 saddr {net['subnet6']} oifname {_names(inputs.uplinks6)} accept")
    return rules


def _leading6(inputs: Inputs) -> list[NetworkRecord]:
    return [net for net in inputs.networks if net.get("subnet6") and net["routing6"] != "none"]


def _to_guest(inputs: Inputs) -> list[str]:
    """Forwarded packets that go to a guest and do not come from one."""
    nat = [net["bridge"] for net in inputs.networks if net["nat"]]
    rules = []
    if nat:
        rules.append(f"oifname {_names(nat)} ct state established,related accept")
        rules.append(f"oifname {_names(nat)} ct status dnat accept")
    if _leading6(inputs):
        bridges = _names(net["bridge"] for net in _leading6(inputs))
        rules.append(f"oifname {bridges} meta nfproto ipv6 ct state established,related accept")
    return [*rules, "drop"]


def _guest_to_host(inputs: Inputs) -> list[str]:
    rules = ["ct state established,related accept"]
    for net in inputs.networks:
        if net["gateway"]:
            rules.append(
                f'iifname "{net["bridge"]}" ip saddr {net["subnet"]} ip daddr {net["gateway"]} '
                "icmp type echo-request accept"
            )
        if net.get("names"):
            to_gateway = f'iifname "{net["bridge"]}" ip saddr {net["subnet"]} ip daddr {net["gateway"]}'
            rules += [f"{to_gateway} {protocol} dport 53 accept" for protocol in ("udp", "tcp")]
        if net.get("subnet6"):
            rules += _guest_to_router(net)
        if net.get("dhcp"):
            rules.append(f'iifname "{net["bridge"]}" meta nfproto ipv4 udp sport 68 udp dport 67 accept')
    return [*rules, "drop"]


def _guest_to_router(net: NetworkRecord) -> list[str]:
    """What a guest needs of the host to use IPv6, and ping and names as with IPv4."""
    mine, gateway = f'iifname "{net["bridge"]}"', subnets.gateway6(net)
    rules = [
        f"{mine} icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} accept",
        f"{mine} ip6 daddr {gateway} icmpv6 type echo-request accept",
    ]
    if net.get("names"):
        rules += [f"{mine} ip6 daddr {gateway} {protocol} dport 53 accept" for protocol in ("udp", "tcp")]
    return rules


def _forward(inputs: Inputs, digest: str) -> list[str]:
    bridges = _names(net["bridge"] for net in inputs.networks)
    rules = [f'iifname {bridges} goto from_guest comment "{digest}"', f"oifname {bridges} goto to_guest"]
    if inputs.guarded:
        # Forwarding on these is on for our guests alone. Without this, their neighbours could from now on
        # reach the host's other networks through the host.
        rules.append(f"meta nfproto ipv4 iifname {_names(inputs.guarded)} ct state new ct status & dnat == 0 drop")
    return rules


def _published(ports: t.Sequence[Record]) -> list[str]:
    """Those for one address of the host before those for any."""
    rules = []
    for protocol in ("tcp", "udp"):
        mine = [port for port in ports if port["protocol"] == protocol]
        bound = [
            f"{p['host_ip']} . {p['host_port']} : {p['ip']} . {p['guest_port']}"
            for p in mine
            if p["host_ip"] is not None
        ]
        free = [f"{p['host_port']} : {p['ip']} . {p['guest_port']}" for p in mine if p["host_ip"] is None]
        if bound:
            rules.append(f"dnat ip to ip daddr . {protocol} dport map {{ {', '.join(bound)} }}")
        if free:
            rules.append(f"dnat ip to {protocol} dport map {{ {', '.join(free)} }}")
    return rules


def _chains(inputs: Inputs, digest: str) -> tuple[Chains, dict[str, str]]:
    """The rules by chain, and the hooks of those that have one."""
    bridges = _names(net["bridge"] for net in inputs.networks)
    chains: Chains = {
        "from_guest": _from_guest(inputs),
        "to_guest": _to_guest(inputs),
        "guest_to_host": _guest_to_host(inputs),
        "forward": _forward(inputs, digest),
        "input": [f"iifname {bridges} goto guest_to_host"],
        # The bridges route for the host's loopback, see below, and guests have no business there.
        "arriving": [f"iifname {bridges} ip {side} 127.0.0.0/8 drop" for side in ("daddr", "saddr")],
    }
    hooks = {
        "arriving": "type filter hook prerouting priority -300; policy accept;",
        "forward": "type filter hook forward priority 0; policy accept;",
        "input": "type filter hook input priority 0; policy accept;",
    }
    nat = [net for net in inputs.networks if net["nat"]]
    nat6 = [net for net in _leading6(inputs) if net["routing6"] == "nat"]
    if nat or nat6:
        chains["postrouting"] = [f'ip saddr {net["subnet"]} oifname != "{net["bridge"]}" masquerade' for net in nat]
        chains["postrouting"] += [f'ip6 saddr {net["subnet6"]} oifname != "{net["bridge"]}" masquerade' for net in nat6]
        hooks["postrouting"] = "type nat hook postrouting priority 100; policy accept;"
    if inputs.ports:
        chains["published"] = _published(inputs.ports)
        # Guests do not get to the host, and so not to its published ports either.
        chains["prerouting"] = [f"iifname {bridges} accept", "fib daddr type local goto published"]
        chains["output"] = ["fib daddr type local goto published"]
        # What the host sends to itself comes to the guest from the gateway.
        bridges = _names(net["bridge"] for net in nat)
        chains["postrouting"].append(f"ip saddr 127.0.0.0/8 oifname {bridges} masquerade")
        hooks["prerouting"] = "type nat hook prerouting priority -100; policy accept;"
        hooks["output"] = "type nat hook output priority -100; policy accept;"
    return chains, hooks


def _text(table: str, chains: Chains, hooks: dict[str, str]) -> str:
    """One transaction that replaces the table, whatever was there."""
    lines = [f"add table inet {table}", f"delete table inet {table}", f"table inet {table} {{"]
    for name, rules in chains.items():
        body = [hooks[name]] if name in hooks else []
        lines += [f"  chain {name} {{", *(f"    {line}" for line in body + rules), "  }"]
    return "\n".join([*lines, "}", ""])


def removal(table: str) -> str:
    """A transaction after which the table is not there, whether it was or not."""
    return f"add table inet {table}\ndelete table inet {table}\n"


def render(table: str, inputs: Inputs) -> Ruleset | None:
    """The rules, or ``None`` if there is nothing to have rules for."""
    if not inputs.networks:
        return None
    # The digest is that of the rules with an empty one in its place.
    digest = hashlib.sha256(_text(table, *_chains(inputs, "")).encode()).hexdigest()[:32]
    chains, hooks = _chains(inputs, digest)
    return Ruleset(table, _text(table, chains, hooks), digest, sum(len(rules) for rules in chains.values()))
