# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a change to an existing VM means: the one comparison behind steps, ``changed`` and diff.

docs/changes.md is this file in words; a test holds the two together.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, MissingImageError, NotFoundError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.defaults import DEFAULT_FSTYPE
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import (
    LIVE,
    PUBLIC,
    REBUILD,
    REFUSED,
    RELOGIN,
    RESTART,
    SECRETS,
    Change,
    Definition,
    same_login,
    secret_digests,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import (
    DEFAULTS,
    OPTIONS,
    PLAIN,
    SIZES,
    Option,
    value_of,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.settings import asked
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.steps import (
    AddDisk,
    DropDisk,
    GrowDataDisk,
    GrowSystemDisk,
    SetBalloon,
    SetCpus,
    SetDiskLimits,
    SetNics,
    SetPorts,
    SetSecretEnv,
    Step,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._types import format_size

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import ImageRecord, VmRecord

# Of a record from before public login data was kept in clear.
UNREADABLE = "(not readable: only its digest is recorded)"
STORAGE_GROWS, STORAGE_SHRINKS = RESTART, REFUSED
IMAGE_DIFFERS = REBUILD
NICS_DIFFER = RESTART
PORTS_DIFFER = LIVE
SECRET_ENV_DIFFERS = RESTART


@dataclasses.dataclass(frozen=True)
class Difference:
    """One option that differs, and what makes it so.

    :param how: live, restart, rebuild or refused, for a running VM.
    :param capability: the driver's attribute that makes it live instead.
    :param values: options that the record is to have (a ``configure`` step).
    :param steps: what to do besides.
    :param online: done instead of *values* if the VM runs throughout.
    :param reason: why it is refused, and the remedy; of a change that is not, another way than a restart.
    :param pulls: the data disk that goes, which a guest may be using: without leave only over a restart.
    :param told: the guest has to be told at once, and to answer.
    :param login: login data that the guest is told of. Where that may not be, it stays as it is, and the rest goes on.
    """

    option: str
    before: t.Any
    after: t.Any
    how: str
    capability: str | None = None
    values: Definition = dataclasses.field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    online: Step | None = None
    reason: tuple[str, str] = ("", "")
    pulls: str | None = None
    told: bool = False
    login: Definition = dataclasses.field(default_factory=dict)

    def change(self, how: str) -> Change:
        return Change(self.option, self.before, self.after, how)


def shown(option: str, value: t.Any) -> t.Any:
    """*value* as a diff shows it."""
    if option in SECRETS and option not in PUBLIC and value is not None:
        return "(hidden)"
    if option == "secret_env" and value:
        return dict.fromkeys(value, "(hidden)")
    if option in SIZES and isinstance(value, int):
        return format_size(value)
    if option == "data_disks":
        return [{**disk_fields(disk), "size": format_size(disk["size"])} for disk in value]
    return value


def disk_fields(disk: t.Mapping[str, t.Any]) -> Definition:
    """What the record says of a data disk."""
    limits = {"limits": disk["limits"]} if disk.get("limits") else {}
    return {**{key: disk[key] for key in ("name", "size", "fstype")}, **limits}


def current(record: VmRecord) -> Definition:
    """A record as a definition: every option it knows, in the definition's form (balloon ``None`` = off)."""
    found = {row.name: _recorded(record, row) for row in OPTIONS.values() if row.at}
    return {option: value for option, value in found.items() if value is not None}


def _recorded(record: VmRecord, row: Option) -> t.Any:
    """What a record says of one option; ``None`` if it says nothing."""
    value = value_of(record, row.name)
    # The Go engine omits what is empty, and 0 is its default.
    return None if row.at == "config" and value is not False and value in ("", 0) else value


def current_nics(record: VmRecord) -> list[Definition]:
    """``[{network, mac, ip}]`` of the NICs that a VM has, with what was asked for of its routes."""
    return [
        {
            "network": nic.get("network_name"),
            "mac": nic.get("mac"),
            "ip": (nic.get("network") or {}).get("ip"),
            **asked(nic),
        }
        for nic in record.get("network_configs") or ()
    ]


def undo(record: VmRecord) -> Definition:
    """What a definition has to say for a VM to be as it is now, beside what a snapshot of it puts back."""
    names = (
        "network",
        "ports",
        "labels",
        "memory_backing",
        "limits",
        *(("hostname",) if record["image_type"] == "oci" else ()),
    )
    have = current(record)
    nics = [{key: value for key, value in nic.items() if value is not None} for nic in current_nics(record)]
    return {**{name: have[name] for name in names if name in have}, "nics": nics}


def wanted_nics(record: VmRecord | None, definition: Definition) -> list[Definition]:
    """The NICs a VM should have, ``[{network, mac, ip}]``; ``None`` for a MAC or address still to be chosen.

    By position: a NIC that stays keeps its MAC, and on the same network its address. What an entry does not say of
    its routes is as it is by default. Without ``nics`` a network gives one NIC at creation, and moves the NICs of
    the former network later.

    :raises InputError: a NIC without a network.
    """
    have = current_nics(record) if record else []
    before = record.get("config", {}).get("network") if record else None
    network = definition.get("network")
    if "nics" not in definition:
        if not network or network == before:
            return have
        if not have and not before:
            return [{"network": network, "mac": None, "ip": None}]
        return [_moved(nic, network) if nic["network"] == before else nic for nic in have]
    wanted = []
    # What one entry of the list asks for, another one does not inherit.
    taken = {key: {nic[key] for nic in definition["nics"] if nic.get(key)} for key in ("mac", "ip")}
    for index, nic in enumerate(definition["nics"]):
        old = dict(have[index]) if index < len(have) else {}
        for key, values in taken.items():
            if old.get(key) in values and nic.get(key) != old.get(key):
                old[key] = None
        name = nic.get("network") or network or old.get("network") or before
        if not name:
            raise InputError("names no network", f"nics[{index}].network", "Name one here or in the option network.")
        kept = old.get("ip") if old.get("network") == name else None
        chosen = {"network": name, "mac": nic.get("mac") or old.get("mac"), "ip": nic.get("ip") or kept}
        wanted.append({**chosen, **asked(nic)})
    return wanted


def _moved(nic: Definition, network: str) -> Definition:
    """A NIC on another network, where it gets other addresses."""
    return {**{key: value for key, value in nic.items() if key != "ip6"}, "network": network, "ip": None}


def compare(record: VmRecord, definition: Definition) -> list[Difference]:
    """All that differs between a VM that is there and its definition, but for the image's content.

    :raises InputError: an option that a new disk or NIC needs is missing.
    """
    return [
        *_snapshot(record, definition),
        *_cpu(record, definition),
        *_scalars(record, definition),
        *_owner(record, definition),
        *_storage(record, definition),
        *_limits("limits", "", record.get("limits"), definition.get("limits")),
        *_login(record, definition),
        *_balloon(record, definition),
        *_secret_env(record, definition),
        *_reach(record, definition),
        *_data_disks(record, definition),
    ]


def _scalars(record: VmRecord, definition: Definition) -> t.Iterator[Difference]:
    for row in PLAIN:
        option = row.name
        if option not in definition or (row.auto and definition[option] == "auto"):
            continue
        before, after = _recorded(record, row), definition[option]
        before = DEFAULTS.get(option) if before is None else before
        if before != after:
            how = row.of_disk if row.of_disk and record.get("image_type") == "cloudimg" else row.how
            yield Difference(option, shown(option, before), shown(option, after), how, values={option: after})


def _cpu(record: VmRecord, definition: Definition) -> t.Iterator[Difference]:
    """More of them, up to what the running machine has room for, are live."""
    before, after = record["config"].get("cpu") or DEFAULTS["cpu"], definition.get("cpu")
    if after is None or before == after:
        return
    online = SetCpus(after) if before < after <= record.get("cpu_max", 0) else None
    capability = "live_cpus" if online else None
    yield Difference("cpu", before, after, RESTART, capability, values={"cpu": after}, online=online)


def _secret_env(record: VmRecord, definition: Definition) -> t.Iterator[Difference]:
    """By digests: of which variables a diff says that they differ, and no more."""
    after = definition.get("secret_env")
    recorded = record.get("secret_env") or {}
    have = recorded.get("digests", {})
    wanted = secret_digests(after or {}, recorded.get("salt", ""))["digests"]
    if after is None or have == wanted:
        return
    yield Difference(
        "secret_env",
        dict.fromkeys(have, "(hidden)"),
        {name: "(hidden)" if have.get(name, digest) == digest else "(changed)" for name, digest in wanted.items()},
        SECRET_ENV_DIFFERS,
        steps=(SetSecretEnv(after),),
    )


def _snapshot(record: VmRecord, definition: Definition) -> t.Iterator[Difference]:
    before, after = record.get("snapshot"), definition.get("snapshot")
    if after is not None and after != before:
        yield Difference(
            "snapshot",
            before,
            after,
            REFUSED,
            reason=("a VM is cloned when it is made", "remove the VM and create it again, or give it another name"),
        )


def _owner(record: VmRecord, definition: Definition) -> t.Iterator[Difference]:
    before, after = record.get("owner"), definition.get("owner")
    if after is None or before == after:
        return
    yield Difference(
        "owner",
        before,
        after,
        LIVE if definition.get("force") else REFUSED,
        values={"owner": after},
        reason=(f"the VM belongs to '{before}'", "set force: true to take it over"),
    )


def _storage(record: VmRecord, definition: Definition) -> t.Iterator[Difference]:
    before, after = _recorded(record, OPTIONS["storage"]) or DEFAULTS["storage"], definition.get("storage")
    if after is None or before == after:
        return
    yield Difference(
        "storage",
        shown("storage", before),
        shown("storage", after),
        STORAGE_GROWS if after > before else STORAGE_SHRINKS,
        steps=(GrowSystemDisk(after),),
        reason=("a system disk never shrinks", "remove the VM and create it again with the smaller disk"),
    )


def _limits(option: str, disk: str, before: t.Any, after: t.Any) -> t.Iterator[Difference]:
    """Of the system disk, or of the data disk *disk*."""
    if after is not None and (before or {}) != after:
        steps = (SetDiskLimits(disk, after),)
        yield Difference(option, before or {}, after, RESTART, "live_disk_limits", steps=steps)


def _login(record: VmRecord, definition: Definition) -> t.Iterator[Difference]:
    login = record.get("login") or {}
    for option in SECRETS:
        if option not in definition or same_login(login, option, definition[option]):
            continue
        if not definition[option] and option not in login.get("digests", {}):
            continue  # no keys before, an empty list now
        known = option in login.get("digests", {})
        before: t.Any = "(hidden)" if known else None
        after: t.Any = "(changed)"
        if option in PUBLIC:
            before, after = login.get("public", {}).get(option, UNREADABLE if known else None), definition[option]
        how = LIVE if definition.get("accept_login") else login_differs(record, option)
        yield Difference(option, before, after, how, login={option: definition[option]})


def login_differs(record: VmRecord, option: str) -> str:
    """How a guest that has had its first boot hears of other login data: at its next start, or never again."""
    disk = record.get("image_type") == "cloudimg" and not record["config"].get("windows")
    return RESTART if (disk or record.get("relogin")) and option in RELOGIN else REBUILD


def _balloon(record: VmRecord, definition: Definition) -> t.Iterator[Difference]:
    if "balloon" not in definition:
        return
    before, wanted = record.get("balloon"), definition["balloon"]
    after = None if wanted == "off" else wanted
    if before == after:
        return
    online = None if before is None or after is None else SetBalloon(after)
    yield Difference(
        "balloon",
        "off" if before is None else shown("balloon", before),
        "off" if after is None else shown("balloon", after),
        LIVE if online else RESTART,
        values={"balloon": after},
        online=online,
    )


def _reach(record: VmRecord, definition: Definition) -> t.Iterator[Difference]:
    """NICs and ports. Where both differ it is one change: the ports lead to the NICs that are to be."""
    nics, ports = list(_nics(record, definition)), list(_ports(record, definition))
    if any(difference.steps for difference in nics):
        ports = [dataclasses.replace(difference, steps=()) for difference in ports]
    return iter(nics + ports)


def _nics(record: VmRecord, definition: Definition) -> t.Iterator[Difference]:
    have, want = current_nics(record), wanted_nics(record, definition)
    before, after = record.get("config", {}).get("network"), definition.get("network") or None
    if have == want and not record.get("planned_nics"):  # a change that was cut short is finished
        if after and before != after:  # every NIC names a network of its own: only the default moves
            yield Difference("network", before, after, LIVE, values={"network": after})
        return
    moved = "nics" not in definition
    yield Difference(
        "network" if moved else "nics",
        (before or None) if moved else have,
        after if moved else want,
        NICS_DIFFER,
        capability="hotplug_nics",
        told=True,
        steps=(SetNics(want, after or before, definition.get("ports")),),
    )


def _ports(record: VmRecord, definition: Definition) -> t.Iterator[Difference]:
    before, after = record.get("ports") or [], definition.get("ports")
    if after is None and record.get("planned_ports"):
        after = before  # a change that was cut short is taken back
    if after is not None and (set(before) != set(after) or record.get("planned_ports")):
        yield Difference("ports", before, after, PORTS_DIFFER, steps=(SetPorts(after),))


def _data_disks(record: VmRecord, definition: Definition) -> t.Iterator[Difference]:
    if "data_disks" not in definition:
        return
    attached = {disk["name"]: disk for disk in record.get("data_disks") or ()}
    detached = {disk["name"]: disk for disk in record.get("detached_disks") or ()}
    force = bool(definition.get("force"))
    listed = {disk["name"] for disk in definition["data_disks"]}
    for name, disk in attached.items():
        if name not in listed:
            yield _detach(disk, force, None if force else name)
    for name, disk in detached.items():
        if name not in listed and force:  # dropped by a run without force, or by one that was killed
            yield _drop(disk, "detached", force)
    for index, disk in enumerate(definition["data_disks"]):
        name = disk["name"]
        if disk.get("attached") is False:
            yield from _unchangeable(attached.get(name) or detached.get(name) or disk, disk)
            if name in attached:
                yield _detach(attached[name], False, None)
        elif name in attached:
            yield from _changed_disk(attached[name], disk)
        else:
            yield added_disk(detached.get(name), disk, f"data_disks[{index}].size")


def _detach(disk: t.Mapping[str, t.Any], delete: bool, pulls: str | None) -> Difference:
    """An attached disk goes. *pulls* is its name, unless the user said that a running guest may lose it."""
    name = disk["name"]
    remedy = f"or unmount it in the guest and say so: list '{name}' with attached: false (force: true deletes it)"
    return dataclasses.replace(
        _drop(disk, "attached", delete), how=RESTART, capability="hotplug_disks", pulls=pulls, reason=("", remedy)
    )


def _drop(disk: t.Mapping[str, t.Any], before: str, delete: bool) -> Difference:
    return Difference(
        f"data_disks[{disk['name']}]",
        f"{before}, {format_size(disk['size'])}",
        "deleted" if delete else "detached",
        LIVE,
        steps=(DropDisk(disk["name"], delete),),
    )


def attached_disks(definition: Definition) -> list[tuple[str, Definition]]:
    """Those of the given data disks that are to be attached, each with how an error names its size."""
    disks = enumerate(definition.get("data_disks") or ())
    return [(f"data_disks[{index}].size", disk) for index, disk in disks if disk.get("attached") is not False]


def _unchangeable(old: t.Mapping[str, t.Any], disk: t.Mapping[str, t.Any]) -> t.Iterator[Difference]:
    """A shrink, or another file system: refused, attached or not."""
    option = f"data_disks[{disk['name']}]"
    if disk.get("size", old["size"]) < old["size"]:
        yield Difference(
            f"{option}.size",
            format_size(old["size"]),
            format_size(disk["size"]),
            REFUSED,
            reason=("a data disk never shrinks", "give it another name, or at least its present size"),
        )
    fstype = old.get("fstype", DEFAULT_FSTYPE)
    if disk.get("fstype", fstype) != fstype:
        yield Difference(
            f"{option}.fstype",
            fstype,
            disk["fstype"],
            REFUSED,
            reason=("a data disk is formatted once", "use another disk name, or leave fstype as it is"),
        )


def _changed_disk(old: t.Mapping[str, t.Any], disk: t.Mapping[str, t.Any]) -> t.Iterator[Difference]:
    yield from _unchangeable(old, disk)
    size: int = disk.get("size") or old["size"]
    if size > old["size"]:
        yield Difference(
            f"data_disks[{disk['name']}].size",
            format_size(old["size"]),
            format_size(size),
            RESTART,
            "live_disk_resize",
            steps=(GrowDataDisk(disk["name"], size),),
        )
    yield from _limits(f"data_disks[{disk['name']}].limits", disk["name"], old.get("limits"), disk.get("limits"))


def added_disk(old: t.Mapping[str, t.Any] | None, disk: t.Mapping[str, t.Any], where: str) -> Difference:
    """A new disk, or one that was detached before and comes back with what it holds."""
    if old is not None:
        for refused in _unchangeable(old, disk):
            return refused
    wanted = wanted_disk(old, disk, where)
    return Difference(
        f"data_disks[{disk['name']}]",
        f"detached, {format_size(old['size'])}" if old else None,
        f"attached, {format_size(wanted['size'])}",
        RESTART,
        "hotplug_disks",
        steps=(AddDisk(wanted),),
    )


def wanted_disk(old: t.Mapping[str, t.Any] | None, disk: t.Mapping[str, t.Any], where: str) -> Definition:
    """``{name, size, fstype, reattach}``, and ``limits`` if it has any, of a disk to add.

    :param old: the kept one of that name, if any.
    :raises InputError: a new disk without a size.
    """
    size: int | None = disk.get("size") or (old["size"] if old else None)
    if not size:
        raise InputError(f"data disk '{disk['name']}' is new and has no size", where, "Give its size, such as 1G.")
    fstype = disk.get("fstype") or (old or {}).get("fstype") or DEFAULT_FSTYPE
    limits = disk["limits"] if "limits" in disk else (old or {}).get("limits")
    wanted = disk_fields({"name": disk["name"], "size": size, "fstype": fstype, "limits": limits})
    return {**wanted, "reattach": old is not None}


def compare_image(
    record: VmRecord, definition: Definition, images: t.Mapping[str, ImageRecord | None]
) -> tuple[Difference | None, str | None]:
    """(difference, warning) of ``image``: another one, or the same name with other content by now.

    :raises NotFoundError: another image is asked for that the store does not have.
    """
    name = definition.get("image")
    before, digest = record.get("config", {}).get("image"), record.get("image_digest")
    if name is None or name == digest:
        return None, None
    image = images[name]
    if image is None:
        if name == before:
            return None, None  # gone from the index; the VM holds its blobs
        # Nothing is pulled only to be told that another image means a new system disk.
        kind = MissingImageError if definition.get("recreate") else NotFoundError
        raise kind(f"there is no image '{name}'", "image", "Add it with cocoon_image first.")
    if image["digest"] == digest:
        if name == before:
            return None, None
        return Difference("image", before, name, LIVE, values={"image": name}), None
    if name != before:
        return Difference("image", before, name, IMAGE_DIFFERS), None
    if definition.get("recreate"):
        return Difference("image", f"{name} ({digest})", f"{name} ({image['digest']})", IMAGE_DIFFERS), None
    return (
        None,
        f"image '{name}' has changed since this VM was made from it; recreate: true rebuilds it from the new one",
    )
