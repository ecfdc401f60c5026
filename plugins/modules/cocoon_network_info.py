#!/usr/bin/python
# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: cocoon_network_info
short_description: List networks of microVMs
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - Returns the networks of a store with their VMs, addresses, names, published ports and traffic.
options:
  name:
    description:
      - Only this network. A name that does not exist gives an empty list.
    type: str
extends_documentation_fragment:
  - cocoon.microvm.store
  - cocoon.microvm.attributes.info
seealso:
  - module: cocoon.microvm.cocoon_network
"""

EXAMPLES = r"""
---
- name: Look at all networks
  cocoon.microvm.cocoon_network_info:
  register: found

- name: Show who has which address
  ansible.builtin.debug:
    msg: "{{ item.name }}: {{ item.leases | items2dict(key_name='ip', value_name='vm') }}"
  loop: "{{ found.networks }}"
  loop_control:
    label: "{{ item.name }}"
"""

RETURN = r"""
networks:
  description:
    - The networks, by name. Each is what RV(cocoon.microvm.cocoon_network#module:network) says, with what is
      listed here.
  returned: success
  type: list
  elements: dict
  contains:
    state:
      description: V(error) of a network whose record is damaged; of it little else is known. Others have none.
      type: str
      returned: if it is damaged
      sample: error
    reason:
      description: What is wrong with it and what to do.
      type: str
      returned: if it is damaged
      sample: The record is missing. Put it back from a backup.
    users:
      description: The VMs that use the network.
      type: list
      elements: dict
      returned: success
      sample:
        - {id: 6p2hq7w3ovx4n5m6k7j2r3s4t5, name: web1}
    leases:
      description:
        - The addresses that VMs have, in order, with the NIC's C(mac), and C(ip6) where it has one.
        - C(names) are those under which it is found in the network, none without C(names) of the network.
      type: list
      elements: dict
      returned: success
      sample:
        - ip: 10.89.0.17
          ip6: fd00:89::5e:10ff:fe9f:26c
          mac: "02:5e:10:9f:02:6c"
          names: [web1.lab, web1]
          vm: web1
          vm_id: 6p2hq7w3ovx4n5m6k7j2r3s4t5
    other_leases:
      description: Addresses of C(dhcp_range) that others have got by DHCP, and until when.
      type: list
      elements: dict
      returned: success
      sample:
        - {ip: 10.89.0.200, mac: "52:54:00:12:34:56", expires_at: "2026-03-01T10:30:00.000000Z"}
    nics:
      description: The NICs that running VMs have on the network, and what they have sent and received.
      type: list
      elements: dict
      returned: success
      sample:
        - ip: 10.89.0.17
          mac: "02:5e:10:9f:02:6c"
          nic: 0
          received: {bytes: 7840, dropped: 0, packets: 80}
          sent: {bytes: 6720, dropped: 0, packets: 69}
          tap: cm6p2hq7w3-0
          up: true
          vm: web1
    ports:
      description: The published ports. C(host_ip) is V(null) for every address of the host.
      type: list
      elements: dict
      returned: success
      sample:
        - guest_port: 80
          host_ip: null
          host_port: 8080
          ip: 10.89.0.17
          port: "8080:80"
          protocol: tcp
          vm: web1
          vm_id: 6p2hq7w3ovx4n5m6k7j2r3s4t5
    missing:
      description:
        - What the host lacks of the network, such as C(bridge), C(address), C(rules), C(uplink) or C(dnsmasq). With
          C(type=cni) it is C(conflist) or C(plugins), which are yours to bring back, or C(attachments), which are
          interfaces of VMs that are gone, and that their plugins failed to take down.
          The next run of M(cocoon.microvm.cocoon_network) repairs it.
      type: list
      elements: str
      returned: success
      sample: []
    faults:
      description:
        - What is wrong with the host's side of running guests' NICs, such as C(nics[0] of web1 is not on cm-lab). The
          next run of M(cocoon.microvm.cocoon_network), or of M(cocoon.microvm.cocoon_vms) for these VMs, mends it.
      type: list
      elements: str
      returned: success
      sample: []
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cocoon.microvm.plugins.module_utils._api import networks
from ansible_collections.cocoon.microvm.plugins.module_utils._argspec import store_options
from ansible_collections.cocoon.microvm.plugins.module_utils._module import run_module


def main() -> None:
    spec = {"name": {"type": "str"}, **store_options()}
    run_module(AnsibleModule(argument_spec=spec, supports_check_mode=True), networks.info)


if __name__ == "__main__":
    main()
