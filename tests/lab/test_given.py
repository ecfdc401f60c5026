# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What guests are given before their initramfs: who may log in, and what a container is to run."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.tests.integration.support import containers
from ansible_collections.cocoon.microvm.tests.integration.support.images import built
from ansible_collections.cocoon.microvm.tests.lab.conftest import Site

VM = {"cpu": 1, "memory": "128M", "storage": "256M", "network": "lab", "balloon": "off"}
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEyzwd7/6hS0GWGZm0/QXhPxrsfTKdNbxHx8rGdX4kSS"
SERVE = "mkdir /www; hostname > /www/index.html; httpd -f -p 80 -h /www"


@pytest.fixture(scope="session")
def box(site: Site) -> str:
    """A container image of a busybox, and the default kernel."""
    site.lab.copy(built("kernel", site.folder), "/root/kernel.tar")
    layout = containers.layout(
        site.folder / "box", [containers.busybox_layer({"bin/httpd": "busybox", "bin/hostname": "busybox"})]
    )
    archive = site.folder / "box.tar"
    containers.command("tar", "-cf", archive, "-C", layout, ".")
    site.lab.copy(archive, "/root/box.tar")
    for name, source in (("cocoon/kernel", "/root/kernel.tar"), ("box", "/root/box.tar")):
        made = site.module("cocoon_image", name=name, source=source)
        assert not made["failed"], made
    return "box"


def ended(site: Site, name: str, seconds: float = 120) -> dict[str, Any]:
    """A VM whose guest ends by itself, once it has."""
    deadline = time.monotonic() + seconds
    while True:
        found = site.module("cocoon_vm_info", name=name)["vms"][0]
        if found["state"] != "running":
            return dict(found)
        assert time.monotonic() < deadline, found
        time.sleep(2)


def test_who_may_log_in(site: Site, driver: str) -> None:
    name = f"login-{driver}"
    made = site.vm(
        name, hypervisor=driver, image="tiny", state="started", wait_for="agent", timeout=400, ssh_keys=[KEY], **VM
    )["vm"]
    found = site.module("cocoon_exec", name=name, shell="cat /root/.ssh/authorized_keys; ls -ld /run/cocoon/data")
    assert found["stdout_lines"][0] == KEY and found["stdout_lines"][1].startswith("drwx------"), found
    own = f"/var/lib/cocoon-microvm/vms/{made['id']}/initrd.img"
    assert site.shell(f"stat -c '%a %u' {own}") == f"400 {made['uid']}\n"
    # What is taken back from it after a shutdown is not given a second time.
    site.vm(name, state="stopped", stop_timeout=60)
    site.shell(f"! test -e {own}")
    site.vm(name, state="started", wait_for="agent", timeout=400)
    assert site.module("cocoon_exec", name=name, shell="cat /root/.ssh/authorized_keys")["stdout"] == KEY
    assert site.vm(name, state="absent", force=True)["changed"]


def test_what_a_container_runs(site: Site, box: str, driver: str) -> None:
    """To its end, whose code it says on its console, as there is no other channel."""
    name, secret = f"box-{driver}", "only the guest knows"
    words = {"command": ["/bin/sh", "-c", 'echo "$A, $HOSTNAME"; exit 7'], "env": {"A": "b"}}
    site.vm(name, hypervisor=driver, image=box, state="started", timeout=400, **words, **VM)
    found = ended(site, name)
    assert (found["state"], found["exit_code"], found["reason"]) == ("stopped", 7, "exited with code 7"), found
    assert f"b, {name}" in site.shell(f"cat /var/log/cocoon-microvm/{found['id']}/console.log")
    served = site.vm(
        name,
        state="started",
        command=["/bin/sh", "-c", SERVE],
        secret_env={"S": secret},
        wait_for="port",
        wait_port=80,
        timeout=400,
    )["vm"]
    page = f"curl -s http://{served['network_configs'][0]['network']['ip']}/"
    assert site.shell(page) == f"{name}\n"
    assert secret not in site.shell(f"cat /proc/{served['pid']}/cmdline /run/cocoon-microvm/*/*.json 2>/dev/null; true")
    stopped = site.vm(name, state="stopped", stop_timeout=60)["vm"]
    assert (stopped["state"], stopped["exit_code"]) == ("stopped", 128 + 15), stopped


def test_a_clone_of_a_container(site: Site, box: str, driver: str) -> None:
    """It serves under its own name's address, and says how it ended."""
    name = f"box-{driver}"
    site.vm(name, state="started", wait_for="port", wait_port=80, timeout=400)
    taken = site.module("cocoon_snapshot", name=name, vm=name)
    assert not taken["failed"], taken
    clone = site.vm(f"{name}-one", snapshot=name, state="started", wait_for="port", wait_port=80, timeout=200)["vm"]
    assert clone["network_configs"][0]["network"]["ip"]
    stopped = site.vm(f"{name}-one", state="stopped", stop_timeout=60)["vm"]
    assert stopped["exit_code"] == 128 + 15, stopped
    for one in (name, f"{name}-one"):
        assert site.vm(one, state="absent", force=True)["changed"]
    assert not site.module("cocoon_snapshot", name=name, state="absent")["failed"]
