# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Load rules, and see whether they are still there.

Loading is one call of ``nft``, atomic. Looking is one netlink dump without a process, so that a run
that changes nothing costs no more than that.
"""

from __future__ import annotations

import errno
import os
import struct

from ansible_collections.cocoon.microvm.plugins.module_utils._network import netlink
from ansible_collections.cocoon.microvm.plugins.module_utils._network.ruleset import Ruleset, removal
from ansible_collections.cocoon.microvm.plugins.module_utils._process import run_tool

NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_GETTABLE = 1
NFT_MSG_NEWCHAIN = 3
NFT_MSG_GETCHAIN = 4
NFT_MSG_NEWRULE = 6
NFT_MSG_GETRULE = 7
NFT_MSG_GETSETELEM = 13
INET, BRIDGE = 1, 7
NFTA_TABLE_NAME = NFTA_RULE_TABLE = 1
NFTA_RULE_CHAIN = 2
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME = 1, 3
NFTA_RULE_USERDATA = 7
NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS = 2, 3
NFTA_LIST_ELEM = NFTA_SET_ELEM_KEY = NFTA_DATA_VALUE = 1
NESTED = 0x8000
IFNAMSIZ = 16
MAX_TRIES = 20


def load(text: str) -> None:
    """Apply *text* as one transaction.

    :raises ToolError: nft is missing or refused it.
    """
    run_tool(["nft", "-f", "-"], stdin=text.encode(), timeout=60, package="nftables")


def remove(table: str) -> None:
    if not is_absent(table):
        load(removal(table))


def is_loaded(ruleset: Ruleset) -> bool:
    """Whether the kernel has exactly this ruleset's rules: as many, and the digest among the comments."""
    found = comments(ruleset.table)
    digest = ruleset.digest.encode()
    return len(found) == ruleset.rules and any(digest in comment for comment in found)


def is_absent(table: str, family: int = INET) -> bool:
    """Whether there is no such table, not even an empty one."""
    return _is_absent(_request(NFT_MSG_GETTABLE, netlink.ACK, family, _name(NFTA_TABLE_NAME, table)))


def has_element(table: str, name: str, interface: str) -> bool:
    """Whether the map *name* of a table of the bridge family has an entry for *interface*."""
    value = netlink.attribute(NFTA_DATA_VALUE, interface.encode().ljust(IFNAMSIZ, b"\0"))
    element = netlink.attribute(NFTA_LIST_ELEM | NESTED, netlink.attribute(NFTA_SET_ELEM_KEY | NESTED, value))
    body = _name(NFTA_TABLE_NAME, table) + _name(NFTA_SET_ELEM_LIST_SET, name)
    body += netlink.attribute(NFTA_SET_ELEM_LIST_ELEMENTS | NESTED, element)
    return not _is_absent(_request(NFT_MSG_GETSETELEM, netlink.ACK, BRIDGE, body))


def _is_absent(request: bytes) -> bool:
    """Whether the kernel's answer is that there is no such thing."""
    with netlink.channel(netlink.NETFILTER) as channel:
        channel.send(request)
        data = channel.recv(1 << 16)
    message = netlink.HEADER.unpack_from(data)[1]
    return message == netlink.ERROR and _failed(struct.unpack_from("=i", data, netlink.HEADER.size)[0]) == []


def _name(kind: int, name: str) -> bytes:
    return netlink.attribute(kind, name.encode() + b"\0")


def _request(kind: int, flags: int, family: int, body: bytes) -> bytes:
    return netlink.request(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, struct.pack("=BBH", family, 0, 0) + body)


def comments(table: str, chain: str | None = None, family: int = INET) -> list[bytes]:
    """The user data (comment) of every rule of a table or chain, empty where a rule has none; [] if it is not there."""
    for _attempt in range(MAX_TRIES):
        found = _dump_once(table, chain, family)
        if found is not None:
            return found
    return []  # rules that change all the time are not ours as we left them


def chains(table: str, family: int = INET) -> list[str]:
    """The names of a table's chains; [] if it is not there."""
    found, question = [], _request(NFT_MSG_GETCHAIN, netlink.DUMP, family, b"")
    for kind, _flags, data in netlink.messages(netlink.NETFILTER, question):
        if kind == netlink.ERROR:
            _failed(struct.unpack_from("=i", data)[0])
            return []
        if kind == NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWCHAIN:
            values = netlink.attributes(data[4:])
            if values.get(NFTA_CHAIN_TABLE) == table.encode() + b"\0":
                found.append(values[NFTA_CHAIN_NAME].rstrip(b"\0").decode(errors="replace"))
    return found


def _dump_once(table: str, chain: str | None, family: int) -> list[bytes] | None:
    """``None`` if the rules changed meanwhile."""
    found: list[bytes] = []
    body = _name(NFTA_RULE_TABLE, table) + (_name(NFTA_RULE_CHAIN, chain) if chain else b"")
    for kind, flags, data in netlink.messages(netlink.NETFILTER, _request(NFT_MSG_GETRULE, netlink.DUMP, family, body)):
        if flags & netlink.INTERRUPTED:
            return None
        if kind == netlink.ERROR:
            return _failed(struct.unpack_from("=i", data)[0])
        if kind == NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWRULE:
            values = netlink.attributes(data[4:])
            names = (values.get(NFTA_RULE_TABLE), values.get(NFTA_RULE_CHAIN))
            if names[0] == table.encode() + b"\0" and (not chain or names[1] == chain.encode() + b"\0"):
                found.append(values.get(NFTA_RULE_USERDATA, b""))
    return found


def _failed(code: int) -> list[bytes] | None:
    if -code == errno.EINTR:
        return None
    if -code in (0, errno.ENOENT, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EINVAL):
        return []  # no such table, or a kernel without nftables, of which nft will tell
    raise OSError(-code, f"cannot list nftables rules: {os.strerror(-code)}")
