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
    are put on, or what the plugins of a CNI conflist make of it.
  - Omitted options are not compared; what applies at creation is said at each option.
  - Forwarding is switched on for the bridge and for the interfaces of the host's default routes, never for the
    whole host, and switched off again with the last network that needs it.
  - One nftables table a store guards the bridges. Guests reach what is behind the default routes (with O(nat)),
    their own network, and the gateway by ping, and nothing else; nobody reaches guests but the host itself,
    and others through published ports.
  - After a reboot of the host, the next run of this module, or the next start of a VM on the network, brings
    everything back. The same goes for rules that somebody else has flushed.
requirements:
  - nftables, pyroute2 0.7.2 or newer
  - dnsmasq, for networks with O(names), O(dhcp), or O(subnet6) and O(addresses6=advertised)
  - the plugins of the conflist (containernetworking-plugins), for networks of O(type=cni)
extends_documentation_fragment:
  - cocoon.microvm.network
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

- name: A network whose guests find each other as web1 or web1.shop, and whose first addresses are kept for others
  cocoon.microvm.cocoon_network:
    name: shop
    subnet: 10.89.2.0/24
    names: true
    reserved:
      - 10.89.2.2-10.89.2.19

- name: Addresses of both kinds
  cocoon.microvm.cocoon_network:
    name: dual
    subnet: 10.89.3.0/24
    subnet6: fd00:89:3::/64
    routing6: nat

- name: Guests on the Ethernet behind eth1, each NIC in a VLAN of it
  cocoon.microvm.cocoon_network:
    name: trunk
    uplink: eth1
    vlan_filtering: true

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

- name: Guests where the host's pods are, by the conflist that /etc/cni/net.d has for them
  cocoon.microvm.cocoon_network:
    name: pods
    type: cni
    conflist: podman

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
      description: What carries the network, V(bridge) or V(cni).
      type: str
      returned: success
      sample: bridge
    conflist:
      description: The conflist whose plugins make it, or V(null).
      type: str
      returned: success
      sample: null
    cni_conf_dir:
      description: The folder of the conflist, or V(null).
      type: str
      returned: success
      sample: null
    cni_bin_dir:
      description: The folders of its plugins, or V(null).
      type: list
      elements: str
      returned: success
      sample: null
    bridge:
      description: Name of the bridge; empty where plugins make the network.
      type: str
      returned: success
      sample: cm-lab
    adopted:
      description: Whether what carries it is not ours and only used, as a bridge that was there before, or plugins.
      type: bool
      returned: success
      sample: false
    uplink:
      description: The interface on the bridge that leads out, or V(null).
      type: str
      returned: success
      sample: null
    vlan_filtering:
      description: Whether VLANs are kept apart on the bridge.
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
    subnet6:
      description: The guests' IPv6 subnet, or V(null).
      type: str
      returned: success
      sample: fd00:89::/64
    addresses6:
      description: How guests come to their IPv6 addresses.
      type: str
      returned: success
      sample: advertised
    routing6:
      description: How guests get out with IPv6.
      type: str
      returned: success
      sample: nat
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
    reserved:
      description: Addresses and ranges that are not given out.
      type: list
      elements: str
      returned: success
      sample: [10.89.0.2-10.89.0.9]
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
    names:
      description: Whether guests find each other by name.
      type: bool
      returned: success
      sample: true
    dhcp:
      description: Whether guests that ask by DHCP are answered.
      type: bool
      returned: success
      sample: false
    dhcp_range:
      description: Addresses for others that ask by DHCP, or V(null).
      type: str
      returned: success
      sample: null
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

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cocoon.microvm.plugins.module_utils._api import networks
from ansible_collections.cocoon.microvm.plugins.module_utils._argspec import network_options, store_options
from ansible_collections.cocoon.microvm.plugins.module_utils._module import run_module


def main() -> None:
    spec = {**network_options(), **store_options()}
    run_module(AnsibleModule(argument_spec=spec, supports_check_mode=True), networks.converge)


if __name__ == "__main__":
    main()
