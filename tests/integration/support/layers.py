# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Layers made by hand, what a guest sees of them, and what umoci makes of the same."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.cocoon.microvm.plugins.module_utils import _disks
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store

DIR, REG, CHR, SYM, LNK = tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.CHRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def layer(*entries: tuple[Any, ...]) -> bytes:
    """A layer out of (name, type, data or link[, other fields of its header])."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as target:
        for name, kind, what, *more in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.mode = 0o755
            if isinstance(what, str):
                info.linkname, data = what, b""
            else:
                data = what
            info.size = len(data)
            for key, value in (more[0] if more else {}).items():
                setattr(info, key, value)
            target.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def make_layout(target: Path, *layers: bytes, tag: str = "v1", plain: tuple[bytes, ...] = (), **changes: Any) -> Path:
    """An OCI layout of these layers, which are *plain* without compression, or so the config says."""
    blobs = target / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(data: bytes, media: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)}

    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = {
        "architecture": machine,
        "os": "linux",
        "rootfs": {
            "type": "layers",
            "diff_ids": ["sha256:" + hashlib.sha256(data).hexdigest() for data in plain or layers],
        },
    }
    manifest = {
        "schemaVersion": 2,
        "config": put(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [put(data, "application/vnd.oci.image.layer.v1.tar") for data in layers],
        **changes,
    }
    descriptor = put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    descriptor["annotations"] = {"org.opencontainers.image.ref.name": tag}
    index = {"schemaVersion": 2, "manifests": []}
    if (target / "index.json").exists():
        index = json.loads((target / "index.json").read_text())
    index["manifests"].append(descriptor)
    (target / "index.json").write_text(json.dumps(index))
    (target / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return target


def portrait(root: Path) -> dict[str, Any]:
    """All that a guest sees of a tree, times apart."""
    seen: dict[str, Any] = {}
    first: dict[int, str] = {}
    for place, folders, names in os.walk(root):
        folders.sort()
        for name in [".", *sorted(folders), *sorted(names)]:
            path = os.path.join(place, name) if name != "." else place
            relative = os.path.relpath(path, root)
            status = os.lstat(path)
            what: list[Any] = [stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid]
            if stat.S_ISREG(status.st_mode):
                what += [status.st_nlink, first.setdefault(status.st_ino, relative)]
                what.append(hashlib.sha256(Path(path).read_bytes()).hexdigest())
            elif stat.S_ISLNK(status.st_mode):
                what.append(os.readlink(path))
            elif not stat.S_ISDIR(status.st_mode):
                what.append(status.st_rdev)
            what.append({key: os.getxattr(path, key, follow_symlinks=False) for key in xattrs(path)})
            seen[relative] = what
    return seen


def xattrs(path: str) -> list[str]:
    return sorted(key for key in os.listxattr(path, follow_symlinks=False) if key != "security.selinux")


@contextlib.contextmanager
def mounted(blob: str, work: Path, kind: str = "erofs", options: str = "ro,loop") -> Iterator[Path]:
    place = work / f"mount-{time.monotonic_ns()}"
    place.mkdir()
    subprocess.run(["mount", "-t", kind, "-o", options, blob, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def layer_blobs(paths: Paths, image: dict[str, Any]) -> list[str]:
    return [os.path.join(images.directory(paths, "blobs"), f"{digest}.erofs") for digest in image["layers"]]


def overlay_portrait(paths: Paths, image: dict[str, Any], work: Path) -> dict[str, Any]:
    """What a guest sees of all layers of an image."""
    with contextlib.ExitStack() as stack:
        blobs = layer_blobs(paths, image)
        for number, blob in enumerate(blobs):
            if blob in blobs[:number]:  # in a guest it is another disk; here it would be the same mount
                blobs[number] = str(shutil.copy(blob, work / f"copy-{number}"))
        lower = [str(stack.enter_context(mounted(blob, work))) for blob in blobs]
        place = work / "merged"
        place.mkdir(exist_ok=True)
        if len(lower) == 1:
            return portrait(Path(lower[0]))
        option = "lowerdir=" + ":".join(reversed(lower))
        subprocess.run(["mount", "-t", "overlay", "-o", option, "overlay", place], check=True)
        try:
            return portrait(place)
        finally:
            subprocess.run(["umount", place], check=True)


def guest_portrait(store: Store, image: dict[str, Any], work: Path, options: str = "") -> dict[str, Any]:
    """What a guest sees with a disk of its own on top, as an initramfs puts them together with *options*."""
    record = images.resolve(store, image["id"])
    disk = work / f"cow-{time.monotonic_ns()}.raw"
    assert record
    _disks.create_cow(store, str(disk), record, 64 << 20, 0)
    with contextlib.ExitStack() as stack:
        blobs = layer_blobs(store.paths, image)
        lower = [str(stack.enter_context(mounted(blob, work))) for blob in blobs]
        cow = stack.enter_context(mounted(str(disk), work, "ext4", "loop"))
        for name in ("upper", "work"):
            (cow / name).mkdir(exist_ok=True)
        (work / "merged").mkdir(exist_ok=True)
        layers = f"lowerdir={':'.join(reversed(lower))},upperdir={cow}/upper,workdir={cow}/work{options}"
        subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", work / "merged"], check=True)
        stack.callback(subprocess.run, ["umount", work / "merged"], check=True)
        return portrait(work / "merged")


def without_links(seen: dict[str, Any]) -> dict[str, Any]:
    """Hard links between layers are copies: leave counts and partners out. umoci marks what it unpacks."""
    plain = {}
    for path, what in seen.items():
        attributes = {key: value for key, value in what[-1].items() if not key.startswith("user.rootlesscontainers")}
        kept = what[:4] + what[6:] if stat.S_ISREG(what[0]) else what
        plain[path] = [*kept[:-1], attributes]
    return plain


def umoci_portrait(layout: Path, work: Path, tag: str = "v1", links: bool = False) -> dict[str, Any]:
    bundle = work / "reference"
    subprocess.run(["umoci", "unpack", "--image", f"{layout}:{tag}", bundle], check=True, capture_output=True)
    try:
        found = portrait(bundle / "rootfs")
        return found if links else without_links(found)
    finally:
        shutil.rmtree(bundle)
