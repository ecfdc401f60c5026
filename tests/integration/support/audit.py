# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Holds a store, and the host under it, against its records: what they list is there, and nothing else is.

Read from files, /proc and the kernel, not through the engine, so that an error of the engine's cannot hide itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import keeper
from ansible_collections.cocoon.microvm.plugins.module_utils._process import real_uid
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.tests.integration.support.engine import Engine, data_disk
from ansible_collections.cocoon.microvm.tests.integration.support.leaks import mounts
from ansible_collections.cocoon.microvm.tests.integration.support.machine import command

Records = dict[str, dict[str, Any]]
# What a run that came to its end leaves in no record.
UNFINISHED = (
    *("phase", "restarting", "kept_disks", "planned_nics", "planned_ports", "delete_data_disks", "held_images"),
    "restore",
)
SETTLED = ("created", "running", "stopped", "paused", "hibernated", "error", "removed")
ALIVE = ("running", "paused")
OWN_NAME = re.compile(r"(^|\.)\d+\.[a-z2-7]{8}\.tmp$")
TAP = re.compile(r"^cm[a-z2-7]{8}-\d+$")


def documents(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and the content of each JSON file in a folder, but for what a killed writer left."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and not path.name.endswith(".tmp"):
            yield path.name, json.loads(path.read_text(encoding="utf-8"))


def folders(path: Path) -> list[Path]:
    """The folders in a folder."""
    return sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []


def records(engine: Engine) -> Records:
    """Every VM's record by id."""
    found = {}
    for folder in folders(Path(engine.paths.root) / "vms"):
        path = folder / "vm.json"
        found[folder.name] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def snapshots(engine: Engine) -> Records:
    """Every snapshot's record by id; empty for one whose maker died before it wrote it."""
    found: Records = {}
    for folder in folders(Path(engine.paths.root) / "snapshots"):
        path = folder / "snapshot.json"
        found[folder.name] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def held(engine: Engine) -> set[str]:
    """All that the store's VMs and snapshots hold, in words."""
    return {
        *_of_snapshots(engine),
        *_half_written(engine),
        *_forwarding(engine),
        *_indexed(engine),
        *_of_networks(engine),
        *_of_images(engine),
        *_disks(engine),
        *_runtime(engine),
        *(f"{_kind(pid)} {vm_id}" for pid, vm_id in processes(engine)),
        *(f"guard {vm_id}" for _pid, vm_id in guards(engine)),
        *(f"tap {name}" for name in links(engine) if TAP.match(name)),
    }


def _half_written(engine: Engine) -> Iterator[str]:
    """Temporary files with a name of their own, that nobody will ever write again."""
    root = Path(engine.paths.root)
    for folder in (root / "index", root / "networks", root / "images" / "users"):
        yield from (f"file {path.relative_to(root)}" for path in folder.rglob("*.tmp") if OWN_NAME.search(path.name))


def _forwarding(engine: Engine) -> Iterator[str]:
    """Notes of the store's in network namespaces that it is not in."""
    here = os.stat(engine.netns.path).st_ino
    for path in Path("/run/cocoon-microvm-forwarding").glob("*/*/user-*"):
        note = json.loads(path.read_text(encoding="utf-8"))
        if note["root_dir"] == engine.paths.root and note.get("netns") != here:
            yield f"forwarding note {path}"


def _indexed(engine: Engine) -> Iterator[str]:
    for kind in ("vm", "mac", "uid", "snapshot"):
        for _name, document in documents(Path(engine.paths.index(kind))):
            yield f"{kind} {document['name']} {document['id']}"


def _of_networks(engine: Engine) -> Iterator[str]:
    for folder in folders(Path(engine.paths.root) / "networks"):
        for kind in ("leases", "ports", "users"):
            for name, document in documents(folder / kind):
                yield f"{kind} {folder.name} {name if kind != 'users' else ''} {document['vm_id']}"


def _of_images(engine: Engine) -> Iterator[str]:
    for folder in folders(Path(engine.paths.images) / "users"):
        for path in folder.iterdir():
            yield f"image {folder.name} {path.name}"


def _of_snapshots(engine: Engine) -> Iterator[str]:
    for folder in folders(Path(engine.paths.root) / "snapshots"):
        yield f"snapshot folder {folder.name}"
        for path in folder.iterdir():
            if path.name == "clones":
                yield from (f"clone {folder.name} {entry.name}" for entry in path.iterdir())
            elif path.name not in ("snapshot.json", "snapshot.json.tmp"):
                yield f"snapshot file {folder.name}/{path.name} {path.stat().st_size}"


def _disks(engine: Engine) -> Iterator[str]:
    for folder in folders(Path(engine.paths.root) / "vms"):
        for path in folder.iterdir():
            if path.name == "resume":
                yield f"saved {folder.name}"
                yield from (f"saved {folder.name}/{entry.name}" for entry in path.iterdir())
            elif path.name == "inbox":  # of what hypervisors write; the folder may stay
                yield from (f"inbox {folder.name}/{entry.name}" for entry in path.iterdir())
            elif path.name not in ("vm.json", "vm.json.tmp", "login.json"):
                yield f"file {folder.name}/{path.name} {path.stat().st_size}"


def _runtime(engine: Engine) -> Iterator[str]:
    for folder in folders(Path(engine.paths.run)):
        if folder.name not in ("cache", "ram"):
            yield f"run {folder.name}"
    ram = Path(engine.paths.ram)
    for path in ram.iterdir() if ram.is_dir() else ():
        yield f"ram {path.name} {path.stat().st_size}"
    for folder in folders(Path(engine.paths.log)):
        yield f"log {folder.name}"
    for path in mounts():
        if path.startswith(engine.paths.log + "/"):
            yield f"log mount {os.path.basename(path)}"


def processes(engine: Engine) -> list[tuple[int, str]]:
    """(pid, VM's id) of all live processes under the store's uids; the id is ? where no record has the uid."""
    store = engine.store
    by_uid = {record.get("uid"): vm_id for vm_id, record in records(engine).items()}
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            uid = real_uid(int(name))
            state = Path(f"/proc/{name}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if uid is not None and store.uid_start <= uid < store.uid_start + store.uid_count and state not in "ZX":
            found.append((int(name), by_uid.get(uid, "?")))
    return found


def _kind(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if keeper.PROGRAM.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            return "keeper"
    return "process"


def hypervisors(engine: Engine) -> list[int]:
    """The pids of those that are no keepers of consoles."""
    return [pid for pid, _vm in processes(engine) if _kind(pid) != "keeper"]


def guards(engine: Engine) -> list[tuple[int, str]]:
    """(pid, VM's id) of the processes that let a guest go on if whoever saves it is killed."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        socket = Path(words[-2]) if len(words) > 1 and "-c" in words else Path()
        if socket.name == "qmp.sock" and str(socket.parent.parent) == engine.paths.run:
            found.append((int(name), socket.parent.name))
    return found


def links(engine: Engine) -> list[str]:
    """The interfaces of the network namespace."""
    return [line.split(":")[1].strip().split("@")[0] for line in engine.netns.run("ip", "-o", "link").splitlines()]


# -- what there should be --------------------------------------------------------------------------------------------


def listed(engine: Engine) -> set[str]:
    """What the records say is held, in the words of :func:`held`."""
    found: set[str] = set()
    for vm_id, record in records(engine).items():
        found |= set(_listed(engine, vm_id, record)) if record else set()
    for snapshot_id, record in snapshots(engine).items():
        found |= set(_listed_snapshot(snapshot_id, record)) if record else set()
    return found


def _listed_snapshot(snapshot_id: str, record: dict[str, Any]) -> Iterator[str]:
    yield f"snapshot {record['name']} {snapshot_id}"
    yield f"snapshot folder {snapshot_id}"
    yield f"image {record['image_id'].partition(':')[2]} {snapshot_id}"
    yield from (f"snapshot file {snapshot_id}/{name} {facts['size']}" for name, facts in record["files"].items())


def _listed(engine: Engine, vm_id: str, record: dict[str, Any]) -> Iterator[str]:
    yield f"vm {record['config']['name']} {vm_id}"
    yield f"uid {record['uid']} {vm_id}"
    for disk in [*record["data_disks"], *record["detached_disks"]]:
        size = disk["size"]
        if record["state"] == "removed":  # whoever was to grow it may have been killed
            size = max(size, data_disk(engine.paths, record, disk["name"]).stat().st_size)
        yield f"file {vm_id}/data-{disk['name']}.raw {size}"
    if record["state"] == "removed":
        return
    yield f"file {vm_id}/cow.raw {record['config']['storage']}"
    yield f"image {record['image_id'].partition(':')[2]} {vm_id}"
    for config in record["network_configs"]:
        yield f"mac {config['mac']} {vm_id}"
        yield f"users {config['network_id']}  {vm_id}"
        if config.get("network"):
            yield f"leases {config['network_id']} {config['network']['ip']} {vm_id}"
    for port in record["ports"]:
        host_port, _colon, protocol = port.partition("/")
        key = f"{protocol or 'tcp'}-any-{host_port.split(':')[0]}"
        yield f"ports {record['network_configs'][0]['network_id']} {key} {vm_id}"
    if record.get("snapshot_id") in snapshots(engine):
        yield f"clone {record['snapshot_id']} {vm_id}"
    if record.get("resume"):
        names = ["vmstate"] if record["resume"]["memory"] == "stream" else ["vmstate", "mem"]
        yield from (f"saved {vm_id}", *(f"saved {vm_id}/{name}" for name in names))
    if record["state"] in ALIVE:
        yield f"process {vm_id}"
        yield f"keeper {vm_id}"
        yield f"run {vm_id}"
        yield f"ram {vm_id} {record['config']['memory']}"
        yield from (f"tap {config['tap']}" for config in record["network_configs"])
    if record["state"] in ALIVE or os.path.exists(engine.paths.vm_log(vm_id)):  # the log outlives the process
        yield f"log {vm_id}"
        yield f"log mount {vm_id}"


def ledger(engine: Engine) -> int:
    """Bytes of disk that all VMs together are promised, by the store's own account.

    It has the sum of all VMs but one, whose own record says the rest.
    """
    path = Path(engine.paths.root) / "index" / "disk.json"
    if not path.exists():
        return 0
    document = json.loads(path.read_text(encoding="utf-8"))
    return int(document["promised"]) + int(records(engine).get(document["besides"], {}).get("promised_disk", 0))


def wrong(engine: Engine) -> list[str]:
    """Whatever does not fit: each held thing that no record lists, each listed one that is not held, ..."""
    actual, expected = held(engine), listed(engine)
    found = [f"nobody's: {thing}" for thing in sorted(actual - expected)]
    found += [f"missing: {thing}" for thing in sorted(expected - actual)]
    total = 0
    for vm_id, record in records(engine).items():
        if not record:
            found.append(f"{vm_id} has no record")
            continue
        total += record["promised_disk"]
        found += [f"{vm_id}: {problem}" for problem in _wrong_record(record)]
    found += _wrong_snapshots(engine)
    if total != ledger(engine):
        found.append(f"the ledger says {ledger(engine)}, the records {total}")
    return found


def _wrong_record(record: dict[str, Any]) -> Iterator[str]:
    if record["state"] not in SETTLED:
        yield f"its state is {record['state']}"
    for name in UNFINISHED:
        if record.get(name):
            yield f"{name} is {record[name]}"
    disks = [*record["data_disks"], *record["detached_disks"]]
    size = sum(disk["size"] for disk in disks)
    if record["state"] != "removed":
        size += record["config"]["storage"]
        serials = [item["serial"] for item in record["storage_configs"] if not item["serial"].startswith("cocoon-")]
        if record["storage_configs"] and serials != [disk["name"] for disk in record["data_disks"]]:
            yield f"storage_configs has {serials}"
    if record["promised_disk"] != size:
        yield f"promised_disk is {record['promised_disk']}, its disks are {size}"


def _wrong_snapshots(engine: Engine) -> Iterator[str]:
    known, vms = snapshots(engine), records(engine)
    for snapshot_id, record in known.items():
        if not record or record["state"] != "complete":
            yield f"snapshot {snapshot_id} is {record.get('state', 'without a record')}"
    for vm_id, vm in vms.items():
        own = {key for key, record in known.items() if record.get("vm_id") == vm_id}
        listed = set(vm.get("snapshot_ids") or ())
        if vm.get("state") != "removed" and own != listed:
            yield f"{vm_id}: its snapshots are {sorted(own)}, and it lists {sorted(listed)}"


def clean(engine: Engine) -> None:
    """Remove all VMs and snapshots, and then what the engine has lost sight of.

    So that one failure does not bring others.
    """
    for name, _id in engine.store.index("snapshot").entries():
        engine.start_snapshot(name=name, state="absent", force=True).wait()
    names = [name for name, _id in engine.store.index("vm").entries()]
    for run in [engine.start_vms({"name": name, "state": "absent", "force": True}) for name in names]:
        run.wait()
    for pid, _vm in (*processes(engine), *guards(engine)):
        with contextlib.suppress(ProcessLookupError):  # the keeper of a console ends by itself
            os.kill(pid, signal.SIGKILL)
    if not records(engine):
        (Path(engine.paths.root) / "index" / "disk.json").unlink(missing_ok=True)


def remove_store(engine: Engine) -> None:
    """What the playbook `teardown` does, at a fraction of its price: the VMs, the networks, the store."""
    if Store.load(engine.paths) is not None:
        clean(engine)
        for name, _id in engine.store.index("network").entries():
            engine.network(name=name, state="absent")
    ram = Path(engine.paths.run) / "ram"
    if ram.is_mount():
        command("umount", ram)
    for folder in (engine.paths.root, engine.paths.run, engine.paths.log):
        shutil.rmtree(folder, ignore_errors=True)
