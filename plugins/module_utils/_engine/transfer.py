# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots out of a store into an archive, and into a store out of one."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    ChangeRefusedError,
    CocoonError,
    InputError,
    NotFoundError,
    UnsupportedError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import OPTIONS, without_machine
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.snapshot import Wanted, check_intact, check_owner
from ansible_collections.cocoon.microvm.plugins.module_utils._progress import Progress, Stage
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import archive, document, foreign
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import store as snapshots
from ansible_collections.cocoon.microvm.plugins.module_utils._state import (
    locked,
    read_json,
    remove_file,
    remove_tree,
    write_json,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import capture, resuming
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.saving import RESERVE

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Driver
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import SnapshotRecord

CONFIG = (
    *("id", "name", "description", "image", "image_blob_ids", "hypervisor", "cpu", "memory", "storage", "nics"),
    *("queue_size", "disk_queue_size", "network", "no_direct_io", "windows"),
)
STAGING = "staging"
MAX_FILES = 64
QCOW2_HEAD = 4096


def converge(run: Run, wanted: Wanted, params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    """Export or import; the shape of ``converging.converge``, with ``archive`` where something was done."""
    if not params.get("path"):
        raise InputError("is needed", "path", "Name the archive, on the target; local_path is one on the controller.")
    path = os.path.abspath(params["path"])
    progress = Progress(params.get("progress_file"))
    if wanted.state == "exported":
        return _export(run, wanted, path, params["compression"], check, progress.stage(f"exporting {wanted.name}"))
    told = progress.stage(f"importing {wanted.name}")
    return _import(run, wanted, path, _checksum(params.get("checksum")), check, told)


def _checksum(text: str | None) -> str | None:
    """:raises InputError: not a digest."""
    if text is None:
        return None
    if not archive.DIGEST_RE.fullmatch(text.strip().lower()):
        raise InputError(f"'{text}' is not a digest", "checksum", "Write it as sha256: and 64 hex digits.")
    return text.strip().lower()


def _answer(
    run: Run, record: SnapshotRecord | None, action: str | None, path: str, made: Record | None
) -> dict[str, t.Any]:
    answer: dict[str, t.Any] = {
        "changed": action is not None,
        "actions": [action] if action else [],
        "diff": {"before": {}, "after": {"path": path}} if action else {"before": {}, "after": {}},
        "snapshot": snapshots.shown(run.store, record) if record else None,
        "vm": None,
    }
    return {**answer, "archive": {"path": path, **made}} if made else answer


# Out.


def config_of(record: t.Mapping[str, t.Any]) -> Record:
    """The ``SnapshotConfig`` of a record: what is empty is left out, as the Go engine does it."""
    return {key: record[key] for key in CONFIG if record.get(key)}


def _export(run: Run, wanted: Wanted, path: str, compression: str, check: bool, told: Stage) -> dict[str, t.Any]:
    with locked(run.store.paths, [], run.options.lock_timeout, [f"snapshot:{wanted.name}"]):
        record = snapshots.usable(run.store, wanted.name)
        if record is None:
            raise NotFoundError(f"there is no snapshot '{wanted.name}'", "name", "Take it with cocoon_snapshot first.")
        made = _exported(record, path, compression)
        if made:
            return _answer(run, record, None, path, made)
        _check_target(record, path, wanted.force)
        if check:
            return _answer(run, record, "export", path, None)
        snapshots.verify(run.store, record)
        names = sorted(record["files"], key=lambda name: (name != snapshots.LAYOUT_FILE, name))
        folder = snapshots.directory(run.store, record["id"])
        written = archive.write(path, config_of(record), folder, names, compression, told)
        run.mark("export.written")
    made = {"digest": written.digest, "size": written.size}
    with locked(run.store.paths, [f"snapshot:{wanted.name}"], run.options.lock_timeout):
        record = snapshots.usable(run.store, wanted.name) or record
        seen = {**made, "mtime_ns": os.lstat(path).st_mtime_ns, "compression": compression}
        record.setdefault("exports", {})[path] = seen
        snapshots.write(run.store, record)
    return _answer(run, record, "export", path, made)


def _exported(record: SnapshotRecord, path: str, compression: str) -> Record | None:
    """Digest and size of the archive at *path*, if it is the one that an earlier run wrote of this snapshot."""
    seen: Record = (record.get("exports") or {}).get(path) or {}
    with contextlib.suppress(FileNotFoundError):
        info = os.lstat(path)
        now = {"size": info.st_size, "mtime_ns": info.st_mtime_ns, "compression": compression}
        if seen and all(seen[key] == value for key, value in now.items()):
            return {"digest": seen["digest"], "size": seen["size"]}
    return None


def _check_target(record: SnapshotRecord, path: str, force: bool) -> None:
    """:raises ChangeRefusedError: there is something else at *path*."""
    if not os.path.lexists(path) or force:
        return
    with contextlib.suppress(CocoonError):
        if archive.peek(path).get("id") == record["id"]:
            return
    raise ChangeRefusedError(
        f"{path} is there, and is no archive of this snapshot", "path", "Give another path, or set force: true."
    )


# In.


def _import(run: Run, wanted: Wanted, path: str, checksum: str | None, check: bool, told: Stage) -> dict[str, t.Any]:
    with contextlib.ExitStack() as stack:
        if not check:
            names = [f"snapshot:{wanted.name}"]
            stack.enter_context(locked(run.store.paths, names, run.options.lock_timeout))
        record = snapshots.load(run.store, wanted.name)
        check_intact(record)
        config = archive.peek(path)
        run.driver(_hypervisor(config))
        if record is not None and record["state"] == snapshots.COMPLETE:
            check_owner(record, wanted)
            if config.get("id") not in (record["id"], record.get("source_id")):
                raise ChangeRefusedError(
                    f"there is another snapshot '{wanted.name}' on this host", "name", "Import it under another name."
                )
            return _answer(run, record, None, path, None)
        if check:
            return _answer(run, None, "import", path, None)
        if record is not None:  # of a run that was killed
            snapshots.discard(run.store, record)
        record, made = _take_in(run, wanted, path, checksum, told)
    return _answer(run, record, "import", path, made)


def _hypervisor(config: Record) -> str:
    """The hypervisor of the machine in an archive.

    :raises UnsupportedError: there is no driver for it.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import registry

    name = str(config.get("hypervisor") or "an unknown hypervisor")
    if name not in registry.DRIVERS:
        raise UnsupportedError(
            f"it is a snapshot of {name}, and a saved machine goes on only under the hypervisor that saved it",
            "path",
            f"Snapshots of {', '.join(registry.DRIVERS)} can be imported.",
        )
    return name


def _take_in(run: Run, wanted: Wanted, path: str, checksum: str | None, told: Stage) -> tuple[SnapshotRecord, Record]:
    """Unpack beside where the files will be, look at all of it, and only then give it its name."""
    record: SnapshotRecord = {"id": types.new_id(), "name": wanted.name, "state": snapshots.CREATING, "files": {}}
    folder = snapshots.directory(run.store, record["id"])
    staging = os.path.join(folder, STAGING)
    try:
        run.store.index("snapshot").reserve(record["name"], record["id"])
        run.mark("import.name")
        os.mkdir(folder, 0o711)
        os.chmod(folder, 0o711)  # whatever the umask of this task is
        snapshots.write(run.store, record)
        os.mkdir(staging, 0o700)
        run.mark("import.staging")
        envelope = archive.read(path, staging, archive.Limits(_room(run), MAX_FILES), checksum, told)
        run.mark("import.read")
        _describe(run, record, wanted, envelope, staging)
        _pin(run, record)
        _settle(run, record, staging)
    except BaseException:
        with contextlib.suppress(OSError):
            remove_tree(staging)
            snapshots.discard(run.store, record)
        raise
    return record, {"digest": envelope.digest, "size": envelope.size}


def _room(run: Run) -> int:
    info = os.statvfs(run.store.paths.root)
    return max(0, info.f_bavail * info.f_frsize - RESERVE)


def _describe(run: Run, record: SnapshotRecord, wanted: Wanted, envelope: archive.Envelope, staging: str) -> None:
    """Fill the record from what the archive says, all of which is looked at here.

    :raises CocoonError: it does not hold together, or cannot be used on this host.
    """
    layout = os.path.join(staging, snapshots.LAYOUT_FILE)
    if snapshots.LAYOUT_FILE not in envelope.files or os.path.getsize(layout) > document.MAX_BYTES:
        raise InputError("the archive has no cocoon.json that tells of its disks", "path", "Export it again.")
    driver = run.driver(_hypervisor(envelope.config))
    form = driver.archive_form()
    given = read_json(layout)
    if given is not None and foreign.is_foreign(given):
        given, envelope = _of_the_go_engine(given, envelope, staging, wanted.disks_only, driver)
    described = document.check(given, form)
    ours, config = described["cocoon_microvm"], envelope.config
    _check_files(driver, described, envelope, staging)
    if wanted.disks_only:
        _drop_machine(described, staging, snapshots.machine_files(t.cast("SnapshotRecord", config)))
    stamp = types.now()
    fields: Record = dict(
        {key: config.get(key) or default for key, default in EMPTY.items()},
        description=wanted.description if wanted.description is not None else config.get("description", ""),
        source_id=config.get("id"),
        created_at=stamp,
        imported_at=stamp,
        vm_id=None,
        vm="",
        parent=None,
        owner=wanted.owner or run.store.store_id,
        labels=wanted.labels or {},
        hypervisor_version=form.version(described),
        **{key: described[key] for key in driver.pinned},
        balloon=None,
        frozen=None,
        **without_machine(),
        layout={},
        blob_digests={},
        firmware=described.get("firmware") or None,
        paused_seconds=None,
    )
    record.update(t.cast("SnapshotRecord", {**fields, **ours}))
    record["accel"] = ours.get("accel", "tcg")
    _check_host(run, record)


def _of_the_go_engine(
    given: Record, envelope: archive.Envelope, staging: str, disks_only: bool, driver: Driver
) -> tuple[Record, archive.Envelope]:
    """What the Go engine wrote, as if we had written it of the disks alone: ``cocoon.json``, and what else there is.

    :raises CocoonError: it cannot be had, or does not hold together.
    """
    sizes = {name: info.size for name, info in envelope.files.items()}
    described = foreign.translate(given, envelope.config, sizes, disks_only)
    kept = {name: info for name, info in envelope.files.items() if not foreign.is_machine(name, driver.saved_files)}
    for name in envelope.files.keys() - kept.keys():
        remove_file(os.path.join(staging, name))
    write_json(os.path.join(staging, snapshots.LAYOUT_FILE), described)
    queues = _queues(envelope.config, driver)
    return described, dataclasses.replace(envelope, files=kept, config={**envelope.config, **queues})


def _queues(config: Record, driver: Driver) -> Record:
    """Depths of queues, where 0 is ours, as the driver has them: of a machine that boots anyway."""
    there = {"queue_size": driver.limits.nic_queues, "disk_queue_size": driver.limits.disk_queues}
    wanted = {name: config.get(name) or OPTIONS[name].default for name in there}
    return {name: min(sizes, key=lambda size: abs(size - wanted[name])) for name, sizes in there.items()}


def _drop_machine(described: Record, staging: str, names: t.Iterable[str]) -> None:
    """Have what was unpacked be a snapshot of disks alone."""
    ours = described["cocoon_microvm"]
    ours["kind"] = snapshots.DISKS
    for key in ("layout", "blob_digests"):
        ours.pop(key, None)
    for name in names:
        remove_file(os.path.join(staging, name))
    write_json(os.path.join(staging, snapshots.LAYOUT_FILE), described)


EMPTY: dict[str, t.Any] = {
    **{"image": "", "image_blob_ids": {}, "hypervisor": "", "cpu": 0, "memory": 0, "storage": 0, "nics": 0},
    **{"queue_size": 0, "disk_queue_size": 0, "network": "", "no_direct_io": False, "windows": False},
}


MAX_SMALL_FILE = 16 << 20


def _check_files(driver: Driver, described: Record, envelope: archive.Envelope, staging: str) -> None:
    """Whether the files are those, and as large, as the documents say.

    :raises InputError: they are not.
    """
    config, ours = envelope.config, described["cocoon_microvm"]
    # What a VM with a disk image may have besides: its firmware's own, and what it is told at its first boot.
    small = {*driver.own_files, "cidata.img"} if ours["image_type"] == "cloudimg" else set()
    memory = {name for name, role in driver.saved_files.items() if role == "memory"}
    system = "cow.raw" if ours["image_type"] == "oci" else "overlay.qcow2"
    sizes = {system: config.get("storage"), **{f"data-{disk['name']}.raw": disk["size"] for disk in ours["data_disks"]}}
    wanted = {*sizes, snapshots.LAYOUT_FILE}
    optional = set(small)
    if described.get("firmware") == "uefi" and ours["kind"] == snapshots.FULL:
        wanted.update(driver.own_files)
    if ours["kind"] == snapshots.FULL:
        wanted.update(set(driver.saved_files) - memory)
        optional |= memory
        sizes.update(dict.fromkeys(memory, config.get("memory")))
    problems = [f"{name} is missing" for name in sorted(wanted - set(envelope.files))]
    problems += [f"{name} does not belong to it" for name in sorted(set(envelope.files) - wanted - optional)]
    for name, info in envelope.files.items():
        if name in sizes and (name.endswith(".raw") or name in memory) and info.size != sizes[name]:
            problems.append(f"{name} has {info.size} bytes and not {sizes[name]}")
        if name in small and info.size > MAX_SMALL_FILE:
            problems.append(f"{name} has {info.size} bytes")
    for key in ("cpu", "memory"):
        if described[key] != config.get(key):
            problems.append(f"snapshot.json and cocoon.json differ in {key}")
    if len(ours["nic_configs"]) != config.get("nics", 0):
        problems.append("snapshot.json and cocoon.json differ in NICs")
    if ours["kind"] == snapshots.FULL:
        problems += driver.archive_form().problems(ours["layout"], [disk["name"] for disk in ours["data_disks"]])
    if problems:
        raise InputError(f"the archive does not hold together: {'; '.join(problems)}", "path", "Export it again.")
    if system.endswith(".qcow2"):
        _check_overlay(os.path.join(staging, system))


def _check_overlay(path: str) -> None:
    """:raises InputError: the overlay names another file for its data, which a hypervisor would open."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import detect

    with open(path, "rb") as stream:
        detect.check_qcow2(stream.read(QCOW2_HEAD), os.path.basename(path), overlay=True)


def _check_host(run: Run, record: SnapshotRecord) -> None:
    """Whether this host can clone it.

    :raises CocoonError: the image is not here, or the hypervisor or the CPU are others.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images

    image = images.resolve(run.store, record["image_digest"])
    if image is None:
        raise NotFoundError(
            f"it was taken of a VM with the image '{record['image']}' ({record['image_digest']}), which is not here",
            "path",
            "Import that image first, the very same one (cocoon_image; the playbook move_snapshot brings it along).",
        )
    record["image_id"] = image["id"]
    vendor = record.pop("cpu_vendor", "")
    if record["kind"] != snapshots.FULL:
        return
    resuming.check_snapshot(run, record, record, "path")
    if record["accel"] == "kvm" and vendor != capture.cpu_vendor():
        raise UnsupportedError(
            f"it was saved on a CPU by {vendor or 'an unknown vendor'}, and this one is by {capture.cpu_vendor()}",
            "path",
            f"Clone it on a host with a CPU of the same vendor; {resuming.REMEDIES['path']}",
        )


def _pin(run: Run, record: SnapshotRecord) -> None:
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images

    snapshots.write(run.store, record)  # names the image, for whoever has to take it back
    images.pin(run.store, record["image_id"], record["id"])
    run.mark("import.image")


def _settle(run: Run, record: SnapshotRecord, staging: str) -> None:
    """Move the files to where they belong, and say that all is there."""
    folder = snapshots.directory(run.store, record["id"])
    for name in sorted(os.listdir(staging)):
        os.rename(os.path.join(staging, name), os.path.join(folder, name))
    os.rmdir(staging)
    run.mark("import.moved")
    capture.seal(run, record)
    record["state"] = snapshots.COMPLETE
    snapshots.write(run.store, record)
    run.mark("import.complete")
