# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the connection plugin runs on a host: with nothing but what it brings along."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.plugin_utils import _bridge
from ansible_collections.cocoon.microvm.tests.unit.agents import Cocoon, Port, Server, make_vm

pytestmark = pytest.mark.skipif(not shutil.which("perl"), reason="needs perl")
Ask = t.Callable[..., tuple[dict[str, t.Any], bytes]]


@pytest.fixture(name="ask")
def fixture_ask(tmp_path: Path) -> t.Iterator[Ask]:
    """Puts a request, as the plugin does: to a Python that has nothing of ours."""
    place = {"root_dir": str(tmp_path / "root"), "run_dir": str(tmp_path / "r"), "log_dir": str(tmp_path / "log")}
    store = Store.open(Paths.from_params(place))
    port = Port()
    ours = make_vm(store, "web1", "qemu") / "agent.sock"
    make_vm(store, "web3", "qemu")
    theirs = make_vm(store, "web2", "firecracker", "own") / "vsock.sock"

    def ask(vm: str = "web1", data: bytes = b"", **request: t.Any) -> tuple[dict[str, t.Any], bytes]:
        asked = {"vm": vm, "agent_timeout": 5, "timeout": 20, **place, **request}
        done = subprocess.run(
            [sys.executable, "-I", "-c", _bridge.START],
            input=_bridge.message(asked, data),
            capture_output=True,
            check=False,
            cwd="/",
        )
        assert not done.stderr, done.stderr.decode()
        return _bridge.parse(done.stdout)

    with Server(ours, port.serve), Server(theirs, Cocoon().serve, parallel=True):
        yield ask
    port.close()


@pytest.mark.parametrize("vm", ["web1", "web2"])
def test_commands_and_files(ask: Ask, tmp_path: Path, vm: str) -> None:
    data = bytes(range(256)) * 9
    head, printed = ask(vm, data, do="exec", argv=["/bin/sh", "-c", "cat; echo told >&2; exit 5"])
    assert (head, printed) == ({"rc": 5, "stdout": len(data)}, data + b"told\n")
    assert ask(vm, data, do="put", path=str(tmp_path / "file")) == ({}, b"")
    assert (tmp_path / "file").read_bytes() == data
    assert ask(vm, do="fetch", path=str(tmp_path / "file"), limit=len(data)) == ({}, data)


@pytest.mark.parametrize(
    ("request_", "text", "reached"),
    [
        ({"vm": "nobody", "do": "exec", "argv": ["true"]}, "there is no VM 'nobody'", False),
        ({"vm": "web3", "do": "exec", "argv": ["true"]}, "does not run any more", False),
        ({"do": "exec", "argv": ["/not/there"]}, "No such file", True),
        ({"do": "exec", "argv": ["sh", "-c", "head -c 5000000 /dev/zero"]}, "more than the agent keeps", True),
        ({"do": "exec", "argv": ["sleep", "9"], "timeout": 0.3}, "killed", True),
        ({"do": "fetch", "path": "/not/there", "limit": 5}, "No such file", True),
        ({"do": "fetch", "path": "/etc/passwd", "limit": 5}, "more than 5 bytes", True),
        ({"do": "put", "path": "/proc/version"}, "failed to open|Permission|checksum", True),
    ],
    ids=range(8),
)
def test_what_goes_wrong_is_told(ask: Ask, request_: dict[str, t.Any], text: str, reached: bool) -> None:
    head, data = ask(**request_)
    assert re.search(text, head["error"]) and not data
    assert head["reached"] is reached


def test_answers_that_are_none() -> None:
    for output in (b"", b"sudo: no\n", b"[1]\n", b"\xff\n"):
        with pytest.raises(ValueError):
            _bridge.parse(output)
