# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_rollout
short_description: Which VMs of a fleet go down together
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - From the answers of M(cocoon.microvm.cocoon_vms) with O(cocoon.microvm.cocoon_vms#module:hold_restarts) on each
    hypervisor, the order in which the VMs are restarted, a few at a time.
options:
  _input:
    description: The answers by hypervisor; nothing for one that gave none.
    type: dict
    required: true
  defined:
    description: The wanted states of VMs by name by hypervisor, see P(cocoon.microvm.cocoon_inventory_vms#filter).
    type: dict
    required: true
  unhealthy:
    description: VMs that run and are not in health, by hypervisor.
    type: dict
    required: true
  size:
    description: How many VMs may be down at a time.
    type: int
    required: true
  canary:
    description: How many go before all others.
    type: int
    default: 0
"""

EXAMPLES = r"""
---
- name: Show what goes down when
  ansible.builtin.debug:
    msg: "{{ {'hv1': held} | cocoon.microvm.cocoon_rollout({'hv1': {'web1': 'started'}}, {}, 1) }}"
"""

RETURN = r"""
---
_value:
  description: C(batches), each a list of C(name) and C(host); and C(down), VMs that are down already.
  type: dict
"""

import typing as t

from ansible_collections.cocoon.microvm.plugins.plugin_utils._rollout import plan_rollout


def cocoon_rollout(
    answers: t.Any, defined: t.Any, unhealthy: t.Any, size: t.Any, canary: t.Any = 0
) -> dict[str, t.Any]:
    """Batches of VMs."""
    return plan_rollout(answers, defined, unhealthy, max(1, int(size)), int(canary or 0))


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_rollout": cocoon_rollout}
