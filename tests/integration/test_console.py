# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Consoles: a guest that writes its own for ever harms nobody, and what the others write can be waited for and read."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.tests.integration.support.lab import Lab
from ansible_collections.cocoon.microvm.tests.integration.support.leaks import mounts

MIB = 1 << 20
Record = dict[str, Any]
LINE = "the quick brown fox jumps over the lazy dog"
# More than a log may take; an emulated serial port takes a second for 100 KiB.
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
    """A guest that has written its console full and goes on, and what the store's folders took before."""
    vm = lab.started("flooding", memory="128M")
    before = {kind: held(lab.path(kind)) for kind in ("root", "log")}
    assert lab.ssh(vm, f"setsid yes {LINE} > /dev/ttyS0 2>&1 < /dev/null &").status == 0
    assert read_console(lab, vm, FLOOD) >= FLOOD
    return vm, before


def test_the_host_holds_no_more_than_a_log_may_take(lab: Lab, flooding: tuple[Record, dict[str, int]]) -> None:
    """The log is a file system of its own, which is full; nothing else has grown by what was written."""
    vm, before = flooding
    folder = lab.path("log", vm["id"])
    assert folder.is_mount() and os.statvfs(folder).f_bavail == 0
    sizes = []
    for _turn in range(2):
        sizes.append((log_size(lab, vm), held(lab.path("log")), held(lab.path("root"))))
        assert read_console(lab, vm, MORE) >= MORE
    assert sizes[0][0] == sizes[1][0] <= MIB
    assert sizes[0][1] == sizes[1][1] == before["log"]
    # The guest may write to its disk, but what it wrote to its console is not there.
    assert sizes[1][2] - before["root"] < MIB


def test_hypervisor_and_guest_go_on(lab: Lab, flooding: tuple[Record, dict[str, int]]) -> None:
    vm = flooding[0]
    assert lab.ssh(vm, "echo still here").output == "still here\n"
    found = lab.module("cocoon_vm_info", names=["flooding"])["vms"][0]
    assert (found["state"], found["pid"]) == ("running", vm["pid"])


def test_what_a_full_log_cannot_take_can_be_waited_for(lab: Lab, flooding: tuple[Record, dict[str, int]]) -> None:
    """A task waits while the guest still floods; then it says something else for once."""
    vm = flooding[0]
    pattern = "^over [0-9]+ and out"
    wait: Record = {"state": "started", "wait_for": "console", "wait_pattern": pattern, "timeout": 120}
    child = lab.module.start("cocoon_vm", name="flooding", **wait)
    assert lab.ssh(
        vm, "killall yes; sleep 1; for i in 1 2 3 4 5; do echo; echo over $i and out; sleep 2; done > /dev/ttyS0"
    )
    result = lab.module.finish(child)
    assert not result.failed and not result.changed, result
    assert b" and out" not in lab.path("log", vm["id"], "console.log").read_bytes()
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
    assert log.stat().st_size > MIB // 2 and LINE.encode() in log.read_bytes()
    assert log.with_name("hypervisor.log").exists()
    lab.vm("flooding", state="started", wait_for="console", timeout=120)
    assert log.stat().st_size < MIB // 4
    assert LINE.encode() in log.with_name("console.log.1").read_bytes()


def test_nothing_is_left_of_a_vm_that_is_removed(lab: Lab, flooding: tuple[Record, dict[str, int]]) -> None:
    folder = lab.path("log", flooding[0]["id"])
    assert str(folder) in mounts()
    lab.vm("flooding", state="absent", force=True)
    assert str(folder) not in mounts() and not folder.exists()
    assert list(lab.path("log").iterdir()) == []
