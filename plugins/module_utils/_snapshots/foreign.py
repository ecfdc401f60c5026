# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives that the Go engine wrote: their disks are taken in, and not their memory.

They name an image's layers, and not the EROFS files that were made of them. A guest that goes on reads of those what it
has not got in its cache yet, so with others than it began with it would read nonsense, and nobody could tell.
"""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._words import invalid

AGAIN = "Export it again, with version 0.3.8 of the Go engine or a newer one."
# Of a hypervisor's release, which such an archive does not say.
UNKNOWN = "0.0"
# Of a NIC whose address its archive may not say; a VM that boots from the disks has its own.
NO_MAC = "00:00:00:00:00:00"
ROLES = ("layer", "cow", "data", "cidata")
ENTRY: Record = {
    "type": "object",
    "required": ["path", "ro", "role"],
    "properties": {
        "path": {"type": "string", "maxLength": 4096},
        "ro": {"type": "boolean"},
        "role": {"enum": list(ROLES)},
        "serial": {"type": "string", "maxLength": 64},
        "fstype": {"enum": ["", "ext4", "none"]},
    },
}
SCHEMA: Record = {
    "type": "object",
    "required": ["storage_configs"],
    "properties": {"storage_configs": {"type": "array", "minItems": 2, "maxItems": 256, "items": ENTRY}},
}


def is_foreign(document: t.Any) -> bool:
    """Whether a ``cocoon.json`` is the Go engine's, which has nothing of ours in it."""
    return isinstance(document, dict) and "storage_configs" in document and "cocoon_microvm" not in document


def is_machine(name: str, saved: t.Container[str]) -> bool:
    """Whether a file of such an archive is the machine's and no disk. :param saved: the driver's names for these."""
    return name in saved or name in ("config.json", "cidata.img") or name.startswith("memory-range")


def translate(document: Record, config: Record, sizes: t.Mapping[str, int], disks_only: bool) -> Record:
    """The ``cocoon.json`` that we would have written of the same disks, as a snapshot of these alone.

    :param document: the one that there is, of which nothing has been looked at.
    :param config: of ``snapshot.json``, as its schema has it.
    :param sizes: bytes of each file of the archive.
    :raises UnsupportedError: what cannot be had of such an archive.
    :raises InputError: it does not hold together.
    """
    import jsonschema

    for error in jsonschema.Draft7Validator(SCHEMA).iter_errors(document):
        raise InputError(f"cocoon.json of the archive is not valid ({invalid(error)})", "path", AGAIN)
    if config.get("image_type") != "oci" or not isinstance(config.get("image_digest"), str):
        raise UnsupportedError(
            "the Go engine wrote it of a VM that does not say that it has an image of layers (image_type: oci, with its"
            " image_digest)",
            "path",
            "Disks of VMs with such images can be imported.",
        )
    if not disks_only:
        raise UnsupportedError(
            "the Go engine wrote it, and does not say which EROFS files of its image's layers its memory goes with",
            "path",
            "disks_only: true imports its disks alone, and VMs made of them boot.",
        )
    entries = t.cast("list[Record]", document["storage_configs"])
    _check_order(entries)
    disks = [_data_disk(entry, sizes) for entry in entries if entry["role"] == "data"]
    count = config.get("nics", 0)
    return {
        "storage_configs": entries,
        "boot_config": {},
        "cpu": config.get("cpu"),
        "memory": config.get("memory"),
        "hypervisor_version": UNKNOWN,
        "cocoon_microvm": {
            "kind": "disks",
            "accel": "kvm",
            "image_type": "oci",
            "image_digest": config["image_digest"],
            "data_disks": disks,
            "nic_networks": [config.get("network") or "default"] * count,
            "nic_configs": [{"mac": NO_MAC, "mtu": 0}] * count,
        },
    }


def _check_order(entries: t.Sequence[Record]) -> None:
    """:raises InputError: these are not the disks of a VM."""
    roles = [str(entry["role"]) for entry in entries]
    if sorted(roles, key=ROLES.index) != roles or roles.count("cow") != 1 or roles[0] != "layer":
        raise InputError(f"the archive's disks are {', '.join(roles)[:200]}, in this order", "path", AGAIN)
    for entry in entries:
        writable = entry["role"] not in ("layer", "cidata")
        if entry["ro"] == writable:
            how = "to be written to" if not entry["ro"] else "not to be written to"
            raise InputError(f"the archive has a disk of role {entry['role']} that is {how}", "path", AGAIN)


def _data_disk(entry: Record, sizes: t.Mapping[str, int]) -> Record:
    name = entry.get("serial", "")
    size = sizes.get(f"data-{name}.raw")
    if size is None:
        raise InputError(f"the archive has no file of its data disk '{name}'", "path", AGAIN)
    return {"name": name, "size": size, "fstype": entry.get("fstype") or "ext4"}
