# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images that VMs want and the store does not have, pulled from a registry before anything is planned with them."""

from __future__ import annotations

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, MissingImageError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import converging, source
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._images.wanted import Wanted
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import DOCKER_HUB, Run

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
    there = images.resolve(run.store, name) is not None
    if there and name in run.options.never_pull:
        return False, []
    wanted = Wanted(
        name,
        source=_remote(run, name),
        pull=pull,
        lock_timeout=run.options.lock_timeout,
        progress=run.options.progress,
    )
    try:
        outcome = converging.converge(run.store.paths, wanted, check)
    except CocoonError as exc:
        if exc.option in NAMES:
            exc.option = "image"
        if not there:
            exc.message = f"there is no image '{name}' on this host, and it cannot be pulled: {exc.message}"
        raise
    if check and outcome.changed and outcome.expected:
        run.expect_image(name, outcome.expected)
    return outcome.changed, outcome.warnings


def _remote(run: Run, name: str) -> str | None:
    """Where to pull an image from; ``None`` if its name says that itself.

    :raises MissingImageError: no registry is to be asked.
    """
    if name in run.options.never_pull:
        raise MissingImageError(
            f"there is no image '{name}' on this host, and no registry is asked for it, as it is declared otherwise",
            "image",
            "Have it imported first: run the playbook site for the hypervisor.",
        )
    if source.registry_reference(name, None):
        return None
    registry = run.options.default_registry
    if registry is None:
        raise MissingImageError(
            f"there is no image '{name}' on this host, and its name says no registry",
            "image",
            "Declare the image, write its registry in front of the name, or set a default registry"
            " (cocoon_default_registry in an inventory).",
        )
    return f"{source.SCHEME}{name}" if registry == DOCKER_HUB else f"{source.SCHEME}{registry.rstrip('/')}/{name}"
