# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checksums, versions, and what a disk says of how it boots. The network is the integration tests' affair."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import struct
import typing as t
import uuid

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import firmware
from ansible_collections.cocoon.microvm.plugins.module_utils._images import (
    checksum,
    converging,
    partitions,
    source,
    transfer,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._images.transfer import Version
from ansible_collections.cocoon.microvm.plugins.module_utils._images.wanted import Wanted

A, B = "a" * 64, "b" * 128


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"sha256:{A}", checksum.Digest("sha256", A)),
        (f" SHA512:{B.upper()} ", checksum.Digest("sha512", B)),
        ("https://host/SHA256SUMS", checksum.DigestList(None, "https://host/SHA256SUMS")),
        ("sha512:https://host/x", checksum.DigestList("sha512", "https://host/x")),
    ],
)
def test_checksum_option(text: str, found: t.Any) -> None:
    assert checksum.parse(text) == found


@pytest.mark.parametrize("text", ["", A, "md5:" + "a" * 32, f"sha256:{B}", "sha256:xyz", "http://h/SUMS", "ftp://h/S"])
def test_no_checksum(text: str) -> None:
    with pytest.raises(InputError) as caught:
        checksum.parse(text)
    assert caught.value.option == "checksum" and caught.value.remedy


@pytest.mark.parametrize(
    ("line", "algorithm", "found"),
    [
        (f"{A}  disk.qcow2", None, ("sha256", A)),
        (f"{A} *disk.qcow2", "sha256", ("sha256", A)),
        (f"{B.upper()}  ./sub/disk.qcow2\r", None, ("sha512", B)),
        (f"SHA256 (disk.qcow2) = {A}", None, ("sha256", A)),
        (f"{A}  disk.qcow2\n{A}  disk.qcow2", None, ("sha256", A)),
        (f"{A}  disk.qcow2\n{B}  disk.qcow2", "sha512", ("sha512", B)),
        (f"-----BEGIN PGP SIGNED MESSAGE-----\n\n{'c' * 64}  other\n{A}  disk.qcow2\n", None, ("sha256", A)),
        (f"{A}  disk.qcow2\n{'c' * 64}  disk.qcow2", None, None),
        (f"{A}  disk.qcow2.sig", None, None),
        (f"{A}  disk.qcow2", "sha512", None),
        ("", None, None),
    ],
)
def test_list_of_checksums(line: str, algorithm: str | None, found: t.Any) -> None:
    if found is None:
        with pytest.raises(InputError, match=r"SUMS has (no checksum|several checksums) of disk\.qcow2"):
            checksum.find(line, "disk.qcow2", algorithm, "SUMS")
    else:
        assert checksum.find(line, "disk.qcow2", algorithm, "SUMS") == found


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (Version('"a"', "Mon", 5), Version('"a"', "Tue", 5), True),
        (Version('"a"', "Mon", 5), Version('"b"', "Mon", 5), False),
        (Version('"a"', "Mon", 5), Version('"a"', "Mon", 6), False),
        (Version("", "Mon", 5), Version("", "Mon", 5), True),
        (Version("", "Mon", 5), Version("", "Tue", 5), False),
        (Version('"a"', "Mon", 5), Version("", "Mon", 5), False),
        (Version("", "", 5), Version("", "", 5), False),
        (Version('W/"a"', "", None), Version('W/"a"', "", None), True),
    ],
)
def test_versions(one: Version, other: Version, same: bool) -> None:
    assert one.same(other) is same and other.same(one) is same


def test_a_weak_tag_does_not_do_for_parts() -> None:
    assert Version('W/"a"', "Mon").validator == "Mon"
    assert Version('"a"', "Mon").validator == '"a"'
    assert Version('W/"a"').validator == ""


def test_what_is_shown_of_a_url() -> None:
    assert transfer.shown("https://me:secret@host:8443/a/b.qcow2?token=secret#x") == "https://host:8443/a/b.qcow2"


@pytest.mark.parametrize(
    ("text", "sum_", "ours"),
    [
        ("https://h/x", None, True),
        ("FILE:///x", None, True),
        ("/x", None, False),
        ("/x", f"sha256:{A}", False),
        ("/x", f"sha512:{B}", True),
        ("/x", "https://h/SUMS", True),
        ("docker://nginx", f"sha256:{A}", False),
        (None, None, False),
    ],
)
def test_which_sources_are_urls(text: str | None, sum_: str | None, ours: bool) -> None:
    assert source.by_url(text, sum_) is ours


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_the_usual_limit_can_be_raised(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(source, "MAX_SIZE", 1000)
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(510) + b"\x55\xaa" + bytes(512))
    paths = Paths("/no-such/root", "/no-such/run", "/no-such/log")  # check mode writes nothing
    wanted = Wanted("x", source=form.format(path))
    with pytest.raises(InputError, match="is larger than 1000") as caught:
        converging.converge(paths, wanted, check_mode=True)
    assert caught.value.option == "max_size" and caught.value.remedy
    assert converging.converge(paths, dataclasses.replace(wanted, max_size="1K"), check_mode=True).changed


def test_a_part_is_written_with_holes_and_hashed(tmp_path: t.Any) -> None:
    path = str(tmp_path / "part")
    data = b"x" * 100 + bytes(3 << 20) + b"y" * 70000
    part = transfer.Part(path, None, 1 << 30, ["sha512"])
    for start in range(0, len(data), 50_000):
        part.write(data[start : start + 50_000])
    part.write(bytes(1 << 20))
    part.close()
    data += bytes(1 << 20)
    assert (tmp_path / "part").read_bytes() == data and part.count == len(data)
    assert part.hexdigest("sha512") == hashlib.sha512(data).hexdigest()
    assert os.stat(path).st_blocks * 512 < 4 << 20
    again = transfer.Part(path, Version('"a"', "", len(data)), 1 << 30)
    again.close()
    assert again.count == len(data) and again.hexdigest("sha256") == hashlib.sha256(data).hexdigest()
    for version in (None, Version("", "", len(data))):  # nothing that says of which version it is: begin anew
        anew = transfer.Part(path, version, 1 << 30)
        anew.close()
        assert anew.count == os.path.getsize(path) == 0


def gpt(*kinds: uuid.UUID, code: bytes = b"", size: int = 128) -> bytes:
    table = code.ljust(446, b"\0") + bytes(4) + b"\xee" + bytes(59) + b"\x55\xaa"
    header = b"EFI PART".ljust(72, b"\0") + struct.pack("<QII", 2, 128, size)
    entries = b"".join(kind.bytes_le.ljust(size, b"\x01") for kind in kinds)
    return (table + header.ljust(512, b"\0") + entries).ljust(partitions.TABLE, b"\0")


ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
MBR_ESP = bytes(446) + bytes(16) + bytes(4) + b"\xef" + bytes(43) + b"\x55\xaa"


@pytest.mark.parametrize(
    ("table", "found"),
    [
        (gpt(LINUX, ESP), ["uefi"]),
        (gpt(LINUX, ESP, code=b"\xeb"), ["uefi", "bios"]),
        (gpt(LINUX, code=b"\xeb"), ["bios"]),
        (gpt(LINUX), []),
        (MBR_ESP, ["uefi"]),
        (b"\xfa\xf4".ljust(510, b"\0") + b"\x55\xaa", ["bios"]),
        (bytes(partitions.TABLE), []),
        (b"", []),
        (gpt(ESP)[:600], []),
        (gpt(ESP, size=0), []),
        (gpt(ESP)[:584] + b"\xff" * 8 + gpt(ESP)[592:], []),
    ],
)
def test_what_a_disk_boots_by(table: bytes, found: list[str]) -> None:
    assert partitions.firmware(table) == found


def test_firmware_of_the_host(tmp_path: t.Any) -> None:
    pairs = [(str(tmp_path / f"code{size}"), str(tmp_path / f"vars{size}")) for size in (4, 2, 1)]
    with pytest.raises(UnsupportedError, match="not installed"):
        firmware.find(None, pairs)
    for (code, variables), size in list(zip(pairs, (4, 2)))[:2]:
        for path in (code, variables):
            with open(path, "wb") as stream:
                stream.truncate(size)
    (tmp_path / "code1").touch()  # half of it is not enough
    assert firmware.available(pairs) == [pairs[0], pairs[1]]
    assert firmware.find(None, pairs) == pairs[0]
    assert firmware.find(2, pairs) == pairs[1]  # the one that the VM's variables are for
    with pytest.raises(UnsupportedError, match="store of 3 bytes"):
        firmware.find(3, pairs)
