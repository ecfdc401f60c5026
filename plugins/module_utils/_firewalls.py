# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other firewalls of the host that drop what is forwarded: which they are, and how each is told to let guests pass.

An accept of ours does not help against a drop of theirs, as every chain of a hook has its say; nor does an accept there
let anything past our own rules. Looking is done by what the host has; what it means, and the commands that would open
or close a firewall, is worked out from that, without touching anything.
"""

from __future__ import annotations

import dataclasses
import json
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

# By this we know what is ours there.
MARK = "cocoon-microvm"
# Bridges that were given no name of their own; as iptables writes it.
OURS = "cm-+"
LEGACY_TABLES = {"iptables": "/proc/net/ip_tables_names", "ip6tables": "/proc/net/ip6_tables_names"}
PROGRAMS = {"ip": "iptables", "ip6": "ip6tables"}
TOOLS = (
    *("nft", "ufw", "firewall-cmd"),
    *(f"{program}-{kind}" for program in PROGRAMS.values() for kind in ("nft", "legacy")),
)
# Chains that are there for rules of other people's, in the order in which a packet comes to them.
DOCKER, UFW = "DOCKER-USER", ("ufw-user-forward", "ufw6-user-forward")
ZONE = ["firewall-cmd", "--quiet", "--zone=trusted"]

Words = list[str]
Ask = t.Callable[[t.Sequence[str]], str]


@dataclasses.dataclass
class Firewall:
    """One that drops forwarded packets.

    :param name: ``docker``, ``ufw``, ``firewalld``, ``iptables`` or ``nftables``. :param place: the chain that drops.
    :param open: commands by which it lets our bridges pass; none if it does. :param close: those that take that back.
    """

    name: str
    place: str
    open: list[Words]
    close: list[Words]


def look(bridges: t.Iterable[str], tools: t.Container[str], ask: Ask) -> tuple[list[Firewall], str | None]:
    """All that drop, and why nft cannot say if it cannot.

    :param bridges: those of our networks. :param tools: the programs that are there. :param ask: what one prints.
    """
    named = [OURS, *sorted({name for name in bridges if not name.startswith(OURS[:-1])})]
    found: list[Firewall] = []
    for program, names in LEGACY_TABLES.items():
        if _has_filter(names) and f"{program}-legacy" in tools:
            found += _iptables(f"{program}-legacy", named, tools, ask)
    if "nft" not in tools:
        return found, None
    text = ask(["nft", "-j", "list", "chains"])
    chains = _items(text, "chain")
    if chains is None:
        return found, " ".join(text.split())[:200] or "no answer"
    for chain in drops(chains):
        program = f"{PROGRAMS.get(chain['family'])}-nft"
        if (chain["table"], chain["name"]) == ("filter", "FORWARD") and program in tools:
            found += _iptables(program, named, tools, ask)
        elif chain["table"] == "firewalld" and "firewall-cmd" in tools:
            found.append(_firewalld(place_of(chain), named, ask))
        else:
            found.append(_nftables(chain, named, ask))
    return found, None


def _items(text: str, kind: str) -> list[Record] | None:
    """What ``nft -j`` prints, perhaps after warnings; ``None`` if that is something else."""
    try:
        document = json.loads(text[text.index("{") :])
        return [entry[kind] for entry in document["nftables"] if kind in entry]
    except (ValueError, KeyError, TypeError):
        return None


def _has_filter(path: str) -> bool:
    try:
        with open(path, encoding="ascii") as stream:
            return "filter" in stream.read().split()
    except OSError:
        return False


def drops(chains: t.Iterable[Record]) -> list[Record]:
    """Of what ``nft -j list chains`` says those of others that drop: by policy, or, as firewalld does, at the end."""
    return [
        chain
        for chain in chains
        if chain.get("hook") == "forward"
        and (chain.get("policy") == "drop" or chain["table"] == "firewalld")
        and not chain["table"].startswith("cocoon_")
        and chain["family"] in ("ip", "ip6", "inet")
    ]


def place_of(chain: Record) -> str:
    return f"{chain['family']} {chain['table']} {chain['name']}"


def _iptables(program: str, named: t.Sequence[str], tools: t.Container[str], ask: Ask) -> list[Firewall]:
    """The filter table of iptables, in whichever of its two forms, if it drops."""
    return iptables(program, ask([program, "-w", "-S"]).splitlines(), named, "ufw" in tools)


def iptables(program: str, lines: t.Sequence[str], named: t.Sequence[str], has_ufw: bool) -> list[Firewall]:
    """From what ``iptables -S`` prints."""
    if "-P FORWARD DROP" not in lines:
        return []
    place = f"{program} FORWARD"
    ufw = next((chain for chain in UFW if f"-N {chain}" in lines), None)
    if f"-N {DOCKER}" not in lines and ufw and has_ufw:
        return [_ufw(place, ufw, lines, named)]
    docker = f"-N {DOCKER}" in lines
    chain = DOCKER if docker else "FORWARD"
    name = "docker" if docker else "ufw" if ufw else "iptables"
    rules = [[*way, "-m", "comment", "--comment", MARK, "-j", "ACCEPT"] for way in _ways(named)]
    there = [rule for rule in rules if " ".join(["-A", chain, *rule]) in lines]
    stale = [line.split()[2:] for line in lines if line.startswith(f"-A {chain} ") and f"--comment {MARK} " in line]
    return [
        Firewall(
            name,
            place,
            open=[[program, "-w", "-I", chain, *rule] for rule in rules if rule not in there],
            close=[[program, "-w", "-D", chain, *rule] for rule in stale],
        )
    ]


def _ways(named: t.Iterable[str]) -> list[Words]:
    return [[flag, name] for name in named for flag in ("-i", "-o")]


def _ufw(place: str, chain: str, lines: t.Sequence[str], named: t.Sequence[str]) -> Firewall:
    """It has files of its own rules, so it is told by its own program, once for IPv4 and IPv6."""
    direction = {"-i": "in", "-o": "out"}
    told = {way: f"-A {chain} {' '.join(way)} -j ACCEPT" in lines for way in map(tuple, _ways(named))}
    rule = {way: ["allow", direction[way[0]], "on", way[1]] for way in told}
    return Firewall(
        "ufw",
        place,
        open=[["ufw", "route", *rule[way]] for way, there in told.items() if not there],
        close=[["ufw", "route", "delete", *rule[way]] for way, there in told.items() if there],
    )


def _firewalld(place: str, named: t.Sequence[str], ask: Ask) -> Firewall:
    """What is in its zone of those who are trusted, it forwards; now and after its next start."""
    there = set(ask([*ZONE[:1], *ZONE[2:], "--list-interfaces"]).split())
    return Firewall(
        "firewalld",
        place,
        open=[word for name in named if name not in there for word in _both(f"--change-interface={name}")],
        close=[word for name in named if name in there for word in _both(f"--remove-interface={name}")],
    )


def _both(change: str) -> list[Words]:
    return [[*ZONE, change], [*ZONE, "--permanent", change]]


def _nftables(chain: Record, named: t.Sequence[str], ask: Ask) -> Firewall:
    """Somebody's own rules."""
    words = [chain["family"], chain["table"], chain["name"]]
    return nftables(chain, _items(ask(["nft", "-j", "list", "chain", *words]), "rule") or [], named)


def nftables(chain: Record, rules: t.Sequence[Record], named: t.Sequence[str]) -> Firewall:
    """From what ``nft -j list chain`` prints."""
    words = [chain["family"], chain["table"], chain["name"]]
    wanted = {
        f"{MARK} {flag} {name}": [{"-i": "iifname", "-o": "oifname"}[flag], f'"{name.replace("+", "*")}"']
        for flag, name in _ways(named)
    }
    mine = {rule["comment"]: rule["handle"] for rule in rules if str(rule.get("comment", "")).startswith(f"{MARK} ")}
    return Firewall(
        "nftables",
        " ".join(words),
        open=[
            ["nft", "insert", "rule", *words, *match, "accept", "comment", f'"{comment}"']
            for comment, match in wanted.items()
            if comment not in mine
        ],
        close=[["nft", "delete", "rule", *words, "handle", str(handle)] for handle in mine.values()],
    )
