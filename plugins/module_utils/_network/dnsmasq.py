# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What dnsmasq is told of a network: its configuration, a file of names and one of addresses a guest. Pure."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._planning import settings, subnets
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record, is_domain, rfc3339

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkRecord

PROGRAM = "dnsmasq"
PACKAGE = "dnsmasq-base"
CONFIG, HOSTS, RESERVED = "dnsmasq.conf", "hosts", "dhcp"
# A guest that cannot renew its address, as nobody answers, keeps it for so long; others' addresses come free sooner.
GUEST_LEASE, OTHER_LEASE = "12h", "1h"
MAX_LEASES = 1 << 16
RA_INTERVAL = 600


class Entry(t.NamedTuple):
    """A NIC of a VM on the network."""

    ip: str
    mac: str
    vm: str
    ip6: str | None = None


class Place(t.NamedTuple):
    """Where an instance has its files, and who it is.

    :param folder: of :data:`CONFIG`, :data:`HOSTS` and :data:`RESERVED`. :param leases: its own file of leases.
    """

    folder: str
    leases: str
    user: str
    group: str


def config(network: NetworkRecord, place: Place) -> str:
    """The whole configuration; the host's own is not read."""
    lines = [
        f"# Network {network['name']}: written anew whenever this is started.",
        # Its own bridge alone, also when that is made anew, and beside the host's other name servers.
        f"interface={network['bridge']}",
        *("except-interface=lo", "bind-dynamic"),
        *(f"user={place.user}", f"group={place.group}", "pid-file="),
        *("no-hosts", "no-resolv"),
        *(_names(network, place) if network.get("names") else ["port=0"]),
        *(_dhcp(network, place) if network.get("dhcp") else []),
        *(_advertising(network) if subnets.is_advertised(network) else []),
    ]
    return "\n".join([*lines, ""])


def _names(network: NetworkRecord, place: Place) -> list[str]:
    domain = settings.domain(network)
    return [
        *(f"domain={domain}", f"local=/{domain}/", f"hostsdir={os.path.join(place.folder, HOSTS)}"),
        *("domain-needed", "bogus-priv", "cache-size=1000"),
        *(f"server={server}" for server in network.get("dns") or ()),
    ]


def _dhcp(network: NetworkRecord, place: Place) -> list[str]:
    subnet = ipaddress.IPv4Network(network["subnet"])
    ranges = [f"{subnet.network_address},static,{subnet.netmask},{GUEST_LEASE}"]
    ranges += [
        f"{first},{last},{subnet.netmask},{OTHER_LEASE}" for first, last in subnets.ranges(network.get("dhcp_range"))
    ]
    options = {
        # Empty ones are not sent; otherwise dnsmasq would name itself.
        "router": [network["gateway"] or ""] if network["nat"] else [],
        "dns-server": settings.servers(network),
        "domain-search": settings.domains(network),
        **({"mtu": [str(network["mtu"])]} if network.get("mtu") else {}),
    }
    return [
        *(f"dhcp-range={words}" for words in ranges),
        *(f"dhcp-option=option:{','.join([name, *values])}" for name, values in options.items()),
        f"dhcp-hostsdir={os.path.join(place.folder, RESERVED)}",
        f"dhcp-leasefile={place.leases}",
        f"dhcp-lease-max={min(MAX_LEASES, subnet.num_addresses)}",
        # What a guest calls itself is not what others find it by.
        *("dhcp-authoritative", "dhcp-ignore-names", "quiet-dhcp"),
    ]


def _advertising(network: NetworkRecord) -> list[str]:
    """Guests make their addresses from this and their MACs; without a way out the router is none by default."""
    subnet = ipaddress.IPv6Network(network["subnet6"])
    prefix = f"dhcp-range={subnet.network_address},ra-only,{subnet.prefixlen},{GUEST_LEASE}"
    lifetime = [] if network["routing6"] != "none" else [f"ra-param={network['bridge']},{RA_INTERVAL},0"]
    servers = [f"dhcp-option=option6:dns-server,[{subnets.gateway6(network)}]"] if network.get("names") else []
    return ["enable-ra", prefix, *lifetime, *servers]


def names_of(network: NetworkRecord, vm: str) -> list[str]:
    """The names of a VM: ``web1.<network>`` and, where its own is one word, ``web1``."""
    name = vm.lower()
    if not network.get("names") or not is_domain(name):
        return []
    return [f"{name}.{settings.domain(network)}", *([] if "." in name else [name])]


def host_lines(network: NetworkRecord, entry: Entry) -> str:
    """The names of each of a NIC's addresses."""
    names = names_of(network, entry.vm)
    addresses = filter(None, (entry.ip, entry.ip6))
    return "".join(f"{ip} {' '.join(names)}\n" for ip in addresses) if names else ""


def reservation(entry: Entry) -> str:
    """The address that a MAC gets, whoever asks under it."""
    return f"{entry.mac},{entry.ip},{GUEST_LEASE}\n"


def list_leases(text: str) -> list[Record]:
    """From dnsmasq's file of leases: lines of ``expiry mac ip name client-id``."""
    rows = [line.split() for line in text.splitlines()]
    return [
        {"ip": row[2], "mac": row[1].lower(), "expires_at": rfc3339(int(row[0])) if row[0].isdigit() else None}
        for row in rows
        if len(row) == 5 and _is_address(row[2])
    ]


def _is_address(text: str) -> bool:
    """What answers strangers wrote it: it may be anything."""
    with contextlib.suppress(ValueError):
        return bool(ipaddress.IPv4Address(text))
    return False


def read_leases(text: str) -> dict[str, str]:
    """The MAC by address."""
    return {item["ip"]: item["mac"] for item in list_leases(text)}


def is_for_others(network: NetworkRecord, ip: str) -> bool:
    """Whether an address is given to whoever asks."""
    address = ipaddress.IPv4Address(ip)
    return any(first <= address <= last for first, last in subnets.ranges(network.get("dhcp_range")))


def outdated(network: NetworkRecord, leased: t.Mapping[str, str], entries: t.Iterable[Entry]) -> set[str]:
    """Addresses that are leased to others than those whose they are, or are nobody's any more.

    :param leased: the MAC by address.
    """
    macs = {entry.ip: entry.mac for entry in entries}
    return {ip for ip, mac in leased.items() if macs.get(ip, mac if is_for_others(network, ip) else None) != mac}


def without(text: str, addresses: t.Container[str]) -> str:
    """The file of leases without those of these addresses."""
    rows = text.splitlines(keepends=True)
    return "".join(row for row in rows if len(row.split()) != 5 or row.split()[2] not in addresses)
