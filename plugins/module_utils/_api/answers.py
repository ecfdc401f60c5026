# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task is answered: one dictionary, whatever there were many of."""

from __future__ import annotations

import typing as t

# A module's parameters, and what the task returns: ``changed``, and with it ``failed msg diff warnings`` and more.
Params = t.Mapping[str, t.Any]
Answer = dict[str, t.Any]


def of_many(found: t.Mapping[str, list[Answer]], whole: bool = False) -> Answer:
    """One answer from the results of networks, images and VMs: what happened to each, and who failed.

    :param whole: tell of networks and images, and of what is which in the headers of the diff.
    """
    vms = found["vms"]
    every = [(kind[:-1], result) for kind in ("networks", "images", "vms") for result in found.get(kind, ())]
    answer: Answer = {
        "changed": any(result["changed"] for _kind, result in every),
        "vms": {name: vm for name, vm in ((result["name"], result.pop("vm")) for result in vms) if vm},
        "results": vms,
        "diff": [
            {**diff, "before_header": header, "after_header": header}
            for kind, result in every
            for diff in [result["diff"] if kind == "vm" else result.pop("diff")]
            for header in [f"{kind} {result['name']}" if whole else result["name"]]
            if diff["before"] or diff["after"]
        ],
        "warnings": [warning for _kind, result in every for warning in result.pop("warnings", [])],
    }
    if whole:
        answer.update(networks=found["networks"], images=found["images"])
    return {**answer, **failure(every)}


def of_commands(results: list[Answer]) -> Answer:
    """One answer from what came of a command in many guests; that of one guest stands at the top, too."""
    answer: Answer = {"changed": any(result["changed"] for result in results), "results": results}
    if len(results) == 1:
        words = ("rc", "stdout", "stderr", "stdout_lines", "stderr_lines")
        answer.update({word: results[0][word] for word in words if word in results[0]})
    return {**answer, **failure([("vm", result) for result in results])}


def failure(every: list[tuple[str, Answer]]) -> Answer:
    """What is said of those that failed, if any did."""
    failed = [(kind, result) for kind, result in every if result.get("failed")]
    if not failed:
        return {}
    shown = [
        f"{result['name']}: {result['msg']}" if kind == "vm" else f"{kind} {result['name']}: {result['msg']}"
        for kind, result in failed
    ]
    more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
    counts = [
        f"{[kind for kind, _result in failed].count(one)} of {[kind for kind, _result in every].count(one)} {words}"
        for one, words in (("network", "networks"), ("image", "images"), ("vm", "VMs"))
        if any(kind == one for kind, _result in failed)
    ]
    return {
        "failed": True,
        "failed_vms": [result["name"] for kind, result in failed if kind == "vm"],
        "msg": f"{' and '.join(counts)} failed: {'; '.join(shown[:5])}{more}",
    }
