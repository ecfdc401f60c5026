# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks of a VM: making them, growing them, attaching and detaching them, live or not."""

from __future__ import annotations

import json
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _disks
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.changes import disk_fields
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.login import is_hash
from ansible_collections.cocoon.microvm.plugins.module_utils._process import run_tool
from ansible_collections.cocoon.microvm.plugins.module_utils._state import fsync_dir, locked, remove_file
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import admission, boot, cidata, guest_data, power
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import DataDisk, StorageConfig, VmRecord

DETACH_TIMEOUT = 20.0


def wanted_bytes(record: VmRecord) -> int:
    """What the VM's disks may come to hold."""
    disks = [*(record.get("data_disks") or []), *(record.get("detached_disks") or [])]
    return int(record["config"]["storage"]) + sum(disk["size"] for disk in disks)


def create_disks(vm: Vm, login: Record | None) -> None:
    """The system disk, data disks and login file of a new VM."""
    create_system_disk(vm)
    vm.mark("create.system_disk")
    kept = {disk["name"]: disk["size"] for disk in vm.record.get("kept_disks") or []}
    for disk in vm.record["data_disks"]:
        create_data_disk(vm, disk, kept.get(disk["name"], disk["size"]))
        vm.mark("create.data_disk")
    give_login(vm, login)


def create_system_disk(vm: Vm) -> None:
    create = _disks.create_cow if vm.record["image_type"] == "oci" else _disks.create_overlay
    create(vm.run.store, vm.system_disk, vm.image, vm.record["config"]["storage"], vm.uid)


def create_data_disk(vm: Vm, disk: t.Mapping[str, t.Any], before: int) -> None:
    """Make the file of a data disk unless one of that name is kept.

    :param before: the recorded size of the kept one. The file's own says nothing: a killed run may have
        made it larger and not the file system on it.
    """
    path = vm.data_disk(disk["name"])
    if not os.path.lexists(path):
        _disks.create_data(path, disk["size"], disk["fstype"], vm.uid)
    elif before < disk["size"]:
        _disks.grow(path, disk["size"], disk["fstype"], vm.uid)


def give_login(vm: Vm, login: Record | None) -> None:
    """Have the first boot find login data: on a volume if the image is a disk, else as an item of guest data."""
    if cidata.takes(vm.record):
        password = (login or {}).get("password")
        hashed = {"password": _crypt(password)} if password else {}
        cidata.write_seed(vm.paths, vm.record, {**(login or {}), **hashed})
    elif login:
        write_login(vm, login)


def change_login(vm: Vm, values: Record, former: str | None) -> None:
    """Have the next start of a guest that has booted before find other login data.

    :param vm: its record's ``login`` says already what is to be; of a password that is not among *values* it has no
        more than a digest, so that one stays as the guest has it.
    :param former: who logged in until now, if that is another user.
    """
    public = vm.record["login"]["public"]
    login = {key: value for key, value in {**public, **values}.items() if value is not None}
    if login.get("password"):
        login["password"] = _crypt(login["password"])
    if cidata.takes(vm.record):
        cidata.change_login(vm.paths, vm.record, {**login, **({"former": former} if former else {})})
    else:
        write_login(vm, login, "ssh_keys" in login)


def write_login(vm: Vm, login: Record, keys: bool = True) -> None:
    """Leave login data: public keys and a password's crypt hash, readable by the VM's uid only.

    A guest takes them at its first boot; one that can do so later, whenever their ``version`` is another one.

    :param keys: all keys that may be; else the guest keeps those that it has.
    """
    password = login.get("password")
    document = {
        "user": login.get("user") or "root",
        "password": _crypt(password) if password else None,
        "ssh_keys": (login.get("ssh_keys") or []) if keys else None,
        "version": os.urandom(8).hex(),
    }
    path = vm.file(guest_data.LOGIN_FILE)
    remove_file(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
    with os.fdopen(fd, "wb") as stream:
        os.fchown(fd, vm.uid, vm.uid)
        stream.write(json.dumps(document, sort_keys=True).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    fsync_dir(os.path.dirname(path))


def _crypt(password: str) -> str:
    """A password's SHA-512 crypt hash, by a pipe and never a command line; a password that is a hash is its own."""
    if is_hash(password):
        return password
    output = run_tool(["openssl", "passwd", "-6", "-stdin"], stdin=password.encode() + b"\n", package="openssl")
    return output.decode().strip()


def _promise(vm: Vm, size: int, option: str = "data_disks") -> None:
    """Have the VM promised *size* bytes of disk in all, by the ledger and by its record."""
    with locked(vm.paths, ["host"], vm.run.options.lock_timeout):
        admission.promise_disk(vm.run, vm.id, size, option)
        vm.write(promised_disk=size)


def settle(vm: Vm) -> None:
    """Forget the disks and promises of changes that did not come about."""
    record = vm.record
    record["detached_disks"] = [
        disk for disk in record["detached_disks"] if os.path.lexists(vm.data_disk(disk["name"]))
    ]
    if wanted_bytes(record) < record["promised_disk"]:
        _promise(vm, wanted_bytes(record))


def promise_system_disk(vm: Vm, size: int) -> None:
    """Have a rebuild's new system disk promised before the old one goes."""
    _promise(vm, wanted_bytes(vm.record) + size - vm.record["config"]["storage"], "storage")


def grow_system_disk(vm: Vm, size: int) -> None:
    """Grow the system disk, live if the VM runs.

    The record learns the new size last: growing a disk again that a killed run has grown is harmless.

    :raises StateError: it is larger than *size*.
    """
    config = vm.record["config"]
    _promise_growth(vm, "the system disk", config["storage"], size, "storage")
    _grow(vm, vm.system_disk, boot.COW_SERIAL, size, "ext4")
    config["storage"] = size
    vm.write()
    vm.mark("grow_disk.record")


def grow_data_disk(vm: Vm, name: str, size: int) -> None:
    """Grow an attached data disk as :func:`grow_system_disk` does the system disk.

    :raises StateError: it is not there, or larger than *size*.
    """
    entry = next((item for item in vm.record["data_disks"] if item["name"] == name), None)
    if entry is None:
        raise StateError(f"the VM has no data disk '{name}'")
    _promise_growth(vm, f"data disk '{name}'", entry["size"], size, "data_disks")
    _grow(vm, vm.data_disk(name), name, size, entry["fstype"])
    entry["size"] = size
    vm.write()
    vm.mark("grow_disk.record")


def _promise_growth(vm: Vm, what: str, before: int, size: int, option: str) -> None:
    """:raises StateError: it would shrink."""
    if size < before:
        raise StateError(f"{what} has {before} bytes and never shrinks to {size}", option, "Give at least its size.")
    _promise(vm, wanted_bytes(vm.record) + size - before, option)
    vm.mark("grow_disk.promised")


def _grow(vm: Vm, path: str, serial: str, size: int, fstype: str) -> None:
    process = vm.process()
    if process is not None:
        with process:
            power.raise_file_limit(process, vm.record, size)
        vm.driver.resize_disk(vm.run_dir, serial, size)
    else:
        grow_file(vm, path, size, fstype)
    vm.mark("grow_disk.file")


def grow_file(vm: Vm, path: str, size: int, fstype: str) -> None:
    """Grow the file of a disk that no hypervisor has open."""
    if path.endswith(".raw"):
        _disks.grow(path, size, fstype, vm.uid)
        return
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images

    gid = images.blob_gid(vm.run.store, vm.image["disk"]["hex"])
    _disks.grow(path, size, "none", vm.uid, "qcow2", gid)


def add_disk(vm: Vm, disk: t.Mapping[str, t.Any]) -> None:
    """Create or take back a data disk, and plug it in if the VM runs.

    Until it is in its place the record lists it as detached: the next run of the same definition
    goes on from there, and nothing that it holds is lost.
    """
    record = vm.record
    entry = t.cast("DataDisk", disk_fields(disk))
    others = [item for item in record["detached_disks"] if item["name"] != disk["name"]]
    kept = next((item for item in record["detached_disks"] if item["name"] == disk["name"]), entry)
    size = wanted_bytes({**record, "detached_disks": [*others, entry]})
    record["detached_disks"] = [*others, kept]
    _promise(vm, size)
    vm.mark("add_disk.record")
    create_data_disk(vm, disk, kept["size"])
    vm.mark("add_disk.file")
    record["detached_disks"] = [*others, entry]
    vm.write()
    vm.mark("add_disk.made")
    process = vm.process()
    if process is not None:
        with process:
            power.raise_file_limit(process, record, entry["size"])
        path = vm.data_disk(disk["name"])
        item: StorageConfig = {"path": path, "ro": False, "serial": disk["name"]}
        vm.driver.attach_disk(vm.run_dir, power.disk_of(vm, item))
    vm.mark("add_disk.attached")
    record["detached_disks"] = others
    record["data_disks"] = [item for item in record["data_disks"] if item["name"] != disk["name"]] + [entry]
    _refresh(vm)
    vm.mark("add_disk.done")


def set_limits(vm: Vm, name: str, limits: t.Mapping[str, t.Mapping[str, int]]) -> None:
    """Limit a data disk, or without a name the system disk; live if the VM runs."""
    if vm.runs():
        vm.driver.limit_disk(vm.run_dir, name or boot.COW_SERIAL, limits)
    vm.mark("set_limits.asked")
    record, mine = vm.record, {key: dict(limit) for key, limit in limits.items()}
    if name:
        entries = [
            t.cast("DataDisk", disk_fields({**disk, "limits": mine})) if disk["name"] == name else disk
            for disk in record["data_disks"]
        ]
        vm.write(data_disks=entries)
    else:
        vm.write(limits=mine)
    vm.mark("set_limits.done")


def drop_disk(vm: Vm, name: str, delete: bool) -> None:
    """Unplug a data disk; its file is kept unless *delete*."""
    record = vm.record
    if vm.runs():
        vm.driver.detach_disk(vm.run_dir, name, DETACH_TIMEOUT)
    vm.mark("drop_disk.detached")
    disks = [item for item in [*record["data_disks"], *record["detached_disks"]] if item["name"] == name]
    others = [item for item in record["detached_disks"] if item["name"] != name]
    record["data_disks"] = [item for item in record["data_disks"] if item["name"] != name]
    record["detached_disks"] = others + disks
    _refresh(vm)
    vm.mark("drop_disk.record")
    if delete:
        remove_file(vm.data_disk(name))
        vm.mark("drop_disk.file")
        record["detached_disks"] = others
        _promise(vm, wanted_bytes(record))
        vm.mark("drop_disk.done")


def _refresh(vm: Vm) -> None:
    """Write the record with storage_configs that match its disks."""
    vm.write(storage_configs=boot.storage_configs(vm.record, vm.image, vm.paths))


def rebuild_system_disk(vm: Vm, login: Record | None) -> None:
    """A new system disk in place of the old one; the guest boots for the first time again."""
    cidata.forget(vm.paths, vm.record)
    for name in ("cow.raw", "overlay.qcow2", guest_data.LOGIN_FILE, *vm.driver.own_files):
        remove_file(vm.file(name))
    vm.mark("rebuild.removed")
    create_system_disk(vm)
    vm.mark("rebuild.system_disk")
    give_login(vm, login)
