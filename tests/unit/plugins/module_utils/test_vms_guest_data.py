# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest is given by a machine that has a device for it, and by one that has none."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Capabilities
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import container, guest_data
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm

INITRD = b"an initramfs, however it is packed"


@dataclasses.dataclass
class Store:
    """A VM's folder and its image's initramfs."""

    vm: Vm
    initrd: Path
    own: Path


@pytest.fixture(name="store")
def fixture_store(tmp_path: Path) -> Store:
    paths, initrd = Paths(root=str(tmp_path), log=str(tmp_path)), tmp_path / "initrd"
    initrd.write_bytes(INITRD)
    record = {
        **{"id": "abc", "uid": os.getuid(), "hypervisor": "cloud-hypervisor"},
        "boot_config": {"kernel_path": "/k", "initrd_path": str(initrd), "cmdline": "x"},
    }
    for folder in (paths.vm_dir("abc"), paths.vm_log("abc")):
        os.makedirs(folder, exist_ok=True)
    driver = SimpleNamespace(capabilities=Capabilities(guest_data=True))
    run = SimpleNamespace(store=SimpleNamespace(paths=paths), driver=lambda _name: driver)
    vm = Vm(cast(Any, run), cast(Any, record))
    return Store(vm, initrd, Path(vm.file(guest_data.INITRD_FILE)))


def unpacked(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Mode and content by name of a cpio archive, read as the kernel does; all of its members' owner is root."""
    found, place = {}, 0
    while True:
        assert data[place : place + 6] == b"070701" and place % 4 == 0
        fields = [int(data[start : start + 8], 16) for start in range(place + 6, place + 110, 8)]
        size, length = fields[6], fields[11]
        assert (fields[2:4], len(fields)) == ([0, 0], 13)
        name = data[place + 110 : place + 110 + length]
        assert name.endswith(b"\0")
        begin = place + 110 + length
        begin += -begin % 4
        place = begin + size + -size % 4
        if name == b"TRAILER!!!\0":
            assert place == len(data)
            return found
        found[name[:-1].decode()] = (fields[1], data[begin : begin + size])


@pytest.mark.parametrize("size", range(5))
def test_an_archive(size: int) -> None:
    content = b"1234"[:size]
    assert unpacked(guest_data.archive({"run": content, "a": b""})) == {
        "cocoon-data": (0o040700, b""),
        "cocoon-data/a": (0o100600, b""),
        "cocoon-data/run": (0o100600, content),
    }


def test_it_lies_before_the_initramfs(store: Store) -> None:
    Path(store.vm.file(guest_data.LOGIN_FILE)).write_bytes(b'{"user": "me"}')
    assert guest_data.for_device(store.vm) == {}
    assert guest_data.boot_of(store.vm) == {"kernel_path": "/k", "initrd_path": str(store.own), "cmdline": "x"}
    store.own.write_bytes(b"of a start before")
    guest_data.leave(store.vm)
    content = store.own.read_bytes()
    assert content.endswith(INITRD)
    assert unpacked(content[: -len(INITRD)])["cocoon-data/login"] == (0o100600, b'{"user": "me"}')
    assert store.own.stat().st_mode & 0o777 == 0o400
    assert store.vm.record["boot_config"]["initrd_path"] == str(store.initrd)


def test_nothing_is_made_of_nothing(store: Store) -> None:
    store.own.write_bytes(b"of a start before")
    guest_data.leave(store.vm)
    assert guest_data.boot_of(store.vm)["initrd_path"] == str(store.initrd)
    assert not store.own.exists()


def test_a_device_takes_the_files(store: Store) -> None:
    login = Path(store.vm.file(guest_data.LOGIN_FILE))
    login.write_bytes(b"{}")
    cast(Any, store.vm.driver).capabilities = Capabilities(guest_data=True, data_device=True)
    store.vm.record["exit_code"] = None  # a container
    expected = {"login": str(login), "run": container.run_path(store.vm.paths, store.vm.record)}
    assert guest_data.for_device(store.vm) == expected
    assert guest_data.boot_of(store.vm)["initrd_path"] == str(store.initrd)
    guest_data.leave(store.vm)
    assert not store.own.exists()
    assert Path(str(guest_data.status_log(store.vm))).read_bytes() == b"\n"


def test_a_disk_that_boots_itself_is_given_nothing(store: Store) -> None:
    Path(store.vm.file(guest_data.LOGIN_FILE)).write_bytes(b"{}")
    store.vm.record["boot_config"] = {}
    assert guest_data.boot_of(store.vm) == {}
    guest_data.leave(store.vm)
    assert not store.own.exists()


def test_only_a_machine_with_a_channel_has_a_file_for_the_last_word(store: Store) -> None:
    assert guest_data.status_log(store.vm) is None
    store.vm.record["exit_code"] = None
    assert guest_data.status_log(store.vm) is None
    cast(Any, store.vm.driver).capabilities = Capabilities(guest_data=True, data_device=True)
    assert guest_data.status_log(store.vm) == container.status_path(store.vm.paths, store.vm.record)
