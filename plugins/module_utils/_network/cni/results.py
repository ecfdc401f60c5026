# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plugin says of the interface that it has made, of CNI 0.3 to 1.1. Pure."""

from __future__ import annotations

import ipaddress
import json
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ToolError, UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record, is_domain

MAX_ROUTES = 16


def read(data: bytes, plugin: str) -> Record:
    """The document that a plugin printed.

    :raises ToolError: it is no result.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        shown = data[:200].decode(errors="replace").strip()
        raise ToolError(
            f"the CNI plugin '{plugin}' printed what is no result: {shown or 'nothing'}",
            "conflist",
            "See to that plugin; it has to print one JSON object.",
        )
    for key in ("interfaces", "ips", "routes"):
        items = document.get(key)
        if items is not None and not (isinstance(items, list) and all(isinstance(item, dict) for item in items)):
            raise _garbage(plugin, f"its {key} are no list of objects")
    return document


def _garbage(plugin: str, why: str) -> ToolError:
    return ToolError(f"the CNI plugin '{plugin}' printed a wrong result: {why}", "conflist", "See to that plugin.")


def offer(result: Record, ifname: str, plugin: str) -> Record:
    """What it means for the guest behind the interface: what a network's record says otherwise, and its addresses.

    ``ip prefix subnet gateway``, ``ip6 prefix6 gateway6`` where there is IPv6, ``routes`` of both, ``onlink`` where a
    next hop is outside of these subnets, ``dns dns_search``; without addresses, there is only what is left of these.

    :raises ToolError: it cannot be meant. :raises UnsupportedError: guests cannot be told that.
    """
    try:
        found = _names(result)
        addresses = _addresses(result, ifname)
        if not addresses:
            return found
        ways = _routes(result, addresses)
    except (ValueError, TypeError, AttributeError, LookupError) as exc:
        raise _garbage(plugin, str(exc)[:200]) from exc
    own = [address.interface.network for address in addresses.values()]
    beside = [way for way in ways if way.to.prefixlen and way.to not in own]
    if any(way.via is None for way in ways if way.to not in own) or len(beside) > MAX_ROUTES:
        raise UnsupportedError(
            f"the CNI plugin '{plugin}' gives {own[0]} ways without a next hop, or too many",
            "conflist",
            "Guests take routes that name a gateway, and 16 beside the default ones.",
        )
    out = {way.to.version: str(way.via) for way in reversed(ways) if not way.to.prefixlen}
    if 4 in addresses:
        mine = addresses[4].interface
        found.update(ip=str(mine.ip), prefix=mine.network.prefixlen, subnet=str(mine.network), gateway=out.get(4))
    if 6 in addresses:
        mine = addresses[6].interface
        found.update(ip6=str(mine.ip), prefix6=mine.network.prefixlen, gateway6=out.get(6))
    if any(_is_far(way.via, own) for way in ways if way.to not in own):
        found["onlink"] = True
    return {**found, "routes": [{"to": str(way.to), "via": str(way.via)} for way in beside]}


class Address(t.NamedTuple):
    interface: t.Any
    gateway: t.Any


class Way(t.NamedTuple):
    to: t.Any
    via: t.Any


def _addresses(result: Record, ifname: str) -> dict[int, Address]:
    """The first address of the guest's interface of each version, and its gateway."""
    interfaces = result.get("interfaces") or []
    found: dict[int, Address] = {}
    for item in result.get("ips") or []:
        index = item.get("interface")
        if isinstance(index, int) and interfaces:
            there = interfaces[index]
            if not there.get("sandbox") or there.get("name") != ifname:
                continue
        interface = ipaddress.ip_interface(str(item["address"]))
        gateway = ipaddress.ip_address(item["gateway"]) if item.get("gateway") else None
        if gateway is not None and gateway.version != interface.version:
            raise ValueError(f"{gateway} is no gateway of {interface}")
        found.setdefault(interface.version, Address(interface, gateway))
    return found


def _routes(result: Record, addresses: t.Mapping[int, Address]) -> list[Way]:
    """Each route of a version that there is an address of."""
    found = []
    for item in result.get("routes") or []:
        to = ipaddress.ip_network(item["dst"], strict=False)
        if to.version in addresses:
            via = ipaddress.ip_address(item["gw"]) if item.get("gw") else addresses[to.version].gateway
            if via is not None and via.version != to.version:
                raise ValueError(f"{via} is no way to {to}")
            found.append(Way(to, via))
    return found


def _is_far(via: t.Any, subnets: t.Sequence[t.Any]) -> bool:
    """Whether a next hop is in none of the guest's subnets, nor of its link, which is what routes go by otherwise."""
    linked = via.version == 6 and via.is_link_local
    return not linked and not any(via in subnet for subnet in subnets if subnet.version == via.version)


def _names(result: Record) -> Record:
    """Name servers and domains."""
    dns = result.get("dns") or {}
    servers = [ipaddress.ip_address(text) for text in dns.get("nameservers") or ()]
    search = dns.get("search") or ([dns["domain"]] if dns.get("domain") else [])
    domains = [text.rstrip(".").lower() for text in search]
    wrong = [text for text in domains if not is_domain(text)]
    if wrong:
        raise ValueError(f"'{wrong[0]}' is not a domain")
    found: dict[str, t.Any] = {"dns": [str(server) for server in servers]}
    return {**found, "dns_search": domains}
