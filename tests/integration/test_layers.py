# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be in a layer, converted both ways, mounted and compared."""

from __future__ import annotations

import base64
import gzip
import os
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import erofs, manager
from ansible_collections.cocoon.microvm.tests.integration.support.layers import (
    DIR,
    LNK,
    REG,
    SYM,
    layer,
    layer_blobs,
    make_layout,
    mounted,
    overlay_portrait,
)

Import = Callable[..., manager.Outcome]


@pytest.fixture(name="paths")
def fixture_paths(make_store: Callable[[], dict[str, str]]) -> Paths:
    return Paths.from_params(make_store())


@pytest.fixture(name="take", params=["tree", "tar"])
def fixture_take(paths: Paths, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Import:
    """Imports an image, either way to a blob."""
    if request.param == "tar":
        monkeypatch.setattr(erofs, "MKFS", request.getfixturevalue("newer"))
    else:
        monkeypatch.setattr(erofs, "takes_tar", lambda _mkfs: False)

    def take(origin: Path, name: str = "web", check: bool = False, **options: Any) -> manager.Outcome:
        return manager.converge(paths, manager.Wanted(name, source=str(origin), **options), check)

    return take


def pax(**headers: str) -> dict[str, Any]:
    return {"pax_headers": {key.replace("__", "."): value for key, value in headers.items()}}


def test_attributes_of_every_kind(take: Import, paths: Paths, tmp_path: Path) -> None:
    """Those of bsdtar, without padding; those that no file system takes are left out, and one is told."""
    value = base64.b64encode(b"ab").decode().rstrip("=")
    bottom = layer(
        ("f", REG, b"x", pax(LIBARCHIVE__xattr__user__foo=value, SCHILY__xattr__com__apple__quarantine="q")),
        ("l", SYM, "f", pax(SCHILY__xattr__user__on="link", SCHILY__xattr__trusted__on="link")),
        ("d/", DIR, b"", pax(LIBARCHIVE__xattr__com__apple__x=value, SCHILY__xattr__user__on="folder")),
    )
    layout = make_layout(tmp_path / "layout", bottom)
    expected = ["com.apple.quarantine (as of 'f'), user.on (as of 'l'), com.apple.x (as of 'd')"]
    assert [warning.rpartition("left out: ")[2] for warning in take(layout, check=True).warnings] == expected
    outcome = take(layout)
    assert [warning.rpartition("left out: ")[2] for warning in outcome.warnings] == expected and outcome.image
    assert re.match(rf"layer sha256:[0-9a-f]{{64}} of {re.escape(str(layout))}: ", outcome.warnings[0])
    seen = overlay_portrait(paths, outcome.image, tmp_path)
    assert [seen[name][-1] for name in ("f", "l", "d")] == [
        {"user.foo": b"ab"},
        {"trusted.on": b"link"},
        {"user.on": b"folder"},
    ]
    assert take(layout).warnings == []  # nothing was imported
    # Another image with the same layer, which is in the store already, has the same left out.
    assert len(take(make_layout(tmp_path / "other", bottom, layer(("g", REG, b"y"))), "other").warnings) == 1


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout


def skippable(number: int, data: bytes) -> bytes:
    return struct.pack("<II", 0x184D2A50 + number, len(data)) + data


def test_layers_of_nothing(take: Import, paths: Paths, tmp_path: Path) -> None:
    """No bytes, an empty gzip, an empty tar: one after the other, the same ones more than once."""
    full = layer(("f", REG, b"x"))
    nothing, empty, tar = b"", gzip.compress(b"", mtime=0), bytes(1024)
    packed, hidden = gzip.compress(tar, mtime=0), skippable(7, b"nothing else")
    layers = (nothing, full, empty, tar, nothing, packed, empty, hidden)
    plain = (nothing, full, nothing, tar, nothing, tar, nothing, nothing)
    image = take(make_layout(tmp_path / "layout", *layers, plain=plain)).image
    assert image and len(image["layers"]) == len(layers)
    assert set(overlay_portrait(paths, image, tmp_path)) == {".", "f"}
    with mounted(layer_blobs(paths, image)[0], tmp_path) as place:
        assert os.listdir(place) == [] and os.stat(place).st_mode & 0o7777 == 0o755


def test_frames_that_zstd_passes_over(take: Import, paths: Paths, tmp_path: Path) -> None:
    """As pzstd begins its files; as a layer, and as the archive of a root file system."""
    plain = layer(("f", REG, b"x" * 100_000))
    data = skippable(0, b"size") + zstd(plain[:60_000]) + skippable(15, b"") + zstd(plain[60_000:])
    (tmp_path / "root.tar.zst").write_bytes(data)
    for origin in (make_layout(tmp_path / "layout", data, plain=(plain,)), tmp_path / "root.tar.zst"):
        image = take(origin, "tar" if origin.is_file() else "layout").image
        assert image and image["layers"] and overlay_portrait(paths, image, tmp_path)["f"][0]


CROSS = "Nothing of it was kept. A hard link works within one layer. "


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("b", LNK, "a")], "'b' is a hard link to 'a', which is not in the same layer before it"),
        ([("b", LNK, "d/a")], "'b' is a hard link to 'd/a', which is not in the same layer before it"),
        ([("x/b", LNK, "d"), ("d", REG, b"")], "'x/b' is a hard link to 'd', which is not in the same layer before it"),
        ([("e/", DIR, b""), ("b", LNK, "e")], "'b' is a hard link to 'e', which is a directory"),
    ],
)
def test_hard_links_out_of_a_layer(
    take: Import, tmp_path: Path, entries: list[tuple[str, bytes, Any]], message: str
) -> None:
    below = layer(("a", REG, b"x"), ("d/a", REG, b"x"))
    with pytest.raises(CocoonError, match=re.escape(message)) as caught:
        take(make_layout(tmp_path / "layout", below, layer(*entries)))
    assert (caught.value.remedy or "").startswith(CROSS)
