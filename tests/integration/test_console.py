# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Consoles: a guest that writes its own for ever harms nobody, and what the others write can be waited for and read."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.keeper import MOST
from ansible_collections.cocoon.microvm.plugins.module_utils._process import real_uid
from ansible_collections.cocoon.microvm.tests.integration.support.lab import Lab
from ansible_collections.cocoon.microvm.tests.integration.support.leaks import mounts

MIB = 1 << 20
Record = dict[str, Any]
LINE = "the quick brown fox jumps over the lazy dog"
# More than the logs may take; an emulated serial port takes a second for 100 KiB.
FLOOD = MIB + MIB // 4
MORE = MIB // 8
PATIENCE = 180.0


def held(folder: Path) -> int:
    """Bytes that the files of one file system take, and not those that are mounted below."""
    device = folder.lstat().st_dev
    found = [path.lstat() for path in [folder, *folder.rglob("*")]]
    return sum(status.st_blocks * 512 for status in found if status.st_dev == device)


def log_size(lab: Lab, vm: Record) -> int:
    """Bytes that all the logs of a VM take."""
    status = os.statvfs(lab.path("log", vm["id"]))
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def read_console(lab: Lab, vm: Record, size: int) -> int:
    """Read from a VM's console until *size* bytes have come. :returns: how many came in time."""
    total = 0
    deadline = time.monotonic() + PATIENCE
    with socket.socket(socket.AF_UNIX) as console:
        console.settimeout(10)
        console.connect(str(lab.path("run", vm["id"], "console.sock")))
        while total < size and time.monotonic() < deadline:
            total += len(console.recv(1 << 16))
    return total


@pytest.fixture(scope="module")
def flooding(lab: Lab) -> tuple[Record, dict[str, int]]:
    """A guest that has printed more than is kept and goes on, and what the store's folders took before."""
    vm = lab.started("flooding", memory="128M")
    before = {kind: held(lab.path(kind)) for kind in ("root", "log")}
    assert lab.ssh(vm, f"setsid yes {LINE} > /dev/ttyS0 2>&1 < /dev/null &").status == 0
    assert read_console(lab, vm, FLOOD) >= FLOOD
    return vm, before


def keepers(lab: Lab, vm: Record) -> list[int]:
    """The processes that write the log of a VM's console."""
    log, found = str(lab.path("log", vm["id"], "console.log")), []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if log in {os.readlink(path) for path in (entry / "fd").iterdir()}:
                assert real_uid(int(entry.name)) == vm["uid"]
                found.append(int(entry.name))
    return found


def test_the_host_holds_no_more_than_a_log_may_take(lab: Lab, flooding: tuple[Record, dict[str, int]]) -> None:
    """The logs are a file system of their own, which is not full; nothing else has grown by what was written."""
    vm, before = flooding
    folder = lab.path("log", vm["id"])
    assert folder.is_mount()
    for _turn in range(2):
        sizes = {name: (folder / f"console.log{name}").stat().st_size for name in ("", ".0", ".1")}
        assert sizes[""] <= MOST and sizes[".0"] == sizes[".1"] == MOST
        assert 2 * MOST < log_size(lab, vm) < 4 * MOST and os.statvfs(folder).f_bavail > 0
        assert held(lab.path("log")) == before["log"]
        # The guest may write to its disk, but what it wrote to its console is not there.
        assert held(lab.path("root")) - before["root"] < MIB
        assert read_console(lab, vm, MORE) >= MORE


def test_first_words_stay(lab: Lab, flooding: tuple[Record, dict[str, int]]) -> None:
    """A host key that was named before the flood is known."""
    found = lab.module("cocoon_vm_info", names=["flooding"], logs=3)["vms"][0]
    assert found["host_keys"][0].startswith("ssh-ed25519 AAAA")
    assert b"cocoon: ready" in lab.path("log", flooding[0]["id"], "console.log.0").read_bytes()
    assert found["logs"]["console"]["lines"][-2] == LINE


def test_hypervisor_and_guest_go_on(lab: Lab, flooding: tuple[Record, dict[str, int]]) -> None:
    vm = flooding[0]
    assert lab.ssh(vm, "echo still here").output == "still here\n"
    found = lab.module("cocoon_vm_info", names=["flooding"])["vms"][0]
    assert (found["state"], found["pid"]) == ("running", vm["pid"])


def test_the_newest_is_kept_and_can_be_waited_for(lab: Lab, flooding: tuple[Record, dict[str, int]]) -> None:
    """A task waits while the guest still floods; then it says something else for once, and that it panics."""
    vm = flooding[0]
    wait: Record = {"state": "started", "wait_for": "console", "wait_pattern": "^over 1 and out", "timeout": 120}
    child = lab.module.start("cocoon_vm", name="flooding", **wait)
    words = "printf '\\nover %s and out\\n[    9.0] Kernel panic - not syncing: late\\n' 1"
    assert lab.ssh(vm, f"killall yes; sleep 1; {words} > /dev/ttyS0").status == 0
    result = lab.module.finish(child)
    assert not result.failed and not result.changed, result
    assert b"over 1 and out" in lab.path("log", vm["id"], "console.log").read_bytes()
    found = lab.module("cocoon_vm_info", names=["flooding"])["vms"][0]
    assert found["reason"] == "its guest's kernel panicked: late"
    assert lab.ssh(vm, "echo cocoon: ready flooding > /dev/ttyS0").status == 0
    assert lab.ssh(vm, f"setsid yes {LINE} > /dev/ttyS0 2>&1 < /dev/null &").status == 0


def test_a_keeper_that_was_killed(lab: Lab, flooding: tuple[Record, dict[str, int]]) -> None:
    """The guest goes on without it, even if it floods; the next run has another one, once."""
    vm = flooding[0]
    (keeper,) = keepers(lab, vm)
    os.kill(keeper, signal.SIGKILL)
    assert read_console(lab, vm, MORE) >= MORE
    assert lab.ssh(vm, "killall yes; echo unheard > /dev/ttyS0; echo still here").output == "still here\n"
    log = lab.path("log", vm["id"], "console.log")
    for check in (True, False):
        result = lab.vm("flooding", memory="128M", state="started", check=check)
        assert result.changed and result["diff"]["before"] == {"console": "its log has no keeper"}, result
    assert not lab.vm("flooding", memory="128M", state="started").changed
    wait: Record = {"state": "started", "wait_for": "console", "wait_pattern": "^heard", "timeout": 60}
    assert lab.ssh(vm, "printf '\\nheard\\n' > /dev/ttyS0").status == 0
    lab.vm("flooding", memory="128M", **wait)
    assert b"unheard" not in log.read_bytes()
    assert len(keepers(lab, vm)) == 1
    assert lab.ssh(vm, f"setsid yes {LINE} > /dev/ttyS0 2>&1 < /dev/null &").status == 0


def test_others_are_waited_for_by_their_consoles(lab: Lab, flooding: tuple[Record, dict[str, int]]) -> None:
    """By the usual pattern, and by one of their own; one that never comes is what the error names."""
    result = lab.vm("quiet", state="started", wait_for="console", timeout=120, ssh_keys=[lab.key.public])
    vm = result["vm"]
    assert result["boot_seconds"] > 0 and vm["ready"]["condition"].startswith("console:")
    own: Record = {"state": "started", "wait_for": "console", "wait_pattern": "own words: [a-z]+!"}
    failure = lab.vm("quiet", ok=False, **own, timeout=1)
    assert "own words" in failure["msg"] and str(lab.path("log", vm["id"], "console.log")) in failure["msg"]
    lab.vm("quiet", state="started", wait_for="port", timeout=60)
    assert lab.ssh(vm, "echo 'own words: hello!' > /dev/ttyS0").status == 0
    assert not lab.vm("quiet", **own, timeout=60).changed
    lab.vm("quiet", state="absent", force=True)


def test_logs_outlive_a_stop_and_make_room_at_the_next_start(lab: Lab, flooding: tuple[Record, dict[str, int]]) -> None:
    """The end of the flood is kept beside what the next run writes."""
    vm = flooding[0]
    log = lab.path("log", vm["id"], "console.log")
    lab.vm("flooding", state="stopped", force=True)
    assert keepers(lab, vm) == [] and LINE.encode() in log.read_bytes()
    assert log.with_name("hypervisor.log").exists()
    lab.vm("flooding", state="started", wait_for="console", timeout=120)
    assert log.stat().st_size < MOST and log.with_name("console.log.0").stat().st_size == 0
    before = log.with_name("console.log.1").read_bytes()
    assert len(before) == MOST and LINE.encode() in before


def test_nothing_is_left_of_a_vm_that_is_removed(lab: Lab, flooding: tuple[Record, dict[str, int]]) -> None:
    folder = lab.path("log", flooding[0]["id"])
    vm = lab.module("cocoon_vm_info", names=["flooding"])["vms"][0]
    assert str(folder) in mounts() and len(keepers(lab, vm)) == 1
    lab.vm("flooding", state="absent", force=True)
    assert keepers(lab, vm) == []
    assert str(folder) not in mounts() and not folder.exists()
    assert list(lab.path("log").iterdir()) == []
