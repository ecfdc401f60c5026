# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restarts a few at a time: one host by its module, and two hosts over ssh through what may happen to a fleet.

The fleet: a rollout with a bad image, which stops and goes back; keys that are rotated; a move, an evacuation, and a
disaster.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import signal
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.tests.integration.support import audit
from ansible_collections.cocoon.microvm.tests.integration.support.engine import GUEST, IDLE, Engine, idle_image
from ansible_collections.cocoon.microvm.tests.integration.support.lab import BOOT, Key, Lab, make_key
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns, target_python
from ansible_collections.cocoon.microvm.tests.integration.support.remote import plug, served
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules, Playbooks, Run

SITE, EVACUATE = (f"cocoon.microvm.{name}" for name in ("site", "evacuate"))
STEPS = "cocoon.microvm.vms : Say who goes down when"


@pytest.fixture(scope="module", name="files")
def fixture_files(scratch: Path) -> dict[str, str]:
    folder = scratch / "rollout-image"
    folder.mkdir()
    return idle_image(folder)


def bad_image(folder: Path) -> dict[str, str]:
    """The options of an image that says it takes login data, and whose guests never answer."""
    files = idle_image(folder, "bad")
    marker = json.dumps({"version": 1, "features": ["user", "password", "ssh_keys", "relogin"]}).encode()
    with tarfile.open(files["source"], "w") as tar:
        entry = tarfile.TarInfo("usr/lib/cocoon-microvm/image.json")
        entry.size = len(marker)
        tar.addfile(entry, io.BytesIO(marker))
    return files


@pytest.fixture(name="engine")
def fixture_engine(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    files: dict[str, str],
) -> Iterator[Engine]:
    netns, dirs = make_netns(), make_store()
    runner = modules(netns, dirs)
    runner("cocoon_network", name="lab", subnet="10.94.0.0/24", nat=False)
    runner("cocoon_image", name=IDLE, **files)
    engine = Engine(netns, dirs)
    yield engine
    audit.clean(engine)
    runner("cocoon_image", name=IDLE, state="absent")
    runner("cocoon_network", name="lab", state="absent")


def test_whoever_is_down_counts(engine: Engine) -> None:
    """Guests that halt at their first instruction never answer at a port."""
    mute = {**GUEST, "name": "db1", "state": "started", "wait_for": "port", "timeout": 1}
    webs = [{**GUEST, "name": name, "state": "started"} for name in ("web1", "web2")]
    first = engine.vms(*webs, mute).results
    assert [bool(item.get("failed")) for item in first] == [False, False, True]
    assert first[2]["down"] and "down" not in first[0]
    pids = [engine.record(name)["pid"] for name in ("web1", "web2")]
    more = [{**web, "memory": "80M", "allow_restart": True} for web in webs]
    again = engine.vms(*more, mute).results
    for item in again[:2]:
        assert "'db1' is down already" in item["msg"] and item["actions"] == []
    assert [engine.record(name)["pid"] for name in ("web1", "web2")] == pids
    # A change before the one that is down goes first, and when that does not help nobody else goes down.
    third = engine.vms(*more, {**mute, "memory": "80M", "allow_restart": True, "force": True}).results
    assert "start" in third[2]["actions"] and "'db1' did not come back" in third[0]["msg"]
    assert [engine.record(name)["pid"] for name in ("web1", "web2")] == pids
    # With room for one more they go, one after the other.
    last = engine.with_options(max_unavailable=2).vms(*[{**web, "force": True} for web in more], mute).results
    assert [item["changed"] for item in last] == [True, True, False]


def test_restarts_can_be_held(engine: Engine) -> None:
    webs = [{**GUEST, "name": name, "state": "started", "labels": {"n": "1"}} for name in ("web1", "web2")]
    engine.vms(*webs)
    pid = engine.record("web1")["pid"]
    labels = {"n": "2"}
    more = [{**webs[0], "memory": "80M", "allow_restart": True, "labels": labels}, {**webs[1], "labels": labels}]
    held = engine.with_options(hold_restarts=True).vms(*more).results
    assert (held[0]["held"], held[0]["changed"], held[0]["diff"]["after"]) == (True, False, {})
    assert held[0]["undo"]["labels"] == {"n": "1"} and held[0]["undo"]["nics"][0]["network"] == "lab"
    assert "held" not in held[1] and held[1]["actions"] == ["configure"]
    assert engine.record("web1")["pid"] == pid and engine.record("web1")["labels"] == {"n": "1"}


# -- two hosts by a local connection, with guests that take no time --------------------------------------------------


@pytest.fixture(name="idle")
def fixture_idle(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    scratch: Path,
    tmp_path: Path,
    files: dict[str, str],
) -> Iterator[tuple[Playbooks, dict[str, Any], dict[str, Engine]]]:
    """Two hypervisors and a VM on each, as an inventory."""
    engines = {name: Engine(make_netns(), make_store()) for name in ("hv1", "hv2")}
    hosts = {}
    for name, engine in engines.items():
        python = tmp_path / f"{name}-python"
        words = " ".join([*engine.netns.enter(), str(target_python())])
        python.write_text(f'#!/bin/sh\nexec {words} "$@"\n', encoding="utf-8")
        python.chmod(0o755)
        dirs = {f"cocoon_{key}": path for key, path in engine.dirs.items()}
        hosts[name] = {"ansible_connection": "local", "ansible_python_interpreter": str(python), **dirs}
    guest = {key: value for key, value in GUEST.items() if key != "image"}
    variables = {
        "cocoon_networks": {"lab": {"subnet": "10.93.0.0/24", "nat": False}},
        "cocoon_images": {IDLE: files},
        "cocoon_defaults": {"image": IDLE, **guest, "stop_timeout": 0},
        "cocoon_disk_overcommit": 100.0,
        "cocoon_memory_reserve": "64M",
        "host_show_table": False,
    }
    vms = {name: {"cocoon_host": host, "cocoon_vm": {}} for name, host in (("web1", "hv1"), ("web2", "hv2"))}
    inventory = {"hypervisors": {"hosts": hosts, "vars": variables}, "vms": {"hosts": vms}}
    playbooks = Playbooks(None, scratch, {})
    yield playbooks, inventory, engines
    for engine in engines.values():
        audit.remove_store(engine)


def test_a_rollout_goes_over_the_fleet_and_back(
    idle: tuple[Playbooks, dict[str, Any], dict[str, Engine]], tmp_path: Path
) -> None:
    playbooks, inventory, engines = idle

    def site(ok: bool = True, **variables: Any) -> Run:
        return playbooks(SITE, copy.deepcopy(inventory), variables=variables, ok=ok)

    def record(name: str) -> Any:
        return engines["hv1" if name == "web1" else "hv2"].record(name)

    site()
    defaults = inventory["hypervisors"]["vars"]["cocoon_defaults"]
    defaults["memory"] = "80M"
    rolled = site(cocoon_allow_restart=True)
    assert rolled.result(STEPS, "hv1")["msg"] == ["web1", "web2"]
    assert [record(name)["config"]["memory"] >> 20 for name in ("web1", "web2")] == [80, 80]
    times = [record(name)["started_at"] for name in ("web1", "web2")]
    assert times == sorted(times) and site().total("changed") == 0
    # Nobody is in health by this: the first one goes back, image, labels and memory, and the other is not touched.
    before = {name: record(name) for name in ("web1", "web2")}
    inventory["vms"]["vars"] = {"cocoon_healthy": {"port": 22, "timeout": 1}}
    inventory["hypervisors"]["vars"]["cocoon_images"][IDLE] = idle_image(tmp_path, "idle2")
    defaults.update(memory="96M", labels={"build": "2"})
    permissions = {"cocoon_recreate": True, "cocoon_allow_restart": True}
    failed = site(ok=False, **permissions, cocoon_rollback=True, cocoon_max_unavailable=1)
    assert "it has been put back to where it was" in failed.output
    for name, old in before.items():
        new = record(name)
        for key in ("image_digest", "labels", "state", "network_configs", "login"):
            assert new[key] == old[key], (name, key)
        assert new["config"]["memory"] == old["config"]["memory"]
    assert record("web2")["pid"] == before["web2"]["pid"]
    assert record("web1")["reason"] == "" and not list(engines["hv1"].store.index("snapshot").entries())
    # Those that are down already keep the others from going down, on whichever hypervisor they are.
    inventory["vms"]["hosts"]["web1"]["cocoon_vm"] = {"memory": "80M", "image": None, "labels": {}, "recreate": False}
    stays = site(ok=False, **permissions)
    assert "these are down already: web1 on hv1" in " ".join(stays.results(STEPS)[0]["msg"].split())
    assert record("web2")["pid"] == before["web2"]["pid"]
    # With all in health it goes on.
    inventory["vms"]["vars"] = {}
    site(**permissions)
    assert record("web2")["labels"] == {"build": "2"}
    assert record("web2")["image_digest"] != record("web1")["image_digest"]


# -- two hosts over ssh ----------------------------------------------------------------------------------------------


class Fleet:
    """A controller and two hypervisors, with a web server on each."""

    def __init__(self, controller: Netns, engines: dict[str, Engine], scratch: Path, image: Path, key: Key) -> None:
        self.engines, self.playbooks = engines, Playbooks(controller, scratch, {})
        self.image, self.scratch, self.key = image, scratch, key
        self.inventory: dict[str, Any] = {}

    def describe(self, ways: dict[str, dict[str, Any]]) -> None:
        """:param ways: connection variables by hypervisor."""
        dirs = {name: {f"cocoon_{key}": path for key, path in engine.dirs.items()} for name, engine in
                self.engines.items()}  # fmt: skip
        variables = {
            "cocoon_networks": {"lab": {"subnet": "10.95.0.0/24", "nat": False}},
            "cocoon_images": {"app": {"source": str(self.image)}},
            "cocoon_defaults": {"memory": "96M", "storage": "64M", "cpu": 1, "wait_for": "port", "timeout": BOOT},
            "cocoon_memory_reserve": "64M",
            "host_show_table": False,
        }
        hosts = {name: {**ways[name], **dirs[name]} for name in ways}
        self.inventory = {
            "hypervisors": {"hosts": hosts, "vars": variables},
            "web": {
                "hosts": {
                    "web1": {"cocoon_host": "hv1", "cocoon_vm": {"nics": [{"network": "lab", "ip": "10.95.0.11"}]}},
                    "web2": {"cocoon_host": "hv2", "cocoon_vm": {"nics": [{"network": "lab", "ip": "10.95.0.12"}]}},
                },
                "vars": {
                    "cocoon_vm_all": {"image": "app", "user": "root", "ssh_keys": [self.key.public]},
                    "cocoon_healthy": {"url": "http://{address}/", "command": "test -d /srv/www", "timeout": 20},
                    "ansible_ssh_private_key_file": str(self.key.private),
                },
            },
        }

    def run(self, playbook: Any, *options: str, ok: bool | None = True, **variables: Any) -> Run:
        return self.playbooks(playbook, copy.deepcopy(self.inventory), *options, variables=variables, ok=ok)

    def record(self, name: str) -> Any:
        for engine in self.engines.values():
            if (record := engine.record(name)) is not None:
                return record
        raise AssertionError(f"{name} is nowhere")

    def at(self, host: str) -> dict[str, str]:
        return {record["config"]["name"]: record["state"] for record in audit.records(self.engines[host]).values()}

    def ssh(self, name: str, command: str, key: Key | None = None) -> str:
        """What a command in the guest says, from its hypervisor."""
        record = self.record(name)
        engine = next(engine for engine in self.engines.values() if engine.record(name) is not None)
        lab = Lab(engine.netns, engine.dirs, None, self.scratch, key or self.key)  # type: ignore[arg-type]
        return lab.ssh(record, command).output.strip()


@pytest.fixture(name="fleet")
def fixture_fleet(
    make_netns: Callable[[], Netns], make_store: Callable[[], dict[str, str]], scratch: Path, tiny_image: Path,
    tmp_path: Path,
) -> Iterator[Fleet]:  # fmt: skip
    controller, key = make_netns(), make_key(tmp_path)
    engines = {name: Engine(make_netns(), make_store()) for name in ("hv1", "hv2")}
    fleet = Fleet(controller, engines, scratch, tiny_image, key)
    with contextlib.ExitStack() as stack:
        ways = {}
        for number, (name, engine) in enumerate(engines.items()):
            address = plug(controller, engine.netns, number)
            ways[name] = stack.enter_context(served(engine.netns, address, tmp_path / name, key))
        fleet.describe(ways)
        yield fleet
        for engine in engines.values():
            audit.remove_store(engine)


def test_what_may_happen_to_a_fleet(fleet: Fleet, tmp_path: Path) -> None:
    fleet.run(SITE)
    for name in ("web1", "web2"):
        assert fleet.ssh(name, "echo kept > /root/mark; sync; hostname") == name
    good = {name: fleet.record(name) for name in ("web1", "web2")}

    # A build whose guests never answer: the canary finds out, is put back, and nobody else goes down. So does the same
    # run again.
    images = fleet.inventory["hypervisors"]["vars"]["cocoon_images"]
    well, images["app"] = images["app"], bad_image(tmp_path)
    fleet.inventory["hypervisors"]["vars"]["cocoon_defaults"]["timeout"] = 5
    for _time in range(2):
        bad = fleet.run(SITE, ok=False, cocoon_recreate=True, cocoon_rollback=True, cocoon_canary=1)
        assert bad.results(STEPS)[0]["msg"] == ["web1", "web2"]
        assert "it has been put back to where it was" in bad.output
        assert "not restarted, because web1 did not come back" in " ".join(bad.output.split())
        for name, before in good.items():
            record = fleet.record(name)
            assert (record["state"], record["image_digest"]) == ("running", before["image_digest"])
            assert fleet.ssh(name, "cat /root/mark") == "kept"
        assert fleet.record("web2")["pid"] == good["web2"]["pid"]
    images["app"] = well
    fleet.inventory["hypervisors"]["vars"]["cocoon_defaults"]["timeout"] = BOOT

    # Keys: a warning first, and then VM after VM.
    other = make_key(tmp_path, "other")
    fleet.inventory["web"]["vars"]["cocoon_vm_all"]["ssh_keys"] = [other.public]
    pids = [fleet.record(name)["pid"] for name in good]
    assert "accept_login: true" in fleet.run(SITE).output
    assert [fleet.record(name)["pid"] for name in good] == pids
    fleet.inventory["web"]["vars"]["ansible_ssh_private_key_file"] = str(other.private)
    fleet.inventory["web"]["vars"]["cocoon_healthy"].pop("command")
    turned = fleet.run(SITE, cocoon_allow_restart=True)
    assert turned.results(STEPS)[0]["msg"] == ["web1", "web2"]
    for name in good:
        assert fleet.ssh(name, "hostname", other) == name and fleet.ssh(name, "hostname") == ""

    # A host is emptied onto the other one, and the inventory brings its VM back.
    fleet.run(EVACUATE, cocoon_from="hv2")
    assert (fleet.at("hv1"), fleet.at("hv2")) == ({"web1": "running", "web2": "running"}, {})
    fleet.run(SITE, cocoon_move=True)
    assert (fleet.at("hv1"), fleet.at("hv2")) == ({"web1": "running"}, {"web2": "running"})
    assert fleet.ssh("web2", "cat /root/mark", other) == "kept"

    # A hypervisor process is killed, and a record is cut off: the one is started again, the other one fails alone.
    os.kill(fleet.record("web2")["pid"], signal.SIGKILL)
    record = Path(fleet.engines["hv1"].paths.vm_dir(good["web1"]["id"])) / "vm.json"
    whole = record.read_bytes()
    record.write_bytes(whole[:100])
    hurt = fleet.run(SITE, ok=False)
    assert "web1" in hurt.output and "damaged" in hurt.output
    assert fleet.at("hv2") == {"web2": "running"}
    record.write_bytes(whole)
    assert fleet.run(SITE).total("changed") == 0
