# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import pathlib
import stat
import threading
import time

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils import _state as state
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import BusyError, ConflictError, StateError


@pytest.fixture(name="store")
def fixture_store(tmp_path: pathlib.Path) -> state.Store:
    return state.Store.open(Paths(str(tmp_path / "root"), str(tmp_path / "run"), str(tmp_path / "log")))


def mode(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_a_store_keeps_its_identity(store: state.Store) -> None:
    again = state.Store.open(store.paths)
    assert (again.store_id, again.uid_start) == (store.store_id, store.uid_start)
    assert 0x70000000 <= store.uid_start <= 0x80000000 - store.uid_count


def test_directories_can_be_passed_and_not_listed(store: state.Store) -> None:
    assert mode(store.paths.root) == 0o711
    assert mode(store.paths.index("vm")) == 0o700
    assert mode(store.paths.locks) == 0o700


def test_no_store_is_made_by_looking(tmp_path: pathlib.Path) -> None:
    assert state.Store.load(Paths(str(tmp_path / "none"))) is None
    assert not (tmp_path / "none").exists()


def test_an_unknown_layout_is_refused(store: state.Store) -> None:
    state.write_json(store.paths.store_file, {**store.document, "layout": 99})
    with pytest.raises(StateError, match="layout 99"):
        state.Store.load(store.paths)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_damaged_documents_are_named(tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / "vm.json"
    path.write_bytes(content)
    with pytest.raises(StateError, match="vm.json"):
        state.read_json(str(path))


def test_documents_are_not_read_through_links(tmp_path: pathlib.Path) -> None:
    (tmp_path / "real").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StateError):
        state.read_json(str(tmp_path / "link"))


def test_documents_are_private_and_leave_no_temporary(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "x.json")
    state.write_json(path, {"a": 1})
    state.write_json(path, {"a": 2})
    assert state.read_json(path) == {"a": 2}
    assert mode(path) == 0o600
    assert os.listdir(tmp_path) == ["x.json"]


def test_create_does_not_replace(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "x.json")
    assert state.create_json(path, {"a": 1})
    assert not state.create_json(path, {"a": 2})
    assert state.read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_name_has_one_holder(store: state.Store) -> None:
    index = store.index("vm")
    index.reserve("web", "id1")
    index.reserve("web", "id1")
    with pytest.raises(ConflictError, match="taken by id1"):
        index.reserve("web", "id2")
    index.release("web", "id2")
    assert index.lookup("web") == "id1"
    index.release("web", "id1")
    assert index.lookup("web") is None
    assert index.entries() == []


def test_one_of_many_threads_gets_a_name(store: state.Store) -> None:
    got: list[str] = []

    def take(one: str) -> None:
        try:
            store.index("mac").reserve("02:00:00:00:00:01", one)
            got.append(one)
        except ConflictError:
            pass

    threads = [threading.Thread(target=take, args=(f"id{number}",)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert store.index("mac").lookup("02:00:00:00:00:01") == got[0]


def test_a_reserved_name_without_a_document_is_a_bare_record(store: state.Store) -> None:
    store.index("vm").reserve("web", "id1")
    record = store.vm_record("web")
    assert record is not None
    assert (record["id"], record["state"], record["bare"]) == ("id1", "creating", True)


def test_a_held_lock_is_busy_and_says_so(store: state.Store) -> None:
    with state.locked(store.paths, ["vm:web"], 1.0):
        with pytest.raises(BusyError, match="vm:web is busy, waited 0.05 s"):
            with state.locked(store.paths, ["vm:web"], 0.05):
                pass
        with state.locked(store.paths, ["vm:other", "host"], 0.0):
            pass
    with state.locked(store.paths, ["vm:web", "vm:web"], 0.0):
        pass


def test_a_lock_is_waited_for_as_long_as_its_holder_gets_on(store: state.Store) -> None:
    answers = iter([1, 2, 3, 3])
    began = time.monotonic()
    with state.locked(store.paths, ["image:big"], 0.0):
        with pytest.raises(BusyError, match="image:big is busy"):
            with state.locked(store.paths, ["image:big"], 0.05, activity=lambda: next(answers)):
                pass
    assert time.monotonic() - began >= 0.2 and next(answers, None) is None


def test_lock_files_stay(store: state.Store) -> None:
    with state.locked(store.paths, ["host"], 0.0):
        before = os.stat(os.path.join(store.paths.locks, "host")).st_ino
    with state.locked(store.paths, ["host"], 0.0):
        assert os.stat(os.path.join(store.paths.locks, "host")).st_ino == before


def test_a_folder_that_was_made_and_not_given_away(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, int, int]] = []
    monkeypatch.setattr(os, "chown", lambda path, uid, gid, follow_symlinks: given.append((path, uid, gid)))
    path = str(tmp_path / "inbox")
    for _again in range(2):
        state.own_folder(path, 7)
    assert given == [(path, 7, 7)] * 2 and stat.S_IMODE(os.stat(path).st_mode) == 0o700
