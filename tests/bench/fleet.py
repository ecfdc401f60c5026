# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A store with an image and a network, in a network namespace of its own, to measure in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import ToolError

from ansible_collections.cocoon.microvm.tests.integration.support.machine import COLLECTIONS, TOKEN, Netns
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules, Playbooks, Run

HERE = Path(__file__).resolve().parent
VM = {"image": "tiny", "network": "bench", "cpu": 1, "memory": "128M", "storage": "64M", "accel": "tcg"}
Items = list[dict[str, Any]]


class BenchError(ToolError):
    """A measurement that did not go as it should: its numbers would mean nothing."""


class Fleet:
    """One store and what can be done in it."""

    def __init__(self, folder: Path, netns: Netns, subnet: str, image: Path, size: int) -> None:
        """
        :param folder: a new folder for the store; short, as sockets lie below it.
        :param netns: the namespace that its bridge is made in.
        :param subnet: of its network.
        :param image: the tar of the guest image.
        :param size: how many VMs are a fleet.
        """
        self.folder, self.netns, self.subnet, self.image, self.size = folder, netns, subnet, image, size
        folder.mkdir(mode=0o711)
        folder.chmod(0o711)
        self.dirs = {f"{name}_dir": str(folder / name) for name in ("root", "run", "log")}
        self.module = Modules(netns, self.dirs, folder)
        self.count = 0

    def prepare(self) -> Fleet:
        """Import the image and make the network."""
        self.module("cocoon_image", name="tiny", source=str(self.image), state="present")
        self.module("cocoon_network", name="bench", subnet=self.subnet, nat=False, state="present")
        return self

    def vms(self, count: int, first: int = 0, **options: Any) -> Items:
        """Definitions of so many VMs."""
        return [{"name": f"vm{index:05d}", **VM, **options} for index in range(first, first + count)]

    def named(self, count: int, first: int = 0, **options: Any) -> Items:
        """Only names, for what needs no definition."""
        return [{"name": f"vm{index:05d}", **options} for index in range(first, first + count)]

    def engine(
        self,
        batches: Sequence[Items | dict[str, Any]],
        repeat: int = 1,
        sync: bool = True,
        still: bool = False,
        nice: int = -15,
        **params: Any,
    ) -> list[dict[str, Any]]:
        """Run the engine by itself; one measurement a batch and turn.

        :param batches: VMs in a list, or the options of one snapshot.
        :param nice: usually it gets the processor before guests do, as their boot is not what is measured.
        """
        limits = {"memory_reserve": "256M", "memory_overcommit": 1.0, "disk_overcommit": 1000.0}
        defaults = {"lock_timeout": 60, "parallel": 16, "max_unavailable": 1, **limits}
        job = {
            "params": {**defaults, **self.dirs, **params},
            "batches": list(batches),
            "repeat": repeat,
            "sync": sync,
            "still": still,
        }
        done = subprocess.run(
            [*self.netns.enter(), "nice", "-n", str(nice), sys.executable, str(HERE / "engine_run.py")],
            env={**os.environ, "PYTHONPATH": str(COLLECTIONS), TOKEN[0]: TOKEN[1]},
            input=json.dumps(job),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"the engine failed: {done.stderr.strip() or done.stdout.strip()}")
        runs: list[dict[str, Any]] = json.loads(done.stdout)["runs"]
        for run in runs:
            if run["failed"]:
                raise BenchError("; ".join(run["failed"][:3]))
        return runs

    def play(
        self, tasks: Sequence[dict[str, Any]], target: str = sys.executable, env: dict[str, str] | None = None
    ) -> Run:
        """Run tasks on this machine by a local connection."""
        self.count += 1
        folder = self.folder / f"play{self.count}"
        folder.mkdir()
        play = {"hosts": "all", "gather_facts": False, "tasks": list(tasks)}
        variables = {"ansible_python_interpreter": target}
        return Playbooks(self.netns, folder, {})([play], variables=variables, env=env, run_timeout=3600)

    def bulk(self, name: str, items: Items, **options: Any) -> dict[str, Any]:
        """A task over all the items."""
        return {"name": name, "cocoon.microvm.cocoon_vms": {"vms": items, **self.dirs, **options}}

    def await_guests(self) -> None:
        """Wait until the fleet's guests are up: while twenty boot on two cores, nothing else gets on."""
        self.engine([self.vms(self.size, state="started", wait_for="port", timeout=600)], nice=0)

    def clear(self) -> None:
        """Remove every VM."""
        records = self.module("cocoon_vm_info")["vms"]
        if records:
            names = [record["config"]["name"] for record in records]
            items = [{"name": name, "state": "absent", "force": True} for name in names]
            self.engine([items])


def seconds(run: Run, task: str) -> list[float]:
    """How long each task of a name took."""
    return [float(entry["seconds"]) for entry in run.tasks if entry["task"] == task]
