# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How mkfs.erofs is called: LZ4HC, and nothing that differs from one conversion of a layer to the next."""

from __future__ import annotations

import io
import subprocess
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ToolError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import erofs

DIGEST = "ab" * 32
UUID = "9cee660b-b2ca-516a-b8b5-88e6d2e104a0"  # of that digest, for ever
BEGINNING = ["setpriv", "--pdeathsig", "KILL", "--", "mkfs.erofs"]
SAME = ["-zlz4hc", "-C4096", "-T0", f"-U{UUID}"]


class FakeMkfs:
    """mkfs.erofs, as far as whoever feeds it can tell."""

    code = 0
    calls: list[tuple[list[str], dict[str, Any]]] = []
    stdin: io.BytesIO

    def __init__(self, command: list[str], **options: Any) -> None:
        self.calls.append((command, options))
        self.stdin, self.returncode = io.BytesIO(), self.code

    def __enter__(self) -> FakeMkfs:
        return self

    def __exit__(self, *_exc: object) -> None: ...

    def wait(self) -> None: ...

    def kill(self) -> None: ...


@pytest.fixture(name="mkfs")
def fixture_mkfs(monkeypatch: pytest.MonkeyPatch) -> type[FakeMkfs]:
    monkeypatch.setattr(FakeMkfs, "calls", [])
    monkeypatch.setattr(FakeMkfs, "code", 0)
    monkeypatch.setattr(erofs.subprocess, "Popen", FakeMkfs)
    return FakeMkfs


def test_a_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(erofs, "run_tool", lambda command, **_options: calls.append(command))
    erofs.convert_tree("/work/tree", "/work/erofs", DIGEST)
    assert calls == [[*BEGINNING, *SAME, "/work/erofs", "/work/tree"]]


def test_a_tar(mkfs: type[FakeMkfs]) -> None:
    with erofs.convert_stream("/work/erofs", "/work/scratch", DIGEST, 5000) as feed:
        feed(b"tar")
    ((command, options),) = mkfs.calls
    assert command == [*BEGINNING, "--tar=f", "--aufs", *SAME, "/work/erofs"]
    assert (options["user"], options["group"], options["extra_groups"]) == (5000, 5000, [])
    assert options["env"]["TMPDIR"] == "/work/scratch" and options["stdin"] == subprocess.PIPE


def test_another_layer_has_another_uuid() -> None:
    assert erofs.layer_uuid(DIGEST) == UUID != erofs.layer_uuid("cd" * 32)


@pytest.mark.parametrize(("code", "early"), [(1, False), (0, True)])
def test_failures_say_what_to_do(mkfs: type[FakeMkfs], monkeypatch: pytest.MonkeyPatch, code: int, early: bool) -> None:
    """By its return code, or because it ends before it has read everything."""
    monkeypatch.setattr(FakeMkfs, "code", code)
    with pytest.raises(ToolError, match=rf"mkfs.erofs failed \({code}\).*Nothing of it was kept. Run the task again"):
        with erofs.convert_stream("/work/erofs", "/work/scratch", DIGEST, 5000):
            if early:
                raise BrokenPipeError


def test_a_tree_that_it_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_command: list[str], **_options: Any) -> None:
        raise ToolError("mkfs.erofs failed (1): it says why")

    monkeypatch.setattr(erofs, "run_tool", fail)
    with pytest.raises(ToolError, match="it says why. Nothing of it was kept. Run the task again"):
        erofs.convert_tree("/work/tree", "/work/erofs", DIGEST)
