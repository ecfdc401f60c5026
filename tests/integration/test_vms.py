# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs through the modules: their states, what a change means, and many in one task. Real guests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.driver import QemuDriver
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.tests.integration.support.engine import IDLE, idle_image
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules, Result

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBmqYFSlcXefdyXqNU+fZmC7wOFCNTX23nukQzizt6Lk x"
# A guest that does nothing: most of what is told of a VM is told without one. It answers no power button.
SMALL = {"image": IDLE, "cpu": 1, "memory": "96M", "storage": "64M", "network": "lab"}
BOOTS = {**SMALL, "image": "tiny"}


@pytest.fixture(scope="module", name="host")
def fixture_host(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    tiny_image: Path,
    scratch: Path,
) -> Iterator[Modules]:
    """A host with two images and two networks, empty again at the end."""
    run = modules(make_netns(), make_store())
    run("cocoon_network", name="lab", subnet="10.201.0.0/24", nat=True)
    run("cocoon_network", name="lab2", subnet="10.202.0.0/24", nat=False)
    run("cocoon_image", name="tiny", source=str(tiny_image))
    run("cocoon_image", name=IDLE, **idle_image(scratch))
    yield run
    for vm in run("cocoon_vm_info")["vms"]:
        run("cocoon_vm", name=vm["config"]["name"], state="absent", force=True)
    for name in ("tiny", IDLE):
        run("cocoon_image", name=name, state="absent")
    for name in ("lab", "lab2"):
        run("cocoon_network", name=name, state="absent")


@pytest.fixture(name="vm")
def fixture_vm(host: Modules) -> Iterator[Callable[..., Result]]:
    """Runs cocoon_vm for one VM, twice: in check mode first, which must say what then happens."""

    def converge(ok: bool = True, **options: Any) -> Result:
        said = host("cocoon_vm", check=True, ok=ok, name="one", **options)
        before = host("cocoon_vm_info", name=["one"])["vms"]
        done = host("cocoon_vm", ok=ok, name="one", **options)
        if ok:
            assert (said.changed, said["actions"], said["diff"]) == (done.changed, done["actions"], done["diff"])
        else:
            assert said["msg"] == done["msg"]
            assert host("cocoon_vm_info", name=["one"])["vms"] == before
        return done

    yield converge
    host("cocoon_vm", name="one", state="absent", force=True)


def test_from_nothing_to_a_guest_that_answers_and_back(vm: Callable[..., Result], host: Modules) -> None:
    first = vm(state="started", wait_for="port", **BOOTS)
    assert first.changed
    assert first["actions"] == ["create", "start"]
    record = first["vm"]
    assert record["state"] == "running"
    assert record["pid"] > 0
    assert record["config"]["memory"] == 96 << 20
    assert first["boot_seconds"] > 0
    again = vm(state="started", wait_for="port", **BOOTS)
    assert not again.changed
    assert again["vm"]["pid"] == record["pid"]
    stopped = vm(state="stopped")
    assert stopped["actions"] == ["stop"]
    assert stopped["vm"]["reason"] == "shut down"
    assert not vm(state="stopped").changed
    assert not vm(state="present", **BOOTS).changed
    restarted = vm(state="restarted", wait_for="ping")
    assert restarted.changed
    assert restarted["vm"]["network_configs"] == record["network_configs"]
    assert vm(state="restarted", force=True)["vm"]["pid"] != restarted["vm"]["pid"]
    gone = vm(state="absent", force=True)
    assert gone["vm"] is None
    assert not vm(state="absent").changed
    assert host("cocoon_vm_info", name=["one"])["vms"] == []


def test_a_shell_does_what_a_start_does(vm: Callable[..., Result], host: Modules, tmp_path: Path) -> None:
    """The lines that a start comes to, run by hand after it has ended, but for the word that lets the guest go."""
    assert host("cocoon_vm_info", names=["one"], launch=True)["vms"] == []
    assert vm(**SMALL)["vm"] and host("cocoon_vm_info", names=["one"], launch=True)["vms"][0]["launch"] is None
    record = vm(state="started")["vm"]
    lines = host("cocoon_vm_info", names=["one"], launch=True)["vms"][0]["launch"]
    vm(state="stopped", force=True)
    tap = record["network_configs"][0]["tap"]
    assert host.netns and any(line.startswith("ip tuntap add") for line in lines)
    said = tmp_path / "said"
    by_hand = [line for line in lines if "socat" not in line]
    assert len(by_hand) == len(lines) - 1
    try:
        # Everybody may open it where udev has made it.
        tun = [f"mknod -m 0666 {tmp_path}/tun c 10 200", f"mount --bind {tmp_path}/tun /dev/net/tun"]
        script = [*tun, *(line.replace(" &", f" > {said} 2>&1 &") for line in by_hand)]
        host.netns.run("unshare", "-m", "bash", "-ec", "\n".join(script))
        run_dir = os.path.join(host.defaults["run_dir"], record["id"])
        try:
            assert QemuDriver(Paths()).status(run_dir) == "paused"  # before its first instruction
        except HypervisorError:
            pytest.fail(said.read_text())
        QemuDriver(Paths()).resume(run_dir)
        assert QemuDriver(Paths()).status(run_dir) == "running"
    finally:
        for process in Process.scan(record["uid"]):
            with process:
                process.end(grace=0)
        host.netns.run("ip", "link", "del", tap, check=False)


def test_present_does_not_touch_the_power(vm: Callable[..., Result]) -> None:
    assert vm(**SMALL)["vm"]["state"] == "created"
    assert vm(state="started")["vm"]["state"] == "running"
    assert vm(labels={"a": "b"})["vm"]["state"] == "running"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"labels": {"tier": "web"}}, lambda record: record["labels"] == {"tier": "web"}),
        ({"ports": ["8080:80"]}, lambda record: record["ports"] == ["8080:80"]),
        (
            {"data_disks": [{"name": "db", "size": "16M"}]},
            lambda record: [item["serial"] for item in record["storage_configs"]][-1] == "db",
        ),
    ],
)
def test_live_changes_leave_the_process(vm: Callable[..., Result], options: dict, field: Callable) -> None:
    before = vm(state="started", **SMALL)["vm"]
    done = vm(state="started", **options)
    assert done.changed
    assert done["vm"]["pid"] == before["pid"]
    assert field(done["vm"])
    assert not vm(state="started", **options).changed


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (
            {
                **{"cpu": 2, "memory": "128M", "storage": "128M", "queue_size": 256, "disk_queue_size": 128},
                **{"kernel_args": "quiet", "no_direct_io": True, "watchdog": False, "balloon": "16M"},
            },
            lambda record: (
                (
                    *(
                        record["config"][name]
                        for name in ("cpu", "memory", "storage", "disk_queue_size", "no_direct_io")
                    ),
                    *(record["network_configs"][0][name] for name in ("num_queues", "queue_size")),
                    *(record["boot_config"]["cmdline"][-6:], record["watchdog"], record["balloon"]),
                )
                == (2, 128 << 20, 128 << 20, 128, True, 4, 256, " quiet", False, 16 << 20)
            ),
        ),
        # A network that leads nowhere: the guest is told no gateway.
        (
            {"network": "lab2"},
            lambda record: (
                record["network_configs"][0]["network"]["ip"].startswith("10.202.0.")
                and not record["network_configs"][0]["network"]["gateway"]
            ),
        ),
        (
            {"nics": [{"network": "lab"}, {"network": "lab2", "mac": "02:00:00:00:00:99", "ip": "10.202.0.99"}]},
            lambda record: record["network_configs"][1]["network"]["ip"] == "10.202.0.99",
        ),
        ({"nics": []}, lambda record: record["network_configs"] == []),
    ],
)
def test_changes_that_need_a_restart(vm: Callable[..., Result], options: dict, field: Callable) -> None:
    before = vm(state="started", **SMALL)["vm"]
    refused = vm(ok=False, state="started", **options)
    assert "allow_restart: true" in refused["msg"]
    assert all(option in refused["msg"] for option in options)
    done = vm(state="started", allow_restart=True, force=True, **options)
    assert done["vm"]["pid"] not in (0, before["pid"])
    assert field(done["vm"])
    assert not vm(state="started", **options).changed


def test_a_stopped_vm_takes_such_changes_at_once(vm: Callable[..., Result]) -> None:
    vm(**SMALL)
    done = vm(memory="128M", storage="128M", data_disks=[{"name": "db", "size": "16M"}])
    assert done["vm"]["state"] == "created"
    assert not vm(memory="128M", storage="128M", data_disks=[{"name": "db", "size": "16M"}]).changed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"storage": "32M"}, "never shrinks"),
        ({"data_disks": [{"name": "db", "size": "16M", "fstype": "ext4"}]}, "never shrinks"),
        ({"data_disks": [{"name": "db", "size": "32M", "fstype": "none"}]}, "fstype"),
        ({"owner": "somebody-else"}, "belongs to"),
        ({"image": "tiny"}, "recreate: true"),
        ({"hypervisor": "firecracker"}, "firecracker"),
    ],
)
def test_refusals_say_why_and_change_nothing(vm: Callable[..., Result], options: dict, words: str) -> None:
    vm(**SMALL, data_disks=[{"name": "db", "size": "32M"}])
    assert words in vm(ok=False, **options)["msg"]


def operations(host: Modules, record: dict[str, Any]) -> dict[str, int]:
    """How many of them a second the hypervisor allows each disk that has a limit."""
    with QemuDriver.connect(os.path.join(host.defaults["run_dir"], record["id"])) as qmp:
        found = {entry["qdev"].split("/")[3]: entry["inserted"]["iops"] for entry in qmp.execute("query-block")}
    return {device: most for device, most in found.items() if most}


def test_limits_are_there_from_the_start_and_when_a_disk_comes(vm: Callable[..., Result], host: Modules) -> None:
    limits = [{"limits": {"total": {"iops": most}}} for most in (300, 400, 500)]
    disks = [{"name": name, "size": "16M", "fstype": "none", **limit} for name, limit in zip("ab", limits)]
    begun = vm(state="started", **SMALL, **limits[2], data_disks=disks[:1])["vm"]
    assert operations(host, begun) == {"disk-a": 300, "disk-cocoon-cow": 500}
    more = vm(state="started", data_disks=disks)["vm"]
    assert operations(host, more) == {"disk-a": 300, "disk-b": 400, "disk-cocoon-cow": 500}
    assert not vm(state="started", data_disks=[{"name": "a", "size": "16M"}, disks[1]]).changed
    vm(state="hibernated")
    awake = vm(state="started", data_disks=[{**disks[0], "limits": {}}, disks[1]])["vm"]
    assert operations(host, awake) == {"disk-b": 400, "disk-cocoon-cow": 500}


def test_a_rebuild_keeps_what_is_not_the_system_disk(vm: Callable[..., Result], host: Modules) -> None:
    before = vm(state="started", **SMALL, data_disks=[{"name": "db", "size": "16M"}])["vm"]
    done = vm(state="started", recreate=True, force=True, image="tiny")
    assert "rebuild" in " ".join(done["actions"])
    assert done["vm"]["id"] == before["id"]
    assert done["vm"]["network_configs"] == before["network_configs"]
    assert [disk["name"] for disk in done["vm"]["data_disks"]] == ["db"]
    assert not vm(state="started", recreate=True, image="tiny").changed


def test_another_key_holds_nothing_up_and_reaches_the_guest_with_its_next_start(vm: Callable[..., Result]) -> None:
    vm(**SMALL)
    told = vm(ssh_keys=[KEY], labels={"tier": "web"})
    assert told.changed and told["vm"]["labels"] == {"tier": "web"}
    assert not vm(ssh_keys=[KEY], labels={"tier": "web"}).changed


def test_a_dropped_disk_is_kept_and_comes_back(vm: Callable[..., Result], host: Modules) -> None:
    disk = {"name": "db", "size": "16M", "fstype": "none"}
    record = vm(**SMALL, data_disks=[disk])["vm"]
    path = Path(host.defaults["root_dir"]) / "vms" / record["id"] / "data-db.raw"
    with path.open("r+b") as stream:
        stream.write(b"precious")
    assert vm(data_disks=[])["vm"]["detached_disks"][0]["name"] == "db"
    assert path.read_bytes()[:8] == b"precious"
    vm(data_disks=[{**disk, "size": "32M"}])
    assert path.stat().st_size == 32 << 20
    assert path.read_bytes()[:8] == b"precious"
    vm(state="absent")
    assert path.read_bytes()[:8] == b"precious"
    assert host("cocoon_vm_info", name=["one"])["vms"] == []
    vm(**SMALL, data_disks=[{**disk, "size": "32M"}])
    assert path.read_bytes()[:8] == b"precious"
    vm(data_disks=[], force=True)
    assert not path.exists()


@pytest.mark.parametrize("state", ["started", "stopped"])
def test_a_data_disk_grows_alone_whatever_its_name(vm: Callable[..., Result], host: Modules, state: str) -> None:
    names = ("cow", "overlay", "system", "cidata", "layer0")
    vm(state=state, **SMALL, data_disks=[{"name": name, "size": "16M", "fstype": "none"} for name in names])
    grown = [{"name": name, "size": "24M", "fstype": "none"} for name in names]
    record = vm(state=state, data_disks=grown)["vm"]
    folder = Path(host.defaults["root_dir"]) / "vms" / record["id"]
    assert {name: (folder / f"data-{name}.raw").stat().st_size >> 20 for name in names} == dict.fromkeys(names, 24)
    assert (folder / "cow.raw").stat().st_size == record["config"]["storage"] == 64 << 20
    assert [disk["size"] >> 20 for disk in record["data_disks"]] == [24] * len(names)


@pytest.mark.parametrize("state", ["started", "stopped"])
def test_macs_addresses_and_ports_pass_from_one_to_another(host: Modules, state: str) -> None:
    """Swapped in one run; check mode says what then happens."""
    nics = [{"mac": f"02:00:00:00:77:0{number}", "ip": f"10.201.0.{100 + number}"} for number in (1, 2)]
    ports = [["18081:80"], ["18082:80", "18083:80"]]

    def vms(check: bool, *choice: tuple[str, int]) -> Result:
        wanted = [
            {
                **SMALL,
                "name": name,
                "state": state,
                "allow_restart": True,
                "stop_timeout": 0,
                "nics": [nics[number]],
                "ports": ports[number],
            }
            for name, number in choice
        ]
        return host("cocoon_vms", check=check, vms=wanted)

    def holds(result: Result) -> dict[str, tuple[str, str, list[str]]]:
        found = result["vms"]
        return {
            name: (vm["network_configs"][0]["mac"], vm["network_configs"][0]["network"]["ip"], vm["ports"])
            for name, vm in found.items()
        }

    try:
        first = holds(vms(False, ("one", 0), ("two", 1)))
        said, done = vms(True, ("one", 1), ("two", 0)), vms(False, ("one", 1), ("two", 0))
        assert holds(done) == {"one": first["two"], "two": first["one"]}
        assert [item["actions"] for item in said["results"]] == [item["actions"] for item in done["results"]]
        assert said["diff"] == done["diff"]
        assert not vms(False, ("one", 1), ("two", 0)).changed
    finally:
        host("cocoon_vms", vms=[{"name": name, "state": "absent", "force": True} for name in ("one", "two")])


def test_nics_and_ports_change_as_one(vm: Callable[..., Result]) -> None:
    vm(state="started", **SMALL, ports=["18090:80"])
    now = {"state": "started", "allow_restart": True, "stop_timeout": 0}
    both = vm(nics=[{"network": "lab"}] * 2, ports=["18091:80"], **now)
    assert both["vm"]["ports"] == ["18091:80"] and len(both["vm"]["network_configs"]) == 2
    bare = vm(nics=[], ports=[], **now)
    assert (bare["vm"]["network_configs"], bare["vm"]["ports"], bare["vm"]["state"]) == ([], [], "running")


def test_a_stable_address_comes_back_with_the_name(vm: Callable[..., Result]) -> None:
    first = vm(**SMALL)["vm"]["network_configs"][0]["network"]["ip"]
    vm(state="absent")
    assert vm(**SMALL)["vm"]["network_configs"][0]["network"]["ip"] == first


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"memory": "10Q"}, "memory"),
        ({"cpu": 0}, "cpu"),
        ({"nics": [{"mac": "nonsense"}]}, "nics[0].mac"),
        ({"nics": [{"ip": "10.0.0.999"}]}, "nics[0].ip"),
        ({"nics": [{"ip": "10.99.0.1"}]}, "ip"),
        ({"nics": [{"network": "nowhere"}]}, "network"),
        ({"image": "nothing"}, "image"),
        ({"data_disks": [{"name": "Bad Name", "size": "16M"}]}, "data_disks[0].name"),
        ({"data_disks": [{"name": "db", "size": "1M"}]}, "data_disks[0].size"),
        ({"ports": ["80"]}, "ports[0]"),
        ({"memory": "1T"}, "memory"),
        ({"storage": "900T"}, "storage"),
        ({"accel": "kvm"}, "accel"),
        ({"hypervisor": "cloud-hypervisor"}, "hypervisor"),
    ],
)
def test_bad_input_names_the_option_and_leaves_nothing(
    host: Modules, vm: Callable[..., Result], options: dict, option: str
) -> None:
    if option == "accel" and any(os.path.exists(f"/sys/module/kvm_{vendor}") for vendor in ("intel", "amd")):
        pytest.skip("KVM works here, so that asking for it is no bad input")
    root = Path(host.defaults["root_dir"])
    said = host("cocoon_vm", ok=False, name="one", state="started", **{**SMALL, **options})["msg"]
    assert option in said
    assert said.rstrip().endswith(".")
    assert list((root / "vms").iterdir()) == []
    for kind in ("vm", "mac", "uid"):
        assert list((root / "index" / kind).iterdir()) == []
    assert not list(root.glob("networks/*/leases/*"))


def test_what_is_taken_is_named(host: Modules, vm: Callable[..., Result]) -> None:
    vm(**{**SMALL, "nics": [{"mac": "02:00:00:00:00:01", "ip": "10.201.0.50"}]})
    try:
        said = host("cocoon_vm", ok=False, name="two", **{**SMALL, "nics": [{"mac": "02:00:00:00:00:01"}]})["msg"]
        assert "02:00:00:00:00:01" in said
        said = host("cocoon_vm", ok=False, name="two", **{**SMALL, "nics": [{"ip": "10.201.0.50"}]})["msg"]
        assert "10.201.0.50" in said
        assert [record["config"]["name"] for record in host("cocoon_vm_info")["vms"]] == ["one"]
    finally:
        host("cocoon_vm", name="two", state="absent")


def several(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"name": f"m{number}", **SMALL, **more} for number in range(count)]


def test_many_in_one_task(host: Modules) -> None:
    wanted = several(5, image="tiny", state="started", wait_for="ping")
    done = host("cocoon_vms", vms=wanted)
    assert [result["actions"] for result in done["results"]] == [["create", "start"]] * 5
    addresses = {vm["network_configs"][0]["network"]["ip"] for vm in done["vms"].values()}
    assert len(addresses) == 5
    assert len({vm["uid"] for vm in done["vms"].values()}) == 5
    assert not host("cocoon_vms", vms=wanted).changed
    stopped = host("cocoon_vms", vms=several(5, image="tiny", state="stopped"))
    assert {vm["reason"] for vm in stopped["vms"].values()} == {"shut down"}
    host("cocoon_vms", vms=[{"name": vm["name"], "state": "absent", "force": True} for vm in wanted])


def test_one_bad_vm_fails_alone(host: Modules) -> None:
    wanted = several(3)
    wanted[1] = {**wanted[1], "image": "nothing", "name": "bad"}
    done = host("cocoon_vms", ok=False, vms=wanted)
    assert done["failed_vms"] == ["bad"]
    assert "1 of 3 VMs failed: bad: image: there is no image 'nothing'" in done["msg"]
    assert "failed" not in done["results"][0]
    assert [record["config"]["name"] for record in host("cocoon_vm_info", names=["bad"])["vms"]] == []


def test_restarts_go_a_few_at_a_time(host: Modules) -> None:
    host("cocoon_vms", vms=several(3, state="started"))
    done = host("cocoon_vms", vms=several(3, state="started", memory="112M", allow_restart=True, force=True))
    times = sorted((vm["stopped_at"], vm["started_at"]) for vm in done["vms"].values())
    assert all(earlier[1] < later[0] for earlier, later in zip(times, times[1:]))
    together = several(3, state="restarted", force=True)
    done = host("cocoon_vms", vms=together, max_unavailable=3)
    times = [(vm["stopped_at"], vm["started_at"]) for vm in done["vms"].values()]
    assert max(stopped for stopped, _started in times) < max(started for _stopped, started in times)


def test_prune_takes_what_is_ours_and_no_longer_listed(host: Modules) -> None:
    host("cocoon_vms", vms=several(3))
    host("cocoon_vm", name="foreign", owner="somebody-else", **SMALL)
    host("cocoon_vm", name="disky", data_disks=[{"name": "db", "size": "16M"}], **SMALL)
    assert "empty" in host("cocoon_vms", ok=False, vms=[], prune=True)["msg"]
    said = host("cocoon_vms", check=True, vms=several(2), prune=True)
    done = host("cocoon_vms", vms=several(2), prune=True)
    assert [(one["name"], one["actions"]) for one in said["results"]] == [
        (one["name"], one["actions"]) for one in done["results"]
    ]
    names = {record["config"]["name"] for record in host("cocoon_vm_info")["vms"]}
    assert names == {"m0", "m1", "foreign"}
    assert list(Path(host.defaults["root_dir"]).glob("vms/*/data-db.raw"))
    host("cocoon_vms", vms=several(2), prune=True, force=True)
    assert not list(Path(host.defaults["root_dir"]).glob("vms/*/data-db.raw"))
    host("cocoon_vm", name="foreign", state="absent", force=True)


def test_info_filters(host: Modules) -> None:
    host("cocoon_vms", vms=several(2, labels={"tier": "web"}))
    host("cocoon_vm", name="other", **SMALL)
    assert len(host("cocoon_vm_info", labels={"tier": "web"})["vms"]) == 2
    assert [vm["config"]["name"] for vm in host("cocoon_vm_info", name=["other", "none"])["vms"]] == ["other"]


def test_nothing_is_there_before_the_first_change(
    make_netns: Callable[[], Netns], make_store: Callable[[], dict[str, str]], modules: Callable[..., Modules]
) -> None:
    fresh = modules(make_netns(), make_store())
    assert fresh("cocoon_vm_info")["vms"] == []
    assert not fresh("cocoon_vm", check=True, name="one", state="absent").changed
    assert "image" in fresh("cocoon_vm", check=True, ok=False, name="one", **{**SMALL, "network": None})["msg"]
    assert not Path(fresh.defaults["root_dir"]).exists()
