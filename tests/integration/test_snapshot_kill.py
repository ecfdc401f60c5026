# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""kill -9 of what saves, clones, restores or hibernates a VM: the guest goes on, the next run converges, nothing leaks.

Each case is run once to its end, which gives the places. Then it is killed at each of them, once for each task that
may come next: the same one again, one that takes it back, and others. The guests are idle and cannot answer to a new
identity, so clones that run have no NIC here.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._engine import snapshots
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import backup, migration
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.qmp import Qmp
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import saving
from ansible_collections.cocoon.microvm.tests.integration.support import audit
from ansible_collections.cocoon.microvm.tests.integration.support.engine import (
    FINE,
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

SUBNET = "10.102.0.0/24"
# Seconds within which a guest goes on whose saver was killed.
PATIENCE = 15.0
CONTENT = b"what the guest has written since\n"
NOW = {"force": True, "stop_timeout": 0}


@dataclass(frozen=True)
class Task:
    """One task: a VM's definition, or a snapshot's."""

    noun: str
    options: dict[str, Any]

    def begin(self, engine: Engine, kill_at: int | None = None) -> Forked:
        if self.noun == "vm":
            return engine.start_vms(self.options, kill_at=kill_at)
        return engine.start_snapshot(kill_at, **self.options)

    def run(self, engine: Engine) -> bool:
        """Carry it out: whether it changed something."""
        return changed(self.begin(engine).wait(), self)


def changed(outcome: Outcome, what: object = "") -> bool:
    """Whether a run that has to end well changed something."""
    assert not outcome.error, f"{what}: {outcome.error}"
    results = outcome.results if isinstance(outcome.results, list) else [outcome.results]
    assert not results[0].get("failed"), f"{what}: {results[0].get('msg')}"
    return bool(results[0]["changed"])


def vm(name: str, state: str = "started", **options: Any) -> Task:
    return Task("vm", {"name": name, "state": state, **options})


def snapshot(name: str = "snap", state: str = "present", **options: Any) -> Task:
    return Task("snapshot", {"name": name, "state": state, **options})


# Where the next task finds something else than a step before.
TURNS = (
    *("snapshot.record", "save.begun", "save.disk", "save.copied", "save.saved", "snapshot.sealed", "snapshot.listed"),
    *("snapshot.complete", "snapshot.unlisted", "snapshot.removed", "hibernate.record", "hibernate.process"),
    *("create.record", "create.memory", "create.lease", "clone.noted", "clone.memory", "create.done"),
    *("start.record", "start.spawned", "start.process", "start.running"),
    *("restore.copied", "restore.begun", "restore.ended", "restore.record"),
)


@dataclass(frozen=True)
class Case:
    """An operation to be killed.

    :param stage: what there is before.
    :param change: the task whose run is killed.
    :param undo: brings back what there was before, for the next place.
    :param nexts: the tasks that may come after instead of the same one again.
    :param alive: the guest that runs on, at the places that begin with *until*.
    :param places: the marks to kill at begin so; what comes besides is killed in other cases.
    :param turns: the same for the tasks that come after instead of the change.
    :param settled: of a change that changes something each time, what changes nothing after it.
    :param leftovers: the places at which something stays that no plan looks at: the next change takes it away.
    """

    name: str
    stage: tuple[Task, ...]
    change: Task
    undo: tuple[Task, ...] = ()
    nexts: tuple[tuple[Task, ...], ...] = ()
    alive: str = ""
    until: tuple[str, ...] = ("",)
    places: tuple[str, ...] = ("",)
    turns: tuple[str, ...] = TURNS
    settled: Task | None = None
    leftovers: tuple[str, ...] = ("restore.copied", "start.running")

    def __str__(self) -> str:
        return self.name


DATA = {"data_disks": [{"name": "data", "size": "16M", "fstype": "none"}]}
BARE = {**GUEST, "nics": []}
SOURCE = vm("src", **BARE, **DATA)
MADE_SOURCE = vm("src", "present", **BARE, **DATA)
WIRED = vm("src", **GUEST, **DATA)
TAKE = snapshot(vm="src")
DROP = snapshot(state="absent")
CLONE = vm("clone", snapshot="snap")
MADE = vm("clone", "present", snapshot="snap")
GONE = vm("clone", "absent", force=True)
SOURCE_GONE = vm("src", "absent", force=True)
STOP = vm("src", "stopped", **NOW)
RESTORE = snapshot(state="restored")

PAUSE, HIBERNATE = vm("src", "paused"), vm("src", "hibernated")
PRUNE, DROP_SECOND = snapshot("second", vm="src", keep=1), snapshot("second", "absent")
OF_CLONE, DROP_OF_CLONE = snapshot("of-clone", vm="clone"), snapshot("of-clone", "absent")

REPLACE = snapshot(vm="src", replace=True)

UNTOUCHED = vm("src", "present")

TAKEN = ((DROP, SOURCE), (UNTOUCHED, DROP), (SOURCE_GONE, DROP))
CLONED = ((GONE,), (DROP, GONE))
RESTORED = ((UNTOUCHED,), (SOURCE,), (STOP, SOURCE), (SOURCE_GONE, DROP), (DROP, SOURCE_GONE))

# Where a guest stands still on its way into hibernation, and goes on.
STANDING = ("save.begun", "save.state", "save.memory", "save.copied")

PRUNING = ("snapshot.complete", "snapshot.unlisted", "snapshot.removed")
STARTING = ("start.memory", "start.record", "start.spawned", "start.process", "start.running")
# Those that have come about when a clone gets its files.
RESERVED = ("create.mac", "create.lease", "clone", "create.done")

CASES = (
    Case("take-running", (SOURCE,), TAKE, (DROP,), TAKEN, alive="src"),
    Case(
        "take-stopped", (SOURCE, STOP), TAKE, (DROP,), ((DROP,), (SOURCE_GONE, DROP)), places=("snapshot", "save.disk")
    ),
    Case("take-paused", (SOURCE, PAUSE), TAKE, (DROP,), ((UNTOUCHED, DROP),), places=("save",), leftovers=("save",)),
    Case("take-clone", (SOURCE, TAKE, CLONE), OF_CLONE, (DROP_OF_CLONE,), alive="clone", places=("save",)),
    Case("take-and-prune", (SOURCE, TAKE), PRUNE, (DROP_SECOND,), ((DROP_SECOND, DROP),), places=PRUNING),
    Case(
        "replace",
        (MADE_SOURCE, TAKE),
        REPLACE,
        (DROP,),
        ((TAKE,), (DROP,)),
        settled=TAKE,
        places=("replace", *PRUNING),
        turns=("replace", *PRUNING),
    ),
    Case("remove", (SOURCE, TAKE), DROP, (), ((TAKE, DROP),)),
    Case("clone", (SOURCE, TAKE), MADE, (GONE,), CLONED, alive="src"),
    Case("clone-with-nic", (WIRED, TAKE), MADE, (GONE,), CLONED[:1], places=RESERVED),
    Case("clone-and-start", (SOURCE, TAKE), CLONE, (GONE,), CLONED[:1], alive="src", places=("create.done", *STARTING)),
    Case("clone-disks", (SOURCE, STOP, TAKE), CLONE, (GONE,), CLONED[:1], places=("clone", "create.done")),
    Case("clone-disks-with-nic", (WIRED, STOP, TAKE), CLONE, (GONE,), places=(*RESERVED, "start.tap")),
    Case("start-clone", (SOURCE, TAKE, MADE), CLONE, (GONE,), (*CLONED, (DROP, CLONE, GONE)), places=STARTING),
    Case("restore", (SOURCE, TAKE), RESTORE, (), RESTORED, settled=SOURCE, places=("restore", *STARTING)),
    Case("restore-stopped", (SOURCE, TAKE, STOP), RESTORE, (), RESTORED[:1], settled=SOURCE, places=("restore",)),
    Case("restore-disks", (SOURCE, STOP, TAKE, SOURCE), RESTORE, (), places=("restore",), settled=SOURCE),
    Case("hibernate", (SOURCE,), HIBERNATE, (), ((SOURCE,), (SOURCE_GONE,)), alive="src", until=STANDING),
    Case("resume", (SOURCE, HIBERNATE), SOURCE, (), ((STOP,), (SOURCE_GONE,)), places=STARTING),
)


@pytest.fixture(scope="module")
def engine(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    scratch: Path,
) -> Iterator[Engine]:
    """A store with an image and a network."""
    engine = Engine(make_netns(), make_store())
    modules(engine.netns, engine.dirs)("cocoon_image", name=IDLE, **idle_image(scratch))
    engine.network(subnet=SUBNET)
    yield engine
    audit.clean(engine)


def status(engine: Engine, name: str) -> str:
    """What the hypervisor of a VM says of its guest."""
    path = os.path.join(engine.paths.vm_run(engine.record(name)["id"]), "qmp.sock")
    with Qmp.connect(path, PATIENCE) as qmp:
        return str(qmp.execute("query-status")["status"])


def await_calm(engine: Engine, name: str = "") -> None:
    """Wait until no guard is at work any more, and until the guest of a VM runs.

    :raises AssertionError: that takes too long.
    """
    deadline = time.monotonic() + PATIENCE
    while audit.guards(engine) or (name and status(engine, name) != "running"):
        assert time.monotonic() < deadline, f"{name} is {name and status(engine, name)}, {audit.guards(engine)}"
        time.sleep(0.01)


def summary(engine: Engine) -> dict[str, str]:
    """The VMs and the snapshots by name, and what they are."""
    vms = {record["config"]["name"]: record["state"] for record in audit.records(engine).values()}
    return {**vms, **{record["name"]: record["kind"] for record in audit.snapshots(engine).values()}}


def unlinked(engine: Engine) -> list[str]:
    """Files that have gone and whose space is not given back, as a hypervisor has them open."""
    found = []
    for pid, _vm in audit.processes(engine):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(path))
    # A clone maps its snapshot's memory by a name of its own, which goes when it runs.
    gone = [path for path in found if path.startswith(engine.paths.root) and path.endswith("(deleted)")]
    return [path for path in gone if not path.endswith("/resume/mem (deleted)")]


def check(engine: Engine) -> None:
    """The store fits the host, and the records fit the store."""
    await_calm(engine)
    problems = [*audit.wrong(engine), *unlinked(engine)]
    assert not problems, problems
    for name, state in summary(engine).items():
        if state in audit.ALIVE:
            assert (status(engine, name) == "running") == (state == "running"), name


def prepare(engine: Engine, case: Case) -> None:
    for task in case.stage:
        task.run(engine)
    check(engine)


def remove_all(engine: Engine) -> None:
    """Remove everything as a user does; nothing stays."""
    for name, _id in engine.store.index("snapshot").entries():
        engine.snapshot(name=name, state="absent")
    names = [name for name, _id in engine.store.index("vm").entries()]
    engine.vms(*({"name": name, "state": "absent", "force": True} for name in names))
    await_calm(engine)
    assert not audit.held(engine) and not audit.ledger(engine)


def trace(engine: Engine, case: Case) -> tuple[list[str], dict[str, str]]:
    """The marks of an operation that is not killed, and what there is after it."""
    prepare(engine, case)
    outcome = case.change.begin(engine).wait()
    assert changed(outcome, case)
    check(engine)
    wanted = summary(engine)
    assert not (case.settled or case.change).run(engine)
    remove_all(engine)
    return outcome.marks, wanted


def disk_of_source(engine: Engine) -> Path:
    return data_disk(engine.paths, engine.record("src"), "data")


def scribble(engine: Engine) -> None:
    """Write on a disk what no snapshot has."""
    with disk_of_source(engine).open("r+b") as stream:
        stream.write(CONTENT)


def scribbled(engine: Engine) -> bool:
    with disk_of_source(engine).open("rb") as stream:
        return stream.read(len(CONTENT)) == CONTENT


def kill(engine: Engine, case: Case, place: int, mark: str, then: Sequence[Task], wanted: dict[str, str]) -> None:
    """Kill the operation at one of its marks, and see what the tasks that follow make of what is left."""
    prepare(engine, case)
    if case.change is RESTORE:
        scribble(engine)
    outcome = case.change.begin(engine, place).wait()
    assert outcome.killed and outcome.marks[-1] == mark or FINE, outcome
    await_calm(engine, case.alive if mark.startswith(case.until) else "")
    for task in then:
        task.run(engine)
    for name, _id in engine.store.index("vm").entries() if FINE or mark.startswith(case.leftovers) else ():
        assert vm(name, "present", labels={"touched": str(time.time())}).run(engine)
    check(engine)
    if then[0] == case.change:
        assert summary(engine) == wanted
        assert not (case.settled or case.change).run(engine)
        check(engine)
        assert case.change is not RESTORE or not scribbled(engine)
        for task in case.undo:
            task.run(engine)
    elif case.change is RESTORE and engine.record("src"):  # all of it, or nothing
        assert scribbled(engine) == (mark == "restore.copied")
    if case.alive and case.alive in summary(engine) and case.alive != case.change.options["name"]:
        assert status(engine, case.alive) == "running"


def cases() -> list[Any]:
    found = []
    for case in CASES:
        for number, then in enumerate(((case.change,), *case.nexts)):
            words = "+".join(f"{task.noun}-{task.options['state']}" for task in then)
            found.append(pytest.param(case, then, id=f"{case}-then-{words if number else 'again'}"))
    return found


@pytest.mark.parametrize(("case", "then"), cases())
def test_killed(engine: Engine, case: Case, then: Sequence[Task]) -> None:
    problems = []
    with cleaned(engine):
        marks, wanted = trace(engine, case)
    assert any(mark.startswith(case.places) for mark in marks), marks
    chosen = case.places if then[0] == case.change else case.turns
    for place, mark in enumerate(marks):
        if not (FINE or mark.startswith(case.places) and mark.startswith(chosen)):
            continue
        try:
            with cleaned(engine):
                kill(engine, case, place, mark, then, wanted)
        except AssertionError as exc:
            problems.append(f"killed at {mark} ({place} of {len(marks)}): {str(exc)[-1500:]}")
    with cleaned(engine):
        remove_all(engine)
    assert not problems, "\n\n".join(problems)


@contextlib.contextmanager
def cleaned(engine: Engine) -> Iterator[None]:
    """Clean up after a failure, so that the next place is tried alone."""
    try:
        yield
    except AssertionError:
        audit.clean(engine)
        raise


# -- while QEMU is about to tell its state ---------------------------------------------------------------------------


def start_streaming(engine: Engine, name: str) -> Forked:
    """Begin to take a snapshot of a VM, and die when QEMU has begun to write and nobody has read it."""
    params = {"name": "snap", "vm": name, "state": "present", **engine.dirs, **engine.options}

    def die(pump: Any) -> None:
        select.select([pump._source], [], [])
        os.kill(os.getpid(), signal.SIGKILL)

    def job(mark: Mark) -> Any:
        migration._Pump.run = die  # type: ignore[method-assign]
        return snapshots.converge(params, False, mark)

    return Forked(engine.netns, job)


@pytest.mark.parametrize("name", ("src", "clone"))
def test_killed_while_the_state_is_written(engine: Engine, name: str) -> None:
    """Of a clone the RAM is in the stream, too."""
    with cleaned(engine):
        SOURCE.run(engine)
        engine.snapshot(name="golden", vm="src")
        vm("clone", snapshot="golden").run(engine)
        for _time in range(6):
            outcome = start_streaming(engine, name).wait()
            assert outcome.killed and outcome.marks[-1] == "save.begun"
            await_calm(engine, name)
        assert snapshot(vm=name).run(engine)
        check(engine)
        remove_all(engine)


# -- while disks are copied and the guest runs on ----------------------------------------------------------------------


@pytest.mark.parametrize("then", TAKEN, ids=("removed", "present", "vm-removed"))
def test_killed_while_disks_are_copied(engine: Engine, monkeypatch: pytest.MonkeyPatch, then: Sequence[Task]) -> None:
    """What QEMU was given to copy to is not held for longer than the next task."""
    monkeypatch.setattr(saving, "LARGE", 0)
    finish = backup.finish

    def marked(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with cleaned(engine):
        for tasks in ((TAKE,), then):
            SOURCE.run(engine)
            monkeypatch.setattr(backup, "finish", marked)
            outcome = TAKE.begin(engine).wait()
            monkeypatch.setattr(backup, "finish", finish)
            assert outcome.killed and outcome.marks[-1] == "save.copied"
            await_calm(engine, "src")
            for task in tasks:
                task.run(engine)
            check(engine)
            if engine.record("src"):
                # No job is left that a disk would be busy with.
                disks = [{"name": "data", "size": "24M", "fstype": "none"}]
                assert vm("src", data_disks=disks).run(engine)
            remove_all(engine)


# -- what is saved is not lost ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("hibernated", "cloned", "restored"))
def test_memory_survives_a_start_that_is_killed(engine: Engine, kind: str) -> None:
    """Whatever comes next but does not mean to start it, the VM goes on from its memory when it is started."""
    name = "clone" if kind == "cloned" else "src"
    undo = {"hibernated": (SOURCE, HIBERNATE), "cloned": (SOURCE, TAKE, GONE, MADE), "restored": (SOURCE, TAKE)}[kind]
    up = CLONE if kind == "cloned" else SOURCE
    change = RESTORE if kind == "restored" else up
    with cleaned(engine):
        for task in undo:
            task.run(engine)
        marks = change.begin(engine).wait().marks
        for place in ("start.memory", "start.record", "start.tap", "start.spawned"):
            for task in undo:
                task.run(engine)
            before = engine.record(name)["state"]
            assert change.begin(engine, marks.index(place)).wait().killed
            if kind == "hibernated":
                assert "force: true" in engine.refused(name=name, state="stopped")
            vm(name, "present").run(engine)
            if kind == "restored":  # it ran before, so present ends what was begun
                assert engine.record(name)["state"] == "running" and not up.run(engine)
            else:
                assert engine.record(name)["state"] == before and engine.record(name)["resume"], place
                assert up.run(engine)
            check(engine)
        remove_all(engine)
