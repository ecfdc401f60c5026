# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an archive says of a machine of QEMU: some of it goes into a command line, and who wrote it is not known."""

from __future__ import annotations

import copy
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import firmware
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.archive import QemuArchive
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.driver import QemuDriver
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import document

FORM = QemuArchive()
RECORD = {"machine": "pc-q35-7.2", "cpu_model": "qemu64-v1,svm=off,sse4.1=on", "hypervisor_version": "7.2.22"}
DOCUMENT: dict[str, t.Any] = {
    "cpu": 2,
    "memory": 1 << 30,
    **FORM.words(RECORD),
    "firmware": "",
    "cocoon_microvm": {
        "kind": "full",
        "image_type": "oci",
        "image_digest": "sha256:" + "a" * 64,
        "data_disks": [{"name": "db", "size": 1 << 30, "fstype": "ext4"}],
        "nic_networks": [],
        "nic_configs": [],
        "layout": {"ports": 8, "slots": {"db": 3}, "version": "7.2.22"},
    },
}


def changed(path: str, value: t.Any) -> dict[str, t.Any]:
    """The document with another value at ``a.b``; ``None`` takes it away."""
    found = copy.deepcopy(DOCUMENT)
    *parents, last = path.split(".")
    place: t.Any = found
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return found


def test_what_was_written_is_taken() -> None:
    found = document.check(DOCUMENT, FORM)
    assert {key: found[key] for key in QemuDriver.pinned} == {key: RECORD[key] for key in QemuDriver.pinned}
    assert FORM.version(found) == "7.2.22"
    assert FORM.version(changed("cocoon_microvm.layout", None)) == "7.2.22"
    assert document.check(changed("cocoon_microvm.frozen", True), FORM)
    assert document.check(changed("cocoon_microvm.layout.nics", [0, 31]), FORM)
    assert FORM.problems(DOCUMENT["cocoon_microvm"]["layout"], ["db"]) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("machine", None),
        ("machine", "pc-q35-7.2,kernel=/etc/shadow"),
        ("machine", "none\n"),
        ("cpu_model", None),
        ("cpu_model", "qemu64-v1,svm=off -drive x"),
        ("cpu_model", "qemu64-v1,svm=maybe"),
        ("qemu_version", None),
        ("qemu_version", "7" * 33),
        ("cocoon_microvm.layout.ports", 9),
        ("cocoon_microvm.layout.slots", {"db": 32}),
        ("cocoon_microvm.layout.nics", [-1]),
        ("cocoon_microvm.layout.nics", {"0": 1}),
        ("cocoon_microvm.layout.nics", [0] * 15),
        ("cocoon_microvm.layout.version", "7"),
        ("cocoon_microvm.layout.version", "7.2; true"),
        ("cocoon_microvm.layout.more", 1),
        ("cocoon_microvm.frozen", "yes"),
        ("cocoon_microvm.layout", None),  # of a machine that was saved
    ],
)
def test_what_nobody_of_ours_wrote(path: str, value: t.Any) -> None:
    with pytest.raises(InputError) as caught:
        document.check(changed(path, value), FORM)
    assert caught.value.option == "path"


@pytest.mark.parametrize("disks", [[], ["db", "more"], ["other"]])
def test_places_of_other_disks(disks: list[str]) -> None:
    assert FORM.problems(DOCUMENT["cocoon_microvm"]["layout"], disks) == ["the places of its disks are not known"]


def test_firmware_goes_with_the_files_that_the_vm_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VM keeps the size of its variable store, whatever is the best for new ones."""
    pairs = []
    for name, size in (("new", 8), ("old", 4)):
        code, store = tmp_path / f"{name}-code", tmp_path / f"{name}-vars"
        code.touch()
        store.write_bytes(bytes(size))
        pairs.append((str(code), str(store)))
    monkeypatch.setattr(firmware.find, "__defaults__", (None, tuple(pairs)))
    driver, folder = QemuDriver(Paths()), tmp_path / "vm"
    folder.mkdir()
    (name,) = driver.own_files
    assert (driver.firmware(str(folder)).code, dict(driver.firmware(str(folder)).own)) == (
        pairs[0][0],
        {name: pairs[0][1]},
    )
    (folder / name).write_bytes(bytes(4))
    assert driver.firmware(str(folder)).code == pairs[1][0]
    (folder / name).write_bytes(bytes(5))
    with pytest.raises(UnsupportedError, match="store of 5 bytes"):
        driver.firmware(str(folder))
