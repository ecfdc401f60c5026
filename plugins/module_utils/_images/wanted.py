# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of an image, as ``cocoon_image`` and a site give them."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import source
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import image as planning
from ansible_collections.cocoon.microvm.plugins.module_utils._progress import Progress
from ansible_collections.cocoon.microvm.plugins.module_utils._types import check_labels, parse_size


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

    @property
    def limit(self) -> int | None:
        """``max_size`` in bytes."""
        return None if self.max_size is None else parse_size(self.max_size, "max_size", 1)


def wanted_of(params: t.Mapping[str, t.Any], lock_timeout: float, progress: Progress) -> Wanted:
    """What the options of an image say, checked as far as that goes without looking at anything.

    :raises InputError: an option that can never work, alone or with the others given.
    """
    own = {"lock_timeout", "progress", "labels"}
    given = {field.name: params[field.name] for field in dataclasses.fields(Wanted) if field.name not in own}
    labels = None if params["labels"] is None else check_labels(params["labels"])
    wanted = Wanted(**given, labels=labels, lock_timeout=lock_timeout, progress=progress)
    validate(wanted)
    return wanted


def validate(wanted: Wanted) -> None:
    """Refuse what can never work.

    :raises InputError: names the option.
    """
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
