# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of dictionaries as an aligned table of text."""

from __future__ import annotations

import textwrap
import typing as t
from collections.abc import Mapping, Sequence

# The last column is never broken to less than this.
MINIMUM = 20


def cell(value: t.Any) -> str:
    """One value on one line; ``-`` for nothing."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    return " ".join(str(value).split())


def pick(row: t.Any, path: str) -> t.Any:
    """The value at a dotted path such as ``network_configs.0.network.ip``; ``None`` where it leads nowhere."""
    for step in path.split("."):
        if isinstance(row, Mapping):
            row = row.get(step)
        elif isinstance(row, Sequence) and not isinstance(row, str) and step.isdigit() and int(step) < len(row):
            row = row[int(step)]
        else:
            return None
    return row


def _aligned(lines: list[list[str]], right: t.Sequence[bool]) -> list[str]:
    """Cells under each other, two spaces between columns."""
    widths = [max(len(line[place]) for line in lines) for place in range(len(right))]
    return [
        "  ".join(
            text.rjust(width) if number else text.ljust(width) for text, width, number in zip(line, widths, right)
        ).rstrip()
        for line in lines
    ]


def _wrapped(lines: list[list[str]], width: int) -> list[list[str]]:
    """The last column broken to lines of its own, so that the table is *width* wide."""
    others = [max(len(line[place]) for line in lines) for place in range(len(lines[0]) - 1)]
    room = max(MINIMUM, width - sum(others) - 2 * len(others))
    broken = []
    for line in lines:
        first, *rest = textwrap.wrap(line[-1], room, break_on_hyphens=False) or [""]
        broken.append([*line[:-1], first])
        # A mark in front, as leading spaces would have YAML put the line in quotes.
        broken += [[*[".."][: len(others)], *[""] * (len(others) - 1), more] for more in rest]
    return broken


def table(rows: t.Iterable[t.Mapping[str, t.Any]], columns: t.Mapping[str, str], width: int = 0) -> list[str]:
    """The lines of a table.

    :param columns: the keys to show, in order, and their headings; a key may be a dotted path.
    :param width: break the last column so that lines are no longer than this; 0 for as long as they are.
    """
    body = [[pick(row, key) for key in columns] for row in rows]
    right = [
        bool(body) and all(isinstance(line[place], (int, float)) and not isinstance(line[place], bool) for line in body)
        for place in range(len(columns))
    ]
    lines = [[str(heading) for heading in columns.values()], *([cell(value) for value in line] for line in body)]
    return _aligned(_wrapped(lines, width) if width else lines, right)
