# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings an image into the store: blobs first, the record last."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import os
import shutil
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    CocoonError,
    ConflictError,
    InputError,
    ResourceError,
    ToolError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._images import (
    detect,
    disk_importer,
    erofs,
    findings,
    fingerprints,
    implied,
    platforms,
    references,
    streams,
    tarball,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._images.kinds import Disk, Layered, Source
from ansible_collections.cocoon.microvm.plugins.module_utils._images.layer import Job, Layer, open_file
from ansible_collections.cocoon.microvm.plugins.module_utils._images.retar import Retar
from ansible_collections.cocoon.microvm.plugins.module_utils._images.source import MAX_SIZE, Sources
from ansible_collections.cocoon.microvm.plugins.module_utils._images.staging import publish, staging
from ansible_collections.cocoon.microvm.plugins.module_utils._images.unpack import Tree
from ansible_collections.cocoon.microvm.plugins.module_utils._progress import Progress, Stage
from ansible_collections.cocoon.microvm.plugins.module_utils._state import (
    Store,
    hashed,
    read_json,
    remove_tree,
    write_json,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record, now

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import BootConfig, ImageRecord

WORKERS = 4
# Bytes that are left of a file system when a tool has filled it.
FULL = 4 << 20


class Imported(t.NamedTuple):
    """The record of an image, not written yet, and what users should know of what is in it."""

    record: ImageRecord
    warnings: list[str]


def import_image(store: Store, sources: Sources, timeout: float, told: Progress, limit: int = MAX_SIZE) -> Imported:
    """Make all files of an image.

    Under the image's lock, with a note of it pending: what is left after a failure goes with the note.

    :param limit: bytes that a disk may have which is made here of one of another format.
    :raises CocoonError: the source is hostile, damaged or not bootable, or there is no space.
    """
    if not sources.main.path:  # what was there a moment ago needed no file
        raise ConflictError(f"the image of {sources.main.name} was removed meanwhile", "name", "Run the task again.")
    try:
        with staging(store, timeout) as workspace, _full_disk_named(store, workspace):
            job = Job(store, sources, workspace, timeout, told, limit)
            if isinstance(sources.main, Disk):
                record = _record(job)
                record["disk"] = disk_importer.take(job, sources.main)
                return Imported(_with_size(store, record), [])
            return _import_layers(job, t.cast(Layered, sources.main))
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_space(store) from exc
        raise InputError(
            f"cannot import {sources.main.name}: {exc.strerror or exc}",
            "source",
            "Nothing of it was kept. See to the cause, and run the task again.",
        ) from exc


@contextlib.contextmanager
def _full_disk_named(store: Store, workspace: str) -> t.Iterator[None]:
    """A tool that meets a full disk does not always say so: mkfs.erofs 1.8 complains about its own check sums."""
    try:
        yield
    except ToolError as exc:
        status = os.statvfs(workspace)
        if "No space left" in exc.message or status.f_bavail * status.f_frsize < FULL:
            raise no_space(store) from exc
        raise


def no_space(store: Store) -> CocoonError:
    """The error that says so."""
    return ResourceError(
        f"no space left in {store.paths.images}", "root_dir", "Free some, or put root_dir on a larger file system."
    )


def _import_layers(job: Job, main: Layered) -> Imported:
    store, sources, workspace, timeout, told, _limit = job
    image_id = sources.image_id
    keep = os.path.join(workspace, "boot")
    os.mkdir(keep, 0o700)
    with main.arriving(job) as (layers, manifest, arrivals):
        places = min(WORKERS, os.cpu_count() or 1, len(layers))
        sizes = {layer.digest: layer.size for layer in layers}
        stage = told.stage(f"converting {main.name}", sum(sizes.values()), len(sizes), later=True)
        jobs: list[concurrent.futures.Future[tuple[str, Record]]] = []
        with concurrent.futures.ThreadPoolExecutor(places) as pool:
            try:
                for layer in arrivals:
                    jobs.append(pool.submit(_ensure_layer, store, layer, image_id, workspace, keep, timeout, stage))
                    _fail_early(jobs)
                stage.show()
                known = dict(done.result() for done in jobs)
            finally:
                for waiting in jobs:
                    waiting.cancel()
        merged = findings.merge([known[layer.digest] for layer in layers])
        pair = _boot_pair(sources, merged)
        boot = _ensure_boot(store, sources, pair, layers, known, keep, timeout) if pair else None
        folders = _implied(store, [(layer.digest, known[layer.digest]["implied"]) for layer in layers])
    record = _record(job)
    record["layers"] = [layer.digest for layer in layers]
    record["boot"] = t.cast("BootConfig", boot)
    record["features"] = merged.features
    record["folders"] = folders
    if manifest:
        record["platform"], record["created"] = manifest.platform, manifest.created
        record["config"] = manifest.config
    return Imported(_with_size(store, record), _warnings(layers, known))


def _implied(store: Store, layers: t.Iterable[tuple[str, list[str]]]) -> list[Record]:
    """See :func:`implied.folders`."""
    return implied.folders([implied.Layer(images.blob_path(store, digest), paths) for digest, paths in layers])


def _warnings(layers: list[Layer], known: t.Mapping[str, Record]) -> list[str]:
    names = {layer.digest: layer.name for layer in layers}
    return [warning for digest in names for warning in findings.warnings(names[digest], known[digest])]


def _fail_early(jobs: t.Iterable[concurrent.futures.Future[t.Any]]) -> None:
    """Do not wait for the rest of a download when a layer has turned out to be bad."""
    for job in jobs:
        if job.done():
            job.result()


def _record(job: Job) -> ImageRecord:
    sources = job.sources
    record: Record = {
        "id": sources.image_id,
        "digest": sources.image_id,
        "name": "",
        "names": [],
        "type": sources.type,
        "created_at": now(),
        "updated_at": now(),
        "platform": platforms.host_platform(),
        "layers": [],
        "boot": None,
        "disk": None,
        "features": [],
        "owner": job.store.store_id,
        "labels": {},
        "source": sources.main.described(),
    }
    return t.cast("ImageRecord", record)


def _with_size(store: Store, record: ImageRecord) -> ImageRecord:
    record["size"] = sum(images.size_of(store, blob, suffix) for blob, suffix in dict.fromkeys(images.blobs(record)))
    return record


def read_layer(
    layer: Layer,
    inspector: findings.Inspector,
    add: t.Callable[[tarball.Member], None] | None = None,
    progress: t.Callable[[int], None] | None = None,
) -> str:
    """Read a layer once: every member checked, looked at, and given to *add*; the hex digest of its plain tar.

    :param progress: told how many of its bytes more were read.
    :raises BadArchive: hostile or damaged, or not of the digests it should have.
    """
    with layer.open() as raw:
        hashing = streams.HashingReader(raw, progress)
        head = hashing.read(8)
        rest = streams.Pushback(head, hashing)
        kind = streams.compression(head)
        with detect.decompression_errors(), streams.inflate(rest, kind) as inflated:
            plain = streams.HashingReader(inflated) if kind else None
            for member in tarball.members(tarball.TarInput(plain or inflated, tarball.DEFAULT_LIMITS)):
                looked_at = inspector.look(member)
                if add:
                    add(looked_at)
                for _rest in looked_at.data:
                    pass
        hashing.drain()
    if hashing.hexdigest() != layer.digest:
        raise tarball.BadArchive("what is there does not have that digest", tarball.CHANGED)
    found = plain.hexdigest() if plain else layer.digest
    _check_plain(layer, found)
    return found


def _check_plain(layer: Layer, found: str | None) -> None:
    """:raises BadArchive: its tar, of the digest *found*, is not what the image's config says it is."""
    if layer.plain not in (None, found):
        raise tarball.BadArchive(
            f"uncompressed, it does not have the digest that the config gives it, sha256:{layer.plain}"
        )


def _ensure_layer(
    store: Store, layer: Layer, image_id: str, workspace: str, keep: str, timeout: float, stage: Stage
) -> tuple[str, Record]:
    """The blob of a layer, made if it is not there: (digest, findings)."""
    with references.blob_lock(store, layer.digest, timeout):
        references.refer(store, layer.digest, image_id)
        target = images.blob_path(store, layer.digest, "erofs")
        about = images.blob_path(store, layer.digest, "json")
        known = read_json(about)
        with tarball.named(layer.name, ToolError):
            if known and os.path.isfile(target):
                _check_plain(layer, known.get("plain", layer.plain))  # another image brought it
                if findings.complete(known):
                    stage.advance(layer.size)
                else:
                    known = _learn(layer, known, keep, about, stage)
            else:
                known = _convert(store, layer, workspace, keep, target, about, stage)
        stage.part_done()
        return layer.digest, known


def _learn(layer: Layer, known: Record, keep: str, about: str, stage: Stage) -> Record:
    """Look again into a layer that an older version converted. Its blob stays: saved memory goes with that very one."""
    inspector = findings.Inspector(keep)
    read_layer(layer, inspector, progress=stage.advance)
    known = {**known, **inspector.findings.document()}
    write_json(about, known)
    return known


def _convert(store: Store, layer: Layer, workspace: str, keep: str, target: str, about: str, stage: Stage) -> Record:
    place = os.path.join(workspace, layer.digest)
    os.mkdir(place, 0o700)
    inspector = findings.Inspector(keep)
    output = os.path.join(place, "erofs")
    gid = images.blob_gid(store, layer.digest)
    if erofs.takes_tar(erofs.MKFS):
        os.chmod(place, 0o711)  # for mkfs, which runs as a user of its own and is fed through a pipe
        scratch = os.path.join(place, "scratch")
        os.mkdir(scratch, 0o700)
        for path in (output, scratch):
            if path == output:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            os.chown(path, gid, gid)  # a uid nobody else has: VMs are in the other half of the range
        with erofs.convert_stream(output, scratch, layer.digest, gid) as feed:
            tar = Retar(feed)
            plain = read_layer(layer, inspector, add=tar.add, progress=stage.advance)
            tar.close()
    else:
        tree = os.path.join(place, "tree")
        os.mkdir(tree, 0o700)
        with Tree(tree) as unpacked:
            os.chmod(tree, 0o755)  # the root of an archive that does not mention it; its parent keeps others out
            plain = read_layer(layer, inspector, add=unpacked.add, progress=stage.advance)
        with stage.noted("compressing"):
            erofs.convert_tree(tree, output, layer.digest)
    known = {**inspector.findings.document(), "plain": plain, "file": fingerprints.file_facts(output)}
    write_json(about, known)
    publish(output, target, gid)
    remove_tree(place)
    return known


def _boot_pair(sources: Sources, merged: findings.Merged) -> tuple[str, str] | None:
    """Hex digests of the kernel and initrd that the image boots with; ``None`` for the host's default kernel."""
    if sources.kernel and sources.initrd:
        return sources.kernel.digest, sources.initrd.digest
    return findings.choose_boot(merged.entries)


def _ensure_boot(
    store: Store,
    sources: Sources,
    pair: tuple[str, str],
    layers: list[Layer],
    known: t.Mapping[str, Record],
    keep: str,
    timeout: float,
) -> Record:
    """The boot directory of a kernel and an initrd, shared by all images that boot with the same two."""
    boot = hashed("\0".join(pair))
    references.note(store, sources.image_id, [(boot, "boot")])
    with references.blob_lock(store, boot, timeout):
        references.refer(store, boot, sources.image_id)
        target = images.boot_path(store, boot)
        paths = {"kernel_path": os.path.join(target, "vmlinuz"), "initrd_path": os.path.join(target, "initrd.img")}
        if all(os.path.isfile(path) for path in paths.values()):
            return paths
        if sources.kernel and sources.initrd:
            for identity in (sources.kernel, sources.initrd):
                _take_file(identity, keep)
        else:
            _take_from_layers(pair, layers, known, keep)
        gid = images.blob_gid(store, boot)
        os.makedirs(target, 0o711, exist_ok=True)
        os.chmod(target, 0o711)
        for digest, path in zip(pair, paths.values()):
            copy = os.path.join(keep, "copy")  # one file may be both, in a test at least
            shutil.copyfile(os.path.join(keep, digest), copy)
            publish(copy, path, gid)
    return paths


def _take_file(identity: Source, keep: str) -> None:
    """A boot file given by the user, as it was when it was looked at."""
    with open_file(identity.path) as raw, open(os.path.join(keep, identity.digest), "wb") as target:
        hashing = streams.HashingReader(raw)
        shutil.copyfileobj(t.cast(t.Any, hashing), target, streams.CHUNK)
    if hashing.hexdigest() != identity.digest:
        raise InputError(f"{identity.path} changed while it was read", "kernel", "Wait until it is complete.")


def _take_from_layers(pair: tuple[str, str], layers: list[Layer], known: t.Mapping[str, Record], keep: str) -> None:
    """Read again those layers that were in the store already, for the boot files they hold."""
    for layer in layers:
        held = {entry.get("digest") for entry in known[layer.digest]["entries"].values()} & set(pair)
        if not all(os.path.isfile(os.path.join(keep, str(digest))) for digest in held):
            with tarball.named(layer.name):
                read_layer(layer, findings.Inspector(keep))


def rehearse(sources: Sources) -> list[str]:
    """All checks of an import without writing anything: check mode fails, and warns, where the real run would.

    Of a disk the header was checked when it was looked at, and nothing is fetched to be looked into.

    :raises CocoonError: as :func:`import_image`.
    """
    main = sources.main
    if not isinstance(main, Layered) or not main.path:
        return []
    erofs.takes_tar(erofs.MKFS)
    known: dict[str, Record] = {}
    with main.at_hand() as (layers, _manifest):
        for layer in layers:
            inspector = findings.Inspector()
            with tarball.named(layer.name):
                read_layer(layer, inspector)
            known[layer.digest] = inspector.findings.document()
        return _warnings(layers, known)
