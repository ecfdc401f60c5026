# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the host knows of the neighbours on a bridge: at which MAC each address is."""

from __future__ import annotations

import ipaddress
import socket
import struct

from ansible_collections.cocoon.microvm.plugins.module_utils._network import links, netlink

RTM_DELNEIGH = 29
NDA_DST = 1


def forget(link: str, address: str) -> None:
    """Forget where an address is that nobody has any more, or not there.

    Else who has it next is not reached from here until the kernel gives the old MAC up, which takes half a minute.
    """
    index = links.index_of(link)
    if index is None:
        return
    ip = ipaddress.ip_address(address)
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    body = struct.pack("=BBHiHBB", family, 0, 0, index, 0, 0, 0) + netlink.attribute(NDA_DST, ip.packed)
    netlink.ask(netlink.ROUTE, RTM_DELNEIGH, body)  # there is nothing to forget where nobody has asked for it
