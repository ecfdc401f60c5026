# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client of qemu-guest-agent, and of what speaks like it.

It has one client at a time, so a turn is short: while a command runs, and between the pieces of a file, others get
theirs. Each turn begins by a question whose answer cannot be mistaken, so that nothing is left of a client before us.
"""

from __future__ import annotations

import contextlib
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, GuestTimeoutError
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.agent import (
    ASK_AGAIN,
    GREETING_LIMIT,
    MOST_OUTPUT,
    REMEDY,
    STANDARD,
    Access,
    Command,
    CommandTimeoutError,
    NoAgentError,
    Outcome,
    decoded,
    encoded,
    integer,
    new_number,
    question,
    who_says,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.line import (
    MOST_WORDS,
    AgentClosedError,
    AgentError,
    Line,
    document_of,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.replies import printable

# Bytes of an answer; and of that which has both outputs of a command in it, in base64.
MOST_ANSWER = 1 << 20
LONGER = {"guest-exec-status": 3 * MOST_OUTPUT}
# qemu-guest-agent takes more, ours has less memory.
MOST_STDIN = 4 << 20
PIECE = 256 << 10
# A turn's length, and what others have time for in between.
TURN, GIVE_WAY = 0.5, 0.02
# Between two looks at a command.
SOON, SELDOM = 0.001, 0.25
# For an agent that says no to what it would not answer.
OBJECTION = 0.2
# For what is done at once.
ANSWER = 10.0
MOST_PID = 1 << 32


class RefusedError(AgentError):
    """The agent's own error.

    :param kind: its class.
    """

    def __init__(self, message: str, kind: str = "", remedy: str | None = None) -> None:
        super().__init__(message, None, remedy)
        self.kind = kind


class Talk:
    """One turn with the agent."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.begun = 0.0

    def greet(self, deadline: float) -> None:
        """Know that what it says from here on is said to us.

        Of a slow one that was asked more than once only the last answer tells that: what it says to other questions,
        and to the marks between them, comes before that.
        """
        numbers: list[int] = []
        while True:
            numbers.append(new_number())
            self.line.send(b"\xff" + question(numbers[-1]))
            try:
                self._hear(numbers, min(deadline, time.monotonic() + ASK_AGAIN), deadline)
                self.begun = time.monotonic()
                return
            except GuestTimeoutError:
                if time.monotonic() >= deadline:
                    raise NoAgentError("no agent answers in the guest", remedy=REMEDY) from None
            except AgentClosedError:
                raise
            except AgentError:
                continue

    def _hear(self, numbers: t.Sequence[int], patience: float, deadline: float) -> None:
        """Return with the answer to the last question; one to another means that it is on its way."""
        while True:
            self.line.skip_past(b"\xff", patience)
            said = self.line.read_line(patience, GREETING_LIMIT)
            if who_says(said, numbers[-1:]) == STANDARD:
                return
            if who_says(said, numbers) == STANDARD:
                patience = min(deadline, time.monotonic() + ANSWER)

    def ask(self, command: str, deadline: float, **arguments: t.Any) -> t.Any:
        """:raises RefusedError: the agent will not do it."""
        self.line.send_document({"execute": command, **({"arguments": arguments} if arguments else {})})
        document = document_of(self.line.read_line(deadline, LONGER.get(command, MOST_ANSWER)))
        if "return" in document:
            return document["return"]
        raise _refusal(command, document.get("error"))


def _refusal(command: str, error: t.Any) -> AgentError:
    said = error if isinstance(error, dict) else {}
    kind, words = said.get("class"), printable(said.get("desc", ""), MOST_WORDS)
    what = command.partition("-")[2]
    short = what.partition("-")[0]
    if "disabled" in words and "frozen" not in words:
        return RefusedError(f"{short}: not allowed by the guest's agent", str(kind), _allow(command))
    if kind == "CommandNotFound":
        return RefusedError(f"{short}: not known to the guest's agent", str(kind))
    if not words:
        return AgentError("the guest's agent gives an answer that is none")
    return RefusedError(f"the guest's agent refused {what}: {words}", str(kind))


def _allow(command: str) -> str:
    return f"Allow {command} in the settings of the agent in the guest (of RHEL: in /etc/sysconfig)."


class StandardAgent:
    """An agent on a line that it has for itself.

    :param until: when its first answer is waited for; each of the next ones is for as long again.
    """

    kind: t.ClassVar[str] = STANDARD

    def __init__(self, access: Access, until: float) -> None:
        self.access = access
        self.first: float | None = until
        self.patience = max(ANSWER, until - time.monotonic())

    @contextlib.contextmanager
    def _turn(self, deadline: float) -> t.Iterator[Talk]:
        """A turn that others leave us before *deadline*."""
        with self.access.turn(deadline if self.first is None else self.first):
            until = self._soon(deadline) if self.first is None else self.first
            with self.access.dial(until) as line:
                talk = Talk(line)
                talk.greet(until)
                self.first = None
                yield talk

    def _soon(self, deadline: float) -> float:
        """When what is done at once is to be done: an agent that has answered may have fallen silent."""
        return min(deadline, time.monotonic() + self.patience)

    def ask(self, command: str, deadline: float, **arguments: t.Any) -> t.Any:
        """One question, one answer."""
        with self._turn(deadline) as talk:
            return talk.ask(command, deadline, **arguments)

    # Commands.

    def run(self, command: Command, timeout: float) -> Outcome:
        if len(command.stdin) > MOST_STDIN:
            raise AgentError(
                f"the guest's agent takes {MOST_STDIN >> 20} MiB of standard input, and not {len(command.stdin)} bytes",
                "stdin",
                "Copy it into the guest as a file.",
            )
        with self._turn(time.monotonic() + timeout) as talk:
            deadline = time.monotonic() + timeout
            pid = _begin(talk, command, self._soon(deadline))
            found = self._look(talk, pid, min(deadline, talk.begun + TURN))
        pause = GIVE_WAY
        while found is None:
            if time.monotonic() >= deadline:
                self._end(pid)
                raise CommandTimeoutError("the command in the guest did not end in time; it has been killed", "timeout")
            time.sleep(pause)
            pause = min(SELDOM, pause * 1.5)
            # It has run by its own time: there is some more for its last words.
            with self._turn(max(deadline, time.monotonic()) + ANSWER) as talk:
                found = self._look(talk, pid, 0.0)
        return _outcome(found)

    @staticmethod
    def _look(talk: Talk, pid: int, until: float) -> dict[str, t.Any] | None:
        """What became of a command, looked at until then."""
        pause = SOON
        while True:
            status = talk.ask("guest-exec-status", time.monotonic() + ANSWER, pid=pid)
            if not isinstance(status, dict) or not isinstance(status.get("exited"), bool):
                raise AgentError("the guest's agent does not tell what became of the command")
            if status["exited"]:
                return status
            if time.monotonic() + pause >= until:
                return None
            time.sleep(pause)
            pause = min(GIVE_WAY, pause * 1.5)

    def _end(self, pid: int) -> None:
        """Kill a command, and what it started where the agent gave it a session of its own.

        The agent keeps what both have printed until it is asked what became of them.
        """
        script = 'kill -9 "-$1" 2> /dev/null || kill -9 "$1"'
        with contextlib.suppress(CocoonError), self._turn(time.monotonic() + ANSWER) as talk:
            killer = _begin(talk, Command(("/bin/sh", "-c", script, "sh", str(pid))), time.monotonic() + ANSWER)
            for each in (killer, pid):
                self._look(talk, each, talk.begun + TURN)

    # The machine.

    def shut_down(self, deadline: float, reboot: bool = False) -> None:
        """Have the guest shut itself down. The agent says nothing when it does, only when it will not.

        :param reboot: and then reboot, as a machine does that has no power to switch off.
        :raises AgentError: it will not.
        """
        with self._turn(deadline) as talk, contextlib.suppress(GuestTimeoutError, AgentClosedError):
            talk.ask("guest-shutdown", time.monotonic() + OBJECTION, mode="reboot" if reboot else "powerdown")

    def set_time(self, deadline: float) -> None:
        """Set the guest's clock to what ours says once the agent listens to us."""
        with self._turn(deadline) as talk:
            talk.ask("guest-set-time", deadline, time=int(time.time() * 1e9))

    # Files.

    def put(self, path: str, source: t.BinaryIO, deadline: float) -> None:
        def write(talk: Talk, handle: int) -> bool:
            piece = source.read(PIECE)
            if not piece:
                return False
            answer = talk.ask("guest-file-write", self._soon(deadline), handle=handle, **{"buf-b64": encoded(piece)})
            written = answer.get("count") if isinstance(answer, dict) else None
            if written != len(piece):
                raise AgentError("the guest's agent wrote less than it was given")
            return True

        self._with_file(path, "w", deadline, write)

    def fetch(self, path: str, target: t.BinaryIO, deadline: float) -> None:
        def read(talk: Talk, handle: int) -> bool:
            answer = talk.ask("guest-file-read", self._soon(deadline), handle=handle, count=PIECE)
            if not isinstance(answer, dict):
                raise AgentError("the guest's agent does not read the file")
            piece = decoded(answer.get("buf-b64"))
            if len(piece) > PIECE:
                raise AgentError("the guest's agent read more than it was asked for")
            target.write(piece)
            return bool(piece)

        self._with_file(path, "r", deadline, read)

    def _with_file(self, path: str, mode: str, deadline: float, step: t.Callable[[Talk, int], bool]) -> None:
        """Do *step* until it says that there is no more, in as many turns as that takes."""
        handle = None
        more = True
        try:
            while more:
                with self._turn(deadline) as talk:
                    if handle is None:
                        answer = talk.ask("guest-file-open", self._soon(deadline), path=path, mode=mode)
                        handle = integer(answer, 0, 1 << 62)
                    while more and time.monotonic() < talk.begun + TURN:
                        more = step(talk, handle)
                    if not more:
                        last, handle = handle, None
                        # What could not be written is told here at the latest.
                        talk.ask("guest-file-close", self._soon(deadline), handle=last)
                if more:
                    time.sleep(GIVE_WAY)
        finally:
            if handle is not None:
                with contextlib.suppress(CocoonError):
                    self.ask("guest-file-close", time.monotonic() + ANSWER, handle=handle)


def _begin(talk: Talk, command: Command, deadline: float) -> int:
    arguments: dict[str, t.Any] = {
        "path": command.argv[0],
        "arg": list(command.argv[1:]),
        "env": [f"{name}={value}" for name, value in command.environment().items()],
        "capture-output": True,
    }
    if command.stdin:
        arguments["input-data"] = encoded(command.stdin)
    answer = talk.ask("guest-exec", deadline, **arguments)
    return integer(answer.get("pid") if isinstance(answer, dict) else None, 1, MOST_PID)


def _outcome(status: t.Mapping[str, t.Any]) -> Outcome:
    signal = status.get("signal")
    code = integer(status.get("exitcode"), 0, 255) if signal is None else 128 + integer(signal, 1, 64)
    return Outcome(
        code,
        decoded(status.get("out-data"))[:MOST_OUTPUT],
        decoded(status.get("err-data"))[:MOST_OUTPUT],
        bool(status.get("out-truncated") or status.get("err-truncated")),
    )
