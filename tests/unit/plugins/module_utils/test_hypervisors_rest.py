# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the client of REST APIs on unix sockets, against servers that do and servers that misbehave."""

from __future__ import annotations

import os
import socket
import threading
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import rest
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.rest import (
    Rest,
    RestClosedError,
    RestError,
    RestTimeoutError,
)
from ansible_collections.cocoon.microvm.tests.unit.openapi import CLOUD_HYPERVISOR, FIRECRACKER, Api, Contract

BASE = "/api/v1"
PING = ("GET", "/vmm.ping")


@pytest.fixture
def api(tmp_path: Path) -> t.Iterator[Api]:
    with Api(tmp_path / "api", Contract(CLOUD_HYPERVISOR), BASE) as made:
        yield made


def client(tmp_path: Path, **options: t.Any) -> Rest:
    return Rest(str(tmp_path / "api"), "The VMM", BASE, **options)


def test_call_and_answer(api: Api, tmp_path: Path) -> None:
    api.answers[PING] = (200, {"version": "v53.0", "pid": 12})
    assert client(tmp_path).get("/vmm.ping") == {"version": "v53.0", "pid": 12}
    assert client(tmp_path).look("/vmm.ping") == {"version": "v53.0", "pid": 12}
    assert client(tmp_path).put("/vm.pause") is None
    assert client(tmp_path).put("/vm.resize", {"desired_vcpus": 2}) is None
    assert api.targets() == ["GET /vmm.ping", "GET /vmm.ping", "PUT /vm.pause", "PUT /vm.resize"]
    assert api.requests[-1].body == {"desired_vcpus": 2}


def test_a_refusal_is_shown_as_it_is_and_not_asked_again(api: Api, tmp_path: Path) -> None:
    api.answers[("PUT", "/vm.pause")] = (500, "Error from API\n\x1b[2JThe VM is not running")
    message = "The VMM refused PUT /vm.pause: Error from API  .2JThe VM is not running"
    with pytest.raises(RestError, match=message) as exc:
        client(tmp_path).put("/vm.pause")
    assert exc.value.status == 500 and "\x1b" not in exc.value.message
    assert api.targets() == ["PUT /vm.pause"]


def test_the_listener_has_to_be_the_right_user(api: Api, tmp_path: Path) -> None:
    api.answers[PING] = (200, {"version": "1"})
    assert client(tmp_path, uid=os.getuid()).get("/vmm.ping")
    for ask in (Rest.get, Rest.look):
        with pytest.raises(HypervisorError, match=f"is of user {os.getuid()}, and not of {os.getuid() + 1}"):
            ask(client(tmp_path, uid=os.getuid() + 1), "/vmm.ping")
    assert api.targets() == ["GET /vmm.ping"]


@pytest.mark.parametrize("ask", [Rest.get, Rest.look])
def test_what_is_not_a_socket_is_not_talked_to(ask: t.Callable[..., t.Any], tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    with Api(tmp_path / "real" / "api", Contract(CLOUD_HYPERVISOR), BASE) as other:
        os.symlink(tmp_path / "real" / "api", tmp_path / "api")
        with pytest.raises(HypervisorError, match="something else was put in its place"):
            ask(client(tmp_path), "/vmm.ping")
        assert other.requests == []


@pytest.mark.parametrize("ask", [Rest.get, Rest.look])
def test_nobody_there(ask: t.Callable[..., t.Any], tmp_path: Path) -> None:
    with pytest.raises(RestClosedError, match="No such file"):
        ask(client(tmp_path), "/vmm.ping")
    socket.socket(socket.AF_UNIX).bind(str(tmp_path / "api"))
    with pytest.raises(RestClosedError, match="refused"):
        ask(client(tmp_path), "/vmm.ping")


def serve(path: Path, pieces: t.Sequence[bytes], pause: float = 0.0, hold: float = 0.0) -> list[bytes]:
    """One connection after another is answered by *pieces*, and closed *hold* seconds later; gives what was asked."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    asked: list[bytes] = []

    def work() -> None:
        with listener:
            line = listener.accept()[0]
            with line:
                asked.append(line.recv(65536))
                try:
                    for piece in pieces:
                        line.sendall(piece)
                        time.sleep(pause)
                    time.sleep(hold)
                except OSError:
                    pass

    threading.Thread(target=work, daemon=True).start()
    return asked


OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


@pytest.mark.parametrize("ask", [Rest.get, Rest.look])
@pytest.mark.parametrize(
    ("pieces", "error", "message"),
    [
        pytest.param([OK % 9, b"{} no json"[:9]], HypervisorError, "not JSON", id="nonsense"),
        pytest.param([OK % 4, b"\xff\xfe\x00{"], HypervisorError, "not JSON", id="not text"),
        pytest.param([OK % 5000, b"1" * 5000], HypervisorError, "not JSON", id="a number of 5,000 digits"),
        pytest.param([OK % 100000, b"[" * 100000], HypervisorError, "not JSON", id="nested"),
        pytest.param([OK % (3 << 20), *([b" " * (1 << 20)] * 3)], HypervisorError, "more than 1 MiB", id="too much"),
        pytest.param([b"SSH-2.0-x\r\n\r\n"], HypervisorError, "HTTP|SSH", id="not HTTP"),
        pytest.param([b""], RestClosedError, "did not answer GET /vmm.ping", id="closed"),
        pytest.param([b"HTTP/1.1 200 OK\r\nConte"], RestClosedError, "did not answer", id="closed within the head"),
    ],
)
def test_nonsense(
    ask: t.Callable[..., t.Any], pieces: list[bytes], error: type[Exception], message: str, tmp_path: Path
) -> None:
    asked = serve(tmp_path / "api", pieces)
    with pytest.raises(error, match=message):
        ask(client(tmp_path, timeout=5), "/vmm.ping")
    assert len(asked) == 1


@pytest.mark.parametrize("ask", [Rest.get, Rest.look])
@pytest.mark.parametrize(
    ("pieces", "pause"),
    [
        pytest.param([], 0.0, id="silence"),
        pytest.param([b"HTTP/1.1 200 OK\r\n", *([b"X: y\r\n"] * 50)], 0.05, id="a head that drips"),
        pytest.param([OK % 100, *([b" "] * 50)], 0.05, id="a body that drips"),
    ],
)
def test_it_hangs(ask: t.Callable[..., t.Any], pieces: list[bytes], pause: float, tmp_path: Path) -> None:
    asked = serve(tmp_path / "api", pieces, pause, hold=2.0)
    began = time.monotonic()
    with pytest.raises(RestTimeoutError, match="did not answer GET /vmm.ping within 0.2 s"):
        ask(client(tmp_path, timeout=0.2), "/vmm.ping")
    assert time.monotonic() - began < 1.5
    assert len(asked) == 1


def test_the_library_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    socket.socket(socket.AF_UNIX).bind(str(tmp_path / "api"))
    monkeypatch.setitem(sys.modules, "requests_unixsocket", None)
    with pytest.raises(rest.ToolError, match="python3-requests-unixsocket"):
        client(tmp_path).get("/vmm.ping")


@pytest.mark.parametrize(
    ("document", "method", "target", "body", "problem"),
    [
        (CLOUD_HYPERVISOR, "PUT", "/vm.pause", None, None),
        (CLOUD_HYPERVISOR, "PUT", "/vm.paus", None, "there is no PUT /vm.paus"),
        (CLOUD_HYPERVISOR, "GET", "/vm.pause", None, "there is no GET /vm.pause"),
        (CLOUD_HYPERVISOR, "PUT", "/vm.pause", {}, "takes no body"),
        (CLOUD_HYPERVISOR, "PUT", "/vm.add-disk", None, "has no body"),
        (CLOUD_HYPERVISOR, "PUT", "/vm.add-disk", {"path": "/d", "readonly": True}, None),
        (CLOUD_HYPERVISOR, "PUT", "/vm.add-disk", {"path": "/d", "read_only": True}, "'read_only' was unexpected"),
        (CLOUD_HYPERVISOR, "PUT", "/vm.add-disk", {"queue_size": "256"}, "queue_size: '256' is not of type 'integer'"),
        (CLOUD_HYPERVISOR, "PUT", "/vm.create", {"payload": {"kernal": "/k"}}, "'kernal' was unexpected"),
        (FIRECRACKER, "PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128}, None),
        (FIRECRACKER, "PUT", "/machine-config", {"vcpu_count": 1, "mem_size": 128}, "'mem_size' was unexpected"),
        (FIRECRACKER, "PUT", "/drives/rootfs", {"drive_id": "rootfs", "is_root_device": False}, None),
        (FIRECRACKER, "PATCH", "/vm", {"state": "Halted"}, "'Halted' is not one of"),
    ],
)
def test_contracts(document: str, method: str, target: str, body: t.Any, problem: str | None) -> None:
    found = Contract(document).problems(method, target, body)
    assert found == [] if problem is None else problem in "; ".join(found)


def test_a_contract_may_lack_what_the_program_takes() -> None:
    contract = Contract(CLOUD_HYPERVISOR, {"RestoreConfig": {"net_fds": {"type": "array"}}})
    assert contract.problems("PUT", "/vm.restore", {"source_url": "file:///x", "net_fds": []}) == []
    assert Contract(CLOUD_HYPERVISOR).problems("PUT", "/vm.restore", {"source_url": "file:///x", "net_fds": []})
