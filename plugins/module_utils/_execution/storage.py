# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks of a VM: making them, growing them, attaching and detaching them, live or not."""

from __future__ import annotations

import json
import os

from ansible_collections.cocoon.microvm.plugins.module_utils import _disks
from ansible_collections.cocoon.microvm.plugins.module_utils._execution import admission, boot, power
from ansible_collections.cocoon.microvm.plugins.module_utils._execution.run import Run
from ansible_collections.cocoon.microvm.plugins.module_utils._process import run_tool
from ansible_collections.cocoon.microvm.plugins.module_utils._state import locked, remove_file
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

DETACH_TIMEOUT = 20.0


def wanted_bytes(record: Record) -> int:
    """What the VM's disks may come to hold."""
    disks = [*(record.get("data_disks") or []), *(record.get("detached_disks") or [])]
    return int(record["config"]["storage"]) + sum(disk["size"] for disk in disks)


def create_disks(run: Run, record: Record, login: Record | None) -> None:
    """The system disk, data disks and login file of a new VM."""
    create_system_disk(run, record)
    run.mark("create.system_disk")
    for disk in record["data_disks"]:
        create_data_disk(run, record, disk)
        run.mark("create.data_disk")
    if login:
        write_login(run, record, login)


def create_system_disk(run: Run, record: Record) -> None:
    path = boot.system_disk(record, run.store.paths)
    if record["image_type"] == "oci":
        _disks.create_cow(run.store, path, record["config"]["storage"], record["uid"])
    else:
        image = run.known_image(record["image_id"])
        _disks.create_overlay(run.store, path, image, record["config"]["storage"], record["uid"])


def create_data_disk(run: Run, record: Record, disk: Record) -> None:
    """Make the file of a data disk unless a detached one of that name is kept."""
    path = boot.data_disk(record["id"], disk["name"], run.store.paths)
    if not os.path.lexists(path):
        _disks.create_data(path, disk["size"], disk["fstype"], record["uid"])
    elif os.lstat(path).st_size < disk["size"]:
        _disks.grow(path, disk["size"], disk["fstype"], record["uid"])


def write_login(run: Run, record: Record, login: Record) -> None:
    """Leave login data for the first boot: public keys and a password's crypt hash, readable by the VM's uid only."""
    password = login.get("password")
    document = {
        "user": login.get("user") or "root",
        "password": _crypt(password) if password else None,
        "ssh_keys": login.get("ssh_keys") or [],
    }
    path = os.path.join(run.store.paths.vm_dir(record["id"]), power.LOGIN_FILE)
    remove_file(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
    with os.fdopen(fd, "wb") as stream:
        os.fchown(fd, record["uid"], record["uid"])
        stream.write(json.dumps(document, sort_keys=True).encode() + b"\n")


def _crypt(password: str) -> str:
    """A SHA-512 crypt hash; the password goes through a pipe, never through a command line."""
    output = run_tool(["openssl", "passwd", "-6", "-stdin"], stdin=password.encode() + b"\n", package="openssl")
    return output.decode().strip()


def _promise(run: Run, record: Record, option: str) -> None:
    """Bring the disk ledger up to what the record now asks for."""
    more = wanted_bytes(record) - record.get("promised_disk", 0)
    if more <= 0:
        return
    with locked(run.store.paths, ["host"], run.options.lock_timeout):
        admission.promise_disk(run, more, option)
    record["promised_disk"] = wanted_bytes(record)


def grow_disk(run: Run, record: Record, disk: str, size: int) -> None:
    """Grow the system disk (``cow``) or a data disk, live if the VM runs."""
    name = disk
    if name == "cow":
        record["config"]["storage"] = size
        path, serial, fstype = boot.system_disk(record, run.store.paths), boot.COW_SERIAL, "ext4"
    else:
        entry = next(item for item in record["data_disks"] if item["name"] == name)
        entry["size"] = size
        path, serial, fstype = boot.data_disk(record["id"], name, run.store.paths), name, entry["fstype"]
    _promise(run, record, "storage" if name == "cow" else "data_disks")
    run.store.write_vm(record)
    run.mark("grow_disk.record")
    process = power.find_process(record)
    if process is not None:
        process.close()
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
    """Create or take back a data disk, and plug it in if the VM runs."""
    entry = {key: disk[key] for key in ("name", "size", "fstype")}
    record["data_disks"] = [item for item in record["data_disks"] if item["name"] != disk["name"]] + [entry]
    record["detached_disks"] = [item for item in record["detached_disks"] if item["name"] != disk["name"]]
    _promise(run, record, "data_disks")
    run.store.write_vm(record)
    run.mark("add_disk.record")
    create_data_disk(run, record, disk)
    run.mark("add_disk.file")
    _refresh(run, record)
    process = power.find_process(record)
    if process is not None:
        process.close()
        item = next(item for item in record["storage_configs"] if item["serial"] == disk["name"])
        driver = run.driver(record["hypervisor"])
        driver.attach_disk(run.store.paths.vm_run(record["id"]), power.disk_of(run, record, item))
    run.mark("add_disk.attached")


def drop_disk(run: Run, record: Record, name: str, delete: bool) -> None:
    """Unplug a data disk; its file is kept unless *delete*."""
    process = power.find_process(record)
    if process is not None:
        process.close()
        driver = run.driver(record["hypervisor"])
        driver.detach_disk(run.store.paths.vm_run(record["id"]), name, DETACH_TIMEOUT)
    run.mark("drop_disk.detached")
    known = [*record["data_disks"], *record["detached_disks"]]
    entry = next((item for item in known if item["name"] == name), None)
    record["data_disks"] = [item for item in record["data_disks"] if item["name"] != name]
    record["detached_disks"] = [item for item in record["detached_disks"] if item["name"] != name]
    if delete:
        remove_file(boot.data_disk(record["id"], name, run.store.paths))
        run.mark("drop_disk.file")
    elif entry:
        record["detached_disks"].append(entry)
    less = record.get("promised_disk", 0) - wanted_bytes(record)
    record["promised_disk"] = wanted_bytes(record)
    _refresh(run, record)
    if less > 0:
        with locked(run.store.paths, ["host"], run.options.lock_timeout):
            admission.return_disk(run, less)


def _refresh(run: Run, record: Record) -> None:
    """Write the record with storage_configs that match its disks."""
    fixed = [item for item in record["storage_configs"] if item["ro"] or item["serial"] == boot.COW_SERIAL]
    record["storage_configs"] = fixed + [
        {"path": boot.data_disk(record["id"], disk["name"], run.store.paths), "ro": False, "serial": disk["name"]}
        for disk in record["data_disks"]
    ]
    run.store.write_vm(record)


def rebuild_system_disk(run: Run, record: Record, login: Record | None) -> None:
    """A new system disk in place of the old one; the guest boots for the first time again."""
    for name in ("cow.raw", "overlay.qcow2", power.LOGIN_FILE):
        remove_file(os.path.join(run.store.paths.vm_dir(record["id"]), name))
    run.mark("rebuild.removed")
    create_system_disk(run, record)
    run.mark("rebuild.system_disk")
    if login:
        write_login(run, record, login)
