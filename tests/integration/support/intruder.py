# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A process that is what a guest is once it has taken over its hypervisor, and what it can try on a host.

It has that process's uid, gid, groups and network namespace, and no capabilities. The hypervisor's seccomp filter is
left out: what is tried has to fail without it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import json
import os
import socket
import stat
import struct
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.cocoon.microvm.tests.integration.support.leaks import names, read

CLONE_NEWNET = 0x40000000
PR_SET_NO_NEW_PRIVS = 38
PTRACE_SEIZE = 0x4206
PIDFD_GETFD = 438
TUNSETIFF = 0x400454CA
TUN_MODES = {"one queue": 0x0002 | 0x1000 | 0x4000, "another queue": 0x0002 | 0x1000 | 0x4000 | 0x0100}
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
CONNECT = 0.5
# What is private on any host.
HOST_FILES = ("/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/dev/mem", "/proc/kcore", "/dev/vda", "/dev/sda")

Found = dict[str, list[str]]


@dataclass(frozen=True)
class Process:
    """What the kernel says of a running process."""

    pid: int

    @property
    def status(self) -> dict[str, str]:
        """The fields of /proc/<pid>/status."""
        lines = (line.partition(":") for line in read(f"/proc/{self.pid}/status").splitlines())
        return {name: value.strip() for name, _colon, value in lines}

    @property
    def threads(self) -> list[Process]:
        """Its threads: for what the kernel keeps of each."""
        return [Process(int(name)) for name in names(f"/proc/{self.pid}/task")]

    def ids(self, name: str) -> list[int]:
        """The numbers of a field: Uid, Gid, Groups."""
        return [int(word) for word in self.status[name].split()]

    def descriptors(self) -> dict[int, str]:
        """What each descriptor leads to."""
        folder = f"/proc/{self.pid}/fd"
        return {int(name): os.readlink(f"{folder}/{name}") for name in names(folder)}


def become(process: Process) -> None:
    """Turn this process into one with the rights of another, for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid, groups = process.ids("Uid")[0], process.ids("Gid")[0], process.ids("Groups")
    with open(f"/proc/{process.pid}/ns/net", "rb") as stream:
        if libc.setns(stream.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    own = Process(os.getpid())
    assert int(own.status["CapEff"], 16) == 0 and own.ids("Uid") == [uid] * 4


def as_intruder(process: Process, work: Callable[[], Any]) -> Any:
    """What *work* gives when a process with the rights of another does it; it has to fit into JSON."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Other threads' locks do not matter to a child that only asks the kernel for things.
        warnings.simplefilter("ignore", DeprecationWarning)
        number = os.fork()
    if number == 0:
        answer: dict[str, Any] = {}
        try:
            os.close(reader)
            become(process)
            answer["found"] = work()
        except BaseException:
            answer["crash"] = traceback.format_exc()
        with os.fdopen(writer, "w", encoding="utf-8") as stream:
            json.dump(answer, stream)
            stream.flush()
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as stream:
        text = stream.read()
    os.waitpid(number, 0)
    answer = json.loads(text)
    assert "crash" not in answer, answer["crash"]
    return answer["found"]


def everything(*folders: Path) -> list[str]:
    """Every path in some folders, themselves included."""
    found = []
    for folder in folders:
        found.append(str(folder))
        for place, inner, files in os.walk(folder):
            found += [os.path.join(place, name) for name in (*inner, *files)]
    return sorted(found)


def try_paths(paths: Iterable[str]) -> Callable[[], Found]:
    """What can be done with each of some paths: read, write, list, create, connect. What has no rights is left out."""
    # Their kinds are looked up as root: one who may not look would take everything for missing.
    modes = {path: os.lstat(path).st_mode for path in paths}

    def work() -> Found:
        found = {}
        for path, mode in modes.items():
            done = [name for name, attempt in _attempts(path, mode) if _succeeds(attempt)]
            if done:
                found[path] = done
        return found

    return work


def _succeeds(attempt: Callable[[], Any]) -> bool:
    try:
        return attempt() is not False
    except OSError:
        return False


def _attempts(path: str, mode: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFDIR:
        yield "list", lambda: os.listdir(path)
        yield "create", lambda: _create(path)
    elif kind == stat.S_IFSOCK:
        yield "connect", lambda: _connect(path)
    elif kind == stat.S_IFLNK:
        yield "follow", lambda: os.readlink(path)
    else:
        yield "read", lambda: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        yield "write", lambda: os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    yield "chmod", lambda: os.chmod(path, stat.S_IMODE(mode))


def _create(folder: str) -> None:
    path = os.path.join(folder, "intruder")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.unlink(path)


def _connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(path)


def others(uid: int) -> list[int]:
    """The user processes that run under other uids."""
    found = []
    for name in names("/proc"):
        if name.isdigit() and read(f"/proc/{name}/cmdline"):
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid != uid:
                    found.append(int(name))
    return found


def try_processes(pids: Iterable[int]) -> Callable[[], Found]:
    """What can be done to each of some processes."""

    def work() -> Found:
        found = {}
        for pid in pids:
            done = [name for name, attempt in _process_attempts(pid) if _succeeds(attempt)]
            if done:
                found[f"{pid} {read(f'/proc/{pid}/cmdline')[:80]}"] = done
        return found

    return work


def _process_attempts(pid: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    libc = ctypes.CDLL(None, use_errno=True)

    def call(function: Any, *arguments: Any) -> None:
        if function(*arguments) < 0:
            raise OSError(ctypes.get_errno(), "refused")

    def take_descriptor() -> None:
        pidfd = os.pidfd_open(pid)
        try:
            call(libc.syscall, PIDFD_GETFD, pidfd, 0, 0)
        finally:
            os.close(pidfd)

    def contents(name: str) -> bool:
        with open(f"/proc/{pid}/{name}", "rb") as stream:
            return bool(stream.read(1))

    yield "signal", lambda: os.kill(pid, 0)
    yield "trace", lambda: call(libc.ptrace, PTRACE_SEIZE, pid, None, None)
    yield "take a descriptor", take_descriptor
    yield "memory", lambda: os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))
    yield "environment", lambda: contents("environ")
    yield "memory map", lambda: contents("maps")
    yield "descriptors", lambda: os.listdir(f"/proc/{pid}/fd")
    yield "root folder", lambda: os.listdir(f"/proc/{pid}/root")
    yield "working folder", lambda: os.listdir(f"/proc/{pid}/cwd")


def try_interfaces(links: Iterable[str]) -> Callable[[], Found]:
    """Which interfaces a /dev/net/tun that is opened here, for each attempt, can be made a queue of."""
    attempts = [(link, mode, os.open("/dev/net/tun", os.O_RDWR)) for link in links for mode in TUN_MODES]

    def work() -> Found:
        found: Found = {}
        for link, mode, tun in attempts:
            with contextlib.suppress(OSError):
                fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", link.encode(), TUN_MODES[mode]))
                found.setdefault(link, []).append(mode)
        return found

    return work


def try_sockets(listeners: Iterable[tuple[str, int]], link: str) -> Callable[[], Found]:
    """What can be done by sockets: see all traffic, take a link down, connect to what listens."""

    def see_traffic() -> None:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)).close()

    def ping() -> None:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()

    def take_down() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            answer = fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sH14x", link.encode(), 0))
            flags = struct.unpack("16sH14x", answer)[1]
            fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", link.encode(), flags & ~1))

    def connect(place: tuple[str, int]) -> None:
        family = socket.AF_UNIX if place[0].startswith("\0") else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(CONNECT)
            sock.connect(place[0] if family == socket.AF_UNIX else place)

    def work() -> Found:
        attempts: dict[str, Callable[[], Any]] = {"see traffic": see_traffic, "raw": ping, "take down": take_down}
        for place in listeners:
            attempts[f"connect to {place[0]!r} {place[1]}"] = functools.partial(connect, place)
        return {name: ["done"] for name, attempt in attempts.items() if _succeeds(attempt)}

    return work
