# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which image uses which blob, and what goes when nobody does.

A file ``pending/<image hex>`` names all that an import or a removal may have touched. It is written before the first
of it and removed after the last, so a run that was killed leaves a note and not a search.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import BusyError, StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._images.staging import held_by, locked_patiently
from ansible_collections.cocoon.microvm.plugins.module_utils._records import is_damaged
from ansible_collections.cocoon.microvm.plugins.module_utils._state import (
    Store,
    fsync_dir,
    locked,
    read_json,
    remove_file,
    remove_tree,
    write_json,
)

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import ImageRecord

Blobs = list[tuple[str, str]]


def pending_path(store: Store, image_id: str) -> str:
    return os.path.join(images.directory(store.paths, "pending"), images.hex_of(image_id))


def note(store: Store, image_id: str, blobs: Blobs) -> None:
    """Write down that *blobs* of the image are about to come or go; adds to an earlier note."""
    path = pending_path(store, image_id)
    earlier = read_json(path) or {}
    everything = {tuple(item) for item in earlier.get("blobs", [])} | set(blobs)
    write_json(path, {"id": image_id, "blobs": sorted(everything)})


def forget(store: Store, image_id: str) -> None:
    remove_file(pending_path(store, image_id))


def blob_lock(store: Store, blob: str, timeout: float) -> contextlib.AbstractContextManager[None]:
    return locked_patiently(store, [f"image:#blob/{blob}"], timeout)


def _reference_dir(store: Store, blob: str) -> str:
    return os.path.join(images.directory(store.paths, "blobrefs"), blob)


def refer(store: Store, blob: str, image_id: str) -> None:
    """The image uses the blob. Under the blob's lock."""
    directory = _reference_dir(store, blob)
    os.makedirs(directory, 0o700, exist_ok=True)
    path = os.path.join(directory, images.hex_of(image_id))
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    fsync_dir(directory)


def holders(store: Store, blob: str) -> list[str]:
    """Hex ids of the images that use a blob."""
    try:
        return os.listdir(_reference_dir(store, blob))
    except FileNotFoundError:
        return []


def release(store: Store, blob: str, suffix: str, image_id: str, timeout: float) -> None:
    """The image no longer uses the blob; the last one takes it along. Idempotent."""
    with blob_lock(store, blob, timeout):
        directory = _reference_dir(store, blob)
        remove_file(os.path.join(directory, images.hex_of(image_id)))
        if holders(store, blob):
            return
        if suffix == "boot":
            remove_tree(images.boot_path(store, blob))
        else:
            remove_file(images.blob_path(store, blob, suffix))
            remove_file(images.blob_path(store, blob, "json"))
            _remove_templates(store, f"overlay-{blob}-")
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(directory)


def _remove_templates(store: Store, prefix: str) -> None:
    """Of disks: no VM can be made of them any more."""
    directory = images.directory(store.paths, "templates")
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(directory):
            if name.startswith(prefix):
                remove_file(os.path.join(directory, name))


def blobs_of(store: Store, record: ImageRecord) -> Blobs:
    """What an image uses; of a damaged one, what is noted as used by it: a look through all of it."""
    if not is_damaged(record):
        return images.blobs(record)
    folder, mine = images.directory(store.paths, "blobrefs"), images.hex_of(record["id"])
    found = [blob for blob in os.listdir(folder) if mine in holders(store, blob)] if os.path.isdir(folder) else []
    return [(blob, _suffix(store, blob)) for blob in found]


def _suffix(store: Store, blob: str) -> str:
    if os.path.isdir(images.boot_path(store, blob)):
        return "boot"
    kinds = ("erofs", "qcow2", "raw")
    return next((kind for kind in kinds if os.path.lexists(images.blob_path(store, blob, kind))), kinds[0])


def drop(store: Store, image_id: str, timeout: float) -> None:
    """Remove an image's record and all that only it uses. Under the image's lock. Idempotent."""
    record = images.seen(store, image_id)
    if record:
        note(store, image_id, blobs_of(store, record))
        remove_file(images.record_path(store.paths, image_id))
    for blob, suffix in (read_json(pending_path(store, image_id)) or {}).get("blobs", []):
        release(store, blob, suffix, image_id, timeout)
    _remove_templates(store, f"cow-{images.hex_of(image_id)}-")
    remove_tree(images.user_dir(store.paths, image_id))
    forget(store, image_id)


def settle(store: Store, image_id: str, timeout: float) -> None:
    """Finish what a note speaks of: an image without record, or without name and users, goes. Idempotent."""
    record = images.seen(store, image_id)
    if record is None:
        drop(store, image_id, timeout)
    elif is_damaged(record) and record["names"]:
        return  # it is to be removed, or put back
    elif images.current_names(store, record):
        _release_strangers(store, record, timeout)
        forget(store, image_id)
    elif not images.users(store, image_id):
        drop(store, image_id, timeout)
    # else: superseded but in use; the note stays, and a run after the last user has gone takes it away.


def _release_strangers(store: Store, record: ImageRecord, timeout: float) -> None:
    """An import that was begun again may have chosen other boot files than the first."""
    mine = set(images.blobs(record))
    for blob, suffix in (read_json(pending_path(store, record["id"])) or {}).get("blobs", []):
        if (blob, suffix) not in mine:
            release(store, blob, suffix, record["id"], timeout)


def noted(store: Store) -> list[str]:
    """The ids of the images that notes speak of."""
    with contextlib.suppress(FileNotFoundError):
        names = sorted(os.listdir(images.directory(store.paths, "pending")))
        return [f"sha256:{name}" for name in names if images.DIGEST_RE.match(f"sha256:{name}")]
    return []


def give_up(store: Store, image_id: str, check_mode: bool = False) -> int | None:
    """Remove what an import that was killed has kept, if nobody is at work on it.

    :returns: the bytes that this gives back, or would; ``None`` if there is no such thing.
    """
    with contextlib.suppress(BusyError), locked(store.paths, [images.lock_name(image_id)], 0):
        kept = read_json(pending_path(store, image_id))
        if kept is None or images.seen(store, image_id) is not None:
            return None
        mine = [images.hex_of(image_id)]
        size = sum(_size(store, blob, suffix) for blob, suffix in kept["blobs"] if holders(store, blob) == mine)
        if not check_mode:
            drop(store, image_id, 60.0)
        return size
    return None


def _size(store: Store, blob: str, suffix: str) -> int:
    if suffix == "boot":
        return held_by(images.boot_path(store, blob))[1]
    try:
        return os.lstat(images.blob_path(store, blob, suffix)).st_size
    except FileNotFoundError:
        return 0


def sweep(store: Store, but: str | None = None) -> None:
    """Settle all that earlier runs left behind, except for image *but*; what another run is at is left to it.

    So is a note that is damaged: the doctor finds it.
    """
    tidy(store)
    for image_id in noted(store):
        if image_id != but:
            with contextlib.suppress(BusyError, StateError), locked(store.paths, [images.lock_name(image_id)], 0):
                settle(store, image_id, 60.0)


def tidy(store: Store) -> None:
    """Remove what killed runs were about to give its name."""
    for folder in ("pending", "records", "blobs"):
        _remove_temporaries(images.directory(store.paths, folder))
    _remove_temporaries(store.paths.index("image"))


def _remove_temporaries(directory: str) -> None:
    """Documents that a process which is gone was about to give their names (``<name>.<pid>.<random>.tmp``)."""
    names = os.listdir(directory) if os.path.isdir(directory) else []
    for name in names:
        parts = name.split(".")
        if parts[-1] == "tmp" and len(parts) > 3 and not os.path.exists(f"/proc/{parts[-3]}"):
            remove_file(os.path.join(directory, name))
