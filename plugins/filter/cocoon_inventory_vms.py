# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_inventory_vms
short_description: Which VMs the whole inventory wants on which hypervisor
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - Looks at C(cocoon_vms), with and without a suffix, of each hypervisor, and at the VMs that are inventory hosts.
  - No more of a definition is looked at than its name, its state and its count.
options:
  _input:
    description: C(hostvars).
    type: dict
    required: true
  hypervisors:
    description: The hypervisors to look at.
    type: list
    elements: str
    required: true
  hosts:
    description: The names of the VM hosts by hypervisor, see P(cocoon.microvm.cocoon_vm_hosts#filter).
    type: dict
    required: true
"""

EXAMPLES = r"""
---
- name: Show what is wanted where
  vars:
    hosts: "{{ hostvars | cocoon.microvm.cocoon_vm_hosts(groups['hypervisors']) }}"
  ansible.builtin.debug:
    msg: "{{ hostvars | cocoon.microvm.cocoon_inventory_vms(groups['hypervisors'], hosts) }}"
"""

RETURN = r"""
---
_value:
  description: By hypervisor, the wanted state of each VM by name.
  type: dict
  sample:
    hv1: {web1: started}
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.cocoon.microvm.plugins.plugin_utils._definitions import DefinitionError, inventory_names


def cocoon_inventory_vms(hostvars: t.Any, hypervisors: t.Iterable[str], hosts: t.Any) -> dict[str, dict[str, str]]:
    """Wanted states by name by hypervisor."""
    found = {}
    for hypervisor in hypervisors:
        try:
            found[str(hypervisor)] = inventory_names(hostvars, hosts, hypervisor)
        except DefinitionError as exc:
            raise AnsibleFilterError(f"hypervisor '{hypervisor}': {exc}") from exc
    return found


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_inventory_vms": cocoon_inventory_vms}
