# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as a user has it: built, installed into an empty path, its playbooks called by their full names.

These run with each ansible-core, and with the oldest one on the distribution's own Python and libraries.
"""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.tests.integration.support.machine import COLLECTION, Netns, command
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules, Playbooks, Run

pytestmark = pytest.mark.smoke

CONVERGE = "cocoon.microvm.vms : Converge networks, images and VMs"
RUNTIME = {"plugins", "roles", "playbooks", "meta", "MANIFEST.json", "FILES.json"}


@pytest.fixture(scope="module", name="installed")
def fixture_installed(scratch: Path) -> Path:
    """A collections path with the built collection in it, less everything that is not for run time."""
    galaxy = Path(sys.executable).parent / "ansible-galaxy"
    source, path = scratch / "source", scratch / "installed"
    # The tests may run in a working tree; what is built must not depend on what lies around in one.
    ignored = shutil.ignore_patterns(".git", ".venv", ".work", "__pycache__", "collections", ".*_cache")
    shutil.copytree(COLLECTION, source, ignore=ignored, symlinks=True)
    command(galaxy, "collection", "build", source, "--output-path", scratch)
    archive = next(scratch.glob("cocoon-microvm-*.tar.gz"))
    command(galaxy, "collection", "install", archive, "--force", "--offline", "-p", path)
    for entry in (path / "ansible_collections" / "cocoon" / "microvm").iterdir():
        if entry.name not in RUNTIME:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return path


class Site:
    """One hypervisor, this machine, and the playbooks of the installed collection."""

    def __init__(self, playbooks: Playbooks, modules: Modules, installed: Path, image: Path) -> None:
        self.playbooks, self.modules, self.installed = playbooks, modules, installed
        self.inventory: dict[str, Any] = {
            "hypervisors": {
                "hosts": {"hv1": {"ansible_connection": "local"}},
                "vars": {
                    **{f"cocoon_{name}": path for name, path in modules.defaults.items()},
                    "cocoon_networks": {"lab": {"subnet": "10.89.0.0/24", "nat": True}},
                    "cocoon_images": {"tiny": {"source": str(image)}},
                    "cocoon_defaults": {
                        "image": "tiny",
                        "network": "lab",
                        "cpu": 1,
                        "memory": "128M",
                        "storage": "64M",
                        "wait_for": "port",
                        "timeout": 300,
                    },
                    "cocoon_vms": {"web1": {}, "db1": {"data_disks": [{"name": "data", "size": "32M"}]}},
                },
            }
        }

    def run(self, playbook: str, *options: str, variables: dict[str, Any] | None = None, **settings: Any) -> Run:
        env = {"ANSIBLE_COLLECTIONS_PATH": str(self.installed)}
        given = {"host_show_table": False, **(variables or {})}
        name = f"cocoon.microvm.{playbook}"
        return self.playbooks(name, copy.deepcopy(self.inventory), *options, env=env, variables=given, **settings)

    def states(self) -> dict[str, str]:
        """The VMs of the store."""
        return {vm["config"]["name"]: vm["state"] for vm in self.modules("cocoon_vm_info")["vms"]}


@pytest.fixture(name="site")
def fixture_site(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    scratch: Path,
    installed: Path,
    tiny_image: Path,
) -> Iterator[Site]:
    """The site; at the end nothing of it."""
    netns, dirs = make_netns(), make_store()
    site = Site(Playbooks(netns, scratch, {}), modules(netns, dirs), installed, tiny_image)
    yield site
    sure = {"cocoon_confirm": True, "cocoon_remove_store": True}
    site.run("teardown", variables=sure)
    assert [path for path in dirs.values() if Path(path).exists()] == []


def test_from_an_inventory_to_running_guests_and_back(site: Site) -> None:
    """Check mode, the run, no change, an edit that changes just that."""
    planned = site.run("site", check=True, diff=True, ok=None)
    assert site.states() == {}, planned.output
    first = site.run("site")
    assert site.states() == {"web1": "running", "db1": "running"}
    assert {item["changed"] for item in first.result(CONVERGE)["results"]} == {True}
    again = site.run("site")
    assert again.total("changed") == 0, again.output
    site.inventory["hypervisors"]["vars"]["cocoon_vms"]["db1"]["labels"] = {"tier": "db"}
    edited = site.run("site", diff=True)
    changed = [item["name"] for item in edited.result(CONVERGE)["results"] if item["changed"]]
    assert changed == ["db1"]
    assert site.run("site", check=True).total("changed") == 0
