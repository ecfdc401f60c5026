# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_exclusions
short_description: What a limit excludes
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - Gives the patterns of hosts that C(--limit) excludes with an exclamation mark.
options:
  _input:
    description: The limit, C(ansible_limit).
    type: str
    required: true
"""

EXAMPLES = r"""
---
- name: Show the hosts that this run leaves alone
  vars:
    patterns: "{{ ansible_limit | default('') | cocoon.microvm.cocoon_exclusions }}"
  ansible.builtin.debug:
    msg: "{{ query('ansible.builtin.inventory_hostnames', patterns | join(',')) if patterns | length > 0 else [] }}"
"""

RETURN = r"""
---
_value:
  description: Patterns, without the mark.
  type: list
  elements: str
"""

import typing as t

from ansible.inventory.manager import split_host_pattern


def cocoon_exclusions(limit: str) -> list[str]:
    """Patterns of hosts that are excluded."""
    return [pattern[1:] for pattern in split_host_pattern(str(limit)) if pattern.startswith("!")]


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_exclusions": cocoon_exclusions}
