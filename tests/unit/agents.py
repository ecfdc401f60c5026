# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Agents of guests without guests: ours, run here behind a port as a hypervisor has it; and doubles of others."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import threading
import time
import typing as t
from pathlib import Path

import ansible_collections.cocoon.microvm as collection
from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._process import identify
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.tests.unit import cocoon, documents

COMMON = Path(next(iter(collection.__path__))) / "roles" / "image" / "files" / "guest" / "common"
AGENT = COMMON / "agent"
OUR_AGENT = ("perl", str(AGENT), "-", "/", "/bin/true")
# What listens at a guest's vsock does so at a unix socket here, wherever it is, for a host at the address in CID.
PLACES = {
    "exit 0 if !has_vsock();": "",
    "($VSOCK, $LOCAL, $STREAM) = (40, 1, 1)": "($VSOCK, $LOCAL, $STREAM) = (1, 1, 1)",
    "pack 'S S L L x4', $VSOCK, 0, $PORT, $ANY": "pack 'S a108', 1, $ENV{PLACE}",
    "unpack 'S S L L', $peer": "unpack 'S S L L', pack 'S S L L x4', 40, 0, 1 << 30, $ENV{CID}",
    "my ($PATIENCE, $LONG) = (10, 60);": "my ($PATIENCE, $LONG) = (1, 2);",
}
Serve = t.Callable[[socket.socket], None]


def make_vm(store: Store, name: str, hypervisor: str = "qemu", folder: str = "") -> Path:
    """A VM whose process is this one; the folder in which its agent is to listen."""
    vm_id = types.new_id()
    run_dir = Path(store.paths.vm_run(vm_id))
    (run_dir / folder).mkdir(parents=True)
    os.makedirs(store.paths.vm_dir(vm_id))
    store.index("vm").reserve(name, vm_id)
    record = documents.document("vm-1-first", id=vm_id, hypervisor=hypervisor, state=types.RUNNING)
    record.update(process=identify(os.getpid()), pid=os.getpid())
    record["config"]["name"] = name
    store.write_vm(record)
    return run_dir / folder


class Server:
    """Listens at a unix socket, and serves one client after the other, or all at once, until it is closed."""

    def __init__(self, path: Path, serve: Serve, parallel: bool = False) -> None:
        self.path, self.serve, self.parallel = path, serve, parallel
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(8)
        self.clients = 0
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while True:
            try:
                client, _address = self.listener.accept()
            except OSError:
                return
            self.clients += 1
            if self.parallel:
                threading.Thread(target=self._one, args=(client,), daemon=True).start()
            else:
                self._one(client)

    def _one(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            self.serve(client)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(5)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class Port:
    """Our agent behind a port that one client after the other opens; what it says to nobody waits for the next one."""

    def __init__(self) -> None:
        self.end, inside = socket.socketpair()
        with inside:
            self.process = subprocess.Popen(OUR_AGENT, stdin=inside, stdout=inside)

    def serve(self, client: socket.socket) -> None:
        while True:
            for ready in select.select([client, self.end], [], [])[0]:
                data = ready.recv(1 << 16)
                if not data:
                    return
                (self.end if ready is client else client).sendall(data)

    def close(self) -> None:
        self.end.close()
        self.process.kill()
        self.process.wait()


class Vsock:
    """What listens at the vsock of a guest of ours, and the hypervisor in front of it.

    :param agent: what it is told of the agent. :param command: of clones. :param cid: who connects; 2 is the host.
    """

    def __init__(self, folder: Path, agent: t.Sequence[str], command: t.Sequence[str] = ("true",), cid: int = 2):
        source = (COMMON / "vsock").read_text(encoding="utf-8")
        for mine, here in PLACES.items():
            assert mine in source
            source = source.replace(mine, here)
        script, self.place = folder / "vsock", folder / "s"
        script.write_text(source, encoding="utf-8")
        environment = {**os.environ, "PLACE": str(self.place), "CID": str(cid)}
        self.process = subprocess.Popen(["perl", script, *agent, "--", *command], env=environment)
        self._await_listener()

    def _await_listener(self) -> None:
        """A socket is there before somebody listens at it; a connection that says nothing is let go of."""
        deadline = time.monotonic() + 20
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError), self.connect():
                return
            time.sleep(0.02)

    def connect(self) -> socket.socket:
        """A connection, as the guest sees it."""
        line = socket.socket(socket.AF_UNIX)
        line.settimeout(20)
        try:
            line.connect(str(self.place))
        except OSError:
            line.close()
            raise
        return line

    def serve(self, client: socket.socket) -> None:
        """Have a client of the hypervisor's connected."""
        head = b""
        while not head.endswith(b"\n"):
            data = client.recv(1)
            if not data:
                return
            head += data
        assert head == b"CONNECT 1024\n"
        with self.connect() as line:
            client.sendall(b"OK 1073741824\n")
            while True:
                for ready in select.select([client, line], [], [])[0]:
                    data = ready.recv(1 << 16)
                    if not data:
                        return
                    (line if ready is client else client).sendall(data)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Vsock:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class Cocoon:
    """A double of the Cocoon agent behind vsock."""

    def __init__(self) -> None:
        self.commands: list[dict[str, t.Any]] = []

    def serve(self, client: socket.socket) -> None:
        stream = client.makefile("rwb")
        if stream.readline() == b"CONNECT 1024\n":
            stream.write(b"OK 1073741824\n")
            stream.flush()
            cocoon.answer(t.cast(t.BinaryIO, stream), self.commands.append)
