# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The name of a network, before Ansible makes text of it."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.plugin_utils._progress import NamedAction


class ActionModule(NamedAction):
    """Run the module, if the name is one."""

    def act(self, arguments: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """The module's result."""
        return self.plain("cocoon.microvm.cocoon_network", arguments, task_vars)
