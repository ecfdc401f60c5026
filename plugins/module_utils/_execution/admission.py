# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Admission: memory and disk are promised before they are used, under the host's lock.

The RAM files are the memory ledger: a file's size is what its VM may still take, its blocks are
what it has taken. Disks have a ledger file, as their number grows with the store; they are counted
one by one only before anybody is refused.
"""

from __future__ import annotations

import os

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ResourceError
from ansible_collections.cocoon.microvm.plugins.module_utils._execution.mounts import mount_ram
from ansible_collections.cocoon.microvm.plugins.module_utils._execution.run import Run
from ansible_collections.cocoon.microvm.plugins.module_utils._state import read_json, remove_file, write_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import format_size

BLOCK = 512


def available_memory() -> int:
    """MemAvailable, in bytes."""
    with open("/proc/meminfo", encoding="ascii") as stream:
        for line in stream:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def untouched_memory(ram_dir: str) -> int:
    """Bytes that running VMs were promised and have not touched yet."""
    total = 0
    try:
        with os.scandir(ram_dir) as entries:
            for entry in entries:
                info = entry.stat(follow_symlinks=False)
                total += max(0, info.st_size - info.st_blocks * BLOCK)
    except FileNotFoundError:
        pass
    return total


def check_memory(run: Run, size: int) -> None:
    """Whether the memory of one more VM fits.

    :raises ResourceError: *size* bytes do not.
    """
    free = available_memory() - untouched_memory(run.store.paths.ram) - run.options.memory_reserve
    if size > free:
        raise ResourceError(
            f"{format_size(size)} do not fit: {max(0, free) >> 20}M are left of the host's memory"
            f" after {run.options.memory_reserve >> 20}M of reserve",
            "memory",
            "Stop other VMs, ask for less, or lower memory_reserve.",
        )


def promise_memory(run: Run, vm_id: str, uid: int, size: int) -> None:
    """Create the RAM file of a VM, or refuse. The host's lock is held.

    :raises ResourceError: *size* bytes do not fit.
    """
    mount_ram(run.store.paths.ram)
    path = run.store.paths.ram_file(vm_id)
    remove_file(path)
    check_memory(run, size)
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
        promised += (read_json(os.path.join(directory, "vm.json")) or {}).get("promised_disk", 0)
        with os.scandir(directory) as entries:
            held += sum(entry.stat(follow_symlinks=False).st_blocks * BLOCK for entry in entries)
    return promised, held


def _promised(run: Run, vm_id: str) -> int:
    """Bytes of disk that a VM is promised by its record; none without one."""
    record = read_json(os.path.join(run.store.paths.vm_dir(vm_id), "vm.json")) or {}
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
    info = os.statvfs(run.store.paths.root)
    free = info.f_bavail * info.f_frsize
    if size > before and others + size > int(free * run.options.disk_overcommit):
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
    write_json(path, {"promised": others, "besides": vm_id}, locked=True)
