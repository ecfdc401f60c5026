# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is concluded from what a host shows."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    HypervisorError,
    UnsupportedError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import probe
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.driver import QemuDriver


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "run").mkdir()
    return Paths(str(tmp_path / "lib"), str(tmp_path / "run"), str(tmp_path / "log"))


def machine(name: str, alias: str | None = None) -> dict[str, t.Any]:
    return {"name": name, **({"alias": alias} if alias else {})}


@pytest.mark.parametrize(
    ("machines", "name"),
    [
        ([machine("pc-q35-7.2", "q35"), machine("pc-q35-7.1"), machine("none")], "pc-q35-7.2"),
        ([machine("pc-q35-rhel9.4.0"), machine("pc-q35-rhel9.6.0", "q35")], "pc-q35-rhel9.6.0"),
        ([machine("pc-q35-9.2"), machine("pc-q35-10.0"), machine("pc-i440fx-10.0", "pc")], "pc-q35-10.0"),
    ],
)
def test_pick_machine(machines: list[dict[str, t.Any]], name: str) -> None:
    assert probe.pick_machine(machines) == name


def test_pick_machine_of_another_emulator() -> None:
    with pytest.raises(UnsupportedError, match="no q35"):
        probe.pick_machine([machine("none"), machine("microvm")])


@pytest.mark.parametrize(
    ("vendor", "whole", "model"),
    [
        ("GenuineIntel", {"Haswell-v4", "Nehalem-v2", "EPYC-v2"}, "Haswell-v4"),
        ("GenuineIntel", {"Nehalem-v2", "Nehalem-v1"}, "Nehalem-v2"),
        ("GenuineIntel", {"EPYC-v2"}, probe.BASELINE),
        ("AuthenticAMD", {"EPYC-v2", "EPYC-v1", "Haswell-v4"}, "EPYC-v2"),
        ("AuthenticAMD", {"EPYC-v1"}, "EPYC-v1"),
        ("HygonGenuine", {"EPYC-v1"}, probe.BASELINE),
    ],
)
def test_pick_model(vendor: str, whole: set[str], model: str) -> None:
    names = ["host", "max", "Haswell-v4", "Nehalem-v2", "Nehalem-v1", "EPYC-v2", "EPYC-v1"]
    definitions = [{"name": name, "unavailable-features": [] if name in whole else ["x"]} for name in names]
    definitions += [{"name": "host", "unavailable-features": []}, {"name": "odd"}]
    assert probe.pick_model(definitions, vendor) == model


def test_models_are_versioned() -> None:
    models = [*probe.KVM_MODELS["GenuineIntel"], *probe.KVM_MODELS["AuthenticAMD"], probe.BASELINE.partition(",")[0]]
    assert all(model.rpartition("-v")[2].isdecimal() for model in models)


@pytest.mark.parametrize(
    ("version", "old"), [("7.2.22", False), ("7.1.0", True), ("6.2.0", True), ("10.0.2", False), ("11.1.0", False)]
)
def test_too_old(version: str, old: bool) -> None:
    assert (probe.too_old(version) is not None) is old


def test_binary_that_is_no_qemu(paths: Paths, tmp_path: Path) -> None:
    binary = tmp_path / "qemu"
    binary.write_text("#!/bin/sh\necho cannot load such and such >&2\nexit 1\n", encoding="ascii")
    binary.chmod(0o755)
    found = QemuDriver(paths, str(binary)).probe()
    assert not found.available and "cannot load such and such" in (found.reason or "")


@pytest.mark.parametrize(
    ("refused", "answer"),
    [
        ([], {"cpu_model": "Nehalem-v2"}),
        (["Nehalem-v2"], {"cpu_model": probe.BASELINE}),
        (["Nehalem-v2", probe.BASELINE], {"problem": "no such feature"}),
    ],
)
def test_choose_model(monkeypatch: pytest.MonkeyPatch, refused: list[str], answer: dict[str, str]) -> None:
    """The best model that a machine really starts with."""

    class Fake:
        def __init__(self, _binary: str, *arguments: str) -> None:
            self.model = (
                arguments[arguments.index("-cpu") + 1].replace(",enforce=on", "") if "-cpu" in arguments else ""
            )

        def __enter__(self) -> object:
            if self.model in refused:
                raise HypervisorError("no such feature")
            return self

        def __exit__(self, *_exc: object) -> None: ...

        def execute(self, command: str) -> object:
            return [{"name": "Nehalem-v2", "unavailable-features": []}] if command == "query-cpu-definitions" else {}

    monkeypatch.setattr(probe, "_Probe", Fake)
    monkeypatch.setattr(probe, "host_vendor", lambda: "GenuineIntel")
    assert probe.choose_model("/q", "pc-q35-7.2", "kvm") == answer
    assert probe.choose_model("/q", "pc-q35-7.2", "tcg") == (
        {"problem": "no such feature"} if probe.BASELINE in refused else {"cpu_model": probe.BASELINE}
    )


def test_no_qemu(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "find_binary", lambda: None)
    with pytest.raises(UnsupportedError, match="not installed.*role cocoon.microvm.host"):
        QemuDriver(paths).pin("tcg")
    found = QemuDriver(paths).probe()
    assert not found.available and "not installed" in (found.reason or "")
