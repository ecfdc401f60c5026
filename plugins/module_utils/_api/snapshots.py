# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The snapshots of a host."""

from __future__ import annotations

from ansible_collections.cocoon.microvm.plugins.module_utils._api.answers import Answer, Params
from ansible_collections.cocoon.microvm.plugins.module_utils._engine import snapshots


def converge(params: Params, check: bool) -> Answer:
    """Take, remove, restore, export or import a snapshot, as the options of ``cocoon_snapshot`` say.

    :returns: ``changed actions diff snapshot vm``.
    :raises CocoonError: it could not be done; nothing is lost.
    """
    return snapshots.converge(params, check)
