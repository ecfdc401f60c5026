# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_vm_hosts
short_description: Which inventory hosts are VMs of which hypervisor
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - Looks at C(cocoon_host) of every host of the inventory, and turns it around.
  - Refuses a VM without a hypervisor, or with one that is not in the inventory.
options:
  _input:
    description: C(hostvars).
    type: dict
    required: true
  hypervisors:
    description: Hosts that are no VMs even where they inherit C(cocoon_vm).
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
---
- name: Show the VMs of each hypervisor
  ansible.builtin.debug:
    msg: "{{ hostvars | cocoon.microvm.cocoon_vm_hosts(groups['hypervisors']) }}"
"""

RETURN = r"""
---
_value:
  description: The names of the VM hosts by hypervisor.
  type: dict
  sample:
    hv1: [web1, web2]
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.cocoon.microvm.plugins.plugin_utils._definitions import DefinitionError, invert


def cocoon_vm_hosts(hostvars: t.Any, hypervisors: t.Sequence[str] = ()) -> dict[str, list[str]]:
    """VM hosts by hypervisor."""
    try:
        return invert(hostvars, hypervisors)
    except DefinitionError as exc:
        raise AnsibleFilterError(str(exc)) from exc


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_vm_hosts": cocoon_vm_hosts}
