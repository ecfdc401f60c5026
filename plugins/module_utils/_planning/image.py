# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an image task comes to: pure, from what the store has and what was asked for to steps and their diff."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ConflictError, NotFoundError, StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._records import is_damaged
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import ImageRecord


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a task says of an image in the store; ``None`` is not compared."""

    name: str
    state: str = "present"
    owner: str | None = None
    labels: dict[str, str] | None = None
    force: bool = False


class Found(t.NamedTuple):
    """The image that the task's source makes."""

    id: str
    type: str


@dataclasses.dataclass(frozen=True)
class There:
    """What the store has.

    ``current``: the record of the image that has the name, or the digest, now; ``target``: of the one that is to have
    it, and ``whole`` whether all of its files are there. ``others``: names of the current one besides that of the task;
    ``users``: who uses it.
    """

    current: ImageRecord | None = None
    target: ImageRecord | None = None
    whole: bool = False
    others: tuple[str, ...] = ()
    users: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is there, what will be, and the steps between: ``import``, ``tag``, ``update``, ``untag``, ``remove``."""

    steps: tuple[str, ...]
    before: Record
    after: Record
    current: ImageRecord | None
    image_id: str | None
    warnings: list[str] = dataclasses.field(default_factory=list)


def plan_image(wanted: Wanted, there: There, found: Found | None) -> Plan:
    """The steps to what is wanted.

    :param found: ``None`` if the task names no source, or wants the image gone.
    :raises CocoonError: it cannot be had, belongs to another owner, or is to go and is used.
    """
    if wanted.state == "absent":
        return _plan_absent(wanted, there)
    if found is None and there.current is not None and is_damaged(there.current):
        raise StateError(there.current["reason"])
    image_id = _image_id(wanted, there, found)
    steps = ["import"] if there.target is None or not there.whole else []
    if "import" in steps and found is None:
        raise NotFoundError(f"files of image '{wanted.name}' are missing", "source", "Give the file to import.")
    current, target = there.current, there.target
    moves = current is not None and current["id"] != image_id
    if current is None or moves or wanted.name not in current.get("names", []):
        steps.append("tag")
    after = _view(wanted, target, image_id, found.type if found else None)
    if target and any(after[key] != target.get(key) for key in ("owner", "labels") if key in after):
        steps.append("update")
    if moves or steps not in ([], ["tag"]):
        _check_owner(wanted, current)
    return Plan(tuple(steps), _view(wanted, current), after, target, image_id)


def _plan_absent(wanted: Wanted, there: There) -> Plan:
    current = there.current
    if current is None:
        return Plan((), {}, {}, None, None)
    _check_owner(wanted, current)
    if there.users and not there.others:
        raise ConflictError(f"image '{wanted.name}' is used by {', '.join(there.users)}", "name", "Remove them first.")
    steps = ("untag",) if there.others else ("remove",)
    return Plan(steps, _view(wanted, current), {}, current, current["id"])


def _image_id(wanted: Wanted, there: There, found: Found | None) -> str:
    if found is not None:
        return found.id
    if there.current is None:
        remedy = "Give the file to import, or docker:// and the image's name in a registry."
        raise NotFoundError(f"image '{wanted.name}' is not in the store", "source", remedy)
    return there.current["id"]


def _view(
    wanted: Wanted, record: ImageRecord | None, image_id: str | None = None, image_type: str | None = None
) -> Record:
    """The part of an image that a diff shows: *record* as it is, or with *image_id* as it will be."""
    if image_id is None and record is None:
        return {}
    present = record or {}
    view: Record = {"name": wanted.name, "id": image_id or present.get("id"), "type": image_type or present.get("type")}
    if wanted.labels is not None:
        view["labels"] = wanted.labels if image_id else present.get("labels")
    if is_damaged(record) and image_id is None:
        view["state"] = present["state"]
    if wanted.owner is not None:
        takes_over = image_id and (wanted.force or record is None or is_damaged(record))
        view["owner"] = wanted.owner if takes_over else present.get("owner")
    return view


def _check_owner(wanted: Wanted, record: ImageRecord | None) -> None:
    """With an owner given, another owner's image is changed only by force; whose a damaged one was, nobody knows.

    :raises ConflictError: it is another's.
    """
    if record is None or is_damaged(record) or wanted.owner is None or wanted.force:
        return
    if record.get("owner") != wanted.owner:
        raise ConflictError(
            f"image '{wanted.name}' belongs to '{record.get('owner')}'", "owner", "Set force to change it all the same."
        )
