# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``cocoon_image`` and ``cocoon_image_info`` do: compare, then act.

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
    StateError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._images import kinds, source
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import image as planning
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.image import Plan
from ansible_collections.cocoon.microvm.plugins.module_utils._progress import Progress
from ansible_collections.cocoon.microvm.plugins.module_utils._records import is_damaged
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, locked, write_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import ERROR, Record, check_labels, now, parse_size


@dataclasses.dataclass(frozen=True)
class Wanted(planning.Wanted):
    """The options of one image; ``None`` is not compared."""

    source: str | None = None
    kernel: str | None = None
    initrd: str | None = None
    checksum: str | None = None
    tag: str | None = None
    lock_timeout: float = 60.0
    pull: str = "missing"
    platform: str | None = None
    registry_user: str | None = None
    registry_password: str | None = dataclasses.field(default=None, repr=False)
    auth_file: str | None = None
    ca_path: str | None = None
    validate_certs: bool = True
    max_size: str | None = None
    mirror: str | None = None
    progress: Progress = dataclasses.field(default_factory=Progress, repr=False, compare=False)


def wanted_of(params: t.Mapping[str, t.Any], lock_timeout: float, progress: Progress) -> Wanted:
    """What the options of an image say, checked as far as that goes without looking at anything.

    :raises InputError: an option that can never work, alone or with the others given.
    """
    own = {"lock_timeout", "progress", "labels"}
    given = {field.name: params[field.name] for field in dataclasses.fields(Wanted) if field.name not in own}
    labels = None if params["labels"] is None else check_labels(params["labels"])
    wanted = Wanted(**given, labels=labels, lock_timeout=lock_timeout, progress=progress)
    _validate(wanted)
    return wanted


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
    expected: Record | None = None


class Foreseen(t.NamedTuple):
    """In check mode, what a run would have done by then: ids of users that are gone, and images by new names."""

    gone: t.Container[str] = ()
    names: t.Mapping[str, Record | None] = {}


NOTHING = Foreseen()


def converge(paths: Paths, wanted: Wanted, check_mode: bool, foreseen: Foreseen = NOTHING) -> Outcome:
    """Make it so, or in check mode say what would be done, when *foreseen* is so.

    :raises CocoonError: nothing half-made is left then.
    :raises Deferred: it takes more than ``wanted.progress`` is for; nothing was done.
    """
    _validate(wanted)
    if check_mode or wanted.state == "absent":
        store = Store.load(paths)
    else:
        store = Store.open(paths)
        images.make_directories(paths)
    with _blamed(wanted), _examined(paths, store, wanted, check_mode) as sources:
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


def _validate(wanted: Wanted) -> None:
    if wanted.state == "present" or not images.DIGEST_RE.match(wanted.name):
        images.check_image_name(wanted.name)
    remote = source.registry_reference(wanted.name, wanted.source) is not None
    for option in ("kernel", "initrd", "checksum", "tag", "platform", "max_size"):
        if wanted.source is None and not remote and getattr(wanted, option) is not None:
            raise InputError("means nothing without a source", option, "Give source too, or leave it out.")
    if remote and wanted.tag is not None:
        raise InputError("is for archives and layouts", "tag", "Write it behind the image's name: docker://nginx:1.27.")
    if remote and wanted.max_size is not None:
        raise InputError("is for files, and not for images of registries", "max_size", "Leave it out.")


def _examined(
    paths: Paths, store: Store | None, wanted: Wanted, check_mode: bool
) -> contextlib.AbstractContextManager[source.Sources | None]:
    """What the image is made of, there as long as the block lasts: a file by URL only that long."""
    found = None
    if wanted.state != "present" or not source.by_url(wanted.source, wanted.checksum):
        found = _examine(paths, store, wanted, remember=not check_mode)
        if found is None or not isinstance(found.main, kinds.PackedDisk):
            return contextlib.nullcontext(found)
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import download, transfer

    for option in ("tag", "platform"):
        if found is None and getattr(wanted, option) is not None:
            raise InputError("does not go with a URL", option, "Get the archive first, and give its path.")

    def complete(main: kinds.Source) -> source.Sources:
        return source.with_boot_files(paths, main, wanted.kernel, wanted.initrd, not check_mode)

    limit = _limit(wanted)
    request = download.Request(
        t.cast(str, wanted.source),
        wanted.checksum,
        wanted.pull,
        wanted.force,
        source.MAX_SIZE if limit is None else limit,
        transfer.Access(wanted.validate_certs, wanted.ca_path),
        wanted.lock_timeout,
    )
    if found is not None and isinstance(found.main, kinds.PackedDisk):
        return download.unpacked(paths, store, found.main, request, check_mode, complete, wanted.progress)
    current = images.find(store, wanted.name) if store else None
    if wanted.pull == "never" and current is not None:
        return contextlib.nullcontext(None)
    return download.obtained(paths, store, request, current, check_mode, complete, wanted.progress)


def _examine(paths: Paths, store: Store | None, wanted: Wanted, remember: bool) -> source.Sources | None:
    """What the options say the image is made of; ``None`` if it is to be in the store already."""
    if wanted.state != "present":
        return None
    reference = source.registry_reference(wanted.name, wanted.source)
    if reference is not None:
        return _examine_remote(paths, store, wanted, reference, remember)
    if wanted.source is None:
        return None
    return source.examine(
        paths,
        wanted.source,
        wanted.kernel,
        wanted.initrd,
        wanted.checksum,
        wanted.tag,
        remember=remember,
        force=wanted.force,
        platform=wanted.platform,
        told=wanted.progress,
        max_size=_limit(wanted),
    )


def _limit(wanted: Wanted) -> int | None:
    return None if wanted.max_size is None else parse_size(wanted.max_size, "max_size", 1)


def _examine_remote(
    paths: Paths, store: Store | None, wanted: Wanted, reference: str, remember: bool
) -> source.Sources | None:
    """Ask the registry, if ``pull`` or the state of the store demands it."""
    current = images.find(store, wanted.name) if store else None
    if wanted.pull == "never":
        if current is None:
            raise NotFoundError(f"image '{wanted.name}' is not in the store", "pull", "Set it to missing or always.")
        return None
    whole = store is not None and current is not None and _is_whole(store, current)
    if current and whole and wanted.pull == "missing" and _is_named_simply(wanted, current):
        return None
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import auth, registry, registry_name

    parsed = registry_name.parse(reference)
    keys = ("auth_file", "ca_path", "validate_certs", "mirror")
    access = auth.Access(wanted.registry_user, wanted.registry_password, **{key: getattr(wanted, key) for key in keys})
    remote = registry.Remote(parsed, wanted.platform, access)
    main = None
    if current and whole and (wanted.pull == "missing" or parsed.digest):
        main = registry.remembered(paths, remote)
        if (
            main
            and source.with_boot_files(paths, main, wanted.kernel, wanted.initrd, remember).image_id != current["id"]
        ):
            main = None
    if main is None:
        main = registry.examine(paths, remote, remember)
    source.check_checksum(main, wanted.checksum)
    return source.with_boot_files(paths, main, wanted.kernel, wanted.initrd, remember)


def _is_whole(store: Store, image: Record) -> bool:
    return not is_damaged(image) and not images.missing_files(store, image)


def _is_named_simply(wanted: Wanted, current: Record) -> bool:
    """Whether nothing but the name says what the image is, and so the one that has the name is it."""
    digests = {current["id"], *((current.get("source") or {}).get(key) for key in ("digest", "reference_digest"))}
    return (
        wanted.source is None
        and wanted.kernel is None
        and wanted.initrd is None
        and wanted.platform in (None, current["platform"])
        and (wanted.checksum is None or wanted.checksum.strip().lower() in digests)
    )


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
    return planning.There(current, target, target is not None and _is_whole(store, target))


def _outcome(store: Store | None, plan: Plan, image: Record | None) -> Outcome:
    shown = public(store, image) if store and image else None
    diff = {"before": plan.before, "after": plan.after}
    return Outcome(bool(plan.steps), list(plan.steps), shown, diff, plan.warnings)


def expected(plan: Plan) -> Record | None:
    """The image that a plan comes to. Of one that is not in the store yet only the digest and the kind are known."""
    if "import" not in plan.steps or plan.image_id is None:
        return plan.current
    return unseen(plan.image_id, plan.after["type"])


def unseen(image_id: str, image_type: str = "oci") -> Record:
    """An image that is still to come, for a plan: nothing is refused for what is in it, as nobody knows that yet."""
    disk = {"virtual_size": 0, "firmware": None} if image_type == "cloudimg" else None
    return {
        "id": image_id,
        "digest": image_id,
        "type": image_type,
        "layers": [],
        "boot": None if disk else {"kernel_path": "unknown", "initrd_path": "unknown"},
        "disk": disk,
        "features": ["user", "password", "ssh_keys"],
        "unseen": True,
    }


def public(store: Store, record: Record) -> Record:
    """A record as users see it: with the names that lead to it now, and without what is only for new disks."""
    names = images.current_names(store, record)
    name = record.get("name")
    shown = {key: value for key, value in record.items() if key != "folders"}
    return {**shown, "names": names, "name": name if name in names else (names[0] if names else "")}


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
        record.update({key: plan.after[key] for key in ("owner", "labels") if key in plan.after}, updated_at=now())
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


def _imported(store: Store, sources: source.Sources, earlier: Record, wanted: Wanted) -> tuple[Record, list[str]]:
    """A new record and warnings; of an image that is only repaired, with what users gave it."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import importer

    limit = _limit(wanted) or source.MAX_SIZE
    record, warnings = importer.import_image(store, sources, wanted.lock_timeout, wanted.progress, limit)
    kept = ("name", "names", "created_at", "owner", "labels")
    record.update({key: earlier[key] for key in kept if key in earlier})
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


def info(paths: Paths, name: str | None = None) -> list[Record]:
    """One image by name or digest, or all of them: records with ``users`` and ``shared_size`` added."""
    store = Store.load(paths)
    if store is None:
        return []
    if name is not None:
        return _named(store, name)
    folder = images.directory(paths, "records")
    files = os.listdir(folder) if os.path.isdir(folder) else []
    ids = {f"sha256:{file[:-5]}" for file in files if file.endswith(".json")}
    ids |= {image_id for _name, image_id in store.index("image").entries()}
    found = [_detail(store, record) for image_id in ids for record in [images.seen(store, image_id)] if record]
    return sorted(found, key=lambda record: (record["name"] == "", record["name"], record["id"]))


def _named(store: Store, name: str) -> list[Record]:
    try:
        record = images.find(store, name)
    except StateError as exc:  # the name itself is damaged
        return [{**_NOTHING, "id": None, "name": name, "names": [], "users": [], "state": ERROR, "reason": str(exc)}]
    return [_detail(store, record)] if record else []


# What is said of an image that cannot be read.
_NOTHING: Record = {"owner": None, "size": 0, "shared_size": 0, "blobs": []}


def _detail(store: Store, record: Record) -> Record:
    users = [
        {"id": user, "description": images.describe_user(store, user)} for user in images.users(store, record["id"])
    ]
    if is_damaged(record):
        known = {key: record[key] for key in ("id", "digest", "name", "names", "state", "reason")}
        return {**known, **_NOTHING, "users": users}
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import references

    parts = dict.fromkeys(images.blobs(record))
    shared = [part for part in parts if len(references.holders(store, part[0])) > 1]
    return {
        **public(store, record),
        "users": users,
        "shared_size": sum(images.size_of(store, *part) for part in shared),
        "blobs": [
            {"digest": f"sha256:{blob}", "kind": kind, "size": images.size_of(store, blob, kind)}
            for blob, kind in parts
        ],
    }
