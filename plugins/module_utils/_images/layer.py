# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A layer to be read, wherever it is, and the import that it is read for."""

from __future__ import annotations

import contextlib
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._images import streams

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._images.oci import Manifest
    from ansible_collections.cocoon.microvm.plugins.module_utils._images.source import Sources
    from ansible_collections.cocoon.microvm.plugins.module_utils._progress import Progress
    from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store

OpenLayer = t.Callable[[], t.ContextManager[streams.Reader]]


class Layer(t.NamedTuple):
    """A layer to be read: its hex digest, how to open its (compressed) bytes, and how many they are.

    ``name`` is for errors; ``plain`` the hex digest that it must have when it is uncompressed, if that is known.
    """

    digest: str
    open: OpenLayer
    size: int
    name: str
    plain: str | None = None


class Job(t.NamedTuple):
    """An import under way.

    ``workspace``: a folder of its own. ``timeout``: seconds to wait for others at work on the same files.
    ``limit``: bytes that a disk may have which is made here.
    """

    store: Store
    sources: Sources
    workspace: str
    timeout: float
    told: Progress
    limit: int


class Arriving(t.NamedTuple):
    """Layers bottom first; ``ready`` has them again, each once and when it can be read."""

    layers: list[Layer]
    manifest: Manifest | None
    ready: t.Iterator[Layer]


def layers_of(manifest: Manifest, opener: t.Callable[[str], OpenLayer], image: str) -> list[Layer]:
    """The layers of an image called *image*, which *opener* opens by their hex digests."""
    return [
        Layer(digest, opener(digest), size, f"layer sha256:{digest} of {image}", plain)
        for (digest, size), plain in zip(manifest.layers, manifest.plain)
    ]


@contextlib.contextmanager
def open_file(path: str) -> t.Iterator[streams.Reader]:
    """A file given by the user, by its path."""
    with open(streams.open_source(path), "rb") as stream:
        yield t.cast(streams.Reader, stream)
