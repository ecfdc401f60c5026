# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM written down: the devices and the RAM of a running one, and the disks of any, at one instant."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._disks import open_disk
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ResourceError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import PHASE_SAVE, PRIVATE
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots.store import settle
from ansible_collections.cocoon.microvm.plugins.module_utils._sparse import can_clone, copy_data
from ansible_collections.cocoon.microvm.plugins.module_utils._state import remove_tree
from ansible_collections.cocoon.microvm.plugins.module_utils._types import MIB, RUNNING, Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import boot, cidata
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Saved, SavedFile

BLOCK = 512
INBOX = "inbox"
# A disk with as much on it is copied while the guest runs on. Less is copied before it could notice.
LARGE = 32 * MIB
# What devices, option ROMs and video memory may come to, besides the guest's RAM.
DEVICES = 256 * MIB
# What has to stay free when a snapshot has been written: records of other VMs are written there, too.
RESERVE = 64 * MIB
NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def writable_disks(run: Run, record: Record) -> list[str]:
    """Paths of the VM's own disks: the system disk, the data disks, and what else of its own the machine is made of."""
    paths = run.store.paths
    own = (os.path.join(paths.vm_dir(record["id"]), name) for name in run.driver(record["hypervisor"]).own_files)
    more = [*own, cidata.volume_path(paths, record["id"])]
    disks = [boot.data_disk(record["id"], disk["name"], paths) for disk in record["data_disks"]]
    return [boot.system_disk(record, paths), *disks, *(path for path in more if os.path.lexists(path))]


def check_space(run: Run, record: Record, memory: bool, disks: bool) -> None:
    """Whether there is room to save a VM, before its guest is stopped for it.

    :raises ResourceError: there is not.
    """
    paths = run.store.paths
    clones = can_clone(paths.vm_dir(record["id"]))
    on_disk = record.get("memory_backing") == "disk"
    files = [boot.ram_path(record, paths)] if memory and not (clones and on_disk) else []
    needed = DEVICES if memory else 0
    if memory and record.get("memory_mode") == PRIVATE:
        needed += record["config"]["memory"]
    if disks and not clones:
        files += writable_disks(run, record)
    needed += sum(os.lstat(path).st_blocks * BLOCK for path in files)
    info = os.statvfs(paths.root)
    free = info.f_bavail * info.f_frsize - RESERVE
    if needed > free:
        raise ResourceError(
            f"saving VM '{record['config']['name']}' may take {needed >> 20}M, and {max(0, free) >> 20}M are free"
            f" in {paths.root}",
            "root_dir",
            "Remove old snapshots, free some, or put root_dir on a larger file system.",
        )


def save_running(run: Run, record: Record, directory: str, disks: bool, stay: bool = False) -> Saved:
    """Write state, RAM and perhaps disks of a running VM into *directory*; its guest stands still meanwhile.

    :param stay: the guest is not let go on afterwards.
    :returns: what the driver says of it.
    :raises CocoonError: it could not be done; the guest goes on.
    """
    shared = record.get("memory_mode") != PRIVATE
    memory = record["config"]["memory"]
    memory_file, driver = boot.ram_path(record, run.store.paths), run.driver(record["hypervisor"])

    def copy(files: t.Sequence[SavedFile]) -> None:
        run.mark("save.state")
        for file in files:
            target = os.path.join(directory, file.name)
            if file.path != target:  # whoever wrote it may hold it open: never a rename
                _copy(file.path, target, record["uid"])
                run.mark(f"save.{file.role}")
        if disks:
            copy_disks(run, record, directory, {serial for serial, _fd in large})
        if stay:  # while somebody lets the guest go on if this process dies
            settle(directory)
        run.mark("save.copied")

    if shared and record.get("memory_backing") == "disk":
        _flush(memory_file, record["uid"])
    begin(run, record)
    inbox = _inbox(run, record, directory)
    large = _large_disks(run, record, directory) if disks else []
    try:
        saved = driver.save(
            run.store.paths.vm_run(record["id"]),
            inbox,
            copy,
            ram=memory_file if shared else None,
            limit=DEVICES + (0 if shared else memory + memory // 16),
            disks=large,
            stay=stay,
        )
    except BaseException:
        finish(run, record)
        raise
    finally:
        for _serial, fd in large:
            os.close(fd)
        if inbox != directory:
            remove_tree(inbox)
    run.mark("save.saved")
    return saved


def _inbox(run: Run, record: Record, directory: str) -> str:
    """Where the driver leaves the saved state: *directory*, unless the VM's user writes it, who has no business there.

    What a killed run left in that user's folder is gone.
    """
    if not run.driver(record["hypervisor"]).writes_inbox:
        return directory
    path = os.path.join(run.store.paths.vm_dir(record["id"]), INBOX)
    remove_tree(path)
    os.mkdir(path, 0o700)
    os.chown(path, record["uid"], record["uid"])
    return path


def _flush(path: str, uid: int) -> None:
    """Write a file's changes back beforehand: a reflink of it has to wait for that."""
    fd = open_disk(path, uid, os.O_RDONLY)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


def begin(run: Run, record: Record) -> None:
    """Write down that the guest is about to be stopped, for whoever finds it so."""
    record["phase"] = PHASE_SAVE
    run.store.write_vm(record)
    run.mark("save.begun")


def finish(run: Run, record: Record) -> None:
    """Write down that the guest goes on."""
    record["phase"] = None
    run.store.write_vm(record)
    run.mark("save.finished")


def _large_disks(run: Run, record: Record, directory: str) -> list[tuple[str, int]]:
    """Serials of the disks that are too large to copy while a guest stands still, each with a new file for its copy."""
    runs = record["state"] == RUNNING
    live = run.driver(record["hypervisor"]).capabilities.live_disk_copy
    if not runs or not live or can_clone(run.store.paths.vm_dir(record["id"])):
        return []
    large = []
    for item in record["storage_configs"]:
        info = os.lstat(item["path"])
        if item["ro"] or not item["path"].endswith(".raw") or info.st_blocks * BLOCK < LARGE:
            continue
        fd = os.open(os.path.join(directory, os.path.basename(item["path"])), NEW, 0o600)
        large.append((item["serial"], fd))
        os.ftruncate(fd, info.st_size)
    return large


def copy_disks(run: Run, record: Record, directory: str, besides: t.Container[str] = ()) -> None:
    """Copy the VM's disks, which nothing writes to at this moment, into *directory*.

    :param besides: serials of those that are copied in another way.
    """
    serials = {item["path"]: item["serial"] for item in record["storage_configs"]}
    for path in writable_disks(run, record):
        if serials.get(path) in besides:
            continue
        _copy(path, os.path.join(directory, os.path.basename(path)), record["uid"])
        run.mark("save.disk")


def _copy(source: str, target: str, uid: int) -> None:
    """Copy a file of the VM's user. It is made durable later, when no guest waits for it."""
    source_fd = open_disk(source, uid, os.O_RDONLY)
    try:
        target_fd = os.open(target, NEW, 0o600)
        try:
            copy_data(source_fd, target_fd)
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)
