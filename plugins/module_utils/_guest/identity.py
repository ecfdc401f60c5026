# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Telling a guest that goes on from a snapshot who it is now, and hearing that it has understood.

The message is lines of words (docs/guest-images.md has them all), the answer is ``ok`` or ``error …``; on a vsock both
are in a line of JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import socket
import time
import typing as t
import uuid

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import BusyError, CocoonError
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.line import MOST_WORDS
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.replies import parse_json, printable
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.settings import identity_lines, settings_of
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.plugins.module_utils._types import host_name

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import VmRecord

VERSION = 1
SEED_BYTES = 64
MAX_ANSWER = 4096
# A guest whose handler missed the event gets another one.
REPEAT = 30.0
# One that does not listen yet, or whose hypervisor somebody else talks to, is tried again sooner.
ANOTHER_TRY = 0.5


def message(record: VmRecord, old_macs: t.Sequence[str], guest_uuid: str) -> bytes:
    """What the guest of *record* is told; *old_macs* are those that its NICs still have."""
    lines = [
        f"cocoon-identity {VERSION}",
        f"time {time.time():.6f}",
        f"seed {os.urandom(SEED_BYTES).hex()}",
        f"hostname {host_name(record)}",
        f"machine-id {uuid.UUID(guest_uuid).hex}",
        *identity_lines(settings_of(record), old_macs),
        "end",
    ]
    return "\n".join(lines).encode() + b"\n"


def nics_message(record: VmRecord, macs: t.Container[str]) -> bytes:
    """What the guest of *record* is told when it has those NICs anew, or is to set them up in another way."""
    nics = [nic for nic in settings_of(record) if nic.mac in macs]
    lines = [f"cocoon-identity {VERSION}", *identity_lines(nics, [nic.mac for nic in nics]), "end"]
    return "\n".join(lines).encode() + b"\n"


def answer_of(line: bytes) -> str:
    """What a guest has answered, which may be anything."""
    text = line.decode(errors="replace").strip()
    if text.startswith("{"):
        with contextlib.suppress(ValueError):
            found = parse_json(text.encode()).get("answer")
            return found if isinstance(found, str) else text
    return text


@dataclasses.dataclass
class Newcomer:
    """One guest to be told.

    :param tell: plugs the line in and sends the message; called again when no answer comes.
    :param admit: called once the guest has answered that all is done.
    :param deadline: monotonic seconds.
    :param silence: what it means that no answer has come until then.
    :param patient: the guest may not have seen yet what it is told of: what it answers until the deadline is heard
        again.
    """

    name: str
    process: Process
    tell: t.Callable[[], socket.socket]
    admit: t.Callable[[], None]
    deadline: float
    silence: str = (
        "its guest did not answer when it was told its new identity, so it is kept off the network; its image may lack"
        " the handler for it (docs/guest-images.md)"
    )
    patient: bool = False
    line: socket.socket | None = None
    again: float = 0.0
    received: bytes = b""
    done: bool = False
    error: str | None = None

    @property
    def open(self) -> bool:
        return not self.done and self.error is None

    def say(self, now: float) -> None:
        """Tell it, unless it has just been told."""
        if now < self.again:
            return
        self.hang_up()
        self.received = b""
        self.again = now + REPEAT
        try:
            self.line = self.tell()
        except BusyError:
            self.again = now + ANOTHER_TRY
        except CocoonError as exc:
            self.error = exc.message

    def hear(self) -> None:
        """Take what there is of the answer."""
        data = b""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            data = self.line.recv(MAX_ANSWER) if self.line else b""
        self.received += data
        if not data or len(self.received) > MAX_ANSWER:
            self.hang_up()
            return
        answer, newline, _rest = self.received.partition(b"\n")
        if not newline:
            return
        said = answer_of(answer)
        if said != "ok":
            what = "what it was told of its NICs" if self.patient else "its new identity"
            self._refused(f"its guest did not take {what}: {printable(said, MOST_WORDS)}")
            return
        try:
            self.admit()
            self.done = True
        except CocoonError as exc:
            self.error = f"its guest has not taken its new identity: {exc.message}"

    def _refused(self, words: str) -> None:
        if not self.patient:
            self.error = words
            return
        self.silence = words
        self.hang_up()
        self.again = time.monotonic() + ANOTHER_TRY

    def hang_up(self) -> None:
        if self.line is not None:
            self.line.close()
            self.line = None


def tell_all(newcomers: t.Sequence[Newcomer]) -> None:
    """Tell all guests who they are, and admit each to its network when it answers; fills done or error."""
    try:
        while True:
            waiting = [newcomer for newcomer in newcomers if newcomer.open]
            if not waiting:
                return
            _turn(waiting)
    finally:
        for newcomer in newcomers:
            newcomer.hang_up()


def _turn(waiting: t.Sequence[Newcomer]) -> None:
    now = time.monotonic()
    poller = select.poll()
    by_fd: dict[int, Newcomer] = {}
    wake = now + REPEAT
    for newcomer in waiting:
        newcomer.say(now)
        if now >= newcomer.deadline:
            newcomer.error = newcomer.silence
        if newcomer.line is not None:
            by_fd[newcomer.line.fileno()] = newcomer
            poller.register(newcomer.line, select.POLLIN)
        by_fd[newcomer.process.pidfd] = newcomer
        poller.register(newcomer.process.pidfd, select.POLLIN)
        wake = min(wake, newcomer.deadline, newcomer.again)
    if any(not newcomer.open for newcomer in waiting):
        return
    for fd, _event in poller.poll(max(1, int((wake - time.monotonic()) * 1000))):
        newcomer = by_fd[fd]
        if fd == newcomer.process.pidfd:
            newcomer.error = "the hypervisor ended before its guest had its new identity"
        elif newcomer.open:
            newcomer.hear()
