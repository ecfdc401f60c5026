# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The keeper of a VM's console: a small process that keeps the newest of what a guest prints, and its first words.

The hypervisor writes to a named pipe, and the keeper what comes out of it to ``console.log``. What is full moves: the
first words of a run to ``console.log.0``, what was before the newest to ``console.log.1``. It runs as the VM's user and
holds these files alone, which are root's. It ends when nobody can write to the pipe any more; if it is lost, the
hypervisor goes on without it, and a new one takes up the pipe. Whether there is one tells the lock that it holds.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import fcntl
import os
import subprocess
import sys
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import keeping
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import launch as launcher
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.plugins.module_utils._state import remove_file

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Launch

# Bytes of each of the three files.
MOST = 256 << 10

# Its words: the log, for who looks at the host's processes, the user that it becomes, what a file may hold, and the
# descriptors of the three. The interpreter may lie where only root can run it, so it is root until all is imported. A
# serial port is written byte by byte, hence the rest between two reads: the pipe holds what comes meanwhile.
PROGRAM = """'The keeper of the console of a microVM.'
import os, sys, time

user, most, log, first, before = map(int, sys.argv[2:])
if user != os.getuid():
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)

def turn():
    'Make room for the newest.'
    target = before
    if not os.fstat(first).st_size:
        os.ftruncate(before, 0)  # that is of another run
        target = first
    os.ftruncate(target, 0)
    try:
        os.pwrite(target, os.pread(log, most, 0), 0)
    except OSError:
        pass
    os.ftruncate(log, 0)

def keep(data):
    full = False
    while data:
        done = 0
        try:
            room = most - os.fstat(log).st_size
            done = os.write(log, data[:room]) if room > 0 else 0
        except OSError:  # no space, which others may have taken
            pass
        data = data[done:]
        if not done:
            if full:
                return
            turn()
        full = not done

while True:
    data = os.read(0, 65536)
    if not data:
        break
    keep(data)
    time.sleep(0.01)
"""


@dataclasses.dataclass
class Kept:
    """A console that is kept. :param pipe: where the hypervisor is to write it. :param pid: of the keeper."""

    pipe: int
    pid: int


@contextlib.contextmanager
def beside(launch: Launch) -> t.Iterator[Kept]:
    """In this block a hypervisor gets hold of the pipe; the log begins anew, with the end of the last run beside it.

    :raises HypervisorError: there is no place for it, or no interpreter.
    """
    path = keeping.pipe_path(launch.run_dir)
    try:
        process, writer = _start(launch, path)
    except OSError as exc:
        raise HypervisorError(f"cannot keep the console of '{launch.name}': {exc.strerror}") from exc
    with process:
        try:
            try:
                yield Kept(writer, process.pid)
            finally:
                os.close(writer)
        except BaseException:
            remove_file(path)
            launcher.kill(process, keeping.ENDING)
            raise


def mend(console_log: str, run_dir: str, uid: int) -> int | None:
    """Have somebody keep the console of a running VM again; gives the pid, ``None`` if somebody does.

    :raises HypervisorError: it cannot be had.
    """
    try:
        with contextlib.ExitStack() as stack:
            reader = _own(stack, _open_pipe(keeping.pipe_path(run_dir)))
            logs = _open_logs(console_log, stack)
            if logs is None:
                return None
            with _spawn(console_log, uid, reader, logs) as process:
                return process.pid
    except OSError as exc:
        raise HypervisorError(f"cannot keep the console: {exc.strerror}", remedy="Restart the VM.") from exc


def _start(launch: Launch, path: str) -> tuple[Process, int]:
    """The keeper, and a descriptor that writes to it.

    :raises OSError: there is no place for it, or no interpreter.
    """
    keeping.await_end(launch.console_log, launch.uid)
    with contextlib.ExitStack() as stack:
        logs = _open_logs(launch.console_log, stack)
        if logs is None:
            raise OSError(errno.EBUSY, "its last run has not ended")
        _begin(logs)
        remove_file(path)
        os.mkfifo(path, 0o600)
        os.chown(path, launch.uid, launch.gid)
        reader = _own(stack, _open_pipe(path))
        # It ends when the last one who can write is gone: the hypervisor, or we before that is there.
        writer = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return _spawn(launch.console_log, launch.uid, reader, logs), writer
        except BaseException:
            os.close(writer)
            raise


def _own(stack: contextlib.ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


def _open_pipe(path: str) -> int:
    """The end that is read from, whether or not anybody writes."""
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)


def _open_logs(console_log: str, stack: contextlib.ExitStack) -> tuple[int, int, int] | None:
    """The log, the first words and what was before, locked for as long as *stack* or a keeper has them open.

    ``None``: somebody keeps them. :raises OSError: they cannot be had.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    log = _own(stack, os.open(console_log, flags | os.O_APPEND, 0o600))
    while True:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if keeping.is_kept(console_log):
                return None
            time.sleep(keeping.LOOK)  # it was somebody who looked for a keeper
    first, before = (_own(stack, os.open(console_log + name, flags, 0o600)) for name in (keeping.FIRST, keeping.BEFORE))
    if os.geteuid() == 0:  # a hypervisor that wrote its log itself was its owner
        for fd in (log, first, before):
            os.fchown(fd, 0, 0)
    return log, first, before


def _begin(logs: t.Sequence[int]) -> None:
    """Empty the logs, but for the end of the last run, which is what was before this one."""
    log, first, before = logs
    ended = os.pread(log, MOST, max(0, os.fstat(log).st_size - MOST))
    if not ended and not os.fstat(first).st_size:
        return
    # Of one that has been turned over, the rest is in the others.
    for fd in (before, first) if os.fstat(first).st_size else ():
        missing = MOST - len(ended)
        if missing > 0:
            ended = os.pread(fd, missing, max(0, os.fstat(fd).st_size - missing)) + ended
    for fd in logs:
        os.ftruncate(fd, 0)
    with contextlib.suppress(OSError):  # no space
        os.pwrite(before, ended, 0)


def _spawn(console_log: str, uid: int, reader: int, logs: t.Sequence[int]) -> Process:
    # On a thread, which renounces its rights for good.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(_spawn_apart, console_log, uid, reader, logs).result()


def _spawn_apart(console_log: str, uid: int, reader: int, logs: t.Sequence[int]) -> Process:
    launcher.renounce()
    os.set_blocking(reader, True)
    child = subprocess.Popen(  # pylint: disable=consider-using-with,ansible-bad-function  # it outlives us
        [sys.executable, "-I", "-S", "-c", PROGRAM, console_log, *map(str, (uid, MOST, *logs))],
        cwd="/",
        env=launcher.ENVIRONMENT,
        stdin=reader,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=tuple(logs),
    )
    try:
        return Process(child.pid, os.pidfd_open(child.pid))
    except OSError:
        child.kill()
        child.wait()
        raise
    finally:
        child.returncode = 0  # Popen must neither wait for it nor warn about it
