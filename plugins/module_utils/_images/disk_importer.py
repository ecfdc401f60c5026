# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes a disk into the store: copied with its holes, and looked at again where nobody else can change it.

A VMDK is made a qcow2 first, which hypervisors write on top of.
"""

from __future__ import annotations

import dataclasses
import json
import os

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, InputError, ToolError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import (
    detect,
    partitions,
    references,
    streams,
    vmdk,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._images.kinds import Disk, Qcow2Disk, VmdkDisk
from ansible_collections.cocoon.microvm.plugins.module_utils._images.layer import Job, open_file
from ansible_collections.cocoon.microvm.plugins.module_utils._images.source import too_large
from ansible_collections.cocoon.microvm.plugins.module_utils._images.staging import publish
from ansible_collections.cocoon.microvm.plugins.module_utils._process import run_tool
from ansible_collections.cocoon.microvm.plugins.module_utils._progress import Stage
from ansible_collections.cocoon.microvm.plugins.module_utils._state import read_json, write_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

SPARSE_BLOCK = 64 << 10
# qemu-img on a file from elsewhere: little memory, little time.
INFO_LIMITS = ("prlimit", f"--as={1 << 30}", "--cpu=30", "--")
# To unpack and write all of a disk takes more.
CONVERT_SECONDS = 3600


def take(job: Job, main: Disk) -> Record:
    """The file of a disk, made if it is not there; what it is, for the record of its image."""
    if isinstance(main, VmdkDisk):
        main = _converted(job, main)
    store = job.store
    references.note(store, job.sources.image_id, [(main.digest, main.kind)])
    with references.blob_lock(store, main.digest, job.timeout):
        references.refer(store, main.digest, job.sources.image_id)
        target = images.blob_path(store, main.digest, main.kind)
        known = read_json(images.blob_path(store, main.digest, "json"))
        if not known or not os.path.isfile(target):
            known = _taken(job, main, target)
    return {"hex": main.digest, "format": main.kind, **known}


def _taken(job: Job, main: Disk, target: str) -> Record:
    """Copy a disk, holes kept, and look at the copy: the original may change under our eyes."""
    copy = _brought(job, main, "disk")
    size = os.path.getsize(copy)
    with open(copy, "rb") as stream:
        head = stream.read(partitions.TABLE)
    gid = images.blob_gid(job.store, main.digest)
    virtual_size = (size + 511) // 512 * 512
    if isinstance(main, Qcow2Disk):
        virtual_size = detect.check_qcow2(head[: detect.HEAD], main.name)
        os.chown(copy, 0, gid)
        os.chmod(copy, 0o440)
        _ask_qemu(copy, gid, main.name)
        head = _first_sectors(copy, os.path.join(job.workspace, "table"), gid)
    detect.check_sectors(head, main.name)
    found = {"virtual_size": virtual_size, "firmware": partitions.firmware(head)}
    write_json(images.blob_path(job.store, main.digest, "json"), found)
    publish(copy, target, gid)
    return found


def _brought(job: Job, main: Disk, name: str) -> str:
    """The path of a disk in the workspace."""
    copy = os.path.join(job.workspace, name)
    if main.owned:  # a download, verified, that nobody else has: no need to copy it
        os.rename(main.path, copy)
    else:
        _copy(main, copy, job.told.stage(f"copying {main.name}", os.path.getsize(main.path)))
    return copy


def _converted(job: Job, main: VmdkDisk) -> Qcow2Disk:
    """A qcow2 of the same content, by an unprivileged qemu-img, which is shown what names no other file.

    :raises InputError: the disk is damaged, or has more than the job's limit of bytes.
    """
    uid = images.blob_gid(job.store, main.digest)
    vmdk_path, output = _brought(job, main, "vmdk"), os.path.join(job.workspace, "converted")
    with open(vmdk_path, "rb") as stream:
        vmdk.check(stream.fileno(), main.name)
    os.chown(vmdk_path, 0, uid)
    os.chmod(vmdk_path, 0o440)
    fd = os.open(output, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchown(fd, uid, uid)
        with job.told.stage(f"converting {main.name}").noted("to qcow2"):
            _run_conversion(vmdk_path, output, uid, main.name, job.limit)
        os.fchown(fd, 0, 0)
        digest = streams.file_digest(fd)
    finally:
        os.close(fd)
    os.unlink(vmdk_path)
    return Qcow2Disk(**{**dataclasses.asdict(main), "path": output, "digest": digest, "owned": True})


def _run_conversion(path: str, output: str, uid: int, name: str, limit: int) -> None:
    limits = ("prlimit", f"--as={2 << 30}", f"--cpu={CONVERT_SECONDS}", f"--fsize={limit}", "--")
    words = ["qemu-img", "convert", "-f", "vmdk", "-O", "qcow2", path, output]
    try:
        run_tool([*limits, *words], uid=uid, gid=uid, timeout=2.0 * CONVERT_SECONDS, package="qemu-utils")
    except ToolError as exc:
        if "File too large" in exc.message:
            raise too_large(f"the disk in {name}", limit) from exc
        raise _unreadable(name, exc) from exc


def _unreadable(name: str, exc: ToolError) -> CocoonError:
    """What to raise where qemu-img failed: mostly the disk is to blame."""
    if any(words in exc.message for words in ("is not installed", "No such file", "did not finish")):
        return exc
    return InputError(f"qemu-img cannot read {name}: {exc.message}", "source", "Get it again.")


def _copy(main: Disk, copy: str, stage: Stage) -> None:
    with open_file(main.path) as raw:
        hashing = streams.HashingReader(raw, stage.advance)
        fd = os.open(copy, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "r+b", buffering=0) as stream:
            while data := hashing.read(SPARSE_BLOCK):
                if data.count(0) == len(data):
                    stream.seek(len(data), os.SEEK_CUR)
                else:
                    stream.write(data)
            stream.truncate(hashing.count)
    if hashing.hexdigest() != main.digest:
        raise InputError(f"{main.path} changed while it was read", "source", "Wait until it is complete.")


def _first_sectors(copy: str, output: str, uid: int) -> bytes:
    """The first sectors of the disk in a qcow2 file, by an unprivileged qemu-img: they may be compressed."""
    fd = os.open(output, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchown(fd, uid, uid)
        size = f"bs={partitions.TABLE}"
        words = ["qemu-img", "dd", "-f", "qcow2", "-O", "raw", size, "count=1", f"if={copy}", f"of={output}"]
        run_tool([*INFO_LIMITS, *words], uid=uid, gid=uid, timeout=60.0, package="qemu-utils")
        return os.pread(fd, partitions.TABLE, 0)
    except ToolError:
        return b""  # it is known to be sound: a disk that is too small for a partition table
    finally:
        os.close(fd)


def _ask_qemu(copy: str, uid: int, name: str) -> None:
    """A second opinion on a qcow2 file, of an unprivileged qemu-img.

    :raises InputError: it finds another file behind this one, or cannot read it.
    """
    command = [*INFO_LIMITS, "qemu-img", "info", "-f", "qcow2", "--output=json", copy]
    try:
        answer = json.loads(run_tool(command, uid=uid, gid=uid, timeout=60.0, package="qemu-utils"))
    except ToolError as exc:
        raise _unreadable(name, exc) from exc
    data_file = ((answer.get("format-specific") or {}).get("data") or {}).get("data-file")
    if answer.get("format") != "qcow2" or answer.get("backing-filename") or data_file or answer.get("encrypted"):
        raise InputError(
            f"{name} refers to other files or is encrypted", "source", "Make it whole with 'qemu-img convert -O qcow2'."
        )
