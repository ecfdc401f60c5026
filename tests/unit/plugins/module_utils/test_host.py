# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import pathlib

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils import _host as host
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths, check_directories
from ansible_collections.cocoon.microvm.plugins.module_utils._engine import opening
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store


def paths_in(directory: pathlib.Path) -> Paths:
    return Paths(str(directory / "root"), str(directory / "run"), str(directory / "log"))


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("qemu-img version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright", "7.2.22"),
        ("mkfs.erofs 1.5", "1.5"),
        ("mkfs.erofs (erofs-utils) 1.8.6", "1.8.6"),
        ("mke2fs 1.47.0 (5-Feb-2023)\n\tUsing EXT2FS Library version 1.47.0", "1.47.0"),
        ("nftables v1.0.6 (Lester Gooch #5)", "1.0.6"),
        ("", None),
        ("no version here", None),
    ],
)
def test_versions(text: str, version: str | None) -> None:
    assert host.first_version(text) == version


@pytest.mark.parametrize(
    ("line", "meets"),
    [
        ("joe:100000:65536", False),
        ("joe:1000:1001", True),
        ("joe:1999:1", True),
        ("joe:2000:65536", False),
        ("joe:0:1000", False),
        ("joe:0:1001", True),
        ("# joe:1000:10", False),
        ("nonsense", False),
    ],
)
def test_ranges_of_user_ids_that_meet(line: str, meets: bool) -> None:
    assert host.overlaps(f"a:1:1\n{line}\n", 1000, 1000) == ([line] if meets else [])


def test_directories_that_a_vm_cannot_pass(tmp_path: pathlib.Path) -> None:
    # The folders above tmp_path are pytest's own, and closed.
    home = tmp_path / "home"
    (home / "deep").mkdir(parents=True)
    above = set(host.closed_directories(paths_in(tmp_path)).values())
    home.chmod(0o700)
    assert set(host.closed_directories(paths_in(home / "deep")).values()) == (above or {str(home)})
    home.chmod(0o711)
    assert set(host.closed_directories(paths_in(home / "deep")).values()) == above


def test_a_directory_that_does_not_exist_yet() -> None:
    assert host.existing_parent("/proc/no/such/thing") == "/proc"
    assert host.closed_directories(Paths("/no-such/a", "/no-such/b", "/no-such/c")) == {}
    check_directories(Paths("/no-such/a", "/no-such/b", "/no-such/c"))


def test_what_vms_cannot_reach_is_said_before_one_is_made(tmp_path: pathlib.Path) -> None:
    (tmp_path / "home").mkdir(mode=0o700)
    with pytest.raises(StateError) as caught:
        check_directories(Paths(str(tmp_path / "home" / "root"), "/no-such/run", "/no-such/log"))
    assert caught.value.option == "root_dir" and "is closed to other users" in str(caught.value)
    assert "chmod o+x" in str(caught.value)


@pytest.mark.parametrize("check", [True, False])
def test_run_dir_is_too_long_in_check_mode_as_well(tmp_path: pathlib.Path, check: bool) -> None:
    params = {"root_dir": str(tmp_path / "root"), "run_dir": "/run/" + "x" * 56, "log_dir": str(tmp_path / "log")}
    defaults = {"lock_timeout": 1, "memory_reserve": "0", "memory_overcommit": 1, "disk_overcommit": 1}
    with pytest.raises(InputError) as caught:
        opening.open_run({**defaults, **params}, check)
    assert caught.value.option == "run_dir" and "at most 60" in str(caught.value)
    assert not (tmp_path / "root").exists()
    Paths(run="/run/" + "x" * 55).check()


def test_libraries_are_found_without_an_import() -> None:
    assert host.library_version("pytest", "pytest") == pytest.__version__
    assert host.library_version("no_such_library", "no-such-library") is None
    assert host.library_version("json", "no-such-distribution") == "unknown"


def test_a_store_that_does_not_exist_is_not_made(tmp_path: pathlib.Path) -> None:
    paths = paths_in(tmp_path)
    facts, store = host._store(paths)
    assert (facts["exists"], store) == (False, None)
    assert os.listdir(tmp_path) == []


def test_the_facts_of_a_store(tmp_path: pathlib.Path) -> None:
    paths = paths_in(tmp_path)
    store = Store.open(paths)
    store.index("vm").reserve("web1", "id1")
    store.index("image").reserve("tiny", "id2")
    facts, _store = host._store(paths)
    assert facts["id"] == store.store_id
    assert facts["counts"] == {"vms": 1, "images": 1, "networks": 0, "snapshots": 0}


def test_a_store_of_another_layout(tmp_path: pathlib.Path) -> None:
    paths = paths_in(tmp_path)
    os.mkdir(paths.root)
    pathlib.Path(paths.store_file).write_text('{"layout": 99}', encoding="utf-8")
    facts, store = host._store(paths)
    assert store is None
    assert "layout 99" in facts["error"]
