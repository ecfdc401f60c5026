# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An image from one store to another as it is: the same files, byte for byte, under the same digest.

A saved machine has the structure of its layers in memory, so a layer that another release of mkfs.erofs has made of
the same tar does not do. What the target has already is used as it is.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, NotFoundError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import references
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._moving import common
from ansible_collections.cocoon.microvm.plugins.module_utils._progress import Stage
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import document
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots.store import digest
from ansible_collections.cocoon.microvm.plugins.module_utils._state import locked, read_json, remove_tree, write_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run
from ansible_collections.cocoon.microvm.plugins.module_utils._words import invalid

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import ImageRecord

FILE = "image.json"
CARRIED = (
    *("id", "digest", "type", "platform", "layers", "disk", "features", "config", "created", "size", "source"),
    "labels",
)
BOOT_FILES = ("vmlinuz", "initrd.img")
MAX_FILES = 1024

_HEX: Record = {"type": "string", "pattern": r"^[0-9a-f]{64}\Z"}
_DISK: Record = {
    "type": "object",
    "required": ["hex", "format", "virtual_size"],
    "properties": {"hex": _HEX, "format": {"enum": ["qcow2", "raw"]}, "virtual_size": document.SIZE},
}
SCHEMA: Record = {
    "type": "object",
    "required": ["id", "digest", "type", "layers", "boot"],
    "properties": {
        "id": document.OURS["properties"]["image_digest"],
        "digest": document.OURS["properties"]["image_digest"],
        "type": document.OURS["properties"]["image_type"],
        "layers": {"type": "array", "maxItems": 500, "items": _HEX},
        "disk": {"anyOf": [_DISK, {"type": "null"}]},
        "boot": {"anyOf": [_HEX, {"type": "null"}]},
        "features": {"type": "array", "items": {"type": "string", "maxLength": 256}},
        "labels": {"type": "object"},
        "source": {"type": "object"},
        "names": {"type": "array", "maxItems": 256, "items": {"type": "string", "maxLength": 255}},
    },
}


def _files(run: Run, record: ImageRecord) -> dict[str, str]:
    """All files of an image, by the name that they have on their way."""
    found = {}
    for blob, suffix in images.blobs(record):
        if suffix == "boot":
            home = images.boot_path(run.store, blob)
            found.update({f"{blob}.{name}": os.path.join(home, name) for name in BOOT_FILES})
            continue
        for kind in (suffix, "json"):
            path = images.blob_path(run.store, blob, kind)
            if os.path.lexists(path):
                found[os.path.basename(path)] = path
    return found


def export(run: Run, image_digest: str, vm_id: str, reader: int | None, told: Stage) -> Record:
    """Write an image into an archive, for *reader* to take: ``path digest size``.

    :param vm_id: the VM that it goes with; the archive goes when that has left.
    :raises NotFoundError: it is not here.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import archive

    with locked(run.store.paths, [images.lock_name(image_digest)], run.options.lock_timeout):
        record = images.resolve(run.store, image_digest)
        if record is None:
            raise NotFoundError(f"there is no image {image_digest}", "image", "Import it with cocoon_image.")
        staging = common.fresh_folder(run, vm_id, "image-files", None)
        files = _files(run, record)
        for base, path in files.items():
            os.link(path, os.path.join(staging, base), follow_symlinks=False)
        boot = next((blob for blob, suffix in images.blobs(record) if suffix == "boot"), None)
        carried = {name: value for name, value in record.items() if name in CARRIED and value is not None}
        described = {**carried, "boot": boot, "names": images.current_names(run.store, record)}
        write_json(os.path.join(staging, FILE), described, locked=True)
        path = os.path.join(common.fresh_folder(run, vm_id, "image", reader), common.ARCHIVE)
        about = {"name": "image", "id": images.hex_of(image_digest)}
        written = archive.write(path, about, staging, [FILE, *sorted(files)], common.compression(), told)
        remove_tree(staging)
        if reader is not None:
            os.chown(path, reader, -1)
    return {"path": path, "digest": written.digest, "size": written.size}


def take(run: Run, image_digest: str, path: str, checksum: str | None, told: Stage) -> bool:
    """Take an image in from an archive; whether it was missing. A name of its that is free here leads to it.

    :raises CocoonError: the archive does not hold together.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import archive

    key = images.hex_of(image_digest)
    images.make_directories(run.store.paths)
    with locked(run.store.paths, [images.lock_name(image_digest)], run.options.lock_timeout):
        known = images.load_record(run.store, image_digest)
        if known is not None and not images.missing_files(run.store, known):
            return False
        staging = common.fresh_folder(run, key, "files", None)
        limits = archive.Limits(common.room(run), MAX_FILES)
        envelope = archive.read(path, staging, limits, checksum, told)
        run.mark("image.read")
        record = _check(read_json(os.path.join(staging, FILE)), image_digest, set(envelope.files), staging)
        _publish(run, record, staging)
        run.mark("image.blobs")
        record["folders"] = _folders(run, record)
        _register(run, record)
    common.clear(run, key)
    return True


def _check(found: t.Any, image_digest: str, names: set[str], staging: str) -> Record:
    """:raises InputError: it is another image, or its files are not those that it names."""
    import jsonschema

    try:
        jsonschema.validate(found, SCHEMA, cls=jsonschema.Draft7Validator)
    except jsonschema.ValidationError as exc:
        raise _bad(invalid(exc)) from None
    record: Record = {"disk": None, **found}
    if {record["id"], record["digest"]} != {image_digest}:
        raise _bad(f"it is {record['id']}")
    needed = {f"{layer}.erofs" for layer in record["layers"]} | {FILE}
    needed |= {f"{record['boot']}.{name}" for name in BOOT_FILES} if record["boot"] else set()
    disk = record["disk"]
    if disk:
        needed.add(f"{disk['hex']}.{disk['format']}")
    notes = {f"{blob}.json" for blob in (*record["layers"], *([disk["hex"]] if disk else []))}
    if not needed <= names or not names <= needed | notes:
        raise _bad("its files are not those that it names")
    if disk:
        _check_disk(os.path.join(staging, f"{disk['hex']}.{disk['format']}"), disk)
    return record


def _check_disk(path: str, disk: Record) -> None:
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import detect

    if digest(path) != f"sha256:{disk['hex']}":
        raise _bad(f"its disk is not {disk['hex']}")
    if disk["format"] == "qcow2":
        with open(path, "rb") as stream:
            detect.check_qcow2(stream.read(detect.HEAD), os.path.basename(path))


def _bad(problem: str) -> InputError:
    return InputError(f"the archive does not hold the image: {problem}", "path", "Have it exported again.")


def _publish(run: Run, record: Record, staging: str) -> None:
    """Put the files where they belong, those that are there already excepted."""
    store, image_id = run.store, record["id"]
    disk = record["disk"]
    blobs = [(layer, "erofs") for layer in dict.fromkeys(record["layers"])]
    blobs += [(disk["hex"], disk["format"])] if disk else []
    references.note(store, image_id, [*blobs, *([(record["boot"], "boot")] if record["boot"] else [])])
    for blob, suffix in blobs:
        with references.blob_lock(store, blob, run.options.lock_timeout):
            references.refer(store, blob, image_id)
            _place(run, staging, f"{blob}.{suffix}", images.blob_path(store, blob, suffix), blob)
            about = read_json(os.path.join(staging, f"{blob}.json"))
            if about and not os.path.lexists(images.blob_path(store, blob, "json")):
                write_json(images.blob_path(store, blob, "json"), about)
    boot = record["boot"]
    if boot:
        with references.blob_lock(store, boot, run.options.lock_timeout):
            references.refer(store, boot, image_id)
            home = images.boot_path(store, boot)
            os.makedirs(home, 0o711, exist_ok=True)
            os.chmod(home, 0o711)
            for name in BOOT_FILES:
                _place(run, staging, f"{boot}.{name}", os.path.join(home, name), boot)
        record["boot"] = dict(zip(("kernel_path", "initrd_path"), (os.path.join(home, name) for name in BOOT_FILES)))


def _folders(run: Run, record: Record) -> list[Record]:
    """What a VM's own layer begins with, found again: root makes these here, so the archive is not taken on trust."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import implied

    layers = []
    for layer in record["layers"]:
        about = read_json(images.blob_path(run.store, layer, "json")) or {}
        paths = [path for path in about.get("implied") or () if not {"", ".", ".."} & set(str(path).split("/"))]
        layers.append(implied.Layer(images.blob_path(run.store, layer), paths))
    return implied.folders(layers)


def _place(run: Run, staging: str, name: str, target: str, blob: str) -> None:
    from ansible_collections.cocoon.microvm.plugins.module_utils._images.staging import publish

    if not os.path.isfile(target):
        publish(os.path.join(staging, name), target, images.blob_gid(run.store, blob))


def _register(run: Run, record: Record) -> None:
    """The record, and those of its names that lead nowhere here yet."""
    store, stamp = run.store, types.now()
    index = store.index("image")
    names = [name for name in record.pop("names", []) if images.IMAGE_NAME_RE.match(name)]
    free = [name for name in names if index.lookup(name) in (None, record["id"])]
    record.update(name=free[0] if free else "", names=free, created_at=stamp, updated_at=stamp, owner=store.store_id)
    write_json(images.record_path(store.paths, record["id"]), record)
    run.mark("image.record")
    for name in free:
        index.reserve(name, record["id"])
    references.forget(store, record["id"])
