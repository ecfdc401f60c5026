# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""On a host with systemd a VM belongs to nobody's session: it outlives the login whose playbook started it.

The host is a Debian guest of our own, reached over ssh; its VM is one in a VM. Under TCG the host is given the CPU
feature SVM, and so a KVM that works.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.tests.integration.support import images
from ansible_collections.cocoon.microvm.tests.integration.support.lab import Lab, address, make_lab
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules, Playbooks, Run

Record = dict[str, Any]
USER = "ops"
PYTHON = "/usr/bin/python3"
HOST = {"image": "host", "cpu": 2, "memory": "1G", "storage": "4G"}
BOOT = 300
NETWORK = {"name": "lab", "subnet": "10.92.0.0/24", "nat": False}
VM = {"name": "inner", "image": "tiny", "cpu": 1, "memory": "96M", "storage": "256M", "network": "lab"}
STARTED = {**VM, "state": "started", "wait_for": "console", "timeout": BOOT}
# As strict as a host can be about what users leave behind; and a process that is left behind by one.
LOGIND = "/etc/systemd/logind.conf.d/strict.conf"
STRICT = f"mkdir -p {LOGIND.rpartition('/')[0]} && printf '[Login]\\nKillUserProcesses=yes\\n' > {LOGIND}"
LEFT_BEHIND = "sleep 86399"


@pytest.fixture(scope="module")
def host_image(scratch: Path) -> Path:
    """The tar of a Debian with systemd and all that a hypervisor host needs."""
    if not any(images.CACHE.glob("host.*.json")):
        pytest.skip(f"the packages of the host's image are not in {images.CACHE}: run `make setup`")
    return images.built("host", scratch)


@pytest.fixture(scope="module")
def lab(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    host_image: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Lab]:
    """A store with the host's image."""
    folder = tmp_path_factory.mktemp("systemd")
    with make_lab(make_netns(), make_store(), modules, host_image, folder, name="host") as lab:
        yield lab


@dataclass
class Host:
    """A machine with systemd that is to run VMs."""

    lab: Lab
    vm: Record
    playbooks: Playbooks

    def run(self, *tasks: dict[str, Any], ok: bool | None = True) -> Run:
        """Run tasks on it as root, by the login of an ordinary user, all in one session."""
        variables = {
            "ansible_host": address(self.vm),
            "ansible_user": USER,
            "ansible_become": True,
            "ansible_ssh_private_key_file": str(self.lab.key.private),
        }
        play = {"hosts": "host", "gather_facts": False, "tasks": list(tasks)}
        inventory = {"all": {"hosts": {"host": variables}}}
        return self.playbooks([play], inventory, variables={"ansible_python_interpreter": PYTHON}, ok=ok)

    def shell(self, script: str) -> str:
        """What a command gives, as root, by a login of its own."""
        answer = self.lab.ssh(self.vm, "sudo", "sh", "-c", script, user=USER, timeout=BOOT)
        assert answer.status == 0, f"{script}: {answer.status}, {answer.output}\n{answer.errors}"
        return answer.output.strip()

    def until(self, script: str, wanted: str, patience: float = 60) -> None:
        """Log in and look, until a command gives what is wanted."""
        deadline = time.monotonic() + patience
        while (found := self.shell(script)) != wanted:
            if time.monotonic() > deadline:
                state = self.shell("systemctl --no-pager status user.slice; journalctl --no-pager -n 50")
                raise AssertionError(f"{script}: still {found!r}, not {wanted!r}\n{state}")
            time.sleep(0.5)


def allow_nesting(lab: Lab, vm: Record) -> None:
    """Give an emulated CPU the feature SVM, which the engine leaves out."""
    path = lab.path("root", "vms", vm["id"], "vm.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["accel"] == "tcg":
        record["cpu_model"] = record["cpu_model"].replace("svm=off", "svm=on,npt=on")
        assert "svm=on" in record["cpu_model"]
        path.write_text(json.dumps(record), encoding="utf-8")


@pytest.fixture(scope="module")
def host(lab: Lab, tiny_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """The host, up, with the tar of an image for its VM."""
    size = tiny_image.stat().st_size
    # Faster than a copy by ssh, whose encryption is emulated too.
    disk = {"name": "tiny", "size": -(-size // (1 << 20)) * (1 << 20), "fstype": "none"}
    options = {**HOST, "user": USER, "ssh_keys": [lab.key.public], "data_disks": [disk]}
    vm = lab.vm("host", **options)["vm"]
    with lab.path("root", "vms", vm["id"], "data-tiny.raw").open("r+b") as stream:
        stream.write(tiny_image.read_bytes())
    allow_nesting(lab, vm)
    vm = lab.vm("host", **options, state="started", wait_for="port", timeout=BOOT)["vm"]
    host = Host(lab, vm, Playbooks(lab.netns, tmp_path_factory.mktemp("plays"), {}))
    copy = f"head -c {size} /dev/disk/by-id/virtio-tiny > /root/tiny.tar"
    host.shell(f"{copy} && {STRICT} && systemctl restart systemd-logind && (modprobe -q kvm_amd || true)")
    return host


def module(name: str, /, **options: Any) -> dict[str, Any]:
    return {"name": name, f"cocoon.microvm.{name}": options}


@pytest.fixture(scope="module")
def inner(host: Host) -> Record:
    """A VM on the host, started in a session that has ended since."""
    run = host.run(
        {"name": "session", "ansible.builtin.command": "cat /proc/self/cgroup"},
        {"name": "left behind", "ansible.builtin.shell": f"setsid {LEFT_BEHIND} > /dev/null 2>&1 &"},
        module("cocoon_network", **NETWORK),
        module("cocoon_image", name="tiny", source="/root/tiny.tar"),
        module("cocoon_vm", **STARTED),
    )
    vm = run.result("cocoon_vm")["vm"]
    cgroup = run.result("session")["stdout"].splitlines()[-1]
    # The login was a session of systemd's, and our task was in it.
    assert "/user.slice/" in cgroup and cgroup.endswith(".scope"), cgroup
    session = cgroup.rpartition("/session-")[2].partition(".scope")[0]
    host.until(f"loginctl show-session {session} --property=State 2> /dev/null || true", "")
    return {**vm, "session": session}


def unit_of(vm: Record) -> str:
    return f"cocoon-microvm-{vm['id']}-{vm['pid']}.scope"


def cgroup_of(host: Host, vm: Record) -> str:
    return host.shell(f"cat /proc/{vm['pid']}/cgroup")


def test_a_vm_has_a_scope_of_its_own(host: Host, inner: Record) -> None:
    """Below our slice, with the whole hypervisor in it and nothing else."""
    unit = unit_of(inner)
    assert cgroup_of(host, inner) == f"0::/cocoon.slice/cocoon-microvm.slice/{unit}"
    assert host.shell(f"systemctl is-active {unit}") == "active"
    # The kernel's own threads for a KVM guest are in there too; they have no command line.
    processes = f"$(cat /sys/fs/cgroup/cocoon.slice/cocoon-microvm.slice/{unit}/cgroup.procs)"
    named = f'for pid in {processes}; do [ -z "$(tr -d "\\0" < /proc/$pid/cmdline)" ] || echo $pid; done'
    assert host.shell(named) == str(inner["pid"])


def test_a_vm_outlives_the_session_that_started_it(host: Host, inner: Record) -> None:
    """The session is gone, and with it what a user leaves behind. The VM is not."""
    assert host.shell(f"pgrep -fx '{LEFT_BEHIND}' || true") == ""
    assert inner["session"] not in host.shell("loginctl list-sessions --no-legend | awk '{print $1}'").split()
    found = host.run(module("cocoon_vm_info", names=["inner"])).result("cocoon_vm_info")["vms"][0]
    assert (found["state"], found["pid"]) == ("running", inner["pid"])


def test_a_vm_on_a_kvm_host_has_the_accelerators_group(host: Host, inner: Record) -> None:
    """And no other of the host's, and still no capabilities."""
    status = dict(line.split(":\t", 1) for line in host.shell(f"cat /proc/{inner['pid']}/status").splitlines())
    groups = [int(word) for word in status["Groups"].split()]
    owner = host.shell("stat -c %g /dev/kvm 2> /dev/null || true")
    assert [group for group in groups if group < 1 << 16] == ([int(owner)] if inner["accel"] == "kvm" else [])
    assert int(status["CapEff"], 16) == 0 and status["Seccomp"] == "2"


def test_a_vm_outlives_the_end_of_all_users(host: Host, inner: Record) -> None:
    """All sessions are stopped, ours among them; the next one finds the VM as it was."""
    began = "systemctl show user.slice --property=ActiveEnterTimestampMonotonic"
    before = host.shell(began)
    host.lab.ssh(host.vm, "sudo systemd-run --quiet --no-block systemctl stop user.slice; sleep 30", user=USER)
    assert host.shell(began) != before
    assert cgroup_of(host, inner).endswith(unit_of(inner))


def test_a_second_run_changes_nothing_and_nothing_stays_of_a_vm(host: Host, inner: Record) -> None:
    """Neither process nor unit, once it has stopped; neither record nor mount, once it is removed."""
    units = {"name": "units", "ansible.builtin.command": "systemctl list-units --all --plain --no-legend *.scope"}
    run = host.run(
        module("cocoon_vm", **STARTED),
        units,
        {**module("cocoon_vm", **VM, state="stopped", stop_timeout=60), "name": "stop"},
        {**units, "name": "units after"},
        {**module("cocoon_vm", name="inner", state="absent"), "name": "remove"},
        {
            "name": "what is left",
            "ansible.builtin.shell": "ls /var/lib/cocoon-microvm/vms; grep cocoon-microvm/ /proc/mounts",
        },
    )
    assert not run.result("cocoon_vm").changed
    assert unit_of(inner) in run.result("units")["stdout"]
    assert run.result("stop")["vm"]["reason"] == "shut down"
    assert "cocoon" not in run.result("units after")["stdout"]
    assert run.result("what is left")["stdout"].split()[1::6] == ["/run/cocoon-microvm/ram"]
