# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which addresses a network has: arithmetic on its record."""

from __future__ import annotations

import ipaddress

from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record


def bounds(network: Record) -> tuple[int, int]:
    """First and last address that may be given out without being asked for, as numbers."""
    subnet = ipaddress.IPv4Network(network["subnet"])
    first, last = int(subnet.network_address) + 1, int(subnet.broadcast_address) - 1
    if network.get("range_start"):
        first = max(first, int(ipaddress.IPv4Address(network["range_start"])))
    if network.get("range_end"):
        last = min(last, int(ipaddress.IPv4Address(network["range_end"])))
    return first, last
