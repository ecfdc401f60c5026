# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client of the Cocoon agent, which published Cocoon images have: a connection for each command, lines of JSON.

It knows commands and nothing else, so files go through commands, too.
"""

from __future__ import annotations

import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import GuestTimeoutError
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.agent import (
    COCOON,
    MOST_OUTPUT,
    Access,
    Command,
    CommandTimeoutError,
    Outcome,
    decoded,
    encoded,
    integer,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.line import (
    MOST_WORDS,
    AgentError,
    Line,
    document_of,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.replies import printable

LINE_LIMIT = 8 << 20
PIECE = 256 << 10
# What of a command's input waits to be taken.
AHEAD = 1 << 20

Sink = t.Callable[[bytes], object]


class CocoonAgent:
    """An agent that takes as many commands at once as there are connections."""

    kind: t.ClassVar[str] = COCOON

    def __init__(self, access: Access) -> None:
        self.access = access

    def run(self, command: Command, timeout: float) -> Outcome:
        import io

        deadline = time.monotonic() + timeout
        stdout, stderr = _Kept(), _Kept()
        code = self._run(command, io.BytesIO(command.stdin), stdout.take, stderr.take, deadline)
        return Outcome(code, bytes(stdout.data), bytes(stderr.data), stdout.cut or stderr.cut)

    def put(self, path: str, source: t.BinaryIO, deadline: float) -> None:
        self._by_command(path, 'cat > "$1"', source, None, deadline)

    def fetch(self, path: str, target: t.BinaryIO, deadline: float) -> None:
        self._by_command(path, 'cat < "$1"', None, target.write, deadline)

    def _by_command(
        self, path: str, script: str, source: t.BinaryIO | None, sink: Sink | None, deadline: float
    ) -> None:
        import io

        said = _Kept()
        command = Command(("/bin/sh", "-c", script, "sh", path))
        if self._run(command, source or io.BytesIO(), sink or said.take, said.take, deadline):
            raise AgentError(f"the guest cannot do that: {printable(said.data.decode(errors='replace'), MOST_WORDS)}")

    def _run(self, command: Command, source: t.BinaryIO, stdout: Sink, stderr: Sink, deadline: float) -> int:
        """The command's exit code; what it prints goes to *stdout* and *stderr*."""
        with self.access.dial(deadline) as line:
            line.send_document({"type": "exec", "argv": list(command.argv), "env": command.environment()})
            line.feed = _Feed(line, source).go_on
            try:
                while True:
                    document = document_of(line.read_line(deadline, LINE_LIMIT))
                    kind = document.get("type")
                    if kind in ("stdout", "stderr"):
                        (stdout if kind == "stdout" else stderr)(decoded(document.get("data")))
                    elif kind == "exit":  # it leaves a nought out
                        return integer(document.get("exit_code", 0), -1, 255) & 255
                    elif kind == "error":
                        words = printable(document.get("message"), MOST_WORDS)
                        raise AgentError(f"the guest's agent refused exec: {words}")
            except GuestTimeoutError:  # it ends a command whose line is closed
                raise CommandTimeoutError(
                    "the command in the guest did not end in time; it has been killed", "timeout"
                ) from None


class _Feed:
    """What a command reads, passed on no faster than it is taken."""

    def __init__(self, line: Line, source: t.BinaryIO) -> None:
        self.line, self.source, self.more = line, source, True

    def go_on(self) -> None:
        while self.more and self.line.unsent < AHEAD:
            piece = self.source.read(PIECE)
            self.more = bool(piece)
            self.line.send_document({"type": "stdin", "data": encoded(piece)} if piece else {"type": "stdin_close"})


class _Kept:
    """What is kept of an output."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.cut = False

    def take(self, piece: bytes) -> None:
        room = MOST_OUTPUT - len(self.data)
        self.cut = self.cut or len(piece) > room
        self.data += piece[:room]
