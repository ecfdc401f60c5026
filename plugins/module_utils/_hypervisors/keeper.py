# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The keeper of a VM's console: a small process that keeps the newest of what a guest prints, and its first words.

The hypervisor writes to a named pipe, and the keeper what comes out of it to ``console.log``. What is full moves: the
first words of a run to ``console.log.0``, what was before the newest to ``console.log.1``. What people type who are
attached to it goes to the guest by another pipe, or by a terminal where a hypervisor reads nothing else. It runs as
the VM's user and holds these files alone, which are root's. It ends when nobody can write to the pipe any more; if it
is lost, the hypervisor goes on without it, and a new one takes up the pipe. Whether there is one tells the lock that it
holds.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import fcntl
import os
import stat
import subprocess
import sys
import time
import tty
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
# In the place of the descriptors for people.
NOBODY = (-1, -1)
WRITE_ENTRY = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
# The device of the end of a terminal where what is typed goes in.
TERMINAL = os.makedev(5, 2)
Entry = t.Literal["pipe", "terminal"]

# What may be typed beyond what the guest has printed, where that goes into a terminal: a hypervisor takes it all from
# there, and dies of too much of it (Cloud Hypervisor v53.0 by its seccomp filter, with 128 KiB that its guest has not
# read). A pipe is full at some time.
UNREAD, NO_BOUND = 32 << 10, 1 << 62

# Its words: the log, for who looks at the host's processes, the user that it becomes, what a file may hold, the
# descriptors of the three, of a socket for people and of where what they type goes, or -1, and how much that may be.
# The interpreter may lie where only root can run it, so it is root until all is imported. A serial port is written byte
# by byte, hence the rest between two reads: the pipe holds what comes meanwhile.
PROGRAM = """'The keeper of the console of a microVM.'
import os, select, sys, time

user, most, log, first, before, door, entry, bound = map(int, sys.argv[2:])
lines, unread = {}, 0
poll = select.poll()
poll.register(0, select.POLLIN)
if door >= 0:
    import socket
    listener = socket.socket(fileno=door)
    listener.setblocking(False)
    poll.register(door, select.POLLIN)
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

def tell(data):
    'Show it to who is attached; one that is slow misses some.'
    for fd, line in list(lines.items()):
        try:
            line.send(data)
        except BlockingIOError:
            pass
        except OSError:
            leave(fd)

def leave(fd):
    poll.unregister(fd)
    lines.pop(fd).close()

def attach():
    try:
        line = listener.accept()[0]
    except OSError:
        return
    if len(lines) < 8:
        line.setblocking(False)
        lines[line.fileno()] = line
        poll.register(line, select.POLLIN)

def hear(fd):
    'What is typed goes to the guest, and nowhere else.'
    global unread
    try:
        data = lines[fd].recv(4096)
    except BlockingIOError:
        return
    except OSError:
        data = b''
    if not data:
        leave(fd)
        return
    if unread + len(data) > bound:  # a guest that does not read, as one that does says something back
        return
    try:
        unread += os.write(entry, data)
    except OSError:  # nor does this one
        pass

while True:
    for fd, _events in poll.poll():
        if fd == 0:
            data = os.read(0, 65536)
            if not data:
                sys.exit()
            keep(data)
            tell(data)
            unread = max(0, unread - len(data))
        elif fd == door:
            attach()
        elif fd in lines:
            hear(fd)
    time.sleep(0.01)
"""


@dataclasses.dataclass
class Kept:
    """A console that is kept.

    :param pipe: where the hypervisor is to write it.
    :param pid: of the keeper.
    :param input: where it is to read what people type, who attach to the keeper; -1 if it has a way of its own.
    :param held: what it is to inherit under the same numbers, and leave alone.
    """

    pipe: int
    pid: int
    input: int = -1
    held: tuple[int, ...] = ()


@contextlib.contextmanager
def beside(launch: Launch, entry: Entry | None = None) -> t.Iterator[Kept]:
    """In this block a hypervisor gets hold of the pipe; the log begins anew, with the end of the last run beside it.

    :param entry: people attach to the keeper, and not to the hypervisor, which reads what they type from a pipe or a
        terminal.
    :raises HypervisorError: there is no place for it, or no interpreter.
    """
    names = (keeping.PIPE, *((keeping.INPUT, keeping.SOCKET) if entry else ()))
    paths = [os.path.join(launch.run_dir, name) for name in names]
    with contextlib.ExitStack() as held:
        try:
            process, kept = _start(launch, paths, entry, held)
        except OSError as exc:
            raise HypervisorError(f"cannot keep the console of '{launch.name}': {exc.strerror}") from exc
        try:
            yield kept
        except BaseException:
            for path in paths:
                remove_file(path)
            held.close()
            launcher.kill(process, keeping.ENDING)
            raise
        finally:
            process.close()


def mend(console_log: str, run_dir: str, uid: int, hypervisor: Process) -> int | None:
    """Have somebody keep the console of a running VM again; gives the pid, ``None`` if somebody does.

    :raises HypervisorError: it cannot be had.
    """
    try:
        with contextlib.ExitStack() as stack:
            reader = _own(stack, _open_pipe(keeping.pipe_path(run_dir)))
            logs = _open_logs(console_log, stack)
            if logs is None:
                return None
            typed = _entry_again(os.path.join(run_dir, keeping.INPUT), hypervisor)
            people = NOBODY if typed is None else _people(run_dir, _own(stack, typed), stack)
            with _spawn(console_log, uid, reader, (*logs, *people)) as process:
                return process.pid
    except OSError as exc:
        raise HypervisorError(f"cannot keep the console: {exc.strerror}", remedy="Restart the VM.") from exc


def _start(
    launch: Launch, paths: t.Sequence[str], entry: Entry | None, held: contextlib.ExitStack
) -> tuple[Process, Kept]:
    """The keeper, and descriptors that write to it and read from it, for as long as they are *held*.

    :param paths: of the pipe, and perhaps of what is for people.
    :raises OSError: there is no place for it, or no interpreter.
    """
    keeping.await_end(launch.console_log, launch.uid)
    with contextlib.ExitStack() as stack:
        logs = _open_logs(launch.console_log, stack)
        if logs is None:
            raise OSError(errno.EBUSY, "its last run has not ended")
        _begin(logs)
        for path in paths:
            remove_file(path)
        _make_pipe(paths[0], launch)
        reader = _own(stack, _open_pipe(paths[0]))
        # It ends when the last one who can write is gone: the hypervisor, or we before that is there.
        writer = _own(held, os.open(paths[0], os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
        read, people = -1, NOBODY
        kept: tuple[int, ...] = ()
        if entry:
            make = _pipe_entry if entry == "pipe" else _terminal_entry
            read, typed, kept = make(paths[1], launch, held)
            people = _people(launch.run_dir, typed, stack)
        process = _spawn(launch.console_log, launch.uid, reader, (*logs, *people))
        return process, Kept(writer, process.pid, read, kept)


def _make_pipe(path: str, launch: Launch) -> None:
    os.mkfifo(path, 0o600)
    os.chown(path, launch.uid, launch.gid)


def _pipe_entry(path: str, launch: Launch, held: contextlib.ExitStack) -> tuple[int, int, tuple[int, ...]]:
    """Where a hypervisor reads, where the keeper writes what is typed, and what the hypervisor is to hold besides."""
    _make_pipe(path, launch)
    # To be written to as well: it never ends for a hypervisor, whoever else has it.
    read = _own(held, os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC))
    return read, _own(held, os.open(path, WRITE_ENTRY)), ()


def _terminal_entry(path: str, _launch: Launch, held: contextlib.ExitStack) -> tuple[int, int, tuple[int, ...]]:
    """The same by a terminal, whose other end the hypervisor itself holds: it has to outlive the keeper."""
    typed, read = (_own(held, fd) for fd in os.openpty())
    tty.setraw(read)
    os.set_blocking(typed, False)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w", encoding="ascii") as note:
        note.write(str(typed))
    return read, typed, (typed,)


def _entry_again(path: str, hypervisor: Process) -> int | None:
    """Where what is typed goes, of one that runs; ``None``: it has a way of its own.

    :raises OSError: the hypervisor does not read it.
    """
    try:
        if stat.S_ISFIFO(os.lstat(path).st_mode):
            return os.open(path, WRITE_ENTRY)
    except FileNotFoundError:
        return None
    with open(path, encoding="ascii") as note:
        typed = hypervisor.fetch(int(note.read()))
    if os.fstat(typed).st_rdev != TERMINAL:  # a hypervisor is not believed
        os.close(typed)
        raise OSError(errno.ENOTTY, "the hypervisor has let go of its terminal")
    return typed


def _people(run_dir: str, typed: int, stack: contextlib.ExitStack) -> tuple[int, int]:
    """A socket for people, and where what they type goes."""
    door = launcher.listen(keeping.socket_path(run_dir))
    stack.callback(door.close)
    return door.fileno(), typed


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


def _spawn(console_log: str, uid: int, reader: int, others: t.Sequence[int]) -> Process:
    # On a thread, which renounces its rights for good.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(_spawn_apart, console_log, uid, reader, others).result()


def _spawn_apart(console_log: str, uid: int, reader: int, others: t.Sequence[int]) -> Process:
    launcher.renounce()
    bound = UNREAD if others[-1] >= 0 and os.isatty(others[-1]) else NO_BOUND
    os.set_blocking(reader, True)
    child = subprocess.Popen(  # pylint: disable=consider-using-with,ansible-bad-function  # it outlives us
        [sys.executable, "-I", "-S", "-c", PROGRAM, console_log, *map(str, (uid, MOST, *others, bound))],
        cwd="/",
        env=launcher.ENVIRONMENT,
        stdin=reader,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=[fd for fd in others if fd >= 0],
    )
    try:
        return Process(child.pid, os.pidfd_open(child.pid))
    except OSError:
        child.kill()
        child.wait()
        raise
    finally:
        child.returncode = 0  # Popen must neither wait for it nor warn about it
