# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""OCI layouts: a directory, or a tar archive of one or of docker save. Every document in them is untrusted.

A document is used only after its digest, its size and its JSON Schema agree.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import registry_name
from ansible_collections.cocoon.microvm.plugins.module_utils._images.streams import Reader, open_source
from ansible_collections.cocoon.microvm.plugins.module_utils._images.tarball import (
    AGAIN,
    CHANGED,
    DEFAULT_LIMITS,
    FILE,
    HARDLINK,
    SYMLINK,
    BadArchive,
    TarInput,
    members,
    named,
    resolve,
)

MAX_DOCUMENT = 4 << 20
MAX_DOCUMENTS = 64 << 20
MAX_LAYERS = 127
MAX_NESTING = 3
NAMES = {"index": "OCI index", "manifest": "OCI manifest", "config": "OCI config", "docker": "manifest of docker save"}
REF_NAME = "org.opencontainers.image.ref.name"
MACHINES = registry_name.MACHINES
INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
LAYER_TYPES = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
)
PLAIN_LAYERS = "Build the image with layers that are tar archives, plain or compressed with gzip or zstd."

_DESCRIPTOR: dict[str, t.Any] = {
    "type": "object",
    "required": ["digest", "size"],
    "properties": {
        "mediaType": {"type": "string", "maxLength": 255},
        "digest": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}\\Z"},
        "size": {"type": "integer", "minimum": 0, "maximum": 1 << 50},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        "platform": {
            "type": "object",
            "required": ["architecture", "os"],
            "properties": {
                "architecture": {"type": "string", "maxLength": 64},
                "os": {"type": "string", "maxLength": 64},
                "variant": {"type": "string", "maxLength": 64},
            },
        },
    },
}
# A guest gets these strings with a NUL behind each.
_TEXT: dict[str, t.Any] = {
    "type": ["string", "null"],
    "pattern": "^[^\\u0000\\ud800-\\udfff]*\\Z",
    "maxLength": 1 << 17,
}
_WORDS: dict[str, t.Any] = {"type": ["array", "null"], "items": {**_TEXT, "type": "string"}, "maxItems": 10_000}
SCHEMAS: dict[str, dict[str, t.Any]] = {
    "docker": {
        "type": "array",
        "minItems": 1,
        "maxItems": 1000,
        "items": {
            "type": "object",
            "required": ["Config", "Layers"],
            "properties": {
                "Config": {"type": "string", "maxLength": 255},
                "RepoTags": {"type": ["array", "null"], "items": {"type": "string", "maxLength": 255}},
                "Layers": {
                    "type": "array",
                    "items": {"type": "string", "maxLength": 255},
                    "minItems": 1,
                    "maxItems": MAX_LAYERS,
                },
            },
        },
    },
    "index": {
        "type": "object",
        "required": ["schemaVersion", "manifests"],
        "properties": {
            "schemaVersion": {"const": 2},
            "manifests": {"type": "array", "items": _DESCRIPTOR, "maxItems": 1000},
        },
    },
    "manifest": {
        "type": "object",
        "required": ["schemaVersion", "config", "layers"],
        "properties": {
            "schemaVersion": {"const": 2},
            "config": _DESCRIPTOR,
            "layers": {"type": "array", "items": _DESCRIPTOR, "minItems": 1, "maxItems": MAX_LAYERS},
        },
    },
    "config": {
        "type": "object",
        "required": ["architecture", "os", "rootfs"],
        "properties": {
            "architecture": {"type": "string", "maxLength": 64},
            "os": {"type": "string", "maxLength": 64},
            "variant": {"type": "string", "maxLength": 64},
            "created": {"type": "string", "maxLength": 64},
            "config": {
                "type": ["object", "null"],
                "properties": {
                    "Entrypoint": _WORDS,
                    "Cmd": _WORDS,
                    "Env": _WORDS,
                    "User": _TEXT,
                    "WorkingDir": _TEXT,
                    "StopSignal": _TEXT,
                },
            },
            "rootfs": {
                "type": "object",
                "required": ["type", "diff_ids"],
                "properties": {
                    "type": {"const": "layers"},
                    "diff_ids": {
                        "type": "array",
                        "items": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}\\Z"},
                        "maxItems": MAX_LAYERS,
                    },
                },
            },
        },
    },
}


class Layout(t.Protocol):
    """Where documents and layers come from."""

    def index(self) -> bytes: ...

    def document(self, digest: str) -> bytes: ...

    def blob(self, digest: str) -> contextlib.AbstractContextManager[Reader]: ...


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The image chosen from a layout: digests in hex, layers bottom first with their sizes.

    ``plain``: the digest of each layer's uncompressed tar, as the config promises it.
    """

    digest: str
    layers: list[tuple[str, int]]
    plain: list[str]
    platform: str
    created: str | None
    config: dict[str, t.Any] = dataclasses.field(default_factory=dict)


def run_config(config: t.Mapping[str, t.Any] | None) -> dict[str, t.Any]:
    """What a container of the image would run, from the ``config`` of an OCI config, in our words."""
    given = config or {}
    return {
        "entrypoint": given.get("Entrypoint") or [],
        "cmd": given.get("Cmd") or [],
        "env": given.get("Env") or [],
        "user": given.get("User") or "",
        "working_dir": given.get("WorkingDir") or "",
        "stop_signal": given.get("StopSignal") or "",
    }


def select(layout: Layout, tag: str | None, platform: str | None = None, what: str = "the layout") -> Manifest:
    """The image of *layout* for *platform*, or for this host.

    :param tag: which one, by its ref name, if there are several.
    :param platform: ``os/architecture``, and a variant if it matters.
    :param what: what to call the layout in messages.
    :raises InputError: none, several, damaged, or for other machines only.
    """
    wanted = registry_name.check_platform(platform)
    with named(what):
        index = _parse(layout.index(), "index", "index.json")
    descriptors = index["manifests"]
    if tag is not None:
        descriptors = [item for item in descriptors if (item.get("annotations") or {}).get(REF_NAME) == tag]
        if not descriptors:
            raise InputError(f"{what} has no image '{tag}'", "tag", f"It has: {_tags(index)}.")
    found: dict[str, Manifest] = {}
    seen: set[str] = set()
    with named(what):
        for descriptor in descriptors:
            _collect(layout, descriptor, wanted, found, seen, MAX_NESTING)
    fitting = {digest: manifest for digest, manifest in found.items() if _fits(manifest.platform, wanted)}
    if not fitting:
        others = {platform for platform in seen if "/" in platform}
        have = ", ".join(sorted({manifest.platform for manifest in found.values()} | others)) or "nothing"
        raise UnsupportedError(
            f"{what} has no image for {wanted}",
            "platform" if platform else "source",
            f"It has: {have}. {'Choose one of these' if platform else 'Get one for this host'}.",
        )
    if len(fitting) > 1 and tag is None and len(descriptors) > 1:
        raise InputError(f"{what} has several images", "tag", f"Choose one of: {_tags(index)}.")
    return next(iter(fitting.values()))


def _fits(platform: str, wanted: str) -> bool:
    """``linux/arm/v7`` fits where ``linux/arm`` is wanted; so does ``linux/arm`` where v7 is, as few configs say."""
    return f"{platform}/".startswith(f"{wanted}/") or f"{wanted}/".startswith(f"{platform}/")


def _tags(index: t.Mapping[str, t.Any]) -> str:
    names = {(item.get("annotations") or {}).get(REF_NAME) for item in index["manifests"]}
    return ", ".join(sorted(name for name in names if name)) or "no names"


def _collect(
    layout: Layout,
    descriptor: t.Mapping[str, t.Any],
    wanted: str,
    found: dict[str, Manifest],
    seen: set[str],
    depth: int,
) -> None:
    """Add the images that *descriptor* leads to; *seen* collects indexes and the platforms passed over."""
    platform = _platform(descriptor["platform"]) if descriptor.get("platform") else None
    if platform and not _fits(platform, wanted):
        if not platform.startswith("unknown/"):  # attestations
            seen.add(platform)
        return
    document = read_document(layout, descriptor)
    if descriptor.get("mediaType") in INDEX_TYPES or "manifests" in document:
        if descriptor["digest"] in seen:
            return
        seen.add(descriptor["digest"])
        if depth == 0:
            raise BadArchive("its indexes are nested too deep")
        for item in _check(document, "index", descriptor["digest"])["manifests"]:
            _collect(layout, item, wanted, found, seen, depth - 1)
        return
    if descriptor.get("mediaType") in (*MANIFEST_TYPES, None):
        manifest = _manifest(layout, descriptor["digest"], document)
        if manifest:
            found[manifest.digest] = manifest


def _platform(document: t.Mapping[str, t.Any]) -> str:
    return "/".join(document[key] for key in ("os", "architecture", "variant") if document.get(key))


def _manifest(layout: Layout, digest: str, document: t.Any) -> Manifest | None:
    _check(document, "manifest", digest)
    for layer in document["layers"]:
        kind = layer.get("mediaType")
        if kind not in LAYER_TYPES:
            raise UnsupportedError(f"a layer is of the unknown type '{kind}'", "source", PLAIN_LAYERS)
    config = _check(read_document(layout, document["config"]), "config", document["config"]["digest"])
    layers = [(layer["digest"].partition(":")[2], layer["size"]) for layer in document["layers"]]
    plain = [diff_id.partition(":")[2] for diff_id in config["rootfs"]["diff_ids"]]
    if len(plain) != len(layers):
        raise BadArchive("its config and its manifest disagree on the number of layers", AGAIN)
    if len(set(zip(layers, plain))) != len({name for name, _size in layers}):
        raise BadArchive("its config or its manifest says two things of one layer", AGAIN)
    return Manifest(
        digest=digest.partition(":")[2],
        layers=layers,
        plain=plain,
        platform=_platform(config),
        created=config.get("created"),
        config=run_config(config.get("config")),
    )


def read_document(layout: Layout, descriptor: t.Mapping[str, t.Any]) -> t.Any:
    """The JSON document of a descriptor, its digest and size verified."""
    digest = descriptor["digest"]
    data = layout.document(digest)
    if len(data) != descriptor["size"] or hashlib.sha256(data).hexdigest() != digest.partition(":")[2]:
        raise BadArchive(f"document {digest} does not have that digest", CHANGED)
    return _decode(data, digest)


def _parse(data: bytes, kind: str, name: str) -> t.Any:
    return _check(_decode(data, name), kind, name)


def _decode(data: bytes, name: str) -> t.Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise BadArchive(f"{name} is not JSON: {exc}", AGAIN) from exc


def _check(document: t.Any, kind: str, name: str) -> t.Any:
    """*document* if it follows the schema of its *kind*."""
    try:
        import jsonschema
    except ImportError:
        raise UnsupportedError(
            "Python's jsonschema is not installed on the target",
            "source",
            "Install python3-jsonschema, or run the role cocoon.microvm.host.",
        ) from None
    for error in jsonschema.Draft7Validator(SCHEMAS[kind]).iter_errors(document):
        where = "/".join(str(part) for part in error.path) or "the whole"
        raise BadArchive(f"{name} is not a valid {NAMES.get(kind, kind)}: {where}: {str(error.message)[:200]}", AGAIN)
    return document


class DirectoryLayout:
    """A layout as a directory."""

    def __init__(self, path: str) -> None:
        self._path = path

    def index(self) -> bytes:
        return self._read("index.json")

    def document(self, digest: str) -> bytes:
        return self._read(self._name(digest))

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
        kept = 0
        for member in members(TarInput(stream, DEFAULT_LIMITS)):
            if member.kind in (SYMLINK, HARDLINK):
                self._links[member.path] = member.link if member.kind == SYMLINK else f"/{member.link}"
            if member.kind != FILE:
                continue
            self._places[member.path] = (member.offset, member.size)
            if member.size <= MAX_DOCUMENT and kept + member.size <= MAX_DOCUMENTS:
                data = b"".join(member.data)
                if data[:64].lstrip().startswith((b"{", b"[")):  # the rest are small layers
                    self._documents[member.path] = data
                    kept += member.size

    def index(self) -> bytes:
        return self._document("index.json")

    def document(self, digest: str) -> bytes:
        return self._document("blobs/" + digest.replace(":", "/"))

    def _document(self, name: str) -> bytes:
        if name not in self._documents:
            raise BadArchive(f"{name} is not in the archive, or too large", AGAIN)
        return self._documents[name]

    @contextlib.contextmanager
    def blob(self, digest: str) -> t.Iterator[Reader]:
        name = self._place(digest)
        if name not in self._places or self._path is None:
            raise BadArchive(f"{name} is not in the archive", AGAIN)
        offset, size = self._places[name]
        with open(open_source(self._path), "rb") as stream:
            stream.seek(offset)
            yield _Slice(t.cast(Reader, stream), size)

    def _place(self, digest: str) -> str:
        return "blobs/" + digest.replace(":", "/")


class DockerArchive(ArchiveLayout):
    """What ``docker save`` writes (and ``skopeo copy … docker-archive:``), read in place as if it were an OCI layout.

    Its manifest.json names files and no digests. The manifests made of it here do: a config's digest is the image ID
    as Docker shows it, and a layer's the one by which the config knows it.
    """

    def __init__(self, stream: Reader, path: str | None) -> None:
        super().__init__(stream, path)
        self._blobs: dict[str, str] = {}
        self._made: dict[str, bytes] = {}
        self._files: dict[str, dict[str, str]] = {path: {"type": "file"} for path in self._places}
        self._files.update({path: {"type": "link", "target": target} for path, target in self._links.items()})
        self._entries = [
            self._entry(entry) for entry in _parse(self._document("manifest.json"), "docker", "manifest.json")
        ]

    def index(self) -> bytes:
        manifests = []
        for descriptor, tags in self._entries:
            named = [{**descriptor, "annotations": {REF_NAME: tag}} for tag in tags]
            manifests += named or [descriptor]
        return json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()

    def document(self, digest: str) -> bytes:
        if digest not in self._made:
            raise BadArchive(f"{digest} is not in the archive", AGAIN)
        return self._made[digest]

    def _entry(self, entry: t.Mapping[str, t.Any]) -> tuple[dict[str, t.Any], list[str]]:
        """The descriptor of a manifest made for one image, and the image's names."""
        data = self._document(entry["Config"])
        config = _parse(data, "config", entry["Config"])
        if len(config["rootfs"]["diff_ids"]) != len(entry["Layers"]):
            raise BadArchive("its config and its manifest disagree on the number of layers", AGAIN)
        layers = [self._layer(*pair) for pair in zip(entry["Layers"], config["rootfs"]["diff_ids"])]
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPES[0],
            "config": self._put(data, "application/vnd.oci.image.config.v1+json"),
            "layers": layers,
        }
        return self._put(json.dumps(document, sort_keys=True).encode(), MANIFEST_TYPES[0]), entry.get("RepoTags") or []

    def _layer(self, name: str, digest: str) -> dict[str, t.Any]:
        place = resolve(self._files, name)
        if place is None:
            raise BadArchive(f"layer {name[:80]} is not in the archive", "Save the image again.")
        self._blobs[digest] = place
        return {"mediaType": LAYER_TYPES[0], "digest": digest, "size": self._places[place][1]}

    def _put(self, data: bytes, kind: str) -> dict[str, t.Any]:
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
