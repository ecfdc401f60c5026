# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots in a store: what they may be called, whether they are whole, and how they go."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._engine import snapshots as engine
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import snapshot as planning
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import store as snapshots
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.tests.unit.documents import document

IMAGE = "sha256:" + "a" * 64
FILES = {
    "vmstate": b"devices",
    "mem": b"memory" * 1000,
    "cow.raw": b"disk" * 1000,
    "data-x.raw": b"data",
    "cocoon.json": b"{}",
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(Paths(str(tmp_path / "root"), str(tmp_path / "run"), str(tmp_path / "log")))


def folder(store: Store, record: Record) -> Path:
    return Path(snapshots.directory(store, record["id"]))


def make(store: Store, name: str = "warm", vm_id: str = "vm1", **changes: t.Any) -> Record:
    """A complete snapshot with small files."""
    record: Record = document("snapshot-7-vcpus", id=f"id{name}", name=name, vm_id=vm_id, image_id=IMAGE, files={})
    record.update({"created_at": "2026-01-01T00:00:00.000000Z", **changes})
    store.index("snapshot").reserve(name, record["id"])
    folder(store, record).mkdir()
    for file, content in FILES.items():
        path = folder(store, record) / file
        path.write_bytes(content)
        record["files"][file] = snapshots.file_facts(str(path))
        if file in ("vmstate", snapshots.LAYOUT_FILE):
            record["files"][file]["digest"] = snapshots.digest(str(path))
    snapshots.write(store, record)
    return record


# ---------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name", ["a", "7", "warm", "Warm-1.2_3", "db1:nightly", "ci/base:2026-01-01", "a" * 63, "a..b", "a//b"]
)
def test_names(name: str) -> None:
    assert snapshots.check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", " ", "-a", ".", "..", "../x", "/etc", ":a", "_a", "a b", "a\n", "a\0b", "ä", "a" * 64, "a$", "a@b", "True"],
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InputError) as caught:
        snapshots.check_name(name, "snapshot")
    assert caught.value.option == "snapshot" and caught.value.remedy


def test_a_name_is_no_path(store: Store) -> None:
    """Whatever it looks like: it is hashed."""
    make(store, "ci/../../x", id="id1")
    assert snapshots.load(store, "ci/../../x") is not None
    assert [os.sep in entry for entry in os.listdir(store.paths.index("snapshot"))] == [False]


# --------------------------------------------------------------------------------------------------------- verify


def test_whole(store: Store) -> None:
    snapshots.verify(store, make(store))


def flip(path: Path) -> None:
    """Another bit, and the times as they were."""
    info = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def shorten(path: Path) -> None:
    info = path.stat()
    os.truncate(path, info.st_size - 1)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def lengthen(path: Path) -> None:
    info = path.stat()
    os.truncate(path, info.st_size + 1)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def touch(path: Path) -> None:
    info = path.stat()
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns + 1))


def link(path: Path) -> None:
    """A link to a file of the same content."""
    other = path.with_name("elsewhere")
    path.rename(other)
    path.symlink_to(other)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: list[tuple[t.Callable[[Path], None], str]] = [
    (Path.unlink, "is missing"),
    (shorten, "bytes and not"),
    (lengthen, "bytes and not"),
    (touch, "was changed after"),
    (link, "bytes and not"),
    (make_folder, "bytes and not"),
]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(("damage", "words"), DAMAGES, ids=lambda value: getattr(value, "__name__", ""))
def test_damaged(store: Store, file: str, damage: t.Callable[[Path], None], words: str) -> None:
    record = make(store)
    damage(folder(store, record) / file)
    with pytest.raises(StateError, match=words) as caught:
        snapshots.verify(store, record)
    assert str(folder(store, record) / file) in caught.value.message and "'warm' is damaged" in caught.value.message


@pytest.mark.parametrize("file", ["vmstate", "cocoon.json"])
def test_small_files_are_read_again(store: Store, file: str) -> None:
    record = make(store)
    flip(folder(store, record) / file)
    with pytest.raises(StateError, match="has other contents"):
        snapshots.verify(store, record)


def test_what_is_read_by_clones_may_be_linked_and_given_to_a_group(store: Store) -> None:
    """Neither changes the contents."""
    record = make(store)
    memory = folder(store, record) / "mem"
    os.link(memory, folder(store, record) / "another-name")
    memory.chmod(0o440)
    snapshots.verify(store, record)


# ------------------------------------------------------------------------------------------------- coming and going


def test_what_is_there(store: Store) -> None:
    assert snapshots.load(store, "warm") is None and snapshots.usable(store, "warm") is None
    second = make(store, "second", created_at="2026-02-01T00:00:00.000000Z")
    first = make(store, "warm")
    make(store, "half", state=snapshots.CREATING)
    make(store, "leaving", state=snapshots.REMOVING)
    assert [record["name"] for record in snapshots.all_records(store)] == ["warm", "second"]
    assert snapshots.usable(store, "warm") == first == snapshots.load(store, "warm")
    assert snapshots.load_by_id(store, second["id"]) == second
    assert snapshots.usable(store, "half") is None and snapshots.usable(store, "leaving") is None


def test_a_name_without_a_record(store: Store) -> None:
    """Of a run that was killed between the two."""
    store.index("snapshot").reserve("warm", "id1")
    record = snapshots.load(store, "warm")
    assert record is not None and (record["id"], record["state"]) == ("id1", snapshots.CREATING)
    snapshots.discard(store, record)
    assert snapshots.load(store, "warm") is None


def pins(store: Store) -> list[str]:
    return images.users(store, IMAGE)


def hold(store: Store, user: str) -> None:
    path = Path(images.user_dir(store.paths, IMAGE))
    path.mkdir(parents=True, exist_ok=True)
    (path / user).touch()


@pytest.mark.parametrize("state", [snapshots.CREATING, snapshots.COMPLETE, snapshots.REMOVING])
def test_discard(store: Store, state: str) -> None:
    record = make(store, state=state)
    hold(store, record["id"])
    hold(store, "other")
    snapshots.note_clone(store, record["id"], "vm2")
    snapshots.discard(store, record)
    assert not folder(store, record).exists() and snapshots.load(store, "warm") is None
    assert pins(store) == ["other"]
    snapshots.discard(store, {**record, "state": snapshots.CREATING})  # again, as after a kill


@pytest.mark.parametrize("missing", [*FILES, "snapshot.json"])
def test_discard_of_what_is_left(store: Store, missing: str) -> None:
    record = make(store)
    (folder(store, record) / missing).unlink()
    left = snapshots.load(store, "warm")
    assert left is not None
    snapshots.discard(store, left)
    assert not folder(store, record).exists() and snapshots.load(store, "warm") is None


def test_discard_leaves_a_name_that_another_one_has_by_now(store: Store) -> None:
    record = make(store)
    store.index("snapshot").release("warm", record["id"])
    store.index("snapshot").reserve("warm", "id2")
    snapshots.discard(store, record)
    assert store.index("snapshot").lookup("warm") == "id2"


def test_links_outlive_their_snapshot(store: Store, tmp_path: Path) -> None:
    record = make(store)
    os.link(folder(store, record) / "mem", tmp_path / "mem")
    snapshots.discard(store, record)
    assert (tmp_path / "mem").read_bytes() == FILES["mem"]


def test_clones(store: Store) -> None:
    record = make(store)
    assert snapshots.clones(store, record) == []
    for vm_id in ("vm3", "vm2", "vm2"):
        snapshots.note_clone(store, record["id"], vm_id)
    assert snapshots.clones(store, record) == ["vm2", "vm3"]
    snapshots.forget_clone(store, record["id"], "vm2")
    snapshots.forget_clone(store, record["id"], "vm2")
    snapshots.forget_clone(store, "gone", "vm2")
    assert snapshots.clones(store, record) == ["vm3"]


@pytest.mark.parametrize("damage", ["cut off", "incomplete", "gone"])
def test_a_damaged_one_stands_there_and_can_be_removed(store: Store, damage: str) -> None:
    record, other = make(store), make(store, "other")
    images.make_directories(store.paths)
    users = Path(images.user_dir(store.paths, IMAGE))
    users.mkdir()
    for snapshot in (record, other):
        (users / snapshot["id"]).touch()
    path = folder(store, record) / snapshots.RECORD_FILE
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9] if damage == "cut off" else b'{"id": "idwarm", "state": "complete"}')
    found = snapshots.load(store, "warm")
    assert found and (found["name"], found["state"]) == ("warm", "error") and str(path) in found["reason"]
    assert [item["name"] for item in snapshots.all_records(store)] == ["other"]
    assert snapshots.shown(store, found)["clones"] == []
    with pytest.raises(StateError, match="state: absent"):
        snapshots.usable(store, "warm")
    wanted = planning.Wanted("warm", "present", vm="web1")
    with pytest.raises(StateError, match="state: absent"):
        planning.plan_present(found, None, wanted, [], 0.0)
    with pytest.raises(StateError, match="state: absent"):
        planning.plan_restored(found, None, wanted, running=False)
    assert planning.plan_absent(found, planning.Wanted("warm", "absent")).actions == ("remove",)
    snapshots.discard(store, found)
    assert snapshots.load(store, "warm") is None and not folder(store, record).exists()
    assert os.listdir(users) == [other["id"]]


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"state": "restored", "freeze": "auto"}, "freeze"),
        ({"state": "absent", "freeze": "no"}, "freeze"),
        ({"state": "present", "restore_mode": "copy"}, "restore_mode"),
        ({"state": "exported", "disks_only": True}, "disks_only"),
        ({"state": "absent", "disks_only": True}, "disks_only"),
        ({"state": "restored", "keep": 1}, "keep"),
        ({"state": "imported", "replace": True}, "replace"),
    ],
)
def test_options_that_are_for_other_states(options: Record, option: str) -> None:
    with pytest.raises(InputError, match="is for state: ") as caught:
        engine.wanted_of({"name": "warm", **options})
    assert caught.value.option == option


def test_what_of_a_guests_file_systems_is_wanted() -> None:
    assert engine.wanted_of({"name": "warm", "state": "present"}).freeze == "auto"
    wanted = engine.wanted_of({"name": "warm", "state": "present", "freeze": "required", "disks_only": True})
    assert (wanted.freeze, wanted.disks_only) == ("required", True)


def test_shown(store: Store) -> None:
    record = make(store)
    vm_dir = Path(store.paths.vm_dir("vm2"))
    vm_dir.mkdir()
    vm = document("vm-1-first", id="vm2")
    store.write_vm({**vm, "config": {**vm["config"], "name": "runner"}})
    for vm_id in ("vm2", "gone"):
        snapshots.note_clone(store, record["id"], vm_id)
    shown = snapshots.shown(store, record)
    assert shown["clones"] == ["runner"]
    assert shown["size"] == sum(path.stat().st_blocks * 512 for path in map(folder(store, record).joinpath, FILES))


def test_groups_are_in_the_upper_half_of_the_range(store: Store) -> None:
    """No VM has such a uid; two snapshots hardly ever share one."""
    half = store.uid_start + store.uid_count // 2
    groups = [snapshots.gid(store, f"id{number}") for number in range(50)]
    assert all(half <= group < store.uid_start + store.uid_count for group in groups)
    assert len(set(groups)) > 45


def test_settle(store: Store) -> None:
    """Whatever is in there."""
    record = make(store)
    (folder(store, record) / "clones").mkdir()
    snapshots.settle(str(folder(store, record)))
