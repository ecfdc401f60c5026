# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Layers from a registry, converted while others are still on their way.

Layout under ``root_dir/images/pulls``, one directory a manifest, there until its image is in the store::

    <hex of the manifest>/blobs/sha256/<hex>   complete layers, as the registry has them
    <hex of the manifest>/layout/              what skopeo is at

A pull that was interrupted goes on from the layers that are complete, its own and those of other pulls. Layers that
the store has are not fetched at all: an empty file of that name tells skopeo so.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import BusyError, ResourceError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import findings, layouts, oci, references, registry
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._images.leftovers import Leftover, give_up
from ansible_collections.cocoon.microvm.plugins.module_utils._images.skopeo import RegistryError, SpoiledError
from ansible_collections.cocoon.microvm.plugins.module_utils._images.staging import held_by, locked_patiently
from ansible_collections.cocoon.microvm.plugins.module_utils._images.tarball import DEFAULT_LIMITS, SMALLER, BadArchive
from ansible_collections.cocoon.microvm.plugins.module_utils._progress import Stage
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, read_json, remove_tree
from ansible_collections.cocoon.microvm.plugins.module_utils._types import format_size

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._images.layer import Job
    from ansible_collections.cocoon.microvm.plugins.module_utils._images.registry import Remote
    from ansible_collections.cocoon.microvm.plugins.module_utils._images.skopeo import Copy
    from ansible_collections.cocoon.microvm.plugins.module_utils._images.source import Sources

TICK = 0.01
# A registry that sends nothing for so long is gone, whatever TCP thinks.
STALLED = 90.0
SLACK = 1 << 20


@contextlib.contextmanager
def arriving(job: Job, remote: Remote) -> t.Iterator[t.Iterator[str]]:
    """Fetches the layers of an image; gives their hex digests, each once, as they are there to be read.

    Under the image's lock, with a note of it pending. What is complete stays for the next try if the registry fails
    or we are killed; all goes if it is of no use (damaged, hostile, no space), or used.

    :raises CocoonError: of the registry, here or while the layers are awaited.
    """
    store, sources, _workspace, timeout, told, _limit = job
    manifest = remote.manifest()
    with locked_patiently(store, [lock_name(manifest.digest)], timeout):
        _remove_abandoned(store, manifest.digest)
        folder = _Folder(store, manifest)
        try:
            folder.prepare()
            there = _in_store(store, sources, manifest, timeout)
            missing = folder.missing(there)
            _check_space(store, missing, str(remote.reference))
            with contextlib.ExitStack() as stack:
                copy = None
                if missing:
                    folder.pretend(there)
                    suffix = f"@sha256:{manifest.digest}"
                    largest = max(missing.values()) + SLACK
                    asking = remote.skopeo(folder.uid)
                    copy = stack.enter_context(asking.copying(suffix, folder.layout, folder.blobs, largest))
                awaited = folder.awaited()
                stage = told.stage(f"pulling {remote.reference}", sum(awaited.values()), len(awaited))
                yield _arrivals(folder, copy, [digest for digest, _size in manifest.layers], stage)
        except Exception as exc:
            if isinstance(exc, (RegistryError, BusyError)) and not isinstance(exc, SpoiledError):
                folder.tidy()
            else:
                folder.remove()
            raise
        folder.remove()


def opened(store: Store, manifest: oci.Manifest, digest: str) -> contextlib.AbstractContextManager[t.Any]:
    """The bytes of a layer that has arrived."""
    return layouts.DirectoryLayout(directory(store, manifest.digest)).blob(f"sha256:{digest}")


def directory(store: Store, manifest: str) -> str:
    return os.path.join(images.directory(store.paths, "pulls"), manifest)


def lock_name(manifest: str) -> str:
    return f"image:#pull/{manifest}"


def _in_store(store: Store, sources: Sources, manifest: oci.Manifest, timeout: float) -> set[str]:
    """Layers that need not be fetched, now held for this image. Those with boot files may have to be read again."""
    found = set()
    for digest in {digest for digest, _size in manifest.layers}:
        with references.blob_lock(store, digest, timeout):
            known = read_json(images.blob_path(store, digest, "json"))
            if not known or not findings.complete(known) or not os.path.isfile(images.blob_path(store, digest)):
                continue
            if sources.kernel is None and any(entry.get("digest") for entry in known["entries"].values()):
                continue
            references.refer(store, digest, sources.image_id)
            found.add(digest)
    return found


def _check_space(store: Store, missing: t.Mapping[str, int], name: str) -> None:
    """A layer and what it is converted to are there at once, and the latter is seldom smaller."""
    status = os.statvfs(images.directory(store.paths, "pulls"))
    free, needed = status.f_bavail * status.f_frsize, 2 * sum(missing.values())
    if max(missing.values(), default=0) > DEFAULT_LIMITS.unpacked:
        raise BadArchive(f"a layer of {name} is larger than {format_size(DEFAULT_LIMITS.unpacked)}", SMALLER)
    if needed > free:
        raise ResourceError(
            f"no space left for {name}: it takes {needed} bytes, {free} are free",
            "root_dir",
            "Free some, or put root_dir on a larger file system.",
        )


def _arrivals(folder: _Folder, copy: Copy | None, digests: t.Sequence[str], stage: Stage) -> t.Iterator[str]:
    waiting = dict.fromkeys(digests)
    moved, size = time.monotonic(), folder.size()
    stage(size)
    while True:
        over = copy is None or copy.ended(TICK)  # asked before looking, so that nothing is missed
        for digest in [digest for digest in waiting if folder.has(digest)]:
            del waiting[digest]
            if digest in folder.awaited():
                stage.part_done()
            yield digest
        if not waiting:
            return
        if over:
            raise RegistryError(f"skopeo ended without layer sha256:{min(waiting)}", "source", "Run the task again.")
        if time.monotonic() - moved > 1:
            grown = folder.size()
            stage(grown)
            if grown != size:
                moved, size = time.monotonic(), grown
        if time.monotonic() - moved > STALLED:
            raise RegistryError(
                f"the registry sent nothing for {STALLED:g} s",
                "source",
                "Run the task again: complete layers are kept.",
            )


class _Folder:
    """The directory of one pull. Everything but two leaves of it is root's, so that nobody can make us leave it."""

    def __init__(self, store: Store, manifest: oci.Manifest) -> None:
        self._store = store
        self._path = directory(store, manifest.digest)
        self._sizes = dict(manifest.layers)
        self._in_store: set[str] = set()
        self.uid = registry.user_of(store, manifest.digest)
        self.layout = os.path.join(self._path, "layout")
        self.blobs = os.path.join(self._path, "blobs")
        self._files = os.path.join(self.blobs, "sha256")

    def prepare(self) -> None:
        """Make it, or tidy what a run that was interrupted has left; take over what other pulls have."""
        for path in (self._path, self.blobs, self._files):
            os.makedirs(path, 0o711, exist_ok=True)
        self.tidy()
        os.mkdir(self.layout, 0o700)
        for path in (self.layout, self._files):
            os.chown(path, self.uid, self.uid)
            os.chmod(path, 0o700)
        self.pretend(digest for digest, size in self._sizes.items() if not size)  # there is nothing to fetch
        self._adopt()

    def tidy(self) -> None:
        """Leave complete layers and nothing else."""
        remove_tree(self.layout)
        for name in os.listdir(self._files):
            path = os.path.join(self._files, name)
            if not self._complete(path, self._sizes.get(name, -1)):
                os.unlink(path)

    def remove(self) -> None:
        remove_tree(self._path)

    def missing(self, there: t.Collection[str]) -> dict[str, int]:
        """Layers that have to be fetched, with their sizes."""
        self._in_store = set(there)
        return {digest: size for digest, size in self._sizes.items() if not self.has(digest)}

    def awaited(self) -> dict[str, int]:
        """Layers that the store does not have, here already or not, with their sizes."""
        return {digest: size for digest, size in self._sizes.items() if digest not in self._in_store}

    def has(self, digest: str) -> bool:
        path = os.path.join(self._files, digest)
        return digest in self._in_store or self._complete(path, self._sizes[digest])

    def pretend(self, there: t.Iterable[str]) -> None:
        for digest in there:
            path = os.path.join(self._files, digest)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444))

    def size(self) -> int:
        """Bytes fetched so far."""
        return held_by(self._path)[1]

    @staticmethod
    def _complete(path: str, size: int) -> bool:
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == size

    def _adopt(self) -> None:
        parent = images.directory(self._store.paths, "pulls")
        others = [name for name in os.listdir(parent) if name != os.path.basename(self._path)]
        for digest, size in self._sizes.items():
            for other in others:
                path = os.path.join(parent, other, "blobs", "sha256", digest)
                if not self.has(digest) and self._complete(path, size):
                    with contextlib.suppress(OSError):
                        os.link(path, os.path.join(self._files, digest), follow_symlinks=False)


def leftovers(store: Store) -> list[Leftover]:
    """Pulls that were not finished, by the hex digests of their manifests. Those under way are among them."""
    with contextlib.suppress(FileNotFoundError):
        names = sorted(os.listdir(images.directory(store.paths, "pulls")))
        return [Leftover(name, lock_name(name), (directory(store, name),)) for name in names]
    return []


def _remove_abandoned(store: Store, but: str) -> None:
    for left in leftovers(store):
        if left.name != but and left.abandoned:
            give_up(store, left)
