# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_rolled
short_description: The answer about many VMs with that about some of them worked in
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - What a later task of M(cocoon.microvm.cocoon_vms) did to some VMs, as a part of what the first one said of all.
options:
  _input:
    description: The answer about all.
    type: dict
    required: true
  done:
    description: The answer about some of them.
    type: dict
  errors:
    description: Errors by VM.
    type: dict
"""

EXAMPLES = r"""
---
- name: Say that web1 is not in health
  ansible.builtin.set_fact:
    vms_result: "{{ vms_result | cocoon.microvm.cocoon_rolled({}, {'web1': 'it does not answer'}) }}"
"""

RETURN = r"""
---
_value:
  description: The answer.
  type: dict
"""

import typing as t

from ansible_collections.cocoon.microvm.plugins.plugin_utils._rollout import rolled


def cocoon_rolled(answer: t.Any, done: t.Any = None, errors: t.Any = None) -> dict[str, t.Any]:
    """One answer of two."""
    return rolled(answer, done, errors or {})


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_rolled": cocoon_rolled}
