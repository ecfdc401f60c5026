# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of the files of a machine that Cloud Hypervisor has saved."""

from __future__ import annotations

import typing as t

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Role

# What it writes: what it was started with, which we make anew, its devices, and RAM that is not in a file.
CONFIG_FILE = "config.json"
STATE_FILE = "state.json"
RANGES_FILE = "memory-ranges"
# What we call RAM, wherever it comes from.
MEMORY_FILE = "mem"
SAVED: t.Final[t.Mapping[str, Role]] = {STATE_FILE: "state", MEMORY_FILE: "memory"}
