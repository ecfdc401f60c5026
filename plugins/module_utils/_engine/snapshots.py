# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``cocoon_snapshot`` does: compare, then act under the locks of VM and snapshot."""

from __future__ import annotations

import dataclasses
import errno
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._engine.opening import open_run
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ChangeRefusedError, InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import snapshot as planning
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import FREEZE_AUTO, PHASE_RESTORE, is_made
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.snapshot import SnapshotPlan, Source, Wanted
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import store as snapshots
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, locked, write_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record, check_labels, check_name
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.showing import observe, view
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import SnapshotRecord, VmRecord
    from ansible_collections.cocoon.microvm.plugins.module_utils._vms.capture import What

FIELDS = ("name", "state", "vm", "description", "labels", "owner", "keep", "max_age")
# What is left of a swap that was killed, as an action.
UNFINISHED = "prune what a run that was killed has left"
VM_STATES = ("present", "absent", "restored")


def converge(
    params: t.Mapping[str, t.Any], check: bool, mark: t.Callable[[str], None] | None = None
) -> dict[str, t.Any]:
    """Make a snapshot what *params* say: ``changed actions diff snapshot vm``.

    :param params: the module's parameters.
    :param check: only plan.
    :raises CocoonError: it could not be done; nothing is left of it.
    """
    wanted = wanted_of(params)
    if wanted.state not in VM_STATES:
        from ansible_collections.cocoon.microvm.plugins.module_utils._engine import transfer

        return transfer.converge(open_run(params, check, mark), wanted, params, check)
    run = open_run(params, check, mark)
    plan, record, vm = _look(run, wanted)
    if check or not plan.actions:
        return _answer(run, plan, record, vm)
    try:
        return _answer(run, *_act(run, wanted, plan, record))
    except OSError as exc:
        from ansible_collections.cocoon.microvm.plugins.module_utils._engine.batch import explained

        raise explained(exc, f"snapshot '{wanted.name}'") from exc


def _act(
    run: Run, wanted: Wanted, plan: SnapshotPlan, record: SnapshotRecord | None
) -> tuple[SnapshotPlan, SnapshotRecord | None, VmRecord | None]:
    """Lock what the plan touches, look again, and act; if others have been at work, lock what it touches by now."""
    while True:
        names = _lock_names(wanted, plan, record)
        with locked(run.store.paths, names, run.options.lock_timeout):
            plan, record, vm = _look(run, wanted)
            if _lock_names(wanted, plan, record) <= names:
                if plan.actions:
                    record, vm = _execute(run, wanted, plan, record, vm)
                return plan, record, vm


def _lock_names(wanted: Wanted, plan: SnapshotPlan, record: SnapshotRecord | None) -> set[str]:
    vm_name = wanted.vm or (record or {}).get("vm")
    return {f"snapshot:{name}" for name in (wanted.name, *plan.pruned)} | ({f"vm:{vm_name}"} if vm_name else set())


def wanted_of(params: t.Mapping[str, t.Any]) -> Wanted:
    """:raises InputError: an option that cannot be."""
    snapshots.check_name(params["name"])
    if params.get("vm") is not None:
        check_name(params["vm"], "vm")
    for option in ("keep", "max_age"):
        if params.get(option) is not None and params["state"] != "present":
            raise InputError(f"{option} is for state: present", option, "Leave it out.")
    replace = bool(params.get("replace"))
    if replace and params["state"] != "present":
        raise InputError("is for state: present", "replace", "Leave it out.")
    disks_only = bool(params.get("disks_only"))
    if disks_only and params["state"] not in ("present", "restored", "imported"):
        raise InputError("is for state: present, restored and imported", "disks_only", "Leave it out.")
    if params.get("freeze") and params["state"] != "present":
        raise InputError("is for state: present", "freeze", "Leave it out.")
    mode = params.get("restore_mode")
    if mode and params["state"] != "restored":
        raise InputError("is for state: restored", "restore_mode", "Leave it out.")
    labels = params.get("labels")
    fields: dict[str, t.Any] = {field: params.get(field) for field in FIELDS if field != "labels"}
    texts = None if labels is None else check_labels(labels)
    force = bool(params.get("force"))
    freeze = params.get("freeze") or FREEZE_AUTO
    fields.update(disks_only=disks_only, replace=replace, force=force)
    return Wanted(**fields, labels=texts, freeze=freeze, restore_mode=mode)


def _look(run: Run, wanted: Wanted) -> tuple[SnapshotPlan, SnapshotRecord | None, VmRecord | None]:
    """The plan, with the records that it was made from."""
    plan, record, vm = _compare(run, wanted)
    if "replace" not in plan.actions and any(_left(run.store, wanted.name)):
        plan = dataclasses.replace(plan, actions=(*plan.actions, UNFINISHED))
    return plan, record, vm


def _left(store: Store, name: str) -> t.Iterator[tuple[str, str]]:
    """(entry, id) of what a swap that was killed has left behind *name*."""
    for entry in (snapshots.coming(name), snapshots.going(name)):
        left = store.index("snapshot").lookup(entry)
        if left is not None:
            yield entry, left


def _compare(run: Run, wanted: Wanted) -> tuple[SnapshotPlan, SnapshotRecord | None, VmRecord | None]:
    store = run.store
    record = snapshots.load(store, wanted.name)
    vm_name = wanted.vm or (record or {}).get("vm")
    vm = store.vm_record(vm_name) if vm_name else None
    vm = vm if is_made(vm) else None
    if vm and vm.get("moving") and wanted.state != "absent":
        raise ChangeRefusedError(
            f"VM '{vm_name}' is on its way to another host", "vm", "Let the move come to its end first."
        )
    if wanted.state == "present":
        others = _siblings(store, vm, record) if wanted.keep is not None or wanted.max_age is not None else []
        taking = record is None or record["state"] != snapshots.COMPLETE or wanted.replace
        source = _source(run, vm) if taking and vm is not None else Source()
        clones = snapshots.clone_names(store, record) if record and wanted.replace else []
        return planning.plan_present(record, vm, wanted, others, time.time(), source, clones), record, vm
    if wanted.state == "absent":
        return planning.plan_absent(record, wanted), record, vm
    able = run.driver(vm["hypervisor"]).capabilities if vm and wanted.restore_mode else None
    copies = able is None or able.ram_file
    return planning.plan_restored(record, vm, wanted, observe(vm).running, copies), record, vm


def _source(run: Run, vm: VmRecord) -> Source:
    """What the VM is as it stands."""
    if not observe(vm).running:
        return Source()
    able = run.driver(vm["hypervisor"]).capabilities
    return Source(running=True, saves=able.snapshots, freezes=able.agent)


def _siblings(store: Store, vm: VmRecord | None, record: SnapshotRecord | None) -> list[SnapshotRecord]:
    """The snapshots of a VM that are complete or half removed, with the clones that each has."""
    vm_id = vm["id"] if vm else (record or {}).get("vm_id")
    found = snapshots.all_records(store, (snapshots.COMPLETE, snapshots.REMOVING))
    own = [other for other in found if other.get("vm_id") == vm_id]
    return [{**other, "clones": snapshots.clones(store, other)} for other in own]


def _execute(
    run: Run, wanted: Wanted, plan: SnapshotPlan, record: SnapshotRecord | None, vm: VmRecord | None
) -> tuple[SnapshotRecord | None, VmRecord | None]:
    needed = record is not None and ((vm or {}).get("restore") or {}).get("snapshot_id") == record["id"]
    if vm is not None and (needed or "remove" not in plan.actions):
        _recover(run, vm)
    _clear(run, wanted.name, vm)
    if vm is not None and ("take" in plan.actions or "replace" in plan.actions):
        record = (_replace if "replace" in plan.actions else _take)(run, wanted, record, vm)
    if "update" in plan.actions and record is not None:
        record.update(t.cast("SnapshotRecord", {key: value for key, value in plan.after.items() if key != "pruned"}))
        snapshots.write(run.store, record)
    if "remove" in plan.actions and record is not None:
        _remove(run, record, vm)
        record = None
    if "restore" in plan.actions and record is not None and vm is not None:
        from ansible_collections.cocoon.microvm.plugins.module_utils._vms import restoring

        source = snapshots.disks_of(record) if wanted.disks_only else record
        restoring.restore(Vm(run, vm), source, wanted.restore_mode)
    for name in plan.pruned:
        outdated = snapshots.load(run.store, name)
        if outdated is not None:
            _remove(run, outdated, vm)
    return record, vm


def _take(run: Run, wanted: Wanted, record: SnapshotRecord | None, vm: VmRecord) -> SnapshotRecord:
    from ansible_collections.cocoon.microvm.plugins.module_utils._vms.capture import capture

    if record is not None:  # of a run that was killed
        _remove(run, record, vm)
    owner = wanted.owner or run.store.store_id
    return capture(Vm(run, vm), wanted.name, wanted.description or "", owner, wanted.labels or {}, _what(wanted))


def _what(wanted: Wanted) -> What:
    """What of a running VM goes into its snapshot."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._vms.capture import What

    return What(memory=not wanted.disks_only, freeze=wanted.freeze)


def _replace(run: Run, wanted: Wanted, old: SnapshotRecord | None, vm: VmRecord) -> SnapshotRecord:
    """Take the snapshot beside the old one of its name, which goes when the new one is whole.

    Three entries lead to the two, so that each instant leaves a name for what is to be removed, see :func:`_clear`.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._vms.capture import capture

    before = t.cast(Record, old)
    description = before.get("description", "") if wanted.description is None else wanted.description
    labels = before.get("labels", {}) if wanted.labels is None else wanted.labels
    owner = wanted.owner or before.get("owner") or run.store.store_id
    coming = snapshots.coming(wanted.name)
    record = capture(Vm(run, vm), wanted.name, description, owner, labels, _what(wanted), coming)
    index = run.store.index("snapshot")
    index.reserve(snapshots.going(wanted.name), before["id"])
    run.mark("replace.noted")
    write_json(index.path(wanted.name), {"name": wanted.name, "id": record["id"]})
    run.mark("replace.done")
    _clear(run, wanted.name, vm)
    return record


def _clear(run: Run, name: str, vm: VmRecord | None) -> None:
    """Let go of what a swap leaves behind *name*: the entries, and the snapshot that does not have the name."""
    index = run.store.index("snapshot")
    for entry, left in list(_left(run.store, name)):
        record = snapshots.load(run.store, entry)
        if index.lookup(name) != left and record is not None:
            _remove(run, {**record, "name": entry}, vm)
        else:
            index.release(entry, left)
        run.mark("replace.cleared")


def _recover(run: Run, vm: VmRecord) -> None:
    """Finish what a killed run began with the VM."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._engine import steps

    job = steps.Job(run, vm, {})
    steps.recover(job)
    if vm.get("phase") == PHASE_RESTORE:
        steps.finish_restore(job)


def _remove(run: Run, record: SnapshotRecord, vm: VmRecord | None) -> None:
    """Take a snapshot away. Its clones have links of their own to what they use of it."""
    try:
        _take_away(run, record, vm)
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        snapshots.make_room(run.store, record)  # so that the rest can be written down
        _take_away(run, record, vm)


def _take_away(run: Run, record: SnapshotRecord, vm: VmRecord | None) -> None:
    if vm is not None and record["id"] in (vm.get("snapshot_ids") or {}):  # first: nobody looks for it there later
        others = {key: value for key, value in vm["snapshot_ids"].items() if key != record["id"]}
        run.store.write_vm({**vm, "snapshot_ids": others})
        vm["snapshot_ids"] = others
        run.mark("snapshot.unlisted")
    snapshots.discard(run.store, record)
    run.mark("snapshot.removed")


def _answer(run: Run, plan: SnapshotPlan, record: SnapshotRecord | None, vm: VmRecord | None) -> dict[str, t.Any]:
    complete = record if record and record.get("state") == snapshots.COMPLETE else None
    return {
        "changed": bool(plan.actions),
        "actions": list(plan.actions),
        "diff": plan.diff,
        "snapshot": snapshots.shown(run.store, complete) if complete else None,
        "vm": view(vm, run.store.paths),
    }
