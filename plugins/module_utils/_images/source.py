# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a source is, by its content, and which image it makes.

Digests of files are remembered by path, size, inode and times, so that a run that changes nothing reads no contents.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import time

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import kinds
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._images.kinds import Source
from ansible_collections.cocoon.microvm.plugins.module_utils._progress import Progress, Stage
from ansible_collections.cocoon.microvm.plugins.module_utils._state import read_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import GIB, Record, format_size

SCHEME = "docker://"
URL_RE = re.compile(r"^(https?|file)://", re.IGNORECASE)
# A name that says itself which registry knows it: docker.io/library/nginx, localhost:5000/app.
REGISTRY_NAME_RE = re.compile(r"^(?:localhost|[^/]*[.:][^/]*)/.")
# Bytes that a file may have, unless the user says otherwise.
MAX_SIZE = 20 * GIB
# By which an image is chosen from among several; to be raised when they change.
RULES = 3
# A file changed this short a time ago may change again without its times telling.
SETTLED_NS = 20_000_000


@dataclasses.dataclass(frozen=True)
class Sources:
    """All that an image is made of, and the id it will have."""

    main: Source
    kernel: Source | None
    initrd: Source | None

    @property
    def image_id(self) -> str:
        if self.kernel is None or self.initrd is None:
            return f"sha256:{self.main.digest}"
        parts = {"source": self.main.digest, "kernel": self.kernel.digest, "initrd": self.initrd.digest}
        return "sha256:" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def type(self) -> str:
        return self.main.image_type


def is_url(text: str | None) -> bool:
    """Whether a source is a URL of a file; ``docker://`` is a registry's."""
    return bool(text and URL_RE.match(text))


def by_url(text: str | None, checksum: str | None) -> bool:
    """Whether a source is for ``download``: a URL, or a file of which more than a plain sha256 is known."""
    if text is None or text.startswith(SCHEME):
        return False
    plain = checksum is None or images.DIGEST_RE.match(checksum.strip().lower())
    return is_url(text) or not plain


def registry_reference(name: str, source: str | None) -> str | None:
    """What to ask a registry for, if these options of an image mean one."""
    if source is None:
        return name if REGISTRY_NAME_RE.match(name) else None
    return source[len(SCHEME) :] if source.startswith(SCHEME) else None


def too_large(name: str, limit: int) -> InputError:
    return InputError(f"{name} is larger than {format_size(limit)}", "max_size", "Raise the limit if that is right.")


def examine(
    paths: Paths,
    source: str,
    kernel: str | None,
    initrd: str | None,
    checksum: str | None,
    tag: str | None,
    remember: bool,
    force: bool = False,
    platform: str | None = None,
    told: Progress | None = None,
    max_size: int | None = None,
) -> Sources:
    """Look at the files of an image and say which image they make.

    :param remember: write down what was learnt (not in check mode).
    :param force: do not trust what is remembered.
    :param told: of how much of a file has been read.
    :param max_size: bytes that a file may have; :data:`MAX_SIZE` by default.
    :raises InputError: a file is missing, too large or of no known kind, or the checksum differs.
    """
    _check_pair(kernel, initrd)
    if platform is not None:
        from ansible_collections.cocoon.microvm.plugins.module_utils._images import platforms

        platforms.check_platform(platform)
    _check_size(source, max_size)
    main = identify(paths, source, "source", tag, remember, force, platform, told)
    if platform is not None and not main.has_platforms:
        raise InputError("is chosen among those of a container image", "platform", "Leave it out for a tar or a disk.")
    check_checksum(main, checksum)
    return with_boot_files(paths, main, kernel, initrd, remember, force)


def _check_size(path: str, limit: int | None) -> None:
    """:raises InputError: a file has more than *limit* bytes, or is none that a limit could be meant for."""
    if os.path.isdir(path):
        if limit is not None:
            raise InputError("is for files, and not for OCI layouts", "max_size", "Leave it out.")
        return
    limit = MAX_SIZE if limit is None else limit
    with contextlib.suppress(OSError):  # if it cannot be read, that is said soon enough
        if os.stat(path).st_size > limit:
            raise too_large(path, limit)


def _check_pair(kernel: str | None, initrd: str | None) -> None:
    if bool(kernel) != bool(initrd):
        raise InputError(
            "kernel and initrd belong together", "initrd" if kernel else "kernel", "Give both of them or neither."
        )


def with_boot_files(
    paths: Paths, main: Source, kernel: str | None, initrd: str | None, remember: bool, force: bool = False
) -> Sources:
    """*main* with the kernel and the initrd that the user wants it to boot with, if any."""
    _check_pair(kernel, initrd)
    if kernel is None or initrd is None:
        return Sources(main, None, None)
    if not main.takes_kernel:
        raise InputError(
            "a disk image boots from its own disk", "kernel", "Leave kernel and initrd out, or give a root file system."
        )
    return Sources(
        main,
        identify(paths, kernel, "kernel", None, remember, force),
        identify(paths, initrd, "initrd", None, remember, force),
    )


def check_checksum(main: Source, checksum: str | None) -> None:
    if checksum is None:
        return
    wanted = checksum.strip().lower()
    if not images.DIGEST_RE.match(wanted):
        raise InputError(f"'{checksum}' is not a checksum", "checksum", "Write it as sha256: and 64 hex digits.")
    have = {f"sha256:{main.digest}", f"sha256:{main.file_digest}"}
    if wanted not in have:
        raise InputError(
            f"{main.path} has sha256:{main.file_digest or main.digest}, not {wanted}",
            "checksum",
            "Get the file again, or correct the checksum.",
        )


def identify(
    paths: Paths,
    path: str,
    option: str,
    tag: str | None,
    remember: bool,
    force: bool,
    platform: str | None = None,
    told: Progress | None = None,
) -> Source:
    """What the file or directory *path* is, from memory if it has not changed."""
    real = os.path.realpath(path)
    before = _stamp(real, path, option)
    key = f"{real}\0{tag or ''}\0{'boot' if option != 'source' else ''}"
    cache = images.source_path(paths, f"{key}\0{platform}" if platform else key)
    known = None if force else recall(cache)
    if known and known.get("stamp") == before:
        return kinds.FILES[known["kind"]](real, known["digest"], known["file_digest"], tag, platform)
    told = told or Progress()
    told.expect(before[2])
    began = time.time_ns()
    found = _inspect(real, option, tag, platform, told.stage(f"reading {path}", before[2]))
    if _stamp(real, path, option) != before:
        raise InputError(f"{path} changed while it was read", option, "Wait until it is complete.")
    if remember and began - max(before[3:]) > SETTLED_NS:
        document = {"path": found.path, "stamp": before, "kind": found.kind}
        document.update(digest=found.digest, file_digest=found.file_digest)
        note(cache, document)
    return found


def recall(cache: str) -> Record | None:
    """What :func:`note` wrote, if images are still chosen as they were then."""
    known = glanced(cache)
    return known if known and known.get("rules") == RULES else None


def glanced(path: str) -> Record | None:
    """A document that is only a memory: it may have been half-written before a power failure."""
    try:
        return read_json(path)
    except StateError:
        return None


def note(cache: str, document: Record) -> None:
    """Always under the same temporary name, so that a killed run leaves nothing that the next does not replace."""
    with contextlib.suppress(OSError):  # no store yet, no space, or another run was quicker with the same
        fd = os.open(f"{cache}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as stream:
            json.dump({**document, "rules": RULES}, stream)
        os.rename(f"{cache}.new", cache)


def _stamp(real: str, path: str, option: str) -> list[int]:
    """device, inode, size, mtime, ctime of the file, of index.json for a layout."""
    try:
        status = os.stat(real)
        if os.path.isdir(real) and option == "source":
            status = os.stat(os.path.join(real, "index.json"))
    except FileNotFoundError:
        if os.path.isdir(real):
            raise InputError(
                f"{path} is a directory, but not an OCI layout",
                option,
                "Give a layout (with index.json and oci-layout), or a tar of the root file system.",
            ) from None
        raise InputError(f"{path} does not exist", option, "Give a path on the target host.") from None
    except OSError as exc:
        raise InputError(f"cannot read {path}: {exc.strerror}", option) from exc
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _inspect(real: str, option: str, tag: str | None, platform: str | None, stage: Stage) -> Source:
    """Read the contents."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import detect, streams

    if os.path.isdir(real) and option == "source":
        if not os.path.isfile(os.path.join(real, "oci-layout")):
            raise InputError(f"{real} is a directory, but not an OCI layout", option, "It has no file oci-layout.")
        return kinds.LayoutFolder(real, "", "", tag, platform).chosen(-1)
    fd = streams.open_source(real, option)
    try:
        if option == "source":
            kind = detect.detect(fd, real)
            digest = streams.file_digest(fd, stage.advance)
            return kind(real, digest, digest, tag, platform).chosen(fd)
        if os.fstat(fd).st_size == 0:
            raise InputError(f"{real} is empty", option)
        digest = streams.file_digest(fd)
        return kinds.BootFile(real, digest, digest)
    finally:
        os.close(fd)
