# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's side of running VMs' NICs: what is wrong with their TAPs, by one look at all interfaces."""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, NotFoundError
from ansible_collections.cocoon.microvm.plugins.module_utils._network import links, netlink
from ansible_collections.cocoon.microvm.plugins.module_utils._types import PAUSED, RUNNING, Record

RTM_NEWLINK = 16
RTM_GETLINK = 18
RTM_SETLINK = 19
LINK = struct.Struct("=BxHiII")
IFF_UP = 0x1
IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_PROTINFO, IFLA_LINKINFO = 3, 4, 10, 12, 18
IFLA_NET_NS_FD = 28
IFLA_INFO_SLAVE_DATA = 5
IFLA_BRPORT_MODE, IFLA_BRPORT_ISOLATED = 4, 33
NLA_F_NESTED = 0x8000
DEFAULT_MTU = 1500

GONE = "there is no TAP"


@dataclasses.dataclass(frozen=True)
class Wire:
    """One interface; *master* is the index of the bridge that it is on, 0 for none."""

    index: int
    up: bool
    mtu: int
    master: int
    hairpin: bool = False
    isolated: bool = False


def look() -> dict[str, Wire]:
    """All interfaces of the current network namespace, by name."""
    found = {}
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
            )
    return found


def _number(values: t.Mapping[int, bytes], kind: int) -> int:
    return int(struct.unpack("=I", values[kind])[0]) if kind in values else 0


def is_settled(record: Record) -> bool:
    """Whether a VM is past its start and on its networks, as far as its record goes."""
    return (
        record.get("state") in (RUNNING, PAUSED)
        and not record.get("phase")
        and not record.get("identity_pending")
        and bool(record.get("network_configs"))
    )


def faults(config: t.Mapping[str, t.Any], network: Record, links: t.Mapping[str, Wire]) -> list[str]:
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
    if wire.master and is_ours(network):
        if wire.hairpin:
            found.append("in hairpin mode")
        if wire.isolated != bool(network.get("isolated")):
            found.append("isolated" if wire.isolated else "not isolated")
    return found


def is_ours(network: Record) -> bool:
    """Whether we say how the bridge treats the port; on an adopted one others may, unless they asked us to."""
    return not network.get("adopted") or network.get("isolated") is not None


def wanted_mtu(config: t.Mapping[str, t.Any], network: Record) -> int:
    """The MTU that the guest was started with; 0 for that of a bridge which is not ours."""
    return int(config.get("mtu") or (0 if network.get("adopted") else DEFAULT_MTU))


def mend(config: t.Mapping[str, t.Any], network: Record) -> None:
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
    body = LINK.pack(socket.AF_UNSPEC, 0, index, IFF_UP, IFF_UP)
    body += b"".join(netlink.attribute(kind, struct.pack("=I", value)) for kind, value in values)
    code = netlink.ask(netlink.ROUTE, RTM_SETLINK, body)
    if not code and is_ours(network):
        code = set_port(index, bool(network.get("isolated")))
    if code:
        raise CocoonError(f"cannot put the TAP {config['tap']} on {config['bridge_dev']}: {os.strerror(code)}")


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
