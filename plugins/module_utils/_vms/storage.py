# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks of a VM: making them, growing them, attaching and detaching them, live or not."""

from __future__ import annotations

import json
import os

from ansible_collections.cocoon.microvm.plugins.module_utils import _disks
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.login import is_hash
from ansible_collections.cocoon.microvm.plugins.module_utils._process import run_tool
from ansible_collections.cocoon.microvm.plugins.module_utils._state import fsync_dir, locked, remove_file
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import admission, boot, cidata, power
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run

DETACH_TIMEOUT = 20.0


def wanted_bytes(record: Record) -> int:
    """What the VM's disks may come to hold."""
    disks = [*(record.get("data_disks") or []), *(record.get("detached_disks") or [])]
    return int(record["config"]["storage"]) + sum(disk["size"] for disk in disks)


def create_disks(run: Run, record: Record, login: Record | None) -> None:
    """The system disk, data disks and login file of a new VM."""
    create_system_disk(run, record)
    run.mark("create.system_disk")
    kept = {disk["name"]: disk["size"] for disk in record.get("kept_disks") or []}
    for disk in record["data_disks"]:
        create_data_disk(run, record, disk, kept.get(disk["name"], disk["size"]))
        run.mark("create.data_disk")
    give_login(run, record, login)


def create_system_disk(run: Run, record: Record) -> None:
    path = boot.system_disk(record, run.store.paths)
    image = run.known_image(record["image_id"])
    if record["image_type"] == "oci":
        _disks.create_cow(run.store, path, image, record["config"]["storage"], record["uid"])
    else:
        _disks.create_overlay(run.store, path, image, record["config"]["storage"], record["uid"])


def create_data_disk(run: Run, record: Record, disk: Record, before: int) -> None:
    """Make the file of a data disk unless one of that name is kept.

    :param before: the recorded size of the kept one. The file's own says nothing: a killed run may have
        made it larger and not the file system on it.
    """
    path = boot.data_disk(record["id"], disk["name"], run.store.paths)
    if not os.path.lexists(path):
        _disks.create_data(path, disk["size"], disk["fstype"], record["uid"])
    elif before < disk["size"]:
        _disks.grow(path, disk["size"], disk["fstype"], record["uid"])


def give_login(run: Run, record: Record, login: Record | None) -> None:
    """Have the first boot find login data: on a volume if the image is a disk, else as an item of guest data."""
    if cidata.takes(record):
        password = (login or {}).get("password")
        hashed = {"password": _crypt(password)} if password else {}
        cidata.write_seed(run.store.paths, record, {**(login or {}), **hashed})
    elif login:
        write_login(run, record, login)


def change_login(run: Run, record: Record, values: Record, former: str | None) -> None:
    """Have the next start of a guest that has booted before find other login data.

    :param record: its ``login`` says already what is to be; of a password that is not among *values* it has no more
        than a digest, so that one stays as the guest has it.
    :param former: who logged in until now, if that is another user.
    """
    public = record["login"]["public"]
    login = {key: value for key, value in {**public, **values}.items() if value is not None}
    if login.get("password"):
        login["password"] = _crypt(login["password"])
    if cidata.takes(record):
        cidata.change_login(run.store.paths, record, {**login, **({"former": former} if former else {})})
    else:
        write_login(run, record, login, "ssh_keys" in login)


def write_login(run: Run, record: Record, login: Record, keys: bool = True) -> None:
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
    path = os.path.join(run.store.paths.vm_dir(record["id"]), power.LOGIN_FILE)
    remove_file(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
    with os.fdopen(fd, "wb") as stream:
        os.fchown(fd, record["uid"], record["uid"])
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


def _promise(run: Run, record: Record, size: int, option: str = "data_disks") -> None:
    """Have the VM promised *size* bytes of disk in all, by the ledger and by its record."""
    with locked(run.store.paths, ["host"], run.options.lock_timeout):
        admission.promise_disk(run, record["id"], size, option)
        record["promised_disk"] = size
        run.store.write_vm(record)


def settle(run: Run, record: Record) -> None:
    """Forget the disks and promises of changes that did not come about."""
    record["detached_disks"] = [
        disk
        for disk in record["detached_disks"]
        if os.path.lexists(boot.data_disk(record["id"], disk["name"], run.store.paths))
    ]
    if wanted_bytes(record) < record["promised_disk"]:
        _promise(run, record, wanted_bytes(record))


def promise_system_disk(run: Run, record: Record, size: int) -> None:
    """Have a rebuild's new system disk promised before the old one goes."""
    _promise(run, record, wanted_bytes(record) + size - record["config"]["storage"], "storage")


def grow_system_disk(run: Run, record: Record, size: int) -> None:
    """Grow the system disk, live if the VM runs.

    The record learns the new size last: growing a disk again that a killed run has grown is harmless.

    :raises StateError: it is larger than *size*.
    """
    config = record["config"]
    _promise_growth(run, record, "the system disk", config["storage"], size, "storage")
    _grow(run, record, boot.system_disk(record, run.store.paths), boot.COW_SERIAL, size, "ext4")
    config["storage"] = size
    run.store.write_vm(record)
    run.mark("grow_disk.record")


def grow_data_disk(run: Run, record: Record, name: str, size: int) -> None:
    """Grow an attached data disk as :func:`grow_system_disk` does the system disk.

    :raises StateError: it is not there, or larger than *size*.
    """
    entry = next((item for item in record["data_disks"] if item["name"] == name), None)
    if entry is None:
        raise StateError(f"the VM has no data disk '{name}'")
    _promise_growth(run, record, f"data disk '{name}'", entry["size"], size, "data_disks")
    path = boot.data_disk(record["id"], name, run.store.paths)
    _grow(run, record, path, name, size, entry["fstype"])
    entry["size"] = size
    run.store.write_vm(record)
    run.mark("grow_disk.record")


def _promise_growth(run: Run, record: Record, what: str, before: int, size: int, option: str) -> None:
    """:raises StateError: it would shrink."""
    if size < before:
        raise StateError(f"{what} has {before} bytes and never shrinks to {size}", option, "Give at least its size.")
    _promise(run, record, wanted_bytes(record) + size - before, option)
    run.mark("grow_disk.promised")


def _grow(run: Run, record: Record, path: str, serial: str, size: int, fstype: str) -> None:
    process = power.find_process(record)
    if process is not None:
        with process:
            power.raise_file_limit(process, {**record, "data_disks": [*record["data_disks"], {"size": size}]})
        run.driver(record["hypervisor"]).resize_disk(run.store.paths.vm_run(record["id"]), serial, size)
    else:
        grow_file(run, record, path, size, fstype)
    run.mark("grow_disk.file")


def grow_file(run: Run, record: Record, path: str, size: int, fstype: str) -> None:
    """Grow the file of a disk that no hypervisor has open."""
    if path.endswith(".raw"):
        _disks.grow(path, size, fstype, record["uid"])
        return
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images

    gid = images.blob_gid(run.store, run.known_image(record["image_id"])["disk"]["hex"])
    _disks.grow(path, size, "none", record["uid"], "qcow2", gid)


def add_disk(run: Run, record: Record, disk: Record) -> None:
    """Create or take back a data disk, and plug it in if the VM runs.

    Until it is in its place the record lists it as detached: the next run of the same definition
    goes on from there, and nothing that it holds is lost.
    """
    entry = {key: disk[key] for key in ("name", "size", "fstype")}
    others = [item for item in record["detached_disks"] if item["name"] != disk["name"]]
    kept = next((item for item in record["detached_disks"] if item["name"] == disk["name"]), entry)
    size = wanted_bytes({**record, "detached_disks": [*others, entry]})
    record["detached_disks"] = [*others, kept]
    _promise(run, record, size)
    run.mark("add_disk.record")
    create_data_disk(run, record, disk, kept["size"])
    run.mark("add_disk.file")
    record["detached_disks"] = [*others, entry]
    run.store.write_vm(record)
    run.mark("add_disk.made")
    process = power.find_process(record)
    if process is not None:
        with process:
            power.raise_file_limit(process, {**record, "data_disks": [*record["data_disks"], entry]})
        path = boot.data_disk(record["id"], disk["name"], run.store.paths)
        item = {"path": path, "ro": False, "serial": disk["name"]}
        driver = run.driver(record["hypervisor"])
        driver.attach_disk(run.store.paths.vm_run(record["id"]), power.disk_of(run, record, item))
    run.mark("add_disk.attached")
    record["detached_disks"] = others
    record["data_disks"] = [item for item in record["data_disks"] if item["name"] != disk["name"]] + [entry]
    _refresh(run, record)
    run.mark("add_disk.done")


def drop_disk(run: Run, record: Record, name: str, delete: bool) -> None:
    """Unplug a data disk; its file is kept unless *delete*."""
    process = power.find_process(record)
    if process is not None:
        process.close()
        driver = run.driver(record["hypervisor"])
        driver.detach_disk(run.store.paths.vm_run(record["id"]), name, DETACH_TIMEOUT)
    run.mark("drop_disk.detached")
    disks = [item for item in [*record["data_disks"], *record["detached_disks"]] if item["name"] == name]
    others = [item for item in record["detached_disks"] if item["name"] != name]
    record["data_disks"] = [item for item in record["data_disks"] if item["name"] != name]
    record["detached_disks"] = others + disks
    _refresh(run, record)
    run.mark("drop_disk.record")
    if delete:
        remove_file(boot.data_disk(record["id"], name, run.store.paths))
        run.mark("drop_disk.file")
        record["detached_disks"] = others
        _promise(run, record, wanted_bytes(record))
        run.mark("drop_disk.done")


def _refresh(run: Run, record: Record) -> None:
    """Write the record with storage_configs that match its disks."""
    image = run.known_image(record["image_id"])
    record["storage_configs"] = boot.storage_configs(record, image, run.store.paths)
    run.store.write_vm(record)


def rebuild_system_disk(run: Run, record: Record, login: Record | None) -> None:
    """A new system disk in place of the old one; the guest boots for the first time again."""
    cidata.forget(run.store.paths, record)
    for name in ("cow.raw", "overlay.qcow2", power.LOGIN_FILE, *run.driver(record["hypervisor"]).own_files):
        remove_file(os.path.join(run.store.paths.vm_dir(record["id"]), name))
    run.mark("rebuild.removed")
    create_system_disk(run, record)
    run.mark("rebuild.system_disk")
    give_login(run, record, login)
