#!/usr/bin/python
# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cocoon_vm_move
short_description: One step of moving a microVM to another host
version_added: 0.1.0
author:
  - The cocoon.microvm authors (@cocoonstack)
description:
  - Moves a VM as itself, disks and memory, with its name, id, MACs and addresses, one step on one host at a time.
  - The playbooks C(cocoon.microvm.move) and C(cocoon.microvm.evacuate), and C(cocoon.microvm.site) with C(cocoon_move),
    do the steps in their order.
  - Each step can be done again. At no time does the VM run on both hosts, as the first lets go of it, in its record,
    before the other has it, and takes it back only if the other says that it has discarded it.
extends_documentation_fragment:
  - cocoon.microvm.attributes
  - cocoon.microvm.store
  - cocoon.microvm.store.admission
  - cocoon.microvm.store.progress
options:
  name:
    description:
      - The VM.
    type: str
  state:
    description:
      - The step.
      - V(described) gives the passport of a VM, V(admitted) tells of a list of passports whether these VMs fit.
      - V(departed) stops the VM where it is, with its memory saved, and holds it for O(host).
      - V(exported) writes it into an archive, V(image_exported) does so with an image.
      - V(expected) makes a place for an archive, V(arrived) takes the VM in from it, V(image_arrived) an image.
      - V(started) starts it where it came to, and waits for it. V(settled) has it stay, V(discarded) ends and removes
        it.
      - V(left) removes it where it was, V(returned) lets it go on there.
    type: str
    required: true
    choices:
      - described
      - admitted
      - departed
      - exported
      - image_exported
      - image_arrived
      - expected
      - arrived
      - started
      - settled
      - left
      - discarded
      - returned
  host:
    description:
      - What the other host is called.
    type: str
  token:
    description:
      - The move, as V(departed) has returned it.
    type: str
  id:
    description:
      - The id of the VM.
    type: str
  image:
    description:
      - The digest of an image.
    type: str
  passports:
    description:
      - What V(described) has returned of the VMs that are to come.
    type: list
    elements: dict
  networks:
    description:
      - Networks that have another name on this host, by the name that they have on the other.
    type: dict
  memory:
    description:
      - Save the memory of a VM that runs, so that it goes on. Without, it is shut down, and boots where it comes to.
    type: bool
    default: true
  stop_timeout:
    description:
      - Seconds to wait for a guest to shut down.
    type: int
  path:
    description:
      - The archive, on the target.
    type: path
  local_path:
    description:
      - The archive, on the controller, for V(exported), V(image_exported), V(arrived) and V(image_arrived).
    type: path
  checksum:
    description:
      - The digest that the archive must have.
    type: str
  reader:
    description:
      - The uid that is to take or bring the archive. Set by the action.
    type: int
  receipt:
    description:
      - What V(settled) or V(discarded) returned on the other host.
    type: str
  force:
    description:
      - Let a VM return without a receipt, because the other host is gone for good.
    type: bool
    default: false
  wait_for:
    description:
      - What to wait for with V(started), see O(cocoon.microvm.cocoon_vm#module:wait_for).
    type: str
    choices: [process, console, ping, port, agent]
  wait_port:
    description:
      - The port to wait for.
    type: int
  wait_pattern:
    description:
      - What to wait for on the console.
    type: str
  timeout:
    description:
      - Seconds to wait.
    type: int
seealso:
  - module: cocoon.microvm.cocoon_vm
"""

EXAMPLES = r"""
- name: Whether web1 of hv2 fits here
  cocoon.microvm.cocoon_vm_move:
    state: admitted
    passports: ["{{ hostvars.hv2.found.passport }}"]

- name: A VM whose new host burnt down in the middle of its move goes on where it was
  cocoon.microvm.cocoon_vm_move:
    name: web1
    state: returned
    force: true
"""

RETURN = r"""
passport:
  description: What goes along with the VM, and what it takes.
  returned: with V(described)
  type: dict
admission:
  description: For each passport C(name), C(problems), C(memory), C(reason) and C(image).
  returned: with V(admitted)
  type: list
  elements: dict
room:
  description: What there is for VMs, C(memory) and C(disk) in bytes that are not promised, C(cpus) and C(networks).
  returned: with V(admitted)
  type: dict
archive:
  description: The archive, C(path), C(digest) and C(size).
  returned: with V(exported) and V(image_exported)
  type: dict
path:
  description: Where the archive is to go.
  returned: with V(expected)
  type: str
vm:
  description: The VM's record; see RV(cocoon.microvm.cocoon_vm#module:vm).
  returned: with most steps
  type: dict
token:
  description: The move.
  returned: with most steps
  type: str
starts:
  description: Whether the VM ran, and so is to be started where it comes to.
  returned: with most steps
  type: bool
receipt:
  description: What the other host wants to see for V(left) or V(returned).
  returned: with V(settled) and V(discarded)
  type: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cocoon.microvm.plugins.module_utils._api import moves
from ansible_collections.cocoon.microvm.plugins.module_utils._argspec import (
    admission_options,
    progress_options,
    store_options,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._module import run_module
from ansible_collections.cocoon.microvm.plugins.module_utils._moving.converging import NEEDS, WAITS
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import OPTIONS as VM_OPTIONS

OPTIONS = {
    "name": {"type": "str"},
    "state": {"type": "str", "required": True, "choices": list(NEEDS)},
    "host": {"type": "str"},
    "token": {"type": "str", "no_log": False},
    "id": {"type": "str"},
    "image": {"type": "str"},
    "passports": {"type": "list", "elements": "dict", "no_log": False},
    "networks": {"type": "dict"},
    "memory": {"type": "bool", "default": True},
    "path": {"type": "path"},
    "local_path": {"type": "path"},
    "checksum": {"type": "str"},
    "reader": {"type": "int"},
    "receipt": {"type": "str"},
    "force": {"type": "bool", "default": False},
    **{option: VM_OPTIONS[option].spec for option in ("stop_timeout", *WAITS)},
}


def main() -> None:
    module = AnsibleModule(
        argument_spec={**OPTIONS, **store_options(), **admission_options(), **progress_options()},
        mutually_exclusive=[("path", "local_path")],
        supports_check_mode=True,
    )
    run_module(module, moves.converge)


if __name__ == "__main__":
    main()
