# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Agents of guests without guests: ours, run here behind a port as a hypervisor has it; and doubles of others."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import socket
import subprocess
import threading
import typing as t
from pathlib import Path

import ansible_collections.cocoon.microvm as collection
from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._process import identify
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.tests.unit import documents

AGENT = Path(next(iter(collection.__path__))) / "roles" / "image" / "files" / "guest" / "common" / "agent"
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
            words = ["perl", str(AGENT), "-", "/", "/bin/true"]
            self.process = subprocess.Popen(words, stdin=inside, stdout=inside)

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


class Cocoon:
    """A double of the Cocoon agent behind vsock: a command for each connection, run here."""

    def __init__(self) -> None:
        self.commands: list[dict[str, t.Any]] = []

    def serve(self, client: socket.socket) -> None:
        stream = client.makefile("rwb")

        def say(**document: t.Any) -> None:
            stream.write(json.dumps(document).encode() + b"\n")
            stream.flush()

        if stream.readline() != b"CONNECT 1024\n":
            return
        stream.write(b"OK 1073741824\n")
        stream.flush()
        try:
            asked = json.loads(stream.readline())
        except ValueError:
            return
        if asked.get("type") != "exec":
            say(type="error", message=f'expected first frame type "exec" or "reseed", got "{asked.get("type", "")}"')
            return
        self.commands.append(asked)
        data = b""
        for line in stream:
            frame = json.loads(line)
            if frame["type"] == "stdin_close":
                break
            data += base64.b64decode(frame["data"])
        try:
            child = subprocess.Popen(
                asked["argv"], env=asked["env"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as exc:
            say(type="error", message=f"start: {exc}")
            return
        say(type="started", pid=child.pid)
        printed = child.communicate(data)
        for kind, text in zip(("stdout", "stderr"), printed):
            for start in range(0, len(text), 32 << 10):
                say(type=kind, data=base64.b64encode(text[start : start + (32 << 10)]).decode())
        say(type="exit", **({"exit_code": child.returncode} if child.returncode else {}))
