# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What check mode says of VMs that move to another network: where they will be found, and that they restart."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._api import vms
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._engine import batch, lookup
from ansible_collections.cocoon.microvm.plugins.module_utils._network import attachments, leases
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import Observed
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, write_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.tests.unit.documents import document

NETWORKS = {"lab": "10.0.0.0/24", "dmz": "10.1.0.0/29", "quiet": "10.2.0.0/24", "flat": None}
OUT = ("lab", "dmz")
LIMITS = {"lock_timeout": 1, "memory_reserve": "0", "memory_overcommit": 1.0, "disk_overcommit": 100.0}


def network_id(name: str) -> str:
    return name.ljust(26, "n")


@pytest.fixture(name="params")
def fixture_params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    """A store with networks, and two VMs on one of them that run."""
    dirs = {f"{name}_dir": str(tmp_path / name) for name in ("root", "run", "log")}
    store = Store.open(Paths.from_params(dirs))
    for name, subnet in NETWORKS.items():
        store.index("network").reserve(name, network_id(name))
        for folder in ("leases", "ports", "users"):
            os.makedirs(leases.directory(store, network_id(name), folder))
        gateway = subnet and subnet.rpartition(".")[0] + ".1"
        changes = {
            "name": name,
            "bridge": f"cm-{name}",
            "subnet": subnet,
            "gateway": gateway,
            "nat": name in ("lab", "dmz"),
        }
        record = document("network-3-search", id=network_id(name), **changes)
        write_json(leases.directory(store, network_id(name), "network.json"), record)
    for number, name in enumerate(("web1", "web2"), 2):
        vm = document("vm-7-vcpus", id=name.ljust(26, "v"))
        vm["config"]["name"] = name
        vm["network_configs"][0].update(network_id=network_id("lab"), mac=f"02:00:00:00:00:0{number}")
        vm["network_configs"][0]["network"]["ip"] = f"10.0.0.{number}"
        vm["ports"] = []
        store.index("vm").reserve(name, vm["id"])
        os.mkdir(store.paths.vm_dir(vm["id"]))
        store.write_vm(vm)
    monkeypatch.setattr(Paths, "check", lambda _paths: None)  # that of a test is too long for sockets
    for module in (batch, lookup):
        monkeypatch.setattr(module, "observe", lambda *_words: Observed(running=True))
    monkeypatch.setattr(batch, "check_directories", lambda _paths: None)  # nobody else may pass there
    monkeypatch.setattr(lookup, "_with_nics", lambda _run, _record, observed: observed)
    return {**dirs, **LIMITS}


def planned(params: Record, *definitions: Record) -> list[Record]:
    allowed = [{"allow_restart": True, **definition} for definition in definitions]
    results = vms.converge_vms(params, allowed, check=True)
    assert [result["msg"] for result in results if result.get("failed")] == []
    return results


def test_published_ports_go_along_to_another_network(params: Record) -> None:
    """They are the VM's own; on one that publishes none, or where another VM has one, the plan says so."""
    store = Store.open(Paths.from_params(params))
    for name, ports in (("web1", ["127.0.0.1:58080:80"]), ("web2", ["127.0.0.1:58081:80"])):
        vm = store.vm_record(name)
        assert vm is not None
        attachments.publish(store, {"id": network_id("lab"), "name": "lab", "nat": True}, vm["id"], "10.0.0.2", ports)
        store.write_vm({**vm, "ports": ports})
    more = ["127.0.0.1:58080:80", "127.0.0.1:58082:80"]
    for ports in ({}, {"ports": more}):
        assert planned(params, {"name": "web1", "network": "dmz", **ports})
    refused: list[Record] = [{"network": "flat"}, {"network": "quiet"}, {"network": "quiet", "ports": more}]
    for definition in (*refused, {"network": "dmz", "ports": ["127.0.0.1:58081:80"]}):
        (result,) = vms.converge_vms(params, [{"name": "web1", "allow_restart": True, **definition}], check=True)
        assert result.get("failed") and "ports" in result["msg"], definition


def test_a_vm_on_another_network_shows_its_new_address_and_its_restart(params: Record) -> None:
    (result,) = planned(params, {"name": "web1", "network": "dmz"})
    assert result["how"] == "restart"
    before, after = result["diff"]["before"], result["diff"]["after"]
    assert (before["network"], before["nics[0].ip"]) == ("lab", "10.0.0.2")
    assert after["network"] == "dmz" and after["nics[0].ip"].startswith("10.1.0.")
    assert after["how"] == {"vm": "restart", "network": "restart", "nics[0].ip": "restart"}
    assert result["address"] == after["nics[0].ip"]


def test_no_two_vms_are_shown_one_address(params: Record) -> None:
    results = planned(params, *({"name": name, "nics": [{"network": "dmz"}] * 2} for name in ("web1", "web2")))
    shown = [result["diff"]["after"][f"nics[{index}].ip"] for result in results for index in (0, 1)]
    assert len(set(shown)) == 4


@pytest.mark.parametrize(
    ("definition", "address"),
    [
        ({"network": "lab"}, "10.0.0.2"),
        ({"nics": [{"network": "dmz", "ip": "10.1.0.5"}]}, "10.1.0.5"),
        ({"network": "flat"}, None),
        ({"cpu": 1}, "10.0.0.2"),
    ],
)
def test_what_is_known_or_cannot_be_is_not_guessed(params: Record, definition: Record, address: str | None) -> None:
    (result,) = planned(params, {"name": "web1", **definition})
    assert "nics[0].ip" not in result["diff"]["after"]
    assert result["address"] == address
