# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent inside a guest of each hypervisor that has a vsock: one tiny guest each, in the order of its life."""

from __future__ import annotations

import hashlib
import os
import time
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.tests.lab.conftest import Site
from ansible_collections.cocoon.microvm.tests.unit import cocoon

VM = {"image": "tiny", "cpu": 1, "memory": "128M", "storage": "256M", "network": "lab", "balloon": "off"}


def name_of(driver: str) -> str:
    return f"agent-{driver}"


@pytest.fixture(scope="module")
def vm(site: Site, driver: str) -> dict[str, Any]:
    """A guest whose agent has answered."""
    result = site.vm(name_of(driver), hypervisor=driver, state="started", wait_for="agent", timeout=400, **VM)
    assert result["vm"]["ready"]["condition"] == "agent"
    return dict(result["vm"])


def run(site: Site, name: str, shell: str, **more: Any) -> dict[str, Any]:
    """What a line of shell does in a guest, where it has to end well."""
    found = site.module("cocoon_exec", name=name, shell=shell, agent_timeout=60, **more)
    assert not found["failed"], found
    return found


def late(site: Site, name: str) -> float:
    """How many seconds the clock of a guest is behind."""
    return float(site.shell("date +%s")) - float(run(site, name, "date +%s")["stdout"])


def test_a_command(site: Site, vm: dict[str, Any], driver: str) -> None:
    script = 'cat; echo "$A $HOME" >&2; hostname; exit 3'
    found = site.module("cocoon_exec", name=name_of(driver), shell=script, stdin="in\n", env={"A": "b c"})
    assert found["failed"] and (found["rc"], found["stderr"]) == (3, "b c /root"), found
    assert found["stdout_lines"] == ["in", name_of(driver)]
    assert found["results"][0]["agent"] == "qemu-guest-agent"


def test_what_it_says_of_itself(site: Site, vm: dict[str, Any], driver: str) -> None:
    found = site.module("cocoon_vm_info", name=name_of(driver), guest=True)["vms"][0]["guest"]
    assert (found.get("hostname"), found["os"]["id"]) == (name_of(driver), "cocoon-tiny"), found
    assert vm["network_configs"][0]["mac"] in [item.get("mac") for item in found["interfaces"]]


def test_plays_in_it(site: Site, vm: dict[str, Any], driver: str) -> None:
    """By the connection plugin: a file that is copied there, compared by its checksum, and run."""
    script = site.folder / "script"
    content = f"#!/bin/sh\nsha256sum < $0\nexit $1\n# {os.urandom(50_000).hex()}\n".encode()
    script.write_bytes(content)
    code, said = site.in_guest(name_of(driver), "ansible.builtin.script", f"{script} 7")
    assert code == 2 and hashlib.sha256(content).hexdigest() in said and '"rc": 7' in said, said


def test_a_snapshot_of_file_systems_that_stand_still(site: Site, vm: dict[str, Any], driver: str) -> None:
    name = name_of(driver)
    run(site, name, "echo here > /root/note")
    for how, frozen in (("required", True), ("no", False)):
        taken = site.module("cocoon_snapshot", name=name, vm=name, disks_only=True, freeze=how, replace=True)
        assert not taken["failed"] and taken["snapshot"]["frozen"] is frozen, taken
        assert unfinished(site, taken["snapshot"]) is not frozen
        run(site, name, "cat /root/note; echo on > /root/thawed; sync; echo more > /root/note")
    assert not site.module("cocoon_snapshot", name=name, state="absent")["failed"]


def unfinished(site: Site, snapshot: dict[str, Any]) -> bool:
    """Whether the journal of the ext4 on the saved disk has something that is not in its place yet."""
    path = f"/var/lib/cocoon-microvm/snapshots/{snapshot['id']}/cow.raw"
    words = site.shell(f"od -A n -t x1 -j 1120 -N 1 {path}; od -A n -t x1 -j 1080 -N 2 {path}").split()
    assert words[1:] == ["53", "ef"]
    return bool(int(words[0], 16) & 4)


def test_whoever_takes_one_is_killed(site: Site, vm: dict[str, Any], driver: str) -> None:
    """Its file systems go on, and the guest with them."""
    name = name_of(driver)
    folder = "/var/lib/cocoon-microvm/snapshots"
    # A disk takes as long to copy as this: time for whoever kills. It ends the module as soon as that has begun to.
    run(site, name, "dd if=/dev/urandom of=/root/filling bs=1M count=64 2>/dev/null; sync")
    site.shell(
        f"rm -f /tmp/killed; (while [ ! -e /tmp/killed ]; do for disk in {folder}/*/cow.raw; do"
        ' [ -e "$disk" ] || continue; pkill -KILL -x -f /usr/bin/python3 && touch /tmp/killed; done;'
        " sleep 0.01; done) < /dev/null > /dev/null 2>&1 &"
    )
    died = site.module("cocoon_snapshot", name=name, vm=name, disks_only=True, freeze="required")
    site.shell("touch /tmp/killed")
    assert died["failed"], died
    deadline = time.monotonic() + 60
    while True:
        found = site.module("cocoon_exec", name=name, shell="echo on > /root/on; sync", agent_timeout=30, timeout=20)
        if not found["failed"]:
            break
        assert time.monotonic() < deadline, found
    assert site.vm(name, state="started")["vm"]["state"] == "running"


def test_after_a_pause(site: Site, vm: dict[str, Any], driver: str) -> None:
    name = name_of(driver)
    run(site, name, "date -s @1000")
    site.vm(name, state="paused")
    refused = site.module("cocoon_exec", name=name, argv=["true"])
    assert refused["failed"] and "is paused" in refused["msg"]
    site.vm(name, state="started")
    assert abs(late(site, name)) < 60


def test_after_sleep_and_restore(site: Site, vm: dict[str, Any], driver: str) -> None:
    """The host's connections are gone, which its agent has not heard of."""
    name = name_of(driver)
    run(site, name, "date -s @1000")
    site.vm(name, state="hibernated")
    site.vm(name, state="started", timeout=200)
    assert abs(late(site, name)) < 60
    taken = site.module("cocoon_snapshot", name=name, vm=name)
    assert not taken["failed"], taken
    run(site, name, "touch /run/since")
    restored = site.module("cocoon_snapshot", name=name, vm=name, state="restored")
    assert not restored["failed"], restored
    site.vm(name, state="started", timeout=200)
    assert run(site, name, "ls /run")["stdout"].split().count("since") == 0


def test_a_clone_is_itself(site: Site, vm: dict[str, Any], driver: str) -> None:
    """It is told who it is where its agent answers, and both work."""
    name = f"{name_of(driver)}-one"
    site.vm(name, snapshot=name_of(driver), state="started", wait_for="agent", timeout=200)
    assert run(site, name, "hostname")["stdout"] == name
    assert run(site, name_of(driver), "hostname")["stdout"] == name_of(driver)
    assert not site.vm(name, state="absent", force=True)["failed"]
    assert not site.module("cocoon_snapshot", name=name_of(driver), state="absent")["failed"]


def test_it_shuts_down_without_a_power_button(site: Site, vm: dict[str, Any], driver: str) -> None:
    """By its agent, cleanly: nobody in the guest listens to the button, or to the keys."""
    name = name_of(driver)
    run(site, name, "echo last > /root/last; killall acpid; sed -i /ctrlaltdel/d /etc/inittab; kill -HUP 1")
    stopped = site.vm(name, state="stopped", stop_timeout=60)["vm"]
    assert (stopped["state"], stopped["reason"]) == ("stopped", "shut down")
    site.vm(name, state="started", wait_for="agent", timeout=400)
    assert run(site, name, "cat /root/last")["stdout"] == "last"
    assert site.vm(name, state="absent", force=True)["changed"]


def test_agents_of_others(site: Site, debian: str, driver: str) -> None:
    """qemu-guest-agent behind what listens in `debian`; and where that does not, a double of Cocoon's agent."""
    name = f"debian-{driver}"
    site.vm(name, hypervisor=driver, state="started", wait_for="agent", timeout=600,
            **{**VM, "image": debian, "memory": "512M", "storage": "1G"})  # fmt: skip
    found = run(site, name, "systemctl is-active cocoon-agent qemu-guest-agent; id -un", stdin="")
    assert found["stdout_lines"] == ["active", "inactive", "root"]
    assert found["results"][0]["agent"] == "qemu-guest-agent"
    taken = site.module("cocoon_snapshot", name=name, vm=name, disks_only=True, freeze="required")
    assert not taken["failed"] and taken["snapshot"]["frozen"] and not unfinished(site, taken["snapshot"]), taken
    assert not site.module("cocoon_snapshot", name=name, state="absent")["failed"]
    plays_in(site, name)
    cocoon_agent(site, name)
    stopped = site.vm(name, state="stopped", stop_timeout=100)["vm"]
    assert stopped["reason"] == "shut down"
    assert site.vm(name, state="absent", force=True)["changed"]


def plays_in(site: Site, name: str) -> None:
    """Files both ways, by modules that a Python there runs."""
    content, back = os.urandom(300_000), site.folder / "back"
    (site.folder / "there").write_bytes(content)
    for module, args in (
        ("ansible.builtin.setup", "gather_subset=!all,min"),
        ("ansible.builtin.copy", f"src={site.folder}/there dest=/root/there"),
        ("ansible.builtin.fetch", f"src=/root/there dest={back} flat=true"),
    ):
        code, said = site.in_guest(name, module, args)
        assert code == 0, said
    assert back.read_bytes() == content


def cocoon_agent(site: Site, name: str) -> None:
    """Nobody says that it is another agent now, and another one after that."""
    code, said = site.in_guest(name, "ansible.builtin.copy", f"src={cocoon.__file__} dest=/root/double")
    assert code == 0, said
    stop = "systemctl stop cocoon-vsock cocoon-agent.socket cocoon-agent"
    become(site, name, f"{stop}; exec python3 /root/double", "cocoon-agent")
    found = site.module("cocoon_exec", name=name, shell="cat; hostname; exit 3", stdin="in\n")
    assert (found["rc"], found["stdout_lines"]) == (3, ["in", name])
    code, said = site.in_guest(name, "ansible.builtin.copy", f"src={site.folder}/there dest=/root/again")
    assert code == 0, said
    refused = site.module("cocoon_snapshot", name=name, vm=name, disks_only=True, freeze="required")
    assert refused["failed"] and "Cocoon agent freezes no file systems" in refused["msg"], refused
    become(site, name, "pkill -f [/]root/double; systemctl start cocoon-vsock", "qemu-guest-agent")


def become(site: Site, name: str, line: str, agent: str) -> None:
    """Have another agent by a line of shell that runs once this one has answered."""
    run(site, name, f"systemd-run --collect sh -c 'sleep 2; {line}'")
    deadline = time.monotonic() + 120
    while site.module("cocoon_exec", name=name, argv=["true"], agent_timeout=20)["results"][0].get("agent") != agent:
        assert time.monotonic() < deadline, f"{agent} does not answer"
        time.sleep(2)
