# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which kernel an image boots, and what layers hide of each other."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._images import findings
from ansible_collections.cocoon.microvm.plugins.module_utils._images.findings import MARKER, Inspector
from ansible_collections.cocoon.microvm.plugins.module_utils._images.tarball import BadArchive, Member


def member(path: str, kind: str = "file", data: bytes = b"", link: str = "", **xattrs: bytes) -> Member:
    return Member(path, kind, 0o644, 0, 0, len(data), link, (0, 0), dict(xattrs), data=iter((data,)))


def look(*members: Member, keep: str | None = None) -> findings.Findings:
    inspector = Inspector(keep)
    for item in members:
        for _data in inspector.look(item).data:
            pass
    return inspector.findings


def file(digest: str) -> dict[str, str]:
    return {"type": "file", "digest": digest}


def link(target: str) -> dict[str, str]:
    return {"type": "link", "target": target}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("vmlinuz", True),
        ("boot/vmlinuz-6.1.0-13-cloud-amd64", True),
        ("boot/initrd.img-6.1", True),
        ("boot/vmlinuz.old", False),
        ("initrd.img.old", False),
        ("boot/grub/vmlinuz", False),
        ("boot/initramfs.img", False),
        ("usr/lib/modules/6.1/vmlinuz", True),
        ("home/vmlinuz", False),
    ],
)
def test_which_files_matter(path: str, expected: bool) -> None:
    assert findings.interesting(path) is expected


CHOICES: list[tuple[str, dict[str, dict[str, str]], tuple[str, str] | None]] = [
    ("nothing", {}, None),
    ("a kernel alone", {"boot/vmlinuz-6": file("k")}, None),
    ("one pair", {"boot/vmlinuz-6": file("k"), "boot/initrd.img-6": file("i")}, ("k", "i")),
    (
        "numbers are compared as such",
        {
            "boot/vmlinuz-6.9": file("k9"),
            "boot/initrd.img-6.9": file("i9"),
            "boot/vmlinuz-6.10": file("k10"),
            "boot/initrd.img-6.10": file("i10"),
        },
        ("k10", "i10"),
    ),
    (
        "the newest that has an initrd",
        {"boot/vmlinuz-6.9": file("k9"), "boot/initrd.img-6.9": file("i9"), "boot/vmlinuz-7": file("k7")},
        ("k9", "i9"),
    ),
    (
        "links go first",
        {
            "vmlinuz": link("boot/vmlinuz-5"),
            "initrd.img": link("boot/initrd.img-5"),
            "boot/vmlinuz-5": file("k5"),
            "boot/initrd.img-5": file("i5"),
            "boot/vmlinuz-6": file("k6"),
            "boot/initrd.img-6": file("i6"),
        },
        ("k5", "i5"),
    ),
    (
        "dangling links do not",
        {
            "vmlinuz": link("boot/vmlinuz-5"),
            "initrd.img": link("boot/initrd.img-5"),
            "boot/vmlinuz-6": file("k6"),
            "boot/initrd.img-6": file("i6"),
        },
        ("k6", "i6"),
    ),
    ("kernel in / and initrd in /boot", {"vmlinuz-6": file("k"), "boot/initrd.img-6": file("i")}, ("k", "i")),
    ("one of each, whatever their names", {"boot/vmlinuz-virt": file("k"), "boot/initrd.img": file("i")}, ("k", "i")),
    (
        "too many to guess",
        {"boot/vmlinuz-a": file("a"), "boot/vmlinuz-b": file("b"), "boot/initrd.img": file("i")},
        None,
    ),
]


@pytest.mark.parametrize(("name", "entries", "expected"), CHOICES, ids=[choice[0] for choice in CHOICES])
def test_choice_of_kernel(name: str, entries: Any, expected: tuple[str, str] | None) -> None:
    assert findings.choose_boot(entries) == expected


def test_what_a_layer_says(tmp_path: pathlib.Path) -> None:
    found = look(
        member("boot/vmlinuz-6", data=b"kernel"),
        member("boot/vmlinuz", "symlink", link="vmlinuz-6"),
        member("boot/initrd.img-6", "hardlink", link="boot/initrd.img-6-real"),
        member("etc/passwd", data=b"x"),
        member(MARKER, data=json.dumps({"version": 1, "features": ["user", "teleport"]}).encode()),
        member("boot/.wh.vmlinuz-5"),
        member("boot/initrd.img-5", "char"),
        member("usr/lib/.wh..wh..opq"),
        member("lib", "dir", **{findings.OPAQUE_XATTR: b"y"}),
        member("home/.wh.me"),
        member(".wh..wh.plnk", "dir"),
        keep=str(tmp_path),
    )
    digest = hashlib.sha256(b"kernel").hexdigest()
    assert found.entries == {
        "boot/vmlinuz-6": file(digest),
        "boot/vmlinuz": link("vmlinuz-6"),
        "boot/initrd.img-6": link("/boot/initrd.img-6-real"),
    }
    assert found.marker == ["user"]
    assert found.hidden == ["boot/vmlinuz-5", "boot/initrd.img-5", "usr/lib/", "lib/"]
    assert [path.name for path in tmp_path.iterdir()] == [digest]
    assert (tmp_path / digest).read_bytes() == b"kernel"


BASE = {
    "entries": {"boot/vmlinuz-6": file("k"), "boot/initrd.img-6": file("i"), "vmlinuz": link("boot/vmlinuz-6")},
    "hidden": [],
    "marker": ["user"],
}


@pytest.mark.parametrize(
    ("hidden", "entries", "features"),
    [
        ([], ["boot/initrd.img-6", "boot/vmlinuz-6", "vmlinuz"], ["user"]),
        (["boot/vmlinuz-6"], ["boot/initrd.img-6", "vmlinuz"], ["user"]),
        (["boot/vmlinuz"], ["boot/initrd.img-6", "boot/vmlinuz-6", "vmlinuz"], ["user"]),
        (["boot"], ["vmlinuz"], ["user"]),
        (["boot/"], ["vmlinuz"], ["user"]),
        (["usr"], ["boot/initrd.img-6", "boot/vmlinuz-6", "vmlinuz"], []),
        ([MARKER], ["boot/initrd.img-6", "boot/vmlinuz-6", "vmlinuz"], []),
        (["/"], [], []),
    ],
)
def test_upper_layers_hide_lower_ones(hidden: list[str], entries: list[str], features: list[str]) -> None:
    merged = findings.merge([BASE, {"entries": {}, "hidden": hidden, "marker": None}])
    assert (sorted(merged.entries), merged.features) == (entries, features)


def is_dir(path: str) -> Member:
    return member(path, "dir")


@pytest.mark.parametrize(
    ("members", "implied"),
    [
        ([member("a/b/c")], ["a", "a/b"]),
        ([is_dir("a"), member("a/b/c")], ["a/b"]),
        ([member("a/b/c"), is_dir("a")], ["a/b"]),
        ([member("x"), is_dir("a/b")], ["a"]),
        ([member("a/.wh.x")], ["a"]),
        ([member("a/.wh..wh..opq")], ["a"]),
        ([member("a/.wh..wh.plnk")], []),
        ([member(".wh.a"), member("a/b/c")], ["a/b"]),  # a is a new one
        ([member("a/b/c"), member(".wh.a")], ["a/b"]),
        ([member("a/.wh.b"), member("a/b/c/d")], ["a", "a/b/c"]),
        ([], []),
    ],
)
def test_folders_that_are_only_implied(members: list[Member], implied: list[str]) -> None:
    inspector = Inspector()
    for one in members:
        inspector.look(one)
    document = inspector.findings.document()
    assert document["implied"] == implied and json.loads(json.dumps(document)) == document
    assert findings.complete(document)
    del document["implied"]
    assert not findings.complete(document) and not findings.complete(None)


def test_left_out_attributes_are_told() -> None:
    inspector = Inspector()
    for number in range(20):
        inspector.look(dataclasses.replace(member(f"a/{number}"), dropped=(f"com.{number // 2}", "com.all")))
    dropped = inspector.findings.document()["dropped"]
    assert len(dropped) == findings.MAX_DROPPED and dropped["com.all"] == "a/0" and dropped["com.1"] == "a/2"
    (warning,) = findings.warnings("layer x", {"dropped": {"com.1": "a/2", "com.all": "a/0"}})
    assert warning.startswith("layer x: ") and warning.endswith(": com.1 (as of 'a/2'), com.all (as of 'a/0')")
    assert findings.warnings("layer x", {"dropped": {}}) == findings.warnings("layer x", {}) == []


def test_a_layer_hides_only_what_is_below_it() -> None:
    upper = {"entries": {"boot/vmlinuz-6": file("new")}, "hidden": ["boot/"], "marker": ["password"]}
    merged = findings.merge([BASE, upper])
    assert merged.entries == {"boot/vmlinuz-6": file("new"), "vmlinuz": link("boot/vmlinuz-6")}
    assert merged.features == ["password"]


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"version": 2, "features": []}', b'{"version": 1, "features": "user"}', b"[" * 100000]
)
def test_damaged_markers(data: bytes) -> None:
    with pytest.raises(BadArchive, match="is damaged"):
        findings.read_marker(data)


def test_a_marker_that_is_too_large() -> None:
    with pytest.raises(BadArchive, match="too large"):
        look(member(MARKER, data=b" " * 100_000))
