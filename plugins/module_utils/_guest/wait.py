# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for guests: one poller for all of them, so that a fleet's boot costs its slowest VM.

Hypervisors are watched by pidfd, ports by non-blocking connects, pings by one raw socket for all,
consoles by their log.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import re
import select
import socket
import struct
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.console import last_words, read
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.agent import Access

DEFAULT_PATTERN = r"login:|cocoon: ready"
DEFAULT_PORT = 22
DEFAULT_TIMEOUT = 120.0
# A guest that boots sends no event to its network peer, so these have to ask: often enough that the
# answer costs little, seldom enough that a fleet's questions do not slow its boot.
RETRY = 0.05
CONNECT_TIMEOUT = 1.0
CONSOLE_KEEP = 64 << 10


@dataclasses.dataclass
class Target:
    """One guest to wait for; *begun* and *deadline* are monotonic seconds."""

    name: str
    vm_id: str
    condition: str
    begun: float
    deadline: float
    process: Process
    ip: str = ""
    port: int = DEFAULT_PORT
    pattern: str = DEFAULT_PATTERN
    console_log: str = ""
    agent: Access | None = None
    seconds: float | None = None
    error: str | None = None

    @property
    def awaited(self) -> str:
        if self.condition == "port":
            return f"TCP port {self.port} of {self.ip}"
        if self.condition == "ping":
            return f"a ping of {self.ip}"
        if self.condition == "console":
            return f"'{self.pattern}' on the console"
        if self.condition == "agent":
            return "the agent in the guest"
        return "the hypervisor"

    @property
    def open(self) -> bool:
        return self.seconds is None and self.error is None

    def met(self) -> None:
        self.seconds = round(time.monotonic() - self.begun, 3)

    def failed(self, text: str) -> None:
        words = last_words(self.console_log)
        said = f"; the guest's last words are: {words}" if words else ""
        self.error = f"{text}{said}; the console log is {self.console_log}"


class _Probe(t.Protocol):
    """One way to look at one target: a descriptor to poll, and what to do when it is ready or due."""

    def fileno(self) -> int: ...

    def ready(self, target: Target) -> None: ...

    def tick(self, target: Target, now: float) -> None: ...

    def close(self) -> None: ...


class _Port:
    """Connects until somebody accepts."""

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.due = 0.0

    def fileno(self) -> int:
        return -1 if self.socket is None else self.socket.fileno()

    def tick(self, target: Target, now: float) -> None:
        if now < self.due:
            return
        self.close()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        if self.socket.connect_ex((target.ip, target.port)) in (0, errno.EINPROGRESS):
            self.due = now + CONNECT_TIMEOUT
        else:  # no route yet; such a socket counts as ready, and has no error left to tell
            self.close()
            self.due = now + RETRY

    def ready(self, target: Target) -> None:
        if self.socket is None:
            return
        if self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
            target.met()
        else:
            self.close()
            self.due = time.monotonic() + RETRY

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


class _Ping:
    """Sends echo requests on a socket of its own and takes the reply of its address."""

    def __init__(self) -> None:
        self.socket = socket.socket(
            socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMP
        )
        self.ident = struct.unpack("!H", os.urandom(2))[0]
        self.sequence = 0
        self.due = 0.0
        self.connected = False

    def fileno(self) -> int:
        return self.socket.fileno()

    def tick(self, target: Target, now: float) -> None:
        if now < self.due:
            return
        self.due = now + RETRY
        self.sequence = (self.sequence + 1) & 0xFFFF
        header = struct.pack("!BBHHH", 8, 0, 0, self.ident, self.sequence)
        packet = struct.pack("!BBHHH", 8, 0, _checksum(header), self.ident, self.sequence)
        try:
            if not self.connected:
                self.socket.connect((target.ip, 0))
                self.connected = True
            self.socket.send(packet)
        except OSError:
            pass  # no route or neighbour yet

    def ready(self, target: Target) -> None:
        try:
            data = self.socket.recv(2048)
        except OSError:
            return
        start = (data[0] & 15) * 4 if data else 0
        if len(data) >= start + 8:
            kind, _code, _sum, ident, _sequence = struct.unpack("!BBHHH", data[start : start + 8])
            if kind == 0 and ident == self.ident:
                target.met()

    def close(self) -> None:
        self.socket.close()


class _Console:
    """Looks for the pattern in the end of the log, at intervals: its keeper sees to it that what is new is there."""

    def __init__(self, target: Target) -> None:
        self.pattern = re.compile(target.pattern.encode(), re.MULTILINE)
        self.seen = b""
        self.due = 0.0

    def fileno(self) -> int:
        return -1

    def tick(self, target: Target, now: float) -> None:
        if now < self.due:
            return
        self.due = now + RETRY
        text = read(target.console_log, CONSOLE_KEEP)
        if text != self.seen:
            self.seen = text
            if self.pattern.search(text):
                target.met()

    def ready(self, target: Target) -> None:
        """Nothing comes to it."""

    def close(self) -> None:
        """It holds nothing."""


class _Agent:
    """Asks the agent who it is, and waits for its answer; asks again where a guest that boots has lost the question."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.lock = -1
        self.socket: socket.socket | None = None
        self.numbers: list[int] = []
        self.received = b""
        self.due = 0.0

    def fileno(self) -> int:
        return -1 if self.socket is None else self.socket.fileno()

    def tick(self, target: Target, now: float) -> None:
        if now < self.due:
            return
        self.due = now + RETRY
        if not self._has_turn():
            return
        try:
            if self.socket is None:
                self.socket = self.access.connect()
                self.received, self.numbers = b"", []
                self.socket.send(self.access.preamble())
            self._ask(self.socket)
        except OSError:
            self._hang_up()
        except CocoonError as exc:
            self._hang_up()
            target.failed(exc.message)

    def _has_turn(self) -> bool:
        from ansible_collections.cocoon.microvm.plugins.module_utils._guest.line import AgentError

        with contextlib.suppress(OSError, AgentError):
            if self.lock < 0:
                self.lock = self.access.open_lock()
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    def _ask(self, line: socket.socket) -> None:
        from ansible_collections.cocoon.microvm.plugins.module_utils._guest import agent

        self.numbers.append(agent.new_number())
        line.send(agent.question(self.numbers[-1]))
        self.due = time.monotonic() + agent.ASK_AGAIN

    def ready(self, target: Target) -> None:
        from ansible_collections.cocoon.microvm.plugins.module_utils._guest import agent

        data = b""
        with contextlib.suppress(OSError):
            data = self.socket.recv(agent.GREETING_LIMIT) if self.socket else b""
        if not data:
            self._hang_up()
            return
        *lines, rest = (self.received + data).split(b"\n")
        self.received = rest[-agent.GREETING_LIMIT :]
        if any(agent.who_says(line, self.numbers) for line in lines):
            target.met()

    def _hang_up(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1
        self.due = time.monotonic() + RETRY

    def close(self) -> None:
        self._hang_up()


def _probe(target: Target) -> _Probe | None:
    if target.condition == "port":
        return _Port()
    if target.condition == "ping":
        return _Ping()
    if target.condition == "console":
        return _Console(target)
    if target.condition == "agent" and target.agent is not None:
        return _Agent(target.agent)
    return None


def wait_all(targets: t.Sequence[Target], report: t.Callable[[Target], None] | None = None) -> None:
    """Wait until each target has met its condition, died, or run out of time; fills seconds or error.

    :param report: called once with each target as it is decided.
    """
    probes: dict[int, tuple[Target, _Probe]] = {}
    for target in targets:
        probe = _probe(target)
        if probe is None:
            target.met()
        else:
            probes[id(target)] = (target, probe)
    try:
        while probes:
            _turn(probes)
            for key, (target, probe) in list(probes.items()):
                if not target.open:
                    probe.close()
                    del probes[key]
                    if report:
                        report(target)
    finally:
        for _target, probe in probes.values():
            probe.close()


def _turn(probes: dict[int, tuple[Target, _Probe]]) -> None:
    """One look at everything: due probes act, then poll until something happens or the next is due."""
    now = time.monotonic()
    poller = select.poll()
    by_fd: dict[int, tuple[Target, _Probe | None]] = {}
    for target, probe in probes.values():
        probe.tick(target, now)
        if target.open and now >= target.deadline:
            waited = target.deadline - target.begun
            target.failed(f"waited {waited:.0f} s for {target.awaited}")
        fd = probe.fileno()
        if fd >= 0:
            by_fd[fd] = (target, probe)
            writing = isinstance(probe, _Port)
            poller.register(fd, select.POLLOUT if writing else select.POLLIN)
        by_fd[target.process.pidfd] = (target, None)
        poller.register(target.process.pidfd, select.POLLIN)
    if any(not target.open for target, _probe in probes.values()):
        return
    for fd, _event in poller.poll(RETRY * 1000):
        target, ready = by_fd[fd]
        if ready is None:
            target.failed(f"the hypervisor ended while the task waited for {target.awaited}")
        elif target.open:
            ready.ready(target)
