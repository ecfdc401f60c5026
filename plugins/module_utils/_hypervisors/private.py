# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A root of a process's own: its files, its devices, a folder that it may make files in, and nothing else.

It is made on the thread that then makes the process, in a mount namespace of that thread's, so that no other task
ever sees it and it goes with the process. What is bound is opened first, so that nobody can put a link in its place.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import stat
import struct
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._process import run_tool

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Jail

CLONE_NEWNS = 0x20000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
SYS_PIVOT_ROOT = 155
PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP = 38, 24
CAPABILITIES = 64
# Where a process finds its own folder.
FOLDER = "/run"
# What any program may expect; and where its standard input comes from.
NULL = "/dev/null"
ROOT_OPTIONS = "mode=0755,size=64k,nr_inodes=512"

PT_INTERP = 3
LIBRARY = re.compile(r"^\s*(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)\Z")


def enter(jail: Jail, uid: int) -> None:
    """Have this thread, and what it makes from now on, see nothing but *jail*; there is no way back.

    What belongs to *uid* may be written to, all else is read-only; devices are nodes of its own, whoever may open those
    of the host. No program that it runs can gain a right.

    :raises HypervisorError: the kernel does not let us, or something that is to be there is missing.
    """
    try:
        _call("unshare", CLONE_NEWNS)
        os.umask(0o022)  # this thread's own from here on
        _mount(None, "/", None, MS_REC | MS_PRIVATE)
        with contextlib.ExitStack() as opened:
            binds = [(place, _hold(source, opened)) for place, source in _binds(jail).items()]
            base = t.cast(str, jail.folder)
            _mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NOEXEC, ROOT_OPTIONS)
            os.chdir(base)  # the one that was mounted just now
            for place, fd in sorted(binds):
                _bind(place.lstrip("/"), fd, uid)
        _pivot()
        _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _drop_bounds()
    except OSError as exc:
        where = f" ({exc.filename})" if exc.filename else ""
        raise HypervisorError(
            f"cannot make a root of its own for the hypervisor: {exc.strerror}{where}",
            remedy="Run as root, outside of restricted containers.",
        ) from exc


def _binds(jail: Jail) -> dict[str, str]:
    """What is where: paths in the root, each with the host's."""
    devices = {path: path for path in (NULL, *jail.devices)}
    return {**devices, **(jail.files or {}), FOLDER: t.cast(str, jail.folder)}


def _hold(path: str, opened: contextlib.ExitStack) -> int:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    opened.callback(os.close, fd)
    if stat.S_ISLNK(os.fstat(fd).st_mode):
        raise OSError(errno.ELOOP, "a link is in its place", path)
    return fd


def _bind(place: str, fd: int, uid: int) -> None:
    """Bind an open file below the current directory; a device gets a node there."""
    info = os.fstat(fd)
    os.makedirs(os.path.dirname(place) or ".", 0o755, exist_ok=True)
    if stat.S_ISCHR(info.st_mode):
        os.mknod(place, stat.S_IFCHR | 0o600, info.st_rdev)
        os.chown(place, uid, uid)
        return
    if stat.S_ISDIR(info.st_mode):
        os.mkdir(place, 0o755)
    else:
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    _mount(f"/proc/self/fd/{fd}", place, None, MS_BIND)
    rights = MS_NOEXEC if info.st_uid == uid else MS_RDONLY
    _mount(None, place, None, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV | rights)


def _pivot() -> None:
    """Make the current directory the root, and let go of the old one: stacked on each other, they need no place."""
    if ctypes.CDLL(None, use_errno=True).syscall(SYS_PIVOT_ROOT, b".", b"."):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    _call("umount2", b".", MNT_DETACH)
    os.chdir("/")
    _mount(None, "/", None, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NOEXEC, ROOT_OPTIONS)


def _drop_bounds() -> None:
    """No program can have a capability, whatever its file says; those that this thread has stay for the moment."""
    for capability in range(CAPABILITIES):
        try:
            _call("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0)
        except OSError:  # the kernel has no more
            return


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [None if word is None else word.encode() for word in (source, target, kind)]
    try:
        _call("mount", *words, ctypes.c_ulong(flags), None if options is None else options.encode())
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, target) from None


def _call(name: str, *arguments: t.Any) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def libraries(binary: str) -> dict[str, str]:
    """The loader and the libraries of a program where it looks for them, each with the file; none of a static one.

    :raises HypervisorError: it is not a program for this machine, or a library is missing.
    """
    loader = _interpreter(binary)
    if loader is None:
        return {}
    try:
        listed = run_tool([loader, "--list", binary], timeout=20.0).decode(errors="replace").splitlines()
    except CocoonError as exc:
        raise HypervisorError(f"{binary} lacks a library on this host: {exc.message}") from exc
    missing = [line.split()[0] for line in listed if line.rstrip().endswith("not found")]
    if missing:
        raise HypervisorError(f"{binary} lacks {', '.join(missing)} on this host")
    found = [match.group(1) for match in map(LIBRARY.match, listed) if match]
    return {path: os.path.realpath(path) for path in (loader, *found)}


def _interpreter(binary: str) -> str | None:
    """The loader that a program names; ``None`` if it needs none."""
    with open(binary, "rb") as stream:
        head = stream.read(64)
        if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", head, 18)[0] != 62:
            raise HypervisorError(f"{binary} is not a program for x86-64")
        table, size, count = *struct.unpack_from("<Q", head, 32), *struct.unpack_from("<HH", head, 54)
        for number in range(min(count, 64)):
            stream.seek(table + number * size)
            entry = stream.read(56)
            if len(entry) == 56 and struct.unpack_from("<I", entry)[0] == PT_INTERP:
                offset, length = struct.unpack_from("<Q", entry, 8)[0], struct.unpack_from("<Q", entry, 32)[0]
                stream.seek(offset)
                return stream.read(min(length, 4096)).rstrip(b"\0").decode(errors="replace")
    return None
