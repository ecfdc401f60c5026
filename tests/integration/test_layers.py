# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be in a layer, converted both ways, mounted and compared."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import converging, erofs
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._images.wanted import Wanted
from ansible_collections.cocoon.microvm.plugins.module_utils._moving import image as moving
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Options, Run
from ansible_collections.cocoon.microvm.tests.integration.support.layers import (
    DIR,
    LNK,
    REG,
    SYM,
    guest_portrait,
    layer,
    layer_blobs,
    make_layout,
    mounted,
    overlay_portrait,
    umoci_portrait,
    without_links,
)

Import = Callable[..., converging.Outcome]


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

    def take(origin: Path, name: str = "web", check: bool = False, **options: Any) -> converging.Outcome:
        return converging.converge(paths, Wanted(name, source=str(origin), **options), check)

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


def owned(uid: int, mode: int, **headers: str) -> dict[str, Any]:
    return {"uid": uid, "gid": uid + 1, "mode": mode, **pax(**headers)}


NOBODY = 2**32 - 1
RIGHTS = [(1, 7, NOBODY), (2, 6, 1000), (4, 5, NOBODY), (16, 7, NOBODY), (32, 0, NOBODY)]
ACL = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in RIGHTS)
BASE: list[tuple[Any, ...]] = [
    ("tmp/", DIR, b"", {"mode": 0o1777}),
    ("home/", DIR, b""),
    ("home/app/", DIR, b"", owned(1000, 0o700, SCHILY__xattr__user__note="mine")),
    ("home/app/.config/", DIR, b"", owned(1000, 0o750)),
    ("home/app/.config/deep/", DIR, b"", owned(100_000, 0o710)),
    ("home/app/file", REG, b"x"),
    ("var/", DIR, b""),
    ("var/mail/", DIR, b"", owned(8, 0o2775)),
    ("usr/lib/", DIR, b"", owned(5, 0o711)),
    ("lib", SYM, "usr/lib", {"mode": 0o777}),
    ("caf\udce9/", DIR, b"", owned(7, 0o700)),
    ("plain/", DIR, b""),
    ("only/implied", REG, b"x"),
]
# Whoever has the image unpacked one layer upon the other sees the same, but for what is said of each.
IMPLIED: dict[str, list[list[tuple[Any, ...]]]] = {
    "folders": [BASE, [("tmp/x", REG, b""), ("home/app/y", REG, b""), ("caf\udce9/z", REG, b"")]],
    "nested": [BASE, [("home/app/.config/deep/new/newer/x", REG, b"")]],
    "twice": [BASE, [("home/app/y", REG, b"")], [("home/app/z", REG, b"")], [("tmp/x", REG, b"")]],
    "implied below as well": [BASE, [("only/more", REG, b"")], [("new/x", REG, b"")], [("new/y", REG, b"")]],
    "a removal alone": [BASE, [("home/app/.wh.file", REG, b"")]],
    "said above": [BASE, [("tmp/x", REG, b"")], [("tmp/", DIR, b"", owned(3, 0o750))], [("tmp/y", REG, b"")]],
    "said in between": [BASE, [("tmp/", DIR, b"", owned(3, 0o750))], [("tmp/x", REG, b"")]],
    "said above only": [[("a/b/x", REG, b"")], [("a/b/y", REG, b"")], [("a/", DIR, b"", owned(3, 0o750))]],
    "said later in the layer": [BASE, [("tmp/x", REG, b""), ("tmp/", DIR, b"", owned(3, 0o750))]],
    "opaque": [BASE, [("home/app/.wh..wh..opq", REG, b""), ("home/app/new", REG, b"")]],
    "below an opaque one": [BASE, [("home/", DIR, b""), ("home/.wh..wh..opq", REG, b""), ("home/app/x", REG, b"")]],
    "opaque in between": [BASE, [("home/.wh..wh..opq", REG, b"")], [("home/app/x", REG, b"")]],
    "removed": [BASE, [(".wh.tmp", REG, b""), ("home/.wh.app", REG, b"")]],
    "removed in between": [BASE, [("home/.wh.app", REG, b"")], [("home/app/.config/x", REG, b"")]],
    "removed and new": [BASE, [("home/.wh.app", REG, b""), ("home/app/x", REG, b"")], [("home/app/y", REG, b"")]],
    "removed above": [BASE, [("home/app/y", REG, b"")], [("home/.wh.app", REG, b"")]],
    "replaced above": [BASE, [("home/app/y", REG, b"")], [("home/.wh.app", REG, b""), ("home/app", REG, b"x")]],
    "a long way": [BASE, *([(f"tmp/{number}", REG, b"")] for number in range(6))],
    "none": [BASE, [("plain/x", REG, b""), ("home/x", REG, b""), ("new/x", REG, b"")]],
}
COCOON = ",index=on,redirect_dir=on,metacopy=on,xino=on"


@pytest.mark.parametrize("what", IMPLIED)
def test_implied_folders_as_umoci_sees_them(take: Import, paths: Paths, tmp_path: Path, what: str) -> None:
    """The guest's own layer has them as they should be, whoever's initramfs puts it on top."""
    layout = make_layout(tmp_path / "layout", *(layer(*entries) for entries in IMPLIED[what]))
    image = take(layout).image
    store = Store.load(paths)
    assert image and store and "folders" not in image
    expected = umoci_portrait(layout, tmp_path)
    for options in ("", COCOON):
        seen = without_links(guest_portrait(store, image, tmp_path, options))
        assert {path: seen[path] for path in seen if path != "."} == {
            path: expected[path] for path in expected if path != "."
        }
    templates = os.listdir(images.directory(paths, "templates"))
    assert [bool(re.match(r"cow-[0-9a-f]{64}-[0-9a-f]{16}-67108864\.raw$", name)) for name in templates] == [
        what not in ("none", "removed", "removed above", "replaced above", "said above only", "implied below as well")
        and what not in ("below an opaque one", "opaque in between", "removed in between")
        and what not in ("removed and new", "said later in the layer")
    ]
    take(layout, state="absent")
    assert os.listdir(images.directory(paths, "templates")) == [name for name in templates if len(name) < 30]


def test_implied_folders_with_lists_of_access(take: Import, paths: Paths, tmp_path: Path) -> None:
    """umoci does not give folders back what they had of these."""
    value = ACL.decode("utf-8", "surrogateescape")
    acl = {f"SCHILY.xattr.system.posix_acl_{kind}": value for kind in ("access", "default")}
    acl["SCHILY.xattr.trusted.overlay.opaque"] = "y"
    bottom = layer(("srv/", DIR, b"", {"mode": 0o770, "pax_headers": acl}), ("srv/old", REG, b""))
    image = take(make_layout(tmp_path / "layout", bottom, layer(("srv/x", REG, b"")))).image
    store = Store.load(paths)
    assert image and store
    seen = guest_portrait(store, image, tmp_path)
    assert seen["srv"][:4] == [stat.S_IFDIR, 0o770, 0, 0] and {"srv/old", "srv/x"} <= set(seen)
    assert seen["srv"][-1] == {"system.posix_acl_access": ACL, "system.posix_acl_default": ACL}


@pytest.mark.parametrize(
    ("links", "mode"),
    [
        ([("lib", SYM, "usr/lib")], 0o711),
        ([("lib", SYM, "/usr/lib")], 0o711),
        ([("lib", SYM, "../a/../usr/./lib"), ("a/", DIR, b"")], 0o711),
        ([("lib", SYM, "b"), ("b", SYM, "c"), ("c", SYM, "usr//lib/")], 0o711),
        ([("lib", SYM, "u/lib"), ("u", SYM, "usr")], 0o711),
        ([("lib", SYM, "usr/lib/..")], 0o755),
        ([("lib", SYM, "/")], 0o755),
        ([("lib", SYM, "lib")], 0o755),
        ([("lib", SYM, "b"), ("b", SYM, "lib/lib")], 0o755),
        ([("lib", SYM, "nowhere")], 0o755),
        ([("lib", SYM, "usr/file")], 0o755),
    ],
)
def test_a_folder_in_place_of_a_link(
    take: Import, paths: Paths, tmp_path: Path, links: list[tuple[Any, ...]], mode: int
) -> None:
    """As with Docker and containerd it replaces the link, and as with the latter it looks like what that led to."""
    bottom = layer(("usr/lib/", DIR, b"", owned(5, 0o711)), ("usr/file", REG, b""), *links)
    image = take(make_layout(tmp_path / "layout", bottom, layer(("lib/x", REG, b"")), layer(("lib/y", REG, b"")))).image
    store = Store.load(paths)
    assert image and store
    seen = guest_portrait(store, image, tmp_path)
    assert seen["lib"][:2] == [stat.S_IFDIR, mode] and {"lib/x", "lib/y"} <= set(seen)
    assert seen["lib"][2] == (5 if mode == 0o711 else 0)


def test_a_folder_in_place_of_a_file(take: Import, paths: Paths, tmp_path: Path) -> None:
    """That is a new one, whatever was there before the file."""
    layers = [BASE, [("home/.wh.app", REG, b""), ("home/app", REG, b"x")], [("home/app/y", REG, b"")]]
    image = take(make_layout(tmp_path / "layout", *(layer(*entries) for entries in layers))).image
    store = Store.load(paths)
    assert image and store
    seen = guest_portrait(store, image, tmp_path)
    assert seen["home/app"] == [stat.S_IFDIR, 0o755, 0, 0, {}] and "home/app/file" not in seen


def test_a_layer_of_an_older_version_is_looked_at_again(take: Import, paths: Paths, tmp_path: Path) -> None:
    """What was learnt of it then does not say which folders it implies."""
    bottom, top = layer(("tmp/", DIR, b"", {"mode": 0o1777})), layer(("tmp/x", REG, b""))
    old = take(make_layout(tmp_path / "old", top), "old").image
    store = Store.load(paths)
    assert old and store
    about = images.blob_path(store, old["layers"][0], "json")
    known = json.loads(Path(about).read_text(encoding="utf-8"))
    del known["implied"]
    Path(about).write_text(json.dumps(known), encoding="utf-8")
    blob = os.stat(images.blob_path(store, old["layers"][0])).st_ino
    image = take(make_layout(tmp_path / "layout", bottom, top)).image
    assert image and guest_portrait(store, image, tmp_path)["tmp"][1] == 0o1777
    assert os.stat(images.blob_path(store, old["layers"][0])).st_ino == blob


def test_an_image_goes_to_another_store_with_its_implied_folders(
    take: Import, paths: Paths, make_store: Callable[[], dict[str, str]], tmp_path: Path
) -> None:
    """They are found again there; what the archive says of them is looked up, and nothing outside the layers is."""
    layers = [layer(*entries) for entries in IMPLIED["folders"]]
    image = take(make_layout(tmp_path / "layout", *layers)).image
    store = Store.load(paths)
    assert image and store
    about = Path(images.blob_path(store, image["layers"][1], "json"))
    known = json.loads(about.read_text(encoding="utf-8"))
    about.write_text(json.dumps({**known, "implied": [*known["implied"], "../tmp", "/tmp"]}), encoding="utf-8")
    source, target = (Run(Store.open(place), Options()) for place in (paths, Paths.from_params(make_store())))
    told = source.options.progress.stage("moving")
    sent = moving.export(source, image["digest"], "a" * 26, None, told)
    assert moving.take(target, image["digest"], sent["path"], sent["digest"], told)
    before, after = (images.load_record(run.store, image["digest"]) for run in (source, target))
    assert before and after and before["folders"] == after["folders"] != []


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
