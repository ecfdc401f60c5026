# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots where something is wrong or in the way: one clear error, the VM runs on, and nothing half made."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import tarfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils import _host
from ansible_collections.cocoon.microvm.plugins.module_utils._api import snapshot_info, vms
from ansible_collections.cocoon.microvm.plugins.module_utils._engine import snapshots
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.qmp import Qmp
from ansible_collections.cocoon.microvm.plugins.module_utils._process import start_time
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import saving, showing
from ansible_collections.cocoon.microvm.tests.integration.support import audit
from ansible_collections.cocoon.microvm.tests.integration.support.engine import (
    GUEST,
    IDLE,
    Engine,
    Forked,
    Mark,
    Outcome,
    data_disk,
    idle_image,
)
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules
from ansible_collections.cocoon.microvm.tests.integration.test_qemu_driver import INIT, Guest, cpio

MIB = 1 << 20
ROOM = 64 * MIB
BARE = {**GUEST, "nics": []}
DATA = {"data_disks": [{"name": "data", "size": "16M", "fstype": "none"}]}
SOURCE = {**BARE, **DATA, "name": "src", "state": "started"}
CLONE = {"name": "clone", "snapshot": "snap", "state": "started"}
# What a record tells of the last thing that happened.
TOLD = ("updated_at", "reason")
NO_SPACE = ("no space", "root_dir", "Free some")

Definition = dict[str, Any]


@pytest.fixture(scope="module")
def store(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    scratch: Path,
) -> Engine:
    """A store with an image and a network."""
    engine = Engine(make_netns(), make_store(), lock_timeout=120)
    modules(engine.netns, engine.dirs)("cocoon_image", name=IDLE, **idle_image(scratch))
    engine.network(subnet="10.103.0.0/24")
    return engine


@pytest.fixture
def engine(store: Engine) -> Iterator[Engine]:
    """The store; each test leaves it without VMs and snapshots."""
    yield store
    audit.clean(store)
    assert not audit.held(store) and not audit.ledger(store)


def status(engine: Engine, name: str = "src") -> str:
    """What the hypervisor of a VM says of its guest."""
    path = os.path.join(engine.paths.vm_run(engine.record(name)["id"]), "qmp.sock")
    with Qmp.connect(path, 30) as qmp:
        return str(qmp.execute("query-status")["status"])


def sound(engine: Engine) -> None:
    """The store fits the host; guards that were not needed have gone."""
    deadline = time.monotonic() + 10
    while audit.guards(engine) and time.monotonic() < deadline:
        time.sleep(0.01)
    problems = audit.wrong(engine)
    assert not problems, problems


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """The errors, of whole runs and of their items."""
    found = [outcome.error for outcome in outcomes if outcome.error]
    results = [result for outcome in outcomes for result in results_of(outcome) if result.get("failed")]
    return found + [result["msg"] for result in results]


def results_of(outcome: Outcome) -> list[Any]:
    if outcome.results is None:
        return []
    return outcome.results if isinstance(outcome.results, list) else [outcome.results]


def changes(outcomes: Sequence[Outcome]) -> int:
    return sum(result["changed"] for outcome in outcomes for result in results_of(outcome))


def refused(engine: Engine, **options: Any) -> str:
    """Converge a snapshot, which has to fail; the error."""
    outcome = engine.start_snapshot(**options).wait()
    assert outcome.error, f"{options} was to fail: {outcome.results}"
    return outcome.error


# -- a file system that fills up --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_store(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    scratch: Path,
) -> Iterator[Engine]:
    """A store on a file system of its own, of ROOM bytes."""
    dirs = make_store()
    root = Path(dirs["root_dir"])
    root.mkdir(mode=0o711)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM},mode=0711", "tmpfs", root], check=True)
    try:
        engine = Engine(make_netns(), dirs, disk_overcommit=1000.0)
        modules(engine.netns, dirs)("cocoon_image", name=IDLE, **idle_image(scratch))
        engine.network(subnet="10.104.0.0/24")
        yield engine
    finally:
        subprocess.run(["umount", "-l", root], check=True)


@pytest.fixture
def small(small_store: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """That store with a VM and a snapshot of it, and with less to be kept free than usual."""
    monkeypatch.setattr(saving, "DEVICES", 8 * MIB)
    monkeypatch.setattr(saving, "RESERVE", MIB)
    small_store.vm(**SOURCE)
    small_store.snapshot(name="snap", vm="src")
    yield small_store
    (Path(small_store.paths.root) / "ballast").unlink(missing_ok=True)
    audit.clean(small_store)
    assert not audit.held(small_store)


def fill(engine: Engine, left: int = 0) -> None:
    """Fill the file system of the store but for some bytes."""
    info = os.statvfs(engine.paths.root)
    with (Path(engine.paths.root) / "ballast").open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, info.f_bavail * info.f_frsize - left)


def empty(engine: Engine) -> None:
    (Path(engine.paths.root) / "ballast").unlink()


def filled_at(engine: Engine, place: str, left: int, options: Definition) -> str:
    """The error of a task during which the file system fills up.

    :param options: of a VM if they name a state of one, else of a snapshot.
    """
    params = {**engine.dirs, **engine.options}

    def job(mark: Mark) -> Any:
        def watch(mark_at: str) -> None:
            mark(mark_at)
            if mark_at == place and not (Path(engine.paths.root) / "ballast").exists():
                fill(engine, left)

        if "vm" in options or options["name"] == "snap":
            return snapshots.converge({"state": "present", **params, **options}, False, watch)
        return vms.converge_vms(params, [options], False, watch)

    outcome = Forked(engine.netns, job).wait()
    errors = failures([outcome])
    assert place in outcome.marks and len(errors) == 1, outcome
    return errors[0]


def unharmed(engine: Engine, before: Definition) -> None:
    """The source is as it was, and runs."""
    assert status(engine) == "running"
    record = engine.record("src")
    assert {key: record[key] for key in before if key not in TOLD} == {
        key: value for key, value in before.items() if key not in TOLD
    }


SAVE, HIBERNATE = {"name": "second", "vm": "src"}, {"name": "src", "state": "hibernated"}
RESTORE = {"name": "snap", "state": "restored"}
# What is done, where the file system fills up, and what is left then: in the middle of the memory, say.
FULL_AT: list[tuple[str, Definition, tuple[str, ...], int]] = [
    ("save", SAVE, ("snapshot.image", "save.begun", "save.state", "save.memory", "save.copied", "snapshot.sealed"), 0),
    ("save-in-the-middle", SAVE, ("save.begun", "save.state"), 128 << 10),
    ("restore", RESTORE, ("restore.copied",), 0),
    ("clone", CLONE, ("create.memory", "clone.noted", "clone.disk", "clone.memory", "create.done", "start.memory"), 0),
    ("hibernate", HIBERNATE, ("save.begun", "save.state", "save.memory", "save.saved"), 0),
    ("hibernate-in-the-middle", HIBERNATE, ("save.begun", "save.state"), 128 << 10),
]


@pytest.mark.parametrize(("options", "places", "left"), [row[1:] for row in FULL_AT], ids=[row[0] for row in FULL_AT])
def test_file_system_fills_up(small: Engine, options: Definition, places: tuple[str, ...], left: int) -> None:
    """However far it has got: the VM runs on, the error says what to do, and what had been made is gone."""
    before, held = small.record("src"), audit.held(small)
    for place in places:
        error = filled_at(small, place, left, options)
        assert all(word in error for word in NO_SPACE), f"{place}: {error}"
        assert status(small) == "running"
        empty(small)
        # Where nothing at all could be written, the next run writes down that the guest goes on.
        small.vm(name="src", state="present")
        if small.record("clone"):  # it had been made, and did not start
            assert place in ("create.done", "start.memory")
            small.vm(name="clone", state="absent", force=True)
        sound(small)
        assert audit.held(small) == held, place
        unharmed(small, before)
    assert small.snapshot(name="second", vm="src")["changed"]
    sound(small)


def test_file_system_fills_up_while_disks_are_copied(small: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """By QEMU, with the guest running already."""
    monkeypatch.setattr(saving, "LARGE", 0)
    before, held = small.record("src"), audit.held(small)
    error = filled_at(small, "save.copied", 0, SAVE)
    assert "no space" in error and "root_dir" in error, error
    empty(small)
    small.vm(name="src", state="present")
    sound(small)
    assert audit.held(small) == held
    unharmed(small, before)
    assert small.snapshot(**SAVE)["changed"]
    sound(small)


def test_room_is_looked_for_before_the_guest_is_stopped(small: Engine) -> None:
    before = small.record("src")
    fill(small, 4 * MIB)
    for options in ({"name": "second", "vm": "src"},):
        error = refused(small, **options)
        assert "may take" in error and "root_dir" in error and "Remove old snapshots" in error, error
    assert "may take" in small.refused(name="src", state="hibernated")
    empty(small)
    unharmed(small, before)
    sound(small)


def test_snapshots_can_be_removed_to_make_room(small: Engine) -> None:
    """Even if there is none at all."""
    fill(small)
    assert small.snapshot(name="snap", state="absent")["changed"]
    empty(small)
    sound(small)
    assert status(small) == "running"


def test_a_restore_that_finds_no_room_at_all(small: Engine) -> None:
    before, pid = audit.held(small), small.record("src")["pid"]
    fill(small)
    error = refused(small, name="snap", state="restored")
    assert all(word in error for word in NO_SPACE), error
    empty(small)
    assert audit.held(small) == before and small.record("src")["pid"] == pid and status(small) == "running"
    sound(small)


def test_memory_for_the_restored_vm_is_looked_for_first(engine: Engine) -> None:
    engine.vm(**SOURCE)
    engine.snapshot(name="snap", vm="src")
    before = engine.record("src")
    error = refused(engine.with_options(memory_reserve="900G"), name="snap", state="restored")
    assert "memory_reserve" in error, error
    unharmed(engine, before)
    sound(engine)


def test_a_restore_gives_back_what_was_promised_since(engine: Engine) -> None:
    """And what is there besides stays, detached."""
    engine.vm(**SOURCE)
    engine.snapshot(name="snap", vm="src")
    promised = audit.ledger(engine)
    disks = [{"name": "data", "size": "24M", "fstype": "none"}, {"name": "more", "size": "16M", "fstype": "none"}]
    engine.vm(**{**SOURCE, "data_disks": disks})
    sound(engine)
    engine.snapshot(name="snap", state="restored")
    record = engine.record("src")
    assert [disk["size"] for disk in record["data_disks"]] == [16 * MIB]
    assert [disk["name"] for disk in record["detached_disks"]] == ["more"]
    assert audit.ledger(engine) == promised + 16 * MIB
    sound(engine)
    engine.vm(**{**SOURCE, "data_disks": disks[1:] + [{**disks[0], "size": "16M"}]})
    sound(engine)


# -- damaged snapshots ------------------------------------------------------------------------------------------------


def snapshot_folder(engine: Engine, name: str = "snap") -> Path:
    ids = dict(engine.store.index("snapshot").entries())
    return Path(engine.paths.root) / "snapshots" / ids[name]


def keep_times(path: Path, change: Callable[[], object]) -> None:
    """Change a file so that its times do not tell."""
    info = path.stat()
    change()
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def truncate(path: Path) -> None:
    keep_times(path, lambda: os.truncate(path, path.stat().st_size // 2))


def flip(path: Path) -> None:
    def change() -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)

    keep_times(path, change)


DAMAGES: list[tuple[str, Callable[[Path], None], str]] = [
    ("mem", truncate, "bytes and not"),
    ("mem", Path.unlink, "is missing"),
    ("vmstate", flip, "other contents"),
    ("vmstate", truncate, "bytes and not"),
    ("cow.raw", Path.unlink, "is missing"),
    ("data-data.raw", Path.unlink, "is missing"),
    ("data-data.raw", Path.touch, "was changed after"),
    ("cocoon.json", flip, "other contents"),
]


def test_damaged_snapshots_are_refused(engine: Engine) -> None:
    engine.vm(**SOURCE)
    before = engine.record("src")
    for file, damage, words in DAMAGES:
        engine.snapshot(name="snap", vm="src")
        held = audit.held(engine)
        damage(snapshot_folder(engine) / file)
        for error in (refused(engine, name="snap", state="restored"), engine.refused(**CLONE)):
            assert "'snap' is damaged" in error and words in error and file in error, error
        assert engine.snapshot(name="snap", vm="src")["changed"] is False
        # The sizes of the snapshot's files aside, all is as it was.
        assert {thing for thing in audit.held(engine) ^ held if not thing.startswith("snapshot file")} == set()
        unharmed(engine, {**before, "snapshot_ids": engine.record("src")["snapshot_ids"]})
        assert engine.snapshot(name="snap", state="absent")["changed"]
        sound(engine)


def test_snapshots_of_other_releases(engine: Engine) -> None:
    """What an older QEMU saved is taken up; what a newer one did, or one with another machine, is not."""
    engine.vm(**SOURCE)
    engine.snapshot(name="snap", vm="src")
    path = snapshot_folder(engine) / "snapshot.json"
    record = json.loads(path.read_text())
    before, held = engine.record("src"), audit.held(engine)
    for other, words in (
        ({"layout": {**record["layout"], "version": "99.1.0"}}, "saved by QEMU 99.1.0, and this host has"),
        ({"machine": "pc-q35-99.1"}, "saved with the machine pc-q35-99.1"),
    ):
        path.write_text(json.dumps({**record, **other}))
        for state in ("present", "started"):
            error = engine.refused(**{**CLONE, "state": state})
            assert words in error, error
            sound(engine)
            assert audit.held(engine) == held
        error = refused(engine, name="snap", state="restored")
        assert words in error and "hypervisor" in error, error
        unharmed(engine, before)
        sound(engine)
    path.write_text(json.dumps({**record, "layout": {**record["layout"], "version": "7.0.0"}}))
    engine.vm(**CLONE)
    engine.snapshot(name="snap", state="restored")
    sound(engine)


def test_a_snapshot_right_after_the_start(engine: Engine) -> None:
    """Its firmware has not looked for devices yet, and the snapshot knows their places nevertheless."""
    params = {**engine.dirs, **engine.options}

    def job(_mark: Mark) -> Any:
        (made,) = vms.converge_vms(params, [SOURCE], False)
        assert not made.get("failed"), made
        return snapshots.converge({"name": "snap", "vm": "src", "state": "present", **params}, False)

    for _time in range(3):
        outcome = Forked(engine.netns, job).wait()
        assert not outcome.error and outcome.results["snapshot"]["layout"]["slots"] == {"data": 0}, outcome
        engine.vm(**CLONE)
        sound(engine)
        audit.clean(engine)


def test_a_paused_vm_is_saved_again_and_again(engine: Engine) -> None:
    """QEMU itself saves a guest that stands still just once. It stays paused, and goes on when it is told to."""
    engine.vm(**SOURCE)
    engine.vm(name="src", state="paused")
    for name in ("snap", "second"):
        assert engine.snapshot(name=name, vm="src")["snapshot"]["kind"] == "full"
        assert status(engine) != "running" and engine.record("src")["state"] == "paused"
        sound(engine)
    assert not engine.vm(name="src", state="paused")["changed"]
    engine.vm(name="src", state="hibernated")
    engine.vm(name="src", state="started")
    engine.vm(**{**CLONE, "snapshot": "second"})
    assert status(engine) == status(engine, "clone") == "running"
    sound(engine)


def test_a_state_that_does_not_load(engine: Engine) -> None:
    """As if QEMU had saved nonsense: the VM is in error with the reason, and can be started afresh by force."""
    engine.vm(**SOURCE)
    engine.snapshot(name="snap", vm="src")
    engine.vm(**{**CLONE, "state": "present"})
    state = Path(engine.paths.vm_dir(engine.record("clone")["id"])) / "resume" / "vmstate"
    state.unlink()  # the snapshot has another name of it
    state.write_bytes(b"QEVM" + bytes(4096))
    error = engine.refused(**CLONE)
    assert "saved state could not be loaded" in error or "did not start" in error, error
    record = engine.record("clone")
    assert record["state"] == "error" and record["resume"]
    sound(engine)
    assert "force: true" in engine.refused(**{**CLONE, "state": "stopped"})
    engine.vm(**{**CLONE, "state": "stopped", "force": True})
    engine.vm(**CLONE)
    assert engine.record("clone")["state"] == "running" and not engine.record("clone")["resume"]
    sound(engine)


def test_disks_that_moved_on_after_the_memory_was_saved(engine: Engine) -> None:
    engine.vm(**SOURCE)
    engine.vm(name="src", state="hibernated")
    data_disk(engine.paths, engine.record("src"), "data").touch()
    error = engine.refused(name="src", state="started")
    assert "data-data.raw of VM 'src' changed after its memory was saved" in error and "force: true" in error, error
    sound(engine)
    engine.vm(name="src", state="stopped", force=True)
    engine.vm(name="src", state="started")
    sound(engine)


def test_a_damaged_vm_fails_alone_and_can_be_removed(engine: Engine) -> None:
    """Its guest runs on; its neighbour, the network and images do not mind; by its name it goes, with its process."""
    lab = {**GUEST, **DATA, "state": "started"}
    engine.vm(**lab, name="src")
    engine.vm(**lab, name="other")
    record = engine.record("src")
    path = Path(engine.paths.vm_dir(record["id"])) / "vm.json"
    path.write_bytes(path.read_bytes()[:-100])
    assert "vm.json is damaged" in engine.refused(name="src", state="stopped")
    shown = {vm["config"]["name"]: vm for vm in showing.vm_info({**engine.dirs})["vms"]}
    assert (shown["src"]["state"], shown["other"]["state"]) == ("error", "running")
    assert "state: absent" in shown["src"]["reason"]
    engine.vm(name="other", state="restarted", allow_restart=True)
    engine.vm(name="src", state="absent")
    assert start_time(record["pid"]) is None, "its hypervisor still runs"
    engine.vm(**lab, name="src")
    assert engine.record("src")["id"] == record["id"], "its data disk was kept for it"
    sound(engine)


# -- many at once -----------------------------------------------------------------------------------------------------


def test_the_same_snapshot_from_many_tasks(engine: Engine) -> None:
    engine.vm(**SOURCE)
    outcomes = [run.wait() for run in [engine.start_snapshot(name="snap", vm="src") for _time in range(4)]]
    assert not failures(outcomes) and changes(outcomes) == 1
    assert len(audit.snapshots(engine)) == 1 and status(engine) == "running"
    sound(engine)


def test_different_snapshots_of_one_vm(engine: Engine) -> None:
    engine.vm(**SOURCE)
    outcomes = [run.wait() for run in [engine.start_snapshot(name=f"s{n}", vm="src") for n in range(4)]]
    assert not failures(outcomes) and changes(outcomes) == 4
    assert len(audit.snapshots(engine)) == 4 and status(engine) == "running"
    sound(engine)


def test_rotation_by_many_tasks(engine: Engine) -> None:
    """Each keeps one, its own: the last one stays."""
    engine.vm(**SOURCE)
    runs = [engine.start_snapshot(name=f"s{number}", vm="src", keep=1) for number in range(4)]
    outcomes = [run.wait() for run in runs]
    assert not failures(outcomes) and changes(outcomes) == 4
    assert len(audit.snapshots(engine)) == 1 and status(engine) == "running"
    sound(engine)


def test_sixteen_clones_at_once(engine: Engine) -> None:
    engine.vm(**SOURCE)
    engine.snapshot(name="snap", vm="src")
    names = [f"clone{number}" for number in range(16)]
    outcomes = [run.wait() for run in [engine.start_vms({**CLONE, "name": name}) for name in names]]
    assert not failures(outcomes) and changes(outcomes) == 16
    assert {status(engine, name) for name in names} == {"running"}
    info = snapshot_info.info(engine.dirs, True)["snapshots"]
    assert info[0]["clones"] == sorted(names)
    sound(engine)
    # All of them have the snapshot's memory mapped, and go without harm to it.
    before = digest(snapshot_folder(engine) / "mem")
    engine.vms(*({"name": name, "state": "absent", "force": True} for name in names))
    assert digest(snapshot_folder(engine) / "mem") == before
    sound(engine)


@pytest.mark.parametrize("late", (0.0, 0.02, 0.05, 0.1, 0.2))
def test_a_snapshot_goes_while_clones_are_made(engine: Engine, late: float) -> None:
    """Each is made as a whole, and goes on from its memory later on, or is not made for want of the snapshot."""
    engine.vm(**SOURCE)
    engine.snapshot(name="snap", vm="src")
    names = [f"clone{number}" for number in range(4)]
    runs = [engine.start_vms({**CLONE, "name": name, "state": "present"}) for name in names]
    time.sleep(late)
    removed = engine.start_snapshot(name="snap", state="absent").wait()
    outcomes = [run.wait() for run in runs]
    assert not removed.error and removed.results["changed"]
    assert all("snapshot 'snap'" in error for error in failures(outcomes)), failures(outcomes)
    made = [record["config"]["name"] for record in audit.records(engine).values()]
    assert len(made) == 1 + changes(outcomes) and not audit.snapshots(engine)
    sound(engine)
    for name in sorted(set(made) & set(names))[:2]:
        engine.vm(name=name, state="started")
        assert engine.record(name)["memory_mode"] == "private" and status(engine, name) == "running"
    sound(engine)


@pytest.mark.parametrize("late", (0.0, 0.02, 0.05, 0.1, 0.2))
@pytest.mark.parametrize("first", ("snapshot", "stop"))
def test_a_snapshot_while_the_vm_is_stopped(engine: Engine, first: str, late: float) -> None:
    """It has the memory, or it has the disks; never a half of either."""
    engine.vm(**SOURCE)
    starts: dict[str, Callable[[], Forked]] = {
        "snapshot": lambda: engine.start_snapshot(name="snap", vm="src"),
        "stop": lambda: engine.start_vms({"name": "src", "state": "stopped", "force": True}),
    }
    runs = [starts.pop(first)()]
    time.sleep(late)
    runs += [start() for start in starts.values()]
    outcomes = [run.wait() for run in runs]
    assert not failures(outcomes) and changes(outcomes) == 2
    record = next(iter(audit.snapshots(engine).values()))
    assert ("mem" in record["files"]) == (record["kind"] == "full")
    assert engine.record("src")["state"] == "stopped"
    sound(engine)
    engine.vm(**CLONE)
    assert status(engine, "clone") == "running"
    sound(engine)


def test_a_snapshot_while_the_vm_is_removed(engine: Engine) -> None:
    for late in (0.0, 0.03, 0.1):
        engine.vm(**SOURCE)
        run = engine.start_snapshot(name="snap", vm="src")
        time.sleep(late)
        gone = engine.vms({"name": "src", "state": "absent", "force": True})
        taken = run.wait()
        assert not failures([gone])
        assert taken.results or "there is no VM 'src'" in str(taken.error), taken
        sound(engine)
        engine.snapshot(name="snap", state="absent")
        engine.vms({"name": "src", "state": "absent", "force": True})
        assert not audit.held(engine)


def test_restores_while_others_start_and_stop(engine: Engine) -> None:
    engine.vm(**SOURCE)
    engine.snapshot(name="snap", vm="src")
    states = ("stopped", "started", "paused", "started")
    runs: list[Forked] = []
    for state in states:
        runs.append(engine.start_snapshot(name="snap", state="restored"))
        runs.append(engine.start_vms({"name": "src", "state": state, "force": True}))
    outcomes = [run.wait() for run in runs]
    assert not failures(outcomes)
    sound(engine)
    engine.snapshot(name="snap", state="restored")
    assert status(engine) == "running"
    sound(engine)


# -- the trap: a balloon, or whatever a clone lets go of, reaches into the snapshot -----------------------------------


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """Of all files of a snapshot, each by its contents."""
    return {path.name: digest(path) for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def shell_image(store: Engine, modules: Callable[..., Modules], tiny_image: Path, scratch: Path) -> str:
    """An image whose guests do as they are told on their console."""
    files = {name: scratch / f"shell.{name}" for name in ("source", "kernel", "initrd")}
    with tarfile.open(tiny_image) as tar:
        for entry in tar:
            for option, word in (("kernel", "vmlinuz"), ("initrd", "initrd.img")):
                source = tar.extractfile(entry) if os.path.basename(entry.name).startswith(word) else None
                if source:
                    files[option].write_bytes(source.read())
    packed = files["initrd"].read_bytes()
    files["initrd"].write_bytes(packed + bytes(-len(packed) % 512) + cpio({"init": INIT.encode()}))
    with tarfile.open(files["source"], "w") as tar:
        tar.addfile(tarfile.TarInfo("shell"))
    modules(store.netns, store.dirs)("cocoon_image", name="shell", **{key: str(path) for key, path in files.items()})
    return "shell"


@contextlib.contextmanager
def console(engine: Engine, name: str) -> Iterator[Guest]:
    """The shell on a VM's console."""
    vm_id = engine.record(name)["id"]
    launch: Any = types.SimpleNamespace(run_dir=engine.paths.vm_run(vm_id), console_log=engine.paths.console_log(vm_id))
    nothing: Any = None
    guest = Guest(nothing, launch, nothing)
    try:
        yield guest
    finally:
        guest.console.close()


DISK = "$(basename $(dirname $(grep -l '^data$' /sys/block/vd*/serial)))"
FILL = "mount -t tmpfs -o size=40m tmpfs /mnt && head -c 24000000 /dev/urandom > /mnt/blob && sha256sum < /mnt/blob"


@pytest.mark.parametrize("balloon", [True, False], ids=["balloon", "mapped"])
def test_a_clone_cannot_reach_into_its_snapshot(engine: Engine, shell_image: str, balloon: bool) -> None:
    guest = {**BARE, **DATA, "image": shell_image, "memory": "128M", "cpu": 1, "state": "started", "name": "src"}
    engine.vm(**guest, **({"balloon": "0"} if balloon else {}), wait_for="console", wait_pattern="@ready", timeout=200)
    with console(engine, "src") as source:
        source.run("mkdir -p /mnt", 60)
        remembered = source.run(FILL, 120)
        source.run(f"head -c 4000000 /dev/urandom > /dev/{DISK} && sync", 60)
        on_disk = source.run(f"head -c 4000000 /dev/{DISK} | sha256sum", 60)
    engine.snapshot(name="snap", vm="src")
    folder = snapshot_folder(engine)
    before = digests(folder)
    sibling = {**CLONE, "name": "sibling"}
    engine.vm(**sibling)
    engine.vm(**CLONE)
    assert engine.record("clone")["memory_mode"] == (None if balloon else "private")
    with console(engine, "clone") as clone:
        assert clone.run("sha256sum < /mnt/blob", 60) == remembered
        free = int(clone.run("awk '/^MemFree/ {print $2}' /proc/meminfo"))
        if balloon:
            engine.vm(**CLONE, balloon="48M")
            clone.until(f"[ $(awk '/^MemFree/ {{print $2}}' /proc/meminfo) -lt {max(free - 20000, 20000)} ]", 60)
            engine.vm(**CLONE, balloon="0")
            clone.until(f"[ $(awk '/^MemFree/ {{print $2}}' /proc/meminfo) -gt {free - 10000} ]", 60)
        else:  # a balloon comes with a boot, and the memory that was mapped goes with it
            assert "allow_restart" in engine.refused(**CLONE, balloon="48M")
        # All that it remembered goes, other things come, and its disk is given back to the host.
        clone.run("rm /mnt/blob; echo 3 > /proc/sys/vm/drop_caches; head -c 30000000 /dev/zero > /mnt/other", 60)
        clone.run(f"blkdiscard /dev/{DISK} && sync", 60)
        assert clone.run(f"head -c 4000000 /dev/{DISK} | sha256sum", 60) != on_disk
    held = os.stat(data_disk(engine.paths, engine.record("clone"), "data")).st_blocks
    assert held * 512 < 2 * MIB, "nothing was discarded"
    assert digests(folder) == before
    # One that maps the memory since before, and one that has not seen it yet.
    engine.vm(**{**CLONE, "name": "late"})
    for name in ("sibling", "late"):
        with console(engine, name) as other:
            assert other.run("sha256sum < /mnt/blob", 60) == remembered
            assert other.run(f"head -c 4000000 /dev/{DISK} | sha256sum", 60) == on_disk
    with console(engine, "src") as source:
        assert source.run("sha256sum < /mnt/blob", 60) == remembered
    sound(engine)


# -- a guest that its hypervisor has stopped ---------------------------------------------------------------------------


@contextlib.contextmanager
def narrow(engine: Engine, name: str) -> Iterator[str]:
    """Put the data disk of a VM that does not run on a file system with no room for it; the mount point."""
    path = data_disk(engine.paths, engine.record(name), "data")
    info = os.lstat(path)
    folder = os.path.join(engine.paths.run, "narrow")
    os.mkdir(folder, 0o711)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0711", "tmpfs", folder], check=True)
    try:
        other = os.path.join(folder, "disk")
        with open(other, "wb") as stream:
            stream.truncate(info.st_size)
            os.fchown(stream.fileno(), info.st_uid, info.st_gid)
            os.fchmod(stream.fileno(), 0o600)
        subprocess.run(["mount", "--bind", other, path], check=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", path], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        os.rmdir(folder)


def info_of(engine: Engine, name: str) -> Any:
    (shown,) = showing.vm_info({**engine.dirs, "names": [name]})["vms"]
    return shown


def test_a_guest_without_space_for_its_disk_is_no_running_one(engine: Engine, shell_image: str) -> None:
    """Everybody is told, it goes on when it is to, and it has lost nothing."""
    guest = {**BARE, **DATA, "image": shell_image, "memory": "96M", "cpu": 1, "name": "src"}
    up = {**guest, "state": "started", "wait_for": "console", "wait_pattern": "@ready", "timeout": 200}
    engine.vm(**guest, state="present")
    with narrow(engine, "src") as folder:
        engine.vm(**up)
        assert info_of(engine, "src")["state"] == "running"
        with console(engine, "src") as source:
            line = f"head -c 4000000 /dev/urandom > /it; dd if=/it of=/dev/{DISK} bs=1M && sync"
            source.console.sendall(f"{line}\n".encode())
            deadline = time.monotonic() + 120
            while info_of(engine, "src")["state"] == "running":
                assert time.monotonic() < deadline
                time.sleep(0.1)
            shown = info_of(engine, "src")
            assert shown["state"] == "error" and "io-error" in shown["reason"] and shown["pid"]
            assert _host._halted(engine.store) == {"src": "io-error"}
            quiet = engine.vm(**guest, state="present")
            assert not quiet["changed"] and "io-error" in quiet["warnings"][0]
            subprocess.run(["mount", "-o", "remount,size=32m", folder], check=True)
            done = engine.vm(name="src", state="started")
            assert done["actions"] == ["resume"] and done["vm"]["state"] == "running"
            assert done["diff"] == {"before": {"state": "error"}, "after": {"state": "running"}}
            source.expect(rb"@0\r?\n", 120)
            source.run(f"cmp -n 4000000 /it /dev/{DISK}", 60)
            assert info_of(engine, "src")["state"] == "running" and not _host._halted(engine.store)
        engine.vm(name="src", state="stopped", force=True)


def test_a_guest_that_somebody_else_has_stopped(engine: Engine) -> None:
    """Not by this collection, and for no reason of the hypervisor's: it is paused, whatever the record says."""
    engine.vm(**SOURCE)
    path = os.path.join(engine.paths.vm_run(engine.record("src")["id"]), "qmp.sock")
    with Qmp.connect(path, 30) as qmp:
        qmp.execute("stop")
        assert info_of(engine, "src")["state"] == "running", "who talks to it keeps others waiting, and not for long"
    assert info_of(engine, "src")["state"] == "paused"
    assert engine.vm(**SOURCE)["actions"] == ["resume"]
    assert status(engine) == "running" and info_of(engine, "src")["state"] == "running"
