# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits of options, and what else holds where nothing is said. The defaults of options are in their table."""

from __future__ import annotations

from ansible_collections.cocoon.microvm.plugins.module_utils._types import MIB

DEFAULT_STATE = "present"

DEFAULT_FSTYPE = "ext4"

MIN_CPU, MAX_CPU = 1, 240
MIN_MEMORY = 64 * MIB
MIN_STORAGE = 16 * MIB
MEMORY_UNIT = MIB
DISK_UNIT = 4096
MAX_NICS = 8
MAX_DATA_DISKS = 16
