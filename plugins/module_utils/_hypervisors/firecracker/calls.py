# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The calls of the API that make a machine: pure, from what is to be started.

All are checked against the official document by a test (``tests/contract``).
"""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import buckets, vsock
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import (
    Disk,
    DiskLimits,
    Launch,
    Limits,
    Nic,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.firecracker import places
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.firecracker.files import (
    MEMORY_FILE,
    STATE_FILE,
)

MIB = 1 << 20

# Interrupts for virtio devices, by its memory map: 5 to 23, less the one of VMGenID and that of VMClock.
DEVICES = 17
# Beside disks, NICs and a balloon: vsock and the source of random numbers.
ALWAYS = 2
ROOM = DEVICES - ALWAYS
# What it adds to the command line for each device: " virtio_mmio.device=4K@0xc0001000:5".
WORDS_OF_DEVICE = 37
COMMAND_LINE = 2048
QUEUE = 256

LIMITS = Limits(
    cpus=32,
    nics=8,
    fixed_disks=ROOM,
    removable_disks=ROOM - 1,
    command_line=COMMAND_LINE - 1 - len("pci=off ") - DEVICES * WORDS_OF_DEVICE,
    nic_queues=(QUEUE,),
    disk_queues=(QUEUE,),
    devices=ROOM,
)


class Call(t.NamedTuple):
    """One request; ``PUT`` unless it says otherwise."""

    target: str
    body: t.Mapping[str, t.Any]
    method: str = "PUT"


START = Call("/actions", {"action_type": "InstanceStart"})
CTRL_ALT_DEL = Call("/actions", {"action_type": "SendCtrlAltDel"})
PAUSE = Call("/vm", {"state": "Paused"}, "PATCH")
RESUME = Call("/vm", {"state": "Resumed"}, "PATCH")
# Never a diff: without dirty page tracking that leaves out what the host has swapped.
SAVE = Call(
    "/snapshot/create",
    {
        "snapshot_type": "Full",
        "snapshot_path": f"{places.INBOX}/{STATE_FILE}",
        "mem_file_path": f"{places.INBOX}/{MEMORY_FILE}",
    },
)


def machine(launch: Launch) -> list[Call]:
    """All but the NICs, up to the start.

    :raises InputError: a value that it cannot take. :raises UnsupportedError: a device that it does not have.
    """
    check(launch)
    boot = {
        "kernel_image_path": places.inside(launch, launch.boot["kernel_path"]),
        "boot_args": launch.boot.get("cmdline", ""),
    }
    if launch.boot.get("initrd_path"):
        boot["initrd_path"] = places.inside(launch, launch.boot["initrd_path"])
    size = {"vcpu_count": launch.cpu, "mem_size_mib": launch.memory // MIB, "smt": False, "track_dirty_pages": False}
    calls = [
        Call("/machine-config", size),
        Call("/boot-source", boot),
        *(drive(launch, disk) for disk in launch.disks),
        Call("/vsock", {"guest_cid": vsock.CID, "uds_path": f"{places.RUN}/{vsock.SOCKET}"}),
        Call("/entropy", {}),
    ]
    if launch.balloon is not None:
        # It is given back when the guest runs short; free pages are never reported.
        calls.append(Call("/balloon", {"amount_mib": launch.balloon // MIB, "deflate_on_oom": True}))
    return calls


def load(launch: Launch) -> list[Call]:
    """What has it go on from a saved machine, which does not run then. It opens the TAPs within the call.

    The disks are where they were: their paths in its root are the source's. Its RAM is mapped, and what the guest
    changes is kept by the process.
    """
    check(launch)
    overrides = [{"iface_id": f"eth{number}", "host_dev_name": item.tap} for number, item in enumerate(launch.nics)]
    body = {
        "snapshot_path": f"{places.RUN}/{places.STATE}",
        "mem_backend": {"backend_type": "File", "backend_path": places.MEMORY},
        "network_overrides": overrides,
        "clock_realtime": True,
        "resume_vm": False,
    }
    # A saved disk has the limits of its source.
    return [Call("/snapshot/load", body), *(limited(d.serial, d.limits) for d in launch.disks if not d.read_only)]


def nics(launch: Launch) -> list[Call]:
    """The NICs. It opens the TAP of each within the call."""
    return [nic(number, item) for number, item in enumerate(launch.nics)]


def drive(launch: Launch, disk: Disk) -> Call:
    """A disk. Guests count them in the order of the calls; none is the root device, which would come first."""
    name = drive_id(disk.serial)
    body: dict[str, t.Any] = {
        "drive_id": name,
        "path_on_host": places.inside(launch, disk.path),
        "is_root_device": False,
        "is_read_only": disk.read_only,
        # Without it a guest has nothing to flush by, and loses what it has written when the host goes down.
        "cache_type": "Unsafe" if disk.read_only else "Writeback",
        "io_engine": "Sync",
    }
    limits = buckets.buckets(disk.limits)
    if limits:
        body["rate_limiter"] = limits
    return Call(f"/drives/{name}", body)


def grown(serial: str, path: str) -> Call:
    """What has it look again at how large the disk is that it has at *path*."""
    name = drive_id(serial)
    return Call(f"/drives/{name}", {"drive_id": name, "path_on_host": path}, "PATCH")


def limited(serial: str, limits: DiskLimits) -> Call:
    """Other limits of a disk; a bucket without tokens is none."""
    name, none = drive_id(serial), {"size": 0, "refill_time": 0}
    found = {"bandwidth": none, "ops": none, **buckets.buckets(limits)}
    return Call(f"/drives/{name}", {"drive_id": name, "rate_limiter": found}, "PATCH")


def drive_id(serial: str) -> str:
    """Letters, digits and ``_`` are all that it takes; serials have no capitals."""
    return serial.replace("-", "X")


def nic(number: int, item: Nic) -> Call:
    body: dict[str, t.Any] = {"iface_id": f"eth{number}", "host_dev_name": item.tap, "guest_mac": item.mac}
    if item.mtu:
        body["mtu"] = item.mtu
    return Call(f"/network-interfaces/eth{number}", body)


def balloon(taken: int) -> Call:
    return Call("/balloon", {"amount_mib": taken // MIB}, "PATCH")


def check(launch: Launch) -> None:
    """What the planner has looked at before: a driver is not asked for what it cannot do, or says so."""
    if not launch.boot.get("kernel_path"):
        raise UnsupportedError("it boots kernels only, and no disks", "image", "Use an image with a kernel.")
    if launch.memory % MIB:
        raise InputError("takes whole MiB", "memory", "Give a multiple of 1M.")
    if not 1 <= launch.cpu <= LIMITS.cpus:
        raise InputError(f"a machine has 1 to {LIMITS.cpus} vCPUs and not {launch.cpu}", "cpu")
    if any(disk.format != "raw" for disk in launch.disks):
        raise UnsupportedError("it takes raw disks only", "image", "Use another hypervisor.")
    count = len(launch.disks) + len(launch.nics) + (launch.balloon is not None)
    if count > ROOM:
        raise UnsupportedError(f"it takes {ROOM} disks, NICs and balloons and not {count}", "data_disks")
    if launch.guest_data or launch.status_log or launch.watchdog:
        raise UnsupportedError("it has no device for guest data and no watchdog", "hypervisor")
