# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the images of a host are like."""

from __future__ import annotations

from ansible_collections.cocoon.microvm.plugins.module_utils._api.answers import Answer, Params
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._images import listing


def info(params: Params, _check: bool) -> Answer:
    """The images, or the one named: ``images``."""
    return {"changed": False, "images": listing.info(Paths.from_params(params), params["name"])}
