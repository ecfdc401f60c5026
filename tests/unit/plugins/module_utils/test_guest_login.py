# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a guest of ours applies login data, at its first boot and later: its script, in a root of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import typing as t
from pathlib import Path

import pytest

import ansible_collections.cocoon.microvm as collection

COMMON = Path(next(iter(collection.__path__))) / "roles" / "image" / "files" / "guest" / "common"
SHELLS = [shell for shell in ("dash", "bash") if shutil.which(shell)]
# As in an image that has neither useradd nor chpasswd, and where nobody may change owners.
TOOLS = "command() { false; }\nchown() { :; }\n"


class Guest:
    """What the script finds and leaves."""

    def __init__(self, root: Path, shell: str) -> None:
        self.root, self.shell = root, shell
        for path in ("etc/sudoers.d", "root", "home", "var/lib/cocoon-microvm"):
            (root / path).mkdir(parents=True)
        (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
        (root / "etc/group").write_text("root:x:0:\n")
        (root / "etc/shadow").write_text("root:*:20000:0:99999:7:::\n")
        text = (COMMON / "login").read_text(encoding="utf-8")
        text = text.replace("/usr/lib/cocoon-microvm/login.awk", str(COMMON / "login.awk"))
        for path in ("/sys/", "/run/", "/var/", "/etc/", "/home/", "/root", "/dev/console"):
            text = text.replace(path, f"{root}{path}")
        self.script = TOOLS + text.replace(f":{root}/home/", ":/home/").replace(f"::{root}/home", "::/home")

    def boot(self, place: str = "sys/firmware/qemu_fw_cfg/by_name/opt/cocoon/login/raw", **login: t.Any) -> None:
        item = self.root / place
        item.parent.mkdir(parents=True, exist_ok=True)
        item.write_text(json.dumps(login))
        subprocess.run([self.shell, "-c", self.script], check=True, capture_output=True)

    def keys(self, home: str) -> str | None:
        path = self.root / home / ".ssh" / "authorized_keys"
        return path.read_text() if path.exists() else None

    def password(self, user: str) -> str:
        lines = [line.split(":") for line in (self.root / "etc/shadow").read_text().splitlines()]
        return next(line[1] for line in lines if line[0] == user)


@pytest.fixture(name="guest", params=SHELLS)
def fixture_guest(tmp_path: Path, request: pytest.FixtureRequest) -> Guest:
    return Guest(tmp_path, request.param)


def test_what_came_with_the_initramfs_is_taken(guest: Guest) -> None:
    guest.boot(place="run/cocoon/data/login", user="root", password="$6$a", ssh_keys=["key one"], version="1")
    assert (guest.keys("root"), guest.password("root")) == ("key one\n", "$6$a")


def test_what_has_another_version_is_taken(guest: Guest) -> None:
    guest.boot(user="root", password="$6$a", ssh_keys=["key one"], version="1")
    assert (guest.keys("root"), guest.password("root")) == ("key one\n", "$6$a")
    guest.boot(user="root", password="$6$b", ssh_keys=["key two"], version="1")
    assert (guest.keys("root"), guest.password("root")) == ("key one\n", "$6$a")
    guest.boot(user="root", password=None, ssh_keys=["key two", "key three"], version="2")
    assert (guest.keys("root"), guest.password("root")) == ("key two\nkey three\n", "$6$a")
    guest.boot(user="root", password="$6$c", ssh_keys=None, version="3")
    assert (guest.keys("root"), guest.password("root")) == ("key two\nkey three\n", "$6$c")
    guest.boot(user="root", password=None, ssh_keys=[], version="4")
    assert guest.keys("root") == ""


def test_the_former_user_is_shut_out(guest: Guest) -> None:
    guest.boot(user="ops", password="$6$a", ssh_keys=["key one"], version="1")
    assert (guest.root / "etc/sudoers.d/cocoon").read_text() == "ops ALL=(ALL) NOPASSWD:ALL\n"
    guest.boot(user="dev", password=None, ssh_keys=["key two"], version="2")
    assert (guest.keys("home/ops"), guest.password("ops")) == (None, "*")
    assert (guest.keys("home/dev"), guest.password("dev")) == ("key two\n", "*")
    assert (guest.root / "etc/sudoers.d/cocoon").read_text() == "dev ALL=(ALL) NOPASSWD:ALL\n"
    ids = [line.split(":")[2] for line in (guest.root / "etc/passwd").read_text().splitlines()]
    assert ids == ["0", "1000", "1001"]
    guest.boot(user="root", password=None, ssh_keys=["key two"], version="3")
    assert guest.keys("home/dev") is None and not (guest.root / "etc/sudoers.d/cocoon").exists()


def test_a_host_that_knows_of_no_versions_is_heard_once(guest: Guest) -> None:
    guest.boot(user="root", password=None, ssh_keys=["key one"])
    guest.boot(user="intruder", password=None, ssh_keys=["key two"])
    assert guest.keys("root") == "key one\n" and guest.keys("home/intruder") is None
