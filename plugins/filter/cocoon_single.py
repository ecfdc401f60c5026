# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_single
short_description: The definitions of some VMs, one each
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - Of a definition with C(count), one for each of the VMs that are asked for.
options:
  _input:
    description: VM definitions, as P(cocoon.microvm.cocoon_definitions#filter) gives them.
    type: list
    elements: dict
    required: true
  names:
    description: Names of VMs.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
---
- name: Show the second of five
  ansible.builtin.debug:
    msg: "{{ [{'name': 'clone', 'count': 5}] | cocoon.microvm.cocoon_single(['clone-2']) }}"
"""

RETURN = r"""
---
_value:
  description: The definitions.
  type: list
  elements: dict
"""

import typing as t

from ansible_collections.cocoon.microvm.plugins.plugin_utils._rollout import single


def cocoon_single(definitions: t.Any, names: t.Any) -> list[dict[str, t.Any]]:
    """Definitions of single VMs."""
    return single(definitions, names)


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_single": cocoon_single}
