# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest is given beside its disks: login data, and what a container is to run.

A machine that has a device for it takes the files as they are. For any other they are put into a cpio archive before
the image's initramfs, where microcode is otherwise: the kernel unpacks both, and a guest of ours finds the files below
``/cocoon-data``. (Not behind it: an LZ4 of the kernel's kind does not say where it ends.)
"""

from __future__ import annotations

import os
import shutil
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._state import remove_file
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import container

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import BootConfig
    from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm

LOGIN_FILE = "login.json"
LOGIN_ITEM = "login"
# Of the VM's own: what the guest is given, and the image's initramfs.
INITRD_FILE = "initrd.img"
FOLDER = "cocoon-data"
FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY, _FILE = 0o040700, 0o100600


def items(vm: Vm) -> dict[str, str]:
    """Names of what the VM's guest is given, each with its file."""
    login = vm.file(LOGIN_FILE)
    return {
        **({LOGIN_ITEM: login} if os.path.exists(login) else {}),
        **container.guest_data(vm.paths, vm.record),
    }


def for_device(vm: Vm) -> dict[str, str]:
    """Of :func:`items` what goes to the machine's device for them."""
    return items(vm) if vm.driver.capabilities.data_device else {}


def boot_of(vm: Vm) -> BootConfig:
    """What the VM boots, with the initramfs that :func:`leave` makes if it needs one of its own."""
    boot = vm.record["boot_config"]
    if vm.driver.capabilities.data_device or not boot.get("initrd_path") or not items(vm):
        return boot
    return {**boot, "initrd_path": vm.file(INITRD_FILE)}


def status_log(vm: Vm) -> str | None:
    """The file for a container's last word, where its machine has a channel for that."""
    told = container.is_container(vm.record) and vm.driver.capabilities.data_device
    return container.status_path(vm.paths, vm.record) if told else None


def leave(vm: Vm) -> None:
    """Before a start: make that file, and that initramfs, which only the VM's user can read."""
    if status_log(vm):
        container.make_status(vm.paths, vm.record)
    remove_file(vm.file(INITRD_FILE))  # of a start before
    if boot_of(vm).get("initrd_path") != vm.file(INITRD_FILE):
        return
    contents = {}
    for name, path in items(vm).items():
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as stream:
            contents[name] = stream.read()
    with open(vm.record["boot_config"]["initrd_path"], "rb") as source:
        with open(os.open(vm.file(INITRD_FILE), FLAGS, 0o400), "wb") as stream:
            stream.write(archive(contents))
            shutil.copyfileobj(source, stream)
            os.fchown(stream.fileno(), vm.uid, vm.uid)


def archive(contents: t.Mapping[str, bytes]) -> bytes:
    """A cpio archive (``newc``, as the kernel's ``buffer-format.rst`` has it) of files below ``cocoon-data``."""
    parts = [_entry(1, FOLDER, _DIRECTORY, b"")]
    parts += [
        _entry(number, f"{FOLDER}/{name}", _FILE, content)
        for number, (name, content) in enumerate(sorted(contents.items()), 2)
    ]
    return b"".join([*parts, _entry(0, "TRAILER!!!", 0, b"")])


def _entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    # inode, mode, owner, group, links, time, size, device and that of a node (two each), length of the name, checksum
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
