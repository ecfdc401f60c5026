# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs between two hosts: two stores in two network namespaces, and the steps of a move as the playbooks do them.

Most guests are idle ones, which take no time. A move is killed between any two side effects of any of its steps, and
the same steps again bring it to its end.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._moving import converging
from ansible_collections.cocoon.microvm.tests.integration.support import audit
from ansible_collections.cocoon.microvm.tests.integration.support.engine import (
    GUEST,
    IDLE,
    Engine,
    Forked,
    Outcome,
    data_disk,
    idle_image,
)
from ansible_collections.cocoon.microvm.tests.integration.support.lab import SMALL, Lab, make_lab
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns, target_python
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules, Playbooks, Run

CONTENT = b"what the guest has written\n"
OPTIONS = dict.fromkeys(
    (
        *("name host token id image passports networks stop_timeout path checksum reader receipt".split()),
        *("force wait_for wait_port wait_pattern timeout".split()),
    )
)
DEFINITION = {
    **GUEST,
    "name": "web1",
    "state": "started",
    "data_disks": [{"name": "data", "size": "16M", "fstype": "none"}],
    "labels": {"role": "web"},
}


class Killed(Exception):
    """A step was killed, as it was to be."""


@dataclass
class Move:
    """The steps of one move, in the order of the playbooks."""

    source: Engine
    target: Engine
    folder: Path
    name: str = "web1"
    waits: dict[str, Any] = field(default_factory=dict)
    kill: tuple[str, int] | None = None
    marks: dict[str, list[str]] = field(default_factory=dict)

    def step(self, engine: Engine, state: str, **options: Any) -> Any:
        """One step, on one host.

        :raises Killed: it was to be killed.
        :raises AssertionError: it failed.
        """
        params = {
            **OPTIONS,
            "memory": True,
            **engine.dirs,
            **engine.options,
            "state": state,
            "name": self.name,
            **options,
        }
        kill_at = self.kill[1] if self.kill and self.kill[0] == state else None
        outcome: Outcome = Forked(engine.netns, lambda mark: converging.converge(params, False, mark), kill_at).wait()
        self.marks[state] = outcome.marks
        if outcome.killed:
            raise Killed(state)
        assert outcome.error is None, f"{state}: {outcome.error}"
        return outcome.results

    def admit(self) -> Any:
        """What the target says of the VM; nothing of one that has left but for its remains."""
        passport = self.step(self.source, "described")["passport"]
        if passport is None:
            return None
        (found,) = self.step(self.target, "admitted", passports=[passport])["admission"]
        return {**found, "passport": passport}

    def prepare(self, memory: bool = True) -> Any:
        """All before the target starts it: what ``departed`` said, or ``None`` where it has left already."""
        if self.source.record(self.name) is None or not (admitted := self.admit()):
            return None
        assert not admitted["problems"], admitted
        gone = self.step(self.source, "departed", host="hv1", memory=memory and admitted["memory"])
        if admitted["image"]:
            image = admitted["passport"]["image_digest"]
            sent = self.step(self.source, "image_exported", image=image, id=gone["vm"]["id"])["archive"]
            self.step(self.target, "image_arrived", image=image, path=sent["path"], checksum=sent["digest"])
        here = self.target.record(self.name)
        if here is None or here["state"] == "creating":
            sent = self.step(self.source, "exported", token=gone["token"])["archive"]
            where = {"path": sent["path"], "checksum": sent["digest"]}
            self.step(self.target, "arrived", token=gone["token"], host="hv2", **where)
        return gone

    def finish(self) -> Any:
        """The whole move: the target's record."""
        gone = self.prepare()
        token = gone["token"] if gone else self.target.record(self.name)["moved"]["token"]
        if gone and gone["starts"]:
            self.step(self.target, "started", token=token, **self.waits)
        proof = self.step(self.target, "settled", token=token)["receipt"]
        self.step(self.source, "left", token=token, receipt=proof)
        return self.target.record(self.name)

    def take_back(self, token: str, vm_id: str) -> None:
        """What the playbooks do when the target does not answer."""
        proof = self.step(self.target, "discarded", token=token, id=vm_id)["receipt"]
        self.step(self.source, "returned", token=token, receipt=proof)


@pytest.fixture(scope="module", name="files")
def fixture_files(scratch: Path) -> dict[str, str]:
    folder = scratch / "moving-image"
    folder.mkdir()
    return idle_image(folder)


@pytest.fixture(name="hosts")
def fixture_hosts(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    files: dict[str, str],
) -> Iterator[tuple[Engine, Engine]]:
    """hv2, which has an image, and hv1, which VMs come to; at the end nothing of either is left."""
    engines = []
    for _number in range(2):
        netns, dirs = make_netns(), make_store()
        modules(netns, dirs)("cocoon_network", name="lab", subnet="10.93.0.0/24", nat=False)
        engines.append(Engine(netns, dirs))
    modules(engines[0].netns, engines[0].dirs)("cocoon_image", name=IDLE, **files)
    yield engines[0], engines[1]
    for engine in engines:
        runner = modules(engine.netns, engine.dirs)
        for vm in runner("cocoon_vm_info")["vms"]:
            runner("cocoon_vm", name=vm["config"]["name"], state="absent", force=True)
        for image in runner("cocoon_image_info")["images"]:
            runner("cocoon_image", name=image["id"], state="absent")
        runner("cocoon_network", name="lab", state="absent")


def write(engine: Engine, content: bytes = CONTENT) -> None:
    """Something on the VM's data disk."""
    with data_disk(engine.paths, engine.record("web1"), "data").open("r+b") as stream:
        stream.write(content)


def read(engine: Engine) -> bytes:
    return data_disk(engine.paths, engine.record("web1"), "data").read_bytes()[: len(CONTENT)]


def running(*engines: Engine) -> int:
    """How many hypervisors there are."""
    return sum(len(audit.hypervisors(engine)) for engine in engines)


def same(before: Any, after: Any) -> None:
    """The VM is the one that it was."""
    for key in ("id", "config", "labels", "login", "machine", "cpu_model", "image_digest", "data_disks"):
        assert after[key] == before[key], key
    for old, new in zip(before["network_configs"], after["network_configs"]):
        assert (new["mac"], new["network"]["ip"]) == (old["mac"], old["network"]["ip"])


@pytest.mark.parametrize("state", ["present", "stopped", "started", "hibernated"])
def test_a_vm_moves_as_itself_and_its_definition_finds_nothing_to_change(
    hosts: tuple[Engine, Engine], tmp_path: Path, state: str
) -> None:
    source, target = hosts
    source.vm(**{**DEFINITION, "state": "started" if state in ("hibernated", "stopped") else state})
    if state in ("hibernated", "stopped"):
        source.vm(name="web1", state=state, force=True, stop_timeout=0)
    write(source)
    before = source.record("web1")
    after = Move(source, target, tmp_path).finish()
    same(before, after)
    assert after["state"] == {"present": "created", "started": "running"}.get(state, state)
    assert read(target) == CONTENT
    assert source.record("web1") is None
    assert (before["owner"], after["owner"]) == (source.store.store_id, target.store.store_id)
    assert audit.held(source) == {
        entry for entry in audit.held(source) if "web1" not in entry and before["id"] not in entry
    }
    assert running(source, target) == (state == "started")
    assert not target.vm(**{**DEFINITION, "state": state})["changed"]
    assert not Path(source.paths.moves).exists() and not Path(target.paths.moves).exists()


def test_a_vm_on_its_way_is_touched_by_the_move_alone(hosts: tuple[Engine, Engine], tmp_path: Path) -> None:
    source, target = hosts
    source.vm(**DEFINITION)
    move = Move(source, target, tmp_path)
    gone = move.prepare()
    assert running(source, target) == 0
    assert "on its way to hv1" in source.refused(name="web1", state="started")
    assert "on its way to hv1" in source.refused(name="web1", state="absent", force=True)
    assert "on its way here from hv2" in target.refused(**DEFINITION)
    with pytest.raises(AssertionError, match="nothing says that VM 'web1' has settled"):
        move.step(source, "left", token=gone["token"], receipt="made up")
    with pytest.raises(AssertionError, match="nothing says that VM 'web1' does not run on hv1"):
        move.step(source, "returned", token=gone["token"], receipt="made up")
    with pytest.raises(AssertionError, match="on its way to hv1"):
        move.step(source, "departed", host="hv3")
    with pytest.raises(AssertionError, match="is not on the move that this step belongs to"):
        move.step(target, "settled", token="another")
    move.take_back(gone["token"], source.record("web1")["id"])
    assert running(source) == 1
    assert not source.vm(**DEFINITION)["changed"]


def test_a_target_that_does_not_answer_is_ended_and_the_source_goes_on(
    hosts: tuple[Engine, Engine], tmp_path: Path
) -> None:
    source, target = hosts
    source.vm(**DEFINITION)
    write(source)
    before = source.record("web1")
    move = Move(source, target, tmp_path, waits={"wait_for": "port", "timeout": 1})
    with pytest.raises(AssertionError, match=r"started: .*web1"):
        move.finish()
    assert running(source) == 0 and running(target) == 1
    move.take_back(source.record("web1")["moving"]["token"], before["id"])
    assert running(source) == 1 and running(target) == 0
    assert target.record("web1") is None
    assert not {entry for entry in audit.held(target) if before["id"] in entry}
    assert read(source) == CONTENT
    assert not source.vm(**DEFINITION)["changed"]
    # And another time it goes well.
    same(before, Move(source, target, tmp_path).finish())


def test_what_does_not_fit_is_refused_before_anything_is_touched(hosts: tuple[Engine, Engine], tmp_path: Path) -> None:
    source, target = hosts
    source.vm(**DEFINITION)
    small = Engine(target.netns, target.dirs, memory_reserve="1000G")
    found = Move(source, small, tmp_path).admit()
    assert any("do not fit" in problem for problem in found["problems"])
    assert source.record("web1")["state"] == "running"
    passport = found["passport"]
    for change, words in (
        ({"nics": [{**passport["nics"][0], "network": "nowhere"}]}, "there is no network 'nowhere'"),
        ({"nics": [{**passport["nics"][0], "dhcp": True}]}, "nobody of ours answers on network"),
        ({"allocated": 1 << 50}, "of disk, and"),
    ):
        (judged,) = Move(source, target, tmp_path).step(target, "admitted", passports=[{**passport, **change}])[
            "admission"
        ]
        assert any(words in problem for problem in judged["problems"]), judged
    (judged,) = Move(source, target, tmp_path).step(
        target, "admitted", passports=[{**passport, "pins": {**passport["pins"], "machine": "pc-q35-99.0"}}]
    )["admission"]
    assert not judged["memory"] and "pc-q35-99.0" in judged["reason"]


PLACES = ("departed", "exported", "arrived", "started", "settled", "left")


@pytest.mark.parametrize("step", PLACES)
def test_a_move_that_is_killed_anywhere_goes_on(hosts: tuple[Engine, Engine], tmp_path: Path, step: str) -> None:
    source, target = hosts
    place = 0
    while True:
        source.vm(**DEFINITION)
        write(source)
        before = source.record("web1")
        move = Move(source, target, tmp_path, kill=(step, place))
        killed = False
        with contextlib.suppress(Killed):
            move.finish()
            killed = True
        where = f"{step} {place} {move.marks.get(step)}"
        assert running(source, target) <= 1, where
        if killed:
            break
        after = Move(source, target, tmp_path).finish()
        same(before, after)
        assert read(target) == CONTENT, where
        assert running(target) == 1 and running(source) == 0, where
        assert source.record("web1") is None, where
        assert not {entry for entry in audit.held(source) if before["id"] in entry}, where
        assert not Path(source.paths.moves).exists() and not Path(target.paths.moves).exists(), where
        target.vm(name="web1", state="absent", force=True)
        place += 1
    assert place, f"{step} has no place to be killed at"


@pytest.fixture(name="labs")
def fixture_labs(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    tiny_image: Path,
    tmp_path: Path,
) -> Iterator[tuple[Lab, Engine]]:
    netns, dirs = make_netns(), make_store()
    runner = modules(netns, dirs)
    with make_lab(make_netns(), make_store(), modules, tiny_image, tmp_path) as lab:
        runner("cocoon_network", name="lab", subnet="10.91.0.0/24", nat=False)
        yield lab, Engine(netns, dirs)
        for vm in runner("cocoon_vm_info")["vms"]:
            runner("cocoon_vm", name=vm["config"]["name"], state="absent", force=True)
        for image in runner("cocoon_image_info")["images"]:
            runner("cocoon_image", name=image["id"], state="absent")
        runner("cocoon_network", name="lab", state="absent")


@pytest.mark.smoke
def test_a_guest_goes_on_on_another_host_in_the_middle_of_what_it_does(
    labs: tuple[Lab, Engine], tmp_path: Path
) -> None:
    lab, target = labs
    vm = lab.started("web1")
    boot = lab.ssh(vm, "cat /proc/sys/kernel/random/boot_id; echo here > /run/mark; echo there > /root/mark").output
    source = Engine(lab.netns, lab.store)
    Move(source, target, tmp_path, waits={"wait_for": "port", "timeout": 120}).finish()
    there = Lab(target.netns, target.dirs, lab.module, lab.folder, lab.key)
    answer = there.ssh(vm, "cat /proc/sys/kernel/random/boot_id /run/mark /root/mark; ls / > /dev/null")
    assert answer.output.split() == [boot.strip(), "here", "there"], answer
    definition = {**SMALL, "name": "web1", "state": "started", "wait_for": "port", "ssh_keys": [lab.key.public]}
    assert not target.vm(**definition)["changed"], "the login data are those that it was made with"


SITE, MOVE, EVACUATE = (f"cocoon.microvm.{name}" for name in ("site", "move", "evacuate"))
PLAN = "cocoon.microvm.vms : Show how the VMs are moved"


class Fleet:
    """Two hypervisors, each in a network namespace of its own, and VMs that are inventory hosts."""

    def __init__(self, hosts: tuple[Engine, Engine], playbooks: Playbooks, folder: Path, files: dict[str, str]) -> None:
        self.engines = {"hv2": hosts[0], "hv1": hosts[1]}
        self.playbooks = playbooks
        guest = {key: value for key, value in GUEST.items() if key != "image"}
        variables = {
            "cocoon_networks": {"lab": {"subnet": "10.93.0.0/24", "nat": False}},
            "cocoon_images": {IDLE: files},
            "cocoon_defaults": {"image": IDLE, **guest},
            "cocoon_disk_overcommit": 100.0,
            "cocoon_memory_reserve": "64M",
        }
        self.inventory: dict[str, Any] = {
            "hypervisors": {
                "hosts": {name: self._host(name, engine, folder) for name, engine in self.engines.items()},
                "vars": variables,
            },
            "vms": {"hosts": {name: {"cocoon_host": "hv2", "cocoon_vm": {}} for name in ("web1", "db1")}},
        }
        self.inventory["vms"]["hosts"]["db1"]["cocoon_vm"] = {"state": "present", "labels": {"role": "db"}}

    @staticmethod
    def _host(name: str, engine: Engine, folder: Path) -> dict[str, Any]:
        """A local connection whose modules run in the host's namespace."""
        python = folder / f"{name}-python"
        enter = " ".join(engine.netns.enter())
        python.write_text(f'#!/bin/sh\nexec {enter} {target_python()} "$@"\n', encoding="utf-8")
        python.chmod(0o755)
        dirs = {f"cocoon_{key}": path for key, path in engine.dirs.items()}
        return {"ansible_connection": "local", "ansible_python_interpreter": str(python), **dirs}

    def run(self, playbook: str, *options: str, **settings: Any) -> Run:
        given = {"host_show_table": False, **settings.pop("variables", {})}
        return self.playbooks(playbook, copy.deepcopy(self.inventory), *options, variables=given, **settings)

    def at(self, host: str) -> dict[str, str]:
        """The states of the VMs that a hypervisor has."""
        return {record["config"]["name"]: record["state"] for record in audit.records(self.engines[host]).values()}


@pytest.fixture(name="fleet")
def fixture_fleet(hosts: tuple[Engine, Engine], scratch: Path, tmp_path: Path, files: dict[str, str]) -> Fleet:
    return Fleet(hosts, Playbooks(None, scratch, {}), tmp_path, files)


def test_an_inventory_moves_vms_and_a_host_is_emptied(fleet: Fleet) -> None:
    fleet.run(SITE)
    before = {name: fleet.engines["hv2"].record(name) for name in ("web1", "db1")}
    for name in before:
        fleet.inventory["vms"]["hosts"][name]["cocoon_host"] = "hv1"
    refused = fleet.run(SITE, ok=False)
    assert "cocoon_move=true" in refused.output and fleet.at("hv2") == {"web1": "running", "db1": "created"}
    small = fleet.run(SITE, variables={"cocoon_move": True, "cocoon_memory_reserve": "1000G"}, ok=False)
    assert "Nothing has been moved" in small.output and fleet.at("hv2") == {"web1": "running", "db1": "created"}
    moved = fleet.run(SITE, variables={"cocoon_move": True})
    rows = moved.result(PLAN, "hv1")["msg"]
    assert [line.split()[:3] for line in rows[1:]] == [["db1", "hv2", "hv1"], ["web1", "hv2", "hv1"]]
    assert (fleet.at("hv1"), fleet.at("hv2")) == ({"web1": "running", "db1": "created"}, {})
    for name, record in before.items():
        same(record, fleet.engines["hv1"].record(name))
    again = fleet.run(SITE)
    assert again.total("changed") == 0, [entry["task"] for entry in again.tasks if entry["result"].get("changed")]
    stranger = fleet.run(EVACUATE, variables={"cocoon_from": "hv1", "cocoon_to": "hv2,hv9"}, ok=False)
    assert "cocoon_to: hv9 is no hypervisor of this inventory; there are hv2" in stranger.output
    planned = fleet.run(EVACUATE, check=True, variables={"cocoon_from": "hv1"})
    assert "with its memory" in "\n".join(planned.results(PLAN)[0]["msg"])
    assert fleet.at("hv1") == {"web1": "running", "db1": "created"}
    fleet.run(EVACUATE, variables={"cocoon_from": "hv1"})
    assert (fleet.at("hv2"), fleet.at("hv1")) == ({"web1": "running", "db1": "created"}, {})
    fleet.run(MOVE, variables={"cocoon_from": "hv2", "cocoon_to": "hv1", "cocoon_names": "web1"})
    assert (fleet.at("hv2"), fleet.at("hv1")) == ({"db1": "created"}, {"web1": "running"})


def test_a_step_that_fails_is_named_and_the_vm_goes_on_where_it_was(fleet: Fleet) -> None:
    fleet.run(SITE)
    record = fleet.engines["hv2"].record("web1")
    record["ready"] = {"condition": "port:22", "seconds": 1.0}  # which the idle guest will never answer at
    fleet.engines["hv2"].store.write_vm(record)
    way = {"cocoon_from": "hv2", "cocoon_to": "hv1", "cocoon_names": "web1", "cocoon_move_timeout": 2}
    failed = fleet.run(MOVE, variables=way, ok=False)
    assert "goes on on hv2" in failed.output and "Start it where it has come to" in failed.output
    assert fleet.at("hv2") == {"web1": "running", "db1": "created"} and fleet.at("hv1") == {}
    assert running(*fleet.engines.values()) == 1
