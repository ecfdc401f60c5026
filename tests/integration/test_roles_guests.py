# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo as it stands, and plays that target VMs, directly and through their hypervisor. Real guests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.tests.integration.support import images
from ansible_collections.cocoon.microvm.tests.integration.support.lab import Key, make_key
from ansible_collections.cocoon.microvm.tests.integration.support.machine import COLLECTION, Netns
from ansible_collections.cocoon.microvm.tests.integration.support.remote import plug, served
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules, Playbooks, Run

EXAMPLE = COLLECTION / "playbooks" / "example" / "inventory.yml"
TEARDOWN = "cocoon.microvm.teardown"
SURE = {"cocoon_confirm": True, "cocoon_remove_store": True}


def test_the_readme_shows_the_demos_inventory() -> None:
    text = EXAMPLE.read_text(encoding="utf-8").partition("---\n")[2]
    assert text
    assert f"```yaml\n{text}```" in (COLLECTION / "README.md").read_text(encoding="utf-8")


def test_the_demo_and_its_end(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    scratch: Path,
    tiny_image: Path,
) -> None:
    netns, dirs = make_netns(), make_store()
    cache = scratch / "demo-cache"
    variables = {
        **{f"cocoon_{name}": path for name, path in dirs.items()},
        "cocoon_demo_cache": str(cache),
        "image_cache_dir": str(images.CACHE),
    }
    demo = Playbooks(netns, scratch, variables)
    try:
        first = demo("cocoon.microvm.demo", EXAMPLE)
        table = first.results("cocoon.microvm.vms : Show the VMs")[-1]["msg"]
        assert table[0].split() == ["VM", "STATE", "HYPERVISOR", "ACCEL", "ADDRESS", "BOOT", "SECONDS", "CHANGE"]
        assert [line.split()[:3] for line in table[1:]] == [
            [name, "running", "qemu"] for name in ("web1", "web2", "db1")
        ]
        for line in table[1:]:
            assert line.split()[4].startswith("10.231.77.")
            assert float(line.split()[5]) > 0 and line.split()[6:] == ["create"]
        for name in ("web1", "web2", "db1"):
            assert first.result("Look around", name)["stdout"].startswith(f"{name} runs Linux ")
        records = modules(netns, dirs)("cocoon_vm_info")["vms"]
        assert {record["owner"] for record in records} == {"demo"}
        assert [len(record["data_disks"]) for record in records if record["config"]["name"] == "db1"] == [1]
        assert demo("cocoon.microvm.demo", EXAMPLE).total("changed") == 0
    finally:
        demo(TEARDOWN, EXAMPLE)
    assert not [path for path in (*dirs.values(), cache) if Path(path).exists()]
    assert [line.split()[0] for line in netns.run("ip", "-br", "link").splitlines()] == ["lo"]
    assert netns.run("nft", "list", "ruleset") == ""


def inventory(image: Path, key: Key, dirs: dict[str, str], **hypervisor: Any) -> dict[str, Any]:
    """One hypervisor, and one VM that is an inventory host."""
    return {
        "all": {"vars": {f"cocoon_{name}": path for name, path in dirs.items()}},
        "hypervisors": {
            "hosts": {"hv1": hypervisor},
            "vars": {
                "cocoon_networks": {"lab": {"subnet": "10.92.0.0/24", "nat": False}},
                "cocoon_images": {"tiny": {"source": str(image)}},
                "cocoon_defaults": {"memory": "96M", "storage": "64M", "cpu": 1, "wait_for": "port"},
            },
        },
        "vms": {
            "hosts": {"web1": {"cocoon_host": "hv1"}},
            "vars": {
                "ansible_ssh_private_key_file": str(key.private),
                "cocoon_vm": {"image": "tiny", "network": "lab", "user": "joe", "ssh_keys": [key.public]},
            },
        },
    }


def plays(first: str) -> list[dict[str, Any]]:
    """A playbook of the collection, and then a play on the VMs. The guest has no Python."""
    ask = {"name": "ask", "ansible.builtin.raw": "hostname; whoami", "changed_when": False}
    return [
        {"ansible.builtin.import_playbook": f"cocoon.microvm.{first}"},
        {"hosts": "vms", "gather_facts": False, "tasks": [ask]},
    ]


def answer(run: Run) -> list[str]:
    """What the VM said."""
    return [line.strip() for line in run.result("ask", "web1")["stdout_lines"]]


@pytest.fixture(name="key")
def fixture_key(tmp_path: Path) -> Key:
    return make_key(tmp_path)


@pytest.mark.smoke
def test_plays_reach_vms_of_a_local_hypervisor(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    scratch: Path,
    tiny_image: Path,
    key: Key,
) -> None:
    playbook = Playbooks(make_netns(), scratch, {})
    hosts = inventory(tiny_image, key, make_store(), ansible_connection="local")
    try:
        assert answer(playbook(plays("site"), hosts)) == ["web1", "joe"]
        again = playbook(plays("site"), hosts, "--limit", "web1")
        assert answer(again) == ["web1", "joe"]
        assert again.total("changed") == 0
        assert sorted(again.stats) == ["web1"]
        assert answer(playbook(plays("connect"), hosts, "--limit", "vms")) == ["web1", "joe"]
    finally:
        playbook(TEARDOWN, hosts, variables=SURE)


@pytest.fixture(name="gateway")
def fixture_gateway(make_netns: Callable[[], Netns]) -> tuple[Netns, Netns, str]:
    """A controller's namespace and a hypervisor's, with a cable between them and no way beyond."""
    controller, hypervisor = make_netns(), make_netns()
    return controller, hypervisor, plug(controller, hypervisor, 0)


@pytest.fixture(name="sshd")
def fixture_sshd(gateway: tuple[Netns, Netns, str], tmp_path: Path, key: Key) -> Iterator[dict[str, Any]]:
    """An sshd on the hypervisor: the connection variables that lead to it."""
    with served(gateway[1], gateway[2], tmp_path / "sshd", key) as variables:
        yield variables


def test_plays_reach_vms_through_their_hypervisor(
    gateway: tuple[Netns, Netns, str],
    sshd: dict[str, Any],
    make_store: Callable[[], dict[str, str]],
    scratch: Path,
    tiny_image: Path,
    key: Key,
) -> None:
    controller = gateway[0]
    playbook = Playbooks(controller, scratch, {})
    hosts = inventory(tiny_image, key, make_store(), **sshd)
    try:
        assert answer(playbook(plays("site"), hosts)) == ["web1", "joe"]
        assert not controller.run("ip", "route", "show", "10.92.0.0/24"), "the controller has a way of its own"
        assert answer(playbook(plays("connect"), hosts, "--limit", "web1")) == ["web1", "joe"]
    finally:
        playbook(TEARDOWN, hosts, variables=SURE)
