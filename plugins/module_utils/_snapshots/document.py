# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cocoon.json``, as it comes out of an archive: who wrote it is not known, and it decides what a hypervisor is told.

Its fields are those of the Go engine, what the hypervisor's driver adds, and under ``cocoon_microvm`` ours.
"""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import ARCHIVED
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._words import invalid

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import ArchiveForm

MAX_BYTES = 1 << 20
NAME = r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}\Z"
SIZE = {"type": "integer", "minimum": 0, "maximum": 1 << 60}


def _object(required: t.Sequence[str], properties: Record, **more: t.Any) -> Record:
    return {"type": "object", "required": list(required), "properties": properties, **more}


DISK = _object(
    ("name", "size", "fstype"),
    {
        "name": {"type": "string", "pattern": r"^(?!cocoon-)[a-z][a-z0-9_-]{0,19}\Z"},
        "size": SIZE,
        "fstype": {"enum": ["ext4", "none"]},
    },
    additionalProperties=False,
)
NIC = _object(
    ("mac", "mtu"),
    {
        "mac": {"type": "string", "pattern": r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z"},
        "mtu": {"type": "integer", "minimum": 0, "maximum": 65535},
        # Absent where an earlier version wrote it: two for each vCPU.
        "num_queues": {"type": "integer", "minimum": 2, "maximum": 480},
    },
    additionalProperties=False,
)
DIGEST = {"type": "string", "pattern": r"^sha256:[0-9a-f]{64}\Z"}
OURS = _object(
    ("kind", "image_type", "image_digest", "data_disks", "nic_networks", "nic_configs"),
    {
        "kind": {"enum": ["full", "disks"]},
        "accel": {"enum": ["kvm", "tcg"]},
        "frozen": {"type": "boolean"},
        "cpu_vendor": {"type": "string", "maxLength": 64},
        **ARCHIVED,
        "balloon": SIZE,
        "image_type": {"enum": ["oci", "cloudimg"]},
        "image_digest": DIGEST,
        "data_disks": {"type": "array", "maxItems": 16, "items": DISK},
        "nic_networks": {"type": "array", "maxItems": 8, "items": {"type": "string", "pattern": NAME}},
        "nic_configs": {"type": "array", "maxItems": 8, "items": NIC},
        "layout": {"type": "object"},
        # Absent where an earlier version wrote it.
        "blob_digests": {
            "type": "object",
            "maxProperties": 256,
            "propertyNames": {"pattern": r"^[0-9a-f]{64}\Z"},
            "additionalProperties": DIGEST,
        },
    },
    additionalProperties=False,
)
SCHEMA = _object(
    ("cpu", "memory", "cocoon_microvm"),
    {
        "storage_configs": {"type": "array", "maxItems": 256, "items": {"type": "object"}},
        "boot_config": {"type": "object"},
        "cpu": {"type": "integer", "minimum": 1, "maximum": 240},
        "memory": SIZE,
        "firmware": {"enum": ["", "uefi", "bios"]},
        "cocoon_microvm": OURS,
    },
)


def schema_of(form: ArchiveForm) -> Record:
    """:data:`SCHEMA` with what the driver has to say."""
    ours = {**OURS, "properties": {**OURS["properties"], "layout": form.layout}}
    properties = {**SCHEMA["properties"], **form.properties, "cocoon_microvm": ours}
    return {**SCHEMA, "required": [*SCHEMA["required"], *form.properties], "properties": properties}


def check(document: t.Any, form: ArchiveForm) -> Record:
    """*document* if it is a ``cocoon.json`` of ours.

    :raises InputError: naming the field that is wrong.
    """
    import jsonschema

    try:
        jsonschema.validate(document, schema_of(form), cls=jsonschema.Draft7Validator)
    except jsonschema.ValidationError as exc:
        raise InputError(
            f"cocoon.json of the archive is not valid ({invalid(exc)})",
            "path",
            "Archives that this collection exported can be imported.",
        ) from None
    ours = document["cocoon_microvm"]
    if (ours["kind"] == "full") != bool(ours.get("layout")) or len(ours["nic_networks"]) != len(ours["nic_configs"]):
        raise InputError("cocoon.json of the archive contradicts itself", "path", "Export the snapshot again.")
    return t.cast(Record, document)
