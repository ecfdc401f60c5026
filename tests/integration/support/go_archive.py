# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshot archives in the form that the Go engine gives them, field for field as two real ones have it.

Their disks are real, and their memory is not.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BLOCK = 4096
OCI = "/var/lib/cocoon/oci"
MACHINES = {
    "cloud-hypervisor": ("cloudhypervisor", ("config.json", "memory-ranges", "state.json")),
    "firecracker": ("firecracker", ("mem", "vmstate")),
}
SIZES = {"cow.raw": 64 << 20, "data-data.raw": 16 << 20}


def disk(folder: Path, name: str, content: Mapping[str, str]) -> bytes:
    """An ext4 file system with some files in it, as large as SIZES has it."""
    tree = folder / f"{name}.tree"
    for path, text in content.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text, encoding="utf-8")
    path = folder / name
    with path.open("wb") as stream:
        stream.truncate(SIZES[name])
    subprocess.run(["mkfs.ext4", "-F", "-q", "-m0", "-d", tree, path], check=True)
    return path.read_bytes()


def documents(hypervisor: str, layer: str, digest: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """``snapshot.json`` and ``cocoon.json``.

    :param layer: hex of the image's only layer. :param digest: of the image.
    """
    kind = MACHINES[hypervisor][0]
    run = f"/var/lib/cocoon/run/{kind}/7PKDP2OXMAABYVQ2FDOMTVV76B"
    config = {
        **{"cpu": 1, "memory": 128 << 20, "storage": SIZES["cow.raw"], "image": "tiny"},
        **{"image_digest": digest, "image_type": "oci", "network": "lab", "id": "ULZUYZSL574AXCMK65AGBBVXF6"},
        **{"name": "s-g1", "image_blob_ids": {layer: {}}, "hypervisor": hypervisor, "nics": 1},
    }
    storage = [
        {"path": f"{OCI}/blobs/{layer}.erofs", "ro": True, "serial": "cocoon-layer0", "role": "layer"},
        {"path": f"{run}/cow.raw", "ro": False, "serial": "cocoon-cow", "role": "cow"},
        {"path": f"{run}/data-data.raw", "ro": False, "serial": "data", "role": "data", "fstype": "ext4",
         "mount_point": "/mnt/data"},
    ]  # fmt: skip
    boot = {"kernel_path": f"{OCI}/boot/{layer}/vmlinuz", "initrd_path": f"{OCI}/boot/{layer}/initrd.img"}
    more = {"cpu": 1, "memory": 128 << 20} if kind == "firecracker" else {}
    return {"config": config, "version": 1}, {"storage_configs": storage, "boot_config": boot, **more}


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file with its holes left out: blocks of zeros."""
    blocks = [content[start : start + BLOCK] for start in range(0, len(content), BLOCK)]
    segments: list[dict[str, int]] = []
    for number, block in enumerate(blocks):
        if not block.strip(b"\0"):
            continue
        start = number * BLOCK
        if segments and segments[-1]["o"] + segments[-1]["l"] == start:
            segments[-1]["l"] += len(block)
        else:
            segments.append({"o": start, "l": len(block)})
    info = tarfile.TarInfo(name)
    data = b"".join(content[part["o"] : part["o"] + part["l"]] for part in segments)
    if len(data) < len(content):
        table = json.dumps(segments or None, separators=(",", ":"))
        info.pax_headers = {"COCOON.sparse.map": table, "COCOON.sparse.size": str(len(content))}
    info.size, info.mode = len(data), 0o600
    tar.addfile(info, io.BytesIO(data))


def write(path: Path, hypervisor: str, layer: str, digest: str, **config: Any) -> Path:
    """An archive of a VM of an image of one layer; its guest has a file /root/note, and one on a data disk.

    :param path: where it is to be; beside it its disks are made.
    :param config: fields of ``snapshot.json`` that are to be otherwise.
    """
    envelope, sidecar = documents(hypervisor, layer, digest)
    envelope["config"].update(config)
    files = {
        "cocoon.json": json.dumps(sidecar).encode(),
        "cow.raw": disk(path.parent, "cow.raw", {"upper/root/note": "of the Go engine\n"}),
        "data-data.raw": disk(path.parent, "data-data.raw", {"note": "of the Go engine\n"}),
        **dict.fromkeys(MACHINES[hypervisor][1], b"of the machine" + bytes(2 * BLOCK)),
    }
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT, compresslevel=1) as tar:
        info = tarfile.TarInfo("snapshot.json")
        content = json.dumps(envelope, indent=2).encode()
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
        for name in sorted(files):
            add(tar, name, files[name])
    return path
