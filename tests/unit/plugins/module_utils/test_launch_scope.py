# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one request that systemd gets, byte by byte, and its answers."""

from __future__ import annotations

import os
import socket
import struct
import threading
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import scope

# What busctl (systemd 252) sends for the same call.
BODY = (
    "1a000000636f636f6f6e2d6d6963726f766d2d6162632d372e73636f70650000040000006661696c00000000a00000000b00000044657363"
    "72697074696f6e00017300000c0000006d6963726f564d20776562310000000005000000536c6963650001730000000014000000636f636f"
    "6f6e2d6d6963726f766d2e736c69636500000000000000000b000000436f6c6c6563744d6f6465000173000012000000696e616374697665"
    "2d6f722d6661696c65640000000000000400000050494473000261750000000004000000070000000000000000000000"
)


def answer(kind: int, reply_to: int, text: str, order: str = "<") -> bytes:
    """A method return or error with one string in it."""
    body = struct.pack(order + "I", len(text)) + text.encode() + b"\0"
    # A field before REPLY_SERIAL, so that finding it takes walking.
    fields = b"\x07\x01s\0" + struct.pack(order + "I", 4) + b":1.0\0"
    fields += bytes(-len(fields) % 8) + b"\x08\x01g\0\x01s\0"
    fields += bytes(-len(fields) % 8) + b"\x05\x01u\0" + struct.pack(order + "I", reply_to)
    head = (b"l" if order == "<" else b"B") + bytes([kind, 0, 1])
    message = head + struct.pack(order + "III", len(body), 9, len(fields)) + fields
    return message + bytes(-len(message) % 8) + body


def read_call(stream: t.IO[bytes]) -> bytes:
    """One whole method call, and the line BEGIN if it comes first."""
    begin = stream.readline() if stream.peek(1)[:1] == b"B" else b""  # type: ignore[attr-defined]
    head = stream.read(16)
    body, _serial, fields = struct.unpack_from("<III", head, 4)
    return begin + head + stream.read(fields + (-fields % 8) + body)


class Systemd:
    """The other end: authenticates, then gives its answers one after another."""

    def __init__(self, path: Path, answers: list[bytes], ok: bytes = b"OK 0123\r\n") -> None:
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(path))
        self.server.listen(1)
        self.answers = answers
        self.ok = ok
        self.received = b""
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        connection = self.server.accept()[0]
        with connection:
            self.greeting = connection.recv(1024)
            connection.sendall(self.ok)
            stream = connection.makefile("rb")
            for reply in self.answers:
                self.received += read_call(stream)
                connection.sendall(reply)

    def close(self) -> None:
        self.thread.join()
        self.server.close()


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[t.Callable[..., Systemd]]:
    started: list[Systemd] = []
    monkeypatch.setattr(scope, "PRIVATE_SOCKET", str(tmp_path / "private"))
    monkeypatch.setattr(scope, "SYSTEM_BUS", str(tmp_path / "bus"))

    def start(name: str, *answers: bytes, **more: bytes) -> Systemd:
        started.append(Systemd(tmp_path / name, list(answers), **more))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_body_is_what_busctl_sends() -> None:
    assert scope._start_transient_unit("cocoon-microvm-abc-7.scope", 7, "microVM web1").hex() == BODY


@pytest.mark.parametrize("order", ["<", ">"])
def test_adopt_over_systemds_own_socket(systemd: t.Callable[..., Systemd], order: str) -> None:
    signal_first = answer(4, 0, "JobNew", order)
    server = systemd("private", signal_first + answer(2, 2, "/job/1", order))
    assert scope.adopt("abc", 7, "microVM web1") == "cocoon-microvm-abc-7.scope"
    server.thread.join()
    assert server.greeting == b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n"
    assert server.received.startswith(b"BEGIN\r\n")
    assert server.received.endswith(bytes.fromhex(BODY))
    assert b"StartTransientUnit" in server.received and b"Hello" not in server.received


def test_adopt_over_the_bus_says_hello_first(systemd: t.Callable[..., Systemd]) -> None:
    server = systemd("bus", answer(2, 1, ":1.7"), answer(2, 2, "/job/1"))
    scope.adopt("abc", 7, "x")
    server.thread.join()
    assert b"Hello" in server.received


@pytest.mark.parametrize(
    ("answers", "more", "message"),
    [
        ([answer(3, 2, "Unit is there already")], {}, "refused StartTransientUnit: Unit is there already"),
        ([], {"ok": b"REJECTED EXTERNAL\r\n"}, "did not accept"),
        ([b"l\x02\0\1"], {}, "closed the connection"),
        ([b"l\x02\0\1" + struct.pack("<III", 1 << 30, 1, 8)], {}, "too long"),
    ],
)
def test_adopt_refused(
    systemd: t.Callable[..., Systemd], answers: list[bytes], more: dict[str, bytes], message: str
) -> None:
    systemd("private", *answers, **more)
    with pytest.raises(HypervisorError, match=message):
        scope.adopt("abc", 7, "x")


def test_adopt_with_nobody_there(systemd: t.Callable[..., Systemd]) -> None:
    del systemd
    with pytest.raises(HypervisorError, match="did not answer"):
        scope.adopt("abc", 7, "x")


def test_waiting_for_a_move_that_does_not_come() -> None:
    assert not scope.in_unit(os.getpid(), "no.scope")
    with pytest.raises(HypervisorError, match=r"did not move process \d+ into no.scope"):
        scope.wait_adopted(os.getpid(), "no.scope", -1)
