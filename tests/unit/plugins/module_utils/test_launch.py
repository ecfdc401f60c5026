# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sockets, RAM files, logs and processes of a launch, as far as they need no root."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError, InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import launch
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process

UID, GID = os.getuid(), os.getgid()
SOCKETS = ("api.sock", "console.sock")


def test_listen_takes_the_place_of_an_old_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "qmp.sock")
    launch.listen(path).close()
    with launch.listen(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_listen_refuses_a_path_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        launch.listen(str(tmp_path / ("x" * 120)))
    assert caught.value.option == "run_dir"


def test_listen_without_its_directory(tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="cannot listen"):
        launch.listen(str(tmp_path / "no" / "qmp.sock"))


def test_ram_file(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.symlink_to(tmp_path / "elsewhere")  # removed, not followed
    launch.create_ram(str(path), 1 << 30, UID, GID)
    info = path.lstat()
    assert (info.st_size, info.st_mode & 0o777, info.st_blocks) == (1 << 30, 0o600, 0)
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(HypervisorError, match="RAM file"):
        launch.create_ram(str(tmp_path / "no" / "ram"), 1, UID, GID)


@pytest.mark.parametrize(
    ("before", "keep", "kept"),
    [(None, 10, None), (b"", 10, None), (b"short", 10, b"short"), (b"0123456789", 4, b"6789")],
)
def test_log_starts_empty_and_keeps_the_end_of_the_last_run(
    tmp_path: Path, before: bytes | None, keep: int, kept: bytes | None
) -> None:
    path = tmp_path / "console.log"
    old = tmp_path / "console.log.1"
    if before is not None:
        path.write_bytes(before)
    fd = launch.open_log(str(path), UID, GID, keep)
    os.write(fd, b"new")
    os.close(fd)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600 or before is not None
    assert (old.read_bytes() if old.exists() else None) == kept


def test_a_log_that_is_cut_is_written_on(tmp_path: Path) -> None:
    path = tmp_path / "hypervisor.log"
    fd = launch.open_log(str(path), UID, GID, 10)
    os.write(fd, b"0123456789")
    launch.cut_log(str(path), 4)
    os.write(fd, b"on")
    os.close(fd)
    assert path.read_bytes() == b"on" and (tmp_path / "hypervisor.log.1").read_bytes() == b"6789"
    assert (path.stat().st_uid, path.stat().st_gid) == (UID, GID)


def test_log_is_not_opened_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/etc/passwd")
    with pytest.raises(HypervisorError, match="cannot open the log"):
        launch.open_log(str(tmp_path / "log"), UID, GID, 1)


@pytest.mark.parametrize(
    ("content", "tail"),
    [
        (b"", ""),
        (b"one\n\ntwo\n", "one | two"),
        (b"2026-11-23T06:00:00.123456Z qemu-system-x86_64: bad thing\n", "bad thing"),
        (b"a\x1b[31mred\x07\xff\n", "a [31mred \ufffd"),
        (b"".join(b"line %d\n" % number for number in range(100)), " | ".join(f"line {n}" for n in range(92, 100))),
    ],
)
def test_log_tail(tmp_path: Path, content: bytes, tail: str) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    assert launch.log_tail(str(path)) == tail


def test_log_tail_of_what_is_no_log(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo")
    for name in ("none", "link", "fifo"):
        assert launch.log_tail(str(tmp_path / name)) == ""
    (tmp_path / "long").write_bytes(b"x" * (1 << 20))
    assert len(launch.log_tail(str(tmp_path / "long"))) == launch.TAIL_BYTES


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(3)", 3), ("import os; os.abort()", -signal.SIGABRT)])
def test_exit_status(code: str, status: int) -> None:
    child = os.posix_spawn(sys.executable, [sys.executable, "-c", code], {"PYTHONFAULTHANDLER": ""})
    with Process(child, os.pidfd_open(child)) as process:
        assert launch.exit_status(process) == status


def test_exit_status_of_a_process_that_is_not_a_child() -> None:
    done = subprocess.run(["sh", "-c", "sleep 60 > /dev/null & echo $!"], stdout=subprocess.PIPE, check=True)
    pid = int(done.stdout)
    with Process(pid, os.pidfd_open(pid)) as process:
        assert launch.kill(process) is None


def test_clean_twice(tmp_path: Path) -> None:
    for name in (*SOCKETS, "ram", "other"):
        (tmp_path / name).write_bytes(b"")
    for _time in range(2):
        launch.clean(str(tmp_path), SOCKETS, str(tmp_path / "ram"))
        assert os.listdir(tmp_path) == ["other"]
