# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Manifests, indexes and configs of OCI and of Docker. They are untrusted, and read here and nowhere else.

A document is used only after its digest, its size and its JSON Schema agree. What is null, empty or missing is absent:
no reader has to tell these from each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._images.tarball import AGAIN, CHANGED, BadArchive
from ansible_collections.cocoon.microvm.plugins.module_utils._words import invalid

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._images.streams import Reader

MAX_DOCUMENT = 4 << 20
MAX_LAYERS = 127
NAMES = {
    "index": "OCI index",
    "manifest": "OCI manifest",
    "config": "OCI config",
    "descriptor": "OCI descriptor",
    "saved": "manifest of docker save",
    "saved image": "manifest of docker save",
}
# What tools write as the name of an image: the whole of it, and its tag alone or the whole of it.
FULL_NAME, REF_NAME = "io.containerd.image.name", "org.opencontainers.image.ref.name"
# What buildkit puts beside an image, and about it.
REFERENCE_TYPE = "vnd.docker.reference.type"
INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
CONFIG_TYPES = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
OCI_LAYER, DOCKER_LAYER = "application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."
LAYER_TYPE = f"{OCI_LAYER}v1.tar"
LAYER_TYPES = frozenset(
    f"{kind}{packed}"
    for kind, sign in (
        (LAYER_TYPE, "+"),
        (f"{OCI_LAYER}nondistributable.v1.tar", "+"),
        (f"{DOCKER_LAYER}diff.tar", "."),
        (f"{DOCKER_LAYER}foreign.diff.tar", "."),
    )
    for packed in ("", f"{sign}gzip", f"{sign}zstd")
)

_DIGEST: dict[str, t.Any] = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}\\Z"}
_NAME: dict[str, t.Any] = {"type": "string", "maxLength": 255}
_PLATFORM: dict[str, t.Any] = {key: {"type": "string", "maxLength": 64} for key in ("architecture", "os", "variant")}
_DESCRIPTOR: dict[str, t.Any] = {
    "type": "object",
    "required": ["digest", "size"],
    "properties": {
        "mediaType": _NAME,
        "digest": _DIGEST,
        "size": {"type": "integer", "minimum": 0, "maximum": 1 << 50},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        "platform": {"type": "object", "properties": _PLATFORM},
    },
}
# A guest gets these strings with a NUL behind each.
_TEXT: dict[str, t.Any] = {"type": "string", "pattern": "^[^\\u0000\\ud800-\\udfff]*\\Z", "maxLength": 1 << 17}
_WORDS: dict[str, t.Any] = {"type": "array", "items": _TEXT, "maxItems": 10_000}
_RUN = {"Entrypoint": _WORDS, "Cmd": _WORDS, "Env": _WORDS, "User": _TEXT, "WorkingDir": _TEXT, "StopSignal": _TEXT}
SCHEMAS: dict[str, dict[str, t.Any]] = {
    "descriptor": _DESCRIPTOR,
    "index": {
        "type": "object",
        "properties": {"schemaVersion": {"const": 2}, "manifests": {"type": "array", "maxItems": 1000}},
    },
    "manifest": {
        "type": "object",
        "required": ["schemaVersion", "config"],
        "properties": {
            "schemaVersion": {"const": 2},
            "config": _DESCRIPTOR,
            "layers": {"type": "array", "items": _DESCRIPTOR, "maxItems": MAX_LAYERS},
        },
    },
    "config": {
        "type": "object",
        "required": ["rootfs"],
        "properties": {
            **_PLATFORM,
            "created": {"type": "string", "maxLength": 64},
            "config": {"type": "object", "properties": _RUN},
            "rootfs": {
                "type": "object",
                "required": ["diff_ids"],
                "properties": {
                    "type": {"const": "layers"},
                    "diff_ids": {"type": "array", "items": _DIGEST, "maxItems": MAX_LAYERS},
                },
            },
        },
    },
    "saved": {"type": "array", "maxItems": 1000},
    "saved image": {
        "type": "object",
        "required": ["Config"],
        "properties": {
            "Config": _NAME,
            "RepoTags": {"type": "array", "items": _NAME},
            "Layers": {"type": "array", "items": _NAME, "maxItems": MAX_LAYERS},
        },
    },
}

Document = dict[str, t.Any]


class MissingBlob(BadArchive):
    """What a document speaks of is not there: many archives speak of more than was saved."""


class Layout(t.Protocol):
    """Where documents and layers come from."""

    def index(self) -> bytes: ...

    def document(self, digest: str) -> bytes:
        """The bytes of a document, which nobody has verified.

        :raises MissingBlob: it is not there.
        """

    def has(self, digest: str) -> bool:
        """Whether a layer is there, as far as can be told without asking for it."""

    def blob(self, digest: str) -> contextlib.AbstractContextManager[Reader]: ...


def fetched(layout: Layout, descriptor: t.Mapping[str, t.Any]) -> Document:
    """The document of a descriptor, its digest and size verified; its schema is not checked yet."""
    digest = descriptor["digest"]
    data = layout.document(digest)
    if len(data) != descriptor["size"] or hashlib.sha256(data).hexdigest() != digest.partition(":")[2]:
        raise BadArchive(f"document {digest} does not have that digest", CHANGED)
    document = decoded(data, digest)
    if not isinstance(document, dict):
        raise BadArchive(f"{digest} is no document of an image", AGAIN)
    return document


def decoded(data: bytes, name: str) -> t.Any:
    """A document without what is null or empty in it; *name* is for errors."""
    try:
        return json.loads(data, object_hook=_given)
    except (ValueError, RecursionError) as exc:
        raise BadArchive(f"{name} is not JSON: {exc}", AGAIN) from exc


def _given(fields: Document) -> Document:
    return {key: value for key, value in fields.items() if value not in (None, "", [], {})}


def checked(document: t.Any, kind: str, name: str) -> t.Any:
    """*document* if it follows the schema of its *kind*.

    :raises BadArchive: it does not.
    """
    try:
        import jsonschema
    except ImportError:
        raise UnsupportedError(
            "Python's jsonschema is not installed on the target",
            "source",
            "Install python3-jsonschema, or run the role cocoon.microvm.host.",
        ) from None
    for error in jsonschema.Draft7Validator(SCHEMAS[kind]).iter_errors(document):
        raise BadArchive(f"{name} is not a valid {NAMES[kind]}: {invalid(error)}", AGAIN)
    return document


def run_config(config: t.Mapping[str, t.Any]) -> Document:
    """What a container of the image would run, from the ``config`` of an OCI config, in our words."""
    return {
        "entrypoint": config.get("Entrypoint", []),
        "cmd": config.get("Cmd", []),
        "env": config.get("Env", []),
        "user": config.get("User", ""),
        "working_dir": config.get("WorkingDir", ""),
        "stop_signal": config.get("StopSignal", ""),
    }
