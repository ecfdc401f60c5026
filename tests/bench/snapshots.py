# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""6. Snapshots, clones, going back, archives and hibernation, on two file systems.

Everything is counted from the engine's start of work, by the engine itself and without Ansible. Hypervisors and engine
have the same priority here: what a guest takes to answer is part of what is measured.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import run, say
from filesystems import copy, flush, kind_of, written, xfs
from fleet import BenchError, Fleet, Items
from results import Row

MIB = 1 << 20
# What a guest needs besides what is touched in it.
GUEST_OWN = 112
OPTIONS = ("-oBatchMode=yes", "-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", "-oLogLevel=ERROR")
BLOCK = 8
# A quarter cannot be compressed; the rest is text, one block of lines over and over, too far apart for zstd to notice.
FILL = """
set -e
mkdir -p /mnt/bench
mount -t tmpfs -o size={touched}m tmpfs /mnt/bench
dd if=/dev/urandom of=/mnt/bench/random bs=1M count={random} 2> /dev/null
awk 'BEGIN {{ for (n = 0; n < 170000; n++)
  printf "%07d GET /items/%d/view?page=%d HTTP/1.1 200 %d\\n", n, n * 7919 % 100003, n % 97, n * 31 % 65536 }}' |
  head -c {block} > /mnt/bench/block
{write}
df -m /mnt/bench | tail -n 1
"""
# Also for touching it again: the same pages, in place.
WRITE = """
n=0
while [ $n -lt {blocks} ]; do
  dd if=/mnt/bench/block of=/mnt/bench/text bs=1M seek=$((n * {mib})) conv=notrunc 2> /dev/null; n=$((n + 1))
done
"""


@dataclass
class Plan:
    """How much is measured.

    :param runs: of each measurement.
    :param touched: MiB that are written to in the large guest.
    :param counts: how many clones.
    """

    runs: int
    touched: int = 400
    counts: tuple[int, ...] = (1, 10, 30)

    @property
    def large(self) -> int:
        """MiB of the large guest."""
        return self.touched + GUEST_OWN

    @property
    def fewer(self) -> int:
        """For what takes long."""
        return min(self.runs, 3)

    def row(self, what: str, unit: str, values: list[float], aim: str = "", met: bool | None = None) -> Row:
        """A row that says so if it has fewer runs than others."""
        if len(values) < self.runs:
            what += f" ({len(values)} run{'s' if len(values) > 1 else ''})"
        return Row("6", what, unit, values, aim, met)

    def within(self, what: str, unit: str, values: list[float], limit: float, aim: str = "") -> Row:
        """A row whose median is to be no more than a limit."""
        return self.row(what, unit, values, aim or f"{limit:g} {unit}", statistics.median(values) <= limit)


def measure(make: Callable[[Path], Fleet], scratch: Path, plan: Plan, charts: dict[str, Any]) -> list[Row]:
    """All of item 6; what is to be drawn goes to *charts*."""
    key = scratch / "key"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], quiet=True)
    with fleet_in(make, scratch) as fleet:
        bench = Bench(fleet, plan, key)
        rows = bench.everything()
        rows += bench.ordinary()
        charts["clones"] = bench.chart()
    with xfs(scratch) as folder, fleet_in(make, folder) as fleet:
        bench = Bench(fleet, plan, key)
        rows += bench.everything()
        rows += bench.memory_on_disk()
    return rows


@contextlib.contextmanager
def fleet_in(make: Callable[[Path], Fleet], folder: Path) -> Iterator[Fleet]:
    """A store on a file system, empty again at the end."""
    fleet = make(folder)
    yield fleet
    fleet.clear()
    for snapshot in fleet.module("cocoon_snapshot_info")["snapshots"]:
        fleet.module("cocoon_snapshot", name=snapshot["name"], state="absent")


class Bench:
    """The measurements in one store."""

    def __init__(self, fleet: Fleet, plan: Plan, key: Path) -> None:
        self.fleet, self.plan, self.key = fleet, plan, key
        self.where = kind_of(fleet.folder)
        self.write = ""
        self.memory: dict[str, dict[int, float]] = {"clones": {}, "vms": {}}

    # What is done over and over.

    def vms(self, items: Items) -> dict[str, Any]:
        """One task over some VMs."""
        return self.fleet.engine([items], nice=0)[0]

    def snapshot(self, name: str, **options: Any) -> dict[str, Any]:
        """One task over a snapshot."""
        done = self.fleet.engine([{"name": name, **options}], nice=0)[0]
        if not done["changed"]:
            raise BenchError(f"snapshot {name}: nothing was done")
        return done

    def records(self) -> list[dict[str, Any]]:
        """All VMs."""
        return list(self.fleet.module("cocoon_vm_info")["vms"])

    def item(self, name: str, memory: int, **options: Any) -> dict[str, Any]:
        """An ordinary VM that answers on port 22."""
        key = self.key.with_suffix(".pub").read_text(encoding="utf-8").strip()
        item = {**self.fleet.vms(1)[0], "name": name, "memory": f"{memory}M", "ssh_keys": [key], **options}
        return {**item, "state": "started", "wait_for": "port", "timeout": 1800}

    def ssh(self, record: dict[str, Any], script: str) -> str:
        """Run a script in a guest."""
        address = record["network_configs"][0]["network"]["ip"]
        words = ("ssh", "-i", self.key, *OPTIONS, "-oConnectTimeout=60", f"root@{address}", script)
        return self.fleet.netns.run(*words, timeout=900).strip()

    def folder(self, kind: str, object_id: str) -> Path:
        """Where a VM's or a snapshot's files are."""
        return Path(self.fleet.dirs["root_dir"]) / kind / object_id

    # The large guest.

    def everything(self) -> list[Row]:
        """What is measured on each file system."""
        record = self.fill()
        rows = self.pauses(record)
        rows += self.restore(record)
        rows += self.archives()
        rows += self.hibernation(record)
        self.vms([{"name": "large", "state": "absent", "force": True}])
        self.snapshot("large", state="absent")
        return rows + self.clones()

    def fill(self, **options: Any) -> dict[str, Any]:
        """A guest that has its memory full of things."""
        plan = self.plan
        say(f"   {self.where}: a guest of {plan.large} MiB, {plan.touched} of them touched ...")
        self.vms([self.item("large", plan.large, **options)])
        record = self.records()[0]
        random = plan.touched // 4
        blocks = (plan.touched - random) // BLOCK - 1
        self.write = WRITE.format(blocks=blocks, mib=BLOCK)
        script = FILL.format(touched=plan.touched, random=random, block=BLOCK * MIB, write=self.write)
        said = self.ssh(record, script)
        if int(said.split()[2]) < plan.touched - BLOCK - 1:
            raise BenchError(f"the guest's memory is not as full as it should be: {said}")
        return record

    def pauses(self, record: dict[str, Any]) -> list[Row]:
        """Snapshots and plain copies in turn, each beginning with the other in every second run."""
        paused: list[float] = []
        total: list[float] = []
        plain: list[float] = []
        source = Path(self.fleet.dirs["run_dir"]) / "ram" / record["id"]
        for turn in range(self.plan.runs):
            say(f"   {self.where}: snapshot and plain copy, run {turn + 1} of {self.plan.runs} ...")
            self.ssh(record, self.write)
            steps = [lambda: plain.append(self.copied(record, source)), lambda: self.taken(paused, total)]
            for step in steps if turn % 2 else reversed(steps):
                flush(self.fleet.folder)
                step()
            if turn < self.plan.runs - 1:
                self.snapshot("large", state="absent")
        size = f"{self.plan.large} MiB, {self.plan.touched} touched, RAM on tmpfs, {self.where}"
        ratio = [ours / theirs for ours, theirs in zip(paused, plain)]
        used = source.stat().st_blocks * 512 / MIB
        return [
            self.plan.row(f"snapshot of {size}: guest paused", "s", paused),
            self.plan.row(f"snapshot of {size}: in all", "s", total),
            self.plan.row(f"plain copy of its RAM's {used:.0f} MiB, {self.where}", "s", plain),
            self.plan.within(f"that pause by the plain copy, {self.where}", "x", ratio, 1.3),
        ]

    def taken(self, paused: list[float], total: list[float]) -> None:
        """Take the snapshot."""
        done = self.snapshot("large", vm="large")["snapshot"]
        paused.append(done["paused_seconds"])
        total.append(done["seconds"])

    def copied(self, record: dict[str, Any], source: Path) -> float:
        """Copy the guest's RAM, with the guest held still as it is in a snapshot."""
        target = self.fleet.folder / "copy"
        os.kill(record["pid"], signal.SIGSTOP)
        try:
            began = time.monotonic()
            copy(source, target)
            return time.monotonic() - began
        finally:
            os.kill(record["pid"], signal.SIGCONT)
            target.unlink(missing_ok=True)

    def memory_on_disk(self) -> list[Row]:
        """The same guest with its RAM on this file system, which can share its blocks with a snapshot."""
        from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import vm_options

        if "memory_backing" not in vm_options():
            say("   SKIPPED: RAM on the file system: the VM option memory_backing is not there")
            return []
        record = self.fill(memory_backing="disk")
        times: dict[str, tuple[list[float], list[float]]] = {"just written to": ([], []), "at rest": ([], [])}
        for turn in range(self.plan.runs):
            say(f"   {self.where}: snapshot with RAM on it, run {turn + 1} of {self.plan.runs} ...")
            for name, (paused, total) in times.items():
                if name == "just written to":
                    self.ssh(record, self.write)
                else:
                    flush(self.fleet.folder)
                self.taken(paused, total)
                self.snapshot("large", state="absent")
        rows = []
        for name, (paused, total) in times.items():
            size = f"{self.plan.large} MiB, {self.plan.touched} touched, RAM on {self.where}, {name}"
            rows.append(self.plan.within(f"snapshot of {size}: guest paused", "s", paused, 0.1))
            rows.append(self.plan.row(f"snapshot of {size}: in all", "s", total))
        return rows

    def restore(self, record: dict[str, Any]) -> list[Row]:
        """The running guest back to its snapshot."""
        running: list[float] = []
        total: list[float] = []
        for turn in range(self.plan.runs):
            say(f"   {self.where}: back to the snapshot, run {turn + 1} of {self.plan.runs} ...")
            self.ssh(record, "rm -f /mnt/bench/block")
            flush(self.fleet.folder)
            done = self.snapshot("large", state="restored")
            running.append(done["running"])
            total.append(done["wall"])
            self.ssh(self.records()[0], "test -s /mnt/bench/block")
        size = f"{self.plan.large} MiB, {self.plan.touched} touched, {self.where}"
        return [
            self.plan.row(f"restore of {size}: guest goes on", "s", running),
            self.plan.row(f"restore of {size}: in all", "s", total),
        ]

    def hibernation(self, record: dict[str, Any]) -> list[Row]:
        """Down and up again."""
        steps: dict[str, list[float]] = {"hibernate": [], "resume: guest goes on": [], "resume: guest answers": []}
        for turn in range(self.plan.runs):
            say(f"   {self.where}: hibernation, run {turn + 1} of {self.plan.runs} ...")
            flush(self.fleet.folder)
            steps["hibernate"].append(self.vms([{"name": "large", "state": "hibernated"}])["wall"])
            done = self.vms([{"name": "large", "state": "started", "wait_for": "port", "timeout": 600}])
            steps["resume: guest goes on"].append(done["running"])
            steps["resume: guest answers"].append(done["wall"])
            self.ssh(record, "test -s /mnt/bench/block")
        size = f"{self.plan.large} MiB, {self.plan.touched} touched, {self.where}"
        return [self.plan.row(f"{size}: {name}", "s", values) for name, values in steps.items()]

    # Archives.

    def archives(self) -> list[Row]:
        """Export and import by zstd, and the same files by tar and zstd; both sides end on the disk."""
        folder = self.fleet.folder
        snapshot_id = self.fleet.module("cocoon_snapshot_info", names=["large"])["snapshots"][0]["id"]
        source = self.folder("snapshots", snapshot_id)
        stored = sum(path.stat().st_blocks for path in source.iterdir()) * 512 / MIB
        ours, theirs = folder / "ours.tar.zst", folder / "theirs.tar.zst"
        times: dict[str, list[float]] = {"export": [], "tar": [], "tar, flushed": []}
        times |= {"import": [], "untar": [], "untar, flushed": []}
        for turn in range(self.plan.runs):
            say(f"   {self.where}: archives, run {turn + 1} of {self.plan.runs} ...")
            steps = [lambda: self.packed(ours, times["export"]), lambda: tarred(source, theirs, times)]
            steps += [lambda: self.unpacked(ours, times["import"]), lambda: untarred(theirs, folder / "untar", times)]
            first, second = (0, 1) if turn % 2 else (1, 0)
            for number in (first, second, first + 2, second + 2):
                flush(folder)
                steps[number]()
            self.snapshot("again", state="absent")
            shutil.rmtree(folder / "untar")
            for path in (ours, theirs):
                path.unlink()
        rows = []
        for name, other, command in (
            ("export", "tar", "tar and zstd -T0 -3"),
            ("import", "untar", "zstd -d and tar -x"),
        ):
            speed = [stored / value for value in times[name]]
            what = f"{name} of {stored:.0f} MiB with zstd, flushed, {self.where}"
            rows.append(self.plan.row(what, "MiB/s", speed))
            for label in (other, f"{other}, flushed"):
                flushed = ", flushed" if label != other else ""
                speed = [stored / value for value in times[label]]
                rows.append(self.plan.row(f"the same by {command}{flushed}, {self.where}", "MiB/s", speed))
            ratio = [mine / yours for mine, yours in zip(times[name], times[f"{other}, flushed"])]
            rows.append(
                self.plan.within(f"time of {name} by that of {command}, flushed, {self.where}", "x", ratio, 1.2)
            )
        return rows

    def packed(self, path: Path, times: list[float]) -> None:
        """Our export."""
        done = self.snapshot("large", state="exported", path=str(path), compression="zstd")
        times.append(done["wall"])

    def unpacked(self, path: Path, times: list[float]) -> None:
        """Our import."""
        times.append(self.snapshot("again", state="imported", path=str(path))["wall"])

    # Clones.

    def clones(self) -> list[Row]:
        """Clones of a small guest, so and so many in one task."""
        say(f"   {self.where}: a snapshot to clone ...")
        self.vms([self.item("golden", 128)])
        self.snapshot("golden", vm="golden")
        # Their own figures, without it.
        self.vms([{"name": "golden", "state": "absent", "force": True}])
        rows = []
        for count in self.plan.counts:
            rows += self.clones_of(count)
        self.snapshot("golden", state="absent")
        return rows

    def clones_of(self, count: int) -> list[Row]:
        """One number of clones."""
        running: list[float] = []
        answer: list[float] = []
        disk: list[float] = []
        memory: list[float] = []
        runs = self.plan.runs if count <= 10 else self.plan.fewer
        options = {"snapshot": "golden", "state": "started", "wait_for": "port", "timeout": 600}
        items: Items = [{"name": f"clone{number:03d}", **options} for number in range(count)]
        for turn in range(runs):
            say(f"   {self.where}: clones, {count} in one task, run {turn + 1} of {runs} ...")
            flush(self.fleet.folder)
            done = self.vms(items)
            running.append(done["running"])
            answer.append(done["wall"])
            taken = self.taken_by(count)
            memory.append(taken[0])
            disk.append(taken[1])
            self.fleet.clear()
        self.memory["clones"][count] = statistics.median(memory) * count
        what = f"{count} clone{'s' if count > 1 else ''} of 128 MiB, {self.where}"
        all_of = "all running" if count > 1 else "running"
        limits = {1: 0.15, 30: 5.0}
        first = self.plan.within(f"{what}: {all_of}", "s", running, limits[count]) if count in limits else None
        return [
            first or self.plan.row(f"{what}: {all_of}", "s", running),
            self.plan.row(f"{what}: answer on port 22", "s", answer),
            self.plan.row(f"{what}: written for each", "KiB", [value * 1024 for value in disk]),
            self.plan.row(f"{what}: memory of each (Pss)", "MiB", memory),
        ]

    def taken_by(self, count: int) -> tuple[float, float]:
        """What each of the running VMs takes on average: MiB of memory, MiB of disk."""
        records = self.records()
        if len(records) != count:
            raise BenchError(f"{len(records)} VMs instead of {count}")
        memory = sum(proportional(record["pid"]) for record in records)
        disk = sum(written(self.folder("vms", record["id"])) for record in records)
        return memory / count / MIB, disk / count / MIB

    def ordinary(self) -> list[Row]:
        """VMs of the same image and size that have booted: once, as booting thirty of them takes a while."""
        rows = []
        for count in self.plan.counts:
            say(f"   {self.where}: {count} ordinary VMs ...")
            self.vms([self.item(f"vm{number:03d}", 128) for number in range(count)])
            memory, disk = self.taken_by(count)
            self.memory["vms"][count] = memory * count
            what = f"{count} ordinary VM{'s' if count > 1 else ''} of 128 MiB, {self.where}"
            if count == self.plan.counts[0]:
                rows.append(self.plan.row(f"{what}: written for each", "KiB", [disk * 1024]))
            rows.append(self.plan.row(f"{what}: memory of each (Pss)", "MiB", [memory]))
        return rows

    def chart(self) -> dict[str, Any]:
        """What `chart.py` draws: MiB of all VMs together."""
        counts = list(self.plan.counts)
        series = {name: [round(self.memory[name][count], 1) for count in counts] for name in self.memory}
        return {"counts": counts, "guest_mib": 128, "file_system": self.where, **series}


def proportional(pid: int) -> int:
    """The proportional memory of a process, in bytes: of a page that several share, each has its part."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise BenchError(f"process {pid} tells nothing of its memory")


def shell(script: str, *arguments: Path) -> float:
    """How long a script takes."""
    began = time.monotonic()
    words: Sequence[str] = ["bash", "-o", "pipefail", "-ec", script, "bash", *map(str, arguments)]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{script}: {done.stderr.strip()}")
    return time.monotonic() - began


def tarred(source: Path, target: Path, times: dict[str, list[float]]) -> None:
    """The files by tar and zstd."""
    times["tar"].append(shell('tar -cf - -C "$1" . | zstd -T0 -3 -q > "$2"', source, target))
    times["tar, flushed"].append(times["tar"][-1] + shell('sync "$1"', target))


def untarred(source: Path, target: Path, times: dict[str, list[float]]) -> None:
    """The files out of it."""
    target.mkdir()
    times["untar"].append(shell('zstd -dcq "$1" | tar -x -C "$2"', source, target))
    times["untar, flushed"].append(times["untar"][-1] + shell('find "$1" -type f -exec sync {} +', target))
