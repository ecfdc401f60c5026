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
from ansible_collections.cocoon.microvm.plugins.module_utils._images import oci

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


class Memory:
    """A layout in memory."""

    def __init__(self) -> None:
        self.documents: dict[str, bytes] = {}
        self.top: dict[str, Any] = {"schemaVersion": 2, "manifests": []}

    def index(self) -> bytes:
        return json.dumps(self.top).encode()

    def document(self, digest: str) -> bytes:
        return self.documents[digest]

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
        return self.put(manifest, oci.MANIFEST_TYPES[0])

    def add(self, descriptor: dict[str, Any], tag: str | None = None, platform: str | None = None) -> None:
        extra: dict[str, Any] = {"annotations": {oci.REF_NAME: tag}} if tag else {}
        if platform:
            system, _slash, machine = platform.partition("/")
            extra["platform"] = {"os": system, "architecture": machine}
        self.top["manifests"].append({**descriptor, **extra})


def own_machine() -> str:
    return oci.MACHINES[os.uname().machine]


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
        (layout.put({"is": "an attestation"}, oci.MANIFEST_TYPES[0]), "unknown/unknown"),
    ):
        system, _slash, machine = platform.partition("/")
        inner.append({**descriptor, "platform": {"os": system, "architecture": machine}})
    layout.add(layout.put({"schemaVersion": 2, "manifests": inner}, oci.INDEX_TYPES[0]), "v1")
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
    "no layers": ({"layers": []}, "not a valid OCI manifest: layers"),
    "a layer without digest": ({"layers": [{"mediaType": LAYER, "size": 1}]}, "'digest' is a required property"),
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
    "no config": ({"drop": "config"}, "'config' is a required property"),
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
        ({"rootfs": {"type": "layers"}}, "'diff_ids' is a required property"),
        ({"architecture": 5}, "not a valid OCI config: architecture"),
        ({"rootfs": "x"}, "not a valid OCI config: rootfs"),
        ({"rootfs": {"type": "layers", "diff_ids": ["md5:" + "0" * 32]}}, "rootfs/diff_ids/0: .* does not match"),
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
        descriptor = layout.put({"schemaVersion": 2, "manifests": [descriptor]}, oci.INDEX_TYPES[0])
    layout.add(descriptor)
    with pytest.raises(CocoonError, match="nested too deep"):
        oci.select(layout, None)


def test_a_layout_does_not_lead_out_of_its_directory(tmp_path: pathlib.Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (tmp_path / "layout").mkdir()
    (tmp_path / "layout" / "index.json").symlink_to(secret)
    with pytest.raises(CocoonError, match=r"index\.json in the layout cannot be read"):
        oci.DirectoryLayout(str(tmp_path / "layout")).index()


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
        archive = oci.ArchiveLayout(stream, str(path))
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
    "config", [{"Cmd": "serve"}, {"Cmd": ["a\0b"]}, {"Env": [1]}, {"User": "a\0"}, {"WorkingDir": "\ud800"}, []]
)
def test_nothing_to_run_that_a_guest_could_misread(config: Any) -> None:
    layout = Memory()
    layout.add(layout.image(own_machine(), config={"config": config}))
    with pytest.raises(CocoonError, match="not a valid OCI config"):
        oci.select(layout, None)
