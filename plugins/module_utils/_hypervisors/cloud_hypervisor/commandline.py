# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cloud Hypervisor's command line, and the same words as its API has them: pure functions of a launch.

Sizes and places are given by us, and nothing is left to be detected: a guest that writes another format's header to its
raw disk must not be taken at its word.
"""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import buckets
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import (
    Disk,
    Launch,
    Limits,
    Nic,
    guest_uuid,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.vsock import CID
from ansible_collections.cocoon.microvm.plugins.module_utils._types import MIB

QUEUE_SIZES = tuple(1 << bits for bits in range(4, 11))
NIC_QUEUE_SIZES = (256, 512, 1024)
SERIAL_LENGTH = 20
ZONE = "mem0"
RNG = "/dev/urandom"
# Of the 32 slots of a PCI segment one is the bridge's, and rng, vsock, balloon and watchdog have one each.
LIMITS = Limits(
    cpus=254,
    nics=8,
    fixed_disks=13,
    removable_disks=6,
    command_line=2047,  # of an x86 kernel
    nic_queues=NIC_QUEUE_SIZES,
    disk_queues=QUEUE_SIZES,
)
# What the command line calls the buckets of a disk.
LIMITED = {"bandwidth": "bw", "ops": "ops"}
IMAGE_TYPES = {"raw": "Raw", "qcow2": "Qcow2"}

Config = dict[str, t.Any]


def disk_id(serial: str) -> str:
    return f"disk-{serial}"


def nic_id(number: int) -> str:
    return f"nic{number}"


def check(launch: Launch) -> None:
    """Refuse what Cloud Hypervisor cannot take.

    :raises InputError: naming the option.
    """
    if not 1 <= launch.cpu <= LIMITS.cpus:
        raise InputError(f"{launch.cpu} vCPUs", "cpu", f"Cloud Hypervisor takes 1 to {LIMITS.cpus}.")
    if launch.cpu_max > LIMITS.cpus:
        raise InputError(f"{launch.cpu_max} vCPUs", "cpu_max", f"Cloud Hypervisor takes {LIMITS.cpus}.")
    if launch.memory <= 0 or launch.memory % MIB:
        raise InputError(f"{launch.memory} bytes", "memory", "Give a whole number of MiB.")
    if launch.balloon is not None and not 0 <= launch.balloon < launch.memory:
        raise InputError("the balloon takes all of the memory", "balloon", "Give less than memory.")
    if not launch.boot.get("kernel_path"):
        raise InputError("no kernel to boot", "image", "Give an image with a kernel.")
    if len(launch.nics) > LIMITS.nics:
        raise InputError(f"{len(launch.nics)} NICs", "nics", f"Cloud Hypervisor takes {LIMITS.nics}.")
    for nic in launch.nics:
        check_nic(nic)
    for disk in launch.disks:
        check_disk(disk)
    fixed = sum(not disk.removable for disk in launch.disks)
    if fixed > LIMITS.fixed_disks:
        raise InputError(f"{fixed} image layers and disks", "image", f"Cloud Hypervisor takes {LIMITS.fixed_disks}.")
    if len(launch.disks) - fixed > LIMITS.removable_disks:
        count = len(launch.disks) - fixed
        raise InputError(f"{count} data disks", "data_disks", f"Cloud Hypervisor takes {LIMITS.removable_disks}.")


def check_nic(nic: Nic) -> None:
    """:raises InputError: a NIC that Cloud Hypervisor cannot take."""
    if nic.queue_size not in NIC_QUEUE_SIZES:
        raise InputError(f"{nic.queue_size} is not a NIC queue size", "queue_size", "Use 256, 512 or 1024.")


def check_disk(disk: Disk) -> None:
    """:raises InputError: a disk that Cloud Hypervisor cannot take."""
    if disk.queue_size not in QUEUE_SIZES:
        raise InputError(
            f"{disk.queue_size} is not a disk queue size", "disk_queue_size", "Use a power of two from 16 to 1024."
        )
    if not disk.serial or len(disk.serial.encode()) > SERIAL_LENGTH:
        raise InputError(f"'{disk.serial}' is not a disk serial", "data_disks", "Use 1 to 20 characters.")
    if disk.format not in IMAGE_TYPES:
        raise InputError(f"'{disk.format}' is no format of a disk", "image", "Use a raw or a qcow2 disk.")


def disk_config(disk: Disk) -> Config:
    """A disk, as the API has it."""
    limits = buckets.buckets(disk.limits)
    return {
        "id": disk_id(disk.serial),
        "path": disk.path,
        "serial": disk.serial,
        "readonly": disk.read_only,
        "direct": disk.direct and not disk.read_only,
        "num_queues": 1,
        "queue_size": disk.queue_size,
        "image_type": IMAGE_TYPES[disk.format],
        "backing_files": disk.backing is not None,
        "sparse": not disk.read_only,
        **({"rate_limiter_config": limits} if limits else {}),
    }


def net_config(number: int, nic: Nic) -> Config:
    """A NIC, as the API has it; its TAP comes beside it, as descriptors."""
    pairs = len(nic.fds) or nic.pairs
    return {"id": nic_id(number), "mac": nic.mac, "num_queues": 2 * pairs, "queue_size": nic.queue_size}


def words(config: t.Mapping[str, t.Any]) -> str:
    """The same for the command line: ``path=/x,readonly=on``."""
    return ",".join(f"{key}={_word(value)}" for key, value in config.items())


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(str, value))}]"
    text = str(value)
    if '"' in text or not text.isprintable():
        shown = text.encode("unicode_escape").decode()
        raise InputError(f"Cloud Hypervisor does not take the characters of {shown}", "root_dir", "Use another path.")
    return f'"{text}"' if any(char in text for char in ",[]") else text


def _disk_words(disk: Disk) -> str:
    config = disk_config(disk)
    limits = config.pop("rate_limiter_config", {})
    flat = {f"{LIMITED[name]}_{key}": value for name, limit in limits.items() for key, value in limit.items()}
    return words({**config, "image_type": config["image_type"].lower(), **flat})


def _nic_words(number: int, nic: Nic) -> str:
    # No MTU with descriptors: that is an ioctl of the TAP, which this process may not make.
    return words({**net_config(number, nic), **({"fd": list(nic.fds)} if nic.fds else {"tap": nic.tap})})


def _zone(launch: Launch) -> Config:
    """The guest's RAM: a file that is shared, so that a snapshot need not write it, or the source's, privately."""
    resume = launch.resume
    if resume and resume.shared:
        return {"id": ZONE, "size": launch.memory, "file": str(resume.memory), "shared": False}
    return {"id": ZONE, "size": launch.memory, "file": launch.ram_path, "shared": True}


def _cpus(launch: Launch) -> Config:
    return {"boot_vcpus": launch.cpu, "max_vcpus": max(launch.cpu, launch.cpu_max), "nested": False}


def _platform(launch: Launch) -> Config:
    return {"serial_number": launch.serial or launch.vm_id, "uuid": guest_uuid(launch.vm_id)}


def _balloon(size: int) -> Config:
    # Free page reporting stays off: it punches holes in memory that a snapshot may share.
    return {"size": size, "deflate_on_oom": True, "free_page_reporting": False}


def _vsock(socket_path: str) -> Config:
    return {"id": "vsock0", "cid": CID, "socket": socket_path}


def config(launch: Launch, socket_path: str) -> Config:
    """All of the machine, as the API has it and as a saved one goes on with.

    :param socket_path: of the vsock.
    :raises InputError: a value that Cloud Hypervisor cannot take, naming the option.
    """
    check(launch)
    boot = launch.boot
    payload = {"kernel": boot["kernel_path"], "cmdline": boot.get("cmdline") or ""}
    if boot.get("initrd_path"):
        payload["initramfs"] = str(boot["initrd_path"])
    found: Config = {
        "cpus": _cpus(launch),
        "memory": {"size": 0, "zones": [_zone(launch)]},
        "payload": payload,
        "disks": [disk_config(disk) for disk in launch.disks],
        # Numbers of descriptors mean nothing in a file, but their count does.
        "net": [{**net_config(number, nic), "fds": [-1] * len(nic.fds)} for number, nic in enumerate(launch.nics)],
        "rng": {"src": RNG},
        "serial": {"mode": "Tty"},
        "console": {"mode": "Off"},
        "vsock": _vsock(socket_path),
        "platform": _platform(launch),
        "watchdog": launch.watchdog,
    }
    if launch.balloon is not None:
        found["balloon"] = _balloon(launch.balloon)
    return found


def _options(launch: Launch) -> list[str]:
    found = []
    if launch.balloon is not None:
        found += ["--balloon", words(_balloon(launch.balloon))]
    if launch.watchdog:
        found.append("--watchdog")
    return found


def _boot(launch: Launch) -> list[str]:
    found = ["--kernel", str(launch.boot["kernel_path"]), "--cmdline", launch.boot.get("cmdline") or ""]
    initrd = launch.boot.get("initrd_path")
    return [*found, "--initramfs", initrd] if initrd else found


def build(binary: str, launch: Launch, api: int | str, socket_path: str) -> list[str]:
    """The argument vector. What the guest writes to its serial port goes to standard output.

    :param api: the number of the listening descriptor, or the path to listen at.
    :param socket_path: of the vsock.
    :raises InputError: a value that Cloud Hypervisor cannot take, naming the option.
    """
    check(launch)
    disks = [word for disk in launch.disks for word in ("--disk", _disk_words(disk))]
    nics = [word for number, nic in enumerate(launch.nics) for word in ("--net", _nic_words(number, nic))]
    cpus = _cpus(launch)
    return [
        *_always(binary, api),
        *("--platform", words(_platform(launch))),
        *("--cpus", words({"boot": cpus["boot_vcpus"], "max": cpus["max_vcpus"], "nested": cpus["nested"]})),
        *("--memory", "size=0", "--memory-zone", words(_zone(launch))),
        *_boot(launch),
        *("--serial", "tty", "--console", "off"),
        *("--rng", words({"src": RNG})),
        *("--vsock", words(_vsock(socket_path))),
        *_options(launch),
        *disks,
        *nics,
    ]


def _always(binary: str, api: int | str) -> list[str]:
    where = words({"fd" if isinstance(api, int) else "path": api})
    return [binary, "--api-socket", where, "--seccomp", "true"]


def build_resume(binary: str, launch: Launch, api: int | str, folder: str) -> list[str]:
    """The argument vector of one that goes on from what is in *folder*, its guest running."""
    taps = [f"{nic_id(number)}@{_word(list(nic.fds))}" for number, nic in enumerate(launch.nics) if nic.fds]
    restore = f"source_url={_word(f'file://{folder}')},resume=on"
    return [*_always(binary, api), "--restore", restore + (f",net_fds=[{','.join(taps)}]" if taps else "")]
