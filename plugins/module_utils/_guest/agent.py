# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent inside a guest, whichever it is: qemu-guest-agent, our images' own, or Cocoon's.

Which one answers is found out: a question is put that each answers in its own way. Guests are not trusted: every answer
is bounded in size and time, and nothing that they say becomes a path or a command on this host.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import json
import os
import re
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import BusyError, GuestTimeoutError
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.line import (
    AgentClosedError,
    AgentError,
    Line,
    document_of,
)

if t.TYPE_CHECKING:
    import socket

    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Channel

STANDARD, COCOON = "qemu-guest-agent", "cocoon-agent"
# Where nobody listens yet there is no event to wait for.
RETRY = 0.05
# An agent that begins anew has lost the question.
ASK_AGAIN = 5.0
GREETING_LIMIT = 64 << 10
# What is kept of each of a command's outputs.
MOST_OUTPUT = 16 << 20
NAME_RE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
# What a command gets beside what it is given; the agents differ in what they have themselves.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "LANG": "C.UTF-8",
}
GONE = "the VM does not run any more"
REMEDY = (
    "Its image may have no agent (docs/guest-agent.md says which have one), or the guest is still booting, or busy."
)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command for a guest: a program and its arguments, without a shell."""

    argv: tuple[str, ...]
    env: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    stdin: bytes = b""

    def environment(self) -> dict[str, str]:
        return {**ENVIRONMENT, **self.env}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a command.

    :param code: its exit code; 128 and the signal's number where a signal ended it.
    :param cut: whether it printed more than is kept.
    """

    code: int
    stdout: bytes
    stderr: bytes
    cut: bool = False


class NoAgentError(GuestTimeoutError):
    """Nobody in the guest answers."""


class CommandTimeoutError(GuestTimeoutError):
    """A command in the guest ran for too long, and was ended."""


class Agent(t.Protocol):
    """An agent. Deadlines are monotonic seconds.

    Each of these raises NoAgentError if it does not answer in time, BusyError if others talked to it for so long.
    """

    kind: t.ClassVar[str]

    def run(self, command: Command, timeout: float) -> Outcome:
        """Run a command to its end.

        :param timeout: seconds that it has.
        :raises CommandTimeoutError: it ran for longer; it has been ended.
        :raises AgentError: it could not be started.
        """

    def put(self, path: str, source: t.BinaryIO, deadline: float) -> None:
        """Write a file with what is in *source*."""

    def fetch(self, path: str, target: t.BinaryIO, deadline: float) -> None:
        """Write what is in a file to *target*."""


@dataclasses.dataclass(frozen=True)
class Access:
    """The way to a VM's agent.

    :param run_dir: root's own directory of the VM; who has locked it is the agent's client, as there is one at a time.
    """

    channel: Channel
    run_dir: str

    @contextlib.contextmanager
    def turn(self, deadline: float) -> t.Iterator[None]:
        """Be the agent's only client.

        :raises BusyError: somebody else was, until *deadline*.
        """
        from ansible_collections.cocoon.microvm.plugins.module_utils._state import flock

        fd = self.open_lock()
        try:
            try:
                flock(fd, "the guest's agent", deadline, max(0.0, deadline - time.monotonic()))
            except BusyError as exc:
                remedy = "Another task talks to it; give it longer."
                raise BusyError(exc.message, "agent_timeout", remedy) from None
            yield
        finally:
            os.close(fd)

    def open_lock(self) -> int:
        try:
            return os.open(self.run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise AgentClosedError(GONE) from None

    def connect(self) -> socket.socket:
        """A connection to the hypervisor that never waits.

        :raises OSError: it does not listen. :raises HypervisorError: something else than its socket is there.
        """
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.rest import connect

        return connect(self.channel.path, self.channel.uid, 0)

    def preamble(self) -> bytes:
        """What the hypervisor wants to hear before the guest does."""
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import vsock

        return vsock.request(self.channel.port) if self.channel.kind == "vsock" else b""

    def dial(self, deadline: float) -> Line:
        """A line to whoever listens in the guest; tried again until then.

        :raises NoAgentError: nobody did, until *deadline*. :raises AgentClosedError: the VM does not run.
        """
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import vsock

        while True:
            try:
                return Line(vsock.dial(self.channel, deadline) if self.channel.kind == "vsock" else self.connect())
            except (ConnectionRefusedError, FileNotFoundError):
                raise AgentClosedError(GONE) from None
            except (BusyError, OSError):
                pass
            if time.monotonic() + RETRY >= deadline:
                raise NoAgentError("nobody listens in the guest", remedy=REMEDY)
            time.sleep(RETRY)


def question(number: int) -> bytes:
    """What qemu-guest-agent answers with *number*, and Cocoon's agent with an error that is its own."""
    words = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
    return json.dumps(words).encode() + b"\n"


def who_says(line: bytes, numbers: t.Container[int]) -> str | None:
    """Which agent gives such an answer; ``None``: anything else, such as an answer to somebody before us."""
    try:
        document = document_of(line.rpartition(b"\xff")[2])
    except AgentError:
        return None
    answer = document.get("return")
    if isinstance(answer, int) and not isinstance(answer, bool) and answer in numbers:
        return STANDARD
    return COCOON if isinstance(document.get("type"), str) and "message" in document else None


def new_number() -> int:
    return int.from_bytes(os.urandom(6), "big")


def find(access: Access, deadline: float) -> Agent:
    """The agent of a running guest.

    :param deadline: until when its first answer is waited for, here or when it is asked for something.
    :raises NoAgentError: none answers. :raises BusyError: another task talked to it for so long.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.standard_agent import StandardAgent

    if access.channel.kind == "virtio-serial":
        return StandardAgent(access, deadline)
    with access.turn(deadline):
        kind = kind_of(access, deadline)
    if kind == STANDARD:
        return StandardAgent(access, deadline)
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.cocoon_agent import CocoonAgent

    return CocoonAgent(access)


def kind_of(access: Access, deadline: float) -> str:
    """Which agent it is, asked by its only client.

    :raises NoAgentError: none answers.
    """
    if access.channel.kind == "virtio-serial":  # where others than the standard one are not
        return STANDARD
    while True:
        with access.dial(deadline) as line, contextlib.suppress(AgentError, GuestTimeoutError):
            number = new_number()
            line.send(question(number))
            while True:
                kind = who_says(line.read_line(deadline, GREETING_LIMIT), (number,))
                if kind is not None:
                    return kind
        if time.monotonic() + RETRY >= deadline:
            raise NoAgentError("no agent answers in the guest", remedy=REMEDY)
        time.sleep(RETRY)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def decoded(data: t.Any) -> bytes:
    """:raises AgentError: it is not what it should be."""
    try:
        return base64.b64decode(data or b"", validate=True)
    except (TypeError, ValueError, binascii.Error) as exc:
        raise AgentError("the guest's agent gives data that is not base64") from exc


def integer(value: t.Any, least: int, most: int) -> int:
    """:raises AgentError: it is not what it should be."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise AgentError("the guest's agent gives no such number as it should")
    return value
