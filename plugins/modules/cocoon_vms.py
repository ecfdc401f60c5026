#!/usr/bin/python
# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cocoon_vms
short_description: Manage all the microVMs of a host in one task
version_added: 0.1.0
author:
  - The cocoon.microvm authors (@cocoonstack)
description:
  - Does for a list of VMs what M(cocoon.microvm.cocoon_vm) does for one, with the same options, planned together and
    carried out in parallel, so that a fleet's boot costs its slowest VM and not the sum.
  - One bad VM fails alone. The result lists each VM with its actions, its diff and its error, and the task fails at the
    end, naming the VMs that failed.
extends_documentation_fragment:
  - cocoon.microvm.attributes
  - cocoon.microvm.vm.list
  - cocoon.microvm.store
  - cocoon.microvm.store.admission
  - cocoon.microvm.store.progress
options:
  vms:
    description:
      - The VMs, each with the options of M(cocoon.microvm.cocoon_vm).
    type: list
    elements: dict
    required: true
  prune:
    description:
      - Remove the VMs of O(owner) that are not in O(vms).
      - Refused under C(--limit) and with an empty list. Data disks are only taken with O(force).
    type: bool
    default: false
  force:
    description:
      - Let O(prune) delete data disks.
    type: bool
    default: false
  owner:
    description:
      - Owner of the VMs that name none themselves, and whose VMs O(prune) looks at; the store's ID where omitted.
    type: str
  elsewhere:
    description:
      - VMs that are wanted on other hosts, by name, each with the name of that host. O(prune) leaves them alone, as
        their disks may be on their way there.
      - Where this is given, RV(unlisted) tells which VMs are on the host and not in O(vms).
    type: dict
  parallel:
    description:
      - How many VMs are worked on at a time.
    type: int
    default: 16
  max_unavailable:
    description:
      - How many VMs of O(vms) may be down at a time for a restart. The next ones follow when these answer.
      - VMs that are to run and do not, or whose guests do not answer, are waited for first, and count.
    type: int
    default: 1
  hold_restarts:
    description:
      - Do everything but what takes a running VM down and up again, and say in RV(results[].held) which VMs that is.
      - For whoever restarts VMs over several hosts, a few at a time, with a task of its own for each few.
    type: bool
    default: false
seealso:
  - module: cocoon.microvm.cocoon_vm
  - module: cocoon.microvm.cocoon_vm_info
"""

EXAMPLES = r"""
- name: The VMs of this host, and no others of ours
  cocoon.microvm.cocoon_vms:
    prune: true
    vms:
      - name: web1
        state: started
        image: debian
        network: lab
        wait_for: port
      - name: web2
        state: started
        image: debian
        network: lab
        wait_for: port
      - name: db1
        state: started
        image: debian
        network: lab
        memory: 4G
        data_disks:
          - name: pgdata
            size: 20G

- name: Thirty clones of a warm VM, and no more
  cocoon.microvm.cocoon_vms:
    owner: ci
    prune: true
    vms:
      - name: runner
        count: 30
        snapshot: warm
        state: started

- name: From the inventory, two restarts at a time
  cocoon.microvm.cocoon_vms:
    vms: "{{ cocoon_vms }}"
    max_unavailable: 2
"""

RETURN = r"""
results:
  description: One entry for each VM, in the order of O(vms), those that were pruned last.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The VM's name.
      type: str
    changed:
      description: Whether it was, or would be, changed.
      type: bool
    actions:
      description: What was done, or in check mode what would be done, in order.
      type: list
      elements: str
    how:
      description:
        - What that is to the VM, V(live), V(offline), V(restart) or V(rebuild (system disk made anew)) for a VM whose
          options change, else the action. Nothing where nothing changes.
      type: str
    diff:
      description:
        - The options that differ, before and after. C(how) in C(after) says of each how it is changed, and by C(vm)
          what that is to the VM as a whole.
      type: dict
    address:
      description: Its first address, as it is, or in check mode as it would be.
      type: str
    boot_seconds:
      description: Seconds from the start of the hypervisor until what was waited for.
      type: float
    held:
      description: Whether O(hold_restarts) has kept this VM from being restarted.
      type: bool
    undo:
      description: Of a VM that was held, the options that would make it as it is now once it has been changed.
      type: dict
    down:
      description: Whether the VM is to run and does not, or its guest has not answered as O(vms[].wait_for) asks.
      type: bool
    failed:
      description: Whether this VM failed.
      type: bool
    msg:
      description: Why.
      type: str
vms:
  description: The records of the VMs that are there, by name; see RV(cocoon.microvm.cocoon_vm#module:vm).
  returned: always
  type: dict
unlisted:
  description: The VMs of O(owner) that are on the host, and are neither in O(vms) nor pruned.
  returned: with O(elsewhere)
  type: list
  elements: dict
  contains:
    name:
      description: The VM's name.
      type: str
    state:
      description: Its state, as its record has it.
      type: str
    wanted_on:
      description: The host that O(elsewhere) names for it.
      type: str
failed_vms:
  description: Names of the VMs that failed.
  returned: failure
  type: list
  elements: str
deferred:
  description: Whether nothing was done because of O(defer_above).
  returned: when it is so
  type: bool
  sample: true
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cocoon.microvm.plugins.module_utils._api import vms
from ansible_collections.cocoon.microvm.plugins.module_utils._argspec import (
    admission_options,
    bulk_options,
    progress_options,
    store_options,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._module import run_module
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import listed_vm_options


def main() -> None:
    spec = {
        "vms": {"type": "list", "elements": "dict", "required": True, "options": listed_vm_options()},
        **bulk_options(),
        **store_options(),
        **admission_options(),
        **progress_options(),
    }
    run_module(AnsibleModule(argument_spec=spec, supports_check_mode=True), vms.converge_all)


if __name__ == "__main__":
    main()
