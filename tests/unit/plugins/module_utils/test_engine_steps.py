# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the executor makes of a step."""

from __future__ import annotations

import types
import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._engine import steps
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import steps as kinds
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import power


@pytest.mark.parametrize(
    ("windows", "asked", "seconds"), [(False, None, 30), (True, None, 120), (True, 5, 5), (False, 90, 90)]
)
def test_how_long_a_guest_has_to_shut_down(
    monkeypatch: pytest.MonkeyPatch, windows: bool, asked: int | None, seconds: int
) -> None:
    given: list[float] = []
    monkeypatch.setattr(power, "stop", lambda _vm, timeout, _force, _keep: given.append(timeout))
    record: t.Any = {"id": "a" * 26, "config": {"name": "web1", "windows": windows}, "restarting": False}
    run: t.Any = types.SimpleNamespace(store=types.SimpleNamespace(paths=None))
    steps.stop(steps.Job(run, record, {} if asked is None else {"stop_timeout": asked}), kinds.Stop())
    assert given == [seconds]
