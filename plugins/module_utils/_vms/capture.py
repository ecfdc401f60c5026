# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Taking a snapshot: a name, a folder, what the VM is at this instant, and a record of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import FREEZE_AUTO, FREEZE_NO
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import ARCHIVED, machine_of
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import store as snapshots
from ansible_collections.cocoon.microvm.plugins.module_utils._state import write_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import boot, cidata, saving
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import SnapshotRecord


@dataclasses.dataclass(frozen=True)
class What:
    """What of a running VM is to be in a snapshot.

    :param memory: the machine as it runs; else its disks alone.
    :param freeze: what is wanted of its file systems meanwhile: ``auto``, ``required`` or ``no``.
    """

    memory: bool = True
    freeze: str = FREEZE_AUTO


def capture(
    vm: Vm, name: str, description: str, owner: str, labels: Record, what: What, entry: str | None = None
) -> SnapshotRecord:
    """Take the snapshot *name* of a VM, whose lock is held as is the snapshot's; its record.

    :param entry: what it is to be found by, if not by its name.
    :raises CocoonError: it could not be taken; the VM goes on as it was, and nothing is left.
    """
    running = vm.runs()
    if running and not vm.driver.capabilities.snapshots:
        raise UnsupportedError(
            f"hypervisor {vm.record['hypervisor']} cannot save a running VM",
            "vm",
            "Stop it first: then its disks are saved.",
        )
    saving.check_space(vm, memory=running and what.memory, disks=True)
    record = fresh_record(vm, name, description, owner, labels)
    record["kind"] = snapshots.FULL if running and what.memory else snapshots.DISKS
    started = time.monotonic()
    try:
        _reserve(vm.run, record, entry or name)
        if running:
            _fill(vm, record, what)
        else:
            saving.copy_disks(vm, snapshots.directory(vm.run.store, record["id"]))
        _complete(vm, record, time.monotonic() - started)
    except (CocoonError, OSError):
        with contextlib.suppress(OSError):  # of a full disk, the next run takes the rest away
            snapshots.discard(vm.run.store, {**record, "name": entry or name})
            vm.record.get("snapshot_ids", {}).pop(record["id"], None)
            vm.write()
        raise
    return record


def fresh_record(vm: Vm, name: str, description: str, owner: str, labels: Record) -> SnapshotRecord:
    """A snapshot's record in state ``creating``: SnapshotConfig, then our own fields."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images

    config, driver = vm.record["config"], vm.driver
    image = vm.image
    record = {
        "id": types.new_id(),
        "name": name,
        "description": description,
        "image": config["image"],
        "image_blob_ids": {blob: {} for blob, _suffix in images.blobs(image)},
        "hypervisor": vm.record["hypervisor"],
        **{key: config[key] for key in ("storage", "network")},
        **machine_of({**vm.record, **config}),
        "nics": len(vm.record["network_configs"]),
        "created_at": types.now(),
        "state": snapshots.CREATING,
        "vm_id": vm.id,
        "vm": vm.name,
        "parent": vm.record.get("snapshot_id"),
        "owner": owner,
        "labels": labels,
        **{key: vm.record.get(key) for key in ("accel", *driver.pinned, "hypervisor_version", "own_kernel")},
        **{key: vm.record.get(key) for key in ("balloon", "image_id", "image_type", "image_digest")},
        # What the guest's accounts are made of, by digests.
        **{key: vm.record.get(key) for key in ("login", "relogin")},
        "host_keys": vm.record.get("host_keys") or [],
        "first_boot_due": cidata.due(vm.paths, vm.record),
        # What limits them is not theirs, but the VM's.
        "data_disks": [{key: disk[key] for key in ("name", "size", "fstype")} for disk in vm.record["data_disks"]],
        "nic_networks": [nic["network_name"] for nic in vm.record["network_configs"]],
        "nic_configs": [
            {"mac": nic["mac"], "mtu": nic.get("mtu") or 0, "num_queues": nic["num_queues"]}
            for nic in vm.record["network_configs"]
        ],
        "frozen": None,
        "layout": {},
        "blob_digests": {},
        "files": {},
    }
    return t.cast("SnapshotRecord", record)


def _reserve(run: Run, record: SnapshotRecord, entry: str) -> None:
    """Name first, as that is what the next run looks up; then the record, then the hold on the image."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images

    run.store.index("snapshot").reserve(entry, record["id"])
    run.mark("snapshot.name")
    folder = snapshots.directory(run.store, record["id"])
    os.mkdir(folder, 0o711)
    os.chmod(folder, 0o711)  # whatever the umask of this task is
    snapshots.write(run.store, record)
    run.mark("snapshot.record")
    images.pin(run.store, record["image_id"], record["id"])
    run.mark("snapshot.image")


def _fill(vm: Vm, record: SnapshotRecord, what: What) -> None:
    """The data of a snapshot, from the running VM into its folder.

    With its memory go the file systems' own caches, so nothing has to be frozen: what goes on from it would be.
    """
    folder = snapshots.directory(vm.run.store, record["id"])
    if what.memory:
        # A VM that an earlier version started does not know them.
        record["blob_digests"] = vm.record.get("blob_digests") or vm.run.blob_digests(record["image_id"])
    freeze = FREEZE_NO if what.memory else what.freeze
    saved, stood = saving.save_running(vm, folder, disks=True, machine=what.memory, freeze=freeze)
    saving.finish_running(vm, saved)
    record["paused_seconds"] = saved.paused_seconds
    if what.memory:
        record["layout"] = saved.layout
        record["hypervisor_version"] = saved.version
    else:
        record["frozen"] = stood


def _complete(vm: Vm, record: SnapshotRecord, seconds: float) -> None:
    """Close the folder: what is in it does not change any more."""
    folder = snapshots.directory(vm.run.store, record["id"])
    write_json(os.path.join(folder, snapshots.LAYOUT_FILE), layout_document(vm, record), locked=True)
    seal(vm.run, record)
    vm.record.setdefault("snapshot_ids", {})[record["id"]] = {}
    vm.write()
    vm.mark("snapshot.listed")
    record["seconds"] = round(seconds, 3)
    record["state"] = snapshots.COMPLETE
    snapshots.write(vm.run.store, record)
    vm.mark("snapshot.complete")


def seal(run: Run, record: SnapshotRecord) -> None:
    """Make the files durable and read-only, and note what they are."""
    folder = snapshots.directory(run.store, record["id"])
    roles = run.driver(record["hypervisor"]).saved_files
    for name in sorted(os.listdir(folder)):
        if name in (snapshots.RECORD_FILE, snapshots.CLONES):
            continue
        path = os.path.join(folder, name)
        os.chmod(path, 0o400)
        if roles.get(name) == "memory":
            _open_to_clones(run, record, path)
        record["files"][name] = snapshots.file_facts(path)
        if roles.get(name) == "state" or name == snapshots.LAYOUT_FILE:
            record["files"][name]["digest"] = snapshots.digest(path)
    snapshots.settle(folder)
    run.mark("snapshot.sealed")


def _open_to_clones(run: Run, record: SnapshotRecord, path: str) -> None:
    """Clones map the RAM: as readers, where their hypervisor can do with that."""
    read_only = run.driver(record["hypervisor"]).reads_only()
    os.chown(path, 0, snapshots.gid(run.store, record["id"]))
    os.chmod(path, 0o440 if read_only else 0o460)


def layout_document(vm: Vm, record: SnapshotRecord) -> Record:
    """``cocoon.json``: disks in device order, boot configuration, and what the machine was (see formats)."""
    return {
        "storage_configs": boot.storage_configs(vm.record, vm.image, vm.paths),
        "boot_config": vm.record.get("boot_config") or {},
        "cpu": record["cpu"],
        "memory": record["memory"],
        **vm.run.driver(record["hypervisor"]).archive_form().words(record),
        "firmware": record["firmware"] or "",
        "cocoon_microvm": {**_ours(record), **_always(record)},
    }


# What an archive carries besides the Go engine's fields, so that a clone on another host is the same.
OURS: t.Final = ("kind", "accel", "frozen", "image_type", "image_digest", "layout", "blob_digests", *ARCHIVED)


def _ours(record: t.Mapping[str, t.Any]) -> Record:
    return {key: record[key] for key in OURS if record.get(key)}


def _always(record: t.Mapping[str, t.Any]) -> Record:
    """Of our own fields those that say something when they are empty, and the CPU that a saved machine needs."""
    lists = {key: record[key] for key in ("data_disks", "nic_networks", "nic_configs")}
    balloon = {} if record["balloon"] is None else {"balloon": record["balloon"]}
    return {**lists, **balloon, "cpu_vendor": cpu_vendor()}


def cpu_vendor() -> str:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.kvm import host_vendor

    return host_vendor()
