# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A picture of hosts' networks: what is outside, the networks, the VMs on them. Pure."""

from __future__ import annotations

import dataclasses
import typing as t
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

Network = Mapping[str, t.Any]

ROW, GAP, TOP = 52, 18, 64
COLUMNS = {"outside": (16, 140), "networks": (276, 230), "vms": (640, 200)}
WIDTH = 856
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #1f2328 }
.page { fill: #ffffff } .box { fill: #f6f8fa; stroke: #8c959f } .line { stroke: #8c959f; fill: none }
.name { font-weight: 600 } .note { font-size: 11px; fill: #59636e }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .page { fill: #0d1117 } .box { fill: #161b22; stroke: #6e7681 } .line { stroke: #6e7681 }
.note { fill: #9198a1 }
}
"""


@dataclasses.dataclass(frozen=True)
class Line:
    """What joins two things, and what it says. *start* and *end* are their keys."""

    start: str
    end: str
    text: str
    port: bool = False


@dataclasses.dataclass(frozen=True)
class Host:
    """What there is to draw of a host: things by key, each with its name and a note below it."""

    name: str
    outside: dict[str, tuple[str, str]]
    networks: dict[str, tuple[str, str]]
    vms: dict[str, tuple[str, str]]
    lines: tuple[Line, ...]


def host_of(name: str, networks: Sequence[Network]) -> Host:
    """What the networks of a host amount to.

    :param networks: as ``cocoon_network_info`` tells them.
    """
    outside: dict[str, tuple[str, str]] = {}
    lines: list[Line] = []
    nets: dict[str, tuple[str, str]] = {}
    vms: dict[str, tuple[str, str]] = {}
    for network in networks:
        key = f"network {network['name']}"
        nets[key] = (str(network["name"]), _note(network))
        for place, text in _ways(network):
            outside.setdefault(place, (place, ""))
            lines.append(Line(place, key, text))
        for vm, text in _members(network):
            vms.setdefault(f"vm {vm}", (vm, ""))
            lines.append(Line(key, f"vm {vm}", text))
        for port in network.get("ports") or ():
            outside.setdefault("outside", ("outside", ""))
            vms.setdefault(f"vm {port['vm']}", (str(port["vm"]), ""))
            lines.append(Line("outside", f"vm {port['vm']}", str(port["port"]), port=True))
    return Host(name, outside, nets, dict(sorted(vms.items())), tuple(lines))


def _note(network: Network) -> str:
    words = [network.get("bridge"), network.get("subnet"), network.get("subnet6")]
    words += [word for word in ("isolated", "names", "dhcp") if network.get(word)]
    return ", ".join(str(word) for word in words if word) or str(network.get("reason") or "")


def _ways(network: Network) -> t.Iterator[tuple[str, str]]:
    """(where to, how) for each way that leads out of a network."""
    if network.get("nat"):
        yield "outside", "NAT"
    if network.get("subnet6") and network.get("routing6") in ("nat", "routed"):
        yield "outside", "NAT66" if network["routing6"] == "nat" else "routed IPv6"
    if network.get("uplink"):
        yield str(network["uplink"]), "VLANs" if network.get("vlan_filtering") else "uplink"
    if network.get("conflist"):
        yield f"conflist {network['conflist']}", "CNI"
    elif network.get("adopted"):
        yield f"{network['bridge']} of the host", "adopted"


def _members(network: Network) -> list[tuple[str, str]]:
    """(VM, its addresses) for each VM on a network, by name."""
    addresses: dict[str, list[str]] = {user["name"]: [] for user in network.get("users") or ()}
    for lease in network.get("leases") or ():
        addresses.setdefault(lease["vm"], []).append(lease["ip"])
    return [(vm, ", ".join(found)) for vm, found in sorted(addresses.items())]


# -- Mermaid --------------------------------------------------------------------------------------------------------


def mermaid(hosts: Sequence[Host]) -> str:
    """A flowchart, as GitHub, GitLab and many editors draw it."""
    lines = ["flowchart LR"]
    for number, host in enumerate(hosts):
        keys = {key: f"h{number}n{index}" for index, key in enumerate([*host.outside, *host.networks, *host.vms])}
        lines.append(f'  subgraph h{number}["{_quoted(host.name)}"]')
        for key, (name, note) in [*host.networks.items(), *host.vms.items()]:
            text = _quoted(name) + (f"<br>{_quoted(note)}" if note else "")
            lines.append(f'    {keys[key]}["{text}"]')
        lines.append("  end")
        lines += [f'  {keys[key]}(["{_quoted(name)}"])' for key, (name, _note) in host.outside.items()]
        for line in host.lines:
            arrow = "-->" if line.port else "---"
            text = f'|"{_quoted(line.text)}"|' if line.text else ""
            lines.append(f"  {keys[line.start]} {arrow}{text} {keys[line.end]}")
    return "\n".join([*lines, ""])


def _quoted(text: str) -> str:
    return escape(text, {'"': "#quot;"}).replace("\n", " ")


# -- SVG ------------------------------------------------------------------------------------------------------------


def svg(hosts: Sequence[Host]) -> str:
    """A picture of its own, for light and dark pages."""
    parts, top = [], 16
    for host in hosts:
        drawn, top = _drawn(host, top)
        parts += drawn
    title = escape(f"Networks of {', '.join(host.name for host in hosts) or 'no host'}")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}"'
            ' role="img" aria-labelledby="title">',
            f'<title id="title">{title}</title>',
            f"<style>{STYLE}</style>",
            f'<rect class="page" width="{WIDTH}" height="{top}" rx="6"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def _drawn(host: Host, top: int) -> tuple[list[str], int]:
    """One host, and where the next begins. Lines come before the boxes that they end at."""
    places: dict[str, tuple[int, int, int]] = {}
    boxes = [f'<text class="name" x="16" y="{top + 14}">{escape(host.name)}</text>']
    bottom = top + TOP
    for column, things in (("outside", host.outside), ("networks", host.networks), ("vms", host.vms)):
        left, width = COLUMNS[column]
        for number, (key, (name, note)) in enumerate(things.items()):
            note = note or ", ".join(line.text for line in host.lines if line.port and line.end == key)
            y = top + 28 + number * (ROW + GAP)
            places[key] = (left, y + ROW // 2, width)
            boxes.append(f'<rect class="box" x="{left}" y="{y}" width="{width}" height="{ROW}" rx="6"/>')
            boxes.append(f'<text class="name" x="{left + 10}" y="{y + 21}">{escape(_short(name, width))}</text>')
            if note:
                boxes.append(f'<text class="note" x="{left + 10}" y="{y + 40}">{escape(_short(note, width))}</text>')
            bottom = max(bottom, y + ROW + GAP)
    return [*_joined(host.lines, places), *boxes], bottom


def _joined(lines: Sequence[Line], places: Mapping[str, tuple[int, int, int]]) -> t.Iterator[str]:
    seen: dict[tuple[str, str], int] = {}
    for line in lines:
        if line.port:  # which the box says
            continue
        left, right = places[line.start], places[line.end]
        number = seen[line.start, line.end] = seen.get((line.start, line.end), -1) + 1
        begin, end = left[0] + left[2], right[0]
        bend = f"C {begin + 50} {left[1]} {end - 50} {right[1]} {end} {right[1]}"
        yield f'<path class="line" d="M {begin} {left[1]} {bend}"/>'
        if line.text:
            y = right[1] - 5 + 13 * number
            yield f'<text class="note" x="{end - 6}" y="{y}" text-anchor="end">{escape(line.text)}</text>'


def _short(text: str, width: int) -> str:
    """As much of a text as goes into a box."""
    room = (width - 20) // 6
    return text if len(text) <= room else text[: room - 1] + "…"
