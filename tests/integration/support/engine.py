# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the engine in processes of its own, which can be killed at any place between two side effects.

A process here is a fork of the tests: the engine is imported already, so a run costs what it does and no more.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import tarfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.cocoon.microvm.plugins.module_utils._api import vms
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._engine import snapshots
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import launch
from ansible_collections.cocoon.microvm.plugins.module_utils._images import converging as images
from ansible_collections.cocoon.microvm.plugins.module_utils._network import converging as networks
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns

CLONE_NEWNET = 0x40000000
NETWORK = "lab"
IDLE = "idle"
TINY = "tiny"
# A guest that takes no processor time: its kernel halts the machine at its first instruction.
GUEST = {"image": IDLE, "network": NETWORK, "memory": "64M", "storage": "32M", "accel": "tcg"}
NETWORK_OPTIONS = (
    *("bridge adopt subnet gateway range_start range_end nat isolated anti_spoofing".split()),
    *("mtu dns dns_search owner labels force lock_timeout".split()),
)

# With this in the environment a mark is also whatever is about to change a file or to touch a process.
FINE = os.environ.get("COCOON_TEST_MARKS") == "fine"
EVENTS = frozenset(
    (
        "os.chmod os.chown os.link os.mkdir os.remove os.rename os.rmdir os.truncate signal.pidfd_send_signal"
        " subprocess.Popen"
    ).split()
)

Mark = Callable[[str], None]
Params = Mapping[str, Any]


@dataclass
class Outcome:
    """How a run ended: with results, with an error of the engine's, or by a signal."""

    marks: list[str] = field(default_factory=list)
    results: Any = None
    error: str | None = None
    crash: str | None = None
    signal: int = 0

    @property
    def killed(self) -> bool:
        return self.signal == signal.SIGKILL


class Forked:
    """A run of the engine under way."""

    def __init__(self, netns: Netns, job: Callable[[Mark], Any], kill_at: int | None = None) -> None:
        """
        :param job: what to run; it is given the function to call at each mark.
        :param kill_at: the number of the mark, counted from 0, at which the process kills itself.
        """
        self.stream, writer = os.pipe()
        with warnings.catch_warnings():
            # The other thread is pytest's watchdog, which holds no lock.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            os.close(self.stream)
            try:
                _enter(netns)
                _run(writer, job, kill_at)
            finally:
                os._exit(1)
        os.close(writer)

    def wait(self) -> Outcome:
        """What came of it.

        :raises AssertionError: it ended in a way that no run may end in.
        """
        outcome = Outcome()
        with os.fdopen(self.stream, encoding="utf-8") as lines:
            for line in lines:
                name, value = json.loads(line)
                if name == "mark":
                    outcome.marks.append(value)
                else:
                    setattr(outcome, name, value)
        _pid, status = os.waitpid(self.pid, 0)
        outcome.signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        assert not outcome.crash, outcome.crash
        assert outcome.killed or not status, f"the run ended with status {status:#x} after {outcome.marks}"
        return outcome


def _enter(netns: Netns) -> None:
    fd = os.open(netns.path, os.O_RDONLY | os.O_CLOEXEC)
    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"cannot enter {netns.path}")
    os.close(fd)


def _run(writer: int, job: Callable[[Mark], Any], kill_at: int | None) -> None:
    seen = 0

    def tell(name: str, value: Any) -> None:
        os.write(writer, json.dumps([name, value]).encode() + b"\n")

    def mark(place: str) -> None:
        nonlocal seen
        tell("mark", place)
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        changes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if changes or event in EVENTS:
            mark(event)

    _mark_spawns(mark)
    if FINE:
        sys.addaudithook(watch)
    try:
        tell("results", job(mark))
    except CocoonError as exc:
        tell("error", str(exc))
    except BaseException:
        tell("crash", traceback.format_exc())
    os._exit(0)


def _mark_spawns(mark: Mark) -> None:
    """A place that the driver has no mark for: the hypervisor is there, and nobody has spoken to it yet."""
    spawn = launch.spawn

    def marked(*args: Any) -> Any:
        process = spawn(*args)
        mark("start.spawned")
        return process

    launch.spawn = marked


class Engine:
    """The engine over one store, in one network namespace."""

    def __init__(self, netns: Netns, dirs: Mapping[str, str], **options: Any) -> None:
        self.netns = netns
        self.dirs = dict(dirs)
        limits = {"memory_reserve": "64M", "memory_overcommit": 1.0, "disk_overcommit": 100.0}
        self.options = {"lock_timeout": 20, **limits, **options}
        self.paths = Paths.from_params(dirs)

    def with_options(self, **options: Any) -> Engine:
        """The same store under other options of the task."""
        return Engine(self.netns, self.dirs, **{**self.options, **options})

    @property
    def store(self) -> Store:
        store = Store.load(self.paths)
        assert store is not None
        return store

    def record(self, name: str) -> Any:
        """A VM's record as it is on disk."""
        return self.store.vm_record(name)

    # -- runs that go on beside the tests ----------------------------------------------------------------------------

    def start_vms(self, *items: Params, kill_at: int | None = None, check: bool = False) -> Forked:
        """Begin to converge VMs."""
        params = {**self.dirs, **self.options}
        return Forked(self.netns, lambda mark: vms.converge_vms(params, items, check, mark), kill_at)

    def start_network(self, kill_at: int | None = None, check: bool = False, **options: Any) -> Forked:
        """Begin to converge a network."""
        params = {**dict.fromkeys(NETWORK_OPTIONS), "name": NETWORK, "state": "present", "lock_timeout": 20}
        params = {**params, **self.dirs, **options}

        def job(mark: Mark) -> Any:
            networks.checkpoint = mark
            return networks.converge(params, check)

        return Forked(self.netns, job, kill_at)

    def start_snapshot(self, kill_at: int | None = None, check: bool = False, **options: Any) -> Forked:
        """Begin to converge a snapshot."""
        params = {"state": "present", **self.dirs, **self.options, **options}
        return Forked(self.netns, lambda mark: snapshots.converge(params, check, mark), kill_at)

    def start_image(self, **options: Any) -> Forked:
        """Begin to converge an image."""
        wanted = images.Wanted(**options)
        return Forked(self.netns, lambda _mark: images.converge(self.paths, wanted, False).changed)

    # -- runs to the end ---------------------------------------------------------------------------------------------

    def vms(self, *items: Params, kill_at: int | None = None, check: bool = False) -> Outcome:
        """Converge VMs; what came of it, good or bad."""
        return self.start_vms(*items, kill_at=kill_at, check=check).wait()

    def vm(self, check: bool = False, **item: Any) -> Any:
        """Converge one VM and give its result.

        :raises AssertionError: it failed.
        """
        outcome = self.vms(item, check=check)
        assert outcome.error is None, outcome.error
        result = outcome.results[0]
        assert not result.get("failed"), result["msg"]
        return result

    def refused(self, **item: Any) -> str:
        """Converge one VM, which has to fail; the error.

        :raises AssertionError: it did not.
        """
        outcome = self.vms(item)
        text = outcome.error or outcome.results[0].get("msg")
        assert text, f"{item} was to fail: {outcome.results}"
        return str(text)

    def snapshot(self, check: bool = False, **options: Any) -> Any:
        """Converge a snapshot and give its result.

        :raises AssertionError: it failed.
        """
        outcome = self.start_snapshot(check=check, **options).wait()
        assert outcome.error is None, outcome.error
        return outcome.results

    def network(self, check: bool = False, **options: Any) -> Any:
        """Converge a network and give its result.

        :raises AssertionError: it failed.
        """
        outcome = self.start_network(check=check, **options).wait()
        assert outcome.error is None, outcome.error
        return outcome.results


def data_disk(paths: Paths, record: Mapping[str, Any], name: str) -> Path:
    """The file of a data disk."""
    return Path(paths.vm_dir(record["id"])) / f"data-{name}.raw"


def idle_kernel() -> bytes:
    """A Linux boot image of one instruction: by the boot protocol it is entered at 0x200, in real mode."""
    setup = bytearray(1024)
    setup[0x1F1] = 1  # sectors of setup code
    setup[0x1FE:0x202] = b"\x55\xaa\xeb\x66"  # signature; jump over the header
    setup[0x202:0x206] = b"HdrS"
    setup[0x206:0x208] = b"\x0a\x02"  # version of the protocol
    setup[0x211] = 1  # loaded high
    setup[0x22C:0x230] = b"\xff\xff\xff\x7f"  # highest address of an initrd
    setup[0x268:0x26C] = b"\xfa\xf4\xeb\xfd"  # cli; hlt; jmp to hlt
    return bytes(setup) + bytes(4096)


def idle_image(folder: Path, name: str = IDLE) -> dict[str, str]:
    """The options ``source``, ``kernel`` and ``initrd`` of an image whose guests do nothing."""
    files = {option: folder / f"{name}.{option}" for option in ("source", "kernel", "initrd")}
    files["kernel"].write_bytes(idle_kernel())
    files["initrd"].write_bytes(bytes(4096))
    with tarfile.open(files["source"], "w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    return {option: str(path) for option, path in files.items()}
