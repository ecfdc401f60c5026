# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM written down: the devices and the RAM of a running one, and the disks of any, at one instant."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._disks import open_disk
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ResourceError, StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import FREEZE_NO, PHASE_SAVE, PRIVATE
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots.store import settle
from ansible_collections.cocoon.microvm.plugins.module_utils._sparse import can_clone, copy_data
from ansible_collections.cocoon.microvm.plugins.module_utils._state import own_folder, remove_file, remove_tree
from ansible_collections.cocoon.microvm.plugins.module_utils._types import MIB, RUNNING
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import asking, cidata
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.freezing import Freeze
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Saved, SavedFile

BLOCK = 512
# A disk with as much on it is copied while the guest runs on. Less is copied before it could notice.
LARGE = 32 * MIB
# What devices, option ROMs and video memory may come to, besides the guest's RAM.
DEVICES = 256 * MIB
# What has to stay free when a snapshot has been written: records of other VMs are written there, too.
RESERVE = 64 * MIB
# Seconds in which a hypervisor tells how the guest is that it could not save.
TURN = 5.0
# Seconds for which a guest stands still before its clock is set, and for its agent to answer.
NOTICED, SOON = 1.0, 2.0
NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def writable_disks(vm: Vm) -> list[str]:
    """Paths of the VM's own disks: the system disk, the data disks, and what else of its own the machine is made of."""
    own = (vm.file(name) for name in vm.driver.own_files)
    more = [*own, cidata.volume_path(vm.paths, vm.id)]
    disks = [vm.data_disk(disk["name"]) for disk in vm.record["data_disks"]]
    return [vm.system_disk, *disks, *(path for path in more if os.path.lexists(path))]


def check_space(vm: Vm, memory: bool, disks: bool) -> None:
    """Whether there is room to save a VM, before its guest is stopped for it.

    :raises ResourceError: there is not.
    """
    record = vm.record
    clones = can_clone(vm.dir)
    on_disk = record.get("memory_backing") == "disk"
    files = [vm.ram] if memory and not (clones and on_disk) else []
    needed = DEVICES if memory else 0
    if memory and record.get("memory_mode") == PRIVATE:
        # What a process writes to a folder of its user's is copied from there.
        needed += record["config"]["memory"] * (2 if vm.driver.writes_inbox and not clones else 1)
    if disks and not clones:
        files += writable_disks(vm)
    needed += sum(os.lstat(path).st_blocks * BLOCK for path in files)
    info = os.statvfs(vm.paths.root)
    free = info.f_bavail * info.f_frsize - RESERVE
    if needed > free:
        raise ResourceError(
            f"saving VM '{record['config']['name']}' may take {needed >> 20}M, and {max(0, free) >> 20}M are free"
            f" in {vm.paths.root}",
            "root_dir",
            "Remove old snapshots, free some, or put root_dir on a larger file system.",
        )


def save_running(
    vm: Vm, directory: str, disks: bool, stay: bool = False, machine: bool = True, freeze: str = FREEZE_NO
) -> tuple[Saved, bool]:
    """Write state, RAM and perhaps disks of a running VM into *directory*; its guest stands still meanwhile.

    :param stay: the guest is not let go on afterwards.
    :param machine: write state and RAM; else the disks alone.
    :param freeze: what is wanted of the guest's file systems, see :class:`Freeze`.
    :returns: what the driver says of it, and whether the file systems stood still.
    :raises CocoonError: it could not be done; the guest goes on, or does when the next run finds it.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Saving
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.runstates import run_state

    record = vm.record
    if machine:
        _check_nics(vm)
    shared = record.get("memory_mode") != PRIVATE
    memory = record["config"]["memory"]
    memory_file, driver = vm.ram, vm.driver

    def copy(files: t.Sequence[SavedFile]) -> None:
        vm.mark("save.state")
        for file in files:
            target = os.path.join(directory, file.name)
            if file.path != target:  # whoever wrote it may hold it open: never a rename
                _copy(file.path, target, vm.uid)
                vm.mark(f"save.{file.role}")
        if disks:
            copy_disks(vm, directory, {serial for serial, _fd in large})
        if stay:  # while somebody lets the guest go on if this process dies
            settle(directory)
        vm.mark("save.copied")

    if machine and shared and record.get("memory_backing") == "disk":
        _flush(memory_file, vm.uid)
    inbox = _inbox(vm, directory)
    large = _large_disks(vm, directory) if disks else []
    frozen = Freeze(vm, freeze)
    begin(vm)
    try:
        limit = DEVICES + (0 if shared else memory + memory // 16)
        wanted = Saving(inbox, copy, memory_file if shared else None, limit, large, stay, machine, frozen.end)
        with frozen.around():
            saved = driver.save(vm.run_dir, wanted)
        stood = frozen.outcome()
    except BaseException:
        goes_on = vm.record["state"] != RUNNING or run_state(vm.record["hypervisor"], vm.run_dir, TURN) == "running"
        if goes_on and not frozen.stuck:
            finish(vm)  # else the next run lets it go on
        raise
    finally:
        for _serial, fd in large:
            os.close(fd)
        if inbox != directory:
            _empty(inbox)
    vm.mark("save.saved")
    return saved, stood


def _check_nics(vm: Vm) -> None:
    """:raises StateError: the machine has not got all NICs of the record, as it would have to when it is taken up."""
    if vm.record.get("untold_nics"):
        raise StateError(
            f"the guest of VM '{vm.name}' has not taken the NICs yet that it was given",
            "state",
            "Run the VM's task again, or restart it.",
        )


def _inbox(vm: Vm, directory: str) -> str:
    """Where the driver leaves the saved state: *directory*, unless the VM's user writes it, who has no business there.

    What a killed run left in that user's folder is gone.
    """
    if not vm.driver.writes_inbox:
        return directory
    path = vm.paths.inbox(vm.id)
    own_folder(path, vm.uid)
    _empty(path)  # never made anew: its process may know it by now
    return path


def _empty(folder: str) -> None:
    """Remove what lies in a folder of the VM's user's."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            remove_tree(entry.path)
        else:
            remove_file(entry.path)


def _flush(path: str, uid: int) -> None:
    """Write a file's changes back beforehand: a reflink of it has to wait for that."""
    fd = open_disk(path, uid, os.O_RDONLY)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


def finish_running(vm: Vm, saved: Saved) -> None:
    """:func:`finish`, of a guest that may have to be told how late it is by now."""
    finish(vm)
    if saved.paused_seconds >= NOTICED:
        asking.set_time(vm, SOON)


def begin(vm: Vm) -> None:
    """Write down that the guest is about to be stopped, for whoever finds it so."""
    vm.write(phase=PHASE_SAVE)
    vm.mark("save.begun")


def finish(vm: Vm) -> None:
    """Write down that the guest goes on."""
    vm.write(phase=None)
    vm.mark("save.finished")


def _large_disks(vm: Vm, directory: str) -> list[tuple[str, int]]:
    """Serials of the disks that are too large to copy while a guest stands still, each with a new file for its copy."""
    runs = vm.record["state"] == RUNNING
    live = vm.driver.capabilities.live_disk_copy
    if not runs or not live or can_clone(vm.dir):
        return []
    large = []
    for item in vm.record["storage_configs"]:
        info = os.lstat(item["path"])
        if item["ro"] or not item["path"].endswith(".raw") or info.st_blocks * BLOCK < LARGE:
            continue
        fd = os.open(os.path.join(directory, os.path.basename(item["path"])), NEW, 0o600)
        large.append((item["serial"], fd))
        os.ftruncate(fd, info.st_size)
    return large


def copy_disks(vm: Vm, directory: str, besides: t.Container[str] = ()) -> None:
    """Copy the VM's disks, which nothing writes to at this moment, into *directory*.

    :param besides: serials of those that are copied in another way.
    """
    serials = {item["path"]: item["serial"] for item in vm.record["storage_configs"]}
    for path in writable_disks(vm):
        if serials.get(path) in besides:
            continue
        _copy(path, os.path.join(directory, os.path.basename(path)), vm.uid)
        vm.mark("save.disk")


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
