# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.cocoon.microvm.plugins.filter.cocoon_table import cocoon_table


def test_a_table() -> None:
    rows = [
        {"name": "web1", "nics": [{"ip": "10.0.0.2"}], "ready": {"seconds": 2.25}, "on": True},
        {"name": "a-longer-name", "nics": [], "ready": {"seconds": 12.0}, "on": False},
    ]
    columns = {"name": "VM", "nics.0.ip": "ADDRESS", "ready.seconds": "BOOT SECONDS", "on": "ON"}
    assert cocoon_table(rows, columns) == [
        "VM             ADDRESS   BOOT SECONDS  ON",
        "web1           10.0.0.2           2.2  yes",
        "a-longer-name  -                 12.0  no",
    ]


def test_odd_values() -> None:
    rows = [{"a": None, "b": "two\nlines", "c": ""}, {}]
    assert cocoon_table(rows, {"a": "A", "b": "B", "c": "C", "a.b.0": "D"}) == [
        "A  B          C  D",
        "-  two lines  -  -",
        "-  -          -  -",
    ]


def test_a_last_column_that_is_too_wide_is_broken() -> None:
    rows = [{"a": "one", "b": "these words are too many for one line"}, {"a": "two", "b": "these-go-on-and-on-and-on"}]
    assert cocoon_table(rows, {"a": "A", "b": "B"}, 25) == [
        "A    B",
        "one  these words are too",
        "..   many for one line",
        "two  these-go-on-and-on-a",
        "..   nd-on",
    ]
    assert cocoon_table([{"a": None}], {"a": "A"}, 25) == ["A", "-"]


def test_no_rows() -> None:
    assert cocoon_table([], {"a": "A", "b": "B"}) == ["A  B"]


@pytest.mark.parametrize("columns", [{}, ["a"], None])
def test_columns_are_needed(columns: object) -> None:
    with pytest.raises(AnsibleFilterError, match="needs a dictionary of columns"):
        cocoon_table([], columns)
