# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths, the environment and small helpers that every developer command shares. Standard library only."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".work"
VENV = ROOT / ".venv"
COLLECTIONS = WORK  # holds ansible_collections/
STAGE = WORK / "ansible_collections" / "cocoon" / "microvm"
# ansible-test keeps its virtual environments under ~/.ansible/test: ours live here, so that `make clean` takes them.
TEST_HOME = WORK / "home"
PYTHONS = WORK / "pythons"
MATRIX = WORK / "matrix.json"
RESULTS = WORK / "results"
# Where a job that runs beside others keeps what it has to show; None: the screen.
OUTPUT: ContextVar[io.StringIO | None] = ContextVar("OUTPUT", default=None)
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ToolError(Exception):
    """A message for the person at the terminal; no traceback."""


def say(text: str) -> None:
    """Print one line of progress at once, also through a pipe."""
    print(text, flush=True, file=OUTPUT.get() or sys.stdout)


def heading(text: str) -> None:
    """Print the title of a step."""
    say(f"\n== {text}")


def environment(extra: Mapping[str, str] | None = None, path: Sequence[Path | str] = ()) -> dict[str, str]:
    """The environment of every command: no shims on PATH, Ansible's paths inside the repository.

    :param extra: variables to add.
    :param path: folders to put in front of PATH.
    """
    env = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "PYTHON", "PYENV_"))}
    env["PATH"] = os.pathsep.join([*(str(entry) for entry in path), SYSTEM_PATH])
    env.update(
        ANSIBLE_COLLECTIONS_PATH=str(COLLECTIONS),
        ANSIBLE_HOME=str(WORK / "ansible"),
        ANSIBLE_LOCALHOST_WARNING="false",
        ANSIBLE_INVENTORY_UNPARSED_WARNING="false",
        LC_ALL="C.UTF-8",
        PIP_DISABLE_PIP_VERSION_CHECK="1",
        PYTHONDONTWRITEBYTECODE="1",
        PYTHONUNBUFFERED="1",
    )
    env.update(extra or {})
    return env


def run(
    command: Iterable[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    check: bool = True,
    quiet: bool = False,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command without a terminal's input.

    :param quiet: keep its output for the result, and show it only when the command fails.
    :raises ToolError: it failed and `check` is set.
    """
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        cwd=cwd,
        env=dict(env if env is not None else environment()),
        check=False,
        text=True,
        input=stdin if stdin is not None else "",
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
    )
    if check and done.returncode:
        if quiet:
            sys.stdout.write(done.stdout)
        raise ToolError(f"failed with status {done.returncode}: {' '.join(words)}")
    return done


def load_json(path: Path, default: Any = None) -> Any:
    """The JSON document in a file, or the default when there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return default


def save_json(path: Path, value: Any) -> None:
    """Write a JSON document whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f"{path.suffix}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)


def seconds(since: float) -> str:
    """The time that has gone by since a `time.monotonic()`, for people."""
    spent = time.monotonic() - since
    return f"{spent:.1f} s" if spent < 60 else f"{int(spent // 60)} min {int(spent % 60)} s"


def main_wrapper(function: Any) -> None:
    """Run a command line program: its ToolErrors become one line and exit status 1."""
    try:
        status = function()
    except ToolError as error:
        say(f"error: {error}")
        status = 1
    except KeyboardInterrupt:
        say("interrupted")
        status = 130
    sys.exit(status or 0)
