# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents of stores, one of each layout that a version has written: ``<kind>-<layout>-<what came with it>.json``.

A change to what is written leaves the documents that are here as they are, and adds one.
"""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

FOLDER = Path(__file__).parent / "records"


def names(kind: str) -> list[str]:
    """The documents of a kind, oldest layout first."""
    return sorted(path.stem for path in FOLDER.glob(f"{kind}-*.json"))


def document(layout: str, /, **changes: t.Any) -> dict[str, t.Any]:
    """A copy of one of them."""
    return {**json.loads((FOLDER / f"{layout}.json").read_text(encoding="utf-8")), **changes}
