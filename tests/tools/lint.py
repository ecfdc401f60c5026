# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make lint`: each check over the staged copy, and the collection as a user gets it."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from common import ROOT, STAGE, VENV, WORK, ToolError, environment, heading, say, seconds
from report import Report

BIN = VENV / "bin"
INSTALLED = WORK / "installed"
RUNTIME = {"plugins", "roles", "playbooks", "meta", "MANIFEST.json", "FILES.json"}


def tool(*command: str | Path, env: dict[str, str] | None = None, cwd: Path = STAGE) -> None:
    """Run one tool; its paths are shown as they are in the working tree.

    :raises ToolError: it found something.
    """
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        cwd=cwd,
        env=env or environment(path=[BIN]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        say(done.stdout.replace(f"{STAGE}/", "").replace("ansible_collections/cocoon/microvm/", "").rstrip())
        raise ToolError(f"{Path(words[0]).name} returned {done.returncode}")


def ruff() -> None:
    """Style and likely mistakes."""
    tool(BIN / "ruff", "check", "--no-cache", ".")


def mypy() -> None:
    """Types of everything that runs on a host or a controller."""
    # Looked up by their full names, in the staged tree: the working tree is no ansible_collections/cocoon/microvm.
    env = environment({"MYPYPATH": str(WORK)}, path=[BIN])
    config = ["--config-file", str(STAGE / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    tool(BIN / "mypy", *config, "-p", "ansible_collections.cocoon.microvm.plugins", env=env, cwd=WORK)


def ansible_lint() -> None:
    """Roles, playbooks and metadata, by the strictest profile."""
    tool(BIN / "ansible-lint", "--offline", "--profile", "production", "-q", "--nocolor")


def yamllint() -> None:
    """Every YAML file."""
    tool(BIN / "yamllint", "--strict", ".")


def shellcheck() -> None:
    """Every shell script, by its first line."""
    scripts = []
    for path in sorted(STAGE.rglob("*")):
        if path.is_file() and ".git" not in path.relative_to(STAGE).parts:
            with path.open("rb") as stream:
                first = stream.readline(80)
            if first.startswith(b"#!") and first.strip().endswith((b"bash", b"/sh", b" sh", b"dash", b"sh -e")):
                scripts.append(path)
    if not scripts:
        raise ToolError("no shell script was found")
    tool("shellcheck", "--severity=warning", *scripts)


def docs() -> None:
    """The documentation of modules, plugins and roles."""
    tool(BIN / "antsibull-docs", "lint-collection-docs", "--plugin-docs", "--validate-collection-refs", "self", ".")


def changelog() -> None:
    """Changelog fragments."""
    tool(BIN / "antsibull-changelog", "lint")


def build() -> Path:
    """The collection as an archive.

    :returns: the archive.
    """
    shutil.rmtree(INSTALLED, ignore_errors=True)
    INSTALLED.mkdir(parents=True)
    tool(BIN / "ansible-galaxy", "collection", "build", ".", "--output-path", INSTALLED, "--force")
    archives = list(INSTALLED.glob("cocoon-microvm-*.tar.gz"))
    if len(archives) != 1:
        raise ToolError(f"ansible-galaxy built {len(archives)} archives")
    return archives[0]


def package() -> None:
    """Build, install into an empty path, delete all that is not for run time, and use what is left."""
    archive = build()
    env = environment({"ANSIBLE_COLLECTIONS_PATH": str(INSTALLED)}, path=[BIN])
    install = ["collection", "install", str(archive), "--offline", "-p", str(INSTALLED)]
    tool(BIN / "ansible-galaxy", *install, env=env)
    root = INSTALLED / "ansible_collections" / "cocoon" / "microvm"
    for entry in root.iterdir():
        if entry.name not in RUNTIME:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    names = sorted(path.stem for path in (root / "plugins" / "modules").glob("*.py") if path.stem != "__init__")
    if not names:
        raise ToolError("the archive holds no module")
    tool(
        BIN / "ansible-doc", "-t", "module", "--json", *(f"cocoon.microvm.{name}" for name in names), env=env, cwd=WORK
    )
    for playbook in sorted((root / "playbooks").glob("*.yml")):
        command = ["-i", "localhost,", "--syntax-check", f"cocoon.microvm.{playbook.stem}"]
        tool(BIN / "ansible-playbook", *command, env=env, cwd=WORK)
    imports(root, env)


def imports(root: Path, env: dict[str, str]) -> None:
    """Import every Python file of the installed plugins by its full name."""
    modules = []
    for path in sorted((root / "plugins").rglob("*.py")):
        parts = path.relative_to(INSTALLED).with_suffix("").parts
        modules.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    tool(BIN / "python", "-c", code, *modules, env={**env, "PYTHONPATH": str(INSTALLED)}, cwd=WORK)


CHECKS: Sequence[tuple[str, Callable[[], None]]] = (
    ("ruff", ruff),
    ("mypy", mypy),
    ("yamllint", yamllint),
    ("shellcheck", shellcheck),
    ("ansible-lint, profile production", ansible_lint),
    ("antsibull-docs lint-collection-docs", docs),
    ("antsibull-changelog lint", changelog),
    ("collection build, install, use", package),
)


def lint() -> list[Report]:
    """Run every check, also after one has failed."""
    report = Report("lint")
    began = time.monotonic()
    for name, check in CHECKS:
        heading(name)
        at = time.monotonic()
        try:
            if name == "shellcheck" and not shutil.which("shellcheck"):
                report.skipped.append("lint::shellcheck: shellcheck is not installed")
                continue
            check()
            report.passed += 1
            say(f"   ok, {seconds(at)}")
        except ToolError as error:
            say(f"   FAILED: {error}")
            report.failures.append(f"{name}: {error}")
    report.spent = time.monotonic() - began
    return [report]
