# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders that a layer only implies: it has ``tmp/x`` and says nothing of ``tmp``.

Its EROFS file has such a folder as 0755 of root, and being on top it is what a guest would see, whatever the layers
below say. Each blob is shared by digest and cannot know what will lie below it, so the right attributes are found where
layers are put together. They are given to the folders in the VM's own, topmost layer.
"""

from __future__ import annotations

import base64
import contextlib
import posixpath
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._images.erofs_tree import Blob, Node
from ansible_collections.cocoon.microvm.plugins.module_utils._images.findings import OPAQUE_XATTR
from ansible_collections.cocoon.microvm.plugins.module_utils._images.unpack import raw
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

# Attributes of overlayfs that tell of one layer, and would tell lies in another.
OVERLAY = "trusted.overlay."
# Links that are followed for one image: some lead to each other.
MAX_LINKS = 1000


class Layer(t.NamedTuple):
    """A layer's blob, and the folders that it only implies."""

    path: str
    implied: t.Collection[str]


class Dress(t.NamedTuple):
    """What a folder wears."""

    mode: int
    uid: int
    gid: int
    xattrs: dict[str, bytes]


DEFAULT = Dress(0o755, 0, 0, {})


def folders(layers: t.Sequence[Layer]) -> list[Record]:
    """The folders of an image that would not look as they should, and all above them, parents first.

    :param layers: bottom first.
    :returns: dictionaries of ``path mode uid gid xattrs``, with values of the latter in base64.
    """
    candidates = sorted({path for layer in layers[1:] for path in layer.implied})
    if not candidates:
        return []
    wrong: dict[str, Dress] = {}
    with contextlib.ExitStack() as stack:
        blobs = []
        for layer in layers:
            blobs.append(Blob(layer.path))
            stack.callback(blobs[-1].close)
        view = _View(layers, blobs)
        for path in candidates:
            found = view.look(path)
            if found and found.implied and found.dress != DEFAULT:
                for above in _ancestors(path):
                    seen = found if above == path else view.look(above)
                    wrong[above] = seen.dress if seen else DEFAULT
    return [_record(path, wrong[path]) for path in sorted(wrong)]


def _ancestors(path: str) -> list[str]:
    """*path* and the folders that it is in."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _record(path: str, dress: Dress) -> Record:
    xattrs = {key: base64.b64encode(dress.xattrs[key]).decode() for key in sorted(dress.xattrs)}
    return {"path": path, "mode": dress.mode, "uid": dress.uid, "gid": dress.gid, "xattrs": xattrs}


Parts = list[tuple[int, Node]]


class _Found(t.NamedTuple):
    """A folder as a guest sees it: whether its topmost layer only implies it, and what it should look like.

    ``parts``: the folders of the layers whose contents it shows, topmost first, each with its layer's number.
    """

    implied: bool
    dress: Dress
    parts: Parts


class _View:
    """All layers as one tree, as overlayfs and whoever unpacks them one upon the other see it."""

    def __init__(self, layers: t.Sequence[Layer], blobs: t.Sequence[Blob]) -> None:
        self._implied = [frozenset(layer.implied) for layer in layers]
        self._blobs = blobs
        self._known: dict[str, _Found | None] = {}
        self._links = MAX_LINKS

    def look(self, path: str) -> _Found | None:
        """The folder *path*; ``None`` where a higher layer has removed or replaced it, or what it is in."""
        if path not in self._known:
            above = posixpath.dirname(path)
            folder = self.look(above) if above else self._root(len(self._blobs) - 1)
            self._known[path] = self._step(folder.parts, path) if folder else None
        return self._known[path]

    def _root(self, top: int) -> _Found:
        """The root of the layers up to *top*. It is the VM's own folder that shows, so what it looks like is given."""
        return _Found(False, DEFAULT, self._open((number, self._blobs[number].root) for number in range(top, -1, -1)))

    def _open(self, parts: t.Iterable[tuple[int, Node]]) -> Parts:
        """Those of the *parts* of a folder that show their contents."""
        shown = []
        for number, node in parts:
            shown.append((number, node))
            if self._blobs[number].xattrs(node).get(OPAQUE_XATTR) == b"y":
                break
        return shown

    def _step(self, parts: Parts, path: str) -> _Found | None:
        """The folder *path* in the folder that consists of *parts*."""
        name = raw(posixpath.basename(path))
        found: Parts = []
        dress: Dress | None = None
        for number, folder in parts:
            node = self._blobs[number].child(folder, name)
            if node is None:
                continue
            if not node.is_dir:
                if found and dress is None and node.is_link:
                    dress = self._behind(path, number)
                break
            found.append((number, node))
            if dress is None and path not in self._implied[number]:
                dress = self._dress(number, node)
        if not found:
            return None
        return _Found(path in self._implied[found[0][0]], dress or DEFAULT, self._open(found))

    def _dress(self, number: int, node: Node) -> Dress:
        xattrs = self._blobs[number].xattrs(node)
        kept = {key: value for key, value in xattrs.items() if not key.startswith(OVERLAY)}
        return Dress(node.mode & 0o7777, node.uid, node.gid, kept)

    def _behind(self, path: str, top: int) -> Dress | None:
        """What the folder looks like that the link *path* leads to, in the layers up to *top*, which has the link."""
        waiting = path.split("/")
        place: list[str] = []
        way = [self._root(top)]
        while waiting:
            name = waiting.pop(0)
            if name == "..":
                place, way = place[:-1], way[: max(1, len(place))]
            elif name not in ("", "."):
                found = self._step(way[-1].parts, "/".join([*place, name]))
                if found is not None:
                    place, way = [*place, name], [*way, found]
                    continue
                target = self._link(way[-1].parts, raw(name))
                if target is None:
                    return None
                if target.startswith("/"):
                    place, way = [], way[:1]
                waiting = target.split("/") + waiting
        return way[-1].dress

    def _link(self, parts: Parts, name: bytes) -> str | None:
        """Where the link *name* in a folder leads; ``None`` if there is none, or there were too many already."""
        for number, folder in parts:
            node = self._blobs[number].child(folder, name)
            if node is not None:
                self._links -= 1
                follow = node.is_link and self._links >= 0
                return self._blobs[number].target(node).decode("utf-8", "surrogateescape") if follow else None
        return None
