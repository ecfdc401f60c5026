# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bytes of a snapshot archive: tar headers, sparse maps, and the document that comes first.

Only what such an archive needs is understood: regular files, with or without a PAX header before them. Anything else
is refused, and how much is read at once is bounded before it is read.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tarfile
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._images.streams import CHUNK, Reader
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._words import invalid

ENVELOPE = "snapshot.json"
VERSION = 1
BLOCK = 512
DISK_BLOCK = 4096
SPARSE_MAP = "COCOON.sparse.map"
SPARSE_SIZE = "COCOON.sparse.size"

MAX_ENVELOPE = 1 << 20
# Go's tar reader takes no larger PAX header either.
MAX_HEADER = 1 << 20
MAX_RECORDS = 64
MAX_FILE = 64 << 40
MAX_PADDING = 1 << 20
MAX_DIGITS = 20
FILE_NAME_RE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

AGAIN = "Export the snapshot again, or get the archive again and give its digest."
KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.DIRTYPE: "a directory",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.GNUTYPE_SPARSE: "a GNU sparse file",
    tarfile.GNUTYPE_LONGNAME: "a GNU long name",
    tarfile.GNUTYPE_LONGLINK: "a GNU long link",
    tarfile.XGLTYPE: "a global header",
}

FLAT = "An archive holds regular files only, without folders, as an export writes it."
# What else a PAX header may say; the rest could change what the body means.
PLAIN_RECORDS = {"path", "size", "mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment"}

Segments = list[tuple[int, int]]


def _text(limit: int, pattern: str | None = None) -> Record:
    return {"type": "string", "maxLength": limit, **({"pattern": pattern} if pattern else {})}


def _number(limit: int) -> Record:
    return {"type": "integer", "minimum": 0, "maximum": limit}


# Fields that are not here are those of newer versions; they are kept, and mean nothing to us.
CONFIG_FIELDS: Record = {
    "id": _text(64, r"^[A-Za-z0-9._-]*\Z"),
    "name": _text(63, r"^([A-Za-z0-9][A-Za-z0-9._:/-]*)?\Z"),
    "description": _text(64 << 10),
    "image": _text(4096),
    "image_blob_ids": {
        "type": "object",
        "maxProperties": 1000,
        "propertyNames": {"pattern": r"^[0-9a-f]{1,128}\Z"},
        "additionalProperties": {"type": "object", "maxProperties": 0},
    },
    "hypervisor": _text(64, r"^[a-z0-9-]*\Z"),
    "cpu": _number(1 << 16),
    "memory": _number(1 << 50),
    "storage": _number(1 << 60),
    "nics": _number(1 << 10),
    "queue_size": _number(1 << 16),
    "disk_queue_size": _number(1 << 16),
    "network": _text(255),
    "no_direct_io": {"type": "boolean"},
    "windows": {"type": "boolean"},
}
SCHEMA: Record = {
    "type": "object",
    "required": ["version", "config"],
    "properties": {
        "version": {"type": "integer", "const": VERSION},
        "config": {"type": "object", "required": ["name"], "properties": CONFIG_FIELDS},
        # Newer archives list their files.
        "files": {"type": "array", "items": _text(255), "maxItems": 10_000},
    },
}


class BadArchive(InputError):
    """The archive is damaged, hostile, or none of ours."""

    def __init__(self, message: str, remedy: str | None = AGAIN) -> None:
        super().__init__(message, "path", remedy)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One file of an archive, from its headers.

    ``size``: bytes of the file; ``stored``: bytes in the archive; ``segments``: (start, end) of each stretch of them
    in the file, in order, or ``None`` for a file without holes.
    """

    name: str
    size: int
    stored: int
    segments: Segments | None

    @property
    def allocated(self) -> int:
        """Bytes that it takes on a disk: a byte of data among holes takes a block."""
        if self.segments is None:
            return self.stored
        blocks = last = 0
        for start, end in self.segments:
            first = max(start // DISK_BLOCK, last)
            last = -(-end // DISK_BLOCK)
            blocks += last - first
        return blocks * DISK_BLOCK


class TarSource:
    """The decompressed archive: read forward only, and never more than *cap* bytes of it."""

    def __init__(self, stream: Reader, cap: int) -> None:
        self._stream = stream
        self._left = cap

    def _read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise BadArchive("the archive unpacks to more than it may", "Raise the limit if you trust the archive.")
        return data

    def pieces(self, size: int) -> t.Iterator[bytes]:
        """Exactly *size* bytes, in pieces of 1 MiB at most."""
        while size:
            data = self._read(min(CHUNK, size))
            if not data:
                raise BadArchive("the archive is cut short")
            size -= len(data)
            yield data

    def take(self, size: int) -> bytes:
        """Exactly *size* bytes at once; they are few."""
        return b"".join(self.pieces(size))

    def skip_padding(self, size: int) -> None:
        """What fills the last block of *size* bytes up."""
        self.take(-size % BLOCK)

    def expect_end(self) -> None:
        """After the first of the two empty blocks that end a tar: the other one, and perhaps more of them.

        It reads to the end of the stream, where decompressors check their sums.
        """
        rest = self.take(BLOCK)
        found = 0
        while rest:
            found += len(rest)
            if rest.count(0) != len(rest) or found > MAX_PADDING:
                raise BadArchive("the archive has something after its end")
            rest = self._read(CHUNK)


def header(name: str, stored: int, size: int, segments: Segments | None) -> bytes:
    """The tar header of a file, with its PAX header before it where one is needed; the same for the same file.

    :param stored: bytes in the archive.
    :param size: bytes of the file.
    """
    info = tarfile.TarInfo(name)
    info.size, info.mode = stored, 0o600
    if segments is not None:
        entries = [{"o": start, "l": end - start} for start, end in segments]
        info.pax_headers = {SPARSE_MAP: json.dumps(entries, separators=(",", ":")), SPARSE_SIZE: str(size)}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def envelope_bytes(config: t.Mapping[str, t.Any]) -> bytes:
    """``snapshot.json``."""
    document = {"version": VERSION, "config": dict(config)}
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"


def next_entry(source: TarSource) -> Entry | None:
    """The next file; its body must be read before the one after it. ``None`` at the end, when all has been read.

    :raises BadArchive: it is no plain file of a flat archive, or its headers contradict each other.
    """
    block = source.take(BLOCK)
    if not block.strip(b"\0"):
        source.expect_end()
        return None
    info = _parse_block(block)
    records: dict[str, bytes] = {}
    if info.type == tarfile.XHDTYPE:
        if info.size > MAX_HEADER:
            raise BadArchive(f"a PAX header has more than {MAX_HEADER} bytes")
        records = _parse_records(source.take(info.size))
        source.skip_padding(info.size)
        info = _parse_block(source.take(BLOCK))
    return _entry(info, records)


def _parse_block(block: bytes) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as exc:
        raise BadArchive(f"the file is not a tar archive, or damaged: {exc}") from exc
    if info.size < 0:
        raise BadArchive("the archive is damaged: a size is negative")
    return info


def _parse_records(data: bytes) -> dict[str, bytes]:
    """The records of a PAX header, each ``<its length> <key>=<value>\\n``."""
    records: dict[str, bytes] = {}
    position = 0
    while position < len(data):
        number, space, _rest = data[position : position + MAX_DIGITS].partition(b" ")
        length = int(number) if space and number.isdigit() else 0
        record = data[position : position + length]
        key, equals, value = record[len(number) + 1 : -1].partition(b"=")
        if not equals or len(record) != length or not record.endswith(b"\n"):
            raise BadArchive("the archive is damaged: a PAX header is not well formed")
        name = key.decode("utf-8", "backslashreplace")
        if name in records or len(records) == MAX_RECORDS:
            raise BadArchive("a PAX header has a record twice, or too many")
        records[name] = value
        position += length
    return records


def _entry(info: tarfile.TarInfo, records: t.Mapping[str, bytes]) -> Entry:
    name = records["path"].decode("utf-8", "surrogateescape") if "path" in records else info.name
    if not FILE_NAME_RE.fullmatch(name):
        raise BadArchive(f"'{_printable(name)}' is not a name of a file in a snapshot", FLAT)
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise BadArchive(f"'{name}' is {KINDS.get(info.type, 'of an unknown kind')}, not a regular file", FLAT)
    extensions = records.keys() - PLAIN_RECORDS
    if extensions not in (set(), {SPARSE_MAP, SPARSE_SIZE}):
        unknown = _printable(", ".join(sorted(extensions)))
        raise BadArchive(f"'{name}' has PAX records that are not known here: {unknown}")
    stored = _decimal(records["size"], name) if "size" in records else info.size
    size = _decimal(records[SPARSE_SIZE], name) if extensions else stored
    if max(size, stored) > MAX_FILE:
        raise BadArchive(f"'{name}' is larger than any disk")
    segments = _parse_map(records[SPARSE_MAP], name, size, stored) if extensions else None
    return Entry(name, size, stored, segments)


def _printable(name: str) -> str:
    return name[:80].encode("ascii", "backslashreplace").decode()


def _decimal(value: bytes, name: str) -> int:
    if not value.isdigit() or len(value) > MAX_DIGITS:
        raise BadArchive(f"'{name}' has a size that is not a number")
    return int(value)


def _parse_map(value: bytes, name: str, size: int, stored: int) -> Segments:
    """The segments of a sparse map, which must be in order, inside the file, and together as long as the body."""
    try:
        entries = _parse_json(value)
    except (ValueError, RecursionError):
        entries = False
    if entries is None:  # how Go writes an empty list
        entries = []
    if not isinstance(entries, list):
        raise BadArchive(f"the sparse map of '{name}' is not a list")
    segments: Segments = []
    position = 0
    for entry in entries:
        start, length = _parse_segment(entry)
        if start < position or length < 1:
            raise BadArchive(f"the sparse map of '{name}' is not in order")
        position = start + length
        segments.append((start, position))
    if position > size or sum(end - start for start, end in segments) != stored:
        raise BadArchive(f"the sparse map of '{name}' does not agree with its size")
    return segments


def _is_int(value: t.Any) -> bool:
    """JSON's true and false are integers to Python, and none here."""
    return isinstance(value, int) and not isinstance(value, bool)


def _parse_segment(entry: t.Any) -> tuple[int, int]:
    """(start, length); what is none is of no length."""
    if isinstance(entry, dict) and entry.keys() == {"o", "l"}:
        start, length = entry["o"], entry["l"]
        if _is_int(start) and _is_int(length):
            return start, length
    return 0, 0


def _parse_json(data: bytes) -> t.Any:
    """JSON without what Python takes beside it, and without numbers that take long to read."""
    return json.loads(data, parse_int=_parse_int, parse_constant=_refuse_constant)


def _parse_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError("a number is too large")
    return int(text)


def _refuse_constant(text: str) -> t.NoReturn:
    raise ValueError(f"{text} is not JSON")


def read_envelope(source: TarSource) -> Record:
    """The document that an archive begins with: ``version``, ``config`` and, in newer archives, ``files``.

    :raises BadArchive: it is not there, or not valid.
    """
    entry = next_entry(source)
    if entry is None or entry.name != ENVELOPE or entry.segments is not None:
        raise BadArchive(
            f"the file is no snapshot archive: it does not begin with {ENVELOPE}", "Give an exported snapshot."
        )
    if entry.stored > MAX_ENVELOPE:
        raise BadArchive(f"{ENVELOPE} has more than {MAX_ENVELOPE} bytes")
    data = source.take(entry.stored)
    source.skip_padding(entry.stored)
    return _check_envelope(data)


def _check_envelope(data: bytes) -> Record:
    try:
        document = _parse_json(data)
        json.dumps(document, ensure_ascii=False).encode()  # half characters, which nothing could write again
    except (ValueError, RecursionError) as exc:
        raise BadArchive(f"{ENVELOPE} is not JSON: {exc}") from exc
    version = document.get("version") if isinstance(document, dict) else None
    if _is_int(version) and version != VERSION:
        raise BadArchive(
            f"the archive has version {version}, this collection knows {VERSION}",
            "Use a newer version of the collection, or export again with an older tool.",
        )
    try:
        import jsonschema
    except ImportError:
        raise UnsupportedError(
            "Python's jsonschema is not installed on the target",
            "path",
            "Install python3-jsonschema, or run the role cocoon.microvm.host.",
        ) from None
    for error in jsonschema.Draft7Validator(SCHEMA).iter_errors(document):
        raise BadArchive(f"{ENVELOPE} is not valid: {invalid(error)}")
    _refuse_floats(document)
    return t.cast(Record, document)


def _refuse_floats(document: t.Mapping[str, t.Any]) -> None:
    """To JSON Schema 2.0 is an integer."""
    values = {"version": document["version"], **document["config"]}
    for name, value in values.items():
        if isinstance(value, float) and (name == "version" or name in CONFIG_FIELDS):
            raise BadArchive(f"{ENVELOPE} is not valid: {name}: {value} is not an integer")
