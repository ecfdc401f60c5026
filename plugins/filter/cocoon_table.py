# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_table
short_description: Rows as an aligned table of text
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - Gives the lines of a table. Numbers are aligned to the right, nothing is shown as C(-).
options:
  _input:
    description: The rows.
    type: list
    elements: dict
    required: true
  columns:
    description:
      - The keys to show, in order, and their headings. A key may be a path, such as C(network_configs.0.network.ip).
    type: dict
    required: true
  width:
    description: Break the last column so that lines are no longer than this; V(0) for as long as they are.
    type: int
    default: 0
"""

EXAMPLES = r"""
---
- name: Show the VMs
  ansible.builtin.debug:
    msg: "{{ rows | cocoon.microvm.cocoon_table({'name': 'VM', 'state': 'STATE'}) }}"
"""

RETURN = r"""
---
_value:
  description: The lines, headings first.
  type: list
  elements: str
"""

import typing as t
from collections.abc import Mapping

from ansible.errors import AnsibleFilterError

from ansible_collections.cocoon.microvm.plugins.plugin_utils._table import table


def cocoon_table(rows: t.Any, columns: t.Any, width: int = 0) -> list[str]:
    """The lines of a table."""
    if not isinstance(columns, Mapping) or not columns:
        raise AnsibleFilterError("cocoon_table needs a dictionary of columns and their headings")
    return table(rows, columns, width)


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_table": cocoon_table}
