# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ELF file in a kernel, whatever packs it; and what only looks like a kernel."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import shutil
import struct
import subprocess
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._images import elf, kernel
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, locked


def program(body: bytes = b"code" * 5000, **fields: int) -> bytes:
    """An x86-64 ELF file with one thing to load, or with what *fields* say instead."""
    known = {"kind": 2, "machine": 62, "count": 1, "what": 1, "size": len(body), "memory": len(body), "word": 2}
    known.update(fields)
    start = elf.ELF_HEADER.size + elf.PROGRAM_HEADER.size
    ident = b"\x7fELF" + bytes([known["word"], 1, 1]) + bytes(9)
    head = elf.ELF_HEADER.pack(
        *(ident, known["kind"], known["machine"], 1, 0x1000000, elf.ELF_HEADER.size, 0, 0, 64, 56),
        *(known["count"], 0, 0, 0),
    )
    load = elf.PROGRAM_HEADER.pack(known["what"], 5, start, 0, 0, known["size"], known["memory"], 0x200000)
    return head + load + body


def image(payload: bytes, offset: int = 0x30, sectors: int = 3, version: int = 0x20F, magic: bytes = b"HdrS") -> bytes:
    """A bzImage around a payload."""
    setup = bytearray((1 + (sectors or 4)) * 512)
    setup[0x1F1] = sectors
    setup[0x202:0x206] = magic
    struct.pack_into("<H", setup, 0x206, version)
    struct.pack_into("<II", setup, 0x248, offset, len(payload))
    return bytes(setup) + bytes(offset) + payload + b"the rest"


def lz4(data: bytes, block: int = 4096) -> bytes:
    """A legacy frame whose blocks are literals, but for a run of the last byte where there is one."""
    frames = [elf.LZ4_MAGIC]
    for start in range(0, len(data), block):
        part = data[start : start + block]
        run = len(part) - len(part.rstrip(part[-1:]))
        packed = lz4_literals(part) if run < 30 else lz4_run(part[: len(part) - run + 1], run - 1)
        frames.append(struct.pack("<I", len(packed)) + packed)
    return b"".join(frames)


def lz4_length(count: int) -> bytes:
    return b"" if count < 15 else b"\xff" * ((count - 15) // 255) + bytes([(count - 15) % 255])


def lz4_literals(part: bytes) -> bytes:
    return bytes([min(len(part), 15) << 4]) + lz4_length(len(part)) + part


def lz4_run(head: bytes, more: int) -> bytes:
    """*head*, and its last byte so many times more: a copy of one byte by itself, and five literals as the end."""
    count = more - 5 - 4
    token = bytes([min(len(head), 15) << 4 | min(count, 15)])
    return token + lz4_length(len(head)) + head + b"\x01\0" + lz4_length(count) + lz4_literals(head[-1:] * 5)


def zstd(data: bytes) -> bytes:
    if not shutil.which("zstd"):
        pytest.skip("needs zstd")
    return subprocess.run(["zstd", "-q", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout


def xz(data: bytes) -> bytes:
    """As the kernel's scripts call it: with the filter for x86 programs."""
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)


PACKERS: dict[str, t.Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": xz,
    "zstd": zstd,
    "lz4": lz4,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
}


def packed(how: str, data: bytes) -> bytes:
    """As in a bzImage: the length at the end, which gzip has anyway."""
    return PACKERS[how](data) + (b"" if how == "gzip" else struct.pack("<I", len(data)))


def extract(tmp_path: Path, content: bytes) -> bytes:
    source = tmp_path / "vmlinuz"
    source.write_bytes(content)
    with open(tmp_path / "vmlinux", "w+b") as target:
        elf.extract(str(source), target)
    return (tmp_path / "vmlinux").read_bytes()


@pytest.mark.parametrize("how", PACKERS)
def test_the_kernel_within(tmp_path: Path, how: str) -> None:
    """Also where what the kernel is moved by lies behind it, as in most."""
    noise = random.Random(1).randbytes(2000)
    whole = program(b"code" * 9000 + noise + bytes(2 * elf.CHUNK)) + b"relocations" * 100
    assert extract(tmp_path, image(packed(how, whole))) == whole


@pytest.mark.parametrize("content", [program(), image(program()), image(packed("gzip", program()), sectors=0)])
def test_a_kernel_that_nothing_packs_and_an_old_count_of_sectors(tmp_path: Path, content: bytes) -> None:
    assert extract(tmp_path, content) == program()


def test_frames_of_lz4_may_follow_one_another(tmp_path: Path) -> None:
    whole = program()
    payload = lz4(whole[:9000]) + lz4(whole[9000:]) + struct.pack("<I", len(whole))
    assert extract(tmp_path, image(payload)) == whole


def test_lz4_as_the_tool_packs_it(tmp_path: Path) -> None:
    if not shutil.which("lz4"):
        pytest.skip("needs lz4")
    words = random.Random(2).choices([b"mov", b"call", b"\0\0\0\0", b"push", b"ret" * 9], k=60000)
    whole = program(b"".join(words))
    done = subprocess.run(["lz4", "-l", "-9", "-c"], input=whole, stdout=subprocess.PIPE, check=True)
    assert len(done.stdout) < len(whole) // 2
    assert extract(tmp_path, image(done.stdout + struct.pack("<I", len(whole)))) == whole


DAMAGE = {
    "nothing": (b"", "not a bzImage"),
    "text": (b"#!/bin/sh\n" * 200, "not a bzImage"),
    "no header": (image(packed("gzip", program()), magic=b"HdrX"), "not a bzImage"),
    "old": (image(packed("gzip", program()), version=0x207), r"boot protocol 2\.07 is older"),
    "cut off": (image(packed("gzip", program()))[:-60], "payload is beyond its end"),
    "far away": (image(packed("gzip", program()), offset=0)[:0x248] + b"\xff" * 0x2000, "payload is beyond its end"),
    "no payload": (image(b""), "payload is beyond its end"),
    "lzo": (image(b"\x89LZO\0\r\n\x1a\n" + bytes(40)), "packed by LZO"),
    "unknown": (image(b"\xde\xad\xbe\xef" + bytes(40)), "deadbeef"),
    "no program": (image(packed("gzip", b"hello" * 99)), "no ELF file"),
    "huge": (image(packed("lz4", program())[:-4] + b"\xff\xff\xff\xff"), "more than 512 MiB"),
    "lies": (image(packed("lz4", program())[:-4] + struct.pack("<I", 99)), "its end says 99"),
    "32 bits": (program(word=1), "no program for x86-64"),
    "arm": (program(machine=183), "no program for x86-64"),
    "object": (program(kind=1), "no program for x86-64"),
    "no headers": (program(count=0), "no program headers"),
    "headers beyond": (program()[:100], "no program headers"),
    "nothing to load": (program(what=4), "nothing to load"),
    "short": (program()[:-9], "cut off"),
    "more than memory": (program(memory=1), "cut off"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_no_kernel(tmp_path: Path, name: str) -> None:
    content, words = DAMAGE[name]
    with pytest.raises(elf.DamagedError, match=words) as caught:
        extract(tmp_path, content)
    assert caught.value.option == "image" and caught.value.remedy


@pytest.mark.parametrize("how", PACKERS)
def test_damaged_and_cut_off_streams(tmp_path: Path, how: str) -> None:
    whole = program(random.Random(3).randbytes(5000))
    good = packed(how, whole)
    middle = len(good) // 2
    for content in (good[:middle] + good[-4:], good[: middle - 30] + bytes(60) + good[middle + 30 :]):
        if how == "lz4" and len(content) == len(good):
            continue  # it has no checksum
        with pytest.raises(elf.DamagedError):
            extract(tmp_path, image(content))


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\x40abc",  # fewer literals than it says
        b"\xf0\xff\xff",  # a length without an end
        b"\x10a\x05\0\x10b",  # from before the beginning
        b"\x10a\0\0\x10b",  # from nowhere
        b"\x10a\x01",  # half an offset
        b"\x1fa\x01\0" + b"\xff" * 40000 + b"\0\x10b",  # more than a block may hold
    ],
)
def test_damaged_blocks_of_lz4(block: bytes) -> None:
    with pytest.raises(elf.DamagedError, match="damaged"):
        elf.unlz4_block(block)


def test_random_bytes_never_do_more_than_fail(tmp_path: Path) -> None:
    chance = random.Random(4)
    for how in ("gzip", "xz", "lz4", "lzma", "bzip2"):
        good = packed(how, program(b"code" * 50))
        for _time in range(40):
            bad = bytearray(good)
            bad[chance.randrange(4, len(bad))] = chance.randrange(256)
            try:
                extract(tmp_path, image(bytes(bad)))
            except elf.DamagedError:
                pass


def test_nothing_is_taken_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = image(packed("gzip", program()))
    monkeypatch.setattr(elf, "MAX_KERNEL", 1 << 10)
    with pytest.raises(elf.DamagedError, match="unpacks to more"):
        extract(tmp_path, content)
    monkeypatch.setattr(elf, "MAX_PACKED", 100)
    with pytest.raises(elf.DamagedError, match="has more than"):
        extract(tmp_path, content)


def test_a_stream_that_never_ends_is_left_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The length at the end is the image's own word, so what comes out is counted."""
    monkeypatch.setattr(elf, "MAX_KERNEL", 4 << 20)
    bomb = lzma.compress(bytes(16 << 20), lzma.FORMAT_XZ) + struct.pack("<I", 100)
    (tmp_path / "vmlinuz").write_bytes(image(bomb))
    target = io.BytesIO()
    with pytest.raises(elf.DamagedError, match="unpacks to more"):
        elf.extract(str(tmp_path / "vmlinuz"), target)
    assert len(target.getvalue()) <= 4 << 20


@pytest.fixture(name="store")
def fixture_store(tmp_path: Path) -> Store:
    paths = Paths(str(tmp_path / "lib"), str(tmp_path / "run"), str(tmp_path / "log"))
    made = Store.open(paths)
    images.make_directories(paths)
    return made


def test_it_is_taken_out_once_and_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "blob_gid", lambda *_: 0)
    monkeypatch.setattr("os.fchown", lambda *_: None)
    folder = Path(images.boot_path(store, "ab" * 32))
    folder.mkdir()
    (folder / "vmlinuz").write_bytes(image(packed("gzip", program())))
    (folder / "vmlinux.new").write_bytes(b"of a run that was killed")
    path = kernel.unpacked(store, str(folder / "vmlinuz"), 1.0)
    assert path == str(folder / "vmlinux") and (folder / "vmlinux").read_bytes() == program()
    assert (folder / "vmlinux").stat().st_mode & 0o777 == 0o440
    assert sorted(entry.name for entry in folder.iterdir()) == ["vmlinux", "vmlinuz"]
    (folder / "vmlinuz").unlink()
    with locked(store.paths, [f"image:#blob/{'ab' * 32}"], 1.0):  # nobody asks for it again
        assert kernel.unpacked(store, str(folder / "vmlinuz"), 0.0) == path


def test_nothing_is_kept_of_a_kernel_that_is_none(store: Store) -> None:
    folder = Path(images.boot_path(store, "cd" * 32))
    folder.mkdir()
    (folder / "vmlinuz").write_bytes(b"#!/bin/sh\n" * 200)
    with pytest.raises(elf.DamagedError):
        kernel.unpacked(store, str(folder / "vmlinuz"), 1.0)
    assert [entry.name for entry in folder.iterdir()] == ["vmlinuz"]
