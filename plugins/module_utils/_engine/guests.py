# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands in guests, through their agents: in many at once, each with a result of its own."""

from __future__ import annotations

import dataclasses
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._guest import agent as agents
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.agent import Agent, Command
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.line import AgentError
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import guests

MOST_NAMES = 10_000
# What looks whether a file is there, in any guest that has a shell.
IS_THERE = 'test -e "$1" || test -L "$1"'


@dataclasses.dataclass(frozen=True)
class Order:
    """A command, and when it is to run. Times in seconds.

    :param patience: how long an agent may take to answer.
    :param creates: it does not run where this is there. :param removes: nor where that is not.
    """

    command: Command
    timeout: float
    patience: float
    creates: str | None = None
    removes: str | None = None


def order_of(params: t.Mapping[str, t.Any]) -> Order:
    """:raises InputError: naming the option."""
    argv = params.get("argv") if params.get("argv") is not None else _shell(params)
    if not argv or not argv[0]:
        raise InputError("no program", "argv", "Give a program, and its arguments as further items.")
    env = {str(name): _word(value, f"env.{name}") for name, value in (params.get("env") or {}).items()}
    for name in env:
        if not agents.NAME_RE.match(name):
            raise InputError(f"'{name}' is not the name of a variable", "env", "Use letters, digits and underscores.")
    stdin = params.get("stdin")
    for option in ("timeout", "agent_timeout"):
        if not 0 < params[option] <= 86400:
            raise InputError(f"{params[option]} seconds", option, "It goes from 1 to 86400.")
    return Order(
        Command(
            tuple(_word(word, f"argv[{number}]") for number, word in enumerate(argv)),
            env,
            b"" if stdin is None else stdin.encode("utf-8", "surrogateescape"),
        ),
        float(params["timeout"]),
        float(params["agent_timeout"]),
        params.get("creates"),
        params.get("removes"),
    )


def _shell(params: t.Mapping[str, t.Any]) -> list[str] | None:
    return ["/bin/sh", "-c", params["shell"]] if params.get("shell") else None


def _word(value: t.Any, option: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InputError("it is not text", option, "Put it in quotation marks.")
    if "\0" in str(value):
        raise InputError("a NUL character, which no command can be given", option, "Leave it out.")
    return str(value)


def names_of(params: t.Mapping[str, t.Any]) -> list[str]:
    """The VMs, each once, in order."""
    names = list(dict.fromkeys(params["names"]))
    if not names or len(names) > MOST_NAMES:
        raise InputError(f"{len(names)} VMs", "names", f"Name 1 to {MOST_NAMES}.")
    return names


def run_in_all(params: t.Mapping[str, t.Any], check: bool) -> list[Record]:
    """A result for each VM: ``name changed``, and what came of the command, or ``failed`` and ``msg``."""
    order, names = order_of(params), names_of(params)
    paths = Paths.from_params(params)
    store = Store.load(paths)

    def one(name: str) -> Record:
        result: Record = {"name": name, "changed": False, "skipped": False, "rc": None}
        try:
            record = guests.running(store, name)
            result.update(_run(agents.find(guests.access(paths, record), _soon(order.patience)), order, check))
        except (CocoonError, OSError) as exc:
            result.update(failed=True, msg=str(exc), error=type(exc).__name__)
        return result

    return guests.in_all(one, names, params["parallel"])


def _soon(seconds: float) -> float:
    return time.monotonic() + seconds


def _run(agent: Agent, order: Order, check: bool) -> Record:
    for path, wanted, words in ((order.creates, False, "exists"), (order.removes, True, "does not exist")):
        if path is not None and _is_there(agent, path, order.patience) is not wanted:
            return {"skipped": True, "msg": f"skipped, since {path} {words}", "agent": agent.kind}
    if check:
        return {"changed": True, "agent": agent.kind, "msg": "would run"}
    begun = time.monotonic()
    outcome = agent.run(order.command, order.timeout)
    return {"changed": True, "agent": agent.kind, **answer(outcome), "seconds": round(time.monotonic() - begun, 3)}


def _is_there(agent: Agent, path: str, patience: float) -> bool:
    found = agent.run(Command(("/bin/sh", "-c", IS_THERE, "sh", path)), patience)
    if found.code not in (0, 1):
        raise AgentError(
            f"the guest cannot look for {path}: exit code {found.code}",
            remedy="See whether its /bin/sh works, or leave creates and removes out.",
        )
    return found.code == 0


def answer(outcome: agents.Outcome) -> Record:
    """What Ansible's own modules say of a command, in their words."""
    stdout, stderr = (text.decode("utf-8", "replace") for text in (outcome.stdout, outcome.stderr))
    result: Record = {
        "rc": outcome.code,
        "stdout": stdout.rstrip("\r\n"),
        "stderr": stderr.rstrip("\r\n"),
        "stdout_lines": stdout.splitlines(),
        "stderr_lines": stderr.splitlines(),
        "truncated": outcome.cut,
    }
    if outcome.code:
        result.update(failed=True, msg=f"the command ended with exit code {outcome.code}")
    return result
