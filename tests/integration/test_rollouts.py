# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restarts a few at a time, and who is down already. Guests that take no time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.tests.integration.support import audit
from ansible_collections.cocoon.microvm.tests.integration.support.engine import GUEST, IDLE, Engine, idle_image
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules


@pytest.fixture(scope="module", name="files")
def fixture_files(scratch: Path) -> dict[str, str]:
    folder = scratch / "rollout-image"
    folder.mkdir()
    return idle_image(folder)


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
