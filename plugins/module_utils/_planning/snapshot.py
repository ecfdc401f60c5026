# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a snapshot task comes to: pure, from records and what was asked for to actions and their diff."""

from __future__ import annotations

import calendar
import dataclasses
import re
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    ChangeRefusedError,
    InputError,
    NotFoundError,
    StateError,
    UnsupportedError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import (
    FREEZE_AUTO,
    FREEZE_REQUIRED,
    RESTORE_COPY,
    RESTORE_ON_DEMAND,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import OPTIONS
from ansible_collections.cocoon.microvm.plugins.module_utils._types import ERROR, PAUSED, Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import SnapshotRecord, VmRecord

COMPLETE = "complete"
DISKS = "disks"
_AGE_RE = re.compile(r"^([0-9]{1,9})([smhdw])\Z")
_AGE_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a task says of one snapshot; ``None`` = not said."""

    name: str
    state: str
    vm: str | None = None
    description: str | None = None
    labels: Record | None = None
    owner: str | None = None
    keep: int | None = None
    max_age: str | None = None
    disks_only: bool = False
    replace: bool = False
    force: bool = False
    freeze: str = FREEZE_AUTO
    restore_mode: str | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """The VM that a snapshot is to be taken of.

    :param saves: its hypervisor can save it while it runs.
    :param freezes: it has a way to an agent in the guest, who may freeze file systems.
    """

    running: bool = False
    saves: bool = True
    freezes: bool = True


@dataclasses.dataclass(frozen=True)
class SnapshotPlan:
    """:param actions: of ``take replace update remove restore`` and ``prune <name>``, in their order."""

    actions: tuple[str, ...] = ()
    before: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    after: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    pruned: tuple[str, ...] = ()

    @property
    def diff(self) -> Record:
        return {"before": dict(self.before), "after": dict(self.after)}


def seconds_of(text: str, option: str) -> int:
    """Seconds in ``90s``, ``30m``, ``12h``, ``7d`` or ``2w``.

    :raises InputError: anything else.
    """
    match = _AGE_RE.match(text.strip())
    if not match:
        raise InputError(f"'{text}' is not an age", option, "Write it as 90s, 30m, 12h, 7d or 2w.")
    return int(match.group(1)) * _AGE_UNITS[match.group(2)]


def age_of(record: SnapshotRecord, now: float) -> float:
    """Seconds since a snapshot was taken."""
    return now - calendar.timegm(time.strptime(record["created_at"][:19], "%Y-%m-%dT%H:%M:%S"))


def plan_present(
    record: SnapshotRecord | None,
    vm: VmRecord | None,
    wanted: Wanted,
    others: t.Sequence[SnapshotRecord],
    now: float,
    source: Source = Source(),
    clones: t.Sequence[str] = (),
) -> SnapshotPlan:
    """Take the snapshot unless it is there, or in place of it, and let go of those that are too many or too old.

    :param others: the snapshots of the same VM, complete or half removed, each with its ``clones``.
    :param source: the VM as it is now.
    :param clones: names of the VMs that were cloned from the snapshot.
    :raises CocoonError: it cannot or may not be done.
    """
    if not wanted.replace:
        check_intact(record)
    pruned = tuple(outdated(others, wanted, now, taking=record is None or record["state"] != COMPLETE))
    prunes = tuple(f"prune {name}" for name in pruned)
    if record is not None and wanted.replace and record["state"] in (COMPLETE, ERROR):
        return _plan_replaced(record, vm, wanted, source, clones, pruned)
    if record is None or record["state"] != COMPLETE:
        _check_source(vm, wanted, source)
        after: Record = {"name": wanted.name, "vm": wanted.vm, "description": wanted.description or ""}
        after.update({"disks_only": True} if wanted.disks_only else {})
        return SnapshotPlan(("take", *prunes), {}, {**after, **({"pruned": list(pruned)} if pruned else {})}, pruned)
    _check_vm(record, wanted)
    check_owner(record, wanted)
    _check_frozen(record, wanted)
    changes = _changes(record, wanted)
    before = {key: record.get(key) for key in changes}
    if pruned:
        before, changes = {**before, "pruned": []}, {**changes, "pruned": list(pruned)}
    actions = (("update",) if set(changes) - {"pruned"} else ()) + prunes
    return SnapshotPlan(actions, before, changes, pruned)


def _plan_replaced(
    record: SnapshotRecord,
    vm: VmRecord | None,
    wanted: Wanted,
    source: Source,
    clones: t.Sequence[str],
    pruned: tuple[str, ...],
) -> SnapshotPlan:
    """Take it anew, whatever there is of the name; what the task does not say stays as it was."""
    _check_source(vm, wanted, source)
    if record["state"] == COMPLETE:  # what a damaged one was of, it does not tell
        _check_vm(record, wanted)
        check_owner(record, wanted)
    if clones:
        raise ChangeRefusedError(
            f"snapshot '{wanted.name}' has clones: {', '.join(clones)}",
            "replace",
            "Remove those VMs first, or take the new one under another name.",
        )
    before: Record = {"name": wanted.name, "vm": record.get("vm"), "created_at": record.get("created_at")}
    described = record.get("description") if wanted.description is None else wanted.description
    after: Record = {"name": wanted.name, "vm": wanted.vm, "created_at": "now"}
    if described or record.get("description"):
        before["description"], after["description"] = record.get("description") or "", described or ""
    if pruned:
        before["pruned"], after["pruned"] = [], list(pruned)
    return SnapshotPlan(("replace", *(f"prune {name}" for name in pruned)), before, after, pruned)


def _check_vm(record: SnapshotRecord, wanted: Wanted) -> None:
    """:raises ChangeRefusedError: the snapshot of the name is another VM's."""
    if wanted.vm is not None and wanted.vm != record["vm"]:
        raise ChangeRefusedError(
            f"snapshot '{wanted.name}' is one of VM '{record['vm']}'", "vm", "Give this one another name."
        )


def _check_frozen(record: SnapshotRecord, wanted: Wanted) -> None:
    """:raises ChangeRefusedError: the snapshot was taken, and not of file systems that stood still as they have to."""
    still = record.get("frozen") or (record["kind"] == DISKS and record.get("frozen") is None)
    if wanted.freeze == FREEZE_REQUIRED and not still:
        how = "of file systems that did not stand still" if record["kind"] == DISKS else "with memory"
        raise ChangeRefusedError(
            f"snapshot '{record['name']}' was taken {how}", "freeze", "Take it anew with replace: true, or another one."
        )


def _check_freeze(vm: VmRecord, wanted: Wanted, source: Source) -> None:
    """:raises CocoonError: file systems are to stand still, and it is known that they cannot, or need not."""
    if wanted.freeze != FREEZE_REQUIRED or not source.running:
        return
    if not wanted.disks_only:
        raise InputError(
            "is for disks alone: what goes on from a snapshot with memory would be frozen, and needs nothing like it",
            "freeze",
            "Set disks_only: true, or leave freeze out.",
        )
    why = "it is paused" if vm.get("state") == PAUSED else f"hypervisor {vm['hypervisor']} has no way to an agent in it"
    if vm.get("state") == PAUSED or not source.freezes:
        raise UnsupportedError(
            f"the file systems in VM '{wanted.vm}' cannot be frozen: {why}",
            "freeze",
            "freeze: auto takes the disks all the same, as they would be after a power cut.",
        )


def _check_source(vm: VmRecord | None, wanted: Wanted, source: Source) -> None:
    if wanted.vm is None:
        raise InputError("is needed to take a snapshot", "vm", "Name the VM to take it of.")
    if vm is None:
        raise NotFoundError(f"there is no VM '{wanted.vm}'", "vm", "Create it with cocoon_vm first.")
    if vm.get("resume"):
        raise ChangeRefusedError(
            f"VM '{wanted.vm}' goes on from a saved state and does not run", "vm", "Start it first (state: started)."
        )
    if source.running and not source.saves:
        raise UnsupportedError(
            f"hypervisor {vm['hypervisor']} {OPTIONS['state'].lacks}",
            "vm",
            "Stop the VM first, or use another hypervisor.",
        )
    _check_freeze(vm, wanted, source)


def _changes(record: SnapshotRecord, wanted: Wanted) -> dict[str, t.Any]:
    asked = {"description": wanted.description, "labels": wanted.labels, "owner": wanted.owner}
    return {
        key: value for key, value in asked.items() if value is not None and value != (record.get(key) or type(value)())
    }


def check_intact(record: SnapshotRecord | None) -> None:
    """:raises StateError: its document cannot be read, so all that can be done is to remove it."""
    if record is not None and record["state"] == ERROR:
        raise StateError(record["reason"], "name")


def check_owner(record: SnapshotRecord, wanted: Wanted) -> None:
    """:raises ChangeRefusedError: it is another owner's, and nothing is forced."""
    if wanted.owner is not None and record.get("owner") not in (None, wanted.owner) and not wanted.force:
        raise ChangeRefusedError(
            f"snapshot '{record['name']}' belongs to '{record['owner']}'", "owner", "Set force: true to do it anyway."
        )


def outdated(others: t.Sequence[SnapshotRecord], wanted: Wanted, now: float, taking: bool) -> t.Iterator[str]:
    """Names of the snapshots of a VM that are beyond *keep* or *max_age*, oldest first; none that has clones."""
    limit = None if wanted.max_age is None else seconds_of(wanted.max_age, "max_age")
    if wanted.keep is not None and wanted.keep < 1:
        raise InputError(f"{wanted.keep} is out of range", "keep", "Keep at least one: the one that is taken.")
    if wanted.keep is not None or limit is not None:  # first what a removal that was killed has left
        yield from (other["name"] for other in others if other["state"] != COMPLETE and other["name"] != wanted.name)
    rest = sorted(
        (other for other in others if other["name"] != wanted.name and other["state"] == COMPLETE),
        key=lambda other: str(other["created_at"]),
    )
    own = 1  # this one counts, whether it is there or about to be
    too_many = 0 if wanted.keep is None else max(0, len(rest) + own - wanted.keep)
    for position, other in enumerate(rest):
        too_old = limit is not None and age_of(other, now) > limit
        if (position < too_many or too_old) and not other["clones"] and _same_owner(other, wanted):
            yield other["name"]


def _same_owner(other: SnapshotRecord, wanted: Wanted) -> bool:
    return wanted.owner is None or other.get("owner") == wanted.owner


def plan_absent(record: SnapshotRecord | None, wanted: Wanted) -> SnapshotPlan:
    """:raises ChangeRefusedError: it is somebody else's."""
    if record is None:
        return SnapshotPlan()
    check_owner(record, wanted)
    before = {"name": record["name"], "vm": record.get("vm"), "description": record.get("description") or ""}
    return SnapshotPlan(("remove",), before, {})


def _check_restore_mode(record: SnapshotRecord, wanted: Wanted, copies: bool) -> None:
    """:raises CocoonError: its memory cannot be taken up like that."""
    if wanted.restore_mode is None:
        return
    if record["kind"] == DISKS or wanted.disks_only:
        raise InputError("is for a memory, and these are disks alone", "restore_mode", "Leave it out.")
    if wanted.restore_mode == RESTORE_COPY and not copies:
        raise UnsupportedError(
            f"hypervisor {record['hypervisor']} {OPTIONS['restore_mode'].lacks}", "restore_mode", "Leave it out."
        )
    if wanted.restore_mode == RESTORE_ON_DEMAND and copies and record.get("balloon") is not None:
        raise InputError(
            "its guest's balloon punches holes into the file of memory that it goes on from",
            "restore_mode",
            "Use copy, or leave it out.",
        )


def plan_restored(
    record: SnapshotRecord | None, vm: VmRecord | None, wanted: Wanted, running: bool, copies: bool = True
) -> SnapshotPlan:
    """A VM goes back to one of its own snapshots; always a change.

    :param copies: its hypervisor has the RAM in a file, which can be a copy.
    :raises CocoonError: there is no such snapshot, or it is another VM's, or that VM has changed too much.
    """
    check_intact(record)
    if record is None or record["state"] != COMPLETE:
        raise NotFoundError(f"there is no snapshot '{wanted.name}'", "name", "Take it with cocoon_snapshot first.")
    if not record["vm"]:
        raise ChangeRefusedError(
            f"snapshot '{wanted.name}' was imported, so it is of no VM of this host",
            "name",
            "Clone it, under the name of the VM once that is removed (cocoon_vm, snapshot).",
        )
    if vm is None or vm["id"] != record["vm_id"] or wanted.vm not in (None, record["vm"]):
        raise ChangeRefusedError(
            f"snapshot '{wanted.name}' is one of VM '{record['vm']}', which is"
            f" {'not there any more' if vm is None else 'another VM'}",
            "vm",
            "A snapshot is restored into the VM that it was taken of; clone it for another (cocoon_vm, snapshot).",
        )
    if record["kind"] == "full" and not wanted.disks_only and record["hypervisor"] != vm["hypervisor"]:
        raise ChangeRefusedError(
            f"snapshot '{wanted.name}' has the memory of a machine of {record['hypervisor']}, and VM '{record['vm']}'"
            f" is one of {vm['hypervisor']} by now, which cannot take it up",
            "name",
            "Restore its disks alone with disks_only: true, or clone the snapshot.",
        )
    _check_restore_mode(record, wanted, copies)
    networks = [nic["network_name"] for nic in vm["network_configs"]]
    if record["kind"] == "full" and not wanted.disks_only and len(networks) != record["nics"]:
        raise ChangeRefusedError(
            f"VM '{record['vm']}' had {record['nics']} NICs when the snapshot was taken, and has {len(networks)}",
            "name",
            "Give it as many NICs as it had, restore its disks alone with disks_only: true, or clone the snapshot.",
        )
    after = f"snapshot '{wanted.name}' of {record['created_at']}"
    return SnapshotPlan(("restore",), {"state": "running" if running else vm["state"]}, {"state": after})
