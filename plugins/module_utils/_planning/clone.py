# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clones: what a VM made from a snapshot has from it, and what it may have otherwise."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    ChangeRefusedError,
    CocoonError,
    InputError,
    NotFoundError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.changes import added_disk, attached_disks, shown
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.defaults import DEFAULT_FSTYPE
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.fit import check_capabilities
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import (
    SECRETS,
    Context,
    Definition,
    left_disks,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import AUTO, MACHINE
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.steps import (
    GrowDataDisk,
    GrowSystemDisk,
    SetBalloon,
    Step,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._words import plainly

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import SnapshotRecord, VmRecord

FULL = "full"


def inherit(definition: Definition, snapshot: SnapshotRecord | None) -> tuple[Definition, list[Step]]:
    """The definition of the VM to create, with all that the snapshot says, and the steps that make the rest of it.

    :raises NotFoundError: there is no such snapshot.
    :raises ChangeRefusedError: what is asked for cannot be had of a clone; names every such option.
    """
    name = definition["snapshot"]
    if snapshot is None:
        raise NotFoundError(f"there is no snapshot '{name}'", "snapshot", "Take it with cocoon_snapshot first.")
    base = {option: value for option, value in definition.items() if option not in ("storage", "data_disks")}
    problems: list[CocoonError] = []
    later: list[Step] = []
    full = snapshot["kind"] == FULL
    _fixed(base, snapshot, full, problems)
    _image(base, snapshot, problems)
    for part in (_storage, _data_disks):
        later += part(base, definition, snapshot, problems)
    if full:
        later += _balloon(base, definition, snapshot, problems)
    _nics(base, definition, snapshot, full, problems)
    if problems:
        raise ChangeRefusedError(
            f"VM '{definition['name']}' cannot be cloned from snapshot '{name}': "
            + "; ".join(problem.message for problem in problems),
            ", ".join(problem.option or "" for problem in problems),
            "Leave these options out: a clone has them from its snapshot.",
        )
    return base, later


def _fixed(base: Definition, snapshot: SnapshotRecord, full: bool, problems: list[CocoonError]) -> None:
    """Options that a clone has from its snapshot, whatever else is asked for."""
    for option in (*MACHINE, *AUTO):
        have, asked = snapshot.get(option), base.get(option)
        if option == "accel" and not full:
            continue
        if asked in (None, "auto") or (not full and option in MACHINE):
            if asked is None or option in AUTO:
                base[option] = have
        elif asked != have:
            there = plainly(shown(option, have))
            problems.append(InputError(f"{option} is {there} and not {plainly(shown(option, asked))}", option))
    problems += [
        InputError(f"{option} was set when its source was made", option) for option in SECRETS if option in base
    ]


def _image(base: Definition, snapshot: SnapshotRecord, problems: list[CocoonError]) -> None:
    asked = base.get("image")
    if asked not in (None, snapshot["image"], snapshot["image_digest"]):
        problems.append(InputError(f"image is {snapshot['image']} and not {asked}", "image"))
    base["image"] = snapshot["image_digest"]


def _storage(
    base: Definition, definition: Definition, snapshot: SnapshotRecord, problems: list[CocoonError]
) -> t.Iterator[Step]:
    base["storage"] = have = snapshot["storage"]
    asked: int = definition["storage"] if "storage" in definition else have
    if asked < have:
        problems.append(InputError(f"storage is {shown('storage', have)} and does not shrink", "storage"))
    elif asked > have:
        yield GrowSystemDisk(asked)


def _data_disks(
    base: Definition, definition: Definition, snapshot: SnapshotRecord, problems: list[CocoonError]
) -> t.Iterator[Step]:
    """All disks of the snapshot come along, as large or larger; others are added."""
    have = {disk["name"]: disk for disk in snapshot["data_disks"]}
    listed = attached_disks(definition) if definition.get("data_disks") else [("", disk) for disk in have.values()]
    limits = {disk["name"]: {"limits": disk["limits"]} for _where, disk in listed if disk.get("limits")}
    base["data_disks"] = [{**disk, **limits.get(disk["name"], {})} for disk in have.values()]
    missing = sorted(set(have) - {disk["name"] for _where, disk in listed})
    if missing:
        problems.append(InputError(f"data_disks has to attach {', '.join(missing)} of the snapshot", "data_disks"))
    for where, disk in listed:
        old = have.get(disk["name"])
        if old is None:
            yield added_disk(None, disk, where).steps[0]
            continue
        size = disk.get("size") or old["size"]
        if size < old["size"] or disk.get("fstype", old.get("fstype", DEFAULT_FSTYPE)) != old["fstype"]:
            where = f"data_disks[{disk['name']}]"
            problems.append(InputError(f"{where} is {shown('storage', old['size'])} of {old['fstype']}", where))
        elif size > old["size"]:
            yield GrowDataDisk(disk["name"], size)


def _balloon(
    base: Definition, definition: Definition, snapshot: SnapshotRecord, problems: list[CocoonError]
) -> t.Iterator[Step]:
    have, asked = snapshot.get("balloon"), definition.get("balloon")
    base["balloon"] = "off" if have is None else have
    if asked in (None, base["balloon"]):
        return
    if have is None or asked == "off":
        problems.append(InputError(f"balloon is {shown('balloon', have or 'off')}", "balloon"))
    else:
        yield SetBalloon(asked)


def check_kept(record: VmRecord | None, snapshot: SnapshotRecord) -> None:
    """Data disks that were kept when a VM of that name was removed are not overwritten by a snapshot's.

    :raises ChangeRefusedError: both have one of the same name.
    """
    both = sorted(left_disks(record).keys() & {disk["name"] for disk in snapshot["data_disks"]})
    if both:
        raise ChangeRefusedError(
            f"{', '.join(both)} of an earlier VM of that name would be overwritten by the snapshot's",
            "name",
            "Give the clone another name, or delete the kept disks: state: absent with force: true.",
        )


def _nics(
    base: Definition, definition: Definition, snapshot: SnapshotRecord, full: bool, problems: list[CocoonError]
) -> None:
    """As many NICs as the source had, on its networks unless told otherwise; with addresses of their own."""
    networks = snapshot["nic_networks"]
    if "nics" not in definition:
        moved = definition.get("network") or snapshot["network"]
        base["nics"] = [{"network": moved if name == snapshot["network"] else name} for name in networks]
    elif full and len(definition["nics"]) != len(networks):
        problems.append(InputError(f"it has {len(networks)} NICs and not {len(definition['nics'])}", "nics"))
    base.setdefault("network", snapshot["network"] or None)
    if base["network"] is None:
        del base["network"]


def marked(wanted: Definition, snapshot: SnapshotRecord | None, context: Context) -> Definition:
    """What is wanted, with where it comes from.

    :raises UnsupportedError: the driver cannot go on from a saved state.
    :raises InputError: a network has another MTU than the source's, which its guest goes on with.
    """
    if snapshot is None:
        return wanted
    if snapshot["kind"] == FULL:
        check_capabilities(wanted["hypervisor"], {"snapshot": "snapshots"}, context)
        for index, (nic, before) in enumerate(zip(wanted["nics"], snapshot["nic_configs"])):
            network = context.networks[nic["network"]] or {}
            mtu = network.get("mtu") or 0
            if mtu != before["mtu"] and not network.get("conflist"):  # of which the start can tell
                raise InputError(
                    f"network '{nic['network']}' has an MTU of {mtu or 'default'}, and the snapshot's NIC one of"
                    f" {before['mtu'] or 'default'}",
                    f"nics[{index}].network",
                    "Clone onto a network with the same MTU.",
                )
    return {**wanted, "image": snapshot["image"], "snapshot": snapshot["name"], "snapshot_id": snapshot["id"]}
