# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who goes down when, in a rollout over a fleet, and what came of it."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.plugin_utils import _rollout as rollout
from ansible_collections.cocoon.microvm.plugins.plugin_utils._definitions import DefinitionError


def answer(held: str = "", up: str = "", down: str = "", both: str = "") -> dict[str, t.Any]:
    """An answer in which these VMs are held, are up, are down, or both."""
    kinds = ((held, {"held": True}), (up, {}), (down, {"down": True}), (both, {"held": True, "down": True}))
    return {
        "results": [
            {"name": name, "changed": False, "actions": [], **more} for names, more in kinds for name in names.split()
        ]
    }


@pytest.mark.parametrize(
    ("answers", "size", "canary", "batches", "down"),
    [
        ({"hv1": answer("a b"), "hv2": answer("c")}, 1, 0, "a|b|c", ""),
        ({"hv1": answer("a b"), "hv2": answer("c")}, 2, 0, "a b|c", ""),
        ({"hv1": answer("a b"), "hv2": answer("c")}, 9, 0, "a b c", ""),
        ({"hv1": answer("a b"), "hv2": answer("c")}, 9, 1, "a|b c", ""),
        ({"hv1": answer("a b"), "hv2": answer("c")}, 1, 2, "a|b|c", ""),
        ({"hv1": answer("a b"), "hv2": answer("c")}, 2, 9, "a b|c", ""),
        # Whoever is down counts, on whichever hypervisor.
        ({"hv1": answer("a b", "x"), "hv2": answer(down="db")}, 1, 0, "", "db on hv2"),
        ({"hv1": answer("a b", "x"), "hv2": answer(down="db")}, 2, 0, "a|b", "db on hv2"),
        # One that is down and has a change before it goes first, and takes nobody else down.
        ({"hv1": answer("a", both="b")}, 1, 0, "b|a", ""),
        ({"hv1": answer("a"), "hv2": None}, 1, 0, "", "c on hv2"),
        ({"hv1": answer("a"), "hv2": {"msg": "no"}}, 2, 0, "a", "c on hv2"),
        ({"hv1": answer(up="a")}, 1, 0, "", ""),
    ],
)
def test_who_goes_down_when(answers: t.Any, size: int, canary: int, batches: str, down: str) -> None:
    defined = {"hv1": {"a": "started"}, "hv2": {"c": "started", "old": "absent", "off": "stopped"}}
    found = rollout.plan_rollout(answers, defined, {}, size, canary)
    assert "|".join(" ".join(vm["name"] for vm in batch) for batch in found["batches"]) == batches
    assert ", ".join(found["down"]) == down


def test_who_is_not_in_health_counts_as_well() -> None:
    answers = {"hv1": answer("a b", "x")}
    assert rollout.plan_rollout(answers, {}, {"hv1": ["x"]}, 1) == {"batches": [], "down": ["x on hv1"]}
    found = rollout.plan_rollout(answers, {}, {"hv1": {"b": "why"}}, 1)
    assert [batch[0]["name"] for batch in found["batches"]] == ["b", "a"]


def test_one_of_many() -> None:
    definitions = [{"name": "a", "cpu": 1}, {"name": "n", "count": 3, "cpu": 2}]
    assert rollout.single(definitions, ["n-2", "a"]) == [{"name": "a", "cpu": 1}, {"name": "n-2", "cpu": 2}]


HOSTVARS: dict[str, t.Any] = {
    "hv1": {"cocoon_healthy": {"port": 80}},
    "web1": {"cocoon_vm": {"name": "web"}, "cocoon_healthy": {"url": "http://{address}:8080/", "command": "true"}},
    "db1": {"cocoon_vm": {}, "cocoon_healthy": None},
}
RECORDS = {name: {"network_configs": [{"network": {"ip": "10.0.0.9"}}]} for name in ("web", "listed", "db1")}


def test_how_health_is_asked() -> None:
    found = rollout.health_checks(HOSTVARS, "hv1", ["web1", "db1"], RECORDS, ["web", "listed", "db1"])
    rest = {"address": "10.0.0.9", "status": [200], "timeout": 60}
    assert found == [
        {"name": "web", "host": "web1", "port": 22, "url": "http://10.0.0.9:8080/", "command": "true", **rest},
        {"name": "listed", "host": None, "port": 80, "url": None, "command": None, **rest},
    ]


@pytest.mark.parametrize(
    "wanted", [{"prot": 80}, {}, {"timeout": 3}, "80", {"port": "http"}, {"url": "x", "status": "ok"}, {"command": "x"}]
)
def test_health_that_cannot_be_meant(wanted: t.Any) -> None:
    variables = {"hv1": {"cocoon_healthy": wanted or {"status": 200}}}
    with pytest.raises(DefinitionError, match="cocoon_healthy"):
        rollout.health_checks(variables, "hv1", [], RECORDS, ["listed"])


def test_who_is_ill() -> None:
    names = ("good", "deaf", "bad", "mute", "lost")
    rest = {"port": 80, "url": "u", "command": "c", "status": [200]}
    checks = [{"name": name, "address": name != "lost", **rest} for name in names]
    good, deaf, bad, mute, _lost = checks
    asked = {
        "port": [{"vms_item": good, "elapsed": 1}, {"vms_item": deaf, "elapsed": 60, "msg": "Timeout when waiting"}],
        "url": [{"vms_item": good, "status": 200}, {"vms_item": bad, "status": 500, "msg": "Status code was 500"}],
        "command": [{"vms_item": good, "rc": 0}, {"vms_item": mute, "unreachable": True, "msg": "no route"}],
    }
    assert rollout.ill(checks, asked) == {
        "lost": "it has no address",
        "deaf": "port 80 is not as it should be: Timeout when waiting",
        "bad": "url u is not as it should be: Status code was 500",
        "mute": "command c is not as it should be: no route",
    }


def test_why_vms_were_not_changed() -> None:
    done = {"results": [{"name": "a"}, {"name": "b", "failed": True, "msg": "no"}]}
    assert rollout.lost(["a", "b"], done) == {"b": "no"}
    assert rollout.lost(["a"], {"msg": "broken"}) == {"a": "broken"}
    taken = {"results": [{"vms_item": "a", "snapshot": None, "msg": "no space"}]}
    assert rollout.lost(["a", "b"], {"skipped": True}, taken) == dict.fromkeys(
        "ab", "no snapshot could be taken of a: no space"
    )


def test_what_came_of_it() -> None:
    before = {**answer("a b", "c"), "vms": {"a": 1, "b": 1, "c": 1}, "changed": True, "failed": False}
    done = {"results": [{"name": "a", "changed": True, "actions": ["stop"]}], "vms": {"a": 2}}
    after = rollout.rolled(before, done, {})
    assert after["vms"] == {"a": 2, "b": 1, "c": 1} and "failed_vms" not in after
    assert after["results"][0] == {"name": "a", "changed": True, "actions": ["stop"]}
    last = rollout.rolled(after, None, {"b": "not restarted"})
    assert last["failed_vms"] == ["b"] and last["msg"] == "1 of 3 VMs failed: b: not restarted"
