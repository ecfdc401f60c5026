# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Only the controller knows whether the play is limited, which is when a prune would remove too much.

And a word now and then of how far the pull of the VMs' images has got.
"""

from __future__ import annotations

from ansible_collections.cocoon.microvm.plugins.plugin_utils._progress import PruningAction


class ActionModule(PruningAction):
    """Refuse to prune under --limit; else run the module, and if it has to pull an image, again, and watch it."""

    MODULE = "cocoon.microvm.cocoon_vms"
    BRIEF = 0  # whatever is pulled: a second run must have all to do still
