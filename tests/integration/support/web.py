# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A web server with all the manners that downloads meet, good and bad; run as a program, inside a network namespace.

The first part of a path says how the file behind it is served, its file name which file that is:

    plain     with ETag, Last-Modified and ranges          norange   without ranges
    bare      without anything that tells its versions     chunked   without its length
    cut-N     the connection ends after N bytes            busy-N    status 503 for the first N times
    page      as a web page                                moved     redirected to plain
    lowered   redirected from https to http                swapped   the ETag differs with every answer
    wide      claims to be a terabyte                      stall-N   after N bytes the first time nothing more comes

Every answer is a line of JSON in the log: method, path, range, status, bytes sent.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.server
import json
import re
import ssl
import threading
from collections import Counter
from email.utils import formatdate
from pathlib import Path

CHUNK = 64 << 10
HTTPS, EXPIRED, HTTP = 8443, 8444, 8080


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    folder: Path
    log: Path
    lock = threading.Lock()
    asked: Counter[str] = Counter()

    def do_GET(self) -> None:
        self.answer(True)

    def do_HEAD(self) -> None:
        self.answer(False)

    def log_message(self, *words: object) -> None:
        """The log has what matters."""

    def note(self, status: int, count: int) -> None:
        entry = {"method": self.command, "path": self.path, "range": self.headers.get("Range"), "status": status}
        with self.lock, self.log.open("a") as stream:
            stream.write(json.dumps({**entry, "bytes": count}) + "\n")

    def short(self, status: int, **headers: str) -> None:
        self.note(status, 0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, body: bool) -> None:
        manner, _slash, name = self.path.partition("?")[0].lstrip("/").partition("/")
        manner, _dash, number = manner.partition("-")
        path = self.folder / name
        with self.lock:
            self.asked[self.path] += 1
            times = self.asked[self.path]
        if manner == "busy" and times <= int(number):
            return self.short(503)
        if manner == "moved":
            return self.short(302, Location=f"/plain/{name}")
        if manner == "lowered":
            return self.short(302, Location=f"http://127.0.0.1:{HTTP}/plain/{name}")
        if not path.is_file():
            return self.short(404)
        self.send(manner, path, int(number or 0), body, times)

    def send(self, manner: str, path: Path, number: int, body: bool, times: int) -> None:
        data = path.read_bytes()
        tag = f'"{hashlib.sha256(data).hexdigest()[:12]}{times if manner == "swapped" else ""}"'
        start = 0
        wanted = re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range") or "")
        if wanted and manner not in ("norange", "bare", "chunked") and self.headers.get("If-Range") in (None, tag):
            start = int(wanted[1])
        if start >= len(data) > 0:
            return self.short(416)
        end = min(len(data), int(wanted[2]) + 1) if wanted and wanted[2] else len(data)
        partial = wanted is not None and (start > 0 or end < len(data))
        self.send_response(206 if partial else 200)
        self.send_header("Content-Type", "text/html" if manner == "page" else "application/octet-stream")
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        if manner != "bare":
            self.send_header("ETag", tag)
            self.send_header("Last-Modified", formatdate(path.stat().st_mtime, usegmt=True))
        length = 1 << 40 if manner == "wide" else end - start
        if manner == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        stalls = manner == "stall" and times == 1
        sent = self.body(data[start:end], number if manner == "cut" or stalls else None, manner) if body else 0
        self.note(206 if partial else 200, sent)
        if stalls:
            with contextlib.suppress(OSError):
                self.connection.recv(1)  # until the client is gone

    def body(self, data: bytes, limit: int | None, manner: str) -> int:
        cut = limit is not None and limit < len(data)
        data = data[:limit] if cut else data
        for position in range(0, len(data), CHUNK):
            block = data[position : position + CHUNK]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block) if manner == "chunked" else block)
        if manner == "chunked":
            self.wfile.write(b"0\r\n\r\n")
        if cut or manner == "wide":
            self.close_connection = True
        return len(data)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("folder", "log", "good", "expired", "ready"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    Handler.folder, Handler.log = options.folder, options.log
    servers = [server(HTTP), server(HTTPS, options.good), server(EXPIRED, options.expired)]
    options.ready.touch()
    threads = [threading.Thread(target=each.serve_forever) for each in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def server(port: int, certificate: Path | None = None) -> http.server.HTTPServer:
    """One port; with a certificate (and its key beside it) that of https."""
    made = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        made.socket = context.wrap_socket(made.socket, server_side=True)
    return made


if __name__ == "__main__":
    main()
