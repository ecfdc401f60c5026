# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of VMs: made from cached templates, copied sparsely, grown offline.

Every file is written under a temporary name of its own (``<path>.tmp``; the caller holds the VM's lock), made
durable and renamed, so what bears its final name is whole. Files that a guest has written are opened without
following links, and external tools touch them only as that VM's uid.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import stat
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    ChangeRefusedError,
    InputError,
    ResourceError,
    StateError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._process import run_tool
from ansible_collections.cocoon.microvm.plugins.module_utils._sparse import copy_data, segments
from ansible_collections.cocoon.microvm.plugins.module_utils._state import (
    Store,
    flock,
    fsync_dir,
    hashed,
    locked,
    remove_file,
    remove_tree,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record, format_size

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import ImageRecord

MKFS_EXT4 = ("mkfs.ext4", "-F", "-m", "0", "-q", "-E", "lazy_itable_init=1,lazy_journal_init=1,discard")
CHUNK = 1 << 20
BLOCK = 4096
FAT_CLUSTER = 32 << 10
TEMPLATE_TIMEOUT = 60.0
TOOL_PATIENCE = 60.0
# A tool that works on a hostile file may use this much address space and processor time.
TOOL_LIMITS = ("prlimit", f"--as={2 << 30}", "--cpu=600", "--")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def create_cow(store: Store, path: str, image: ImageRecord, size: int, uid: int) -> None:
    """The writable disk of a VM that boots from layers: a sparse raw file of *size* bytes holding an ext4.

    That is empty, but for folders of the image whose attributes the layers alone would not show: ``upper`` on it is the
    topmost layer, in the Cocoon images' initramfs as in ours.

    :raises ResourceError: no space left.
    """
    folders = image.get("folders") or []
    name = f"cow-{size}.raw"
    if folders:
        name = f"cow-{images.hex_of(image['id'])}-{hashed(json.dumps(folders, sort_keys=True))[:16]}-{size}.raw"
    template = _template(store, name, lambda temporary: _format_template(temporary, size, folders))
    copy_sparse(template, path, uid)


def create_overlay(store: Store, path: str, image: ImageRecord, size: int | None, uid: int) -> int:
    """The writable disk of a VM that boots from a disk image: a qcow2 file with the image's blob behind it.

    :param size: virtual size in bytes, or ``None`` for that of the image.
    :returns: the virtual size.
    :raises InputError: *size* is below the image's.
    """
    disk = image["disk"]
    wanted = disk["virtual_size"] if size is None else size
    if wanted < disk["virtual_size"]:
        raise InputError(
            f"{format_size(wanted)} is less than the image's disk",
            "storage",
            f"Give at least {format_size(disk['virtual_size'])}.",
        )
    blob = images.blob_path(store, disk["hex"], disk["format"])
    # -u: the blob was examined when it was imported; nothing but the new file is opened here.
    command = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", disk["format"], "-b", blob]

    def make(temporary: str) -> None:
        run_tool([*command, temporary, str(wanted)], package="qemu-utils")

    template = _template(store, f"overlay-{disk['hex']}-{wanted}.qcow2", make)
    copy_sparse(template, path, uid)
    return t.cast(int, wanted)


def create_data(path: str, size: int, fstype: str, uid: int) -> None:
    """A data disk: a sparse raw file of *size* bytes with an ext4 of its own UUID, or nothing (``none``)."""
    with _new_file(path, uid) as (fd, temporary):
        os.ftruncate(fd, size)
        if fstype == "ext4":
            run_tool([*MKFS_EXT4, temporary], package="e2fsprogs")


def create_volume(path: str, label: str, files: t.Mapping[str, bytes], uid: int) -> None:
    """A small FAT file system with *files* in it, which the VM's uid may read and nobody else.

    :param label: of the file system, at most 11 characters.
    :raises ToolError: mtools is not installed.
    """
    room = sum(len(data) + FAT_CLUSTER for data in files.values())
    size = (room + 2 * CHUNK) // CHUNK * CHUNK
    with _new_file(path, uid, 0o400) as (_fd, temporary):
        # Contents go through pipes: they may be secret, and no other file ever has them.
        run_tool(["mformat", "-i", temporary, "-C", "-T", str(size // 512), "-v", label, "::"], package="mtools")
        for name, data in files.items():
            run_tool(["mcopy", "-i", temporary, "-", f"::{name}"], stdin=data, package="mtools")


def create_copy(source: str, path: str, uid: int) -> None:
    """A file of the VM's own that begins as a copy of one of the host's, such as an empty variable store."""
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with _new_file(path, uid) as (target_fd, _temporary):
            copy_data(fd, target_fd)
    finally:
        os.close(fd)


def grow(path: str, size: int, fstype: str, uid: int, disk_format: str = "raw", gid: int | None = None) -> None:
    """Make the disk of a VM that does not run larger, and the ext4 on it; doing it again is fine.

    :param disk_format: ``raw`` or ``qcow2``.
    :param gid: for qcow2, the group that may read the blob behind it.
    :raises ChangeRefusedError: the file is larger than *size* already.
    """
    if disk_format == "qcow2":
        _guest_tool(["qemu-img", "resize", "-q", "-f", "qcow2", path, str(size)], uid, gid, "qemu-utils")
        return
    fd = open_disk(path, uid)
    try:
        _claim(fd, path)
        present = os.fstat(fd).st_size
        if present > size:
            raise ChangeRefusedError(
                f"{path} has {format_size(present)}, it cannot shrink to {format_size(size)}",
                remedy="Disks only grow; make a new one.",
            )
        os.ftruncate(fd, size)
        os.fsync(fd)
        if fstype == "ext4":
            _guest_tool(["e2fsck", "-fp", path], uid, gid, "e2fsprogs", ok=(0, 1), fds=(fd,))
            _guest_tool(["resize2fs", path], uid, gid, "e2fsprogs", fds=(fd,))
    finally:
        os.close(fd)


def _claim(fd: int, path: str) -> None:
    """Hold a disk as long as *fd* is open anywhere; tools inherit it, so they hold it when we are killed.

    :raises BusyError: one of them is still at work.
    """
    flock(fd, f"the disk {path}", time.monotonic() + TOOL_PATIENCE, TOOL_PATIENCE)


def await_tools(path: str, uid: int) -> None:
    """Return once no tool of a run that was killed is at work on a disk.

    :raises BusyError: it takes too long.
    """
    fd = open_disk(path, uid, os.O_RDONLY)
    try:
        _claim(fd, path)
    finally:
        os.close(fd)


def open_disk(path: str, uid: int, flags: int = os.O_RDWR) -> int:
    """A descriptor of a VM's disk, proven to be a regular file of that VM.

    :raises StateError: it is something else.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise StateError(f"cannot open the disk {path}: {exc.strerror}") from exc
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_uid == uid:
        return fd
    os.close(fd)
    raise StateError(f"{path} is not a regular file of uid {uid}")


def copy_sparse(source: str, target: str, uid: int | None = None, mode: int = 0o600) -> None:
    """Copy a file: by reflink where the file system can, else only its data, keeping the holes.

    :param uid: owner and group of the copy; root if not given.
    """
    source_fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(source_fd).st_mode):
            raise StateError(f"{source} is not a regular file")
        with _new_file(target, uid, mode) as (target_fd, _temporary):
            copy_data(source_fd, target_fd)
    finally:
        os.close(source_fd)


@contextlib.contextmanager
def _new_file(path: str, uid: int | None, mode: int = 0o600) -> t.Iterator[tuple[int, str]]:
    """(descriptor, temporary name) of a file that becomes *path* when the block ends well."""
    temporary = f"{path}.tmp"
    remove_file(temporary)  # of a run that was killed
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield fd, temporary
        os.fchown(fd, uid or 0, uid or 0)
        os.fchmod(fd, mode)
        os.fsync(fd)
        os.rename(temporary, path)
    except BaseException as exc:
        remove_file(temporary)
        if isinstance(exc, OSError) and exc.errno in NO_SPACE:
            raise ResourceError(
                f"no space left for {path}", "root_dir", "Free some, or put root_dir on a larger file system."
            ) from exc
        raise
    finally:
        os.close(fd)
    fsync_dir(os.path.dirname(path))


def _template(store: Store, name: str, make: t.Callable[[str], None]) -> str:
    """The path of a template, made by *make* at its first use."""
    directory = images.directory(store.paths, "templates")
    path = os.path.join(directory, name)
    if os.path.exists(path):
        return path
    images.make_directories(store.paths)
    with locked(store.paths, [f"image:#template/{name}"], TEMPLATE_TIMEOUT):
        if os.path.exists(path):
            return path
        with _new_file(path, None, 0o400) as (fd, temporary):
            make(temporary)
            _dig_holes(fd)
    return path


def _format_template(path: str, size: int, folders: t.Sequence[Record]) -> None:
    os.truncate(path, size)
    if not folders:
        run_tool([*MKFS_EXT4, path], package="e2fsprogs")
        return
    tree = f"{path}.tree"
    remove_tree(tree)  # of a run that was killed
    try:
        _make_folders(tree, folders)
        run_tool([*MKFS_EXT4, "-d", tree, path], package="e2fsprogs")
    finally:
        remove_tree(tree)


def _make_folders(tree: str, folders: t.Sequence[Record]) -> None:
    """A folder with ``upper`` in it, and in that *folders*, parents first: what ext4 is to begin with."""
    os.mkdir(tree, 0o700)
    upper = os.path.join(os.fsencode(tree), b"upper")
    os.mkdir(upper)
    for place in (os.fsencode(tree), upper):
        os.chmod(place, 0o755)
    for folder in folders:
        place = os.path.join(upper, folder["path"].encode("utf-8", "surrogateescape"))
        os.mkdir(place)
        os.chown(place, folder["uid"], folder["gid"])
        os.chmod(place, folder["mode"])
        for key, value in folder["xattrs"].items():
            os.setxattr(place, key.encode("utf-8", "surrogateescape"), base64.b64decode(value))
    for folder in folders:  # times as in the layers; last, as each folder changes that of the one it is in
        os.utime(os.path.join(upper, folder["path"].encode("utf-8", "surrogateescape")), (0, 0))


def _dig_holes(fd: int) -> None:
    """Turn written zeros into holes: a template is copied often, and mkfs writes zeros by the megabyte."""
    size = os.fstat(fd).st_size
    keep = []
    for start, end in list(segments(fd, size)):
        for position in range(start, end, BLOCK):
            block = os.pread(fd, min(BLOCK, end - position), position)
            if block.count(0) != len(block):
                keep.append((position, block))
    os.ftruncate(fd, 0)
    os.ftruncate(fd, size)
    for position, block in keep:
        os.pwrite(fd, block, position)


def _guest_tool(
    argv: list[str],
    uid: int,
    gid: int | None,
    package: str,
    ok: t.Container[int] = (0,),
    fds: t.Sequence[int] = (),
) -> None:
    """Run a tool on a file that a guest may have written: as the VM's uid, with little memory and time."""
    # The VM's directory is open to its own group; another one comes beside it.
    groups = [] if gid is None else [gid]
    run_tool([*TOOL_LIMITS, *argv], uid=uid, groups=groups, timeout=660.0, package=package, ok=ok, fds=fds)
