# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Python's notation in what is said to users: they write YAML."""

from __future__ import annotations

import re

RAW_RE = re.compile(
    r"(?<![\w.'])(?:None|True|False)(?!\w)"  # null, true and false
    r"|[\[{(]'\w|[\[({]b'|: b'|': '"  # lists, tuples, dictionaries, bytes
    r"|<class |<function | object at 0x"
    r"|\b(?:OrderedDict|defaultdict|dict_keys|dict_values|frozenset|deque)\("
)


def raw_python(text: str) -> str | None:
    """The first of it in *text*, with what stands around it."""
    match = RAW_RE.search(text)
    return text[max(0, match.start() - 20) : match.end() + 20] if match else None
