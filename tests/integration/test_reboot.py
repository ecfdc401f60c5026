# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""After a reboot of the host the same tasks bring everything back: the same MACs, addresses and disks.

The reboot is played: the processes are gone, /run is empty, so are the log's file systems and the kernel's network,
and the boot id in the records is that of another boot.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.tests.integration.support import audit
from ansible_collections.cocoon.microvm.tests.integration.support.engine import IDLE, TINY, Engine, idle_image
from ansible_collections.cocoon.microvm.tests.integration.support.leaks import mounts
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules

NETWORK = {"name": "lab", "subnet": "10.99.0.0/24"}
OPTIONS = {"memory_reserve": "64M", "disk_overcommit": 100}
BOTH = {"network": "lab", "accel": "tcg", "state": "started"}
REAL = {**BOTH, "image": TINY, "memory": "96M", "storage": "64M", "timeout": 120}
VMS = [
    {**REAL, "name": "web", "wait_for": "port", "ports": ["20080:80"], "data_disks": [{"name": "data", "size": "16M"}]},
    {**REAL, "name": "db", "wait_for": "ping", "nics": [{}, {"mac": "02:00:00:00:00:42", "ip": "10.99.0.42"}]},
    {**BOTH, "name": "spare", "image": IDLE, "memory": "64M", "storage": "32M", "state": "present"},
    {**BOTH, "name": "off", "image": IDLE, "memory": "64M", "storage": "32M", "state": "stopped"},
]


@pytest.fixture(scope="module")
def engine(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    scratch: Path,
    tiny_image: Path,
) -> Iterator[Engine]:
    """A store with its network, and VMs in all states."""
    engine = Engine(make_netns(), make_store())
    module = modules(engine.netns, engine.dirs)
    module("cocoon_image", name=TINY, source=str(tiny_image))
    module("cocoon_image", name=IDLE, **idle_image(scratch))
    module("cocoon_network", **NETWORK)
    try:
        module("cocoon_vms", vms=VMS, **OPTIONS)
        yield engine
    finally:
        audit.clean(engine)
    assert not audit.held(engine)


def reboot(engine: Engine) -> None:
    """All that a reboot takes, and nothing else."""
    for pid, _vm in audit.processes(engine):
        # The keeper of a console ends by itself when the hypervisor is gone.
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            assert select.select([pidfd], [], [], 10)[0]
            os.close(pidfd)
    for path in mounts():
        if path.startswith((engine.paths.run + "/", engine.paths.log + "/")):
            subprocess.run(["umount", path], check=True)
    shutil.rmtree(engine.paths.run)
    for name in audit.links(engine):
        if name != "lo":
            engine.netns.run("ip", "link", "del", name)
    engine.netns.run("nft", "flush", "ruleset")
    for path in Path(engine.paths.root).glob("vms/*/vm.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("process"):
            record["process"]["boot_id"] = "00000000-0000-0000-0000-000000000000"
            path.write_text(json.dumps(record), encoding="utf-8")


def identity(engine: Engine) -> dict[str, Any]:
    """What has to be the same after a reboot."""
    return {
        record["config"]["name"]: (vm_id, record["uid"], record["network_configs"], record["data_disks"])
        for vm_id, record in audit.records(engine).items()
    }


@pytest.mark.parametrize("network_first", (True, False), ids=("network-and-vms", "vms-alone"))
def test_everything_is_back(engine: Engine, modules: Callable[..., Modules], network_first: bool) -> None:
    module = modules(engine.netns, engine.dirs)
    before = identity(engine)
    reboot(engine)
    states = {vm["config"]["name"]: (vm["state"], vm["pid"]) for vm in module("cocoon_vm_info")["vms"]}
    assert states == {"web": ("stopped", 0), "db": ("stopped", 0), "spare": ("created", 0), "off": ("created", 0)}
    forecast = module("cocoon_vms", check=True, vms=VMS, **OPTIONS)
    assert [result["actions"] for result in forecast["results"]] == [["start"], ["start"], [], []]
    if network_first:
        assert module("cocoon_network", **NETWORK).changed
    answer = module("cocoon_vms", vms=VMS, **OPTIONS)
    assert [result["actions"] for result in answer["results"]] == [["start"], ["start"], [], []]
    assert identity(engine) == before
    assert not audit.wrong(engine)
    for vm in answer["vms"].values():
        for config in vm["network_configs"] if vm["state"] == "running" else ():
            engine.netns.run("ping", "-c", "1", "-W", "5", config["network"]["ip"])
    assert not module("cocoon_network", **NETWORK).changed
    assert not module("cocoon_vms", vms=VMS, **OPTIONS).changed


def test_stopped_after_a_reboot(engine: Engine) -> None:
    """A VM that ran is stopped now, as was wanted: its record learns that, once."""
    reboot(engine)
    assert engine.vm(name="db", state="stopped")["changed"]
    assert not engine.vm(name="db", state="stopped")["changed"]
    assert not engine.vm(name="db", state="present")["changed"]
    assert engine.record("db")["state"] == "stopped"


def test_start_that_a_reboot_cut_short(engine: Engine) -> None:
    idle = {**VMS[2], "name": "cut", "state": "started"}
    for place in ("start.record", "start.spawned", "start.process"):
        marks = engine.vms({**idle, "name": "trial"}).marks
        assert engine.vms(idle, kill_at=marks.index(place)).killed
        reboot(engine)
        engine.vm(name="trial", state="absent")
        assert engine.vm(**idle)["changed"]
        assert not engine.vm(**idle)["changed"]
        assert not [problem for problem in audit.wrong(engine) if engine.record("cut")["id"] in problem]
        engine.vm(name="cut", state="absent", force=True)


def test_removed_after_a_reboot(engine: Engine) -> None:
    reboot(engine)
    for name in ("web", "db"):
        engine.vm(name=name, state="absent", force=True)
    assert {record["config"]["name"] for record in audit.records(engine).values()} == {"spare", "off"}
    engine.network(**NETWORK)
    assert not audit.wrong(engine)
