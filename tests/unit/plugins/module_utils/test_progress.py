# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import pathlib
import threading
import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils import _progress
from ansible_collections.cocoon.microvm.plugins.module_utils._progress import Deferred, Progress


@pytest.fixture(name="path")
def fixture_path(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setattr(_progress, "INTERVAL", 0.0)
    return tmp_path / "progress.json"


def seen(path: pathlib.Path) -> dict[str, t.Any]:
    document = json.loads(path.read_text(encoding="ascii"))
    assert isinstance(document.pop("speed"), int)
    return t.cast("dict[str, t.Any]", document)


def test_what_is_written(path: pathlib.Path) -> None:
    stage = Progress(str(path)).stage("pulling it", 100, 2)
    stage.advance(30)
    assert seen(path) == {"what": "pulling it", "done": 30, "total": 100, "part": 0, "parts": 2, "note": ""}
    stage.part_done()
    stage(90, 120)
    assert seen(path) == {"what": "pulling it", "done": 90, "total": 120, "part": 1, "parts": 2, "note": ""}
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["progress.json"]


def test_only_one_stage_is_shown(path: pathlib.Path) -> None:
    progress = Progress(str(path))
    pull = progress.stage("pulling")
    convert = progress.stage("converting", later=True)
    pull.advance(1)
    convert.advance(5)
    assert seen(path)["what"] == "pulling"
    convert.show()
    assert seen(path) == {"what": "converting", "done": 5, "total": 0, "part": 0, "parts": 0, "note": ""}


def test_a_note_is_written_at_once(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "progress.json"
    stage = Progress(str(path)).stage("converting", 10)
    stage.advance(10)
    with stage.noted("compressing"):
        assert seen(path)["note"] == "compressing"
    assert stage.document(0)["note"] == ""


def test_what_was_there_before_is_no_speed() -> None:
    stage = Progress().stage("downloading", 100)
    stage(90)
    assert stage.document(stage._began + 2.0)["speed"] == 0
    stage(100)
    assert stage.document(stage._began + 2.0)["speed"] == 5


def test_threads_count_together(path: pathlib.Path) -> None:
    stage = Progress(str(path)).stage("converting", 4000)
    threads = [threading.Thread(target=lambda: [stage.advance(count) for count in [1] * 1000]) for _thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stage.document(0)["done"] == 4000


def test_it_is_written_now_and_then(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "progress.json"
    stage = Progress(str(path)).stage("reading", 10)
    stage.advance(1)
    stage.advance(1)
    assert seen(path)["done"] == 1


def test_nothing_depends_on_it(tmp_path: pathlib.Path) -> None:
    Progress(str(tmp_path / "gone" / "progress.json")).stage("reading").advance(1)
    Progress().stage("reading").advance(1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [None, 11])
def test_what_is_too_much_is_deferred(size: int | None) -> None:
    with pytest.raises(Deferred):
        Progress(most=10).expect(size)
    Progress(most=10).expect(10)
    Progress().expect(size)
