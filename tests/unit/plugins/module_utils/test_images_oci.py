# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""OCI layouts: choice of the image, and documents that lie."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pathlib
import tarfile
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import documents, layouts, oci, platforms

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


class Memory:
    """A layout in memory."""

    def __init__(self) -> None:
        self.documents: dict[str, bytes] = {}
        self.lost: set[str] = set()
        self.top: dict[str, Any] = {"schemaVersion": 2, "manifests": []}

    def index(self) -> bytes:
        return json.dumps(self.top).encode()

    def document(self, digest: str) -> bytes:
        if digest in self.lost:
            raise documents.MissingBlob(f"{digest} is not there")
        return self.documents[digest]

    def has(self, digest: str) -> bool:
        return digest not in self.lost

    def blob(self, digest: str) -> Any:
        return contextlib.nullcontext(io.BytesIO(self.documents[digest]))

    def put(self, document: Any, media: str) -> dict[str, Any]:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.documents[digest] = data
        return {"mediaType": media, "digest": digest, "size": len(data)}

    def image(self, machine: str = "amd64", system: str = "linux", seed: str = "", **changes: Any) -> dict[str, Any]:
        config = {
            "architecture": machine,
            "os": system,
            "created": "2026-01-01T00:00:00Z",
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]},
            **changes.pop("config", {}),
        }
        manifest = {
            "schemaVersion": 2,
            "config": self.put(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [{"mediaType": LAYER, "digest": "sha256:" + "1" * 64, "size": 5}],
            "annotations": {"seed": seed},
            **changes,
        }
        manifest.pop(changes.pop("drop", ""), None)
        return self.put(manifest, documents.MANIFEST_TYPES[0])

    def add(
        self,
        descriptor: dict[str, Any],
        tag: str | None = None,
        platform: str | None = None,
        containerd: str | None = None,
    ) -> None:
        names = {documents.REF_NAME: tag, documents.FULL_NAME: containerd}
        extra: dict[str, Any] = {"annotations": {key: name for key, name in names.items() if name}}
        if platform:
            system, _slash, machine = platform.partition("/")
            extra["platform"] = {"os": system, "architecture": machine}
        self.top["manifests"].append({**descriptor, **extra})


def own_machine() -> str:
    return platforms.MACHINES[os.uname().machine]


def other_machine() -> str:
    return "s390x" if own_machine() != "s390x" else "amd64"


def test_one_image() -> None:
    layout = Memory()
    descriptor = layout.image(own_machine())
    layout.add(descriptor, "latest")
    manifest = oci.select(layout, None)
    assert manifest.digest == descriptor["digest"][7:]
    assert manifest.layers == [("1" * 64, 5)] and manifest.plain == ["0" * 64]
    assert manifest.platform == f"linux/{own_machine()}"
    assert manifest.created == "2026-01-01T00:00:00Z"


def test_the_image_for_this_host_is_taken_from_an_index() -> None:
    layout = Memory()
    mine = layout.image(own_machine())
    inner = []
    for descriptor, platform in (
        (layout.image(other_machine()), f"linux/{other_machine()}"),
        (mine, f"linux/{own_machine()}"),
        (layout.put({"is": "an attestation"}, documents.MANIFEST_TYPES[0]), "unknown/unknown"),
    ):
        system, _slash, machine = platform.partition("/")
        inner.append({**descriptor, "platform": {"os": system, "architecture": machine}})
    layout.add(layout.put({"schemaVersion": 2, "manifests": inner}, documents.INDEX_TYPES[0]), "v1")
    assert oci.select(layout, None).digest == mine["digest"][7:]
    assert oci.select(layout, "v1").digest == mine["digest"][7:]


def test_several_images_need_a_tag() -> None:
    layout = Memory()
    first, second = layout.image(own_machine(), seed="a"), layout.image(own_machine(), seed="b")
    layout.add(first, "one")
    layout.add(second, "two")
    with pytest.raises(CocoonError, match="tag: the layout has several images. Choose one of: one, two"):
        oci.select(layout, None)
    assert oci.select(layout, "two").digest == second["digest"][7:]
    with pytest.raises(CocoonError, match="tag: the layout has no image 'three'. It has: one, two"):
        oci.select(layout, "three")


def test_only_other_machines() -> None:
    layout = Memory()
    layout.add(layout.image(other_machine()), platform=f"linux/{other_machine()}")
    with pytest.raises(CocoonError, match=f"no image for linux/{own_machine()}. It has: linux/{other_machine()}"):
        oci.select(layout, None)


def test_the_config_counts_where_the_index_is_silent() -> None:
    layout = Memory()
    layout.add(layout.image(other_machine()))
    with pytest.raises(CocoonError, match=f"It has: linux/{other_machine()}"):
        oci.select(layout, None)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no layers": ({"layers": []}, "the image has no layers. There is nothing in it to boot"),
    "a layer without digest": ({"layers": [{"mediaType": LAYER, "size": 1}]}, "digest is missing"),
    "a digest that is a path": (
        {"layers": [{"mediaType": LAYER, "digest": "sha256:../../../etc/passwd", "size": 1}]},
        "does not match",
    ),
    "another hash": ({"layers": [{"mediaType": LAYER, "digest": "sha512:" + "0" * 128, "size": 1}]}, "does not match"),
    "a size below zero": (
        {"layers": [{"mediaType": LAYER, "digest": "sha256:" + "1" * 64, "size": -1}]},
        "not a valid OCI manifest",
    ),
    "encrypted": (
        {"layers": [{"mediaType": LAYER + "+encrypted", "digest": "sha256:" + "1" * 64, "size": 1}]},
        "unknown type",
    ),
    "more layers than the config says": (
        {"layers": [{"mediaType": LAYER, "digest": "sha256:" + "1" * 64, "size": 1}] * 2},
        "disagree on the number of layers",
    ),
    "too many layers": (
        {"layers": [{"mediaType": LAYER, "digest": "sha256:" + "1" * 64, "size": 1}] * 200},
        "not a valid OCI manifest: layers",
    ),
    "no config": ({"drop": "config"}, "config is missing"),
    "another version": ({"schemaVersion": 1}, "not a valid OCI manifest: schemaVersion"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_manifests_that_lie(name: str) -> None:
    changes, message = BROKEN[name]
    layout = Memory()
    layout.add(layout.image(own_machine(), **changes))
    with pytest.raises(CocoonError, match=message):
        oci.select(layout, None)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rootfs": {"type": "layers"}}, "diff_ids is missing"),
        ({"architecture": 5}, "not a valid OCI config: architecture"),
        ({"rootfs": "x"}, "not a valid OCI config: rootfs"),
        ({"rootfs": {"type": "layers", "diff_ids": ["md5:" + "0" * 32]}}, "rootfs.diff_ids.0: does not match"),
    ],
)
def test_configs_that_lie(config: dict[str, Any], message: str) -> None:
    layout = Memory()
    layout.add(layout.image(own_machine(), config=config))
    with pytest.raises(CocoonError, match=message):
        oci.select(layout, None)


def test_a_layer_is_one_thing() -> None:
    """Named twice, it has one size and one digest without compression."""
    layer = {"mediaType": LAYER, "digest": "sha256:" + "1" * 64, "size": 5}
    for other, diff_ids, good in ((5, "00", True), (5, "02", False), (6, "00", False)):
        layout = Memory()
        rootfs = {"type": "layers", "diff_ids": ["sha256:" + digit * 64 for digit in diff_ids]}
        layout.add(layout.image(own_machine(), config={"rootfs": rootfs}, layers=[layer, {**layer, "size": other}]))
        with contextlib.nullcontext() if good else pytest.raises(CocoonError, match="two things of one layer"):
            assert len(oci.select(layout, None).layers) == 2


@pytest.mark.parametrize(
    "top", [b"", b"[]", b"{}", b'{"schemaVersion": 2, "manifests": {}}', b'{"schemaVersion": 2, "manifests": [1]}']
)
def test_indexes_that_lie(top: bytes) -> None:
    layout = Memory()
    layout.index = lambda: top  # type: ignore[method-assign]
    with pytest.raises(CocoonError, match="index.json"):
        oci.select(layout, None)


def test_digests_and_sizes_are_verified() -> None:
    layout = Memory()
    descriptor = layout.image(own_machine())
    layout.add({**descriptor, "size": descriptor["size"] + 1})
    with pytest.raises(CocoonError, match="does not have that digest"):
        oci.select(layout, None)
    layout.top["manifests"] = [descriptor]
    layout.documents[descriptor["digest"]] = layout.documents[descriptor["digest"]].replace(b'"seed"', b'"need"')
    with pytest.raises(CocoonError, match="does not have that digest"):
        oci.select(layout, None)


def test_indexes_are_not_followed_for_ever() -> None:
    layout = Memory()
    descriptor = layout.image(own_machine())
    for _level in range(6):
        descriptor = layout.put({"schemaVersion": 2, "manifests": [descriptor]}, documents.INDEX_TYPES[0])
    layout.add(descriptor)
    with pytest.raises(CocoonError, match="nested too deep"):
        oci.select(layout, None)


def test_a_layout_does_not_lead_out_of_its_directory(tmp_path: pathlib.Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (tmp_path / "layout").mkdir()
    (tmp_path / "layout" / "index.json").symlink_to(secret)
    with pytest.raises(CocoonError, match=r"index\.json in the layout cannot be read"):
        layouts.DirectoryLayout(str(tmp_path / "layout")).index()


def test_an_archive_is_read_in_place(tmp_path: pathlib.Path) -> None:
    layout = Memory()
    layer = layout.put(b"x" * 100_000, LAYER)
    layout.add(layout.image(own_machine(), layers=[layer]))
    path = tmp_path / "archive"
    with tarfile.open(path, "w") as target:
        contents = {"blobs/" + digest.replace(":", "/"): data for digest, data in layout.documents.items()}
        for name, data in {**contents, "index.json": layout.index()}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))
    with path.open("rb") as stream:
        archive = layouts.ArchiveLayout(stream, str(path))
    manifest = oci.select(archive, None)
    assert manifest.layers == [(layer["digest"][7:], 100_000)]
    with archive.blob(layer["digest"]) as blob:
        assert blob.read() == b"x" * 100_000
    with pytest.raises(CocoonError, match="is not in the archive"), archive.blob("sha256:" + "2" * 64):
        pass


def test_what_an_image_would_run() -> None:
    layout = Memory()
    config = {"Cmd": ["serve", "a b"], "Env": None, "User": "app", "Labels": {"x": "y"}}
    layout.add(layout.image(own_machine(), config={"config": config}))
    assert oci.select(layout, None).config == {
        **{"entrypoint": [], "cmd": ["serve", "a b"], "env": []},
        **{"user": "app", "working_dir": "", "stop_signal": ""},
    }
    layout = Memory()
    layout.add(layout.image(own_machine()))
    assert oci.select(layout, None).config["cmd"] == []


@pytest.mark.parametrize(
    "config", [{"Cmd": "serve"}, {"Cmd": ["a\0b"]}, {"Env": [1]}, {"User": "a\0"}, {"WorkingDir": "\ud800"}, ["x"]]
)
def test_nothing_to_run_that_a_guest_could_misread(config: Any) -> None:
    layout = Memory()
    layout.add(layout.image(own_machine(), config={"config": config}))
    with pytest.raises(CocoonError, match="not a valid OCI config"):
        oci.select(layout, None)


def test_images_of_one_tag_are_told_apart_by_their_whole_names() -> None:
    layout = Memory()
    made = {}
    for name in ("docker.io/library/nginx:latest", "quay.io/team/app:latest", "localhost/own:latest"):
        made[name] = layout.image(own_machine(), seed=name)
        layout.add(made[name], "latest", containerd=name)
    for tag, name in (
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:latest", "docker.io/library/nginx:latest"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("docker.io/library/nginx:latest", "docker.io/library/nginx:latest"),
        ("quay.io/team/app:latest", "quay.io/team/app:latest"),
        ("own:latest", "localhost/own:latest"),
        (made["localhost/own:latest"]["digest"], "localhost/own:latest"),
    ):
        assert oci.select(layout, tag).digest == made[name]["digest"][7:], tag
    several = "Choose one of: docker.io/library/nginx:latest, localhost/own:latest, quay.io/team/app:latest"
    with pytest.raises(CocoonError, match=f"tag: the layout has several images 'latest'. {several}"):
        oci.select(layout, "latest")
    with pytest.raises(CocoonError, match="has no image 'team/app:latest'. It has: docker.io/library/nginx:latest, "):
        oci.select(layout, "team/app:latest")


def test_a_tag_is_found_behind_a_whole_name() -> None:
    layout = Memory()
    first, second = layout.image(own_machine(), seed="a"), layout.image(own_machine(), seed="b")
    layout.add(first, "ghcr.io/team/app:v1")
    layout.add(second, containerd="ghcr.io/team/app:v2")
    assert oci.select(layout, "v1").digest == first["digest"][7:]
    assert oci.select(layout, "v2").digest == second["digest"][7:]


def test_names_that_are_the_same_need_a_digest() -> None:
    layout = Memory()
    digests = []
    for name in ("nginx:latest", "docker.io/library/nginx:latest"):
        layout.add(layout.image(own_machine(), seed=name), name)
        digests.append(layout.top["manifests"][-1]["digest"])
    for tag in (None, "nginx:latest", "latest"):
        with pytest.raises(CocoonError, match="several images") as caught:
            oci.select(layout, tag)
        assert all(digest in str(caught.value) for digest in digests)
    assert [oci.select(layout, digest).digest for digest in digests] == [digest[7:] for digest in digests]


def test_one_image_of_many_names() -> None:
    layout = Memory()
    image = layout.image(own_machine())
    for name in ("app:v1", "app:latest"):
        layout.add(image, name)
    assert oci.select(layout, None).digest == oci.select(layout, "app").digest == image["digest"][7:]


LEVELS = {
    "the newest first": (["v3", "v2", None], "v2"),
    "the plain one last": (["v4", "v3", None], None),
    "the plain one first": ([None, "v2", "v3"], "v2"),
    "v1 and v2": (["v1", "v2"], "v2"),
    "one": (["v2"], "v2"),
}


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("name", LEVELS)
def test_the_best_variant_that_every_vm_runs(name: str, nested: bool) -> None:
    variants, best = LEVELS[name]
    layout = Memory()
    items = {variant: layout.image("amd64", seed=str(variant)) for variant in variants}
    listed = [
        {**item, "platform": {"os": "linux", "architecture": "amd64", **({"variant": variant} if variant else {})}}
        for variant, item in items.items()
    ]
    if nested:
        layout.add(layout.put({"schemaVersion": 2, "manifests": listed}, documents.INDEX_TYPES[0]), "v1")
    else:
        layout.top["manifests"] = listed
    chosen = oci.select(layout, None, "linux/amd64")
    assert chosen.digest == items[best]["digest"][7:]
    assert chosen.platform == "/".join(["linux/amd64", *([best] if best else [])])
    newest = max(variants, key=str)
    if newest and newest > "v2":
        assert oci.select(layout, None, f"linux/amd64/{newest}").digest == items[newest]["digest"][7:]


def test_variants_that_no_vm_is_sure_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platforms, "host_platform", lambda: "linux/amd64")
    layout = Memory()
    image = layout.image("amd64", config={"variant": "v3"})
    layout.add(image)
    message = "no image for linux/amd64. It has: linux/amd64/v3. A VM's CPU has x86-64-v2 .*say so with platform"
    with pytest.raises(CocoonError, match=message):
        oci.select(layout, None)
    assert oci.select(layout, None, "linux/amd64/v3").digest == image["digest"][7:]


def artifacts(layout: Memory) -> dict[str, dict[str, Any]]:
    """What tools put beside images."""
    signature = {"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": f"sha256:{'5' * 64}"}
    statement = {"mediaType": "application/vnd.in-toto+json", "digest": f"sha256:{'6' * 64}", "size": 9}
    empty = layout.put({}, "application/vnd.oci.empty.v1+json")
    chart = {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": f"sha512:{'7' * 128}", "size": 1}
    mine = {"os": "linux", "architecture": own_machine()}
    blank = {"architecture": "", "os": "", "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "5" * 64]}}
    unknown = {"architecture": "unknown", "os": "unknown", "rootfs": {"diff_ids": None}, "config": None}
    sbom = layout.put(
        {"schemaVersion": 2, "artifactType": "application/spdx+json", "config": empty, "layers": [statement]},
        documents.MANIFEST_TYPES[0],
    )
    gone = {"mediaType": documents.MANIFEST_TYPES[0], "digest": f"sha256:{'8' * 64}", "size": 1}
    layout.lost.add(gone["digest"])
    about = {"vnd.docker.reference.type": "attestation-manifest"}
    return {
        "a signature of cosign": layout.image(config=blank, layers=[{**signature, "size": 7}]),
        "an attestation without a platform": layout.image(config=unknown, layers=[statement]),
        "an attestation of an unknown platform": {
            **layout.image(config=unknown, layers=[statement], seed="x"),
            "platform": {"os": "unknown", "architecture": "unknown"},
        },
        "an attestation that says so": {**gone, "annotations": about, "platform": mine},
        "an artifact": sbom,
        "an artifact for this platform": {**sbom, "platform": mine},
        "a digest of another kind": chart,
        "a chart": layout.put(
            {"schemaVersion": 2, "config": chart, "layers": [chart]},
            documents.MANIFEST_TYPES[0],
        ),
        "a manifest of another type": {**gone, "mediaType": "application/vnd.oci.artifact.manifest.v1+json"},
        "a manifest that was not saved": gone,
        "a manifest for this platform that was not saved": {**gone, "platform": mine},
        "an index that was not saved": {**gone, "mediaType": documents.INDEX_TYPES[0]},
        "an image that is not whole": layout.image(own_machine(), layers=[{**statement, "mediaType": LAYER}], seed="y"),
        "a descriptor that is none": {"digest": 5},
        "nothing at all": {},
    }


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", artifacts(Memory()))
def test_what_lies_beside_an_image(name: str, first: bool, nested: bool) -> None:
    layout = Memory()
    beside = artifacts(layout)[name]
    layout.lost.add(f"sha256:{'6' * 64}")
    for platform in ({}, {"platform": {"os": "linux", "architecture": own_machine()}}):
        image = {**layout.image(own_machine()), **platform}
        items = [beside, image] if first else [image, beside]
        if nested:
            items = [layout.put({"schemaVersion": 2, "manifests": items}, documents.INDEX_TYPES[1])]
        layout.top["manifests"] = items
        assert oci.select(layout, None).digest == image["digest"][7:]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "a signature of cosign",
            "is no image, but 'application/vnd.dev.cosign.simplesigning.v1.json'. Give the image",
        ),
        ("an artifact", "is no image, but 'application/spdx.json'"),
        ("a chart", "is no image, but 'application/vnd.cncf.helm.config.v1.json'"),
        ("a manifest that was not saved", "sha256:8+ is not there"),
        ("an image that is not whole", "layer sha256:6+ of the image was not saved with it. .* Save the image again"),
        ("a descriptor that is none", "not a valid OCI descriptor"),
        ("an attestation of an unknown platform", "no image for .* It has: nothing"),
    ],
)
def test_nothing_but_what_lies_beside_images(name: str, message: str) -> None:
    layout = Memory()
    layout.add(artifacts(layout)[name])
    layout.lost.add(f"sha256:{'6' * 64}")
    with pytest.raises(CocoonError, match=message) as caught:
        oci.select(layout, None)
    assert str(caught.value).startswith("source: the layout") and caught.value.remedy


def test_the_chosen_manifest_is_judged() -> None:
    """A damaged image is not passed over for one that runs less well."""
    layout = Memory()
    good = layout.image("amd64", seed="plain")
    bad = layout.image("amd64", seed="v2")
    layout.documents[bad["digest"]] += b" "
    layout.top["manifests"] = [
        {**bad, "platform": {"os": "linux", "architecture": "amd64", "variant": "v2"}},
        {**good, "platform": {"os": "linux", "architecture": "amd64"}},
    ]
    with pytest.raises(CocoonError, match=r"document sha256:\w+ does not have that digest"):
        oci.select(layout, None, "linux/amd64")
    layout.top["manifests"].reverse()
    layout.top["manifests"][1]["platform"]["variant"] = "v3"
    assert oci.select(layout, None, "linux/amd64").digest == good["digest"][7:]


def test_a_document_that_is_two_things() -> None:
    layout = Memory()
    layout.add(layout.image(own_machine(), manifests=[{"digest": 1}]))
    with pytest.raises(CocoonError, match="claims to be both an index and a manifest"):
        oci.select(layout, None)


@pytest.mark.parametrize("nothing", [None, "", [], {}])
@pytest.mark.parametrize("where", ["descriptor", "manifest", "layer", "config", "run", "rootfs"])
def test_what_is_null_or_empty_is_absent(where: str, nothing: Any) -> None:
    fields = {
        "descriptor": ["annotations", "platform", "mediaType", "urls", "data", "artifactType"],
        "manifest": ["annotations", "mediaType", "subject", "artifactType"],
        "layer": ["annotations", "mediaType", "urls", "platform"],
        "config": ["created", "variant", "config", "history", "author", "os.features"],
        "run": ["Cmd", "Entrypoint", "Env", "User", "WorkingDir", "StopSignal", "Labels", "Volumes"],
        "rootfs": ["type"],
    }
    empty = dict.fromkeys(fields[where], nothing)
    layout = Memory()
    layer = {"mediaType": LAYER, "digest": "sha256:" + "1" * 64, "size": 5}
    config: dict[str, Any] = {"created": None}
    if where in ("config", "run"):
        config.update(empty if where == "config" else {"config": empty})
    if where == "rootfs":
        config["rootfs"] = {"diff_ids": ["sha256:" + "0" * 64], **empty}
    changes = {"layers": [{**layer, **(empty if where == "layer" else {})}], **(empty if where == "manifest" else {})}
    image = {**layout.image(own_machine(), config=config, **changes), **(empty if where == "descriptor" else {})}
    layout.top["manifests"] = [image]
    layout.top.update(annotations=nothing, mediaType=nothing, subject=nothing)
    chosen = oci.select(layout, None)
    assert chosen.layers == [("1" * 64, 5)] and chosen.created is None
    assert chosen.config == {
        **{"entrypoint": [], "cmd": [], "env": []},
        **{"user": "", "working_dir": "", "stop_signal": ""},
    }


@pytest.mark.parametrize("nothing", [None, "", [], {}])
@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("layers", "the image has no layers. There is nothing in it to boot"),
        ("architecture", "does not say for which machine it is: its config has no architecture. Build it again"),
        ("os", "its config has no os. Build it again"),
    ],
)
def test_an_image_that_lacks_what_it_needs(field: str, message: str, nothing: Any) -> None:
    layout = Memory()
    change = {field: nothing} if field == "layers" else {"config": {field: nothing}}
    image = layout.image(own_machine(), **change)
    layout.add(image)
    with pytest.raises(CocoonError, match=message):
        oci.select(layout, None)
    if field != "layers":  # the index may say it instead
        layout.top["manifests"] = [{**image, "platform": {"os": "linux", "architecture": own_machine()}}]
        assert oci.select(layout, None).platform == f"linux/{own_machine()}"


def test_a_layout_without_anything() -> None:
    layout = Memory()
    for nothing in (None, [], {}):
        layout.top["manifests"] = nothing
        with pytest.raises(CocoonError, match="the layout: its index.json lists no images"):
            oci.select(layout, None)


def test_types_of_layers() -> None:
    docker = "application/vnd.docker.image.rootfs"
    for kind in (
        *(f"{docker}.{form}.tar{packed}" for form in ("diff", "foreign.diff") for packed in ("", ".gzip", ".zstd")),
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    ):
        layout = Memory()
        layout.add(layout.image(own_machine(), layers=[{"mediaType": kind, "digest": "sha256:" + "1" * 64, "size": 5}]))
        assert oci.select(layout, None).layers == [("1" * 64, 5)]
