# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a layer says about booting: kernels, initrds, the marker file, and what it hides of the layers below."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import posixpath
import re
import tempfile
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._images import tarball
from ansible_collections.cocoon.microvm.plugins.module_utils._images.tarball import BadArchive, Member

MARKER = "usr/lib/cocoon-microvm/image.json"
FEATURES = ("user", "password", "ssh_keys", "relogin", "nics", "data")
REBUILD = "Build the image again, with the role cocoon.microvm.image or without that file."
MAX_MARKER = 64 << 10
MAX_BOOT_FILE = 1 << 30
KERNEL_RE = re.compile(r"^(?:boot/)?vmlinuz[^/]*\Z")
INITRD_RE = re.compile(r"^(?:boot/)?initrd\.img[^/]*\Z")
# Kernels that a link in /boot may lead to.
MODULES_RE = re.compile(r"^(?:usr/)?lib/modules/[^/]+/(?:vmlinuz|initrd)[^/]*\Z")
MODULES_FOLDER_RE = re.compile(r"^(?:usr/)?lib/modules/[^/]+\Z")
FOLDERS = ("", "boot", "lib", "lib/modules", "usr", "usr/lib", "usr/lib/modules", "usr/lib/cocoon-microvm")
WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
# Bookkeeping of aufs, but for the one above.
AUFS = ".wh..wh."
OPAQUE_XATTR = "trusted.overlay.opaque"
# How many kinds of left out attributes are worth naming.
MAX_DROPPED = 8

Entries = dict[str, dict[str, str]]


@dataclasses.dataclass
class Findings:
    """What a layer says about booting.

    ``entries``: path -> ``{"type": "file", "digest": hex}`` or ``{"type": "link", "target": …}``;
    ``hidden``: paths of lower layers that it hides; ``marker``: features, or ``None`` where it has no marker;
    ``dropped``: extended attributes that were left out, each with a path that has it in the archive;
    ``implied``: folders that are there only because something is in them.
    """

    entries: Entries = dataclasses.field(default_factory=dict)
    hidden: list[str] = dataclasses.field(default_factory=list)
    marker: list[str] | None = None
    dropped: dict[str, str] = dataclasses.field(default_factory=dict)
    implied: set[str] = dataclasses.field(default_factory=set)

    def document(self) -> dict[str, t.Any]:
        return {**dataclasses.asdict(self), "implied": sorted(self.implied)}


def complete(document: t.Mapping[str, t.Any] | None) -> bool:
    """Whether what was learnt of a layer is all that is asked of it; an older version may have asked for less."""
    return document is not None and {field.name for field in dataclasses.fields(Findings)} <= set(document)


def interesting(path: str) -> bool:
    """Whether *path* may be a kernel or an initrd, or what a link to one leads to."""
    if path.endswith(".old"):
        return False
    return bool(KERNEL_RE.match(path) or INITRD_RE.match(path) or MODULES_RE.match(path))


class Inspector:
    """Collects the findings of a layer while its members pass by; keeps boot files in *keep* if that is given."""

    def __init__(self, keep: str | None = None) -> None:
        self.findings = Findings()
        self._keep = keep
        self._folders = {""}
        self._removed: set[str] = set()

    def look(self, member: Member) -> Member:
        """Note what matters about *member*; the member comes back with its data still to be read."""
        for key in member.dropped[: MAX_DROPPED - len(self.findings.dropped)]:
            self.findings.dropped.setdefault(tarball.printable(key), tarball.printable(member.path))
        folder, name = posixpath.split(member.path)
        if name.startswith(AUFS) and name != OPAQUE:
            return member
        self._imply(folder)
        if member.kind == tarball.DIRECTORY:
            self._folders.add(member.path)
            self.findings.implied.discard(member.path)
        if name.startswith(WHITEOUT):
            self._whiteout(folder, name)
        elif member.kind == tarball.CHAR and member.device == (0, 0):
            self._hide(member.path)
        elif member.kind == tarball.DIRECTORY and member.xattrs.get(OPAQUE_XATTR) == b"y":
            self._hide(member.path + "/")
        elif member.path == MARKER and member.kind == tarball.FILE:
            return self._marker(member)
        elif interesting(member.path):
            return self._entry(member)
        return member

    def _imply(self, folder: str) -> None:
        """Note the folders that a member needs. One that the layer has removed before is a new one."""
        while folder not in self._folders:
            self._folders.add(folder)
            if folder not in self._removed:
                self.findings.implied.add(folder)
            folder = posixpath.dirname(folder)

    def _whiteout(self, folder: str, name: str) -> None:
        if name == OPAQUE:
            self._hide(folder + "/")
        else:
            path = posixpath.join(folder, name[len(WHITEOUT) :])
            self._removed.add(path)
            self.findings.implied.discard(path)
            self._hide(path)

    def _hide(self, path: str) -> None:
        """Note a hidden path, if it can matter for booting."""
        bare = path.rstrip("/")
        if bare in FOLDERS or bare == MARKER or interesting(bare) or MODULES_FOLDER_RE.match(bare):
            self.findings.hidden.append(path)

    def _marker(self, member: Member) -> Member:
        if member.size > MAX_MARKER:
            raise BadArchive(f"{MARKER} is too large", REBUILD)
        data = b"".join(member.data)
        self.findings.marker = read_marker(data)
        return dataclasses.replace(member, data=iter((data,)))

    def _entry(self, member: Member) -> Member:
        if member.kind == tarball.SYMLINK:
            self.findings.entries[member.path] = {"type": "link", "target": member.link}
        elif member.kind == tarball.HARDLINK:
            self.findings.entries[member.path] = {"type": "link", "target": "/" + member.link}
        elif member.kind == tarball.FILE:
            if member.size > MAX_BOOT_FILE:
                raise BadArchive(f"'{member.path}' is too large for a boot file", tarball.SMALLER)
            self.findings.entries[member.path] = entry = {"type": "file", "digest": ""}
            return dataclasses.replace(member, data=self._copy(member, entry))
        return member

    def _copy(self, member: Member, entry: dict[str, str]) -> t.Iterator[bytes]:
        """The data of a boot file, kept on its way and hashed."""
        digest = hashlib.sha256()
        with contextlib.ExitStack() as stack:
            sink = None
            if self._keep is not None:
                sink = stack.enter_context(tempfile.NamedTemporaryFile(dir=self._keep, delete=False))
            for data in member.data:
                digest.update(data)
                if sink:
                    sink.write(data)
                yield data
            entry["digest"] = digest.hexdigest()
            if sink:
                os.rename(sink.name, os.path.join(t.cast(str, self._keep), entry["digest"]))


def read_marker(data: bytes) -> list[str]:
    """The features that an image's marker file claims, those we know.

    :raises BadArchive: it is not ``{"version": 1, "features": […]}``.
    """
    try:
        document = json.loads(data)
        if document["version"] != 1 or not isinstance(document["features"], list):
            raise ValueError("not version 1")
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise BadArchive(f"{MARKER} is damaged: {exc}", REBUILD) from exc
    return [feature for feature in FEATURES if feature in document["features"]]


def warnings(name: str, layer: t.Mapping[str, t.Any]) -> list[str]:
    """What users should know of the layer called *name*: what of it is not in the guest."""
    dropped = ", ".join(f"{key} (as of '{path}')" for key, path in (layer.get("dropped") or {}).items())
    return [f"{name}: extended attributes that no file system of Linux takes were left out: {dropped}"] * bool(dropped)


class Merged(t.NamedTuple):
    """What the guest sees of all layers together."""

    entries: Entries
    features: list[str]


def merge(layers: t.Iterable[t.Mapping[str, t.Any]]) -> Merged:
    """Findings of all layers, bottom first, as one view."""
    entries: Entries = {}
    marker: list[str] | None = None
    for layer in layers:
        for hidden in layer["hidden"]:
            if _covers(hidden, MARKER):
                marker = None
            for path in [path for path in entries if _covers(hidden, path)]:
                del entries[path]
        entries.update(layer["entries"])
        marker = layer["marker"] if layer["marker"] is not None else marker
    return Merged(entries, marker or [])


def _covers(hidden: str, path: str) -> bool:
    """``a/b`` hides a/b and what is beneath; ``a/b/`` only what is beneath; ``/`` everything."""
    return hidden == "/" or path == hidden or path.startswith(hidden if hidden.endswith("/") else hidden + "/")


def choose_boot(entries: Entries) -> tuple[str, str] | None:
    """Hex digests of the kernel and the initrd to boot, or ``None`` if there is no pair.

    ``vmlinuz`` and ``initrd.img`` without a version (links, mostly) go first; else the highest version with both.
    """
    pairs = []
    for path in entries:
        name = posixpath.basename(path)
        if not KERNEL_RE.match(path):
            continue
        version = name[len("vmlinuz") :]
        for folder in (posixpath.dirname(path), "boot", ""):
            initrd = posixpath.join(folder, f"initrd.img{version}")
            kernel_file, initrd_file = tarball.resolve(entries, path), tarball.resolve(entries, initrd)
            if kernel_file and initrd_file:
                rank = (not version, path.startswith("boot/"), _natural(version))
                pairs.append((rank, entries[kernel_file]["digest"], entries[initrd_file]["digest"]))
                break
    if pairs:
        return max(pairs)[1:]
    return _only_pair(entries)


def _only_pair(entries: Entries) -> tuple[str, str] | None:
    """One kernel and one initrd belong together, whatever they are called."""
    found: list[set[str]] = [set(), set()]
    for path in entries:
        file = tarball.resolve(entries, path)
        for number, pattern in enumerate((KERNEL_RE, INITRD_RE)):
            if file and pattern.match(path):
                found[number].add(entries[file]["digest"])
    kernels, initrds = found
    return (kernels.pop(), initrds.pop()) if len(kernels) == len(initrds) == 1 else None


def _natural(version: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"([0-9]+)", version)  # numbers at the odd places
    return [(1, int(part), "") if place % 2 else (0, 0, part) for place, part in enumerate(parts)]
