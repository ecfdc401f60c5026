# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever is refused in any test is refused in words, and not in Python's notation."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError
from ansible_collections.cocoon.microvm.tests.unit.words import raw_python


@pytest.fixture(autouse=True)
def refusals_are_in_words(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[None]:
    """Look at the text of each error of ours that the test brings about."""
    found: list[str] = []
    made = CocoonError.__init__

    def look(error: CocoonError, *words: t.Any, **named: t.Any) -> None:
        made(error, *words, **named)
        if raw_python(str(error)):
            found.append(str(error))

    monkeypatch.setattr(CocoonError, "__init__", look)
    yield
    assert found == []
