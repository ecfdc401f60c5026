# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a saved memory is taken up, by what the hypervisor can do."""

from __future__ import annotations

import os
import types
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import (
    MEMORY,
    STATE,
    Capabilities,
    Saved,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import store as snapshots
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import resuming
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Options, Run
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm

VM_ID, SNAPSHOT_ID = "vm1", "snapshot1"


@pytest.fixture(name="vm")
def fixture_vm(tmp_path: Path) -> Vm:
    run = Run(Store.open(Paths(*(str(tmp_path / name) for name in ("lib", "run", "log")))), Options(memory_reserve=0))
    record = {"id": VM_ID, "hypervisor": "it", "uid": os.getuid(), "image_type": "oci", "data_disks": []}
    for path in (run.store.paths.vm_dir(VM_ID), snapshots.directory(run.store, SNAPSHOT_ID)):
        os.makedirs(path)
    Path(run.store.paths.vm_dir(VM_ID), "cow.raw").touch()
    return Vm(run, record)


def use(vm: Vm, ram_file: bool) -> None:
    """A hypervisor that has the RAM of its guests in files, or not."""
    driver: t.Any = types.SimpleNamespace(
        capabilities=Capabilities(ram_file=ram_file), saved_files={"state": STATE, "mem": MEMORY}, own_files=()
    )
    driver.reads_only = lambda: True
    vm.run._drivers["it"] = driver


def snapshot(vm: Vm, *names: str) -> Record:
    for name in names:
        Path(snapshots.directory(vm.run.store, SNAPSHOT_ID), name).write_bytes(b"x")
    return {
        "id": SNAPSHOT_ID,
        "hypervisor": "it",
        "files": dict.fromkeys(names, {}),
        "layout": {"a": 1},
        "blob_digests": {},
    }


@pytest.mark.parametrize(
    ("names", "ram_file", "asked", "mode"),
    [
        (("state", "mem"), True, resuming.COPY, resuming.COPY),
        (("state", "mem"), True, resuming.MAP, resuming.MAP),
        (("state", "mem"), False, resuming.COPY, resuming.MAP),
        (("state", "mem"), False, resuming.MAP, resuming.MAP),
        (("state",), True, resuming.MAP, resuming.STREAM),
        (("state",), False, resuming.COPY, resuming.STREAM),
    ],
)
def test_the_memory_of_a_snapshot(vm: Vm, names: tuple[str, ...], ram_file: bool, asked: str, mode: str) -> None:
    use(vm, ram_file)
    resuming.link_memory(vm, snapshot(vm, *names), asked)
    assert vm.record["resume"]["memory"] == mode
    assert sorted(os.listdir(resuming.folder(vm))) == sorted(names)
    assert resuming.groups(vm) == ([snapshots.gid(vm.run.store, SNAPSHOT_ID)] if mode == resuming.MAP else [])
    found = resuming.resume_of(vm)
    assert found and found.shared == (mode == resuming.MAP) and bool(found.memory) == (mode != resuming.STREAM)


@pytest.mark.parametrize(("ram_file", "mode"), [(True, 0o600), (False, 0o440)])
def test_the_memory_of_one_that_sleeps(vm: Vm, ram_file: bool, mode: int) -> None:
    """Who maps it reads it by its own rights; for all others we copy it."""
    use(vm, ram_file)
    folder = Path(resuming.make_folder(vm))
    for name in ("state", "mem"):
        (folder / name).write_bytes(b"x")
        (folder / name).chmod(0o600)
    resuming.settle_hibernation(vm, Saved({"a": 1}, "1", 0.1))
    resuming.give_memory(vm)
    assert vm.record["resume"]["memory"] == resuming.COPY and resuming.groups(vm) == []
    assert (folder / "mem").stat().st_mode & 0o777 == mode and (folder / "state").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("names", "ram_file", "always", "once", "balloon", "mode", "warned"),
    [
        (("state", "mem"), True, None, None, None, resuming.COPY, False),
        (("state", "mem"), True, "on_demand", None, None, resuming.MAP, False),
        (("state", "mem"), True, "on_demand", "copy", None, resuming.COPY, False),
        (("state", "mem"), True, "copy", "on_demand", None, resuming.MAP, False),
        (("state", "mem"), True, "on_demand", None, 0, resuming.COPY, True),
        (("state",), True, "on_demand", None, None, resuming.STREAM, True),
        (("state",), True, "copy", None, None, resuming.STREAM, False),
        (("state", "mem"), False, "on_demand", None, 0, resuming.COPY, False),
    ],
)
def test_a_memory_that_is_taken_up_as_it_is_told(
    vm: Vm,
    names: tuple[str, ...],
    ram_file: bool,
    always: str | None,
    once: str | None,
    balloon: int | None,
    mode: str,
    warned: bool,
) -> None:
    """What this one is to be goes before what the VM says, and what cannot be is told."""
    use(vm, ram_file)
    folder = Path(resuming.make_folder(vm))
    for name in names:
        (folder / name).write_bytes(b"x")
        (folder / name).chmod(0o600)
    vm.record.update(config={"name": "web1"}, restore_mode=always, balloon=balloon)
    resuming.settle_hibernation(vm, Saved({"a": 1}, "1", 0.1))
    vm.saved["mode"] = once
    resuming.choose(vm)
    resuming.give_memory(vm)
    assert vm.saved["memory"] == mode and resuming.groups(vm) == []
    assert ["was read before it went on" in words for words in vm.run.warnings] == [True] * warned
    if "mem" in names:
        reads = mode == resuming.MAP or not ram_file
        assert (folder / "mem").stat().st_mode & 0o777 == (0o440 if reads else 0o600)


@pytest.mark.parametrize(("always", "mode"), [(None, resuming.MAP), ("copy", resuming.COPY)])
def test_a_clone_that_has_a_memory_of_its_own(vm: Vm, always: str | None, mode: str) -> None:
    """The file that it has a link to stays the snapshot's."""
    use(vm, ram_file=True)
    resuming.link_memory(vm, snapshot(vm, "state", "mem"), resuming.MAP)
    vm.record["restore_mode"] = always
    before = Path(resuming.folder(vm), "mem").stat()
    resuming.choose(vm)
    resuming.give_memory(vm)
    after = Path(resuming.folder(vm), "mem").stat()
    assert vm.saved["memory"] == mode and (after.st_mode, after.st_gid) == (before.st_mode, before.st_gid)
    assert bool(resuming.groups(vm)) == (mode == resuming.MAP)
