# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which image of a layout is meant: by its name, and by the platform that a VM here runs best.

Layouts hold more than images, and speak of more than they hold: signatures, attestations, artifacts, images of other
platforms that were not saved. None of that is judged, unless there is nothing else.
"""

from __future__ import annotations

import collections
import dataclasses
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    CocoonError,
    InputError,
    NotFoundError,
    UnsupportedError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._images import registry_name
from ansible_collections.cocoon.microvm.plugins.module_utils._images.documents import (
    CONFIG_TYPES,
    DOCKER_LAYER,
    FULL_NAME,
    INDEX_TYPES,
    LAYER_TYPES,
    MANIFEST_TYPES,
    OCI_LAYER,
    REF_NAME,
    REFERENCE_TYPE,
    Document,
    Layout,
    MissingBlob,
    checked,
    decoded,
    fetched,
    run_config,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._images.platforms import (
    GUEST_LEVEL,
    Platform,
    check_platform,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._images.tarball import AGAIN, BadArchive, named

MAX_NESTING = 3
SHOWN = 20
PLAIN_LAYERS = "Build the image with layers that are tar archives, plain or compressed with gzip or zstd."
SAVE_AGAIN = "Save the image again, with all that belongs to this platform."


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The image chosen from a layout: digests in hex, layers bottom first with their sizes.

    ``plain``: the digest of each layer's uncompressed tar, as the config promises it.
    """

    digest: str
    layers: list[tuple[str, int]]
    plain: list[str]
    platform: str
    created: str | None
    config: Document = dataclasses.field(default_factory=dict)


class NoImage(UnsupportedError):
    """A manifest of something else: a signature, an attestation, a chart."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"what it has is no image, but '{kind}'", "source", "Give the image that this belongs to.")


class _Entry(t.NamedTuple):
    """One of the manifests or indexes that a layout lists first, and the names it has there."""

    descriptor: Document
    names: tuple[str, ...]

    @property
    def label(self) -> str:
        return next(iter(self.names), self.digest)

    @property
    def digest(self) -> str:
        return str(self.descriptor.get("digest"))

    def whole_names(self) -> set[str]:
        """Those that are more than a tag, in full if they can be."""
        return {_in_full(name) for name in self.names if ":" in name or "/" in name}


class _Leaf(t.NamedTuple):
    """What may be an image. ``platform``: what the index says of it. ``document``: if it had to be read already."""

    descriptor: Document
    platform: Platform
    document: Document | None = None


def select(layout: Layout, tag: str | None, platform: str | None = None, what: str = "the layout") -> Manifest:
    """The image of *layout* for *platform*, or for the VMs of this host.

    :param tag: which one, by its name, tag or digest, if there are several.
    :param platform: ``os/architecture``, and a variant if it matters.
    :param what: what to call the layout in messages.
    :raises InputError: none, several, damaged, or for other machines only.
    """
    wanted = Platform.parse(check_platform(platform))
    with named(what):
        everything = _entries(layout)
    entries = everything if tag is None else _called(everything, tag)
    if not entries:
        raise InputError(f"{what} has no image '{tag}'", "tag", f"It has: {_listed(everything)}.")
    search = _Search(layout, wanted)
    with named(what):
        found = [(entry, image) for entry in entries for image in [search.best(entry.descriptor)] if image]
        if not found:
            search.explain()
    if not found:
        raise search.nothing(what, platform)
    winners = _best_of_each_name(found, wanted)
    if len({image.digest for _entry, image in winners}) > 1:
        called = f" '{tag}'" if tag else ""
        listed = _listed([entry for entry, _image in winners])
        raise InputError(f"{what} has several images{called}", "tag", f"Choose one of: {listed}.")
    return winners[0][1]


def _entries(layout: Layout) -> list[_Entry]:
    index = checked(decoded(layout.index(), "index.json"), "index", "index.json")
    entries = [_Entry(item, _names(item)) for item in index.get("manifests", []) if isinstance(item, dict)]
    if not entries:
        raise BadArchive("its index.json lists no images", AGAIN)
    return entries


def _names(descriptor: Document) -> tuple[str, ...]:
    annotations = descriptor.get("annotations")
    found = [annotations.get(key) for key in (FULL_NAME, REF_NAME)] if isinstance(annotations, dict) else []
    return tuple(dict.fromkeys(name for name in found if isinstance(name, str)))


def _called(entries: list[_Entry], tag: str) -> list[_Entry]:
    """Those that *tag* means: by digest or whole name, however that is written, else by the tag alone."""
    for whole in (_in_full(tag), _in_full(f"localhost/{tag}")):  # the latter is what Podman calls its own images
        found = [entry for entry in entries if tag == entry.digest or whole in entry.whole_names()]
        if found:
            return found
    return [
        entry
        for entry in entries
        if tag in entry.names or any(name.endswith(f":{tag}") for name in entry.whole_names())
    ]


def _in_full(name: str) -> str:
    """What Docker means by a name, as it is if it is none: ``docker.io/library/nginx:latest`` for ``nginx``."""
    try:
        return str(registry_name.parse(name))
    except InputError:
        return name


def _listed(entries: t.Sequence[_Entry]) -> str:
    """Names to choose by; digests where these are not enough."""
    digests: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for entry in entries:
        digests[_in_full(entry.label) if entry.whole_names() else entry.label].setdefault(entry.digest, entry.label)
    shown = []
    for same in digests.values():
        several = len(same) > 1
        shown += [f"{digest} ({label})" if several else label for digest, label in same.items()]
    return ", ".join(sorted(shown)[:SHOWN]) + (", …" if len(shown) > SHOWN else "")


def _best_of_each_name(found: list[tuple[_Entry, Manifest]], wanted: Platform) -> list[tuple[_Entry, Manifest]]:
    """Images of one name are variants of one image, unless they run equally well."""
    best: dict[tuple[str, ...], int] = {}
    ranked = [(_rank(image, wanted), entry, image) for entry, image in found]
    for rank, entry, _image in ranked:
        best[entry.names] = max(rank, best.get(entry.names, rank))
    return [(entry, image) for rank, entry, image in ranked if rank == best[entry.names]]


def _rank(image: Manifest, wanted: Platform) -> int:
    return Platform.parse(image.platform).rank(wanted)


class _Search:
    """Looks for the best image of each entry; remembers what it passed over, for the case that there is none."""

    def __init__(self, layout: Layout, wanted: Platform) -> None:
        self._layout = layout
        self._wanted = wanted
        self._others: set[Platform] = set()
        self._faults: list[CocoonError] = []  # of what should have been the image
        self._doubts: list[CocoonError] = []  # of what may have been one

    def best(self, item: Document) -> Manifest | None:
        """The first image of those that run best among what *item* leads to.

        :raises BadArchive: that one is damaged.
        """
        leaves = list(self._leaves(item, set(), MAX_NESTING))
        listed = [leaf for leaf in leaves if leaf.platform.rank(self._wanted)]
        for leaf in sorted(listed, key=lambda leaf: leaf.platform.rank(self._wanted), reverse=True):
            image = self._taken(leaf, self._faults, (MissingBlob, UnsupportedError, NotFoundError))
            if image:
                return image
        others = [leaf for leaf in leaves if not leaf.platform.rank(self._wanted)]
        possible = [self._taken(leaf, self._doubts, (BadArchive, UnsupportedError, NotFoundError)) for leaf in others]
        return max((image for image in possible if image), key=lambda image: _rank(image, self._wanted), default=None)

    def explain(self) -> None:
        """:raises CocoonError: what is wrong with the image there should be, or with all that may have been one."""
        doubts = [] if self._others else sorted(self._doubts, key=lambda exc: isinstance(exc, NoImage))
        for fault in [*self._faults, *doubts]:
            raise fault

    def nothing(self, what: str, platform: str | None) -> CocoonError:
        """The error that says which platforms there are."""
        have = ", ".join(sorted(map(str, self._others))) or "nothing"
        remedy = "Choose one of these." if platform else "Get one for this host."
        if any(other.same_machine(self._wanted) for other in self._others) and not platform:
            remedy = (
                f"A VM's CPU has x86-64-v{GUEST_LEVEL} wherever it runs; if the VMs of this image will have KVM and a "
                "CPU with more, say so with platform."
            )
        return UnsupportedError(
            f"{what} has no image for {self._wanted}", "platform" if platform else "source", f"It has: {have}. {remedy}"
        )

    def _leaves(self, item: t.Any, seen: set[str], depth: int) -> t.Iterator[_Leaf]:
        """What *item* leads to, less what is for other platforms, or no image by its own words."""
        try:
            descriptor = checked(item, "descriptor", "what an index lists")
            platform = Platform.of(descriptor.get("platform", {}))
            if "unknown" in platform or REFERENCE_TYPE in descriptor.get("annotations", {}):
                return
            if platform.os and platform.architecture and not platform.rank(self._wanted):
                self._others.add(platform)
                return
            kind = descriptor.get("mediaType")
            if kind in MANIFEST_TYPES:
                yield _Leaf(descriptor, platform)
                return
            if kind not in (None, *INDEX_TYPES):
                raise NoImage(kind)
            document = fetched(self._layout, descriptor)
            if kind is None and "manifests" not in document:
                yield _Leaf(descriptor, platform, document)
                return
            if descriptor["digest"] not in seen:
                seen.add(descriptor["digest"])
                yield from self._inside(document, descriptor["digest"], seen, depth)
        except (BadArchive, UnsupportedError, NotFoundError) as exc:
            self._doubts.append(exc)

    def _inside(self, document: Document, digest: str, seen: set[str], depth: int) -> t.Iterator[_Leaf]:
        if depth == 0:
            raise BadArchive("its indexes are nested too deep")
        for item in checked(document, "index", digest).get("manifests", []):
            yield from self._leaves(item, seen, depth - 1)

    def _taken(
        self, leaf: _Leaf, complaints: list[CocoonError], harmless: tuple[type[CocoonError], ...]
    ) -> Manifest | None:
        """The image that *leaf* is, if it runs here; *complaints* gets what is not to end the search."""
        try:
            image = _manifest(self._layout, leaf)
        except harmless as exc:
            complaints.append(exc)
            return None
        platform = Platform.parse(image.platform)
        if not platform.rank(self._wanted):
            self._others.add(platform)
            return None
        return image


def _manifest(layout: Layout, leaf: _Leaf) -> Manifest:
    digest = leaf.descriptor["digest"]
    document = leaf.document or fetched(layout, leaf.descriptor)
    _refuse_others(document)
    checked(document, "manifest", digest)
    if not document.get("layers"):
        raise UnsupportedError("the image has no layers", "source", "There is nothing in it to boot: build it again.")
    _check_layers(layout, document["layers"])
    config = checked(fetched(layout, document["config"]), "config", document["config"]["digest"])
    layers = [(layer["digest"].partition(":")[2], layer["size"]) for layer in document["layers"]]
    plain = [diff_id.partition(":")[2] for diff_id in config["rootfs"]["diff_ids"]]
    if len(plain) != len(layers):
        raise BadArchive("its config and its manifest disagree on the number of layers", AGAIN)
    if len(set(zip(layers, plain))) != len({name for name, _size in layers}):
        raise BadArchive("its config or its manifest says two things of one layer", AGAIN)
    return Manifest(
        digest=digest.partition(":")[2],
        layers=layers,
        plain=plain,
        platform=str(_platform(config, leaf.platform)),
        created=config.get("created"),
        config=run_config(config.get("config", {})),
    )


def _platform(config: Document, listed: Platform) -> Platform:
    """The config's word counts; where it has none, that of the index."""
    platform = Platform.of(config).completed(listed)
    for part, value in zip(("os", "architecture"), platform):
        if not value:
            raise UnsupportedError(
                f"the image does not say for which machine it is: its config has no {part}",
                "source",
                "Build it again with a tool that notes the platform, as linux/amd64.",
            )
    return platform


def _refuse_others(document: Document) -> None:
    """:raises NoImage: a manifest of something else.

    Its types tell, unread: what is not meant for us need not follow a schema that we know.
    """
    if "manifests" in document:
        raise BadArchive("a document claims to be both an index and a manifest")
    kind, config, layers = (document.get(key) for key in ("mediaType", "config", "layers"))
    if kind not in (None, *MANIFEST_TYPES):
        raise NoImage(str(kind))
    if isinstance(config, dict) and config.get("mediaType") not in (None, *CONFIG_TYPES):
        raise NoImage(str(document.get("artifactType") or config["mediaType"]))
    kinds = [layer.get("mediaType") for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []
    if kinds and not any(kind is None or str(kind).startswith((OCI_LAYER, DOCKER_LAYER)) for kind in kinds):
        raise NoImage(str(kinds[0]))


def _check_layers(layout: Layout, layers: t.Iterable[Document]) -> None:
    """:raises UnsupportedError: a layer is no tar. :raises MissingBlob: it is not there."""
    for layer in layers:
        kind = layer.get("mediaType")
        if kind not in (None, *LAYER_TYPES):
            raise UnsupportedError(f"a layer is of the unknown type '{kind}'", "source", PLAIN_LAYERS)
        if not layout.has(layer["digest"]):
            raise MissingBlob(f"layer {layer['digest']} of the image was not saved with it", SAVE_AGAIN)
