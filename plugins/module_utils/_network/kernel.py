# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bridges of ours: made, set up and removed through netlink, looked at by ioctl.

A bridge is ours if it has the MAC address that follows from the network's id. It is given together
with the bridge itself, so there is no instant at which a bridge of ours is not known as ours, and
guests see the same gateway after every reboot.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    CocoonError,
    ConflictError,
    NotFoundError,
    ToolError,
    UnsupportedError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._network import links, wires
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import subnets
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record, derive_mac

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkRecord

DEFAULT_MTU = 1500
RT_SCOPE_LINK = 253
RT_TABLE_MAIN = 254
AF_INET, AF_INET6 = 2, 10
IFA_F_NODAD = 0x02
IPV6_ADDR_GLOBAL = 0x00  # as /proc/net/if_inet6 has it
# Of a bridge with IPv6: it is the router, so it listens to none, and nobody else can have its addresses.
ROUTER6 = {"accept_ra": "0", "autoconf": "0", "accept_dad": "0"}


@contextlib.contextmanager
def route_socket() -> t.Iterator[t.Any]:
    """A routing socket; what the kernel refuses becomes an error of ours."""
    try:
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError
    except ImportError:
        raise ToolError(
            "the Python library pyroute2 is not installed",
            remedy="Install python3-pyroute2, or run the role cocoon.microvm.host.",
        ) from None
    with IPRoute() as ipr:
        try:
            yield ipr
        except NetlinkError as exc:
            if exc.code == errno.EOPNOTSUPP:
                raise UnsupportedError(
                    "the kernel does not do that with interfaces", remedy="It may lack VLANs on bridges, or bridges."
                ) from exc
            raise CocoonError(f"the kernel refused a change of the network: {exc.args[-1]}") from exc


def bridge_mac(network_id: str) -> str:
    return derive_mac(f"bridge/{network_id}")


def found(network_id: str) -> Record:
    """What there is of a network of ours: its bridge, its subnet, and what guests may there; empty if it is gone."""
    interfaces = wires.look()
    for name, wire in interfaces.items():
        link = links.look(name)
        if link is None or link.mac != bridge_mac(network_id) or kind(name) != "bridge":
            continue
        isolated = any(port.isolated for port in interfaces.values() if port.master == wire.index)
        seen: Record = {"bridge": name, "adopted": False, "isolated": isolated}
        if link.address:
            interface = ipaddress.IPv4Interface(link.address)
            seen.update(subnet=str(interface.network), gateway=str(interface.ip))
            seen["nat"] = links.get_sysctl("ipv4", name, "forwarding") == "1"
        return seen
    return {}


def _cidr(record: NetworkRecord) -> str | None:
    """The host's address on the bridge, with prefix."""
    if not record["gateway"] or not record["subnet"] or record["adopted"]:
        return None
    return f"{record['gateway']}/{record['subnet'].partition('/')[2]}"


def missing(record: NetworkRecord) -> list[str]:
    """What the bridge lacks: some of ``bridge mtu address ipv6 up port vlans forwarding``.

    :raises ConflictError: something that is not ours has its name.
    :raises NotFoundError: an adopted bridge is not there.
    """
    link = links.look(record["bridge"])
    if record["adopted"]:
        if link is None:
            raise NotFoundError(
                f"the bridge {record['bridge']} of network '{record['name']}' is not there",
                "bridge",
                "It was adopted, so it is yours to make.",
            )
        return []
    if link is None:
        return ["bridge"]
    if link.mac != bridge_mac(record["id"]):
        raise ConflictError(
            f"an interface {record['bridge']} is there that is not of network '{record['name']}'",
            "bridge",
            "Remove it, name another bridge, or use it with adopt: true.",
        )
    found = []
    if record["mtu"] and link.mtu != record["mtu"]:
        found.append("mtu")
    address = _cidr(record)
    # The ioctl shows the first address only; there may be more.
    if address is not None and link.address != address and not _has_address(link.index, address):
        found.append("address")
    if _lacks_ipv6(record, link):
        found.append("ipv6")
    if not link.up:
        found.append("up")
    if record.get("uplink") and not _is_port(record, link.index):
        found.append("port")
    if wires.filters(link.index) != bool(record.get("vlan_filtering")):
        found.append("vlans")
    if any(
        (links.get_sysctl("ipv4", record["bridge"], key) == "1") != record["nat"]
        for key in ("forwarding", "route_localnet")
    ):
        found.append("forwarding")
    return found


def _is_port(record: NetworkRecord, bridge: int) -> bool:
    """Whether the uplink is on the bridge, up, and in all VLANs if there are any."""
    name = record["uplink"] or ""
    uplink = links.look(name)
    if uplink is None or not uplink.up or wires.master_of(name) != bridge:
        return False
    return not record.get("vlan_filtering") or wires.has_all_vlans(uplink.index)


def _lacks_ipv6(record: NetworkRecord, link: links.Link) -> bool:
    disabled = links.get_sysctl("ipv6", record["bridge"], "disable_ipv6")
    if not record.get("subnet6"):
        return disabled == "0"
    return disabled != "0" or not has_address6(link.index, subnets.gateway6(record))


def has_address6(index: int, ip: str) -> bool:
    """Whether an interface has an IPv6 address."""
    return ipaddress.IPv6Address(ip) in dict(_addresses6(index))


def global_address6(index: int) -> str | None:
    """An IPv6 address of an interface by which others than its neighbours may know the host."""
    return next((str(ip) for ip, scope in _addresses6(index) if scope == IPV6_ADDR_GLOBAL), None)


def _addresses6(index: int) -> list[tuple[ipaddress.IPv6Address, int]]:
    """(address, scope) of each IPv6 address of an interface; none on a kernel without IPv6."""
    try:
        with open("/proc/thread-self/net/if_inet6", encoding="ascii") as stream:
            rows = [line.split() for line in stream]
    except FileNotFoundError:
        return []
    return [(ipaddress.IPv6Address(bytes.fromhex(row[0])), int(row[3], 16)) for row in rows if int(row[1], 16) == index]


def _has_address(index: int, address: str) -> bool:
    with route_socket() as ipr:
        return address in _addresses(ipr, index)


def _addresses(ipr: t.Any, index: int) -> list[str]:
    """IPv4 addresses with prefix of one interface."""
    return [
        f"{message.get_attr('IFA_LOCAL') or message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}"
        for message in ipr.get_addr(family=AF_INET)
        if message["index"] == index
    ]


def ways(name: str) -> list[dict[str, str]]:
    """The routes over an interface that name a next hop, of both families, as a result of CNI plugins says them."""
    index, found = links.index_of(name), []
    with route_socket() as ipr:
        for family, everywhere in ((AF_INET, "0.0.0.0"), (AF_INET6, "::")):
            for message in ipr.get_routes(family=family):
                to, via = message.get_attr("RTA_DST") or everywhere, message.get_attr("RTA_GATEWAY")
                # A kernel without IPv6 answers with what it has.
                mine = message["family"] == family and message.get_attr("RTA_OIF") == index
                if via and mine and message.get_attr("RTA_TABLE") == RT_TABLE_MAIN:
                    found.append({"dst": f"{to}/{message['dst_len']}", "gw": via})
    return found


def create(record: NetworkRecord) -> None:
    """Make the bridge, down and without an address; one of ours that is there is fine.

    :raises ConflictError: something that is not ours has its name.
    """
    if "bridge" not in missing(record):
        return
    try:
        with route_socket() as ipr:
            ipr.link(
                "add",
                ifname=record["bridge"],
                kind="bridge",
                address=bridge_mac(record["id"]),
                mtu=record["mtu"] or DEFAULT_MTU,
                br_stp_state=0,
                br_forward_delay=0,
                # Kernels without it refuse even to be told that it is not wanted.
                **({"br_vlan_filtering": 1} if record.get("vlan_filtering") else {}),
            )
            index = links.index_of(record["bridge"])
            ipr.link("set", index=index, ifalias=f"cocoon-microvm network {record['name']}")
    except CocoonError:
        if "bridge" in missing(record):  # else it was made meanwhile, by us or (an error of its own) by others
            raise


def activate(record: NetworkRecord) -> None:
    """Bring the bridge's MTU, address, forwarding and state to what the record says."""
    lacking = missing(record)
    name = record["bridge"]
    if "mtu" in lacking:
        with links.Control() as control:
            control.set_mtu(name, record["mtu"] or DEFAULT_MTU)
    # Guests have no business with the host over IPv6, unless their network speaks it.
    if record.get("subnet6"):
        for key, value in ROUTER6.items():
            links.set_sysctl("ipv6", name, key, value)
    links.set_sysctl("ipv6", name, "disable_ipv6", "0" if record.get("subnet6") else "1")
    if "address" in lacking or "up" in lacking:
        _set_address(record)
    if "up" in lacking:
        with links.Control() as control:
            control.set_up(name)
    # A kernel without IPv6 is not asked: it would answer with addresses of other families.
    if record.get("subnet6") and ("ipv6" in lacking or "up" in lacking):
        _set_address6(record)
    if "vlans" in lacking:
        with route_socket() as ipr:
            index, filtering = links.index_of(name), int(record["vlan_filtering"])
            ipr.link("set", index=index, kind="bridge", br_vlan_filtering=filtering)
    if record.get("uplink") and ("port" in lacking or "vlans" in lacking):
        _set_uplink(record)
    links.set_sysctl("ipv4", name, "forwarding", "1" if record["nat"] else "0")
    # For ports on the host's loopback. Rules that are there by now keep guests away from it.
    links.set_sysctl("ipv4", name, "route_localnet", "1" if record["nat"] else "0")


def _set_address(record: NetworkRecord) -> None:
    """Exactly the record's address: the bridge is ours, and others are left from a subnet that it had."""
    index = links.index_of(record["bridge"])
    wanted = _cidr(record)
    if wanted is None:
        return
    with route_socket() as ipr:
        there = _addresses(ipr, index or 0)
        for address in there:
            if address != wanted:
                ip, prefix = address.split("/")
                ipr.addr("del", index=index, address=ip, prefixlen=int(prefix))
        if wanted not in _addresses(ipr, index or 0):  # a primary takes its secondaries along
            ip, prefix = wanted.split("/")
            broadcast = str(ipaddress.IPv4Network(record["subnet"]).broadcast_address)
            ipr.addr("add", index=index, address=ip, prefixlen=int(prefix), broadcast=broadcast)


def _set_address6(record: NetworkRecord) -> None:
    """Exactly the record's address beside the link's own."""
    index, wanted = links.index_of(record["bridge"]), subnets.gateway6(record)
    with route_socket() as ipr:
        for message in ipr.get_addr(family=AF_INET6, index=index):
            if message["family"] != AF_INET6:
                continue
            ip = ipaddress.IPv6Address(message.get_attr("IFA_ADDRESS"))
            if message["index"] == index and not ip.is_link_local and str(ip) != wanted:
                ipr.addr("del", index=index, address=str(ip), prefixlen=message["prefixlen"], family=AF_INET6)
        if not has_address6(index or 0, wanted):
            ipr.addr("add", index=index, address=wanted, prefixlen=64, family=AF_INET6, flags=IFA_F_NODAD)


def _set_uplink(record: NetworkRecord) -> None:
    """Put the record's uplink on the bridge, with all VLANs if there are any."""
    name = record["uplink"] or ""
    index = links.index_of(name)
    if index is None:
        raise NotFoundError(f"there is no interface {name}", "uplink", "Bring it back, it is the network's uplink.")
    with route_socket() as ipr:
        ipr.link("set", index=index, master=links.index_of(record["bridge"]))
    with links.Control() as control:
        control.set_up(name)
    if record["vlan_filtering"]:
        wires.add_all_vlans(index)


def master(name: str) -> str | None:
    """The interface that *name* is a part of."""
    index = wires.master_of(name)
    return links.name_of(index) if index else None


def foreign_ports(record: NetworkRecord) -> list[str]:
    """Interfaces on our bridge beside its uplink; with no VM on the network they are not ours."""
    index = links.index_of(record["bridge"])
    if record["adopted"] or index is None:
        return []
    with route_socket() as ipr:
        found = [link.get_attr("IFLA_IFNAME") for link in ipr.get_links() if link.get_attr("IFLA_MASTER") == index]
        return sorted(name for name in found if name != record.get("uplink"))


def delete(record: NetworkRecord) -> None:
    """Remove the bridge if it is there and ours; an adopted one is left alone. An uplink is let go of."""
    link = links.look(record["bridge"])
    if record["adopted"] or link is None or link.mac != bridge_mac(record["id"]):
        return
    try:
        with route_socket() as ipr:
            ipr.link("del", index=link.index)
    except CocoonError:
        if links.index_of(record["bridge"]) is not None:
            raise


def used_ranges(exclude: t.Container[str | None] = (), family: int = AF_INET) -> list[tuple[str, str]]:
    """Parts of the IPv4 or IPv6 space that the host uses, and for what, in words.

    Default routes do not count, nor does what goes through the interfaces *exclude*, nor what is of a link alone.
    """
    found = []
    with route_socket() as ipr:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in ipr.get_links()}
        for message in ipr.get_addr(family=family):
            ip = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            name = names.get(message["index"], "?")
            if message["scope"] < RT_SCOPE_LINK and name not in exclude:
                found.append((_canonical(ip, message["prefixlen"]), f"an address of the host's interface {name}"))
        for message in ipr.get_routes(family=family, table=RT_TABLE_MAIN):
            name = names.get(message.get_attr("RTA_OIF"), "?")
            local = family == AF_INET6 and (message.get_attr("RTA_DST") or "").startswith(("fe80", "ff"))
            if message["dst_len"] > 1 and name not in exclude and not local:
                subnet = _canonical(message.get_attr("RTA_DST"), message["dst_len"])
                found.append((subnet, f"a route of the host through {name}"))
    return found


def _canonical(ip: str, prefix: int) -> str:
    return str(ipaddress.ip_interface(f"{ip}/{prefix}").network)


def kind(name: str) -> str | None:
    """The kind of an interface (``bridge``, ``veth``, ``""`` for hardware), or ``None`` if it is not there."""
    index = links.index_of(name)
    if index is None:
        return None
    with route_socket() as ipr:
        for link in ipr.get_links(index):
            info = link.get_attr("IFLA_LINKINFO")
            return (info.get_attr("IFLA_INFO_KIND") if info else None) or ""
    return None
