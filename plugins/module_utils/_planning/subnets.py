# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which addresses a network has: arithmetic on its record. Pure."""

from __future__ import annotations

import ipaddress
import typing as t

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkRecord

PREFIX6 = 64  # what addresses that follow from MACs need
# How guests come to their IPv6 addresses.
ADVERTISED, STATIC = "advertised", "static"


def bounds(network: NetworkRecord) -> tuple[int, int]:
    """First and last address that may be given out without being asked for, as numbers."""
    subnet = ipaddress.IPv4Network(network["subnet"])
    first, last = int(subnet.network_address) + 1, int(subnet.broadcast_address) - 1
    if network.get("range_start"):
        first = max(first, int(ipaddress.IPv4Address(network["range_start"])))
    if network.get("range_end"):
        last = min(last, int(ipaddress.IPv4Address(network["range_end"])))
    return first, last


def gateway6(network: t.Mapping[str, t.Any]) -> str:
    """The host's IPv6 address on a network that has a subnet for it."""
    return str(ipaddress.IPv6Network(network["subnet6"])[1])


def is_advertised(network: t.Mapping[str, t.Any]) -> bool:
    """Whether guests make their IPv6 addresses from what a router of ours says."""
    return bool(network.get("subnet6")) and network.get("addresses6") != STATIC


def interface_id(mac: str) -> int:
    """The lower half of the IPv6 addresses that follow from a MAC (modified EUI-64)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return int.from_bytes(bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:], "big")


def address6(network: t.Mapping[str, t.Any], nic: t.Mapping[str, t.Any]) -> str | None:
    """The address of a NIC on a network with IPv6: the one that was chosen, else the one that follows from its MAC."""
    if not network.get("subnet6"):
        return None
    return nic.get("ip6") or str(ipaddress.IPv6Network(network["subnet6"])[interface_id(nic["mac"])])


def owned6(network: t.Mapping[str, t.Any], nic: t.Mapping[str, t.Any]) -> list[str]:
    """All that a guest may use there: where prefixes are advertised, not each can be kept from what its MAC makes."""
    told = address6(network, nic)
    heard = address6(network, {"mac": nic["mac"]}) if network.get("addresses6") != "static" else None
    return list(dict.fromkeys(address for address in (told, heard) if address))


def why_not6(network: t.Mapping[str, t.Any], ip: str, mac: str | None) -> str | None:
    """What keeps a guest with that MAC (``None``: one that is still to be made up) from having an IPv6 address."""
    subnet, address = ipaddress.IPv6Network(network["subnet6"]), ipaddress.IPv6Address(ip)
    if address not in subnet:
        return f"is not in {subnet}"
    if int(address) - int(subnet.network_address) < 2:
        return f"is the host's on {subnet}"
    if int(address) >> 24 & 0xFFFF == 0xFFFE and (mac is None or int(address) & (1 << 64) - 1 != interface_id(mac)):
        return "is one that follows from another MAC"
    return None


def no_hop6(network: t.Mapping[str, t.Any], hop: str, own: str | None) -> str | None:
    """What keeps a guest of that network from sending on by the next hop *hop*; ``None``: nothing."""
    if not hop:
        return "has no IPv6 gateway"
    address = ipaddress.IPv6Address(hop)
    if hop == own:
        return f"has the guest itself at {hop}"
    if not address.is_link_local and address not in ipaddress.IPv6Network(network["subnet6"]):
        return f"has {network['subnet6']}, and {hop} is not in it"
    return None


def ranges(*texts: str | None) -> list[tuple[ipaddress.IPv4Address, ipaddress.IPv4Address]]:
    """First and last address of each, as the record has them: ``10.0.0.2-10.0.0.9`` or ``10.0.0.2``."""
    found = []
    for text in filter(None, texts):
        first, _dash, last = text.partition("-")
        found.append((ipaddress.IPv4Address(first), ipaddress.IPv4Address(last or first)))
    return found


class Free:
    """The addresses that may be given out without being asked for, numbered from 0. Its cost is that of the ranges."""

    def __init__(self, network: NetworkRecord) -> None:
        first, last = bounds(network)
        kept = ranges(*(network.get("reserved") or ()), network.get("dhcp_range"))
        self._parts: list[tuple[int, int]] = []
        for begin, end in sorted((int(begin), int(end)) for begin, end in kept):
            if begin > first:
                self._parts.append((first, min(begin - 1, last)))
            first = max(first, end + 1)
            if first > last:
                break
        if first <= last:
            self._parts.append((first, last))
        self.size = sum(end - begin + 1 for begin, end in self._parts)

    def __getitem__(self, number: int) -> str:
        for begin, end in self._parts:
            if number <= end - begin:
                return str(ipaddress.IPv4Address(begin + number))
            number -= end - begin + 1
        raise IndexError(number)

    def __contains__(self, number: t.Any) -> bool:
        return any(begin <= number <= end for begin, end in self._parts)
