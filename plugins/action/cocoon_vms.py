# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Only the controller knows whether the play is limited, which is when a prune would remove too much.

And a word now and then of how far the pull of the VMs' images has got.
"""

from __future__ import annotations

import typing as t

from ansible.module_utils.parsing.convert_bool import boolean

from ansible_collections.cocoon.microvm.plugins.plugin_utils._progress import DeferringAction

LIMITED = "refused under --limit, where the list may be incomplete. Run the playbook without --limit."


class ActionModule(DeferringAction):
    """Refuse to prune under --limit; else run the module, and if it has to pull an image, again, and watch it."""

    MODULE = "cocoon.microvm.cocoon_vms"
    BRIEF = 0  # whatever is pulled: a second run must have all to do still

    def act(self, arguments: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """The module's result."""
        if boolean(arguments.get("prune", False), strict=False) and task_vars.get("ansible_limit"):
            return {"failed": True, "changed": False, "msg": f"prune: {LIMITED}"}
        return super().act(arguments, task_vars)
