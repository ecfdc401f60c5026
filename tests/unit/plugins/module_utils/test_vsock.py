# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way into a guest by its vsock, with a hypervisor in every mood on the other side."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import BusyError, HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.identity import answer_of
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import vsock
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Channel


def way(path: str, uid: int | None = None) -> Channel:
    return Channel("vsock", path, vsock.AGENT_PORT, os.getuid() if uid is None else uid)


def dial(path: str, uid: int | None = None) -> socket.socket:
    return vsock.dial(way(path, uid), time.monotonic() + 0.5)


@pytest.fixture(name="path")
def fixture_path(tmp_path: Path) -> str:
    return str(tmp_path / "v")


class Hypervisor:
    """It takes connections: for each it notes what it was told, and says *greeting* (``None``: it hangs up)."""

    def __init__(self, path: str, greeting: bytes | None) -> None:
        self.heard: list[bytes] = []
        self.greeting = greeting
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(4)
        self.lines: list[socket.socket] = []
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        while True:
            try:
                line = self.listener.accept()[0]
            except OSError:
                return
            data = b""
            while not data.endswith(b"\n"):
                received = line.recv(100)
                if not received:
                    break
                data += received
            if not data:
                continue  # somebody has looked who listens
            self.heard.append(data)
            if self.greeting is None:
                line.close()
            else:
                self.lines.append(line)
                line.sendall(self.greeting)


def test_a_guest_is_told(path: str) -> None:
    hypervisor = Hypervisor(path, b"OK 1073741824\n")
    with vsock.announce(way(path), b"cocoon-identity 1\nend\n") as line:
        said = hypervisor.lines[0].recv(1000)
        assert hypervisor.heard == [b"CONNECT 1024\n"] and said.endswith(b"\n") and said.count(b"\n") == 1
        assert json.loads(said) == {"type": "identity", "message": "cocoon-identity 1\nend\n"}
        hypervisor.lines[0].sendall(b"answer")
        line.setblocking(True)
        assert line.recv(100) == b"answer"


def test_nothing_of_what_follows_is_lost(path: str) -> None:
    Hypervisor(path, b"OK 5\nmore")
    with dial(path) as line:
        assert line.recv(100) == b"more"


@pytest.mark.parametrize(
    ("greeting", "error"),
    [
        (None, BusyError),
        (b"", BusyError),
        (b"OK", BusyError),
        (b"NO\n", HypervisorError),
        (b"OK " + b"1" * 100, BusyError),
    ],
)
def test_nobody_listens_in_the_guest(path: str, greeting: bytes | None, error: type[Exception]) -> None:
    Hypervisor(path, greeting)
    with pytest.raises(error):
        dial(path)


def test_a_socket_that_is_not_the_hypervisors(path: str, tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="does not let us into its guest"):
        vsock.announce(way(path), b"")
    other = str(tmp_path / "other")
    hypervisor = Hypervisor(other, b"OK 1\n")
    os.symlink(other, path)
    with pytest.raises(HypervisorError):
        dial(path)
    with pytest.raises(HypervisorError, match="is of user"):
        dial(other, os.getuid() + 1)
    assert hypervisor.heard == []


def test_whose_socket_it_is(tmp_path: Path) -> None:
    """The owner's of the folder that root made for it."""
    found = vsock.channel(str(tmp_path))
    assert found == Channel("vsock", f"{tmp_path}/vsock.sock", 1024, tmp_path.stat().st_uid)
    with pytest.raises(FileNotFoundError):
        vsock.channel(str(tmp_path / "gone"))


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b"ok", "ok"),
        (b'{"type": "identity", "answer": "ok"}', "ok"),
        (b'{"answer": "error no seed"}', "error no seed"),
        (b'{"answer": 5}', '{"answer": 5}'),
        (b"{", "{"),
        (b"{" * 4000, "{" * 4000),
        (b"\xff", "\ufffd"),
    ],
)
def test_answers(line: bytes, answer: t.Any) -> None:
    assert answer_of(line) == answer
