# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same cases for each hypervisor, on the real program under KVM.

They share one VM, in the order of a VM's life.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.tests.lab.conftest import Site

VM = {"image": "tiny", "cpu": 1, "memory": "128M", "storage": "256M", "network": "lab", "kernel_args": "loglevel=7"}


def name_of(driver: str) -> str:
    return f"lab-{driver}"


@pytest.fixture(scope="module")
def vm(site: Site, driver: str) -> dict[str, Any]:
    """A running VM with a NIC, which has answered on it."""
    result = site.vm(
        name_of(driver), hypervisor=driver, state="started", wait_for="ping", timeout=180, balloon="off", **VM
    )
    assert result["changed"]
    return dict(result["vm"])


def has(site: Site, driver: str, capability: str) -> bool:
    from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import registry

    return bool(getattr(registry.driver(driver, Paths()).capabilities, capability))


def console(site: Site, vm: dict[str, Any]) -> str:
    return site.shell(f"cat /var/log/cocoon-microvm/{vm['id']}/console.log")


def await_console(site: Site, vm: dict[str, Any], words: str, seconds: float = 60) -> None:
    """Wait until the guest's kernel has said *words*."""
    deadline = time.monotonic() + seconds
    while words not in console(site, vm):
        assert time.monotonic() < deadline, f"no '{words}' in {console(site, vm)[-2000:]}"
        time.sleep(1)


def answers(site: Site, vm: dict[str, Any]) -> bool:
    address = vm["network_configs"][0]["network"]["ip"]
    return "1 received" in site.shell(f"ping -c1 -W3 {address} || true")


def process(site: Site, vm: dict[str, Any]) -> dict[str, str]:
    lines = site.shell(f"cat /proc/{vm['pid']}/status").splitlines()
    return {key: value.strip() for key, _colon, value in (line.partition(":") for line in lines)}


def test_the_host_has_it(site: Site, driver: str) -> None:
    found = site.module("cocoon_host_info")
    assert not found["failed"], found
    assert driver in json.dumps(found)


def test_it_runs_and_answers(site: Site, vm: dict[str, Any], driver: str) -> None:
    assert (vm["hypervisor"], vm["state"], vm["accel"]) == (driver, "running", "kvm")
    assert answers(site, vm)
    assert "Linux version" in console(site, vm)


def test_a_second_run_changes_nothing(site: Site, vm: dict[str, Any], driver: str) -> None:
    again = site.vm(name_of(driver), hypervisor=driver, state="started", **VM)
    assert not again["changed"] and again["vm"]["pid"] == vm["pid"]


def test_it_has_no_rights(site: Site, vm: dict[str, Any]) -> None:
    status = process(site, vm)
    uids = set(status["Uid"].split())
    assert len(uids) == 1 and int(uids.pop()) >= 1000
    assert {int(status[key], 16) for key in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    links = site.shell(f"readlink /proc/1/ns/net /proc/{vm['pid']}/ns/net").split()
    assert links[0] != links[1]


def test_upstream_seccomp_filters_are_on(site: Site, vm: dict[str, Any], driver: str) -> None:
    if driver == "firecracker":
        pytest.skip("a Firecracker built for the GNU target has no filters of its own")
    modes = set(site.shell(f"grep -h ^Seccomp: /proc/{vm['pid']}/task/*/status").split()) - {"Seccomp:"}
    assert "2" in modes


def test_pause_and_go_on(site: Site, vm: dict[str, Any], driver: str) -> None:
    paused = site.vm(name_of(driver), state="paused")
    assert paused["changed"] and paused["vm"]["state"] == "paused"
    assert not answers(site, vm)
    assert not site.vm(name_of(driver), state="paused")["changed"]
    resumed = site.vm(name_of(driver), state="started", wait_for="ping", timeout=60)
    assert resumed["changed"] and resumed["vm"]["pid"] == vm["pid"]
    assert answers(site, vm)


def test_a_disk_comes_grows_and_goes_live(site: Site, vm: dict[str, Any], driver: str) -> None:
    if not has(site, driver, "hotplug_disks"):
        pytest.skip(f"{driver} declares no disks that come live")
    disk = {"name": "data", "size": "32M", "fstype": "none"}
    added = site.vm(name_of(driver), state="started", data_disks=[disk])
    assert added["changed"] and added["vm"]["pid"] == vm["pid"]
    await_console(site, vm, "65536 512-byte logical blocks")
    grown = site.vm(name_of(driver), state="started", data_disks=[{**disk, "size": "64M"}])
    assert grown["changed"] and grown["vm"]["pid"] == vm["pid"]
    await_console(site, vm, "131072 512-byte logical blocks")
    assert not site.vm(name_of(driver), state="started", data_disks=[{**disk, "size": "64M"}])["changed"]


def test_a_dry_run_says_what_was_run(site: Site, vm: dict[str, Any], driver: str) -> None:
    found = site.module("cocoon_vm_info", name=name_of(driver), launch=True)
    assert not found["failed"], found
    assert vm["id"] in json.dumps(found)


def test_what_it_cannot_do_is_refused_by_name(site: Site, vm: dict[str, Any], driver: str) -> None:
    refused = site.module("cocoon_vm", check=True, name=f"no-{driver}", hypervisor=driver, state="started",
                          **{**VM, "ssh_keys": ["ssh-ed25519 AAAA x"]})  # fmt: skip
    if not has(site, driver, "guest_data"):
        assert refused["failed"] and driver in refused["msg"] and "ssh_keys" in refused["msg"]
    if not has(site, driver, "snapshots"):
        refused = site.module("cocoon_vm", name=name_of(driver), state="hibernated")
        assert refused["failed"] and driver in refused["msg"], refused
        assert answers(site, vm)


def test_a_hypervisor_that_was_killed_is_started_again(site: Site, vm: dict[str, Any], driver: str) -> None:
    site.shell(f"kill -9 {vm['pid']}")
    again = site.vm(name_of(driver), state="started", wait_for="ping", timeout=180)
    assert again["changed"] and again["vm"]["pid"] != vm["pid"]
    assert answers(site, vm)


def test_stop_and_start(site: Site, vm: dict[str, Any], driver: str) -> None:
    stopped = site.vm(name_of(driver), state="stopped", stop_timeout=60)
    assert stopped["changed"] and stopped["vm"]["state"] == "stopped"
    assert not answers(site, vm)
    assert f"{vm['id']}" not in site.shell("ps -eo args")
    assert not site.vm(name_of(driver), state="stopped")["changed"]
    started = site.vm(name_of(driver), state="started", wait_for="ping", timeout=180)
    assert started["changed"]


def test_nothing_is_left(site: Site, vm: dict[str, Any], driver: str) -> None:
    assert site.vm(name_of(driver), state="absent", force=True)["changed"]
    vm_id = vm["id"]
    left = site.shell(
        f"ls -d /var/lib/cocoon-microvm/vms/{vm_id} /run/cocoon-microvm/{vm_id} 2>/dev/null;"
        " ls /run/cocoon-microvm/ram;"
        f" ip -o link | grep cm{vm_id[:8]}; ps -eo args | grep '[{vm_id[0]}]{vm_id[1:]}' || true"
    )
    assert not left.strip(), left
