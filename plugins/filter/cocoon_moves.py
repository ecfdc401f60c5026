# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_moves
short_description: Which VMs have to come to a hypervisor from another one
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - VMs that the inventory has moved to a hypervisor, and that are still on another one, which it does not list them for
    any more; and VMs that an earlier run did not bring to the end of their way.
options:
  _input:
    description: What is wanted where, see P(cocoon.microvm.cocoon_inventory_vms#filter).
    type: dict
    required: true
  here:
    description: The hypervisor.
    type: str
    required: true
  definitions:
    description: The VMs that are converged there.
    type: list
    elements: dict
    required: true
  existing:
    description: The records of the VMs that it has.
    type: list
    elements: dict
    required: true
  there:
    description: The records of the VMs that other hypervisors have, by hypervisor.
    type: dict
    required: true
"""

EXAMPLES = r"""
---
- name: Show what has to come to hv1
  ansible.builtin.debug:
    msg: >-
      {{ {'hv1': {'web1': 'started'}, 'hv2': {}} | cocoon.microvm.cocoon_moves('hv1', [{'name': 'web1'}], [],
         {'hv2': [{'config': {'name': 'web1'}, 'state': 'running'}]}) }}
"""

RETURN = r"""
---
_value:
  description: Moves, each with C(name), C(from), C(to) and C(network).
  type: list
  elements: dict
"""

import typing as t

from ansible_collections.cocoon.microvm.plugins.plugin_utils._moves import due_moves


def cocoon_moves(
    defined: t.Any, here: str, definitions: t.Any, existing: t.Any, there: t.Any
) -> list[dict[str, t.Any]]:
    """Moves to a hypervisor."""
    return due_moves(defined, here, definitions, existing, there)


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_moves": cocoon_moves}
