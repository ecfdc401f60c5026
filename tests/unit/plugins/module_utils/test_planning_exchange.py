# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What passes from one VM to another in one run."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._planning import exchange
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import Plan
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.steps import (
    Configure,
    Create,
    SetNics,
    SetPorts,
    Start,
    Step,
    Stop,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record


def vm(vm_id: str, mac: str, ip: str, ports: list[str]) -> Record:
    nic = {"network_name": "lab", "mac": mac, "network": {"ip": ip}}
    return {"id": vm_id, "config": {"network": "lab"}, "network_configs": [nic], "ports": ports}


def nic(mac: str | None, ip: str | None) -> Record:
    return {"network": "lab", "mac": mac, "ip": ip}


ONE = vm("one", "02::1", "10.1.0.1", ["80:80", "81:81"])
TWO = vm("two", "02::2", "10.1.0.2", ["10.0.0.1:53:53/udp"])
FREE_80 = ("port", "tcp", "80")


def plan(*steps: Step) -> Plan:
    return Plan("vm", "update", steps)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([SetPorts(["81:81"])], [SetPorts(["10.0.0.1:53:53/udp", "80:8080"])], {FREE_80: "one"}),
        ([SetPorts(["81:81"])], [Configure({"labels": {}})], {}),  # let go, and wanted by nobody
        ([Configure({"labels": {}})], [SetPorts(["80:8080"])], {}),  # wanted, and not let go
        (
            [SetNics([nic("02::1", "10.1.0.2")], "lab")],
            [SetNics([nic("02::2", "10.1.0.1")], "lab")],
            {("ip", "lab", "10.1.0.1"): "one", ("ip", "lab", "10.1.0.2"): "two"},
        ),
        (
            [SetNics([nic("02::2", "10.1.0.1")], "lab", ["53:53/udp"])],
            [SetNics([nic("02::1", "10.1.0.2")], "lab", ["80:80"])],
            {("mac", "02::1"): "one", ("mac", "02::2"): "two", FREE_80: "one", ("port", "udp", "53"): "two"},
        ),
        ([SetNics([], "lab", [])], [SetNics([nic("02::1", None)], "lab", None)], {("mac", "02::1"): "one"}),
    ],
)
def test_what_passes(first: list[Step], second: list[Step], expected: dict[exchange.Key, str]) -> None:
    plans: list[tuple[Record | None, Plan]] = [(ONE, plan(*first)), (TWO, plan(*second))]
    assert exchange.passing(plans) == expected
    assert exchange.passing(reversed(plans)) == expected


def test_what_a_new_vm_takes_passes_too() -> None:
    new = plan(Create({"nics": [nic("02::1", "10.1.0.1")], "ports": ["80:80"]}))
    plans: list[tuple[Record | None, Plan]] = [(None, new), (ONE, plan(SetNics([nic("02::9", None)], "lab", [])))]
    assert set(exchange.passing(plans)) == {("mac", "02::1"), ("ip", "lab", "10.1.0.1"), FREE_80}


def test_the_first_half_lets_go_and_takes_nothing() -> None:
    stop = Stop(restart=True)
    whole = plan(stop, SetNics([nic("02::2", "10.1.0.2")], "lab", ["53:53/udp"]), Configure({"cpu": 2}), Start(1))
    keys = {("ip", "lab", "10.1.0.1"), FREE_80}
    half = exchange.first_half(ONE, whole, keys)
    assert half.steps == (stop, SetNics([nic("02::1", None)], "lab", ["81:81"]))
    assert not exchange.after(ONE, half) & keys and exchange.after(ONE, half) < exchange.before(ONE)
    half = exchange.first_half(ONE, plan(SetPorts(["53:53/udp"])), {FREE_80})
    assert half.steps == (SetPorts(["81:81"]),)


def test_only_what_is_let_go_is_given() -> None:
    change: t.Any = plan(SetPorts(["81:81"]))
    assert exchange.gives(ONE, change, {FREE_80}) and not exchange.gives(ONE, change, {("port", "tcp", "81")})
    assert not exchange.gives(None, plan(Create({"nics": [], "ports": []})), {FREE_80})
