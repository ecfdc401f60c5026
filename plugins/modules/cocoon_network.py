#!/usr/bin/python
# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: cocoon_network
short_description: Manage networks of microVMs
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - A network is a bridge with a subnet, stable address allocation and NAT, or an existing bridge that guests
    are put on.
  - Omitted options are not compared; what applies at creation is said at each option.
  - Forwarding is switched on for the bridge and for the interfaces of the host's default routes, never for the
    whole host, and switched off again with the last network that needs it.
  - One nftables table a store guards the bridges. Guests reach what is behind the default routes (with O(nat)),
    their own network, and the gateway by ping, and nothing else; nobody reaches guests but the host itself,
    and others through published ports.
  - After a reboot of the host, the next run of this module, or the next start of a VM on the network, brings
    everything back. The same goes for rules that somebody else has flushed.
options:
  name:
    description:
      - Name of the network, unique in its store.
      - Letters, digits, dots, underscores and hyphens, at most 63, beginning with a letter or digit.
    type: str
    required: true
  state:
    description:
      - V(present) creates the network if it is missing, applies changed options, and repairs what the kernel
        lacks of it.
      - V(absent) removes it, which is refused while VMs use it.
    type: str
    choices: [present, absent]
    default: present
  bridge:
    description:
      - Name of the bridge; V(cm-NAME) where omitted and possible, otherwise a name made from the network's ID.
      - With O(adopt), the existing bridge to use.
      - Never changed on an existing network.
    type: str
  adopt:
    description:
      - Use the existing bridge O(bridge). Guests are attached to it; otherwise it is neither changed nor removed,
        and there are no rules, no NAT and no published ports.
      - V(false) where omitted at creation, and never changed on an existing network.
    type: bool
  subnet:
    description:
      - IPv4 subnet of the guests, such as V(10.0.0.0/24), from which each gets an address.
      - May not overlap that of another network, nor an address or route of the host.
      - On an adopted bridge, the subnet that is there, for static addresses. Give O(range_start) and O(range_end)
        too, so that nobody else's address is given out.
      - Without it, guests see to their addresses themselves.
      - Cannot be changed while VMs use the network.
    type: str
  gateway:
    description:
      - Address of the host on the bridge, and the guests' gateway; the first of O(subnet) where omitted.
      - On an adopted bridge, the gateway to tell the guests; none where omitted.
      - Cannot be changed while VMs use the network.
    type: str
  range_start:
    description:
      - First address that is given out; the first of O(subnet) where omitted.
      - A VM may ask for an address outside the range.
    type: str
  range_end:
    description:
      - Last address that is given out; the last of O(subnet) where omitted.
    type: str
  nat:
    description:
      - Let guests out through the host's default routes, behind the host's address. Without it the network reaches
        the host and itself only.
      - V(true) where omitted at creation of a network with a subnet and a bridge of its own.
      - Needed for published ports.
    type: bool
  isolated:
    description:
      - Keep the guests of the network from reaching each other. The gateway, and what is behind it, they reach.
      - V(false) where omitted at creation. On an adopted bridge, what else is on it is not isolated from them.
      - Applied at once, to running guests too.
    type: bool
  anti_spoofing:
    description:
      - Drop what a guest sends under another MAC or address than its own, and what only routers and DHCP servers send.
      - V(true) where omitted at creation, and on an adopted bridge V(false). A guest that routes for others needs
        V(false). Applied at once, to running guests too.
    type: bool
  mtu:
    description:
      - MTU of the bridge and of guests that start from now on. The bridge has 1500 where omitted at creation.
      - An adopted bridge keeps its own; the guests are told this one.
    type: int
  dns:
    description:
      - Name servers for guests that start from now on, at most two; V([8.8.8.8, 1.1.1.1]) where omitted at creation
        of a network that leads out, otherwise none.
    type: list
    elements: str
  dns_search:
    description:
      - Domains that guests look names up in, at most six. They learn of a change when they start next.
      - None where omitted at creation.
    type: list
    elements: str
  owner:
    description:
      - Who the network belongs to; the store's ID where omitted at creation.
      - Where given, another owner's network is changed only with O(force).
    type: str
  labels:
    description:
      - Labels of your own. The dictionary is complete.
    type: dict
  force:
    description:
      - Change or remove a network of another owner, and remove a bridge that has other interfaces than guests' on it.
      - A network that VMs use is not removed with this either.
    type: bool
requirements:
  - nftables, pyroute2 0.7.2 or newer
extends_documentation_fragment:
  - cocoon.microvm.store
  - cocoon.microvm.attributes
seealso:
  - module: cocoon.microvm.cocoon_network_info
  - module: cocoon.microvm.cocoon_vm
"""

EXAMPLES = r"""
---
- name: A network with NAT
  cocoon.microvm.cocoon_network:
    name: lab
    subnet: 10.89.0.0/24

- name: A network that leads nowhere but to the host and itself
  cocoon.microvm.cocoon_network:
    name: inside
    subnet: 10.89.1.0/24
    nat: false

- name: Guests on the bridge that the host has in the office LAN
  cocoon.microvm.cocoon_network:
    name: office
    adopt: true
    bridge: br0
    subnet: 192.0.2.0/24
    gateway: 192.0.2.1
    range_start: 192.0.2.200
    range_end: 192.0.2.239
    dns:
      - 192.0.2.1

- name: Smaller packets for an uplink that is a tunnel
  cocoon.microvm.cocoon_network:
    name: lab
    mtu: 1400

- name: Remove a network
  cocoon.microvm.cocoon_network:
    name: inside
    state: absent
"""

RETURN = r"""
network:
  description:
    - The network's record; V(null) if it is absent.
    - In check mode, what it would be; C(id) and the times of a new one are not there then.
  returned: success
  type: dict
  contains:
    id:
      description: ID of the network.
      type: str
      returned: success
      sample: k7n4w2zqv3xj5m6p7r2s3t4u5v
    name:
      description: Name of the network.
      type: str
      returned: success
      sample: lab
    backend:
      description: What carries the network.
      type: str
      returned: success
      sample: bridge
    bridge:
      description: Name of the bridge.
      type: str
      returned: success
      sample: cm-lab
    adopted:
      description: Whether the bridge was there before and is only used.
      type: bool
      returned: success
      sample: false
    subnet:
      description: The guests' subnet, or V(null).
      type: str
      returned: success
      sample: 10.89.0.0/24
    gateway:
      description: The guests' gateway, or V(null).
      type: str
      returned: success
      sample: 10.89.0.1
    range_start:
      description: First address that is given out, if it is limited.
      type: str
      returned: success
      sample: null
    range_end:
      description: Last address that is given out, if it is limited.
      type: str
      returned: success
      sample: null
    nat:
      description: Whether guests get out behind the host's address.
      type: bool
      returned: success
      sample: true
    isolated:
      description: Whether guests are kept from reaching each other.
      type: bool
      returned: success
      sample: false
    anti_spoofing:
      description: Whether guests are kept from using addresses that are not theirs.
      type: bool
      returned: success
      sample: true
    mtu:
      description: The MTU, if one was given.
      type: int
      returned: success
      sample: null
    dns:
      description: Name servers of the guests.
      type: list
      elements: str
      returned: success
      sample: [8.8.8.8, 1.1.1.1]
    dns_search:
      description: Domains that guests look names up in.
      type: list
      elements: str
      returned: success
      sample: [lab.example.com]
    owner:
      description: Who it belongs to.
      type: str
      returned: success
      sample: demo
    labels:
      description: The labels.
      type: dict
      returned: success
      sample: {}
    created_at:
      description: When it was created (RFC 3339).
      type: str
      returned: success
      sample: "2026-03-01T09:30:00.000000Z"
    updated_at:
      description: When an option was last changed (RFC 3339).
      type: str
      returned: success
      sample: "2026-03-01T09:30:00.000000Z"
action:
  description: What was done, or would be in check mode; one of V(create), V(update), V(repair), V(remove) and V(none).
  returned: success
  type: str
  sample: create
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cocoon.microvm.plugins.module_utils._argspec import store_options
from ansible_collections.cocoon.microvm.plugins.module_utils._module import run_module
from ansible_collections.cocoon.microvm.plugins.module_utils._network.engine import converge

OPTIONS = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "bridge": {"type": "str"},
    "adopt": {"type": "bool"},
    "subnet": {"type": "str"},
    "gateway": {"type": "str"},
    "range_start": {"type": "str"},
    "range_end": {"type": "str"},
    "nat": {"type": "bool"},
    "isolated": {"type": "bool"},
    "anti_spoofing": {"type": "bool"},
    "mtu": {"type": "int"},
    "dns": {"type": "list", "elements": "str"},
    "dns_search": {"type": "list", "elements": "str"},
    "owner": {"type": "str"},
    "labels": {"type": "dict"},
    "force": {"type": "bool"},
}


def body(module: AnsibleModule) -> dict[str, t.Any]:
    return converge(module.params, module.check_mode)


def main() -> None:
    spec = {**OPTIONS, **store_options()}
    run_module(AnsibleModule(argument_spec=spec, supports_check_mode=True), body)


if __name__ == "__main__":
    main()
