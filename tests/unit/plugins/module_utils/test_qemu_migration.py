# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine's state through the pipe, against a QEMU that is played: well, badly, and not to the end."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.guard import Guard
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import migration
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.qmp import Qmp

MIB = 1 << 20
GREETING = {"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}
Message = dict[str, t.Any]


class Qemu(threading.Thread):
    """The other end of a QMP connection.

    :param data: what it writes as its state; what it is to read if it loads one, it keeps in *loaded*.
    :param status: of the event with which a migration ends; ``hang`` for none, ``die`` for the end of QEMU.
    :param reason: what it says went wrong; ``None`` for nothing.
    :param refused: commands that it refuses.
    :param reads: bytes that it reads of a state, no more.
    """

    def __init__(
        self,
        data: bytes = b"",
        status: str = "completed",
        reason: t.Any = None,
        refused: t.Sequence[str] = (),
        reads: int = 1 << 40,
    ) -> None:
        super().__init__(daemon=True)
        self.ours, self.theirs = socket.socketpair()
        self.data, self.status, self.reason, self.refused, self.reads = data, status, reason, refused, reads
        self.loaded = b""
        self.asked: list[Message] = []
        self.channel: int | None = None
        self.start()

    def run(self) -> None:
        with self.theirs:
            while True:
                data, fds = socket.recv_fds(self.theirs, 1 << 16, 4)[:2]
                if fds:
                    self.channel = fds[0]
                if not data:
                    break
                for line in data.splitlines():
                    if not self.answer(json.loads(line)):
                        self.let_go()
                        return
        self.let_go()

    def answer(self, request: Message) -> bool:
        """Whether it lives on."""
        command = request["execute"]
        self.asked.append(request)
        if command in self.refused:
            self.say({"error": {"class": "GenericError", "desc": f"no {command}"}, "id": request["id"]})
            return True
        result = {"error-desc": self.reason} if command == "query-migrate" and self.reason is not None else {}
        self.say({"return": result, "id": request["id"]})
        if command == "closefd":
            self.let_go()
        if command in ("migrate", "migrate-incoming"):
            return self.migrate(command)
        return True

    def migrate(self, command: str) -> bool:
        self.say({"event": "STOP"})
        for status in ("setup", "active"):
            self.say({"event": "MIGRATION", "data": {"status": status}})
        status = self.status
        try:
            if command == "migrate":
                self.write()
            else:
                self.read()
        except BrokenPipeError:
            status = "failed"
        if status == "die":
            return False
        if status != "hang":
            self.let_go()
            self.say({"event": "MIGRATION", "data": {"status": status}})
        return True

    def write(self) -> None:
        view = memoryview(self.data)
        while view and self.channel is not None:
            view = view[os.write(self.channel, view) :]

    def read(self) -> None:
        while self.channel is not None and len(self.loaded) < self.reads:
            data = os.read(self.channel, min(MIB, self.reads - len(self.loaded)))
            if not data:
                return
            self.loaded += data

    def let_go(self) -> None:
        if self.channel is not None:
            os.close(self.channel)
            self.channel = None

    def say(self, message: Message) -> None:
        self.theirs.sendall(json.dumps(message).encode() + b"\r\n")

    @property
    def commands(self) -> list[str]:
        return [request["execute"] for request in self.asked]


@pytest.fixture
def play() -> t.Iterator[t.Callable[..., tuple[Qmp, Qemu]]]:
    """Makes connections to QEMUs; in the end no descriptor and no thread is left."""
    before = set(os.listdir("/proc/self/fd"))
    opened: list[tuple[Qmp, Qemu]] = []

    def make(*args: t.Any, **options: t.Any) -> tuple[Qmp, Qemu]:
        qemu = Qemu(*args, **options)
        opened.append((Qmp(qemu.ours), qemu))
        return opened[-1]

    yield make
    for qmp, qemu in opened:
        qmp.close()
        qemu.join(10)
        assert not qemu.is_alive()
    for thread in threading.enumerate():
        if isinstance(thread, migration._Pump):
            thread.join(10)
            assert not thread.is_alive()
    assert set(os.listdir("/proc/self/fd")) == before


Play = t.Callable[..., tuple[Qmp, Qemu]]


def save(qmp: Qmp, path: Path, limit: int = 64 * MIB, timeout: float = 20.0) -> bytes:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        migration.write_out(qmp, fd, limit, timeout)
    finally:
        os.close(fd)
    return path.read_bytes()


@pytest.mark.parametrize("shared", [False, True])
def test_prepare(play: Play, shared: bool) -> None:
    qmp, qemu = play()
    migration.prepare(qmp, ignore_shared=shared)
    capabilities, parameters = (request["arguments"] for request in qemu.asked)
    states = {entry["capability"]: entry["state"] for entry in capabilities["capabilities"]}
    assert states == {"x-ignore-shared": shared, "events": True}
    assert parameters["max-bandwidth"] > 1 << 40


# ----------------------------------------------------------------------------------------------------- out of it


@pytest.mark.parametrize("size", [0, 1, 600_000, 3 * MIB + 7])
def test_write_out(play: Play, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    qmp, qemu = play(data)
    assert save(qmp, tmp_path / "vmstate", limit=max(size, 1)) == data
    assert qemu.commands == ["getfd", "migrate"]
    assert qemu.asked[1]["arguments"] == {"uri": f"fd:{qemu.asked[0]['arguments']['fdname']}"}


@pytest.mark.parametrize("size", [MIB + 1, 20 * MIB])
def test_no_more_than_the_limit(play: Play, tmp_path: Path, size: int) -> None:
    """A QEMU that somebody broke out into could fill the disk otherwise."""
    qmp, _qemu = play(bytes(size))
    with pytest.raises(HypervisorError, match="larger than it can be"):
        save(qmp, tmp_path / "vmstate", limit=MIB)
    assert (tmp_path / "vmstate").stat().st_size <= MIB


@pytest.mark.parametrize("status", ["failed", "cancelled"])
@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("device 'x' cannot be migrated", "device 'x' cannot be migrated"),
        ("a\x1b[2Jb\nc" + "x" * 5000, "a [2Jb c"),
        (None, "QEMU gives no reason"),
        ("", "QEMU gives no reason"),
    ],
)
def test_failed(play: Play, tmp_path: Path, status: str, reason: t.Any, words: str) -> None:
    qmp, _qemu = play(b"half", status, reason)
    with pytest.raises(HypervisorError, match="could not be saved") as caught:
        save(qmp, tmp_path / "vmstate")
    assert words in caught.value.message and caught.value.message.isprintable()
    assert len(caught.value.message) < 700


def test_no_room_for_it(play: Play) -> None:
    """QEMU is told by its broken pipe, and the caller by the error that there was."""
    qmp, qemu = play(bytes(4 * MIB))
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space left"):
            migration.write_out(qmp, fd, 64 * MIB)
    finally:
        os.close(fd)
    assert qemu.channel is None


def test_refused(play: Play, tmp_path: Path) -> None:
    """Nothing will ever come through the pipe: it is closed, or its reader would wait for ever."""
    qmp, qemu = play(refused=["migrate"])
    with pytest.raises(HypervisorError, match="could not be saved: QEMU refused migrate: no migrate"):
        save(qmp, tmp_path / "vmstate")
    assert qemu.commands == ["getfd", "migrate", "closefd"]


def test_channel_refused(play: Play, tmp_path: Path) -> None:
    qmp, qemu = play(refused=["getfd"])
    with pytest.raises(HypervisorError, match="no getfd"):
        save(qmp, tmp_path / "vmstate")
    qemu.let_go()


def test_qemu_dies_meanwhile(play: Play, tmp_path: Path) -> None:
    qmp, _qemu = play(b"half", "die")
    with pytest.raises(HypervisorError, match="could not be saved: the hypervisor closed"):
        save(qmp, tmp_path / "vmstate")


def test_it_takes_too_long(play: Play, tmp_path: Path) -> None:
    """It is called off: its end, whenever that is, would stop a guest that was let go on."""
    qmp, qemu = play(b"half", "hang")
    with pytest.raises(HypervisorError, match=r"not done within 0\.05 s"):
        save(qmp, tmp_path / "vmstate", timeout=0.05)
    assert qemu.commands[-1] == "migrate_cancel"


# -------------------------------------------------------------------------------------------------------- into it


def load(qmp: Qmp, path: Path, timeout: float = 20.0) -> None:
    migration.read_in(qmp, str(path), timeout)


@pytest.mark.parametrize("size", [0, 1, 600_000, 3 * MIB + 7])
def test_read_in(play: Play, tmp_path: Path, size: int) -> None:
    path = tmp_path / "vmstate"
    path.write_bytes(os.urandom(size))
    qmp, qemu = play()
    load(qmp, path)
    assert qemu.loaded == path.read_bytes()
    assert qemu.commands == ["getfd", "migrate-incoming"]


def test_it_does_not_fit(play: Play, tmp_path: Path) -> None:
    """QEMU stops reading in the middle, and says why."""
    path = tmp_path / "vmstate"
    path.write_bytes(bytes(4 * MIB))
    qmp, _qemu = play(status="failed", reason="Unknown ramblock", reads=100_000)
    with pytest.raises(HypervisorError, match="could not be loaded: Unknown ramblock"):
        load(qmp, path)


def test_qemu_dies_while_it_loads(play: Play, tmp_path: Path) -> None:
    path = tmp_path / "vmstate"
    path.write_bytes(bytes(4 * MIB))
    qmp, _qemu = play(status="die", reads=100_000)
    with pytest.raises(HypervisorError):
        load(qmp, path)


def test_loading_takes_too_long(play: Play, tmp_path: Path) -> None:
    path = tmp_path / "vmstate"
    path.write_bytes(b"state")
    qmp, _qemu = play(status="hang")
    with pytest.raises(HypervisorError, match=r"could not be loaded: not done within 0\.05 s"):
        load(qmp, path, 0.05)


def test_a_state_that_is_not_there(play: Play, tmp_path: Path) -> None:
    qmp, qemu = play()
    with pytest.raises(FileNotFoundError):
        load(qmp, tmp_path / "vmstate")
    (tmp_path / "vmstate").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        load(qmp, tmp_path / "vmstate")
    assert not qemu.asked


def test_channel_refused_for_loading(play: Play, tmp_path: Path) -> None:
    (tmp_path / "vmstate").write_bytes(b"state")
    qmp, qemu = play(refused=["getfd"])
    with pytest.raises(HypervisorError, match="no getfd"):
        load(qmp, tmp_path / "vmstate")
    qemu.join(0)
    qemu.let_go()


# ------------------------------------------------------------------------------------------------------ the guard


class Listener:
    """A QMP socket at which a guard may appear."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(path))
        self.socket.listen(4)
        self.socket.settimeout(30)

    def serve(self, *answers: t.Any) -> list[str]:
        """One connection: greets, and gives each command one of *answers*; the commands."""
        line, _address = self.socket.accept()
        line.settimeout(30)
        asked = []
        with line:
            line.sendall(json.dumps(GREETING).encode() + b"\r\n")
            for answer in answers:
                data = line.recv(4096)
                if not data:
                    break
                asked.append(json.loads(data)["execute"])
                for message in answer:
                    line.sendall(json.dumps(message).encode() + b"\r\n")
        return asked


@pytest.fixture
def listener(tmp_path: Path) -> t.Iterator[Listener]:
    found = Listener(tmp_path / "qmp.sock")
    yield found
    found.socket.close()


def die(guard: Guard) -> None:
    """As if this process had been killed."""
    process = guard._process
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None


GONE: list[Message] = [{"return": {}}]


def test_guard_lets_the_guest_go_on(listener: Listener, tmp_path: Path) -> None:
    guard = Guard(migration.GUARD, str(tmp_path / "qmp.sock"))
    die(guard)
    assert listener.serve(GONE, GONE) == ["qmp_capabilities", "cont"]
    assert guard._process.wait(30) == 0


def test_guard_overhears_events(listener: Listener, tmp_path: Path) -> None:
    guard = Guard(migration.GUARD, str(tmp_path / "qmp.sock"))
    die(guard)
    events: list[Message] = [{"event": "MIGRATION", "data": {"status": "failed"}}, {"event": "RESUME"}, *GONE]
    assert listener.serve(events, events) == ["qmp_capabilities", "cont"]
    assert guard._process.wait(30) == 0


def test_guard_does_not_give_up(listener: Listener, tmp_path: Path) -> None:
    """QEMU may be busy, or refuse for as long as a migration comes to its end."""
    refusal = [{"error": {"class": "GenericError", "desc": "Migration is not finalized yet"}}]
    guard = Guard(migration.GUARD, str(tmp_path / "qmp.sock"))
    die(guard)
    assert listener.serve() == []
    assert listener.serve(GONE, refusal) == ["qmp_capabilities", "cont"]
    assert listener.serve(GONE, GONE) == ["qmp_capabilities", "cont"]
    assert guard._process.wait(30) == 0


def test_guard_that_is_not_needed(listener: Listener, tmp_path: Path) -> None:
    with Guard(migration.GUARD, str(tmp_path / "qmp.sock")) as guard:
        guard.done()
    assert guard._process.returncode == 0
    listener.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.socket.accept()


def open_files(pid: int) -> Iterator[str]:
    """What a process has open; it may open and close files meanwhile."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            yield os.readlink(f"/proc/{pid}/fd/{name}")


def test_guard_has_nothing_of_ours(listener: Listener, tmp_path: Path) -> None:
    """A session of its own, and no descriptor besides the pipe."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        with Guard(migration.GUARD, str(tmp_path / "qmp.sock")) as guard:
            pid = guard._process.pid
            assert os.getsid(pid) == pid
            assert os.readlink(f"/proc/self/fd/{writer}") not in open_files(pid)
            guard.done()
    finally:
        os.close(reader)
        os.close(writer)
