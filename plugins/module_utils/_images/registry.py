# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images in registries: which image a name means now, asked with as little traffic as that takes.

The digest of what a tag names is remembered with the manifest that it led to, so a tag that has not moved costs one
question. Documents are verified here; no registry, mirror or tool is believed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import kinds, platforms, registry_name, source
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._images.auth import Access
from ansible_collections.cocoon.microvm.plugins.module_utils._state import UID_BASE, UID_RANGE, Store, hashed
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._images.layer import Arriving, Job, Layer, OpenLayer
    from ansible_collections.cocoon.microvm.plugins.module_utils._images.oci import Manifest
    from ansible_collections.cocoon.microvm.plugins.module_utils._images.skopeo import Skopeo
    from ansible_collections.cocoon.microvm.plugins.module_utils._images.streams import Reader


class Remote:
    """One image of a registry, looked at as far as somebody wants to know."""

    def __init__(self, reference: registry_name.Reference, platform: str | None, access: Access) -> None:
        """
        :param platform: ``None`` for this host's.
        :raises InputError: the platform or the mirror makes no sense.
        """
        self.reference = reference
        self.platform = platforms.check_platform(platform)
        self._given_platform = platform
        self.repository = registry_name.through_mirror(reference, access.mirror)
        self._access = access
        self._documents: dict[str, bytes] = {}
        self._configs: dict[str, str] = {}
        self._top: str | None = None
        self._manifest: Manifest | None = None

    @property
    def location(self) -> str:
        return f"{source.SCHEME}{self.reference}"

    def skopeo(self, uid: int | None = None) -> Skopeo:
        """What asks the registry; as user *uid*, or as one that nobody else is for now."""
        from ansible_collections.cocoon.microvm.plugins.module_utils._images.skopeo import Skopeo

        if uid is None:
            uid = UID_BASE + UID_RANGE - 1 - os.getpid() % (UID_RANGE // 2)
        return Skopeo(self._access, self.repository, uid, str(self.reference))

    def top(self) -> str:
        """Hex digest of the manifest or index that the name leads to now: one question."""
        if self._top is None:
            data = self.skopeo().raw(self.reference.suffix)
            self._top = hashlib.sha256(data).hexdigest()
            if self.reference.digest not in (None, f"sha256:{self._top}"):
                raise InputError(
                    f"the registry sent sha256:{self._top} for {self.reference}",
                    "source",
                    "Try again; if it stays, the registry or what lies before it is damaged.",
                )
            self._keep(self._top, data)
        return self._top

    def manifest(self) -> Manifest:
        """The image for the platform; what it consists of.

        :raises CocoonError: there is none, or its documents are damaged.
        """
        from ansible_collections.cocoon.microvm.plugins.module_utils._images import oci

        if self._manifest is None:
            self._manifest = oci.select(self, None, self._given_platform, str(self.reference))
        return self._manifest

    def index(self) -> bytes:
        """A layout with one entry: see ``documents.Layout``."""
        descriptor = {"digest": f"sha256:{self.top()}", "size": len(self._documents[self.top()])}
        return json.dumps({"schemaVersion": 2, "manifests": [descriptor]}).encode()

    def document(self, digest: str) -> bytes:
        """A manifest, or the config of one that was asked for before; whoever asks verifies it."""
        name = digest.partition(":")[2]
        if name not in self._documents:
            if name in self._configs:
                self._documents[name] = self.skopeo().config(f"@sha256:{self._configs[name]}")
            else:
                self._keep(name, self.skopeo().raw(f"@{digest}"))
        return self._documents[name]

    def has(self, digest: str) -> bool:
        return bool(digest)  # the registry is asked when it is fetched

    def blob(self, digest: str) -> contextlib.AbstractContextManager[Reader]:
        raise NotImplementedError(digest)

    def _keep(self, name: str, data: bytes) -> None:
        """Note which config belongs to a manifest: it is had by the manifest's digest."""
        self._documents[name] = data
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._configs[json.loads(data)["config"]["digest"].partition(":")[2]] = name


@dataclasses.dataclass(frozen=True)
class RemoteImage(kinds.Layered):
    """An image in a registry, which *remote* asks."""

    kind = "registry"
    has_platforms = True

    remote: Remote = dataclasses.field(default=t.cast(Remote, None), repr=False, compare=False)

    def described(self) -> Record:
        """With the full name, and what it led to: an index, maybe."""
        names = {"reference": str(self.remote.reference), "reference_digest": f"sha256:{self.file_digest}"}
        return {**super().described(), **names}

    def weight(self) -> int:
        """See :class:`kinds.Source`."""
        return sum(size for _digest, size in self.remote.manifest().layers)

    def at_hand(self) -> contextlib.AbstractContextManager[tuple[list[Layer], Manifest | None]]:
        """None: they would have to be fetched. The documents were checked."""
        return contextlib.nullcontext(([], None))

    @contextlib.contextmanager
    def arriving(self, job: Job) -> t.Iterator[Arriving]:
        """See :class:`kinds.Layered`; fetched while others are converted."""
        from ansible_collections.cocoon.microvm.plugins.module_utils._images import pull, references
        from ansible_collections.cocoon.microvm.plugins.module_utils._images.layer import Arriving, layers_of

        manifest = self.remote.manifest()
        if manifest.digest != self.digest:
            raise InputError(f"{self.path} changed while it was looked at", "source", "Run the task again.")

        def opener(digest: str) -> OpenLayer:
            return lambda: pull.opened(job.store, manifest, digest)

        layers = layers_of(manifest, opener, str(self.remote.reference))
        named = {layer.digest: layer for layer in layers}
        references.note(job.store, job.sources.image_id, [(digest, "erofs") for digest in named])
        with pull.arriving(job, self.remote) as arrivals:
            yield Arriving(layers, manifest, (named[digest] for digest in arrivals))


def user_of(store: Store, manifest: str) -> int:
    """Whom skopeo works as while it writes the layers of *manifest*: not a VM, and no other pull."""
    return images.blob_gid(store, hashed(f"pull/{manifest}"))


def examine(paths: Paths, remote: Remote, remember: bool) -> RemoteImage:
    """Ask the registry what the name means now."""
    top = remote.top()
    known = _memory(paths, remote)
    if known and known["top"] == top:
        return _identity(remote, known)
    manifest = remote.manifest()
    found = {"top": top, "manifest": manifest.digest}
    if remember:
        source.note(_memory_path(paths, remote), found)
    return _identity(remote, found)


def remembered(paths: Paths, remote: Remote) -> RemoteImage | None:
    """What the name meant when it was last asked for; no question."""
    known = _memory(paths, remote)
    return _identity(remote, known) if known else None


def _identity(remote: Remote, known: Record) -> RemoteImage:
    return RemoteImage(remote.location, known["manifest"], known["top"], platform=remote.platform, remote=remote)


def _memory_path(paths: Paths, remote: Remote) -> str:
    return images.source_path(paths, f"{remote.location}\0{remote.platform}")


def _memory(paths: Paths, remote: Remote) -> Record | None:
    known = source.recall(_memory_path(paths, remote))
    good = known and all(images.DIGEST_RE.match(f"sha256:{known.get(key)}") for key in ("top", "manifest"))
    return known if good else None
