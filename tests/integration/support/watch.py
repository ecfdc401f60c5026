# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What others can see: the command lines of processes, what modules write to the journal, and files."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

TURN = 0.003
# What ansible's modules take for systemd's own library. Theirs writes to the journal, this one to a file.
JOURNAL = """\
import json, os

def send(MESSAGE, **fields):
    with open(os.environ["COCOON_TEST_JOURNAL"], "a", encoding="utf-8") as stream:
        stream.write(json.dumps({"MESSAGE": MESSAGE, **fields}, default=str) + "\\n")

sendv = send
"""


class CommandLines:
    """Reads the command lines of all processes, again and again, on a thread of its own."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._known: dict[str, bytes] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> CommandLines:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(TURN):
            for name in os.listdir("/proc"):
                if name.isdigit():
                    self._look(name)

    def _look(self, name: str) -> None:
        try:
            with open(f"/proc/{name}/cmdline", "rb") as stream:
                words = stream.read()
        except OSError:
            return
        # A process may be seen before and after it became another program.
        if words and self._known.get(name) != words:
            self._known[name] = words
            self.seen.add(words)

    def holding(self, secrets: Iterable[str]) -> list[bytes]:
        """The command lines that hold one of some secrets."""
        return [words for words in self.seen if any(secret.encode() in words for secret in secrets)]


def fake_journal(folder: Path) -> dict[str, str]:
    """Make a journal out of a file in *folder*: what to have in the environment of modules."""
    package = folder / "python" / "systemd"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "daemon.py").write_text("def booted():\n    return True\n", encoding="utf-8")
    (package / "journal.py").write_text(JOURNAL, encoding="utf-8")
    journal = folder / "journal"
    journal.touch()
    return {"PYTHONPATH": str(package.parent), "COCOON_TEST_JOURNAL": str(journal)}


def regular_files(*folders: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The files below some folders."""
    for folder in folders:
        for path in folder.rglob("*"):
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                yield path, status


def contains(path: Path, secrets: Iterable[str]) -> bool:
    """Whether one of some secrets stands in a file."""
    wanted = [secret.encode() for secret in secrets]
    longest = max(len(secret) for secret in wanted)
    rest = b""
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            if any(secret in rest + block for secret in wanted):
                return True
            rest = block[-longest:]
    return False
