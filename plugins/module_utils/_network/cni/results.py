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

EVERYWHERE = ipaddress.IPv4Network("0.0.0.0/0")
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
    """What it means for the guest behind the interface: what a network's record says otherwise, and its address.

    ``ip prefix subnet gateway routes dns dns_search``; without addresses, there is only what is left of these.

    :raises ToolError: it cannot be meant. :raises UnsupportedError: guests cannot be told that.
    """
    try:
        found = _names(result)
        address = _address(result, ifname)
        if address is None:
            return found
        interface, gateway = address
        ways = _routes(result, gateway)
        out = [via for to, via in ways if to == EVERYWHERE][:1]
        beside = [(to, via) for to, via in ways if to not in (EVERYWHERE, interface.network)]
    except (ValueError, TypeError, AttributeError, LookupError) as exc:
        raise _garbage(plugin, str(exc)[:200]) from exc
    hops = [via for _to, via in beside] + out
    if any(via is None or via not in interface.network for via in hops) or len(beside) > MAX_ROUTES:
        raise UnsupportedError(
            f"the CNI plugin '{plugin}' gives {interface} ways that lead over no neighbour of it, or too many",
            "conflist",
            "Guests take gateways inside of their subnet, and 16 routes.",
        )
    return {
        **found,
        **{"ip": str(interface.ip), "prefix": interface.network.prefixlen, "subnet": str(interface.network)},
        "gateway": str(out[0]) if out else None,
        "routes": [{"to": str(to), "via": str(via)} for to, via in beside],
    }


def _address(result: Record, ifname: str) -> tuple[ipaddress.IPv4Interface, ipaddress.IPv4Address | None] | None:
    """The first IPv4 address of the guest's interface, and its gateway; ``None`` where addresses are not given."""
    interfaces = result.get("interfaces") or []
    others = 0
    for item in result.get("ips") or []:
        index = item.get("interface")
        if isinstance(index, int) and interfaces:
            there = interfaces[index]
            if not there.get("sandbox") or there.get("name") != ifname:
                continue
        interface = ipaddress.ip_interface(str(item["address"]))
        if isinstance(interface, ipaddress.IPv6Interface):
            others += 1
            continue
        return interface, ipaddress.IPv4Address(item["gateway"]) if item.get("gateway") else None
    if others:
        raise UnsupportedError(
            "the conflist gives IPv6 addresses alone, which guests are not told",
            "conflist",
            "Have its ipam give an IPv4 address, too.",
        )
    return None


def _routes(
    result: Record, gateway: ipaddress.IPv4Address | None
) -> list[tuple[ipaddress.IPv4Network, ipaddress.IPv4Address | None]]:
    """(subnet, next hop) of each IPv4 route."""
    found = []
    for item in result.get("routes") or []:
        to = ipaddress.ip_network(item["dst"], strict=False)
        if isinstance(to, ipaddress.IPv4Network):
            found.append((to, ipaddress.IPv4Address(item["gw"]) if item.get("gw") else gateway))
    return found


def _names(result: Record) -> Record:
    """Name servers, as far as guests can be told them, and domains."""
    dns = result.get("dns") or {}
    servers = [ipaddress.ip_address(text) for text in dns.get("nameservers") or ()]
    search = dns.get("search") or ([dns["domain"]] if dns.get("domain") else [])
    domains = [text.rstrip(".").lower() for text in search]
    wrong = [text for text in domains if not is_domain(text)]
    if wrong:
        raise ValueError(f"'{wrong[0]}' is not a domain")
    found: dict[str, t.Any] = {"dns": [str(server) for server in servers if server.version == 4]}
    return {**found, "dns_search": domains}
