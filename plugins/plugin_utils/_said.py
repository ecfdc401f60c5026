# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a module says, in the words of an inventory: where the role sets an option, the user knows a variable."""

from __future__ import annotations

import re

# What a module may do: given for one run, as these must not stay in an inventory.
PERMISSIONS = ("allow_restart", "recreate", "accept_login", "force")
# Options that nobody but the role sets; as words they are no others.
SETTINGS = (
    *("max_unavailable", "memory_reserve", "memory_overcommit", "disk_overcommit", "lock_timeout"),
    *("default_registry", "root_dir", "run_dir", "log_dir"),
)
# Those that are words besides: they are meant where they stand before a colon.
BLAMED = ("parallel", "prune")

PERMISSION_RE = re.compile(rf"\b({'|'.join(PERMISSIONS)})(?:: true\b|(?= to (?:change|take|do|remove) it))")
SETTING_RE = re.compile(rf"(?<![\w./-])({'|'.join(SETTINGS)})(?![\w/-])")
BLAMED_RE = re.compile(rf"(^|[:;] )({'|'.join(BLAMED)})(?=: )")
MODULE_RE = re.compile(r"\b(?:Create|Add|Import|Make) it with cocoon_(network|image|vm)\b(?: first)?")


def in_the_words_of_an_inventory(text: str) -> str:
    """*text* with the variables of a play instead of the options of a module."""
    text = PERMISSION_RE.sub(r"-e cocoon_\1=true", text)
    text = SETTING_RE.sub(r"cocoon_\1", text)
    text = BLAMED_RE.sub(r"\1cocoon_\2", text)
    return MODULE_RE.sub(r"List it in cocoon_\1s", text)
