# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_said
short_description: What a module says, in the words of an inventory
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - Puts the variables of a play, such as C(cocoon_max_unavailable), where a message of M(cocoon.microvm.cocoon_site)
    names the option that the role sets by it.
options:
  _input:
    description: The message.
    type: str
    required: true
"""

EXAMPLES = r"""
---
- name: Say what failed
  ansible.builtin.debug:
    msg: "{{ 'VM web1 would restart: set allow_restart: true' | cocoon.microvm.cocoon_said }}"
"""

RETURN = r"""
---
_value:
  description: The message.
  type: str
"""

import typing as t

from ansible_collections.cocoon.microvm.plugins.plugin_utils._said import in_the_words_of_an_inventory


def cocoon_said(text: t.Any) -> str:
    """The message."""
    return in_the_words_of_an_inventory(str(text))


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_said": cocoon_said}
