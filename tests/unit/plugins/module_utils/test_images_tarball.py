# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives, good and hostile. Nothing here needs root: the checks come before anything is unpacked."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import re
import struct
import tarfile
from collections.abc import Callable

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._images import streams, tarball
from ansible_collections.cocoon.microvm.plugins.module_utils._images.detect import decompression_errors
from ansible_collections.cocoon.microvm.plugins.module_utils._images.tarball import BadArchive, Limits, TarInput


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def archive(*entries: tuple[tarfile.TarInfo, bytes] | tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as target:
        for item in entries:
            info, data = item if isinstance(item, tuple) else (item, b"")
            info.size = len(data) if data else info.size
            target.addfile(info, io.BytesIO(data) if data else None)
    return sink.getvalue()


def read(data: bytes, limits: Limits = tarball.DEFAULT_LIMITS) -> list[tuple[str, str, bytes]]:
    found = []
    for member in tarball.members(TarInput(io.BytesIO(data), limits), limits):
        found.append((member.path, member.kind, b"".join(member.data)))
    return found


def test_members_come_as_they_are() -> None:
    data = archive(
        entry("./", tarfile.DIRTYPE),
        entry("./etc/", tarfile.DIRTYPE),
        (entry("etc//passwd"), b"root"),
        entry("etc/link", tarfile.SYMTYPE, "/passwd"),
        entry("etc/hard", tarfile.LNKTYPE, "./etc/passwd"),
        entry("dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3),
        entry("fifo", tarfile.FIFOTYPE),
        (entry("big"), b"x" * 2_000_000),
    )
    assert read(data) == [
        ("", "dir", b""),
        ("etc", "dir", b""),
        ("etc/passwd", "file", b"root"),
        ("etc/link", "symlink", b""),
        ("etc/hard", "hardlink", b""),
        ("dev/null", "char", b""),
        ("fifo", "fifo", b""),
        ("big", "file", b"x" * 2_000_000),
    ]


def test_absolute_names_begin_at_the_root() -> None:
    """Those of hard links' targets, too; a symbolic link's is for the guest to follow."""
    data = archive(
        entry("/", tarfile.DIRTYPE),
        (entry("/app/x"), b"1"),
        entry("//app//y", tarfile.LNKTYPE, "/app/x"),
        entry("/z", tarfile.SYMTYPE, "/app/x"),
    )
    found = tarball.members(TarInput(io.BytesIO(data), tarball.DEFAULT_LIMITS))
    assert [(member.path, member.link) for member in found] == [
        ("", ""),
        ("app/x", ""),
        ("app/y", "app/x"),
        ("z", "/app/x"),
    ]


def test_data_that_nobody_reads_is_passed_over() -> None:
    data = archive((entry("a"), b"1" * 100_000), (entry("b"), b"2" * 1000))
    assert [member.path for member in tarball.members(TarInput(io.BytesIO(data), tarball.DEFAULT_LIMITS))] == ["a", "b"]


def test_names_and_attributes_keep_their_bytes() -> None:
    info = entry("caf\udce9")
    info.pax_headers = {
        "SCHILY.xattr.security.capability": b"\x01\x00\x00\x02\xff".decode("utf-8", "surrogateescape"),
        "LIBARCHIVE.xattr.user.b64": "aGVsbG8=",
    }
    (member,) = list(tarball.members(TarInput(io.BytesIO(archive(info)), tarball.DEFAULT_LIMITS)))
    assert member.path.encode("utf-8", "surrogateescape") == b"caf\xe9"
    assert member.xattrs == {"security.capability": b"\x01\x00\x00\x02\xff", "user.b64": b"hello"}


HOSTILE: dict[str, tuple[bytes, str]] = {
    "above": (archive(entry("../x")), "leaves the archive"),
    "above, absolute": (archive(entry("/../x")), "leaves the archive"),
    "above inside": (archive(entry("a/../../x")), "leaves the archive"),
    "hard link above": (archive(entry("a", tarfile.LNKTYPE, "../../etc/shadow")), "leaves the archive"),
    "hard link above, absolute": (archive(entry("a", tarfile.LNKTYPE, "/../etc/shadow")), "leaves the archive"),
    "hard link to root": (archive(entry("a", tarfile.LNKTYPE, "/")), "hard link to nothing"),
    "hard link to here": (archive(entry("a", tarfile.LNKTYPE, "./")), "hard link to nothing"),
    "root replaced, absolute": (archive(entry("/", tarfile.SYMTYPE, "/etc")), "its own root"),
    "root replaced": (archive(entry("./", tarfile.SYMTYPE, "/etc")), "its own root"),
    "empty link": (archive(entry("a", tarfile.SYMTYPE, "")), "no file system takes"),
    "long name": (archive(entry("a" * 300)), "no file system takes"),
    "long path": (archive(entry("/".join(["a" * 200] * 30)[:-1])), "no file system takes"),
    "deep": (archive(entry("/".join(["a"] * 200))), "lies too deep"),
    "unknown kind": (archive(entry("a", b"Z")), "unknown kind"),
    "owner": (archive(entry("a", uid=1 << 33)), "out of range"),
    "huge header": (
        archive(entry("a", pax_headers={"comment": "x" * 300_000})),
        "header of the archive is too large",
    ),
    "cut short": (archive((entry("a"), b"x" * 10_000))[:4096], "cut short|damaged"),
    "cut in header": (archive((entry("a"), b"x"), (entry("b"), b"y"))[: 512 * 2 + 100], "damaged"),
    "one byte": (b"\0", "damaged"),
    "attribute": (archive(entry("a", pax_headers={"LIBARCHIVE.xattr.user.x": "a-b!"})), "damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused(name: str) -> None:
    data, message = HOSTILE[name]
    with pytest.raises(BadArchive, match=message) as caught, tarball.named("layer x of y"):
        read(data)
    assert caught.value.message.startswith("layer x of y: ")
    assert re.match(r"Nothing of it was kept\. [A-Z].*\.$", caught.value.remedy or "")


@pytest.mark.parametrize("data", [b"", bytes(1024), bytes(10240)], ids=["no bytes", "its end", "a record"])
def test_an_archive_of_nothing(data: bytes) -> None:
    assert read(data) == []


@pytest.mark.parametrize("value", [b"", b"a", b"ab", b"abc", b"abcd", b"\xff\0\xfe\xfb"])
@pytest.mark.parametrize("padded", [False, True])
def test_attributes_of_libarchive(value: bytes, padded: bool) -> None:
    """bsdtar leaves the padding out."""
    text = base64.b64encode(value).decode()
    info = entry("a", pax_headers={"LIBARCHIVE.xattr.user.x": text if padded else text.rstrip("=")})
    (member,) = tarball.members(TarInput(io.BytesIO(archive(info)), tarball.DEFAULT_LIMITS))
    assert member.xattrs == {"user.x": value} and member.dropped == ()


ACL = "system.posix_acl_"


@pytest.mark.parametrize(
    ("kind", "name", "kept"),
    [
        (tarfile.REGTYPE, "user.x", True),
        (tarfile.DIRTYPE, "user.x", True),
        (tarfile.SYMTYPE, "user.x", False),
        (tarfile.FIFOTYPE, "user.x", False),
        (tarfile.CHRTYPE, "user.x", False),
        (tarfile.SYMTYPE, "security.selinux", True),
        (tarfile.SYMTYPE, "trusted.x", True),
        (tarfile.REGTYPE, ACL + "access", True),
        (tarfile.SYMTYPE, ACL + "access", False),
        (tarfile.DIRTYPE, ACL + "default", True),
        (tarfile.REGTYPE, ACL + "default", False),
        (tarfile.REGTYPE, "com.apple.quarantine", False),
        (tarfile.REGTYPE, "system.nfs4_acl", False),
        (tarfile.REGTYPE, "user.", False),
        (tarfile.REGTYPE, "user", False),
        (tarfile.REGTYPE, "user." + "x" * 250, True),
        (tarfile.REGTYPE, "user." + "x" * 251, False),
    ],
)
def test_attributes_that_linux_takes(kind: bytes, name: str, kept: bool) -> None:
    info = entry("a", kind, "b" if kind == tarfile.SYMTYPE else "", pax_headers={f"SCHILY.xattr.{name}": "v"})
    (member,) = tarball.members(TarInput(io.BytesIO(archive(info)), tarball.DEFAULT_LIMITS))
    assert (member.xattrs, member.dropped) == (({name: b"v"}, ()) if kept else ({}, (name,)))


def test_attributes_of_a_hard_link_are_those_of_its_file() -> None:
    data = archive((entry("a"), b"1"), entry("b", tarfile.LNKTYPE, "a", pax_headers={"SCHILY.xattr.user.x": "v"}))
    found = list(tarball.members(TarInput(io.BytesIO(data), tarball.DEFAULT_LIMITS)))
    assert [(member.xattrs, member.dropped) for member in found] == [({}, ()), ({}, ())]


def test_a_damaged_header_is_not_taken_for_the_end() -> None:
    data = bytearray(archive((entry("a"), b"x"), (entry("b"), b"y")))
    data[1024 + 148] ^= 0xFF  # the second header's sum
    with pytest.raises(BadArchive, match="a header is not valid"):
        read(bytes(data))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(members=2), "more than 2 members"),
        (Limits(devices=1), "more than 1 device nodes"),
        (Limits(unpacked=100), "unpacks to more than 100"),
        (Limits(depth=1), "lies too deep"),
    ],
)
def test_limits(limits: Limits, message: str) -> None:
    data = archive(
        (entry("a/b"), b"x" * 90),
        entry("c", tarfile.CHRTYPE, devmajor=1, devminor=3),
        entry("d", tarfile.BLKTYPE, devmajor=8),
        (entry("e"), b"x" * 90),
    )
    assert len(read(data)) == 4
    with pytest.raises(BadArchive, match=message):
        read(data, limits)


def sparse(size: int, *pieces: tuple[int, int]) -> bytes:
    """An old GNU sparse member with one byte repeated as data."""
    block = bytearray(entry("s", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"%011o\0" % sum(length for _start, length in pieces)
    for number, (start, length) in enumerate(pieces):
        block[386 + 24 * number : 410 + 24 * number] = b"%011o\0%011o\0" % (start, length)
    block[483:495] = b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    stored = b"".join(b"d" * length for _start, length in pieces)
    return bytes(block) + stored.ljust(-(-len(stored) // 512) * 512, b"\0") + bytes(1024)


def test_sparse_members_have_their_holes() -> None:
    assert read(sparse(4096, (512, 512), (2048, 512), (4096, 0))) == [
        ("s", "file", b"\0" * 512 + b"d" * 512 + b"\0" * 1024 + b"d" * 512 + b"\0" * 1536)
    ]


@pytest.mark.parametrize("pieces", [((2048, 512), (0, 512)), ((0, 512), (256, 512)), ((4000, 512),)])
def test_sparse_maps_out_of_order_do_not_loop(pieces: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(BadArchive, match="sparse"):
        read(sparse(4096, *pieces))


def test_a_sparse_member_counts_with_its_holes() -> None:
    with pytest.raises(BadArchive, match="unpacks to more than 1M"):
        read(sparse(8 << 20, (0, 512)), Limits(unpacked=1 << 20))


def test_negative_sizes_do_not_loop() -> None:
    """Base 256 numbers can be negative, and have sent readers backwards."""
    block = bytearray(entry("a").tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 4 + struct.pack(">q", -1024)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with pytest.raises(BadArchive):
        read(bytes(block) + bytes(2048))


ENGINES: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.mark.parametrize("kind", ENGINES)
def test_decompression(kind: str) -> None:
    data = bytes(range(256)) * 5_000
    packed = ENGINES[kind](data[:500_000]) + ENGINES[kind](data[500_000:])  # two members are one stream
    assert streams.compression(packed) == kind
    with streams.inflate(io.BytesIO(packed), kind) as stream:
        found = b"".join(iter(lambda: stream.read(70_001), b""))
    assert found == data


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        ("28b52ffd", "zstd"),
        ("502a4d18", "zstd"),  # a skippable frame, as pzstd begins with
        ("5f2a4d18", "zstd"),
        ("602a4d18", None),
        ("4f2a4d18", None),
        ("502a4d19", None),
        ("502a4d", None),
        ("", None),
    ],
)
def test_compression_by_the_first_bytes(head: str, kind: str | None) -> None:
    assert streams.compression(bytes.fromhex(head)) == kind


@pytest.mark.parametrize("kind", ENGINES)
def test_damaged_compression_is_an_error(kind: str) -> None:
    packed = ENGINES[kind](b"hello" * 100_000)
    for broken in (packed[:-5], packed[: len(packed) // 2], packed[:20] + b"\xff" * 60 + packed[80:]):
        with pytest.raises(BadArchive, match="is damaged"), decompression_errors():
            with streams.inflate(io.BytesIO(broken), kind) as stream:
                while stream.read(65536):
                    pass


LINKS = {
    "boot/vmlinuz": {"type": "link", "target": "vmlinuz-6"},
    "boot/vmlinuz-6": {"type": "file", "digest": "k"},
    "vmlinuz": {"type": "link", "target": "boot/vmlinuz"},
    "vmlinuz-abs": {"type": "link", "target": "/boot/vmlinuz-6"},
    "vmlinuz-up": {"type": "link", "target": "../../../boot/vmlinuz-6"},
    "vmlinuz-loop": {"type": "link", "target": "vmlinuz-loop"},
    "vmlinuz-out": {"type": "link", "target": "/etc/passwd"},
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("boot/vmlinuz", "boot/vmlinuz-6"),
        ("vmlinuz", "boot/vmlinuz-6"),
        ("vmlinuz-abs", "boot/vmlinuz-6"),
        ("vmlinuz-up", "boot/vmlinuz-6"),  # the guest's root is as high as it goes
        ("vmlinuz-loop", None),
        ("vmlinuz-out", None),
        ("nothing", None),
    ],
)
def test_links_are_resolved_inside(path: str, expected: str | None) -> None:
    assert tarball.resolve(LINKS, path) == expected
