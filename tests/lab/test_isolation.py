# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest that took over a real hypervisor finds on its host, as the integration tests have it with QEMU.

Two VMs, of which nobody waits for the guest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.tests.lab.conftest import Site

VM = {"image": "tiny", "cpu": 1, "memory": "128M", "storage": "128M", "network": "lab", "balloon": "off"}
STORE = "/var/lib/cocoon-microvm"
Found = dict[str, Any]


@pytest.fixture(scope="module")
def ours(site: Site, driver: str) -> Iterator[Found]:
    """The record of the hostile VM, with all that was tried by the rights of its process under ``found``."""
    names = [f"{name}-{driver}" for name in ("hostile", "neighbour")]
    vms = [
        site.vm(name, hypervisor=driver, state="started", owner=f"owner-of-{name}", wait_for="process", **VM)["vm"]
        for name in names
    ]
    yield {**vms[0], "neighbour": vms[1], "found": site.inside("intruding", vms[0]["id"], vms[1]["id"])}
    for name in names:
        site.vm(name, state="absent", force=True)


def test_of_all_files_only_its_own_can_be_opened(ours: Found) -> None:
    """Every path of the store is tried, as root has found it, and so are the host's private files."""
    found = ours["found"]
    reached: dict[str, list[str]] = found["reached"]
    image = {item["path"] for item in ours["storage_configs"] if item["ro"]}
    image |= {path for key, path in found["boot"].items() if key.endswith("_path")}
    assert {path: reached.pop(path, []) for path in image} == dict.fromkeys(image, ["read"])
    cow = f"{STORE}/vms/{ours['id']}/cow.raw"
    assert reached.pop(cow) == ["read", "write", "chmod"]
    others = [path for path in reached if ours["id"] not in path]
    assert not others, {path: reached[path] for path in others}


def test_other_users_processes_are_out_of_reach(ours: Found) -> None:
    assert ours["found"]["processes"] == {}
    assert ours["found"]["own"] != {}, "the same attempts do succeed where they may"


def test_networks_are_out_of_reach(ours: Found) -> None:
    """The bridge, the neighbour's TAP, what listens on the host: none of it is in its namespace."""
    found = ours["found"]
    assert found["interfaces"] == {} and found["sockets"] == {}
    assert {"see traffic", "raw", "take down"} <= set(found["sockets of root"])
    links = {line.split(":")[1].strip().partition("@")[0] for line in found["links"]}
    assert links <= {"lo", ours["network_configs"][0]["tap"]}


def test_it_runs_without_rights(ours: Found, driver: str) -> None:
    """A uid of its own, no capabilities, now or ever, and no group that its neighbour has but the image's and KVM's."""
    found = ours["found"]
    threads = found["threads"]
    assert len(threads) > 1
    for status in threads:
        assert [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0, 0, 0, 0]
        assert status["NoNewPrivs"] == "1"
        assert status["Uid"].split() == status["Gid"].split() == [str(ours["uid"])] * 4
    assert str(ours["uid"]) not in map(str, found["neighbour"]["Uid"])
    assert ours["uid"] not in found["neighbour"]["Groups"]


def test_what_it_has_open_is_its_own(ours: Found) -> None:
    """Nothing that the module had open came along: no lock, no record, no neighbour's file."""
    found = ours["found"]
    own = {tuple(item) for item in found["own files"]}
    strange = [lead for lead, *file in found["descriptors"]["files"] if tuple(file) not in own]
    assert not strange
    # Cloud Hypervisor makes a terminal of its own, and has it as its standard input.
    devices = {path for path in found["descriptors"]["devices"] if not re.fullmatch("/dev/(ptmx|pts/[0-9]+)", path)}
    assert devices <= {"/dev/kvm", "/dev/net/tun", "/dev/null", "/dev/urandom"}


def test_its_root_has_nothing_but_its_own(ours: Found, driver: str) -> None:
    """A private root holds the program with its libraries, the VM's own files, and a few devices."""
    found = ours["found"]
    if found["root"] is None:
        assert driver != "firecracker"
        pytest.skip(f"{driver} is in the host's root, where its user and groups have no rights to anything else")
    own = {tuple(item) for item in found["own files"]}
    files = {path: tuple(file) for path, file in found["root"]["files"].items()}
    strange = {path for path, file in files.items() if file not in own}
    programs = {path for path in strange if path == f"/{driver}" or path.startswith(("/lib", "/usr/lib"))}
    assert strange == programs and f"/{driver}" in programs, strange - programs
    neighbours = {tuple(item) for item in found["neighbour's files"]} - own
    assert neighbours and not neighbours & set(files.values())
    assert found["root"]["devices"] == ["/dev/kvm", "/dev/net/tun", "/dev/null", "/dev/urandom"]
