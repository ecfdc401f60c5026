# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""File systems of a guest that stand still for an instant, and go on whatever becomes of whoever froze them.

The agent is ours alone meanwhile, as it would refuse what others ask of it. That they stand still is its word: a guest
that lies has snapshots that are no better than after a power cut, and nobody else has.
"""

from __future__ import annotations

import contextlib
import time

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.agent import STANDARD, Access, integer, kind_of
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.line import AgentClosedError, AgentError
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.standard_agent import RefusedError, Talk
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.guard import Guard

FREEZE, THAW = "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"
# Seconds for an agent's first answer, for what the guest has to write out before it stands still, and for the thaw.
LOOK, WRITE_OUT, LET_GO = 2.0, 30.0, 10.0
MOST_FILE_SYSTEMS = 1 << 20
# Seconds for which a guard goes on trying.
GUARDED = 300.0

# What a Guard runs: the socket's path, what its hypervisor wants to hear first, the folder whose lock makes one the
# agent's client, and how long to try. Waits until its input ends. One byte says that all went well; without it the
# agent is asked to thaw, after the question whose answer cannot be mistaken. No VM, nothing to do.
PROGRAM = """
import fcntl, json, os, socket, stat, sys, time
path, greeting, folder, seconds = sys.argv[1:]

def thaw(line):
    number = int.from_bytes(os.urandom(6), "big")
    sync = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
    words = json.dumps(sync) + "\\n" + json.dumps({"execute": "guest-fsfreeze-thaw"}) + "\\n"
    line.sendall(greeting.encode() + b"\\xff" + words.encode())
    stream, ours = line.makefile("rb"), False
    for turn in range(1000):
        said = stream.readline(1 << 16)
        if not said:
            return False
        try:
            answer = json.loads(said.rpartition(b"\\xff")[2])
        except ValueError:
            continue
        if ours:
            return "return" in answer
        ours = isinstance(answer, dict) and answer.get("return") == number

if not os.read(0, 1):
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            break
        fd = -1
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
            line = socket.socket(socket.AF_UNIX)
            line.settimeout(5)
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                line.connect("/proc/self/fd/%d" % fd)
                if thaw(line):
                    break
        except (FileNotFoundError, ConnectionRefusedError):
            break
        except OSError:
            pass
        finally:
            for each in {lock, fd} - {-1}:
                os.close(each)
        time.sleep(0.5)
"""


class StuckError(AgentError):
    """File systems of a guest may stand still, and the agent that froze them does not let them go on."""


class Standstill:
    """The file systems of one guest, from :meth:`begin` to :meth:`end`.

    :ivar lasted: they still stood still when they were let go on.
    :ivar problem: they could not be let go on, as far as is known; a process goes on trying.
    """

    def __init__(self, access: Access) -> None:
        self.lasted = False
        self.problem: StuckError | None = None
        self._access = access
        self._held: contextlib.ExitStack | None = None
        self._guard: Guard | None = None

    def begin(self, patience: float = LOOK) -> None:
        """Have them stand still.

        :param patience: seconds for the agent's first answer.
        :raises StuckError: it is not known whether they stand still for good.
        :raises AgentError: the agent will not do it. :raises GuestTimeoutError: none does. They go on.
        """
        until = time.monotonic() + patience
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._access.turn(until))
            if kind_of(self._access, until) != STANDARD:
                raise AgentError("the Cocoon agent freezes no file systems")
            words = (self._access.channel.path, self._access.preamble().decode(), self._access.run_dir, str(GUARDED))
            self._guard = stack.enter_context(Guard(PROGRAM, *words))
            count = self._freeze(until)
            if not count:
                self._guard.done()
                raise AgentError("the guest has no file system that can be frozen")
            self._held = stack.pop_all()

    def _freeze(self, until: float) -> int:
        asked = False
        try:
            with self._access.dial(until) as line:
                talk = Talk(line)
                talk.greet(until)
                asked = True
                return _count(talk, FREEZE, WRITE_OUT)
        except BaseException as exc:
            if asked and not isinstance(exc, RefusedError):  # it may do it yet
                self._let_go()
            elif self._guard is not None:
                self._guard.done()
            if self.problem is not None:
                raise self.problem from exc
            raise

    def end(self) -> None:
        """Let them go on, once. What goes wrong is noted: who calls this has more to bring to its end."""
        held, self._held = self._held, None
        if held is not None:
            with held:
                self._let_go()

    def _let_go(self) -> None:
        until = time.monotonic() + LET_GO
        try:
            with self._access.dial(until) as line:
                talk = Talk(line)
                talk.greet(until)
                self.lasted = _count(talk, THAW, LET_GO) > 0
        except AgentClosedError:  # the VM has ended, or its agent begins anew: the guard sees to it
            return
        except (CocoonError, OSError) as exc:
            self.problem = StuckError(
                f"the file systems of the guest may stand still: it was asked to let them go on, and {exc}",
                "freeze",
                "It is asked again for some minutes; if nothing in it goes on by then, restart the VM.",
            )
            return
        if self._guard is not None:
            self._guard.done()


def _count(talk: Talk, command: str, seconds: float) -> int:
    """How many file systems it is that the agent did *command* to."""
    return integer(talk.ask(command, time.monotonic() + seconds), 0, MOST_FILE_SYSTEMS)
