# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether KVM is of use, as far as a host without it can show; and answers that are kept."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import cache, kvm


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "run").mkdir()
    return Paths(str(tmp_path / "lib"), str(tmp_path / "run"), str(tmp_path / "log"))


def test_kvm_node_alone_proves_nothing(paths: Paths, tmp_path: Path) -> None:
    modules, node = tmp_path / "modules", tmp_path / "kvm"
    (modules / "kvm").mkdir(parents=True)
    (modules / "kvm_pvm").mkdir()

    def problem() -> str | None:
        return kvm.kvm_problem(paths, str(modules), str(node))

    assert problem() == "neither kvm_intel nor kvm_amd is loaded"
    node.touch(0o666)
    assert problem() == f"{node} is there, but neither kvm_intel nor kvm_amd is loaded"
    (modules / "kvm_amd").mkdir()
    node.chmod(0o600)
    assert "not open to a group" in (problem() or "")
    node.chmod(0o666)
    assert "does not make a VM" in (problem() or "")
    node.unlink()
    assert problem() == f"kvm_amd is loaded, but there is no {node}"


def test_kvm_answer_is_kept(paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules, node = tmp_path / "modules", tmp_path / "kvm"
    (modules / "kvm_intel").mkdir(parents=True)
    node.touch()
    node.chmod(0o666)
    asked: list[str] = []
    monkeypatch.setattr(kvm, "_create_vm", asked.append)
    for _time in range(2):
        assert kvm.kvm_problem(paths, str(modules), str(node)) is None
    assert asked == [str(node)]


def test_cache(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def ask() -> dict[str, t.Any]:
        asked.append(1)
        return {"n": len(asked)}

    assert cache.cached(paths, "a", ask) == cache.cached(paths, "a", ask) == {"n": 1}
    assert cache.cached(paths, "b", ask) == {"n": 2}
    monkeypatch.setattr(cache, "boot_id", lambda: "another boot")
    assert cache.cached(paths, "a", ask) == {"n": 3}


def test_cache_makes_nothing_where_there_is_no_store(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path / "lib"), str(tmp_path / "run"), str(tmp_path / "log"))
    assert cache.cached(paths, "a", lambda: {"n": 1}) == {"n": 1}
    assert os.listdir(tmp_path) == []
