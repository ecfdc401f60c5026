# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs that cannot say what they hold: it is found by their id, and goes with them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils import _host
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._engine import giving_back, orphans, steps
from ansible_collections.cocoon.microvm.plugins.module_utils._images import listing
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._network import leases
from ansible_collections.cocoon.microvm.plugins.module_utils._network.listing import describe
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.steps import Remove
from ansible_collections.cocoon.microvm.plugins.module_utils._records import is_damaged, read_vm
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import store as snapshots
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, write_json
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import salvage
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Options, Run
from ansible_collections.cocoon.microvm.tests.unit.documents import document

IMAGE, NETWORK = document("image-1-first"), document("network-1-first")
LOST, OTHER = "lost" + "a" * 22, "other" + "a" * 21


@pytest.fixture(name="run")
def fixture_run(tmp_path: Path) -> Run:
    """A store where a VM with a document that is cut off, and a sound one, hold the same kinds of things."""
    store = Store.open(Paths(str(tmp_path / "root"), str(tmp_path / "run"), str(tmp_path / "log")))
    images.make_directories(store.paths)
    write_json(images.record_path(store.paths, IMAGE["id"]), IMAGE)
    for folder in ("leases", "ports", "users"):
        os.makedirs(leases.directory(store, NETWORK["id"], folder))
    store.index("network").reserve(NETWORK["name"], NETWORK["id"])
    write_json(leases.directory(store, NETWORK["id"], "network.json"), NETWORK)
    os.mkdir(snapshots.directory(store, "snap"))
    for number, vm_id in enumerate((LOST, OTHER), start=2):
        directory = Path(store.paths.vm_dir(vm_id))
        directory.mkdir()
        store.index("vm").reserve(f"vm-{vm_id}", vm_id)
        store.index("uid").reserve(str(store.uid_start + number), vm_id)
        store.index("mac").reserve(f"02:00:00:00:00:0{number}", vm_id)
        write_json(str(directory / "vm.json"), document("vm-5-bytes", id=vm_id))
        leases.attach(store, NETWORK["id"], vm_id)
        leases.lease(store, NETWORK, f"10.0.0.{number}", vm_id)
        images.pin(store, IMAGE["id"], vm_id)
        snapshots.note_clone(store, "snap", vm_id)
    damage(store)
    return Run(store, Options())


def damage(store: Store) -> None:
    path = Path(store.paths.vm_dir(LOST)) / "vm.json"
    path.write_bytes(path.read_bytes()[:-100])


def held(run: Run, vm_id: str) -> dict[str, object]:
    """What bears the id of a VM."""
    store = run.store
    return {
        **{kind: [name for name, holder in store.index(kind).entries() if holder == vm_id] for kind in ("uid", "mac")},
        "name": store.index("vm").lookup(f"vm-{vm_id}"),
        "leases": [ip for ip in leases.names(store, NETWORK["id"], "leases") if lease(run, ip) == vm_id],
        "users": vm_id in leases.names(store, NETWORK["id"], "users"),
        "pins": vm_id in images.users(store, IMAGE["id"]),
        "clones": vm_id in os.listdir(os.path.join(snapshots.directory(store, "snap"), snapshots.CLONES)),
        "directory": os.path.isdir(store.paths.vm_dir(vm_id)),
    }


def lease(run: Run, ip: str) -> str | None:
    return leases.lease_holder(run.store, NETWORK["id"], ip)


def remove(run: Run, delete: bool = False) -> None:
    job = steps.Job(run, run.store.vm_record(f"vm-{LOST}"), {})
    steps.remove(job, Remove(delete_data_disks=delete))
    assert job.record is None


@pytest.mark.parametrize("state", ["cut off", "gone", "directory gone"])
def test_all_that_it_holds_goes_with_it_and_nothing_else(run: Run, state: str) -> None:
    before = held(run, OTHER)
    assert all(before.values())
    document_path = Path(run.store.paths.vm_dir(LOST)) / "vm.json"
    if state != "cut off":
        document_path.unlink()
    if state == "gone":
        (document_path.parent / "cow.raw").touch()
    if state == "directory gone":
        document_path.parent.rmdir()
    record = run.store.vm_record(f"vm-{LOST}")
    assert record and salvage.is_lost(record) and is_damaged(record) is (state != "directory gone")
    remove(run)
    assert not any(held(run, LOST).values())
    assert held(run, OTHER) == before


def test_its_data_disks_wait_for_a_vm_of_its_name(run: Run) -> None:
    directory = Path(run.store.paths.vm_dir(LOST))
    (directory / "data-raw.raw").write_bytes(bytes(2048))
    (directory / "data-db.raw").write_bytes(bytes(1080) + b"\x53\xef" + bytes(1000))
    (directory / "cow.raw").touch()
    remove(run)
    kept = read_vm(run.store.vm_record(f"vm-{LOST}") or {})
    assert (kept["state"], kept["uid"]) == ("removed", run.store.uid_start + 2)
    assert kept["detached_disks"] == [
        {"name": "db", "size": 2082, "fstype": "ext4"},
        {"name": "raw", "size": 2048, "fstype": "none"},
    ]
    assert sorted(os.listdir(directory)) == ["data-db.raw", "data-raw.raw", "vm.json"]
    assert not any(value for key, value in held(run, LOST).items() if key not in ("uid", "name", "directory"))
    damage(run.store)  # once more, and then without them
    remove(run, delete=True)
    assert not any(held(run, LOST).values())


@pytest.mark.parametrize("place", ["remove.record", "remove.runtime", "remove.lease", "remove.image", "remove.files"])
def test_a_removal_that_is_killed_is_finished(run: Run, place: str) -> None:
    class Killed(BaseException):
        pass

    def kill(mark: str) -> None:
        if mark == place:
            raise Killed

    run.mark = kill
    with pytest.raises(Killed):
        remove(run)
    run.mark = lambda _name: None
    remove(run)
    assert not any(held(run, LOST).values())


def test_each_damaged_document_is_found_and_stands_in_no_others_way(run: Run) -> None:
    store = run.store
    vm = os.path.join(store.paths.vm_dir(LOST), "vm.json")
    assert [path for path in _host.damaged_documents(store) if vm not in path] == []
    broken = [leases.directory(store, NETWORK["id"], "network.json"), images.record_path(store.paths, IMAGE["id"])]
    broken.append(store.index("uid").path(str(store.uid_start + 3)))
    for path in broken:
        Path(path).write_text("{}")
    found = _host.damaged_documents(store)
    assert all(any(path in words for words in found) for path in [vm, *broken]) and len(found) == 4
    dirs = {f"{kind}_dir": getattr(store.paths, kind) for kind in ("root", "run", "log")}
    (network,) = describe(dirs)
    assert (network["name"], network["state"]) == (NETWORK["name"], "error") and "backup" in network["reason"]
    (image,) = listing.info(store.paths)
    assert (image["id"], image["state"]) == (IMAGE["id"], "error") and "is damaged" in image["reason"]


def test_what_is_held_for_nobody_is_found_and_given_back(run: Run) -> None:
    """Folder and name are gone, by hand. What belongs to others stays, and so does what a damaged name may hold."""
    store = run.store
    assert orphans.find(store) == {}
    before = held(run, OTHER)
    shutil.rmtree(store.paths.vm_dir(LOST))
    assert orphans.find(store) == {}, "there is a name for it: it can be removed by that"
    os.unlink(store.index("vm").path(f"vm-{LOST}"))
    (found,) = orphans.find(store).values()
    assert found == [
        *("address 10.0.0.2", f"use of network {NETWORK['id']}", f"use of image {IMAGE['id'][7:19]}"),
        *("mac 02:00:00:00:00:02", f"uid {store.uid_start + 2}"),
    ]
    giving_back.remove(run, [LOST])
    assert orphans.find(store) == {} and not any(held(run, LOST).values())
    assert held(run, OTHER) == before
