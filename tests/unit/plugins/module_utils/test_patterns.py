# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
r"""Two traps of regular expressions: ``$`` matches before a final newline, and ``\d`` matches digits of any script."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils import _types

ROOT = Path(_types.__file__).resolve().parent
PLUGINS = ROOT.parent
FUNCTIONS = ("compile", "match", "fullmatch", "search", "split", "findall", "finditer", "sub")
END_RE = re.compile(r"(?<!\\)(?:\\\\)*\$")


def patterns(tree: ast.AST) -> list[tuple[int, str, bool]]:
    """(line, text, whether re.ASCII is given) of each regular expression, those of JSON schemas among them."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FUNCTIONS:
            if isinstance(node.func.value, ast.Name) and node.func.value.id == "re" and node.args:
                found.append((node.lineno, text_of(node.args[0]), "re.ASCII" in ast.unparse(node)))
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values):
                if isinstance(key, ast.Constant) and key.value == "pattern":
                    found.append((value.lineno, text_of(value), False))
    return found


def text_of(node: ast.AST) -> str:
    """What the literal parts of an expression say."""
    parts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
    return "".join(part.decode("latin-1") if isinstance(part, bytes) else str(part) for part in parts)


def faults(source: str) -> list[str]:
    found = []
    for line, text, ascii_only in patterns(ast.parse(source)):
        if END_RE.search(text):
            found.append(f"line {line}: {text} ends in $, which a newline may follow: write \\Z")
        if "\\d" in text and not ascii_only:
            found.append(f"line {line}: {text} takes the digits of any script: write [0-9]")
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_patterns_end_at_the_end_and_digits_are_ascii(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8")) == []


def notations(source: str) -> list[str]:
    """Places that write a value as Python does: users write YAML. A ``__repr__`` is for us."""
    tree = ast.parse(source)
    ours = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__repr__"]
    skipped = {id(inner) for node in ours for inner in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        written = isinstance(node, ast.FormattedValue) and node.conversion in (ord("r"), ord("a"))
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "repr"
        if (written or called) and id(node) not in skipped:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", sorted(PLUGINS.rglob("*.py")), ids=lambda path: str(path.relative_to(PLUGINS)))
def test_nothing_is_said_in_pythons_notation(path: Path) -> None:
    assert notations(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("source", ['f"{a!r}"', 'f"{a!a}"', "repr(a)"])
def test_pythons_notation_is_found(source: str) -> None:
    assert notations(source) and not notations(f"def __repr__(self):\n    return {source}")


@pytest.mark.parametrize(
    "source",
    [
        r're.compile(r"^a$")',
        r're.match(rf"^{a}$", text)',
        r're.search(rb"\d", data)',
        r'{"type": "string", "pattern": "^[a-z]*$"}',
        r're.compile("(a|$)", re.ASCII)',
    ],
)
def test_they_are_found(source: str) -> None:
    assert faults(source)


@pytest.mark.parametrize(
    "source", [r're.compile(r"^a\$\Z")', r're.match(r"\d", text, re.ASCII)', r're.sub("a", "$", b)']
)
def test_what_is_right_is_not(source: str) -> None:
    assert not faults(source)
