# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a guest is, from the words of a QEMU that is played by a thread."""

from __future__ import annotations

import json
import socket
import threading
import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import runstate, sockets
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.qmp import Qmp
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.runstates import run_state

GREETING = b'{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}}\r\n'


class Monitor(threading.Thread):
    """Answers the commands of one connection; *status* is what it says of its guest."""

    def __init__(self, line: socket.socket, status: t.Any, greets: bool = False) -> None:
        super().__init__(daemon=True)
        self.line, self.status, self.greets = line, status, greets
        self.asked: list[str] = []
        self.start()

    def run(self) -> None:
        line = self.line.accept()[0] if self.greets else self.line
        with line, line.makefile("rb") as stream:
            if self.greets:
                line.sendall(GREETING)
            for request in stream:
                command = json.loads(request)
                self.asked.append(command["execute"])
                said = {"status": self.status} if command["execute"] == "query-status" else {}
                line.sendall(json.dumps({"return": said, "id": command["id"]}).encode() + b"\r\n")


def play(status: t.Any) -> tuple[Qmp, Monitor]:
    ours, theirs = socket.socketpair()
    return Qmp(ours), Monitor(theirs, status)


@pytest.mark.parametrize(
    ("status", "meaning"),
    [
        *((word, word) for word in runstate.SAME),
        *(
            (word, "paused")
            for word in ("paused", "prelaunch", "inmigrate", "postmigrate", "finish-migrate", "suspended")
        ),
    ],
)
def test_words(status: str, meaning: str) -> None:
    qmp, _monitor = play(status)
    with qmp:
        assert runstate.meaning(runstate.word(qmp)) == meaning


@pytest.mark.parametrize("status", [None, 1, "", "a b", "x" * 33, "run\x1b[2Jning"])
def test_no_sensible_word(status: t.Any) -> None:
    qmp, _monitor = play(status)
    with qmp, pytest.raises(HypervisorError, match="no sensible status"):
        runstate.word(qmp)


@pytest.mark.parametrize(
    ("status", "commands"),
    [
        ("paused", ["query-status", "cont"]),
        ("io-error", ["query-status", "cont"]),
        ("watchdog", ["query-status", "cont"]),
        # what cannot go on boots anew: a `cont` by itself is refused
        ("internal-error", ["query-status", "system_reset", "cont"]),
        ("guest-panicked", ["query-status", "system_reset", "cont"]),
        ("shutdown", ["query-status", "system_reset", "cont"]),
    ],
)
def test_going_on(status: str, commands: list[str]) -> None:
    qmp, monitor = play(status)
    with qmp:
        runstate.go_on(qmp)
    monitor.join(10)
    assert monitor.asked == commands


def test_asking_by_the_run_dir(tmp_path: t.Any) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sockets.qmp_path(str(tmp_path)))
        listener.listen(1)
        Monitor(listener, "io-error", greets=True)
        assert run_state("qemu", str(tmp_path), 10) == "io-error"


def test_nobody_can_tell(tmp_path: t.Any) -> None:
    """Where nobody listens, or somebody else is being served, nothing is said, and nothing waited for."""
    assert run_state("qemu", str(tmp_path), 10) is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sockets.qmp_path(str(tmp_path)))
        listener.listen(1)
        assert run_state("qemu", str(tmp_path), 0.02) is None
    assert run_state("firecracker", str(tmp_path)) is None
