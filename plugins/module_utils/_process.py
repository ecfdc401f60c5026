# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hypervisor processes: whose they are, how they are started, how they are ended.

A pid alone proves nothing. A process is ours only if boot id, start time and user agree, checked
while a pidfd keeps the pid from being reused; signals go through that pidfd. Its command line says
nothing: a process can rewrite its own.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import subprocess
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError, ResourceError, ToolError

Identity = dict[str, t.Any]
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KILL_TIMEOUT = 10.0
DYING_TIMEOUT = 5.0
SYS_PIDFD_GETFD = 438


@functools.cache
def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
        return stream.read().strip()


def start_time(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat (clock ticks since boot), or ``None`` if dead or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            fields = stream.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def real_uid(pid: int) -> int | None:
    """Whose process it is, by the kernel and not by the owner of its /proc files, which it can change."""
    try:
        with open(f"/proc/{pid}/status", "rb") as stream:
            return next(int(line.split()[1]) for line in stream if line.startswith(b"Uid:"))
    except (FileNotFoundError, ProcessLookupError, StopIteration):
        return None


def processes_by_uid() -> dict[int, list[int]]:
    """All processes of the host by whose they are: one look for as many questions as there are."""
    found: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            uid = real_uid(int(entry))
            if uid is not None:
                found.setdefault(uid, []).append(int(entry))
    return found


def identify(pid: int) -> Identity:
    """What the record keeps of a process that we have just started."""
    return {"pid": pid, "start_time": start_time(pid), "boot_id": boot_id(), "uid": real_uid(pid)}


class Process:
    """A process that is proven ours, held by a pidfd."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd

    @classmethod
    def find(cls, identity: Identity | None) -> Process | None:
        """The live process of *identity*, or ``None``."""
        if not identity or identity.get("boot_id") != boot_id() or not identity.get("start_time"):
            return None
        return cls._open(identity["pid"], identity["uid"], identity["start_time"])

    @classmethod
    def _open(cls, pid: int, uid: int, started: int | None) -> Process | None:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        process = cls(pid, pidfd)
        seen = start_time(pid)
        if seen is not None and started in (None, seen) and real_uid(pid) == uid:
            return process
        if seen is None:  # a zombie whose other threads may still hold its TAPs and files
            process.wait(DYING_TIMEOUT)
        process.close()
        return None

    @classmethod
    def scan(cls, uid: int, pids: t.Iterable[int] | None = None) -> list[Process]:
        """Live processes of *uid*, which belongs to one VM of one store: for what no record tells of.

        :param pids: where to look; everywhere if not given.
        """
        if pids is None:
            pids = processes_by_uid().get(uid, ())
        return [process for process in (cls._open(pid, uid, None) for pid in pids) if process is not None]

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def wait(self, timeout: float) -> bool:
        """Whether the process ended within *timeout* seconds."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        if not poller.poll(max(0, int(timeout * 1000))):
            return False
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        return True

    def end(self, grace: float = 5.0) -> None:
        """SIGTERM, then SIGKILL after *grace* seconds, at once with 0; returns when it is gone.

        :raises HypervisorError: it does not end, so that nothing that it holds can be given back.
        """
        if grace > 0:
            self.signal(signal.SIGTERM)
        if grace <= 0 or not self.wait(grace):
            self.signal(signal.SIGKILL)
            if not self.wait(KILL_TIMEOUT):
                raise HypervisorError(
                    f"process {self.pid} does not end, not even by SIGKILL",
                    remedy=f"See what it waits for (cat /proc/{self.pid}/stack), mend that, and run this again.",
                )

    def fetch(self, number: int) -> int:
        """A descriptor that it has, as one of ours.

        :raises OSError: it has none of that number, or the kernel does not give it.
        """
        import ctypes

        fd = ctypes.CDLL(None, use_errno=True).syscall(SYS_PIDFD_GETFD, self.pidfd, number, 0)
        if fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        os.set_inheritable(fd, False)
        return int(fd)

    def stopped(self) -> bool:
        """Whether somebody stopped it by a signal, so that it cannot answer."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as stream:
                return stream.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
        except (FileNotFoundError, ProcessLookupError):
            return False

    def close(self) -> None:
        os.close(self.pidfd)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def run_tool(
    argv: t.Sequence[str],
    *,
    stdin: bytes | None = None,
    uid: int | None = None,
    gid: int | None = None,
    groups: t.Sequence[int] = (),
    timeout: float = 600.0,
    package: str | None = None,
    ok: t.Container[int] = (0,),
    fds: t.Sequence[int] = (),
) -> bytes:
    """Run an external tool without a shell and give its standard output.

    :param uid: drop to this user first (for files that a guest can write), with *groups* and no others.
    :param package: what to install if the tool is missing, for the message.
    :param fds: descriptors that it inherits, such as one that holds a lock for as long as it works.
    :raises ToolError: missing, failed (with its last lines of output) or too slow.
    :raises ResourceError: it found no space left.
    """
    extra: dict[str, t.Any] = {}
    if uid is not None:
        extra = {"user": uid, "group": gid if gid is not None else uid, "extra_groups": list(groups)}
    try:
        done = subprocess.run(  # pylint: disable=subprocess-run-check,ansible-bad-function  # no AnsibleModule here
            list(argv),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=timeout,
            pass_fds=tuple(fds),
            env={"PATH": SEARCH_PATH, "LC_ALL": "C"},
            **extra,
        )
    except FileNotFoundError:
        raise ToolError(
            f"{argv[0]} is not installed", remedy=f"Install {package or argv[0]}, or run the role cocoon.microvm.host."
        ) from None
    except subprocess.TimeoutExpired:
        raise ToolError(f"{argv[0]} did not finish within {timeout:g} s") from None
    if done.returncode not in ok:
        if b"No space left on device" in done.stderr + done.stdout:
            raise ResourceError(
                f"no space is left for what {argv[0]} writes",
                "root_dir",
                "Free some, or put root_dir on a larger file system.",
            )
        tail = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()[-5:]
        raise ToolError(f"{argv[0]} failed ({done.returncode}): {' | '.join(tail)}")
    return done.stdout
