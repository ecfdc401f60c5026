# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images by URL: fetched into the store, made plain, and from there imported like any file.

What a URL brought is remembered with what its server said of it (``sources/``), so that a file that has not changed is
not transferred again. Under ``downloads/``, by a hash of the URL::

    <hash>.part   the file, or what there is of it; <hash>.json says of which URL and version
    <hash>.disk   a disk that came compressed

An interrupted transfer leaves its part for the next run to go on from; everything else goes when a run ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import io
import lzma
import os
import re
import typing as t
import urllib.parse
import zlib

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    CocoonError,
    InputError,
    NotFoundError,
    ResourceError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._images import (
    checksum,
    detect,
    kinds,
    source,
    streams,
    tarball,
    transfer,
    vmdk,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._images.kinds import Source
from ansible_collections.cocoon.microvm.plugins.module_utils._images.leftovers import Leftover, give_up
from ansible_collections.cocoon.microvm.plugins.module_utils._images.source import Sources
from ansible_collections.cocoon.microvm.plugins.module_utils._images.staging import locked_patiently
from ansible_collections.cocoon.microvm.plugins.module_utils._images.transfer import Access, Version, shown
from ansible_collections.cocoon.microvm.plugins.module_utils._progress import Progress, Stage
from ansible_collections.cocoon.microvm.plugins.module_utils._records import is_damaged
from ansible_collections.cocoon.microvm.plugins.module_utils._state import (
    Store,
    hashed,
    locked,
    remove_file,
    write_json,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import ImageRecord

# Enough of a file to see what it is, compressed or not.
GLIMPSE = 128 << 10
UNKNOWN = "(known after the download)"
Complete = t.Callable[[Source], Sources]


@dataclasses.dataclass(frozen=True)
class Request:
    """An image by URL.

    :param checksum: see :func:`checksum.parse`.
    :param pull: ``missing``, ``always`` or ``never``, as for images of registries.
    :param force: transfer it again, whatever is remembered.
    :param max_size: bytes that it may have, before and after decompression.
    """

    url: str
    checksum: str | None = None
    pull: str = "missing"
    force: bool = False
    max_size: int = source.MAX_SIZE
    access: Access = Access()
    lock_timeout: float = 60.0


def obtained(
    paths: Paths,
    store: Store | None,
    request: Request,
    current: ImageRecord | None,
    check_mode: bool,
    complete: Complete,
    told: Progress,
) -> contextlib.AbstractContextManager[Sources]:
    """What the image is made of, there to be imported as long as the block lasts.

    :param current: the record of the image that has the name now.
    :param complete: adds a kernel and an initrd to what the URL has.
    :param told: of the bytes that have come, and those there are in all.
    :raises CocoonError: it cannot be had, is not what it should be, or is no image; nothing of it is kept.
    """
    url = _checked(request)
    if not url.lower().startswith(("http://", "https://")):
        return _local(paths, store, request, check_mode, complete, told)
    return _downloaded(paths, store, request, url, current, check_mode, complete, told)


@contextlib.contextmanager
def _downloaded(
    paths: Paths,
    store: Store | None,
    request: Request,
    url: str,
    current: ImageRecord | None,
    check_mode: bool,
    complete: Complete,
    told: Progress,
) -> t.Iterator[Sources]:
    known = _unchanged(paths, store, request, current, complete)
    if known is not None:
        yield known
        return
    if request.pull == "never":
        raise NotFoundError("the image is not in the store", "pull", "Set it to missing or always.")
    if check_mode or store is None:
        yield complete(_glimpse(request))
        return
    told.expect(None)
    for left in leftovers(store):
        if left.abandoned:
            give_up(store, left)
    with locked_patiently(store, [_lock(hashed(url))], request.lock_timeout):
        known = _unchanged(paths, store, request, None, complete)  # another run may have been at it
        if known is not None:
            yield known
            return
        with _fetched(store, request, told) as (identity, document):
            yield complete(identity)
            source.note(_memory_path(paths, url), document)


def _checked(request: Request) -> str:
    """:raises InputError: a URL that is not to be used."""
    url = request.url
    parts = urllib.parse.urlsplit(url)
    if not source.is_url(url):
        return url
    if parts.scheme.lower() == "file":
        if parts.netloc not in ("", "localhost"):
            raise InputError(f"{url} names a host", "source", "Write file:///path.")
        return url
    if not parts.hostname or re.search(r"[\x00-\x20\x7f]", url):
        raise InputError(f"'{url}' is not a URL", "source", "Write it as https://host/path, with %20 for a space.")
    if parts.username is not None or parts.password is not None:
        raise InputError(
            "a URL with a login in it ends up in logs", "source", "Use one without; a signed query is left out of them."
        )
    if parts.scheme.lower() == "http" and not request.checksum and request.access.validate_certs:
        raise InputError("what comes over http may be anybody's", "source", "Use https, or give its checksum as well.")
    return url


def _memory_path(paths: Paths, url: str) -> str:
    return images.source_path(paths, f"url\0{url}")


def _lock(stem: str) -> str:
    return f"image:#download/{stem}"


def _path(store: Store, stem: str, suffix: str) -> str:
    return os.path.join(images.directory(store.paths, "downloads"), stem + suffix)


def _name(url: str) -> str:
    """The file's name, by which lists of checksums know it."""
    return urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition("/")[2]


@functools.lru_cache(maxsize=4)
def _wanted_digest(request: Request) -> checksum.Digest | None:
    """The digest that the file must have, from a list if need be; a run reads that once."""
    if request.checksum is None:
        return None
    wanted = checksum.parse(request.checksum)
    if isinstance(wanted, checksum.Digest):
        return wanted
    content = transfer.small(wanted.url, request.access, checksum.MAX_LIST, "checksum")
    return checksum.find(content.decode(errors="replace"), _name(request.url), wanted.algorithm, shown(wanted.url))


def _unchanged(
    paths: Paths, store: Store | None, request: Request, current: ImageRecord | None, complete: Complete
) -> Sources | None:
    """The image that the URL brought before, if it is whole and what the URL has now is the same.

    A checksum says so better than the server. Without one it is asked, but for ``pull: missing`` and an image that has
    the name already.
    """
    known = None if request.force else source.recall(_memory_path(paths, request.url))
    if not known or store is None:
        return None
    sources = complete(_remembered(known, shown(request.url)))
    if not _is_whole(store, sources):
        return None
    named = current is not None and current["id"] == sources.image_id
    if request.checksum is not None:
        parsed = checksum.parse(request.checksum)
        if isinstance(parsed, checksum.DigestList) and named and request.pull != "always":
            return sources
        wanted = _wanted_digest(request)
        return sources if wanted and known["digests"].get(wanted.algorithm) == wanted.hex else None
    if request.pull == "never" or (named and request.pull == "missing"):
        return sources
    version = Version(known["etag"], known["last_modified"], known["size"])
    return sources if transfer.head(request.url, request.access).same(version) else None


def _remembered(known: Record, origin: str) -> Source:
    """What a file was when it was last there."""
    return kinds.FILES[known["kind"]]("", known["digest"], known["file_digest"], origin=origin)


def _is_whole(store: Store, sources: Sources) -> bool:
    record = images.seen(store, sources.image_id)
    return record is not None and not is_damaged(record) and not images.missing_files(store, record)


def _glimpse(request: Request) -> Source:
    """What check mode can know: that the file is there, and what it is by its first bytes."""
    head = transfer.beginning(request.url, request.access, GLIMPSE)
    return _guess(head, shown(request.url))


def _guess(head: bytes, name: str) -> Source:
    """What a file is of which only the beginning is known.

    :raises InputError: certainly no image.
    """
    kind = streams.compression(head)
    if kind is not None:
        with contextlib.suppress(EOFError, OSError, zlib.error, lzma.LZMAError):  # it is cut off, after all
            with streams.inflate(t.cast(streams.Reader, io.BytesIO(head)), kind) as stream:
                head = stream.read(4 * detect.HEAD)
    found: type[Source] = kinds.RawDisk
    if head.startswith(detect.QCOW2_MAGIC):
        detect.check_qcow2(head[: detect.HEAD], name)
        found = kinds.Qcow2Disk
    elif head.startswith(vmdk.MAGIC):
        vmdk.check_header(head[: vmdk.SECTOR], name)
        found = kinds.VmdkDisk
    elif detect.looks_like_tar(head[:512]):
        found = kinds.RootTar
        with contextlib.suppress(tarball.BadArchive):  # cut off, as said
            if detect.tar_kind(t.cast(streams.Reader, io.BytesIO(head)), name) is kinds.PackedDisk:
                found = kinds.RawDisk
    elif head[510:512] != b"\x55\xaa" and streams.compression(head) is None:
        raise InputError(f"{name} is of no kind that is known here", "source", detect.KNOWN)
    return found("", UNKNOWN, UNKNOWN, origin=name)


@contextlib.contextmanager
def _fetched(store: Store, request: Request, told: Progress) -> t.Iterator[tuple[Source, Record]]:
    """The file, verified and plain, and what to remember of it. Under the URL's lock."""
    url = request.url
    part_path, about = _path(store, hashed(url), ".part"), _path(store, hashed(url), ".json")
    wanted = _wanted_digest(request)
    try:
        part = transfer.Part(part_path, _part_version(about, part_path), request.max_size, _extra(wanted))
        try:
            stage = told.stage(f"downloading {shown(url)}")
            transfer.fetch(url, request.access, part, lambda version: _note_part(about, url, version), stage)
            os.fsync(part.fd)
        finally:
            part.close()
    except transfer.InterruptedTransfer:
        if not os.path.getsize(part_path):
            _drop(store, url)
        raise
    except CocoonError:
        _drop(store, url)
        raise
    except OSError as exc:
        _drop(store, url)
        raise _disk_error(store, exc) from exc
    try:
        digests = {name: part.hexdigest(name) for name in part.names}
        _verify(wanted, digests, shown(url))
        try:
            identity = _plain(store, part_path, url, digests["sha256"], request.max_size, told)
        except OSError as exc:
            raise _disk_error(store, exc) from exc
        version = part.version or Version()
        document = {
            "url": shown(url),
            "etag": version.etag,
            "last_modified": version.last_modified,
            "size": part.count,
            "digests": digests,
            "kind": identity.kind,
            "digest": identity.digest,
            "file_digest": identity.file_digest,
        }
        yield identity, document
    finally:
        _drop(store, url)


def _extra(wanted: checksum.Digest | None) -> list[str]:
    return [wanted.algorithm] if wanted and wanted.algorithm != "sha256" else []


def _part_version(about: str, part_path: str) -> Version | None:
    known = source.glanced(about) if os.path.exists(part_path) else None
    return Version(known["etag"], known["last_modified"], known["size"]) if known else None


def _note_part(about: str, url: str, version: Version) -> None:
    write_json(about, {"url": shown(url), **dataclasses.asdict(version)})


def _drop(store: Store, url: str) -> None:
    for suffix in (".part", ".disk", ".json"):
        with contextlib.suppress(OSError):
            remove_file(_path(store, hashed(url), suffix))


def _verify(wanted: checksum.Digest | None, digests: t.Mapping[str, str], name: str) -> None:
    """:raises InputError: the file is another one."""
    if wanted is not None and digests[wanted.algorithm] != wanted.hex:
        raise InputError(
            f"{name} has {wanted.algorithm}:{digests[wanted.algorithm]}, not {wanted}",
            "checksum",
            "Correct the checksum, or find out who changed the file; nothing of it was kept.",
        )


def _disk_error(store: Store, exc: OSError) -> CocoonError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            f"no space left in {store.paths.images}", "root_dir", "Free some, or put root_dir on a larger file system."
        )
    return ResourceError(f"cannot write to {store.paths.images}: {exc.strerror or exc}", "root_dir")


def _plain(store: Store, path: str, url: str, digest: str, limit: int, told: Progress) -> Source:
    """What a file is; a compressed disk is made plain, since that is how hypervisors read it."""
    name = shown(url)
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        kind = detect.detect(fd, name)
        if kind is kinds.PackedDisk:
            return _unpacked(fd, _path(store, hashed(url), ".disk"), limit, name, digest, told)
        return kind(path, digest, digest, origin=name, owned=issubclass(kind, kinds.Disk)).chosen(fd)
    finally:
        os.close(fd)


def _unpacked(fd: int, target: str, limit: int, name: str, digest: str, told: Progress) -> Source:
    """A disk that is compressed or in a tar, plain, in the file *target*.

    :raises InputError: what is in it is no disk, or more than *limit* bytes.
    """
    with detect.plain(fd, detect.compression_of(fd), name) as stream:
        pieces = detect.disk_in(stream, name, limit)
        unpacked = _write(pieces, target, limit, name, told.stage(f"unpacking {name}"))
    plain = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = detect.detect(plain, name)
    finally:
        os.close(plain)
    if not issubclass(found, kinds.Disk):
        raise InputError(f"what is in {name} is no disk", "source", "Unpack it first.")
    return found(target, unpacked, digest, origin=name, owned=True)


def _write(pieces: t.Iterable[bytes], target: str, limit: int, name: str, stage: Stage) -> str:
    """Write *pieces*, with holes; their hex SHA-256.

    :raises InputError: it is more than *limit* bytes.
    """
    remove_file(target)  # of a run that was killed
    part = transfer.Part(target, None, limit)
    try:
        for data in pieces:
            if part.count + len(data) > limit:
                raise source.too_large(f"the disk in {name}", limit)
            part.write(data)
            stage(part.count)
        os.fsync(part.fd)
        return part.hexdigest("sha256")
    finally:
        part.close()


@contextlib.contextmanager
def _local(
    paths: Paths, store: Store | None, request: Request, check_mode: bool, complete: Complete, told: Progress
) -> t.Iterator[Sources]:
    """A file of the host by ``file://``, or one with a checksum that is more than a plain sha256."""
    path = request.url
    if source.is_url(path):
        path = urllib.parse.unquote(urllib.parse.urlsplit(path).path)
    wanted = _wanted_digest(dataclasses.replace(request, url=path))
    fd = streams.open_source(path)
    try:
        if os.fstat(fd).st_size > request.max_size:
            raise source.too_large(path, request.max_size)
        if wanted is not None:
            _verify(wanted, {wanted.algorithm: _digest(fd, wanted.algorithm)}, path)
    finally:
        os.close(fd)
    remember = not check_mode
    found = source.examine(
        paths,
        path,
        None,
        None,
        None,
        None,
        remember=remember,
        force=request.force,
        told=told,
        max_size=request.max_size,
    )
    if not isinstance(found.main, kinds.PackedDisk):
        yield complete(found.main)
        return
    with unpacked(paths, store, found.main, request, check_mode, complete, told) as sources:
        yield sources


def _digest(fd: int, algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    position = 0
    while data := os.pread(fd, transfer.CHUNK, position):
        digest.update(data)
        position += len(data)
    return digest.hexdigest()


@contextlib.contextmanager
def unpacked(
    paths: Paths,
    store: Store | None,
    packed: kinds.PackedDisk,
    request: Request,
    check_mode: bool,
    complete: Complete,
    told: Progress,
) -> t.Iterator[Sources]:
    """A packed disk of the host, plain as long as the block lasts, unless the store has it by an earlier run."""
    path = packed.path
    memory = images.source_path(paths, f"packed\0{packed.digest}")
    known = None if request.force else source.recall(memory)
    if known and store is not None:
        sources = complete(_remembered(known, path))
        if _is_whole(store, sources):
            yield sources
            return
    if check_mode or store is None:
        with open(streams.open_source(path), "rb") as stream:
            yield complete(_guess(stream.read(GLIMPSE), path))
        return
    told.expect(os.path.getsize(path))
    with locked(store.paths, [_lock(hashed(path))], request.lock_timeout):
        try:
            plain = _unpacked_local(paths, store, packed, request.max_size, told)
            yield complete(plain)
            source.note(memory, {"kind": plain.kind, "digest": plain.digest, "file_digest": packed.digest})
        finally:
            _drop(store, path)


def _unpacked_local(paths: Paths, store: Store, packed: kinds.PackedDisk, limit: int, told: Progress) -> Source:
    path = packed.path
    try:
        with open(streams.open_source(path), "rb") as stream:
            target = _path(store, hashed(path), ".disk")
            plain = _unpacked(stream.fileno(), target, limit, path, packed.digest, told)
    except OSError as exc:
        raise _disk_error(store, exc) from exc
    if source.identify(paths, path, "source", None, False, False).digest != packed.digest:
        raise InputError(f"{path} changed while it was read", "source", "Wait until it is complete.")
    return plain


def leftovers(store: Store) -> list[Leftover]:
    """Downloads that were not finished, by their URLs, or else by the hashes of these. Those under way are among them.

    A disk of the host that was being made plain is one as well.
    """
    directory = images.directory(store.paths, "downloads")
    found: dict[str, list[str]] = {}
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(directory)):
            found.setdefault(name.partition(".")[0], []).append(os.path.join(directory, name))
    return [Leftover(_title(store, stem), _lock(stem), tuple(paths)) for stem, paths in found.items()]


def _title(store: Store, stem: str) -> str:
    known = source.glanced(_path(store, stem, ".json")) or {}
    return known.get("url", stem)
