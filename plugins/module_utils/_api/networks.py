# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The networks of a host."""

from __future__ import annotations

from ansible_collections.cocoon.microvm.plugins.module_utils._api.answers import Answer, Params
from ansible_collections.cocoon.microvm.plugins.module_utils._network import converging


def converge(params: Params, check: bool) -> Answer:
    """Make one network what the options of ``cocoon_network`` say: ``changed action network diff``.

    :raises CocoonError: it cannot be, or something that uses it is against it.
    """
    return converging.converge(params, check)


def info(params: Params, _check: bool) -> Answer:
    """The networks, or the one named, with what uses them: ``networks``."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import listing

    return {"changed": False, "networks": listing.describe(params)}
