# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest that was stopped to be saved goes on, whatever becomes of whoever stopped it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError

# What a Guard runs for a REST API: the path of its socket, and the call. Waits until its input ends. One byte says that
# all went well; without it whoever held the other end is dead or has got no further, and the hypervisor is asked to let
# the guest go on. A link in the socket's place leads nowhere, as in rest.hold.
CALL = """
import os, socket, stat, sys, time
if not os.read(0, 1):
    for attempt in range(50):
        try:
            fd = os.open(sys.argv[1], os.O_PATH | os.O_NOFOLLOW)
            line = socket.socket(socket.AF_UNIX)
            line.settimeout(60)
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                line.connect("/proc/self/fd/%d" % fd)
                line.sendall(sys.argv[2].encode())
                answer = line.recv(64).split()
                if answer[1:2] and answer[1][:1] == b"2":
                    break
        except (FileNotFoundError, ConnectionRefusedError):
            break  # it has ended
        except OSError:
            pass
        time.sleep(0.2)
"""


def request(method: str, target: str, body: t.Any = None) -> str:
    """A call as it goes over the line."""
    content = "" if body is None else json.dumps(body)
    words = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {len(content)}"]
    kind = ["Content-Type: application/json"] if content else []
    return "\r\n".join([*words, *kind, "", content])


class Guard:
    """A process that runs *program* with *words* if this one dies, or leaves the block, before it says :meth:`done`."""

    def __init__(self, program: str, *words: str) -> None:
        self._process = subprocess.Popen(  # pylint: disable=consider-using-with,ansible-bad-function  # outlives us
            [sys.executable, "-I", "-S", "-c", program, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )

    def done(self) -> None:
        """The guest runs, or is meant to stand still."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.write(b"x")
                self._process.stdin.close()
            self._process.wait()
            self._process.stdin = None

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._process.stdin is not None:  # no word: it acts, and nobody waits for it
            self._process.stdin.close()
            self._process.stdin = None
            self._process.returncode = 0


@dataclasses.dataclass
class Still:
    """How long a guest stood still."""

    seconds: float = 0.0


@contextlib.contextmanager
def standing_still(
    runs: bool, watch: t.Sequence[str], stop: t.Callable[[], object], go_on: t.Callable[[], object], stay: bool
) -> t.Iterator[Still]:
    """Have a guest that *runs* stand still in the block. It goes on then, unless it is to *stay*; if anything fails,
    it goes on always, and what failed first is what is told.

    :param watch: program and words of the :class:`Guard`, which goes on trying what *go_on* could not.
    :raises HypervisorError: the guest could not be stopped, or let go on.
    """
    still = Still()
    if not runs:
        yield still
        return
    with Guard(*watch) as guard:  # it takes a while to be there: before the guest stands
        begun = time.monotonic()
        try:
            stop()
            yield still
        except BaseException:
            with contextlib.suppress(HypervisorError):  # the hypervisor may still be at what took too long
                go_on()
                guard.done()
            raise
        if not stay:
            go_on()
        still.seconds = round(time.monotonic() - begun, 6)
        guard.done()
