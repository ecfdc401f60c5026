# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of dictionaries as an aligned table of text."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping, Sequence


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


def table(rows: t.Iterable[t.Mapping[str, t.Any]], columns: t.Mapping[str, str]) -> list[str]:
    """The lines of a table.

    :param columns: the keys to show, in order, and their headings; a key may be a dotted path.
    """
    keys = list(columns)
    cells = [[str(columns[key]) for key in keys]]
    body = [[pick(row, key) for key in keys] for row in rows]
    cells += [[cell(value) for value in line] for line in body]
    widths = [max(len(line[place]) for line in cells) for place in range(len(keys))]
    numbers = [
        bool(body) and all(isinstance(line[place], (int, float)) and not isinstance(line[place], bool) for line in body)
        for place in range(len(keys))
    ]
    lines = []
    for line in cells:
        texts = (
            text.rjust(width) if number else text.ljust(width) for text, width, number in zip(line, widths, numbers)
        )
        lines.append("  ".join(texts).rstrip())
    return lines
