# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Admission: memory and disk are promised before they are used, under the host's lock.

The RAM files are the memory ledger: a file's size is what its VM may still take, its blocks are
what it has taken. Disks have a ledger file, as their number grows with the store; it can only err
upwards, and is counted anew before anybody is refused.
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


def promise_memory(run: Run, vm_id: str, uid: int, size: int) -> None:
    """Create the RAM file of a VM, or refuse. The host's lock is held.

    :raises ResourceError: *size* bytes do not fit.
    """
    ram = run.store.paths.ram
    mount_ram(ram)
    path = run.store.paths.ram_file(vm_id)
    remove_file(path)
    free = available_memory() - untouched_memory(ram) - run.options.memory_reserve
    if size > free:
        raise ResourceError(
            f"{format_size(size)} do not fit: {max(0, free) >> 20}M are left of the host's memory"
            f" after {run.options.memory_reserve >> 20}M of reserve",
            "memory",
            "Stop other VMs, ask for less, or lower memory_reserve.",
        )
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


def promise_disk(run: Run, size: int, option: str = "storage") -> None:
    """Add *size* bytes to the disk ledger, or refuse. The host's lock is held.

    :raises ResourceError: what is promised would exceed what is there, times disk_overcommit.
    """
    path = _ledger_path(run)
    promised = (read_json(path) or {}).get("promised", 0)
    info = os.statvfs(run.store.paths.root)
    free = info.f_bavail * info.f_frsize
    if promised + size > int(free * run.options.disk_overcommit):
        promised, held = _count_disks(run)
        limit = int((free + held) * run.options.disk_overcommit)
        if promised + size > limit:
            raise ResourceError(
                f"{format_size(size)} of disk do not fit into {run.store.paths.root}: of {limit >> 20}M,"
                f" {promised >> 20}M are promised",
                option,
                "Free some space, ask for less, or raise disk_overcommit (disks are sparse).",
            )
    write_json(path, {"promised": promised + size})


def return_disk(run: Run, size: int) -> None:
    """Take *size* bytes off the ledger. The host's lock is held; called after the bytes are gone."""
    path = _ledger_path(run)
    promised = (read_json(path) or {}).get("promised", 0)
    write_json(path, {"promised": max(0, promised - size)})
