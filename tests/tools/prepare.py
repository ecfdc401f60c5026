# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Python half of `make setup`: virtual environments, the tools of ansible-test, and the roles' packages.

Each step leaves a stamp with a digest of what it was made from, and is skipped while that has not changed.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import pythons
from common import (
    MATRIX,
    PYTHONS,
    ROOT,
    STAGE,
    TEST_HOME,
    VENV,
    WORK,
    environment,
    heading,
    load_json,
    main_wrapper,
    run,
    save_json,
    say,
    seconds,
)
from pythons import Core, Python
from stage import stage

REQUIREMENTS = ROOT / "tests" / "requirements"
STAMPS = WORK / "stamps"


def digest(*parts: str | Path) -> str:
    """One digest over texts and over the content of files and folders."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            total.update(part.encode())
            continue
        files = sorted(path for path in part.rglob("*") if path.is_file()) if part.is_dir() else [part]
        for path in files:
            if path.is_file() and "__pycache__" not in path.parts:
                total.update(f"\0{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}\0".encode())
                total.update(path.read_bytes())
    return total.hexdigest()


def step(name: str, title: str, key: str, there: Callable[[], bool], make: Callable[[], None]) -> None:
    """Do one step unless its stamp says that it was done with the same inputs, and its result is still there."""
    stamp = STAMPS / name
    if there() and load_json(stamp, {}).get("key") == key:
        return
    heading(title)
    began = time.monotonic()
    stamp.unlink(missing_ok=True)
    make()
    save_json(stamp, {"key": key})
    say(f"   done in {seconds(began)}: {title}")


def at_once(steps: Sequence[Callable[[], None]]) -> None:
    """Do steps that need nothing of each other, a few at a time: each waits for a network half of its time.

    :raises ToolError: one of them failed; the others have come to their end.
    """
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(step) for step in steps]:
            future.result()


def make_venv(folder: Path, python: Python, files: Iterable[Path]) -> None:
    """A virtual environment from requirement files. It gets its name only when it is complete."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    run([python.path, "-m", "venv", folder], quiet=True)
    command: list[str | Path] = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-input"]
    for name in files:
        command += ["-r", name]
    run(command, env=environment(pip_settings()))


def pip_settings() -> dict[str, str]:
    """The user's own pip settings, for a pip that runs with another HOME."""
    for name in (".config/pip/pip.conf", ".pip/pip.conf"):
        path = Path.home() / name
        if path.is_file() and "PIP_CONFIG_FILE" not in os.environ:
            return {"PIP_CONFIG_FILE": str(path)}
    return {}


def venv_step(folder: Path, python: Python, names: Iterable[str], title: str) -> None:
    """One virtual environment, made again when a requirement or the interpreter changed."""
    files = [REQUIREMENTS / f"{name}.txt" for name in names]
    key = digest(python.path, python.version, str(folder), *files)
    step(
        f"venv-{folder.name.lstrip('.')}.json",
        f"{title}: Python {python.version} in {folder.relative_to(ROOT)}",
        key,
        (folder / "bin" / "python").exists,
        lambda: make_venv(folder, python, files),
    )


def core_folder(cells: list[Core], core: Core) -> Path:
    """Where a cell's virtual environment lies: the main one in .venv."""
    return VENV if core is cells[0] else WORK / f"venv-{core.version}"


def write_get_pip(core_venv: Path) -> None:
    """Let ansible-test take pip from the interpreter's own bundle in place of a download from its project's site."""
    for script in core_venv.glob("lib/python3*/site-packages/ansible_test/_internal/python_requirements.py"):
        for version in re.findall(r"pip='([0-9.]+)'", script.read_text(encoding="utf-8")):
            target = TEST_HOME / ".ansible" / "test" / "cache" / f"get_pip_{version.replace('.', '_')}.py"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / "tests" / "tools" / "get_pip.py", target)


def prime(core: Core, folder: Path) -> None:
    """Have ansible-test make all the virtual environments of its sanity tests now."""
    write_get_pip(folder)
    env = environment({"HOME": str(TEST_HOME), **pip_settings()}, path=[PYTHONS])
    run([folder / "bin" / "ansible-test", "sanity", "--prime-venvs", "--color", "no"], env=env, cwd=STAGE, quiet=True)


def sanity_steps(cells: list[Core]) -> None:
    """The tools of `ansible-test sanity`, for each core. One after the other: the cores share environments."""
    found = sorted(os.listdir(PYTHONS))
    for core in cells:
        folder = core_folder(cells, core)
        python = folder / "bin" / "python"
        installed = run([python, "-c", "import ansible.release as r; print(r.__version__)"], quiet=True).stdout
        key = digest(installed, *found, ROOT / "tests" / "tools" / "get_pip.py", ROOT / "tests" / "config.yml")
        step(
            f"sanity-{core.version}.json",
            f"Tools of ansible-test sanity for ansible-core {core.version} (a minute or two, once)",
            key,
            (TEST_HOME / ".ansible" / "test" / "venv").is_dir,
            functools.partial(prime, core, folder),
        )


def packages_step() -> None:
    """What the host and image roles need from the distribution, by the roles themselves."""
    playbook = STAGE / "tests" / "tools" / "packages.yml"
    if os.geteuid():
        say("note: not root, so the packages of the roles host and image are left as they are.")
        return
    status = Path("/var/lib/dpkg/status")
    installed = str(status.stat().st_mtime_ns) if status.exists() else ""
    more = STAGE / "tests" / "integration" / "support" / "host_packages.yml"
    inputs = [STAGE / "roles" / "host", STAGE / "roles" / "image", playbook, more, STAGE / "plugins" / "filter"]
    # Only what is changed or fails is worth a line.
    quiet = {"ANSIBLE_DISPLAY_OK_HOSTS": "false", "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "false"}
    env = environment(quiet, path=[VENV / "bin"])
    cache = WORK / "image-packages"
    command: list[str | Path] = [VENV / "bin" / "ansible-playbook", "-i", "localhost,", playbook]
    command += ["-e", f"cocoon_python={VENV / 'bin' / 'python'}", "-e", f"cocoon_cache={cache}"]
    heading_text = "Packages of the hypervisor host and of the guest images (roles host and image)"
    key = digest(installed, *inputs)
    step("packages.json", heading_text, key, cache.is_dir, lambda: void(run(command, env=env)))
    if status.exists():  # what the step itself installed is no reason to run it again
        save_json(STAMPS / "packages.json", {"key": digest(str(status.stat().st_mtime_ns), *inputs)})


def void(_value: object) -> None:
    """Drop a result."""


def main() -> int:
    """Everything that is missing; nothing when nothing is."""
    began = time.monotonic()
    found = pythons.discover()
    cells, skipped = pythons.choose(found)
    pythons.link(found)
    venvs = []
    for core in cells:
        tools = ["lint"] if core is cells[0] else []
        names = [f"core-{core.version}", "target", "test", *tools]
        title = f"Virtual environment with ansible-core {core.version}"
        venvs.append(functools.partial(venv_step, core_folder(cells, core), core.python, names, title))
    lowest = min(found)
    targets = []
    if lowest < min(core.python.minor for core in cells):
        folder, title = WORK / "venv-target", "Virtual environment for the oldest target Python"
        venvs.append(functools.partial(venv_step, folder, found[lowest], ["target", "test"], title))
        targets.append({"python": found[lowest].version, "venv": str(folder)})
    else:
        skipped.append("target Python 3.9: not found; the modules were tested on newer ones only")
    at_once(venvs)
    matrix = {
        "cores": [
            {"core": core.version, "python": core.python.version, "venv": str(core_folder(cells, core))}
            for core in cells
        ],
        "targets": targets,
        "skipped": skipped,
    }
    save_json(MATRIX, matrix)
    stage()
    at_once([functools.partial(sanity_steps, cells), packages_step])
    say(f"setup: ready in {seconds(began)}" + "".join(f"\nsetup: not available: {reason}" for reason in skipped))
    return 0


if __name__ == "__main__":
    main_wrapper(main)
