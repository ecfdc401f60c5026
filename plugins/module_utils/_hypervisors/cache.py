# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers of programs and of the kernel, kept: asking costs a process or two.

They lie under run_dir (gone at reboot, as they should be), each under a key made of what it depends on.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._process import boot_id
from ansible_collections.cocoon.microvm.plugins.module_utils._state import hashed, read_json, write_json

Answer = dict[str, t.Any]


def cached(paths: Paths, key: str, ask: t.Callable[[], Answer]) -> Answer:
    """The answer kept under *key*, else what *ask* gives."""
    directory = os.path.join(paths.run, "cache")
    path = os.path.join(directory, hashed(f"{boot_id()} {key}")[:32] + ".json")
    found = read_json(path) if os.path.isdir(directory) else None
    if found is None:
        found = ask()
        # Where there is no store yet (check mode, a first look) nothing is created for our sake, and a
        # problem is not kept: it may be mended at any time.
        if not found.get("problem") and os.path.isdir(paths.run) and os.access(paths.run, os.W_OK):
            os.makedirs(directory, 0o700, exist_ok=True)
            write_json(path, found)
    return found


def binary_key(binary: str) -> str:
    info = os.stat(binary)
    return f"{binary} {info.st_mtime_ns} {info.st_size} {info.st_ino}"
