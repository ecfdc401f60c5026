# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.plugin_utils._moves import assign, due_moves, plan, renamed, waits

Vars = dict[str, t.Any]
GIB = 1 << 30
DEFINED = {"hv1": {"web1": "started", "old": "absent"}, "hv2": {"db1": "started"}}
WANTED = [{"name": "web1", "network": "lab1"}, {"name": "old"}]


def record(name: str, state: str = "running", **more: t.Any) -> Vars:
    return {"config": {"name": name}, "state": state, **more}


@pytest.mark.parametrize(
    ("existing", "there", "expected"),
    [
        pytest.param([], [record("web1")], ["hv2"], id="the inventory has moved it"),
        pytest.param([record("web1")], [record("web1")], [], id="it is on both, and neither is on its way"),
        pytest.param([], [record("db1"), record("old")], [], id="it is wanted there, or nowhere"),
        pytest.param(
            [record("web1", moving={"from": "hv2"})],
            [record("web1", moving={"to": "hv1"})],
            ["hv2"],
            id="it has arrived",
        ),
        pytest.param([record("web1")], [record("web1", moving={"to": "hv1"})], ["hv2"], id="it has settled"),
        pytest.param([record("web1", moving={"from": "hv2"})], [], ["hv2"], id="the other one was not asked"),
        pytest.param([record("web1", "creating")], [record("web1")], ["hv2"], id="half made here"),
        pytest.param([], [record("web1", moving={"to": "hv3"})], [], id="it goes elsewhere"),
    ],
)
def test_which_vms_have_to_come(existing: list[Vars], there: list[Vars], expected: list[str]) -> None:
    found = due_moves(DEFINED, "hv1", WANTED, existing, {"hv1": existing, "hv2": there})
    assert found == [{"name": "web1", "from": host, "to": "hv1", "network": "lab1"} for host in expected]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (None, {"wait_for": "process"}),
        ("ping", {"wait_for": "ping"}),
        ("port:2222", {"wait_for": "port", "wait_port": 2222}),
        ("console:login: ", {"wait_for": "console", "wait_pattern": "login: "}),
        ("console:", {"wait_for": "console"}),
    ],
)
def test_a_moved_vm_is_waited_for_as_it_was_before(condition: str | None, expected: Vars) -> None:
    assert waits(condition) == expected


def passport(name: str, **more: t.Any) -> Vars:
    config = {"name": name, "cpu": 1, "memory": GIB, "storage": GIB, "network": "lab"}
    base: Vars = {"id": name, "config": config, "runs": True, "state": "stopped", "image_digest": "sha256:0"}
    return {**base, "nics": [{"network": "lab"}], **more, "config": {**config, **more.get("config", {})}}


def judged(name: str, **more: t.Any) -> Vars:
    return {"name": name, "problems": [], "memory": True, "reason": "", "image": False, **more}


@pytest.mark.parametrize(
    ("found", "said", "how", "problem", "fits"),
    [
        ({}, {}, "with its memory", "", True),
        ({}, {"memory": False, "reason": "another CPU"}, "shut down and booted", "another CPU", True),
        ({"runs": False}, {"memory": False}, "stopped", "", True),
        ({"runs": False, "state": "hibernated"}, {}, "hibernated", "", True),
        ({}, {"problems": ["no room", "no network"]}, "with its memory", "no room; no network", False),
    ],
)
def test_the_plan_says_how(found: Vars, said: Vars, how: str, problem: str, fits: bool) -> None:
    move = {"name": "web1", "from": "hv2", "to": "hv1"}
    (row,) = plan([move], [passport("web1", **found)], {"hv1": [judged("web1", **said)]})
    assert (row["how"], row["problem"], row["fits"]) == (how, problem, fits)


def test_the_plan_of_a_vm_that_has_left_already() -> None:
    (row,) = plan([{"name": "web1", "from": "hv2", "to": "hv1"}], [None], {"hv1": []})
    assert (row["how"], row["id"]) == ("is there", "")


def test_a_network_is_called_as_the_definition_has_it() -> None:
    move = {"name": "web1", "from": "hv2", "to": "hv1", "network": "lab1"}
    assert renamed([{"vms_item": move, "passport": passport("web1")}, {"vms_item": move, "passport": None}]) == {
        "lab": "lab1"
    }
    assert renamed([{"vms_item": {**move, "network": "lab"}, "passport": passport("web1")}]) == {}


ROOM = {"memory": 4 * GIB, "disk": 100 * GIB, "cpus": 4, "networks": ["lab"]}


def places(passports: list[Vars], rooms: Vars, records: t.Sequence[Vars] = ()) -> dict[str, str]:
    return {move["name"]: move["to"] for move in assign("hv2", passports, rooms, records)}


def test_the_largest_goes_first_and_each_to_where_most_is_left() -> None:
    fleet = [passport("small"), passport("large", config={"memory": 3 * GIB}), passport("other")]
    assert places(fleet, {"a": ROOM, "b": {**ROOM, "memory": 3 * GIB}}) == {"large": "a", "other": "b", "small": "b"}


@pytest.mark.parametrize(
    "lacks",
    [{"memory": GIB - 1}, {"disk": GIB - 1}, {"cpus": 0}, {"networks": ["other"]}],
    ids=lambda lacks: str(*lacks),
)
def test_what_a_host_lacks(lacks: Vars) -> None:
    assert places([passport("web1")], {"a": {**ROOM, **lacks}}) == {"web1": ""}
    assert places([passport("web1")], {"a": {**ROOM, **lacks}, "b": {**ROOM, "memory": GIB}}) == {"web1": "b"}


def test_a_vm_that_does_not_run_takes_no_memory_and_one_on_its_way_stays_on_it() -> None:
    room = {**ROOM, "memory": 0}
    found = places([passport("web1", runs=False)], {"a": room}, [record("db1", moving={"to": "b"}), record("web1")])
    assert found == {"db1": "b", "web1": "a"}
