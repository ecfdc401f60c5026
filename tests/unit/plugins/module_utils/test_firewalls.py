# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other firewalls: which of them drop, and by which commands they let guests pass, from what their programs print."""

from __future__ import annotations

import json
import pathlib
import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils import _firewalls as firewalls

ACCEPT = "-m comment --comment cocoon-microvm -j ACCEPT"
DOCKER = ["-P INPUT ACCEPT", "-P FORWARD DROP", "-N DOCKER-USER", "-A FORWARD -j DOCKER-USER"]
UFW = ["-P FORWARD DROP", "-N ufw-user-forward", "-A FORWARD -j ufw-before-forward"]


def chain(**fields: t.Any) -> dict[str, t.Any]:
    return {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop", **fields}


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, True),
        ({"family": "inet", "table": "firewall", "name": "f"}, True),
        ({"family": "ip6"}, True),
        ({"family": "inet", "table": "firewalld", "name": "filter_FORWARD", "policy": "accept"}, True),
        ({"family": "inet", "table": "firewalld", "name": "filter_INPUT", "hook": "input", "policy": "accept"}, False),
        ({"policy": "accept"}, False),
        ({"hook": "input"}, False),
        ({"table": "cocoon_abcdefgh"}, False),
        ({"family": "bridge"}, False),
        ({"hook": None, "policy": None}, False),
    ],
)
def test_chains_that_drop_what_is_forwarded(fields: dict[str, t.Any], found: bool) -> None:
    assert bool(firewalls.drops([chain(**fields)])) is found


def said(walls: t.Sequence[firewalls.Firewall]) -> list[tuple[str, list[str], list[str]]]:
    return [(wall.name, list(map(" ".join, wall.open)), list(map(" ".join, wall.close))) for wall in walls]


@pytest.mark.parametrize(
    ("lines", "has_ufw", "name", "opening", "closing"),
    [
        (DOCKER, False, "docker", ["I DOCKER-USER -i", "I DOCKER-USER -o"], []),
        (
            [*DOCKER, f"-A DOCKER-USER -i cm-+ {ACCEPT}"],
            *(True, "docker", ["I DOCKER-USER -o"], ["D DOCKER-USER -i"]),
        ),
        (
            [*DOCKER, f"-A DOCKER-USER -i cm-+ {ACCEPT}", f"-A DOCKER-USER -o cm-+ {ACCEPT}"],
            *(False, "docker", [], ["D DOCKER-USER -i", "D DOCKER-USER -o"]),
        ),
        # Docker's chain comes before those of ufw.
        ([*UFW, "-N DOCKER-USER"], True, "docker", ["I DOCKER-USER -i", "I DOCKER-USER -o"], []),
        (UFW, False, "ufw", ["I FORWARD -i", "I FORWARD -o"], []),
        (["-P FORWARD DROP"], True, "iptables", ["I FORWARD -i", "I FORWARD -o"], []),
    ],
)
def test_iptables(lines: list[str], has_ufw: bool, name: str, opening: list[str], closing: list[str]) -> None:
    def whole(short: list[str]) -> list[str]:
        return [f"ip6tables-nft -w -{words} cm-+ {ACCEPT}" for words in short]

    found = firewalls.iptables("ip6tables-nft", lines, ["cm-+"], has_ufw)
    assert said(found) == [(name, whole(opening), whole(closing))]
    assert found[0].place == "ip6tables-nft FORWARD"


def test_what_does_not_drop() -> None:
    assert firewalls.iptables("iptables-nft", ["-P FORWARD ACCEPT", "-N DOCKER-USER"], ["cm-+"], True) == []


def test_ufw_is_told_by_its_own_program() -> None:
    assert said(firewalls.iptables("iptables-nft", UFW, ["cm-+"], True)) == [
        ("ufw", ["ufw route allow in on cm-+", "ufw route allow out on cm-+"], [])
    ]
    there = [*UFW, "-A ufw-user-forward -i cm-+ -j ACCEPT", "-A ufw-user-forward -o cm-+ -j ACCEPT"]
    assert said(firewalls.iptables("iptables-nft", there, ["cm-+", "br7"], True)) == [
        (
            "ufw",
            ["ufw route allow in on br7", "ufw route allow out on br7"],
            ["ufw route delete allow in on cm-+", "ufw route delete allow out on cm-+"],
        )
    ]


def test_rules_of_somebodys_own() -> None:
    wall = chain(family="inet", table="wall", name="fwd")
    shut = firewalls.nftables(wall, [{"handle": 4, "comment": "mine"}, {"handle": 5}], ["cm-+", "br7"])
    start = "nft insert rule inet wall fwd"
    assert said([shut]) == [
        (
            "nftables",
            [
                f'{start} iifname "cm-*" accept comment "cocoon-microvm -i cm-+"',
                f'{start} oifname "cm-*" accept comment "cocoon-microvm -o cm-+"',
                f'{start} iifname "br7" accept comment "cocoon-microvm -i br7"',
                f'{start} oifname "br7" accept comment "cocoon-microvm -o br7"',
            ],
            [],
        )
    ]
    rules = [{"handle": 8 + n, "comment": f"cocoon-microvm {flag} cm-+"} for n, flag in enumerate(("-i", "-o"))]
    assert said([firewalls.nftables(wall, rules, ["cm-+"])]) == [
        ("nftables", [], [f"nft delete rule inet wall fwd handle {handle}" for handle in (8, 9)])
    ]


def answering(**answers: t.Any) -> firewalls.Ask:
    """Programs that print what is given by their name, or by that of what they list."""

    def ask(argv: t.Sequence[str]) -> str:
        key = argv[-1] if argv[:3] == ["nft", "-j", "list"] else argv[0]
        found = answers[key.replace("-", "_")]
        return found if isinstance(found, str) else json.dumps({"nftables": found})

    return ask


def test_a_look(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Old and new iptables and firewalld, on one host; bridges with names of their own beside those of ours."""
    (tmp_path / "names").write_text("nat\nfilter\n", encoding="ascii")
    monkeypatch.setattr(
        firewalls, "LEGACY_TABLES", {"iptables": str(tmp_path / "names"), "ip6tables": str(tmp_path / "none")}
    )
    wall = chain(family="inet", table="firewalld", name="filter_FORWARD", policy="accept")
    ask = answering(
        chains=[{"metainfo": {}}, {"chain": chain(family="ip6")}, {"chain": wall}],
        iptables_legacy="-P FORWARD DROP\n",
        ip6tables_nft="# Warning: of something\n" + "\n".join(DOCKER),
        firewall_cmd="eth7 br7\n",
    )
    tools = {*firewalls.TOOLS} - {"ufw"}
    found, error = firewalls.look(["cm-lab", "br7"], tools, ask)
    assert error is None
    assert [(item.name, item.place) for item in found] == [
        *(("iptables", "iptables-legacy FORWARD"), ("docker", "ip6tables-nft FORWARD")),
        ("firewalld", "inet firewalld filter_FORWARD"),
    ]
    assert [words[-5] for words in found[0].open] != [] and found[0].open[0][4:6] == ["-i", "cm-+"]
    assert said(found[2:]) == [
        (
            "firewalld",
            [
                "firewall-cmd --quiet --zone=trusted --change-interface=cm-+",
                "firewall-cmd --quiet --zone=trusted --permanent --change-interface=cm-+",
            ],
            [
                "firewall-cmd --quiet --zone=trusted --remove-interface=br7",
                "firewall-cmd --quiet --zone=trusted --permanent --remove-interface=br7",
            ],
        )
    ]
    assert firewalls.look([], set(), ask) == ([], None)


def test_nft_that_does_not_answer() -> None:
    refused = "Operation not permitted (you must be root)"
    assert firewalls.look([], {"nft"}, answering(chains=f"{refused}\n")) == ([], refused)
    warned = "# Warning: managed by another\n" + json.dumps({"nftables": [{"chain": chain(policy="accept")}]})
    assert firewalls.look([], {"nft"}, answering(chains=warned)) == ([], None)
