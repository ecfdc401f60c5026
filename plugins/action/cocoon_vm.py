# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A word now and then of how far the pull of a VM's image has got."""

from __future__ import annotations

from ansible_collections.cocoon.microvm.plugins.plugin_utils._progress import DeferringAction


class ActionModule(DeferringAction):
    """Run the module; if it has to pull an image, again, and watch it."""

    MODULE = "cocoon.microvm.cocoon_vm"
    BRIEF = 0  # whatever is pulled: a second run must have all to do still
