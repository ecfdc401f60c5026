# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The QMP client against a scripted, and a hostile, other side."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import BusyError, HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import qmp
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.qmp import Qmp, QmpClosedError, QmpError

GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}\r\n'
)


@pytest.fixture
def pair() -> t.Iterator[tuple[Qmp, socket.socket]]:
    ours, theirs = socket.socketpair()
    with theirs, Qmp(ours) as client:
        yield client, theirs


def feed(theirs: socket.socket, *messages: bytes | dict[str, t.Any]) -> None:
    for message in messages:
        theirs.sendall(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\r\n")


def requests(theirs: socket.socket) -> list[dict[str, t.Any]]:
    return [json.loads(line) for line in theirs.recv(1 << 16).splitlines()]


def test_greeting_and_version(pair: tuple[Qmp, socket.socket]) -> None:
    client, theirs = pair
    feed(theirs, GREETING, {"return": {}, "id": 1})
    client.negotiate(5)
    assert client.version() == "7.2.22"
    assert requests(theirs) == [{"execute": "qmp_capabilities", "id": 1}]


def test_events_before_the_greeting_are_of_no_concern(pair: tuple[Qmp, socket.socket]) -> None:
    client, theirs = pair
    feed(theirs, {"event": "NIC_RX_FILTER_CHANGED"}, {"event": "RESUME"}, GREETING, {"return": {}, "id": 1})
    client.negotiate(5)
    assert client.version() == "7.2.22"
    assert client.wait_event("RESUME", 0.01) is None, "it was of before"


def test_a_flood_before_the_greeting(pair: tuple[Qmp, socket.socket]) -> None:
    client, theirs = pair
    feed(theirs, *[b'{"event": "X"}\n'] * (qmp.MAX_EVENTS + 1))
    with pytest.raises(HypervisorError, match="floods"):
        client.negotiate(5)


def test_execute(pair: tuple[Qmp, socket.socket]) -> None:
    client, theirs = pair
    feed(theirs, {"return": {"status": "running"}, "id": 1}, {"return": {}, "id": 2})
    assert client.execute("query-status") == {"status": "running"}
    assert client.execute("balloon", {"value": 7}) == {}
    assert requests(theirs)[1] == {"execute": "balloon", "arguments": {"value": 7}, "id": 2}


def test_refusal(pair: tuple[Qmp, socket.socket]) -> None:
    client, theirs = pair
    feed(theirs, {"error": {"class": "GenericError", "desc": "no\x1b[2J such"}, "id": 1})
    with pytest.raises(QmpError) as caught:
        client.execute("device_del")
    assert caught.value.kind == "GenericError"
    assert "\x1b" not in str(caught.value) and "device_del" in str(caught.value)


def test_events_between_are_kept_in_order(pair: tuple[Qmp, socket.socket]) -> None:
    client, theirs = pair
    deleted = {"event": "DEVICE_DELETED", "data": {"device": "disk-a"}}
    feed(theirs, {"event": "STOP"}, deleted, {"return": 1, "id": 1})
    assert client.execute("x") == 1
    assert client.wait_event("DEVICE_DELETED", 5, device="disk-a") == {"device": "disk-a"}


def test_wait_event_for_another_device(pair: tuple[Qmp, socket.socket]) -> None:
    client, theirs = pair
    feed(theirs, {"event": "DEVICE_DELETED", "data": {"device": "b"}}, {"event": "DEVICE_DELETED", "data": None})
    assert client.wait_event("DEVICE_DELETED", 0.01, device="a") is None


def test_message_in_pieces(pair: tuple[Qmp, socket.socket]) -> None:
    client, theirs = pair
    line = json.dumps({"return": "x" * 200_000, "id": 1}).encode() + b"\n"

    def send() -> None:
        for at in range(0, len(line), 7001):
            theirs.sendall(line[at : at + 7001])

    sender = threading.Thread(target=send)
    sender.start()
    assert len(client.execute("x")) == 200_000
    sender.join()


def test_two_messages_in_one_piece(pair: tuple[Qmp, socket.socket]) -> None:
    client, theirs = pair
    feed(theirs, b'\r\n{"return": 1, "id": 1}\r\n{"return": 2, "id": 2}\r\n')
    assert [client.execute("x"), client.execute("x")] == [1, 2]


HOSTILE = [
    (b"not json\n", "not QMP"),
    (b"[1]\n", "not QMP"),
    (b"\xff\xfe\n", "not QMP"),
    (b"[" * 500_000 + b"\n", "not QMP"),
    (b'{"return": ' + b"9" * 500_000 + b', "id": 1}\n', "not QMP"),
    (b'{"return": 1, "id": 7}\n', "something else"),
    (b'{"return": 1}\n', "something else"),
    (b'{"id": 1}\n', "neither"),
    (b'{"error": "x", "id": 1}\n', "neither"),
    (b"x" * (qmp.MAX_LINE + (1 << 17)), "more than 1 MiB"),
    (b'{"event": "E"}\n' * (qmp.MAX_EVENTS + 1), "floods"),
    ((b'{"event": "' + b"E" * 300_000 + b'"}\n') * 4, "floods"),
]


@pytest.mark.parametrize(("data", "message"), HOSTILE)
def test_hostile_answers(pair: tuple[Qmp, socket.socket], data: bytes, message: str) -> None:
    client, theirs = pair

    def send() -> None:
        with contextlib.suppress(OSError):
            theirs.sendall(data)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(HypervisorError, match=message):
        client.execute("x", timeout=60)
    client.close()
    sender.join()


def test_no_answer(pair: tuple[Qmp, socket.socket]) -> None:
    client, _theirs = pair
    with pytest.raises(HypervisorError, match=r"did not answer query-status within 0\.01 s"):
        client.execute("query-status", timeout=0.01)


def test_trickle_does_not_stretch_the_deadline(pair: tuple[Qmp, socket.socket]) -> None:
    client, theirs = pair
    feed(theirs, b"{")
    with pytest.raises(HypervisorError, match="did not answer"):
        client.execute("x", timeout=0.01)


def test_end_of_connection(pair: tuple[Qmp, socket.socket]) -> None:
    client, theirs = pair
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(QmpClosedError):
        client.execute("x")


def test_end_of_process_is_noticed_beside_a_silent_socket() -> None:
    """An event on the second descriptor ends the wait at once."""
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    os.write(writer, b"x")  # a pidfd becomes readable just so
    try:
        with theirs, Qmp(ours, reader) as client, pytest.raises(QmpClosedError, match="ended"):
            client.execute("x", timeout=60)
    finally:
        os.close(reader)
        os.close(writer)


def test_last_words_come_before_the_end_of_the_process() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    os.write(writer, b"x")
    try:
        with theirs, Qmp(ours, reader) as client:
            feed(theirs, {"return": 3, "id": 1})
            assert client.execute("x") == 3
    finally:
        os.close(reader)
        os.close(writer)


def test_descriptors_travel_with_the_command(pair: tuple[Qmp, socket.socket], tmp_path: Path) -> None:
    client, theirs = pair
    path = tmp_path / "blob"
    path.write_text("root's own", encoding="ascii")
    fd = os.open(path, os.O_RDONLY)
    feed(theirs, {"return": {}, "id": 1})
    client.execute("getfd", {"fdname": "a"}, fds=[fd])
    os.close(fd)
    data, fds = socket.recv_fds(theirs, 4096, 4)[:2]
    assert json.loads(data)["arguments"] == {"fdname": "a"}
    with os.fdopen(fds[0]) as stream:
        assert stream.read() == "root's own"


def test_connect_to_nobody(tmp_path: Path) -> None:
    with pytest.raises(QmpClosedError, match="no hypervisor listens"):
        Qmp.connect(str(tmp_path / "qmp.sock"), 1)
    with pytest.raises(QmpClosedError, match="no hypervisor listens"):
        Qmp.connect(str(tmp_path / ("x" * 200)), 1)


@pytest.mark.parametrize("backlog", [0, 4])
def test_connect_while_another_holds_it(tmp_path: Path, backlog: int) -> None:
    """Whether the queue is full (the connect waits) or not (the greeting does not come): busy."""
    path = str(tmp_path / "qmp.sock")
    with socket.socket(socket.AF_UNIX) as server, contextlib.ExitStack() as stack:
        server.bind(path)
        server.listen(backlog)
        for _one in range(backlog + 1):
            other = stack.enter_context(socket.socket(socket.AF_UNIX))
            other.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                other.connect(path)
        with pytest.raises(BusyError, match=r"within 0\.05 s"):
            Qmp.connect(path, 0.05)


@pytest.mark.parametrize("greeting", [b'{"QMP": 1}\n', b'{"return": {}}\n', b"SSH-2.0\n"])
def test_greeting_of_somebody_else(pair: tuple[Qmp, socket.socket], greeting: bytes) -> None:
    client, theirs = pair
    feed(theirs, greeting)
    with pytest.raises(HypervisorError, match="not (a )?QMP"):
        client.negotiate(5)
