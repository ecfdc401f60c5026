# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write a JSON object of texts by path (standard input) as files below a new directory (first argument)."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

target = Path(sys.argv[1])
target.parent.mkdir(parents=True, exist_ok=True)
for old in target.parent.glob("recipe-*"):
    shutil.rmtree(old)
scratch = target.with_name("recipe-new")
for name, text in json.load(sys.stdin).items():
    path = scratch / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755 if text.startswith("#!") else 0o644)
scratch.rename(target)
