# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_merge
short_description: Merge definitions by name over several variables
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - Merges the values of a variable and of its suffixed variables, such as C(cocoon_vms) and C(cocoon_vms_web), by name.
  - The suffixed variables come first, sorted by name; the variable without a suffix has the last word.
  - Dictionaries merge deeply, everything else is replaced, and a null takes a key away.
options:
  _input:
    description:
      - The variables by name. Each is a dictionary of definitions by name, or a list of definitions with C(name).
    type: dict
    required: true
  base:
    description: Name of the variable without a suffix.
    type: str
    required: true
  defaults:
    description: Options that apply where a definition does not have them.
    type: dict
    default: {}
  keep_null:
    description: Leave nulls in their places, so that P(cocoon.microvm.cocoon_definitions#filter) finds them.
    type: bool
    default: false
"""

EXAMPLES = r"""
---
- name: Show the networks of this host
  vars:
    names: "{{ query('ansible.builtin.varnames', '^cocoon_networks(_.+)?$') }}"
    values: "{{ query('ansible.builtin.vars', *names) }}"
  ansible.builtin.debug:
    msg: "{{ dict(names | zip(values)) | cocoon.microvm.cocoon_merge('cocoon_networks') }}"
"""

RETURN = r"""
---
_value:
  description: The merged definitions, each with its C(name).
  type: list
  elements: dict
"""

import typing as t
from collections.abc import Mapping

from ansible.errors import AnsibleFilterError

from ansible_collections.cocoon.microvm.plugins.plugin_utils._definitions import (
    Definition,
    DefinitionError,
    merge_variables,
)


def cocoon_merge(variables: t.Any, base: str, defaults: t.Any = None, keep_null: bool = False) -> list[Definition]:
    """Merge definitions by name over several variables."""
    if not isinstance(variables, Mapping):
        raise AnsibleFilterError("cocoon_merge takes a dictionary of variables")
    try:
        return merge_variables(variables, base, defaults, keep_null)
    except DefinitionError as exc:
        raise AnsibleFilterError(str(exc)) from exc


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_merge": cocoon_merge}
