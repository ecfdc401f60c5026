# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_lost
short_description: Why VMs have not been changed as they should
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - From the answers of the tasks that were to take snapshots of some VMs, and to change them.
options:
  _input:
    description: Names of VMs.
    type: list
    elements: str
    required: true
  done:
    description: The answer of M(cocoon.microvm.cocoon_vms).
    type: dict
  taken:
    description: The results of a loop with M(cocoon.microvm.cocoon_snapshot).
    type: dict
"""

EXAMPLES = r"""
---
- name: Show who failed
  ansible.builtin.debug:
    msg: "{{ ['web1'] | cocoon.microvm.cocoon_lost(vms_rolled) }}"
"""

RETURN = r"""
---
_value:
  description: Reasons by name.
  type: dict
"""

import typing as t

from ansible_collections.cocoon.microvm.plugins.plugin_utils._rollout import lost


def cocoon_lost(names: t.Any, done: t.Any = None, taken: t.Any = None) -> dict[str, str]:
    """Reasons by name."""
    return lost(names, done, taken)


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_lost": cocoon_lost}
