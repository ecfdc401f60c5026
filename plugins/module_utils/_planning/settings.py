# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest is told of its networks, for every way of telling it. Pure.

A guest has one default route unless it is told to have more: over the NICs that say ``default_route: true``, else
over the first whose network leads out. Ports lead to that NIC, too, as answers go the way of the default route.
So it is with IPv6, whose way out may be another NIC.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import (
        Network,
        NetworkConfig,
        NetworkRecord,
        VmRecord,
    )

DEFAULT_DNS = ("8.8.8.8", "1.1.1.1")
# For guests without IPv4.
DEFAULT_DNS6 = ("2001:4860:4860::8888", "2606:4700:4700::1111")
MAX_DNS = 2  # as many as the kernel's ip= parameter takes
# What a NIC may be told besides its network and addresses; as options of a NIC, and in the record.
ASKED = ("ip6", "default_route", "gateway", "gateway6", "metric", "routes", "dhcp", "vlan", "limits")
MAX_ROUTES = 16
EVERYWHERE6 = "::/0"


@dataclasses.dataclass(frozen=True)
class Route:
    """A way to a part of the world: *to* is a subnet, *via* the next hop."""

    to: str
    via: str
    metric: int | None = None

    def __str__(self) -> str:
        return f"{self.to}@{self.via}@{self.metric or ''}"


@dataclasses.dataclass(frozen=True)
class GuestNic:
    """One NIC as its guest is to set it up.

    :param name: what the guest calls it where it can (``eth0``).
    :param address: with prefix; ``None`` to ask by DHCP, unless *only6*.
    :param gateway: next hop of a default route; ``None`` for no default route over this NIC, or one by DHCP.
    :param address6: with prefix; ``None`` to do as the routers say, where there are any. :param gateway6: as *gateway*.
    :param only6: there is no IPv4, and it is not asked for.
    :param onlink: next hops outside of the NIC's subnets are its neighbours all the same.
    :param way_out: with DHCP, whether a router that the server names is taken.
    :param metric: of the default route.
    :param dns: name servers, ``search``: domains.
    :param mtu: ``None`` for the device's own.
    """

    name: str
    mac: str
    address: str | None = None
    gateway: str | None = None
    address6: str | None = None
    gateway6: str | None = None
    only6: bool = False
    onlink: bool = False
    way_out: bool = True
    metric: int | None = None
    routes: tuple[Route, ...] = ()
    dns: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    mtu: int | None = None

    @property
    def asks(self) -> bool:
        """Whether it has its IPv4 address by asking."""
        return self.address is None and not self.only6

    @property
    def dns4(self) -> tuple[str, ...]:
        return tuple(server for server in self.dns if not is_6(server))

    @property
    def all_routes(self) -> tuple[Route, ...]:
        """The default ones, and the others."""
        ways = (("0.0.0.0/0", self.gateway), (EVERYWHERE6, self.gateway6))
        return (*(Route(to, via, self.metric) for to, via in ways if via), *self.routes)

    @property
    def options(self) -> str:
        """All that a guest is told beyond address, gateway and name servers of IPv4: words with commas between them."""
        flags = (
            ("noroute", self.asks and not self.way_out),
            ("only6", self.only6),
            ("onlink", self.onlink),
        )
        values = (
            *(("metric", self.metric), ("mtu", self.mtu)),
            *(("ip6", self.address6), ("gateway6", self.gateway6)),
            *(("dns", server) for server in self.dns if is_6(server)),
        )
        words = [word for word, said in flags if said]
        words += [f"{key}={value}" for key, value in values if value]
        words += [f"route={route}" for route in self.routes]
        words += [f"search={domain}" for domain in self.search]
        return ",".join(words)


def settings_of(record: VmRecord) -> tuple[GuestNic, ...]:
    """The settings of a VM's NICs, in order, from a record whose NICs went through :func:`route`."""
    return tuple(_nic(config, f"eth{index}") for index, config in enumerate(record.get("network_configs") or ()))


def _nic(config: NetworkConfig, name: str) -> GuestNic:
    network, network6 = config.get("network") or {}, config.get("network6") or {}
    common: dict[str, t.Any] = {
        "name": name,
        "mac": config.get("mac") or "",
        "mtu": config.get("mtu") or None,
        "metric": config.get("metric"),
        "way_out": config.get("way_out", True),
        "address6": f"{network6['ip']}/{network6['prefix']}" if network6 else None,
        "gateway6": network6.get("gateway") or None,
    }
    routes = _routes(config)
    only6 = not network.get("ip") and bool(network6) and "offered" in config
    if not only6 and (not network.get("ip") or config.get("dhcp")):
        return GuestNic(**common, routes=tuple(route for route in routes if is_6(route.to)))
    servers = DEFAULT_DNS if config.get("dns") is None else config["dns"]
    return GuestNic(
        **common,
        address=f"{network['ip']}/{network['prefix']}" if not only6 else None,
        gateway=network.get("gateway") or None,
        only6=only6,
        onlink=bool((config.get("offered") or {}).get("onlink")),
        routes=routes,
        dns=tuple(servers[:MAX_DNS]),
        search=tuple(config.get("dns_search") or ()),
    )


def _routes(config: NetworkConfig) -> tuple[Route, ...]:
    """Those that were asked for, and those that plugins gave."""
    hop = config.get("next_hop") or (config.get("network") or {}).get("gateway") or ""
    hop6 = config.get("next_hop6") or ""
    given = [*(config.get("routes") or ()), *((config.get("offered") or {}).get("routes") or ())]
    return tuple(
        Route(item["to"], item.get("via") or (hop6 if is_6(item["to"]) else hop), item.get("metric")) for item in given
    )


def is_6(text: str) -> bool:
    """Whether an address or a subnet is one of IPv6."""
    return ":" in text


def as_seen(network: NetworkRecord, config: t.Mapping[str, t.Any]) -> NetworkRecord:
    """A network as one NIC has it: what is known only of that NIC, as plugins gave it, stands in for what it lacks."""
    offered = config.get("offered")
    if not offered:
        return network
    seen = {**network, **{key: offered[key] for key in ("subnet", "gateway", "gateway6", "mtu") if key in offered}}
    usual = DEFAULT_DNS if seen.get("gateway") else DEFAULT_DNS6 if seen.get("gateway6") else ()
    seen["dns"] = network.get("dns") or offered.get("dns") or list(usual)
    seen["dns_search"] = network.get("dns_search") or offered.get("dns_search") or []
    return t.cast("NetworkRecord", seen)


def gives_addresses(network: t.Mapping[str, t.Any]) -> bool:
    """Whether guests of a network have addresses that we know: from its subnet, or by its plugins."""
    return bool(network.get("subnet") or network.get("conflist"))


def domain(network: t.Mapping[str, t.Any]) -> str:
    """The domain that guests of a network with names are in."""
    return str(network["name"]).lower()


def servers(network: NetworkRecord) -> list[str]:
    """The name servers that guests of a network are told."""
    return [network["gateway"] or ""] if network.get("names") else list(network.get("dns") or ())


def domains(network: NetworkRecord) -> list[str]:
    """The domains that guests of a network look names up in."""
    own = [domain(network)] if network.get("names") else []
    return list(dict.fromkeys([*own, *(network.get("dns_search") or ())]))


def asked(nic: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What a NIC's definition or record asks for of :data:`ASKED`."""
    found = {key: nic[key] for key in ASKED if nic.get(key) not in (None, [], {})}
    return {key: value for key, value in found.items() if value or key != "dhcp"}


# -- which NIC is the way out ---------------------------------------------------------------------------------------


def ways_out(nics: t.Sequence[t.Mapping[str, t.Any]], networks: t.Sequence[NetworkRecord | None]) -> list[int]:
    """The NICs that have a default route, by place, the one that counts first; usually one, or none.

    :param nics: definitions or records of NICs. :param networks: the network of each.
    """
    told = _told_ways(nics)
    if told:
        return told
    pairs = [(index, nic, network or {}) for index, (nic, network) in enumerate(zip(nics, networks))]
    open_to = [(index, nic, network) for index, nic, network in pairs if nic.get("default_route") is not False]
    leading = [index for index, nic, network in open_to if nic.get("gateway") or _leads_out(network)]
    # Of a network without a subnet nobody knows what its DHCP server says.
    leading = leading or [index for index, _nic, network in open_to if network and not network.get("subnet")]
    return leading[:1]


def _told_ways(nics: t.Sequence[t.Mapping[str, t.Any]]) -> list[int]:
    told = [index for index, nic in enumerate(nics) if nic.get("default_route")]
    return sorted(told, key=lambda index: nics[index].get("metric") or 0)


def ways_out6(nics: t.Sequence[t.Mapping[str, t.Any]], networks: t.Sequence[NetworkRecord]) -> list[int]:
    """As :func:`ways_out`, of those that are told a static IPv6 address."""
    leading = [index for index, network in enumerate(networks) if nics[index].get("gateway6") or _next_hop6(network)]
    told = [index for index in _told_ways(nics) if index in leading]
    return told or [index for index in leading if nics[index].get("default_route") is not False][:1]


def _next_hop6(network: NetworkRecord) -> str:
    """The gateway by which IPv6 leads out of a network: ours, or what its plugins named."""
    if network.get("conflist"):
        return network.get("gateway6") or ""
    if not network.get("subnet6") or network.get("routing6") in (None, "none"):
        return ""
    from ansible_collections.cocoon.microvm.plugins.module_utils._planning import subnets

    return subnets.gateway6(network)


def _own_hop6(network: NetworkRecord) -> str:
    """The gateway for ways that a NIC is told by hand, which need not lead out."""
    if network.get("conflist") or not network.get("subnet6"):
        return network.get("gateway6") or ""
    from ansible_collections.cocoon.microvm.plugins.module_utils._planning import subnets

    return "" if network.get("adopted") else subnets.gateway6(network)


def _static6(config: NetworkConfig, network: NetworkRecord) -> Network | None:
    """The IPv6 address that a NIC is told; ``None`` where it makes one from what routers say."""
    if network.get("conflist"):
        return config.get("network6")
    if not network.get("subnet6"):
        return None
    from ansible_collections.cocoon.microvm.plugins.module_utils._planning import subnets

    if subnets.is_advertised(network) and not config.get("ip6"):
        return None
    return {"ip": subnets.address6(network, config) or "", "prefix": subnets.PREFIX6, "gateway": ""}


def _leads_out(network: NetworkRecord) -> bool:
    """Whether there is more behind a network than its guests and the host."""
    if network.get("adopted"):
        return bool(network.get("gateway") or not network.get("subnet"))
    return bool(network.get("nat"))


def route(configs: t.Sequence[NetworkConfig], networks: t.Sequence[NetworkRecord]) -> None:
    """Write into the NICs of a record which of them is the way out, and over which gateway."""
    ways, ways6 = ways_out(configs, networks), ways_out6(configs, networks)
    for index, (config, network) in enumerate(zip(configs, networks)):
        config["way_out"] = index in ways
        if config.get("network"):
            config["next_hop"] = config.get("gateway") or network.get("gateway") or ""
            config["network"]["gateway"] = config["next_hop"] if index in ways else ""
        told = _static6(config, network)
        if told:
            config["next_hop6"] = config.get("gateway6") or _own_hop6(network)
            way = config.get("gateway6") or _next_hop6(network)
            config["network6"] = {**told, "gateway": way if index in ways6 else ""}
        else:
            config.pop("network6", None)
            config.pop("next_hop6", None)


# -- checks ---------------------------------------------------------------------------------------------------------


def check(nics: t.Sequence[t.Mapping[str, t.Any]], networks: t.Sequence[NetworkRecord | None]) -> None:
    """That the routes of a VM's NICs can work on their networks.

    :raises InputError: names the NIC's option.
    """
    metrics: dict[int, int] = {}
    for index, (nic, network) in enumerate(zip(nics, networks)):
        if not asked(nic) or network is None:
            continue
        where = f"nics[{index}]"
        _check_plugins(nic, network, where)
        if nic.get("ip6"):
            _check_ip6(nic, network, where)
        if nic.get("vlan"):
            _check_vlan(network, where)
        _check_hops(nic, network, where)
        _check_hops6(nic, network, where)
        if nic.get("default_route"):
            first = metrics.setdefault(nic.get("metric") or 0, index)
            if first != index:
                raise InputError(
                    f"nics[{first}] has the default route already",
                    f"{where}.default_route",
                    "Say it of one NIC, or give the other one a metric of its own.",
                )


def _check_hops(nic: t.Mapping[str, t.Any], network: NetworkRecord, where: str) -> None:
    if nic.get("dhcp"):
        _check_asking(nic, network, where)
    hops = [(f"{where}.gateway", nic.get("gateway"))] if nic.get("gateway") else []
    known = nic.get("gateway") or network.get("gateway")
    for number, item in enumerate(nic.get("routes") or ()):
        option = f"{where}.routes[{number}].via"
        if is_6(item["to"]):
            continue
        if not item.get("via") and not known:
            raise InputError(f"network '{network['name']}' has no gateway", option, "Say by which address to go.")
        hops.append((option, item.get("via") or known))
    if hops and not network.get("subnet"):
        raise InputError(
            f"network '{network['name']}' has no subnet, so who gives addresses there tells the ways",
            hops[0][0],
            "Leave it out, or give the network a subnet.",
        )
    if hops and nic.get("dhcp"):
        raise InputError("the DHCP server tells the ways", hops[0][0], f"Leave it out, or {where}.dhcp.")
    import ipaddress

    for option, hop in hops:
        if ipaddress.IPv4Address(hop) not in ipaddress.IPv4Network(network["subnet"]):
            raise InputError(
                f"{hop} is not in {network['subnet']} of network '{network['name']}'", option, "Name a neighbour."
            )
        if hop == nic.get("ip"):
            raise InputError(f"{hop} is the guest's own address", option, "Name a neighbour.")
    if nic.get("default_route") and network.get("subnet") and not known:
        raise InputError(
            f"network '{network['name']}' has no gateway", f"{where}.default_route", f"Give one in {where}.gateway."
        )


def _check_hops6(nic: t.Mapping[str, t.Any], network: NetworkRecord, where: str) -> None:
    """:raises InputError: a way of IPv6 that a guest cannot go."""
    hops = [(f"{where}.gateway6", nic.get("gateway6"))] if nic.get("gateway6") else []
    for number, item in enumerate(nic.get("routes") or ()):
        if is_6(item["to"]):
            hops.append((f"{where}.routes[{number}].via", item.get("via") or nic.get("gateway6")))
    if not hops:
        return
    if network.get("conflist") or not network.get("subnet6"):
        raise InputError(
            f"network '{network['name']}' has no IPv6 subnet, so who gives addresses there tells the ways",
            hops[0][0],
            "Leave it out, or give the network a subnet6.",
        )
    from ansible_collections.cocoon.microvm.plugins.module_utils._planning import subnets

    if subnets.is_advertised(network) and not nic.get("ip6"):
        raise InputError(
            f"guests of network '{network['name']}' go by what routers say, which comes later than this",
            hops[0][0],
            f"Give {where}.ip6, or the network addresses6: static.",
        )
    for option, hop in hops:
        trouble = subnets.no_hop6(network, hop or _own_hop6(network), nic.get("ip6"))
        if trouble:
            raise InputError(f"network '{network['name']}' {trouble}", option, "Name a neighbour.")


def _check_plugins(nic: t.Mapping[str, t.Any], network: NetworkRecord, where: str) -> None:
    """:raises InputError: what a conflist says, and nobody else, of the interfaces that its plugins make."""
    for option, plugin in (
        *(("vlan", "bridge or vlan"), ("limits", "bandwidth")),
        *(("dhcp", "bridge without an ipam"), ("ip6", "host-local")),
    ):
        if network.get("conflist") and nic.get(option):
            raise InputError(
                f"network '{network['name']}' is made by the plugins of conflist '{network['conflist']}'",
                f"{where}.{option}",
                f"Leave it out, and see to it there, by the plugin {plugin}.",
            )


def _check_ip6(nic: t.Mapping[str, t.Any], network: NetworkRecord, where: str) -> None:
    """:raises InputError: an address that no guest of the network, or not this one, can have."""
    if not network.get("subnet6"):
        raise InputError(
            f"network '{network['name']}' has no IPv6 subnet", f"{where}.ip6", "Leave it out, or give it a subnet6."
        )
    from ansible_collections.cocoon.microvm.plugins.module_utils._planning import subnets

    trouble = subnets.why_not6(network, nic["ip6"], nic.get("mac"))
    if trouble:
        raise InputError(f"{nic['ip6']} {trouble}", f"{where}.ip6", f"Choose another one of {network['subnet6']}.")


def _check_vlan(network: NetworkRecord, where: str) -> None:
    """That the network has VLANs. Those of an adopted bridge are its owner's to know, and looked at by the start."""
    if network.get("adopted"):
        return
    if not network.get("vlan_filtering"):
        raise InputError(
            f"network '{network['name']}' keeps no VLANs apart",
            f"{where}.vlan",
            "Use vlan_filtering: true of the network.",
        )
    if network.get("subnet"):
        raise InputError(
            f"the gateway of network '{network['name']}' is in no VLAN",
            f"{where}.vlan",
            "Use a network without a subnet, or adopt a bridge.",
        )


def _check_asking(nic: t.Mapping[str, t.Any], network: NetworkRecord, where: str) -> None:
    """That somebody answers a guest that asks by DHCP for the address that it has."""
    if network.get("subnet") and not network.get("dhcp"):
        raise InputError(
            f"nobody of ours answers on network '{network['name']}'", f"{where}.dhcp", "Use dhcp: true of the network."
        )
    if nic.get("default_route") and network.get("subnet") and not network.get("nat"):
        raise InputError(
            f"network '{network['name']}' leads nowhere, so its DHCP server names no router",
            f"{where}.default_route",
            f"Leave out {where}.dhcp, and give {where}.gateway.",
        )


def check_route(value: str, option: str) -> str:
    """The canonical subnet of a route.

    :raises InputError: no subnet, host bits set, or everything, which is what a default route is for.
    """
    import ipaddress

    text = value.strip()
    try:
        subnet = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise InputError(f"'{text}' is not a subnet", option, "Write it as 10.0.0.0/8 or fd00:8::/32.") from None
    if not subnet.prefixlen:
        gateway = "gateway" if subnet.version == 4 else "gateway6"
        raise InputError(f"'{text}' is a default route", option, f"Use default_route and {gateway} of the NIC.")
    if subnet.network_address != ipaddress.ip_address(text.partition("/")[0]):
        raise InputError(f"'{text}' has host bits set", option, f"Did you mean {subnet}?")
    return str(subnet)


# -- ways of telling ------------------------------------------------------------------------------------------------


def kernel_words(nics: t.Iterable[GuestNic], hostname: str) -> list[str]:
    """For the kernel command line: what every Cocoon image understands, and a word of our own for the rest.

    ``ip=<ip>::<gateway>:<netmask>:<name>:eth<N>:off[:<dns0>[:<dns1>]]``, none for DHCP, and
    ``cocoon.nic=eth<N>,<options>``.
    """
    import ipaddress

    words = []
    for nic in nics:
        if nic.address:
            interface = ipaddress.IPv4Interface(nic.address)
            ip, netmask = str(interface.ip), str(interface.netmask)
            words.append("ip=" + ":".join([ip, "", nic.gateway or "", netmask, hostname, nic.name, "off", *nic.dns4]))
        if nic.options:
            words.append(f"cocoon.nic={nic.name},{nic.options}")
    return words


def netplan(nics: t.Iterable[GuestNic]) -> Record:
    """Version 2 of cloud-init's network configuration, the NICs found by their MACs and called eth0, eth1, …"""
    return {"version": 2, "ethernets": {nic.name: _ethernet(nic) for nic in nics}}


def _ethernet(nic: GuestNic) -> Record:
    found: Record = {"match": {"macaddress": nic.mac}, "set-name": nic.name}
    if nic.mtu:
        found["mtu"] = nic.mtu
    servers = {"addresses": list(nic.dns), "search": list(nic.search)}
    if any(servers.values()):
        found["nameservers"] = {key: value for key, value in servers.items() if value}
    if nic.asks:
        overrides: Record = {} if nic.way_out else {"use-routes": False}
        if nic.metric:
            overrides["route-metric"] = nic.metric
        found.update({"dhcp4": True, **({"dhcp4-overrides": overrides} if overrides else {})})
    addresses, ways = list(filter(None, (nic.address, nic.address6))), nic.all_routes
    if nic.gateway6 and not nic.onlink:
        # Among the routes, cloud-init hands it on to systemd-networkd as one to ::/64. This way it has no metric.
        found["gateway6"], ways = nic.gateway6, tuple(way for way in ways if way.to != EVERYWHERE6)
    routes = [_way(nic, way) for way in ways]
    if nic.address6:
        found["accept-ra"] = False
    return {**found, **({"addresses": addresses} if addresses else {}), **({"routes": routes} if routes else {})}


def _way(nic: GuestNic, route: Route) -> Record:
    found: Record = {"to": route.to, "via": route.via}
    if route.metric:
        found["metric"] = route.metric
    return {**found, "on-link": True} if nic.onlink else found


def identity_lines(nics: t.Iterable[GuestNic], old_macs: t.Iterable[str]) -> list[str]:
    """For a guest that goes on as a clone; *old_macs* are those that its NICs still have.

    ``nic <old MAC> <new MAC> <address>/<prefix>|- <gateway>|- <dns>|-``, and before it, if there is more to say,
    ``options <words>``, a line that handlers which do not know it leave out.
    """
    lines = []
    for nic, old in zip(nics, old_macs):
        if nic.options:
            lines.append(f"options {nic.options}")
        servers = ",".join(nic.dns4) if nic.address else ""
        lines.append(f"nic {old} {nic.mac} {nic.address or '-'} {nic.gateway or '-'} {servers or '-'}")
    return lines
