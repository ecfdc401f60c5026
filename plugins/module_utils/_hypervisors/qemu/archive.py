# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a snapshot of QEMU says of its machine in ``cocoon.json``."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Layout

_PORT: t.Final = {"type": "integer", "minimum": 0, "maximum": 31}


class QemuArchive:
    """Machine and CPU model, which go into a command line, and where the disks were."""

    properties: t.ClassVar[t.Mapping[str, t.Any]] = {
        "machine": {"type": "string", "pattern": r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}\Z"},
        "cpu_model": {
            "type": "string",
            "maxLength": 512,
            "pattern": r"^[a-zA-Z0-9][a-zA-Z0-9_-]*(,[a-zA-Z0-9][a-zA-Z0-9._-]*=(on|off))*\Z",
        },
        "qemu_version": {"type": "string", "maxLength": 32},
    }
    layout: t.ClassVar[t.Mapping[str, t.Any]] = {
        "type": "object",
        "required": ["ports", "slots", "version"],
        "properties": {
            "ports": {"enum": [8, 16, 24, 32]},
            "slots": {"type": "object", "additionalProperties": _PORT},
            # Not there where NICs were in no port.
            "nics": {"type": "array", "maxItems": 14, "items": _PORT},
            "version": {"type": "string", "pattern": r"^[0-9]{1,4}(\.[0-9]{1,4}){1,3}\Z"},
        },
        "additionalProperties": False,
    }

    def words(self, record: t.Mapping[str, t.Any]) -> Record:
        pins = {key: record[key] for key in ("machine", "cpu_model")}
        return {**pins, "qemu_version": record["hypervisor_version"]}

    def version(self, document: Record) -> str:
        layout = document["cocoon_microvm"].get("layout") or {}
        return str(layout.get("version") or document["qemu_version"])

    def problems(self, layout: Layout, disks: t.Sequence[str]) -> list[str]:
        slots = t.cast("t.Mapping[str, int]", layout["slots"])
        return [] if set(slots) == set(disks) else ["the places of its disks are not known"]
