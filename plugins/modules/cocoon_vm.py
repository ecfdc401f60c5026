#!/usr/bin/python
# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cocoon_vm
short_description: Manage one microVM
version_added: 0.1.0
author:
  - The cocoon.microvm authors (@cocoonstack)
description:
  - Creates, changes, starts, stops, restarts and removes a microVM on the target host.
  - What is there is compared with what is asked for. An option that is omitted is not compared, defaults apply at
    creation.
  - What a change to an existing VM means (applied live, needs a restart, needs a rebuild, or is refused) is a table in
    the collection's documentation. Nothing is ever ignored silently.
  - For more than one VM on a host, M(cocoon.microvm.cocoon_vms) does the same in one task, in parallel.
extends_documentation_fragment:
  - cocoon.microvm.attributes
  - cocoon.microvm.vm
  - cocoon.microvm.store
  - cocoon.microvm.store.admission
  - cocoon.microvm.store.progress
seealso:
  - module: cocoon.microvm.cocoon_vms
  - module: cocoon.microvm.cocoon_vm_info
"""

EXAMPLES = r"""
- name: A VM that runs and answers on port 22
  cocoon.microvm.cocoon_vm:
    name: web1
    state: started
    image: debian
    cpu: 2
    memory: 1G
    network: lab
    ssh_keys:
      - "{{ lookup('ansible.builtin.file', '~/.ssh/id_ed25519.pub') }}"
    wait_for: port

- name: More memory, for which it may restart
  cocoon.microvm.cocoon_vm:
    name: web1
    state: started
    memory: 2G
    allow_restart: true

- name: A database with a data disk and a published port
  cocoon.microvm.cocoon_vm:
    name: db1
    state: started
    image: debian
    network: lab
    ports:
      - "5432:5432"
    data_disks:
      - name: pgdata
        size: 20G

- name: Remove it, and its data disks too
  cocoon.microvm.cocoon_vm:
    name: db1
    state: absent
    force: true
"""

RETURN = r"""
vm:
  description:
    - The VM's record, or nothing if the VM is absent. Times are in RFC 3339, sizes in bytes.
    - Of a VM whose image brings no kernel, C(exit_code) is how its command ended, V(null) while that is not known.
  returned: success
  type: dict
  sample:
    id: k3jq5n7c2v4m6x8z0b1d9f5h7t
    hypervisor: qemu
    state: running
    pid: 4711
    config:
      name: web1
      cpu: 2
      memory: 1073741824
      storage: 10737418240
      image: debian
      network: lab
    network_configs:
      - tap: cmk3jq5n7c-0
        mac: "02:5c:1e:00:12:34"
        network:
          ip: 10.88.0.17
          gateway: 10.88.0.1
          prefix: 24
        network6:
          ip: fd00:88::5e:12ff:fe00:1234
          gateway: fd00:88::1
          prefix: 64
    first_booted: true
actions:
  description: What was done, or in check mode what would be done, in order.
  returned: always
  type: list
  elements: str
  sample: [create, start]
boot_seconds:
  description: Seconds from the start of the hypervisor until O(wait_for) was met.
  returned: when a start was waited for
  type: float
  sample: 3.2
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
    progress_options,
    store_options,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._module import run_module
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import vm_options


def main() -> None:
    spec = {**vm_options(), **store_options(), **admission_options(), **progress_options()}
    run_module(AnsibleModule(argument_spec=spec, supports_check_mode=True), vms.converge)


if __name__ == "__main__":
    main()
