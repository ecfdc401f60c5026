# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Cloud Hypervisor driver: its command line as tables, and its calls against the official document."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    GuestTimeoutError,
    HypervisorError,
    InputError,
    ResourceError,
    UnsupportedError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import guard, kvm, releases
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import (
    Disk,
    Launch,
    Nic,
    Resume,
    SavedFile,
    SavedState,
    Saving,
    guest_uuid,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.cloud_hypervisor import (
    commandline,
    driver,
    probe,
    runstate,
    saving,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.rest import RestError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.runstates import run_state
from ansible_collections.cocoon.microvm.plugins.module_utils._types import MIB
from ansible_collections.cocoon.microvm.tests.unit.children import reap
from ansible_collections.cocoon.microvm.tests.unit.openapi import CLOUD_HYPERVISOR, Api, Contract

VM_ID = "abcdefghijklmnopqrstuvwxyz"
LAYER = Disk("cocoon-layer0", "/images/a.erofs", read_only=True, direct=True)
COW = Disk("cocoon-cow", "/vms/x/cow.raw", direct=True, queue_size=256)
DATA = Disk("data", "/vms/x/data-data.raw", removable=True)
LAUNCH = Launch(
    vm_id=VM_ID,
    name="web1",
    uid=1,
    gid=1,
    cpu=2,
    memory=128 * MIB,
    accel="kvm",
    pins={},
    ram_path="/ram/x",
    run_dir="/run/x",
    console_log="/log/x/console.log",
    hypervisor_log="/log/x/hypervisor.log",
    boot={"kernel_path": "/boot/vmlinuz", "initrd_path": "/boot/initrd.img", "cmdline": "console=ttyS0 a=b,c"},
    disks=(LAYER, COW, DATA),
    nics=(Nic("52:54:00:00:00:01", fds=(7, 8), mtu=1400),),
)


def build(**changes: t.Any) -> list[str]:
    return commandline.build("/usr/bin/ch", dataclasses.replace(LAUNCH, **changes), 5, "/proc/self/fd/6/vsock.sock")


def values(words: list[str], option: str) -> list[str]:
    return [words[index + 1] for index, word in enumerate(words) if word == option]


def test_the_command_line() -> None:
    words = build()
    assert words[:5] == ["/usr/bin/ch", "--api-socket", "fd=5", "--seccomp", "true"]
    assert values(words, "--platform") == [f"serial_number={VM_ID},uuid={guest_uuid(VM_ID)}"]
    assert values(words, "--cpus") == ["boot=2,max=2,nested=off"]
    assert values(words, "--memory") == ["size=0"]
    assert values(words, "--memory-zone") == [f"id=mem0,size={128 * MIB},file=/ram/x,shared=on"]
    assert values(words, "--kernel") == ["/boot/vmlinuz"]
    assert values(words, "--initramfs") == ["/boot/initrd.img"]
    assert values(words, "--cmdline") == ["console=ttyS0 a=b,c"]
    assert values(words, "--serial") == ["tty"] and values(words, "--console") == ["off"]
    assert values(words, "--vsock") == ["id=vsock0,cid=3,socket=/proc/self/fd/6/vsock.sock"]
    assert "--watchdog" not in words and "--balloon" not in words
    assert values(words, "--net") == ["id=nic0,mac=52:54:00:00:00:01,num_queues=4,queue_size=512,fd=[7,8]"]


def test_disks_are_what_we_say_they_are() -> None:
    layer, cow, data = values(build(), "--disk")
    assert layer == (
        "id=disk-cocoon-layer0,path=/images/a.erofs,serial=cocoon-layer0,readonly=on,direct=off,num_queues=1,"
        "queue_size=512,image_type=raw,backing_files=off,sparse=off"
    )
    assert "readonly=off,direct=on,num_queues=1,queue_size=256,image_type=raw" in cow
    assert "id=disk-data,path=/vms/x/data-data.raw,serial=data,readonly=off,direct=off" in data
    overlay = Disk("cocoon-cow", "/vms/x/overlay.qcow2", format="qcow2", backing="/images/b.qcow2")
    assert "image_type=qcow2,backing_files=on" in values(build(disks=(overlay,)), "--disk")[0]


def test_what_is_there_only_when_asked_for() -> None:
    assert "--watchdog" in build(watchdog=True)
    balloon = values(build(balloon=64 * MIB), "--balloon")
    assert balloon == [f"size={64 * MIB},deflate_on_oom=on,free_page_reporting=off"]
    assert "--initramfs" not in build(boot={"kernel_path": "/k", "cmdline": ""})


SLOW = dataclasses.replace(DATA, limits={"total": {"rate": 10 * MIB, "burst": 30 * MIB, "iops": 100}})


def test_a_disk_has_buckets() -> None:
    (words,) = values(build(disks=(SLOW,)), "--disk")
    assert words.endswith(f",bw_size={30 * MIB},bw_refill_time=3000,ops_size=100,ops_refill_time=1000")
    few = dataclasses.replace(DATA, limits={"total": {"rate": 10 * MIB}})
    assert commandline.disk_config(few)["rate_limiter_config"] == {"bandwidth": {"size": 10 * MIB, "refill_time": 1000}}
    assert "rate_limiter_config" not in commandline.disk_config(DATA)
    with pytest.raises(UnsupportedError, match="reads from writes"):
        commandline.disk_config(dataclasses.replace(DATA, limits={"write": {"iops": 5}}))


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (True, "on"),
        (False, "off"),
        (5, "5"),
        ([1, 2], "[1,2]"),
        ("/a,b", '"/a,b"'),
        ("/a[b]", '"/a[b]"'),
        ("/a b", "/a b"),
    ],
)
def test_words(value: t.Any, word: str) -> None:
    assert commandline.words({"key": value}) == f"key={word}"


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"cpu": 0}, "cpu"),
        ({"cpu": 255}, "cpu"),
        ({"memory": MIB + 1}, "memory"),
        ({"balloon": 128 * MIB}, "balloon"),
        ({"boot": {}}, "image"),
        ({"nics": (Nic("52:54:00:00:00:01", fds=(3,), queue_size=16),)}, "queue_size"),
        ({"nics": (Nic("52:54:00:00:00:01", fds=(3,)),) * 9}, "nics"),
        ({"disks": (dataclasses.replace(COW, queue_size=8),)}, "disk_queue_size"),
        ({"disks": (dataclasses.replace(COW, serial="s" * 21),)}, "data_disks"),
        ({"disks": (dataclasses.replace(COW, format="vmdk"),)}, "image"),
        ({"disks": (COW,) * 14}, "image"),
        ({"disks": (DATA,) * 7}, "data_disks"),
        ({"disks": (dataclasses.replace(COW, path='/a"b'),)}, "root_dir"),
        ({"disks": (dataclasses.replace(COW, path="/a\nb"),)}, "root_dir"),
    ],
)
def test_what_it_cannot_take(changes: dict[str, t.Any], option: str) -> None:
    with pytest.raises(InputError) as exc:
        build(**changes)
    assert exc.value.option == option


def test_the_configuration_keeps_the_contract() -> None:
    contract = Contract(CLOUD_HYPERVISOR)
    assert [
        problem
        for disk in (*LAUNCH.disks, SLOW)
        for problem in contract.problems_of("DiskConfig", commandline.disk_config(disk))
    ] == []
    assert contract.problems_of("NetConfig", commandline.net_config(0, LAUNCH.nics[0])) == []


# One that goes on from a saved state.


RESUME = Resume("/vms/x/resume", "/vms/x/resume/mem", True, {"version": "53.0.0"}, True)
# Its document lacks what it writes to config.json: the descriptors of TAPs, as -1.
WITH_FDS = {"NetConfig": {"fds": {"type": "array", "items": {"type": "integer"}}}}


@pytest.mark.parametrize(
    "changes", [{}, {"balloon": 64 * MIB, "watchdog": True}, {"resume": RESUME}, {"nics": ()}, {"disks": (COW, SLOW)}]
)
def test_a_whole_machine_keeps_the_contract(changes: dict[str, t.Any]) -> None:
    found = commandline.config(dataclasses.replace(LAUNCH, **changes), "/s")
    assert Contract(CLOUD_HYPERVISOR, WITH_FDS).problems_of("VmConfig", found) == []
    assert ("balloon" in found) == ("balloon" in changes)


def test_a_clones_memory_is_its_sources_privately() -> None:
    zone = commandline.config(dataclasses.replace(LAUNCH, resume=RESUME), "/s")["memory"]["zones"][0]
    assert (zone["file"], zone["shared"]) == ("/vms/x/resume/mem", False)
    copied = dataclasses.replace(RESUME, shared=False)
    zone = commandline.config(dataclasses.replace(LAUNCH, resume=copied), "/s")["memory"]["zones"][0]
    assert (zone["file"], zone["shared"]) == ("/ram/x", True)


def test_the_machine_is_the_one_of_the_command_line() -> None:
    """What is in the one and not in the other would be another machine after its first save."""
    found = commandline.config(dataclasses.replace(LAUNCH, balloon=64 * MIB), "/s")
    argv = commandline.build("/ch", dataclasses.replace(LAUNCH, balloon=64 * MIB), 5, "/s")
    for number, disk in enumerate(values(argv, "--disk")):
        mine = found["disks"][number]
        assert disk == commandline.words({**mine, "image_type": mine["image_type"].lower()})
    for option, part in (("--vsock", "vsock"), ("--balloon", "balloon"), ("--platform", "platform"), ("--rng", "rng")):
        assert values(argv, option) == [commandline.words(found[part])]
    assert values(argv, "--memory-zone") == [commandline.words(found["memory"]["zones"][0])]
    assert found["net"][0] == {**commandline.net_config(0, LAUNCH.nics[0]), "fds": [-1, -1]}
    assert (found["serial"], found["console"]) == ({"mode": "Tty"}, {"mode": "Off"})


def test_the_command_line_of_one_that_goes_on() -> None:
    more = (*LAUNCH.nics, Nic("52:54:00:00:00:02", fds=(9,)))
    argv = commandline.build_resume("/ch", dataclasses.replace(LAUNCH, nics=more, resume=RESUME), 5, "/vms/x/t")
    assert argv == [
        *("/ch", "--api-socket", "fd=5", "--seccomp", "true", "--restore"),
        "source_url=file:///vms/x/t,resume=on,net_fds=[nic0@[7,8],nic1@[9]]",
    ]
    argv = commandline.build_resume("/ch", dataclasses.replace(LAUNCH, nics=(), resume=RESUME), 5, "/vms/x/t")
    assert argv[-1] == "source_url=file:///vms/x/t,resume=on"


def test_what_one_goes_on_from(tmp_path: Path) -> None:
    """Its configuration is made of the launch, whatever lies beside its saved state."""
    saved = tmp_path / "resume"
    saved.mkdir()
    (saved / "state.json").write_text("{}", encoding="utf-8")
    (saved / "config.json").write_text('{"payload": {"kernel": "/etc/shadow"}}', encoding="utf-8")
    resume = dataclasses.replace(RESUME, folder=str(saved))
    launch = dataclasses.replace(LAUNCH, resume=resume, folder=str(tmp_path), gid=os.getgid())
    for _again in range(2):  # what a killed run left is no obstacle
        folder = Path(saving.take_up(launch, "/s"))
    assert json.loads((folder / "config.json").read_text(encoding="utf-8")) == commandline.config(launch, "/s")
    assert (folder / "state.json").read_text(encoding="utf-8") == "{}"
    assert [path.stat().st_mode & 0o777 for path in (folder, folder / "state.json")] == [0o710, 0o440]
    saving.taken_up(launch)
    assert not folder.exists()


# What is saved.


def state_of(ranges: list[dict[str, int]], mappings: list[dict[str, int]] | None = None) -> dict[str, t.Any]:
    """What Cloud Hypervisor says of a machine with RAM at two places."""
    if mappings is None:
        mappings = [{"gpa": 0, "size": 6, "file_offset": 0}, {"gpa": 100, "size": 4, "file_offset": 6}]
    manager = {"memory_ranges": {"data": ranges}, "guest_ram_mappings": mappings, "boot_ram": 10}
    return {"snapshots": {"memory-manager": {"snapshots": {}, "snapshot_data": {"state": json.dumps(manager)}}}}


BOTH = [{"gpa": 0, "length": 6}, {"gpa": 100, "length": 4}]


@pytest.fixture(name="inbox")
def fixture_inbox(tmp_path: Path) -> Path:
    path = tmp_path / "inbox"
    path.mkdir()
    (path / "config.json").write_text("{}", encoding="utf-8")
    (path / "state.json").write_text(json.dumps(state_of([])), encoding="utf-8")
    return path


def shown(found: list[SavedFile]) -> list[tuple[str, str, str]]:
    return [(file.name, file.role, file.path) for file in found]


def test_ram_in_a_file_is_not_in_what_is_saved(inbox: Path) -> None:
    assert shown(saving.saved_files(str(inbox), "/ram/x", 1 << 20)) == [
        ("state.json", "state", f"{inbox}/state.json"),
        ("mem", "memory", "/ram/x"),
    ]


def test_ram_of_a_clone_is_made_what_the_file_would_be(inbox: Path) -> None:
    (inbox / "state.json").write_text(json.dumps(state_of(BOTH)), encoding="utf-8")
    (inbox / "memory-ranges").write_bytes(b"0123456789")
    found = saving.saved_files(str(inbox), None, 1 << 20)
    assert shown(found)[1] == ("mem", "memory", f"{inbox}/memory-ranges")
    settled = json.loads(Path(found[0].path).read_text(encoding="utf-8"))
    manager = json.loads(settled["snapshots"]["memory-manager"]["snapshot_data"]["state"])
    assert manager["memory_ranges"] == {"data": []} and manager["boot_ram"] == 10


@pytest.mark.parametrize(
    ("ram", "state", "reason"),
    [
        ("/ram/x", state_of(BOTH), "its RAM is not where it should be"),
        (None, state_of([]), "its RAM is not where it should be"),
        (None, state_of(BOTH[:1]), "some of its RAM is missing"),
        (None, state_of(BOTH[::-1]), "in another order"),
        (None, state_of([*BOTH, BOTH[0]]), "another form"),
        (None, state_of([{"gpa": 0, "length": 5}, BOTH[1]]), "in another order"),
        (None, {"snapshots": []}, "another form"),
        (None, [], "another form"),
    ],
)
def test_what_is_not_a_saved_machine(inbox: Path, ram: str | None, state: t.Any, reason: str) -> None:
    (inbox / "state.json").write_text(json.dumps(state), encoding="utf-8")
    (inbox / "memory-ranges").write_bytes(b"0123456789")
    with pytest.raises(HypervisorError, match=reason):
        saving.saved_files(str(inbox), ram, 1 << 20)


@pytest.mark.parametrize("size", [0, 9, 11])
def test_ram_that_is_not_all_there(inbox: Path, size: int) -> None:
    (inbox / "state.json").write_text(json.dumps(state_of(BOTH)), encoding="utf-8")
    (inbox / "memory-ranges").write_bytes(bytes(size))
    with pytest.raises(HypervisorError, match=f"its RAM has {size} bytes and not 10"):
        saving.saved_files(str(inbox), None, 1 << 20)


def test_what_its_user_may_have_put_there(inbox: Path) -> None:
    for text in ("{", "[" * 100000, f'{{"a": {"9" * 40}}}'):
        (inbox / "state.json").write_text(text, encoding="utf-8")
        with pytest.raises(HypervisorError, match="not JSON"):
            saving.saved_files(str(inbox), "/ram/x", 1 << 20)
    (inbox / "state.json").unlink()
    (inbox / "state.json").symlink_to("/etc/passwd")
    with pytest.raises(OSError):
        saving.saved_files(str(inbox), "/ram/x", 1 << 20)
    (inbox / "state.json").unlink()
    os.mkfifo(inbox / "state.json")
    with pytest.raises(HypervisorError, match="something else"):
        saving.saved_files(str(inbox), "/ram/x", 1 << 20)


@pytest.fixture(name="version")
def fixture_version(api: Api) -> None:
    api.answers["GET", "/vmm.ping"] = (200, {"build_version": "v53.0.0-1", "version": "53.0.0", "pid": 7})


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize(
    ("state", "stay", "calls"),
    [
        ("Running", False, ["PUT /vm.pause", "PUT /vm.snapshot", "PUT /vm.resume"]),
        ("Running", True, ["PUT /vm.pause", "PUT /vm.snapshot"]),
        ("Paused", False, ["PUT /vm.snapshot"]),
    ],
)
def test_save(api: Api, tmp_path: Path, inbox: Path, state: str, stay: bool, calls: list[str]) -> None:
    api.answers["GET", "/vm.info"] = (200, {**INFO, "state": state})
    copied: list[SavedFile] = []
    before: list[str] = []

    def copy(files: t.Sequence[SavedFile]) -> None:
        copied.extend(files)
        before.extend(asked(api))  # what is copied is of one instant: the guest stands still

    saved = DRIVER.save(str(tmp_path), Saving(str(inbox), copy, "/ram/x", 1 << 20, stay=stay))
    assert asked(api) == calls and [file.name for file in copied] == ["state.json", "mem"]
    assert before == [call for call in calls if call != "PUT /vm.resume"]
    snapshot = next(request for request in api.requests if request.target == "/vm.snapshot")
    assert snapshot.body == {"destination_url": f"file://{inbox}"}
    assert saved.layout == {"version": "53.0.0"} and (saved.paused_seconds > 0) == (state == "Running")


@pytest.mark.usefixtures("version")
def test_disks_alone(api: Api, tmp_path: Path, inbox: Path) -> None:
    """The guest stands still for them, and nothing of its machine is written."""
    before: list[str] = []
    api.answers["GET", "/vm.info"] = (200, {**INFO, "state": "Running"})
    wanted = Saving(str(inbox), lambda files: before.extend([*asked(api), *map(str, files)]), None, 1, machine=False)
    assert DRIVER.save(str(tmp_path), wanted).paused_seconds > 0
    assert before == ["PUT /vm.pause"] and asked(api) == ["PUT /vm.pause", "PUT /vm.resume"]


@pytest.mark.usefixtures("version")
def test_a_guest_goes_on_if_it_cannot_be_saved(api: Api, tmp_path: Path, inbox: Path) -> None:
    api.answers["PUT", "/vm.snapshot"] = (500, "no space")
    with pytest.raises(RestError, match="no space"):
        DRIVER.save(str(tmp_path), Saving(str(inbox), lambda _files: None, "/ram/x", 1))
    assert asked(api) == ["PUT /vm.pause", "PUT /vm.snapshot", "PUT /vm.resume"]


@pytest.mark.usefixtures("version")
def test_a_guest_goes_on_when_it_can(api: Api, tmp_path: Path, inbox: Path) -> None:
    """Of a save that takes too long the hypervisor is not done when it is asked to go on."""
    api.answers["PUT", "/vm.snapshot"] = (500, "too long")
    answers = [(204, None), (500, "busy"), (500, "busy")]
    api.answers["PUT", "/vm.resume"] = lambda _body: answers.pop()
    with pytest.raises(RestError, match="too long"):
        DRIVER.save(str(tmp_path), Saving(str(inbox), lambda _files: None, "/ram/x", 1))
    reap()
    assert not answers and asked(api) == ["PUT /vm.pause", "PUT /vm.snapshot", *["PUT /vm.resume"] * 3]


def test_a_guest_goes_on_if_whoever_stopped_it_dies(api: Api, tmp_path: Path) -> None:
    words = (str(tmp_path / runstate.API), guard.request("PUT", f"{runstate.BASE}/vm.resume"))
    made = guard.Guard(guard.CALL, *words)
    stdin = made._process.stdin
    assert stdin
    stdin.close()
    assert made._process.wait(20) == 0 and asked(api) == ["PUT /vm.resume"]
    with guard.Guard(guard.CALL, *words) as done:
        done.done()
    assert done._process.returncode == 0 and asked(api) == ["PUT /vm.resume"]


def test_what_can_be_taken_up(tmp_path: Path) -> None:
    """By the release that saved it, if that lies beside the one that new VMs run by."""
    binaries = {}
    for version in ("52.0", "52.2", "52.10", "53.0.0"):
        folder = tmp_path / "cloud-hypervisor" / f"{version}-0123456789ab"
        folder.mkdir(parents=True)
        binaries[version] = program(folder, f"#!/bin/sh\necho cloud-hypervisor v{version}\n")
    (tmp_path / "cloud-hypervisor" / "broken").mkdir()
    program(tmp_path / "cloud-hypervisor" / "broken", "#!/bin/sh\nexit 1\n")
    made = driver.CloudHypervisorDriver(paths(tmp_path), binaries["53.0.0"])
    for there, version in (("53.1", "53.0.0"), ("53.0.0", "53.0.0"), ("52.1", "52.10")):
        made.check_resume(SavedState({}, {"version": there}))
        assert made._binary_for({"version": there}) == binaries[version]
    with pytest.raises(UnsupportedError, match=r"saved by Cloud Hypervisor 51\.0, and this host has 53\.0\.0"):
        made.check_resume(SavedState({}, {"version": "51.0"}))
    (tmp_path / "bin").mkdir()
    alone = driver.CloudHypervisorDriver(paths(tmp_path), program(tmp_path / "bin", GOOD))  # it lies among others
    with pytest.raises(UnsupportedError):
        alone.check_resume(SavedState({}, {"version": "52.0"}))


# Against the API.

INFO = {
    "state": "Running",
    "config": {"payload": {}, "disks": [{"id": "disk-data", "path": "/none"}]},
    "device_tree": {"disk-cocoon-cow": {}, "disk-data": {}},
}


@pytest.fixture
def api(tmp_path: Path) -> t.Iterator[Api]:
    with Api(tmp_path / runstate.API, Contract(CLOUD_HYPERVISOR), runstate.BASE) as made:
        made.answers["GET", "/vm.info"] = (200, copy.deepcopy(INFO))
        yield made


def asked(api: Api) -> list[str]:
    return [call for call in api.targets() if not call.startswith("GET")]


DRIVER = driver.CloudHypervisorDriver(Paths(), "/usr/bin/ch")


@pytest.mark.parametrize(
    ("state", "meaning", "pause", "resume"),
    [
        ("Running", "running", ["PUT /vm.pause"], []),
        ("Paused", "paused", [], ["PUT /vm.resume"]),
        ("Shutdown", "shutdown", ["PUT /vm.pause"], ["PUT /vm.boot"]),
    ],
)
def test_states(api: Api, tmp_path: Path, state: str, meaning: str, pause: list[str], resume: list[str]) -> None:
    api.answers["GET", "/vm.info"] = (200, {**INFO, "state": state})
    assert DRIVER.status(str(tmp_path)) == meaning
    assert run_state("cloud-hypervisor", str(tmp_path)) == meaning
    DRIVER.pause(str(tmp_path))
    DRIVER.resume(str(tmp_path))
    assert asked(api) == pause + resume


def test_nobody_can_tell(tmp_path: Path) -> None:
    assert run_state("cloud-hypervisor", str(tmp_path)) is None


@pytest.mark.parametrize("answer", [[], {}, {"state": "Gone", "config": {}}, {"state": "Running", "config": 1}])
def test_nonsense_for_a_state(api: Api, tmp_path: Path, answer: t.Any) -> None:
    api.answers["GET", "/vm.info"] = (200, answer)
    with pytest.raises(HypervisorError, match="nothing sensible"):
        DRIVER.status(str(tmp_path))


def test_buttons(api: Api, tmp_path: Path) -> None:
    DRIVER.powerdown(str(tmp_path))
    DRIVER.reset(str(tmp_path))
    DRIVER.set_balloon(str(tmp_path), 32 * MIB)
    assert asked(api) == ["PUT /vm.power-button", "PUT /vm.reboot", "PUT /vm.resize"]
    assert api.requests[-1].body == {"desired_balloon": 32 * MIB}


def test_vcpus_come_and_do_not_go(api: Api, tmp_path: Path) -> None:
    info = api.answers["GET", "/vm.info"][1]
    api.answers["GET", "/vm.info"] = (200, {**info, "config": {**info["config"], "cpus": {"boot_vcpus": 2}}})
    DRIVER.add_cpus(str(tmp_path), 2)
    assert asked(api) == []
    DRIVER.add_cpus(str(tmp_path), 4)
    assert asked(api) == ["PUT /vm.resize"] and api.requests[-1].body == {"desired_vcpus": 4}
    with pytest.raises(HypervisorError, match="does not come to have 1"):
        DRIVER.add_cpus(str(tmp_path), 1)
    api.answers["GET", "/vm.info"] = (200, {**info, "config": {**info["config"], "cpus": {"boot_vcpus": "many"}}})
    with pytest.raises(HypervisorError, match="many"):
        DRIVER.add_cpus(str(tmp_path), 4)
    api.answers["PUT", "/vm.resize"] = (500, "no room")


def test_room_for_vcpus() -> None:
    assert values(build(cpu=2, cpu_max=4), "--cpus") == ["boot=2,max=4,nested=off"]
    assert values(build(cpu=2), "--cpus") == ["boot=2,max=2,nested=off"]


def test_a_disk_comes(api: Api, tmp_path: Path) -> None:
    DRIVER.attach_disk(str(tmp_path), DATA)  # is there
    assert asked(api) == []
    more = dataclasses.replace(DATA, serial="more", path="/vms/x/data-more.raw")
    DRIVER.attach_disk(str(tmp_path), more)
    assert asked(api) == ["PUT /vm.add-disk"]
    assert api.requests[-1].body == commandline.disk_config(more)
    api.answers["PUT", "/vm.add-disk"] = (500, "Cannot find available PCI device slot: NoAvailablePciDeviceSlot")
    with pytest.raises(ResourceError, match="no free slot"):
        DRIVER.attach_disk(str(tmp_path), more)


def test_a_nic_comes_and_goes(api: Api, tmp_path: Path) -> None:
    """Its TAP is handed over beside the request, which says how many queues it has."""
    there = (200, {**INFO, "device_tree": {**INFO["device_tree"], "nic1": {}}})
    api.answers["PUT", "/vm.add-net"] = lambda _body: api.answers.update({("GET", "/vm.info"): there}) or (204, None)
    before = DRIVER.plugged_nics(str(tmp_path))
    fds = tuple(os.open(os.devnull, os.O_RDONLY) for _queue in range(2))
    nic = Nic("02:00:00:00:00:07", fds, 256)
    DRIVER.attach_nic(str(tmp_path), 1, nic)
    DRIVER.attach_nic(str(tmp_path), 1, nic)  # is there
    for fd in fds:
        os.close(fd)
    assert asked(api) == ["PUT /vm.add-net"] and DRIVER.plugged_nics(str(tmp_path)) == [*before, 1]
    bodies = [request.body for request in api.requests if request.body]
    assert bodies == [{"id": "nic1", "mac": "02:00:00:00:00:07", "num_queues": 4, "queue_size": 256}]
    gone = (200, {**INFO, "device_tree": {}})
    api.answers["PUT", "/vm.remove-device"] = lambda _body: (
        api.answers.update({("GET", "/vm.info"): gone}) or (204, None)
    )
    DRIVER.detach_nic(str(tmp_path), 1, 5.0)
    assert asked(api) == ["PUT /vm.add-net", "PUT /vm.remove-device"]
    api.answers["PUT", "/vm.add-net"] = (500, "NoAvailablePciDeviceSlot")
    with pytest.raises(ResourceError, match="no free slot for another NIC"):
        DRIVER.attach_nic(str(tmp_path), 1, Nic("02:00:00:00:00:07", (), 256))


def test_a_disk_goes(api: Api, tmp_path: Path) -> None:
    api.answers["PUT", "/vm.remove-device"] = lambda _body: (
        api.answers.update({("GET", "/vm.info"): (200, {**INFO, "device_tree": {}})}) or (204, None)
    )
    DRIVER.detach_disk(str(tmp_path), "data", 5.0)
    DRIVER.detach_disk(str(tmp_path), "data", 5.0)  # is gone
    assert asked(api) == ["PUT /vm.remove-device"]
    assert [request.body for request in api.requests if request.body] == [{"id": "disk-data"}]


def test_a_disk_that_goes_while_it_is_asked_for(api: Api, tmp_path: Path) -> None:
    api.answers["PUT", "/vm.remove-device"] = lambda _body: (
        api.answers.update({("GET", "/vm.info"): (200, {**INFO, "device_tree": {}})})
        or (404, "Failed to find device corresponding to the given identifier: disk-data")
    )
    DRIVER.detach_disk(str(tmp_path), "data", 5.0)
    api.answers["GET", "/vm.info"] = (200, INFO)
    api.answers["PUT", "/vm.remove-device"] = (500, "no")
    with pytest.raises(RestError, match="refused PUT /vm.remove-device: no"):
        DRIVER.detach_disk(str(tmp_path), "data", 5.0)


def test_a_guest_that_keeps_a_disk(api: Api, tmp_path: Path) -> None:
    with pytest.raises(GuestTimeoutError, match="did not let go of the disk 'data' within 0.2 s"):
        DRIVER.detach_disk(str(tmp_path), "data", 0.2)
    assert asked(api) == ["PUT /vm.remove-device"]  # not asked twice so soon


def test_a_disk_grows_and_never_shrinks(api: Api, tmp_path: Path) -> None:
    path = tmp_path / "data.raw"
    with path.open("wb") as stream:
        os.truncate(stream.fileno(), 20 * MIB)
    config = {"payload": {}, "disks": [{"id": "disk-data", "path": str(path)}]}
    api.answers["GET", "/vm.info"] = (200, {**INFO, "config": config})
    DRIVER.resize_disk(str(tmp_path), "data", 32 * MIB)
    assert api.requests[-1].body == {"id": "disk-data", "desired_size": 32 * MIB}
    with pytest.raises(HypervisorError, match="never shrinks"):
        DRIVER.resize_disk(str(tmp_path), "data", 16 * MIB)
    with pytest.raises(HypervisorError, match="has no disk 'none'"):
        DRIVER.resize_disk(str(tmp_path), "none", 16 * MIB)
    assert asked(api) == ["PUT /vm.resize-disk"]


# What is on the host.


def program(tmp_path: Path, text: str, mode: int = 0o755) -> str:
    path = tmp_path / "cloud-hypervisor"
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        ("#!/bin/sh\necho cloud-hypervisor v51.2.0\n", 0o755, "51.2.0 is too old, v52.0 is the oldest"),
        ("#!/bin/sh\necho hello\n", 0o755, "does not tell its version: 'hello'"),
        ("#!/bin/sh\necho no such library >&2; exit 127\n", 0o755, "does not run: .*no such library"),
        ("#!/bin/sh\n", 0o644, "does not run: "),
        ("\x7fELF of another machine", 0o755, "does not run: "),
    ],
)
def test_a_program_that_is_of_no_use(tmp_path: Path, text: str, mode: int, reason: str) -> None:
    found = driver.CloudHypervisorDriver(paths(tmp_path), program(tmp_path, text, mode)).probe()
    assert not found.available and found.remedy == probe.REMEDY
    assert re.search(reason, found.reason or "")


def paths(tmp_path: Path) -> Paths:
    return Paths(str(tmp_path / "lib"), str(tmp_path / "run"), str(tmp_path / "log"))


GOOD = "#!/bin/sh\necho cloud-hypervisor v53.0.0-\necho Migration Protocol Versions: 0\n"


def test_it_needs_kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "kvm_problem", lambda _paths: "there is no /dev/kvm")
    made = driver.CloudHypervisorDriver(paths(tmp_path), program(tmp_path, GOOD))
    found = made.probe()
    assert (found.available, found.version, found.reason) == (False, "53.0.0", "it needs KVM: there is no /dev/kvm")
    with pytest.raises(UnsupportedError, match="it needs KVM"):
        made.pin("kvm")


def test_a_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "kvm_problem", lambda _paths: None)
    made = driver.CloudHypervisorDriver(paths(tmp_path), program(tmp_path, GOOD))
    found = made.probe()
    assert (found.available, found.version, found.accels, found.firmware) == (True, "53.0.0", ("kvm",), ())
    assert made.pin("kvm") == {}
    with pytest.raises(UnsupportedError, match="has no tcg"):
        made.pin("tcg")


def test_none_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "find_binary", lambda: None)
    found = driver.CloudHypervisorDriver(paths(tmp_path)).probe()
    assert (found.available, found.reason) == (False, "Cloud Hypervisor is not installed")


def test_what_it_does_not_do_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="boots kernels only"):
        DRIVER.firmware("/x")
    form = DRIVER.archive_form()
    assert form.version(form.words({"hypervisor_version": "53.0"})) == "53.0" and not form.problems({}, [])
    assert not (DRIVER.capabilities.data_device or DRIVER.capabilities.uefi)


def test_a_dry_run_gives_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "kvm_group", lambda: (104,))
    lines = DRIVER.dry_run(dataclasses.replace(LAUNCH, groups=(7,)))
    assert lines[-1].startswith("setpriv --reuid 1 --regid 1 --groups 7,104 ")
    assert "--api-socket path=/run/x/api.sock" in lines[-1] and lines[-1].endswith(">> /log/x/console.log &")
    assert "install -d -m 0700 -o 1 -g 1 /run/x/own" in lines
    named = dataclasses.replace(LAUNCH, nics=(Nic("52:54:00:00:00:01", tap="cmx-0", pairs=2),))
    made = DRIVER.dry_run(named)
    assert "ip tuntap add dev cmx-0 mode tap user 1 vnet_hdr multi_queue" in made
    assert "--net id=nic0,mac=52:54:00:00:00:01,num_queues=4,queue_size=512,tap=cmx-0" in made[-1]
    monkeypatch.setattr(releases, "taking_up", lambda *_words, **_more: "/usr/bin/ch")
    again = DRIVER.dry_run(dataclasses.replace(named, resume=RESUME))
    assert "# its NIC 0 is cmx-0, handed over as a descriptor" in again and "net_fds" not in again[-1]
