# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images that VMs want and the store does not have, pulled from a registry before anything is planned with them."""

from __future__ import annotations

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import manager, source
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run

# Options of cocoon_image that say the image's name, and cocoon_vm has under another name.
NAMES = (None, "name", "source")


def obtain(run: Run, name: str, pull: str, check: bool) -> tuple[bool, list[str]]:
    """Pull the image *name*, as ``docker run`` does with the same name.

    :returns: whether the store was, or would be, changed; and warnings.

    :param pull: ``missing`` or ``always``, see ``cocoon_image``.
    :raises CocoonError: it cannot be had. :raises Deferred: that is for a run that is watched.
    """
    if images.DIGEST_RE.match(name):
        return False, []  # no registry is named
    remote = None if source.registry_reference(name, None) else f"{source.SCHEME}{name}"
    wanted = manager.Wanted(
        name, source=remote, pull=pull, lock_timeout=run.options.lock_timeout, progress=run.options.progress
    )
    there = images.resolve(run.store, name) is not None
    try:
        outcome = manager.converge(run.store.paths, wanted, check)
    except CocoonError as exc:
        if exc.option in NAMES:
            exc.option = "image"
        if not there:
            exc.message = f"there is no image '{name}' on this host, and it cannot be pulled: {exc.message}"
        raise
    if check and outcome.changed:
        run.expect_image(name, _expected(outcome.diff["after"]))
    return outcome.changed, outcome.warnings


def _expected(after: Record) -> Record:
    """The image that a real run would have. What is in it is not known, so nothing is refused for that."""
    return {
        "id": after["id"],
        "digest": after["id"],
        "type": "oci",
        "layers": [],
        "boot": {"kernel_path": "unknown", "initrd_path": "unknown"},
        "disk": None,
        "features": ["user", "password", "ssh_keys"],
    }
