# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_health
short_description: How the health of VMs is asked, or what came of it
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - From C(cocoon_healthy) of VM hosts and hypervisors, what to ask; and from the answers, who is not in health.
options:
  _input:
    description: C(hostvars); or, with O(asked), what this filter gave.
    type: raw
    required: true
  hypervisor:
    description: The hypervisor.
    type: str
  hosts:
    description: Its VM hosts.
    type: list
    elements: str
  records:
    description: The records of its VMs by name.
    type: dict
  names:
    description: The VMs whose health is asked.
    type: list
    elements: str
  asked:
    description: The answers to C(port), C(url) and C(command), each the results of a loop over the checks.
    type: dict
"""

EXAMPLES = r"""
---
- name: Show how the health of web1 is asked
  ansible.builtin.debug:
    msg: "{{ hostvars | cocoon.microvm.cocoon_health('hv1', ['web1'], vms_result.vms, ['web1']) }}"
"""

RETURN = r"""
---
_value:
  description: A list of checks; or, with O(asked), why each VM is not in health that is not.
  type: raw
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.cocoon.microvm.plugins.plugin_utils._definitions import DefinitionError
from ansible_collections.cocoon.microvm.plugins.plugin_utils._rollout import health_checks, ill


def cocoon_health(
    given: t.Any,
    hypervisor: str = "",
    hosts: t.Sequence[str] = (),
    records: t.Any = None,
    names: t.Sequence[str] = (),
    asked: t.Any = None,
) -> t.Any:
    """Checks, or what came of them."""
    if asked is not None:
        return ill(given, asked)
    try:
        return health_checks(given, hypervisor, hosts, records or {}, names)
    except DefinitionError as exc:
        raise AnsibleFilterError(str(exc)) from exc


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_health": cocoon_health}
