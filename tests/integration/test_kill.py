# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""kill -9 of a run between any two of its side effects: the next run converges, and nothing leaks.

Each case is run once to its end, which gives the places. Then it is killed at each of them, on two VMs: the one is
given the same definition again, the other one is removed at once. With COCOON_TEST_MARKS=fine in the environment
it is killed before every single change to a file, too, which takes a long time.
"""

from __future__ import annotations

import contextlib
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.tests.integration.support import audit
from ansible_collections.cocoon.microvm.tests.integration.support.engine import (
    FINE,
    GUEST,
    IDLE,
    TINY,
    Engine,
    data_disk,
    idle_image,
)
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules

SUBNETS = {"lab": "10.91.0.0/24", "side": "10.92.0.0/24"}
CONTENT = b"what the guest has written\n"
MIB = 1 << 20

Definition = dict[str, Any]


def disks(**sizes: str) -> list[Definition]:
    """data_disks; a name that begins with r is a raw one, without a file system."""
    return [
        {"name": name, "size": size, "fstype": "none" if name.startswith("r") else "ext4"}
        for name, size in sizes.items()
    ]


@dataclass(frozen=True)
class Case:
    """An operation to be killed.

    :param before: the definitions that the VM had before, in their order.
    :param change: the definition whose run is killed. In ports, {port} is a number that no other VM has.
    :param places: the marks to kill at begin so; what comes besides is killed in other cases.
    """

    name: str
    before: tuple[Definition, ...]
    change: Definition
    places: tuple[str, ...] = ("",)

    def __str__(self) -> str:
        return self.name


def case(name: str, *definitions: Definition, places: str = "") -> Case:
    """A case from the definitions of a VM, the one to be killed last."""
    return Case(name, definitions[:-1], definitions[-1], tuple(places.split()) or ("",))


NOW = {"force": True, "stop_timeout": 0}
ASKED = {"stop_timeout": 0}  # the idle guest does not answer the power button
UP, DOWN, MADE = {"state": "started"}, {"state": "stopped"}, {"state": "present"}
GONE = {"state": "absent"}
ONE, TWO = disks(data="16M"), disks(data="16M", raw="16M")
PORT = {"ports": ["{port}:80"]}
NICS = [{"network": "side"}, {"network": "lab"}]
ANEW = {"recreate": True, "stop_timeout": 0}
RESTART = {"allow_restart": True, "stop_timeout": 0}
ROOM = {**UP, "memory": "96M", "cpu": 1, "cpu_max": 2}

CASES = (
    case("create", {**UP, **PORT, "data_disks": TWO}),
    case("create-many-nics", {**MADE, "nics": [*NICS, {"network": "lab"}]}, places="create.mac create.lease"),
    case("start", {**MADE, "data_disks": ONE}, UP),
    case("stop", UP, {**DOWN, **ASKED}),
    case("stop-forced", UP, {**DOWN, **NOW}),
    case("absent", {**UP, **PORT}, {**GONE, **ASKED}),
    case("absent-keeping-disks", {**UP, **PORT, "data_disks": TWO}, {**GONE, **ASKED}, places="remove"),
    case(
        "absent-with-disks", {**UP, "data_disks": TWO}, {**GONE, **NOW}, places="remove.record remove.uid remove.files"
    ),
    case("absent-with-kept-disks", {**MADE, "data_disks": TWO}, GONE, {**GONE, **NOW}),
    case(
        "create-with-kept-disks",
        {**MADE, "data_disks": TWO},
        GONE,
        {**UP, "data_disks": disks(data="24M", new="16M")},
        places="create",
    ),
    case("add-disk-live", {**UP, "data_disks": ONE}, {**UP, "data_disks": TWO}),
    case("add-disk-offline", {**MADE, "data_disks": ONE}, {**MADE, "data_disks": TWO}, places="add_disk.file"),
    case(
        "add-kept-disk",
        {**MADE, "data_disks": TWO},
        {**MADE, "data_disks": []},
        {**MADE, "data_disks": disks(data="24M")},
    ),
    case("drop-disk-offline", {**MADE, "data_disks": TWO}, {**MADE, "data_disks": ONE}),
    case("delete-disk-offline", {**MADE, "data_disks": TWO}, {**MADE, "data_disks": ONE, "force": True}),
    case("grow-disk-live", {**UP, "data_disks": TWO}, {**UP, "data_disks": disks(data="16M", raw="24M")}),
    case("grow-disk-offline", {**MADE, "data_disks": TWO}, {**MADE, "data_disks": disks(data="24M", raw="24M")}),
    case("grow-system-disk", DOWN, {**DOWN, "storage": "48M"}),
    case("nics", {**DOWN, **PORT}, {**DOWN, "nics": NICS}),
    case("nics-of-running", UP, {**MADE, "nics": NICS[:1], **RESTART}, places="set_nics.taken set_nics.written"),
    case("ports", {**UP, **PORT}, {**UP, "ports": ["{port}:81", "{port}:80/udp"]}),
    case("ports-added", {**UP, **PORT}, {**UP, "ports": ["{port}:80", "{port}:80/udp"]}),
    case(
        "rebuild", {**UP, "data_disks": ONE}, {**UP, "image": "other", "storage": "48M", **ANEW}, places="stop rebuild"
    ),
    case("rebuild-stopped", DOWN, {**MADE, "image": "other", **ANEW}, places="rebuild.record rebuild.removed"),
    case("restart", UP, {**MADE, "memory": "72M", **RESTART}),
    case("configure", UP, {**MADE, "labels": {"tier": "web"}}),
    case(
        "balloon-vcpus-and-limits",
        {**ROOM, "balloon": "8M"},
        {**ROOM, "balloon": "16M", "cpu": 2, "limits": {"total": {"iops": 90000}}},
    ),
)


@pytest.fixture(scope="module")
def engine(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    scratch: Path,
) -> Iterator[Engine]:
    """A store with two images, two networks and the disks' templates, so that only VMs come and go."""
    netns, dirs = make_netns(), make_store()
    for name in (IDLE, "other"):
        modules(netns, dirs)("cocoon_image", name=name, **idle_image(scratch, name))
    engine = Engine(netns, dirs)
    for name, subnet in SUBNETS.items():
        engine.network(name=name, subnet=subnet)
    yield engine
    audit.clean(engine)


class Subject:
    """A VM that is made to be killed."""

    count = 0

    def __init__(self, engine: Engine, case: Case) -> None:
        Subject.count += 1
        self.engine = engine
        self.case = case
        self.port = 20000 + Subject.count
        self.name = f"vm{Subject.count}"

    def definition(self, options: Definition) -> Definition:
        """The whole definition for the options of a case."""
        ports = [port.format(port=self.port) for port in options.get("ports", ())]
        return {**GUEST, **options, **({"ports": ports} if ports else {}), "name": self.name}

    @property
    def change(self) -> Definition:
        return self.definition(self.case.change)

    @property
    def record(self) -> dict[str, Any]:
        return dict(self.engine.record(self.name) or {})

    def disks(self) -> dict[str, Path]:
        """The files of its data disks, whether attached or kept."""
        record = self.record
        known = [*record.get("data_disks", ()), *record.get("detached_disks", ())]
        return {disk["name"]: data_disk(self.engine.paths, record, disk["name"]) for disk in known}

    def contents(self) -> dict[str, tuple[int, int, bool]]:
        """What :func:`look` sees on each data disk."""
        return {name: look(path) for name, path in self.disks().items()}

    def state(self) -> Definition:
        """All that definitions decide of a VM, and what is on its disks."""
        record = self.record
        if not record:
            return {}
        keys = ("state", "labels", "data_disks", "detached_disks", "image_id", "balloon", "limits", "first_booted")
        return {
            **{key: record.get(key) for key in keys},
            "config": {key: value for key, value in record["config"].items() if key != "name"},
            "networks": [config["network_name"] for config in record["network_configs"]],
            "ports": [port.partition(":")[2] for port in record["ports"]],
            "disks": self.contents(),
        }


def fill(path: Path) -> None:
    """Put CONTENT on a data disk: into a file of its file system, or for a raw one into a block."""
    if is_raw(path):
        with path.open("r+b") as stream:
            stream.seek(MIB)
            stream.write(CONTENT)
        return
    source = path.with_name("content")
    source.write_bytes(CONTENT)
    subprocess.run(["debugfs", "-w", "-R", f"write {source} kept", path], check=True, capture_output=True)
    source.unlink()


def look(path: Path) -> tuple[int, int, bool]:
    """Bytes of a data disk, bytes of the file system on it, and whether it holds CONTENT."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        if is_raw(path):
            stream.seek(MIB)
            return size, 0, stream.read(len(CONTENT)) == CONTENT
        stream.seek(1024)
        block = stream.read(64)
    blocks, unit = struct.unpack_from("<I", block, 4)[0], 1024 << struct.unpack_from("<I", block, 24)[0]
    done = subprocess.run(["debugfs", "-R", "cat kept", path], check=True, capture_output=True)
    return size, blocks * unit, done.stdout == CONTENT


def is_raw(path: Path) -> bool:
    return path.name.startswith("data-r")


def prepare(engine: Engine, subjects: Sequence[Subject]) -> None:
    """Bring VMs to where the operation begins, with something on each disk."""
    for options in subjects[0].case.before:
        outcome = engine.vms(*(subject.definition(options) for subject in subjects))
        assert not outcome.error, outcome.error
        assert not any(result.get("failed") for result in outcome.results), outcome.results
        for path in [path for subject in subjects for path in subject.disks().values()]:
            if not look(path)[2]:
                fill(path)


def converge(engine: Engine, *definitions: Definition) -> list[bool]:
    """Run definitions at once, each in a process of its own: whether each changed something."""
    changed = []
    for run in [engine.start_vms(definition) for definition in definitions]:
        outcome = run.wait()
        assert not outcome.error, outcome.error
        assert not outcome.results[0].get("failed"), outcome.results[0]["msg"]
        changed.append(outcome.results[0]["changed"])
    return changed


def remove(engine: Engine, *subjects: Subject, force: bool) -> None:
    converge(engine, *({"name": subject.name, **GONE, "stop_timeout": 0, "force": force} for subject in subjects))


def check(engine: Engine) -> None:
    """The store fits the host, and the firewall's rules fit the store."""
    problems = audit.wrong(engine)
    assert not problems, problems
    assert not engine.network(check=True, subnet=SUBNETS["lab"])["changed"]


def trace(engine: Engine, case: Case) -> tuple[list[str], Definition]:
    """The marks of an operation that is not killed, and the state that it leads to."""
    subject = Subject(engine, case)
    prepare(engine, [subject])
    outcome = engine.vms(subject.change)
    assert not outcome.error and not outcome.results[0].get("failed"), outcome
    state = subject.state()
    assert converge(engine, subject.change) == [False]
    check(engine)
    remove(engine, subject, force=True)
    assert not audit.held(engine) and not audit.ledger(engine)
    return outcome.marks, state


def kill(engine: Engine, case: Case, place: int, mark: str, wanted: Definition) -> None:
    """Kill the operation at one of its marks, and see what can be made of what is left."""
    again, gone = Subject(engine, case), Subject(engine, case)
    prepare(engine, [again, gone])
    before = gone.contents()
    for run in [engine.start_vms(subject.change, kill_at=place) for subject in (again, gone)]:
        outcome = run.wait()
        # A run that finds a lock or a cache made already opens fewer files.
        assert outcome.killed and outcome.marks[-1] == mark or FINE, outcome
    converge(engine, again.change, {"name": gone.name, **GONE, "stop_timeout": 0})
    check(engine)
    assert again.state() == wanted
    assert converge(engine, again.change) == [False]
    assert gone.record.get("state") in (None, "removed")
    left = gone.contents()
    lost = [name for name, seen in before.items() if seen[2] and name in wanted.get("disks", ()) and not left[name][2]]
    assert not lost, f"the removal that followed took the data disks {lost}"
    remove(engine, again, gone, force=True)
    assert not audit.held(engine) and not audit.ledger(engine)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vm(engine: Engine, case: Case) -> None:
    problems = []
    with cleaned(engine):
        marks, wanted = trace(engine, case)
    assert any(mark.startswith(case.places) for mark in marks), marks
    for place, mark in enumerate(marks):
        if not (FINE or mark.startswith(case.places)):
            continue
        try:
            with cleaned(engine):
                kill(engine, case, place, mark, wanted)
        except AssertionError as exc:
            problems.append(f"killed at {mark} ({place} of {len(marks)}): {str(exc)[-1500:]}")
    assert not problems, "\n\n".join(problems)


@contextlib.contextmanager
def cleaned(engine: Engine) -> Iterator[None]:
    """Clean up after a failure, so that the next place is tried alone."""
    try:
        yield
    except AssertionError:
        audit.clean(engine)
        raise


# -- what a running guest has to let go of ---------------------------------------------------------------------------


@pytest.mark.parametrize("force", (False, True), ids=("kept", "deleted"))
def test_drop_disk_live(engine: Engine, modules: Callable[..., Modules], tiny_image: Path, force: bool) -> None:
    """One running guest, whose disk is dropped over and over, killed a place later each time."""
    modules(engine.netns, engine.dirs)("cocoon_image", name=TINY, source=str(tiny_image))
    guest = {**GUEST, "name": "alive", "image": TINY, "memory": "96M", "storage": "64M", "state": "started"}
    both = {**guest, "data_disks": TWO}
    unplugged = [{**disk, "attached": disk["name"] != "raw"} for disk in TWO]
    one = {**guest, "data_disks": ONE, "force": True} if force else {**guest, "data_disks": unplugged}
    with cleaned(engine):
        engine.vm(**both, wait_for="console", timeout=120)
        pid = engine.record("alive")["pid"]
        place, killed = 0, True
        while killed:
            killed = engine.vms(one, kill_at=place).killed
            converge(engine, one)
            check(engine)
            assert converge(engine, one) == [False]
            record = engine.record("alive")
            assert [disk["name"] for disk in record["detached_disks"]] == ([] if force else ["raw"])
            assert converge(engine, both) == [True]
            check(engine)
            place += 1
        assert place > 2 and engine.record("alive")["pid"] == pid
        engine.vm(name="alive", **GONE, **NOW)
    assert not audit.held(engine) and not audit.ledger(engine)


# -- networks --------------------------------------------------------------------------------------------------------

THIRD = {"name": "third", "subnet": "10.93.0.0/24"}
NETWORK_CASES = {
    "create": ((), THIRD),
    "update": ((THIRD,), {**THIRD, "subnet": "10.94.0.0/24", "nat": False}),
    "remove": ((THIRD,), {"name": "third", **GONE}),
}


def on_host(engine: Engine) -> set[str]:
    """What the networks have on the host: interfaces, rules, files."""
    root = Path(engine.paths.root)
    files = [path for name in ("networks", "index/network") for path in (root / name).rglob("*")]
    rules = engine.netns.run("nft", "list", "ruleset").splitlines()
    return {*audit.links(engine), *rules, *(str(path.relative_to(root)) for path in files)}


@pytest.mark.parametrize("name", NETWORK_CASES)
@pytest.mark.parametrize("removed", (False, True), ids=("again", "removed"))
def test_network(engine: Engine, name: str, removed: bool) -> None:
    before, change = NETWORK_CASES[name]
    empty = on_host(engine)
    place, killed = 0, True
    while killed:
        for definition in before:
            engine.network(**definition)
        outcome = engine.start_network(kill_at=place, **change).wait()
        killed = outcome.killed
        where = f"killed at {outcome.marks[-1]} ({place})"
        if not removed:
            engine.network(**change)
            assert not engine.network(**change)["changed"], where
            assert not engine.network(check=True, subnet=SUBNETS["lab"])["changed"], where
        engine.network(name="third", **GONE)
        assert on_host(engine) == empty, where
        place += 1
    assert place > 3
