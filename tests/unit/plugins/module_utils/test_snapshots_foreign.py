# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made of the documents in an archive of the Go engine, and what is refused."""

from __future__ import annotations

import copy
import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, InputError, UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import registry
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import document, foreign

LAYERS = ["cd" * 32, "ef" * 32]
CONFIG: dict[str, t.Any] = {
    **{"cpu": 1, "memory": 128 << 20, "storage": 64 << 20, "image": "tiny", "image_type": "oci", "nics": 2},
    **{"image_digest": "sha256:" + "ab" * 32, "network": "lab", "name": "s-g1"},
}
SIZES = {"cow.raw": 64 << 20, "data-data.raw": 16 << 20, "state.json": 1, "memory-ranges": 2, "config.json": 3}


def entry(role: str, serial: str, **more: t.Any) -> dict[str, t.Any]:
    return {"path": f"/x/{serial}", "ro": role in ("layer", "cidata"), "serial": serial, "role": role, **more}


def given() -> dict[str, t.Any]:
    layers = [entry("layer", f"cocoon-layer{number}") for number in (0, 1)]
    disks = [entry("cow", "cocoon-cow"), entry("data", "data", fstype="none")]
    return {"storage_configs": [*layers, *disks], "boot_config": {"cmdline": "init=/bin/sh"}}


@pytest.mark.parametrize("hypervisor", ("cloud-hypervisor", "firecracker"))
def test_its_disks_are_taken_as_if_they_were_ours(hypervisor: str) -> None:
    made = foreign.translate(given(), CONFIG, SIZES, disks_only=True)
    form = registry.driver(hypervisor, Paths()).archive_form()
    assert document.check(copy.deepcopy(made), form) == made
    ours = made["cocoon_microvm"]
    assert ours["data_disks"] == [{"name": "data", "size": 16 << 20, "fstype": "none"}]
    assert (ours["kind"], ours["nic_networks"], len(ours["nic_configs"])) == ("disks", ["lab", "lab"], 2)
    assert made["boot_config"] == {}, "what it boots is this host's"


def test_memory_is_refused_with_the_reason() -> None:
    with pytest.raises(UnsupportedError, match="does not say which EROFS files") as info:
        foreign.translate(given(), CONFIG, SIZES, disks_only=False)
    assert info.value.remedy is not None and "disks_only: true" in info.value.remedy


@pytest.mark.parametrize("fields", ({"image_type": "cloudimg"}, {"image_type": None}, {"image_digest": None}))
def test_images_that_are_not_of_layers_are_refused(fields: dict[str, t.Any]) -> None:
    with pytest.raises(UnsupportedError, match="image of layers"):
        foreign.translate(given(), {**CONFIG, **fields}, SIZES, disks_only=True)


def damaged(number: int, **fields: t.Any) -> dict[str, t.Any]:
    """The document with other fields in one of its disks."""
    made = given()
    made["storage_configs"][number].update(fields)
    return made


WRONG = {
    "no-role": (damaged(0, role=""), "role: none of layer, cow, data, cidata"),
    "writable-layer": (damaged(1, ro=False), "role layer that is to be written to"),
    "read-only-cow": (damaged(2, ro=True), "role cow that is not to be written to"),
    "two-cows": (damaged(3, role="cow"), "layer, layer, cow, cow"),
    "no-cow": (damaged(2, role="data"), "layer, layer, data, data"),
    "no-file": (damaged(3, serial="other"), "no file of its data disk 'other'"),
    "path": (damaged(3, serial="../x"), "no file of its data disk"),
    "order": ({"storage_configs": given()["storage_configs"][::-1]}, "in this order"),
    "number": ({"storage_configs": 1}, "storage_configs: not of type array"),
    "entries": ({"storage_configs": [1, 2]}, "not of type object"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_hold_together_is_refused(name: str) -> None:
    wrong, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        foreign.translate(wrong, CONFIG, SIZES, disks_only=True)


def test_names_of_disks_are_those_of_disks() -> None:
    made = foreign.translate(damaged(3, serial="cocoon-x"), CONFIG, {"data-cocoon-x.raw": 1 << 20}, disks_only=True)
    with pytest.raises(CocoonError, match="data_disks"):
        document.check(made, registry.driver("firecracker", Paths()).archive_form())


@pytest.mark.parametrize(
    ("found", "expected"),
    (
        ({"storage_configs": []}, True),
        ({"storage_configs": [], "cocoon_microvm": {}}, False),
        ({}, False),
        ([], False),
        ("storage_configs", False),
    ),
)
def test_whose_it_is(found: t.Any, expected: bool) -> None:
    assert foreign.is_foreign(found) is expected


def test_what_is_the_machines() -> None:
    saved = ("state.json", "mem")
    names = ("state.json", "mem", "config.json", "memory-ranges", "memory-range-0", "cidata.img")
    assert all(foreign.is_machine(name, saved) for name in names)
    assert not any(foreign.is_machine(name, saved) for name in ("cow.raw", "data-mem.raw", "cocoon.json", "other"))
