# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file system with reflinks to measure on, and what files really take on one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from common import run, say
from results import first_line
from versus import packages

# Sparse: it takes what is written.
IMAGE_SIZE = 24 << 30
FIEMAP = 0xC020660B
HEAD, EXTENT = struct.Struct("=QQLLLL"), struct.Struct("=QQQQQLLLL")
EXTENTS = 256
SYNC, LAST, SHARED = 1, 1, 0x2000


def kind_of(folder: Path) -> str:
    """The type of the file system that a folder lies on."""
    return first_line("findmnt", "-no", "FSTYPE", "-T", str(folder))


@contextlib.contextmanager
def xfs(scratch: Path) -> Iterator[Path]:
    """An XFS with reflinks in a file below the scratch folder, mounted there until the end of the block."""
    packages(["xfsprogs"])
    image, folder = scratch / "xfs.img", scratch / "xfs"
    with image.open("wb") as stream:
        stream.truncate(IMAGE_SIZE)
    folder.mkdir()
    run(["mkfs.xfs", "-q", "-m", "reflink=1", image], quiet=True)
    run(["mount", "-o", "loop", image, folder], quiet=True)
    try:
        folder.chmod(0o711)
        yield folder
    finally:
        # With what the engine mounts below it. Where hypervisors are left after a failure this fails, and the bench's
        # own cleaning ends them and detaches it.
        if run(["umount", "-R", folder], check=False, quiet=True).returncode:
            say(f"   {folder} is still in use")
        else:
            image.unlink()


def copy(source: Path, target: Path) -> None:
    """A plain copy of a file's data, holes kept, by sendfile: as quick as one can be without reflinks."""
    with source.open("rb") as reader, target.open("xb") as writer:
        size = os.fstat(reader.fileno()).st_size
        os.ftruncate(writer.fileno(), size)
        position = 0
        while position < size:
            try:
                position = os.lseek(reader.fileno(), position, os.SEEK_DATA)
            except OSError:  # only a hole is left
                return
            end = os.lseek(reader.fileno(), position, os.SEEK_HOLE)
            os.lseek(writer.fileno(), position, os.SEEK_SET)
            while position < end:
                position += os.sendfile(writer.fileno(), reader.fileno(), position, end - position)


def flush(folder: Path) -> None:
    """Have nothing left to write on a file system, so that what is measured next is not disturbed by it."""
    run(["sync", "-f", folder], quiet=True)


def written(folder: Path) -> int:
    """Bytes of blocks that the files below a folder have to themselves: no hard links, no extents that are shared."""
    total = 0
    for parent, _folders, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            info = os.lstat(path)
            if stat.S_ISREG(info.st_mode) and info.st_nlink == 1:
                total += unshared(path)
    return total


def unshared(path: str) -> int:
    """Bytes in a file's extents that no other file has."""
    total = position = 0
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while True:
            buffer = bytearray(HEAD.pack(position, (1 << 64) - 1 - position, SYNC, 0, EXTENTS, 0))
            buffer += bytes(EXTENTS * EXTENT.size)
            fcntl.ioctl(fd, FIEMAP, buffer)
            count = HEAD.unpack_from(buffer)[3]
            flags = LAST
            for number in range(count):
                extent = EXTENT.unpack_from(buffer, HEAD.size + number * EXTENT.size)
                logical, length, flags = extent[0], extent[2], extent[-4]
                total += 0 if flags & SHARED else length
                position = logical + length
            if flags & LAST:
                return total
    finally:
        os.close(fd)
