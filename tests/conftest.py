# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the collection importable when pytest is started by hand, without `make`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def collection_on_path() -> None:
    """Put a folder on the path in which this working tree is ansible_collections/cocoon/microvm."""
    try:
        if importlib.util.find_spec("ansible_collections.cocoon.microvm"):
            return
    except ModuleNotFoundError:
        pass
    link = ROOT / ".work" / "link" / "ansible_collections" / "cocoon" / "microvm"
    if not link.is_symlink():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(ROOT)
    sys.path.insert(0, str(link.parents[2]))


collection_on_path()
