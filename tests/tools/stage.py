# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy of the working tree at .work/ansible_collections/cocoon/microvm, where every Ansible tool finds it.

It holds what git would: files that are tracked, or new and not ignored. What passes there passes in a fresh clone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from common import ROOT, STAGE, ToolError, run

IGNORED = {".git", ".venv", ".work", ".ansible", "collections", "__pycache__", ".mypy_cache", ".ruff_cache"}


def listed() -> Iterator[str]:
    """The files of the working tree, as paths relative to the root."""
    if (ROOT / ".git").exists():
        command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        done = run(command, quiet=True)
        yield from (name for name in done.stdout.split("\0") if name and os.path.lexists(ROOT / name))
        return
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in IGNORED]
        yield from (os.path.relpath(os.path.join(folder, name), ROOT) for name in names)


def same(source: Path, target: Path) -> bool:
    """Whether a copy is up to date."""
    try:
        old = target.lstat()
    except FileNotFoundError:
        return False
    new = source.lstat()
    return (old.st_size, old.st_mtime_ns, old.st_mode) == (new.st_size, new.st_mtime_ns, new.st_mode)


def copy(source: Path, target: Path) -> None:
    """Copy one file with its time and mode, so that an interrupted run cannot leave half of it under its name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copy2(source, temporary, follow_symlinks=False)
    temporary.replace(target)


def prune(keep: set[str]) -> None:
    """Remove what is no longer in the working tree, caches and results included."""
    for folder, folders, names in os.walk(STAGE, topdown=True):
        relative = Path(folder).relative_to(STAGE)
        if str(relative) == ".":
            folders[:] = [name for name in folders if name != ".git"]
        for name in names:
            if str(relative / name) not in keep:
                (Path(folder) / name).unlink()
    for folder, _folders, _names in os.walk(STAGE, topdown=False):
        relative = Path(folder).relative_to(STAGE)
        if relative.parts[:1] != (".git",) and str(relative) != "." and not os.listdir(folder):
            os.rmdir(folder)


def stage() -> Path:
    """Bring the copy up to date.

    :returns: its folder.
    """
    names = set(listed())
    if "galaxy.yml" not in names:
        raise ToolError(f"{ROOT} is not a checkout of the collection: it has no galaxy.yml.")
    STAGE.mkdir(parents=True, exist_ok=True)
    for name in sorted(names):
        try:
            if not same(ROOT / name, STAGE / name):
                copy(ROOT / name, STAGE / name)
        except FileNotFoundError:  # removed in the meantime
            names.discard(name)
    prune(names)
    if not (STAGE / ".git").exists():
        # ansible-test and ansible-lint ask git for their files; the ignored folder of the outer clone would answer.
        run(["git", "init", "--quiet", "."], cwd=STAGE, quiet=True)
    return STAGE


if __name__ == "__main__":
    print(stage())
