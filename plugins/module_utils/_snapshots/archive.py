# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots as files: written for other hosts and tools, and read from them with nothing taken on trust.

An archive is a flat tar, plain or compressed. Its first entry is ``snapshot.json``; the others are the files of the
snapshot's directory, of which only the data is stored. gzip and zstd carry a check sum of what is in them; in a
plain archive a changed byte of a file's contents is seen by nothing but the archive's digest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import re
import stat
import typing as t
import zlib

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, ResourceError, StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import streams
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import archive_format as fmt
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots.archive_format import BadArchive, Segments
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots.archive_sinks import (
    HashedFile,
    Sink,
    open_sink,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._sparse import segments as data_segments
from ansible_collections.cocoon.microvm.plugins.module_utils._state import fsync_dir, remove_file
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record, format_size, new_id

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
DIGEST_RE = re.compile(r"sha256:[0-9a-f]{64}")
# A sparse map has to fit into a PAX header: with more segments, the smallest holes are stored as zeros.
MAX_SEGMENTS = 16_384
SMALL_HOLE = 64 << 10

Progress = t.Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Written:
    """An archive that has been written. ``size``: bytes of it; ``data``: bytes of the files in it, without holes."""

    digest: str
    size: int
    data: int


@dataclasses.dataclass(frozen=True)
class Limits:
    """What an archive may ask of this host: bytes on its disk, holes not counted, and files."""

    max_bytes: int
    max_files: int


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """A file that was in an archive. ``size``: its bytes; ``data``: those of them that are not in holes."""

    size: int
    data: int


@dataclasses.dataclass(frozen=True)
class Envelope:
    """An archive that has been read. ``digest`` and ``size`` are those of the archive."""

    version: int
    config: Record
    files: dict[str, FileInfo]
    digest: str
    size: int


@dataclasses.dataclass(frozen=True)
class _Source:
    """A file to be written. ``segments`` is ``None`` for one without holes."""

    name: str
    fd: int
    size: int
    segments: Segments | None

    @property
    def stretches(self) -> Segments:
        return [(0, self.size)] if self.segments is None else self.segments

    @property
    def stored(self) -> int:
        return sum(end - start for start, end in self.stretches)


def write(
    path: str,
    config: t.Mapping[str, t.Any],
    directory: str,
    names: t.Sequence[str],
    compression: str,
    progress: Progress | None = None,
) -> Written:
    """Write the files *names* of *directory* as an archive to *path*, which is replaced if it is there.

    The same snapshot gives the same bytes with ``none``; what zstd makes may differ between its releases.

    :param config: the ``SnapshotConfig``.
    :param compression: ``gzip``, ``none``, or ``zstd``, which the Go engine does not read.
    :param progress: called with bytes done and bytes in all, about once a MiB.
    :raises InputError: *path* cannot be written.
    :raises ResourceError: no space left for it.
    :raises StateError: a file of the snapshot is missing, no regular file, or changes.
    """
    envelope = fmt.envelope_bytes(config)
    if len(envelope) > fmt.MAX_ENVELOPE:
        raise StateError(f"the snapshot's {fmt.ENVELOPE} is too large for an archive")
    with contextlib.ExitStack() as stack:
        sources = _open_sources(directory, names, stack)
        total = sum(source.stored for source in sources)
        with _new_file(os.path.abspath(path)) as fd:
            target = HashedFile(fd)
            with open_sink(target, compression) as sink:
                sink.write(fmt.header(fmt.ENVELOPE, len(envelope), len(envelope), None))
                sink.write(envelope + fmt.padding(len(envelope)))
                done = 0
                for source in sources:
                    done = _write_file(sink, source, lambda count: progress and progress(count, total), done)
                sink.write(bytes(2 * fmt.BLOCK))
        return Written(f"sha256:{target.hexdigest()}", target.size, total)


def _open_sources(directory: str, names: t.Sequence[str], stack: contextlib.ExitStack) -> list[_Source]:
    """All the files, opened before anything is written."""
    sources = []
    for name in names:
        if not fmt.FILE_NAME_RE.fullmatch(name) or name == fmt.ENVELOPE or names.count(name) > 1:
            raise StateError(f"'{name}' in {directory} cannot be in an archive")
        path = os.path.join(directory, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as exc:
            raise StateError(f"cannot open {path}: {exc.strerror}") from exc
        stack.callback(os.close, fd)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise StateError(f"{path} is not a regular file")
        sources.append(_Source(name, fd, status.st_size, _holes_kept(fd, status.st_size)))
    return sources


def _holes_kept(fd: int, size: int) -> Segments | None:
    """The data of a file as few enough segments, or ``None`` if it is all data."""
    found: Segments = []
    gap = 0
    for start, end in data_segments(fd, size):
        if found and start - found[-1][1] <= gap:
            found[-1] = (found[-1][0], end)
            continue
        found.append((start, end))
        while len(found) > MAX_SEGMENTS:
            gap = max(SMALL_HOLE, 4 * gap)
            found = _without_holes(found, gap)
    return None if found == [(0, size)] or size == 0 else found


def _without_holes(segments: Segments, gap: int) -> Segments:
    """*segments* without the holes between them that have *gap* bytes at most."""
    found = segments[:1]
    for start, end in segments[1:]:
        if start - found[-1][1] <= gap:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def _write_file(sink: Sink, source: _Source, tell: t.Callable[[int], object], done: int) -> int:
    """:returns: *done* and what came to it."""
    sink.write(fmt.header(source.name, source.stored, source.size, source.segments))
    os.posix_fadvise(source.fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    buffer = memoryview(bytearray(streams.CHUNK))
    for position, end in source.stretches:
        while position < end:
            count = _read_into(source, buffer[: end - position], position)
            sink.write(buffer[:count])
            position += count
            done += count
            tell(done)
    sink.write(fmt.padding(source.stored))
    return done


def _read_into(source: _Source, buffer: memoryview, position: int) -> int:
    try:
        count = os.preadv(source.fd, [buffer], position)
    except OSError as exc:
        raise StateError(f"cannot read {source.name} of the snapshot: {exc.strerror}") from exc
    if not count:
        raise StateError(f"{source.name} of the snapshot became shorter while it was exported")
    return count


@contextlib.contextmanager
def _new_file(path: str) -> t.Iterator[int]:
    """A descriptor of a file that becomes *path* when the block ends well; otherwise nothing is left of it."""
    if os.path.isdir(path):
        raise InputError(f"{path} is a directory", "path", "Give the name of a file.")
    try:
        fd, temporary = _create_beside(path)
    except OSError as exc:
        raise _cannot_write(path, exc) from exc
    try:
        yield fd
        os.fsync(fd)
        os.rename(temporary, path)
    except BaseException as exc:
        remove_file(temporary)
        if isinstance(exc, OSError):
            raise _cannot_write(path, exc) from exc
        raise
    finally:
        os.close(fd)
    fsync_dir(os.path.dirname(path))


def _cannot_write(path: str, exc: OSError) -> InputError | ResourceError:
    if exc.errno in NO_SPACE:
        return ResourceError(f"no space left for {path}", "path", "Free some, or choose another file system.")
    return InputError(f"cannot write {path}: {exc.strerror}", "path", "Give a path on the target host for a new file.")


def _create_beside(path: str) -> tuple[int, str]:
    """A new file with a temporary name, locked as long as it is open; those of runs that died are removed."""
    _sweep(path)
    while True:
        temporary = f"{path}.{os.getpid()}.{new_id()[:8]}.tmp"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:  # not swept before it was locked
            return fd, temporary
        os.close(fd)


def _sweep(path: str) -> None:
    directory, name = os.path.split(path)
    ours = re.compile(re.escape(name) + r"\.[0-9]+\.[a-z2-7]{8}\.tmp")
    for found in filter(ours.fullmatch, os.listdir(directory)):
        with contextlib.suppress(OSError):
            fd = os.open(os.path.join(directory, found), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(os.path.join(directory, found))
            finally:
                os.close(fd)


def peek(path: str) -> Record:
    """The ``SnapshotConfig`` of an archive, without reading the rest of it.

    :raises InputError: it is no archive of a snapshot.
    """
    with _open_archive(path) as (_raw, stream, _size):
        source = fmt.TarSource(stream, fmt.MAX_ENVELOPE + fmt.MAX_HEADER + 4 * fmt.BLOCK)
        return t.cast(Record, fmt.read_envelope(source)["config"])


def read(
    path: str,
    staging: str,
    limits: Limits,
    wanted_digest: str | None = None,
    progress: Progress | None = None,
) -> Envelope:
    """Unpack an archive into *staging*, and verify all of it.

    Nothing outside *staging* is touched. After an error the caller removes it with whatever is in it.

    :param staging: an empty directory that only we can write to.
    :param wanted_digest: ``sha256:`` and 64 hex digits, of the archive as it is.
    :param progress: called with bytes read of the archive and its size, about once a MiB of data.
    :raises InputError: it is damaged, hostile, not an archive of a snapshot, above *limits*, or has another digest.
    :raises ResourceError: no space left for its files.
    """
    if wanted_digest is not None and not DIGEST_RE.fullmatch(wanted_digest):
        raise InputError(f"'{wanted_digest}' is not a digest", "path", "Write it as sha256: and 64 hex digits.")
    # Beside the data there are only headers, and the padding of both.
    cap = limits.max_bytes + (limits.max_files + 2) * (fmt.MAX_HEADER + 4 * fmt.BLOCK) + 4 * fmt.MAX_PADDING
    with _open_archive(path) as (raw, stream, size):
        source = fmt.TarSource(stream, cap)
        document = fmt.read_envelope(source)
        files = _unpack(source, staging, limits, lambda: progress and progress(raw.count, size))
        if raw.read(1):
            raise BadArchive(f"{path} has something after its end")
    missing = sorted(set(document.get("files", ())) - set(files))
    if missing:
        raise BadArchive(f"{path} lacks '{missing[0]}', which its {fmt.ENVELOPE} lists")
    digest = f"sha256:{raw.hexdigest()}"
    if wanted_digest not in (None, digest):
        raise BadArchive(f"{path} has the digest {digest}, not {wanted_digest}", "Get it again, or correct the digest.")
    return Envelope(document["version"], document["config"], files, digest, raw.count)


@contextlib.contextmanager
def _open_archive(path: str) -> t.Iterator[tuple[streams.HashingReader, streams.Reader, int]]:
    """(the archive as it is, hashed while it is read; what is in it, decompressed; bytes of the archive)."""
    with open(streams.open_source(path, "path"), "rb") as file:
        kind = streams.compression(os.pread(file.fileno(), 8, 0))
        if kind not in (None, "gzip", "zstd"):
            raise BadArchive(f"{path} is compressed with {kind}", "Use gzip, zstd, or no compression.")
        raw = streams.HashingReader(t.cast(streams.Reader, file))
        try:
            with streams.inflate(raw, kind) as stream:
                yield raw, stream, os.fstat(file.fileno()).st_size
        except (zlib.error, EOFError) as exc:
            raise BadArchive(f"{path} is damaged: {exc}") from exc


def _unpack(source: fmt.TarSource, staging: str, limits: Limits, tell: t.Callable[[], object]) -> dict[str, FileInfo]:
    files: dict[str, FileInfo] = {}
    left = limits.max_bytes
    directory = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while True:
            entry = fmt.next_entry(source)
            if entry is None:
                break
            if entry.name in files or entry.name == fmt.ENVELOPE:
                raise BadArchive(f"'{entry.name}' is in the archive twice")
            if len(files) == limits.max_files:
                raise BadArchive(f"the archive has more than {limits.max_files} files")
            left -= entry.allocated
            if left < 0:
                raise BadArchive(f"the archive holds more than {format_size(limits.max_bytes)}")
            _unpack_file(source, entry, directory, tell)
            files[entry.name] = FileInfo(entry.size, entry.stored)
        os.fsync(directory)
    except OSError as exc:
        if exc.errno in NO_SPACE:
            raise ResourceError(
                "no space left for the files of the archive",
                "root_dir",
                "Free some, or put root_dir on a larger file system.",
            ) from exc
        if exc.errno == errno.EFBIG:
            raise BadArchive("a file of the archive is larger than this file system takes") from exc
        raise
    finally:
        os.close(directory)
    return files


def _unpack_file(source: fmt.TarSource, entry: fmt.Entry, directory: int, tell: t.Callable[[], object]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(entry.name, flags, 0o600, dir_fd=directory)
    try:
        os.ftruncate(fd, entry.size)
        for position, end in [(0, entry.size)] if entry.segments is None else entry.segments:
            for data in source.pieces(end - position):
                view = memoryview(data)
                while view:
                    count = os.pwrite(fd, view, position)
                    position += count
                    view = view[count:]
                tell()
        source.skip_padding(entry.stored)
        os.fsync(fd)
    finally:
        os.close(fd)
