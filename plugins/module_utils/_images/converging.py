# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``cocoon_image`` does: compare, then act.

The comparison reads small files only; what it finds gives ``changed``, the diff and the steps alike, so check mode
and a real run cannot differ. Locks are always taken in the order name, image, blob.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths, closed_directories, closed_words
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    CocoonError,
    ConflictError,
    InputError,
    NotFoundError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._images import listing, source
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._images.examining import examined, is_whole
from ansible_collections.cocoon.microvm.plugins.module_utils._images.wanted import Wanted, validate
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import image as planning
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.image import Plan
from ansible_collections.cocoon.microvm.plugins.module_utils._records import is_damaged
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, locked, write_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record, now

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import ImageRecord


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a module run; ``image`` is ``None`` where there is (or in check mode would be) none yet.

    ``expected`` is the image that the name would lead to after a run in check mode, as far as that is known.
    """

    changed: bool
    actions: list[str]
    image: Record | None
    diff: dict[str, Record]
    warnings: list[str]
    expected: ImageRecord | None = None


class Foreseen(t.NamedTuple):
    """In check mode, what a run would have done by then: ids of users that are gone, and images by new names."""

    gone: t.Container[str] = ()
    names: t.Mapping[str, ImageRecord | None] = {}


NOTHING = Foreseen()


def converge(paths: Paths, wanted: Wanted, check_mode: bool, foreseen: Foreseen = NOTHING) -> Outcome:
    """Make it so, or in check mode say what would be done, when *foreseen* is so.

    :raises CocoonError: nothing half-made is left then.
    :raises Deferred: it takes more than ``wanted.progress`` is for; nothing was done.
    """
    validate(wanted)
    if check_mode or wanted.state == "absent":
        store = Store.load(paths)
    else:
        store = Store.open(paths)
        images.make_directories(paths)
    with _blamed(wanted), examined(paths, store, wanted, check_mode) as sources:
        return _carry_out(paths, store, wanted, sources, check_mode, foreseen)


@contextlib.contextmanager
def _blamed(wanted: Wanted) -> t.Iterator[None]:
    """Errors blame the option that was given: what is ``source`` to all below may have been said by the name alone."""
    try:
        yield
    except CocoonError as exc:
        if exc.option == "source" and wanted.source is None and source.registry_reference(wanted.name, None):
            exc.option = "name"
        raise


def _check_passable(paths: Paths) -> None:
    """Tools read what they are to look at as users without rights, and so do VMs: they must get there.

    :raises InputError: a folder above the store is closed to them.
    """
    directory = closed_directories(paths).get("root_dir")
    if directory:
        problem, remedy = closed_words("it", directory)
        raise InputError(problem, "root_dir", remedy)


def _carry_out(
    paths: Paths,
    store: Store | None,
    wanted: Wanted,
    sources: source.Sources | None,
    check_mode: bool,
    foreseen: Foreseen,
) -> Outcome:
    """Compare and act, while what *sources* names is there."""
    plan = make_plan(store, wanted, sources, foreseen)
    if "import" in plan.steps:
        _check_passable(paths)
    if check_mode or store is None:
        if "import" in plan.steps and sources:
            from ansible_collections.cocoon.microvm.plugins.module_utils._images import importer

            plan = dataclasses.replace(plan, warnings=importer.rehearse(sources))
        image = plan.current if store and plan.current and plan.current["id"] == plan.image_id else None
        outcome = _outcome(store, plan, image if wanted.state == "present" else None)
        return dataclasses.replace(outcome, expected=expected(plan) if wanted.state == "present" else None)
    if "import" in plan.steps and sources and wanted.progress.most is not None:
        wanted.progress.expect(sources.main.weight())
    _housekeeping(store, plan.image_id if plan.steps else None, wanted.lock_timeout)
    if plan.steps:
        plan = _execute(store, wanted, sources)
    return _outcome(store, plan, images.resolve(store, wanted.name) if wanted.state == "present" else None)


def make_plan(
    store: Store | None, wanted: Wanted, sources: source.Sources | None, foreseen: Foreseen = NOTHING
) -> Plan:
    """Compare what is in the store with what is wanted. Reads records; writes nothing."""
    found = planning.Found(sources.image_id, sources.type) if sources else None
    there = planning.There() if store is None else _look(store, wanted, found, foreseen)
    return planning.plan_image(wanted, there, found)


def _look(store: Store, wanted: Wanted, found: planning.Found | None, foreseen: Foreseen) -> planning.There:
    """What the planner has to know of the store."""
    current = images.find(store, wanted.name)
    if wanted.state == "absent":
        if current is None:
            return planning.There()
        by_digest = images.DIGEST_RE.match(wanted.name)
        names = [] if by_digest else images.current_names(store, current)
        names += [name for name, image in foreseen.names.items() if image and image["id"] == current["id"]]
        return planning.There(
            current,
            others=tuple(name for name in names if name != wanted.name),
            users=tuple(
                images.describe_user(store, user)
                for user in images.users(store, current["id"])
                if user not in foreseen.gone
            ),
        )
    target = images.seen(store, found.id) if found else current
    return planning.There(current, target, target is not None and is_whole(store, target))


def _outcome(store: Store | None, plan: Plan, image: ImageRecord | None) -> Outcome:
    shown = listing.public(store, image) if store and image else None
    diff = {"before": plan.before, "after": plan.after}
    return Outcome(bool(plan.steps), list(plan.steps), shown, diff, plan.warnings)


def expected(plan: Plan) -> ImageRecord | None:
    """The image that a plan comes to. Of one that is not in the store yet only the digest and the kind are known."""
    if "import" not in plan.steps or plan.image_id is None:
        return plan.current
    return unseen(plan.image_id, plan.after["type"])


def unseen(image_id: str, image_type: str = "oci") -> ImageRecord:
    """An image that is still to come, for a plan: nothing is refused for what is in it, as nobody knows that yet."""
    disk = {"virtual_size": 0, "firmware": None} if image_type == "cloudimg" else None
    foreseen = {
        "id": image_id,
        "digest": image_id,
        "type": image_type,
        "layers": [],
        "boot": None if disk else {"kernel_path": "unknown", "initrd_path": "unknown"},
        "disk": disk,
        "features": ["user", "password", "ssh_keys"],
        "unseen": True,
    }
    return t.cast("ImageRecord", foreseen)


def _housekeeping(store: Store, image_id: str | None, timeout: float) -> None:
    """Clean up after runs that were killed; *image_id* itself is about to be seen to, and may go on from there."""
    for name in ("staging", "pending"):
        with contextlib.suppress(FileNotFoundError):
            if os.listdir(images.directory(store.paths, name)):
                break
    else:
        return
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import references, staging

    staging.sweep(store, timeout)
    references.sweep(store, image_id)


def _execute(store: Store, wanted: Wanted, sources: source.Sources | None) -> Plan:
    """Lock, compare again, act."""
    if wanted.state == "absent":
        return _remove(store, wanted)
    from ansible_collections.cocoon.microvm.plugins.module_utils._images.staging import locked_patiently

    with locked_patiently(store, [f"image:{wanted.name}"], wanted.lock_timeout):
        old = store.index("image").lookup(wanted.name)
        plan = make_plan(store, wanted, sources)
        if plan.image_id and plan.steps:
            with locked_patiently(store, [images.lock_name(plan.image_id)], wanted.lock_timeout):
                plan = make_plan(store, wanted, sources)
                plan = dataclasses.replace(plan, warnings=_make_present(store, wanted, sources, plan, old))
        if old and old != plan.image_id:
            _supersede(store, wanted, old)
    return plan


def _make_present(
    store: Store, wanted: Wanted, sources: source.Sources | None, plan: Plan, old: str | None
) -> list[str]:
    """Carry out a plan for ``present``; warnings. Under the locks of the name and the image.

    The record goes before the name, and the note of what is pending around both: killed anywhere, the next run finds
    either a whole image or a note.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import importer, references

    image_id = t.cast(str, plan.image_id)
    warnings: list[str] = []
    try:
        record = plan.current
        references.note(store, image_id, [])
        if "import" in plan.steps and sources:
            record, warnings = _imported(store, sources, record or {}, wanted)
        if record is None:
            raise NotFoundError(f"image '{wanted.name}' was removed meanwhile", "name", "Run the task again.")
        given = {key: plan.after[key] for key in ("owner", "labels") if key in plan.after}
        record.update(t.cast("ImageRecord", {**given, "updated_at": now()}))
        record["name"] = record["name"] or wanted.name
        record["names"] = sorted({*record["names"], wanted.name})
        write_json(images.record_path(store.paths, image_id), record)
        if old != image_id:
            if old:
                references.note(store, old, [])
            write_json(store.index("image").path(wanted.name), {"name": wanted.name, "id": image_id})
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise importer.no_space(store) from exc
        raise
    finally:
        references.settle(store, image_id, wanted.lock_timeout)
    return warnings


def _imported(
    store: Store, sources: source.Sources, earlier: ImageRecord, wanted: Wanted
) -> tuple[ImageRecord, list[str]]:
    """A new record and warnings; of an image that is only repaired, with what users gave it."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import importer

    limit = wanted.limit or source.MAX_SIZE
    record, warnings = importer.import_image(store, sources, wanted.lock_timeout, wanted.progress, limit)
    kept = ("name", "names", "created_at", "owner", "labels")
    record.update(t.cast("ImageRecord", {key: value for key, value in earlier.items() if key in kept}))
    return record, warnings


def _supersede(store: Store, wanted: Wanted, old: str) -> None:
    """The name has moved away from image *old*: without another name or a user it goes."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import references

    with locked(store.paths, [images.lock_name(old)], wanted.lock_timeout):
        _forget_name(store, old, wanted.name)
        references.settle(store, old, wanted.lock_timeout)


def _forget_name(store: Store, image_id: str, name: str) -> None:
    record = images.seen(store, image_id)
    if record and not is_damaged(record) and name in record["names"]:
        record["names"] = [other for other in record["names"] if other != name]
        if record["name"] == name:
            record["name"] = record["names"][0] if record["names"] else ""
        record["updated_at"] = now()
        write_json(images.record_path(store.paths, image_id), record)


def _remove(store: Store, wanted: Wanted) -> Plan:
    """Take a name away, and the image with its last one."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import references

    first = make_plan(store, wanted, None)
    names = {wanted.name}
    if first.current and images.DIGEST_RE.match(wanted.name):
        names = set(images.current_names(store, first.current))
    with locked(store.paths, [f"image:{name}" for name in names], wanted.lock_timeout):
        plan = make_plan(store, wanted, None)
        if plan.current is None or plan.image_id is None:
            return plan
        with locked(store.paths, [images.lock_name(plan.image_id)], wanted.lock_timeout):
            plan = make_plan(store, wanted, None)
            if plan.current is None or plan.image_id is None:
                return plan
            if "remove" in plan.steps and set(images.current_names(store, plan.current)) - names:
                raise ConflictError(f"image {plan.image_id} got another name meanwhile", "name", "Run the task again.")
            references.note(store, plan.image_id, references.blobs_of(store, plan.current))
            for name in names:
                store.index("image").release(name, plan.image_id)
            if "remove" in plan.steps:
                references.drop(store, plan.image_id, wanted.lock_timeout)
            else:
                _forget_name(store, plan.image_id, wanted.name)
                references.settle(store, plan.image_id, wanted.lock_timeout)
    return plan


def remove(store: Store, wanted: Wanted, names: frozenset[str]) -> bool:
    """Remove an image by its digest if nobody uses it and it has no names but *names*; whether it went.

    :raises ConflictError: somebody uses it.
    """
    record = images.find(store, wanted.name)
    if record is None or not names.issuperset(images.current_names(store, record)):
        return False
    return "remove" in _remove(store, wanted).steps
