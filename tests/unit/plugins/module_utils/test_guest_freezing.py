# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""File systems of guests that stand still, with agents that do as they are told, and agents that do not."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import typing as t
import warnings
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import BusyError, CocoonError, GuestTimeoutError
from ansible_collections.cocoon.microvm.plugins.module_utils._guest import agent as agents
from ansible_collections.cocoon.microvm.plugins.module_utils._guest import freezing, standard_agent
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.agent import Access
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.freezing import FREEZE, THAW, Standstill
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.line import AgentError
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.standard_agent import RefusedError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Channel
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import asking
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Options, Run
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm
from ansible_collections.cocoon.microvm.tests.unit.agents import Cocoon, Server, make_vm
from ansible_collections.cocoon.microvm.tests.unit.children import reap

SET_TIME = "guest-set-time"
SHUT_DOWN = "guest-shutdown"
SILENT = None
REFUSED = {"error": {"class": "GenericError", "desc": "not now"}}


class Guest:
    """A guest whose agent answers a freeze and a thaw as *freeze* and *thaw* say, one after the other.

    :ivar asked: what it was asked for.
    """

    def __init__(self, folder: Path, freeze: t.Any = 2, thaw: t.Sequence[t.Any] = (2,), vsock: bool = False) -> None:
        self.path, self.vsock = folder / ("vsock.sock" if vsock else "agent.sock"), vsock
        self.answers: dict[str, list[t.Any]] = {FREEZE: [freeze], THAW: list(thaw), SET_TIME: [{"return": {}}]}
        self.answers[SHUT_DOWN] = [SILENT]
        self.asked: list[str] = []
        self.arguments: list[t.Any] = []
        self.late = 0.0
        self.thawed = threading.Event()
        self.server = Server(self.path, self.serve)

    def access(self) -> Access:
        kind: t.Literal["virtio-serial", "vsock"] = "vsock" if self.vsock else "virtio-serial"
        return Access(Channel(kind, str(self.path), 1024 if self.vsock else None), str(self.path.parent))

    def serve(self, client: socket.socket) -> None:
        stream = client.makefile("rb")
        if self.vsock:
            assert stream.readline() == b"CONNECT 1024\n"
            client.sendall(b"OK 1073741824\n")
        for line in stream:
            late, self.late = self.late, 0.0
            time.sleep(late)
            asked = json.loads(line.rpartition(b"\xff")[2])
            if asked["execute"] == "guest-sync-delimited":
                client.sendall(b"\xff" + json.dumps({"return": asked["arguments"]["id"]}).encode() + b"\n")
                continue
            self.asked.append(asked["execute"])
            self.arguments.append(asked.get("arguments"))
            answers = self.answers[asked["execute"]]
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if answer is not SILENT:
                said = answer if isinstance(answer, dict) else {"return": answer}
                client.sendall(json.dumps(said).encode() + b"\n")
                if asked["execute"] == THAW:
                    self.thawed.set()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.server.close()
        reap()


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WRITE_OUT", "LET_GO"):
        monkeypatch.setattr(freezing, name, 0.3)
    monkeypatch.setattr(standard_agent, "ASK_AGAIN", 0.1)


@pytest.mark.parametrize("vsock", [False, True])
def test_they_stand_still_and_go_on(tmp_path: Path, vsock: bool) -> None:
    with Guest(tmp_path, vsock=vsock) as guest:
        standstill = Standstill(guest.access())
        standstill.begin()
        with pytest.raises(BusyError), guest.access().turn(time.monotonic() + 0.1):
            pass
        assert guest.asked == [FREEZE]
        standstill.end()
        standstill.end()
        assert (standstill.lasted, standstill.problem) == (True, None)
        with guest.access().turn(time.monotonic() + 0.1):
            pass
        reap()  # the guard has nothing to do
        assert guest.asked == [FREEZE, THAW]


@pytest.mark.parametrize(
    ("freeze", "error", "words", "asked"),
    [
        (REFUSED, RefusedError, "refused fsfreeze-freeze: not now", [FREEZE]),
        (0, AgentError, "no file system that can be frozen", [FREEZE]),
        # It may have done it, or do it yet.
        (SILENT, GuestTimeoutError, "does not answer", [FREEZE, THAW]),
        (-1, AgentError, "no such number", [FREEZE, THAW]),
        ("many", AgentError, "no such number", [FREEZE, THAW]),
        ({}, AgentError, "an answer that is none", [FREEZE, THAW]),
    ],
    ids=range(6),
)
def test_what_does_not_stand_still(
    tmp_path: Path, freeze: t.Any, error: type[CocoonError], words: str, asked: list[str]
) -> None:
    with Guest(tmp_path, freeze) as guest:
        standstill = Standstill(guest.access())
        with pytest.raises(error, match=words):
            standstill.begin()
        standstill.end()
        reap()
        assert guest.asked == asked


def test_one_that_does_not_say_that_it_thaws(tmp_path: Path) -> None:
    """Whoever copied its disks is told, and somebody goes on asking."""
    with Guest(tmp_path, thaw=(SILENT, REFUSED, 2)) as guest:
        standstill = Standstill(guest.access())
        standstill.begin()
        standstill.end()
        assert standstill.problem is not None and not standstill.lasted
        assert "may stand still" in str(standstill.problem) and "restart the VM" in str(standstill.problem)
        assert guest.thawed.wait(20)
        reap()
        assert guest.asked == [FREEZE, THAW, THAW, THAW]


def test_one_that_is_not_known_to_have_frozen_or_thawed(tmp_path: Path) -> None:
    with Guest(tmp_path, SILENT, (SILENT, 2)) as guest:
        with pytest.raises(freezing.StuckError, match="may stand still"):
            Standstill(guest.access()).begin()
        assert guest.thawed.wait(20)


def test_they_went_on_too_soon(tmp_path: Path) -> None:
    with Guest(tmp_path, thaw=(0,)) as guest:
        standstill = Standstill(guest.access())
        standstill.begin()
        standstill.end()
        assert (standstill.lasted, standstill.problem) == (False, None)


@pytest.mark.parametrize("vsock", [False, True])
def test_whoever_froze_them_is_killed(tmp_path: Path, vsock: bool) -> None:
    with Guest(tmp_path, vsock=vsock) as guest:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the other thread is the guest's
            child = os.fork()
        if child == 0:
            try:
                Standstill(guest.access()).begin(20)
                os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert guest.thawed.wait(20)
        assert guest.asked == [FREEZE, THAW]


def test_the_vm_ends_meanwhile(tmp_path: Path) -> None:
    """Nothing stands still any more, and nobody goes on asking."""
    with Guest(tmp_path) as guest:
        standstill = Standstill(guest.access())
        standstill.begin()
        guest.server.close()
        begun = time.monotonic()
        standstill.end()
        reap()
        assert (standstill.lasted, standstill.problem) == (False, None) and time.monotonic() - begun < 10


def test_nobody_answers(tmp_path: Path) -> None:
    def deaf(client: socket.socket) -> None:
        while client.recv(1 << 16):
            pass

    with Server(tmp_path / "agent.sock", deaf):
        with pytest.raises(agents.NoAgentError):
            Standstill(Access(Channel("virtio-serial", str(tmp_path / "agent.sock")), str(tmp_path))).begin(0.3)
    reap()


def test_an_agent_that_cannot(tmp_path: Path) -> None:
    with Server(tmp_path / "agent.sock", Cocoon().serve, parallel=True):
        way = Access(Channel("vsock", str(tmp_path / "agent.sock"), 1024), str(tmp_path))
        with pytest.raises(AgentError, match="Cocoon agent freezes no file systems"):
            Standstill(way).begin()


@pytest.mark.parametrize("listens", [False, True])
def test_waking(tmp_path: Path, listens: bool) -> None:
    """A guest that a killed run left, where somebody listens in it; where nobody does, that costs no time."""
    store = Store.open(Paths(*(str(tmp_path / name) for name in ("a", "r", "l"))))
    folder = make_vm(store, "web1", "firecracker", "own")
    vm = Vm(Run(store, Options()), t.cast(Record, store.vm_record("web1")))
    begun = time.monotonic()
    if listens:
        with Guest(folder, thaw=(REFUSED,), vsock=True) as guest:
            asking.wake(vm, 20.0)
            asking.set_time(vm, 20.0)
            assert guest.asked == [THAW, SET_TIME, SET_TIME]
    else:
        with Server(folder / "vsock.sock", lambda _client: None):
            asking.wake(vm, 20.0)
    assert time.monotonic() - begun < 10


def test_one_that_has_to_come_to_first(tmp_path: Path) -> None:
    """It is told the time that it is by then."""
    store = Store.open(Paths(*(str(tmp_path / name) for name in ("a", "r", "l"))))
    folder = make_vm(store, "web1", "firecracker", "own")
    vm = Vm(Run(store, Options()), t.cast(Record, store.vm_record("web1")))
    with Guest(folder, vsock=True) as guest:
        guest.late = 1.0
        begun = time.time()
        asking.set_time(vm, 0.3)
        assert guest.asked == [SET_TIME] and begun + 1 <= guest.arguments[0]["time"] / 1e9 <= time.time()


@pytest.mark.parametrize(("name", "mode"), [("cloud-hypervisor", "powerdown"), ("firecracker", "reboot")])
def test_shutting_down(tmp_path: Path, name: str, mode: str) -> None:
    """In the way that ends the VM, which is another one where there is no power to switch off."""
    store = Store.open(Paths(*(str(tmp_path / name) for name in ("a", "r", "l"))))
    folder = make_vm(store, "web1", name, "own")
    vm = Vm(Run(store, Options()), t.cast(Record, store.vm_record("web1")))
    with Guest(folder, vsock=True) as guest:
        assert asking.shut_down(vm, 20.0)
        assert (guest.asked, guest.arguments) == ([SHUT_DOWN], [{"mode": mode}])
    assert not asking.shut_down(vm, 0.5)  # nobody listens any more
