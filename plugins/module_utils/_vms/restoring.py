# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM back to where a snapshot of it stood: its MACs, addresses and networks stay, the rest is the snapshot's.

All that can fail is done while the VM still runs: the snapshot is verified, and its disks are copied beside
the VM's. From then on the record says that the VM is being restored, and a killed run is finished by the next.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _disks
from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import PHASE_RESTORE
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import machine_of, with_values
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import store as snapshots
from ansible_collections.cocoon.microvm.plugins.module_utils._state import fsync_dir, locked, remove_file
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import (
    admission,
    cidata,
    power,
    reserve,
    resuming,
    storage,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import SnapshotRecord, VmRecord

# Beside a disk of the VM, the one that is to take its place.
NEXT = ".restored"
# What a restored VM has again besides the options that its machine fixes.
AGAIN = ("own_kernel", "balloon", "image_id", "image_type", "image_digest")
# The same, where the snapshot says it: those of others, and of earlier versions, do not.
AGAIN_IF_KNOWN = ("login", "relogin")


def restore(vm: Vm, snapshot: SnapshotRecord, mode: str | None = None) -> None:
    """Put the VM back and let it run again if it ran, or if the snapshot has its memory.

    :param mode: how the memory is taken up this time, see :func:`resuming.choose`; ``None``: as always.
    :raises CocoonError: the snapshot cannot be used, or there is no room: the VM goes on as it was.
    """
    run, record = vm.run, vm.record
    snapshots.verify(run.store, snapshot)
    full = snapshot["kind"] == snapshots.FULL
    resuming.check_snapshot(run, snapshot, snapshot, "name")
    process = vm.process()
    if process is not None:
        process.close()
    runs = full or process is not None or bool(record.get("restarting"))  # the last: a killed run has ended it
    if runs:
        free, _idle = admission.free_memory(run)
        admission.check_memory(run, snapshot["memory"], free + admission.held_memory(run, vm.id))
    _promise(vm, snapshot)
    try:
        _copy_beside(vm, snapshot)
        if record["image_id"] != snapshot["image_id"]:  # rebuilt from another one since
            held = {record["image_id"], snapshot["image_id"], *(record.get("held_images") or [])}
            record["held_images"] = sorted(held)
            vm.write()
            images.pin(run.store, snapshot["image_id"], vm.id)
            vm.mark("restore.image")
        record["restore"] = {"snapshot_id": snapshot["id"], "runs": runs, "full": full, "mode": mode}
        vm.set_state(record["state"], record.get("reason", ""), phase=PHASE_RESTORE)
    except BaseException:
        _drop_copies(vm, snapshot)
        raise
    vm.mark("restore.begun")
    finish(vm, snapshot)


def _promise(vm: Vm, snapshot: SnapshotRecord) -> None:
    """Have the restored VM's disks promised: those of the snapshot, and data disks that came later."""
    record = vm.record
    with locked(vm.paths, ["host"], vm.run.options.lock_timeout):
        size = storage.wanted_bytes(_merged(vm, snapshot))
        admission.promise_disk(vm.run, vm.id, max(size, record["promised_disk"]))
        record["promised_disk"] = max(size, record["promised_disk"])
        vm.write()


def _merged(vm: Vm, snapshot: SnapshotRecord) -> VmRecord:
    """The record with the snapshot's machine and disks; data disks that came later are kept, detached.

    The hypervisor is the VM's own, and so is what another one's snapshot says of the machine that it made.
    """
    record = vm.record
    same = record["hypervisor"] == snapshot["hypervisor"]
    pinned = ("accel", *vm.driver.pinned) if same else ()
    names = {disk["name"] for disk in snapshot["data_disks"]}
    mine = [*record["data_disks"], *record["detached_disks"]]
    limits = {disk["name"]: {"limits": disk["limits"]} for disk in mine if disk.get("limits")}
    others = [disk for disk in [*record["detached_disks"], *record["data_disks"]] if disk["name"] not in names]
    fixed = {**machine_of(snapshot), "storage": snapshot["storage"], "image": snapshot["image"]}
    merged = {
        **with_values(record, fixed),
        **{key: snapshot.get(key) for key in (*AGAIN, *pinned)},
        **{key: value for key, value in snapshot.items() if key in AGAIN_IF_KNOWN and value is not None},
        "host_keys": snapshot.get("host_keys") or [],
        "data_disks": [{**disk, **limits.get(disk["name"], {})} for disk in snapshot["data_disks"]],
        "detached_disks": others,
    }
    return t.cast("VmRecord", merged)


def _copy_beside(vm: Vm, snapshot: SnapshotRecord) -> None:
    source, target = snapshots.directory(vm.run.store, snapshot["id"]), vm.dir
    for name in resuming.disk_files(snapshot):
        path = os.path.join(target, name + NEXT)
        remove_file(path)
        _disks.copy_sparse(os.path.join(source, name), path, vm.uid)
        vm.mark("restore.copied")


def _drop_copies(vm: Vm, snapshot: SnapshotRecord) -> None:
    for name in resuming.disk_files(snapshot):
        with contextlib.suppress(OSError):
            remove_file(os.path.join(vm.dir, name + NEXT))


def tidy(vm: Vm) -> None:
    """Drop the copies of a restore that was killed before it touched the VM."""
    directory = vm.dir
    for name in os.listdir(directory):
        if NEXT in name:
            remove_file(os.path.join(directory, name))


def go_on(vm: Vm) -> None:
    """Finish the restore of a run that was killed."""
    begun = vm.record["restore"] or {}
    snapshot = snapshots.load_by_id(vm.run.store, begun["snapshot_id"])
    if snapshot is None:
        raise StateError(
            f"the snapshot that VM '{vm.name}' is being restored from has gone",
            "name",
            "Restore another one, or remove the VM.",
        )
    finish(vm, snapshot if begun.get("full", True) else snapshots.disks_of(snapshot))


def finish(vm: Vm, snapshot: SnapshotRecord) -> None:
    """From the moment that nothing can fail any more but for want of a process that ends: swap, and start again."""
    record = vm.record
    process = vm.process()
    if process is not None:
        with process:
            process.end(grace=0)
    power.clear_runtime(vm)
    vm.mark("restore.ended")
    target = vm.dir
    for name in resuming.disk_files(snapshot):
        path = os.path.join(target, name)
        if os.path.lexists(path + NEXT):
            os.rename(path + NEXT, path)
            vm.mark("restore.swapped")
    fsync_dir(target)
    if cidata.takes(record):
        cidata.retain(vm.paths, record, snapshot)
    begun = record["restore"] or {}
    runs, mode = begun["runs"], begun.get("mode")
    record.update(_merged(vm, snapshot))
    _refresh_nics(record, snapshot)
    if record.get("held_images"):
        reserve.unpin_images(vm.run, record)
    if snapshot["kind"] == snapshots.FULL:
        resuming.link_memory(vm, snapshot, resuming.COPY)
        vm.saved["mode"] = mode
    else:
        resuming.forget(vm)
    fields = {**power.not_running(), "restore": None, "restarting": runs, "first_booted": True}
    vm.set_state(types.STOPPED, f"restored from snapshot '{snapshot['name']}'", **fields)
    vm.mark("restore.record")
    storage.settle(vm)
    if runs:
        power.ready_networks(vm)
        power.start(vm)
    vm.mark("restore.done")


def _refresh_nics(record: VmRecord, snapshot: SnapshotRecord) -> None:
    """As many queues, and as deep, as the saved NICs have."""
    resuming.keep_queues(record, snapshot)
    for config in record["network_configs"]:
        config["queue_size"] = snapshot["queue_size"]
