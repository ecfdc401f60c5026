# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in an image store, and proof that something left it alone."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images

FOLDERS = ("records", "blobs", "boot", "blobrefs", "users", "pending", "staging", "pulls")


def files_of(paths: Paths, *folders: str) -> list[str]:
    """Every file of the image store, or of some of its folders, that speaks of an image; memories and locks do not."""
    found = []
    for folder in folders or FOLDERS:
        for place, _folders, names in os.walk(images.directory(paths, folder)):
            found += [os.path.relpath(os.path.join(place, name), paths.images) for name in names]
    return sorted(found)


def contents(paths: Paths) -> dict[str, str]:
    """The same files, and the digest of each."""
    return {
        name: hashlib.sha256(Path(paths.images, name).read_bytes()).hexdigest()
        for name in files_of(paths)
        if not os.path.islink(os.path.join(paths.images, name))
    }


@contextlib.contextmanager
def untouched(paths: Paths) -> Iterator[None]:
    """Whatever happens in the block: nothing of it is kept, and the images that were there have every byte."""
    before = contents(paths)
    assert any(name.startswith("records/") for name in before), "an empty store proves nothing about other images"
    yield
    assert contents(paths) == before
