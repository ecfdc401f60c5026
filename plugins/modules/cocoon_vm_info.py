#!/usr/bin/python
# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cocoon_vm_info
short_description: Tell about microVMs
version_added: 0.1.0
author:
  - The cocoon.microvm authors (@cocoonstack)
description:
  - Returns the records of the microVMs of the target host. Never changes anything.
extends_documentation_fragment:
  - cocoon.microvm.attributes.info
  - cocoon.microvm.store
options:
  names:
    description:
      - Names of the VMs to tell about; all where omitted. Names that do not exist are left out.
    type: list
    elements: str
    aliases: [name]
  labels:
    description:
      - Only VMs that carry all of these labels.
    type: dict
  owner:
    description:
      - Only VMs of this owner.
    type: str
  guest:
    description:
      - Ask the guests themselves, through the agents inside them.
    type: bool
    default: false
  launch:
    description:
      - How each VM was last started, as lines for a shell.
    type: bool
    default: false
  logs:
    description:
      - How many of the last lines of each VM's console and of its hypervisor's log to return.
      - The guest writes its console. What it prints there, which may be a secret, is in the result.
    type: int
    default: 0
  agent_timeout:
    description:
      - Seconds that an agent has to answer, with O(guest).
    type: int
    default: 5
seealso:
  - module: cocoon.microvm.cocoon_vm
"""

EXAMPLES = r"""
- name: All VMs of the host
  cocoon.microvm.cocoon_vm_info:
  register: found

- name: What the guests say of themselves, whatever gave them their addresses
  cocoon.microvm.cocoon_vm_info:
    names: [web1]
    guest: true

- name: The command that a VM was started by
  cocoon.microvm.cocoon_vm_info:
    names: [web1]
    launch: true

- name: Their addresses
  ansible.builtin.debug:
    msg: "{{ item.config.name }} {{ item.network_configs | map(attribute='network.ip') | join(' ') }}"
  loop: "{{ found.vms }}"
  loop_control:
    label: "{{ item.config.name }}"
"""

RETURN = r"""
vms:
  description:
    - The records, sorted by name; see RV(cocoon.microvm.cocoon_vm#module:vm).
    - With O(guest) each has C(guest), what its guest says of itself, as far as its agent tells. These are C(agent),
      C(hostname), C(os) with C(pretty_name), C(kernel_release) and the like, C(interfaces) with C(name), C(mac) and
      C(addresses), C(users) that are logged in, and C(file_systems). C(error) stands there instead where it does not
      answer. Of a VM that does not run it is null.
    - With O(launch) each has C(launch), the lines for a shell of root's that its last start comes to, its hypervisor's
      command and the calls of its API among them. Passwords and other secrets are in files that these name. Lines that
      begin with C(#) tell what a shell cannot do. It is null where the VM was not started since the host booted.
    - With O(logs) each has C(console_path), the socket of its console while it runs and where there is one, and C(logs)
      with C(console) and C(hypervisor), each of C(path) and C(lines).
  returned: always
  type: list
  elements: dict
kept_disks:
  description:
    - Data disks of VMs that were removed without O(cocoon.microvm.cocoon_vm#module:force). The next VM of that name
      takes them up; V(state=absent) with V(force=true) deletes them.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The name of the VM that was removed.
      type: str
    owner:
      description: Its owner.
      type: str
    disks:
      description: Its disks, each with its name and its size in bytes.
      type: list
      elements: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cocoon.microvm.plugins.module_utils._api import vm_info
from ansible_collections.cocoon.microvm.plugins.module_utils._argspec import store_options
from ansible_collections.cocoon.microvm.plugins.module_utils._module import run_module


def main() -> None:
    spec = {
        "names": {"type": "list", "elements": "str", "aliases": ["name"]},
        "labels": {"type": "dict"},
        "owner": {"type": "str"},
        "guest": {"type": "bool", "default": False},
        "launch": {"type": "bool", "default": False},
        "logs": {"type": "int", "default": 0},
        "agent_timeout": {"type": "int", "default": 5},
        **store_options(),
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    run_module(module, vm_info.info)


if __name__ == "__main__":
    main()
