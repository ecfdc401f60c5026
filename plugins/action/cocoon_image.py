# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A word now and then of how far a pull, download or import has got."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.plugin_utils._progress import ProgressAction

MODULE = "cocoon.microvm.cocoon_image"
# Bytes that are over before there would be anything to tell.
BRIEF = 32 << 20


class ActionModule(ProgressAction):
    """Run the module; if it has much to do, again, and watch it."""

    def act(self, arguments: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """The module's result."""
        if self._task.check_mode or self._task.async_val:
            return self.plain(MODULE, arguments, task_vars)
        first = self.plain(MODULE, {**arguments, "defer_above": BRIEF}, task_vars)
        # Watching takes a few more questions: not for what changes nothing, as most runs do.
        return self.watched(MODULE, arguments, task_vars) if first.get("deferred") else first
