# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sockets that another process makes, seen when they are there."""

from __future__ import annotations

import os
import socket
import sys
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import listening
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.rest import RestClosedError
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process

SERVER = """
import socket, sys, time
line = socket.socket(socket.AF_UNIX)
line.bind(sys.argv[1])
time.sleep(float(sys.argv[2]))
line.listen()
sys.stdin.read()
"""


@pytest.fixture(name="run")
def fixture_run() -> t.Iterator[t.Callable[..., Process]]:
    """Run a program, which ends when its input does."""
    ours: list[tuple[int, Process]] = []

    def run(code: str, *arguments: str) -> Process:
        reading, writing = os.pipe()
        actions = [(os.POSIX_SPAWN_DUP2, reading, 0)]
        pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code, *arguments], os.environ, file_actions=actions)
        os.close(reading)
        ours.append((writing, Process(pid, os.pidfd_open(pid))))
        return ours[-1][1]

    yield run
    for writing, process in ours:
        os.close(writing)
        assert process.wait(10)
        process.close()


@pytest.mark.parametrize("pause", ["0", "0.05"])
def test_a_socket_is_seen_when_somebody_listens(tmp_path: Path, run: t.Callable[..., Process], pause: str) -> None:
    with listening.Watch(str(tmp_path)) as watch:
        (tmp_path / "another").touch()
        process = run(SERVER, str(tmp_path / "api"), pause)
        watch.wait_listening("api", process, time.monotonic() + 20)
        watch.wait_listening("api", process, time.monotonic() + 20)  # it is there already
    assert listening.listener(str(tmp_path / "api")) == process.pid


def test_a_process_that_ends_first(tmp_path: Path, run: t.Callable[..., Process]) -> None:
    with listening.Watch(str(tmp_path)) as watch, pytest.raises(RestClosedError, match="ended before"):
        watch.wait_listening("api", run("pass"), time.monotonic() + 20)


def test_a_process_that_never_listens(tmp_path: Path, run: t.Callable[..., Process]) -> None:
    process = run(SERVER, str(tmp_path / "api"), "60")
    with listening.Watch(str(tmp_path)) as watch, pytest.raises(HypervisorError, match="in time"):
        watch.wait_listening("api", process, time.monotonic() + 0.3)
    process.end(0)


def test_what_is_no_socket(tmp_path: Path, run: t.Callable[..., Process]) -> None:
    (tmp_path / "api").symlink_to(tmp_path / "other")
    with listening.Watch(str(tmp_path)) as watch, pytest.raises(HypervisorError, match="not a socket"):
        watch.wait_listening("api", run("pass"), time.monotonic() + 20)
    with socket.socket(socket.AF_UNIX) as line:
        line.bind(str(tmp_path / "bound"))
    with pytest.raises(ConnectionRefusedError):
        listening.listener(str(tmp_path / "bound"))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="cannot watch"):
        listening.Watch(str(tmp_path / "no"))
