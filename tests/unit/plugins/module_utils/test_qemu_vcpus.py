# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vCPUs that come to a running QEMU."""

from __future__ import annotations

import contextlib
import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.driver import QemuDriver


def slot(core: int, taken: bool) -> dict[str, t.Any]:
    path = {"qom-path": f"/machine/unattached/device[{core}]"} if taken else {}
    return {"type": "qemu64-v1-x86_64-cpu", "props": {"core-id": core, "socket-id": 0, "thread-id": 0}, **path}


class Monitor:
    """Answers with *slots*, and notes what is added."""

    def __init__(self, slots: t.Any) -> None:
        self.slots = slots
        self.added: list[dict[str, t.Any]] = []

    def execute(self, command: str, arguments: dict[str, t.Any] | None = None) -> t.Any:
        if command == "query-hotpluggable-cpus":
            return self.slots
        assert command == "device_add"
        self.added.append(dict(arguments or {}))
        return {}


Add = t.Callable[[Monitor, int], None]


@pytest.fixture(name="add")
def fixture_add(monkeypatch: pytest.MonkeyPatch) -> Add:
    def add(monitor: Monitor, count: int) -> None:
        driver = QemuDriver(Paths(), "/usr/bin/qemu")
        monkeypatch.setattr(driver, "connect", lambda _run_dir: contextlib.nullcontext(monitor))
        driver.add_cpus("/run/x", count)

    return add


# As QEMU tells them: the last one first.
FOUR = [slot(core, taken=core < 2) for core in (3, 2, 1, 0)]


@pytest.mark.parametrize(("count", "cores"), [(2, []), (3, [2]), (4, [2, 3])])
def test_they_come_in_their_order(add: Add, count: int, cores: list[int]) -> None:
    monitor = Monitor(FOUR)
    add(monitor, count)
    assert [added["core-id"] for added in monitor.added] == cores
    assert [added["id"] for added in monitor.added] == [f"cpu{core}" for core in cores]
    assert all(added["driver"] == "qemu64-v1-x86_64-cpu" and added["socket-id"] == 0 for added in monitor.added)


@pytest.mark.parametrize("count", [1, 5])
def test_none_go_and_none_come_beyond_the_last(add: Add, count: int) -> None:
    monitor = Monitor(FOUR)
    with pytest.raises(HypervisorError, match=f"2 vCPUs does not come to have {count}"):
        add(monitor, count)
    assert monitor.added == []


@pytest.mark.parametrize("answer", [None, [], {}, [{"type": "x"}], [{"type": "x", "props": {}}], [{"props": 1}]])
def test_nonsense_for_places(add: Add, answer: t.Any) -> None:
    with pytest.raises(HypervisorError, match="does not tell its vCPUs"):
        add(Monitor(answer), 2)
