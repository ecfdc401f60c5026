# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_definitions
short_description: The VM definitions of one hypervisor
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - Puts the VMs that are listed for a hypervisor and the VMs that are inventory hosts of their own into one list,
    each over the defaults, of which a null takes an option away.
  - A VM that is defined in both ways is refused.
options:
  _input:
    description: The definitions that are listed for the hypervisor, each with C(name).
    type: list
    elements: dict
    required: true
  hostvars:
    description: C(hostvars).
    type: dict
    default: {}
  hosts:
    description: The inventory hosts that are VMs of the hypervisor.
    type: list
    elements: str
    default: []
  defaults:
    description: Options that apply where a definition does not have them.
    type: dict
    default: {}
"""

EXAMPLES = r"""
---
- name: Show what the VM hosts of a hypervisor ask for
  vars:
    hosts: "{{ (hostvars | cocoon.microvm.cocoon_vm_hosts)['hv1'] }}"
  ansible.builtin.debug:
    msg: "{{ [] | cocoon.microvm.cocoon_definitions(hostvars, hosts, {'state': 'started'}) }}"
"""

RETURN = r"""
---
_value:
  description: The definitions, as M(cocoon.microvm.cocoon_vms) takes them.
  type: list
  elements: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.cocoon.microvm.plugins.plugin_utils._definitions import (
    Definition,
    DefinitionError,
    host_definitions,
    with_defaults,
)


def cocoon_definitions(
    listed: t.Any, hostvars: t.Any = None, hosts: t.Sequence[str] = (), defaults: t.Any = None
) -> list[Definition]:
    """The VM definitions of one hypervisor."""
    try:
        return with_defaults([*listed, *host_definitions(hostvars or {}, hosts)], defaults)
    except DefinitionError as exc:
        raise AnsibleFilterError(str(exc)) from exc


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_definitions": cocoon_definitions}
