# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs that go on from a saved state: clones, restored VMs and hibernated ones.

Until such a VM is started its directory has a folder ``resume`` with links to the state and the RAM of
its own, so that a snapshot can go while its clones stay, and its record says under ``resume`` what they are::

    {"memory": "map" | "copy" | "stream", "layout": {…}, "disks": {name: mtime in ns}, "hold": bool, "macs": […],
     "blob_digests": {layer: digest of its file}}

``mode`` may stand there, too: how this memory is to be taken up, whatever the VM's ``restore_mode`` says.
``map`` keeps what the guest changes to itself and shares the rest, ``copy`` fills a RAM file of its own,
with ``stream`` the state has the RAM in it. A hypervisor that keeps RAM in no file reads it where it is, always.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _disks
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import RESTORE_ON_DEMAND
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import store as snapshots
from ansible_collections.cocoon.microvm.plugins.module_utils._state import fsync_dir, remove_tree
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.saving import writable_disks
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Driver, Layout, Resume, Saved
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import Memory, SnapshotRecord, VmRecord

MAP: t.Final = "map"
COPY: t.Final = "copy"
STREAM: t.Final = "stream"


def folder(vm: Vm) -> str:
    return vm.file("resume")


def make_folder(vm: Vm) -> str:
    """An empty folder for the saved state; whatever a killed run left there is gone."""
    path = folder(vm)
    remove_tree(path)
    os.mkdir(path, 0o711)
    os.chmod(path, 0o711)  # whatever the umask of this task is
    return path


def clone_disks(vm: Vm, snapshot: SnapshotRecord) -> None:
    """The disks of a new VM, copied from a snapshot, and links to its memory."""
    record = vm.record
    snapshots.note_clone(vm.run.store, snapshot["id"], vm.id)
    vm.mark("clone.noted")
    source = snapshots.directory(vm.run.store, snapshot["id"])
    target = vm.dir
    for name in disk_files(snapshot):
        _disks.copy_sparse(os.path.join(source, name), os.path.join(target, name), vm.uid)
        vm.mark("clone.disk")
    if snapshot["kind"] == snapshots.FULL:
        # A balloon punches holes into the file that it finds the RAM in.
        memory: Memory = COPY if snapshot.get("balloon") is not None else MAP
        link_memory(vm, snapshot, memory)
        vm.saved["hold"] = bool(record["network_configs"])
        vm.saved["macs"] = [nic["mac"] for nic in snapshot["nic_configs"]]
        for config, nic in zip(record["network_configs"], snapshot["nic_configs"]):
            config["mtu"] = nic["mtu"]
        keep_queues(record, snapshot)


def keep_queues(record: VmRecord, snapshot: SnapshotRecord) -> None:
    """As many queues as the saved NICs have, which may be fewer than its vCPUs by now."""
    for config, saved in zip(record["network_configs"], snapshot["nic_configs"]):
        config["num_queues"] = saved.get("num_queues") or snapshot["cpu"] * 2


def disk_files(snapshot: SnapshotRecord) -> list[str]:
    """Names of a snapshot's files that are disks."""
    return list(snapshots.disks_of(snapshot)["files"])


def memory_name(driver: Driver, names: t.Iterable[str]) -> str | None:
    """The one of the files of a saved machine that its RAM is in; ``None`` if its state has it."""
    return next((name for name in names if driver.saved_files.get(name) == "memory"), None)


def check_driver(driver: Driver, pins: t.Mapping[str, t.Any], layout: Layout) -> None:
    """Whether the hypervisor of this host can take up a saved machine.

    :param pins: the record that says what machine it is: the VM's or the snapshot's.
    :raises UnsupportedError: with the reason.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import saved_state

    driver.check_resume(saved_state(driver, pins, layout))


def link_memory(vm: Vm, snapshot: SnapshotRecord, memory: Memory) -> None:
    """Have the VM go on from the snapshot's memory at its next start; its disks are in place."""
    path, driver = make_folder(vm), vm.run.driver(snapshot["hypervisor"])
    source = snapshots.directory(vm.run.store, snapshot["id"])
    for name in snapshot["files"]:
        if name in driver.saved_files:
            os.link(os.path.join(source, name), os.path.join(path, name))
    if memory_name(driver, snapshot["files"]) is None:
        memory = STREAM
    elif not driver.capabilities.ram_file:
        memory = MAP
    fsync_dir(path)
    vm.mark("clone.memory")
    vm.record["resume"] = {
        "memory": memory,
        "layout": snapshot["layout"],
        "disks": disk_times(vm),
        "snapshot_id": snapshot["id"],
        "blob_digests": snapshot["blob_digests"],
        "hold": False,
    }


def settle_hibernation(vm: Vm, saved: Saved) -> None:
    """Have the record say that the VM goes on from its saved memory, which is on disk."""
    record = vm.record
    names = os.listdir(folder(vm))
    memory: Memory = COPY if memory_name(vm.driver, names) else STREAM
    pending = record.get("identity_pending")
    record["resume"] = {
        "memory": memory,
        "layout": saved.layout,
        "disks": disk_times(vm),
        "blob_digests": record.get("blob_digests"),
        "hold": bool(pending),
        "macs": pending,
    }


def disk_times(vm: Vm) -> dict[str, int]:
    """When each of the VM's disks was last written to."""
    return {os.path.basename(path): os.lstat(path).st_mtime_ns for path in writable_disks(vm)}


def resume_of(vm: Vm) -> Resume | None:
    """What the driver needs to let the VM go on, or ``None`` if it boots."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Resume

    saved = vm.record.get("resume")
    if not saved:
        return None
    path = folder(vm)
    memory = None if saved["memory"] == STREAM else memory_name(vm.driver, os.listdir(path))
    return Resume(
        folder=path,
        memory=memory and os.path.join(path, memory),
        shared=saved["memory"] == MAP,
        layout=saved["layout"],
        hold=saved["hold"],
    )


def groups(vm: Vm) -> list[int]:
    """The group that may map the snapshot's RAM, for a VM that does."""
    saved = vm.record.get("resume") or {}
    shares = saved.get("memory") == MAP and "snapshot_id" in saved
    return [snapshots.gid(vm.run.store, saved["snapshot_id"])] if shares else []


def choose(vm: Vm) -> None:
    """Settle how the saved memory is taken up: as this one was to be, or the VM's always, or as it is best.

    A clone shares its source's memory, and what is restored or was hibernated is copied, so that its own memory can be
    saved the fastest way again.
    """
    record, saved = vm.record, vm.saved
    mode = saved.get("mode") or record.get("restore_mode")
    if mode is None or not vm.driver.capabilities.ram_file:
        return
    whole = "its state and its memory are one" if saved["memory"] == STREAM else None
    holes = "its balloon would punch holes into the saved one" if record.get("balloon") is not None else None
    if mode == RESTORE_ON_DEMAND and (whole or holes):
        vm.run.warnings.append(f"VM '{vm.name}': its memory was read before it went on, as {whole or holes}")
    if not whole:
        saved["memory"] = MAP if mode == RESTORE_ON_DEMAND and not holes else COPY


def give_memory(vm: Vm) -> None:
    """Have the hypervisor read the saved memory itself, where it is nobody else's."""
    saved = vm.saved
    if saved["memory"] != (MAP if vm.driver.capabilities.ram_file else COPY) or "snapshot_id" in saved:
        return
    name = memory_name(vm.driver, os.listdir(folder(vm)))
    if name is not None:
        path = os.path.join(folder(vm), name)
        os.chown(path, 0, vm.uid)
        os.chmod(path, 0o440 if vm.driver.reads_only() else 0o460)


def check(vm: Vm) -> None:
    """Whether the disks are as they were when the memory was saved, and the image's files, too.

    :raises StateError: they have moved on, and the memory would ruin what is on them.
    """
    record = vm.record
    name = vm.name
    check_blobs(vm.run, record["image_id"], vm.saved.get("blob_digests"), f"the memory of VM '{name}'", "state")
    changed = [name for name, before in vm.saved["disks"].items() if os.lstat(vm.file(name)).st_mtime_ns != before]
    if changed:
        raise StateError(
            f"{', '.join(changed)} of VM '{name}' changed after its memory was saved", "state", REMEDIES["state"]
        )


REMEDIES: t.Final = {
    "state": "state: stopped with force: true drops the memory; then it can be started afresh.",
    "snapshot": "disks_only: true clones its disks alone, and the clone boots.",
    "name": "disks_only: true restores its disks alone, and the VM boots.",
    "path": "disks_only: true imports its disks alone.",
}


def check_blobs(run: Run, image_id: str, saved: t.Mapping[str, str] | None, what: str, option: str) -> None:
    """Whether the image's EROFS files are the very ones that a saved memory has parts of.

    :param saved: their digests; ``None`` = saved here by a version that did not know them.
    :param option: the one to blame, of those in ``REMEDIES``.
    :raises StateError: they are not, and the guest would read nonsense.
    """
    if saved is None:
        return
    here = run.blob_digests(image_id)
    others = [layer for layer in here if saved.get(layer) != here[layer]]
    if here and not saved:
        raise StateError(
            f"{what} does not say which EROFS files it goes with: an earlier version of this collection wrote it",
            option,
            REMEDIES[option],
        )
    if others:
        raise StateError(
            f"{what} goes with other EROFS files than this host has of {len(others)} of its image's {len(here)} layers"
            f" (sha256:{others[0][:12]}…), which another version of erofs-utils makes otherwise",
            option,
            REMEDIES[option],
        )


def check_snapshot(run: Run, snapshot: SnapshotRecord, pins: t.Mapping[str, t.Any], option: str) -> None:
    """Whether the memory of a snapshot, if it has any, can be taken up on this host.

    :param pins: the record of what takes it up: the machine that it is.
    :raises CocoonError: it cannot.
    """
    if snapshot["kind"] == snapshots.FULL:
        check_blobs(run, snapshot["image_id"], snapshot["blob_digests"], f"snapshot '{snapshot['name']}'", option)
        check_driver(run.driver(snapshot["hypervisor"]), pins, snapshot["layout"])


def forget(vm: Vm) -> None:
    """Drop a saved state: it was taken up, or is not wanted any more."""
    vm.record["resume"] = None
    remove_tree(folder(vm))
