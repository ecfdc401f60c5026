# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Admission: memory and disk are promised before they are used, under the host's lock.

The RAM files are the memory ledger: a file's size is what its VM may still take, its blocks are
what it has taken. Disks have a ledger file, as their number grows with the store; they are counted
one by one only before anybody is refused.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import BusyError, ResourceError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import PHASE_START, PRIVATE
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.plugins.module_utils._records import is_damaged
from ansible_collections.cocoon.microvm.plugins.module_utils._state import locked, read_json, remove_file, write_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import format_size
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.mounts import mount_ram
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import VmRecord

BLOCK = 512


def available_memory() -> int:
    """MemAvailable, in bytes."""
    with open("/proc/meminfo", encoding="ascii") as stream:
        for line in stream:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def free_memory(run: Run) -> tuple[int, list[str]]:
    """Bytes that new VMs may be promised, and the ids of VMs that have ended by themselves and still hold RAM.

    A RAM file belongs to its VM's user, so its size counts only up to what the record says; its blocks
    are what it has taken. One without blocks and without a process is a promise that is about to be kept. That of
    a clone stays without blocks: what it has taken is its process's own.
    """
    untouched, idle, ended = 0, [], 0
    try:
        entries = list(os.scandir(run.store.paths.ram))
    except FileNotFoundError:
        entries = []
    for entry in entries:
        try:
            info = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # its VM has just been stopped
            continue
        taken = info.st_blocks * BLOCK
        record = run.store.load_vm(entry.name)
        if is_damaged(record):
            record = None  # what it was promised is as large as its file
        if record and taken and _has_ended(record):
            idle.append(entry.name)
            ended += taken
            continue
        if record and record.get("memory_mode") == PRIVATE:
            taken = anonymous_memory(record.get("pid") or 0)
        promised = min(info.st_size, record["config"]["memory"]) if record else info.st_size
        untouched += max(0, promised - taken)
    return available_memory() + ended - promise(run, untouched) - run.options.memory_reserve, idle


def promise(run: Run, size: int) -> int:
    """What *size* bytes that are only promised count for."""
    return int(size / run.options.memory_overcommit)


def anonymous_memory(pid: int) -> int:
    """Bytes of memory that a process has for itself alone; 0 if it is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as stream:
        for line in stream:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def held_memory(run: Run, vm_id: str) -> int:
    """Bytes that a VM has been promised, whether it runs or a killed run left them."""
    with contextlib.suppress(FileNotFoundError):
        return os.lstat(run.store.paths.ram_file(vm_id)).st_size
    return 0


def _has_ended(record: VmRecord) -> bool:
    process = Process.find(record.get("process"))
    if process is not None:
        process.close()
    return process is None and record.get("phase") != PHASE_START


def _reclaim(run: Run, vm_ids: list[str]) -> None:
    """Give back the RAM of VMs that have ended by themselves, unless somebody is at work on them."""
    for vm_id in vm_ids:
        with contextlib.suppress(BusyError):
            record = run.store.load_vm(vm_id)
            if record is None:
                continue
            with locked(run.store.paths, [f"vm:{record['config']['name']}"], 0):
                record = run.store.load_vm(vm_id)
                if record is not None and not is_damaged(record) and _has_ended(record):
                    remove_file(run.store.paths.ram_file(vm_id))


def check_memory(run: Run, size: int, free: int) -> None:
    """Whether the memory of one more VM fits into *free* bytes.

    :raises ResourceError: *size* bytes do not.
    """
    if promise(run, size) > free:
        raise ResourceError(
            f"{format_size(size)} do not fit: {max(0, free) >> 20}M are left of the host's memory"
            f" after {run.options.memory_reserve >> 20}M of reserve",
            "memory",
            "Stop other VMs, ask for less, lower memory_reserve, or raise memory_overcommit.",
        )


def promise_memory(run: Run, vm_id: str, uid: int, size: int) -> None:
    """Create the RAM file of a VM, or refuse. The host's lock is held.

    :raises ResourceError: *size* bytes do not fit.
    """
    mount_ram(run.store.paths.ram)
    path = run.store.paths.ram_file(vm_id)
    remove_file(path)
    free, idle = free_memory(run)
    if idle:
        _reclaim(run, idle)
    check_memory(run, size, free)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, size)
        os.fchown(fd, uid, uid)
    finally:
        os.close(fd)


def _ledger_path(run: Run) -> str:
    return os.path.join(run.store.paths.root, "index", "disk.json")


def _count_disks(run: Run) -> tuple[int, int]:
    """Bytes promised to, and held by, all VMs: exact, and only counted when space is short."""
    promised = held = 0
    vms = os.path.join(run.store.paths.root, "vms")
    for vm_id in os.listdir(vms):
        directory = os.path.join(vms, vm_id)
        promised += (run.store.load_vm(vm_id) or {}).get("promised_disk", 0)
        with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:  # it may be on its way out
            held += sum(entry.stat(follow_symlinks=False).st_blocks * BLOCK for entry in entries)
    return promised, held


def _promised(run: Run, vm_id: str) -> int:
    """Bytes of disk that a VM is promised by its record; none without one."""
    record = run.store.load_vm(vm_id) or {}
    return int(record.get("promised_disk", 0))


def promise_disk(run: Run, vm_id: str, size: int, option: str = "storage") -> None:
    """Let the disks of a VM come to hold *size* bytes in all, or refuse.

    The ledger has what all VMs are promised but one, and names that one, whose own record says the
    rest: so it is right before, and after, and if nothing ever comes of that record. The host's lock
    is held until the record is written, or gone.

    :raises ResourceError: what is promised would exceed what is there, times disk_overcommit.
    """
    path = _ledger_path(run)
    ledger = read_json(path) or {"promised": 0, "besides": vm_id}
    before = _promised(run, vm_id)
    others = ledger["promised"]
    if ledger["besides"] != vm_id:
        others += _promised(run, ledger["besides"]) - before
    if size > before:
        others = check_disk(run, others, size, option, before)
    write_json(path, {"promised": others, "besides": vm_id}, locked=True)


def recount_disks(run: Run, vm_id: str) -> None:
    """Write the ledger anew for a VM whose record did not say what it was promised. The host's lock is held."""
    promised, _held = _count_disks(run)
    write_json(_ledger_path(run), {"promised": promised - _promised(run, vm_id), "besides": vm_id}, locked=True)


def promised_disk(run: Run) -> int:
    """Bytes that all VMs are promised, by the ledger."""
    ledger = read_json(_ledger_path(run))
    return 0 if ledger is None else int(ledger["promised"]) + _promised(run, ledger["besides"])


def check_disk(run: Run, others: int, size: int, option: str, before: int = 0) -> int:
    """Whether *size* bytes fit beside the *others* that are promised; gives the others, counted anew if need be.

    :param before: what of *size* has been promised already.
    :raises ResourceError: they do not.
    """
    info = os.statvfs(run.store.paths.root)
    free = info.f_bavail * info.f_frsize
    if others + size <= int(free * run.options.disk_overcommit):
        return others
    promised, held = _count_disks(run)
    others = promised - before
    limit = int((free + held) * run.options.disk_overcommit)
    if others + size > limit:
        raise ResourceError(
            f"{format_size(size)} of disk do not fit into {run.store.paths.root}: of {limit >> 20}M,"
            f" {others >> 20}M are promised",
            option,
            "Free some space, ask for less, or raise disk_overcommit (disks are sparse).",
        )
    return others
