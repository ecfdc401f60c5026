# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drivers by name, and what ``auto`` comes to."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    InputError,
    UnsupportedError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import registry
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Capabilities, Probe


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "run").mkdir()
    return Paths(str(tmp_path / "lib"), str(tmp_path / "run"), str(tmp_path / "log"))


def fake_driver(monkeypatch: pytest.MonkeyPatch, accels: tuple[str, ...], reason: str | None = None) -> None:
    class Fake:
        name = "qemu"
        capabilities = Capabilities(balloon=True)

        def probe(self) -> Probe:
            return Probe("qemu", "/q", "7.2.0", reason is None, reason, accels)

    monkeypatch.setattr(registry, "driver", lambda _name, _paths: Fake())
    monkeypatch.setattr(registry, "kvm_problem", lambda _paths: "no vendor module")


@pytest.mark.parametrize(
    ("accels", "accel", "resolved"),
    [
        (("kvm", "tcg"), "auto", "kvm"),
        (("tcg",), "auto", "tcg"),
        (("kvm", "tcg"), "tcg", "tcg"),
        (("kvm", "tcg"), "kvm", "kvm"),
    ],
)
def test_resolve(
    monkeypatch: pytest.MonkeyPatch, paths: Paths, accels: tuple[str, ...], accel: str, resolved: str
) -> None:
    fake_driver(monkeypatch, accels)
    assert registry.resolve_auto(paths, accel, ["balloon"]) == ("qemu", resolved)
    assert registry.resolve(paths, "qemu", accel) == ("qemu", resolved)


@pytest.mark.parametrize(
    ("accel", "needs", "reason", "option", "message"),
    [
        ("kvm", [], None, "accel", "no vendor module"),
        ("auto", {"uefi": "image"}, None, "image", "has no uefi"),
        ("auto", ["qcow2"], None, "hypervisor", "has no qcow2"),
        ("auto", [], "not installed", "hypervisor", "not installed"),
    ],
)
def test_resolve_refuses(
    monkeypatch: pytest.MonkeyPatch,
    paths: Paths,
    accel: str,
    needs: t.Iterable[str],
    reason: str | None,
    option: str,
    message: str,
) -> None:
    fake_driver(monkeypatch, ("tcg",), reason)
    with pytest.raises(UnsupportedError, match=message) as caught:
        registry.resolve(paths, "auto", accel, needs)
    assert caught.value.option == option


def test_names_of_drivers(paths: Paths) -> None:
    assert registry.driver("qemu", paths).name == "qemu"
    for name in ("cloud-hypervisor", "firecracker"):
        with pytest.raises(UnsupportedError, match=f"no driver for {name} yet.*Available: qemu, auto"):
            registry.driver(name, paths)
    with pytest.raises(InputError, match="'xen' is not a hypervisor"):
        registry.driver("xen", paths)
    with pytest.raises(InputError, match="not an accelerator"):
        registry.resolve_accel(paths, "qemu", "hvf")
