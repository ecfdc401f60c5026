# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The very bytes of an image's EROFS files.

Another erofs-utils makes another file of the same layer. A VM that boots does not mind. A saved memory does: it has
parts of the old file in its cache, and what it reads from another one makes no sense to it.
"""

from __future__ import annotations

import hashlib
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, read_json, write_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import ImageRecord

CHUNK = 1 << 20


def file_facts(path: str) -> Record:
    """What is kept of a layer's file: its digest, and by what another file in its place is noticed."""
    summed = hashlib.sha256()
    with open(path, "rb") as stream:
        info = os.fstat(stream.fileno())
        while data := stream.read(CHUNK):
            summed.update(data)
    return {"digest": f"sha256:{summed.hexdigest()}", "size": info.st_size, "mtime_ns": info.st_mtime_ns}


def digests(store: Store, image: ImageRecord, timeout: float = 60.0) -> dict[str, str]:
    """``{layer's hex: sha256:… of its file}`` of an image; a disk image has none, as its file's name says it.

    What an earlier version imported is read through once, and then it is known.

    :param timeout: seconds to wait for somebody who is at work on such a file.
    """
    return {layer: _digest(store, layer, timeout) for layer in dict.fromkeys(image.get("layers") or ())}


def _digest(store: Store, layer: str, timeout: float) -> str:
    path = images.blob_path(store, layer)
    info = os.stat(path)
    about = images.blob_path(store, layer, "json")
    if (known := _known(about, info)) is None:
        from ansible_collections.cocoon.microvm.plugins.module_utils._images.references import blob_lock

        with blob_lock(store, layer, timeout):
            if (known := _known(about, info)) is None:
                known = file_facts(path)
                write_json(about, {**(read_json(about) or {}), "file": known})
    return t.cast(str, known["digest"])


def _known(about: str, info: os.stat_result) -> Record | None:
    known: Record | None = (read_json(about) or {}).get("file")
    same = known and (known["size"], known["mtime_ns"]) == (info.st_size, info.st_mtime_ns)
    return known if same else None
