# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The keeper of a console: a process that runs, with a test in the hypervisor's place."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._guest import console
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import keeper, keeping
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process

MOST = keeper.MOST
PATIENCE = 20.0


def until(met: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := met()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


class Vm:
    """What a keeper has to do with of a VM, and the end of the pipe that its hypervisor has."""

    def __init__(self, folder: Path) -> None:
        self.run_dir = folder / "run"
        self.run_dir.mkdir()
        self.log = folder / "console.log"
        self.pipe = -1
        self.pid = 0
        self.held: list[int] = []

    def start(self, entry: Any = None) -> int:
        """Gives where what people type comes out."""
        given: Any = types.SimpleNamespace(
            name="web1", run_dir=str(self.run_dir), console_log=str(self.log), uid=os.getuid(), gid=os.getgid()
        )
        with keeper.beside(given, entry) as kept:
            self.pipe, self.pid = os.dup(kept.pipe), kept.pid
            copies = {number: os.dup(number) for number in kept.held}
            read = os.dup(kept.input) if entry else -1
        for number, copy in copies.items():  # a hypervisor inherits them under the same numbers
            self.held.append(os.dup2(copy, number))
            os.close(copy)
        return read

    def mend(self) -> int | None:
        with Process(os.getpid(), os.pidfd_open(os.getpid())) as hypervisor:
            return keeper.mend(str(self.log), str(self.run_dir), os.getuid(), hypervisor)

    def say(self, words: bytes) -> None:
        while words:
            words = words[os.write(self.pipe, words) :]

    def stop(self) -> None:
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1
        while self.held:
            os.close(self.held.pop())
        until(lambda: not keeping.is_kept(str(self.log)))

    def file(self, suffix: str) -> bytes:
        return Path(f"{self.log}{suffix}").read_bytes()


@pytest.fixture(name="vm")
def fixture_vm(tmp_path: Path) -> Iterator[Vm]:
    vm = Vm(tmp_path)
    yield vm
    vm.stop()
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def numbered(begin: int, end: int) -> bytes:
    return b"".join(b"%07d\n" % number for number in range(begin, end))


LINES = MOST // 8


def test_little_is_kept_as_it_is(vm: Vm) -> None:
    vm.start()
    assert keeping.is_kept(str(vm.log)) and not keeping.lost(str(vm.log), str(vm.run_dir))
    vm.say(b"hello\n")
    until(lambda: vm.file("") == b"hello\n")
    vm.stop()
    assert (vm.file(""), vm.file(".0"), vm.file(".1")) == (b"hello\n", b"", b"")
    assert vm.log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("turns", [1, 2, 5])
def test_much_leaves_the_first_words_and_the_newest(vm: Vm, turns: int) -> None:
    vm.start()
    end = turns * LINES + 10
    vm.say(numbered(0, end))
    vm.stop()
    assert vm.file("") == numbered(turns * LINES, end)
    assert vm.file(".0") == numbered(0, LINES)
    assert vm.file(".1") == (numbered((turns - 1) * LINES, turns * LINES) if turns > 1 else b"")


def test_a_start_keeps_the_end_of_the_last_run(vm: Vm) -> None:
    vm.start()
    vm.say(numbered(0, 3 * LINES + 10))
    vm.stop()
    vm.start()
    assert (vm.file(""), vm.file(".0")) == (b"", b"")
    assert vm.file(".1") == numbered(2 * LINES + 10, 3 * LINES + 10)
    vm.say(b"short\n")
    vm.stop()
    vm.start()
    assert (vm.file(""), vm.file(".0"), vm.file(".1")) == (b"", b"", b"short\n")
    vm.say(numbered(0, LINES + 1))  # more than fits: what was of the last run is not taken for this one's
    vm.stop()
    assert (vm.file(".0"), vm.file(".1")) == (numbered(0, LINES), b"")


def test_readers_read_all_of_a_run_and_no_other(vm: Vm) -> None:
    log = str(vm.log)
    vm.start()
    vm.say(b"[    1.0] Kernel panic - not syncing: long ago\n")
    vm.stop()
    vm.start()
    assert console.read(log) == b"" and console.panicked(log) == "" and console.last_lines(log, 9) == []
    key = f"ssh-ed25519 AAAA{'a' * 64}"
    vm.say(f"cocoon: host key {key}\n".encode().ljust(MOST, b"."))
    vm.say(numbered(0, 2 * LINES))
    vm.say(b"[    9.0] Kernel panic - not syncing: late\n")
    vm.stop()
    assert console.host_keys(log) == [key]
    assert console.panicked(log) == "late"
    assert console.last_lines(log, 2) == [f"{2 * LINES - 1:07d}", "[    9.0] Kernel panic - not syncing: late"]
    assert console.read(log, MOST + 43) == numbered(LINES, 2 * LINES) + vm.file("")
    assert len(console.read(log)) == 2 * MOST + 43


def test_without_its_keeper_a_hypervisor_goes_on_and_a_new_one_takes_the_pipe_up(vm: Vm) -> None:
    vm.start()
    vm.say(b"heard\n")
    until(lambda: vm.file("") == b"heard\n")
    os.kill(vm.pid, signal.SIGKILL)
    until(lambda: keeping.lost(str(vm.log), str(vm.run_dir)))
    with pytest.raises(BrokenPipeError):  # an error, and no wait
        vm.say(b"lost\n")
    pid = vm.mend()
    assert pid and not keeping.lost(str(vm.log), str(vm.run_dir))
    assert vm.mend() is None
    vm.say(b"heard again\n")
    until(lambda: vm.file("") == b"heard\nheard again\n")
    vm.stop()


def hear(line: socket.socket, words: bytes) -> bytes:
    """Read until *words* have come."""
    heard = b""
    while words not in heard:
        heard += line.recv(4096)
    return heard


def attached(vm: Vm) -> socket.socket:
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(PATIENCE)
    line.connect(str(vm.run_dir / "console.sock"))
    return line


def typed(entry: int, words: bytes) -> bytes:
    """What the hypervisor reads until *words* have come."""
    heard = b""
    while words not in heard:
        assert select.select([entry], [], [], PATIENCE)[0], heard
        heard += os.read(entry, 4096)
    return heard


ENTRIES = pytest.mark.parametrize("by", ["pipe", "terminal"])


@ENTRIES
def test_people_attach_to_it(vm: Vm, by: str) -> None:
    """Each sees what is printed from then on, as the log does; what they type goes to the guest alone, as it is."""
    entry = vm.start(by)
    assert os.isatty(entry) is (by == "terminal")
    vm.say(b"before\n")
    with attached(vm) as one, attached(vm) as two:
        one.sendall(b"ls\n")
        assert typed(entry, b"ls\n") == b"ls\n"
        two.sendall(b"w\r\x03\x04\n")
        assert typed(entry, b"\n") == b"w\r\x03\x04\n"  # both are there
        vm.say(b"file\n")
        assert hear(one, b"file\n") == hear(two, b"file\n") == b"file\n"
    vm.say(b"nobody sees\n")
    until(lambda: vm.file("") == b"before\nfile\nnobody sees\n")
    vm.stop()
    assert vm.file("") == b"before\nfile\nnobody sees\n"
    os.close(entry)


@ENTRIES
def test_one_who_does_not_read_hinders_nobody(vm: Vm, by: str) -> None:
    entry = vm.start(by)
    with attached(vm) as slow:
        slow.sendall(b"x")
        assert typed(entry, b"x") == b"x"
        vm.say(numbered(0, 2 * LINES))
        until(lambda: vm.file("") + vm.file(".1")[-8:] and len(vm.file(".0")) == MOST)
        # And a guest that does not read what is typed, either.
        slow.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                slow.send(b"y" * 4096)
        vm.say(b"on\n")
        until(lambda: vm.file("").endswith(b"on\n"))
    os.close(entry)


def test_a_terminal_takes_no_more_than_a_guest_may_leave_unread(vm: Vm) -> None:
    """A hypervisor reads all that is there, whether or not its guest does; who prints has read."""
    entry, came = vm.start("terminal"), b""
    os.set_blocking(entry, False)
    with attached(vm) as line:
        line.settimeout(0.05)
        for _turn in range(100):
            with contextlib.suppress(TimeoutError):
                line.sendall(b"y" * 4096)
            with contextlib.suppress(BlockingIOError):
                came += os.read(entry, 4096)
        assert keeper.UNREAD // 2 < len(came) <= keeper.UNREAD
        vm.say(numbered(0, LINES))
        line.settimeout(PATIENCE)
        hear(line, b"%07d\n" % (LINES - 1))
        line.sendall(b"z")
        typed(entry, b"z")
    os.close(entry)


@ENTRIES
def test_another_keeper_is_there_for_people_too(vm: Vm, by: str) -> None:
    entry = vm.start(by)
    os.kill(vm.pid, signal.SIGKILL)
    until(lambda: keeping.lost(str(vm.log), str(vm.run_dir)))
    with pytest.raises(BlockingIOError):  # nothing ends for who reads
        os.set_blocking(entry, False)
        os.read(entry, 1)
    assert vm.mend()
    with attached(vm) as line:
        line.sendall(b"again\n")
        assert typed(entry, b"again\n") == b"again\n"
        vm.say(b"here\n")
        assert hear(line, b"here\n") == b"here\n"
    os.close(entry)


def test_who_only_looks_is_no_keeper(vm: Vm) -> None:
    """Two who look at the same moment do not take each other for one."""
    vm.log.touch()
    with vm.log.open("rb") as stream:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_SH)
        assert not keeping.is_kept(str(vm.log))


@ENTRIES
def test_of_a_start_that_fails_nothing_stays(vm: Vm, by: Any) -> None:
    given: Any = types.SimpleNamespace(
        name="web1", run_dir=str(vm.run_dir), console_log=str(vm.log), uid=os.getuid(), gid=os.getgid()
    )
    with pytest.raises(ValueError, match="no"), keeper.beside(given, by) as kept:
        vm.pid = kept.pid
        raise ValueError("no")
    assert os.listdir(vm.run_dir) == [] and not keeping.is_kept(str(vm.log))
    with pytest.raises(ProcessLookupError):
        os.kill(vm.pid, 0)


def test_a_vm_without_a_pipe_has_lost_nobody(vm: Vm) -> None:
    """It was started by an older release."""
    vm.log.write_bytes(b"x")
    assert not keeping.lost(str(vm.log), str(vm.run_dir))
    with pytest.raises(HypervisorError, match="cannot keep the console"):
        vm.mend()


def test_a_hypervisor_is_not_believed(vm: Vm) -> None:
    """It has put something else in the place of its terminal."""
    entry = vm.start("terminal")
    os.kill(vm.pid, signal.SIGKILL)
    until(lambda: keeping.lost(str(vm.log), str(vm.run_dir)))
    with open("/dev/null", "wb") as other:
        os.dup2(other.fileno(), vm.held[0])
    with pytest.raises(HypervisorError, match="has let go of its terminal") as caught:
        vm.mend()
    assert caught.value.remedy == "Restart the VM."
    os.close(entry)


def test_a_keeper_that_hangs_is_waited_for_no_longer_than_it_may(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    vm.start()
    until(lambda: Path(f"/proc/{vm.pid}/wchan").exists() and vm.pipe)
    os.kill(vm.pid, signal.SIGSTOP)
    asked: list[int] = []

    def scan(uid: int) -> list[Any]:
        asked.append(uid)
        os.kill(vm.pid, signal.SIGKILL)
        return []

    monkeypatch.setattr(keeping.Process, "scan", scan)
    keeping.await_end(str(vm.log), None, 0.05)
    assert asked == []
    keeping.await_end(str(vm.log), 70001, 0.05)
    assert asked == [70001]


def test_logs_are_not_opened_through_links(vm: Vm) -> None:
    vm.log.symlink_to("/etc/passwd")
    with pytest.raises(HypervisorError, match="cannot keep the console of 'web1'"):
        vm.start()
