# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_move_networks
short_description: What the networks of VMs are called on the hypervisor that they move to
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - A VM's own network is the one that its definition names there.
options:
  _input:
    description: Results of M(cocoon.microvm.cocoon_vm_move) with the state V(described), in a loop over moves.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
---
- name: Show that nothing is renamed
  ansible.builtin.debug:
    msg: "{{ [] | cocoon.microvm.cocoon_move_networks }}"
"""

RETURN = r"""
---
_value:
  description: Names on the target, by the names elsewhere.
  type: dict
"""

import typing as t

from ansible_collections.cocoon.microvm.plugins.plugin_utils._moves import renamed


def cocoon_move_networks(described: t.Any) -> dict[str, str]:
    """Names of networks on the target."""
    return renamed(described)


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_move_networks": cocoon_move_networks}
