# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Network namespaces with names, as ``ip netns`` has them, and work done inside of one."""

from __future__ import annotations

import contextlib
import errno
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError

FOLDER = "/run/netns"
CLONE_NEWNET = 0x40000000
MS_BIND, MS_REC, MS_SHARED = 0x1000, 0x4000, 0x100000
MNT_DETACH = 2

T = t.TypeVar("T")


def path_of(vm_id: str) -> str:
    """Where the namespace of a VM is. An id is never given twice, so it cannot be that of another store."""
    return os.path.join(FOLDER, f"cmv-{vm_id}")


def exists(path: str) -> bool:
    """Whether a namespace is there, and not only the file that it is to be mounted on."""
    try:
        return os.stat(path).st_dev != os.stat(os.path.dirname(path)).st_dev
    except FileNotFoundError:
        return False


def create(path: str) -> None:
    """Make the namespace unless it is there.

    :raises CocoonError: the kernel refuses it.
    """
    if exists(path):
        return
    try:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        _share(os.path.dirname(path))
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))
        _on_thread(lambda: _mount_new(path))
    except OSError as exc:
        raise CocoonError(f"cannot make the network namespace {path}: {exc.strerror}") from exc


def _share(folder: str) -> None:
    """Have what is mounted there come and go in other mount namespaces, too, or it would be kept by them."""
    try:
        _mount("", folder, MS_SHARED | MS_REC)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # it is no mount point
            raise
        _mount(folder, folder, MS_BIND | MS_REC)
        _mount("", folder, MS_SHARED | MS_REC)


def _mount_new(path: str) -> None:
    _call("unshare", CLONE_NEWNET)
    _mount("/proc/thread-self/ns/net", path, MS_BIND)


def remove(path: str) -> None:
    """Remove the namespace, and the interfaces in it, if it is there."""
    with contextlib.suppress(OSError):
        while exists(path):
            _call("umount2", os.fsencode(path), MNT_DETACH)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def inside(path: str, work: t.Callable[[], T]) -> T:
    """What *work* gives when a thread does it in the namespace; a socket stays where it was opened.

    :raises FileNotFoundError: there is no such namespace.
    """
    with open(path, "rb") as stream:
        return within(stream.fileno(), work)


def within(namespace: int, work: t.Callable[[], T]) -> T:
    """As :func:`inside`, of a namespace that is given as a descriptor.

    :raises OSError: it cannot be entered, or *work* failed.
    """

    def enter() -> T:
        _call("setns", namespace, CLONE_NEWNET)
        return work()

    return _on_thread(enter)


def _on_thread(work: t.Callable[[], T]) -> T:
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def _mount(source: str, target: str, flags: int) -> None:
    import ctypes

    _call("mount", os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(flags), None)


def _call(name: str, *args: object) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
