# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which host keys a guest has, by its console."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._guest.console import (
    MOST_LINE,
    host_keys,
    last_lines,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.launch import open_log

ED, RSA = f"ssh-ed25519 AAAA{'a' * 64}", f"ssh-rsa AAAA{'b' * 300}=="
OURS = f"[    1.0] x\r\ncocoon: host key {ED} root@one\r\ncocoon: ready one\r\n"
BLOCK = f"-----BEGIN SSH HOST KEY KEYS-----\r\n{RSA} root@one\r\n{ED} root@one\r\n-----END SSH HOST KEY KEYS-----\r\n"
OTHER = OURS.replace("aaaa", "cccc")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (OURS, [ED]),
        (BLOCK, [RSA, ED]),
        (BLOCK.replace("aaaa", "cccc") + BLOCK, [RSA, ED]),
        (OTHER + OURS, [ED]),
        (f"{ED}\r\nlogin: cocoon: host key {ED}\r\n", []),
        (BLOCK.partition("-----END")[0], []),
        (OURS.replace("ssh-ed25519", "ssh-dss"), []),
        (OURS.replace("AAAA", "AAAA -o ProxyCommand=x "), []),
        ("", []),
    ],
    ids=("ours", "cloud-init's", "the last block", "the last of ours", "printed by others", "cut off", "other kind",
         "with options", "nothing"),
)  # fmt: skip
def test_keys(tmp_path: Path, text: str, expected: list[str]) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(text.encode())
    assert host_keys(str(log)) == expected


def test_those_of_a_disk_that_is_gone_do_not_count(tmp_path: Path) -> None:
    """A rebuilt guest may say less than the one before it did."""
    log = tmp_path / "console.log"
    log.write_bytes(b"x" * 10_000 + OTHER.encode())
    os.close(open_log(str(log), os.getuid(), os.getgid(), 1 << 18))  # as every start does
    assert host_keys(str(log)) == []
    log.write_bytes(OURS.encode())
    assert host_keys(str(log)) == [ED]


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    assert last_lines(str(log), 5) == []
    log.write_bytes(b"first\n" * 300_000 + b"\x1b[31mred\r\n\n" + b"x" * 10_000 + b"\nlast\xff")
    assert last_lines(str(log), 4) == ["[31mred", "", "x" * MOST_LINE, "last\N{REPLACEMENT CHARACTER}"]
    assert last_lines(str(log), 0) == last_lines(str(log), -3) == []
    assert 100_000 < len(last_lines(str(log), 1 << 30)) < 300_000
