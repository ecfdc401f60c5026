# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Login data as users have it: passwords or their crypt hashes, and the text of authorized_keys files.

Nothing of it is repeated in errors.
"""

from __future__ import annotations

import binascii
import re
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError

MAX_KEY = 16384
# How the hashes of crypt(5) begin: MD5, SHA-256, SHA-512, bcrypt, yescrypt, gost-yescrypt, scrypt.
_METHOD_RE = re.compile(r"\$(?:1|5|6|2[abxy]|y|gy|7)\$")
_HASH_RE = re.compile(
    r"(?:\$1\$[^\$:\s]{1,8}\$[./0-9A-Za-z]{22}"
    r"|\$5\$(?:rounds=[0-9]{1,9}\$)?[^\$:\s]{1,16}\$[./0-9A-Za-z]{43}"
    r"|\$6\$(?:rounds=[0-9]{1,9}\$)?[^\$:\s]{1,16}\$[./0-9A-Za-z]{86}"
    r"|\$2[abxy]\$[0-9]{2}\$[./0-9A-Za-z]{53}"
    r"|\$g?y\$[./0-9A-Za-z]+\$[./0-9A-Za-z]{1,86}\$[./0-9A-Za-z]{43}"
    r"|\$7\$[./0-9A-Za-z]{11,97}\$[./0-9A-Za-z]{43})\Z"
)
# An option before a key's type may hold spaces and commas between quotation marks.
_OPTIONS_RE = re.compile(r'(?:[^\s"]|"(?:[^"\\]|\\.)*")+[ \t]+')
_CONTROL_RE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_KEY_RE = re.compile(r"([!-~]+)[ \t]+([A-Za-z0-9+/]+=*)(?:\s|\Z)")


def is_hash(password: str) -> bool:
    """Whether a password is given as its crypt hash."""
    return _HASH_RE.match(password) is not None


def check_password(password: str, option: str) -> str:
    """:raises InputError: it begins as a crypt hash does, and is none: a shell may have eaten a part of it."""
    if _METHOD_RE.match(password) and not is_hash(password):
        raise InputError("begins as a crypt hash and is none", option, "Give the whole hash, or the password itself.")
    return password


def keys(text: str, option: str) -> list[str]:
    """The keys of a text, as authorized_keys files have them: one a line, comments and empty lines apart.

    :raises InputError: a line is no public key, or there is none.
    """
    if "PRIVATE KEY" in text:
        raise InputError("this is a private key", option, "Give the public one, the file that ends in .pub.")
    if "SSH2 PUBLIC KEY" in text:
        raise InputError("this is a key in another format", option, "Convert it with ssh-keygen -i.")
    lines = [(number, line.strip()) for number, line in enumerate(re.split(r"\r\n?|\n", text), start=1)]
    found = [(number, line) for number, line in lines if line and not line.startswith("#")]
    for number, line in found:
        where = f"line {number} " if len(lines) > 1 else "this "
        if len(line) > MAX_KEY or _CONTROL_RE.search(line):
            raise InputError(f"{where}is too long or not text", option, f"A key has at most {MAX_KEY} characters.")
        if not _is_key(line):
            raise InputError(
                f"{where}is not a public key", option, "Write it whole, as in authorized_keys: ssh-ed25519 AAAA…."
            )
    if not found:
        raise InputError("there is no public key in it", option, "Leave it out instead.")
    return [line for _number, line in found]


def _is_key(line: str) -> bool:
    options = _OPTIONS_RE.match(line)
    return _names_itself(line) or options is not None and _names_itself(line[options.end() :])


def _names_itself(text: str) -> bool:
    """Whether a type and base64 follow, of fields with their lengths before them, the first of which is the type."""
    match = _KEY_RE.match(text)
    if match is None:
        return False
    try:
        fields = list(_fields(binascii.a2b_base64(match.group(2))))
    except ValueError:
        return False
    return len(fields) > 1 and fields[0] == match.group(1).encode()


def _fields(blob: bytes) -> t.Iterator[bytes]:
    """:raises ValueError: a field is longer than what is left."""
    while blob:
        size = int.from_bytes(blob[:4], "big")
        if len(blob) < 4 + size:
            raise ValueError("cut off")
        yield blob[4 : 4 + size]
        blob = blob[4 + size :]
