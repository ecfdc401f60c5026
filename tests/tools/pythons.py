# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which Python interpreters this machine has, and which versions of ansible-core they can test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common import PYTHONS, SYSTEM_PATH, ToolError

MINORS = range(9, 15)
# ansible-core version: the Python minors that its controller side runs on.
CORES = {"2.21": range(12, 15), "2.19": range(11, 14)}
PROBE = "import sys, ensurepip, venv, ssl, ctypes, sqlite3; print(sys.version_info[1], sys.prefix == sys.base_prefix)"


@dataclass(frozen=True)
class Python:
    """A usable interpreter: it can make virtual environments, and is not inside one."""

    minor: int
    path: str

    @property
    def version(self) -> str:
        """As ansible-test writes it."""
        return f"3.{self.minor}"


@dataclass(frozen=True)
class Core:
    """One cell of the test matrix."""

    version: str
    python: Python


def candidates() -> Iterator[str]:
    """Paths worth a probe, the wanted ones first. Shims are no interpreters and are left out."""
    for given in filter(None, os.environ.get("COCOON_PYTHON", "").split(os.pathsep)):
        if not os.access(given, os.X_OK):
            raise ToolError(f"COCOON_PYTHON names {given}, which is not an executable file.")
        yield given
    folders = SYSTEM_PATH.split(os.pathsep) + os.environ.get("PATH", "").split(os.pathsep)
    home = Path.home()
    folders += [str(path) for path in sorted(home.glob(".pyenv/versions/*/bin"))]
    folders += [str(path) for path in sorted(home.glob(".local/share/uv/python/*/bin"))]
    for folder in dict.fromkeys(folders):
        if not folder or "/shims" in folder or folder.startswith(str(PYTHONS)):
            continue
        for minor in MINORS:
            path = os.path.join(folder, f"python3.{minor}")
            if os.access(path, os.X_OK):
                yield path


def probe(path: str) -> Python | None:
    """The interpreter at a path, or None when it is broken, bare or a virtual environment's."""
    try:
        done = subprocess.run(
            [path, "-I", "-c", PROBE], capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    words = done.stdout.split()
    if done.returncode or len(words) != 2 or words[1] != "True":
        return None
    return Python(int(words[0]), path)


def discover() -> dict[int, Python]:
    """The first usable interpreter of each minor version, by minor version."""
    found: dict[int, Python] = {}
    for path in candidates():
        python = probe(path)
        if python and python.minor in MINORS:
            found.setdefault(python.minor, python)
    return found


def choose(found: dict[int, Python]) -> tuple[list[Core], list[str]]:
    """The matrix: the main cell first, and what cannot be tested, with the reason.

    The newest ansible-core goes to the system's own Python where that is new enough, else to the newest one; the
    oldest core goes to the oldest Python that it runs on, so that the two cells lie far apart.
    """
    cells: list[Core] = []
    skipped: list[str] = []
    system = probe("/usr/bin/python3")
    for core, minors in CORES.items():
        usable = sorted(minor for minor in found if minor in minors)
        if not usable:
            wanted = f"Python 3.{minors[0]} to 3.{minors[-1]}"
            skipped.append(f"ansible-core {core}: no {wanted} found (COCOON_PYTHON=/path/to/python names one)")
            continue
        minor = usable[0] if core != "2.21" else usable[-1]
        if core == "2.21" and system and system.minor in usable:
            minor = system.minor
        cells.append(Core(core, found[minor]))
    if not cells:
        raise ToolError(
            "no Python that runs ansible-core was found: 3.11 or newer is needed, with its venv module. "
            "COCOON_PYTHON=/path/to/python names one."
        )
    return cells, skipped


def link(found: dict[int, Python]) -> None:
    """A folder with one name per version, for PATH: ansible-test looks its interpreters up there."""
    PYTHONS.mkdir(parents=True, exist_ok=True)
    wanted = {f"python{python.version}": python.path for python in found.values()}
    for entry in PYTHONS.iterdir():
        if wanted.get(entry.name) != os.readlink(entry):
            entry.unlink()
    for name, path in wanted.items():
        if not (PYTHONS / name).is_symlink():
            (PYTHONS / name).symlink_to(path)
