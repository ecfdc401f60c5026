# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many processes at work on one store: no lost update, nothing given twice, no error but a plain "busy"."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._state import locked
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import admission
from ansible_collections.cocoon.microvm.tests.integration.support import audit
from ansible_collections.cocoon.microvm.tests.integration.support.engine import (
    GUEST,
    IDLE,
    Engine,
    Forked,
    Outcome,
    idle_image,
)
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules

SUBNET = "10.95.0.0/24"
MANY = 16
MIB = 1 << 20

Definition = dict[str, Any]


@pytest.fixture(scope="module")
def engine(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    scratch: Path,
) -> Engine:
    """A store with an image and a network."""
    netns, dirs = make_netns(), make_store()
    modules(netns, dirs)("cocoon_image", name=IDLE, **idle_image(scratch))
    engine = Engine(netns, dirs, lock_timeout=60)
    engine.network(subnet=SUBNET)
    return engine


@pytest.fixture(autouse=True)
def sound(engine: Engine) -> Iterator[None]:
    """After each test the store fits the host; then all VMs go, and nothing stays."""
    yield
    problems = audit.wrong(engine)
    audit.clean(engine)
    assert not problems, problems
    assert not audit.held(engine) and not audit.ledger(engine)


def vm(name: str, **options: Any) -> Definition:
    return {**GUEST, "name": name, "state": "started", **options}


def removal(name: str) -> Definition:
    return {"name": name, "state": "absent", "force": True}


def finish(runs: Sequence[Forked]) -> list[Outcome]:
    return [run.wait() for run in runs]


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """The errors, of whole runs and of their items."""
    found = [outcome.error for outcome in outcomes if outcome.error]
    results = [result for outcome in outcomes for result in outcome.results or () if result.get("failed")]
    return found + [result["msg"] for result in results]


def changed(outcomes: Sequence[Outcome]) -> list[bool]:
    """Whether each item changed."""
    return [result["changed"] for outcome in outcomes for result in outcome.results or ()]


def test_modules_create_different_vms(engine: Engine, modules: Callable[..., Modules]) -> None:
    module = modules(engine.netns, engine.dirs)
    names = [f"many{number}" for number in range(MANY)]
    options = {"memory_reserve": "64M", "disk_overcommit": 100}
    runs = [module.start("cocoon_vm", **vm(name, **options)) for name in names]
    results = [module.finish(run) for run in runs]
    assert not [result["msg"] for result in results if result.failed]
    assert all(result.changed for result in results)
    configs = [result["vm"]["network_configs"][0] for result in results]
    for values in ([config["mac"] for config in configs], [config["network"]["ip"] for config in configs]):
        assert len(set(values)) == MANY
    answer = module("cocoon_vms", vms=[vm(name) for name in names], **options)
    assert not answer.changed and sorted(answer["vms"]) == sorted(names)


@pytest.mark.parametrize("wanted", ("chosen", "given"))
def test_same_vm(engine: Engine, wanted: str) -> None:
    given = {
        "nics": [{"network": "lab", "mac": "02:00:00:00:00:77", "ip": "10.95.0.77"}],
        "ports": ["20077:80"],
        "data_disks": [{"name": "data", "size": "16M"}],
    }
    definition = vm("same", **(given if wanted == "given" else {}))
    outcomes = finish([engine.start_vms(definition) for _time in range(MANY)])
    assert not failures(outcomes)
    assert sum(changed(outcomes)) == 1
    assert len(audit.records(engine)) == 1


def test_modules_create_the_same_vm(engine: Engine, modules: Callable[..., Modules]) -> None:
    """Those that do not get the lock in time say so, and nothing else goes wrong."""
    module = modules(engine.netns, engine.dirs).with_defaults(lock_timeout=1)
    runs = [module.start("cocoon_vm", **vm("same")) for _time in range(MANY // 2)]
    results = [module.finish(run) for run in runs]
    errors = [result["msg"] for result in results if result.failed]
    assert all("is busy, waited 1 s" in error and "lock_timeout" in error for error in errors), errors
    assert sum(result.changed for result in results) == 1


def test_busy(engine: Engine) -> None:
    impatient = engine.with_options(lock_timeout=1)
    for lock in ("vm:held", "host"):
        with locked(engine.paths, [lock], 5):
            begun = time.monotonic()
            assert f"{lock} is busy, waited 1 s" in impatient.refused(**vm("held"))
            assert time.monotonic() - begun < 5
        assert not audit.held(engine)


def test_bulk_runs_that_overlap(engine: Engine) -> None:
    names = [f"bulk{number}" for number in range(12)]
    lists = [names[:8], names[4:][::-1]]
    outcomes = finish([engine.start_vms(*map(vm, chosen)) for chosen in lists])
    assert not failures(outcomes)
    assert sum(changed(outcomes)) == len(names) == len(audit.records(engine))
    assert not audit.wrong(engine)
    # The one takes away while the other one makes: each VM is whole, or gone.
    runs = [engine.start_vms(*map(removal, names[:8])), engine.start_vms(*map(vm, names[4:]))]
    assert not failures(finish(runs))
    left = {record["config"]["name"] for record in audit.records(engine).values()}
    assert set(names[8:]) <= left <= set(names[4:])


def test_start_and_stop(engine: Engine) -> None:
    engine.vm(**vm("restless", data_disks=[{"name": "data", "size": "16M"}]))
    states = ("stopped", "started", "stopped", "restarted") * 2
    runs = [engine.start_vms(vm("restless", state=state, force=True)) for state in states]
    assert not failures(finish(runs))
    assert engine.record("restless")["state"] in ("running", "stopped")


@pytest.mark.parametrize("late", (0.0, 0.01, 0.02, 0.04, 0.08, 0.16))
@pytest.mark.parametrize("first", ("vm", "image"))
def test_vm_and_removal_of_its_image(
    engine: Engine, modules: Callable[..., Modules], scratch: Path, first: str, late: float
) -> None:
    modules(engine.netns, engine.dirs)("cocoon_image", name="brief", **idle_image(scratch, "brief"))
    starts = {
        "vm": lambda: engine.start_vms(vm("racer", image="brief")),
        "image": lambda: engine.start_image(name="brief", state="absent"),
    }
    runs = {first: starts.pop(first)()}
    time.sleep(late)
    runs.update((name, start()) for name, start in starts.items())
    made, removed = runs["vm"].wait(), runs["image"].wait()
    errors = failures([made])
    if removed.results:
        assert errors and "image" in errors[0], (made, removed)
        assert not audit.held(engine)
    else:
        assert not errors and "is used by vm racer" in str(removed.error), (made, removed)
        assert engine.vms(removal("racer")) and engine.start_image(name="brief", state="absent").wait().results


@pytest.mark.parametrize("late", (0.0, 0.01, 0.02, 0.04, 0.08, 0.16))
@pytest.mark.parametrize("first", ("vm", "network"))
def test_vm_and_removal_of_its_network(engine: Engine, first: str, late: float) -> None:
    engine.network(name="brief", subnet="10.96.0.0/24")
    starts = {
        "vm": lambda: engine.start_vms(vm("racer", network="brief")),
        "network": lambda: engine.start_network(name="brief", state="absent"),
    }
    runs = {first: starts.pop(first)()}
    time.sleep(late)
    runs.update((name, start()) for name, start in starts.items())
    made, removed = runs["vm"].wait(), runs["network"].wait()
    errors = failures([made])
    if removed.results:
        assert errors and "network" in errors[0], (made, removed)
        assert not audit.held(engine)
    else:
        assert not errors and "has VMs: racer" in str(removed.error), (made, removed)
        engine.vms(removal("racer"))
        engine.network(name="brief", state="absent")


def test_same_address(engine: Engine) -> None:
    """Each of several VMs wants the one MAC, address and port: one gets all of them, the others are not made."""
    wanted = {"nics": [{"network": "lab", "mac": "02:00:00:00:00:55", "ip": "10.95.0.55"}], "ports": ["20055:80"]}
    outcomes = finish([engine.start_vms(vm(f"rival{number}", **wanted)) for number in range(6)])
    errors = failures(outcomes)
    assert len(errors) == 5 and sum(changed(outcomes)) == 1
    assert all("nics[0]" in error or "ports" in error or "ip:" in error for error in errors), errors
    assert len(audit.records(engine)) == 1


def test_memory_is_promised_once(engine: Engine) -> None:
    """Room for five, and eight who ask for it at once."""

    def job(number: int) -> Forked:
        available = admission.available_memory
        admission.available_memory = lambda: (64 * 6 + 32) * MIB
        try:
            return engine.start_vms(vm(f"big{number}"))
        finally:
            admission.available_memory = available

    outcomes = finish([job(number) for number in range(8)])
    errors = failures(outcomes)
    assert len(errors) == 3 and all("memory_reserve" in error for error in errors), errors
    assert len(audit.records(engine)) == 5


def test_disk_is_promised_once(engine: Engine) -> None:
    """Room for four, and eight who ask for it at once."""
    info = os.statvfs(engine.paths.root)
    disk = {"name": "big", "size": info.f_bavail * info.f_frsize * 22 // 100 // MIB * MIB, "fstype": "none"}
    strict = engine.with_options(disk_overcommit=1.0)
    outcomes = finish([strict.start_vms(vm(f"big{n}", state="present", data_disks=[disk])) for n in range(8)])
    errors = failures(outcomes)
    assert len(errors) == 4 and all("disk_overcommit" in error for error in errors), errors
    assert len(audit.records(engine)) == 4


def test_networks(engine: Engine) -> None:
    """The same network from many processes, and overlapping subnets at once."""
    outcomes = finish([engine.start_network(name="shared", subnet="10.97.0.0/24") for _time in range(8)])
    assert not failures_of_networks(outcomes)
    assert sum(outcome.results["changed"] for outcome in outcomes) == 1
    runs = [engine.start_network(name=f"over{number}", subnet="10.98.0.0/24") for number in range(4)]
    outcomes = finish(runs)
    errors = failures_of_networks(outcomes)
    assert len(errors) == 3 and all("overlaps" in error for error in errors), errors
    for name in ("shared", *(f"over{number}" for number in range(4))):
        engine.network(name=name, state="absent")


def failures_of_networks(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.error for outcome in outcomes if outcome.error]
