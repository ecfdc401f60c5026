# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_problems
short_description: What is wrong with VM definitions, before anything is made
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - Checks VM definitions as M(cocoon.microvm.cocoon_vms) does, without asking their host, so that networks and images
    need not be made for what is refused then.
options:
  _input:
    description: VM definitions, as P(cocoon.microvm.cocoon_definitions#filter) gives them.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
---
- name: Show what is wrong with a definition
  ansible.builtin.debug:
    msg: "{{ [{'name': 'web1', 'memroy': '1G'}] | cocoon.microvm.cocoon_problems }}"
"""

RETURN = r"""
---
_value:
  description: One line for each problem, with the place and the name of the VM; none of them repeats a secret.
  type: list
  elements: str
"""

import typing as t

from ansible_collections.cocoon.microvm.plugins.plugin_utils._definitions import Definition
from ansible_collections.cocoon.microvm.plugins.plugin_utils._problems import problems


def cocoon_problems(definitions: list[Definition]) -> list[str]:
    """What is wrong with them."""
    return problems(definitions)


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_problems": cocoon_problems}
