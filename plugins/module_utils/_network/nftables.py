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
import socket
import struct

from ansible_collections.cocoon.microvm.plugins.module_utils._network.ruleset import Ruleset, removal
from ansible_collections.cocoon.microvm.plugins.module_utils._process import run_tool

NETLINK_NETFILTER = 12
NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_GETTABLE = 1
NFT_MSG_NEWRULE = 6
NFT_MSG_GETRULE = 7
NFPROTO_INET = 1
NFTA_TABLE_NAME = NFTA_RULE_TABLE = 1
NFTA_RULE_USERDATA = 7
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_DUMP_INTR = 0x10
NLMSG_ERROR = 2
NLMSG_DONE = 3
HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")
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
    with _channel() as channel:
        channel.send(_request(NFT_MSG_GETTABLE, NLM_F_REQUEST | NLM_F_ACK, table))
        data = channel.recv(1 << 16)
    message = HEADER.unpack_from(data)[1]
    return message == NLMSG_ERROR and _failed(struct.unpack_from("=i", data, HEADER.size)[0]) == []


def _channel() -> socket.socket:
    channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    channel.settimeout(10)
    channel.bind((0, 0))
    return channel


def _attributes(data: bytes) -> dict[int, bytes]:
    found, offset = {}, 0
    while offset + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = data[offset + ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


def _request(kind: int, flags: int, table: str) -> bytes:
    """A request about one table; its name is attribute 1 of every kind."""
    name = table.encode() + b"\0"
    attribute = ATTRIBUTE.pack(ATTRIBUTE.size + len(name), NFTA_TABLE_NAME) + name
    body = struct.pack("=BBH", NFPROTO_INET, 0, 0) + attribute + b"\0" * (-len(attribute) % 4)
    return HEADER.pack(HEADER.size + len(body), NFNL_SUBSYS_NFTABLES << 8 | kind, flags, 1, 0) + body


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
    with _channel() as channel:
        channel.send(_request(NFT_MSG_GETRULE, NLM_F_REQUEST | NLM_F_DUMP, table))
        while True:
            data = channel.recv(1 << 18)
            offset = 0
            while offset + HEADER.size <= len(data):
                length, message, flags, _sequence, _port = HEADER.unpack_from(data, offset)
                body = data[offset + HEADER.size : offset + length]
                offset += max((length + 3) & ~3, HEADER.size)
                if flags & NLM_F_DUMP_INTR:
                    return None
                if message == NLMSG_DONE:
                    return found
                if message == NLMSG_ERROR:
                    return _failed(struct.unpack_from("=i", body)[0])
                if message == NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWRULE:
                    attributes = _attributes(body[4:])
                    if attributes.get(NFTA_RULE_TABLE) == table.encode() + b"\0":
                        found.append(attributes.get(NFTA_RULE_USERDATA, b""))


def _failed(code: int) -> list[bytes] | None:
    if -code == errno.EINTR:
        return None
    if -code in (0, errno.ENOENT, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EINVAL):
        return []  # no such table, or a kernel without nftables, of which nft will tell
    raise OSError(-code, f"cannot list nftables rules: {os.strerror(-code)}")
