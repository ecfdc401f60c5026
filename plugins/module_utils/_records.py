# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documents of a store: what is in each, and one reader a kind that fills, once, what older writers lacked.

Field names are those of Cocoon's Go ``types`` package; fields of our own stand beside them. Whoever adds a field
declares it here, with what it means that a record lacks it, and leaves a document of the layout before it with the
tests' fixtures.
"""

from __future__ import annotations

import copy
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._types import CREATING, ERROR, Record


class Network(t.TypedDict, total=False):
    """Guest-visible IP configuration of a NIC (Go: ``types.Network``)."""

    ip: str
    gateway: str
    prefix: int


class NetworkConfig(t.TypedDict, total=False):
    """One NIC attached to a VM (Go: ``types.NetworkConfig``); what comes after ``network`` is ours.

    ``offered`` is what the plugins of a conflist gave beside the address: ``subnet gateway routes dns dns_search mtu``.
    ``default_route``, ``gateway`` and the rest of ``settings.ASKED`` are what was asked for; ``way_out`` and
    ``next_hop`` what came of it. The gateway in ``network`` is that of the default route, empty where it has none here.
    """

    tap: str
    mac: str
    num_queues: int
    queue_size: int
    backend: str
    bridge_dev: str
    netns_path: str
    network: Network
    network_id: str
    network_name: str
    mtu: int
    dns: list[str]
    dns_search: list[str]
    isolated: bool
    default_route: bool
    dhcp: bool
    vlan: int
    limits: dict[str, dict[str, int]]
    gateway: str
    metric: int
    routes: list[Record]
    way_out: bool
    next_hop: str
    offered: Record


class StorageConfig(t.TypedDict, total=False):
    """One disk attached to a VM (Go: ``types.StorageConfig``); ``fstype`` and ``mount_point`` of data disks only."""

    path: str
    ro: bool
    serial: str
    role: t.Literal["layer", "cow", "data", "cidata"]
    fstype: t.Literal["ext4", "none"]
    mount_point: str


class BootConfig(t.TypedDict, total=False):
    """Kernel and firmware paths (Go: ``types.BootConfig``)."""

    kernel_path: str
    initrd_path: str
    cmdline: str
    firmware_path: str


class DataDisk(t.TypedDict):
    """A data disk of a VM or a snapshot; its file is ``data-<name>.raw``. Bytes."""

    name: str
    size: int
    fstype: t.Literal["ext4", "none"]


class SavedState(t.TypedDict, total=False):
    """What a VM goes on from at its next start, see ``resuming``."""

    memory: t.Literal["map", "copy", "stream"]
    layout: Record
    disks: dict[str, int]
    blob_digests: dict[str, str] | None
    hold: bool
    macs: list[str] | None
    snapshot_id: str


class VmRecord(t.TypedDict, total=False):
    """``vms/<id>/vm.json``. The Go engine's fields, what the VM is, what it holds, and how a change of it stands.

    Beside them, as in a snapshot's, stand the fields that its driver has ``pinned``.
    """

    id: str
    hypervisor: str
    state: str
    config: Record
    pid: int
    socket_path: str
    network_configs: list[NetworkConfig]
    storage_configs: list[StorageConfig]
    first_booted: bool
    snapshot_ids: dict[str, Record]
    created_at: str
    updated_at: str
    started_at: str
    stopped_at: str

    reason: str
    owner: str
    labels: dict[str, str]
    accel: str
    hypervisor_version: str
    snapshot: str
    snapshot_id: str
    image_id: str | None
    image_type: str
    image_digest: str
    own_kernel: bool | None
    kernel_args: str
    entrypoint: list[str]
    command: list[str]
    env: dict[str, str]
    working_dir: str
    hostname: str
    firmware: str | None
    nics: list[Record]
    ports: list[str]
    data_disks: list[DataDisk]
    detached_disks: list[DataDisk]
    balloon: int | None
    watchdog: bool
    cpu_max: int
    memory_backing: t.Literal["ram", "disk"]
    login: Record
    relogin: bool
    secret_env: Record
    boot_config: BootConfig
    exit_code: int | None
    ready: Record | None
    host_keys: list[str]
    console_from: int

    uid: int
    promised_disk: int
    kept_disks: list[DataDisk]
    held_images: list[str]
    planned_nics: list[NetworkConfig]
    planned_ports: list[str]
    delete_data_disks: bool
    lost: bool
    process: Record | None
    phase: str | None
    phase_boot_id: str
    restarting: bool
    restore: Record | None
    resume: SavedState | None
    memory_mode: str | None
    identity_pending: list[str] | None
    blob_digests: dict[str, str] | None
    cidata_given: bool


class SnapshotRecord(t.TypedDict, total=False):
    """``snapshots/<id>/snapshot.json``: the Go engine's ``SnapshotConfig``, and ours."""

    id: str
    name: str
    description: str
    image: str
    image_blob_ids: dict[str, Record]
    hypervisor: str
    cpu: int
    memory: int
    storage: int
    nics: int
    queue_size: int
    disk_queue_size: int
    network: str
    no_direct_io: bool
    windows: bool
    created_at: str

    state: str
    kind: t.Literal["full", "disks"]
    vm_id: str | None
    vm: str
    parent: str | None
    owner: str
    labels: dict[str, str]
    accel: str
    hypervisor_version: str
    kernel_args: str
    entrypoint: list[str]
    command: list[str]
    env: dict[str, str]
    working_dir: str
    own_kernel: bool | None
    balloon: int | None
    watchdog: bool
    cpu_max: int
    image_id: str
    image_type: str
    image_digest: str
    firmware: str | None
    first_boot_due: bool
    login: Record | None
    relogin: bool | None
    host_keys: list[str]
    data_disks: list[DataDisk]
    nic_networks: list[str]
    nic_configs: list[Record]
    layout: Record
    blob_digests: dict[str, str] | None
    frozen: bool | None
    files: dict[str, Record]
    paused_seconds: float | None
    seconds: float
    source_id: str
    imported_at: str
    exports: dict[str, Record]


class ImageRecord(t.TypedDict, total=False):
    """``images/records/<hex>.json``."""

    id: str
    digest: str
    name: str
    names: list[str]
    type: t.Literal["oci", "cloudimg"]
    size: int
    created_at: str
    updated_at: str
    created: str | None
    platform: str
    layers: list[str]
    boot: BootConfig | None
    disk: Record | None
    folders: list[Record]
    features: list[str]
    config: Record
    owner: str
    labels: dict[str, str]
    source: Record


class NetworkRecord(t.TypedDict, total=False):
    """``networks/<id>/network.json``."""

    id: str
    name: str
    backend: str
    bridge: str
    adopted: bool
    uplink: str | None
    vlan_filtering: bool
    subnet: str | None
    gateway: str | None
    range_start: str | None
    range_end: str | None
    nat: bool
    isolated: bool | None
    anti_spoofing: bool | None
    mtu: int | None
    dns: list[str]
    dns_search: list[str]
    subnet6: str | None
    routing6: t.Literal["none", "nat", "routed"]
    reserved: list[str]
    names: bool
    dhcp: bool
    dhcp_range: str | None
    conflist: str | None
    cni_conf_dir: str | None
    cni_bin_dir: list[str] | None
    owner: str
    labels: dict[str, str]
    created_at: str
    updated_at: str
    phase: str


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
    **{"relogin": False, "host_keys": [], "console_from": 0},
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
    **{"subnet6": None, "routing6": "none", "uplink": None, "vlan_filtering": False},
    **UNSERVED,
    **UNPLUGGED,
}

MOUNT_POINT = "/mnt/{}"
ROLES: t.Final = {"cocoon-cow": "cow", "cocoon-cidata": "cidata"}


def read_vm(document: Record) -> Record:
    """:raises StateError: what every layout has is not there."""
    _require(document, _VM)
    _require(document["config"], _CONFIG, "config.")
    _fill(document, _VM_SINCE)
    disks = {disk["name"]: disk for disk in document["data_disks"]}
    for item in document["storage_configs"]:
        if "role" not in item:
            item.update(storage_role(item["serial"], disks))
    return document


def storage_role(serial: str, disks: t.Mapping[str, t.Any]) -> StorageConfig:
    """What an entry of ``storage_configs`` says of the disk with that serial; *disks* are the VM's by name."""
    if serial not in disks:
        return {"role": "layer" if serial.startswith("cocoon-layer") else t.cast(t.Any, ROLES.get(serial, "data"))}
    fstype = disks[serial]["fstype"]
    mounted: StorageConfig = {} if fstype == "none" else {"mount_point": MOUNT_POINT.format(serial)}
    return {"role": "data", "fstype": fstype, **mounted}


def read_snapshot(document: Record) -> Record:
    """:raises StateError: what every layout has is not there."""
    _require(document, _SNAPSHOT)
    if document["state"] == CREATING:
        return document
    _require(document, _COMPLETE_SNAPSHOT)
    # What was taken here goes with the files that it keeps from being removed.
    return _fill(document, {**_SNAPSHOT_SINCE, "blob_digests": {} if document.get("imported_at") else None})


def read_image(document: Record) -> Record:
    """:raises StateError: what every layout has is not there."""
    return _fill(_require(document, _IMAGE), _IMAGE_SINCE)


def read_network(document: Record) -> Record:
    """:raises StateError: what every layout has is not there."""
    _require(document, _NETWORK)
    guarded: Record = {"isolated": None, "anti_spoofing": None} if document["adopted"] else GUARDED
    return _fill(document, {**_NETWORK_SINCE, **guarded})


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


def damaged_vm(vm_id: str, name: str, why: str) -> Record:
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


def damaged_network(network_id: str, name: str, why: str, seen: Record) -> Record:
    """What stands for a network whose document cannot be read: its id, its name, and what the kernel shows of it.

    Without a bridge of ours there is nothing for rules to guard, as with one that was adopted.
    """
    return {
        **copy.deepcopy(_NETWORK_SINCE),
        **{"id": network_id, "name": name, "backend": "bridge", "state": ERROR, "reason": why, "damaged": why},
        **{"bridge": "", "adopted": True, "nat": False, "subnet": None, "gateway": None, "range_start": None},
        **{"range_end": None, "isolated": True, "anti_spoofing": True, "mtu": None, "dns": [], "dns_search": []},
        **seen,
    }


def damaged_image(image_id: str, names: list[str], why: str) -> Record:
    """What stands for an image whose document cannot be read: its id, and the names that lead to it."""
    return {
        **{"id": image_id, "digest": image_id, "state": ERROR, "reason": why, "damaged": why, "names": names},
        **{"name": "".join(names[:1]), "layers": [], "boot": None, "disk": None},
    }


def is_damaged(record: Record | None) -> bool:
    """Whether *record* only stands for one that cannot be read."""
    return bool(record and record.get("damaged"))
