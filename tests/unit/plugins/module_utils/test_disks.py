# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies that keep their holes, and files that are not what they seem."""

from __future__ import annotations

import errno
import os
import pathlib

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils import _disks, _sparse
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ResourceError, StateError

MIB = 1 << 20
ME = os.getuid()


def sparse_file(path: pathlib.Path) -> bytes:
    contents = bytearray(8 * MIB)
    with path.open("wb") as stream:
        for position, text in ((0, b"head"), (3 * MIB, b"middle" * 1000), (8 * MIB - 4, b"tail")):
            stream.seek(position)
            stream.write(text)
            contents[position : position + len(text)] = text
    return bytes(contents)


@pytest.mark.parametrize("refuse", [(), ("clone",), ("clone", "range")])
def test_copies_are_equal_and_sparse(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, refuse: tuple[str, ...]
) -> None:
    """By reflink where there is one, by copy_file_range, and across file systems."""

    def no(*_args: object) -> int:
        raise OSError(errno.EXDEV, "no")

    if "clone" in refuse:
        monkeypatch.setattr(_sparse.fcntl, "ioctl", no)
    if "range" in refuse:
        monkeypatch.setattr(os, "copy_file_range", no)
    contents = sparse_file(tmp_path / "a")
    _disks.copy_sparse(str(tmp_path / "a"), str(tmp_path / "b"), ME)
    copy = tmp_path / "b"
    assert copy.read_bytes() == contents
    assert copy.stat().st_blocks * 512 < MIB
    assert copy.stat().st_mode & 0o7777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_file_of_holes_only(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").touch()
    os.truncate(tmp_path / "a", 5 * MIB)
    _disks.copy_sparse(str(tmp_path / "a"), str(tmp_path / "b"), ME)
    assert (tmp_path / "b").read_bytes() == bytes(5 * MIB)


def test_links_are_not_followed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "a").symlink_to("secret")
    with pytest.raises(OSError):
        _disks.copy_sparse(str(tmp_path / "a"), str(tmp_path / "b"), ME)
    with pytest.raises(StateError):
        _disks.open_disk(str(tmp_path / "a"), ME)
    with pytest.raises(StateError):
        _disks.grow(str(tmp_path / "a"), MIB, "none", ME)
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_only_regular_files_of_the_vm_are_disks(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a").touch()
    with pytest.raises(StateError):
        _disks.open_disk(str(tmp_path / "pipe"), ME)
    with pytest.raises(StateError, match="not a regular file of uid"):
        _disks.open_disk(str(tmp_path / "a"), ME + 1)
    os.close(_disks.open_disk(str(tmp_path / "a"), ME))


def test_what_a_killed_run_left_is_replaced(tmp_path: pathlib.Path) -> None:
    (tmp_path / "disk.tmp").write_bytes(b"half")
    _disks.create_data(str(tmp_path / "disk"), 16 * MIB, "none", ME)
    assert (tmp_path / "disk").stat().st_size == 16 * MIB
    assert not (tmp_path / "disk.tmp").exists()


def test_no_space_is_said_and_nothing_stays(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="root_dir: no space left"):
        _disks.create_data(str(tmp_path / "disk"), 16 * MIB, "none", ME)
    assert list(tmp_path.iterdir()) == []


def test_growing_is_idempotent_and_never_shrinks(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "disk")
    _disks.create_data(path, 16 * MIB, "none", ME)
    for _time in range(2):
        _disks.grow(path, 32 * MIB, "none", ME)
        assert os.stat(path).st_size == 32 * MIB
    with pytest.raises(_disks.ChangeRefusedError, match="cannot shrink"):
        _disks.grow(path, 16 * MIB, "none", ME)


def test_zeros_become_holes(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a"
    contents = bytes(4 * MIB) + b"x" + bytes(MIB)
    path.write_bytes(contents)
    with path.open("r+b") as stream:
        _disks._dig_holes(stream.fileno())
    assert path.read_bytes() == contents
    assert path.stat().st_blocks * 512 <= 64 << 10
