# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restarts over a fleet: which VMs go down together, whose health is asked how, and what came of it."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping

from ansible_collections.cocoon.microvm.plugins.module_utils._api.answers import failure
from ansible_collections.cocoon.microvm.plugins.plugin_utils._connections import address_of
from ansible_collections.cocoon.microvm.plugins.plugin_utils._definitions import (
    Definition,
    DefinitionError,
    host_definition,
    vm_names,
)

Result = t.Mapping[str, t.Any]
# What of a definition means that its VM is to run.
RUNS = ("started", "restarted")
HEALTHY = "cocoon_healthy"
CHECKS = ("port", "url", "command")
SSH = 22


def results_of(answer: Result | None) -> list[Result]:
    """The results of the VMs in the answer of a task; none where there was none."""
    found = (answer or {}).get("results")
    return [item for item in found if isinstance(item, Mapping) and "name" in item] if isinstance(found, list) else []


def plan_rollout(
    answers: Mapping[str, Result | None],
    defined: Mapping[str, Mapping[str, str]],
    unhealthy: Mapping[str, t.Iterable[str]],
    size: int,
    canary: int = 0,
) -> dict[str, t.Any]:
    """``batches`` of ``{name, host}``, and which VMs are ``down`` already, as ``name on host``.

    Those that are held and down go first. Those that are down and have no change before them count against *size*: with
    nothing left of it there are no batches. A hypervisor without an answer has none of its VMs up, for all we know.

    :param answers: by hypervisor, the answer to a task with ``hold_restarts``.
    :param defined: the wanted state of its VMs by name, by hypervisor.
    :param unhealthy: VMs that run and are not as their users want them, by hypervisor.
    :param canary: how many go alone, before all others.
    """
    first: list[dict[str, str]] = []
    later: list[dict[str, str]] = []
    down: list[str] = []
    for host, answer in answers.items():
        ill = set(unhealthy.get(host) or ())
        results = results_of(answer)
        if not results:
            down += [f"{name} on {host}" for name, state in defined.get(host, {}).items() if state in RUNS]
        for item in results:
            poor = bool(item.get("down")) or item["name"] in ill
            if item.get("held"):
                (first if poor else later).append({"name": item["name"], "host": host})
            elif poor:
                down.append(f"{item['name']} on {host}")
    room = size - len(down)
    return {"batches": _batches([*first, *later], room, canary), "down": down}


def _batches(candidates: list[dict[str, str]], room: int, canary: int) -> list[list[dict[str, str]]]:
    if room < 1:
        return []
    alone = min(len(candidates), max(0, canary))
    cuts = [(start, min(start + room, alone)) for start in range(0, alone, room)]
    cuts += [(start, start + room) for start in range(alone, len(candidates), room)]
    return [candidates[start:end] for start, end in cuts]


def single(definitions: t.Iterable[Definition], names: t.Container[str]) -> list[Definition]:
    """The definitions of *names*, one each: of those with a ``count`` no others."""
    return [
        {**{key: value for key, value in definition.items() if key != "count"}, "name": name}
        for definition in definitions
        for name in vm_names(definition)
        if name in names
    ]


def health_checks(
    hostvars: Mapping[str, Mapping[str, t.Any]],
    hypervisor: str,
    hosts: t.Sequence[str],
    records: Mapping[str, Mapping[str, t.Any]],
    names: t.Iterable[str],
) -> list[dict[str, t.Any]]:
    """How the health of each VM of *names* is asked, of those that have something to be asked by.

    :param hosts: the VM hosts of the hypervisor.
    :param records: of its VMs, by name.
    :raises DefinitionError: a check that cannot be meant.
    """
    by_name = {host_definition(host, hostvars[host])["name"]: host for host in hosts}
    found = []
    for name in names:
        host = by_name.get(name)
        wanted = hostvars[host or hypervisor].get(HEALTHY)
        if not wanted:
            continue
        check = _health_check(wanted, host or hypervisor)
        if check["command"] and host is None:
            raise DefinitionError(f"{HEALTHY}.command: VM '{name}' is no host of the inventory, so no ssh leads to it")
        address = address_of(records.get(name) or {}) or ""
        if check["url"]:
            check["url"] = check["url"].replace("{address}", address)
        found.append({**check, "name": name, "host": host, "address": address})
    return found


def _health_check(wanted: t.Any, where: str) -> dict[str, t.Any]:
    """``{port, url, status, command, timeout}``, ``None`` where it is not asked."""
    known = (*CHECKS, "status", "timeout")
    if not isinstance(wanted, Mapping) or not set(wanted) <= set(known) or not set(wanted) & set(CHECKS):
        raise DefinitionError(f"host '{where}': {HEALTHY} has any of port, url and command; and status, timeout")
    try:
        port, timeout = int(wanted.get("port") or 0), int(wanted.get("timeout", 60))
        status = [int(item) for item in _listed(wanted.get("status", 200))]
    except (TypeError, ValueError):
        raise DefinitionError(f"host '{where}': {HEALTHY}: port, status and timeout are numbers") from None
    command, url = wanted.get("command"), wanted.get("url")
    # A guest that boots is asked for its ssh server first, and then for the command.
    port = port or (SSH if command else 0)
    return {"port": port or None, "url": url, "status": status, "command": command, "timeout": timeout}


def _listed(value: t.Any) -> list[t.Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def ill(checks: t.Iterable[Mapping[str, t.Any]], asked: Mapping[str, t.Iterable[Result]]) -> dict[str, str]:
    """Why each VM is not in health that is not.

    :param asked: by the kind of check, the results of a loop over *checks* as ``vms_item``.
    """
    found = {check["name"]: "it has no address" for check in checks if not check["address"]}
    good: dict[str, t.Callable[[Result], bool]] = {
        "port": lambda result: "elapsed" in result and "msg" not in result,
        "url": lambda result: result.get("status") in result["vms_item"]["status"],
        "command": lambda result: result.get("rc") == 0,
    }
    for kind in CHECKS:
        for result in asked.get(kind) or ():
            if result.get("skipped") or good[kind](result):
                continue
            name = result["vms_item"]["name"]
            said = str(result.get("stderr") or result.get("msg") or result.get("stdout") or "").strip()[-200:]
            what = result["vms_item"][kind]
            found.setdefault(name, f"{kind} {what} is not as it should be" + (f": {said}" if said else ""))
    return found


def lost(names: t.Iterable[str], done: Result | None, taken: Result | None = None) -> dict[str, str]:
    """Of the VMs that were to be changed, why each has not been that has not.

    :param done: the answer to the task that was to change them.
    :param taken: results of a loop that was to take a snapshot of each before.
    """
    results = {item["name"]: item for item in results_of(done)}
    missing = [item for item in (taken or {}).get("results") or () if not item.get("snapshot")]
    why = "; ".join(f"no snapshot could be taken of {item['vms_item']}: {item.get('msg')}" for item in missing)
    why = why or str((done or {}).get("msg") or "its hypervisor gave no answer")
    if not results:
        return dict.fromkeys(names, why)
    return {name: str(item.get("msg")) for name, item in results.items() if item.get("failed") and name in set(names)}


def rolled(answer: Result, done: Result | None, errors: Mapping[str, str]) -> dict[str, t.Any]:
    """The answer to a task with that of another one for some of the same VMs worked in, and with *errors* by VM.

    :param answer: of a task, none of whose VMs is missing in it.
    """
    again = {item["name"]: item for item in results_of(done)}
    results = []
    for item in results_of(answer):
        new = {**again.get(item["name"], item)}
        if item["name"] in again:
            new = {**new, "changed": item["changed"] or new["changed"], "actions": [*item["actions"], *new["actions"]]}
        if item["name"] in errors:
            new.update(failed=True, msg=errors[item["name"]])
        results.append(new)
    rest = {key: value for key, value in answer.items() if key not in ("failed", "failed_vms", "msg")}
    rest.update(results=results, vms={**(answer.get("vms") or {}), **((done or {}).get("vms") or {})})
    others = [(kind[:-1], item) for kind in ("networks", "images") for item in answer.get(kind) or []]
    said = failure([*others, *(("vm", item) for item in results)])
    return {**rest, **{key: value for key, value in said.items() if key != "failed"}}
