# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Only the controller knows whether the play is limited, which is when a prune would remove too much."""

from __future__ import annotations

import typing as t

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Refuse to prune under --limit, else hand over to the module."""

    _supports_async = True
    _supports_check_mode = True

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """The module's result."""
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        if boolean(self._task.args.get("prune", False), strict=False) and task_vars.get("ansible_limit"):
            result.update(
                failed=True,
                changed=False,
                msg="prune: refused under --limit, where the list may be incomplete. Run the playbook without --limit.",
            )
            return result
        result.update(self._execute_module(task_vars=task_vars, wrap_async=self._task.async_val))
        return result
