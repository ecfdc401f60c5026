# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Imports of the engine go down only, wherever they stand; what a type checker alone reads is no import."""

from __future__ import annotations

import ast
import typing as t
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4] / "plugins" / "module_utils"
PACKAGE = "ansible_collections.cocoon.microvm.plugins.module_utils"
# From the ground up. What stands in one line does not import one another.
FLOORS = (
    ("_errors", "_plain", "_progress", "_words"),
    ("_config", "_process", "_sparse", "_types"),
    ("_argspec", "_documents", "_firewalls", "_record_types", "_records", "_scope"),
    ("_state",),
    ("_planning",),
    ("_hypervisors", "_network", "_images"),
    ("_guest", "_disks"),
    ("_snapshots",),
    ("_vms",),
    ("_engine",),
    ("_moving", "_host"),
    ("_doctor",),
    ("_api",),
    ("_module",),
)
PLACE = {room: place for place, floor in enumerate(FLOORS) for room in floor}


def imports(path: Path) -> t.Iterator[str]:
    """The rooms of the engine that a file imports from when it runs."""

    def visit(node: ast.AST) -> t.Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.ImportFrom) and (child.module or "").startswith(PACKAGE):
                inside = (child.module or "")[len(PACKAGE) + 1 :]
                yield from [inside.split(".")[0]] if inside else [alias.name for alias in child.names]
            yield from visit(child)

    return visit(ast.parse(path.read_text(encoding="utf-8")))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].partition(".")[0]


FILES = sorted(path for path in ROOT.rglob("*.py"))


@pytest.mark.parametrize("room", sorted({room_of(path) for path in FILES}))
def test_imports_go_down(room: str) -> None:
    assert room in PLACE, "a new room: give it its place in FLOORS"
    up = {
        f"{path.relative_to(ROOT)} imports {other}"
        for path in FILES
        if room_of(path) == room
        for other in imports(path)
        if other != room and PLACE[other] >= PLACE[room]
    }
    assert not up


# What a task sends to a host, and what is compiled there, is all that its module may import, types included: Ansible
# looks at the text. A module that only looks is not to bring along what changes things.
LOOKS = {
    "cocoon_exec": {"_images", "_network", "_planning/options", "_snapshots", "_vms/vm"},
    "cocoon_image_info": {"_engine", "_hypervisors", "_images/converging", "_images/importer", "_network", "_vms"},
    "cocoon_network_info": {"_engine", "_hypervisors", "_images", "_snapshots", "_vms"},
    "cocoon_snapshot_info": {"_engine", "_network", "_vms"},
    "cocoon_vm_info": {"_engine", "_images", "_network", "_snapshots", "_vms/vm"},
}


def packed(path: Path) -> set[Path]:
    """The files of the engine that are sent along with a module."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        path = waiting.pop()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(PACKAGE):
                continue
            base = ROOT.joinpath(*(node.module or "")[len(PACKAGE) + 1 :].split("."))
            names = [base.with_suffix(".py"), *(base / f"{alias.name}.py" for alias in node.names)]
            fresh = {name for name in names if name.is_file()} - found
            found |= fresh
            waiting += fresh
    return found


@pytest.mark.parametrize("module", LOOKS)
def test_what_looks_sends_nothing_that_changes(module: str) -> None:
    found = {path.relative_to(ROOT).with_suffix("") for path in packed(ROOT.parent / "modules" / f"{module}.py")}
    assert found
    heavy = {Path(name) for name in LOOKS[module]}
    assert not {str(path) for path in found if path in heavy or path.parents and set(path.parents) & heavy}
