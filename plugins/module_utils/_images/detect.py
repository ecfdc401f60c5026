# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which kind of image a file is: by its first bytes, never by its name."""

from __future__ import annotations

import contextlib
import dataclasses
import lzma
import os
import re
import struct
import tarfile
import typing as t
import zlib

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import kinds, partitions, streams, tarball, vmdk

HEAD = 4096
# What a raw disk in a tar has at least, and what is beside it (OVF descriptors, check sums) at most.
MIN_DISK, MAX_BESIDE = 1 << 20, 1 << 20
# Behind a kernel's first sector, which looks like a boot sector.
KERNEL_MAGIC, KERNEL_PLACE = b"HdrS", 0x202
KNOWN = "Give a tar of a root file system, an OCI layout, an archive of one or of docker save, or a disk."
CONVERT = "Convert it with 'qemu-img convert -O qcow2'."
QCOW2_MAGIC = b"QFI\xfb"
OTHER_DISKS = {
    b"COWD": "a VMDK disk of an old kind",
    b"# Disk Descriptor": "the description of a VMDK disk, whose data is in other files",
    b"<<< ": "a VDI disk",
    b"vhdxfile": "a VHDX disk",
    b"conectix": "a VHD disk",
    b"QED\0": "a QED disk",
    b"LUKS\xba\xbe": "an encrypted disk",
}
# A folder of one of these names begins a root file system; one of another name may be there to hold a disk.
ROOT_FOLDERS = frozenset(
    "bin boot dev etc home lib lib32 lib64 libx32 media mnt opt proc root run sbin srv sys tmp usr var".split()
)
OCI_TOP = ("oci-layout", "index.json", "blobs", "manifest.json", "repositories")
# Layers and configs as Docker, Podman, crane, kaniko and jib call them.
DOCKER_RE = re.compile(r"^(sha256:)?[0-9a-f]{64}(/|\.json\Z|\.tar\Z|\.tar\.gz\Z|\Z)")
# Incompatible features of qcow2: what they are, and the one that names another file.
QCOW2_CORRUPT, QCOW2_DATA_FILE = 1 << 1, 1 << 2
QCOW2_KNOWN_FEATURES = 0b11111
QCOW2_DATA_FILE_EXTENSION = 0x44415441
MAX_VIRTUAL_SIZE = 64 << 40


def detect(fd: int, path: str) -> type[kinds.Source]:
    """What kind of source a file is.

    :raises InputError: none of them.
    """
    head = os.pread(fd, HEAD, 0)
    if not head:
        raise InputError(f"{path} is empty", "source", KNOWN)
    if head.startswith(QCOW2_MAGIC):
        check_qcow2(head, path)
        return kinds.Qcow2Disk
    if head.startswith(vmdk.MAGIC):
        vmdk.check(fd, path)
        return kinds.VmdkDisk
    for magic, name in OTHER_DISKS.items():
        if head.startswith(magic):
            raise UnsupportedError(f"{path} is {name}", "source", CONVERT)
    kind = streams.compression(head)
    if kind is None and not looks_like_tar(head):
        return _raw(fd, head, path)
    with plain(fd, kind, path) as stream:
        first = _exactly(stream, HEAD)
        if looks_like_tar(first):
            return tar_kind(streams.Pushback(first, stream), path)
        if streams.compression(first):
            raise InputError(f"{path} is compressed twice", "source", "Unpack it once.")
        if not begins_disk(first, f"{path} is compressed, and in it"):
            raise InputError(
                f"{path} is compressed with {kind}, and what is in it is neither a tar nor a disk", "source", KNOWN
            )
        return kinds.PackedDisk


def begins_disk(head: bytes, where: str) -> bool:
    """Whether *head* begins a disk that can be used, as far as it tells.

    :raises UnsupportedError: it begins one of another format, and that is *where*.
    """
    for magic, name in OTHER_DISKS.items():
        if head.startswith(magic):
            raise UnsupportedError(f"{where} is {name}", "source", f"Unpack the disk, and give that. {CONVERT}")
    return head.startswith((QCOW2_MAGIC, vmdk.MAGIC)) or head[510:512] == b"\x55\xaa"


def _exactly(stream: streams.Reader, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            break
        data += more
    return data


def looks_like_tar(block: bytes) -> bool:
    """Whether a block is a tar header with a sum that is right."""
    try:
        tarfile.TarInfo.frombuf(block[: tarball.BLOCK], "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


@contextlib.contextmanager
def plain(fd: int, kind: str | None, path: str) -> t.Iterator[streams.Reader]:
    """The file *fd* from its beginning, decompressed; errors about what is in it name *path*."""
    with tarball.named(path), decompression_errors(), open(os.dup(fd), "rb") as stream:
        stream.seek(0)
        with streams.inflate(t.cast(streams.Reader, stream), kind) as reader:
            yield reader


@contextlib.contextmanager
def decompression_errors() -> t.Iterator[None]:
    """Faults of compressed data as errors that say so."""
    try:
        yield
    except (zlib.error, lzma.LZMAError, EOFError) as exc:
        raise tarball.BadArchive(f"the compressed data is damaged: {exc}", tarball.AGAIN) from exc
    except OSError as exc:
        if exc.errno is None:  # bzip2
            raise tarball.BadArchive(f"the compressed data is damaged: {exc}", tarball.AGAIN) from exc
        raise


def disk_in(stream: streams.Reader, path: str, limit: int) -> t.Iterator[bytes]:
    """The bytes of the disk that is all of *stream*, or all that matters in the tar that it is.

    :param limit: bytes that the disk may have.
    :raises InputError: there is more in the tar than a disk.
    """
    first = _exactly(stream, HEAD)
    if not looks_like_tar(first):
        yield first
        while data := stream.read(streams.CHUNK):
            yield data
        return
    limits = dataclasses.replace(tarball.DEFAULT_LIMITS, unpacked=limit + tarball.DEFAULT_LIMITS.unpacked)
    found = ""
    for member in tarball.members(tarball.TarInput(streams.Pushback(first, stream), limits), limits):
        beginning = _beginning(member)
        if member.path and _is_disk(member, beginning, path):
            if found:
                raise InputError(f"{path} holds two disks, {found} and {member.path}", "source", "Give one of them.")
            found = member.path
            yield beginning
            yield from member.data
        elif member.kind != tarball.DIRECTORY and (member.kind != tarball.FILE or member.size > MAX_BESIDE):
            raise InputError(f"{path} holds a disk, {found}, and other files as well", "source", "Give the disk alone.")


def _beginning(member: tarball.Member) -> bytes:
    """The first bytes of a file in a tar, or more of them; its data goes on behind them."""
    data = b""
    for piece in member.data:
        data += piece
        if len(data) >= HEAD:
            break
    return data


def _is_disk(member: tarball.Member, beginning: bytes, path: str) -> bool:
    """Whether a file in a tar is a disk, which most tars with boot files in them are not."""
    if member.kind != tarball.FILE:
        return False
    if member.size < MIN_DISK and not beginning.startswith((QCOW2_MAGIC, vmdk.MAGIC)):
        return False
    kernel = beginning.startswith(KERNEL_MAGIC, KERNEL_PLACE)
    return not kernel and begins_disk(beginning, f"{path} is a tar, and {tarball.printable(member.path)} in it")


def tar_kind(stream: streams.Reader, path: str) -> type[kinds.Source]:
    """A root file system shows itself by its first folder or link that no archive of images has.

    A disk at the top is all that matters in a tar that begins with it, or with small files beside it; so is one that
    begins a folder of another name than a root's. Any other file at the top says nothing: tools and people add theirs
    to archives.
    """
    names, others, folder = set(), set(), ""
    for member in tarball.members(tarball.TarInput(stream, tarball.DEFAULT_LIMITS)):
        top = member.path.partition("/")[0]
        if top in ("", *OCI_TOP) or DOCKER_RE.match(member.path):
            names.add(member.path)
        elif member.kind == tarball.FILE and (top == folder or (member.path == top and not folder)):
            if not names - {""} and _is_disk(member, _beginning(member), path):
                return kinds.PackedDisk
            if folder:
                return kinds.RootTar
            others.add(member.path)
        elif member.kind == tarball.DIRECTORY and top not in ROOT_FOLDERS and folder in ("", top):
            folder = top
        else:
            return kinds.RootTar
    if folder:
        return kinds.RootTar
    if {"oci-layout", "index.json"} <= names:
        return kinds.OciArchive
    if "manifest.json" in names:
        return kinds.DockerArchive
    if others:
        return kinds.RootTar
    raise InputError(f"{path} is neither a root file system nor an archive of images", "source", KNOWN)


def compression_of(fd: int) -> str | None:
    """What the file is compressed with, if it is."""
    return streams.compression(os.pread(fd, 8, 0))


def _raw(fd: int, head: bytes, path: str) -> type[kinds.Source]:
    """A raw disk is taken for one only if a BIOS would."""
    size = os.fstat(fd).st_size
    if head[510:512] == b"\x55\xaa" and size % 512 == 0:
        check_sectors(os.pread(fd, partitions.TABLE, 0), path)
        return kinds.RawDisk
    text = head.lstrip()[:15].lower()
    what = "a web page" if text.startswith((b"<!doctype", b"<html")) else "of no kind that is known here"
    raise InputError(f"{path} is {what}", "source", KNOWN + " A raw disk needs a boot sector.")


def check_sectors(table: bytes, path: str) -> None:
    """:raises UnsupportedError: the disk that begins so can be booted by nothing that reads it as a VM here does."""
    if partitions.for_large_sectors(table):
        raise UnsupportedError(
            f"{path} is partitioned for sectors of 4096 bytes, and a VM's disk has sectors of 512: no firmware finds"
            " its partitions",
            "source",
            "Get the image for sectors of 512 bytes, which most are, or write its partition table anew.",
        )


def check_qcow2(head: bytes, path: str, overlay: bool = False) -> int:
    """The virtual size of a qcow2 file whose first bytes are *head*.

    :param overlay: it may name a file behind it, as whoever opens it names another one.
    :raises InputError: it refers to another file, is encrypted, damaged, or of an unknown version.
    """
    if len(head) < 104:  # the header of version 3; no image is that small in either version
        raise InputError(f"{path} is cut short", "source", "Get it again.")
    version, backing, _length, bits, size, crypt = struct.unpack(">IQIIQI", head[4:36])
    if version not in (2, 3) or not 9 <= bits <= 21 or not 0 < size <= MAX_VIRTUAL_SIZE:
        raise InputError(f"{path} has a damaged qcow2 header", "source", "Get it again.")
    flatten = "Make it whole with 'qemu-img convert -O qcow2'."
    if backing and not overlay:
        raise InputError(f"{path} has a backing file, which could be any file of this host", "source", flatten)
    if crypt:
        raise InputError(f"{path} is encrypted", "source", "Decrypt it with 'qemu-img convert'.")
    features = struct.unpack(">Q", head[72:80])[0] if version == 3 else 0
    length = struct.unpack(">I", head[100:104])[0] if version == 3 else 72
    if features & QCOW2_DATA_FILE or _has_data_file(head, length):
        raise InputError(f"{path} keeps its data in another file of the host", "source", flatten)
    if features & QCOW2_CORRUPT or features & ~QCOW2_KNOWN_FEATURES:
        raise InputError(f"{path} is marked corrupt, or needs a newer qemu-img", "source", "Get it again.")
    return t.cast(int, size)


def _has_data_file(head: bytes, position: int) -> bool:
    """Whether a header extension names an external data file."""
    while position + 8 <= len(head):
        kind, length = struct.unpack(">II", head[position : position + 8])
        if kind == 0:
            return False
        if kind == QCOW2_DATA_FILE_EXTENSION:
            return True
        position += 8 + (length + 7) // 8 * 8
    return False
