#!/usr/bin/python
# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: cocoon_host_info
short_description: Facts of a hypervisor host, and what it lacks
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - Returns what a host has for running microVMs, and the checks of the doctor, each with what to do where it fails.
  - Works before anything has been set up, and never changes anything.
options:
  root_dir:
    description:
      - Directory of the store, with records, images and disks.
    type: path
    default: /var/lib/cocoon-microvm
  run_dir:
    description:
      - Directory of sockets and guest memory. What is in it does not outlive a reboot.
    type: path
    default: /run/cocoon-microvm
  log_dir:
    description:
      - Directory of hypervisor and console logs.
    type: path
    default: /var/log/cocoon-microvm
requirements:
  - Linux, root on the target host
extends_documentation_fragment:
  - cocoon.microvm.attributes.info
seealso:
  - module: cocoon.microvm.cocoon_vm_info
"""

EXAMPLES = r"""
---
- name: Look at the host
  cocoon.microvm.cocoon_host_info:
  register: found

- name: Show what is wrong with it
  ansible.builtin.debug:
    msg: "{{ item.name }}: {{ item.detail }}. {{ item.remedy }}"
  loop: "{{ found.checks | rejectattr('status', 'equalto', 'PASS') }}"
"""

RETURN = r"""
---
ok:
  description: Whether no check failed.
  returned: success
  type: bool
  sample: true
checks:
  description: The checks, in the order to look at them.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: What was checked.
      type: str
      returned: success
      sample: mkfs.erofs
    status:
      description:
        - V(PASS); V(WARN) where things work, but not as they could; or V(FAIL) where they do not work.
      type: str
      returned: success
      sample: FAIL
    detail:
      description: What was found.
      type: str
      returned: success
      sample: mkfs.erofs not found; needed for image layers
    remedy:
      description: What to do about it; V(null) for V(PASS).
      type: str
      returned: success
      sample: "Install erofs-utils, or run the role cocoon.microvm.host."
host:
  description: The facts.
  returned: success
  type: dict
  contains:
    architecture:
      description: The machine's architecture.
      type: str
      returned: success
      sample: x86_64
    kernel:
      description: The kernel's release.
      type: str
      returned: success
      sample: 6.1.0-18-amd64
    python:
      description: The interpreter that runs the modules; C(distribution_packages) says whether those reach it.
      type: dict
      returned: success
      sample: {executable: /usr/bin/python3, version: 3.11.2, virtual_environment: false, distribution_packages: true}
    libraries:
      description: The Python libraries and their versions; V(null) for one that was not found.
      type: dict
      returned: success
      sample: {pyroute2: 0.7.2, jsonschema: 4.10.3, requests_unixsocket: null}
    default_kernel:
      description: The image with the kernel for images that bring none; V(null) if there is none.
      type: dict
      returned: success
      sample: {id: "sha256:6b7c…", owner: k3tq…, labels: {recipe: 0f3c…}, updated_at: "2026-11-23T10:00:00Z"}
    hypervisors:
      description: What there is of each hypervisor, with the reason where it is not available.
      type: list
      elements: dict
      returned: success
      sample:
        - name: qemu
          binary: /usr/bin/qemu-system-x86_64
          version: 7.2.22
          available: true
          reason: null
          accels: [tcg]
          firmware: [uefi, bios]
    kvm:
      description: Whether KVM is usable, and why not.
      type: dict
      returned: success
      sample: {usable: false, reason: there is no /dev/kvm}
    tools:
      description: Path and version of the tools that the engine calls; V(null) for one that was not found.
      type: dict
      returned: success
      sample: {qemu-img: {path: /usr/bin/qemu-img, version: 7.2.22}}
    memory:
      description: Total and available memory in bytes.
      type: dict
      returned: success
      sample: {total: 8318451712, available: 7041568768}
    disk:
      description: Size and free space in bytes of the file system that holds the store.
      type: dict
      returned: success
      sample: {path: /var/lib/cocoon-microvm, total: 67350540288, free: 50142535680}
    firewalls:
      description:
        - Other firewalls that drop what is forwarded, which are C(docker), C(ufw), C(firewalld), C(iptables) or
          C(nftables), and the chain in which they do.
        - C(open) are the commands by which one lets the bridges of networks pass, none if it does already; C(close)
          those that take it back.
      type: list
      elements: dict
      returned: success
      sample:
        - name: docker
          place: iptables-nft FORWARD
          open: []
          close:
            - [iptables-nft, -w, -D, DOCKER-USER, -i, cm-+, -m, comment, --comment, cocoon-microvm, -j, ACCEPT]
            - [iptables-nft, -w, -D, DOCKER-USER, -o, cm-+, -m, comment, --comment, cocoon-microvm, -j, ACCEPT]
    systemd:
      description: Whether systemd runs the host.
      type: bool
      returned: success
      sample: true
    store:
      description: The store, with its layout, ID, range of user IDs and number of objects if it exists.
      type: dict
      returned: success
      sample:
        exists: true
        root_dir: /var/lib/cocoon-microvm
        run_dir: /run/cocoon-microvm
        log_dir: /var/log/cocoon-microvm
        id: hm3x5sdnqvuh2qu6tnyrpd4lla
        layout: 1
        uid_start: 1879048192
        uid_count: 65536
        counts: {vms: 3, images: 1, networks: 1, snapshots: 0}
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cocoon.microvm.plugins.module_utils._api import hosts
from ansible_collections.cocoon.microvm.plugins.module_utils._argspec import store_options
from ansible_collections.cocoon.microvm.plugins.module_utils._module import run_module


def main() -> None:
    spec = store_options()
    del spec["lock_timeout"]
    run_module(AnsibleModule(argument_spec=spec, supports_check_mode=True), hosts.info)


if __name__ == "__main__":
    main()
