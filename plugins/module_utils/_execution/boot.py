# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a VM boots from: kernel command line, disks and login data, derived from its record and image.

The command line, the serials and the device order are the Cocoon contract for direct boot.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._network import settings
from ansible_collections.cocoon.microvm.plugins.module_utils._types import BootConfig, Record, host_name

COW_SERIAL = "cocoon-cow"
# What an x86 kernel takes; it would cut off the rest.
MAX_COMMAND_LINE = 2047


def layer_serials(image: Record) -> list[str]:
    """Serials of the image's layers, bottom first."""
    return [f"cocoon-layer{index}" for index in range(len(image["layers"]))]


def kernel_command_line(record: Record, image: Record) -> str:
    """The command line for QEMU's direct boot; the layers are named top first.

    :raises InputError: it is longer than a kernel takes.
    """
    parts = [
        "console=ttyS0",
        "loglevel=3",
        "boot=cocoon-overlay",
        f"cocoon.layers={','.join(reversed(layer_serials(image)))}",
        f"cocoon.cow={COW_SERIAL}",
        "rw",
    ]
    if record.get("accel") == "tcg":
        # On a busy host the timer's interrupts may come too late for the kernel's test of them, and it gives up. With
        # KVM it does not test.
        parts.append("no_timer_check")
    nics = settings.settings_of(record)
    name = host_name(record)
    if nics:
        parts.append("net.ifnames=0")
    # Cocoon says it with NICs only. A guest without any has a name as well.
    parts.append(f"cocoon.hostname={name}")
    parts += settings.kernel_words(nics, name)
    if record.get("kernel_args"):
        parts.append(record["kernel_args"])
    line = " ".join(parts)
    if len(line) > MAX_COMMAND_LINE:
        raise InputError(
            f"VM '{name}' has a kernel command line of {len(line)} characters, and kernels take {MAX_COMMAND_LINE}",
            "kernel_args, nics",
            "Give fewer arguments and routes.",
        )
    return line


def boot_config(record: Record, image: Record) -> BootConfig:
    """Kernel, initrd and command line, or nothing for a disk image (which brings its own)."""
    boot = image.get("boot")
    if image["type"] != "oci" or not boot:
        return {}
    return {
        "kernel_path": boot["kernel_path"],
        "initrd_path": boot["initrd_path"],
        "cmdline": kernel_command_line(record, image),
    }


def system_disk(record: Record, paths: Paths) -> str:
    name = "cow.raw" if record.get("image_type", "oci") == "oci" else "overlay.qcow2"
    return os.path.join(paths.vm_dir(record["id"]), name)


def ram_path(record: Record, paths: Paths) -> str:
    """The file of a running guest's memory: on the tmpfs, or on the disk for snapshots by reflink."""
    if record.get("memory_backing") == "disk":
        return os.path.join(paths.vm_dir(record["id"]), "ram")
    return paths.ram_file(record["id"])


def data_disk(vm_id: str, name: str, paths: Paths) -> str:
    return os.path.join(paths.vm_dir(vm_id), f"data-{name}.raw")


def firmware_vars(vm_id: str, paths: Paths) -> str:
    """The file with the variables of a VM's UEFI."""
    return os.path.join(paths.vm_dir(vm_id), "OVMF_VARS.fd")


def storage_configs(
    record: Record,
    image: Record,
    paths: Paths,
    blob: t.Callable[[str], str],
    volume: Record | None = None,
) -> list[Record]:
    """All disks in device order: layers bottom first, the system disk, the volume for the first boot, data disks.

    :param blob: gives the path of an EROFS layer by its digest.
    :param volume: the entry of that volume, if there is one.
    """
    configs: list[Record] = []
    if image["type"] == "oci":
        for serial, digest in zip(layer_serials(image), image["layers"]):
            configs.append({"path": blob(digest), "ro": True, "serial": serial})
    configs.append({"path": system_disk(record, paths), "ro": False, "serial": COW_SERIAL})
    if volume is not None:
        configs.append(volume)
    for disk in record.get("data_disks") or []:
        configs.append({"path": data_disk(record["id"], disk["name"], paths), "ro": False, "serial": disk["name"]})
    return configs
