# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where an import works: one directory a run, locked while the run lives, removed by the next one if it died."""

from __future__ import annotations

import contextlib
import fcntl
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, fsync_dir, locked, remove_tree
from ansible_collections.cocoon.microvm.plugins.module_utils._types import new_id

# Held for the blink between making a directory and locking it.
LOCK = "image:#staging"


@contextlib.contextmanager
def staging(store: Store, timeout: float) -> t.Iterator[str]:
    """A directory to work in, root's, 0711; it is gone when the block ends, however it ends."""
    path = os.path.join(images.directory(store.paths, "staging"), f"{os.getpid()}-{new_id()[:12]}")
    with locked(store.paths, [LOCK], timeout):
        os.mkdir(path, 0o711)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        os.chmod(path, 0o711)
        yield path
    finally:
        remove_tree(path)
        os.close(fd)


def sweep(store: Store, timeout: float, check_mode: bool = False) -> dict[str, int]:
    """Remove the directories of runs that died; their names, and the bytes that were in each."""
    parent = images.directory(store.paths, "staging")
    try:
        names = os.listdir(parent)
    except FileNotFoundError:
        return {}
    if not names:
        return {}
    dead = []
    with locked(store.paths, [LOCK], timeout):
        for name in names:
            fd = _lock_dead(os.path.join(parent, name))
            if fd is not None:
                dead.append((name, fd))
    sizes = {}
    for name, fd in dead:
        sizes[name] = held_by(os.path.join(parent, name))[1]
        if not check_mode:
            remove_tree(os.path.join(parent, name))
        os.close(fd)
    return sizes


def locked_patiently(store: Store, names: t.Iterable[str], timeout: float) -> contextlib.AbstractContextManager[None]:
    """Locks of images. Others have them for as long as an import takes: *timeout* counts while nothing moves there."""
    return locked(store.paths, names, timeout, activity=lambda: _activity(store))


def _activity(store: Store) -> tuple[int, int]:
    """Files and bytes of all that is under way."""
    held = [held_by(images.directory(store.paths, place)) for place in ("staging", "pulls", "downloads")]
    return sum(files for files, _size in held), sum(size for _files, size in held)


def held_by(folder: str) -> tuple[int, int]:
    """Files in a folder that others may be at work in, and their bytes."""
    files = size = 0
    for place, _folders, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += os.lstat(os.path.join(place, name)).st_size
                files += 1
    return files, size


def _lock_dead(path: str) -> int | None:
    """A locked descriptor of the directory, if no run has it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def publish(temporary: str, target: str, gid: int) -> None:
    """Give a finished file its name: read-only for root and its group, durable."""
    fd = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(fd, 0, gid)
        os.fchmod(fd, 0o440)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, target)
    fsync_dir(os.path.dirname(target))
