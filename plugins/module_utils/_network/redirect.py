# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two interfaces as the ends of one wire: what comes in at one goes out at the other, by tc."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._network import kernel, netlink
from ansible_collections.cocoon.microvm.plugins.module_utils._network.shaping import RTM_GETQDISC, TC, TCA_KIND

RTM_NEWQDISC, RTM_DELQDISC = 36, 37
INGRESS, INGRESS_PARENT = 0xFFFF0000, 0xFFFFFFF1
EVERYTHING = ["0x0/0x0+0"]  # a u32 match of no bits; matchall is missing from some kernels
ETH_P_ALL = 3
CLASS = 0x10000


def join(first: int, second: int) -> None:
    """Join two interfaces of the current network namespace, given by index, whatever either was joined to.

    :raises CocoonError: the kernel refuses it.
    """
    for source in (first, second):
        body = TC.pack(0, source, INGRESS, INGRESS_PARENT, 0)
        netlink.ask(netlink.ROUTE, RTM_DELQDISC, body)  # usually there is none
    try:
        with kernel.route_socket() as ipr:
            for source, target in ((first, second), (second, first)):
                ipr.tc("add", "ingress", source, INGRESS)
                action = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": target}
                options: dict[str, t.Any] = {"keys": EVERYTHING, "target": CLASS, "action": action}
                ipr.tc("add-filter", "u32", source, parent=INGRESS, protocol=ETH_P_ALL, prio=1, **options)
    except UnsupportedError:
        raise
    except CocoonError as exc:
        raise UnsupportedError(
            f"the kernel does not redirect packets ({exc.message})",
            "type",
            "Load its modules sch_ingress, cls_u32 and act_mirred (modprobe).",
        ) from exc


def joined() -> set[int]:
    """The interfaces of the current network namespace that lead elsewhere what comes in, by index."""
    found = set()
    request = netlink.request(RTM_GETQDISC, netlink.DUMP, TC.pack(0, 0, 0, 0, 0))
    for kind, _flags, data in netlink.messages(netlink.ROUTE, request):
        if kind == RTM_NEWQDISC and netlink.attributes(data[TC.size :]).get(TCA_KIND) == b"ingress\0":
            found.add(TC.unpack_from(data)[1])
    return found
