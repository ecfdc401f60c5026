# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tar archives from elsewhere: every member checked before anything is made of it.

Python's tarfile parses the headers; what it hands on, and how much it may read for it, is decided here.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import posixpath
import tarfile
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, InputError, UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._images.streams import CHUNK, Reader
from ansible_collections.cocoon.microvm.plugins.module_utils._types import format_size

BLOCK = 512
MAX_ID = 0xFFFFFFFE
XATTR_PREFIXES = ("SCHILY.xattr.", "LIBARCHIVE.xattr.")
MAX_XATTR = 64 << 10

FILE, DIRECTORY, SYMLINK, HARDLINK, CHAR, BLOCKDEV, FIFO = "file", "dir", "symlink", "hardlink", "char", "block", "fifo"
KINDS = {
    tarfile.DIRTYPE: DIRECTORY,
    tarfile.SYMTYPE: SYMLINK,
    tarfile.LNKTYPE: HARDLINK,
    tarfile.CHRTYPE: CHAR,
    tarfile.BLKTYPE: BLOCKDEV,
    tarfile.FIFOTYPE: FIFO,
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What an archive may ask of this host."""

    members: int = 500_000
    devices: int = 10_000
    unpacked: int = 64 << 30
    header: int = 256 << 10
    xattrs: int = 256
    depth: int = 100


DEFAULT_LIMITS = Limits()


DISTRUST = "Get the image from somewhere you trust, or build it again."
AGAIN = "Get it again, and give its checksum; if it is meant to be like that, build it again."
CHANGED = "It is damaged or changed: get it again."
SMALLER = "Build the image again, with less in it."


BY_COPY = "A hard link works within one layer. Build the image again so that the layer has the file itself."


class BadArchive(InputError):
    """The archive is damaged or hostile: an import of it leaves nothing behind."""

    def __init__(self, message: str, remedy: str = DISTRUST) -> None:
        super().__init__(message, "source", f"Nothing of it was kept. {remedy}")


@contextlib.contextmanager
def named(name: str, *more: type[CocoonError]) -> t.Iterator[None]:
    """Errors about what is in an archive say which one it is; so do those of the kinds *more*."""
    kinds: tuple[type[CocoonError], ...] = (BadArchive, UnsupportedError, *more)
    try:
        yield
    except kinds as exc:
        exc.message = f"{name}: {exc.message}"
        raise


@dataclasses.dataclass
class Member:
    """One checked member. ``path`` is relative, without ``.`` or ``..``; the empty string is the root itself.

    ``dropped``: names of extended attributes that it has in the archive, and that no file system of Linux takes.
    """

    path: str
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    link: str
    device: tuple[int, int]
    xattrs: dict[str, bytes]
    offset: int = 0
    data: t.Iterator[bytes] = dataclasses.field(default_factory=lambda: iter(()))
    """The contents, in pieces; once, before the next member is asked for."""
    dropped: tuple[str, ...] = ()


def bad_link(link: Member, directory: bool = False) -> BadArchive:
    """The error about a hard link to a directory, or to what its archive does not have (yet)."""
    what = "a directory" if directory else "not in the same layer before it"
    return BadArchive(f"'{link.path}' is a hard link to '{link.link}', which is {what}", BY_COPY)


class TarInput:
    """The file object that tarfile reads: forward only, and within limits."""

    def __init__(self, stream: Reader, limits: Limits) -> None:
        self._stream = stream
        self._limits = limits
        self._position = 0
        self.last = b""

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= self._limits.header:
            raise BadArchive("a header of the archive is too large")
        self.last = self._read(size)
        return self.last

    def pieces(self, position: int, size: int) -> t.Iterator[bytes]:
        """*size* bytes from *position* on."""
        self.seek(position)
        while size:
            data = self._read(min(CHUNK, size))
            if not data:
                raise BadArchive("the archive is cut short", AGAIN)
            size -= len(data)
            yield data

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            data = self._stream.read(size)
            if not data:
                break
            size -= len(data)
            self._position += len(data)
            parts.append(data)
        if self._position > 2 * self._limits.unpacked:
            raise BadArchive(f"the archive unpacks to more than {format_size(self._limits.unpacked)}", SMALLER)
        return b"".join(parts)

    def seek(self, position: int, whence: int = 0) -> int:
        if whence or position < self._position:
            raise BadArchive("the archive is damaged: a member lies before its header", AGAIN)
        while self._position < position:
            if not self._read(min(CHUNK, position - self._position)):
                break
        return self._position

    def drain(self) -> None:
        """Read to the end: check sums of compressed streams come last."""
        while self._read(CHUNK):
            pass


def members(source: TarInput, limits: Limits = DEFAULT_LIMITS) -> t.Iterator[Member]:
    """The members of an archive, checked. The body of each must be read before the next is asked for.

    No bytes at all are an archive of nothing: some builders make such layers.

    :raises BadArchive: anything in it is not as it should be.
    """
    budget = _Budget(limits)
    try:
        with tarfile.TarFile(
            fileobj=t.cast(t.Any, source), mode="r", encoding="utf-8", errors="surrogateescape"
        ) as archive:
            # Older releases of Python go back when they are asked again for the first member of nothing.
            info = archive.next() if archive.firstmember else None  # type: ignore[attr-defined]
            while info is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all
                yield budget.check(_member(source, info))
                info = archive.next()
        _check_end(source)
        source.drain()
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as exc:
        if source.tell():
            raise BadArchive(f"the archive is damaged: {exc}", AGAIN) from exc


def _check_end(source: TarInput) -> None:
    """tarfile takes a damaged header for the end."""
    if source.last.strip(b"\0") or 0 < len(source.last) < BLOCK:
        raise BadArchive("the archive is damaged: a header is not valid", AGAIN)


def _member(source: TarInput, info: tarfile.TarInfo) -> Member:
    kind = KINDS.get(info.type, FILE if info.isreg() else "")
    if not kind:
        letter = info.type.decode("ascii", "backslashreplace")
        raise BadArchive(f"'{printable(info.name)}' is of an unknown kind ({letter})")
    path = clean_path(info.name)
    if not 0 <= info.uid <= MAX_ID or not 0 <= info.gid <= MAX_ID:
        raise BadArchive(f"'{path}' has an owner that is out of range")
    if info.size < 0:
        raise BadArchive(f"'{path}' has a negative size")
    if not path and kind != DIRECTORY:
        raise BadArchive("the archive replaces its own root")
    found = _xattrs(info) if kind != HARDLINK else {}  # the file that it is another name of has them
    xattrs = {key: value for key, value in found.items() if storable(key, value, kind)}
    return Member(
        path=path,
        kind=kind,
        mode=info.mode & 0o7777,
        uid=info.uid,
        gid=info.gid,
        size=info.size if kind == FILE else 0,
        link=_link(info, kind, path),
        device=(info.devmajor, info.devminor) if kind in (CHAR, BLOCKDEV) else (0, 0),
        xattrs=xattrs,
        offset=info.offset_data,
        data=_data(source, info) if kind == FILE else iter(()),
        dropped=tuple(key for key in found if key not in xattrs),
    )


def _data(source: TarInput, info: tarfile.TarInfo) -> t.Iterator[bytes]:
    if info.sparse is None:
        return source.pieces(info.offset_data, info.size)
    return _sparse_data(source, info, t.cast("list[tuple[int, int]]", info.sparse))


def _sparse_data(source: TarInput, info: tarfile.TarInfo, segments: t.Iterable[tuple[int, int]]) -> t.Iterator[bytes]:
    """The contents of a sparse member; tarfile's own reader loops for ever on a map with gaps in the wrong order."""
    position, stored = 0, info.offset_data
    used = [segment for segment in segments if segment[1]]  # unused places of the map are (0, 0)
    for start, size in [*used, (info.size, 0)]:
        if start < position or size < 0 or start + size > info.size:
            raise BadArchive("the archive is damaged: a sparse file's map is not in order", AGAIN)
        while position < start:
            step = min(CHUNK, start - position)
            yield bytes(step)
            position += step
        yield from source.pieces(stored, size)
        stored += size
        position += size


def _link(info: tarfile.TarInfo, kind: str, path: str) -> str:
    if kind == HARDLINK:
        target = clean_path(info.linkname)
        if not target:
            raise BadArchive(f"'{path}' is a hard link to nothing")
        return target
    if kind == SYMLINK:
        if not info.linkname or "\0" in info.linkname or len(info.linkname) > 4095:
            raise BadArchive(f"'{path}' is a symbolic link that no file system takes")
        return info.linkname
    return ""


def clean_path(name: str) -> str:
    """*name* without ``./`` or ``/`` before it, doubled slashes or a trailing one: absolute ones begin at the archive's
    root, as they do for containerd, Docker and umoci.

    :raises BadArchive: leaving the archive, or longer than a file system takes.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise BadArchive(f"'{printable(name)}' leaves the archive")
    path = "/".join(parts)
    if "\0" in path or len(path) > 4095 or any(len(part.encode("utf-8", "surrogateescape")) > 255 for part in parts):
        raise BadArchive(f"'{printable(name[:80])}' is a path that no file system takes")
    return path


def _xattrs(info: tarfile.TarInfo) -> dict[str, bytes]:
    found = {}
    for key, value in info.pax_headers.items():
        for prefix in XATTR_PREFIXES:
            if key.startswith(prefix):
                raw = value.encode("utf-8", "surrogateescape")
                found[key[len(prefix) :]] = _unbase64(raw) if prefix.startswith("LIB") else raw
    return found


def _unbase64(text: bytes) -> bytes:
    """What libarchive writes, which leaves out the padding."""
    return base64.b64decode(text.rstrip(b"=") + b"=" * (-len(text.rstrip(b"=")) % 4), validate=True)


def storable(name: str, value: bytes, kind: str) -> bool:
    """Whether Linux lets a file of that kind have this extended attribute, whatever the file system."""
    namespace, _dot, rest = name.partition(".")
    if not rest or "\0" in name or len(name.encode("utf-8", "surrogateescape")) > 255 or len(value) > MAX_XATTR:
        return False
    if name == "system.posix_acl_access":
        return kind != SYMLINK
    if name == "system.posix_acl_default":
        return kind == DIRECTORY
    return namespace in ("trusted", "security") or namespace == "user" and kind in (FILE, DIRECTORY)


def printable(name: str) -> str:
    """A name from an archive, for people: any bytes may be in it."""
    return name.encode("ascii", "backslashreplace").decode()


class _Budget:
    """Counts against the limits."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._members = 0
        self._devices = 0
        self._bytes = 0

    def check(self, member: Member) -> Member:
        limits = self._limits
        self._members += 1
        self._devices += member.kind in (CHAR, BLOCKDEV, FIFO)
        self._bytes += member.size
        if self._members > limits.members:
            raise BadArchive(f"the archive has more than {limits.members} members", SMALLER)
        if self._devices > limits.devices:
            raise BadArchive(f"the archive has more than {limits.devices} device nodes", SMALLER)
        if self._bytes > limits.unpacked:
            raise BadArchive(f"the archive unpacks to more than {format_size(limits.unpacked)}", SMALLER)
        if len(member.xattrs) > limits.xattrs:
            raise BadArchive(f"'{printable(member.path)}' has too many extended attributes")
        if member.path.count("/") >= limits.depth:
            raise BadArchive(f"'{printable(member.path)}' lies too deep")
        return member


def resolve(entries: t.Mapping[str, t.Mapping[str, t.Any]], path: str) -> str | None:
    """The regular file that *path* leads to among *entries* (``{"type": "file"|"link", "target": …}``).

    Links are followed as the guest would, never above the root; ``None`` if they lead nowhere known.
    """
    for _step in range(16):
        entry = entries.get(path)
        if entry is None:
            return None
        if entry["type"] == "file":
            return path
        path = posixpath.normpath("/" + posixpath.join(posixpath.dirname(path), entry["target"])).lstrip("/")
    return None
