# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""8, too. Plays in guests by the connection plugin, in turns with ssh to the same guests."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from common import say
from fleet import Fleet
from results import Row

from ansible_collections.cocoon.microvm.tests.integration.support import images
from ansible_collections.cocoon.microvm.tests.integration.support.lab import Key, address
from ansible_collections.cocoon.microvm.tests.integration.support.running import Playbooks, Run

# How long `setup` by the agent may take by that over ssh, as processors are never quite free.
AIM = 1.1
WAYS = ("agent", "ssh")


def at_once(fleet: Fleet, key: Key, runs: int) -> list[Row]:
    """A shell's line in all the guests at once, which need no Python for it."""
    vms = fleet.module("cocoon_vm_info")["vms"]
    agent, ssh, _ratio = _turns(fleet, vms, key, {"ansible.builtin.raw": "/bin/true"}, runs)
    return [
        Row("8", f"a play's `raw` in {len(vms)} guests at once", "s", agent),
        Row("8", "the same by ssh, connected", "s", ssh),
    ]


def facts(fleet: Fleet, key: Key, runs: int) -> list[Row]:
    """`setup` in a guest that has a Python."""
    with _debian(fleet, key) as vm:
        agent, ssh, ratio = _turns(fleet, [vm], key, {"ansible.builtin.setup": {}}, runs)
    return [
        Row("8", "`setup` in a guest", "s", agent),
        Row("8", "the same by ssh, connected", "s", ssh),
        Row("8", "that by the agent by that by ssh", "x", ratio, f"{AIM} x", statistics.median(ratio) <= AIM),
    ]


@contextmanager
def _debian(fleet: Fleet, key: Key) -> Iterator[dict[str, Any]]:
    """A guest of Debian's that answers, by itself."""
    image = images.built("debian", fleet.folder)
    fleet.module("cocoon_image", name="debian", source=str(image), state="present", run_timeout=600)
    name = "facts"
    item = {"name": name, "image": "debian", "memory": "512M", "storage": "1G", "ssh_keys": [key.public]}
    say("   a Debian ...")
    fleet.engine([[{**fleet.vms(1)[0], **item, "state": "started", "wait_for": "port", "timeout": 600}]], nice=0)
    found = fleet.module("cocoon_vm_info", names=[name])["vms"][0]
    try:
        yield found
    finally:
        fleet.engine([[{"name": name, "state": "absent", "force": True}]])


def _turns(
    fleet: Fleet, vms: list[dict[str, Any]], key: Key, task: dict[str, Any], runs: int
) -> tuple[list[float], list[float], list[float]]:
    """Seconds by the agent, by ssh, and what the first are of the second; the turn before the first does not count."""
    plays = [
        {
            "hosts": way,
            "gather_facts": False,
            # What connects, and asks nothing of the guest, is another one.
            "tasks": [{"name": "first", "ansible.builtin.raw": "true"}, {"name": way, **task}],
        }
        for _turn in range(runs + 1)
        for way in WAYS
    ]
    folder = fleet.folder / f"plays-{next(iter(task)).rpartition('.')[2]}"
    folder.mkdir()
    forks = ("--forks", str(len(vms)))
    run = Playbooks(fleet.netns, folder, {})(plays, _inventory(fleet, vms, key), *forks, run_timeout=3600)
    agent, ssh = (_seconds(run, way, len(vms))[1:] for way in WAYS)
    return agent, ssh, [one / other for one, other in zip(agent, ssh, strict=True)]


def _inventory(fleet: Fleet, vms: list[dict[str, Any]], key: Key) -> dict[str, Any]:
    names = {vm["config"]["name"]: address(vm) for vm in vms}
    here = {f"cocoon_{name}": path for name, path in fleet.dirs.items()}
    guest = {"ansible_python_interpreter": "/usr/bin/python3"}
    way = {"ansible_connection": "cocoon.microvm.guest", "cocoon_host": "hv1"}
    login = {"ansible_user": "root", "ansible_ssh_private_key_file": str(key.private)}
    return {
        "all": {
            "hosts": {"hv1": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, **here}},
            "children": {
                "agent": {
                    "hosts": {f"a-{name}": {"cocoon_guest_vm": name} for name in names},
                    "vars": {**way, **guest},
                },
                "ssh": {
                    "hosts": {f"s-{name}": {"ansible_host": found} for name, found in names.items()},
                    "vars": {**login, **guest},
                },
            },
        }
    }


def _seconds(run: Run, task: str, hosts: int) -> list[float]:
    """How long each task of that name took, all its hosts together."""
    each = [float(entry["seconds"]) for entry in run.tasks if entry["task"] == task]
    return [max(each[place : place + hosts]) for place in range(0, len(each), hosts)]
