# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_evacuate
short_description: Where the VMs of a host that is to be emptied find room
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - The largest VM first, each goes to the host that has most memory left, and the disk, the CPUs and the networks.
options:
  _input:
    description: What M(cocoon.microvm.cocoon_vm_move) says of the VMs.
    type: list
    elements: dict
    required: true
  origin:
    description: The host that is to be emptied.
    type: str
    required: true
  rooms:
    description: What the other hosts have, by host, as M(cocoon.microvm.cocoon_vm_move) says.
    type: dict
    required: true
  records:
    description: The records of the VMs of the host. One that is on its way already goes where it was to go.
    type: list
    elements: dict
    default: []
"""

EXAMPLES = r"""
---
- name: Show that there is no room without a host
  ansible.builtin.debug:
    msg: "{{ [] | cocoon.microvm.cocoon_evacuate('hv2', {}) }}"
"""

RETURN = r"""
---
_value:
  description: Moves, each with C(name), C(from) and C(to), which is empty where there is no room.
  type: list
  elements: dict
"""

import typing as t

from ansible_collections.cocoon.microvm.plugins.plugin_utils._moves import assign


def cocoon_evacuate(passports: t.Any, origin: str, rooms: t.Any, records: t.Any = ()) -> list[dict[str, t.Any]]:
    """Moves away from a host."""
    return assign(origin, passports, rooms, records)


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_evacuate": cocoon_evacuate}
