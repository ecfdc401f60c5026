# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an option is when it was never given; applies at creation only."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._types import GIB, MIB

DEFAULT_STATE = "present"

# The Go engine's, as formats.md of the design lists them. A balloon exists only when asked for: its
# holes in a snapshot's RAM file would reach the clones.
DEFAULTS: t.Mapping[str, t.Any] = {
    "cpu": 2,
    "memory": GIB,
    "storage": 10 * GIB,
    "queue_size": 512,
    "disk_queue_size": 512,
    "network": None,
    "no_direct_io": False,
    "windows": False,
    "memory_backing": "ram",
    "kernel_args": "",
    "entrypoint": [],
    "command": [],
    "env": {},
    "secret_env": {},
    "working_dir": "",
    "hostname": "",
    "labels": {},
    "ports": [],
    "balloon": None,
    "watchdog": True,
    "user": None,
    "password": None,
    "ssh_keys": None,
    "user_data": None,
    "firmware": None,
}
DEFAULT_FSTYPE = "ext4"

MIN_CPU, MAX_CPU = 1, 240
MIN_MEMORY = 64 * MIB
MIN_STORAGE = 16 * MIB
MEMORY_UNIT = MIB
DISK_UNIT = 4096
MAX_NICS = 8
MAX_DATA_DISKS = 16
