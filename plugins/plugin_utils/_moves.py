# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which VMs a run has to move where, how each would go, and where those of a host that is to be emptied find room."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping, Sequence

Move = dict[str, t.Any]
Record = Mapping[str, t.Any]


def _name(record: Record) -> str:
    return str((record.get("config") or {}).get("name"))


def due_moves(
    defined: Mapping[str, Mapping[str, str]],
    here: str,
    definitions: Sequence[Record],
    existing: Sequence[Record],
    there: Mapping[str, Sequence[Record]],
) -> list[Move]:
    """The VMs that have to come to *here*, ``name from to network``: those that the inventory has moved, and those that
    an earlier run did not bring to the end of their way.

    :param defined: wanted states by name by hypervisor.
    :param definitions: the VMs that this run converges here.
    :param existing: the records of *here*. :param there: those of other hypervisors.
    """
    made = {_name(record) for record in existing if record.get("state") != "creating"}
    wanted = {found["name"]: found for found in definitions if defined[here].get(found["name"]) != "absent"}
    origin = {_name(record): record["moving"]["from"] for record in existing if "from" in (record.get("moving") or {})}
    for host, records in there.items():
        for record in records if host != here else ():
            name, to = _name(record), (record.get("moving") or {}).get("to")
            if to == here or (to is None and name not in made and name not in defined.get(host, {})):
                origin.setdefault(name, host)
    return [
        {"name": name, "from": host, "to": here, "network": wanted[name].get("network")}
        for name, host in sorted(origin.items())
        if name in wanted
    ]


def waits(condition: str | None) -> dict[str, t.Any]:
    """The options that wait for what a VM's last start has waited for."""
    kind, _colon, rest = (condition or "process").partition(":")
    if kind == "port":
        return {"wait_for": kind, "wait_port": int(rest)}
    return {"wait_for": kind, **({"wait_pattern": rest} if rest else {})}


def _how(passport: Record, judged: Record) -> str:
    if passport["state"] == "hibernated" and not passport.get("runs"):
        return "hibernated"
    if not passport.get("runs"):
        return "stopped"
    return "with its memory" if judged["memory"] else "shut down and booted"


def plan(
    moves: Sequence[Move], passports: Sequence[Record | None], admissions: Mapping[str, Sequence[Record]]
) -> list[Move]:
    """A row for each move: ``name from to how size problem memory image id digest waits networks``.

    :param passports: of the VMs, in the order of *moves*; ``None`` of one that has settled where it goes.
    :param admissions: what each target says of each VM.
    """
    rows = []
    for move, passport in zip(moves, passports):
        judged = {found["name"]: found for found in admissions.get(move["to"], ())}.get(move["name"])
        if passport is None or judged is None:
            rows.append({**move, "how": "is there", "problem": "", "id": "", "memory": False, "image": False})
            continue
        said = "; ".join(judged["problems"]) or (judged["reason"] if not judged["memory"] else "")
        rows.append(
            {
                **move,
                "how": _how(passport, judged),
                "size": f"{passport.get('allocated', 0) >> 20}M",
                "problem": said,
                "fits": not judged["problems"],
                "memory": judged["memory"],
                "image": judged["image"],
                "id": passport["id"],
                "digest": passport["image_digest"],
                "waits": waits((passport.get("ready") or {}).get("condition")),
                "networks": networks(move, passport),
            }
        )
    return rows


def networks(move: Move, passport: Record) -> dict[str, str]:
    """What the VM's own network is called where it goes, if that is another name."""
    before, after = passport["config"].get("network"), move.get("network")
    return {before: after} if before and after and before != after else {}


def assign(
    origin: str, passports: Sequence[Record], rooms: Mapping[str, Record], records: Sequence[Record] = ()
) -> list[Move]:
    """A host for each VM of *origin*, ``name from to``: the largest first, each to where most memory is left then.

    ``to`` is empty for one that fits nowhere.

    :param rooms: by host, ``memory disk cpus networks``.
    :param records: of the host's VMs: those that are on their way already go where an earlier run was taking them.
    """
    left = {host: dict(room) for host, room in rooms.items()}
    underway = {_name(record): record["moving"]["to"] for record in records if "to" in (record.get("moving") or {})}
    moves = [{"name": name, "from": origin, "to": to} for name, to in sorted(underway.items())]
    for passport in sorted(passports, key=lambda found: (-found["config"]["memory"], _name(found))):
        memory = passport["config"]["memory"] if passport.get("runs") else 0
        disk = passport["config"]["storage"] + sum(
            item["size"] for key in ("data_disks", "detached_disks") for item in passport.get(key) or ()
        )
        needed = {nic["network"] for nic in passport["nics"]}
        fitting = [
            host
            for host, room in left.items()
            if memory <= room["memory"]
            and disk <= room["disk"]
            and passport["config"]["cpu"] <= room["cpus"]
            and needed <= set(room["networks"])
        ]
        best = max(sorted(fitting), key=lambda host: (left[host]["memory"], left[host]["disk"]), default="")
        if best:
            left[best]["memory"] -= memory
            left[best]["disk"] -= disk
        moves.append({"name": _name(passport), "from": origin, "to": best})
    return moves


def renamed(described: Sequence[Record]) -> dict[str, str]:
    """What networks are called on the target, by the name that they have elsewhere.

    :param described: results with the ``passport`` of each VM, and its move in ``vms_item``.
    """
    found: dict[str, str] = {}
    for result in described:
        if result.get("passport"):
            found.update(networks(result["vms_item"], result["passport"]))
    return found
