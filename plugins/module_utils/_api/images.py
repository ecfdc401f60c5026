# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The images of a host."""

from __future__ import annotations

from ansible_collections.cocoon.microvm.plugins.module_utils._api.answers import Answer, Params
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._images import converging
from ansible_collections.cocoon.microvm.plugins.module_utils._images.wanted import wanted_of


def converge(params: Params, check: bool) -> Answer:
    """Make one image what the options of ``cocoon_image`` say.

    :returns: ``changed image actions diff warnings``.
    :raises CocoonError: it cannot be had, or removed.
    :raises Deferred: it takes long, and *params* leave that to another run.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._progress import Progress

    wanted = wanted_of(params, params["lock_timeout"], Progress.from_params(params))
    outcome = converging.converge(Paths.from_params(params), wanted, check)
    return {
        "changed": outcome.changed,
        "image": outcome.image,
        "actions": outcome.actions,
        "diff": outcome.diff,
        "warnings": outcome.warnings,
    }


def prune(params: Params, check: bool) -> Answer:
    """Remove what the options of ``cocoon_image_prune`` let go.

    :returns: ``changed images downloads reclaimed diff warnings``.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._images.prune import Rules
    from ansible_collections.cocoon.microvm.plugins.module_utils._images.prune import prune as remove

    rules = Rules(
        keep=tuple(params["keep"]),
        owner=params["owner"],
        older_than=params["older_than"],
        downloads=params["downloads"],
        lock_timeout=params["lock_timeout"],
    )
    outcome = remove(Paths.from_params(params), rules, check)
    return {
        "changed": outcome.changed,
        "images": outcome.images,
        "downloads": outcome.downloads,
        "reclaimed": outcome.reclaimed,
        "diff": outcome.diff,
        "warnings": outcome.warnings,
    }
