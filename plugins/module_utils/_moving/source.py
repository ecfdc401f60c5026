# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host that a VM leaves: it stops there with its memory saved, waits, and goes for good or goes on."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._engine import steps as execution
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ChangeRefusedError, StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._moving import common, passport
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import steps
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import PHASE_REMOVE, is_made
from ansible_collections.cocoon.microvm.plugins.module_utils._progress import Stage
from ansible_collections.cocoon.microvm.plugins.module_utils._state import locked, write_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import boot, cidata, container, guest_data, resuming
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.saving import writable_disks
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.showing import observe
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import VmRecord

BLOCK = 512


def describe(run: Run, name: str) -> Record | None:
    """The passport of a VM as it is now, with what it takes: ``allocated runs cpu_vendor``.

    ``None`` where there is no such VM, or no more of it than its removal has left when it had settled elsewhere.

    :raises CocoonError: it cannot be moved as it is.
    """
    record = run.store.vm_record(name)
    if record is None:
        return None
    moving = record.get("moving") or {}
    if record.get("bare") or (moving and record.get("phase") == PHASE_REMOVE):
        return None
    _check_movable(record)
    runs = observe(record).running or (moving.get("was") == types.RUNNING)
    return {**_issued(run, record), "allocated": _allocated(run, record), "runs": runs}


def _issued(run: Run, record: VmRecord) -> Record:
    """A VM that belongs to this store, because nobody said otherwise, is to belong to the other one."""
    found = {**passport.issue(record, run.driver(record["hypervisor"])), **_surroundings(run, record)}
    if found.get("owner") == run.store.store_id:
        found.pop("owner")
    return found


def _check_movable(record: VmRecord) -> None:
    if not is_made(record):
        raise ChangeRefusedError(
            f"VM '{record['config']['name']}' is half made or half removed", "name", "Converge it first, or remove it."
        )
    if record["state"] == types.PAUSED and observe(record).running:
        raise ChangeRefusedError(
            f"VM '{record['config']['name']}' is paused", "name", "Let it run (state: started), or stop it."
        )


def _surroundings(run: Run, record: VmRecord) -> Record:
    """What a saved machine goes on with and does not carry."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._vms.capture import cpu_vendor

    return {"cpu_vendor": cpu_vendor(), "version": run.driver(record["hypervisor"]).version()}


def _allocated(run: Run, record: VmRecord) -> int:
    files = _files(run, record).values()
    return sum(os.lstat(path).st_blocks * BLOCK for path in files)


def _files(run: Run, record: VmRecord) -> dict[str, str]:
    """All files that go along, by the name that they have on their way."""
    paths, vm_id = run.store.paths, record["id"]
    home = paths.vm_dir(vm_id)
    found = [*writable_disks(Vm(run, record)), cidata.seed_path(paths, vm_id)]
    found += [boot.data_disk(vm_id, disk["name"], paths) for disk in record["detached_disks"]]
    found += [os.path.join(home, name) for name in (guest_data.LOGIN_FILE, container.SECRETS_FILE)]
    if record.get("resume"):
        saved = run.driver(record["hypervisor"]).saved_files
        found += [os.path.join(resuming.folder(Vm(run, record)), name) for name in saved]
    return {os.path.basename(path): path for path in found if os.path.lexists(path)}


def depart(run: Run, name: str, to: str, memory: bool, stop_timeout: float | None) -> tuple[bool, VmRecord]:
    """Stop a VM, its memory saved if *memory*, and hold it for the host *to*: whether anything was done, its record.

    :param stop_timeout: seconds that its guest has to shut down; ``None`` for what guests of its kind have.

    It is written down first that the VM is on its way: from then on nothing else starts or changes it here.

    :raises CocoonError: it cannot be stopped like that; it goes on as it was.
    """
    with common.vm_locked(run, name) as found:
        record = common.known(found, name)
        _check_movable(record)
        moving = record.get("moving")
        if moving and moving.get("to") != to:
            raise ChangeRefusedError(
                f"VM '{name}' is on its way {_whither(moving)}", "host", "Finish that move, or take it back, first."
            )
        job = execution.Job(run, record, {"stop_timeout": stop_timeout})
        execution.recover(job)
        runs = observe(record).running
        if moving and not runs:
            return False, record
        if not moving:
            was = types.RUNNING if runs else record["state"]
            record["moving"] = {"token": types.new_id(), "to": to, "was": was, "since": types.now()}
            run.store.write_vm(record)
            run.mark("depart.marked")
        if runs:
            _stand_still(job, memory)
        run.mark("depart.stopped")
        return True, record


def _whither(moving: Record) -> str:
    return f"to {moving['to']}" if "to" in moving else f"here from {moving['from']}"


def _stand_still(job: execution.Job, memory: bool) -> None:
    try:
        if memory:
            execution.hibernate(job, steps.Hibernate())
        else:
            execution.stop(job, steps.Stop())
    except Exception:
        job.known.pop("moving", None)
        job.run.store.write_vm(job.known)
        raise


def export(run: Run, name: str, token: str | None, reader: int | None, told: Stage) -> Record:
    """Write the VM into an archive, for *reader* to take: ``path digest size``.

    :raises CocoonError: it is not on its way, or runs.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import archive

    with common.vm_locked(run, name) as found:
        record = common.known(found, name)
        common.check_token(record, token)
        if observe(record).running:
            raise StateError(f"VM '{name}' runs, and cannot be written down", "state", "Have it depart first.")
        files = _files(run, record)
        staging = common.fresh_folder(run, record["id"], "files", None)
        for base, path in files.items():
            os.link(path, os.path.join(staging, base), follow_symlinks=False)
        write_json(os.path.join(staging, passport.FILE), _issued(run, record), locked=True)
        path = os.path.join(common.fresh_folder(run, record["id"], "out", reader), common.ARCHIVE)
        run.mark("export.linked")
        names = [passport.FILE, *sorted(files)]
        written = archive.write(path, {"name": name, "id": record["id"]}, staging, names, common.compression(), told)
        if reader is not None:
            os.chown(path, reader, -1)
        run.mark("export.written")
    return {"path": path, "digest": written.digest, "size": written.size}


def leave(run: Run, name: str, token: str | None, given: str | None) -> bool:
    """Remove a VM that has settled elsewhere, with all its disks; whether it was there.

    :param given: what the other host said when the VM had settled there.
    :raises ChangeRefusedError: nothing says that it has settled.
    """
    with common.vm_locked(run, name) as record:
        if record is None or (not record.get("bare") and "to" not in (record.get("moving") or {})):
            return False
        if record.get("bare"):  # a removal that was cut short has left its name
            with locked(run.store.paths, ["host"], run.options.lock_timeout):
                execution.discard(Vm(run, record))
            return True
        common.check_token(record, token)
        if given != common.receipt(token or "", record["id"], "settled"):
            raise ChangeRefusedError(
                f"nothing says that VM '{name}' has settled on {record['moving']['to']}",
                "receipt",
                "Give what the step settled returned there.",
            )
        common.clear(run, record["id"])
        run.mark("leave.cleared")
        execution.remove(execution.Job(run, record, {}), steps.Remove(delete_data_disks=True))
        return True


def go_back(run: Run, name: str, token: str | None, given: str | None, force: bool) -> tuple[bool, VmRecord | None]:
    """Let a VM go on here that was to move; whether anything was done, and its record.

    :param given: what the other host said when it had discarded the VM; *force* does without.
    :raises CocoonError: nothing says that it is gone there, or it does not start.
    """
    with common.vm_locked(run, name) as record:
        moving = (record or {}).get("moving")
        if record is None or not moving or "to" not in moving:
            return False, record
        if token is None and force:
            token = moving["token"]
        common.check_token(record, token)
        if not force and given != common.receipt(token or "", record["id"], "discarded"):
            raise ChangeRefusedError(
                f"nothing says that VM '{name}' does not run on {moving['to']}",
                "receipt",
                "Give what the step discarded returned there; if that host is gone for good, set force: true.",
            )
        common.clear(run, record["id"])
        job = execution.Job(run, record, {})
        execution.recover(job)
        if moving["was"] == types.RUNNING and not observe(record).running:
            execution.start(job, steps.Start())
            run.mark("return.started")
        record.pop("moving")
        run.store.write_vm(record)
        return True, record
