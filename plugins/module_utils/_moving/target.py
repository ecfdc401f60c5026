# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host that a VM comes to: it is taken in whole, started, and stays for good or is taken apart again."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._engine import steps as execution
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    ChangeRefusedError,
    InputError,
    NotFoundError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._moving import admit, common, passport
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import steps
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import is_made
from ansible_collections.cocoon.microvm.plugins.module_utils._progress import Stage
from ansible_collections.cocoon.microvm.plugins.module_utils._state import fsync_dir, locked, read_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import guest_data, reserve, resuming
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Driver
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkConfig, VmConfig, VmRecord

MAX_FILES = passport.MAX_DETACHED + 64
SMALL = 16 << 20
# Files of root's; the others are the VM's own.
ROOTS = ("cidata.json", "secret_env.json")
LOCKED = ("cidata.json", "secret_env.json", guest_data.LOGIN_FILE)


def expect(run: Run, object_id: str, reader: int | None) -> str:
    """A place for an archive that is about to come; its path."""
    return os.path.join(common.fresh_folder(run, object_id, "in", reader), common.ARCHIVE)


def arrive(
    run: Run,
    name: str,
    token: str,
    origin: str,
    path: str,
    checksum: str | None,
    networks: t.Mapping[str, str],
    told: Stage,
) -> tuple[bool, VmRecord]:
    """Take a VM in from an archive; whether it was still to be done, and its record.

    :param origin: the host that it comes from.
    :raises CocoonError: it cannot be had here; nothing of it is left.
    """
    with common.vm_locked(run, name) as record:
        if record is not None and _settled(record, token):
            return False, record
        if record is not None:
            _take_apart(run, record, token)
        staging, found = _read(run, path, checksum, told)
        if found["config"]["name"] != name:
            raise InputError(f"it is the VM '{found['config']['name']}'", "path", "Have it exported again.")
        record = _record(run, found, networks, {"token": token, "from": origin, "since": types.now()})
        with locked(run.store.paths, ["host"], run.options.lock_timeout):
            reserve.reserve_moved(run, record)
        run.mark("arrive.reserved")
        try:
            _place(run, record, found, staging)
            run.sync_networks()
            Vm(run, record).set_state(found["state"], f"came from {origin}")
            run.mark("arrive.placed")
        except BaseException:
            with contextlib.suppress(OSError), locked(run.store.paths, ["host"], run.options.lock_timeout):
                execution.discard(Vm(run, record))
            raise
        common.clear(run, record["id"])
        return True, record


def _settled(record: VmRecord, token: str) -> bool:
    """Whether it is this VM, whole."""
    ours = (record.get("moving") or record.get("moved") or {}).get("token") == token
    return ours and is_made(record)


def _take_apart(run: Run, record: VmRecord, token: str) -> None:
    """What a killed run of the same move has left; anything else is in the way.

    :raises ChangeRefusedError: it is.
    """
    ours = (record.get("moving") or {}).get("token") == token
    if not ours and not record.get("bare"):
        raise ChangeRefusedError(
            f"there is a VM '{record['config']['name']}' here already", "name", "Remove it, or give it another name."
        )
    with locked(run.store.paths, ["host"], run.options.lock_timeout):
        execution.discard(Vm(run, record))


def _read(run: Run, path: str, checksum: str | None, told: Stage) -> tuple[str, Record]:
    """Unpack an archive beside where its files will be, and look at all of it."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import archive

    vm_id = str(archive.peek(path).get("id"))
    if not passport.ID_RE.fullmatch(vm_id):
        raise InputError("it is no archive of a VM on its way", "path", "Have it exported again.")
    staging = common.fresh_folder(run, vm_id, "files", None)
    limits = archive.Limits(common.room(run), MAX_FILES)
    envelope = archive.read(path, staging, limits, checksum, told)
    run.mark("arrive.read")
    about = os.path.join(staging, passport.FILE)
    if passport.FILE not in envelope.files or os.path.getsize(about) > passport.MAX_BYTES:
        raise InputError(f"the archive has no {passport.FILE}", "path", "Have it exported again.")
    found = passport.check(read_json(about), run.driver)
    if found["id"] != vm_id:
        raise InputError("the archive contradicts itself", "path", "Have it exported again.")
    _check_files(found, envelope.files, staging, run.driver(found["hypervisor"]))
    return staging, found


def _check_files(found: Record, files: t.Mapping[str, t.Any], staging: str, driver: Driver) -> None:
    """:raises InputError: the files are not those, or as large, as the passport says."""
    machine = driver.saved_files
    system = "cow.raw" if found["image_type"] == "oci" else "overlay.qcow2"
    disks = [*found.get("data_disks", ()), *found.get("detached_disks", ())]
    sizes = {f"data-{disk['name']}.raw": disk["size"] for disk in disks}
    wanted = {system, passport.FILE, *sizes}
    optional = {*driver.own_files, "cidata.img", "cidata.json", "login.json", "secret_env.json"}
    resume = found.get("resume")
    if resume:
        wanted |= {name for name, role in machine.items() if role == "state" or resume["memory"] == "copy"}
        optional |= set(machine)
        sizes.update({name: found["config"]["memory"] for name, role in machine.items() if role == "memory"})
    if system.endswith(".raw"):
        sizes[system] = found["config"]["storage"]
    problems = [f"{name} is missing" for name in sorted(wanted - set(files))]
    problems += [f"{name} does not belong to it" for name in sorted(set(files) - wanted - optional)]
    for name, info in files.items():
        if name in sizes and info.size != sizes[name]:
            problems.append(f"{name} has {info.size} bytes and not {sizes[name]}")
        if name in optional - set(machine) and info.size > SMALL:
            problems.append(f"{name} has {info.size} bytes")
    if problems:
        told = "; ".join(problems)
        raise InputError(f"the archive does not hold together: {told}", "path", "Have it exported again.")
    if system.endswith(".qcow2"):
        from ansible_collections.cocoon.microvm.plugins.module_utils._images import detect

        with open(os.path.join(staging, system), "rb") as stream:
            detect.check_qcow2(stream.read(detect.HEAD), system, overlay=True)


def _record(run: Run, found: Record, networks: t.Mapping[str, str], moving: Record) -> VmRecord:
    """The VM's record on this host, in state ``creating``: nothing is reserved yet.

    :raises CocoonError: its image, a network or the machine that it goes on with is not here.
    """
    image = run.image(found["image_digest"])
    if image is None:
        raise NotFoundError(f"its image {found['image_digest']} is not here", "path", "Bring it over first.")
    resume = found.get("resume")
    if resume:
        admit.check_machine(run, found, resume["layout"])
    config: VmConfig = found["config"].copy()
    config["network"] = networks.get(config.get("network") or "", config.get("network") or "")
    record: VmRecord = {
        **t.cast("VmRecord", {key: found[key] for key in passport.CARRIED if key in found}),
        **found["pins"],
        "config": config,
        "state": types.CREATING,
        "pid": 0,
        "storage_configs": [],
        "snapshot_ids": {},
        "updated_at": types.now(),
        "image_id": image["id"],
        "promised_disk": admit.disk_bytes(found),
        "kept_disks": [],
        "moving": moving,
    }
    record.setdefault("detached_disks", [])
    record.setdefault("owner", run.store.store_id)
    record["network_configs"] = _nics(run, found, networks)
    record["nics"] = [{"network": nic["network_name"]} for nic in record["network_configs"]]
    return record


def _nics(run: Run, found: Record, networks: t.Mapping[str, str]) -> list[NetworkConfig]:
    """The NICs as they were; of a VM that boots, with other addresses where the networks here have not the same."""
    if found.get("resume"):
        return admit.same_nics(run, found, networks)
    return admit.plan_nics(run, found, networks, admit.taken_addresses(run, found, networks))


def _place(run: Run, record: VmRecord, found: Record, staging: str) -> None:
    """Move the unpacked files to where they belong, with the owners that they have here."""
    home = run.store.paths.vm_dir(record["id"])
    saved = resuming.make_folder(Vm(run, record)) if found.get("resume") else None
    machine = run.driver(found["hypervisor"]).saved_files
    for name in sorted(os.listdir(staging)):
        if name == passport.FILE:
            continue
        path = os.path.join(staging, name)
        of_machine = name in machine
        owner = 0 if of_machine or name in ROOTS else record["uid"]
        os.chown(path, owner, owner)
        os.chmod(path, 0o400 if name in LOCKED else 0o600)
        inside = saved if saved and of_machine else home
        os.rename(path, os.path.join(inside, name))
    fsync_dir(home)
    if saved:
        fsync_dir(saved)
        record["resume"] = {**found["resume"], "disks": resuming.disk_times(Vm(run, record))}


def start(run: Run, name: str, token: str, waits: Record) -> tuple[bool, VmRecord]:
    """Start a VM that has come, and wait until it answers; whether it did not run yet, and its record.

    :param waits: the options ``wait_for wait_port wait_pattern timeout`` that are given.
    :raises CocoonError: it does not start, or does not answer.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._engine.batch import Item
    from ansible_collections.cocoon.microvm.plugins.module_utils._engine.readiness import await_guests

    item = Item({"name": name, "state": "started", **waits})
    with common.vm_locked(run, name) as found:
        record = common.known(found, name)
        if not record.get("moved"):
            common.check_token(record, token)
        item.record = record
        if not Vm(run, record).runs():
            item.job = execution.Job(run, record, {})
            execution.recover(item.job)
            execution.start(item.job, steps.Start())
            run.sync_networks()
            run.mark("arrived.started")
    await_guests(run, [item])
    if item.error is not None:
        raise item.error
    return item.job is not None, common.known(run.store.vm_record(name), name)


def settle(run: Run, name: str, token: str) -> tuple[bool, VmRecord, str]:
    """Have a VM be this host's own from now on: whether it was not yet, its record, and the receipt for the other."""
    with common.vm_locked(run, name) as found:
        record = common.known(found, name)
        proof = common.receipt(token, record["id"], "settled")
        if (record.get("moved") or {}).get("token") == token:
            return False, record, proof
        moving = common.check_token(record, token)
        common.clear(run, record["id"])  # of an arrival that was killed at its end
        record.pop("moving")
        record["moved"] = {"token": token, "from": moving["from"], "at": types.now()}
        run.store.write_vm(record)
        run.mark("settle.written")
        return True, record, proof


def discard(run: Run, name: str, token: str, vm_id: str) -> tuple[bool, str]:
    """End a VM that has come, and take it apart: whether there was anything, and the receipt for the other host.

    :raises ChangeRefusedError: it has settled here.
    """
    done = False
    with common.vm_locked(run, name) as record:
        if record is not None and record["id"] == vm_id:
            if not record.get("bare"):
                common.check_token(record, token)
            with locked(run.store.paths, ["host"], run.options.lock_timeout):
                execution.discard(Vm(run, record))
            run.sync_networks()
            done = True
        common.clear(run, vm_id)
    return done, common.receipt(token, vm_id, "discarded")
