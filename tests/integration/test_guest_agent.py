# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent inside a real guest: one tiny guest for all of it."""

from __future__ import annotations

import concurrent.futures
import hashlib
import io
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._guest import agent as agents
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.agent import Access, Command
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.standard_agent import StandardAgent
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.channels import guest_channel
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import saving
from ansible_collections.cocoon.microvm.tests.integration.support.engine import Engine
from ansible_collections.cocoon.microvm.tests.integration.support.lab import BOOT, Lab, address
from ansible_collections.cocoon.microvm.tests.integration.support.watch import CommandLines

SECRET = "a secret that nobody may see"


@pytest.fixture(scope="module")
def vm(lab: Lab) -> dict[str, Any]:
    """A guest whose agent has answered."""
    result = lab.vm("web1", state="started", wait_for="agent", timeout=BOOT, ssh_keys=[lab.key.public])
    assert result["vm"]["ready"]["condition"] == "agent" and result["boot_seconds"] > 0
    return dict(result["vm"])


def soon(seconds: float = 60.0) -> float:
    return time.monotonic() + seconds


@pytest.fixture(scope="module")
def agent(lab: Lab, vm: dict[str, Any]) -> StandardAgent:
    """The client, without a module around it."""
    run_dir = str(lab.path("run", vm["id"]))
    found = agents.find(Access(guest_channel("qemu", run_dir), run_dir), soon())
    assert isinstance(found, StandardAgent)
    return found


def test_a_command_in_a_guest(lab: Lab, vm: dict[str, Any]) -> None:
    script = 'cat; echo "$A $HOME" >&2; hostname; exit 3'
    runner = lab.module.with_defaults(env={"A": "b c"})  # of the command, and not of the module
    found = runner("cocoon_exec", ok=False, name="web1", shell=script, stdin="in\n", creates="/no/such")
    assert (found["rc"], found["stdout_lines"], found["stderr"]) == (3, ["in", "web1"], "b c /root")
    assert found["failed_vms"] == ["web1"] and "exit code 3" in found["msg"]
    assert found["results"][0]["agent"] == "qemu-guest-agent"
    # Nothing to wait for any more.
    assert not lab.vm("web1", state="started", wait_for="agent", timeout=5).changed


def test_what_a_guest_says_of_itself(lab: Lab, vm: dict[str, Any]) -> None:
    known = lab.module("cocoon_vm_info", guest=True, logs=1)["vms"][0]
    assert known["logs"]["console"]["lines"] == ["cocoon: ready web1"]
    assert known["console_path"].endswith("/console.sock") and known["logs"]["hypervisor"]["path"].endswith(".log")
    found = known["guest"]
    assert "error" not in found, found
    assert (found["hostname"], found["os"]["id"], found["users"]) == ("web1", "cocoon-tiny", [])
    nic = next(item for item in found["interfaces"] if item["name"] == "eth0")
    assert nic["mac"] == vm["network_configs"][0]["mac"]
    assert {"address": address(vm), "prefix": 24} in nic["addresses"]
    assert any(item["mountpoint"] == "/run/cocoon/cow" for item in found["file_systems"])


def writing(lab: Lab) -> float:
    """Seconds that 4 MiB take on their way to the system disk."""
    script = "read a _ < /proc/uptime; dd if=/dev/zero of=/root/big bs=64k count=64 conv=fsync 2> /dev/null;"
    said = lab.module("cocoon_exec", name="web1", shell=f"{script} read b _ < /proc/uptime; rm /root/big; echo $a $b")
    begun, ended = said["stdout"].split()
    return float(ended) - float(begun)


def test_a_disk_is_as_fast_as_its_limits(lab: Lab, vm: dict[str, Any]) -> None:
    """Of what comes a second's worth is at once."""
    slow = lab.vm("web1", limits={"write": {"rate": "1M"}})
    assert slow.changed and slow["vm"]["pid"] == vm["pid"] and slow["diff"]["after"]["how"]["vm"] == "live"
    assert 2.5 < writing(lab) < 10
    assert lab.vm("web1", limits={}).changed
    assert writing(lab) < 2.5


def test_each_guest_for_itself(lab: Lab, vm: dict[str, Any]) -> None:
    found = lab.module("cocoon_exec", ok=False, names=["web1", "nobody"], argv=["/bin/true"])
    one, other = found["results"]
    assert (one["rc"], one["changed"], other["rc"]) == (0, True, None)
    assert found["failed_vms"] == ["nobody"] and "there is no VM 'nobody'" in other["msg"]
    missing = lab.module("cocoon_exec", ok=False, name="web1", argv=["/not/there"])
    assert "refused exec" in missing["msg"] and "No such file" in missing["msg"]


def test_it_runs_only_where_it_has_to(lab: Lab, vm: dict[str, Any]) -> None:
    touch = {"name": "web1", "argv": ["touch", "/root/made"], "creates": "/root/made"}
    assert lab.module("cocoon_exec", check=True, **touch).changed
    assert lab.module("cocoon_exec", check=True, name="web1", argv=["false"], removes="/root/made").changed is False
    assert lab.module("cocoon_exec", **touch).changed
    again = lab.module("cocoon_exec", **touch)
    assert not again.changed and again["results"][0]["skipped"]


def test_secrets_stay_in_the_guest(lab: Lab, vm: dict[str, Any]) -> None:
    """While the command runs, no process of this machine has them in its arguments."""
    runner = lab.module.with_defaults(env={"PW": SECRET})
    with CommandLines() as lines:
        result = runner("cocoon_exec", name="web1", shell="cat > /dev/null", stdin=SECRET)
    assert lines.holding(["cocoon_exec"]) and lines.holding([SECRET]) == []
    assert result["rc"] == 0 and SECRET not in str(result)


def test_commands_do_not_mix_and_end_in_time(lab: Lab, agent: StandardAgent) -> None:
    def one(number: int) -> bytes:
        return agent.run(Command(("sh", "-c", f"echo {number}; sleep 0.3; echo {number}")), 60).stdout

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert list(pool.map(one, range(6))) == [f"{number}\n{number}\n".encode() for number in range(6)]
    late = lab.module("cocoon_exec", ok=False, name="web1", argv=["sleep", "321"], timeout=1)
    assert "killed" in late["msg"] and late["results"][0]["error"] == "CommandTimeoutError"
    listed = agent.run(Command(("ps",)), 60).stdout
    assert b"sleep 321" not in listed


def test_files_there_and_back(agent: StandardAgent) -> None:
    content = os.urandom(1 << 20)
    agent.put("/root/file", io.BytesIO(content), soon())
    digest = hashlib.sha256(content).hexdigest()
    assert agent.run(Command(("sha256sum", "/root/file")), 60).stdout.split()[0].decode() == digest
    back = io.BytesIO()
    agent.fetch("/root/file", back, soon())
    assert back.getvalue() == content


def test_a_snapshot_of_file_systems_that_stand_still(lab: Lab, vm: dict[str, Any], agent: StandardAgent) -> None:
    """What is on the disk then has nothing left to be recovered, unlike after a power cut."""
    assert agent.run(Command(("sh", "-c", "echo here > /root/note")), 60).code == 0
    for how, frozen in (("required", True), ("no", False)):
        options = {"name": "still", "vm": "web1", "disks_only": True, "freeze": how, "replace": True}
        taken = lab.module("cocoon_snapshot", **options)["snapshot"]
        assert (taken["kind"], taken["frozen"], "mem" in taken["files"]) == ("disks", frozen, False)
        assert 0 < taken["paused_seconds"] < 30
        assert unfinished(lab.path("root", "snapshots", taken["id"], "cow.raw")) is not frozen
    assert lab.module("cocoon_snapshot_info", name="still")["snapshots"][0]["frozen"] is False
    assert agent.run(Command(("sh", "-c", "cat /root/note; echo on > /root/thawed; sync")), 60).stdout == b"here\n"
    refused = lab.module("cocoon_snapshot", ok=False, name="still", vm="web1", freeze="required")
    assert "did not stand still" in refused["msg"]
    assert lab.module("cocoon_snapshot", name="still", state="absent").changed


def unfinished(disk: Path) -> bool:
    """Whether the journal of the ext4 on a disk has something that is not in its place yet."""
    with disk.open("rb") as stream:
        stream.seek(1024)
        block = stream.read(1024)
    assert block[0x38:0x3A] == b"\x53\xef"
    return bool(int.from_bytes(block[0x60:0x64], "little") & 4)


def test_whoever_takes_one_is_killed(
    lab: Lab, vm: dict[str, Any], agent: StandardAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the file systems stand still, and while a disk is copied with the guest going on; they go on, too."""
    monkeypatch.setattr(saving, "LARGE", 0)
    engine = Engine(lab.netns, lab.store)
    options = {"name": "late", "vm": "web1", "disks_only": True, "freeze": "required"}
    marks = engine.start_snapshot(**options).wait().marks
    assert engine.start_snapshot(name="late", state="absent").wait().results["changed"]
    for place in ("save.frozen", "save.copied"):
        assert engine.start_snapshot(marks.index(place), **options).wait().killed
        deadline = soon(20)
        while agent.ask("guest-fsfreeze-status", soon(20)) != "thawed":
            assert time.monotonic() < deadline, "the guest's file systems stand still"
            time.sleep(0.1)
        assert agent.run(Command(("sh", "-c", "echo on > /root/thawed; sync")), 60).code == 0
    found = engine.start_snapshot(**options).wait().results
    taken = found["snapshot"]
    assert taken["frozen"] and not unfinished(lab.path("root", "snapshots", taken["id"], "cow.raw"))
    assert engine.start_snapshot(name="late", state="absent").wait().results["changed"]


def test_a_guest_that_does_not_answer(lab: Lab, vm: dict[str, Any]) -> None:
    """A wedged one costs its own time and no more; an agent that has gone is told of."""
    os.kill(vm["pid"], signal.SIGSTOP)
    try:
        begun = time.monotonic()
        found = lab.module("cocoon_exec", ok=False, name="web1", argv=["true"], agent_timeout=1)
        assert "no agent answers in the guest" in found["msg"] and time.monotonic() - begun < 20
    finally:
        os.kill(vm["pid"], signal.SIGCONT)
    assert lab.module("cocoon_exec", name="web1", argv=["true"])["rc"] == 0


def test_it_is_told_the_time_when_it_goes_on(lab: Lab, vm: dict[str, Any], agent: StandardAgent) -> None:
    """After a pause, a hibernation and a restore, whose guests do not know how late it is."""
    for way in ("paused", "hibernated", "restored"):
        assert agent.run(Command(("date", "-s", "@1000")), 60).code == 0
        if way == "restored":
            lab.module("cocoon_snapshot", name="then", vm="web1")
            lab.module("cocoon_snapshot", name="then", state=way)
        else:
            lab.vm("web1", state=way)
            if way == "paused":
                found = lab.module("cocoon_exec", ok=False, name="web1", argv=["true"])
                assert "VM 'web1' is paused" in found["msg"]
            lab.vm("web1", state="started")
        assert abs(int(agent.run(Command(("date", "+%s")), 60).stdout) - time.time()) < 60, way
    lab.module("cocoon_snapshot", name="then", state="absent")


def test_it_shuts_down_without_a_power_button(lab: Lab, vm: dict[str, Any], agent: StandardAgent) -> None:
    """By the agent, cleanly: nobody in the guest listens to the button."""
    assert agent.run(Command(("killall", "acpid")), 60).code == 0
    stopped = lab.vm("web1", state="stopped", stop_timeout=60)["vm"]
    assert (stopped["state"], stopped["reason"]) == ("stopped", "shut down")
    found = lab.module("cocoon_exec", ok=False, name="web1", argv=["true"])
    assert "VM 'web1' does not run" in found["msg"]
