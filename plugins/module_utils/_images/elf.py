# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel inside a bzImage, as the ELF file that some hypervisors boot.

A bzImage is a small program with a packed ELF file in it; its header says where that lies (the kernel's
Documentation/arch/x86/boot.rst). Whatever packs it, its last four bytes are how long it is unpacked. Images come from
elsewhere, so nothing that is read here is believed: not a length, not an offset, and not what comes out in the end.
"""

from __future__ import annotations

import bz2
import contextlib
import lzma
import os
import struct
import subprocess
import tempfile
import typing as t
import zlib

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, ToolError

# Beyond any kernel; one with all its debug information is never in a bzImage.
MAX_PACKED = 256 << 20
MAX_KERNEL = 512 << 20
CHUNK = 1 << 20
# Of what unpacks it, in memory.
MAX_MEMORY = 256 << 20

HEADER = 0x268
SETUP_SECTS, MAGIC, VERSION, PAYLOAD = 0x1F1, 0x202, 0x206, 0x248
SECTOR = 512
# The header of a boot protocol older than this says nothing of a payload (Linux 2.6.24).
PROTOCOL = 0x0208

ELF = b"\x7fELF"
CLASS_64, LITTLE_ENDIAN = 2, 1
EXECUTABLE, SHARED, X86_64 = 2, 3, 62
ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
LOAD = 1

LZ4_MAGIC = b"\x02\x21\x4c\x18"
# What a block of a legacy frame holds at most.
LZ4_BLOCK = 8 << 20
LZ4_SHORTEST = 4
LZO_MAGIC = b"\x89LZO"

ZSTD = ("zstd", "-q", "-d", "-c", "--single-thread", f"--memory={MAX_MEMORY >> 20}MB")

Chunks = t.Iterator[bytes]
Unpack = t.Callable[[bytes], Chunks]


class DamagedError(InputError):
    """A kernel that is not what it says."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"no kernel can be taken out of its vmlinuz: {problem}",
            "image",
            "Take a Linux kernel for x86-64 (bzImage).",
        )


def extract(source: str, target: t.BinaryIO) -> None:
    """Write the ELF file in the bzImage *source* to *target*, an empty file; one that is an ELF file is copied.

    :raises DamagedError: it is neither, or not whole. :raises ToolError: zstd is missing.
    """
    size = 0
    for chunk in _unpacked(_read(source)):
        size += len(chunk)
        if size > MAX_KERNEL:
            raise DamagedError(f"it unpacks to more than {MAX_KERNEL >> 20} MiB")
        target.write(chunk)
    target.flush()
    check(target.fileno())


def _read(path: str) -> bytes:
    with open(path, "rb") as stream:
        data = stream.read(MAX_PACKED + 1)
    if len(data) > MAX_PACKED:
        raise DamagedError(f"it has more than {MAX_PACKED >> 20} MiB")
    return data


def _unpacked(image: bytes) -> Chunks:
    if image.startswith(ELF):
        yield image
        return
    payload = find_payload(image)
    if payload.startswith(ELF):
        yield payload  # nothing packs it, and its last bytes are its own
        return
    body, length = payload[:-4], struct.unpack("<I", payload[-4:])[0]
    if length > MAX_KERNEL:
        raise DamagedError(f"it unpacks to more than {MAX_KERNEL >> 20} MiB")
    size = 0
    # Of gzip the length is the end of the stream itself, other formats were given it.
    for chunk in unpacker(payload)(payload if payload.startswith(b"\x1f\x8b") else body):
        size += len(chunk)
        yield chunk
    if size != length:
        raise DamagedError(f"it unpacks to {size} bytes, and its end says {length}")


def find_payload(image: bytes) -> bytes:
    """The packed kernel in a bzImage.

    :raises DamagedError: it is no bzImage, or not whole.
    """
    if len(image) < HEADER or image[MAGIC : MAGIC + 4] != b"HdrS":
        raise DamagedError("it is not a bzImage")
    (version,) = struct.unpack_from("<H", image, VERSION)
    if version < PROTOCOL:
        raise DamagedError(f"its boot protocol {version >> 8}.{version & 0xFF:02} is older than 2.08")
    offset, length = struct.unpack_from("<II", image, PAYLOAD)
    start = (1 + (image[SETUP_SECTS] or 4)) * SECTOR + offset
    if length < 8 or start + length > len(image):
        raise DamagedError("it is cut off: its payload is beyond its end")
    return image[start : start + length]


def unpacker(payload: bytes) -> Unpack:
    """What unpacks this; by its first bytes, as the kernel's own scripts tell."""
    for magic, unpack in UNPACKERS.items():
        if payload.startswith(magic):
            return unpack
    if payload.startswith(LZO_MAGIC):
        raise DamagedError("it is packed by LZO, which is not served; GZIP, XZ, ZSTD, LZ4, LZMA and BZIP2 are")
    raise DamagedError(f"what packs it is not known (it begins with {payload[:4].hex()})")


def _gunzip(data: bytes) -> Chunks:
    stream = zlib.decompressobj(wbits=31)
    while not stream.eof:
        try:
            chunk = stream.decompress(data, CHUNK)
        except zlib.error as exc:
            raise DamagedError(f"its gzip stream is damaged ({exc})") from exc
        data = stream.unconsumed_tail
        if not chunk and not data and not stream.eof:
            raise DamagedError("its gzip stream is cut off")
        yield chunk


class _Stream(t.Protocol):
    """What ``lzma`` and ``bz2`` unpack by."""

    eof: bool
    needs_input: bool

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Some more of it."""


def _drain(stream: _Stream, data: bytes, what: str) -> Chunks:
    while not stream.eof:
        try:
            chunk = stream.decompress(data, CHUNK)
        except (lzma.LZMAError, OSError, EOFError, ValueError) as exc:
            raise DamagedError(f"its {what} stream is damaged ({exc})") from exc
        data = b""
        if not chunk and stream.needs_input and not stream.eof:
            raise DamagedError(f"its {what} stream is cut off")
        yield chunk


def _unxz(data: bytes) -> Chunks:
    return _drain(t.cast(_Stream, lzma.LZMADecompressor(lzma.FORMAT_XZ, MAX_MEMORY)), data, "xz")


def _unlzma(data: bytes) -> Chunks:
    return _drain(t.cast(_Stream, lzma.LZMADecompressor(lzma.FORMAT_ALONE, MAX_MEMORY)), data, "lzma")


def _bunzip2(data: bytes) -> Chunks:
    return _drain(t.cast(_Stream, bz2.BZ2Decompressor()), data, "bzip2")


def _unzstd(data: bytes) -> Chunks:
    """By the tool, as Python knows the format from 3.14 on; it reads from a file, so that no pipe can fill up."""
    with tempfile.TemporaryFile() as packed:
        packed.write(data)
        packed.seek(0)
        try:
            child = subprocess.Popen(  # pylint: disable=ansible-bad-function  # read while it works, and bounded
                ZSTD, stdin=packed, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={"PATH": os.defpath}
            )
        except FileNotFoundError as exc:
            raise ToolError(
                "zstd is not installed", remedy="Install zstd, or run the role cocoon.microvm.host."
            ) from exc
        with contextlib.ExitStack() as stack:
            stack.callback(child.wait)
            stack.callback(child.kill)
            output = t.cast("t.IO[bytes]", child.stdout)
            stack.callback(output.close)
            yield from iter(lambda: output.read(CHUNK), b"")
            if child.wait():
                raise DamagedError("its zstd stream is damaged")


def _unlz4(data: bytes) -> Chunks:
    """A legacy frame, the only kind that kernels are packed by: blocks that know nothing of each other."""
    place = len(LZ4_MAGIC)
    while place < len(data):
        if data[place : place + 4] == LZ4_MAGIC:  # frames may follow one another
            place += 4
            continue
        if place + 4 > len(data):
            raise DamagedError("its lz4 stream is cut off")
        (length,) = struct.unpack_from("<I", data, place)
        place += 4
        if not length or place + length > len(data):
            raise DamagedError("its lz4 stream is cut off")
        yield unlz4_block(data[place : place + length])
        place += length


def unlz4_block(data: bytes) -> bytes:
    """One block of LZ4: literals, and copies of what is there already. In one piece, as calls would take half the time.

    :raises DamagedError: it is cut off, reaches before its beginning, or is larger than a block can be.
    """
    out = bytearray()
    place, size = 0, len(data)
    try:
        while True:
            token = data[place]
            place += 1
            count = token >> 4
            if count == 15:
                count, place = _lz4_count(data, place)
            end = place + count
            out += data[place:end]
            if end >= size:  # the last sequence has no match
                break
            offset = data[end] | data[end + 1] << 8
            place = end + 2
            count = token & 15
            if count == 15:
                count, place = _lz4_count(data, place)
            count += LZ4_SHORTEST
            start = len(out) - offset
            if start < 0 or not offset or len(out) + count > LZ4_BLOCK:
                break
            if offset >= count:
                out += out[start : start + count]
            else:  # it copies some of what it makes
                out += (bytes(out[start:]) * (count // offset + 1))[:count]
    except IndexError:
        end = -1
    if end != size or len(out) > LZ4_BLOCK:
        raise DamagedError("its lz4 stream is damaged")
    return bytes(out)


def _lz4_count(data: bytes, place: int) -> tuple[int, int]:
    """A length of 15 or more, and where what follows it begins: it goes on up to a byte that is not 255."""
    count = 15
    while True:
        more = data[place]
        place += 1
        count += more
        if more != 255:
            return count, place


UNPACKERS: t.Mapping[bytes, Unpack] = {
    b"\x1f\x8b": _gunzip,
    b"\xfd7zXZ\0": _unxz,
    b"\x28\xb5\x2f\xfd": _unzstd,
    LZ4_MAGIC: _unlz4,
    b"\x5d\0\0": _unlzma,
    b"BZh": _bunzip2,
}


def check(fd: int) -> None:
    """Whether a file is an x86-64 kernel as an ELF file, whole.

    :raises DamagedError: it is not.
    """
    size = os.fstat(fd).st_size
    head = os.pread(fd, ELF_HEADER.size, 0)
    if len(head) < ELF_HEADER.size or not head.startswith(ELF):
        raise DamagedError("what it unpacks to is no ELF file")
    ident, kind, machine, _version, _entry, table, _sections, _flags, _size, entry_size, count, *_rest = (
        ELF_HEADER.unpack(head)
    )
    if (ident[4], ident[5], machine) != (CLASS_64, LITTLE_ENDIAN, X86_64) or kind not in (EXECUTABLE, SHARED):
        raise DamagedError("what it unpacks to is no program for x86-64")
    if entry_size != PROGRAM_HEADER.size or not 0 < count <= 256 or table + count * entry_size > size:
        raise DamagedError("what it unpacks to has no program headers")
    loads = 0
    for program in PROGRAM_HEADER.iter_unpack(os.pread(fd, count * entry_size, table)):
        what, _flags, offset, _virtual, _physical, in_file, in_memory, _align = program
        if what == LOAD:
            loads += 1
            if offset + in_file > size or in_file > in_memory:
                raise DamagedError("what it unpacks to is cut off")
    if not loads:
        raise DamagedError("what it unpacks to has nothing to load")
