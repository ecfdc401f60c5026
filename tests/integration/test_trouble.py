# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What does not fit, does not start, or does not answer: one clear error, and nothing half made."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._engine import forecast
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import NotFoundError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import admission
from ansible_collections.cocoon.microvm.tests.integration.support import audit
from ansible_collections.cocoon.microvm.tests.integration.support.engine import (
    GUEST,
    IDLE,
    Engine,
    data_disk,
    idle_image,
)
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules

MIB = 1 << 20
UP = {**GUEST, "name": "vm", "state": "started"}
DISK = {"name": "data", "size": "16M", "fstype": "none"}
ROOM = 24 * MIB

Changes = dict[str, Any]


@pytest.fixture(scope="module")
def store(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    scratch: Path,
) -> Engine:
    """A store with an image and a network."""
    engine = Engine(make_netns(), make_store())
    modules(engine.netns, engine.dirs)("cocoon_image", name=IDLE, **idle_image(scratch))
    engine.network(subnet="10.100.0.0/24")
    return engine


@pytest.fixture
def engine(store: Engine) -> Iterator[Engine]:
    """The store; each test leaves it without VMs."""
    yield store
    audit.clean(store)
    assert not audit.held(store) and not audit.ledger(store)


# -- too little of something -----------------------------------------------------------------------------------------


def test_memory_does_not_fit(engine: Engine) -> None:
    poor = engine.with_options(memory_reserve="900G")
    error = poor.refused(**UP)
    assert error.startswith("memory: ") and "64M do not fit" in error and "memory_reserve" in error
    assert not audit.held(engine)
    engine.vm(**{**UP, "state": "present"})
    assert "memory_reserve" in poor.refused(**UP)
    assert not audit.wrong(engine) and engine.record("vm")["state"] == "created"
    engine.vm(**UP)
    # A restart that would not fit leaves the VM as it runs.
    pid = engine.record("vm")["pid"]
    assert "memory_reserve" in poor.refused(**{**UP, "allow_restart": True, "memory": "72M"})
    assert engine.record("vm")["pid"] == pid
    assert not audit.wrong(engine)


def test_memory_may_be_promised_more_than_once(engine: Engine) -> None:
    there = admission.available_memory()
    large = {**UP, "memory": f"{there >> 21}M"}  # half of it, where all but a quarter is reserved
    tight = {"memory_reserve": f"{(there - there // 4) >> 20}M"}
    error = engine.with_options(**tight).refused(**large)
    assert "do not fit" in error and "memory_overcommit" in error
    engine.with_options(**tight, memory_overcommit=4.0).vm(**large)
    assert engine.record("vm")["config"]["memory"] == (there >> 21) << 20
    assert "goes from 1 to 1000" in engine.with_options(memory_overcommit=0.5).refused(**large)


def test_memory_that_a_killed_run_was_promised_is_not_counted_twice(engine: Engine) -> None:
    available = admission.available_memory
    admission.available_memory = lambda: (64 + 64 + 8) * MIB  # one guest, and the reserve
    try:
        for place in ("create.memory", "create.done", "start.record", "start.spawned", "start.process"):
            marks = engine.vms(UP).marks
            engine.vm(name="vm", state="absent", force=True)
            assert engine.vms(UP, kill_at=marks.index(place)).killed
            assert engine.vm(**UP)["changed"]
            engine.vm(name="vm", state="absent", force=True)
    finally:
        admission.available_memory = available


@pytest.mark.parametrize(
    "options", ({"storage": "90T"}, {"data_disks": [{**DISK, "size": "90T"}]}), ids=("system", "data")
)
def test_disk_does_not_fit(engine: Engine, options: Changes) -> None:
    strict = engine.with_options(disk_overcommit=1.0)
    error = strict.refused(**{**UP, **options})
    assert error.startswith(("storage: ", "data_disks: ")) and "do not fit" in error and "disk_overcommit" in error
    assert not audit.held(engine)
    engine.vm(**{**UP, "data_disks": [DISK]})
    before = engine.record("vm")
    for change in (options, {"data_disks": [{**DISK, "size": "90T"}]}):
        assert "disk_overcommit" in strict.refused(**{**UP, "data_disks": [DISK], "allow_restart": True, **change})
    assert not audit.wrong(engine) and engine.record("vm") == before


@pytest.mark.parametrize("kept", (False, True), ids=("new", "with-kept-disks"))
@pytest.mark.parametrize("lacking", ("memory", "disk", "mac", "ip", "port", "image"))
def test_what_the_forecast_could_not_see(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, lacking: str, kept: bool
) -> None:
    """Others were faster: what had been taken until then is given back, and kept disks stay kept."""
    nic = {"network": "lab", "mac": "02:00:00:00:00:66", "ip": "10.100.0.66"}
    engine.vm(**{**UP, "name": "other", "state": "present", "nics": [nic], "ports": ["20066:80"]})
    wanted = {**UP, "data_disks": [DISK]}
    if kept:
        engine.vm(**{**wanted, "state": "present"})
        engine.vm(name="vm", state="absent")
    before = audit.held(engine), audit.ledger(engine)
    options: Changes = {
        "mac": {"nics": [{"network": "lab", "mac": nic["mac"]}]},
        "ip": {"nics": [{"network": "lab", "ip": nic["ip"]}]},
        "port": {"ports": ["20067:80", "20066:80"]},
    }.get(lacking, {})
    poor = {"memory": {"memory_reserve": "900G"}, "disk": {"disk_overcommit": 0.1}}.get(lacking, {})
    if lacking == "disk":
        wanted["storage"] = "90T"
    if lacking == "image":
        monkeypatch.setattr(images, "pin", images_gone)
    monkeypatch.setattr(forecast, "check", lambda _run, _record, plan: plan)
    assert engine.with_options(**poor).refused(**wanted, **options)
    assert (audit.held(engine), audit.ledger(engine)) == before
    assert not audit.wrong(engine)
    monkeypatch.undo()
    engine.vm(**wanted | {"storage": "32M"})
    assert not audit.wrong(engine)


def images_gone(*_args: Any) -> None:
    raise NotFoundError("the image is not in the store", "image")


@pytest.fixture
def small(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    scratch: Path,
) -> Iterator[Engine]:
    """A store on a file system of its own, of ROOM bytes."""
    dirs = make_store()
    root = Path(dirs["root_dir"])
    root.mkdir(mode=0o711)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM},mode=0711", "tmpfs", root], check=True)
    try:
        engine = Engine(make_netns(), dirs, disk_overcommit=1000.0)
        modules(engine.netns, dirs)("cocoon_image", name=IDLE, **idle_image(scratch))
        engine.network(subnet="10.101.0.0/24")
        yield engine
        (root / "ballast").unlink(missing_ok=True)
        audit.clean(engine)
        assert not audit.held(engine)
    finally:
        subprocess.run(["umount", "-l", root], check=True)


def fill(engine: Engine, left: int) -> None:
    """Fill the file system of the store but for some bytes."""
    root = Path(engine.paths.root)
    (root / "ballast").unlink(missing_ok=True)
    info = os.statvfs(root)
    size = info.f_bavail * info.f_frsize - left
    with (root / "ballast").open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, size)


@pytest.mark.parametrize("left", (0, 4, 8, 16, 32, 64, 128, 256, 512))
def test_file_system_is_full(small: Engine, left: int) -> None:
    """However little is left, in KiB: creation and growth fail plainly, what is there can be removed."""
    small.vm(**{**UP, "name": "there", "data_disks": [DISK]})
    before = audit.held(small)
    fill(small, left << 10)
    error = small.refused(**{**UP, "storage": "64M", "data_disks": [{**DISK, "fstype": "ext4"}]})
    assert "no space" in error and "root_dir" in error and "Free some" in error, error
    assert audit.held(small) == before
    assert not audit.wrong(small)
    assert small.vm(name="there", state="absent", force=True)["changed"]
    (Path(small.paths.root) / "ballast").unlink()
    small.vm(**UP)
    assert not audit.wrong(small)


@pytest.mark.parametrize(
    "change", ({}, {"state": "present", "data_disks": [{**DISK, "size": "24M"}]}), ids=("start", "grow")
)
def test_disk_that_a_tool_is_still_at_work_on(engine: Engine, change: Changes) -> None:
    """resize2fs outlives a module that is killed: nobody touches the disk before it has come to its end."""
    made = {**UP, "state": "present", "data_disks": [DISK]}
    engine.vm(**made)
    path = data_disk(engine.paths, engine.record("vm"), "data")
    with subprocess.Popen(["flock", "--no-fork", path, "sleep", "60"]) as tool:
        time.sleep(0.2)
        run = engine.start_vms({**made, "state": "started", **change})
        time.sleep(0.5)
        assert not audit.processes(engine) and path.stat().st_size == 16 * MIB
        tool.kill()
    outcome = run.wait()
    assert outcome.results[0]["changed"] and not outcome.results[0].get("failed")
    assert not audit.wrong(engine)


# -- hypervisors that do not start -----------------------------------------------------------------------------------


def test_hypervisor_dies_at_start(engine: Engine) -> None:
    engine.vm(**{**UP, "state": "present"})
    (blob,) = Path(engine.paths.images).glob("blobs/*.erofs")
    mode = blob.stat().st_mode & 0o777
    blob.chmod(0)
    try:
        error = engine.refused(**UP)
    finally:
        blob.chmod(mode)
    record = engine.record("vm")
    assert "did not start" in error and "exit status 1" in error, error
    assert "Permission denied" in error and engine.paths.hypervisor_log(record["id"]) in error
    assert record["state"] == "error" and "Permission denied" in record["reason"]
    assert not audit.wrong(engine)
    assert engine.vm(**UP)["changed"] and not engine.vm(**UP)["changed"]
    assert not audit.wrong(engine)


def test_hypervisor_fails_in_its_own_words(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A QEMU that answers every question and then fails at the start."""
    real = subprocess.run(["sh", "-c", "command -v qemu-system-x86_64"], capture_output=True, text=True, check=True)
    fake = tmp_path / "qemu-system-x86_64"
    fake.write_text(
        "#!/bin/sh\n"
        'case "$*" in *ram_path*|*memory-backend-file*) echo "first word" >&2; echo "last word" >&2; exit 3;; esac\n'
        f'exec {real.stdout.strip()} "$@"\n'
    )
    fake.chmod(0o755)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(0o711)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    error = engine.refused(**UP)
    assert "exit status 3" in error and "first word | last word" in error, error
    assert engine.record("vm")["state"] == "error"
    assert not audit.wrong(engine)
    monkeypatch.undo()
    assert engine.vm(**UP)["changed"]


def test_hypervisor_is_gone(engine: Engine) -> None:
    """One that ended by itself is started again by `started`, left by `present`, and noted by `stopped`."""
    engine.vm(**UP)
    for state, then in (("started", "running"), ("present", "running"), ("stopped", "stopped")):
        (pid,) = audit.hypervisors(engine)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not audit.processes(engine))
        result = engine.vm(**{**UP, "state": state})
        assert result["changed"] is (state != "present")
        assert engine.record("vm")["state"] == then
        engine.vm(**UP)
    assert not audit.wrong(engine)


def wait_until(condition: Callable[[], bool], patience: float = 10) -> None:
    """Wait for something that happens by itself."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- guests that do not answer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "awaited"),
    (
        ({"wait_for": "port", "wait_port": 8022}, "TCP port 8022 of 10.100.0."),
        ({"wait_for": "ping"}, "a ping of 10.100.0."),
        ({"wait_for": "console", "wait_pattern": "never said"}, "'never said' on the console"),
    ),
    ids=("port", "ping", "console"),
)
def test_guest_never_answers(engine: Engine, options: Changes, awaited: str) -> None:
    error = engine.refused(**UP, **options, timeout=1)
    log = engine.paths.console_log(engine.record("vm")["id"])
    assert error.startswith("timeout: ") and f"waited 1 s for {awaited}" in error, error
    assert f"the console log is {log}" in error and Path(log).exists()
    assert engine.record("vm")["state"] == "running" and not audit.wrong(engine)
    # Whoever asks again waits again; without the question nothing is due.
    pid = engine.record("vm")["pid"]
    assert "waited 1 s" in engine.refused(**UP, **options, timeout=1)
    assert not engine.vm(**UP)["changed"]
    assert engine.record("vm")["pid"] == pid


def test_no_route_is_no_answer(engine: Engine) -> None:
    """Without the host's address on the bridge nothing can be reached, and nothing is taken for an answer."""
    engine.vm(**UP)
    engine.netns.run("ip", "addr", "flush", "dev", "cm-lab")
    try:
        assert "waited 1 s for TCP port 22" in engine.refused(**UP, wait_for="port", timeout=1)
    finally:
        assert engine.network(subnet="10.100.0.0/24")["changed"]


def test_hypervisor_ends_while_waited_for(engine: Engine) -> None:
    run = engine.start_vms({**UP, "wait_for": "ping", "timeout": 60})
    wait_until(lambda: (engine.record("vm") or {}).get("state") == "running")
    begun = time.monotonic()
    os.kill(engine.record("vm")["pid"], signal.SIGKILL)
    outcome = run.wait()
    assert time.monotonic() - begun < 10
    error = outcome.results[0]["msg"]
    while_waited = "the hypervisor ended while the task waited for a ping" in error
    assert (while_waited or "ended right after its start" in error) and "the console log is" in error, error
    assert engine.vm(**UP)["changed"]
    assert not audit.wrong(engine)
