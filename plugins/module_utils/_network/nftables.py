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
NFT_MSG_NEWRULE = 6
NFT_MSG_GETRULE = 7
NFPROTO_INET = 1
NFTA_TABLE_NAME = NFTA_RULE_TABLE = 1
NFTA_RULE_USERDATA = 7
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
    comments = _dump(ruleset.table)
    digest = ruleset.digest.encode()
    return len(comments) == ruleset.rules and any(digest in comment for comment in comments)


def is_absent(table: str) -> bool:
    """Whether there is no such table, not even an empty one."""
    with netlink.channel(netlink.NETFILTER) as channel:
        channel.send(_request(NFT_MSG_GETTABLE, netlink.ACK, table))
        data = channel.recv(1 << 16)
    message = netlink.HEADER.unpack_from(data)[1]
    return message == netlink.ERROR and _failed(struct.unpack_from("=i", data, netlink.HEADER.size)[0]) == []


def _request(kind: int, flags: int, table: str) -> bytes:
    """A request about one table; its name is attribute 1 of every kind."""
    body = struct.pack("=BBH", NFPROTO_INET, 0, 0) + netlink.attribute(NFTA_TABLE_NAME, table.encode() + b"\0")
    return netlink.request(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, body)


def _dump(table: str) -> list[bytes]:
    """The user data (comment) of every rule of the table, empty where a rule has none; [] if there is no table."""
    for _attempt in range(MAX_TRIES):
        found = _dump_once(table)
        if found is not None:
            return found
    return []  # rules that change all the time are not ours as we left them


def _dump_once(table: str) -> list[bytes] | None:
    """``None`` if the rules changed meanwhile."""
    found: list[bytes] = []
    for kind, flags, body in netlink.messages(netlink.NETFILTER, _request(NFT_MSG_GETRULE, netlink.DUMP, table)):
        if flags & netlink.INTERRUPTED:
            return None
        if kind == netlink.ERROR:
            return _failed(struct.unpack_from("=i", body)[0])
        if kind == NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWRULE:
            values = netlink.attributes(body[4:])
            if values.get(NFTA_RULE_TABLE) == table.encode() + b"\0":
                found.append(values.get(NFTA_RULE_USERDATA, b""))
    return found


def _failed(code: int) -> list[bytes] | None:
    if -code == errno.EINTR:
        return None
    if -code in (0, errno.ENOENT, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EINVAL):
        return []  # no such table, or a kernel without nftables, of which nft will tell
    raise OSError(-code, f"cannot list nftables rules: {os.strerror(-code)}")
