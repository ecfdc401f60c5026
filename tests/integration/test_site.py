# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The networks, images and VMs of a host in one task. The VMs are only created: nothing here boots."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules, Result

LAB = {"name": "lab", "subnet": "10.91.0.0/24", "nat": False}
REBUILD = "rebuild (system disk made anew)"


def build(path: Path, text: str) -> str:
    """A root file system that has all that an image needs, but to boot."""
    with tarfile.open(path, "w") as archive:
        for name in ("boot/vmlinuz-1", "boot/initrd.img-1", "etc/hostname"):
            part = path.parent / "part"
            part.write_text(f"{text} {name}\n" * 100, encoding="utf-8")
            archive.add(part, name)
    return str(path)


def vm(name: str, **options: Any) -> dict[str, Any]:
    small = {"image": "small", "network": "lab", "memory": "64M", "storage": "64M", "cpu": 1}
    return {"name": name, **small, **options}


class Host:
    """A store, and the site that is to be on it."""

    def __init__(self, module: Modules, folder: Path) -> None:
        self.module = module
        self.folder = folder
        self.images = [{"name": "small", "source": build(folder / "small.tar", "first")}]
        self.networks: list[dict[str, Any]] = [LAB]

    def site(self, *vms: dict[str, Any], **options: Any) -> Result:
        whole = {"networks": self.networks, "images": self.images, "vms": list(vms), **options}
        return self.module("cocoon_site", **whole)

    def both(self, *vms: dict[str, Any], **options: Any) -> Result:
        """Check mode, which says just what the run does then."""
        foretold = self.site(*vms, check=True, **options)
        done = self.site(*vms, **options)
        for kind, key in (("networks", "action"), ("images", "actions"), ("results", "actions"), ("results", "how")):
            assert [(item["name"], item.get(key)) for item in foretold[kind]] == [
                (item["name"], item.get(key)) for item in done[kind]
            ]
        assert foretold["changed"] == done["changed"]
        assert [part["after_header"] for part in foretold["diff"]] == [part["after_header"] for part in done["diff"]]
        assert not self.site(*vms, **options).changed
        return done

    def names(self, kind: str) -> list[str]:
        return sorted(item["name"] for item in self.module(f"cocoon_{kind}_info")[f"{kind}s"])

    def vms(self) -> dict[str, Any]:
        return {item["config"]["name"]: item for item in self.module("cocoon_vm_info")["vms"]}


@pytest.fixture(name="host")
def fixture_host(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    tmp_path: Path,
) -> Iterator[Host]:
    found = Host(modules(make_netns(), make_store()), tmp_path)
    yield found
    found.module(
        "cocoon_site",
        vms=[{"name": name, "state": "absent", "force": True} for name in found.vms()],
        networks=[{"name": name, "state": "absent"} for name in found.names("network")],
        images=[{"name": item["id"], "state": "absent"} for item in found.module("cocoon_image_info")["images"]],
    )
    assert found.names("network") == found.names("image") == []


def test_a_host_is_planned_as_a_whole_and_made_as_planned(host: Host) -> None:
    """On a bare host; then an image is built anew under its name; then all makes room for others."""
    first = host.both(vm("web1"), vm("web2", nics=[{"ip": "10.91.0.9"}]))
    assert [part["after_header"] for part in first["diff"]] == ["network lab", "image small", "vm web1", "vm web2"]
    # A new build under the same name: the VM that may be rebuilt is, by the digest to come.
    build(host.folder / "small.tar", "second")
    rolled = host.both(vm("web1", recreate=True), vm("web2", nics=[{"ip": "10.91.0.9"}]))
    assert [item["how"] for item in rolled["results"]] == [REBUILD, None]
    assert host.vms()["web1"]["image_digest"] == rolled["images"][0]["image"]["digest"]
    # What goes frees what comes: an address, then a network with its bridge's subnet, and the image of before.
    host.networks = [{"name": "lab", "state": "absent"}, {"name": "next", "subnet": "10.91.0.0/25", "nat": False}]
    host.images = [{"name": "small", "state": "absent"}, {**host.images[0], "name": "other"}]
    gone = [{"name": name, "state": "absent"} for name in ("web1", "web2")]
    moved = host.both(*gone, vm("web3", image="other", network="next", nics=[{"ip": "10.91.0.9"}]))
    assert [item["action"] for item in moved["networks"]] == ["remove", "create"]
    assert host.names("network") == ["next"] and host.names("image") == ["other"] and list(host.vms()) == ["web3"]
    # What a VM only lets go in this run goes after it.
    host.networks = [{"name": "next", "state": "absent"}, LAB | {"subnet": "10.92.0.0/24"}]
    host.both(vm("web3", image="other", nics=[{"network": "lab"}]))
    assert host.names("network") == ["lab"]


def test_all_is_checked_before_anything_is_touched(host: Host) -> None:
    host.networks = [{"name": "lab", "subnet": "10.91.0.1/24"}, {"name": "flat", "nat": True}]
    host.images = [{"name": "small", "checksum": "sha256:1"}]
    refused = host.site(vm("web1"), vm("web2", ports=["80"]), ok=False)["msg"]
    for words in (
        "networks[0] (lab): subnet: '10.91.0.1/24' has host bits set",
        "networks[1] (flat): nat: NAT needs a subnet",
        "images[0] (small): checksum: means nothing without a source",
        "vms[1] (web2): ports[0]: '80' is not a port to publish",
    ):
        assert words in refused
    host.networks = [{"name": "lab", "state": "absent"}]
    host.images = []
    assert "VM 'web1' is to have it" in host.site(vm("web1"), ok=False)["msg"]
    assert not Path(host.module.defaults["root_dir"]).exists()


def test_one_that_fails_takes_only_those_along_that_need_it(host: Host) -> None:
    images = [*host.images, {"name": "gone", "source": str(host.folder / "no-such.tar")}]
    for check in (True, False):
        run = host.site(vm("web1"), vm("web2", image="gone"), images=images, check=check, ok=False)
        assert run["failed_vms"] == ["web2"] and [item["name"] for item in run["results"] if item["changed"]] == [
            "web1"
        ]
        assert "image gone: " in run["msg"] and "because of image 'gone', which failed" in run["msg"]
    assert list(host.vms()) == ["web1"]


def test_which_registry_is_asked_for_an_image(host: Host) -> None:
    """None for what is declared, and none by itself for a bare name."""
    for options, words in (
        ({}, "its name says no registry"),
        ({"never_pull": ["bare"]}, "as it is declared otherwise"),
        ({"default_registry": "127.0.0.1:1"}, "127.0.0.1:1"),
    ):
        message = host.site(vm("web1", image="bare"), check=True, ok=False, **options)["msg"]
        assert words in message, message
    listed = [{"name": "127.0.0.1:1/app", "pull": "never"}]
    message = host.site(vm("web1", image="127.0.0.1:1/app"), images=listed, check=True, ok=False)["msg"]
    assert "127.0.0.1:1/app' is not in the store" in message


def test_check_mode_on_a_host_without_its_programs(host: Host) -> None:
    """What the role host would have installed by then is said, and no failure; without that word it is one."""
    host.folder.joinpath("nsenter").symlink_to(str(shutil.which("nsenter")))
    bare = {"env": {"PATH": str(host.folder)}, "check": True}
    assert host.site(vm("web1"), **bare, ok=False).failed
    told = host.site(vm("web1"), vm("web2", hypervisor="firecracker"), unprepared=True, **bare)
    assert [item["actions"] for item in told["results"]] == [["create"], ["unknown"]]
    assert any("before the host is prepared" in words for words in map(str, told["warnings"]))
