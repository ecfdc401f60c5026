# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Firecracker driver against a double of its API that takes nothing but what the official document allows."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import jsonschema
import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils import _scope as scope
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    HypervisorError,
    InputError,
    UnsupportedError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import guard, kvm, listening, private, vsock
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import (
    Disk,
    Jail,
    Launch,
    Nic,
    Resume,
    SavedFile,
    SavedState,
    Saving,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.firecracker import (
    calls,
    driver,
    places,
    probe,
    runstate,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.firecracker.driver import FirecrackerDriver
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.tests.unit.openapi import FIRECRACKER, Api, Contract

ID = "abcdefghijklmnopqrstuvwxyz"
LAYER = "ab" * 32
LAUNCH = Launch(
    vm_id=ID,
    name="web1",
    uid=os.getuid(),
    gid=os.getgid(),
    cpu=2,
    memory=512 << 20,
    accel="kvm",
    pins={},
    ram_path="/run/x/ram/a",
    run_dir="/run/x/vm",
    console_log="/log/x/console.log",
    hypervisor_log="/log/x/hypervisor.log",
    boot={
        "kernel_path": "/lib/x/images/boot/cd/vmlinux",
        "initrd_path": "/lib/x/images/boot/cd/initrd.img",
        "cmdline": "console=ttyS0 a=b",
    },
    folder="/lib/x/vms/abc",
    groups=(70003, 70004),
    disks=(
        Disk("cocoon-layer0", f"/lib/x/images/blobs/{LAYER}.erofs", read_only=True),
        Disk("cocoon-cow", "/lib/x/vms/abc/cow.raw", direct=True, queue_size=256),
        Disk("my-data", "/lib/x/vms/abc/data-my-data.raw", removable=True),
    ),
    nics=(Nic("02:00:00:00:00:01", tap="cmabcdefgh-0"), Nic("02:00:00:00:00:02", tap="cmabcdefgh-1", mtu=1400)),
    balloon=64 << 20,
)
SLOW = dataclasses.replace(LAUNCH.disks[2], limits={"total": {"rate": 10 << 20, "burst": 30 << 20, "iops": 100}})
RESUME = Resume("/lib/x/vms/abc/resume", "/lib/x/vms/abc/resume/mem", True, {"version": "1.16.1", "id": "source"}, True)


def everything(launch: Launch) -> list[calls.Call]:
    return [*calls.machine(launch), *calls.nics(launch), calls.START]


def body(launch: Launch, target: str) -> t.Mapping[str, t.Any]:
    return next(call.body for call in everything(launch) if call.target == target)


@pytest.mark.parametrize(
    "call",
    [
        *everything(LAUNCH),
        *everything(dataclasses.replace(LAUNCH, disks=LAUNCH.disks[:2], nics=(), balloon=None)),
        *everything(dataclasses.replace(LAUNCH, boot={"kernel_path": "/k/vmlinux"}, balloon=0)),
        calls.CTRL_ALT_DEL,
        *everything(dataclasses.replace(LAUNCH, disks=(*LAUNCH.disks[:2], SLOW))),
        *(calls.limited("my-data", SLOW.limits), calls.limited("cocoon-cow", {})),
        calls.grown("cocoon-cow", "/var/lib/cocoon/run/firecracker/a/cow.raw"),
        *calls.load(dataclasses.replace(LAUNCH, resume=RESUME)),
        *(calls.PAUSE, calls.SAVE, calls.RESUME),
        calls.balloon(32 << 20),
    ],
    ids=lambda call: f"{call.method} {call.target}",
)
def test_requests_are_what_the_official_document_allows(call: calls.Call) -> None:
    assert Contract(FIRECRACKER).problems(call.method, call.target, dict(call.body)) == []


@pytest.mark.parametrize("field", ["guest_mac", "host_dev_name", "iface_id"])
def test_a_misspelled_field_would_not_pass(field: str) -> None:
    bad = {f"{key}s" if key == field else key: value for key, value in calls.nic(0, LAUNCH.nics[0]).body.items()}
    assert Contract(FIRECRACKER).problems("PUT", "/network-interfaces/eth0", bad)


def test_the_machine() -> None:
    size = {"vcpu_count": 2, "mem_size_mib": 512, "smt": False, "track_dirty_pages": False}
    assert body(LAUNCH, "/machine-config") == size
    assert body(LAUNCH, "/boot-source") == {
        "kernel_image_path": "/var/lib/cocoon/oci/boot/cd/vmlinux",
        "initrd_path": "/var/lib/cocoon/oci/boot/cd/initrd.img",
        "boot_args": "console=ttyS0 a=b",
    }
    assert body(LAUNCH, "/balloon") == {"amount_mib": 64, "deflate_on_oom": True}
    assert body(LAUNCH, "/vsock") == {"guest_cid": 3, "uds_path": "/run/vsock.sock"}
    assert everything(LAUNCH)[-1].body == {"action_type": "InstanceStart"}


def test_disks_in_their_order_under_the_names_of_saved_machines() -> None:
    drives = [call for call in everything(LAUNCH) if call.target.startswith("/drives/")]
    assert [call.body["path_on_host"] for call in drives] == [
        f"/var/lib/cocoon/oci/blobs/{LAYER}.erofs",
        f"/var/lib/cocoon/run/firecracker/{ID}/cow.raw",
        f"/var/lib/cocoon/run/firecracker/{ID}/data-my-data.raw",
    ]
    assert [(call.body["is_read_only"], call.body["cache_type"]) for call in drives] == [
        (True, "Unsafe"),
        (False, "Writeback"),
        (False, "Writeback"),
    ]
    assert all(call.target == f"/drives/{call.body['drive_id']}" for call in drives)
    assert all(call.body["drive_id"].isalnum() and not call.body["is_root_device"] for call in drives)
    assert len({calls.drive_id(serial) for serial in ("a-b", "a_b", "aXb".lower())}) == 3


def test_a_disk_has_buckets_and_loses_them() -> None:
    bandwidth, ops = {"size": 30 << 20, "refill_time": 3000}, {"size": 100, "refill_time": 1000}
    assert calls.drive(LAUNCH, SLOW).body["rate_limiter"] == {"bandwidth": bandwidth, "ops": ops}
    assert "rate_limiter" not in calls.drive(LAUNCH, LAUNCH.disks[2]).body
    few = calls.limited("my-data", {"total": {"iops": 100}})
    assert few.method == "PATCH" and few.target == "/drives/myXdata" and "path_on_host" not in few.body
    assert few.body["rate_limiter"] == {"bandwidth": {"size": 0, "refill_time": 0}, "ops": ops}


def test_one_that_goes_on_has_the_limits_of_its_own() -> None:
    """Those of its source are in the state; a disk without any is told so."""
    launch = dataclasses.replace(LAUNCH, disks=(*LAUNCH.disks[:2], SLOW), resume=RESUME)
    _load, cow, data = calls.load(launch)
    assert cow == calls.limited("cocoon-cow", {}) and data == calls.limited("my-data", SLOW.limits)


def test_nics_by_the_names_of_their_taps() -> None:
    first, second = calls.nics(LAUNCH)
    assert first.body == {"iface_id": "eth0", "host_dev_name": "cmabcdefgh-0", "guest_mac": "02:00:00:00:00:01"}
    assert second.target == "/network-interfaces/eth1" and second.body["mtu"] == 1400


@pytest.mark.parametrize(
    ("change", "error", "option"),
    [
        ({"boot": {}}, UnsupportedError, "image"),
        ({"memory": (512 << 20) + 4096}, InputError, "memory"),
        ({"cpu": 33}, InputError, "cpu"),
        ({"disks": (Disk("cocoon-cow", "/a/overlay.qcow2", format="qcow2"),)}, UnsupportedError, "image"),
        ({"disks": tuple(Disk(f"d{n}", f"/a/{n}") for n in range(13))}, UnsupportedError, "data_disks"),
        ({"guest_data": {"login": "/a/login.json"}}, UnsupportedError, "hypervisor"),
        ({"watchdog": True}, UnsupportedError, "hypervisor"),
        ({"status_log": "/a"}, UnsupportedError, "hypervisor"),
    ],
)
def test_what_it_cannot_do(change: dict[str, t.Any], error: type[Exception], option: str) -> None:
    with pytest.raises(error) as caught:
        calls.machine(dataclasses.replace(LAUNCH, **change))
    assert t.cast(t.Any, caught.value).option == option


def test_the_command_line_has_room_for_all_devices() -> None:
    words = " virtio_mmio.device=4K@0xc0001000:23"
    most = calls.LIMITS.command_line + calls.DEVICES * len(words) + len("pci=off ") + 1
    assert 1300 < calls.LIMITS.command_line and most <= 2048


# Its program.


def program(folder: Path, text: str = "Firecracker v1.16.1\n\nSupported snapshot data format versions: v10\n") -> str:
    path = folder / "firecracker"
    path.write_text(f"#!/bin/sh\ncat <<'E'\n{text}E\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(name="paths")
def fixture_paths(tmp_path: Path) -> Paths:
    return Paths(str(tmp_path / "lib"), str(tmp_path / "run"), str(tmp_path / "log"))


@pytest.fixture(name="scripts")
def fixture_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script passes for a program here, and KVM is there."""
    monkeypatch.setattr(private, "libraries", lambda _path: {"/lib64/ld.so": "/usr/lib64/ld.so"})
    monkeypatch.setattr(kvm, "kvm_problem", lambda _paths: None)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Firecracker v1.16.1\n\n", None),
        ("Firecracker v1.17.0-dev\n", None),
        ("Firecracker v2.0.0\n", None),
        ("Firecracker v1.16.0\n", r"Firecracker 1\.16\.0 is older than 1\.16\.1"),
        ("Firecracker v1.7.0\n", "is older"),
        ("Cloud Hypervisor v53.0\n", "does not say which Firecracker it is: Cloud Hypervisor v53.0"),
        ("", "does not say"),
    ],
)
@pytest.mark.usefixtures("scripts")
def test_probe(paths: Paths, tmp_path: Path, said: str, reason: str | None) -> None:
    found = FirecrackerDriver(paths, program(tmp_path, said)).probe()
    assert found.available == (reason is None) and found.accels == (("kvm",) if reason is None else ())
    if reason is not None:
        assert found.remedy and "1.16.1 or newer" in found.remedy
        with pytest.raises(AssertionError if found.reason is None else UnsupportedError, match=reason):
            FirecrackerDriver(paths, program(tmp_path, said)).pin("kvm")


def test_probe_of_what_does_not_run(paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {
        "text": (b"hello " * 20, 0o755, "not a program for x86-64"),
        "arm": (b"\x7fELF\x02\x01" + bytes(12) + b"\xb7\0" + bytes(60), 0o755, "not a program for x86-64"),
        "no rights": (Path(os.path.realpath("/bin/true")).read_bytes(), 0o644, "does not run: Permission denied"),
    }
    for name, (content, mode, reason) in broken.items():
        path = tmp_path / name
        path.write_bytes(content)
        path.chmod(mode)
        found = FirecrackerDriver(paths, str(path)).probe()
        assert not found.available and reason in str(found.reason) and found.remedy
    monkeypatch.setattr(probe, "find_binary", lambda: None)
    assert FirecrackerDriver(paths).probe().reason == "Firecracker is not installed"


def test_probe_without_kvm(paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripts: None) -> None:
    monkeypatch.setattr(kvm, "kvm_problem", lambda _paths: "neither kvm_intel nor kvm_amd is loaded")
    found = FirecrackerDriver(paths, program(tmp_path)).probe()
    assert not found.available and found.version == "1.16.1"
    assert "needs KVM: neither" in str(found.reason) and "hypervisor: qemu" in str(found.remedy)


@pytest.mark.usefixtures("scripts")
def test_pins(paths: Paths, tmp_path: Path) -> None:
    made = FirecrackerDriver(paths, program(tmp_path))
    assert made.pin("kvm") == {} and made.version() == "1.16.1"
    with pytest.raises(UnsupportedError, match="does not run with tcg"):
        made.pin("tcg")


@pytest.mark.usefixtures("scripts")
def test_what_its_process_can_reach(paths: Paths, tmp_path: Path) -> None:
    made = FirecrackerDriver(paths, program(tmp_path))
    jail = made.confine(LAUNCH)
    assert jail.files == {
        "/firecracker": program(tmp_path),
        "/lib64/ld.so": "/usr/lib64/ld.so",
        "/hypervisor.log": "/log/x/hypervisor.log",
        "/var/lib/cocoon/oci/boot/cd/vmlinux": "/lib/x/images/boot/cd/vmlinux",
        "/var/lib/cocoon/oci/boot/cd/initrd.img": "/lib/x/images/boot/cd/initrd.img",
        f"/var/lib/cocoon/oci/blobs/{LAYER}.erofs": f"/lib/x/images/blobs/{LAYER}.erofs",
        f"/var/lib/cocoon/run/firecracker/{ID}/cow.raw": "/lib/x/vms/abc/cow.raw",
        f"/var/lib/cocoon/run/firecracker/{ID}/data-my-data.raw": "/lib/x/vms/abc/data-my-data.raw",
        "/inbox": f"{tmp_path}/lib/vms/{ID}/inbox",
    }
    assert set(jail.devices) == {"/dev/kvm", "/dev/net/tun", "/dev/urandom"}
    assert jail.groups == (70003, 70004) and jail.folder == "/run/x/vm/own"
    argv = made.command(LAUNCH)
    assert argv[:5] == ["/firecracker", "--id", ID, "--api-sock", "/run/api.sock"]
    assert not {"--no-seccomp", "--seccomp-filter", "--config-file", "--no-api"} & set(argv)


@pytest.mark.usefixtures("scripts")
def test_what_one_that_goes_on_can_reach(paths: Paths, tmp_path: Path) -> None:
    """Its disks are where its source's were, and its RAM is there to be read."""
    files = FirecrackerDriver(paths, program(tmp_path)).confine(dataclasses.replace(LAUNCH, resume=RESUME)).files or {}
    assert files["/var/lib/cocoon/run/firecracker/source/cow.raw"] == "/lib/x/vms/abc/cow.raw"
    assert files["/memory"] == "/lib/x/vms/abc/resume/mem"
    assert not [place for place in files if ID in place]


@pytest.mark.usefixtures("scripts")
def test_dry_run(paths: Paths, tmp_path: Path) -> None:
    made = FirecrackerDriver(paths, program(tmp_path))
    lines = [shlex.split(line) for line in made.dry_run(LAUNCH) if not line.startswith("#")]
    user = ["--reuid", str(os.getuid()), "--regid", str(os.getgid()), "--groups", "70003,70004"]
    assert lines[1][: len(user) + 1] == ["setpriv", *user]
    assert lines[1][-10:] == [*made.command(LAUNCH), "&"]
    assert lines[2][0] == "until"
    asked = [(line[3], line[-1], json.loads(line[7])) for line in lines[3:]]
    assert asked == [(call.method, f"http://localhost{call.target}", call.body) for call in everything(LAUNCH)]


# Its process.


class Double:
    """A process, and an API that is there as soon as it is."""

    def __init__(self, launch: Launch, answers: t.Any = None) -> None:
        self.launch, self.answers = launch, answers
        self.api: Api | None = None
        self.process: Process | None = None

    def spawn(self, launch: Launch, _jail: Jail, _kept: t.Any) -> Process:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        child.returncode = 0  # waited for by its pidfd
        self.process = Process(child.pid, os.pidfd_open(child.pid))
        self.api = Api(Path(places.api_path(launch.run_dir)), Contract(FIRECRACKER), answers=self.answers)
        self.api.__enter__()
        return self.process


@pytest.fixture(name="launch")
def fixture_launch(tmp_path: Path) -> Launch:
    for name in ("vm", "log", "saved", f"lib/vms/{ID}"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ram").touch()
    return dataclasses.replace(
        LAUNCH,
        run_dir=str(tmp_path / "vm"),
        ram_path=str(tmp_path / "ram"),
        console_log=str(tmp_path / "log/console.log"),
        hypervisor_log=str(tmp_path / "log/hypervisor.log"),
    )


@pytest.fixture(name="double")
def fixture_double(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Double]:
    made = Double(launch)
    monkeypatch.setattr(FirecrackerDriver, "_spawn", staticmethod(made.spawn))
    monkeypatch.setattr(scope, "present", lambda: False)
    yield made
    if made.api:
        made.api.__exit__(None)
    with contextlib.suppress(OSError):  # the driver has ended it, and let go of it
        if made.process:
            made.process.end(0)


def test_start(paths: Paths, launch: Launch, double: Double) -> None:
    """NICs are taken over when they are held, and before the guest runs."""
    seen: list[str] = []
    process = FirecrackerDriver(paths).start(launch, Jail(), lambda _process: seen.extend(double.api.targets()))  # type: ignore[union-attr]
    assert double.api and process is double.process and not process.wait(0)
    wanted = [f"{call.method} {call.target}" for call in everything(launch)]
    assert double.api.targets() == wanted and seen == wanted[:-1]
    assert [request.body for request in double.api.requests] == [call.body for call in everything(launch)]
    for path in (vsock.own(launch.run_dir), paths.inbox(ID)):
        folder = Path(path).stat()
        assert (folder.st_mode & 0o777, folder.st_uid) == (0o700, launch.uid)


def test_going_on_from_a_saved_machine(paths: Paths, launch: Launch, double: Double, tmp_path: Path) -> None:
    (tmp_path / "saved" / "vmstate").write_bytes(b"state")
    resume = dataclasses.replace(RESUME, folder=str(tmp_path / "saved"))
    launch = dataclasses.replace(launch, resume=resume)
    seen: list[str] = []
    state, found = Path(vsock.own(launch.run_dir), "state"), []

    def load(_body: t.Any) -> tuple[int, None]:
        found.append(state.read_bytes())
        return 204, None

    double.answers = {("PUT", "/snapshot/load"): load}
    FirecrackerDriver(paths).start(launch, Jail(), lambda _process: seen.extend(double.api.targets()))  # type: ignore[union-attr]
    limits = [f"PATCH /drives/{calls.drive_id(disk.serial)}" for disk in launch.disks[1:]]
    assert double.api and seen == ["PUT /snapshot/load", *limits] and double.api.targets() == [*seen, "PATCH /vm"]
    assert double.api.requests[0].body == {
        "snapshot_path": "/run/state",
        "mem_backend": {"backend_type": "File", "backend_path": "/memory"},
        "network_overrides": [
            {"iface_id": "eth0", "host_dev_name": "cmabcdefgh-0"},
            {"iface_id": "eth1", "host_dev_name": "cmabcdefgh-1"},
        ],
        "clock_realtime": True,
        "resume_vm": False,
    }
    assert double.api.requests[-1].body == {"state": "Resumed"}
    assert found == [b"state"] and not state.exists()


def test_a_start_that_is_refused_leaves_nothing_but_logs(paths: Paths, launch: Launch, double: Double) -> None:
    Path(launch.hypervisor_log).write_text("2026-11-26T22:00:00.1 [web1:main] No such TAP\n", encoding="utf-8")
    double.answers = {("PUT", "/network-interfaces/eth0"): (400, {"fault_message": "Open tap device failed"})}
    with pytest.raises(
        HypervisorError, match="Firecracker of 'web1' did not start.*Open tap device failed.*No such TAP"
    ):
        FirecrackerDriver(paths).start(launch, Jail(), lambda _process: pytest.fail("it holds no TAPs"))
    assert double.process and not os.listdir(launch.run_dir) and not os.path.exists(launch.ram_path)
    assert double.api and double.api.targets()[-1] == "PUT /network-interfaces/eth0"  # and nothing after it


def test_a_process_that_ends_says_how(
    paths: Paths, launch: Launch, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spawn(*_arguments: t.Any) -> Process:
        child = os.posix_spawn(sys.executable, [sys.executable, "-c", "raise SystemExit(148)"], {})
        return Process(child, os.pidfd_open(child))

    monkeypatch.setattr(FirecrackerDriver, "_spawn", spawn)
    with pytest.raises(HypervisorError, match=r"did not start \(exit status 148\)"):
        FirecrackerDriver(paths).start(launch, Jail())


def test_a_start_that_others_end_leaves_nothing(paths: Paths, launch: Launch, double: Double) -> None:
    def interrupt(_process: Process) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FirecrackerDriver(paths).start(launch, Jail(), interrupt)
    assert not os.listdir(launch.run_dir)


@pytest.fixture(name="running")
def fixture_running(tmp_path: Path) -> t.Iterator[tuple[str, Api]]:
    run_dir = tmp_path / "run" / ID
    (run_dir / "own").mkdir(parents=True)
    with Api(run_dir / "own/api.sock", Contract(FIRECRACKER)) as api:
        yield str(run_dir), api


@pytest.mark.parametrize(
    ("said", "state"),
    [("Running", "running"), ("Paused", "paused"), ("Not started", "shutdown"), ("Odd", None), (1, None)],
)
def test_status(paths: Paths, running: tuple[str, Api], said: t.Any, state: str | None) -> None:
    run_dir, api = running
    about = {"app_name": "Firecracker", "id": ID, "state": said, "vmm_version": "1.16.1"}
    api.answers[("GET", "/")] = (200, about)
    if state:
        assert FirecrackerDriver(paths).status(run_dir) == runstate.ask(run_dir, 5.0) == state
    else:
        with pytest.raises(HypervisorError, match="no sensible status"):
            runstate.ask(run_dir, 5.0)


def test_nothing_runs(paths: Paths, tmp_path: Path) -> None:
    made = FirecrackerDriver(paths)
    for ask in (made.status, made.powerdown, made.pause, made.resume):
        with pytest.raises(HypervisorError, match="does not run"):
            ask(str(tmp_path))


def test_the_keys_and_the_balloon(paths: Paths, running: tuple[str, Api]) -> None:
    run_dir, api = running
    FirecrackerDriver(paths).powerdown(run_dir)
    FirecrackerDriver(paths).set_balloon(run_dir, 32 << 20)
    assert [request.body for request in api.requests] == [{"action_type": "SendCtrlAltDel"}, {"amount_mib": 32}]
    api.answers[("PATCH", "/balloon")] = (400, {"fault_message": "Invalid device type found on the MMIO bus."})
    with pytest.raises(HypervisorError, match="Invalid device type"):
        FirecrackerDriver(paths).set_balloon(run_dir, 0)


def test_a_disk_is_limited_while_it_runs(paths: Paths, running: tuple[str, Api]) -> None:
    run_dir, api = running
    FirecrackerDriver(paths).limit_disk(run_dir, "my-data", SLOW.limits)
    assert [request.body for request in api.requests] == [calls.limited("my-data", SLOW.limits).body]
    with pytest.raises(UnsupportedError, match="reads from writes"):
        FirecrackerDriver(paths).limit_disk(run_dir, "my-data", {"read": {"iops": 5}})


CONFIG = (
    200,
    {
        "drives": [
            {"drive_id": "a", "path_on_host": "/var/lib/cocoon/oci/blobs/ab.erofs"},
            {"drive_id": "b", "path_on_host": "/var/lib/cocoon/run/firecracker/source/cow.raw"},
            {"drive_id": "c", "path_on_host": None},
        ]
    },
)


@pytest.mark.parametrize(("serial", "name"), [("cocoon-cow", "cow.raw"), ("a-b", "data-a-b.raw")])
def test_a_disk_grows(paths: Paths, running: tuple[str, Api], serial: str, name: str) -> None:
    run_dir, api = running
    path = Path(paths.vm_dir(ID)) / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 4096)
    api.answers[("GET", "/vm/config")] = CONFIG
    FirecrackerDriver(paths).resize_disk(run_dir, serial, 1 << 20)
    assert path.stat().st_size == 1 << 20 and path.read_bytes().startswith(b"x" * 4096)
    drive = calls.drive_id(serial)
    assert api.targets() == ["GET /vm/config", f"PATCH /drives/{drive}"]
    assert api.requests[1].body["path_on_host"] == f"/var/lib/cocoon/run/firecracker/source/{name}"
    with pytest.raises(HypervisorError, match="never shrinks"):
        FirecrackerDriver(paths).resize_disk(run_dir, serial, 4096)
    assert path.stat().st_size == 1 << 20 and "PATCH" not in " ".join(api.targets()[2:])


@pytest.mark.parametrize(
    "config",
    [
        [],
        {},
        {"drives": [{"path_on_host": "/var/lib/cocoon/oci/blobs/ab.erofs"}]},
        {"drives": [{"path_on_host": "/var/lib/cocoon/run/firecracker/../cow.raw"}]},
        {"drives": [{"path_on_host": f"/var/lib/cocoon/run/firecracker/{name}/cow.raw"} for name in "ab"]},
    ],
)
def test_nonsense_for_disks(paths: Paths, running: tuple[str, Api], config: t.Any) -> None:
    run_dir, api = running
    api.answers[("GET", "/vm/config")] = (200, config)
    with pytest.raises(HypervisorError, match="does not tell its disks"):
        driver._machine_id(run_dir)


# What it saves.


class Inbox:
    """A folder that the double fills when it is asked to save, and the running VM whose it is."""

    def __init__(self, folder: Path, run_dir: str, api: Api) -> None:
        self.folder, self.run_dir, self.api = folder, run_dir, api
        folder.mkdir()
        about = {"app_name": "Firecracker", "id": ID, "vmm_version": "1.16.1"}
        api.answers[("GET", "/")] = (200, {**about, "state": "Running"})
        api.answers[("GET", "/vm/config")] = CONFIG
        api.answers[("PUT", "/snapshot/create")] = self.fill
        self.copied: list[str] = []
        self.seen: list[str] = []

    def fill(self, _body: t.Any) -> tuple[int, t.Any]:
        for name in ("vmstate", "mem"):
            (self.folder / name).write_bytes(name.encode())
        return 204, None

    def copy(self, files: t.Sequence[SavedFile]) -> None:
        self.copied = [f"{file.name} {file.role} {file.path}" for file in files]
        self.seen = self.asked()

    def wanted(self, limit: int = 100, stay: bool = False) -> Saving:
        return Saving(str(self.folder), self.copy, None, limit, stay=stay)

    def asked(self) -> list[str]:
        return [f"{request.method} {request.target}" for request in self.api.requests if request.method != "GET"]


@pytest.fixture(name="inbox")
def fixture_inbox(tmp_path: Path, running: tuple[str, Api]) -> Inbox:
    return Inbox(tmp_path / "inbox", *running)


CPU = "AuthenticAMD 25 1 2"


@pytest.fixture(name="cpu")
def fixture_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's words for the CPU of :data:`CPU`, and for another one of this host's."""
    path = tmp_path / "cpuinfo"
    keys = ("processor", "vendor_id", "cpu family", "model", "model name", "stepping")
    values = (("0", "AuthenticAMD", "25", "1", "AMD EPYC", "2"), ("1", "Other", "1", "2", "Other", "3"))
    cpus = ("".join(f"{key}\t: {value}\n" for key, value in zip(keys, words)) for words in values)
    path.write_text("\n".join(cpus), encoding="utf-8")
    monkeypatch.setattr(kvm, "CPUINFO", str(path))
    return path


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("stay", [False, True])
def test_save(paths: Paths, inbox: Inbox, stay: bool) -> None:
    made = FirecrackerDriver(paths)
    saved = made.save(inbox.run_dir, inbox.wanted(stay=stay))
    assert saved.layout == {"version": "1.16.1", "id": "source", "cpu": CPU} and saved.paused_seconds > 0
    assert inbox.copied == [f"vmstate state {inbox.folder}/vmstate", f"mem memory {inbox.folder}/mem"]
    assert inbox.seen == ["PATCH /vm", "PUT /snapshot/create"]  # what is copied is of one instant
    assert inbox.asked() == [*inbox.seen, *([] if stay else ["PATCH /vm"])]
    bodies = [request.body["state"] for request in inbox.api.requests if request.method == "PATCH"]
    assert bodies == ["Paused", "Resumed"][: 1 if stay else 2]


@pytest.mark.parametrize("fails", [False, True])
def test_disks_alone(paths: Paths, inbox: Inbox, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """The process stands for them with all of its threads, and goes on: a mere pause would cost the vsock."""
    script = "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", script])
    monkeypatch.setattr(listening, "listener", lambda _path: child.pid)
    seen: list[str] = []

    def words() -> list[str]:
        return [driver._word(child.pid, thread) for thread in os.listdir(f"/proc/{child.pid}/task")]

    def copy(files: t.Sequence[SavedFile]) -> None:
        assert not files
        seen.extend(words())
        if fails:
            raise HypervisorError("no copy")

    try:
        wanted = Saving(str(inbox.folder), copy, None, 1, machine=False)
        if fails:
            with pytest.raises(HypervisorError, match="no copy"):
                FirecrackerDriver(paths).save(inbox.run_dir, wanted)
        else:
            assert FirecrackerDriver(paths).save(inbox.run_dir, wanted).paused_seconds > 0
        assert set(seen) == {"T"} and "T" not in words() and not inbox.asked()
    finally:
        child.kill()
        child.wait()


def test_a_process_goes_on_if_whoever_stopped_it_dies() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        with guard.Guard(driver.GO_ON, str(child.pid)):
            os.kill(child.pid, signal.SIGSTOP)
            driver._await_standing(child.pid)
        deadline = time.monotonic() + 20
        while driver._word(child.pid, str(child.pid)) == "T" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert driver._word(child.pid, str(child.pid)) == "S"
        child.kill()


@pytest.mark.parametrize(("limit", "refused"), [(3, False), (100, True)])
def test_a_guest_goes_on_if_it_cannot_be_saved(paths: Paths, inbox: Inbox, limit: int, refused: bool) -> None:
    if refused:
        inbox.api.answers[("PUT", "/snapshot/create")] = (400, {"fault_message": "No space left on device"})
    words = f"No space left.*; {driver.NO_VSOCK}$" if refused else "larger than it can be$"
    with pytest.raises(HypervisorError, match=words):
        FirecrackerDriver(paths).save(inbox.run_dir, inbox.wanted(limit))
    assert inbox.asked() == ["PATCH /vm", "PUT /snapshot/create", "PATCH /vm"] and not inbox.copied


def test_a_guest_that_stood_still_is_saved_and_stands(paths: Paths, inbox: Inbox) -> None:
    inbox.api.answers[("GET", "/")] = (200, {"state": "Paused", "vmm_version": "1.16.1"})
    saved = FirecrackerDriver(paths).save(inbox.run_dir, inbox.wanted())
    assert saved.paused_seconds == 0 and inbox.asked() == ["PATCH /vm", "PUT /snapshot/create"]
    with contextlib.suppress(HypervisorError):
        FirecrackerDriver(paths)._say(inbox.run_dir, calls.RESUME)


@pytest.mark.usefixtures("scripts")
def test_what_can_be_taken_up(paths: Paths, tmp_path: Path) -> None:
    """By the release that saved it, if that lies beside the one that new VMs run by."""
    folders = {}
    for version in ("1.16.1", "1.17.0", "2.0.0"):
        folders[version] = tmp_path / "firecracker" / f"{version}-0123456789ab"
        folders[version].mkdir(parents=True)
        program(folders[version], f"Firecracker v{version}\n")
    made = FirecrackerDriver(paths, str(folders["1.17.0"] / "firecracker"))
    for there, version in (("1.17.3", "1.17.0"), ("1.16.2", "1.16.1"), ("2.0.1", "2.0.0")):
        layout = {"version": there, "id": "source"}
        made.check_resume(SavedState({}, layout))
        launch = dataclasses.replace(LAUNCH, resume=dataclasses.replace(RESUME, layout=layout))
        assert (made.confine(launch).files or {})["/firecracker"] == str(folders[version] / "firecracker")
    with pytest.raises(UnsupportedError, match=r"saved by Firecracker 1\.18\.0, and this host has 1\.17\.0"):
        made.check_resume(SavedState({}, {"version": "1.18.0", "id": "source"}))


@pytest.mark.usefixtures("scripts")
def test_the_cpu_that_it_was_saved_on(paths: Paths, tmp_path: Path, cpu: Path) -> None:
    """It looks at nothing itself."""
    made, layout = FirecrackerDriver(paths, program(tmp_path)), {"version": "1.16.1", "id": "source"}
    for there in ({}, {"cpu": CPU}):
        made.check_resume(SavedState({}, {**layout, **there}))
        jsonschema.validate({**layout, **there}, dict(made.archive_form().layout))
    with pytest.raises(UnsupportedError, match=f"'AuthenticAMD 25 1 3' .* this host has '{CPU}'"):
        made.check_resume(SavedState({}, {**layout, "cpu": "AuthenticAMD 25 1 3"}))
    cpu.write_text("processor: 0\nCPU part: 0xd0c\n", encoding="utf-8")
    assert kvm.host_cpu() == kvm.host_vendor() == ""


def test_what_it_says_in_an_archive(paths: Paths) -> None:
    form = FirecrackerDriver(paths).archive_form()
    assert form.version(form.words({"hypervisor_version": "1.16.1"})) == "1.16.1" and not form.problems({}, [])
    for wrong in ("../a", "", "a/b", "a" * 65):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"version": "1.16.1", "id": wrong}, dict(form.layout))


def test_pause_and_resume_stop_the_process_that_listens(paths: Paths, tmp_path: Path) -> None:
    run_dir = tmp_path / ID
    (run_dir / "own").mkdir(parents=True)
    code = f"""
import socket
s = socket.socket(1)
s.bind({places.api_path(str(run_dir))!r})
s.listen(9)
while True:
    line = s.accept()[0]
    if line.recv(99):
        line.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 19\\r\\n\\r\\n{{"state":"Running"}}')
"""
    child = os.posix_spawn(sys.executable, [sys.executable, "-c", code], {})
    with Process(child, os.pidfd_open(child)) as process:
        deadline = time.monotonic() + 20
        while not os.path.exists(places.api_path(str(run_dir))):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.05)
        FirecrackerDriver(paths).pause(str(run_dir))
        os.waitid(os.P_PID, child, os.WSTOPPED)
        assert process.stopped()
        with pytest.raises(HypervisorError, match="does not tell its version"):
            FirecrackerDriver(paths).save(str(run_dir), Saving(str(tmp_path), lambda _files: None, None, 1))
        os.waitid(os.P_PID, child, os.WSTOPPED)  # it had to be asked
        assert process.stopped()
        FirecrackerDriver(paths).resume(str(run_dir))  # which it hears though it stands still
        os.waitid(os.P_PID, child, os.WCONTINUED)
        assert not process.stopped()
        process.signal(signal.SIGKILL)
        assert process.wait(10)


def test_what_it_lacks_says_so(paths: Paths) -> None:
    made = FirecrackerDriver(paths)
    lacking: list[t.Callable[[], t.Any]] = [
        lambda: made.attach_disk("/run/x", LAUNCH.disks[0]),
        lambda: made.add_cpus("/run/x", 2),
        lambda: made.detach_disk("/run/x", "a", 1.0),
        lambda: made.reset("/run/x"),
        lambda: made.firmware("/x"),
    ]
    for ask in lacking:
        with pytest.raises(UnsupportedError, match="firecracker") as caught:
            ask()
        assert caught.value.option and caught.value.remedy
    assert driver.REMEDY.endswith("(1.16.1 or newer).")
