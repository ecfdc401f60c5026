# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting a hypervisor: its sockets, its RAM file, its logs, and the unprivileged process itself.

The process outlives us. It gets the descriptors named and no others, its own session, no
capabilities, a network namespace with nothing in it, and where systemd runs a scope of its own.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import os
import re
import resource
import select
import signal
import socket
import stat
import subprocess
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError, InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.plugins.module_utils._sparse import copy_data
from ansible_collections.cocoon.microvm.plugins.module_utils._state import remove_file

BACKLOG = 16

# How much of the hypervisor's own words of the previous run is kept.
KEEP_LOG = 64 << 10
TAIL_BYTES = 8192
TAIL_LINES = 8

CLONE_NEWNET = 0x40000000
PR_SET_NO_NEW_PRIVS = 38

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def listen(path: str) -> socket.socket:
    """A listening unix socket at *path*, in place of whatever an earlier run left there.

    :raises InputError: the path is longer than a socket's may be.
    """
    remove_file(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        if exc.errno is None:
            raise InputError(
                f"{path} is too long for a socket", "run_dir", "Use a shorter one, at most 60 characters."
            ) from exc
        raise HypervisorError(f"cannot listen at {path}: {exc.strerror}") from exc
    return sock


def create_ram(path: str, size: int, uid: int, gid: int) -> None:
    """The sparse file of the guest's RAM, the VM's own; one that admission has promised is taken as it is."""
    with contextlib.suppress(FileNotFoundError):
        info = os.lstat(path)
        if stat.S_ISREG(info.st_mode) and (info.st_size, info.st_uid, info.st_blocks) == (size, uid, 0):
            return
    remove_file(path)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
            os.fchown(fd, uid, gid)
        finally:
            os.close(fd)
    except OSError as exc:
        raise HypervisorError(f"cannot make the guest's RAM file {path}: {exc.strerror}") from exc


def fill_ram(path: str, source: str) -> None:
    """Copy a saved RAM file into the guest's, holes kept."""
    source_fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        target_fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            copy_data(source_fd, target_fd)
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)


def open_log(path: str, uid: int, gid: int, keep: int) -> int:
    """An empty log at *path*, opened for appending; the last *keep* bytes of the old one go to ``<path>.1``."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o600)
        try:
            _rotate(fd, path, keep)
            os.fchown(fd, uid, gid)
        except BaseException:
            os.close(fd)
            raise
    except OSError as exc:
        raise HypervisorError(f"cannot open the log {path}: {exc.strerror}") from exc
    return fd


def cut_log(path: str, keep: int = KEEP_LOG) -> None:
    """Begin a log anew that somebody writes, its end beside it as :func:`open_log` has it.

    :raises HypervisorError: it cannot be opened.
    """
    info = os.lstat(path)
    os.close(open_log(path, info.st_uid, info.st_gid, keep))


def _rotate(fd: int, path: str, keep: int) -> None:
    size = os.fstat(fd).st_size
    if not size:
        return
    tail = os.pread(fd, keep, max(0, size - keep))
    # First make room: the directory is a small tmpfs that the old log may have filled.
    os.ftruncate(fd, 0)
    remove_file(f"{path}.1")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        old = os.open(f"{path}.1", flags, 0o600)
        try:
            os.write(old, tail)
        finally:
            os.close(old)


def log_tail(path: str, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, fit for a message; what wrote it may be hostile."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return ""
        data = os.pread(fd, TAIL_BYTES, max(0, info.st_size - TAIL_BYTES))
    finally:
        os.close(fd)
    text = "".join(char if char.isprintable() or char == "\n" else " " for char in data.decode(errors="replace"))
    # The time and the program's name in front of each line only lengthen the message.
    words = [re.sub(r"^\S+Z [\w.-]+: ", "", line).strip() for line in text.splitlines()]
    return " | ".join([line for line in words if line][-lines:])


def spawn(
    argv: t.Sequence[str],
    uid: int,
    gid: int,
    groups: t.Sequence[int],
    fds: t.Sequence[int],
    log: int,
    file_limit: int = resource.RLIM_INFINITY,
    enter: t.Callable[[], None] | None = None,
    given: int = subprocess.DEVNULL,
    output: int | None = None,
) -> Process:
    """The process, exec'd and held by a pidfd.

    :param fds: descriptors it inherits under the same numbers.
    :param log: its standard error, and its standard output where there is no *output*.
    :param file_limit: bytes beyond which it cannot make a file grow, even after an escape.
    :param enter: called in its network namespace before it is there.
    :param given: its standard input.
    :raises HypervisorError: there is no such program, or it may not be run like this.
    """
    # On a thread, as a network namespace is a thread's, and a child has that of the thread which made it.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(
            _spawn_apart, argv, uid, gid, groups, fds, log, file_limit, enter, given, log if output is None else output
        ).result()


def _leave_network() -> None:
    """Move this thread for good into a network namespace with nothing in it.

    Sockets and TAP queues come as descriptors, so a hypervisor has no use for the host's network: a guest that
    took it over would find the host's loopback and other guests' TAPs there.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        reason = os.strerror(ctypes.get_errno())
        raise HypervisorError(
            f"cannot make a network namespace: {reason}", remedy="Run as root, outside of restricted containers."
        )


def renounce() -> None:
    """No program that this thread's children run from now on gains rights by its file."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise HypervisorError(f"cannot set no_new_privs: {os.strerror(ctypes.get_errno())}")


def _spawn_apart(
    argv: t.Sequence[str],
    uid: int,
    gid: int,
    groups: t.Sequence[int],
    fds: t.Sequence[int],
    log: int,
    file_limit: int,
    enter: t.Callable[[], None] | None,
    given: int,
    output: int,
) -> Process:
    _leave_network()
    if enter is not None:
        enter()
    renounce()
    try:
        child = subprocess.Popen(  # pylint: disable=consider-using-with,ansible-bad-function  # it outlives us
            list(argv),
            user=uid,
            group=gid,
            extra_groups=list(groups),
            umask=0o077,
            cwd="/",
            env=ENVIRONMENT,
            stdin=given,
            stdout=output,
            stderr=log,
            start_new_session=True,
            pass_fds=tuple(fds),
        )
    except OSError as exc:
        raise HypervisorError(f"cannot run {argv[0]}: {exc.strerror}") from exc
    # Popen returns after the exec, and until somebody waits for the child its pid is not reused.
    try:
        process = Process(child.pid, os.pidfd_open(child.pid))
        limit_files(child.pid, file_limit)
    except OSError as exc:
        child.kill()
        child.wait()
        raise HypervisorError(f"cannot hold on to {argv[0]}: {exc.strerror}") from exc
    # It is meant to outlive us: Popen must neither wait for it nor warn about it.
    child.returncode = 0
    return process


def limit_files(pid: int, size: int) -> None:
    """Keep a process from making any file larger than *size* bytes, where our root may (CAP_SYS_RESOURCE)."""
    with contextlib.suppress(PermissionError):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, size))


def kill(process: Process, grace: float = 0.0) -> int | None:
    """End *process*; its exit status (negative: the signal that it died of), if it is our child.

    :param grace: seconds that it gets to end by itself, because it seems about to.
    """
    select.select([process.pidfd], [], [], grace)
    process.signal(signal.SIGKILL)
    return exit_status(process)


def exit_status(process: Process) -> int | None:
    """Wait for the end of *process*; ``None`` if it is not our child."""
    try:
        result = os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED)
    except ChildProcessError:
        process.wait(10.0)
        return None
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def clean(run_dir: str, sockets: t.Iterable[str], ram_path: str) -> None:
    """Remove what a hypervisor that has ended leaves: its *sockets* in *run_dir*, and its RAM file."""
    for name in sockets:
        remove_file(os.path.join(run_dir, name))
    remove_file(ram_path)
