# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_connections
short_description: How to reach the VMs that are inventory hosts
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - Gives the connection variables of VMs that are inventory hosts. They are reached at their address, by ssh through
    their hypervisor; a hypervisor with a local connection needs no jump.
  - What the inventory says itself about a host, such as C(ansible_host), is left alone.
options:
  _input:
    description: C(hostvars).
    type: dict
    required: true
  hosts:
    description: The names of the VM hosts by hypervisor, see P(cocoon.microvm.cocoon_vm_hosts#filter).
    type: dict
    required: true
  results:
    description:
      - By hypervisor, the inventory host that holds the result of M(cocoon.microvm.cocoon_vms) or
        M(cocoon.microvm.cocoon_vm_info) for it. That is the hypervisor itself unless the task was delegated.
    type: dict
    required: true
  variable:
    description: The name under which the result was registered.
    type: str
    default: vms_result
  ssh_args:
    description: Arguments of ssh for the way to the hypervisor, where it has no C(ansible_ssh_args).
    type: str
    default: ""
"""

EXAMPLES = r"""
---
- name: Tell this run how to reach the VMs of hv1
  ansible.builtin.add_host: "{{ item.variables | combine({'name': item.host}) }}"
  loop: "{{ hostvars | cocoon.microvm.cocoon_connections({'hv1': ['web1']}, {'hv1': 'hv1'}, 'found') }}"
  changed_when: false
"""

RETURN = r"""
---
_value:
  description: One dictionary with C(host) and C(variables) for each VM host that has an address.
  type: list
  elements: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.cocoon.microvm.plugins.plugin_utils._connections import connections
from ansible_collections.cocoon.microvm.plugins.plugin_utils._definitions import DefinitionError


def cocoon_connections(
    hostvars: t.Any, hosts: t.Any, results: t.Any, variable: str = "vms_result", ssh_args: str = ""
) -> list[dict[str, t.Any]]:
    """Connection variables of VM hosts."""
    try:
        return connections(hostvars, hosts, results, variable, ssh_args)
    except DefinitionError as exc:
        raise AnsibleFilterError(str(exc)) from exc


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_connections": cocoon_connections}
