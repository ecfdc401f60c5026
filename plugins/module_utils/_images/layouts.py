# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the documents and layers of images lie: a directory, or a tar archive of one or of docker save."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import stat
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._images.documents import (
    CONFIG_TYPES,
    LAYER_TYPE,
    MANIFEST_TYPES,
    MAX_DOCUMENT,
    REF_NAME,
    Document,
    MissingBlob,
    checked,
    decoded,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._images.streams import Reader, compression, open_source
from ansible_collections.cocoon.microvm.plugins.module_utils._images.tarball import (
    AGAIN,
    DEFAULT_LIMITS,
    FILE,
    HARDLINK,
    SYMLINK,
    BadArchive,
    Member,
    TarInput,
    members,
    resolve,
)

MAX_DOCUMENTS = 64 << 20


class DirectoryLayout:
    """A layout as a directory."""

    def __init__(self, path: str) -> None:
        self._path = path

    def index(self) -> bytes:
        return self._read("index.json")

    def document(self, digest: str) -> bytes:
        return self._read(self._name(digest))

    def has(self, digest: str) -> bool:
        return os.path.isfile(os.path.join(self._path, self._name(digest)))

    @contextlib.contextmanager
    def blob(self, digest: str) -> t.Iterator[Reader]:
        with open(self._open(self._name(digest)), "rb") as stream:
            yield t.cast(Reader, stream)

    @staticmethod
    def _name(digest: str) -> str:
        return os.path.join("blobs", *digest.split(":"))

    def _read(self, name: str) -> bytes:
        with open(self._open(name), "rb") as stream:
            data = stream.read(MAX_DOCUMENT + 1)
        if len(data) > MAX_DOCUMENT:
            raise BadArchive(f"{name} in the layout is too large", AGAIN)
        return data

    def _open(self, name: str) -> int:
        try:
            fd = os.open(os.path.join(self._path, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise MissingBlob(f"{name} is not in the layout", AGAIN) from None
        except OSError as exc:
            raise BadArchive(f"{name} in the layout cannot be read: {exc.strerror}", AGAIN) from exc
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        raise BadArchive(f"{name} in the layout is not a regular file", AGAIN)


class ArchiveLayout:
    """A layout as an archive: documents are kept in memory, layers read from their place in the (plain) file."""

    def __init__(self, stream: Reader, path: str | None) -> None:
        """Read the whole archive once.

        :param stream: the archive, decompressed.
        :param path: the same as a plain file, if layers will be asked for.
        """
        self._path = path
        self._documents: dict[str, bytes] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        self._kept = 0
        for member in members(TarInput(stream, DEFAULT_LIMITS)):
            if member.kind in (SYMLINK, HARDLINK):
                self._links[member.path] = member.link if member.kind == SYMLINK else f"/{member.link}"
            if member.kind != FILE:
                continue
            self._places[member.path] = (member.offset, member.size)
            self._look(member)

    def _look(self, member: Member) -> None:
        """Keep a file that may be a document."""
        if member.size <= MAX_DOCUMENT and self._kept + member.size <= MAX_DOCUMENTS:
            data = b"".join(member.data)
            if data[:64].lstrip().startswith((b"{", b"[")):  # the rest are small layers
                self._documents[member.path] = data
                self._kept += member.size

    def index(self) -> bytes:
        return self._document("index.json")

    def document(self, digest: str) -> bytes:
        return self._document("blobs/" + digest.replace(":", "/"))

    def _document(self, name: str) -> bytes:
        if name not in self._documents:
            raise MissingBlob(f"{name} is not in the archive, or too large", AGAIN)
        return self._documents[name]

    def has(self, digest: str) -> bool:
        return self._place(digest) in self._places

    @contextlib.contextmanager
    def blob(self, digest: str) -> t.Iterator[Reader]:
        name = self._place(digest)
        if name not in self._places or self._path is None:
            raise MissingBlob(f"{name} is not in the archive", AGAIN)
        offset, size = self._places[name]
        with open(open_source(self._path), "rb") as stream:
            stream.seek(offset)
            yield _Slice(t.cast(Reader, stream), size)

    def _place(self, digest: str) -> str:
        return "blobs/" + digest.replace(":", "/")


class DockerArchive(ArchiveLayout):
    """What ``docker save`` writes (and ``skopeo copy … docker-archive:``), read in place as if it were an OCI layout.

    Its manifest.json names files and no digests. The manifests made of it here do: a config's digest is the image ID
    as Docker shows it, and a layer's the one by which the config knows it, or that of its file where it is compressed.
    """

    def __init__(self, stream: Reader, path: str | None) -> None:
        self._compressed: dict[str, tuple[str, str]] = {}
        super().__init__(stream, path)
        self._blobs: dict[str, str] = {}
        self._made: dict[str, bytes] = {}
        self._faults: dict[str, BadArchive] = {}
        self._files: dict[str, dict[str, str]] = {path: {"type": "file"} for path in self._places}
        self._files.update({path: {"type": "link", "target": target} for path, target in self._links.items()})

    def index(self) -> bytes:
        manifests: list[Document] = []
        for entry in checked(decoded(self._document("manifest.json"), "manifest.json"), "saved", "manifest.json"):
            descriptor = self._descriptor(entry)
            tags = entry.get("RepoTags", []) if descriptor["digest"] in self._made else []
            named = [{**descriptor, "annotations": {REF_NAME: tag}} for tag in tags]
            manifests += named or [descriptor]
        return json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()

    def document(self, digest: str) -> bytes:
        if digest in self._faults:
            raise self._faults[digest]
        if digest not in self._made:
            raise MissingBlob(f"{digest} is not in the archive", AGAIN)
        return self._made[digest]

    def _look(self, member: Member) -> None:
        """The digest of a compressed layer is in no document: it is taken while the file passes by."""
        head = next(member.data, b"")
        kind = compression(head)
        if kind is None:
            member.data = itertools.chain([head], member.data)
            super()._look(member)
            return
        digest = hashlib.sha256(head)
        for piece in member.data:
            digest.update(piece)
        self._compressed[member.path] = (digest.hexdigest(), kind)

    def _descriptor(self, entry: t.Any) -> Document:
        """That of a manifest made for one image; what is wrong with the image is said by whoever asks for it."""
        try:
            return self._manifest(checked(entry, "saved image", "manifest.json"))
        except BadArchive as exc:
            digest = f"sha256:{hashlib.sha256(json.dumps(entry).encode()).hexdigest()}"
            self._faults[digest] = exc
            return {"mediaType": MANIFEST_TYPES[0], "digest": digest, "size": 0}

    def _manifest(self, entry: Document) -> Document:
        data = self._document(entry["Config"])
        names = entry.get("Layers", [])
        layers = []
        if names:
            diff_ids = checked(decoded(data, entry["Config"]), "config", entry["Config"])["rootfs"]["diff_ids"]
            if len(diff_ids) != len(names):
                raise BadArchive("its config and its manifest disagree on the number of layers", AGAIN)
            layers = [self._layer(*pair) for pair in zip(names, diff_ids)]
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPES[0],
            "config": self._put(data, CONFIG_TYPES[0]),
            "layers": layers,
        }
        return self._put(json.dumps(document, sort_keys=True).encode(), MANIFEST_TYPES[0])

    def _layer(self, name: str, digest: str) -> Document:
        place = resolve(self._files, name)
        if place is None:
            raise MissingBlob(f"layer {name[:80]} is not in the archive", "Save the image again.")
        kind = ""
        if place in self._compressed:
            own, compressed_by = self._compressed[place]
            digest, kind = f"sha256:{own}", f"+{compressed_by}" if compressed_by in ("gzip", "zstd") else ""
        self._blobs[digest] = place
        return {"mediaType": f"{LAYER_TYPE}{kind}", "digest": digest, "size": self._places[place][1]}

    def _put(self, data: bytes, kind: str) -> Document:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._made[digest] = data
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    def _place(self, digest: str) -> str:
        return self._blobs.get(digest, digest)


class _Slice:
    """The next *size* bytes of a stream."""

    def __init__(self, stream: Reader, size: int) -> None:
        self._stream = stream
        self._left = size

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data
