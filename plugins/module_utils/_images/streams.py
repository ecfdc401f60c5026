# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Byte streams: source files hashed while they are read, and their decompression within limits."""

from __future__ import annotations

import bz2
import contextlib
import fcntl
import hashlib
import io
import lzma
import os
import shutil
import stat
import subprocess
import threading
import typing as t
import zlib

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, ToolError

CHUNK = 1 << 20
XZ_MEMORY = 256 << 20
NOBODY = 65534
F_SETPIPE_SZ = 1031  # in fcntl since Python 3.10
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2"}
# What zstd lets stand between frames, and passes over: pzstd begins with one. The first byte may be any of 16.
SKIPPABLE = b"\x2a\x4d\x18"


class Reader(t.Protocol):
    """What the functions here read from."""

    def read(self, size: int = -1, /) -> bytes: ...


def open_source(path: str, option: str = "source") -> int:
    """A descriptor of a regular file given by the user.

    :raises InputError: there is none, or it is something else.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise InputError(f"cannot open {path}: {exc.strerror}", option, "Give a path on the target host.") from exc
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InputError(f"{path} is not a regular file", option)
    return fd


def file_digest(fd: int, progress: t.Callable[[int], None] | None = None) -> str:
    """Hex SHA-256 of the whole file *fd*; its position is left at the end.

    :param progress: told how many bytes more were read.
    """
    digest = hashlib.sha256()
    os.lseek(fd, 0, os.SEEK_SET)
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    with open(fd, "rb", buffering=0, closefd=False) as stream:
        while True:
            count = stream.readinto(buffer)
            if not count:
                return digest.hexdigest()
            digest.update(view[:count])
            if progress:
                progress(count)


class HashingReader:
    """Counts and hashes what is read through it."""

    def __init__(self, stream: Reader, progress: t.Callable[[int], None] | None = None) -> None:
        """:param progress: told how many bytes more were read."""
        self._stream = stream
        self._progress = progress
        self._digest = hashlib.sha256()
        self.count = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self._digest.update(data)
        self.count += len(data)
        if self._progress:
            self._progress(len(data))
        return data

    def drain(self) -> None:
        while self.read(CHUNK):
            pass

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def compression(head: bytes) -> str | None:
    """``gzip``, ``zstd``, ``xz`` or ``bzip2`` by the first bytes, else ``None``."""
    if head[1:4] == SKIPPABLE and head[0] >> 4 == 5:
        return "zstd"
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)


class Pushback:
    """A stream whose first bytes have been looked at already."""

    def __init__(self, head: bytes, stream: Reader) -> None:
        self._head = head
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        if not self._head:
            return self._stream.read(size)
        size = len(self._head) if size < 0 else size
        data, self._head = self._head[:size], self._head[size:]
        return data


class Inflate(io.RawIOBase):
    """Decompressed bytes of *stream*, made by decompressor objects; several members in a row are one stream."""

    def __init__(self, stream: Reader, make: t.Callable[[], t.Any]) -> None:
        super().__init__()
        self._stream = stream
        self._make = make
        self._engine = make()
        self._rest = b""
        self._started = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: t.Any) -> int:
        while True:
            data = self._step(len(buffer))
            if data is None:
                return 0
            if data:
                buffer[: len(data)] = data
                return len(data)

    def _step(self, limit: int) -> bytes | None:
        if self._engine.eof:
            self._rest = self._engine.unused_data or self._stream.read(CHUNK)
            if not self._rest or not self._rest.strip(b"\0"):
                return None
            self._engine = self._make()
            self._started = False
        if not self._rest and getattr(self._engine, "needs_input", True):
            self._rest = self._stream.read(CHUNK)
            if not self._rest:
                raise EOFError("the compressed data is cut short")
        data = self._engine.decompress(self._rest, limit)
        self._rest = getattr(self._engine, "unconsumed_tail", b"")
        return t.cast(bytes, data)


def inflate(stream: Reader, kind: str | None) -> contextlib.AbstractContextManager[Reader]:
    """The decompressed bytes of *stream*, whose compression is *kind*."""
    if kind is None:
        return contextlib.nullcontext(stream)
    if kind == "zstd":
        return _unzstd(stream)
    engines: dict[str, t.Callable[[], t.Any]] = {
        "gzip": lambda: zlib.decompressobj(wbits=31),
        "bzip2": bz2.BZ2Decompressor,
        "xz": lambda: lzma.LZMADecompressor(memlimit=XZ_MEMORY),
    }
    reader = io.BufferedReader(Inflate(stream, engines[kind]), CHUNK)
    return contextlib.nullcontext(t.cast(Reader, reader))


def widen(*pipes: t.IO[bytes] | None) -> None:
    """Let pipes to and from a tool hold a whole chunk: a third faster, where a user may have pipes of that size."""
    with contextlib.suppress(OSError):
        for pipe in pipes:
            fcntl.fcntl(t.cast("t.IO[bytes]", pipe), F_SETPIPE_SZ, CHUNK)


@contextlib.contextmanager
def _unzstd(stream: Reader) -> t.Iterator[Reader]:
    """Through the zstd tool, unprivileged: Python has none before 3.14."""
    if not shutil.which("zstd"):
        raise ToolError("zstd is not installed", remedy="Install zstd, or run the role cocoon.microvm.host.")
    with subprocess.Popen(  # pylint: disable=ansible-bad-function  # it is fed a stream
        ["zstd", "-dcq", "--memory=256MB"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
    ) as process:
        widen(process.stdin, process.stdout)
        pump = threading.Thread(target=_pump, args=(stream, process.stdin), daemon=True)
        pump.start()
        try:
            yield _Checked(process)
        finally:
            process.kill()
            pump.join()


def _pump(stream: Reader, sink: t.IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError, ValueError), sink:
        while True:
            data = stream.read(CHUNK)
            if not data:
                return
            sink.write(data)


class _Checked:
    """The output of a decompressor, whose failure is an error at the end of it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def read(self, size: int = -1, /) -> bytes:
        output = t.cast(t.IO[bytes], self._process.stdout)
        data = output.read(size)
        if not data and self._process.wait(30) != 0:
            message = t.cast(t.IO[bytes], self._process.stderr).read(4096).decode(errors="replace").strip()
            raise EOFError(f"zstd: {message}")
        return data
