# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A word now and then of how far a pull, download or import has got."""

from __future__ import annotations

from ansible_collections.cocoon.microvm.plugins.plugin_utils._progress import DeferringAction


class ActionModule(DeferringAction):
    """Run the module; if it has much to do, again, and watch it."""

    MODULE = "cocoon.microvm.cocoon_image"
    BRIEF = 32 << 20
