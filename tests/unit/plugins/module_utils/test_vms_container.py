# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a container's guest is told, and what is believed of its answer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import keeping
from ansible_collections.cocoon.microvm.plugins.module_utils._images import kernel
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.fit import check_image
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import Context
from ansible_collections.cocoon.microvm.plugins.module_utils._process import identify
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import container

BARE = {"type": "oci", "boot": None, "disk": None, "layers": ["l0"]}


def test_the_item_has_nothing_to_escape() -> None:
    config = {
        "entrypoint": ["/bin/sh", "-c"],
        "cmd": ["a\nb", "", "ü ' $(x)"],
        "env": ["A=1", "B.C=x=y"],
        "user": "app:apps",
        "working_dir": "/w",
        "stop_signal": "SIGQUIT",
    }
    assert container.encode(config).split(b"\0") == [
        *(b"a/bin/sh", b"a-c", b"aa\nb", b"a", "aü ' $(x)".encode(), b"eA=1", b"eB.C=x=y"),
        *(b"uapp:apps", b"d/w", b"sSIGQUIT", b""),
    ]
    assert container.encode({}) == b""


IMAGE = {"entrypoint": ["/entry"], "cmd": ["run"], "env": ["PATH=/bin", "A=1"], "user": "app", "working_dir": "/w"}


@pytest.mark.parametrize(
    ("given", "words", "variables", "folder"),
    [
        ({}, ["/entry", "run"], ["PATH=/bin", "A=1"], "/w"),
        ({"command": ["other"]}, ["/entry", "other"], ["PATH=/bin", "A=1"], "/w"),
        ({"entrypoint": ["/own"]}, ["/own"], ["PATH=/bin", "A=1"], "/w"),
        ({"entrypoint": ["/own"], "command": ["x"]}, ["/own", "x"], ["PATH=/bin", "A=1"], "/w"),
        ({"env": {"A": "2", "B": ""}, "working_dir": "/v"}, ["/entry", "run"], ["PATH=/bin", "A=2", "B="], "/v"),
        ({"env": {"A": "2"}, "secret_env": {"A": "3"}}, ["/entry", "run"], ["PATH=/bin", "A=3"], "/w"),
    ],
)
def test_what_a_vm_has_otherwise(given: dict[str, Any], words: list[str], variables: list[str], folder: str) -> None:
    found = container.effective(IMAGE, given, given.get("secret_env", {}))
    assert [*found["entrypoint"], *found["cmd"]] == words
    assert (found["env"], found["working_dir"], found["user"]) == (variables, folder, "app")


def test_nothing_is_left_of_an_image_that_says_nothing() -> None:
    assert container.encode(container.effective({}, {"command": ["a"]}, {})) == b"aa\0"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"\nexit 0\r\n", 0),
        (b"\nexit 255\n", 255),
        (b"\n", None),
        (b"", None),
        (b"\nexit 256\n", None),
        (b"\nexit 1", None),
        (b"\nsomething\nexit 1\n", None),
        (b"\n" * 64 + b"exit 1\n", None),
        (b"\nexit -1\n", None),
    ],
)
def test_the_last_word(tmp_path: Path, content: bytes, code: int | None) -> None:
    paths = Paths(log=str(tmp_path))
    record: dict[str, Any] = {"id": "abc", "exit_code": None}
    (tmp_path / "abc").mkdir()
    (tmp_path / "abc" / container.STATUS_FILE).write_bytes(content)
    assert container.exit_code(paths, record) == code
    assert container.outcome(paths, record) == (
        {} if code is None else {"exit_code": code, "reason": f"exited with code {code}"}
    )
    assert container.exit_code(paths, {"id": "abc"}) is None


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("cocoon: exit 3\r\n", 3),
        ("cocoon: exit 1\r\ncocoon: exit 0\r\n[  9.1] reboot: Restarting\r\n", 0),
        ("it said cocoon: exit 3\r\n", None),
        ("cocoon: exit 256\r\n", None),
        ("cocoon: exit 3 times\r\n", None),
        ("", None),
    ],
)
def test_the_last_word_on_the_console(tmp_path: Path, said: str, code: int | None) -> None:
    """Of a machine that has no channel for it."""
    (tmp_path / "abc").mkdir()
    (tmp_path / "abc" / "console.log").write_bytes(b"x" * 300_000 + b"\r\n" + said.encode())
    assert container.exit_code(Paths(log=str(tmp_path)), {"id": "abc", "exit_code": None}) == code


@pytest.mark.parametrize("runs", [False, True])
def test_only_of_a_guest_that_is_gone_the_last_word_is_waited_for(
    tmp_path: Path, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many that run may be asked about, one after the other."""
    waited: list[str] = []
    monkeypatch.setattr(keeping, "await_end", lambda log, _uid, _timeout: waited.append(log))
    process = identify(os.getpid()) if runs else None
    assert container.exit_code(Paths(log=str(tmp_path)), {"id": "abc", "exit_code": None, "process": process}) is None
    assert len(waited) == (not runs)


def test_the_last_word_of_an_escaped_guest(tmp_path: Path) -> None:
    """Its user owns the file, not the folder; what it could become is no file to wait for."""
    (tmp_path / "abc").mkdir()
    path, paths = tmp_path / "abc" / container.STATUS_FILE, Paths(log=str(tmp_path))
    record: dict[str, Any] = {"id": "abc", "exit_code": None}
    assert container.exit_code(paths, record) is None
    (tmp_path / "elsewhere").write_bytes(b"exit 1\n")
    path.symlink_to(tmp_path / "elsewhere")
    assert container.exit_code(paths, record) is None
    path.unlink()
    os.mkfifo(path)
    assert container.exit_code(paths, record) is None


def test_which_images_need_the_default_kernel() -> None:
    assert kernel.needed(BARE)
    assert not kernel.needed({**BARE, "boot": {"kernel_path": "/k", "initrd_path": "/i"}})
    assert not kernel.needed({"type": "cloudimg", "boot": None})


def test_an_image_without_a_kernel_needs_the_host_s() -> None:
    wanted = {"image": "nginx", "kernel_args": "", "storage": 1}
    check_image(wanted, BARE, Context(default_kernel=True))
    with pytest.raises(UnsupportedError, match=r"image: image 'nginx' brings no kernel.*role cocoon\.microvm\.host"):
        check_image(wanted, BARE, Context())
