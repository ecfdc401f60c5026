# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``cocoon_vm_move`` does: one step of a move on one of its two hosts. Each may be done again."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._engine.opening import open_run
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._moving import admit, image, passport, source, target
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import OPTIONS
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record, check_name
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.showing import view

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import VmRecord

# What each step needs.
NEEDS: t.Mapping[str, tuple[str, ...]] = {
    "described": ("name",),
    "admitted": ("passports",),
    "departed": ("name", "host"),
    "exported": ("name", "token"),
    "image_exported": ("image", "id"),
    "image_arrived": ("image", "path"),
    "expected": ("id",),
    "arrived": ("name", "token", "host", "path"),
    "started": ("name", "token"),
    "settled": ("name", "token"),
    "left": ("name", "token", "receipt"),
    "discarded": ("name", "token", "id"),
    "returned": ("name",),
}
LOOKS = ("described", "admitted")
WAITS = ("wait_for", "wait_port", "wait_pattern", "timeout")


def converge(
    params: t.Mapping[str, t.Any], check: bool, mark: t.Callable[[str], None] | None = None
) -> dict[str, t.Any]:
    """Do the step ``state`` of a move: ``changed`` and what the step tells.

    :param params: the module's parameters.
    :param check: do nothing but look.
    :raises CocoonError: it could not be done; what that means for the VM, the step says.
    """
    state = params["state"]
    missing = [option for option in NEEDS[state] if params.get(option) is None]
    if missing:
        raise InputError(f"is needed for state: {state}", missing[0], "The playbook cocoon.microvm.move gives it.")
    if params.get("name") is not None:
        check_name(params["name"])
    run = open_run(params, check or state in LOOKS, mark)
    if check and state not in LOOKS:
        return {"changed": True}
    return STEPS[state](run, params)


def _described(run: Run, params: t.Mapping[str, t.Any]) -> Record:
    return {"changed": False, "passport": source.describe(run, params["name"])}


def _admitted(run: Run, params: t.Mapping[str, t.Any]) -> Record:
    passports = [passport.check(found, run.driver) for found in params["passports"]]
    answer = {"changed": False, "room": admit.room(run)}
    return {**answer, "admission": admit.admit(run, passports, _networks(params))}


def _networks(params: t.Mapping[str, t.Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in (params.get("networks") or {}).items()}


def _departed(run: Run, params: t.Mapping[str, t.Any]) -> Record:
    timeout = params.get("stop_timeout")
    changed, record = source.depart(run, params["name"], params["host"], params["memory"], timeout)
    return _answer(run, changed, record)


def _exported(run: Run, params: t.Mapping[str, t.Any]) -> Record:
    told = run.options.progress.stage(f"exporting {params['name']}")
    return {"changed": True, "archive": source.export(run, params["name"], params["token"], params["reader"], told)}


def _image_exported(run: Run, params: t.Mapping[str, t.Any]) -> Record:
    told = run.options.progress.stage("exporting the image")
    return {"changed": True, "archive": image.export(run, params["image"], _key(params), params["reader"], told)}


def _image_arrived(run: Run, params: t.Mapping[str, t.Any]) -> Record:
    told = run.options.progress.stage("importing the image")
    return {"changed": image.take(run, params["image"], params["path"], params["checksum"], told)}


def _expected(run: Run, params: t.Mapping[str, t.Any]) -> Record:
    return {"changed": True, "path": target.expect(run, _key(params), params["reader"])}


def _key(params: t.Mapping[str, t.Any]) -> str:
    """:raises InputError: ``id`` is not that of a VM."""
    if not passport.ID_RE.fullmatch(params["id"]):
        raise InputError(f"'{params['id']}' is not the id of a VM", "id", "Give the one of its record.")
    return str(params["id"])


def _arrived(run: Run, params: t.Mapping[str, t.Any]) -> Record:
    told = run.options.progress.stage(f"importing {params['name']}")
    changed, record = target.arrive(
        run,
        params["name"],
        params["token"],
        params["host"],
        params["path"],
        params["checksum"],
        _networks(params),
        told,
    )
    return _answer(run, changed, record)


def _started(run: Run, params: t.Mapping[str, t.Any]) -> Record:
    given = {option: params[option] for option in WAITS if params.get(option) is not None}
    waits = {option: OPTIONS[option].check(value, option) for option, value in given.items()}
    return _answer(run, *target.start(run, params["name"], params["token"], waits))


def _settled(run: Run, params: t.Mapping[str, t.Any]) -> Record:
    changed, record, proof = target.settle(run, params["name"], params["token"])
    return {**_answer(run, changed, record), "receipt": proof}


def _left(run: Run, params: t.Mapping[str, t.Any]) -> Record:
    return {"changed": source.leave(run, params["name"], params["token"], params["receipt"])}


def _discarded(run: Run, params: t.Mapping[str, t.Any]) -> Record:
    changed, proof = target.discard(run, params["name"], params["token"], _key(params))
    return {"changed": changed, "receipt": proof}


def _returned(run: Run, params: t.Mapping[str, t.Any]) -> Record:
    changed, record = source.go_back(run, params["name"], params["token"], params["receipt"], bool(params["force"]))
    return _answer(run, changed, record)


def _answer(run: Run, changed: bool, record: VmRecord | None) -> Record:
    moving = (record or {}).get("moving") or {}
    return {
        "changed": changed,
        "vm": view(record, run.store.paths),
        "token": moving.get("token"),
        "starts": moving.get("was") == "running",
    }


STEPS: t.Mapping[str, t.Callable[[Run, t.Mapping[str, t.Any]], Record]] = {
    "described": _described,
    "admitted": _admitted,
    "departed": _departed,
    "exported": _exported,
    "image_exported": _image_exported,
    "image_arrived": _image_arrived,
    "expected": _expected,
    "arrived": _arrived,
    "started": _started,
    "settled": _settled,
    "left": _left,
    "discarded": _discarded,
    "returned": _returned,
}
