# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_declared
short_description: Names that the inventory declares for a host
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - Of a variable such as C(cocoon_images), and those with a suffix, only the names, whatever is said of them. No
    registry is asked for an image that the inventory declares.
options:
  _input:
    description: The host's variables, out of C(hostvars).
    type: dict
    required: true
  base:
    description: Name of the variable without a suffix.
    type: str
    required: true
"""

EXAMPLES = r"""
---
- name: Show the images that a hypervisor is to have
  ansible.builtin.debug:
    msg: "{{ hostvars['hv1'] | cocoon.microvm.cocoon_declared('cocoon_images') }}"
"""

RETURN = r"""
---
_value:
  description: The names, sorted.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.cocoon.microvm.plugins.plugin_utils._definitions import DefinitionError, declared


def cocoon_declared(variables: t.Any, base: str) -> list[str]:
    """Names that a variable and its suffixed ones have."""
    try:
        return declared(variables, base)
    except DefinitionError as exc:
        raise AnsibleFilterError(str(exc)) from exc


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_declared": cocoon_declared}
