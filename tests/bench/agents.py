# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""8. Commands and files in a guest through its agent, beside ssh to the same guest."""

from __future__ import annotations

import base64
import io
import json
import os
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import plays
from common import ROOT, say
from fleet import BenchError, Fleet, seconds
from measures import timed
from results import Row

from ansible_collections.cocoon.microvm.plugins.module_utils._guest import agent as agents
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.agent import Access, Command
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.standard_agent import PIECE
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.channels import guest_channel
from ansible_collections.cocoon.microvm.tests.integration.support.lab import SSH_OPTIONS, address, make_key
from ansible_collections.cocoon.microvm.tests.integration.support.machine import command

SIZE = 8 << 20
# For one number: so many commands, as one takes milliseconds.
COMMANDS = 10
# In the guest, what a command costs by itself.
OWN = "s=$(cut -d' ' -f1 /proc/uptime); i=0; while [ $i -lt 50 ]; do /bin/true; i=$((i+1)); done; "
OWN += "e=$(cut -d' ' -f1 /proc/uptime); echo $s $e"


def measure(fleet: Fleet, runs: int) -> list[Row]:
    """Round trips, files each way, a command in twenty guests by one task, and plays in them."""
    key = make_key(fleet.folder)
    items = fleet.vms(fleet.size, state="started", wait_for="port", timeout=600, ssh_keys=[key.public])
    say(f"   {fleet.size} guests ...")
    fleet.engine([items], nice=0)
    # Twenty that do nothing take the processors, too: what is of one guest is measured with it alone.
    many = fleet.play([_everywhere(fleet)] * runs)
    rows = [Row("8", f"a command in {fleet.size} guests, one task", "s", seconds(many, "exec"))]
    rows += plays.at_once(fleet, key, runs)
    fleet.engine([fleet.named(fleet.size - 1, 1, state="absent", force=True)])
    vm = fleet.module("cocoon_vm_info")["vms"][0]
    ssh = ["ssh", "-F", "/dev/null", *SSH_OPTIONS, "-i", str(key.private), *_shared(fleet), f"root@{address(vm)}"]
    try:
        rows += _one(fleet, vm["id"], ssh, runs)
    finally:
        command(*fleet.netns.enter(), *ssh[:1], "-O", "exit", *ssh[1:], check=False)
        fleet.clear()
    return rows + plays.facts(fleet, key, runs)


def _shared(fleet: Fleet) -> list[str]:
    """One connection for all, as Ansible has it."""
    path = fleet.folder / "master"
    return ["-o", "ControlMaster=auto", "-o", "ControlPersist=60s", "-o", f"ControlPath={path}"]


def _everywhere(fleet: Fleet) -> dict[str, object]:
    names = [item["name"] for item in fleet.named(fleet.size)]
    return {"name": "exec", "cocoon.microvm.cocoon_exec": {"names": names, "argv": ["/bin/true"], **fleet.dirs}}


def _one(fleet: Fleet, vm_id: str, ssh: list[str], runs: int) -> list[Row]:
    run_dir = str(Path(fleet.dirs["run_dir"]) / vm_id)
    agent = agents.find(Access(guest_channel("qemu", run_dir), run_dir), time.monotonic() + 60)
    content = os.urandom(SIZE)

    def by_ssh(script: str, data: bytes = b"") -> bytes:
        done = subprocess.run([*fleet.netns.enter(), *ssh, script], input=data, capture_output=True, check=False)
        if done.returncode:
            raise BenchError(f"ssh failed: {done.stderr.decode(errors='replace')}")
        return done.stdout

    def by_agent() -> None:
        for _turn in range(COMMANDS):
            agent.run(Command(("/bin/true",)), 60)

    def fetch() -> None:
        target = io.BytesIO()
        agent.fetch("/root/file", target, time.monotonic() + 600)
        if target.getvalue() != content:
            raise BenchError("the file that came back is another one")

    def put() -> None:
        agent.put("/root/file", io.BytesIO(content), time.monotonic() + 600)

    start, end = map(float, agent.run(Command(("/bin/sh", "-c", OWN)), 60).stdout.split())
    own = (end - start) / 50 * 1000
    by_ssh("true")
    trips = [timed(by_agent) / COMMANDS * 1000 - own for _run in range(runs)]
    shells = [timed(lambda: by_ssh("true")) * 1000 - own for _run in range(runs)]
    into = [SIZE / 1e6 / timed(put) for _run in range(runs)]
    out = [SIZE / 1e6 / timed(fetch) for _run in range(runs)]
    puts = [SIZE / 1e6 / timed(lambda: by_ssh("cat > /root/file", content)) for _run in range(runs)]
    fetches = [SIZE / 1e6 / timed(lambda: by_ssh("cat /root/file")) for _run in range(runs)]
    return [
        Row("8", "a command, above the guest's own", "ms", trips, "15 ms", statistics.median(trips) <= 15),
        Row("8", "the same by ssh, connected", "ms", shells),
        Row("8", "a file into a guest", "MB/s", into, "20 MB/s", statistics.median(into) >= 20),
        Row("8", "the same by ssh", "MB/s", puts),
        Row("8", "a file out of a guest", "MB/s", out, "20 MB/s", statistics.median(out) >= 20),
        Row("8", "the same by ssh", "MB/s", fetches),
        *_unemulated(fleet.folder, runs),
    ]


class Helper:
    """The helper of our images as a process of this machine, with nothing between it and us."""

    def __init__(self) -> None:
        words = ["perl", str(ROOT / "roles/image/files/guest/common/agent"), "-", "/", "true"]
        self.child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, what: str, **arguments: object) -> Any:
        assert self.child.stdin and self.child.stdout
        self.child.stdin.write(json.dumps({"execute": what, "arguments": arguments}).encode() + b"\n")
        self.child.stdin.flush()
        return json.loads(self.child.stdout.readline())["return"]

    def run(self) -> None:
        pid = self.ask("guest-exec", path="/bin/true", **{"capture-output": True})["pid"]
        while not self.ask("guest-exec-status", pid=pid)["exited"]:
            time.sleep(0.0001)

    def put(self, path: Path, content: bytes) -> None:
        handle = self.ask("guest-file-open", path=str(path), mode="w")
        for place in range(0, len(content), PIECE):
            data = base64.b64encode(content[place : place + PIECE]).decode()
            self.ask("guest-file-write", handle=handle, **{"buf-b64": data})
        self.ask("guest-file-close", handle=handle)

    def fetch(self, path: Path) -> None:
        handle = self.ask("guest-file-open", path=str(path), mode="r")
        while base64.b64decode(self.ask("guest-file-read", handle=handle, count=PIECE)["buf-b64"]):
            pass
        self.ask("guest-file-close", handle=handle)

    def close(self) -> None:
        assert self.child.stdin
        self.child.stdin.close()
        self.child.wait(10)


def _unemulated(folder: Path, runs: int) -> list[Row]:
    """What of the above is the guest's processor: the helper's part of it, on this machine's own."""
    helper, content, path = Helper(), os.urandom(SIZE), folder / "unemulated"
    try:
        trips = [timed(lambda: [helper.run() for _turn in range(COMMANDS)]) / COMMANDS * 1000 for _run in range(runs)]
        puts = [SIZE / 1e6 / timed(lambda: helper.put(path, content)) for _run in range(runs)]
        fetches = [SIZE / 1e6 / timed(lambda: helper.fetch(path)) for _run in range(runs)]
    finally:
        helper.close()
    return [
        Row("8", "the guest's part, not emulated: a command", "ms", trips),
        Row("8", "the guest's part, not emulated: a file in", "MB/s", puts),
        Row("8", "the guest's part, not emulated: a file out", "MB/s", fetches),
    ]
