# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What images are imported from: a class for each kind, and in it all that sets the kind apart.

A source has been looked at, so it has a digest. The rest of the package asks it, and not which kind it is:

Layered  becomes layers: ``RootTar``, ``LayoutFolder``, ``OciArchive``, ``DockerArchive``, ``registry.RemoteImage``
Disk     is kept as it is: ``Qcow2Disk``, ``RawDisk``; ``VmdkDisk`` as a qcow2 that is made of it
``PackedDisk`` is compressed, or alone in a tar, and made one of those first
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._images.documents import Layout
    from ansible_collections.cocoon.microvm.plugins.module_utils._images.layer import Arriving, Job, Layer, OpenLayer
    from ansible_collections.cocoon.microvm.plugins.module_utils._images.layouts import ArchiveLayout
    from ansible_collections.cocoon.microvm.plugins.module_utils._images.oci import Manifest
    from ansible_collections.cocoon.microvm.plugins.module_utils._images.streams import Reader

CHANGED = "Wait until it is complete."


@dataclasses.dataclass(frozen=True)
class Source:
    """What an image is made of, as it was when it was looked at.

    ``digest``: hex of the file, or of the manifest for OCI; ``file_digest``: hex of the file, empty for a directory;
    of an image in a registry that of what its name leads to, which may be an index.
    ``tag``, ``platform``: which image of several was asked for.
    ``origin``: the URL that the file is from; its ``path`` is empty where it need not, or cannot, be had.
    ``owned``: the file is the store's own, verified, and the import may take it away.
    """

    kind: t.ClassVar[str]
    image_type: t.ClassVar[str] = "oci"
    has_platforms: t.ClassVar[bool] = False
    takes_kernel: t.ClassVar[bool] = False

    path: str
    digest: str
    file_digest: str
    tag: str | None = None
    platform: str | None = None
    origin: str | None = None
    owned: bool = False

    @property
    def name(self) -> str:
        """What users know it by."""
        return self.origin or self.path

    def described(self) -> Record:
        """Where an image comes from, for its record."""
        return {"path": self.name, "kind": self.kind, "digest": f"sha256:{self.digest}"}

    def weight(self) -> int:
        """Bytes that an import has to read, at most."""
        return os.path.getsize(self.path) if self.path else 0

    def chosen(self, fd: int) -> Source:
        """This file, open as *fd*, with the digest of the image in it that is meant.

        :raises CocoonError: there is none.
        """
        del fd
        return self


class BootFile(Source):
    """A kernel or an initrd."""

    kind = "boot"


class Disk(Source):
    """A disk that boots by itself."""

    image_type = "cloudimg"


class Qcow2Disk(Disk):
    """A disk in a file that knows which of its blocks are used."""

    kind = "qcow2"


class RawDisk(Disk):
    """A disk as it is."""

    kind = "raw"


class VmdkDisk(Disk):
    """A disk as OVAs have it. The image has its digest; what is kept, and has another, is a qcow2 made of it."""

    kind = "vmdk"


class PackedDisk(Source):
    """A disk that is compressed, or alone in a tar. ``download.unpacked`` makes it plain."""

    kind = "packed-disk"
    image_type = "cloudimg"


class Layered(Source):
    """A root file system in one layer or several."""

    takes_kernel = True

    def opened(self, workspace: str | None) -> contextlib.AbstractContextManager[tuple[list[Layer], Manifest | None]]:
        """The layers, bottom first; without *workspace* (check mode) nothing is written.

        :raises InputError: the source has changed since it was looked at.
        """
        raise NotImplementedError

    def at_hand(self) -> contextlib.AbstractContextManager[tuple[list[Layer], Manifest | None]]:
        """Those layers that can be read without writing anything anywhere."""
        return self.opened(None)

    @contextlib.contextmanager
    def arriving(self, job: Job) -> t.Iterator[Arriving]:
        """The layers for an import, which has noted then that it is about to make them."""
        from ansible_collections.cocoon.microvm.plugins.module_utils._images import references
        from ansible_collections.cocoon.microvm.plugins.module_utils._images.layer import Arriving

        with self.opened(job.workspace) as (layers, manifest):
            references.note(job.store, job.sources.image_id, [(layer.digest, "erofs") for layer in layers])
            yield Arriving(layers, manifest, iter({layer.digest: layer for layer in layers}.values()))


class RootTar(Layered):
    """A tar of a root file system, compressed or not."""

    kind = "tar"

    @contextlib.contextmanager
    def opened(self, workspace: str | None) -> t.Iterator[tuple[list[Layer], Manifest | None]]:
        from ansible_collections.cocoon.microvm.plugins.module_utils._images.layer import Layer, open_file

        yield [Layer(self.digest, lambda: open_file(self.path), os.path.getsize(self.path), self.name)], None


class Images(Layered):
    """Something that may hold several images, of which one is meant."""

    has_platforms = True

    def layout(self, workspace: str | None) -> Layout:
        """Where the documents and the layers are. Without *workspace* the layers may be out of reach."""
        raise NotImplementedError

    def select(self, layout: Layout) -> Manifest:
        """The image that is meant."""
        from ansible_collections.cocoon.microvm.plugins.module_utils._images import oci

        return oci.select(layout, self.tag, self.platform, self.name)

    @contextlib.contextmanager
    def opened(self, workspace: str | None) -> t.Iterator[tuple[list[Layer], Manifest | None]]:
        from ansible_collections.cocoon.microvm.plugins.module_utils._images.layer import layers_of

        layout = self.layout(workspace)
        manifest = self.select(layout)
        if manifest.digest != self.digest:
            raise InputError(f"{self.path} changed while it was read", "source", CHANGED)

        def opener(digest: str) -> OpenLayer:
            return lambda: layout.blob(f"sha256:{digest}")

        yield layers_of(manifest, opener, self.name), manifest


class LayoutFolder(Images):
    """A directory with an OCI layout."""

    kind = "oci-layout"

    def weight(self) -> int:
        """A directory has no size of its own."""
        with self.opened(None) as (layers, _manifest):
            return sum(layer.size for layer in layers)

    def chosen(self, fd: int) -> Source:
        """See :class:`Source`; a directory needs no descriptor."""
        return dataclasses.replace(self, digest=self.select(self.layout(None)).digest)

    def layout(self, workspace: str | None) -> Layout:
        """See :class:`Images`."""
        from ansible_collections.cocoon.microvm.plugins.module_utils._images import layouts

        return layouts.DirectoryLayout(self.path)


class OciArchive(Images):
    """A tar of an OCI layout, compressed or not."""

    kind = "oci-archive"

    def chosen(self, fd: int) -> Source:
        """See :class:`Source`."""
        from ansible_collections.cocoon.microvm.plugins.module_utils._images import detect

        with detect.plain(fd, detect.compression_of(fd), self.name) as stream:
            layout = self.read(stream, None)
        return dataclasses.replace(self, digest=self.select(layout).digest)

    def read(self, stream: Reader, path: str | None) -> ArchiveLayout:
        """The layout in a plain archive, which is also the file *path* if its layers will be asked for."""
        from ansible_collections.cocoon.microvm.plugins.module_utils._images import layouts

        return layouts.ArchiveLayout(stream, path)

    def layout(self, workspace: str | None) -> Layout:
        """An archive is read in place; a compressed one is unpacked to a plain file first."""
        from ansible_collections.cocoon.microvm.plugins.module_utils._images import detect, streams, tarball

        with open(streams.open_source(self.path), "rb") as file:
            compression = detect.compression_of(file.fileno())
            with detect.plain(file.fileno(), compression, self.name) as stream:
                if compression is None or workspace is None:
                    return self.read(stream, self.path if compression is None else None)
                path = os.path.join(workspace, "archive.tar")
                _unpack(stream, path)
        with tarball.named(self.name), open(path, "rb") as plain:
            return self.read(t.cast("Reader", plain), path)

    def at_hand(self) -> contextlib.AbstractContextManager[tuple[list[Layer], Manifest | None]]:
        """None of a compressed archive: they cannot be read without unpacking it somewhere."""
        from ansible_collections.cocoon.microvm.plugins.module_utils._images import detect, streams

        with open(streams.open_source(self.path), "rb") as file:
            compressed = detect.compression_of(file.fileno()) is not None
        return contextlib.nullcontext(([], None)) if compressed else self.opened(None)


class DockerArchive(OciArchive):
    """What docker save and podman save write."""

    kind = "docker-archive"

    def read(self, stream: Reader, path: str | None) -> ArchiveLayout:
        """See :class:`OciArchive`."""
        from ansible_collections.cocoon.microvm.plugins.module_utils._images import layouts

        return layouts.DockerArchive(stream, path)


def _unpack(stream: Reader, path: str) -> None:
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import streams, tarball

    limit = tarball.DEFAULT_LIMITS.unpacked
    with open(path, "xb") as target:
        while data := stream.read(streams.CHUNK):
            limit -= target.write(data)
            if limit < 0:
                raise tarball.BadArchive("the archive unpacks to too much", tarball.SMALLER)


# By the names under which they are remembered and recorded.
FILES: dict[str, type[Source]] = {
    known.kind: known
    for known in (RootTar, LayoutFolder, OciArchive, DockerArchive, Qcow2Disk, RawDisk, VmdkDisk, PackedDisk, BootFile)
}
