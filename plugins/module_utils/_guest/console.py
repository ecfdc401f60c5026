# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the log of a guest's console says of it. The guest writes it, and can only lie about itself.

Of a run that has written much there are three files, see :mod:`_hypervisors.keeper`: read them by what is here.
"""

from __future__ import annotations

import os
import re

from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.keeping import BEFORE, FIRST

TAIL = 64 << 10
LAST_WORDS = 160
MOST_LINES, MOST_LINE = 1 << 20, 4096
OURS_RE = re.compile(r"\[ *[0-9]+\.[0-9]+\] |cocoon: ")
PANIC_RE = re.compile(r"Kernel panic - not syncing: *([^\r\n]*)")
# What a guest that has come up again, after a panic or anyhow, says on its console.
UP_RE = re.compile(r"cocoon: ready|\blogin: ")

EXIT_RE = re.compile(r"^cocoon: exit ([0-9]{1,3})(?:\r|\n|\Z)", re.M)

MOST = 16 << 20
ATTEMPTS = 3
KEY = rb"(?:ssh-ed25519|ecdsa-sha2-nistp(?:256|384|521)|ssh-rsa) AAAA[A-Za-z0-9+/]{40,1000}={0,3}"
# As images of ours say it at each boot, and as cloud-init does at the first one.
OUR_KEY_RE = re.compile(rb"^cocoon: host key (" + KEY + rb")[^\r\n]*(?:[\r\n]|\Z)", re.M)
BLOCK_RE = re.compile(rb"-----BEGIN SSH HOST KEY KEYS-----(.*?)-----END SSH HOST KEY KEYS-----", re.S)
THEIR_KEY_RE = re.compile(rb"^(" + KEY + rb")[^\r\n]*(?:[\r\n]|\Z)", re.M)


def host_keys(console_log: str) -> list[str]:
    """The public host keys that the guest has named last in this run of it: a start begins with an empty log.

    Only root of the guest can write there, and nobody between the guest and us.
    """
    text = read(console_log)
    ours, blocks = OUR_KEY_RE.findall(text), BLOCK_RE.findall(text)
    found = ours[-1:] or [key for block in blocks[-1:] for key in THEIR_KEY_RE.findall(block)]
    return [key.decode() for key in found]


def last_lines(path: str, count: int) -> list[str]:
    """The last lines of a log, without what is not printable; each of bounded length."""
    lines = _text(path, MOST_LINES).splitlines()[-count:] if count > 0 else []
    return ["".join(char for char in line[:MOST_LINE] if char.isprintable()) for line in lines]


def last_words(console_log: str) -> str:
    """The last line that is the kernel's or our own: what services print may be a secret."""
    line = next((line for line in reversed(_text(console_log).splitlines()) if OURS_RE.match(line)), "")
    return _short(line)


def panicked(console_log: str) -> str:
    """Why the guest's kernel gave up, if it did and has not come up since; else nothing."""
    text = _text(console_log)
    panics = list(PANIC_RE.finditer(text))
    if not panics or UP_RE.search(text, panics[-1].end()):
        return ""
    return _short(panics[-1].group(1).partition(" ]---")[0]) or "for no reason that it gave"


def exit_code(console_log: str) -> int | None:
    """How the command of a container ended, as its guest has said last."""
    codes = [int(code) for code in EXIT_RE.findall(_text(console_log))]
    return codes[-1] if codes and codes[-1] < 256 else None


def read(console_log: str, most: int = MOST) -> bytes:
    """What the guest has printed in this run of it, of what is kept of that the last *most* bytes."""
    text = b""
    for _attempt in range(ATTEMPTS):
        text = newest = _end(console_log, most)
        # They are this run's only if the first of them has something in it.
        for suffix in (BEFORE, FIRST) if _size(console_log + FIRST) else ():
            if len(text) < most:
                text = _end(console_log + suffix, most - len(text)) + text
        if _size(console_log) >= len(newest):
            break  # or it has been turned over meanwhile
    return text


def _text(path: str, most: int = TAIL) -> str:
    return read(path, most).decode(errors="replace")


def _end(path: str, most: int) -> bytes:
    try:
        with open(path, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - most))
            return stream.read(most)
    except OSError:
        return b""


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _short(line: str) -> str:
    return "".join(char for char in line if char.isprintable())[:LAST_WORDS].strip()
