# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes a checked archive anew, for mkfs.erofs to read.

mkfs.erofs would take the original. But then what it makes of odd archives is not what was checked: it gives folders
that an archive only implies to everybody (0777), and does not make a folder opaque that one layer removes and makes
anew. So it gets each member in plain words, folders first, and never sees a byte of a header from elsewhere.
"""

from __future__ import annotations

import posixpath
import tarfile
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._images import tarball
from ansible_collections.cocoon.microvm.plugins.module_utils._images.findings import AUFS, OPAQUE, WHITEOUT
from ansible_collections.cocoon.microvm.plugins.module_utils._images.tarball import BadArchive, Member

TYPES = {
    tarball.FILE: tarfile.REGTYPE,
    tarball.DIRECTORY: tarfile.DIRTYPE,
    tarball.SYMLINK: tarfile.SYMTYPE,
    tarball.HARDLINK: tarfile.LNKTYPE,
    tarball.CHAR: tarfile.CHRTYPE,
    tarball.BLOCKDEV: tarfile.BLKTYPE,
    tarball.FIFO: tarfile.FIFOTYPE,
}
END = bytes(2 * tarball.BLOCK)


class Retar:
    """Takes members as ``unpack.Tree`` does, with the same refusals, and gives a tar to *write*."""

    def __init__(self, write: t.Callable[[bytes], object]) -> None:
        self._write = write
        self._kinds: dict[str, str] = {}
        self._whiteouts: set[str] = set()
        self._member(_folder(""))

    def close(self) -> None:
        self._write(END)

    def add(self, member: Member) -> None:
        """Write one member.

        :raises BadArchive: it would need something that is not there, or replace a directory.
        """
        folder, name = posixpath.split(member.path)
        if name.startswith(WHITEOUT):
            self._whiteout(folder, name)
            return
        self._parents(folder)
        if self._kinds.get(member.path) == tarball.DIRECTORY and member.kind != tarball.DIRECTORY:
            raise BadArchive(f"'{member.path}' replaces a directory of the same archive")
        if member.kind == tarball.HARDLINK:
            self._check_target(member)
        self._member(member)
        if member.kind == tarball.DIRECTORY and member.path in self._whiteouts:
            self._opaque(member.path)  # hidden and made anew in one layer

    def _whiteout(self, folder: str, name: str) -> None:
        if name == OPAQUE:
            self._parents(folder)
            self._opaque(folder)
            return
        if name.startswith(AUFS):
            return
        target = name[len(WHITEOUT) :]
        if not target or target in (".", ".."):
            raise BadArchive(f"'{posixpath.join(folder, name)}' is a whiteout of nothing")
        self._parents(folder)
        path = posixpath.join(folder, target)
        self._whiteouts.add(path)
        if self._kinds.get(path) == tarball.DIRECTORY:
            self._opaque(path)
        elif path not in self._kinds:  # what the layer brings itself stays
            self._member(Member(path, tarball.CHAR, 0, 0, 0, 0, "", (0, 0), {}))

    def _parents(self, folder: str) -> None:
        """Folders that the archive only implies."""
        kind = self._kinds.get(folder)
        if kind == tarball.DIRECTORY:
            return
        if kind is not None and folder not in self._whiteouts:
            name = posixpath.basename(folder)
            what = f"the symbolic link '{name}'" if kind == tarball.SYMLINK else f"'{name}', which is no directory"
            raise BadArchive(f"'{folder}' goes through {what} of the same archive")
        self._parents(posixpath.dirname(folder))
        self._member(_folder(folder))
        if folder in self._whiteouts:
            self._opaque(folder)

    def _check_target(self, member: Member) -> None:
        folder = posixpath.dirname(member.link)
        while folder:
            if self._kinds.get(folder) == tarball.SYMLINK:
                raise BadArchive(f"'{member.link}' goes through the symbolic link '{folder}' of the same archive")
            folder = posixpath.dirname(folder)
        kind = self._kinds.get(member.link)
        if kind in (None, tarball.DIRECTORY):
            raise tarball.bad_link(member, directory=kind is not None)

    def _opaque(self, folder: str) -> None:
        path = posixpath.join(folder, OPAQUE)
        self._emit(Member(path, tarball.FILE, 0o600, 0, 0, 0, "", (0, 0), {}))

    def _member(self, member: Member) -> None:
        self._kinds[member.path] = member.kind
        self._emit(member)

    def _emit(self, member: Member) -> None:
        info = tarfile.TarInfo(member.path or ".")
        info.type = TYPES[member.kind]
        info.mode, info.uid, info.gid, info.size = member.mode, member.uid, member.gid, member.size
        info.linkname = member.link
        info.devmajor, info.devminor = member.device
        if member.xattrs:
            self._write(_attributes(member.xattrs))
        self._write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        for data in member.data:
            self._write(data)
        self._write(bytes(-member.size % tarball.BLOCK))


def _folder(path: str) -> Member:
    return Member(path, tarball.DIRECTORY, 0o755, 0, 0, 0, "", (0, 0), {})


def _attributes(xattrs: t.Mapping[str, bytes]) -> bytes:
    """A pax header with extended attributes, their bytes as they are."""
    body = b"".join(_record(b"SCHILY.xattr." + key.encode("utf-8", "surrogateescape"), xattrs[key]) for key in xattrs)
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(body)
    return info.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % tarball.BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    """``<length> <key>=<value>\\n``, where the length counts its own digits."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest
