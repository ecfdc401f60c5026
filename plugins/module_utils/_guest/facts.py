# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest says of itself: its word, in bounded lists of short, printable texts and numbers in range."""

from __future__ import annotations

import contextlib
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._guest.agent import Agent, Command
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.standard_agent import RefusedError, StandardAgent
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.replies import printable

Facts = dict[str, t.Any]
MOST = 256
MOST_RELEASE = 64 << 10
OS_FIELDS = ("id", "name", "pretty-name", "version", "version-id", "variant", "kernel-release", "kernel-version")


def gather(agent: Agent, deadline: float) -> Facts:
    """``agent hostname os interfaces users file_systems``; ``None`` for what the agent does not tell."""
    if isinstance(agent, StandardAgent):
        found = _from_standard(agent, deadline)
    else:
        found = _from_commands(agent, deadline)
    return {"agent": agent.kind, **found}


def _from_standard(agent: StandardAgent, deadline: float) -> Facts:
    def ask(what: str) -> t.Any:
        with contextlib.suppress(RefusedError):
            return agent.ask(f"guest-{what}", deadline)
        return None

    name = _fields(ask("get-host-name")).get("host-name")
    system = _fields(ask("get-osinfo"))
    interfaces, users, mounts = (_rows(ask(what)) for what in ("network-get-interfaces", "get-users", "get-fsinfo"))
    return {
        "hostname": _text(name),
        "os": {field.replace("-", "_"): _text(system.get(field)) for field in OS_FIELDS} if system else None,
        "interfaces": None if interfaces is None else [_interface(row) for row in interfaces],
        "users": None if users is None else [{"name": _text(row.get("user"))} for row in users],
        "file_systems": None if mounts is None else [_file_system(row) for row in mounts],
    }


def _from_commands(agent: Agent, deadline: float) -> Facts:
    """Of an agent that knows commands and nothing else."""
    name, release = (
        agent.run(Command(("cat", path)), max(1.0, deadline - time.monotonic())).stdout.decode(errors="replace")
        for path in ("/proc/sys/kernel/hostname", "/etc/os-release")
    )
    pairs = [line.partition("=") for line in release[:MOST_RELEASE].splitlines()]
    known = {key.lower(): _text(value.strip("\"'")) for key, _mark, value in pairs}
    fields = [field.replace("-", "_") for field in OS_FIELDS]
    nothing = dict.fromkeys(("interfaces", "users", "file_systems"))
    return {"hostname": _text(name), "os": {field: known.get(field) for field in fields}, **nothing}


def _fields(value: t.Any) -> dict[str, t.Any]:
    return value if isinstance(value, dict) else {}


def _rows(value: t.Any) -> list[dict[str, t.Any]] | None:
    return [row for row in value[:MOST] if isinstance(row, dict)] if isinstance(value, list) else None


def _text(value: t.Any) -> str | None:
    return printable(value, MOST) if isinstance(value, str) else None


def _number(value: t.Any) -> int | None:
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
    return value if fits else None


def _interface(row: t.Mapping[str, t.Any]) -> Facts:
    addresses = _rows(row.get("ip-addresses")) or []
    return {
        "name": _text(row.get("name")),
        "mac": _text(row.get("hardware-address")),
        "addresses": [
            {"address": _text(entry.get("ip-address")), "prefix": _number(entry.get("prefix"))} for entry in addresses
        ],
    }


def _file_system(row: t.Mapping[str, t.Any]) -> Facts:
    return {
        "device": _text(row.get("name")),
        "mountpoint": _text(row.get("mountpoint")),
        "fstype": _text(row.get("type")),
        "size": _number(row.get("total-bytes")),
        "used": _number(row.get("used-bytes")),
    }
