# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The recipes of the docs: playbooks that Ansible reads, with options, variables and arguments that there are."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.cocoon.microvm.plugins import plugin_utils

ROOT = Path(next(iter(plugin_utils.__path__))).resolve().parents[1]
PREFIX = "cocoon.microvm."
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
# Those that tell how to operate a fleet: none of them is without something to run.
GUIDES = ("rollouts", "moving", "rotating-keys", "backup", "recovery", "inventory", "snapshots")
BLOCK_RE = re.compile(r"^```(yaml|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
VARIABLE_RE = re.compile(r"\bcocoon_[a-z_]+")
# Variables that groups may have as many of as they like, with a suffix each.
SUFFIXED = ("cocoon_vm", "cocoon_vms", "cocoon_images", "cocoon_networks")
BOOLEANS = {"--check", "--diff", "-v", "-b", "--become"}
WITH_VALUE = {"-i", "--limit", "-l", "--tags", "--skip-tags"}
OTHER_COMMANDS = {"cp", "rsync", "ansible-galaxy", "ssh", "make", "git", "cd", "curl", "apt-get", "systemctl"}


def blocks(page: Path, kind: str) -> list[str]:
    return [text for found, text in BLOCK_RE.findall(page.read_text(encoding="utf-8")) if found == kind]


def documents(kind: str) -> list[t.Any]:
    """A parameter for each block of that kind."""
    return [
        pytest.param(text, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, text in enumerate(blocks(page, kind))
    ]


def known_variables() -> set[str]:
    folders = [ROOT / "roles", ROOT / "playbooks", ROOT / "plugins"]
    texts = [path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob("*.[yp][my]*")]
    return {name for text in texts for name in VARIABLE_RE.findall(text)}


VARIABLES = known_variables()


def is_known(variable: str) -> bool:
    return variable in VARIABLES or any(variable.startswith(f"{name}_") for name in SUFFIXED)


def documented(module: str) -> dict[str, t.Any]:
    """The options of a module with those of its fragments."""
    text = (ROOT / "plugins" / "modules" / f"{module}.py").read_text(encoding="utf-8")
    document = yaml.safe_load(text.split('"""')[1])
    options = dict(document.get("options") or {})
    for fragment in document.get("extends_documentation_fragment", []):
        name, _dot, part = fragment.removeprefix(PREFIX).partition(".")
        module_name = f"ansible_collections.{PREFIX}plugins.doc_fragments.{name}"
        found = getattr(importlib.import_module(module_name).ModuleDocFragment, part.upper() or "DOCUMENTATION")
        options.update(yaml.safe_load(found).get("options") or {})
    return options


def wrong_options(options: t.Mapping[str, t.Any], given: t.Any, where: str) -> list[str]:
    """What a task gives that the documentation does not have, or does not give and has to."""
    if not isinstance(given, dict):
        return []
    found = [f"{where}: no option {name}" for name in given if name not in options]
    needed = [name for name, row in options.items() if row.get("required")]
    found += [f"{where}: {name} is missing" for name in needed if name not in given]
    for name, value in given.items():
        row = options.get(name, {})
        plain = isinstance(value, str) and "{{" not in value
        if plain and row.get("choices") and row.get("type", "str") == "str" and value not in row["choices"]:
            found.append(f"{where}: {name} cannot be {value}")
        for item in value if isinstance(value, list) else [value]:
            if "suboptions" in row:
                found += wrong_options(row["suboptions"], item, f"{where}.{name}")
    return found


def tasks_of(document: t.Any) -> t.Iterator[dict[str, t.Any]]:
    """All the tasks in plays or tasks, those of blocks as well."""
    for item in document if isinstance(document, list) else ():
        if isinstance(item, dict):
            nested = ("tasks", "pre_tasks", "post_tasks", "block", "rescue", "always")
            yield item
            for key in nested:
                yield from tasks_of(item.get(key))


def test_the_guides_have_recipes() -> None:
    for name in GUIDES:
        page = ROOT / "docs" / f"{name}.md"
        assert blocks(page, "yaml") and blocks(page, "console"), name


@pytest.mark.parametrize("text", documents("yaml"))
def test_options_and_variables(text: str) -> None:
    document = yaml.safe_load(text)
    wrong: list[str] = []
    for task in tasks_of(document):
        for module, given in task.items():
            if module.startswith(f"{PREFIX}cocoon_"):
                wrong += wrong_options(documented(module.removeprefix(PREFIX)), given, module)
    names = set(VARIABLE_RE.findall(text.replace(PREFIX, "")))
    modules = {path.stem for folder in ("modules", "filter") for path in (ROOT / "plugins" / folder).glob("*.py")}
    wrong += [f"no variable {name}" for name in names - modules if not is_known(name)]
    assert wrong == []


@pytest.mark.parametrize("text", documents("console"))
def test_commands(text: str) -> None:
    """Each names a playbook or a module of ours, with arguments and variables that there are."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if not words or words[0] in OTHER_COMMANDS:
            continue
        assert words[0] in ("ansible", "ansible-playbook"), line
        assert wrong_words(words) == [], line


def wrong_words(words: list[str]) -> list[str]:
    found, names = [], []
    rest = iter(words[1:])
    module = ""
    for word in rest:
        if word in ("-e", "--extra-vars"):
            found += [name for pair in next(rest).split() for name in [pair.partition("=")[0]] if not is_known(name)]
        elif word in WITH_VALUE:
            next(rest)
        elif word == "-m":
            module = next(rest).removeprefix(PREFIX)
        elif word == "-a":
            given = dict(pair.partition("=")[::2] for pair in shlex.split(next(rest)))
            found += wrong_options(documented(module), given, module)
        elif word.startswith("-"):
            found += [word] if word not in BOOLEANS else []
        else:
            names.append(word)
    ours = [name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)]
    return found + [name for name in ours if not (ROOT / "playbooks" / f"{name}.yml").exists()]


def test_ansible_reads_every_playbook(tmp_path: Path) -> None:
    """Plays as they are; tasks in a play."""
    files = []
    for page in PAGES:
        for number, text in enumerate(blocks(page, "yaml")):
            document = yaml.safe_load(text)
            if not isinstance(document, list):
                continue
            plays = document if any("hosts" in item for item in document) else [{"hosts": "all", "tasks": document}]
            path = tmp_path / f"{page.stem}-{number}.yml"
            path.write_text(yaml.safe_dump(plays, sort_keys=False), encoding="utf-8")
            files.append(str(path))
    env = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(ROOT.parents[2]), "ANSIBLE_LOCALHOST_WARNING": "false"}
    env["ANSIBLE_INVENTORY_UNPARSED_WARNING"] = "false"
    words = [sys.executable, "-m", "ansible", "playbook", "--syntax-check", "-i", "hv1,", *files]
    done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "given", "words"),
    [
        ("cocoon_vm", {"name": "web1", "memmory": "1G"}, "no option memmory"),
        ("cocoon_vm", {"name": "web1", "state": "up"}, "state cannot be up"),
        ("cocoon_snapshot", {"state": "absent"}, "name is missing"),
        ("cocoon_vms", {"vms": [{"name": "a", "nics": [{"netwrok": "lab"}]}]}, "vms.vms.nics: no option netwrok"),
    ],
)
def test_what_is_wrong_is_found(module: str, given: dict[str, t.Any], words: str) -> None:
    assert any(words in line for line in wrong_options(documented(module), given, module))
    assert wrong_words(["ansible-playbook", "cocoon.microvm.sites", "-e", "cocoon_prun=true", "--chek"]) == [
        "cocoon_prun",
        "--chek",
        "sites",
    ]
