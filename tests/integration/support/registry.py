# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real registry in a network namespace, and what can go wrong on the way to it.

Registry  Debian's docker-registry, on loopback: with TLS and passwords, or plain and open.
Meddler   stands before the plain one: counts, cuts, spoils and stalls what is fetched.
Shelf     builds images from layers, and pushes them with skopeo.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.client
import http.server
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.cocoon.microvm.tests.integration.support.machine import TOKEN, WORK, Netns, command
from ansible_collections.cocoon.microvm.tests.integration.support.networking import inside

USER, PASSWORD = "puller", "s3cret:with a colon"
# bcrypt is all that docker-registry takes, and perl is on every Debian.
BCRYPT = "print crypt($ARGV[0], q($2y$05$abcdefghijklmnopqrstuu))"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def binary() -> str | None:
    """Debian's docker-registry, as `make setup` fetched it or as it is installed."""
    fetched = WORK / "tools" / "usr" / "bin" / "docker-registry"
    return str(fetched) if fetched.exists() else shutil.which("docker-registry")


class Authority:
    """A certificate authority of the tests' own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.certificate = folder / "ca.crt"
        self._key("ca")
        words = ["req", "-x509", "-new", "-key", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=tests"]
        # Python 3.13 wants to read what an authority is for.
        self._openssl(*words, "-addext", "keyUsage=critical,keyCertSign,cRLSign")

    def sign(self, name: str, days: int = 2) -> tuple[Path, Path]:
        """A certificate for 127.0.0.1 and its key; with days below 0 one that has expired."""
        self._key(name)
        self._openssl("req", "-new", "-key", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (self.folder / "names").write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n")
        words = ["x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"]
        validity = ["-days", str(days)]
        if days < 0 and b"-not_after" in self._openssl("x509", "-help"):  # where it is there, days are never negative
            validity = ["-not_before", "20200101000000Z", "-not_after", "20200102000000Z"]
        self._openssl(*words, *validity, "-extfile", "names", "-out", f"{name}.crt")
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"

    def _key(self, name: str) -> None:
        self._openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", f"{name}.key")

    def _openssl(self, *words: str) -> bytes:
        """What it says."""
        done = subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)
        return done.stdout + done.stderr


class Registry:
    """A docker-registry process."""

    def __init__(self, netns: Netns, folder: Path, port: int, tls: tuple[Path, Path] | None, passwords: bool) -> None:
        self.netns = netns
        self.host = f"127.0.0.1:{port}"
        self.folder = folder
        http_part: dict[str, Any] = {"addr": self.host, "secret": "tests"}
        if tls:
            http_part["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
            "http": http_part,
        }
        if passwords:
            digest = command("perl", "-e", BCRYPT, PASSWORD)
            (folder / "htpasswd").write_text(f"{USER}:{digest}\n")
            config["auth"] = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
        path = folder / f"registry-{port}.yml"
        path.write_text(json.dumps(config))  # which is YAML as well
        self._process = subprocess.Popen(
            [*netns.enter(), str(binary()), "serve", str(path)],
            env={**os.environ, TOKEN[0]: TOKEN[1]},
            stdin=subprocess.DEVNULL,
            stdout=(folder / f"registry-{port}.log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        self._await(port)

    def _await(self, port: int) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                inside(self.netns, socket.create_connection, ("127.0.0.1", port), 1).close()
                return
            except OSError:
                assert self._process.poll() is None and time.monotonic() < deadline, "the registry did not start"
                time.sleep(0.02)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)


class Meddler:
    """An HTTP server before a plain registry."""

    def __init__(self, netns: Netns, port: int, upstream: str) -> None:
        self.host = f"127.0.0.1:{port}"
        self.upstream = upstream
        self.reset()
        meddler = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                meddler.answer(self)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = inside(netns, http.server.ThreadingHTTPServer, ("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=inside, args=(netns, self._server.serve_forever, 0.05))
        self._thread.start()

    def reset(self) -> None:
        """Forget what was asked for, and let everything pass."""
        self.asked: list[str] = []
        self.cut: set[str] = set()
        self.spoiled: set[str] = set()
        self.delay: dict[str, float] = {}
        self.pace: dict[str, float] = {}
        self.stalled: set[str] = set()
        self.stalling = threading.Event()
        self.go_on = threading.Event()
        self.gone = False

    def blobs(self) -> list[str]:
        """Digests of the blobs that were fetched, in hex and in order."""
        return [path.rpartition(":")[2] for path in self.asked if "/blobs/" in path]

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        self.asked.append(request.path)
        name = request.path.rpartition(":")[2]
        if self.gone:
            request.close_connection = True
            return
        time.sleep(self.delay.get(name, 0))
        connection = self._connect()  # this thread is in the namespace, as the one that began it
        connection.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
        for key, value in request.headers.items():  # several of a kind, too
            connection.putheader(key, value)
        connection.endheaders()
        answer = connection.getresponse()
        request.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in ("connection", "transfer-encoding", "date", "server"):
                request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            self._body(request, name, answer.read())
        connection.close()

    def _body(self, request: http.server.BaseHTTPRequestHandler, name: str, data: bytes) -> None:
        if name in self.spoiled:
            data = bytes([data[0] ^ 1]) + data[1:]
        half = len(data) // 2
        try:
            self._slowly(request, data[:half], self.pace.get(name, 0) / 2)
            if name in self.stalled:
                self.stalling.set()
                self.go_on.wait(60)
            if name in self.cut:
                self.gone = True
                request.close_connection = True
                request.connection.shutdown(socket.SHUT_RDWR)
                return
            self._slowly(request, data[half:], self.pace.get(name, 0) / 2)
        except OSError:
            request.close_connection = True

    @staticmethod
    def _slowly(request: http.server.BaseHTTPRequestHandler, data: bytes, seconds: float) -> None:
        """Send *data* in pieces that take so long altogether."""
        pieces = 10 if seconds else 1
        size = len(data) // pieces + 1
        for start in range(0, len(data), size):
            request.wfile.write(data[start : start + size])
            request.wfile.flush()
            time.sleep(seconds / pieces)

    def _connect(self) -> http.client.HTTPConnection:
        host, _colon, port = self.upstream.partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        connection.connect()
        return connection

    def stop(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@dataclasses.dataclass(frozen=True)
class Mirrored(Netns):
    """A network namespace; what runs inside believes that a registry of ours is Docker Hub, by the host's settings."""

    folder: Path

    def enter(self) -> Sequence[str]:
        """What to put before a command line to run it inside."""
        script = 'mount --bind "$0" /etc/containers/registries.conf.d && exec "$@"'
        return [*super().enter(), "unshare", "--mount", "sh", "-c", script, str(self.folder)]


def mirrored(registry: Registry, host: str = "") -> Mirrored:
    """The namespace of a registry, with the settings of a host that has it, or *host*, as a mirror."""
    folder = registry.folder / "registries.conf.d"
    folder.mkdir(exist_ok=True)
    text = f'[[registry]]\nprefix = "docker.io"\nlocation = "{host or registry.host}"\ninsecure = true\n'
    (folder / "50-mirror.conf").write_text(text)
    return Mirrored(registry.netns.name, folder)


def layer(*entries: tuple[str, bytes]) -> bytes:
    """A tar of files."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as target:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def hexes(layers: Iterable[bytes]) -> list[str]:
    return [hashlib.sha256(data).hexdigest() for data in layers]


class Shelf:
    """Layouts of images, made in a folder and pushed to the plain registry."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        self.folder = folder
        self._registry = registry

    def image(
        self, layout: Path, *layers: bytes, architecture: str = ARCHITECTURE, plain: Sequence[bytes] | None = None
    ) -> dict[str, Any]:
        """Add an image to a layout.

        :param plain: the layers without compression, or what the config is to say that they are.
        :returns: its descriptor.
        """
        config = {
            "architecture": architecture,
            "os": "linux",
            "created": "2026-01-02T03:04:05Z",
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{name}" for name in hexes(plain or layers)]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": put(layout, json.dumps(config).encode(), CONFIG),
            "layers": [put(layout, data, LAYER) for data in layers],
        }
        descriptor = put(layout, json.dumps(manifest).encode(), MANIFEST)
        return {**descriptor, "platform": {"architecture": architecture, "os": "linux"}}

    def layout(self, *descriptors: dict[str, Any], path: Path) -> Path:
        """Finish a layout whose one entry is the image, or an index of several."""
        top = descriptors[0]
        if len(descriptors) > 1:
            index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(descriptors)}
            top = put(path, json.dumps(index).encode(), INDEX)
        entry = {key: top[key] for key in ("mediaType", "digest", "size")}
        entry["annotations"] = {"org.opencontainers.image.ref.name": "it"}
        (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        return path

    def push(
        self,
        name: str,
        *images: tuple[str, tuple[bytes, ...]] | bytes,
        form: str = "oci",
        plain: Sequence[bytes] | None = None,
    ) -> str:
        """Push an image of these layers, or an index of (architecture, layers). :returns: digest of what was pushed."""
        path = self.folder / f"layout-{time.monotonic_ns()}"
        if images and isinstance(images[0], bytes):
            descriptors = [self.image(path, *[data for data in images if isinstance(data, bytes)], plain=plain)]
        else:
            pairs = [pair for pair in images if isinstance(pair, tuple)]
            descriptors = [self.image(path, *layers, architecture=machine) for machine, layers in pairs]
        self.layout(*descriptors, path=path)
        words = ["skopeo", "copy", "--quiet", "--all", "--dest-tls-verify=false", "--format", form]
        if form == "oci":
            words.append("--preserve-digests")  # or it would compress the layers
        target = f"docker://{self._registry.host}/{name}"
        self._registry.netns.run(*words, f"oci:{path}:it", target)
        shutil.rmtree(path)
        return f"sha256:{hashlib.sha256(self.manifest(name).encode()).hexdigest()}"

    def manifest(self, name: str) -> str:
        """The manifest or index that a name leads to, as it is."""
        target = f"docker://{self._registry.host}/{name}"
        return self._registry.netns.run("skopeo", "inspect", "--raw", "--tls-verify=false", target)

    def place(self, name: str, manifest: dict[str, Any], *blobs: bytes) -> str:
        """Put a manifest there word by word, for what no tool would push. :returns: its digest."""
        repository, _colon, tag = name.partition(":")
        data = json.dumps(manifest).encode()

        def work() -> None:
            connection = http.client.HTTPConnection(self._registry.host, timeout=30)

            def ask(method: str, path: str, body: bytes = b"", kind: str = "application/octet-stream") -> str:
                connection.request(method, path, body, {"Content-Type": kind})
                answer = connection.getresponse()
                answer.read()
                assert answer.status in (201, 202), (answer.status, path)
                return answer.getheader("Location") or ""

            for blob, digest in zip(blobs, hexes(blobs)):
                place = ask("POST", f"/v2/{repository}/blobs/uploads/")
                path = place[place.index("/v2/") :]
                ask("PUT", f"{path}{'&' if '?' in path else '?'}digest=sha256:{digest}", blob)
            ask("PUT", f"/v2/{repository}/manifests/{tag}", data, manifest["mediaType"])
            connection.close()

        inside(self._registry.netns, work)
        return f"sha256:{hexes([data])[0]}"


def put(layout: Path, data: bytes, kind: str) -> dict[str, Any]:
    """Write a blob. :returns: its descriptor."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}


def auth_file(path: Path, host: str, user: str = USER, password: str = PASSWORD) -> Path:
    """A file as `podman login --authfile` makes it."""
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()
    path.write_text(json.dumps({"auths": {host: {"auth": pair}}}))
    path.chmod(0o600)
    return path
