# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs whose record is damaged or gone: all that they hold bears their id, and is found by it.

This looks through the whole store. Nothing but the removal of such a VM, and a prune, comes here.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._records import is_damaged
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import DataDisk, VmRecord

PREFIX, SUFFIX = "data-", ".raw"
# Where ext2 to ext4 have their magic number.
EXT4_MAGIC, EXT4_PLACE = b"\x53\xef", 1080


def is_lost(record: VmRecord) -> bool:
    """Whether the record does not say what the VM holds."""
    return bool(record.get("bare")) or is_damaged(record)


def rebuilt(run: Run, record: VmRecord) -> VmRecord:
    """A whole record for a VM that is about to be removed, made of what there is of it.

    It says ``lost``: what else it holds is to be found by its id.
    """
    vm_id, stamp = record["id"], types.now()
    uid = next((int(uid) for uid, holder in run.store.index("uid").entries() if holder == vm_id), 0)
    disks = _data_disks(run.store.paths.vm_dir(vm_id))
    known = {key: value for key, value in record.items() if key in ("id", "bare")}
    found = {
        **known,
        "lost": True,
        "hypervisor": types.HYPERVISORS[0],
        "state": types.ERROR,
        "image_type": "oci",
        "image_id": None,
        "config": {"name": record["config"]["name"], "cpu": 0, "memory": 0, "storage": 0},
        **{"pid": 0, "first_booted": True, "uid": uid, "owner": run.store.store_id},
        **{key: [] for key in ("network_configs", "storage_configs", "detached_disks", "ports", "nics")},
        **{key: {} for key in ("snapshot_ids", "labels", "login")},
        **{"created_at": stamp, "updated_at": stamp, "data_disks": disks},
        "promised_disk": sum(disk["size"] for disk in disks),
    }
    return t.cast("VmRecord", found)


def _data_disks(directory: str) -> list[DataDisk]:
    """The data disks that lie in a VM's directory."""
    found: list[DataDisk] = []
    for name in sorted(os.listdir(directory) if os.path.isdir(directory) else ()):
        if name.startswith(PREFIX) and name.endswith(SUFFIX):
            path = os.path.join(directory, name)
            size = os.lstat(path).st_size
            found.append({"name": name[len(PREFIX) : -len(SUFFIX)], "size": size, "fstype": _fstype(path)})
    return found


def _fstype(path: str) -> t.Literal["ext4", "none"]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return "ext4" if os.pread(fd, len(EXT4_MAGIC), EXT4_PLACE) == EXT4_MAGIC else "none"
    finally:
        os.close(fd)


def release(run: Run, vm_id: str) -> None:
    """Give back what a VM holds on networks and of images and snapshots, and its MACs. Idempotent."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import attachments
    from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import store as snapshots
    from ansible_collections.cocoon.microvm.plugins.module_utils._vms import admission

    store = run.store
    if attachments.purge(store, vm_id):
        run.networks_changed = True
    for mac, holder in store.index("mac").entries():
        if holder == vm_id:
            store.index("mac").release(mac, vm_id)
    for image_id in images.pinned_by(store, vm_id):
        images.unpin(store, image_id, vm_id)
    for snapshot_id in os.listdir(os.path.join(store.paths.root, "snapshots")):
        snapshots.forget_clone(store, snapshot_id, vm_id)
    admission.recount_disks(run, vm_id)
