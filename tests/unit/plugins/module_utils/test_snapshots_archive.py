# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshot archives: what is written comes back, and what is damaged or hostile does not come in."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import pathlib
import random
import shutil
import subprocess
import tarfile
import tracemalloc
import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, ResourceError, StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import archive, archive_sinks
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import archive_format as fmt

MIB = 1 << 20
CONFIG = {"id": "a" * 26, "name": "golden:1/x", "cpu": 2, "memory": 1 << 30, "image_blob_ids": {"ab" * 32: {}}}
LIMITS = archive.Limits(64 * MIB, 20)
zstd_reads = pytest.mark.skipif(
    not shutil.which("zstd") or os.geteuid() != 0, reason="needs zstd, and root, who runs it as nobody"
)
KINDS = ["none", "gzip", pytest.param("zstd", marks=zstd_reads)]

# Name: (size, the stretches of data in it). Aligned to 64 KiB, so that any file system keeps the holes.
FILES: dict[str, tuple[int, list[tuple[int, int]]]] = {
    "mem": (3 * MIB + 7, [(0, 3 * MIB + 7)]),
    "cow.raw": (4 * MIB, [(0, 65536), (MIB, 2 * MIB)]),
    "data-begin.raw": (2 * MIB, [(MIB, 2 * MIB)]),
    "data-middle.raw": (2 * MIB + 5, [(0, 65536), (2 * MIB, 2 * MIB + 5)]),
    "data-end.raw": (2 * MIB, [(0, 65536)]),
    "data-holes.raw": (5 * MIB + 1, []),
    "vmstate": (0, []),
    "cocoon.json": (2, [(0, 2)]),
}


def fill(
    directory: pathlib.Path, files: dict[str, tuple[int, list[tuple[int, int]]]] | None = None
) -> dict[str, bytes]:
    files = FILES if files is None else files
    chance = random.Random(1)
    directory.mkdir(exist_ok=True)
    contents = {}
    for name, (size, stretches) in files.items():
        with (directory / name).open("wb") as stream:
            stream.truncate(size)
            for start, end in stretches:
                stream.seek(start)
                stream.write(bytes(chance.choices(b"abc", k=1024)) * ((end - start) // 1024))
                stream.write(b"!" * (end - stream.tell()))
        contents[name] = (directory / name).read_bytes()
    return contents


@pytest.fixture
def snapshot(tmp_path: pathlib.Path) -> pathlib.Path:
    fill(tmp_path / "snapshot")
    return tmp_path / "snapshot"


@pytest.fixture
def staging(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "staging"
    path.mkdir(0o700)
    return path


def write(path: pathlib.Path, snapshot: pathlib.Path, compression: str = "none", **options: t.Any) -> archive.Written:
    return archive.write(str(path), CONFIG, str(snapshot), list(FILES), compression, **options)


def read(path: pathlib.Path, staging: pathlib.Path, limits: archive.Limits = LIMITS, **options: t.Any) -> t.Any:
    return archive.read(str(path), str(staging), limits, **options)


def entry(name: str, body: bytes = b"", kind: bytes = tarfile.REGTYPE, size: int | None = None, **pax: str) -> bytes:
    """A header and its body. ``size`` is what the header says, if that is not true."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(body) if size is None else size
    info.pax_headers = {key.replace("_", "."): value for key, value in pax.items()}
    return info.tobuf(tarfile.PAX_FORMAT) + body + bytes(-len(body) % 512)


def pax(data: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A PAX header with exactly these records."""
    return entry("PaxHeader", data, kind)


def gnu(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header that holds any number by itself."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def record(key: str, value: str) -> bytes:
    length = len(key) + len(value.encode()) + 4
    while len(f"{length} {key}={value}\n".encode()) != length:
        length += 1
    return f"{length} {key}={value}\n".encode()


def sparse(name: str, body: bytes, size: str, text: str) -> bytes:
    return entry(name, body, COCOON_sparse_map=text, COCOON_sparse_size=size)


def envelope(document: t.Any = None) -> bytes:
    return entry("snapshot.json", json.dumps(document or {"version": 1, "config": {"name": "x"}}).encode())


def with_config(**fields: t.Any) -> bytes:
    return envelope({"version": 1, "config": {"name": "x", **fields}}) + END


END = bytes(1024)
FIRST = envelope()


# --- round trips ---


@pytest.mark.parametrize("compression", KINDS)
def test_what_is_written_comes_back(
    tmp_path: pathlib.Path, snapshot: pathlib.Path, staging: pathlib.Path, compression: str
) -> None:
    path = tmp_path / "out.tar"
    path.write_text("an older one")
    written = write(path, snapshot, compression)
    assert written.digest == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert written.size == path.stat().st_size
    assert written.data == sum(end - start for _size, stretches in FILES.values() for start, end in stretches)
    assert path.stat().st_mode & 0o7777 == 0o600
    found = read(path, staging, wanted_digest=written.digest)
    assert (found.version, found.config) == (1, CONFIG)
    assert (found.digest, found.size) == (written.digest, written.size)
    assert {name: info.size for name, info in found.files.items()} == {
        name: size for name, (size, _data) in FILES.items()
    }
    assert sum(info.data for info in found.files.values()) == written.data
    assert sorted(os.listdir(staging)) == sorted(FILES)
    for name in FILES:
        assert (staging / name).read_bytes() == (snapshot / name).read_bytes(), name
        assert (staging / name).stat().st_blocks <= (snapshot / name).stat().st_blocks, name
        assert (staging / name).stat().st_mode & 0o7777 == 0o600
    assert archive.peek(str(path)) == CONFIG
    assert sorted(os.listdir(tmp_path)) == ["out.tar", "snapshot", "staging"]


def test_the_tar_is_what_the_go_engine_reads(tmp_path: pathlib.Path, snapshot: pathlib.Path) -> None:
    """Flat regular entries that any tar lists, with Cocoon's two PAX records where there are holes."""
    path = tmp_path / "out.tar"
    write(path, snapshot)
    with tarfile.open(path, "r:") as source:
        members = source.getmembers()
        bodies = {info.name: t.cast(t.IO[bytes], source.extractfile(info)).read() for info in members}
    assert [info.name for info in members] == ["snapshot.json", *FILES]
    assert json.loads(bodies.pop("snapshot.json")) == {"version": 1, "config": CONFIG}
    for info in members:
        assert (info.type, info.mode, info.uid, info.gid, info.mtime) == (tarfile.REGTYPE, 0o600, 0, 0, 0)
        assert (info.uname, info.gname, info.linkname) == ("", "", "")
    assert {info.name: dict(info.pax_headers) for info in members if info.pax_headers} == {
        "cow.raw": {
            "COCOON.sparse.map": '[{"o":0,"l":65536},{"o":1048576,"l":1048576}]',
            "COCOON.sparse.size": "4194304",
        },
        "data-begin.raw": {"COCOON.sparse.map": '[{"o":1048576,"l":1048576}]', "COCOON.sparse.size": "2097152"},
        "data-middle.raw": {
            "COCOON.sparse.map": '[{"o":0,"l":65536},{"o":2097152,"l":5}]',
            "COCOON.sparse.size": "2097157",
        },
        "data-end.raw": {"COCOON.sparse.map": '[{"o":0,"l":65536}]', "COCOON.sparse.size": "2097152"},
        "data-holes.raw": {"COCOON.sparse.map": "[]", "COCOON.sparse.size": "5242881"},
    }
    for name, (_size, stretches) in FILES.items():
        contents = (snapshot / name).read_bytes()
        assert bodies[name] == b"".join(contents[start:end] for start, end in stretches)
    assert path.read_bytes()[257:265] == b"ustar\x0000"  # nothing before snapshot.json
    assert path.read_bytes().endswith(END) and path.stat().st_size % 512 == 0


def test_the_same_snapshot_gives_the_same_bytes(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        fill(tmp_path / str(number))
        os.utime(tmp_path / str(number) / "mem", (number, number))
        (tmp_path / str(number) / "cow.raw").chmod(0o400 + number)
    for compression in ("none", "gzip"):
        assert write(tmp_path / "a", tmp_path / "1", compression) == write(tmp_path / "b", tmp_path / "2", compression)
    monkeypatch.setattr(archive_sinks, "MAX_THREADS", 1)
    write(tmp_path / "c", tmp_path / "1", "gzip")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_gzip_is_one_member_that_the_tools_take(tmp_path: pathlib.Path, snapshot: pathlib.Path) -> None:
    write(tmp_path / "plain", snapshot)
    write(tmp_path / "out", snapshot, "gzip")
    subprocess.run(["gzip", "-t"], input=(tmp_path / "out").read_bytes(), check=True)
    data = (tmp_path / "out").read_bytes()
    assert gzip.decompress(data) == (tmp_path / "plain").read_bytes()
    assert data.count(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff") == 1


def test_fragmented_files_lose_their_small_holes(
    tmp_path: pathlib.Path, staging: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_SEGMENTS", 8)
    step = 1 << 17
    many = [(n * step, n * step + step // 2) for n in range(40)] + [(64 * MIB - step, 64 * MIB)]
    fill(tmp_path / "s", {"mem": (64 * MIB, many)})
    archive.write(str(tmp_path / "out"), CONFIG, str(tmp_path / "s"), ["mem"], "none")
    with tarfile.open(tmp_path / "out") as source:
        segments = json.loads(source.getmember("mem").pax_headers["COCOON.sparse.map"])
    assert segments == [{"o": 0, "l": 39 * step + step // 2}, {"o": 64 * MIB - step, "l": step}]
    read(tmp_path / "out", staging)
    assert (staging / "mem").read_bytes() == (tmp_path / "s" / "mem").read_bytes()


def test_the_largest_map_fits_into_a_header() -> None:
    far = fmt.MAX_FILE - 4 * archive.MAX_SEGMENTS
    segments = [(far + 4 * n, far + 4 * n + 2) for n in range(archive.MAX_SEGMENTS)]
    stored = 2 * archive.MAX_SEGMENTS
    data = fmt.header("mem", stored, fmt.MAX_FILE, segments)
    assert len(data) < fmt.MAX_HEADER
    assert fmt.next_entry(source(data)) == fmt.Entry("mem", fmt.MAX_FILE, stored, segments)


@pytest.mark.parametrize("size", [0, 1, (8 << 30) - 1, 8 << 30, fmt.MAX_FILE])
def test_sizes_that_old_headers_cannot_hold(size: int) -> None:
    assert fmt.next_entry(source(fmt.header("mem", size, size, None))) == fmt.Entry("mem", size, size, None)
    assert fmt.next_entry(source(gnu("mem", size))) == fmt.Entry("mem", size, size, None)


def source(data: bytes, cap: int = 1 << 30) -> fmt.TarSource:
    return fmt.TarSource(io.BytesIO(data), cap)


def test_archives_of_the_go_engine(tmp_path: pathlib.Path, staging: pathlib.Path) -> None:
    """Its modes, owners and empty lists, the longer documents of its newer versions, several gzip members."""
    document = {
        "version": 1,
        "config": {"name": "", "image_type": "oci", "image_digest": "sha256:00", "share": 0.5, "nics": 1},
        "files": ["mem", "cow.raw"],
    }
    info = tarfile.TarInfo("mem")
    info.size, info.mode, info.uid, info.uname, info.mtime = 3, 0o640, 1000, "cocoon", 1700000000
    info.pax_headers = {"mtime": "1700000000.5", "uid": "1000"}
    first = envelope(document)
    rest = info.tobuf(tarfile.PAX_FORMAT) + b"abc" + bytes(509) + sparse("cow.raw", b"", "1048576", "null") + END
    (tmp_path / "out").write_bytes(gzip.compress(first) + gzip.compress(rest + bytes(9216)))
    found = read(tmp_path / "out", staging)
    assert found.config == document["config"]
    assert found.files == {"mem": archive.FileInfo(3, 3), "cow.raw": archive.FileInfo(MIB, 0)}
    assert (staging / "mem").read_bytes() == b"abc"
    assert (staging / "cow.raw").read_bytes() == bytes(MIB)


def test_peek_reads_the_beginning_only(tmp_path: pathlib.Path, snapshot: pathlib.Path) -> None:
    write(tmp_path / "out", snapshot)
    os.truncate(tmp_path / "out", 4096)
    assert archive.peek(str(tmp_path / "out")) == CONFIG


@zstd_reads
def test_peek_ends_the_tool(tmp_path: pathlib.Path, snapshot: pathlib.Path) -> None:
    write(tmp_path / "out", snapshot, "zstd")
    assert archive.peek(str(tmp_path / "out")) == CONFIG
    no_children()


def test_progress(tmp_path: pathlib.Path, snapshot: pathlib.Path, staging: pathlib.Path) -> None:
    seen: list[tuple[int, int]] = []
    written = write(tmp_path / "out", snapshot, progress=lambda *numbers: seen.append(numbers))
    assert seen == sorted(seen) and seen[-1] == (written.data, written.data)
    seen.clear()
    read(tmp_path / "out", staging, progress=lambda *numbers: seen.append(numbers))
    assert seen == sorted(seen) and {total for _done, total in seen} == {written.size}


# --- hostile archives ---

HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cut short"),
    "text": (b"hello " * 200, "not a tar archive"),
    "xz": (b"\xfd7zXZ\x00" + bytes(1000), "compressed with xz"),
    "gzip of text": (gzip.compress(b"hello " * 200), "not a tar archive"),
    "nothing in it": (END, "does not begin with snapshot.json"),
    "other first entry": (entry("mem", b"x") + FIRST + END, "does not begin with snapshot.json"),
    "sparse first entry": (sparse("snapshot.json", b"", "10", "[]") + END, "does not begin with snapshot.json"),
    "first entry is a folder": (entry("snapshot.json", kind=tarfile.DIRTYPE) + END, "a directory"),
    "large document": (entry("snapshot.json", b" " * (MIB + 1)) + END, "more than 1048576 bytes"),
    "not JSON": (entry("snapshot.json", b"{") + END, "not JSON"),
    "NaN": (entry("snapshot.json", b'{"version": NaN}') + END, "not JSON"),
    "long number": (entry("snapshot.json", b'{"version": ' + b"1" * 100_000 + b"}") + END, "not JSON"),
    "deep": (entry("snapshot.json", b"[" * 500_000) + END, "not JSON"),
    "half a character": (entry("snapshot.json", rb'{"version": 1, "config": {"name": "\ud800"}}') + END, "not JSON"),
    "no UTF-8": (entry("snapshot.json", b'{"version": 1, "config": {"name": "\xff"}}') + END, "not JSON"),
    "a list": (entry("snapshot.json", b"[1]") + END, "not valid: the whole"),
    "no config": (envelope({"version": 1}) + END, "config is missing"),
    "no name": (envelope({"version": 1, "config": {}}) + END, "name is missing"),
    "version 2": (envelope({"version": 2, "layers": []}) + END, "version 2, this collection knows 1"),
    "version 0": (envelope({"version": 0, "config": {"name": "x"}}) + END, "version 0"),
    "version true": (envelope({"version": True, "config": {"name": "x"}}) + END, "not valid: version"),
    "version 1.0": (envelope({"version": 1.0, "config": {"name": "x"}}) + END, "version: 1.0 is not an integer"),
    "version text": (envelope({"version": "1", "config": {"name": "x"}}) + END, "not valid: version"),
    "name": (with_config(name="../x"), "not valid: config.name"),
    "name with newline": (with_config(name="x\n"), "not valid: config.name"),
    "long name": (with_config(name="x" * 64), "not valid: config.name"),
    "id": (with_config(id="../../etc"), "not valid: config.id"),
    "cpu true": (with_config(cpu=True), "not valid: config.cpu"),
    "cpu text": (with_config(cpu="2"), "not valid: config.cpu"),
    "cpu float": (with_config(cpu=2.0), "cpu: 2.0 is not an integer"),
    "negative memory": (with_config(memory=-1), "not valid: config.memory"),
    "huge storage": (with_config(storage=1 << 62), "not valid: config.storage"),
    "blobs as a list": (with_config(image_blob_ids=["ab"]), "not valid: config.image_blob_ids"),
    "blobs by path": (with_config(image_blob_ids={"../x": {}}), "not valid: config.image_blob_ids"),
    "windows as text": (with_config(windows="no"), "not valid: config.windows"),
    "a listed file is missing": (
        envelope({"version": 1, "config": {"name": "x"}, "files": ["mem"]}) + END,
        "lacks 'mem'",
    ),
    # names
    "absolute": (FIRST + entry("/etc/passwd", b"x") + END, "not a name"),
    "above": (FIRST + entry("../x", b"x") + END, "not a name"),
    "dots": (FIRST + entry("..", b"x") + END, "not a name"),
    "in a folder": (FIRST + entry("a/b", b"x") + END, "not a name"),
    "dot slash": (FIRST + entry("./mem", b"x") + END, "not a name"),
    "hidden": (FIRST + entry(".mem", b"x") + END, "not a name"),
    "option": (FIRST + entry("-rf", b"x") + END, "not a name"),
    "no name at all": (FIRST + entry("", b"x") + END, "not a name"),
    "blank": (FIRST + entry("a b", b"x") + END, "not a name"),
    "newline": (FIRST + entry("mem\n", b"x") + END, "not a name"),
    "accent": (FIRST + entry("m\u00e9m", b"x") + END, "not a name"),
    "long": (FIRST + entry("m" * 101, b"x") + END, "not a name"),
    "path record": (FIRST + pax(record("path", "../x")) + entry("mem", b"x") + END, "not a name"),
    "prefix": (FIRST + tarfile.TarInfo("a/" + "b" * 100).tobuf(tarfile.USTAR_FORMAT) + END, "not a name"),
    "twice": (FIRST + entry("mem", b"x") + entry("mem", b"y") + END, "'mem' is in the archive twice"),
    "document twice": (FIRST + FIRST + END, "'snapshot.json' is in the archive twice"),
    "twice by path record": (
        FIRST + entry("mem", b"x") + pax(record("path", "mem")) + entry("other", b"x") + END,
        "twice",
    ),
    # kinds
    "symbolic link": (FIRST + entry("mem", kind=tarfile.SYMTYPE) + END, "a symbolic link"),
    "hard link": (FIRST + entry("mem", kind=tarfile.LNKTYPE) + END, "a hard link"),
    "folder": (FIRST + entry("mem", kind=tarfile.DIRTYPE) + END, "a directory"),
    "old folder": (FIRST + tarfile.TarInfo("mem/").tobuf(tarfile.USTAR_FORMAT) + END, "not a name"),
    "character device": (FIRST + entry("mem", kind=tarfile.CHRTYPE) + END, "a device"),
    "block device": (FIRST + entry("mem", kind=tarfile.BLKTYPE) + END, "a device"),
    "FIFO": (FIRST + entry("mem", kind=tarfile.FIFOTYPE) + END, "a FIFO"),
    "contiguous": (FIRST + entry("mem", b"x", tarfile.CONTTYPE) + END, "of an unknown kind"),
    "GNU sparse": (FIRST + entry("mem", b"x", tarfile.GNUTYPE_SPARSE) + END, "a GNU sparse file"),
    "GNU long name": (FIRST + entry("mem", b"x", tarfile.GNUTYPE_LONGNAME) + END, "a GNU long name"),
    "Solaris header": (FIRST + pax(record("path", "a"), kind=tarfile.SOLARIS_XHDTYPE) + END, "of an unknown kind"),
    "global header": (FIRST + pax(record("path", "a"), kind=tarfile.XGLTYPE) + END, "a global header"),
    "two PAX headers": (FIRST + pax(record("path", "a")) * 2 + entry("mem", b"x") + END, "not a regular file"),
    "PAX header and nothing": (FIRST + pax(record("path", "a")) + END, "not a tar archive, or damaged"),
    "GNU sparse by PAX": (FIRST + entry("mem", b"x", GNU_sparse_major="1") + END, "not known here: GNU.sparse.major"),
    "other record": (FIRST + entry("mem", b"x", VENDOR_thing="1") + END, "not known here: VENDOR.thing"),
    "map without a size": (FIRST + entry("mem", b"x", COCOON_sparse_map="[]") + END, "COCOON.sparse.map"),
    "size without a map": (FIRST + entry("mem", b"x", COCOON_sparse_size="1") + END, "COCOON.sparse.size"),
    "third record": (
        FIRST + entry("mem", COCOON_sparse_map="[]", COCOON_sparse_size="1", COCOON_new="1") + END,
        "COCOON.new",
    ),
    # PAX headers
    "huge PAX header": (FIRST + gnu("PaxHeader", 10 << 30, tarfile.XHDTYPE) + END, "more than 1048576 bytes"),
    "record of no length": (FIRST + pax(b"path=x\n") + entry("mem") + END, "not well formed"),
    "record too short": (FIRST + pax(b"5 path=mem\n") + entry("mem") + END, "not well formed"),
    "record too long": (FIRST + pax(b"99 path=mem\n") + entry("mem") + END, "not well formed"),
    "record of length 0": (FIRST + pax(b"0 path=mem\n") + entry("mem") + END, "not well formed"),
    "negative length": (FIRST + pax(b"-5 path=mem\n") + entry("mem") + END, "not well formed"),
    "record without =": (FIRST + pax(b"7 path\n") + entry("mem") + END, "not well formed"),
    "record twice": (FIRST + pax(record("path", "mem") * 2) + entry("mem") + END, "twice"),
    "many records": (
        FIRST + pax(b"".join(record(f"k{n}", "") for n in range(1000))) + entry("mem") + END,
        "or too many",
    ),
    "size that is none": (FIRST + pax(record("size", "-1")) + entry("mem") + END, "not a number"),
    "size in other digits": (FIRST + pax(record("size", "\u0661")) + entry("mem") + END, "not a number"),
    "long size": (FIRST + pax(record("size", "1" * 1000)) + entry("mem") + END, "not a number"),
    "larger than any disk": (FIRST + pax(record("size", "9" * 18)) + entry("mem") + END, "larger than any disk"),
    "sparse and too large": (FIRST + sparse("mem", b"", "9" * 18, "[]") + END, "larger than any disk"),
    "negative size": (FIRST + gnu("mem", -512) + END, "a size is negative"),
    "negative PAX header": (FIRST + gnu("PaxHeader", -512, tarfile.XHDTYPE) + END, "a size is negative"),
    # where it ends
    "cut in a header": (FIRST + entry("mem", b"x")[:100], "cut short"),
    "cut in a body": (FIRST + entry("mem", b"x" * 1000)[:700], "cut short"),
    "cut after an entry": (FIRST + entry("mem", b"x"), "cut short"),
    "one empty block": (FIRST + entry("mem", b"x") + bytes(512), "cut short"),
    "something after the end": (FIRST + END + b"x", "after its end"),
    "an entry after the end": (FIRST + END + entry("mem", b"x"), "after its end"),
    "an entry after one block": (FIRST + bytes(512) + entry("mem", b"x"), "after its end"),
    "zeros without an end": (FIRST + END + bytes(4 * MIB), "after its end"),
    "gzip and garbage": (gzip.compress(FIRST + END) + b"garbage", "damaged"),
    "gzip and zeros": (gzip.compress(FIRST + END) + bytes(3 * MIB), "after its end"),
    "gzip member after the end": (gzip.compress(FIRST + END) + gzip.compress(b"x"), "after its end"),
}

MAPS: dict[str, tuple[str, str]] = {
    "not JSON": ("4096", "[{"),
    "deep": ("4096", "[" * 200_000),
    "object": ("4096", '{"o":0,"l":4}'),
    "false": ("4096", "false"),
    "number": ("4096", "4"),
    "numbers": ("4096", "[0, 4]"),
    "lists": ("4096", "[[0, 4]]"),
    "other key": ("4096", '[{"o":0,"l":4,"x":1}]'),
    "missing key": ("4096", '[{"o":0}]'),
    "bool": ("4096", '[{"o":false,"l":4}]'),
    "bool length": ("4096", '[{"o":0,"l":3},{"o":8,"l":true}]'),
    "float": ("4096", '[{"o":0.0,"l":4}]'),
    "text": ("4096", '[{"o":"0","l":4}]'),
    "null": ("4096", '[{"o":null,"l":4}]'),
    "negative start": ("4096", '[{"o":-4,"l":4}]'),
    "negative length": ("4096", '[{"o":0,"l":8},{"o":8,"l":-4}]'),
    "no length": ("4096", '[{"o":0,"l":0},{"o":0,"l":4}]'),
    "overlap": ("4096", '[{"o":0,"l":3},{"o":2,"l":1}]'),
    "out of order": ("4096", '[{"o":8,"l":2},{"o":0,"l":2}]'),
    "beyond the end": ("4096", '[{"o":4093,"l":4}]'),
    "far beyond": ("4096", '[{"o":99999999999999999999,"l":4}]'),
    "endless number": ("4096", '[{"o":' + "9" * 400_000 + ',"l":4}]'),
    "less than the body": ("4096", '[{"o":0,"l":3}]'),
    "more than the body": ("4096", '[{"o":0,"l":5}]'),
    "empty but a body": ("4096", "[]"),
    "body larger than the file": ("3", '[{"o":0,"l":4}]'),
    "negative size": ("-1", '[{"o":0,"l":4}]'),
    "size in hex": ("0x10", '[{"o":0,"l":4}]'),
    "empty size": ("", '[{"o":0,"l":4}]'),
    "infinite": ("4096", '[{"o":0,"l":Infinity}]'),
}
for _name, (_size, _map) in MAPS.items():
    HOSTILE[f"map: {_name}"] = (
        FIRST + sparse("mem", b"abcd", _size, _map) + END,
        "sparse map of 'mem'|size that is not a number",
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused(tmp_path: pathlib.Path, staging: pathlib.Path, name: str) -> None:
    data, message = HOSTILE[name]
    (tmp_path / "out").write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / "out", staging)
    assert caught.value.option == "path"
    assert caught.value.remedy
    assert sorted(os.listdir(tmp_path)) == ["out", "staging"]
    assert set(os.listdir(staging)) <= {"mem"}


@zstd_reads
@pytest.mark.parametrize("name", ["above", "symbolic link", "zeros without an end", "map: overlap", "cut in a body"])
def test_hostile_archives_end_their_tool(tmp_path: pathlib.Path, staging: pathlib.Path, name: str) -> None:
    data, message = HOSTILE[name]
    (tmp_path / "out").write_bytes(zstd(data + random.Random(1).randbytes(MIB)))
    with pytest.raises(InputError, match=message if name != "cut in a body" else "damaged"):
        read(tmp_path / "out", staging)
    no_children()


@zstd_reads
@pytest.mark.parametrize("rest", [b"garbage", bytes(MIB), gzip.compress(b"x" * 600)], ids=["text", "zeros", "gzip"])
def test_nothing_may_follow_zstd(tmp_path: pathlib.Path, staging: pathlib.Path, rest: bytes) -> None:
    (tmp_path / "out").write_bytes(zstd(FIRST + END) + rest)
    with pytest.raises(InputError, match="damaged|after its end"):
        read(tmp_path / "out", staging)


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, stdout=subprocess.PIPE, check=True).stdout


def no_children() -> None:
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_old_regular_files_are_files(tmp_path: pathlib.Path, staging: pathlib.Path) -> None:
    (tmp_path / "out").write_bytes(FIRST + entry("mem", b"x", tarfile.AREGTYPE) + END)
    assert read(tmp_path / "out", staging).files == {"mem": archive.FileInfo(1, 1)}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (archive.Limits(4096 + 600, 2), None),
        (archive.Limits(4095 + 600, 2), "holds more than 4695"),
        (archive.Limits(4096 + 600, 1), "more than 1 files"),
        (archive.Limits(4096 + 600, 0), "more than 0 files"),
        (archive.Limits(0, 2), "holds more than 0"),
    ],
)
def test_limits(tmp_path: pathlib.Path, staging: pathlib.Path, limits: archive.Limits, message: str | None) -> None:
    """Data counts, holes do not, and a stretch of data counts as the blocks that it takes."""
    body = sparse("b", b"x" * 400, str(1 << 40), f'[{{"o":{1 << 39},"l":400}}]')
    (tmp_path / "out").write_bytes(FIRST + entry("a", b"x" * 600) + body + END)
    if message is None:
        assert read(tmp_path / "out", staging, limits).files["b"] == archive.FileInfo(1 << 40, 400)
        return
    with pytest.raises(InputError, match=message):
        read(tmp_path / "out", staging, limits)
    assert sum(path.stat().st_size for path in staging.iterdir()) <= limits.max_bytes


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        (None, 5000),
        ([], 0),
        ([(0, 1)], 4096),
        ([(4095, 4097)], 8192),
        ([(0, 1), (2, 3), (4096, 4097)], 8192),
        ([(0, 4096), (4096, 8192)], 8192),
    ],
)
def test_what_an_entry_takes_on_a_disk(segments: fmt.Segments | None, expected: int) -> None:
    assert fmt.Entry("mem", 10_000, 5000, segments).allocated == expected


def test_bombs_are_refused_by_what_they_declare(tmp_path: pathlib.Path, staging: pathlib.Path) -> None:
    """A GiB that is a MiB here is neither written nor unpacked."""
    (tmp_path / "out").write_bytes(gzip.compress(FIRST + entry("mem", size=1 << 30) + bytes(80 * MIB), 1))
    with Peak() as used, pytest.raises(InputError, match="holds more than 64M"):
        read(tmp_path / "out", staging)
    assert used() < 8 * MIB
    assert os.listdir(staging) == []


def test_a_source_ends_at_its_cap() -> None:
    assert source(bytes(600), 600).take(600) == bytes(600)
    with pytest.raises(InputError, match="more than it may"):
        source(bytes(600), 599).take(600)


class Peak:
    """The most memory that Python had at once in a block, in bytes."""

    def __enter__(self) -> t.Callable[[], int]:
        tracemalloc.start()
        return lambda: self.bytes

    def __exit__(self, *_exc: object) -> None:
        self.bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


@pytest.mark.parametrize("compression", KINDS)
def test_memory_is_bounded(
    tmp_path: pathlib.Path, staging: pathlib.Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    monkeypatch.setattr(archive_sinks, "MAX_THREADS", 2)
    fill(tmp_path / "s", {"mem": (64 * MIB, [(0, 64 * MIB)])})
    archive.peek(write_small(tmp_path))  # imports
    with Peak() as used:
        archive.write(str(tmp_path / "out"), CONFIG, str(tmp_path / "s"), ["mem"], compression)
    assert used() < 12 * MIB
    with Peak() as used:
        read(tmp_path / "out", staging)
    assert used() < 12 * MIB


def write_small(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "small"
    path.write_bytes(FIRST + END)
    return str(path)


@pytest.mark.parametrize("kind", ["gzip", pytest.param("zstd", marks=zstd_reads)])
@pytest.mark.parametrize(
    "data", [b"", b"hello" * 300, FIRST, FIRST + END[:600]], ids=["nothing", "text", "no end", "half an end"]
)
def test_what_is_compressed_is_checked_alike(
    tmp_path: pathlib.Path, staging: pathlib.Path, kind: str, data: bytes
) -> None:
    (tmp_path / "out").write_bytes(gzip.compress(data) if kind == "gzip" else zstd(data))
    with pytest.raises(InputError):
        read(tmp_path / "out", staging)


def test_maps_may_be_long_and_still_take_little(tmp_path: pathlib.Path, staging: pathlib.Path) -> None:
    text = "[" + ",".join(["{}"] * 340_000) + "]"
    (tmp_path / "out").write_bytes(FIRST + sparse("mem", b"", "1", text) + END)
    with Peak() as used, pytest.raises(InputError, match="sparse map"):
        read(tmp_path / "out", staging)
    assert used() < 48 * MIB


# --- damage ---


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small archive of each kind."""
    folder = tmp_path_factory.mktemp("samples")
    fill(folder / "s", {"cow.raw": (MIB, [(0, 65536)]), "mem": (3000, [(0, 3000)])})
    found = {}
    for kind in ("none", "gzip", "zstd") if shutil.which("zstd") else ("none", "gzip"):
        archive.write(str(folder / "out"), CONFIG, str(folder / "s"), ["cow.raw", "mem"], kind)
        found[kind] = (folder / "out").read_bytes()
    return found


def attempt(data: bytes, tmp_path: pathlib.Path, **options: t.Any) -> dict[str, str] | None:
    """Digests of what comes out, or ``None`` if it is refused as it should be."""
    (tmp_path / "out").write_bytes(data)
    staging = tmp_path / "staging"
    staging.mkdir(0o700)
    try:
        read(tmp_path / "out", staging, **options)
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in staging.iterdir()}
    except InputError:
        return None
    finally:
        shutil.rmtree(staging)


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_is_found(tmp_path: pathlib.Path, samples: dict[str, bytes], kind: str) -> None:
    data = samples[kind]
    assert attempt(data, tmp_path)
    places = {*range(0, len(data), max(1, len(data) // 60)), *range(max(0, len(data) - 40), len(data))}
    for length in places:
        assert attempt(data[:length], tmp_path) is None, length


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_is_found(tmp_path: pathlib.Path, samples: dict[str, bytes], kind: str) -> None:
    """With the digest always; without it, what gzip and zstd let pass is what came in."""
    data = samples[kind]
    whole = attempt(data, tmp_path)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert attempt(data, tmp_path, wanted_digest=digest) == whole
    chance = random.Random(2)
    places = [*range(0, 24), *(chance.randrange(len(data)) for _turn in range(80)), *range(len(data) - 12, len(data))]
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << chance.randrange(8)
        assert attempt(bytes(flipped), tmp_path, wanted_digest=digest) is None, place
        if kind != "none":
            assert attempt(bytes(flipped), tmp_path) in (None, whole), place


def test_a_flipped_header_is_found_without_a_digest(tmp_path: pathlib.Path, samples: dict[str, bytes]) -> None:
    data = samples["none"]
    whole = attempt(data, tmp_path)
    position = data.rindex(b"ustar") - 257
    for place in range(position, position + 512):
        flipped = bytearray(data)
        flipped[place] ^= 1
        # What stands after the header's sum is not part of it.
        assert attempt(bytes(flipped), tmp_path) == (whole if place - position == 155 else None), place


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:xyz", "f" * 64, "sha256:" + "f" * 63, "md5:" + "f" * 32])
def test_digests_that_are_none(tmp_path: pathlib.Path, staging: pathlib.Path, digest: str) -> None:
    with pytest.raises(InputError, match="is not a digest"):
        read(tmp_path / "missing", staging, wanted_digest=digest)


def test_another_digest_is_named(tmp_path: pathlib.Path, staging: pathlib.Path) -> None:
    path = write_small(tmp_path)
    digest = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    with pytest.raises(InputError, match=f"has the digest sha256:{digest}, not sha256:0000"):
        archive.read(path, str(staging), LIMITS, wanted_digest="sha256:" + "0" * 64)


def test_archives_that_cannot_be_opened(tmp_path: pathlib.Path, staging: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("missing", "fifo", "staging"):
        with pytest.raises(InputError):
            archive.peek(str(tmp_path / name))
        with pytest.raises(InputError):
            read(tmp_path / name, staging)


def test_links_in_staging_are_not_followed(tmp_path: pathlib.Path, staging: pathlib.Path) -> None:
    """The caller promises that it is empty; if it is not, nothing outside pays for it."""
    (tmp_path / "victim").write_text("mine")
    (staging / "mem").symlink_to(tmp_path / "victim")
    (tmp_path / "out").write_bytes(FIRST + entry("mem", b"x") + END)
    with pytest.raises(FileExistsError):
        read(tmp_path / "out", staging)
    assert (tmp_path / "victim").read_text() == "mine"


# --- full disks and other trouble ---


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_leaves_nothing(
    tmp_path: pathlib.Path, snapshot: pathlib.Path, monkeypatch: pytest.MonkeyPatch, compression: str, code: int
) -> None:
    if compression == "zstd" and not shutil.which("zstd"):
        pytest.skip("needs zstd")
    left = 2000
    write_all = archive_sinks.HashedFile.write

    def full(self: archive_sinks.HashedFile, data: archive_sinks.Data) -> None:
        nonlocal left
        left -= len(data)
        if left < 0:
            raise OSError(code, os.strerror(code))
        write_all(self, data)

    (tmp_path / "out").write_text("an older one")
    monkeypatch.setattr(archive_sinks.HashedFile, "write", full)
    wanted: type[InputError | ResourceError] = InputError if code == errno.EIO else ResourceError
    with pytest.raises(wanted) as caught:
        write(tmp_path / "out", snapshot, compression)
    assert caught.value.option == "path"
    assert (tmp_path / "out").read_text() == "an older one"
    assert sorted(os.listdir(tmp_path)) == ["out", "snapshot"]
    no_children()


def test_a_full_disk_while_reading(
    tmp_path: pathlib.Path, staging: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    (tmp_path / "out").write_bytes(FIRST + entry("mem", b"x") + END)
    with pytest.raises(ResourceError, match="no space left"):
        read(tmp_path / "out", staging)


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_an_interrupted_export_leaves_nothing(tmp_path: pathlib.Path, snapshot: pathlib.Path, compression: str) -> None:
    if compression == "zstd" and not shutil.which("zstd"):
        pytest.skip("needs zstd")

    def interrupt(done: int, _total: int) -> None:
        if done > MIB:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", snapshot, compression, progress=interrupt)
    assert os.listdir(tmp_path) == ["snapshot"]
    no_children()


def test_what_dead_exports_left_is_removed(tmp_path: pathlib.Path, snapshot: pathlib.Path) -> None:
    for name in ("out.123.abcdefgh.tmp", "out.tmp", "other.123.abcdefgh.tmp", "out.x.abcdefgh.tmp"):
        (tmp_path / name).touch()
    fd, live = archive._create_beside(str(tmp_path / "out"))
    write(tmp_path / "out", snapshot)
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["out", os.path.basename(live), "out.tmp", "other.123.abcdefgh.tmp", "out.x.abcdefgh.tmp", "snapshot"]
    )
    os.close(fd)


def test_targets_that_cannot_be_written(tmp_path: pathlib.Path, snapshot: pathlib.Path) -> None:
    for target in (tmp_path, tmp_path / "no" / "out", snapshot / "mem" / "out", tmp_path / ("x" * 250)):
        with pytest.raises(InputError) as caught:
            write(target, snapshot)
        assert caught.value.option == "path"
    with pytest.raises(InputError, match="not a compression"):
        write(tmp_path / "out", snapshot, "xz")
    assert os.listdir(tmp_path) == ["snapshot"]


def test_sources_that_are_not_regular_files(tmp_path: pathlib.Path, snapshot: pathlib.Path) -> None:
    (snapshot / "link").symlink_to("mem")
    (snapshot / "folder").mkdir()
    os.mkfifo(snapshot / "fifo")
    for name in ("link", "folder", "fifo", "missing", "../snapshot/mem", "", "snapshot.json"):
        with pytest.raises(StateError):
            archive.write(str(tmp_path / "out"), CONFIG, str(snapshot), ["mem", name], "none")
    with pytest.raises(StateError):
        archive.write(str(tmp_path / "out"), CONFIG, str(snapshot), ["mem", "mem"], "none")
    with pytest.raises(StateError, match="too large"):
        archive.write(str(tmp_path / "out"), {"name": "x" * MIB}, str(snapshot), ["mem"], "none")
    assert os.listdir(tmp_path) == ["snapshot"]


def test_a_source_that_shrinks(tmp_path: pathlib.Path, snapshot: pathlib.Path) -> None:
    def shrink(done: int, _total: int) -> None:
        if done:
            os.truncate(snapshot / "mem", MIB)

    with pytest.raises(StateError, match="mem of the snapshot became shorter"):
        write(tmp_path / "out", snapshot, progress=shrink)
    assert os.listdir(tmp_path) == ["snapshot"]


def test_a_tool_that_is_not_there(
    tmp_path: pathlib.Path, snapshot: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_sinks, "ZSTD", ("no-such-tool",))
    with pytest.raises(Exception, match="zstd is not installed"):
        write(tmp_path / "out", snapshot, "zstd")
    monkeypatch.setattr(archive_sinks, "ZSTD", ("sh", "-c", "echo broken >&2; exit 3"))
    with pytest.raises(Exception, match=r"zstd failed \(3\): broken"):
        write(tmp_path / "out", snapshot, "zstd")
    assert os.listdir(tmp_path) == ["snapshot"]
    no_children()
