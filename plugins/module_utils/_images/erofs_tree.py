# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks up single files of an EROFS blob without mounting it: what they are, and their attributes.

It reads what mkfs.erofs makes for us: folders and links that are not compressed, extended attributes without long
prefixes. All numbers are little-endian, and addresses count in blocks.
"""

from __future__ import annotations

import os
import stat
import struct
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import StateError

SUPERBLOCK, SUPERBLOCK_SIZE = 1024, 128
MAGIC = 0xE0F5E1E2
SLOT = 32
# Layouts of a file's data: all of it in blocks of its own, or the last piece behind the inode.
PLAIN, INLINE = 0, 2
ENTRY = struct.Struct("<QHBx")
IBODY = 12
PREFIXES = {
    1: "user.",
    2: "system.posix_acl_access",
    3: "system.posix_acl_default",
    4: "trusted.",
    6: "security.",
}


class Node(t.NamedTuple):
    """An inode. ``place`` is where it begins in the blob, ``body`` how long its attributes behind it are."""

    mode: int
    uid: int
    gid: int
    size: int
    layout: int
    start: int
    place: int
    length: int
    body: int

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


class Blob:
    """An EROFS file that is open.

    :raises StateError: it is damaged, or has what is not understood here.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._folders: dict[int, dict[bytes, int]] = {}
        head = self._read(SUPERBLOCK, SUPERBLOCK_SIZE)
        magic, bits, root = struct.unpack_from("<I8xBxH", head)
        if magic != MAGIC or not 9 <= bits <= 16:
            raise self._damaged("no EROFS superblock")
        self._block = 1 << bits
        meta, shared = struct.unpack_from("<II", head, 40)
        self._meta, self._shared = meta << bits, shared << bits
        self._folder_block = self._block << head[90]
        self.root = self._node(root)

    def close(self) -> None:
        os.close(self._fd)

    def child(self, folder: Node, name: bytes) -> Node | None:
        """What *folder* has of that name."""
        if folder.place not in self._folders:
            self._folders[folder.place] = dict(self._entries(folder))
        number = self._folders[folder.place].get(name)
        return None if number is None else self._node(number)

    def target(self, link: Node) -> bytes:
        """Where a symbolic link leads."""
        return self._data(link)

    def xattrs(self, node: Node) -> dict[str, bytes]:
        """The extended attributes of an inode."""
        if not node.body:
            return {}
        body = self._read(node.place + node.length, node.body)
        inline = IBODY + 4 * body[4]
        found = dict(self._shared_xattr(number) for number in struct.unpack_from(f"<{body[4]}I", body, IBODY))
        while inline + 4 <= len(body) and body[inline : inline + 4] != bytes(4):
            key, value, length = self._xattr(body[inline:])
            found[key] = value
            inline += (length + 3) // 4 * 4
        return found

    def _shared_xattr(self, number: int) -> tuple[str, bytes]:
        place = self._shared + 4 * number
        length, _index, size = struct.unpack("<BBH", self._read(place, 4))
        return self._xattr(self._read(place, 4 + length + size))[:2]

    def _xattr(self, data: bytes) -> tuple[str, bytes, int]:
        """Name, value and length of the attribute that begins *data*."""
        length, index, size = struct.unpack_from("<BBH", data)
        if index not in PREFIXES or 4 + length + size > len(data):
            raise self._damaged("an extended attribute that is not understood")
        name = PREFIXES[index] + data[4 : 4 + length].decode("utf-8", "surrogateescape")
        return name, data[4 + length : 4 + length + size], 4 + length + size

    def _node(self, number: int) -> Node:
        place = self._meta + SLOT * number
        head = self._read(place, 2 * SLOT, at_least=SLOT)
        form, count, mode = struct.unpack_from("<HHH", head)
        if form & 1:
            size, start, uid, gid = struct.unpack_from("<QI4xII", head, 8)
        else:
            size, start, uid, gid = struct.unpack_from("<I4xI4xHH", head, 8)
        body = IBODY + 4 * (count - 1) if count else 0
        length = 2 * SLOT if form & 1 else SLOT
        return Node(mode, uid, gid, size, form >> 1 & 7, start, place, length, body)

    def _data(self, node: Node) -> bytes:
        if node.layout not in (PLAIN, INLINE):
            raise self._damaged(f"data of the layout {node.layout}")
        tail = node.size % self._block if node.layout == INLINE else 0
        data = self._read(node.start * self._block, node.size - tail) if node.size > tail else b""
        return data + (self._read(node.place + node.length + node.body, tail) if tail else b"")

    def _entries(self, folder: Node) -> t.Iterator[tuple[bytes, int]]:
        data = self._data(folder)
        for start in range(0, len(data), self._folder_block):
            block = data[start : start + self._folder_block]
            first = ENTRY.unpack_from(block)[1]
            heads = [ENTRY.unpack_from(block, place) for place in range(0, first, ENTRY.size)]
            ends = [head[1] for head in heads[1:]] + [len(block)]
            for (number, begin, _kind), end in zip(heads, ends):
                yield block[begin:end].rstrip(b"\0"), number

    def _read(self, place: int, size: int, at_least: int | None = None) -> bytes:
        data = os.pread(self._fd, size, place)
        if len(data) < (size if at_least is None else at_least):
            raise self._damaged("it is cut short")
        return data

    def _damaged(self, why: str) -> StateError:
        return StateError(
            f"{self._path} is damaged: {why}", remedy="Remove the images that use it, and import them anew."
        )
