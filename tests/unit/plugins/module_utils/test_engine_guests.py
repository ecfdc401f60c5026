# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What cocoon_exec takes, and what it says of a command's end."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._engine.guests import answer, names_of, order_of
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.agent import Outcome
from ansible_collections.cocoon.microvm.plugins.module_utils._module import exec_answer

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


def test_a_name_counts_once() -> None:
    assert names_of({"names": ["b", "a", "b"]}) == ["b", "a"]


def test_answers() -> None:
    found = answer(Outcome(3, b"one\ntwo\xff\r\n", b"", True))
    assert (found["stdout"], found["stdout_lines"], found["truncated"]) == (
        "one\ntwo\N{REPLACEMENT CHARACTER}",
        ["one", "two\N{REPLACEMENT CHARACTER}"],
        True,
    )
    assert found["failed"] and "exit code 3" in found["msg"]
    assert "failed" not in answer(Outcome(0, b"", b""))
    one = exec_answer([{"name": "a", "changed": True, **found}])
    assert (one["rc"], one["failed_vms"], one["msg"]) == (
        3,
        ["a"],
        "1 of 1 VMs failed: a: the command ended with exit code 3",
    )
    two = exec_answer([{"name": "a", "changed": True, "rc": 0}, {"name": "b", "changed": False, "rc": None}])
    assert two["changed"] and "rc" not in two and "failed" not in two
