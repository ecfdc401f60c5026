# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What comes to a host in a zip is compiled once, and says of itself what it always said."""

from __future__ import annotations

import builtins
import importlib
import sys
import typing as t
import zipfile
import zipimport
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._api import Importer

NAMES = ("payload_of_a_test", "payload_of_a_test.inner", "payload_of_a_test.inner.leaf")


@pytest.fixture(name="archive")
def fixture_archive(tmp_path: Path) -> t.Iterator[Path]:
    path = tmp_path / "payload.zip"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("payload_of_a_test/__init__.py", "")
        target.writestr("payload_of_a_test/inner/__init__.py", "")
        target.writestr("payload_of_a_test/inner/leaf.py", "LINE = 1\n")
    sys.path.insert(0, str(path))
    yield path
    sys.path.remove(str(path))
    for name in [name for name in sys.modules if name.startswith(NAMES[0])]:
        del sys.modules[name]
    for place in [place for place in sys.path_importer_cache if place.startswith(str(path))]:
        del sys.path_importer_cache[place]


def compiled(archive: Path, monkeypatch: pytest.MonkeyPatch, *hooks: t.Any) -> tuple[dict[str, str | None], int]:
    """The file that each module says it is of, and how often something was compiled for them."""
    seen = []
    compile_ = builtins.compile

    def counted(source: t.Any, filename: t.Any, *rest: t.Any, **more: t.Any) -> t.Any:
        seen.extend([filename] if str(archive) in str(filename) else [])
        return compile_(source, filename, *rest, **more)

    monkeypatch.setattr(sys, "path_hooks", [*hooks, *sys.path_hooks])
    monkeypatch.setattr(builtins, "compile", counted)
    files = {name: importlib.import_module(name).__file__ for name in NAMES}
    monkeypatch.undo()
    return files, len(seen)


def test_once(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, count = compiled(archive, monkeypatch, Importer)
    assert count == len(NAMES)
    inner = f"{archive}/{NAMES[1].replace('.', '/')}"
    assert files[NAMES[1]] == f"{inner}/__init__.py" and files[NAMES[2]] == f"{inner}/leaf.py"


def test_without_it_more_often(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, Python has learned it, and the importer can go."""
    assert compiled(archive, monkeypatch)[1] >= 2 * len(NAMES)


def test_what_is_not_there(archive: Path) -> None:
    with pytest.raises(zipimport.ZipImportError):
        Importer(str(archive)).get_filename("nothing")
    with pytest.raises(ImportError):
        Importer(str(archive.parent))
