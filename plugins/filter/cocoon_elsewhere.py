# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_elsewhere
short_description: VMs that other hypervisors want, or still have
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - Without O(there), the VMs that other hypervisors of the inventory want.
  - With it, the VMs that this hypervisor would make anew although they are on another one, for which the inventory does
    not list them any more.
options:
  _input:
    description: What is wanted where, see P(cocoon.microvm.cocoon_inventory_vms#filter).
    type: dict
    required: true
  here:
    description: The hypervisor that asks.
    type: str
    required: true
  existing:
    description: Names of the VMs that are on this hypervisor.
    type: list
    elements: str
    default: []
  there:
    description: Names of the VMs that are on other hypervisors, by hypervisor.
    type: dict
"""

EXAMPLES = r"""
---
- name: Show what hv2 must not prune
  ansible.builtin.debug:
    msg: "{{ {'hv1': {'web1': 'started'}, 'hv2': {}} | cocoon.microvm.cocoon_elsewhere('hv2') }}"
"""

RETURN = r"""
---
_value:
  description: VMs by name, each with the other hypervisor.
  type: dict
  sample:
    web1: hv1
"""

import typing as t

from ansible_collections.cocoon.microvm.plugins.plugin_utils._definitions import misplaced, wanted_elsewhere


def cocoon_elsewhere(defined: t.Any, here: str, existing: t.Sequence[str] = (), there: t.Any = None) -> dict[str, str]:
    """VMs by name, each with the other hypervisor."""
    return wanted_elsewhere(defined, here) if there is None else misplaced(defined, here, existing, there)


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_elsewhere": cocoon_elsewhere}
