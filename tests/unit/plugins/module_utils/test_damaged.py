# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An object whose document cannot be read fails alone: it says so, its neighbour goes on, and it goes by its name."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils import _host
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._engine import orphans, steps
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    ChangeRefusedError,
    CocoonError,
    ConflictError,
    StateError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._images import converging as images_converging
from ansible_collections.cocoon.microvm.plugins.module_utils._images import listing as image_listing
from ansible_collections.cocoon.microvm.plugins.module_utils._images import references
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._images.wanted import Wanted
from ansible_collections.cocoon.microvm.plugins.module_utils._network import (
    converging,
    firewall,
    kernel,
    leases,
    listing,
    ports,
    serving,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import image as planning
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.steps import Remove
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import store as snapshots
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, write_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import showing
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Options, Run
from ansible_collections.cocoon.microvm.tests.unit.documents import document

KINDS = ("vm", "snapshot", "network", "image")
NEWEST = {
    "vm": "vm-7-vcpus",
    "snapshot": "snapshot-7-vcpus",
    "network": "network-3-search",
    "image": "image-2-registry",
}
HURT, SOUND = "hurt", "sound"
DAMAGES: dict[str, t.Callable[[bytes], bytes]] = {
    "cut off": lambda data: data[:-20],
    "no JSON": lambda _data: b"\xff\x00{",
    "empty": lambda _data: b"",
    "incomplete": lambda _data: b'{"id": "x"}',
    "of another object": lambda data: data.replace(b'"id": "', b'"id": "other', 1),
}
NETWORK_OPTIONS = dict.fromkeys((*converging.plan.FIELDS, "adopt", "force"))


class Site(t.NamedTuple):
    """A store with two objects of each kind, of which nothing uses another, and what a blob of an image is called."""

    store: Store
    dirs: dict[str, str]
    ids: dict[str, dict[str, str]]


def blob(name: str) -> str:
    return images.hashed(f"blob of {name}")


@pytest.fixture(name="site")
def fixture_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    dirs = {f"{name}_dir": str(tmp_path / name) for name in ("root", "run", "log")}
    store = Store.open(Paths.from_params(dirs))
    images.make_directories(store.paths)
    ids: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    for number, name in enumerate((HURT, SOUND)):
        for kind in KINDS:
            object_id = f"sha256:{images.hashed(name)}" if kind == "image" else f"{kind[0]}{name}".ljust(26, "a")
            ids[kind][name] = object_id
            store.index(kind).reserve(name, object_id)
            path = Path(path_of(store, kind, object_id))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(str(path), described(kind, name, object_id, number))
        for folder in converging.FOLDERS:
            os.mkdir(leases.directory(store, ids["network"][name], folder))
        (Path(images.directory(store.paths, "blobs")) / f"{blob(name)}.erofs").touch()
        references.refer(store, blob(name), ids["image"][name])
    # What only root may touch.
    monkeypatch.setattr(firewall, "apply", lambda _store: False)
    monkeypatch.setattr(firewall, "missing", lambda _store: [])
    monkeypatch.setattr(kernel, "missing", lambda _record: [])
    return Site(store, dirs, ids)


def path_of(store: Store, kind: str, object_id: str) -> str:
    if kind == "image":
        return images.record_path(store.paths, object_id)
    return os.path.join(store.paths.object_dir(kind, object_id), f"{kind}.json")


def described(kind: str, name: str, object_id: str, number: int) -> Record:
    """A document of that kind, as this version writes it, of an object that has nothing of another."""
    record = document(NEWEST[kind], id=object_id)
    if kind == "vm":
        record.update(network_configs=[], nics=[], ports=[], data_disks=[], detached_disks=[], storage_configs=[])
        return {**record, "config": {**record["config"], "name": name}, "image_id": None, "process": None}
    if kind == "image":
        return {**record, "name": name, "names": [name], "digest": object_id, "layers": [blob(name)], "boot": None}
    if kind == "network":
        return {**record, "name": name, "bridge": f"cm-{name}", "subnet": None, "gateway": None, "nat": False}
    return {**record, "name": name, "image_id": ""}


def hurt(site: Site, kind: str, damage: str = "cut off") -> Path:
    path = Path(path_of(site.store, kind, site.ids[kind][HURT]))
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    return path


def shown(site: Site, kind: str, name: str | None = None) -> dict[str, Record]:
    """What the info module of that kind gives, by name."""
    if kind == "vm":
        found = showing.vm_info({**site.dirs, "names": [name] if name else None})["vms"]
        return {vm["config"]["name"]: vm for vm in found}
    if kind == "snapshot":
        every = [name] if name else [entry for entry, _id in site.store.index(kind).entries()]
        return {entry: snapshots.load(site.store, entry) or {} for entry in every}
    if kind == "network":
        return {item["name"]: item for item in listing.describe({**site.dirs, "name": name})}
    return {item["name"]: item for item in image_listing.info(site.store.paths, name)}


def converge_network(site: Site, name: str, **options: t.Any) -> Record:
    given = {**NETWORK_OPTIONS, "state": "present", "lock_timeout": 1, **options}
    return converging.converge({**given, "name": name, **site.dirs}, check_mode=False)


def remove(site: Site, kind: str, name: str) -> None:
    """``state: absent`` of the module of that kind, as far as it needs no rights."""
    if kind == "vm":
        job = steps.Job(Run(site.store, Options()), site.store.vm_record(name), {})
        steps.remove(job, Remove())
    elif kind == "snapshot":
        snapshots.discard(site.store, snapshots.load(site.store, name) or {})
    elif kind == "network":
        assert converge_network(site, name, state="absent")["changed"]
    else:
        assert images_converging.converge(site.store.paths, Wanted(name, state="absent"), check_mode=False).changed


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_fails_alone(site: Site, kind: str, damage: str) -> None:
    before = shown(site, kind, SOUND)
    path = hurt(site, kind, damage)
    for name in (None, HURT):
        found = shown(site, kind, name)[HURT]
        assert found["state"] == "error" and str(path) in found["reason"], found
        assert "backup" in found["reason"] and "state: absent" in found["reason"]
    assert shown(site, kind)[SOUND] == shown(site, kind, SOUND)[SOUND] == before[SOUND]
    documents = _host.damaged_documents(site.store)
    assert [words for words in documents if str(path) in words] == documents or damage == "of another object"
    remove(site, kind, HURT)
    assert list(shown(site, kind)) == [SOUND] and shown(site, kind, SOUND) == before
    assert not path.exists() and site.store.index(kind).lookup(HURT) is None
    assert _host.damaged_documents(site.store) == [] and orphans.find(site.store) == {}
    remove(site, kind, SOUND)
    assert shown(site, kind) == {}


def test_the_doctor_looks_at_a_store_with_damage_in_it(site: Site) -> None:
    """It is for just that, so nothing that cannot be read stops it."""
    for kind in KINDS:
        hurt(site, kind)
    assert len(_host.damaged_documents(site.store)) == len(KINDS)
    assert _host._halted(site.store) == _host._orphans(site.store) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_name_is_told_of(site: Site, kind: str) -> None:
    """The others of its kind do not mind."""
    path = Path(site.store.index(kind).path(HURT))
    path.write_text("{", encoding="utf-8")
    assert SOUND in shown(site, kind)
    assert any(str(path) in words for words in _host.damaged_documents(site.store))
    if kind in ("network", "image"):
        assert shown(site, kind, HURT)[HURT]["state"] == "error"


# -- networks -------------------------------------------------------------------------------------------------------


def test_a_network_whose_name_is_damaged_keeps_what_it_has(site: Site) -> None:
    """It is there by its folder, so it has its rules, its instance and its subnet; and what VMs hold of it is found."""
    network_id, vm_id = site.ids["network"][HURT], site.ids["vm"][SOUND]
    leases.attach(site.store, network_id, vm_id)
    os.makedirs(os.path.join(site.store.paths.run, "networks", network_id))
    Path(site.store.index("network").path(HURT)).write_text("{", encoding="utf-8")
    assert [net["name"] for net in firewall.networks(site.store)] == [HURT, SOUND]
    assert orphans.find(site.store) == {} and serving.left_over(site.store) == []
    assert [net["name"] for net in converging._others(site.store, "new")] == [HURT, SOUND]
    leases.purge(site.store, vm_id)
    assert leases.users(site.store, network_id) == []


def test_rules_are_made_of_what_the_kernel_has_of_a_damaged_network(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurt(site, "network")
    assert [net["name"] for net in firewall.networks(site.store)] == [SOUND], "it has no bridge"
    seen = {"bridge": "cm-hurt", "adopted": False, "subnet": "10.0.0.0/24", "gateway": "10.0.0.1", "nat": True}
    monkeypatch.setattr(kernel, "found", lambda network_id: seen if network_id == site.ids["network"][HURT] else {})
    first, second = firewall.networks(site.store)
    assert {**first, **seen} == first and second["name"] == SOUND
    assert "10.0.0.0/24" in str(firewall.render("table", firewall.Inputs((first, second), (), ("eth0",), ())))


def test_a_damaged_network_takes_nobody_and_changes_for_nobody(site: Site) -> None:
    network_id, vm_id = site.ids["network"][HURT], site.ids["vm"][SOUND]
    leases.attach(site.store, network_id, vm_id)
    hurt(site, "network")
    with pytest.raises(ChangeRefusedError, match=f"VMs: {SOUND}"):
        converge_network(site, HURT, state="absent")
    with pytest.raises(StateError, match="state: absent"):
        converge_network(site, HURT, mtu=1400)
    with pytest.raises(StateError, match="damaged"):
        leases.attach(site.store, network_id, site.ids["vm"][HURT])
    assert leases.users(site.store, network_id) == [vm_id]
    assert not converge_network(site, SOUND)["changed"]
    assert shown(site, "network", HURT)[HURT]["users"] == [{"id": vm_id, "name": SOUND}]


def test_damaged_leases_and_ports_are_nobodys_and_taken(site: Site) -> None:
    network_id, vm_id = site.ids["network"][SOUND], site.ids["vm"][SOUND]
    network = {**(leases.read_record(site.store, network_id) or {}), "subnet": "10.1.0.0/24"}
    for folder, name, content in (("leases", "10.1.0.7", "{"), ("ports", "tcp-any-8080", '{"vm_id": "x"}')):
        path = Path(leases.directory(site.store, network_id, folder)) / name
        path.write_text(content, encoding="utf-8")
        assert any(str(path) in words for words in _host.damaged_documents(site.store))
    with pytest.raises(ConflictError, match="damaged"):
        leases.choose_ip(site.store, network, "seed", "10.1.0.7")
    (network_shown,) = listing.describe({**site.dirs, "name": SOUND})
    assert (network_shown["leases"], network_shown["ports"]) == ([], [])
    assert ports.published(site.store, network_id) == []
    leases.purge(site.store, vm_id)
    assert orphans.find(site.store) == {}


# -- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [*DAMAGES, "gone"])
def test_all_of_a_damaged_image_goes_and_nothing_else(site: Site, damage: str) -> None:
    if damage == "gone":
        os.unlink(path_of(site.store, "image", site.ids["image"][HURT]))
    else:
        hurt(site, "image", damage)
    assert shown(site, "image", HURT)[HURT]["state"] == shown(site, "image")[HURT]["state"] == "error"
    remove(site, "image", HURT)
    assert os.listdir(images.directory(site.store.paths, "blobs")) == [f"{blob(SOUND)}.erofs"]
    for folder, left in (("blobrefs", [blob(SOUND)]), ("users", []), ("pending", [])):
        assert os.listdir(images.directory(site.store.paths, folder)) == left


def test_a_damaged_image_that_is_used_stays(site: Site) -> None:
    images.pin(site.store, site.ids["image"][HURT], site.ids["vm"][SOUND])
    hurt(site, "image")
    with pytest.raises(ConflictError, match=f"vm {SOUND}"):
        remove(site, "image", HURT)
    (user,) = shown(site, "image", HURT)[HURT]["users"]
    assert user["description"] == f"vm {SOUND}"


def test_a_note_of_a_damaged_image_stands_in_no_others_way(site: Site) -> None:
    """Left by a run that was killed, it is looked at by the next run for any image."""
    references.note(site.store, site.ids["image"][HURT], [(blob(HURT), "erofs")])
    hurt(site, "image")
    with pytest.raises(CocoonError, match="state: absent"):
        images_converging.converge(site.store.paths, Wanted(HURT), check_mode=False)
    assert not images_converging.converge(site.store.paths, Wanted(SOUND), check_mode=False).changed
    assert shown(site, "image", HURT)[HURT]["state"] == "error"


def test_a_damaged_image_is_imported_again() -> None:
    """From a source that makes the same image, or another one."""
    damaged = {"id": "sha256:a", "state": "error", "damaged": "x", "reason": "x", "names": ["web"], "layers": []}
    found = planning.Found("sha256:a", "oci")
    plan = planning.plan_image(planning.Wanted("web", owner="me"), planning.There(damaged, damaged), found)
    assert (plan.steps, plan.before["state"]) == (("import", "update"), "error")
    assert "state" not in plan.after
    moved = planning.plan_image(planning.Wanted("web"), planning.There(damaged), planning.Found("sha256:b", "oci"))
    assert moved.steps == ("import", "tag")
    with pytest.raises(StateError):
        planning.plan_image(planning.Wanted("web"), planning.There(damaged, damaged), None)
