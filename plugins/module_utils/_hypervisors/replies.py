# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a hypervisor says, read with care: a guest may have taken over the process on the other side."""

from __future__ import annotations

import json
import typing as t

MAX_DIGITS = 32


def printable(text: object, limit: int = 500) -> str:
    """Untrusted *text* made fit for a message: one line, no control characters, at most *limit* characters."""
    return "".join(char if char.isprintable() else " " for char in str(text)[:limit]).strip()


def _bounded_int(digits: str) -> int:
    # Turning a million digits into a number takes Python minutes.
    if len(digits) > MAX_DIGITS:
        raise ValueError("number too long")
    return int(digits)


def parse_json(text: bytes | str) -> t.Any:
    """:raises ValueError: not JSON, or no sane one."""
    try:
        return json.loads(text, parse_int=_bounded_int)
    except RecursionError:
        raise ValueError("nested too deeply") from None
