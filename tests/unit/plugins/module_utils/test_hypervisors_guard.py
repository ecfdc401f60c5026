# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest that stands still to be saved goes on, whatever fails, and what failed first is what is told."""

from __future__ import annotations

import functools
import socket
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import guard
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import migration
from ansible_collections.cocoon.microvm.tests.unit.children import reap

# What a guard is for, or not needed.
WATCH = 'import os, sys; open(sys.argv[1], "w").write("done" if os.read(0, 1) else "acts")'


class Guest:
    """One that can be stopped and let go on, and a hypervisor that fails at what *fails* names."""

    def __init__(self, path: Path, fails: str) -> None:
        self.path, self.fails = path, fails.split()
        self.seen: list[str] = []

    def call(self, name: str) -> None:
        self.seen.append(name)
        if name in self.fails:
            raise KeyboardInterrupt if name == "die" else HypervisorError(f"no {name}")

    def save(self, runs: bool, stay: bool) -> float:
        stop, go_on = (functools.partial(self.call, name) for name in ("stop", "go_on"))
        with guard.standing_still(runs, (WATCH, str(self.path)), stop, go_on, stay) as still:
            self.call("die")
            self.call("save")
        return still.seconds

    def watched(self) -> str:
        """What became of the guard; nothing without one."""
        reap()
        return self.path.read_text(encoding="utf-8") if self.path.exists() else ""


@pytest.mark.parametrize(
    ("fails", "runs", "stay", "seen", "told", "watched"),
    [
        ("", True, False, "stop die save go_on", None, "done"),
        ("", True, True, "stop die save", None, "done"),
        ("", False, False, "die save", None, ""),
        ("save", True, False, "stop die save go_on", "no save", "done"),
        ("save", True, True, "stop die save go_on", "no save", "done"),
        ("save", False, False, "die save", "no save", ""),
        ("stop", True, False, "stop go_on", "no stop", "done"),  # it may be done yet
        ("go_on", True, False, "stop die save go_on", "no go_on", "acts"),
        ("save go_on", True, False, "stop die save go_on", "no save", "acts"),
        ("stop go_on", True, False, "stop go_on", "no stop", "acts"),
        ("die go_on", True, False, "stop die go_on", None, "acts"),
    ],
)
def test_standing_still(
    tmp_path: Path, fails: str, runs: bool, stay: bool, seen: str, told: str | None, watched: str
) -> None:
    guest = Guest(tmp_path / "word", fails)
    if fails:
        with pytest.raises(KeyboardInterrupt if told is None else HypervisorError, match=told):
            guest.save(runs, stay)
    else:
        assert (guest.save(runs, stay) > 0) == runs
    assert guest.seen == seen.split() and guest.watched() == watched


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("words", [(guard.CALL, "call"), (migration.GUARD,)], ids=["rest", "qmp"])
def test_no_guard_tries_further_where_the_hypervisor_has_ended(
    tmp_path: Path, words: tuple[str, ...], there: bool
) -> None:
    if there:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / "sock"))
    made = guard.Guard(words[0], str(tmp_path / "sock"), *words[1:])
    stdin = made._process.stdin
    assert stdin
    stdin.close()
    assert made._process.wait(8) == 0  # it would try for ten seconds at least
