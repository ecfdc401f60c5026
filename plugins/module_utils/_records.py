# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documents of a store: one reader a kind, which fills, once, what older writers lacked.

Whoever adds a field declares it in ``_record_types``, says here what it means that a record lacks it, and leaves a
document of the layout before it with the tests' fixtures.
"""

from __future__ import annotations

import copy
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._types import CREATING, ERROR, Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import (
        ImageRecord,
        NetworkRecord,
        SnapshotRecord,
        StorageConfig,
        VmRecord,
    )

# What each kind has had from its first layout on: a document without it is damaged.
_VM: t.Final = {
    **dict.fromkeys(("id", "hypervisor", "state", "created_at", "image_type"), str),
    **dict.fromkeys(("network_configs", "storage_configs", "data_disks", "detached_disks", "ports", "nics"), list),
    **dict.fromkeys(("config", "login", "labels"), dict),
    **dict.fromkeys(("uid", "promised_disk"), int),
}
_CONFIG: t.Final = {"name": str, "cpu": int, "memory": int, "storage": int}
_SNAPSHOT: t.Final = {"id": str, "name": str, "state": str, "files": dict}
# One that is being made, or imported, has no more than that.
_COMPLETE_SNAPSHOT: t.Final = {
    **dict.fromkeys(("kind", "image", "image_id", "image_digest", "hypervisor", "created_at"), str),
    **dict.fromkeys(("cpu", "memory", "storage", "nics"), int),
    **dict.fromkeys(("data_disks", "nic_networks", "nic_configs"), list),
    "layout": dict,
}
_IMAGE: t.Final = {
    **dict.fromkeys(("id", "digest", "type", "created_at"), str),
    **dict.fromkeys(("names", "layers"), list),
}
_NETWORK: t.Final = {**dict.fromkeys(("id", "name", "backend", "bridge"), str), "adopted": bool, "nat": bool}

# What later layouts added, and what it means that a record lacks it.
_CONTAINER: Record = {"entrypoint": [], "command": [], "env": {}, "working_dir": ""}
_VM_SINCE: Record = {
    **_CONTAINER,
    "hostname": "",
    "cpu_max": 0,
    **{"firmware": None, "memory_backing": "ram", "own_kernel": None, "blob_digests": None},
    **{"relogin": False, "host_keys": []},
}
_SNAPSHOT_SINCE: Record = {
    **_CONTAINER,
    **{"cpu_max": 0, "firmware": None, "own_kernel": None, "first_boot_due": False, "frozen": None},
}
_IMAGE_SINCE: Record = {"boot": None, "disk": None, "folders": [], "features": [], "labels": {}, "config": {}}
# Of bridges of our own; to an adopted one they mean nothing.
GUARDED: Record = {"isolated": False, "anti_spoofing": True}
# Of what is not made by plugins.
UNPLUGGED: Record = {"conflist": None, "cni_conf_dir": None, "cni_bin_dir": None}
# Without a server of ours.
UNSERVED: Record = {"names": False, "dhcp": False, "dhcp_range": None}
_NETWORK_SINCE: Record = {
    **{"subnet": None, "gateway": None, "mtu": None, "dns": [], "dns_search": [], "reserved": []},
    **{"subnet6": None, "addresses6": "advertised", "routing6": "none", "uplink": None, "vlan_filtering": False},
    **UNSERVED,
    **UNPLUGGED,
}

MOUNT_POINT = "/mnt/{}"
ROLES: t.Final = {"cocoon-cow": "cow", "cocoon-cidata": "cidata"}


def read_vm(document: Record) -> VmRecord:
    """:raises StateError: what every layout has is not there."""
    _require(document, _VM)
    _require(document["config"], _CONFIG, "config.")
    _fill(document, _VM_SINCE)
    disks = {disk["name"]: disk for disk in document["data_disks"]}
    for item in document["storage_configs"]:
        if "role" not in item:
            item.update(storage_role(item["serial"], disks))
    return t.cast("VmRecord", document)


def storage_role(serial: str, disks: t.Mapping[str, t.Any]) -> StorageConfig:
    """What an entry of ``storage_configs`` says of the disk with that serial; *disks* are the VM's by name."""
    if serial not in disks:
        return {"role": "layer" if serial.startswith("cocoon-layer") else t.cast(t.Any, ROLES.get(serial, "data"))}
    fstype = disks[serial]["fstype"]
    mounted: StorageConfig = {} if fstype == "none" else {"mount_point": MOUNT_POINT.format(serial)}
    return {"role": "data", "fstype": fstype, **mounted}


def read_snapshot(document: Record) -> SnapshotRecord:
    """:raises StateError: what every layout has is not there."""
    _require(document, _SNAPSHOT)
    if document["state"] == CREATING:
        return t.cast("SnapshotRecord", document)
    _require(document, _COMPLETE_SNAPSHOT)
    # What was taken here goes with the files that it keeps from being removed.
    since = {**_SNAPSHOT_SINCE, "blob_digests": {} if document.get("imported_at") else None}
    return t.cast("SnapshotRecord", _fill(document, since))


def read_image(document: Record) -> ImageRecord:
    """:raises StateError: what every layout has is not there."""
    return t.cast("ImageRecord", _fill(_require(document, _IMAGE), _IMAGE_SINCE))


def read_network(document: Record) -> NetworkRecord:
    """:raises StateError: what every layout has is not there."""
    _require(document, _NETWORK)
    guarded: Record = {"isolated": None, "anti_spoofing": None} if document["adopted"] else GUARDED
    return t.cast("NetworkRecord", _fill(document, {**_NETWORK_SINCE, **guarded}))


def _require(document: Record, fields: t.Mapping[str, type], prefix: str = "") -> Record:
    wrong = [prefix + key for key, kind in fields.items() if not isinstance(document.get(key), kind)]
    if wrong:
        raise StateError(f"it has no {', '.join(wrong)}, or what is there cannot be meant")
    return document


def _fill(document: Record, since: Record) -> Record:
    for key, value in since.items():
        if key not in document:
            document[key] = copy.copy(value)
    return document


def damaged_vm(vm_id: str, name: str, why: str) -> VmRecord:
    """What stands for a VM whose document cannot be read: all that is known is its id."""
    return {
        "id": vm_id,
        "state": ERROR,
        "reason": why,
        "damaged": why,
        "config": {"name": name},
        "pid": 0,
        "network_configs": [],
        "storage_configs": [],
        "first_booted": False,
        "snapshot_ids": {},
    }


def damaged_network(network_id: str, name: str, why: str, seen: Record) -> NetworkRecord:
    """What stands for a network whose document cannot be read: its id, its name, and what the kernel shows of it.

    Without a bridge of ours there is nothing for rules to guard, as with one that was adopted.
    """
    known = {
        **copy.deepcopy(_NETWORK_SINCE),
        **{"id": network_id, "name": name, "backend": "bridge", "state": ERROR, "reason": why, "damaged": why},
        **{"bridge": "", "adopted": True, "nat": False, "subnet": None, "gateway": None, "range_start": None},
        **{"range_end": None, "isolated": True, "anti_spoofing": True, "mtu": None, "dns": [], "dns_search": []},
        **seen,
    }
    return t.cast("NetworkRecord", known)


def damaged_image(image_id: str, names: list[str], why: str) -> ImageRecord:
    """What stands for an image whose document cannot be read: its id, and the names that lead to it."""
    known = {
        **{"id": image_id, "digest": image_id, "state": ERROR, "reason": why, "damaged": why, "names": names},
        **{"name": "".join(names[:1]), "layers": [], "boot": None, "disk": None},
    }
    return t.cast("ImageRecord", known)


def is_damaged(record: t.Mapping[str, t.Any] | None) -> bool:
    """Whether *record* only stands for one that cannot be read."""
    return bool(record and record.get("damaged"))
