# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Draw docs/clones.svg from what `make bench` measured: the memory of clones beside that of ordinary VMs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from common import ROOT, WORK, ToolError, load_json, main_wrapper, say

LIMIT = 6 << 10
WIDTH, TOP, GROUP, BAR = 720, 68, 70, 22
LEFT, RIGHT = 96, 92
NAMES = {"vms": "ordinary VMs", "clones": "clones of one snapshot"}
# Its own background, so that it can be read whatever the page around it looks like.
STYLE = """
text { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #1f2328 }
.page { fill: #ffffff } .axis { stroke: #8c959f } .title { font-weight: 600 }
.vms { fill: #8c959f } .clones { fill: #0969da }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .page { fill: #0d1117 } .axis { stroke: #6e7681 }
.vms { fill: #6e7681 } .clones { fill: #58a6ff }
}"""


def size(mib: float) -> str:
    """An amount of memory in words."""
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.1f} GiB"


def description(data: dict[str, Any]) -> str:
    """The chart in one sentence: its alternative text."""
    parts = [
        f"{count} {'take' if count > 1 else 'takes'} {size(clones)} as {'clones' if count > 1 else 'a clone'}"
        f" and {size(vms)} as {'ordinary VMs' if count > 1 else 'an ordinary VM'}"
        for count, clones, vms in zip(data["counts"], data["clones"], data["vms"])
    ]
    return f"Memory of VMs of {data['guest_mib']} MiB with their hypervisors: {'; '.join(parts)}."


def draw(data: dict[str, Any]) -> str:
    """The SVG."""
    most = max(*data["vms"], *data["clones"])
    height = TOP + GROUP * len(data["counts"])
    title = f"Memory that VMs of {data['guest_mib']} MiB take together, with their hypervisors"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        ' role="img" aria-labelledby="title description">',
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="description">{escape(description(data))}</desc>',
        f"<style>{STYLE}\n</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>',
        f'<text class="title" x="16" y="26">{escape(title)}</text>',
    ]
    place = 16
    for name, words in NAMES.items():
        lines.append(f'<rect class="{name}" x="{place}" y="38" width="12" height="12"/>')
        lines.append(f'<text x="{place + 18}" y="49">{words}</text>')
        place += 160
    for number, count in enumerate(data["counts"]):
        top = TOP + GROUP * number
        label = f"{count} VM{'s' if count > 1 else ''}"
        lines.append(f'<text x="{LEFT - 12}" y="{top + BAR + 6}" text-anchor="end">{label}</text>')
        for row, name in enumerate(NAMES):
            value = data[name][number]
            length = max(1.0, value / most * (WIDTH - LEFT - RIGHT))
            above = top + row * (BAR + 2)
            lines.append(f'<rect class="{name}" x="{LEFT}" y="{above}" width="{length:.1f}" height="{BAR}"/>')
            lines.append(f'<text x="{LEFT + length + 8:.1f}" y="{above + 16}">{size(value)}</text>')
    lines.append(f'<path class="axis" d="M{LEFT} {TOP - 6}V{height - 14}"/>')
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", nargs="?", type=Path, default=WORK / "bench.json", help="what the bench wrote")
    parser.add_argument("svg", nargs="?", type=Path, default=ROOT / "docs" / "clones.svg", help="where the chart goes")
    options = parser.parse_args()
    data = (load_json(options.json) or {}).get("clones")
    if not data:
        raise ToolError(f"{options.json} has no figures of clones: run `make bench`, with item 6.")
    text = draw(data)
    if len(text.encode()) > LIMIT:
        raise ToolError(f"the chart has {len(text.encode())} bytes, and is to have less than {LIMIT}.")
    options.svg.write_text(text, encoding="utf-8")
    say(f"{options.svg}: {len(text.encode())} bytes. In the documentation:")
    say(f"![{description(data)}]({options.svg.name})")


if __name__ == "__main__":
    main_wrapper(main)
