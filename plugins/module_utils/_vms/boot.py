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
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import settings
from ansible_collections.cocoon.microvm.plugins.module_utils._records import storage_role
from ansible_collections.cocoon.microvm.plugins.module_utils._types import host_name

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import BootStyle
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import (
        BootConfig,
        DataDisk,
        ImageRecord,
        StorageConfig,
        VmRecord,
    )

PANIC_SECONDS = 5
COW_SERIAL = "cocoon-cow"
CIDATA_SERIAL = "cocoon-cidata"
# What an x86 kernel takes; it would cut off the rest.
MAX_COMMAND_LINE = 2047


def layer_serials(image: ImageRecord) -> list[str]:
    """Serials of the image's layers, bottom first."""
    return [f"cocoon-layer{index}" for index in range(len(image["layers"]))]


def kernel_command_line(record: VmRecord, image: ImageRecord, style: BootStyle, limit: int = MAX_COMMAND_LINE) -> str:
    """The command line for a direct boot; the layers are named top first.

    :param limit: characters that the machine has room for.
    :raises InputError: it is longer.
    """
    disks = [*layer_serials(image), COW_SERIAL]
    if style.disks == "path":
        disks = [disk_path(place) for place in range(len(disks))]
    parts = [
        f"console={style.console}",
        "loglevel=3",
        # A kernel that gives up would stand still for ever: it boots again, and its console says why.
        f"panic={PANIC_SECONDS}",
        "boot=cocoon-overlay",
        f"cocoon.layers={','.join(reversed(disks[:-1]))}",
        f"cocoon.cow={disks[-1]}",
        "rw",
        *style.words,
    ]
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
    if len(line) > limit:
        raise InputError(
            f"VM '{name}' has a kernel command line of {len(line)} characters, and it takes {limit}",
            "kernel_args, nics",
            "Give fewer arguments and routes.",
        )
    return line


def disk_path(place: int) -> str:
    """``/dev/vda`` for the first disk, ``/dev/vdaa`` for the 27th: by bijective letters, as the kernel counts."""
    name, rest = "", place + 1
    while rest:
        rest, letter = divmod(rest - 1, 26)
        name = chr(ord("a") + letter) + name
    return f"/dev/vd{name}"


def boot_config(record: VmRecord, image: ImageRecord, style: BootStyle, limit: int = MAX_COMMAND_LINE) -> BootConfig:
    """Kernel, initrd and command line, or nothing for a disk image (which brings its own)."""
    boot = image.get("boot")
    if image["type"] != "oci" or not boot:
        return {}
    return {
        "kernel_path": boot["kernel_path"],
        "initrd_path": boot["initrd_path"],
        "cmdline": kernel_command_line(record, image, style, limit),
    }


def system_disk(record: VmRecord, paths: Paths) -> str:
    name = "cow.raw" if record.get("image_type", "oci") == "oci" else "overlay.qcow2"
    return os.path.join(paths.vm_dir(record["id"]), name)


def ram_path(record: VmRecord, paths: Paths) -> str:
    """The file of a running guest's memory: on the tmpfs, or on the disk for snapshots by reflink."""
    if record.get("memory_backing") == "disk":
        return os.path.join(paths.vm_dir(record["id"]), "ram")
    return paths.ram_file(record["id"])


def data_disk(vm_id: str, name: str, paths: Paths) -> str:
    return os.path.join(paths.vm_dir(vm_id), f"data-{name}.raw")


def cidata_volume(vm_id: str, paths: Paths) -> str:
    """The volume that a disk image is given for its first boot, see ``cidata``."""
    return os.path.join(paths.vm_dir(vm_id), "cidata.img")


def storage_configs(record: VmRecord, image: ImageRecord, paths: Paths) -> list[StorageConfig]:
    """All disks in device order: layers bottom first, the system disk, data disks, the volume for the first boot."""
    disks = {disk["name"]: disk for disk in record.get("data_disks") or []}
    blobs = os.path.join(paths.images, "blobs")
    layers = zip(image["layers"], layer_serials(image))
    found = [(os.path.join(blobs, f"{layer}.erofs"), serial) for layer, serial in layers]
    found.append((system_disk(record, paths), COW_SERIAL))
    found += [(data_disk(record["id"], name, paths), name) for name in disks]
    volume = cidata_volume(record["id"], paths)
    if os.path.lexists(volume):
        found.append((volume, CIDATA_SERIAL))
    return [_storage_config(path, serial, disks) for path, serial in found]


def _storage_config(path: str, serial: str, disks: t.Mapping[str, DataDisk]) -> StorageConfig:
    role = storage_role(serial, disks)
    return {"path": path, "ro": role["role"] in ("layer", "cidata"), "serial": serial, **role}
