# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import textwrap

# One text for the options of cocoon_network and the suboptions of cocoon_site, as there is one argument spec.
_OPTIONS = r"""
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
type:
  description:
    - What carries the network. V(bridge) is a bridge, ours or an existing one. With V(cni) the plugins of O(conflist)
      make an interface for each NIC, in a network namespace of the VM's own, and all that is said of its network is
      theirs to say, so that of the other options only O(dns), O(dns_search), O(owner), O(labels) and O(force) go
      with it.
    - V(bridge) where omitted at creation, and never changed on an existing network.
  type: str
  choices: [bridge, cni]
conflist:
  description:
    - With O(type=cni), the name of a CNI network configuration list, as its file in O(cni_conf_dir) says it. It is of
      CNI 0.3.0 to 1.1.0. A file with one plugin alone will do, too.
    - Its plugins give guests their addresses, gateway, routes and name servers. A guest whose plugins give no address
      asks by DHCP.
    - Cannot be changed while VMs use the network. What is changed in the file itself holds for NICs that are made from
      then on.
  type: str
cni_conf_dir:
  description:
    - With O(type=cni), the folder of O(conflist); V(/etc/cni/net.d) where omitted at creation.
    - Cannot be changed while VMs use the network.
  type: path
cni_bin_dir:
  description:
    - With O(type=cni), the folders that plugins are looked for in, in this order; V([/opt/cni/bin, /usr/lib/cni,
      /usr/libexec/cni]) where omitted at creation.
  type: list
  elements: path
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
uplink:
  description:
    - An interface of the host to put on the bridge, so that guests are on the Ethernet behind it. It may have no
      address of the host's; otherwise make a bridge yourself, and use O(adopt).
    - Excludes O(nat), O(dhcp), O(subnet6) and O(subnet), which are for networks of our own. For guests that are told
      addresses of that Ethernet, use O(adopt) with O(subnet), O(gateway), O(range_start) and O(range_end).
    - None where omitted at creation, and never changed on an existing network.
  type: str
vlan_filtering:
  description:
    - Keep VLANs apart on the bridge, so that each NIC can be in one, see C(vlan) of a NIC of
      M(cocoon.microvm.cocoon_vm). O(uplink) carries all of them, with tags.
    - V(false) where omitted at creation. Not switched off while VMs use the network.
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
subnet6:
  description:
    - IPv6 subnet of 64 bits, such as V(fd00:1:2:3::/64), beside O(subnet) or without it. Each guest has the address of
      it that follows from its MAC (EUI-64), and so always the same, or the one that its NIC asks for.
    - The host has its first address. Not for adopted bridges. An empty string takes it away.
    - None where omitted at creation. May be changed unless NICs of VMs ask for addresses of it.
  type: str
addresses6:
  description:
    - How guests come to their addresses of O(subnet6). With V(advertised) a dnsmasq of the network's own advertises it,
      and guests make their addresses themselves (SLAAC), unless a NIC asks for a certain one.
    - With V(static) guests are told their addresses and the gateway, as those of O(subnet), and nothing is advertised.
    - V(advertised) where omitted at creation. Guests do as it says from their next start on.
  type: str
  choices: [advertised, static]
routing6:
  description:
    - How guests get out with O(subnet6). With V(none) they do not, with V(nat) behind the host's address (NAT66), and
      with V(routed) under their own, for which the routers outside must know the way.
    - Nobody outside begins a connection to a guest with any of these.
    - The host must forward IPv6 for it (C(net.ipv6.conf.all.forwarding=1)), which is a switch for all of its interfaces
      and so never ours to set.
    - V(none) where omitted at creation.
  type: str
  choices: [none, nat, routed]
range_start:
  description:
    - First address that is given out; the first of O(subnet) where omitted.
    - A VM may ask for an address outside the range.
  type: str
range_end:
  description:
    - Last address that is given out; the last of O(subnet) where omitted.
  type: str
reserved:
  description:
    - Addresses that are not given out, each one of them or a range such as V(10.0.0.2-10.0.0.9).
    - A VM may ask for one of them. None where omitted at creation.
  type: list
  elements: str
nat:
  description:
    - Let guests out through the host's default routes, behind the host's address. Without it the network reaches
      the host and itself only.
    - V(true) where omitted at creation of a network with a subnet and a bridge of its own without O(uplink).
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
    - MTU of the bridge and of guests that start from now on. The bridge has 1500 where omitted at creation. Not more
      than that of O(uplink).
    - An adopted bridge keeps its own; the guests are told this one.
  type: int
dns:
  description:
    - Name servers for guests that start from now on, at most two; V([8.8.8.8, 1.1.1.1]) where omitted at creation
      of a network that leads out, otherwise none.
    - With O(type=cni), those that the plugins name where omitted or empty.
  type: list
  elements: str
dns_search:
  description:
    - Domains that guests look names up in, at most six. They learn of a change when they start next.
    - None where omitted at creation.
  type: list
  elements: str
names:
  description:
    - Have guests find each other by the names of their VMs, C(web1) and C(web1.NETWORK), with or without DHCP. A
      dnsmasq of the network's own answers on O(gateway), which is the name server that guests are told, and asks
      O(dns) for other names.
    - V(false) where omitted at creation. Guests learn of a change when they start next.
  type: bool
dhcp:
  description:
    - Answer guests that ask by DHCP, each with the address that it has anyway. A dnsmasq of the network's own does.
    - Guests are told their addresses by us unless their NIC asks, so this is for those that cannot be told.
    - V(false) where omitted at creation. Not switched off while guests ask.
  type: bool
dhcp_range:
  description:
    - Addresses for others that ask by DHCP, such as V(10.0.0.200-10.0.0.239); VMs get none of these. Without it nobody
      else is answered.
    - An empty string takes it away. Needs O(dhcp).
  type: str
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
"""


def _nested(option: str, text: str) -> str:
    """The options as suboptions of *option*, whose mentions of each other say so."""
    inner = text.replace("O(", f"O({option}[].")
    return f"options:\n  {option}:\n    suboptions:\n{textwrap.indent(inner, ' ' * 6)}"


class ModuleDocFragment:
    # The options of one network. Annotated, because the sanity test `yamllint` reads plain assignments as literals.
    DOCUMENTATION: str = f"options:\n{textwrap.indent(_OPTIONS, '  ')}"

    # The same as suboptions of C(networks).
    LIST: str = _nested("networks", _OPTIONS)
