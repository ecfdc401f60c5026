# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_move_plan
short_description: How VMs would be moved, and what is in the way
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - Puts together what the hosts that VMs leave and the hosts that they come to say of them.
options:
  _input:
    description: Moves, each with C(name), C(from) and C(to).
    type: list
    elements: dict
    required: true
  passports:
    description: What M(cocoon.microvm.cocoon_vm_move) says of the VMs, in the same order.
    type: list
    elements: dict
    required: true
  admissions:
    description: What the targets say of them, by target.
    type: dict
    required: true
"""

EXAMPLES = r"""
---
- name: Show how web1 would be moved
  ansible.builtin.debug:
    msg: "{{ [{'name': 'web1', 'from': 'hv2', 'to': 'hv1'}] | cocoon.microvm.cocoon_move_plan([none], {}) }}"
"""

RETURN = r"""
---
_value:
  description: The moves, with C(how), C(size), C(problem) and what their steps need.
  type: list
  elements: dict
"""

import typing as t

from ansible_collections.cocoon.microvm.plugins.plugin_utils._moves import plan


def cocoon_move_plan(moves: t.Any, passports: t.Any, admissions: t.Any) -> list[dict[str, t.Any]]:
    """Moves with all that their steps need."""
    return plan(moves, passports, admissions)


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_move_plan": cocoon_move_plan}
