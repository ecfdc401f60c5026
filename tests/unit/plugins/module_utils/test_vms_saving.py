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
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import saving
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
    return saving.save_running(Vm(run, vm), str(target), disks=False)


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
