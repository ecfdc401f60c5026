# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the bytes of an archive go: compressed, hashed, into a file. The processors share the work."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import struct
import subprocess
import threading
import typing as t
import zlib

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, ToolError
from ansible_collections.cocoon.microvm.plugins.module_utils._images.streams import CHUNK, widen

if t.TYPE_CHECKING:
    import concurrent.futures

ZSTD = ("zstd", "-q", "-c", "-T0", "-3")
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
MAX_THREADS = 16
# The fastest level, no name, no time.
GZIP_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"
GZIP_LAST_BLOCK = b"\x03\x00"

Data = t.Union[bytes, bytearray, memoryview]


class HashedFile:
    """A new file and the digest of what has been written to it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: Data) -> None:
        self._digest.update(data)
        write_all(self._fd, data)
        self.size += len(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def write_all(fd: int, data: Data) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Sink(t.Protocol):
    """What an archive is written to. The data may change once ``write`` has returned."""

    def write(self, data: Data) -> None: ...

    def finish(self) -> None: ...

    def abort(self) -> None: ...


@contextlib.contextmanager
def open_sink(target: HashedFile, compression: str) -> t.Iterator[Sink]:
    """A sink for one archive: all of it is in *target* when the block ends well, and nothing runs on if it does not.

    :param compression: ``none``, ``gzip`` or ``zstd``.
    """
    kinds: dict[str, t.Callable[[HashedFile], Sink]] = {"none": _Plain, "gzip": _Gzip, "zstd": _Zstd}
    if compression not in kinds:
        raise InputError(f"'{compression}' is not a compression", "compression", f"Use one of: {', '.join(kinds)}.")
    sink = kinds[compression](target)
    try:
        yield sink
        sink.finish()
    except BaseException:
        sink.abort()
        raise


class _Plain:
    def __init__(self, target: HashedFile) -> None:
        self.write = target.write

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        pass


class _Gzip:
    """One gzip member, whose blocks are compressed on several threads.

    zlib at its level 1 is faster than the gzip tool is at its own, and makes the same of the same data on any number
    of processors.
    """

    def __init__(self, target: HashedFile) -> None:
        import concurrent.futures

        self._target = target
        self._threads = min(MAX_THREADS, len(os.sched_getaffinity(0)))
        self._pool = concurrent.futures.ThreadPoolExecutor(self._threads)
        self._waiting: collections.deque[concurrent.futures.Future[bytes]] = collections.deque()
        self._block = bytearray()
        self._crc = 0
        self._size = 0
        target.write(GZIP_HEAD)

    def write(self, data: Data) -> None:
        view = memoryview(data)
        while view:
            part = view[: CHUNK - len(self._block)]
            self._block += part
            view = view[len(part) :]
            if len(self._block) == CHUNK:
                self._submit()

    def _submit(self) -> None:
        self._crc = zlib.crc32(self._block, self._crc)
        self._size += len(self._block)
        self._waiting.append(self._pool.submit(_deflate, self._block))
        self._block = bytearray()
        if len(self._waiting) > 2 * self._threads:
            self._target.write(self._waiting.popleft().result())

    def finish(self) -> None:
        self._submit()
        while self._waiting:
            self._target.write(self._waiting.popleft().result())
        self._target.write(GZIP_LAST_BLOCK + struct.pack("<II", self._crc, self._size & 0xFFFFFFFF))
        self._pool.shutdown()

    def abort(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _deflate(block: Data) -> bytes:
    """A block that ends at a byte's boundary, so that any other may follow it."""
    engine = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return engine.compress(block) + engine.flush(zlib.Z_SYNC_FLUSH)


class _Zstd:
    """Through the zstd tool: Python has none before 3.14."""

    def __init__(self, target: HashedFile) -> None:
        self._target = target
        self._error: BaseException | None = None
        try:
            self._process = subprocess.Popen(  # pylint: disable=consider-using-with,ansible-bad-function  # a stream
                ZSTD,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=ENVIRONMENT,
            )
        except FileNotFoundError:
            raise ToolError(
                "zstd is not installed", remedy="Install zstd, use gzip, or run the role cocoon.microvm.host."
            ) from None
        widen(self._process.stdin, self._process.stdout)
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        """What the tool makes, into the file."""
        output = t.cast(t.BinaryIO, self._process.stdout)
        buffer = memoryview(bytearray(CHUNK))
        try:
            with output:  # closed on an error, which ends the tool
                while True:
                    count = os.readv(output.fileno(), [buffer])
                    if not count:
                        return
                    self._target.write(buffer[:count])
        except BaseException as exc:
            self._error = exc

    def write(self, data: Data) -> None:
        try:
            write_all(t.cast(t.BinaryIO, self._process.stdin).fileno(), data)
        except BrokenPipeError:
            self._fail()

    def finish(self) -> None:
        t.cast(t.BinaryIO, self._process.stdin).close()
        self._thread.join()
        if self._error or self._process.wait():
            self._fail()
        t.cast(t.BinaryIO, self._process.stderr).close()

    def _fail(self) -> t.NoReturn:
        self._process.kill()
        self._thread.join()
        if self._error:
            raise self._error
        message = t.cast(t.BinaryIO, self._process.stderr).read(4096).decode(errors="replace").strip()
        raise ToolError(f"zstd failed ({self._process.wait()}): {message}")

    def abort(self) -> None:
        self._process.kill()
        self._thread.join()
        with self._process:  # closes its pipes and waits for it
            pass
