# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a snapshot of Firecracker says of its machine in ``cocoon.json``."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import VERSION, VersionForm


class FirecrackerArchive(VersionForm):
    """The release, the id that the disks' paths in its state have, and the CPU, where it is known."""

    layout: t.ClassVar[t.Mapping[str, t.Any]] = {
        "type": "object",
        "required": ["version", "id"],
        "properties": {
            "version": VERSION,
            "id": {"type": "string", "pattern": r"^[A-Za-z0-9_-]{1,64}\Z"},
            "cpu": {"type": "string", "pattern": r"^[A-Za-z0-9_ -]{1,64}\Z"},
        },
        "additionalProperties": False,
    }
