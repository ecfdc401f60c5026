# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two kinds of tmpfs that we mount: one for guest RAM, and a small one per VM for its logs.

The guest writes its console, and an escaped one its hypervisor's log too: a file system of fixed
size is the one cap that needs no process of ours to enforce it.
"""

from __future__ import annotations

import ctypes
import os

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ToolError

MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MNT_DETACH = 2
LOG_SIZE = "1m"


def _call(name: str, *args: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def is_mounted(path: str) -> bool:
    """Whether *path* is the root of a file system of its own."""
    try:
        return os.stat(path).st_dev != os.stat(os.path.dirname(path)).st_dev
    except FileNotFoundError:
        return False


def mount_tmpfs(path: str, options: str) -> None:
    """Mount a tmpfs at *path* unless one is there.

    :raises ToolError: the kernel refused.
    """
    os.makedirs(path, 0o711, exist_ok=True)
    if is_mounted(path):
        return
    flags = ctypes.c_ulong(MS_NOSUID | MS_NODEV | MS_NOEXEC)
    try:
        _call("mount", b"tmpfs", os.fsencode(path), b"tmpfs", flags, options.encode())
    except OSError as exc:
        raise ToolError(
            f"cannot mount a tmpfs at {path}: {exc.strerror}", remedy="Run as root, outside of restricted containers."
        ) from exc


def unmount(path: str) -> None:
    """Detach what is mounted at *path*, if anything."""
    while is_mounted(path):
        _call("umount2", os.fsencode(path), MNT_DETACH)


def unmount_unused(path: str) -> None:
    """Detach the file system at *path* if nothing is in it; the host's lock is held."""
    if is_mounted(path) and not os.listdir(path):
        unmount(path)


def mount_ram(path: str) -> None:
    """The tmpfs of guest RAM: admission keeps it from filling, so its own limit is all of the memory."""
    mount_tmpfs(path, "size=100%,mode=0711")


def mount_log(path: str) -> None:
    """The log directory of one VM."""
    mount_tmpfs(path, f"size={LOG_SIZE},nr_inodes=64,mode=0711")
