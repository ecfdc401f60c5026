# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``cocoon_image_info`` shows."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._records import is_damaged
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.module_utils._types import ERROR, Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import ImageRecord


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


def _detail(store: Store, record: ImageRecord) -> Record:
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


def public(store: Store, record: ImageRecord) -> Record:
    """A record as users see it: with the names that lead to it now, and without what is only for new disks."""
    names = images.current_names(store, record)
    name = record.get("name")
    shown = {key: value for key, value in record.items() if key != "folders"}
    return {**shown, "names": names, "name": name if name in names else (names[0] if names else "")}
