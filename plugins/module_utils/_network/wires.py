# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's side of running VMs' NICs: what is wrong with their TAPs, by one look at all interfaces."""

from __future__ import annotations

import dataclasses
import functools
import os
import socket
import struct
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, NotFoundError
from ansible_collections.cocoon.microvm.plugins.module_utils._network import links, netlink, shaping
from ansible_collections.cocoon.microvm.plugins.module_utils._types import PAUSED, RUNNING

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkRecord

RTM_NEWLINK = 16
RTM_GETLINK = 18
RTM_SETLINK = 19
RTM_DELLINK = 17
LINK = struct.Struct("=BxHiII")
COUNTERS = struct.Struct("=8Q")
IFF_UP = 0x1
IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_PROTINFO, IFLA_LINKINFO = 3, 4, 10, 12, 18
IFLA_STATS64 = 23
IFLA_NET_NS_FD = 28
IFLA_AF_SPEC, IFLA_EXT_MASK = 26, 29
IFLA_INFO_DATA, IFLA_INFO_SLAVE_DATA = 2, 5
IFLA_BR_VLAN_FILTERING = 7
IFLA_BRIDGE_VLAN_INFO = 2
VLAN_PVID, VLAN_UNTAGGED, VLAN_RANGE_BEGIN, VLAN_RANGE_END = 0x2, 0x4, 0x8, 0x10
EXT_VLANS = 0x4  # with ranges by their ends: there may be a port in all of them
MAX_VLAN = 4094
IFLA_BRPORT_MODE, IFLA_BRPORT_ISOLATED = 4, 33
NLA_F_NESTED = 0x8000
DEFAULT_MTU = 1500

GONE = "there is no TAP"


class Traffic(t.NamedTuple):
    """What has gone through an interface, as the host sees it, in the kernel's order (struct rtnl_link_stats64)."""

    received_packets: int = 0
    sent_packets: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    received_errors: int = 0
    sent_errors: int = 0
    received_dropped: int = 0
    sent_dropped: int = 0


@dataclasses.dataclass(frozen=True)
class Wire:
    """One interface; *master* is the index of the bridge that it is on, 0 for none."""

    index: int
    up: bool
    mtu: int
    master: int
    hairpin: bool = False
    isolated: bool = False
    traffic: Traffic = Traffic()


class Wires(dict[str, Wire]):
    """The interfaces by name, and what only some are asked for: looked up once, when it is needed."""

    @functools.cached_property
    def rates(self) -> dict[int, int]:
        """How many bytes a second go out of each interface that is limited, by its index."""
        return shaping.rates()

    @functools.cached_property
    def vlans(self) -> dict[int, dict[int, int]]:
        """The VLANs of each port of a bridge, by its index, each with its flags."""
        return vlans()


def look() -> Wires:
    """All interfaces of the current network namespace."""
    found = Wires()
    body = LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    for kind, _flags, data in netlink.messages(netlink.ROUTE, netlink.request(RTM_GETLINK, netlink.DUMP, body)):
        if kind == RTM_NEWLINK:
            _family, _type, index, flags, _change = LINK.unpack_from(data)
            values = netlink.attributes(data[LINK.size :])
            port = netlink.attributes(netlink.attributes(values.get(IFLA_LINKINFO, b"")).get(IFLA_INFO_SLAVE_DATA, b""))
            name = values[IFLA_IFNAME].rstrip(b"\0").decode(errors="replace")
            found[name] = Wire(
                index=index,
                up=bool(flags & IFF_UP),
                mtu=_number(values, IFLA_MTU),
                master=_number(values, IFLA_MASTER),
                hairpin=port.get(IFLA_BRPORT_MODE) == b"\1",
                isolated=port.get(IFLA_BRPORT_ISOLATED) == b"\1",
                traffic=Traffic(*COUNTERS.unpack_from(values[IFLA_STATS64])) if IFLA_STATS64 in values else Traffic(),
            )
    return found


def _number(values: t.Mapping[int, bytes], kind: int) -> int:
    return int(struct.unpack("=I", values[kind])[0]) if kind in values else 0


def is_settled(record: t.Mapping[str, t.Any]) -> bool:
    """Whether a VM is past its start and on its networks, as far as its record goes."""
    return (
        record.get("state") in (RUNNING, PAUSED)
        and not record.get("phase")
        and not record.get("identity_pending")
        and not record.get("untold_nics")
        and bool(record.get("network_configs"))
    )


def faults(config: t.Mapping[str, t.Any], network: NetworkRecord, links: Wires) -> list[str]:
    """What is wrong with one NIC of a running VM, in words; usually nothing.

    :param network: its network's record. :param links: from :func:`look`.
    """
    bridge = config.get("bridge_dev")
    if not bridge or config.get("netns_path"):
        return []
    wire, master = links.get(config["tap"]), links.get(bridge)
    if wire is None:
        return [GONE]
    found = []
    if master is None or wire.master != master.index:
        found.append(f"not on {bridge}")
    if not wire.up:
        found.append("down")
    mtu = wanted_mtu(config, network)
    if mtu and wire.mtu != mtu:
        found.append(f"MTU {wire.mtu} and not {mtu}")
    limit = (config.get("limits") or {}).get("rx")
    if limit and links.rates.get(wire.index) != limit["rate"]:
        found.append("not limited")
    vlan = config.get("vlan")
    if wire.master and vlan and links.vlans.get(wire.index) != {vlan: VLAN_PVID | VLAN_UNTAGGED}:
        found.append(f"not in VLAN {vlan}")
    if wire.master and is_ours(network):
        if wire.hairpin:
            found.append("in hairpin mode")
        if wire.isolated != bool(network.get("isolated")):
            found.append("isolated" if wire.isolated else "not isolated")
    return found


def is_ours(network: NetworkRecord) -> bool:
    """Whether we say how the bridge treats the port; on an adopted one others may, unless they asked us to."""
    return not network.get("adopted") or network.get("isolated") is not None


def wanted_mtu(config: t.Mapping[str, t.Any], network: NetworkRecord) -> int:
    """The MTU that the guest was started with; 0 for that of a bridge which is not ours."""
    return int(config.get("mtu") or (0 if network.get("adopted") else DEFAULT_MTU))


def mend(config: t.Mapping[str, t.Any], network: NetworkRecord) -> None:
    """Put a TAP that is there back on its bridge and bring it up, as at the start of its VM.

    :raises NotFoundError: the bridge is not there. :raises CocoonError: the kernel refuses it.
    """
    index, master = links.index_of(config["tap"]), links.index_of(config["bridge_dev"])
    if index is None:  # its VM has ended meanwhile
        return
    if master is None:
        raise NotFoundError(
            f"the bridge {config['bridge_dev']} is not there", "network", "Run cocoon_network for this network."
        )
    mtu = wanted_mtu(config, network)
    values = [(IFLA_MASTER, master), *([(IFLA_MTU, mtu)] if mtu else [])]
    # Not up before it is in its VLAN, and in no other.
    code = _set(index, 0 if config.get("vlan") else IFF_UP, values)
    if not code and is_ours(network):
        code = set_port(index, bool(network.get("isolated")))
    if not code and config.get("vlan"):
        code = set_vlan(index, config["vlan"]) or _set(index, IFF_UP, [])
    limit = (config.get("limits") or {}).get("rx")
    if not code and limit:
        code = shaping.shape(index, limit)
    if code:
        raise CocoonError(f"cannot put the TAP {config['tap']} on {config['bridge_dev']}: {os.strerror(code)}")


def _set(index: int, flags: int, values: t.Iterable[tuple[int, int]]) -> int:
    body = LINK.pack(socket.AF_UNSPEC, 0, index, flags, IFF_UP)
    body += b"".join(netlink.attribute(kind, struct.pack("=I", value)) for kind, value in values)
    return netlink.ask(netlink.ROUTE, RTM_SETLINK, body)


def master_of(name: str) -> int:
    """The index of what an interface is a part of; 0 for nothing."""
    values = _one(links.index_of(name) or 0)
    return _number(values, IFLA_MASTER)


def filters(index: int) -> bool:
    """Whether a bridge keeps VLANs apart."""
    info = netlink.attributes(_one(index).get(IFLA_LINKINFO, b""))
    return netlink.attributes(info.get(IFLA_INFO_DATA, b"")).get(IFLA_BR_VLAN_FILTERING) == b"\1"


def _one(index: int) -> dict[int, bytes]:
    """The attributes of one interface; none if it is not there."""
    with netlink.channel(netlink.ROUTE) as line:
        line.send(netlink.request(RTM_GETLINK, 0, LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0)))
        data = line.recv(1 << 17)
    if not index or netlink.HEADER.unpack_from(data)[1] != RTM_NEWLINK:
        return {}
    return netlink.attributes(data[netlink.HEADER.size + LINK.size :])


def vlans() -> dict[int, dict[int, int]]:
    """The VLANs of each port of a bridge, by its index, each with its flags."""
    found: dict[int, dict[int, int]] = {}
    body = LINK.pack(socket.AF_BRIDGE, 0, 0, 0, 0) + netlink.attribute(IFLA_EXT_MASK, struct.pack("=I", EXT_VLANS))
    for kind, _flags, data in netlink.messages(netlink.ROUTE, netlink.request(RTM_GETLINK, netlink.DUMP, body)):
        if kind == RTM_NEWLINK:
            spec = netlink.attributes(data[LINK.size :]).get(IFLA_AF_SPEC, b"")
            # The driver of a port may say something of it, too, though nothing of this.
            found.setdefault(LINK.unpack_from(data)[2], {}).update(_listed(spec))
    return found


def _listed(spec: bytes) -> dict[int, int]:
    """The VLANs of one port, of which a range stands there as its two ends."""
    found: dict[int, int] = {}
    first = 0
    for offset in range(0, len(spec) - 7, 8):  # attributes of one size, and of one type
        length, sort, flags, vid = struct.unpack_from("=HHHH", spec, offset)
        if length == 8 and sort & netlink.TYPE_MASK == IFLA_BRIDGE_VLAN_INFO:
            first = first if flags & VLAN_RANGE_END else vid
            found.update(dict.fromkeys(range(first, vid + 1), flags & ~(VLAN_RANGE_BEGIN | VLAN_RANGE_END)))
    return found


def set_vlan(index: int, vlan: int) -> int:
    """Put a port in that VLAN and no other: what is behind it knows nothing of VLANs. :return: 0 or an errno."""
    code = _vlans(RTM_SETLINK, index, [(VLAN_PVID | VLAN_UNTAGGED, vlan)])
    for other in vlans().get(index, ()):
        if other != vlan and not code:
            code = _vlans(RTM_DELLINK, index, [(0, other)])
    return code


def has_all_vlans(index: int) -> bool:
    """Whether everything goes through a port."""
    return len(vlans().get(index, ())) == MAX_VLAN


def add_all_vlans(index: int) -> None:
    """Let everything through a port, with tags but for VLAN 1, which it is in already.

    :raises CocoonError: the kernel refuses it.
    """
    code = _vlans(RTM_SETLINK, index, [(VLAN_RANGE_BEGIN, 2), (VLAN_RANGE_END, MAX_VLAN)])
    if code:
        raise CocoonError(f"cannot set the VLANs of {links.name_of(index)}: {os.strerror(code)}")


def _vlans(kind: int, index: int, entries: t.Iterable[tuple[int, int]]) -> int:
    spec = b"".join(netlink.attribute(IFLA_BRIDGE_VLAN_INFO, struct.pack("=HH", *entry)) for entry in entries)
    body = LINK.pack(socket.AF_BRIDGE, 0, index, 0, 0) + netlink.attribute(IFLA_AF_SPEC | NLA_F_NESTED, spec)
    return netlink.ask(netlink.ROUTE, kind, body)


def move(name: str, namespace: int) -> int:
    """Move an interface to another network namespace, given as a descriptor. :return: 0 or an errno."""
    body = LINK.pack(socket.AF_UNSPEC, 0, links.index_of(name) or 0, 0, 0)
    body += netlink.attribute(IFLA_NET_NS_FD, struct.pack("=I", namespace))
    return netlink.ask(netlink.ROUTE, RTM_SETLINK, body)


def set_port(index: int, isolated: bool) -> int:
    """How a bridge treats one of its ports: nothing goes back where it came from. :return: 0 or an errno."""
    flags = [(IFLA_BRPORT_MODE, b"\0"), (IFLA_BRPORT_ISOLATED, b"\1" if isolated else b"\0")]
    nested = b"".join(netlink.attribute(kind, value) for kind, value in flags)
    body = LINK.pack(socket.AF_BRIDGE, 0, index, 0, 0) + netlink.attribute(IFLA_PROTINFO | NLA_F_NESTED, nested)
    return netlink.ask(netlink.ROUTE, RTM_SETLINK, body)
