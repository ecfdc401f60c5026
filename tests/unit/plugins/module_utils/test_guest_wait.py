# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pathlib

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._guest.console import LAST_WORDS, last_words, panicked


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", ""),
        (b"one login: \r\n", ""),
        (
            b"[    0.07] Kernel panic - not syncing: it\r\nthe password is x\r\n",
            "[    0.07] Kernel panic - not syncing: it",
        ),
        (b"cocoon: ready\r\ncocoon: exit 3\r\n", "cocoon: exit 3"),
        (b"[   12.345678] \x1b[31mred\xff\n", "[   12.345678] [31mred\N{REPLACEMENT CHARACTER}"),
        (b"[ 1.0] " + b"x" * 1000 + b"\n", "[ 1.0] " + "x" * (LAST_WORDS - 7)),
        (b"cocoon: ready\n" + b"y" * 100_000, ""),
    ],
)
def test_last_words_are_the_kernel_s_or_ours(tmp_path: pathlib.Path, text: bytes, said: str) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(text)
    assert last_words(str(log)) == said


def test_a_console_that_is_gone_says_nothing(tmp_path: pathlib.Path) -> None:
    assert last_words(str(tmp_path / "console.log")) == ""


PANIC = b"[    0.07] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000200\r\n[    0.08] CPU: 0\r\n"
END = b"[    0.09] ---[ end Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000200 ]---\r\n"
WHY = "Attempted to kill init! exitcode=0x00000200"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", ""),
        (b"cocoon: ready web1\r\n", ""),
        (PANIC, WHY),
        (b"cocoon: ready web1\n" + PANIC + END, WHY),
        (PANIC + END + b"noise\n", WHY),  # it boots again, and has not come up
        (PANIC + END + b"noise\ncocoon: ready web1\n", ""),
        (PANIC + END + b"\r\nDebian GNU/Linux 12 web1 ttyS0\r\n\r\nweb1 login: ", ""),
        (b"Kernel panic - not syncing: \n", "for no reason that it gave"),
        (b"Kernel panic - not syncing: \x1b[31m" + b"x" * 1000, "[31m" + "x" * (LAST_WORDS - 4)),
    ],
)
def test_a_panic_until_the_guest_is_up_again(tmp_path: pathlib.Path, text: bytes, why: str) -> None:
    log = tmp_path / "console.log"
    assert panicked(str(log)) == ""
    log.write_bytes(text)
    assert panicked(str(log)) == why
