# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of images in registries, written as Docker and Podman write them."""

from __future__ import annotations

import dataclasses
import re

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError

DOCKER_HUB = "docker.io"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
HOST_RE = re.compile(rf"^(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?\Z")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
REPOSITORY_RE = re.compile(rf"^{_COMPONENT}(?:/{_COMPONENT})*\Z")
TAG_RE = re.compile(r"^[\w][\w.-]{0,127}\Z", re.ASCII)
REFERENCE_DIGEST_RE = re.compile(r"^sha256:[0-9a-f]{64}\Z")
HOW = "Write it as docker.io/library/nginx:1.27, or with @sha256: and 64 hex digits."


@dataclasses.dataclass(frozen=True)
class Reference:
    """An image in a registry; with a digest the tag says nothing any more."""

    registry: str
    repository: str
    tag: str
    digest: str | None = None

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}{self.suffix}"

    @property
    def suffix(self) -> str:
        return f"@{self.digest}" if self.digest else f":{self.tag}"


def parse(text: str) -> Reference:
    """What *text* names; ``nginx`` is ``docker.io/library/nginx:latest``.

    :raises InputError: it is no name that a registry could know.
    """
    name, at, digest = text.partition("@")
    first, slash, rest = name.partition("/")
    if slash and (any(sign in first for sign in ".:[") or first == "localhost"):
        registry, name = first, rest
    else:
        registry = DOCKER_HUB
    name, _colon, tag = name.partition(":")
    if registry == DOCKER_HUB and "/" not in name:
        name = f"library/{name}"
    good = HOST_RE.match(registry) and REPOSITORY_RE.match(name) and len(name) < 256
    if not good or (_colon and not TAG_RE.match(tag)) or (at and not REFERENCE_DIGEST_RE.match(digest)):
        raise InputError(f"'{text}' is not the name of an image in a registry", "source", HOW)
    return Reference(registry, name, tag or "latest", digest or None)


def through_mirror(reference: Reference, mirror: str | None) -> str:
    """``host/repository`` where the image is asked for: *mirror* (``host[:port][/path]``) stands in for its registry.

    :raises InputError: the mirror is no such thing.
    """
    if mirror is None:
        return f"{reference.registry}/{reference.repository}"
    host, slash, path = mirror.rstrip("/").partition("/")
    if not HOST_RE.match(host) or (slash and not REPOSITORY_RE.match(path)):
        raise InputError(
            f"'{mirror}' is not a mirror", "mirror", "Write it as mirror.example.com:5000, with a path if it has one."
        )
    return "/".join(part for part in (host, path, reference.repository) if part)
