# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in each kind of document of a store, for the type checker: nothing imports this when it runs.

Field names are those of Cocoon's Go ``types`` package; fields of our own stand beside them.
"""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record


class Network(t.TypedDict, total=False):
    """Guest-visible IP configuration of a NIC (Go: ``types.Network``)."""

    ip: str
    gateway: str
    prefix: int


class NetworkConfig(t.TypedDict, total=False):
    """One NIC attached to a VM (Go: ``types.NetworkConfig``); what comes after ``network`` is ours.

    ``offered`` is what the plugins of a conflist gave beside the address: ``subnet gateway gateway6
    routes onlink dns dns_search mtu``.
    ``network6`` is the IPv6 address that the guest is told, where it is not left to what routers say.
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
    gateway6: str
    next_hop6: str
    metric: int
    routes: list[Record]
    ip6: str
    network6: Network
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


class _DataDisk(t.TypedDict):
    name: str
    size: int
    fstype: t.Literal["ext4", "none"]


class DataDisk(_DataDisk, total=False):
    """A data disk of a VM or a snapshot; its file is ``data-<name>.raw``. Bytes. A VM's may have ``limits``."""

    limits: dict[str, dict[str, int]]


Memory = t.Literal["map", "copy", "stream"]


class SavedMemory(t.TypedDict, total=False):
    """What a VM goes on from at its next start, see ``resuming``."""

    memory: Memory
    layout: t.Mapping[str, object]
    disks: dict[str, int]
    blob_digests: dict[str, str] | None
    hold: bool
    macs: list[str] | None
    snapshot_id: str
    mode: str | None


class VmConfig(t.TypedDict, total=False):
    """What a VM was asked to have (Go: ``types.VMConfig``). Bytes."""

    name: str
    cpu: int
    memory: int
    storage: int
    queue_size: int
    disk_queue_size: int
    image: str
    network: str
    no_direct_io: bool
    windows: bool


class VmRecord(t.TypedDict, total=False):
    """``vms/<id>/vm.json``. The Go engine's fields, what the VM is, what it holds, and how a change of it stands.

    Beside them, as in a snapshot's, stand the fields that its driver has ``pinned``.
    """

    id: str
    hypervisor: str
    state: str
    config: VmConfig
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
    image_id: str
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
    limits: dict[str, dict[str, int]]
    data_disks: list[DataDisk]
    detached_disks: list[DataDisk]
    balloon: int | None
    watchdog: bool
    cpu_max: int
    memory_backing: t.Literal["ram", "disk"]
    restore_mode: t.Literal["copy", "on_demand"] | None
    login: Record
    relogin: bool
    secret_env: Record
    boot_config: BootConfig
    exit_code: int | None
    ready: Record | None
    host_keys: list[str]

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
    resume: SavedMemory | None
    memory_mode: str | None
    identity_pending: list[str] | None
    untold_nics: list[str] | None
    hotplug_nics: bool | None
    blob_digests: dict[str, str] | None
    cidata_given: bool
    moving: Record
    moved: Record
    # Of what only stands for a record that cannot be read, or was never written.
    damaged: str
    bare: bool


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
    layout: t.Mapping[str, object]
    blob_digests: dict[str, str] | None
    frozen: bool | None
    files: dict[str, Record]
    paused_seconds: float | None
    seconds: float
    source_id: str
    imported_at: str
    exports: dict[str, Record]
    # Of what only stands for one that cannot be read.
    reason: str
    # While the machine that an archive came from is looked at, and the clones while several are weighed.
    cpu_vendor: str
    clones: list[str]


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
    # Each is None in an image of the other type.
    boot: BootConfig
    disk: Record
    folders: list[Record]
    features: list[str]
    config: Record
    owner: str
    labels: dict[str, str]
    source: Record
    # Of one that is still to come, in check mode, or only stands for one that cannot be read.
    unseen: bool
    state: str
    reason: str
    damaged: str


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
    addresses6: t.Literal["advertised", "static"]
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
    # As one NIC has it, whose plugins gave it.
    gateway6: str
    # Of what only stands for one that cannot be read.
    state: str
    reason: str
    damaged: str
