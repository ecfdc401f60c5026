# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documents of a store, as any version wrote them: whole, of an earlier layout, and damaged."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils import _record_types
from ansible_collections.cocoon.microvm.plugins.module_utils import _records as records
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._engine import transfer
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import registry
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import clone
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.definition import normalise
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import Context, Observed, is_made
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.vm import plan_vm
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import store as snapshots
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import restoring, showing
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Options, Run
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm
from ansible_collections.cocoon.microvm.tests.unit.documents import document, names

READERS: dict[str, t.Callable[[Record], Record]] = {
    "vm": records.read_vm,
    "snapshot": records.read_snapshot,
    "image": records.read_image,
    "network": records.read_network,
}
DECLARED = {
    "vm": _record_types.VmRecord,
    "snapshot": _record_types.SnapshotRecord,
    "image": _record_types.ImageRecord,
    "network": _record_types.NetworkRecord,
}
ALL = [name for kind in READERS for name in names(kind)]
VMS = [name for name in names("vm") if not name.endswith("removed")]
SNAPSHOTS = [name for name in names("snapshot") if not name.endswith("creating")]
NEWEST = {kind: document(names(kind)[-1]) for kind in READERS}
# What a record has only once something has happened, or while it does.
OCCASIONAL = {"exit_code", "secret_env", "cidata_given", "identity_pending", "memory_mode", "resume", "exports"}
OCCASIONAL |= {"created", "seconds", "vm", "first_boot_due", "snapshot", "snapshot_id"}


def read(name: str) -> Record:
    return READERS[name.partition("-")[0]](document(name))


@pytest.mark.parametrize("name", ALL)
def test_every_layout_is_read_and_declared(name: str) -> None:
    kind = name.partition("-")[0]
    record = read(name)
    pinned = registry.driver("qemu", Paths()).pinned
    assert set(record) - set(pinned) <= set(DECLARED[kind].__annotations__)
    assert {**record, **document(name)} == {**document(name), **record} or kind == "vm", "what was there was changed"
    if not name.endswith("creating"):
        assert set(NEWEST[kind]) - set(record) <= OCCASIONAL
    assert READERS[kind](json.loads(json.dumps(record))) == record


@pytest.mark.parametrize("name", VMS)
def test_disks_of_every_layout_have_their_roles(name: str) -> None:
    record = read(name)
    roles = [(item["role"], item["serial"]) for item in record["storage_configs"]]
    assert set(roles) >= {("cow", "cocoon-cow"), ("data", "db"), ("data", "raw")}
    assert all(item["ro"] is (item["role"] in ("layer", "cidata")) for item in record["storage_configs"])
    (data,) = [item for item in record["storage_configs"] if item["serial"] == "db"]
    assert (data["fstype"], data["mount_point"]) == ("ext4", "/mnt/db")


@pytest.mark.parametrize("name", VMS)
def test_a_vm_of_every_layout_is_shown_and_left_as_it_is(name: str) -> None:
    record = read(name)
    shown = showing.view(dict(record), Paths())
    assert shown and shown["config"] == record["config"]
    died = showing.view({**record, "pid": 1, "state": "running", "process": None, "ready": {"seconds": 2.5}}, Paths())
    assert died and (died["state"], died["ready"]) == ("stopped", None), "a boot that is over"
    definition = normalise({"name": "web1", "cpu": 2, "memory": "512M", "firmware": record["firmware"]})
    assert not plan_vm(record, Observed(), definition, Context()).changed


@pytest.mark.parametrize("vm", VMS)
@pytest.mark.parametrize("snapshot", SNAPSHOTS)
def test_a_vm_of_any_layout_goes_back_to_a_snapshot_of_any(store: Store, vm: str, snapshot: str) -> None:
    merged = restoring._merged(Vm(Run(store, Options()), read(vm)), read(snapshot))
    assert merged["command"] == read(snapshot)["command"] and merged["data_disks"] == read(snapshot)["data_disks"]
    assert READERS["vm"](merged) == merged


def test_a_vm_that_goes_back_keeps_its_limits(store: Store) -> None:
    snapshot, record, limits = read(SNAPSHOTS[-1]), read(VMS[-1]), {"total": {"iops": 9}}
    for key in ("data_disks", "detached_disks"):
        mine = {**record, "data_disks": [], "detached_disks": [], "limits": limits}
        mine[key] = [{"name": "db", "size": 1 << 24, "fstype": "none", "limits": limits}]
        disk = {"name": "db", "size": 1 << 25, "fstype": "none"}
        merged = restoring._merged(Vm(Run(store, Options()), mine), {**snapshot, "data_disks": [disk]})
        assert merged["data_disks"] == [{**disk, "limits": limits}] and merged["limits"] == limits


@pytest.mark.parametrize("name", SNAPSHOTS)
@pytest.mark.parametrize("disks_only", [False, True])
def test_a_snapshot_of_every_layout_is_cloned_and_exported(name: str, disks_only: bool) -> None:
    record = read(name)
    assert transfer.config_of(record)["image_blob_ids"]
    source = snapshots.disks_of(record) if disks_only else record
    definition = normalise({"name": "new", "snapshot": "warm", "disks_only": disks_only})
    assert clone.inherit(definition, source)[0]["cpu"] == 2


def test_what_is_not_known_of_a_memory_is_trusted_only_if_it_was_saved_here() -> None:
    assert read("snapshot-1-first")["blob_digests"] is None
    assert read("snapshot-2-imported")["blob_digests"] == {}


def broken() -> t.Iterator[tuple[str, str, t.Any]]:
    """Each required field with nothing in it, and with what is of another type."""
    fields = {"vm": records._VM, "image": records._IMAGE, "network": records._NETWORK}
    fields["snapshot"] = {**records._SNAPSHOT, **records._COMPLETE_SNAPSHOT}
    for kind, required in fields.items():
        for key in required:
            right = type(NEWEST[kind][key])
            yield from ((kind, key, value) for value in (None, "gone", ["nonsense"]) if not isinstance(value, right))


@pytest.mark.parametrize(("kind", "key", "value"), list(broken()))
def test_incomplete_documents_are_damaged(kind: str, key: str, value: t.Any) -> None:
    wrong = {name: item for name, item in NEWEST[kind].items() if name != key or value is not None}
    with pytest.raises(StateError, match=key):
        READERS[kind]({**wrong, **({key: value} if value is not None else {})})


# ------------------------------------------------------------------------------------------------- damaged VMs

VM = NEWEST["vm"]
WHOLE = json.dumps(VM)
DAMAGES = {
    "cut off": WHOLE[: len(WHOLE) // 2],
    "empty": "",
    "no JSON": "cocoon",
    "not text": "\udcff",
    "no object": "[]",
    "deep": "[" * 100_000,
    "incomplete": json.dumps({key: value for key, value in VM.items() if key != "data_disks"}),
    "another's": json.dumps({**VM, "id": "other"}),
}


@pytest.fixture(name="store")
def fixture_store(tmp_path: Path) -> Store:
    return Store.open(Paths(str(tmp_path / "root"), str(tmp_path / "run"), str(tmp_path / "log")))


def put(store: Store, text: str, name: str = "web1", vm_id: str = VM["id"]) -> Path:
    store.index("vm").reserve(name, vm_id)
    path = Path(store.paths.vm_dir(vm_id)) / "vm.json"
    path.parent.mkdir()
    path.write_bytes(text.encode(errors="surrogateescape"))
    return path


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_vm_stands_there_with_what_to_do(store: Store, damage: str) -> None:
    path = put(store, DAMAGES[damage])
    put(store, json.dumps({**VM, "id": "neighbour", "config": {**VM["config"], "name": "web2"}}), "web2", "neighbour")
    first, second = store.vm_records()
    assert store.vm_record("web1") == first and records.is_damaged(first) and not is_made(first)
    shown = showing.view(first, store.paths)
    assert shown and (shown["state"], shown["config"]["name"]) == ("error", "web1")
    assert str(path) in shown["reason"] and "state: absent" in shown["reason"]
    assert not records.is_damaged(second) and store.vm_name("neighbour") == "web2"
    for state in ("present", "started", "stopped"):
        with pytest.raises(StateError, match="vm.json"):
            plan_vm(first, Observed(), normalise({"name": "web1", "state": state}), Context())
    assert plan_vm(first, Observed(), normalise({"name": "web1", "state": "absent"}), Context()).actions == ["remove"]


def test_a_document_that_is_gone_is_not_one_that_was_never_written(store: Store) -> None:
    path = put(store, WHOLE)
    path.unlink()
    assert store.vm_record("web1") == {"id": VM["id"], "state": "creating", "config": {"name": "web1"}, "bare": True}
    (path.parent / "data-db.raw").touch()
    record = store.vm_record("web1")
    assert records.is_damaged(record) and record and "is missing" in record["reason"]


def test_a_damaged_name_hides_no_other(store: Store) -> None:
    put(store, WHOLE)
    Path(store.index("vm").path("web2")).write_text("{")
    Path(store.index("vm").path("web3")).write_text("{}")
    assert [record["id"] for record in store.vm_records()] == [VM["id"]]
    for name in ("web2", "web3"):
        with pytest.raises(StateError, match="damaged"):
            store.vm_record(name)


def test_a_store_that_lost_its_identity_gets_no_other(store: Store) -> None:
    paths = store.paths
    before = Path(paths.store_file).read_text()
    Path(paths.store_file).unlink()
    assert Store.load(paths) is None, "there is nothing in it"
    assert Store.open(paths).store_id != store.store_id
    Path(paths.store_file).write_text(before)
    put(store, WHOLE)
    for text in (None, "{", "{}", '{"layout": 1}'):
        Path(paths.store_file).unlink(missing_ok=True)
        if text is not None:
            Path(paths.store_file).write_text(text)
        for opened in (Store.load, Store.open):
            with pytest.raises(StateError, match="store.json"):
                opened(paths)
    Path(paths.store_file).write_text(before)
    assert Store.open(paths).store_id == store.store_id
