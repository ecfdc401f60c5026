# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's default kernel, for images that bring none: an image of the store like any other, known by its name.

Being an image it is found, verified, replaced and removed as images are. A VM holds its own image and not this one:
it boots with what has the name when it is started.
"""

from __future__ import annotations

from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

NAME = "cocoon/kernel"


def needed(image: Record) -> bool:
    """Whether *image* boots with the default kernel: a root file system without one of its own."""
    return image["type"] == "oci" and not (image.get("boot") or {}).get("kernel_path")


def find(store: Store) -> Record | None:
    """The image with the default kernel, if it is there with all its files."""
    record = images.resolve(store, NAME)
    return record if record and record.get("boot") and not images.missing_files(store, record) else None
