# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a driver leaves of a machine that it saves, and what becomes of it."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._guest import freezing
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.agent import NoAgentError
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.freezing import StuckError
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.line import AgentError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import runstates
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import (
    MEMORY,
    STATE,
    Capabilities,
    Saved,
    SavedFile,
    Saving,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import PHASE_SAVE
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import asking, saving
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Options, Run
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm

VM_ID = "vm1"
RAM = b"r" * 5000


class Writer:
    """A hypervisor whose process writes what it saves itself, into a folder of its user's, and keeps hold of it."""

    name = "firecracker"
    capabilities = Capabilities(snapshots=True)
    own_files: tuple[str, ...] = ()
    saved_files: t.ClassVar = {"config.json": STATE, "state.json": STATE, "memory-ranges": MEMORY}
    writes_inbox = True

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.held: list[t.IO[bytes]] = []

    def save(self, run_dir: str, wanted: Saving) -> Saved:
        self.wanted = wanted
        assert os.listdir(wanted.inbox) == []
        if not wanted.machine:
            wanted.copy([])
            return Saved({}, "1.16.1", 0.5)
        files = []
        for name in ("config.json", "state.json"):
            stream = open(os.path.join(wanted.inbox, name), "wb")
            stream.write(name.encode())
            stream.flush()
            self.held.append(stream)
            files.append(SavedFile(name, STATE, stream.name))
        wanted.copy([*files, SavedFile("memory-ranges", MEMORY, wanted.ram)] if wanted.ram else files)
        if self.fails:
            raise HypervisorError("it does not save")
        for stream in self.held:  # an escaped one goes on writing
            stream.write(b" and more")
            stream.close()
        return Saved({"a": 1}, "1.16.1", 0.5)


@pytest.fixture(name="run")
def fixture_run(tmp_path: Path) -> Run:
    run = Run(Store.open(Paths(*(str(tmp_path / name) for name in ("lib", "run", "log")))), Options(memory_reserve=0))
    os.makedirs(run.store.paths.vm_dir(VM_ID))
    os.makedirs(run.store.paths.ram, exist_ok=True)
    Path(run.store.paths.ram_file(VM_ID)).write_bytes(RAM)
    return run


def record(**changes: t.Any) -> Record:
    return {
        "id": VM_ID,
        "hypervisor": "firecracker",
        "state": "running",
        "uid": os.getuid(),
        "config": {"name": "web1", "memory": len(RAM)},
        "storage_configs": [],
        "data_disks": [],
        **changes,
    }


def save(run: Run, driver: Writer, target: Path, vm: Record) -> Saved:
    run._drivers["firecracker"] = driver  # type: ignore[assignment]
    target.mkdir()
    saved, stood = saving.save_running(Vm(run, vm), str(target), disks=False)
    assert not stood
    return saved


def test_what_the_vms_user_wrote_is_copied(run: Run, tmp_path: Path) -> None:
    """A rename would leave the snapshot in the hands of whoever holds the file open."""
    left = Path(run.store.paths.inbox(VM_ID))
    left.mkdir()
    (left / "of-a-killed-run").touch()
    driver = Writer()
    saved = save(run, driver, tmp_path / "snapshot", record())
    found = {path.name: path.read_bytes() for path in (tmp_path / "snapshot").iterdir()}
    assert found == {"config.json": b"config.json", "state.json": b"state.json", "memory-ranges": RAM}
    assert (saved.version, saved.layout, driver.wanted.stay) == ("1.16.1", {"a": 1}, False)
    assert os.listdir(left) == [] and driver.wanted.inbox == str(left)


def test_memory_that_is_the_vms_own_is_part_of_the_state(run: Run, tmp_path: Path) -> None:
    driver = Writer()
    save(run, driver, tmp_path / "snapshot", record(memory_mode="private"))
    assert driver.wanted.ram is None and driver.wanted.limit > saving.DEVICES
    assert sorted(path.name for path in (tmp_path / "snapshot").iterdir()) == ["config.json", "state.json"]


@pytest.mark.parametrize(("said", "phase"), [("running", None), ("paused", PHASE_SAVE), (None, PHASE_SAVE)])
def test_nothing_is_left_of_what_failed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, phase: str | None
) -> None:
    """But the word for the next run, as long as it is not known that the guest goes on."""
    monkeypatch.setattr(runstates, "run_state", lambda *_asked: said)
    vm = record()
    with pytest.raises(HypervisorError, match="does not save"):
        save(run, Writer(fails=True), tmp_path / "snapshot", vm)
    assert vm["phase"] == phase and os.listdir(run.store.paths.inbox(VM_ID)) == []


class Still:
    """File systems that stand still, or do what *does* says."""

    problem: t.Any = None

    def __init__(self, does: str) -> None:
        self.does = does
        self.seen: list[str] = []
        self.lasted = does != "went on"

    def begin(self) -> None:
        self.seen.append("begin")
        if self.does == "refuses":
            raise AgentError("the guest's agent refused it")

    def end(self) -> None:
        self.seen.append("end")
        if self.does == "sticks":
            self.problem = StuckError("they may stand still", "freeze")


@pytest.mark.parametrize(
    ("how", "does", "stood", "words"),
    [
        ("auto", "", True, ""),
        ("required", "", True, ""),
        ("no", "", False, ""),
        ("auto", "no agent", False, ""),
        ("auto", "refuses", False, ""),
        ("auto", "went on", False, ""),
        ("auto", "sticks", None, "may stand still"),
        ("required", "no agent", None, "in VM 'web1' cannot be frozen: no agent listens"),
        ("required", "refuses", None, "in VM 'web1' cannot be frozen: the guest's agent refused it"),
        ("required", "went on", None, "went on before its disks were copied"),
        ("required", "sticks", None, "may stand still"),
    ],
)
def test_file_systems_that_are_to_stand_still(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, does: str, stood: bool | None, words: str
) -> None:
    """While the disks are copied, and no longer; what may not have gone on is left to the next run as well."""
    still, vm = Still(does), record()

    def reach(_vm: Vm, _patience: float) -> t.Any:
        if does == "no agent":
            raise NoAgentError("no agent listens in the guest")

    monkeypatch.setattr(asking, "listening", reach)
    monkeypatch.setattr(freezing, "Standstill", lambda _access: still)
    monkeypatch.setattr(saving, "copy_disks", lambda *_copied: still.seen.append("copy"))
    monkeypatch.setattr(runstates, "run_state", lambda *_asked: "running")
    run._drivers["firecracker"] = Writer()  # type: ignore[assignment]
    (tmp_path / "snapshot").mkdir()
    asked = (Vm(run, vm), str(tmp_path / "snapshot"))
    if words:
        with pytest.raises(HypervisorError, match=words) as caught:
            saving.save_running(*asked, disks=True, machine=False, freeze=how)
        assert caught.value.option == "freeze"
        assert vm["phase"] == (PHASE_SAVE if does == "sticks" else None)
    else:
        saved, found = saving.save_running(*asked, disks=True, machine=False, freeze=how)
        assert (found, saved.layout, os.listdir(tmp_path / "snapshot")) == (stood, {}, [])
    begun = [] if how == "no" or does == "no agent" else ["begin"]
    copied = [] if "cannot be frozen" in words else ["copy"]
    assert still.seen == [*begun, *copied, *(["end"] if begun and does != "refuses" else [])]


@pytest.mark.parametrize(("seconds", "told"), [(0.2, False), (1.0, True)])
def test_a_guest_that_stood_still_for_long_is_told_the_time(
    run: Run, monkeypatch: pytest.MonkeyPatch, seconds: float, told: bool
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(asking, "set_time", lambda vm, _patience: asked.append(vm.record["phase"]))
    run._drivers["firecracker"] = Writer()  # type: ignore[assignment]
    saving.finish_running(Vm(run, record()), Saved({}, "1.16.1", seconds))
    assert asked == ([None] if told else [])
