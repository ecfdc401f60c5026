# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast a guest receives: a token bucket (tbf) on its TAP, through which the host sends to it.

How fast it may send is a rule of its guard, as what comes in through an interface cannot wait, only be dropped.
"""

from __future__ import annotations

import struct
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._network import netlink

RTM_NEWQDISC, RTM_GETQDISC = 36, 38
CREATE_OR_REPLACE = 0x100 | 0x400
TC = struct.Struct("=BxxxiIII")
TC_H_ROOT = 0xFFFFFFFF
TCA_KIND, TCA_OPTIONS = 1, 2
TCA_TBF_PARMS, TCA_TBF_RATE64, TCA_TBF_BURST = 1, 4, 6
# struct tc_tbf_qopt: two of struct tc_ratespec (of which the second means nothing), limit, buffer, mtu.
RATE = struct.Struct("=BBHhHI")
REST = struct.Struct("=III")
ETHERNET = 1
MAX_RATE = (1 << 32) - 1
# What may wait for a guest, by how long it would take.
QUEUE_SECONDS = 20

Limit = t.Mapping[str, int]


def shape(index: int, limit: Limit) -> int:
    """Let so many bytes a second, and so many at once, through an interface. :return: 0 or an errno."""
    rate, burst = limit["rate"], limit["burst"]
    waiting = min(max(rate // QUEUE_SECONDS, burst), MAX_RATE)
    parameters = RATE.pack(0, ETHERNET, 0, 0, 0, min(rate, MAX_RATE)) + bytes(RATE.size) + REST.pack(waiting, 0, 0)
    options = netlink.attribute(TCA_TBF_PARMS, parameters)
    options += netlink.attribute(TCA_TBF_BURST, struct.pack("=I", min(burst, MAX_RATE)))
    if rate > MAX_RATE:
        options += netlink.attribute(TCA_TBF_RATE64, struct.pack("=Q", rate))
    body = TC.pack(0, index, 0, TC_H_ROOT, 0) + netlink.attribute(TCA_KIND, b"tbf\0")
    body += netlink.attribute(TCA_OPTIONS, options)
    return netlink.ask(netlink.ROUTE, RTM_NEWQDISC, body, CREATE_OR_REPLACE)


def rates() -> dict[int, int]:
    """How many bytes a second go through each interface that has a bucket, by its index."""
    found = {}
    for kind, _flags, data in netlink.messages(
        netlink.ROUTE, netlink.request(RTM_GETQDISC, netlink.DUMP, TC.pack(0, 0, 0, 0, 0))
    ):
        if kind == RTM_NEWQDISC:
            values = netlink.attributes(data[TC.size :])
            if values.get(TCA_KIND) == b"tbf\0":
                found[TC.unpack_from(data)[1]] = _rate(netlink.attributes(values[TCA_OPTIONS]))
    return found


def _rate(options: t.Mapping[int, bytes]) -> int:
    if TCA_TBF_RATE64 in options:
        return int(struct.unpack("=Q", options[TCA_TBF_RATE64])[0])
    return int(RATE.unpack_from(options[TCA_TBF_PARMS])[5])
