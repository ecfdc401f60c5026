# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""On a host with systemd a VM belongs to nobody's session: it outlives the login whose playbook started it.

The host is a Debian guest of our own, reached over ssh. Its VM is one in a VM, whose processor emulates an emulated
one: that guest halts at its first instruction, as booting would take minutes and prove nothing more. With
COCOON_TEST_NESTED=1 in the environment an emulated host is given the CPU feature SVM, and so a KVM that works; QEMU 7.2
hangs in it now and then, which is why that is not the rule.
"""

from __future__ import annotations

import base64
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.tests.integration.support import images
from ansible_collections.cocoon.microvm.tests.integration.support.engine import idle_image
from ansible_collections.cocoon.microvm.tests.integration.support.lab import Lab, address, make_lab
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules, Playbooks, Run

Record = dict[str, Any]
USER = "ops"
PYTHON = "/usr/bin/python3"
HOST = {"image": "host", "cpu": 1, "memory": "1G", "storage": "4G"}
BOOT = 300
NETWORK = {"name": "lab", "subnet": "10.92.0.0/24", "nat": False, "names": True}
VM = {"name": "inner", "image": "idle", "cpu": 1, "memory": "64M", "storage": "32M", "network": "lab"}
STARTED = {**VM, "state": "started"}
# As strict as a host can be about what users leave behind; and a process that is left behind by one.
LOGIND = "/etc/systemd/logind.conf.d/strict.conf"
STRICT = f"mkdir -p {LOGIND.rpartition('/')[0]} && printf '[Login]\\nKillUserProcesses=yes\\n' > {LOGIND}"
LEFT_BEHIND = "setsid sleep 86399"


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


IMAGE = ("source", "kernel", "initrd")


def packed(paths: Iterable[str]) -> bytes:
    """Files as a tar, compressed."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for path in paths:
            tar.add(path, os.path.basename(path))
    return stream.getvalue()


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
            "ansible_ssh_timeout": BOOT,
            "ansible_ssh_private_key_file": str(self.lab.key.private),
            # Also for how long sudo may take to get going, which is emulated as well.
            "ansible_timeout": 120,
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
            assert time.monotonic() < deadline, f"{script}: still {found!r}, not {wanted!r}"
            time.sleep(0.5)


def allow_nesting(lab: Lab, vm: Record) -> None:
    """Give an emulated CPU the feature SVM, which the engine leaves out, if that is asked for."""
    if os.environ.get("COCOON_TEST_NESTED") != "1":
        return
    path = lab.path("root", "vms", vm["id"], "vm.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["accel"] == "tcg":
        record["cpu_model"] = record["cpu_model"].replace("svm=off", "svm=on,npt=on")
        assert "svm=on" in record["cpu_model"]
        path.write_text(json.dumps(record), encoding="utf-8")


@pytest.fixture(scope="module")
def host(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """The host, up, with the files of an image for its VM in /root."""
    options: Record = {**HOST, "user": USER, "ssh_keys": [lab.key.public]}
    vm = lab.vm("host", **options)["vm"]
    allow_nesting(lab, vm)
    vm = lab.vm("host", **options, state="started", wait_for="port", timeout=BOOT)["vm"]
    host = Host(lab, vm, Playbooks(lab.netns, tmp_path_factory.mktemp("plays"), {}))
    files = packed(idle_image(tmp_path_factory.mktemp("idle")).values())
    copy = f"echo {base64.b64encode(files).decode()} | base64 -d | tar xz -C /root"
    host.shell(f"{copy} && {STRICT} && systemctl restart systemd-logind && (modprobe -q kvm_amd || true)")
    return host


def module(what: str, /, **options: Any) -> dict[str, Any]:
    return {"name": what, f"cocoon.microvm.{what}": options}


@pytest.fixture(scope="module")
def inner(host: Host) -> Record:
    """A VM on the host, started in a session that has ended since."""
    run = host.run(
        # In the same session, a process as any user may leave one behind; it says where it is and who.
        {
            "name": "session",
            "ansible.builtin.shell": f"cat /proc/self/cgroup; {LEFT_BEHIND} > /dev/null 2>&1 & echo $!",
        },
        module("cocoon_network", **NETWORK),
        module("cocoon_image", name="idle", **{option: f"/root/idle.{option}" for option in IMAGE}),
        module("cocoon_vm", **STARTED),
    )
    cgroup, left = run.result("session")["stdout"].split()
    # The login was a session of systemd's, and our task was in it.
    session = cgroup.rpartition("/session-")[2].partition(".scope")[0]
    assert "/user.slice/" in cgroup and session.isdigit() and left.isdigit(), cgroup
    host.until(f"systemctl is-active session-{session}.scope || true", "inactive")
    return {**run.result("cocoon_vm")["vm"], "left": left}


def unit_of(vm: Record) -> str:
    return f"cocoon-microvm-{vm['id']}-{vm['pid']}.scope"


def test_a_vm_outlives_the_session_that_started_it(host: Host, inner: Record) -> None:
    """The session has ended, and with it what the user left behind. The VM is in a scope of its own, with no others."""
    pid, unit = inner["pid"], unit_of(inner)
    cgroup = f"/cocoon.slice/cocoon-microvm.slice/{unit}"
    # The kernel's own threads for a KVM guest are in there too; they have no command line.
    named = 'for pid in $(cat {}/cgroup.procs); do [ -z "$(tr -d "\\0" < /proc/$pid/cmdline)" ] || echo $pid; done'
    named = named.format(f"/sys/fs/cgroup{cgroup}")
    gone = f"[ -e /proc/{inner['left']} ] || echo gone"
    found = host.shell(f"{gone}; cat /proc/{pid}/cgroup; systemctl is-active {unit}; {named}").splitlines()
    assert found[:3] == ["gone", f"0::{cgroup}", "active"] and set(found[3:]) == {str(pid), keeper(host, inner)}


def keeper(host: Host, vm: Record) -> str:
    """What keeps a VM's console, in the VM's scope."""
    procs = f"/sys/fs/cgroup/cocoon.slice/cocoon-microvm.slice/{unit_of(vm)}/cgroup.procs"
    return host.shell(f"for pid in $(cat {procs}); do ! grep -q 'The keeper of' /proc/$pid/cmdline || echo $pid; done")


def test_another_keeper_of_its_console_is_in_a_scope(host: Host, inner: Record) -> None:
    host.shell(f"kill -9 {keeper(host, inner)}")
    assert host.run(module("cocoon_vm", **STARTED)).result("cocoon_vm").changed
    assert keeper(host, inner) == ""
    pid = host.shell("pgrep -f '[T]he keeper of'")
    assert host.shell(f"cat /proc/{pid}/cgroup").endswith(f"/cocoon-microvm-{inner['id']}-{pid}.scope")


def test_a_vm_on_a_kvm_host_has_the_accelerators_group(host: Host, inner: Record) -> None:
    """And no other of the host's, and still no capabilities."""
    lines = host.shell(f"cat /proc/{inner['pid']}/status; stat --format=Owner:%g /dev/kvm || true").splitlines()
    status = {name: value.strip() for name, _colon, value in (line.partition(":") for line in lines)}
    groups = [group for group in status["Groups"].split() if int(group) < 1 << 16]
    assert groups == ([status["Owner"]] if inner["accel"] == "kvm" else [])
    assert int(status["CapEff"], 16) == 0 and status["Seccomp"] == "2"


def test_a_vm_outlives_the_end_of_all_users(host: Host, inner: Record) -> None:
    """All sessions are stopped, ours among them; the next one finds the VM as it was."""
    began = "systemctl show user.slice --property=ActiveEnterTimestampMonotonic --value"
    cut = "sudo systemd-run --quiet --no-block systemctl stop user.slice; sleep 60; echo not cut off"
    answer = host.lab.ssh(host.vm, f"{began}; {cut}", user=USER, timeout=BOOT)
    assert "not cut off" not in answer.output
    assert host.shell(began) != answer.output.strip()
    assert host.shell(f"cat /proc/{inner['pid']}/cgroup").endswith(unit_of(inner))


def test_a_second_run_changes_nothing_and_nothing_stays_of_a_vm(host: Host, inner: Record) -> None:
    """Neither process nor unit, neither record nor mount, once it has been stopped and removed."""
    service = restarted(host)
    run = host.run(
        module("cocoon_network", **NETWORK),
        module("cocoon_vm", **STARTED),
        {**module("cocoon_vm", **VM, state="stopped", force=True), "name": "stop"},
        {**module("cocoon_vm", name="inner", state="absent"), "name": "remove"},
        {**module("cocoon_network", name="lab", state="absent"), "name": "take down"},
    )
    # What systemd has started anew is the network's own.
    assert not run.result("cocoon_network").changed
    assert not run.result("cocoon_vm").changed and run.result("cocoon_vm")["vm"]["pid"] == inner["pid"]
    assert run.result("stop")["vm"]["reason"] == "powered off"
    units = f"systemctl list-units --all --plain --no-legend 'cocoon-microvm*.scope' {service}"
    left = "ls /var/lib/cocoon-microvm/vms; grep cocoon-microvm/ /proc/mounts; pgrep -a 'qemu-system|dnsmasq' || true"
    assert host.shell(f"{units}; {left}") == ""


def restarted(host: Host) -> str:
    """The dnsmasq of the network is a service of systemd's, which starts it again when it crashes; the service."""
    unit = "grep -o 'cocoon-microvm-[a-z2-7]*.service' /proc/$pid/cgroup"
    found = host.shell(f"pid=$(pgrep dnsmasq); {unit}; kill -9 $pid")
    assert found.startswith("cocoon-microvm-") and "\n" not in found
    host.until(f"systemctl show --property=NRestarts --value {found}; pgrep -c dnsmasq || true", "1\n1")
    return found
