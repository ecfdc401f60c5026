# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside the lab: kill -9 of a run on a real hypervisor, at each of its marks; the next run has to cope.

``python3 -m …tests.lab.killing DRIVER CASE`` kills the change of a case at each place,
each time followed by one of the tasks that may come next; ``end`` as a case removes what the others shared. It prints,
as JSON, where it killed and what was wrong.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.tests.integration.support import audit
from ansible_collections.cocoon.microvm.tests.integration.support.engine import Engine, Forked, Outcome
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns, command

DIRS = {
    "root_dir": "/var/lib/cocoon-microvm",
    "run_dir": "/run/cocoon-microvm",
    "log_dir": "/var/log/cocoon-microvm",
}
# Seconds within which a guest goes on whose saver was killed.
PATIENCE = 60.0
SMALL = {"image": "tiny", "cpu": 1, "memory": "128M", "storage": "128M", "network": "lab", "balloon": "off"}
VM, CLONE, SNAPSHOT = "killed", "killed-clone", "killed-saved"
# In the command line of each process that lets a guest go on when whoever saves it has died.
GUARD = b"os.read(0, 1)"


class Here(Netns):
    """The network namespace that this is in."""

    @property
    def path(self) -> str:
        return "/proc/self/ns/net"

    def run(self, *words: str | Path, check: bool = True, timeout: float = 60) -> str:
        return command(*words, check=check, timeout=timeout)


@dataclass(frozen=True)
class Task:
    """One task: a VM's definition, or a snapshot's."""

    noun: str
    options: dict[str, Any]

    def begin(self, engine: Engine, driver: str, kill_at: int | None = None) -> Forked:
        if self.noun == "snapshot":
            return engine.start_snapshot(kill_at, **self.options)
        made = {"hypervisor": driver, **SMALL} if self.options.get("state") != "absent" else {}
        return engine.start_vms({**({} if "snapshot" in self.options else made), **self.options}, kill_at=kill_at)


def vm(name: str, state: str, **options: Any) -> Task:
    return Task("vm", {"name": name, "state": state, **options})


NOW = {"force": True, "stop_timeout": 0}
UP, DOWN, GONE = vm(VM, "started"), vm(VM, "stopped", **NOW), vm(VM, "absent", **NOW)
SEEN = vm(VM, "present")
BOOTED = vm(VM, "started", wait_for="ping", timeout=300)
TAKE = Task("snapshot", {"name": SNAPSHOT, "vm": VM})
DROP = Task("snapshot", {"name": SNAPSHOT, "state": "absent"})
COPY = vm(CLONE, "started", snapshot=SNAPSHOT, wait_for="ping", timeout=200)
COPY_GONE = vm(CLONE, "absent", **NOW)


@dataclass(frozen=True)
class Case:
    """An operation to be killed.

    :param stage: tasks that lead to where it begins, from wherever the last ones led.
    :param change: the task whose run is killed, at the marks *places*.
    :param nexts: what may follow, in turn.
    :param alive: whether the guest has to go on by itself.
    """

    stage: tuple[Task, ...]
    change: Task
    places: tuple[str, ...]
    nexts: tuple[tuple[Task, ...], ...]
    alive: bool = False


# The places where a hypervisor has a part; those in between are killed at in the integration tests, with QEMU.
STARTING = ("start.spawned", "start.process", "start.running")
REMOVING = ("remove.record", "remove.runtime", "remove.files", "remove.name")
SAVING = ("snapshot.record", "save.begun", "save.state", "save.copied", "save.saved", "snapshot.sealed")
CASES = {
    "start": Case((DOWN,), UP, ("start.memory", "start.record", *STARTING), ((UP,), (GONE,), (DOWN,))),
    "stop": Case((UP,), DOWN, ("stop.process", "stop.runtime", "stop.record"), ((DOWN,), (UP,), (GONE,))),
    "remove": Case((UP,), GONE, REMOVING, ((GONE,), (UP,))),
    "save": Case((BOOTED,), TAKE, SAVING, ((TAKE, DROP), (SEEN, DROP)), alive=True),
    "clone": Case((BOOTED, TAKE), COPY, ("clone.memory", "create.done", *STARTING), ((COPY, COPY_GONE), (COPY_GONE,))),
}


class Campaign:
    """The cases of one hypervisor, one after the other on the same VM."""

    def __init__(self, driver: str) -> None:
        self.driver = driver
        self.engine = Engine(Here("lab"), DIRS)
        self.problems: list[str] = []

    def run(self, task: Task) -> tuple[Outcome, bool]:
        """Carry a task out: its outcome, and whether it changed something.

        :raises AssertionError: it failed.
        """
        outcome = task.begin(self.engine, self.driver).wait()
        assert not outcome.error, f"{task}: {outcome.error}"
        result = outcome.results[0] if isinstance(outcome.results, list) else outcome.results
        assert not result.get("failed"), f"{task}: {result.get('msg')}"
        return outcome, bool(result["changed"])

    def kill_each(self, case: Case) -> list[str]:
        """Kill a case's change at each of its marks. :returns: those marks."""
        for task in case.stage:
            self.run(task)
        marks = self.run(case.change)[0].marks
        assert set(case.places) <= set(marks), marks
        places = [number for number, mark in enumerate(marks) if mark in case.places]
        for task in case.nexts[-1]:
            self.run(task)
        for turn, place in enumerate(places):
            begun = time.monotonic()
            try:
                self.kill(case, place, marks[place], case.nexts[turn % len(case.nexts)])
            except AssertionError as exc:
                self.problems.append(f"killed at {marks[place]}: {str(exc)[-1500:]}")
                audit.clean(self.engine)  # so that the next place is tried alone
            print(f"{marks[place]}: {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
        return [marks[place] for place in places]

    def kill(self, case: Case, place: int, mark: str, then: Sequence[Task]) -> None:
        """Kill the change at one of its marks, and see what the tasks that follow make of what is left."""
        for task in case.stage:
            self.run(task)
        outcome = case.change.begin(self.engine, self.driver, kill_at=place).wait()
        assert outcome.killed and outcome.marks[-1] == mark, outcome
        if case.alive:
            self.await_guest()
        for number, task in enumerate(then):
            self.run(task)
            assert not self.run(task)[1], f"{task} changes something again"
            if task is case.change or number == len(then) - 1:
                self.check()

    def await_guest(self) -> None:
        """:raises AssertionError: the guest does not go on by itself."""
        address = self.engine.record(VM)["network_configs"][0]["network"]["ip"]
        deadline = time.monotonic() + PATIENCE
        while "1 received" not in self.engine.netns.run("ping", "-c1", "-W1", address, check=False):
            assert time.monotonic() < deadline, "its guest stands still"

    def check(self) -> None:
        """:raises AssertionError: the store does not fit its records, or the host the store."""
        deadline = time.monotonic() + PATIENCE
        while any(GUARD in line for line in command_lines()):
            assert time.monotonic() < deadline, "somebody still looks after a guest that was saved"
            time.sleep(0.05)
        problems = audit.wrong(self.engine)
        assert not problems, problems

    def finish(self) -> None:
        """Remove all, of which nothing may be left."""
        for task in (COPY_GONE, DROP, GONE):
            self.run(task)
        self.check()
        left = [thing for thing in audit.held(self.engine) if not thing.startswith("log ")]
        if left:
            self.problems.append(f"left: {left}")


def command_lines() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes()
        except OSError:
            continue


def main(driver: str, name: str) -> None:
    """Kill at the places of a case, or with ``end`` remove what the others shared."""
    campaign = Campaign(driver)
    assert Store.load(campaign.engine.paths) is not None
    marks: list[str] = []
    try:
        if name == "end":
            campaign.finish()
        else:
            marks = campaign.kill_each(CASES[name])
    except AssertionError as exc:
        campaign.problems.append(str(exc)[-3000:])
    if campaign.problems:
        audit.clean(campaign.engine)
    print(json.dumps({"marks": marks, "problems": campaign.problems}))


if __name__ == "__main__":
    main(*sys.argv[1:])
