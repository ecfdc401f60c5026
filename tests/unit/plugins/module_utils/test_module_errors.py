# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task says when something goes wrong in a module."""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils import _module
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ConflictError


class Exited(Exception):
    """A module ends here; its answer."""


class Module:
    """As much of AnsibleModule as the wrapper uses."""

    params: t.ClassVar[dict[str, t.Any]] = {}
    check_mode: t.ClassVar[bool] = False
    argument_spec: t.ClassVar[dict[str, t.Any]] = {}

    def fail_json(self, **answer: t.Any) -> None:
        raise Exited({**answer, "failed": True})

    def exit_json(self, **answer: t.Any) -> None:
        raise Exited(answer)

    def warn(self, _warning: str) -> None:
        pass


def answer(monkeypatch: pytest.MonkeyPatch, body: t.Callable[[t.Any, bool], dict[str, t.Any]]) -> dict[str, t.Any]:
    monkeypatch.setattr(_module.os, "geteuid", lambda: 0)
    with pytest.raises(Exited) as caught:
        _module.run_module(t.cast(t.Any, Module()), body)
    return t.cast("dict[str, t.Any]", caught.value.args[0])


def fall(_params: t.Any, _check: bool) -> dict[str, t.Any]:
    return {}["missing"]


def refuse(_params: t.Any, _check: bool) -> dict[str, t.Any]:
    raise ConflictError("is taken", "name", "Take another.")


def test_a_defect_says_what_to_report_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said = answer(monkeypatch, fall)
    assert said["failed"] and said["error"] == "KeyError"
    assert (
        "unexpected KeyError at module_utils/test_module_errors.py:" in said["msg"] and "please report" in said["msg"]
    )
    assert "Traceback" not in json.dumps(said) and "\n" not in said["msg"]


def test_what_a_user_can_act_on_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer(monkeypatch, refuse)["msg"] == "name: is taken. Take another."
    assert answer(monkeypatch, lambda _params, _check: {"changed": True}) == {"changed": True}
