# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files over HTTP into one file, which an interruption leaves so that the next attempt, or the next run, goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import os
import re
import ssl
import time
import typing as t
import urllib.error
import urllib.parse
import urllib.request

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    CocoonError,
    InputError,
    NotFoundError,
    ResourceError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._images.source import too_large
from ansible_collections.cocoon.microvm.plugins.module_utils._types import format_size

CHUNK = 1 << 20
HOLE = 64 << 10
ZEROS = bytes(HOLE)
# Attempts in a row that bring nothing, and in all.
FRUITLESS, ATTEMPTS = 4, 100
PAUSE = 0.5  # seconds, doubled each time
# X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED, for which ssl has no names.
OUT_OF_DATE = (9, 10)
BUSY = (408, 425, 429, 500, 502, 503, 504)
AGENT = "cocoon.microvm"
RESERVE = 64 << 20

Progress = t.Callable[[int, "int | None"], None]
_RANGE_RE = re.compile(r"^bytes ([0-9]+)-[0-9]+/([0-9]+|\*)\Z")


@dataclasses.dataclass(frozen=True)
class Access:
    """How to reach a server.

    :param ca_path: file or directory of certificates to believe besides the system's.
    :param timeout: seconds without a byte before a connection is given up.
    """

    validate_certs: bool = True
    ca_path: str | None = None
    timeout: float = 30.0


@dataclasses.dataclass(frozen=True)
class Version:
    """What a server says of a file that tells one version of it from the next; empty where it says nothing."""

    etag: str = ""
    last_modified: str = ""
    size: int | None = None

    @classmethod
    def of(cls, headers: t.Any, size: int | None) -> Version:
        return cls(headers.get("ETag") or "", headers.get("Last-Modified") or "", size)

    @property
    def validator(self) -> str:
        """For If-Range, which a weak ETag does not do for."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified

    def same(self, other: Version) -> bool:
        """Whether both are certainly one."""
        if self.size != other.size:
            return False
        if self.etag or other.etag:
            return self.etag == other.etag
        return bool(self.last_modified) and self.last_modified == other.last_modified


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but never from https to anything less."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        before, after = (urllib.parse.urlsplit(url).scheme for url in (req.full_url, newurl))
        if after != "https" and after != before:
            raise InputError(
                f"{shown(req.full_url)} redirects to {after}, which is not safe", "source", "Use another URL."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def shown(url: str) -> str:
    """A URL for messages and records: what may be a secret, a query, is left out."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _opener(access: Access) -> urllib.request.OpenerDirector:
    try:
        context = ssl.create_default_context()
        if access.ca_path:
            folder = os.path.isdir(access.ca_path)
            context.load_verify_locations(**{"capath" if folder else "cafile": access.ca_path})
    except OSError as exc:  # ssl.SSLError is one
        raise InputError(f"cannot use {access.ca_path}: {exc.strerror or exc}", "ca_path") from exc
    if not access.validate_certs:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    opener = urllib.request.OpenerDirector()
    for handler in (  # and none for files, FTP or data
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def request(url: str, access: Access, headers: t.Mapping[str, str], method: str = "GET") -> t.Any:
    """An open response.

    :raises CocoonError: no use to try again. :raises OSError: perhaps there is.
    """
    words = {"User-Agent": AGENT, "Accept-Encoding": "identity", **headers}
    try:
        return _opener(access).open(
            urllib.request.Request(url, headers=words, method=method),
            timeout=access.timeout,
        )
    except urllib.error.HTTPError as exc:
        exc.close()
        raise _status_error(url, exc) from exc
    except urllib.error.URLError as exc:
        if isinstance(exc.reason, ssl.SSLCertVerificationError):
            raise _certificate_error(url, exc.reason) from exc
        raise OSError(str(exc.reason)) from exc
    except (http.client.HTTPException, ValueError) as exc:
        raise OSError(f"what it answers is no HTTP ({type(exc).__name__}: {exc})") from exc


def _certificate_error(url: str, exc: ssl.SSLCertVerificationError) -> InputError:
    text = f"the certificate of {shown(url)} is not valid: {exc.verify_message}"
    if exc.verify_code in OUT_OF_DATE:
        return InputError(text, "source", "Have the server's certificate renewed, if the host's clock is right.")
    return InputError(
        text, "ca_path", "Give the certificate of its authority if that is your own; else have the server's put right."
    )


class InterruptedTransfer(CocoonError):
    """What has come of the file is worth keeping: the next run goes on with it."""


class StatusError(OSError):
    """A status that another attempt may not get."""


def _status_error(url: str, exc: urllib.error.HTTPError) -> Exception:
    text = f"{shown(url)}: HTTP status {exc.code} ({exc.reason})"
    if exc.code in BUSY:
        return StatusError(text)
    if exc.code in (404, 410):
        return NotFoundError(text, "source", "Correct the URL.")
    if exc.code in (401, 403):
        return InputError(text, "source", "The server wants a login, which is not supported; use a URL without one.")
    if exc.code == 416:
        return StaleError(text)
    return InputError(text, "source", "See what the server says to a browser.")


class StaleError(OSError):
    """What there is of the file does not belong to what the server has now."""


def head(url: str, access: Access) -> Version:
    """What the server says of the file now, without any of it.

    :raises CocoonError: it is not to be had.
    """

    def ask() -> Version:
        with request(url, access, {}, "HEAD") as response:
            length = response.headers.get("Content-Length", "")
            return Version.of(response.headers, int(length) if length.isascii() and length.isdecimal() else None)

    return _patient(url, ask)


def small(url: str, access: Access, limit: int, option: str) -> bytes:
    """A small file.

    :raises CocoonError: it is not to be had, or is larger than *limit* bytes.
    """

    def ask() -> bytes:
        with request(url, access, {}) as response:
            return t.cast(bytes, response.read(limit + 1))

    data = _patient(url, ask)
    if len(data) > limit:
        raise InputError(f"{shown(url)} is larger than {format_size(limit)}", option)
    return data


def beginning(url: str, access: Access, size: int) -> bytes:
    """The first bytes of a file, or all of a smaller one."""

    def ask() -> bytes:
        with request(url, access, {"Range": f"bytes=0-{size - 1}"}) as response:
            refuse_page(url, response)
            return t.cast(bytes, response.read(size))

    return _patient(url, ask)


def refuse_page(url: str, response: t.Any) -> None:
    """:raises InputError: it is a web page, such as a portal's or an error's."""
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise InputError(f"{shown(url)} is a web page and not an image", "source", "Use the link to the file itself.")


T = t.TypeVar("T")


def _patient(url: str, ask: t.Callable[[], T]) -> T:
    for attempt in range(FRUITLESS):
        try:
            return ask()
        except CocoonError:
            raise
        except (OSError, http.client.HTTPException) as exc:
            problem: Exception = exc
            time.sleep(PAUSE * 2**attempt if attempt + 1 < FRUITLESS else 0)
    raise _gone(url, problem)


def _gone(url: str, exc: Exception) -> InterruptedTransfer:
    words = str(exc) if isinstance(exc, StatusError) else f"cannot get {shown(url)}: {exc or type(exc).__name__}"
    return InterruptedTransfer(
        words, "source", "Run the task again: it goes on from where it was cut off, if the server can."
    )


class DiskError(OSError):
    """Our own disk's fault, not the network's."""


class Part:
    """A file on its way: what there is of it, and which version of it that is.

    :param path: of the file; nobody else writes to it.
    :param version: that of an earlier run's part, ``None`` to begin anew.
    :param limit: bytes that it may have at most.
    :param algorithms: digests to make besides sha256.
    """

    def __init__(self, path: str, version: Version | None, limit: int, algorithms: t.Iterable[str] = ()) -> None:
        self.path = path
        self.limit = limit
        self.version = version
        self.names = ("sha256", *algorithms)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self.hashes: dict[str, t.Any] = {}
        self.count = 0
        if version is None or not version.validator:
            self.reset()
            return
        self.hashes = {name: hashlib.new(name) for name in self.names}
        while data := os.pread(self.fd, CHUNK, self.count):
            self._take(data)

    def reset(self) -> None:
        """Begin anew."""
        os.ftruncate(self.fd, 0)
        self.hashes = {name: hashlib.new(name) for name in self.names}
        self.count, self.version = 0, None

    def _take(self, data: bytes) -> None:
        for digest in self.hashes.values():
            digest.update(data)
        self.count += len(data)

    def write(self, data: bytes) -> None:
        """Add to the file; zeros become holes."""
        for start in range(0, len(data), HOLE):
            block = data[start : start + HOLE]
            if block != ZEROS:
                view, position = memoryview(block), self.count + start
                while view:
                    done = os.pwrite(self.fd, view, position)
                    view, position = view[done:], position + done
        self._take(data)
        os.ftruncate(self.fd, self.count)

    def hexdigest(self, algorithm: str) -> str:
        return t.cast(str, self.hashes[algorithm].hexdigest())

    def close(self) -> None:
        os.close(self.fd)


def fetch(
    url: str, access: Access, part: Part, remember: t.Callable[[Version], None], progress: Progress | None = None
) -> None:
    """Get the rest of a file.

    :param remember: told what is about to be written, before it is.
    :raises CocoonError: it cannot be had; what there is of it stays in *part* for the next run.
    """
    fruitless = 0
    for _attempt in range(ATTEMPTS):
        before = part.count
        try:
            _go_on(url, access, part, remember, progress)
            return
        except (CocoonError, DiskError):
            raise
        except StaleError as exc:
            part.reset()
            problem: Exception = exc
        except (OSError, http.client.HTTPException) as exc:
            problem = exc
        fruitless = 0 if part.count > before else fruitless + 1
        if fruitless >= FRUITLESS:
            break
        time.sleep(PAUSE * 2**fruitless)
    raise _gone(url, problem)


def _go_on(
    url: str, access: Access, part: Part, remember: t.Callable[[Version], None], progress: Progress | None
) -> None:
    """One attempt; returns when the file is complete."""
    headers = {}
    known = part.version
    # Of a whole file the last byte is asked for again, only to learn whether it is the same file still.
    offset = part.count - 1 if known and part.count and part.count == known.size else part.count
    if offset > 0 and known and known.validator:
        headers = {"Range": f"bytes={offset}-", "If-Range": known.validator}
    with request(url, access, headers) as response:
        refuse_page(url, response)
        total = _place(response, part, offset if headers else 0)
        if total is not None and total > part.limit:
            raise too_large(shown(url), part.limit)
        _check_space(part, total)
        if part.version is None:
            part.version = Version.of(response.headers, total)
            remember(part.version)
        skip = part.count - offset if headers and response.status == 206 else 0
        response.read(skip)
        while data := response.read(CHUNK):
            if part.count + len(data) > part.limit:
                raise too_large(shown(url), part.limit)
            _write(part, data)
            if progress:
                progress(part.count, total)
    if total is not None and part.count != total:
        raise OSError(f"the connection ended after {part.count} of {total} bytes")


def _write(part: Part, data: bytes) -> None:
    try:
        part.write(data)
    except OSError as exc:
        raise DiskError(exc.errno, exc.strerror) from exc


def _place(response: t.Any, part: Part, offset: int) -> int | None:
    """Have the part ready for what comes; the size of the whole file, if it is known."""
    length = response.headers.get("Content-Length", "")
    if response.status == 206:
        match = _RANGE_RE.match(response.headers.get("Content-Range", ""))
        if not match or int(match[1]) != offset or not offset:
            raise StaleError("the server sent another part than was asked for")
        return None if match[2] == "*" else int(match[2])
    part.reset()
    return int(length) if length.isascii() and length.isdecimal() else None


def _check_space(part: Part, total: int | None) -> None:
    """:raises ResourceError: the file does not fit."""
    info = os.fstatvfs(part.fd)
    free = info.f_bavail * info.f_frsize - RESERVE
    if total is not None and total - part.count > free:
        raise ResourceError(
            f"the image has {total >> 20}M, and {max(0, free) >> 20}M are free in {os.path.dirname(part.path)}",
            "root_dir",
            "Free some, or put root_dir on a larger file system.",
        )
