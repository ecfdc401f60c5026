# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The measurements, one function each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from common import say
from fleet import BenchError, Fleet, seconds
from results import Row


def no_change(fleet: Fleet, runs: int) -> list[Row]:
    """1. A run that changes nothing, over 1, 20 and 200 records, of which 20 run."""
    say(f"   {fleet.size} running and {9 * fleet.size} stopped VMs ...")
    fleet.engine([fleet.vms(fleet.size, state="started"), fleet.vms(9 * fleet.size, fleet.size, state="stopped")])
    rows = []
    for count in (1, fleet.size, 10 * fleet.size):
        running, stopped = min(count, fleet.size), max(0, count - fleet.size)
        items = fleet.vms(running, state="started") + fleet.vms(stopped, fleet.size, state="stopped")
        say(f"   no change, {count} records ...")
        ping = {"name": "ping", "ansible.builtin.ping": {}}
        run = fleet.play([ping, *[ping, fleet.bulk("vms", items)] * runs])
        if run.total("changed"):
            raise BenchError("a run that was to change nothing changed something")
        task, floor = seconds(run, "vms"), seconds(run, "ping")[1:]
        share = [value - statistics.median(floor) for value in task]
        engine = [entry["wall"] for entry in fleet.engine([items], repeat=runs)]
        rows.append(Row("1", f"no change, {count} records: task", "s", task))
        aim, met = ("0.5 s", statistics.median(share) <= 0.5) if count == 200 else ("", None)
        rows.append(Row("1", f"no change, {count} records: above ping", "s", share, aim, met))
        aim, met = ("0.1 s", statistics.median(engine) <= 0.1) if count == 200 else ("", None)
        rows.append(Row("1", f"no change, {count} records: engine", "s", engine, aim, met))
    fleet.clear()
    return rows


def timed(action: Callable[[], Any]) -> float:
    """How long it takes."""
    began = time.monotonic()
    action()
    return time.monotonic() - began


def life(fleet: Fleet, runs: int) -> list[Row]:
    """2. Twenty VMs from nothing: hypervisor running, guest answers, stop, forced stop, remove.

    What ends them is measured when their guests are up, and take no time any more.
    """
    times: dict[str, list[float]] = {}

    def measure(name: str, state: str, **options: Any) -> None:
        items = fleet.vms(fleet.size, state=state, **options)
        if state in ("stopped", "absent"):
            items = fleet.named(fleet.size, state=state, **options)
        run = fleet.play([fleet.bulk("vms", items)])
        times.setdefault(name, []).extend(seconds(run, "vms"))

    for turn in range(runs):
        say(f"   the life of {fleet.size} VMs, run {turn + 1} of {runs} ...")
        measure("from nothing to hypervisor running", "started", wait_for="process")
        fleet.await_guests()
        measure("forced stop", "stopped", force=True)
        measure("remove, stopped", "absent")
        measure("from nothing to guest answers", "started", wait_for="port", timeout=600)
        measure("stop, by the guest", "stopped", stop_timeout=300)
        measure("start again, to guest answers", "started", wait_for="port", timeout=600)
        measure("remove, running", "absent", force=True)
    return [Row("2", f"{fleet.size} VMs: {name}", "s", values) for name, values in times.items()]


def own_time(fleet: Fleet, runs: int) -> list[Row]:
    """3. The engine's own time for one VM of twenty, with the tools that it calls.

    What has to do with hypervisors is done one VM at a time, so that waiting for one can be told from working, and with
    the guests held still.
    """
    steps = {
        "create, in parallel": (16, fleet.vms(fleet.size, state="present")),
        "remove, in parallel": (16, fleet.named(fleet.size, state="absent", force=True)),
        "create and start": (1, fleet.vms(fleet.size, state="started", wait_for="process")),
        "forced stop": (1, fleet.named(fleet.size, state="stopped", force=True)),
        "start": (1, fleet.named(fleet.size, state="started", wait_for="process")),
        "remove": (1, fleet.named(fleet.size, state="absent", force=True)),
    }
    wall: dict[str, list[float]] = {name: [] for name in steps}
    used: dict[str, list[float]] = {name: [] for name in steps}
    flushed: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(runs):
        say(f"   the engine's own time, run {turn + 1} of {runs} ...")
        for name, (parallel, items) in steps.items():
            entry = fleet.engine([items], parallel=parallel, still=True)[0]
            wall[name].append((entry["wall"] - entry["waited"]) / fleet.size * 1000)
            used[name].append(entry["cpu"] / fleet.size * 1000)
            flushed[name].append(entry["flushed"] / fleet.size * 1000)
    rows = []
    for name in steps:
        middle = statistics.median(wall[name])
        rows.append(Row("3", f"engine's own time a VM: {name}", "ms", wall[name], "25 ms", middle <= 25))
        rows.append(Row("3", f"of that on the processor: {name}", "ms", used[name]))
        if steps[name][0] == 1:  # side by side, they would add up to more than there is
            rows.append(Row("3", f"of that flushing to disk: {name}", "ms", flushed[name]))
    return rows


def state(make: Callable[[], Fleet], runs: int, counts: tuple[int, ...] = (10, 1000, 10000)) -> list[Row]:
    """5. The same change in stores of different sizes."""
    rows = []
    medians = []
    for count in counts:
        fleet = make()
        say(f"   a store with {count} records ...")
        chunk = 500
        batches = [fleet.vms(min(chunk, count - first), first) for first in range(0, count, chunk)]
        fleet.engine(batches, sync=False)
        labels = [fleet.named(1, labels={"turn": str(turn)}) for turn in range(runs)]
        change = [entry["wall"] * 1000 for entry in fleet.engine(labels)]
        fresh = [fleet.vms(1, count + turn) for turn in range(runs)]
        create = [entry["wall"] * 1000 for entry in fleet.engine(fresh)]
        gone = [fleet.named(1, count + turn, state="absent") for turn in range(runs)]
        remove = [entry["wall"] * 1000 for entry in fleet.engine(gone)]
        medians.append(statistics.median(change))
        rows.append(Row("5", f"a label changed, {count} records", "ms", change))
        rows.append(Row("5", f"a VM created, {count} records", "ms", create))
        rows.append(Row("5", f"a VM removed, {count} records", "ms", remove))
    # Flat: within what one run differs from the next.
    limit = max(1.5 * medians[0], medians[0] + 2)
    rows[-3].aim, rows[-3].met = f"flat: {limit:.1f} ms", medians[-1] <= limit
    return rows
