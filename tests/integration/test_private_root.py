# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The root of a hypervisor's own: what a program finds there, and what it can do."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import launch, private
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Jail

UID = 61234
# What is where, and what can be written to; then its rights, read from a file that a thread of root opened for it.
LOOK = """
for path in / /*/ /dev/* /dev/net/* /data/* /run/*; do echo "have $path"; done
for path in /own /dev/own /data/own /data/mine /data/theirs /run/own; do
  { echo "$path" >> "$path"; } 2> /dev/null && echo "wrote $path"
done
echo x > /dev/null && echo "nothing"
kill -0 1 2> /dev/null && echo "sees others"
exit 0
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A VM's folder, below one that nobody else can pass."""
    tmp_path.chmod(0o700)
    (tmp_path / "own").mkdir(mode=0o700)
    for name, uid in (("mine", UID), ("theirs", 0)):
        (tmp_path / name).write_text(f"{name}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o666)
        os.chown(tmp_path / name, uid, uid)
    os.chown(tmp_path / "own", UID, UID)
    yield tmp_path


def jail(folder: Path, **files: str) -> Jail:
    """A root with a shell in it."""
    shell = os.path.realpath("/bin/sh")
    binds = {
        "/bin/sh": shell,
        **private.libraries(shell),
        "/data/mine": f"{folder}/mine",
        "/data/theirs": f"{folder}/theirs",
    }
    return Jail(files={**binds, **files}, devices=("/dev/net/tun",), folder=str(folder / "own"))


def run(folder: Path, root: Jail, code: str) -> list[str]:
    log = os.open(folder / "log", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        argv = ["/bin/sh", "-c", code]
        with launch.spawn(argv, UID, UID, (), (), log, enter=lambda: private.enter(root, UID)) as process:
            assert process.wait(30)
        return os.pread(log, 1 << 16, 0).decode().splitlines()
    finally:
        os.close(log)


def test_it_has_its_own_files_and_nothing_else(folder: Path) -> None:
    """Whatever the umask of the task is; and the host is as it was."""
    umask = os.umask(0o077)
    try:
        lines = run(folder, jail(folder), LOOK)
    finally:
        assert os.umask(umask) == 0o077
    have = {line[len("have ") :] for line in lines if line.startswith("have ")}
    assert {path for path in have if not path.startswith("/lib")} == {
        *("/", "/bin/", "/data/", "/dev/", "/run/"),
        *("/dev/net", "/dev/null", "/dev/net/tun", "/data/mine", "/data/theirs", "/run/*"),
    }
    assert [line for line in lines if not line.startswith("have ")] == ["wrote /data/mine", "wrote /run/own", "nothing"]
    assert str(folder) not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    assert (folder / "mine").read_text(encoding="utf-8") == "mine\n/data/mine\n"
    assert (folder / "own/own").stat().st_uid == UID and not list((folder / "own").glob("null"))


def test_it_can_gain_no_right(folder: Path) -> None:
    """Its process, seen from outside while it waits."""
    root = jail(folder)
    log = os.open(folder / "log", os.O_RDWR | os.O_CREAT)
    argv = ["/bin/sh", "-c", "read -r line < /run/fifo"]
    os.mkfifo(folder / "own/fifo")
    os.chown(folder / "own/fifo", UID, UID)
    try:
        with launch.spawn(argv, UID, UID, (), (), log, enter=lambda: private.enter(root, UID)) as process:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
            fields = dict(line.split(":\t", 1) for line in status if ":\t" in line)
            spaces = {name: os.readlink(f"/proc/{process.pid}/ns/{name}") for name in ("mnt", "net")}
            device = os.stat(f"/proc/{process.pid}/root/dev/net/tun")
            mounts = Path(f"/proc/{process.pid}/mountinfo").read_text(encoding="ascii").splitlines()
            process.end(0)
    finally:
        os.close(log)
    assert fields["NoNewPrivs"] == "1" and fields["Uid"].split() == [str(UID)] * 4 and not fields["Groups"].strip()
    for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[name], 16) == 0, name
    for name, space in spaces.items():
        assert space != os.readlink(f"/proc/self/ns/{name}")
    assert stat.S_ISCHR(device.st_mode) and (device.st_uid, device.st_mode & 0o777) == (UID, 0o600)
    root_mount = next(line for line in mounts if line.split()[4] == "/")
    assert root_mount.split()[5].startswith("ro,nosuid") and " - tmpfs " in root_mount
    assert not [line for line in mounts if "nosuid" not in line]


@pytest.mark.parametrize("what", ["missing", "link"])
def test_what_is_bound_is_the_file_itself(folder: Path, what: str) -> None:
    (folder / "link").symlink_to("/etc/shadow")
    with pytest.raises(HypervisorError, match=f"root of its own.*{what}"):
        run(folder, jail(folder, **{"/data/more": str(folder / what)}), "exit 0")


def test_libraries_of_a_program(tmp_path: Path) -> None:
    found = private.libraries(os.path.realpath("/bin/sh"))
    assert any("libc" in path for path in found) and all(os.path.isfile(path) for path in found.values())
    assert not [path for path in found.values() if os.path.islink(path)]
    (tmp_path / "text").write_text("#!/bin/sh\n" * 20, encoding="utf-8")
    with pytest.raises(HypervisorError, match="not a program for x86-64"):
        private.libraries(str(tmp_path / "text"))
