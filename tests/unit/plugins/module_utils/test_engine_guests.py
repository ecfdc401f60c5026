# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What cocoon_exec takes, and what it says of a command's end."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils import basic

from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._api.answers import of_commands
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._engine.guests import (
    _is_there,
    answer,
    names_of,
    order_of,
    run_in_all,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.agent import Agent, Outcome
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.line import AgentError
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.guests import facts_of
from ansible_collections.cocoon.microvm.plugins.modules import cocoon_exec
from ansible_collections.cocoon.microvm.tests.unit.agents import make_vm

GIVEN: dict[str, t.Any] = {"names": ["web1"], "argv": ["true"], "timeout": 60, "agent_timeout": 30}


@pytest.mark.parametrize(
    ("given", "argv", "env", "stdin"),
    [
        ({"argv": ["echo", "a b", ""]}, ("echo", "a b", ""), {}, b""),
        ({"argv": None, "shell": "echo $A"}, ("/bin/sh", "-c", "echo $A"), {}, b""),
        ({"env": {"A": "x\ny", "B": 5, "C": ""}}, ("true",), {"A": "x\ny", "B": "5", "C": ""}, b""),
        ({"stdin": "\N{SNOWMAN}\n"}, ("true",), {}, "\N{SNOWMAN}\n".encode()),
    ],
)
def test_orders(given: dict[str, t.Any], argv: tuple[str, ...], env: dict[str, str], stdin: bytes) -> None:
    order = order_of({**GIVEN, **given})
    assert (order.command.argv, order.command.env, order.command.stdin) == (argv, env, stdin)


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"argv": []}, "argv"),
        ({"argv": [""]}, "argv"),
        ({"argv": None, "shell": ""}, "argv"),
        ({"argv": ["a", "b\0c"]}, "argv[1]"),
        ({"env": {"A=B": "c"}}, "env"),
        ({"env": {"": "c"}}, "env"),
        ({"env": {"A": True}}, "env.A"),
        ({"env": {"A": ["b"]}}, "env.A"),
        ({"env": {"A": None}}, "env.A"),
        ({"timeout": 0}, "timeout"),
        ({"agent_timeout": -1}, "agent_timeout"),
        ({"names": []}, "names"),
    ],
)
def test_orders_that_are_none(given: dict[str, t.Any], option: str) -> None:
    with pytest.raises(InputError) as caught:
        names_of({**GIVEN, **given})
        order_of({**GIVEN, **given})
    assert caught.value.option == option and caught.value.remedy


@pytest.mark.parametrize(
    "given", [{"names": ["web1"], "argv": ["true"], "shell": "true"}, {"names": [], "argv": ["true"]}]
)
def test_secrets_are_not_returned(
    given: dict[str, t.Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor are they where the module's own arguments are refused."""
    hidden = {"stdin": "a secret", "env": {"PW": "a secret"}}
    arguments = {"ANSIBLE_MODULE_ARGS": {**given, **hidden, "_ansible_inject_invocation": True}}
    monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps(arguments).encode())
    monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
    with pytest.raises(SystemExit):
        cocoon_exec.main()
    said = json.loads(capsys.readouterr().out)
    assert said["failed"] and said["invocation"]["module_args"]["names"] == given["names"]
    assert "a secret" not in json.dumps(said)


def test_a_name_counts_once() -> None:
    assert names_of({"names": ["b", "a", "b"]}) == ["b", "a"]


def test_one_vms_trouble_is_its_own(tmp_path: Path) -> None:
    """Whatever it is: here somebody has put a file where its sockets are."""
    place = {name: str(tmp_path / name) for name in ("root_dir", "run_dir", "log_dir")}
    store = Store.open(Paths.from_params(place))
    folder = make_vm(store, "web1")
    folder.rmdir()
    folder.touch()
    found = run_in_all({**GIVEN, "names": ["web1", "nobody"], "parallel": 2, **place}, check=False)
    assert [(result["error"], result["failed"]) for result in found] == [
        ("NotADirectoryError", True),
        ("NotFoundError", True),
    ]
    record = store.vm_record("web1") or {}
    facts = facts_of(store.paths, [record, {**record, "state": types.STOPPED}], 1.0)
    assert facts[1] is None and "Not a directory" in (facts[0] or {})["error"]


class Looking:
    """An agent whose look for a file ends so."""

    def __init__(self, code: int) -> None:
        self.code = code

    def run(self, _command: t.Any, _timeout: float) -> Outcome:
        return Outcome(self.code, b"", b"")


def test_a_look_that_fails_is_not_taken_for_absence() -> None:
    """Else what is to run once would run again."""
    assert [_is_there(t.cast(Agent, Looking(code)), "/done", 1.0) for code in (0, 1)] == [True, False]
    for code in (2, 126, 127, 137, 255):
        with pytest.raises(AgentError, match=f"cannot look for /done: exit code {code}"):
            _is_there(t.cast(Agent, Looking(code)), "/done", 1.0)


def test_answers() -> None:
    found = answer(Outcome(3, b"one\ntwo\xff\r\n", b"", True))
    assert (found["stdout"], found["stdout_lines"], found["truncated"]) == (
        "one\ntwo\N{REPLACEMENT CHARACTER}",
        ["one", "two\N{REPLACEMENT CHARACTER}"],
        True,
    )
    assert found["failed"] and "exit code 3" in found["msg"]
    assert "failed" not in answer(Outcome(0, b"", b""))
    one = of_commands([{"name": "a", "changed": True, **found}])
    assert (one["rc"], one["failed_vms"], one["msg"]) == (
        3,
        ["a"],
        "1 of 1 VMs failed: a: the command ended with exit code 3",
    )
    two = of_commands([{"name": "a", "changed": True, "rc": 0}, {"name": "b", "changed": False, "rc": None}])
    assert two["changed"] and "rc" not in two and "failed" not in two
