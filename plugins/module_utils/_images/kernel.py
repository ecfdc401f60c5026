# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernels: the host's default one, and the ELF file that is in each.

The default one is for images that bring none: an image of the store like any other, known by its name.

Being an image it is found, verified, replaced and removed as images are. A VM holds its own image and not this one:
it boots with what has the name when it is started.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, remove_file

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import ImageRecord

NAME = "cocoon/kernel"


def needed(image: ImageRecord) -> bool:
    """Whether *image* boots with the default kernel: a root file system without one of its own."""
    return image["type"] == "oci" and not (image.get("boot") or {}).get("kernel_path")


def find(store: Store) -> ImageRecord | None:
    """The image with the default kernel, if it is there with all its files."""
    record = images.resolve(store, NAME)
    return record if record and record.get("boot") and not images.missing_files(store, record) else None


def unpacked(store: Store, path: str, timeout: float) -> str:
    """The ELF file in the kernel *path* of a boot directory: taken out of it once, and kept beside it.

    :raises InputError: there is none in it. :raises BusyError: another task had the directory for *timeout* seconds.
    """
    folder = os.path.dirname(path)
    target = os.path.join(folder, images.UNPACKED)
    if os.path.isfile(target):
        return target
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import elf, references
    from ansible_collections.cocoon.microvm.plugins.module_utils._images.staging import publish

    name, temporary = os.path.basename(folder), f"{target}.new"
    with references.blob_lock(store, name, timeout):
        if not os.path.isfile(target):
            remove_file(temporary)  # of a run that was killed
            try:
                with open(temporary, "x+b") as stream:
                    elf.extract(path, stream)
                publish(temporary, target, images.blob_gid(store, name))
            except BaseException:
                remove_file(temporary)
                raise
    return target
