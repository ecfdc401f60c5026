# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots on disk: their records, their files, and which VMs were cloned from them.

Layout under ``root_dir/snapshots/<id>``::

    snapshot.json            the record: SnapshotConfig of the Go engine, ours beside it
    cocoon.json              disks and boot configuration, as in an archive
    …                        devices and RAM of a running VM, by the names that its hypervisor's driver has for them
    cow.raw | overlay.qcow2  the system disk
    data-<name>.raw          data disks
    clones/<vm id>           VMs that were made from it
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._records import read_snapshot
from ansible_collections.cocoon.microvm.plugins.module_utils._state import (
    Store,
    fsync_dir,
    hashed,
    read_record,
    remove_file,
    remove_tree,
    write_json,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._types import ERROR, Record, check_meant

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import SnapshotRecord

CREATING = "creating"
COMPLETE = "complete"
REMOVING = "removing"
DAMAGED = "Put it back from a backup, or remove the snapshot by its name (state: absent)."

# What a snapshot has: all of a running VM, or the disks of a stopped one.
FULL: t.Final = "full"
DISKS: t.Final = "disks"

LAYOUT_FILE = "cocoon.json"
RECORD_FILE = "snapshot.json"
CLONES = "clones"

NAME_RE = re.compile(r"^[a-zA-Z0-9][a-zA-Z0-9._:/-]{0,62}\Z")
CHUNK = 1 << 20


def check_name(name: str, option: str = "name") -> str:
    """*name* if a snapshot may be called that: a VM's rule, and ``:`` and ``/`` as well."""
    check_meant(name, option)
    if not NAME_RE.match(name):
        raise InputError(
            f"'{name}' is not a valid snapshot name",
            option,
            "Use letters, digits and . _ - : /, at most 63, beginning with a letter or digit.",
        )
    return name


def directory(store: Store, snapshot_id: str) -> str:
    return store.paths.object_dir("snapshot", snapshot_id)


def coming(name: str) -> str:
    """What a snapshot is called until it takes the place of *name*: no snapshot may be called that."""
    return f"{name}~new"


def going(name: str) -> str:
    """What one is called whose place another has taken, until it is gone."""
    return f"{name}~old"


def load_by_id(store: Store, snapshot_id: str, name: str = "") -> SnapshotRecord | None:
    """The record of a snapshot, or ``None`` if there is none; in state ``error``, what stands for a damaged one."""
    try:
        path = os.path.join(directory(store, snapshot_id), RECORD_FILE)
        return read_record(path, read_snapshot, snapshot_id, folder=True)
    except StateError as exc:
        return {"id": snapshot_id, "name": name, "state": ERROR, "reason": f"{exc.message}. {DAMAGED}", "files": {}}


def load(store: Store, name: str) -> SnapshotRecord | None:
    """The record of the snapshot *name*; a bare one in state ``creating`` if its maker died before writing it."""
    snapshot_id = store.index("snapshot").lookup(name)
    if snapshot_id is None:
        return None
    return load_by_id(store, snapshot_id, name) or {"id": snapshot_id, "name": name, "state": CREATING, "files": {}}


def usable(store: Store, name: str) -> SnapshotRecord | None:
    """The record of a snapshot that is complete.

    :raises StateError: it is damaged.
    """
    record = load(store, name)
    if record and record["state"] == ERROR:
        raise StateError(record["reason"], "snapshot")
    return record if record and record["state"] == COMPLETE else None


def machine_files(record: SnapshotRecord) -> tuple[str, ...]:
    """Names of what a snapshot may have of a running machine besides its disks."""
    return (*_saved_files(record), LAYOUT_FILE)


def _saved_files(record: SnapshotRecord) -> t.Mapping[str, str]:
    """The files of a running machine, each with its role; none of a record that says nothing of its machine yet."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import registry

    return registry.saved_files(record.get("hypervisor") or "")


def disks_of(record: SnapshotRecord) -> SnapshotRecord:
    """A snapshot as if it had been taken of a VM that did not run: what else it has is not looked at."""
    machine = machine_files(record)
    disks = {name: facts for name, facts in record["files"].items() if name not in machine}
    return {**record, "kind": DISKS, "layout": {}, "blob_digests": {}, "files": disks}


def all_records(store: Store, states: t.Container[str] = (COMPLETE,)) -> list[SnapshotRecord]:
    """Every snapshot that is complete, or in one of *states*, oldest first; none that comes or goes in a swap."""
    entries = store.index("snapshot").entries()
    found = [load_by_id(store, snapshot_id, name) for name, snapshot_id in entries if "~" not in name]
    chosen = [record for record in found if record and record["state"] in states]
    return sorted(chosen, key=lambda record: (record.get("created_at", ""), record["name"]))


def write(store: Store, record: SnapshotRecord) -> None:
    """Replace a snapshot's record. Its lock is held."""
    write_json(os.path.join(directory(store, record["id"]), RECORD_FILE), record, locked=True)


def gid(store: Store, snapshot_id: str) -> int:
    """The group of those who may map a snapshot's RAM; from the upper half of the range, as the images' are."""
    half = store.uid_count // 2
    return store.uid_start + half + int(hashed(snapshot_id)[:16], 16) % half


def file_facts(path: str) -> Record:
    """What a record keeps of a file, by which a change to it is noticed."""
    info = os.lstat(path)
    return {"size": info.st_size, "allocated": info.st_blocks * 512, "mtime_ns": info.st_mtime_ns}


def digest(path: str) -> str:
    """``sha256:…`` of a file."""
    summed = hashlib.sha256()
    with open(path, "rb") as stream:
        while True:
            data = stream.read(CHUNK)
            if not data:
                return f"sha256:{summed.hexdigest()}"
            summed.update(data)


def settle(directory: str) -> None:
    """Make all files in *directory* durable, and the directory itself."""
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if os.path.isfile(path):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    fsync_dir(directory)


def verify(store: Store, record: SnapshotRecord) -> None:
    """Whether the files of a snapshot are what they were when it was taken.

    The devices' state is read again; of what is larger, size and time of change tell.

    :raises StateError: one is not.
    """
    for name, facts in record["files"].items():
        path = os.path.join(directory(store, record["id"]), name)
        problem = None
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            problem = "is missing"
        else:
            if not stat.S_ISREG(info.st_mode) or info.st_size != facts["size"]:
                problem = f"has {info.st_size} bytes and not {facts['size']}"
            elif info.st_mtime_ns != facts["mtime_ns"]:
                problem = "was changed after the snapshot was taken"
            elif facts.get("digest") and digest(path) != facts["digest"]:
                problem = "has other contents than when the snapshot was taken"
        if problem:
            raise StateError(
                f"snapshot '{record['name']}' is damaged: {path} {problem}",
                "name",
                "Remove the snapshot; import it again if it was exported.",
            )


def clones(store: Store, record: SnapshotRecord) -> list[str]:
    """Ids of the VMs that were cloned from a snapshot and are still there, sorted."""
    try:
        return sorted(os.listdir(os.path.join(directory(store, record["id"]), CLONES)))
    except FileNotFoundError:
        return []


def clone_names(store: Store, record: SnapshotRecord) -> list[str]:
    """Names of those VMs, sorted."""
    return sorted(name for vm_id in clones(store, record) for name in [store.vm_name(vm_id)] if name)


def note_clone(store: Store, snapshot_id: str, vm_id: str) -> None:
    folder = os.path.join(directory(store, snapshot_id), CLONES)
    os.makedirs(folder, 0o700, exist_ok=True)
    os.close(os.open(os.path.join(folder, vm_id), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    fsync_dir(folder)


def forget_clone(store: Store, snapshot_id: str, vm_id: str) -> None:
    remove_file(os.path.join(directory(store, snapshot_id), CLONES, vm_id))


def make_room(store: Store, record: SnapshotRecord) -> None:
    """On a full file system a snapshot that is to go loses what is large first."""
    for name in record["files"]:
        if name != LAYOUT_FILE:
            remove_file(os.path.join(directory(store, record["id"]), name))


def discard(store: Store, record: SnapshotRecord) -> None:
    """Take a snapshot away, whatever is there of it: its hold on its image, its files, its name. Idempotent."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images

    folder = directory(store, record["id"])
    if record["state"] == COMPLETE:
        write(store, {**record, "state": REMOVING})
    for name, role in _saved_files(record).items():  # first what makes it a machine
        if role == "state":
            remove_file(os.path.join(folder, name))
    if record["state"] == ERROR:  # which image it was of, its record does not tell
        pinned = images.pinned_by(store, record["id"])
    else:
        pinned = [image_id for image_id in [record.get("image_id")] if image_id]
    for image_id in pinned:
        images.unpin(store, image_id, record["id"])
    with contextlib.suppress(FileNotFoundError):
        for entry in list(os.scandir(folder)):
            if entry.name != RECORD_FILE and not entry.is_dir(follow_symlinks=False):
                remove_file(entry.path)
    remove_tree(folder)
    store.index("snapshot").release(record["name"], record["id"])


def shown(store: Store, record: SnapshotRecord) -> Record:
    """A record as users see it, with its size on disk and its clones by name."""
    size = sum(t.cast(int, facts["allocated"]) for facts in record["files"].values())
    return {**record, "size": size, "clones": clone_names(store, record)}
