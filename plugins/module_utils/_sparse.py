# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copying files that are mostly holes: by reflink, else only what is data."""

from __future__ import annotations

import errno
import fcntl
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import StateError

FICLONE = 0x40049409
BLOCK = 4096
NO_CLONE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ETXTBSY)


def copy_data(source_fd: int, target_fd: int) -> None:
    """The contents of *source_fd* into the empty file *target_fd*, holes kept."""
    try:
        fcntl.ioctl(target_fd, FICLONE, source_fd)
        return
    except OSError as exc:
        if exc.errno not in NO_CLONE:
            raise
    size = os.fstat(source_fd).st_size
    os.ftruncate(target_fd, size)
    for start, end in segments(source_fd, size):
        _copy_range(source_fd, target_fd, start, end)


def segments(fd: int, size: int) -> t.Iterator[tuple[int, int]]:
    """(start, end) of each stretch of data in a file."""
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return
            raise
        position = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, position


def _copy_range(source_fd: int, target_fd: int, start: int, end: int) -> None:
    by_kernel = True
    while start < end:
        if by_kernel:
            try:
                done = os.copy_file_range(source_fd, target_fd, end - start, start, start)
            except OSError as exc:
                if exc.errno not in NO_CLONE:
                    raise
                by_kernel = False
                continue
        else:  # other file systems on either side: the page cache copies
            os.lseek(target_fd, start, os.SEEK_SET)
            done = os.sendfile(target_fd, source_fd, start, end - start)
        if done == 0:
            raise StateError("a disk became shorter while it was copied")
        start += done


def can_clone(directory: str) -> bool:
    """Whether the file system of *directory* has reflinks, so that a copy costs nothing."""
    flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
    opened: list[int] = []
    try:
        opened += [os.open(directory, flags, 0o600) for _number in range(2)]
        os.pwrite(opened[0], bytes(BLOCK), 0)
        fcntl.ioctl(opened[1], FICLONE, opened[0])
    except OSError:
        return False
    finally:
        for fd in opened:
            os.close(fd)
    return True
