# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where things are, and commands on the machine under test."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ansible_collections.cocoon.microvm as collection

COLLECTION = Path(next(iter(collection.__path__)))
COLLECTIONS = COLLECTION.parents[2]
# The repository itself, also when the tests run in its staged copy at .work/ansible_collections/cocoon/microvm.
ROOT = next((parent.parent for parent in COLLECTION.parents if parent.name == ".work"), COLLECTION.resolve())
WORK = ROOT / ".work"
# All that a session makes carries this prefix: namespaces, folders, and so command lines.
PREFIX = f"cmvtest-{os.getpid()}"
# In the environment of every process that a test starts, and so of what those leave behind.
TOKEN = ("COCOON_TEST_RUN", PREFIX)


def command(*words: str | Path, netns: str | None = None, check: bool = True, timeout: float = 60) -> str:
    """Run a command, in a network namespace if one is named.

    :returns: its standard output.
    """
    line = [str(word) for word in words]
    if netns:
        # Not `ip netns exec`, which gives a mount namespace of its own: what it mounts would be invisible here.
        line = ["nsenter", f"--net=/run/netns/{netns}", "--", *line]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout)
    if check and done.returncode:
        raise AssertionError(
            f"{' '.join(line)} returned {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


@dataclass(frozen=True)
class Netns:
    """A network namespace of the tests, with loopback up."""

    name: str

    @property
    def path(self) -> str:
        """The file that holds it."""
        return f"/run/netns/{self.name}"

    def run(self, *words: str | Path, check: bool = True, timeout: float = 60) -> str:
        """Run a command inside. :returns: its standard output."""
        return command(*words, netns=self.name, check=check, timeout=timeout)

    def enter(self) -> Sequence[str]:
        """What to put before a command line to run it inside."""
        return ["nsenter", f"--net={self.path}", "--"]


def make_netns(name: str) -> Netns:
    """Add a network namespace."""
    command("ip", "netns", "add", name)
    command("ip", "-n", name, "link", "set", "lo", "up")
    return Netns(name)


@contextlib.contextmanager
def one_at_a_time(target: Path) -> Iterator[bool]:
    """While it lasts no other worker builds *target*; whether it has yet to be built."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield not target.exists()


def target_python() -> str:
    """The interpreter that modules run on."""
    return os.environ.get("COCOON_TARGET_PYTHON") or sys.executable
