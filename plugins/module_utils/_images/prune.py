# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``cocoon_image_prune`` does: removes the images that no VM and no snapshot uses."""

from __future__ import annotations

import dataclasses
import datetime
import fnmatch
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ConflictError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import (
    converging,
    download,
    kernel,
    listing,
    pull,
    references,
    staging,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._images.leftovers import give_up
from ansible_collections.cocoon.microvm.plugins.module_utils._images.wanted import Wanted
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.module_utils._types import ERROR, Record


@dataclasses.dataclass(frozen=True)
class Rules:
    """What may go."""

    keep: tuple[str, ...] = ()
    owner: str | None = None
    older_than: float = 0.0
    downloads: bool = True
    lock_timeout: float = 60.0


@dataclasses.dataclass(frozen=True)
class Pruned:
    """What went, or would: ``images`` as dictionaries of id, names and size; ``downloads`` by what users see."""

    images: list[Record]
    downloads: list[str]
    reclaimed: int
    diff: dict[str, Record]
    warnings: list[str] = dataclasses.field(default_factory=list)

    @property
    def changed(self) -> bool:
        return bool(self.images or self.downloads)


def prune(paths: Paths, rules: Rules, check_mode: bool) -> Pruned:
    """Remove images without users, and what pulls and downloads that were not finished have kept."""
    store = Store.load(paths)
    if store is None:
        return Pruned([], [], 0, {"before": {}, "after": {}})
    unfinished = _unfinished(store, rules, check_mode) if rules.downloads else {}
    everything = listing.info(paths)
    going = [record for record in everything if _may_go(record, rules)]
    if not check_mode:
        going = [record for record in going if _remove(store, record, rules)]
    gone = {record["id"] for record in going}
    downloads = sorted(unfinished)
    reclaimed = _only_in(everything, gone) + sum(unfinished.values())
    shown = [{"id": record["id"], "names": record["names"], "size": record["size"]} for record in going]
    before = {"images": [_title(record) for record in everything], "downloads": downloads}
    after = {"images": [_title(record) for record in everything if record["id"] not in gone], "downloads": []}
    return Pruned(shown, downloads, reclaimed, {"before": before, "after": after}, _unmatched(everything, rules))


def _unfinished(store: Store, rules: Rules, check_mode: bool) -> dict[str, int]:
    """Remove what pulls, downloads and imports that were cut short have kept: what it was, and its bytes."""
    if not check_mode:
        references.tidy(store)
    sizes: list[tuple[str, int | None]] = list(staging.sweep(store, rules.lock_timeout, check_mode).items())
    sizes += [(image_id, references.give_up(store, image_id, check_mode)) for image_id in references.noted(store)]
    left = [*pull.leftovers(store), *download.leftovers(store)]
    sizes += [(item.name, give_up(store, item, check_mode)) for item in left]
    return {name: size for name, size in sizes if size is not None}


def _unmatched(everything: t.Sequence[Record], rules: Rules) -> list[str]:
    """A word on each pattern that keeps nothing: it may be misspelt, and what it was to keep has gone."""
    return [
        f"keep: no image is called '{pattern}'"
        for pattern in rules.keep
        if not any(_matches(record, pattern) for record in everything)
    ]


def _matches(record: Record, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in (*record["names"], record["id"]))


def _may_go(record: Record, rules: Rules) -> bool:
    kept = any(_matches(record, pattern) for pattern in rules.keep)
    kept = kept or kernel.NAME in record["names"]  # used by what boots with it, which is not noted
    return (
        record.get("state") != ERROR  # what it uses is to be found first: by its name it can be removed
        and not record["users"]
        and not kept
        and rules.owner in (None, record.get("owner"))
        and _age(record) >= rules.older_than
    )


def _age(record: Record) -> float:
    """Seconds since the record last changed: since a name came or went, too."""
    changed = datetime.datetime.strptime(record["updated_at"], "%Y-%m-%dT%H:%M:%S.%fZ")
    passed = datetime.datetime.now(datetime.timezone.utc) - changed.replace(tzinfo=datetime.timezone.utc)
    return passed.total_seconds()


def _remove(store: Store, record: Record, rules: Rules) -> bool:
    """Whether the image is gone; one that has found a user or a name meanwhile stays."""
    if not record["names"]:
        return _remove_nameless(store, record["id"], rules.lock_timeout)
    try:
        request = Wanted(record["id"], state="absent", lock_timeout=rules.lock_timeout)
        return converging.remove(store, request, frozenset(record["names"]))
    except ConflictError:
        return False


def _remove_nameless(store: Store, image_id: str, timeout: float) -> bool:
    """One that lost its name while it was in use goes when its pending note is settled."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._state import locked

    with locked(store.paths, [images.lock_name(image_id)], timeout):
        references.settle(store, image_id, timeout)
        return images.load_record(store, image_id) is None


def _only_in(everything: t.Iterable[Record], gone: t.Container[str]) -> int:
    """Bytes of files that only images in *gone* have."""
    sizes: dict[tuple[str, str], int] = {}
    kept = set()
    for record in everything:
        for blob in record["blobs"]:
            key = (blob["digest"], blob["kind"])
            sizes[key] = blob["size"]
            if record["id"] not in gone:
                kept.add(key)
    return sum(size for key, size in sizes.items() if key not in kept)


def _title(record: Record) -> str:
    return ", ".join(record["names"]) or t.cast(str, record["id"])
