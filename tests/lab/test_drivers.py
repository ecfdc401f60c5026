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

VM = {"image": "tiny", "cpu": 1, "memory": "128M", "storage": "256M", "network": "lab", "kernel_args": "loglevel=6"}


def name_of(driver: str) -> str:
    return f"lab-{driver}"


@pytest.fixture(scope="module")
def vm(site: Site, driver: str) -> dict[str, Any]:
    """A running VM with a NIC, which has answered on it."""
    room: dict[str, Any] = {"cpu_max": 2} if has(site, driver, "live_cpus") else {}
    room["limits"] = {"total": {"rate": "2M", "iops": 5000}}
    result = site.vm(
        name_of(driver), hypervisor=driver, state="started", wait_for="ping", timeout=400, balloon="off", **room, **VM
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


@pytest.mark.telling
def test_it_runs_and_answers(site: Site, vm: dict[str, Any], driver: str) -> None:
    assert (vm["hypervisor"], vm["state"], vm["accel"]) == (driver, "running", "kvm")
    assert answers(site, vm)
    assert "Linux version" in console(site, vm)


@pytest.mark.telling
def test_a_second_run_changes_nothing(site: Site, vm: dict[str, Any], driver: str) -> None:
    again = site.vm(name_of(driver), hypervisor=driver, state="started", **VM)
    assert not again["changed"] and again["vm"]["pid"] == vm["pid"]


@pytest.mark.telling
def test_it_has_no_rights(site: Site, vm: dict[str, Any]) -> None:
    status = process(site, vm)
    uids = set(status["Uid"].split())
    assert len(uids) == 1 and int(uids.pop()) >= 1000
    assert {int(status[key], 16) for key in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    links = site.shell(f"readlink /proc/1/ns/net /proc/{vm['pid']}/ns/net").split()
    assert links[0] != links[1]


@pytest.mark.telling
def test_upstream_seccomp_filters_are_on(site: Site, vm: dict[str, Any], driver: str) -> None:
    if driver == "firecracker":
        pytest.skip("a Firecracker built for the GNU target has no filters of its own")
    modes = set(site.shell(f"grep -h ^Seccomp: /proc/{vm['pid']}/task/*/status").split()) - {"Seccomp:"}
    assert "2" in modes


def keeper(site: Site, vm: dict[str, Any]) -> str:
    """The process that writes the log of a VM's console."""
    log = f"/var/log/cocoon-microvm/{vm['id']}/console.log"
    pids = site.shell(f"for p in /proc/[0-9]*; do ! ls -l $p/fd 2>&1 | grep -q '{log}$' || echo ${{p#/proc/}}; done")
    assert len(pids.split()) == 1, pids
    return pids.strip()


def test_its_console_is_kept_whatever_happens(site: Site, vm: dict[str, Any], driver: str) -> None:
    """The guest goes on without its keeper, and the next run has another one."""
    first = keeper(site, vm)
    assert {site.shell(f"stat -c %u /proc/{pid}") for pid in (first, vm["pid"])} == {f"{vm['uid']}\n"}
    site.shell(f"kill -9 {first}")
    assert answers(site, vm)
    mended = site.vm(name_of(driver), state="started")
    assert mended["changed"] and mended["actions"] == ["mend_console"]
    assert keeper(site, vm) != first and mended["vm"]["pid"] == vm["pid"]
    assert not site.vm(name_of(driver), state="started")["changed"]


def test_people_attach_to_its_console(site: Site, vm: dict[str, Any], driver: str) -> None:
    """What they type gets to the guest, whose terminal says it back to them and to the log, also of another keeper."""
    found = site.module("cocoon_vm_info", names=[name_of(driver)], logs=1)["vms"][0]
    typing = f"import socket; s = socket.socket(1); s.connect('{found['console_path']}'); s.settimeout(20)"
    talk = "s.sendall(b'typed by me\\n'); print(''.join(iter(lambda: s.recv(1).decode(), '\\n')))"
    assert "typed by me" in site.shell(f'python3 -c "{typing}; {talk}"')
    await_console(site, vm, "typed by me")


@pytest.mark.telling
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


def writing(site: Site, driver: str) -> float:
    """Seconds that 8 MiB take on their way to the guest's system disk."""
    script = "read a _ < /proc/uptime; dd if=/dev/zero of=/root/big bs=64k count=128 conv=fsync 2> /dev/null;"
    script += " read b _ < /proc/uptime; rm /root/big; echo $a $b"
    said = site.module("cocoon_exec", name=name_of(driver), shell=script, agent_timeout=120)
    assert not said["failed"], said
    begun, ended = said["stdout"].split()
    return float(ended) - float(begun)


def test_a_disk_is_as_fast_as_its_limits(site: Site, vm: dict[str, Any], driver: str) -> None:
    """2 MiB come at once, and 2 MiB a second."""
    assert 2.5 < writing(site, driver) < 20
    if not has(site, driver, "live_disk_limits"):
        refused = site.module("cocoon_vm", name=name_of(driver), limits={})
        assert refused["failed"] and "limits" in refused["msg"] and "restart" in refused["msg"]
        return
    found = site.vm(name_of(driver), limits={"total": {"rate": "100M"}})
    assert found["changed"] and found["vm"]["pid"] == vm["pid"]
    assert writing(site, driver) < 2.5


def test_nics_come_change_and_go_live(site: Site, vm: dict[str, Any], driver: str) -> None:
    """The last change is of the first one, so that what comes after has a machine of which a NIC was exchanged."""
    if not has(site, driver, "hotplug_nics"):
        pytest.skip(f"{driver} declares no NICs that come live")
    first, second = {"network": "lab"}, {"network": "lab", "mac": "02:00:00:00:77:02"}
    for nics in ([first, second], [first], [{**first, "mac": "02:00:00:00:77:01"}]):
        found = site.vm(name_of(driver), state="started", nics=nics, timeout=120)
        assert found["changed"] and found["vm"]["pid"] == vm["pid"]
        for config in found["vm"]["network_configs"]:
            assert "1 received" in site.shell(f"ping -c1 -W30 {config['network']['ip']} || true"), config
        assert not site.vm(name_of(driver), state="started", nics=nics)["changed"]
    vm["network_configs"] = found["vm"]["network_configs"]


def vcpu_ticks(site: Site, vm: dict[str, Any]) -> list[int]:
    """How long each vCPU has run, in ticks."""
    lines = site.shell(f"cat /proc/{vm['pid']}/task/*/stat").splitlines()
    rows = {name.partition("(")[2]: rest.split() for name, _end, rest in (line.rpartition(") ") for line in lines)}
    return [int(rows[f"vcpu{number}"][11]) + int(rows[f"vcpu{number}"][12]) for number in (0, 1)]


def test_a_vcpu_comes_live(site: Site, vm: dict[str, Any], driver: str) -> None:
    """What is cloned and saved after this has two, one of them younger than its NIC."""
    if not has(site, driver, "live_cpus"):
        pytest.skip(f"{driver} declares no vCPUs that come live")
    more = site.vm(name_of(driver), state="started", cpu=2)
    assert more["changed"] and more["vm"]["pid"] == vm["pid"]
    assert not site.vm(name_of(driver), state="started", cpu=2)["changed"] and answers(site, vm)
    # One that nobody has brought online has yet to run its first instruction.
    deadline = time.monotonic() + 120
    while vcpu_ticks(site, vm)[1] < 5:
        assert time.monotonic() < deadline, "the guest does not use it"
        time.sleep(2)


def test_a_memory_that_is_never_copied_says_so(site: Site, vm: dict[str, Any], driver: str) -> None:
    if has(site, driver, "ram_file"):
        pytest.skip(f"{driver} copies a memory where it is told to")
    refused = site.module("cocoon_vm", check=True, name=name_of(driver), restore_mode="copy")
    assert refused["failed"] and driver in refused["msg"] and "restore_mode" in refused["msg"]


def test_what_it_cannot_do_is_refused_by_name(site: Site, vm: dict[str, Any], driver: str) -> None:
    asked = {"limits": {"read": {"rate": "1M"}}}
    refused = site.module(
        "cocoon_vm", check=True, name=f"no-{driver}", hypervisor=driver, state="started", **VM, **asked
    )
    assert refused["failed"] and driver in refused["msg"] and refused["msg"].startswith("limits: "), refused


def cloned(site: Site, driver: str, name: str, snapshot: str, **more: Any) -> dict[str, Any]:
    """A new VM that goes on from the snapshot *snapshot*, and has answered under its own address."""
    wanted = {"snapshot": snapshot, "state": "started", "wait_for": "ping", "timeout": 120, **more}
    result = site.vm(f"{name_of(driver)}-{name}", **wanted)
    assert result["changed"] and answers(site, result["vm"])
    assert "Linux version" not in console(site, result["vm"]), "it has booted"
    return dict(result["vm"])


def ports_of(site: Site, vm: dict[str, Any]) -> set[str]:
    """The ports behind which the bridge has seen the VM's MAC address."""
    mac = vm["network_configs"][0]["mac"]
    rows = site.shell(f"bridge fdb show | grep -i '^{mac} ' || true").splitlines()
    return {row.split()[2] for row in rows}


def digest_of(site: Site, snapshot: dict[str, Any]) -> str:
    return site.shell(f"sha256sum /var/lib/cocoon-microvm/snapshots/{snapshot['id']}/mem").split()[0]


def snapshot_of(site: Site, driver: str, name: str, vm: str) -> dict[str, Any]:
    """A snapshot of a running VM, which runs on and answers."""
    taken = site.module("cocoon_snapshot", name=f"{name_of(driver)}-{name}", vm=vm)
    assert not taken["failed"] and taken["changed"], taken
    assert taken["snapshot"]["kind"] == "full"
    return dict(taken["snapshot"])


@pytest.mark.telling
def test_clones_share_memory_and_have_names_of_their_own(site: Site, vm: dict[str, Any], driver: str) -> None:
    taken = snapshot_of(site, driver, "golden", name_of(driver))
    assert answers(site, vm)
    before = digest_of(site, taken)
    slow = {"nics": [{"limits": {"rx": {"rate": "3M"}}}], "limits": {"total": {"iops": 1000}}}
    own = {"restore_mode": "copy"} if has(site, driver, "ram_file") else {}
    clones = [cloned(site, driver, "one", taken["name"], **own), cloned(site, driver, "two", taken["name"], **slow)]
    assert answers(site, vm) and answers(site, clones[0])
    taps = [{item["network_configs"][0]["tap"]} for item in (vm, *clones)]
    assert "tbf" in site.shell(f"tc qdisc show dev {clones[1]['network_configs'][0]['tap']}")
    assert [ports_of(site, item) for item in (vm, *clones)] == taps, "each address came from its own VM alone"
    # One that was never anybody else's disk: what a clone writes is its own.
    assert digest_of(site, taken) == before
    grandchild = snapshot_of(site, driver, "second", f"{name_of(driver)}-one")
    cloned(site, driver, "three", grandchild["name"])
    assert answers(site, clones[0])


@pytest.mark.telling
def test_one_that_sleeps_goes_on(site: Site, vm: dict[str, Any], driver: str) -> None:
    asleep = site.vm(name_of(driver), state="hibernated", restore_mode="on_demand")
    assert asleep["changed"] and not answers(site, vm)
    assert f"{vm['id']}" not in site.shell("ps -eo args")
    assert not site.vm(name_of(driver), state="hibernated")["changed"]
    awake = site.vm(name_of(driver), state="started", wait_for="ping", timeout=120)
    assert "/resume/mem (deleted)" in site.shell(f"cat /proc/{awake['vm']['pid']}/maps") or driver == "firecracker"
    assert awake["changed"] and "Linux version" not in console(site, vm), "it has booted"
    assert not site.vm(name_of(driver), state="started")["changed"]


def test_back_to_a_snapshot(site: Site, vm: dict[str, Any], driver: str) -> None:
    name = f"{name_of(driver)}-golden"
    restored = site.module("cocoon_snapshot", name=name, vm=name_of(driver), state="restored")
    assert not restored["failed"] and restored["changed"], restored
    again = site.vm(name_of(driver), state="started", wait_for="ping", timeout=120)
    assert again["vm"]["state"] == "running" and answers(site, vm)
    assert "Linux version" not in console(site, vm), "it has booted"


def test_a_snapshot_that_was_taken_while_it_stood_still(site: Site, vm: dict[str, Any], driver: str) -> None:
    site.vm(name_of(driver), state="paused")
    snapshot_of(site, driver, "still", name_of(driver))
    assert not answers(site, vm)
    site.vm(name_of(driver), state="started", wait_for="ping", timeout=60)
    assert answers(site, vm)


def test_a_hypervisor_that_was_killed_is_started_again(site: Site, vm: dict[str, Any], driver: str) -> None:
    pid = site.vm(name_of(driver), state="started")["vm"]["pid"]  # it has slept meanwhile, and is another process
    site.shell(f"kill -9 {pid}")
    again = site.vm(name_of(driver), state="started", wait_for="ping", timeout=180)
    assert again["changed"] and again["vm"]["pid"] != pid
    assert answers(site, vm)


@pytest.mark.telling
def test_stop_and_start(site: Site, vm: dict[str, Any], driver: str) -> None:
    stopped = site.vm(name_of(driver), state="stopped", stop_timeout=60)
    assert stopped["changed"] and stopped["vm"]["state"] == "stopped"
    assert not answers(site, vm)
    assert "reboot: " in console(site, vm)
    assert f"{vm['id']}" not in site.shell("ps -eo args")
    assert not site.vm(name_of(driver), state="stopped")["changed"]
    started = site.vm(name_of(driver), state="started", wait_for="ping", timeout=180)
    assert started["changed"]


@pytest.mark.telling
def test_nothing_is_left(site: Site, vm: dict[str, Any], driver: str) -> None:
    names = [name_of(driver), *(f"{name_of(driver)}-{name}" for name in ("one", "two", "three"))]
    removed = site.module("cocoon_vms", vms=[{"name": name, "state": "absent", "force": True} for name in names])
    assert not removed["failed"] and removed["changed"], removed
    for name in ("golden", "second", "still"):
        assert not site.module("cocoon_snapshot", name=f"{name_of(driver)}-{name}", state="absent")["failed"]
    pattern = f"[{vm['id'][0]}]{vm['id'][1:]}"  # which this line itself is not like
    left = site.shell(
        f"ls -d /var/lib/cocoon-microvm/vms/{pattern} /run/cocoon-microvm/{pattern} 2>/dev/null;"
        " ls /run/cocoon-microvm/ram /var/lib/cocoon-microvm/snapshots | grep -v :;"
        f" ip -o link | grep cm{vm['id'][:8]}; ps -eo args | grep '{pattern}' || true"
    )
    assert not left.strip(), left
