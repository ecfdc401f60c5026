# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What only the controller knows of a site: whether the play is limited, and which item has an unknown option.

And a word now and then of how far its images have got.
"""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.plugin_utils._problems import site_problems
from ansible_collections.cocoon.microvm.plugins.plugin_utils._progress import PruningAction


class ActionModule(PruningAction):
    """Refuse what is wrong by itself; else run the module, and if an image takes long, again, and watch it."""

    MODULE = "cocoon.microvm.cocoon_site"
    BRIEF = 32 << 20

    def act(self, arguments: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """The module's result."""
        wrong = site_problems(arguments)
        if wrong:
            return {"failed": True, "changed": False, "msg": "\n".join(wrong)}
        return super().act(arguments, task_vars)
