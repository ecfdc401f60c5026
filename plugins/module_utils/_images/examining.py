# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the options of an image say that it is made of: a file, a URL, a registry's answer, or what the store has."""

from __future__ import annotations

import contextlib
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, NotFoundError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import kinds, source
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._images.wanted import Wanted
from ansible_collections.cocoon.microvm.plugins.module_utils._records import is_damaged
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import ImageRecord


def examined(
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

    limit = wanted.limit
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
        max_size=wanted.limit,
    )


def _examine_remote(
    paths: Paths, store: Store | None, wanted: Wanted, reference: str, remember: bool
) -> source.Sources | None:
    """Ask the registry, if ``pull`` or the state of the store demands it."""
    current = images.find(store, wanted.name) if store else None
    if wanted.pull == "never":
        if current is None:
            raise NotFoundError(f"image '{wanted.name}' is not in the store", "pull", "Set it to missing or always.")
        return None
    whole = store is not None and current is not None and is_whole(store, current)
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


def is_whole(store: Store, image: ImageRecord) -> bool:
    return not is_damaged(image) and not images.missing_files(store, image)


def _is_named_simply(wanted: Wanted, current: ImageRecord) -> bool:
    """Whether nothing but the name says what the image is, and so the one that has the name is it."""
    digests = {current["id"], *((current.get("source") or {}).get(key) for key in ("digest", "reference_digest"))}
    return (
        wanted.source is None
        and wanted.kernel is None
        and wanted.initrd is None
        and wanted.platform in (None, current["platform"])
        and (wanted.checksum is None or wanted.checksum.strip().lower() in digests)
    )
