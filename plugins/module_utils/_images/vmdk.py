# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMDK disks that are one file, as in an OVA: whether this is one, before any tool looks at it.

Such a file ("hosted sparse extent") begins with a header, behind which a text describes the disk: its type, the disk
that it is a difference to, and the files that its data is in. Any file of the host could be named there.
"""

from __future__ import annotations

import os
import re
import struct
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, UnsupportedError

MAGIC = b"KDMV"
SECTOR = 512
MAX_VIRTUAL_SIZE = 64 << 40
WHOLE_TYPES = ("streamOptimized", "monolithicSparse")
FLATTEN = "Export the disk as one streamOptimized VMDK, or make it a qcow2 with 'qemu-img convert -O qcow2'."
# Sectors of the description: qemu-img looks in the second, and 20 of them, whatever the header says.
PLACE, LEAST, MOST = 1, 20, 2048
# What a transfer as text would have changed.
LINE_ENDS = b"\n \r\n"
COMPRESSED = 1 << 16
# In place of where the tables are: a second header at the end knows.
AT_END = (1 << 64) - 1
_EXTENT_RE = re.compile(r'^(?P<access>RW|RDONLY|NOACCESS)\s+[0-9]+\s+(?P<kind>\w+)(?:\s+"(?P<name>[^"]*)")?', re.I)
_PAIR_RE = re.compile(r'^\s*([\w.]+)\s*=\s*"?([^"]*?)"?\s*\Z')


class _Header(t.NamedTuple):
    version: int
    flags: int
    capacity: int
    grain: int
    place: int
    sectors: int
    entries: int
    redundant: int
    tables: int
    overhead: int
    unclean: int
    line_ends: bytes
    compression: int


def check_header(head: bytes, path: str) -> int:
    """The virtual size in bytes of a VMDK file whose first sector is *head*.

    :raises InputError: it is damaged, or of an unknown version.
    """
    return _header(head, path).capacity * SECTOR


def check(fd: int, path: str) -> None:
    """Look at all of the VMDK file *fd* that says what it is.

    :raises CocoonError: it is damaged, or has data in other files.
    """
    head = os.pread(fd, SECTOR, 0)
    header = _header(head, path)
    if header.tables == AT_END:
        footer = os.pread(fd, SECTOR, max(0, os.fstat(fd).st_size - 2 * SECTOR))
        if not footer.startswith(MAGIC) or _fixed(_parse(footer)) != _fixed(header):  # qemu-img goes by the second one
            raise InputError(f"{path} is cut short", "source", "Get it again.")
    size = max(header.sectors, LEAST) * SECTOR
    _check_description(os.pread(fd, size, PLACE * SECTOR), path)


def _parse(head: bytes) -> _Header:
    return _Header(*struct.unpack("<IIQQQQIQQQB4sH", head[4:79]))


def _fixed(header: _Header) -> tuple[int, ...]:
    """What the header at the end has to repeat."""
    return header.capacity, header.grain, header.entries, header.flags, header.compression


def _header(head: bytes, path: str) -> _Header:
    if len(head) < SECTOR:
        raise InputError(f"{path} is cut short", "source", "Get it again.")
    found = _parse(head)
    sound = (
        found.version in (1, 2, 3)
        and 0 < found.capacity * SECTOR <= MAX_VIRTUAL_SIZE
        and found.grain in [1 << bits for bits in range(3, 12)]
        and found.entries == 512
        and found.line_ends == LINE_ENDS
        and found.compression == (1 if found.flags & COMPRESSED else 0)
    )
    if not sound:
        raise InputError(f"{path} has a damaged VMDK header", "source", "Get it again.")
    if found.place != PLACE or not 0 < found.sectors <= MOST:
        raise UnsupportedError(f"{path} is a part of a VMDK disk, without its description", "source", FLATTEN)
    return found


def _check_description(data: bytes, path: str) -> None:
    """:raises CocoonError: the disk has more to it than its own file."""
    text = data.partition(b"\0")[0].decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines()]
    pairs = [match.groups() for match in map(_PAIR_RE.match, lines) if match]
    values: dict[str, set[str]] = {}
    for key, value in pairs:
        values.setdefault(key.lower(), set()).add(value.lower())
    if values.get("parentcid", set()) - {"ffffffff"} or b"parentfilenamehint" in data.lower():
        raise InputError(f"{path} is a difference to another disk, which could be any file", "source", FLATTEN)
    kinds = values.get("createtype", set())
    if len(kinds) != 1 or not kinds <= {known.lower() for known in WHOLE_TYPES}:
        named = ", ".join(sorted(kinds))[:64] or "unknown"
        shown = named.encode("ascii", "backslashreplace").decode()
        raise UnsupportedError(f"{path} is a VMDK disk of the type '{shown}'", "source", FLATTEN)
    if any(key.startswith("encryption.") for key in values):
        raise InputError(f"{path} is encrypted", "source", "Decrypt it where it was made.")
    _check_extents([match for match in map(_EXTENT_RE.match, lines) if match], path)


def _check_extents(extents: list[re.Match[str]], path: str) -> None:
    """The one extent is the file itself, under the name that it once had: another one has a folder, or another kind."""
    if len(extents) != 1:
        raise InputError(f"{path} keeps its data in {len(extents)} files", "source", FLATTEN)
    (extent,) = extents
    name = extent["name"] or ""
    if extent["kind"].upper() != "SPARSE" or extent["access"].upper() == "NOACCESS" or re.search(r"[/\\]", name):
        raise InputError(f"{path} keeps its data in another file of the host", "source", FLATTEN)
