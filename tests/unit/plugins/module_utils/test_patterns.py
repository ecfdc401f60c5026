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
