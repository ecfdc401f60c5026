# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles and playbooks on inventories of two hypervisors: what they converge, what a limit means, what they refuse.

Both hypervisors are this machine, each with a store of its own, and the VMs are only created: nothing here boots.
"""

from __future__ import annotations

import copy
import hashlib
import io
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.cocoon.microvm.tests.integration.support import audit
from ansible_collections.cocoon.microvm.tests.integration.support.engine import Engine
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns, command
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules, Playbooks, Run

CONVERGE = "cocoon.microvm.vms : Converge networks, images and VMs"
LIMITED = "cocoon.microvm.vms : Converge the VMs of the limit"
SITE = "cocoon.microvm.site"
TEARDOWN = "cocoon.microvm.teardown"
SURE = {"cocoon_confirm": True, "cocoon_remove_store": True}
QUIET = {"host_show_table": False}


@pytest.fixture(scope="module", name="image")
def fixture_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system that has all that an image needs, but to boot."""
    folder = tmp_path_factory.mktemp("image")
    target = folder / "image.tar"
    with tarfile.open(target, "w") as archive:
        for name in ("boot/vmlinuz-1", "boot/initrd.img-1", "etc/hostname"):
            path = folder / name.replace("/", "-")
            path.write_bytes(name.encode() * 1000)
            archive.add(path, name)
    return target


def hypervisor(dirs: dict[str, str], number: int) -> dict[str, Any]:
    """The variables of one hypervisor. They share a network namespace, so their networks must differ."""
    return {
        "ansible_connection": "local",
        **{f"cocoon_{name}": path for name, path in dirs.items()},
        "cocoon_networks": {f"lab{number}": {"subnet": f"10.7{number}.0.0/24", "nat": False}},
        "cocoon_defaults": {
            "image": "small",
            "network": f"lab{number}",
            "state": "present",
            "memory": "64M",
            "storage": "64M",
            "cpu": 1,
        },
    }


class Site:
    """An inventory, and the playbooks run on it."""

    def __init__(self, playbooks: Playbooks, modules: list[Modules], image: Path) -> None:
        self.playbooks = playbooks
        self.modules = modules
        self.dirs = [module.defaults for module in modules]
        self.inventory: dict[str, Any] = {
            "hypervisors": {
                "hosts": {f"hv{number}": hypervisor(found, number) for number, found in enumerate(self.dirs, 1)},
                "vars": {"cocoon_images": {"small": {"source": str(image)}}},
            },
            "vms": {
                "hosts": {
                    "web1": {"cocoon_host": "hv1"},
                    "web2": {"cocoon_host": "hv1"},
                    "web3": {"cocoon_host": "hv2", "cocoon_vm": {"labels": {"role": "web"}}},
                },
                "vars": {"cocoon_vm_base": {"labels": {"host": "{{ inventory_hostname }}"}}},
            },
        }

    def run(self, *options: str, playbook: str = SITE, **settings: Any) -> Run:
        variables = {**QUIET, **settings.pop("variables", {})}
        return self.playbooks(playbook, copy.deepcopy(self.inventory), *options, variables=variables, **settings)

    def hypervisor(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.inventory["hypervisors"]["hosts"][name]
        return found

    def vms(self, number: int) -> dict[str, Any]:
        """The records in the store of a hypervisor, by name."""
        return {vm["config"]["name"]: vm for vm in self.modules[number - 1]("cocoon_vm_info")["vms"]}

    def left(self) -> list[str]:
        """What there is of the stores."""
        return [path for found in self.dirs for path in found.values() if Path(path).exists()]


@pytest.fixture(name="site")
def fixture_site(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    scratch: Path,
    image: Path,
) -> Iterator[Site]:
    """Two hypervisors and three VMs that are inventory hosts; at the end nothing of them."""
    netns = make_netns()
    site = Site(Playbooks(netns, scratch, {}), [modules(netns, make_store()) for _number in range(2)], image)
    yield site
    for dirs in site.dirs:
        audit.remove_store(Engine(netns, dirs))


def names(run: Run, host: str) -> list[str]:
    """The VMs that the bulk task of a hypervisor had."""
    return sorted(item["name"] for item in run.result(CONVERGE, host)["results"])


def changed(run: Run) -> list[str]:
    """The VMs that changed, in all bulk tasks."""
    results = [*run.results(CONVERGE), *run.results(LIMITED)]
    return sorted(item["name"] for result in results for item in result.get("results", []) if item["changed"])


@pytest.mark.smoke
def test_an_inventory_becomes_vms_and_an_edit_changes_just_that(site: Site) -> None:
    site.hypervisor("hv1")["cocoon_vms"] = {"a1": {"memory": "96M"}, "a2": None}
    site.hypervisor("hv2")["cocoon_vms"] = [{"name": "a1"}]
    site.inventory["hypervisors"]["vars"]["cocoon_vms_all"] = {"a1": {"memory": "80M", "labels": {"from": "group"}}}
    site.run(check=True)
    assert not Path(site.dirs[0]["root_dir"]).exists(), "check mode made something"
    first = site.run()
    assert names(first, "hv1") == ["a1", "a2", "web1", "web2"]
    assert names(first, "hv2") == ["a1", "web3"]
    assert len(first.results(CONVERGE)) == 2, "one task for each hypervisor"
    one = site.vms(1)
    assert (one["a1"]["config"]["memory"], one["a1"]["labels"]) == (96 << 20, {"from": "group"})
    assert one["web1"]["labels"] == {"host": "web1"}
    assert site.vms(2)["web3"]["labels"] == {"host": "web3", "role": "web"}
    assert site.vms(2)["a1"]["config"]["memory"] == 80 << 20
    assert site.run().total("changed") == 0
    site.hypervisor("hv1")["cocoon_vms"]["a2"] = {"memory": "72M"}
    check = site.run(check=True)
    real = site.run()
    assert changed(check) == changed(real) == ["a2"]
    assert real.total("changed") == check.total("changed") == 1
    assert site.vms(1)["a2"]["config"]["memory"] == 72 << 20


def test_a_limit_touches_what_it_names_and_nothing_else(site: Site) -> None:
    early = site.run("--limit", "web1", ok=False)
    assert "no registry is asked for it, as it is declared otherwise" in " ".join(early.output.split())
    whole = site.run("--limit", "hv1")
    assert names(whole, "hv1") == ["web1", "web2"]
    assert not Path(site.dirs[1]["root_dir"]).exists()
    assert changed(site.run("--limit", "all:!hv2")) == []
    assert not Path(site.dirs[1]["root_dir"]).exists(), "a hypervisor was touched that the limit excludes"
    before = site.vms(1)
    for host in ("web1", "web2", "web3"):
        site.inventory["vms"]["hosts"][host]["cocoon_vm"] = {"memory": "72M"}
    site.hypervisor("hv1")["cocoon_networks"]["other"] = {"subnet": "10.79.0.0/24"}
    stepped = site.run("--limit", "hv1", "--tags", "networks", "--check")
    assert stepped.results(CONVERGE)[0]["results"] == [], "a step that the tags leave out was taken"
    assert [network["changed"] for network in stepped.results(CONVERGE)[0]["networks"]] == [False, True]
    one = site.run("--limit", "web1")
    assert list(one.stats) == changed(one) == ["web1"]
    assert site.vms(1)["web1"]["config"]["memory"] == 72 << 20
    assert site.vms(1)["web2"] == before["web2"]
    assert [network["name"] for network in site.modules[0]("cocoon_network_info")["networks"]] == ["lab1"]
    mixed = site.run("--limit", "hv2,web1,web2")
    assert names(mixed, "hv2") == ["web3"]
    limited = [sorted(item["name"] for item in found.get("results", [])) for found in mixed.results(LIMITED)]
    assert limited == [["web1", "web2"]], "one task for the hypervisor that is outside the limit"
    assert changed(mixed) == ["web2", "web3"]


def test_host_by_host(site: Site) -> None:
    run = site.run("--tags", "networks,images,vms", variables={"cocoon_serial": 1})
    prepared = [entry["task"] for entry in run.tasks if entry["task"].startswith("cocoon.microvm.host : ")]
    assert all("Validating arguments" in task for task in prepared), "Ansible itself tags these always"
    assert [entry["host"] for entry in run.tasks if entry["task"] == CONVERGE] == ["hv1", "hv2"]


def test_prune_compares_with_the_whole_inventory(site: Site) -> None:
    site.hypervisor("hv1")["cocoon_vms"] = {"a1": None, "a2": None}
    site.run()
    del site.hypervisor("hv1")["cocoon_vms"]["a2"]
    assert sorted(site.vms(1)) == ["a1", "a2", "web1", "web2"]
    assert site.run().total("changed") == 0
    prune = {"cocoon_prune": True}
    limited = site.run("--limit", "hv1", variables=prune)
    assert "nothing is pruned" in limited.output
    assert limited.total("changed") == 0
    broken = copy.deepcopy(site.inventory["vms"]["hosts"]["web2"])
    site.inventory["vms"]["hosts"]["web2"]["cocoon_vm"] = {"memory": "{{ no_such_variable }}"}
    assert "no_such_variable" in site.run(variables=prune, ok=False).output
    site.inventory["vms"]["hosts"]["web2"] = broken
    assert sorted(site.vms(1)) == ["a1", "a2", "web1", "web2"]
    site.run(variables=prune)
    assert sorted(site.vms(1)) == ["a1", "web1", "web2"]
    assert sorted(site.vms(2)) == ["web3"]


def test_a_vm_that_moves_in_the_inventory_is_neither_pruned_nor_made_anew(site: Site) -> None:
    site.run()
    before = site.vms(2)["web3"]
    site.inventory["vms"]["hosts"]["web3"]["cocoon_host"] = "hv1"
    prune = {"cocoon_prune": True, "cocoon_show_table": True}
    refused = site.run("--limit", "web3", ok=False)
    assert "web3 is on hv2" in " ".join(refused.output.split()), refused.output
    # Nor is it made anew where the other one does not say what it has.
    place = site.hypervisor("hv2")["cocoon_root_dir"]
    site.hypervisor("hv2")["cocoon_root_dir"] = "beginning/nowhere"
    refused = site.run("--limit", "web3", ok=False)
    assert "web3 would be made on hv1" in " ".join(refused.output.split()), refused.output
    site.hypervisor("hv2")["cocoon_root_dir"] = place
    assert sorted(site.vms(1)) == ["web1", "web2"]
    # A list that is empty may not prune: hv2 has another VM.
    site.hypervisor("hv2")["cocoon_vms"] = {"other": None}
    for check in (True, False):
        kept = site.run(variables=prune, ok=False, check=check)
        said = " ".join(kept.output.split())
        assert "web3 is on hv2" in said and "is wanted on hv1" in said
        assert site.vms(2)["web3"] == before
        assert sorted(site.vms(1)) == ["web1", "web2"]
    rows = kept.results("cocoon.microvm.vms : Show the VMs that are here and not listed", "hv2")[0]["msg"]
    assert [line.split() for line in rows[1:]] == [["web3", "created", "hv1"]]
    # Listed where it is, it is to go, and one of the same name is new.
    site.hypervisor("hv2")["cocoon_vms"]["web3"] = {"state": "absent"}
    site.run(variables=prune)
    assert sorted(site.vms(1)) == ["web1", "web2", "web3"]
    assert sorted(site.vms(2)) == ["other"]


def test_what_a_limit_excludes_is_left_alone(site: Site) -> None:
    site.run()
    before = site.vms(1)
    for host in ("web1", "web2"):
        site.inventory["vms"]["hosts"][host]["cocoon_vm"] = {"memory": "72M"}
    run = site.run("--limit", "all:!web1", variables={"cocoon_prune": True})
    assert changed(run) == ["web2"]
    assert site.vms(1)["web1"] == before["web1"]
    assert changed(site.run("--limit", "all:!web*")) == []
    assert changed(site.run("--limit", "hv1")) == ["web1"]


def test_a_null_takes_away_what_the_defaults_give(site: Site) -> None:
    site.hypervisor("hv1")["cocoon_defaults"]["labels"] = {"from": "defaults"}
    site.hypervisor("hv1")["cocoon_vms"] = {"a1": {"labels": None}, "a2": None}
    site.inventory["vms"]["hosts"]["web1"]["cocoon_vm"] = {"labels": {"host": None}}
    site.inventory["vms"]["hosts"]["web2"]["cocoon_vm"] = {"labels": None}
    site.run("--limit", "hv1")
    labels = {name: vm["labels"] for name, vm in site.vms(1).items()}
    assert labels == {"a1": {}, "a2": {"from": "defaults"}, "web1": {"from": "defaults"}, "web2": {}}


REACH = [
    {"ansible.builtin.import_playbook": SITE},
    {
        "hosts": "vms",
        "gather_facts": False,
        "strategy": "ansible.builtin.linear",
        "tasks": [{"name": "see", "ansible.builtin.debug": {"msg": "{{ ansible_host }}"}}],
    },
]


@pytest.mark.parametrize("strategy", ["free", "host_pinned"])
def test_the_strategy_of_the_configuration_does_no_harm(site: Site, strategy: str) -> None:
    run = site.playbooks(REACH, copy.deepcopy(site.inventory), variables=QUIET, env={"ANSIBLE_STRATEGY": strategy})
    assert run.results("see", "web1")[0]["msg"].startswith("10.71.0.")


def test_a_vm_whose_hypervisor_is_down_is_not_reached_by_its_bare_name(site: Site) -> None:
    site.hypervisor("hv2").update(ansible_connection="ssh", ansible_host="192.0.2.99", ansible_port=1)
    env = {"ANSIBLE_TIMEOUT": "2"}
    run = site.playbooks(REACH, copy.deepcopy(site.inventory), variables=QUIET, env=env, ok=None)
    assert run.stats["hv2"]["unreachable"] == 1
    site.hypervisor("hv2").update(ansible_connection="local")  # for what comes after the test
    assert run.results("see", "web3")[0]["msg"].endswith(".invalid")
    assert run.results("see", "web1")[0]["msg"].startswith("10.71.0.")


def test_a_task_prunes_only_without_a_limit(site: Site) -> None:
    site.run()
    task = {"cocoon.microvm.cocoon_vms": {"vms": [{"name": "web1"}], "prune": True, **site.dirs[0]}}
    plays = [{"hosts": "hv1", "gather_facts": False, "tasks": [task]}]
    refused = site.playbooks(plays, copy.deepcopy(site.inventory), "--limit", "hv1", ok=False)
    assert "prune: refused under --limit" in refused.output and sorted(site.vms(1)) == ["web1", "web2"]
    site.playbooks(plays, copy.deepcopy(site.inventory))
    assert sorted(site.vms(1)) == ["web1"]


def test_unknown_options_are_refused_before_anything_is_made(site: Site) -> None:
    site.hypervisor("hv1")["cocoon_networks"]["lab1"]["subnte"] = "10.1.0.0/24"
    site.inventory["vms"]["hosts"]["web3"]["cocoon_vm"] = {"memry": "1G"}
    run = site.run(ok=False)
    assert "subnte" in run.output
    assert "memry" in run.output
    assert "(web3): unknown options: memry" in run.output
    assert not Path(site.dirs[0]["root_dir"]).exists() and not Path(site.dirs[1]["root_dir"]).exists()


def test_one_bad_vm_fails_alone(site: Site) -> None:
    site.inventory["vms"]["hosts"]["web1"]["cocoon_vm"] = {"image": "no-such-image"}
    run = site.run(ok=False)
    assert "web1: image: there is no image 'no-such-image' on this host, and its name says no registry" in run.output
    assert '"socket_path"' not in run.output, "all records of the host stand before the message"
    assert sorted(site.vms(1)) == ["web2"]
    assert sorted(site.vms(2)) == ["web3"]
    limited = site.run("--limit", "web1,web3", ok=False)
    assert limited.stats["web1"]["failures"] == 1
    assert limited.stats["web3"]["failures"] == 0


def test_networks_and_images_go_after_their_vms(site: Site) -> None:
    site.run()
    site.hypervisor("hv2")["cocoon_defaults"]["state"] = "absent"
    site.hypervisor("hv2")["cocoon_networks"]["lab2"]["state"] = "absent"
    site.hypervisor("hv2")["cocoon_images"] = [{"name": "small", "state": "absent"}]
    for check in (True, False):
        run = site.run(check=check)
        assert run.stats["hv1"]["changed"] == 0
        whole = run.result(CONVERGE, "hv2")
        assert [item["action"] for item in whole["networks"]] == ["remove"]
        assert [item["actions"] for item in [*whole["images"], *whole["results"]]] == [["remove"], ["remove"]]
    assert site.vms(2) == {}


def test_teardown_asks_and_leaves_what_belongs_to_others(site: Site) -> None:
    site.hypervisor("hv1")["cocoon_vms"] = {"foreign": {"owner": "somebody", "nics": []}}
    site.run()
    asked = site.run(playbook=TEARDOWN, ok=False)
    assert "VMs web1, web2" in asked.output
    assert "-e cocoon_confirm=true" in asked.output
    assert asked.total("changed") == 0
    site.run(playbook=TEARDOWN, variables=SURE, ok=None)
    assert sorted(site.vms(1)) == ["foreign"]
    assert not Path(site.dirs[1]["root_dir"]).exists()
    site.run(playbook=TEARDOWN, variables={**SURE, "cocoon_owner": "somebody"})
    assert site.vms(1) == {}


def test_a_directory_with_other_things_in_it_is_not_removed(site: Site) -> None:
    site.run("--limit", "hv1")
    mine = Path(site.dirs[0]["root_dir"], "mine.txt")
    mine.write_text("mine", encoding="utf-8")
    assert str(mine) in site.run("--limit", "hv1", playbook=TEARDOWN, variables=SURE, ok=False).output
    assert mine.read_text(encoding="utf-8") == "mine"
    mine.unlink()
    site.run("--limit", "hv1", playbook=TEARDOWN, variables=SURE)
    assert not site.left()
    assert site.run(playbook=TEARDOWN, variables=SURE).total("changed") == 0


HOST_ROLE = [{"hosts": "all", "gather_facts": False, "roles": ["cocoon.microvm.host"]}]


def test_the_host_role_makes_no_network_call_where_nothing_is_missing(playbook: Playbooks) -> None:
    run = playbook(HOST_ROLE)
    assert run.total("changed") == 0
    assert not [entry for entry in run.tasks if "Install packages (" in entry["task"] and entry["outcome"] == "ok"]
    lines = run.result("cocoon.microvm.host : Show what the doctor says")["msg"]
    assert re.match(r"\d+ of \d+ checks pass", lines[0])
    assert not [line for line in lines if " PASS " in line]
    whole = playbook(HOST_ROLE, variables={"host_show_table": True})
    lines = whole.result("cocoon.microvm.host : Show what the doctor says")["msg"]
    assert lines[1].split() == ["CHECK", "STATUS", "FOUND"]
    assert any(line.startswith("hypervisor") and " PASS " in line for line in lines)


def test_the_host_role_names_what_an_interpreter_lacks(playbook: Playbooks, scratch: Path) -> None:
    bare = scratch / "bare-venv"
    command("/usr/bin/python3", "-m", "venv", "--without-pip", bare)
    run = playbook(HOST_ROLE, variables={"ansible_python_interpreter": str(bare / "bin" / "python")}, ok=False)
    assert f"Run {bare}/bin/python -m pip install pyroute2" in run.output
    assert not [entry for entry in run.tasks if "Install packages" in entry["task"] and entry["outcome"] == "ok"]


RELEASES: list[dict[str, Any]] = [
    {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [{"ansible.builtin.include_role": {"name": "cocoon.microvm.host", "tasks_from": "hypervisors"}}],
    }
]


def release(folder: Path, name: str, version: str, member: str = "") -> dict[str, str]:
    """A release of a hypervisor as upstream has it, and what is said of it."""
    asset = folder / f"{name}-{version}{'.tgz' if member else ''}"
    script = f"#!/bin/sh\necho {name} v{version}\n".encode()
    if member:
        with tarfile.open(asset, "w:gz") as archive:
            info = tarfile.TarInfo(member)
            info.size = len(script)
            archive.addfile(info, io.BytesIO(script))
    else:
        asset.write_bytes(script)
    return {"version": version, "sha256": hashlib.sha256(asset.read_bytes()).hexdigest(), "src": str(asset)}


def test_releases_of_hypervisors_lie_side_by_side(playbook: Playbooks, scratch: Path) -> None:
    member = "release-v1.16.1-x86_64/firecracker-v1.16.1-x86_64"
    cloud = release(scratch, "cloud-hypervisor", "53.0")
    cloud["url"] = f"file://{cloud.pop('src')}"
    wanted = {"cloud-hypervisor": cloud, "firecracker": release(scratch, "firecracker", "1.16.1", member)}
    links, folder = scratch / "links", scratch / "releases"
    links.mkdir()
    where = {"host_hypervisor_dir": str(folder), "host_hypervisor_links": str(links)}

    def run(hypervisors: Any, **more: Any) -> Run:
        return playbook(RELEASES, variables={**where, "host_hypervisors": hypervisors}, **more)

    assert run(wanted, check=True).total("changed") and not folder.exists() and not list(links.iterdir())
    assert run(wanted).total("changed")
    assert run(wanted).total("changed") == 0
    for name, said in wanted.items():
        assert command(links / name, "--version").strip() == f"{name} v{said['version']}"
        assert (links / name).resolve() == folder / name / f"{said['version']}-{said['sha256'][:12]}" / name
    assert sorted(path.name for path in (links / "firecracker").resolve().parent.iterdir()) == ["firecracker"]

    newer = release(scratch, "cloud-hypervisor", "54.0")
    assert run({"cloud-hypervisor": newer}).total("changed")
    assert command(links / "cloud-hypervisor", "--version").strip() == "cloud-hypervisor v54.0"
    assert len(list((folder / "cloud-hypervisor").iterdir())) == 2, "the older one stays"

    wrong = {**release(scratch, "cloud-hypervisor", "55.0"), "sha256": "0" * 64}
    unquoted = {**release(scratch, "cloud-hypervisor", "54.10"), "version": 54.1}
    (links / "firecracker").unlink()
    (links / "firecracker").write_text("somebody's", encoding="utf-8")
    refused = [{"cloud-hypervisor": wrong}, {"cloud-hypervisor": unquoted}, {"firecracker": wanted["firecracker"]}]
    rescue = [{"ansible.builtin.debug": {"var": "ansible_failed_result.msg"}}]
    tries = [
        {"block": [{**RELEASES[0]["tasks"][0], "vars": {"host_hypervisors": hypervisors}}], "rescue": rescue}
        for hypervisors in refused
    ]
    said = playbook([{**RELEASES[0], "tasks": tries}], variables=where).output
    assert all(words in said for words in ("has the sha256", "Quote the version", "is not this role's"))
    assert command(links / "cloud-hypervisor", "--version").strip() == "cloud-hypervisor v54.0"


def test_host_info_before_there_is_a_store(playbook: Playbooks, make_store: Callable[[], dict[str, str]]) -> None:
    dirs = make_store()
    play = [
        {"hosts": "all", "gather_facts": False, "tasks": [{"name": "look", "cocoon.microvm.cocoon_host_info": dirs}]}
    ]
    found = playbook(play).result("look")
    assert found["ok"]
    assert not found["host"]["store"]["exists"]
    assert [entry["name"] for entry in found["host"]["hypervisors"] if entry["available"]] == ["qemu"]
    assert found["host"]["kvm"]["usable"] or found["host"]["kvm"]["reason"]
    assert not [path for path in dirs.values() if Path(path).exists()]


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("cocoon_vm", "{name: 0123, image: x}"),
        ("cocoon_vms", "{vms: [{name: 0123, image: x}]}"),
        ("cocoon_site", "{networks: [{name: 0123}]}"),
        ("cocoon_image", "{name: 0123, source: /x}"),
        ("cocoon_network", "{name: 0123, subnet: 10.1.0.0/24}"),
        ("cocoon_snapshot", "{name: 0123, vm: x}"),
    ],
)
def test_names_that_yaml_made_in_tasks(playbook: Playbooks, module: str, options: str) -> None:
    task = {"name": "make", f"cocoon.microvm.{module}": yaml.safe_load(options)}
    run = playbook([{"hosts": "all", "gather_facts": False, "tasks": [task]}], ok=False)
    assert "'83' is a number to YAML" in run.result("make")["msg"]


def test_the_table_says_which_vms_stand_still(playbook: Playbooks) -> None:
    panicked = "its guest's kernel panicked: Attempted to kill init!"
    vms = {
        name: {"config": {"name": name}, "state": state, **more}
        for name, state, more in (
            ("fine", "running", {}),
            ("told", "running", {"reason": None}),
            ("gone", "stopped", {"reason": panicked}),
            ("full", "error", {"reason": "the guest stands still (io-error)"}),
            ("sad", "running", {"reason": panicked}),
        )
    }
    show = {"ansible.builtin.include_role": {"name": "cocoon.microvm.vms", "tasks_from": "show.yml"}}
    play = {"hosts": "all", "gather_facts": False, "tasks": [show]}
    task = "cocoon.microvm.vms : Show the VMs that stand still"
    for names, lines in ((list(vms), ["full", "sad"]), (["fine", "told", "gone"], [])):
        result = {"results": [], "vms": {name: vms[name] for name in names}}
        found = playbook([play], variables={"vms_result": result}).results(task)
        assert [line.split()[0] for entry in found for line in entry.get("msg", [])[1:]] == lines
        assert not lines or found[0]["msg"][2].endswith("init!")
