# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The read side of the image store, and who uses what in it.

Nothing here scans, unpacks or runs a tool; a run that changes nothing needs no other part of this package.

Layout under ``root_dir/images``::

    records/<hex>.json             the record of an image; hex is that of its id
    blobs/<hex>.{erofs,qcow2,raw}  layers and disks, root:<gid> 0440
    blobs/<hex>.json               what an import learnt of a layer (boot files, marker)
    boot/<hex>/{vmlinuz,initrd.img}   and vmlinux once a hypervisor wanted it: see ``kernel``
    blobrefs/<hex>/<image hex>     which images use a blob or a boot directory
    users/<hex>/<id>               which VMs and snapshots use an image
    pending/<hex>                  images to look at again: an import or a removal under way
    sources/<sha256 of the path>   digests of source files, by their size and times
    downloads/                     files on their way from a URL: see ``download``
    pulls/<manifest hex>/          layers of a pull that has not ended: see ``pull``
    staging/  templates/
"""

from __future__ import annotations

import contextlib
import os
import re
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, NotFoundError, StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._records import damaged_image, read_image
from ansible_collections.cocoon.microvm.plugins.module_utils._state import (
    Store,
    fsync_dir,
    hashed,
    locked,
    read_json,
    read_record,
    remove_file,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._types import check_meant

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import ImageRecord

DIGEST_RE = re.compile(r"^sha256:[0-9a-f]{64}\Z")
# Registry references fit as well; ':' and '/' are why an image name is not a VM name.
IMAGE_NAME_RE = re.compile(r"^(?!sha256:)[a-zA-Z0-9][a-zA-Z0-9._/:@-]{0,254}\Z")
USER_ID_RE = re.compile(r"^[a-z0-9]{1,64}\Z")

DAMAGED = "Put it back from a backup, import the image again, or remove it by its name (state: absent)."

# The ELF file in a boot directory's kernel.
UNPACKED = "vmlinux"

PUBLIC = ("blobs", "boot", "pulls", "staging", "templates")
PRIVATE = ("records", "blobrefs", "users", "pending", "sources", "downloads")


def directory(paths: Paths, name: str) -> str:
    return os.path.join(paths.images, name)


def make_directories(paths: Paths) -> None:
    """The directories of the image store: 0711 where a hypervisor has to pass, 0700 elsewhere."""
    for names, mode in ((PUBLIC, 0o711), (PRIVATE, 0o700)):
        for name in names:
            os.makedirs(directory(paths, name), mode, exist_ok=True)
            os.chmod(directory(paths, name), mode)


def check_image_name(name: str, option: str = "name") -> str:
    """*name* if an image may be called that: a digest may not."""
    check_meant(name, option)
    if not IMAGE_NAME_RE.match(name):
        raise InputError(
            f"'{name}' is not a valid image name",
            option,
            "Use letters, digits and . _ - / : @, at most 255, beginning with a letter or digit.",
        )
    return name


def hex_of(image_id: str) -> str:
    """The hex part of ``sha256:<hex>``."""
    return image_id.partition(":")[2]


def record_path(paths: Paths, image_id: str) -> str:
    return os.path.join(directory(paths, "records"), f"{hex_of(image_id)}.json")


def load_record(store: Store, image_id: str) -> ImageRecord | None:
    return read_record(record_path(store.paths, image_id), read_image, image_id)


def resolve(store: Store, name_or_digest: str) -> ImageRecord | None:
    """The record of an image by one of its names or by its ``sha256:…`` id; ``None`` if there is none."""
    if DIGEST_RE.match(name_or_digest):
        return load_record(store, name_or_digest)
    image_id = store.index("image").lookup(name_or_digest)
    return None if image_id is None else load_record(store, image_id)


def seen(store: Store, image_id: str) -> ImageRecord | None:
    """The record of an image, or ``None`` if there is none; if it is damaged, what stands for it."""
    try:
        record = load_record(store, image_id)
        names = [] if record else _names_of(store, image_id)
        if names:  # a record comes before its first name, and goes after the last
            raise StateError(f"{record_path(store.paths, image_id)} is missing")
    except StateError as exc:
        return damaged_image(image_id, _names_of(store, image_id), f"{exc.message}. {DAMAGED}")
    return record


def _names_of(store: Store, image_id: str) -> list[str]:
    """The names that lead to an image, by a look at all names."""
    return [name for name, holder in store.index("image").entries() if holder == image_id]


def find(store: Store, name_or_digest: str) -> ImageRecord | None:
    """:func:`resolve`, but with what stands for an image that is damaged."""
    by_digest = DIGEST_RE.match(name_or_digest)
    image_id = name_or_digest if by_digest else store.index("image").lookup(name_or_digest)
    return None if image_id is None else seen(store, image_id)


def current_names(store: Store, record: ImageRecord) -> list[str]:
    """The names that lead to *record*; the index decides, the record only remembers (and knows of damaged ones)."""
    return sorted(name for name in set(record.get("names") or []) if _leads_to(store, name, record["id"]))


def _leads_to(store: Store, name: str, image_id: str) -> bool:
    try:
        return store.index("image").lookup(name) == image_id
    except StateError:
        return True


def blob_path(store: Store, blob: str, suffix: str = "erofs") -> str:
    """Where the blob with hex digest *blob* is; *suffix* is ``erofs``, ``qcow2`` or ``raw``."""
    return os.path.join(directory(store.paths, "blobs"), f"{blob}.{suffix.lstrip('.')}")


def boot_path(store: Store, boot: str) -> str:
    return os.path.join(directory(store.paths, "boot"), boot)


def blob_gid(store: Store, blob: str) -> int:
    """The group that may read a blob or boot directory: from the upper half of the store's uid range.

    VM uids come from the lower half. A hypervisor gets the groups of the blobs its VM uses and no others.
    """
    half = store.uid_count // 2
    return store.uid_start + half + int(blob[:16], 16) % half


def blobs(record: ImageRecord) -> list[tuple[str, str]]:
    """(hex, suffix) of every blob of an image, bottom layer first; suffix ``boot`` for its boot directory."""
    found = [(layer, "erofs") for layer in record.get("layers") or []]
    if record.get("disk"):
        found.append((record["disk"]["hex"], record["disk"]["format"]))
    if record.get("boot"):
        found.append((os.path.basename(os.path.dirname(record["boot"]["kernel_path"])), "boot"))
    return found


def gids(store: Store, record: ImageRecord) -> list[int]:
    """The supplementary groups with which a process reads the files of this image."""
    return sorted({blob_gid(store, blob) for blob, _suffix in blobs(record)})


def user_dir(paths: Paths, image_id: str) -> str:
    return os.path.join(directory(paths, "users"), hex_of(image_id))


def lock_name(image_id: str) -> str:
    """The lock that guards the record, users and names of one image."""
    return f"image:{image_id}"


def pin(store: Store, image_id: str, user_id: str, timeout: float = 60.0) -> ImageRecord:
    """Note that the VM or snapshot *user_id* uses the image, so that it cannot be removed; the record.

    Pinning again is fine. Durable before it returns.

    :param timeout: seconds to wait for a removal or import of the same image.
    :raises NotFoundError: the image is gone.
    """
    _check_user(user_id)
    with locked(store.paths, [lock_name(image_id)], timeout):
        record = load_record(store, image_id)
        if record is None:
            raise NotFoundError(f"image {image_id} is not in the store", "image", "Import it with cocoon_image.")
        path = user_dir(store.paths, image_id)
        os.makedirs(path, 0o700, exist_ok=True)
        fd = os.open(os.path.join(path, user_id), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.close(fd)
        fsync_dir(path)
    return record


def unpin(store: Store, image_id: str, user_id: str) -> None:
    """The VM or snapshot *user_id* is done with the image; doing it again is fine."""
    _check_user(user_id)
    remove_file(os.path.join(user_dir(store.paths, image_id), user_id))


def pinned_by(store: Store, user_id: str) -> list[str]:
    """Ids of the images that a VM or snapshot uses. Looks through all of them."""
    folder = directory(store.paths, "users")
    hexes = os.listdir(folder) if os.path.isdir(folder) else []
    return [f"sha256:{name}" for name in hexes if os.path.lexists(os.path.join(folder, name, user_id))]


def users(store: Store, image_id: str) -> list[str]:
    """Ids of the VMs and snapshots that use the image, sorted."""
    try:
        return sorted(os.listdir(user_dir(store.paths, image_id)))
    except FileNotFoundError:
        return []


def describe_user(store: Store, user_id: str) -> str:
    """``vm web1`` or ``snapshot warm`` for an id, as far as their records tell."""
    name = store.vm_name(user_id)
    if name:
        return f"vm {name}"
    with contextlib.suppress(StateError):
        snapshot = read_json(os.path.join(store.paths.object_dir("snapshot", user_id), "snapshot.json"))
        if snapshot:
            return f"snapshot {snapshot.get('name') or user_id}"
    return user_id


def missing_files(store: Store, record: ImageRecord) -> list[str]:
    """Files of the image that are not there: an image with any is imported again."""
    wanted = [blob_path(store, blob, suffix) for blob, suffix in blobs(record) if suffix != "boot"]
    boot = record.get("boot") or {}
    wanted += [path for path in (boot.get("kernel_path"), boot.get("initrd_path")) if path]
    return [path for path in wanted if not os.path.isfile(path)]


def source_path(paths: Paths, key: str) -> str:
    return os.path.join(directory(paths, "sources"), hashed(key))


def size_of(store: Store, blob: str, suffix: str) -> int:
    """Bytes that a blob or boot directory takes on disk, holes not counted."""
    if suffix == "boot":
        directory = boot_path(store, blob)
        paths = [os.path.join(directory, name) for name in ("vmlinuz", "initrd.img", UNPACKED)]
    else:
        paths = [blob_path(store, blob, suffix)]
    total = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(path)
            total += min(status.st_size, status.st_blocks * 512)
    return total


def _check_user(user_id: str) -> None:
    if not USER_ID_RE.match(user_id):
        raise InputError(f"'{user_id}' is not the id of a VM or snapshot")
