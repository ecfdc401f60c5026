# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.plugin_utils._progress import words

MIB = 1 << 20


@pytest.mark.parametrize(
    ("seen", "line"),
    [
        ({}, "working: 0 B"),
        ({"what": "reading a", "done": 5 * MIB}, "reading a: 5.0 MiB"),
        (
            {"what": "pulling a", "done": 5 * MIB, "total": 20 * MIB, "part": 1, "parts": 3, "speed": 3 * MIB // 2},
            "pulling a: 5.0 MiB of 20.0 MiB (25 %), 1 of 3 layers, 1.5 MiB/s, 10 s left",
        ),
        (
            {"what": "a", "done": 1, "total": 1 + 200 * MIB, "speed": MIB},
            "a: 1 B of 200.0 MiB (0 %), 1.0 MiB/s, 3 min 20 s left",
        ),
        (
            {"what": "a", "done": 5, "total": 5, "speed": 1, "note": "packing"},
            "a: 5 B of 5 B (100 %), packing for 42 s",
        ),
        ({"what": "a", "done": 300, "total": 200, "speed": 10}, "a: 300 B of 200 B (100 %), 10 B/s"),
    ],
)
def test_words(seen: dict[str, t.Any], line: str) -> None:
    assert words(seen, 42) == line


def test_a_note_that_is_new() -> None:
    assert words({"what": "a", "done": 5, "note": "packing"}) == "a: 5 B, packing"
