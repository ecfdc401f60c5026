#!/usr/bin/python
# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cocoon_site
short_description: Manage the networks, images and microVMs of a host in one task
version_added: 0.1.0
author:
  - The cocoon.microvm authors (@cocoonstack)
description:
  - Does for all that a host is to have what M(cocoon.microvm.cocoon_network), M(cocoon.microvm.cocoon_image) and
    M(cocoon.microvm.cocoon_vms) do, with the same options, in one plan. The role C(cocoon.microvm.vms) is one call of
    it.
  - Everything is checked before anything is touched, also whether it can be meant together.
  - Images come first, as they take longest and take nothing away; then VMs go, then networks; then networks come, and
    the VMs on them; and last goes what those VMs have used until then.
  - Check mode plans the VMs with the images and networks that would be there, and without those that would not. The
    digest of an image to come is found out without importing it; what is in it is not, so that nothing is refused
    for what it cannot do.
  - One that fails fails alone, with the VMs that need it.
extends_documentation_fragment:
  - cocoon.microvm.attributes
  - cocoon.microvm.network.list
  - cocoon.microvm.image.list
  - cocoon.microvm.vm.list
  - cocoon.microvm.store
  - cocoon.microvm.store.admission
  - cocoon.microvm.store.progress
options:
  networks:
    description:
      - The networks, each with the options of M(cocoon.microvm.cocoon_network). Others are left alone.
    type: list
    elements: dict
    default: []
  images:
    description:
      - The images, each with the options of M(cocoon.microvm.cocoon_image). Others are left alone.
      - No registry is asked for an image because a VM is to have it, if it is listed here.
    type: list
    elements: dict
    default: []
  vms:
    description:
      - The VMs, each with the options of M(cocoon.microvm.cocoon_vm).
    type: list
    elements: dict
    default: []
  never_pull:
    description:
      - Names of more images that no registry is asked for because a VM is to have them.
    type: list
    elements: str
    default: []
  default_registry:
    description:
      - The registry that is asked for an image that is not listed, which the host does not have, and whose name says
        no registry, such as V(docker.io). Where omitted, such an image is not pulled, and its VMs fail.
    type: str
  prune:
    description:
      - Remove the VMs of O(owner) that are not in O(vms). Networks and images are not pruned.
      - Refused under C(--limit) and with an empty list. Data disks are only taken with O(force).
    type: bool
    default: false
  force:
    description:
      - Let O(prune) delete data disks, and change networks and images of other owners that do not say otherwise.
    type: bool
    default: false
  owner:
    description:
      - Owner of what names none itself, and whose VMs O(prune) looks at; the store's ID where omitted.
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
      - Do everything but what takes a running VM down and up again, and say which VMs that is; see
        O(cocoon.microvm.cocoon_vms#module:hold_restarts).
    type: bool
    default: false
  unprepared:
    description:
      - In check mode, that the host has yet to get the programs and libraries that this module works with. What cannot
        be planned without them is a warning then, and no failure.
    type: bool
    default: false
seealso:
  - module: cocoon.microvm.cocoon_network
  - module: cocoon.microvm.cocoon_image
  - module: cocoon.microvm.cocoon_vms
"""

EXAMPLES = r"""
- name: All that this host is to have
  cocoon.microvm.cocoon_site:
    networks:
      - name: lab
        subnet: 10.89.0.0/24
      - name: old
        state: absent
    images:
      - name: debian
        source: /srv/images/debian.tar
    vms:
      - name: web1
        state: started
        image: debian
        network: lab
      - name: web2
        state: started
        image: debian
        network: lab
    prune: true
"""

RETURN = r"""
networks:
  description: One entry for each network, in the order of O(networks).
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The network's name.
      type: str
    changed:
      description: Whether it was, or would be, changed.
      type: bool
    action:
      description: What was done, or would be; see RV(cocoon.microvm.cocoon_network#module:action).
      type: str
    network:
      description: The network's record; see RV(cocoon.microvm.cocoon_network#module:network).
      type: dict
    failed:
      description: Whether it failed.
      type: bool
    msg:
      description: Why.
      type: str
images:
  description: One entry for each image, in the order of O(images).
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The image's name.
      type: str
    changed:
      description: Whether it was, or would be, changed.
      type: bool
    actions:
      description: What was done, or would be; see RV(cocoon.microvm.cocoon_image#module:actions).
      type: list
      elements: str
    image:
      description: The image's record; see RV(cocoon.microvm.cocoon_image#module:image).
      type: dict
    failed:
      description: Whether it failed.
      type: bool
    msg:
      description: Why.
      type: str
results:
  description:
    - One entry for each VM, in the order of O(vms), those that were pruned last, as
      RV(cocoon.microvm.cocoon_vms#module:results) has them.
    - Of a VM that check mode cannot plan, as the host is O(unprepared), C(actions) has V(unknown).
  returned: always
  type: list
  elements: dict
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

from ansible_collections.cocoon.microvm.plugins.module_utils._api import sites
from ansible_collections.cocoon.microvm.plugins.module_utils._argspec import (
    IMAGE_RULES,
    admission_options,
    bulk_options,
    image_options,
    network_options,
    progress_options,
    store_options,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._module import run_module
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import listed_vm_options


def main() -> None:
    spec = {
        "networks": {"type": "list", "elements": "dict", "default": [], "options": network_options()},
        "images": {"type": "list", "elements": "dict", "default": [], "options": image_options(), **IMAGE_RULES},
        "vms": {"type": "list", "elements": "dict", "default": [], "options": listed_vm_options()},
        "never_pull": {"type": "list", "elements": "str", "default": []},
        "default_registry": {"type": "str"},
        "unprepared": {"type": "bool", "default": False},
        **bulk_options(),
        **store_options(),
        **admission_options(),
        **progress_options(),
    }
    run_module(AnsibleModule(argument_spec=spec, supports_check_mode=True), sites.converge)


if __name__ == "__main__":
    main()
