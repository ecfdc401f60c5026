#!/usr/bin/python
# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cocoon_snapshot_info
short_description: Tell about snapshots of microVMs
version_added: 0.1.0
author:
  - The cocoon.microvm authors (@cocoonstack)
description:
  - Returns the snapshots of the target host with their sizes, parents and clones. Never changes anything.
extends_documentation_fragment:
  - cocoon.microvm.attributes.info
  - cocoon.microvm.store
options:
  names:
    description:
      - Names of the snapshots to tell about; all where omitted. Names that do not exist are left out.
    type: list
    elements: str
    aliases: [name]
  vm:
    description:
      - Only snapshots that were taken of this VM.
    type: str
  owner:
    description:
      - Only snapshots of this owner.
    type: str
seealso:
  - module: cocoon.microvm.cocoon_snapshot
"""

EXAMPLES = r"""
- name: All snapshots of a VM
  cocoon.microvm.cocoon_snapshot_info:
    vm: web1
  register: found

- name: What they take
  ansible.builtin.debug:
    msg: "{{ item.name }} {{ item.size | human_readable }} {{ item.created_at }}"
  loop: "{{ found.snapshots }}"
  loop_control:
    label: "{{ item.name }}"
"""

RETURN = r"""
snapshots:
  description: The records, oldest first; see RV(cocoon.microvm.cocoon_snapshot#module:snapshot).
  returned: always
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cocoon.microvm.plugins.module_utils._api import snapshot_info
from ansible_collections.cocoon.microvm.plugins.module_utils._argspec import store_options
from ansible_collections.cocoon.microvm.plugins.module_utils._module import run_module


def main() -> None:
    spec = {
        "names": {"type": "list", "elements": "str", "aliases": ["name"]},
        "vm": {"type": "str"},
        "owner": {"type": "str"},
        **store_options(),
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    run_module(module, snapshot_info.info)


if __name__ == "__main__":
    main()
