# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a download has to be: a digest, or a list of digests as distributions publish them."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError

LENGTHS = {"sha256": 64, "sha512": 128}
MAX_LIST = 4 << 20
FORMS = "Write it as sha256: or sha512: and the hex digits, or as the URL of a SHA256SUMS or SHA512SUMS file."
_GNU_RE = re.compile(r"^\\?([0-9a-fA-F]{64}|[0-9a-fA-F]{128})[ \t]+\*?(\S.*?)\s*\Z")
_BSD_RE = re.compile(r"^SHA(?:256|512) ?\((.+)\) ?= ?([0-9a-fA-F]{64}|[0-9a-fA-F]{128})\s*\Z")


class Digest(t.NamedTuple):
    """``sha256`` or ``sha512``, and lower case hex digits."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


class DigestList(t.NamedTuple):
    """The URL of a list; *algorithm* where it was given, else the digits tell."""

    algorithm: str | None
    url: str


def parse(text: str) -> Digest | DigestList:
    """The option ``checksum``: ``sha256:<hex>``, ``sha512:<hex>``, ``[sha256:]https://…/SHA256SUMS``.

    :raises InputError: none of them.
    """
    word = text.strip()
    algorithm, _colon, rest = word.partition(":")
    algorithm = algorithm.lower()
    if algorithm not in LENGTHS:
        algorithm, rest = "", word
    if re.match(r"^https?://", rest):
        if rest.startswith("http://"):
            raise InputError(
                "a list of checksums that came over http proves nothing", "checksum", "Use https, or give the digest."
            )
        return DigestList(algorithm or None, rest)
    if algorithm and re.match(rf"^[0-9a-fA-F]{{{LENGTHS[algorithm]}}}\Z", rest):
        return Digest(algorithm, rest.lower())
    raise InputError(f"'{text}' is not a checksum", "checksum", FORMS)


def find(content: str, name: str, algorithm: str | None, where: str) -> Digest:
    """The digest of the file *name* in a list, in the form of ``sha256sum`` or of BSD's ``sha256 -r``.

    :param algorithm: the only one to look for, if any.
    :raises InputError: it is not listed, or with two different digests.
    """
    found = set()
    for line in content.splitlines():
        gnu, bsd = _GNU_RE.match(line), _BSD_RE.match(line)
        if not gnu and not bsd:
            continue  # a signature around it, a comment
        digest, file = gnu.groups() if gnu else t.cast("re.Match[str]", bsd).groups()[::-1]
        kind = next(known for known, length in LENGTHS.items() if length == len(digest))
        if file.rpartition("/")[2] == name and algorithm in (None, kind):
            found.add(Digest(kind, digest.lower()))
    if len(found) == 1:
        return found.pop()
    what = f"has several checksums of {name}" if found else f"has no checksum of {name}"
    raise InputError(f"{where} {what}", "checksum", "Give the digest itself.")
