# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine's face: the only thing that modules call."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._engine.batch import Item, converge, serves
from ansible_collections.cocoon.microvm.plugins.module_utils._engine.opening import open_run, options_of
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.changes import undo
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.definition import raise_all, validate_all
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import REMOVED, Plan
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.prune import plan_prune, prune_definition
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.site import Part, clashes
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.steps import SetNics
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Options, Run
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.showing import view

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._engine.site import Share

# The action of a VM that check mode cannot plan, as its host has yet to be prepared.
UNPLANNED = "unknown"


def converge_vms(
    params: t.Mapping[str, t.Any],
    items: t.Sequence[t.Mapping[str, t.Any]],
    check: bool,
    mark: t.Callable[[str], None] | None = None,
    option: str | None = "vms",
) -> list[Record]:
    """Make the VMs of a host what *items* say.

    :param params: the module's parameters: where the store is, and the run's options.
    :param items: one dictionary of VM options each, as the argument spec gives them.
    :param check: only plan.
    :returns: a result for each item: ``name changed actions how diff warnings vm``, with ``failed`` and
        ``msg`` where it went wrong, and ``boot_seconds`` where a start was waited for.
    :raises InputError: a bad argument; nothing has been touched.
    :raises Deferred: an image is to be pulled, and *params* leave that to another run.
    """
    definitions = _owned(validate_all(items, option), params)
    run = open_run(params, check, mark)
    batch = _items(run, definitions, params, bool(items))
    converge(run, batch, check)
    results = [_result(item, check, run.store.paths) for item in batch]
    return results + (_orphans(run, check) if params.get("prune") else [])


def _orphans(run: Run, check: bool) -> list[Record]:
    """What a prune lets go of besides VMs: things held for VMs and snapshots of which nothing else is left."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._engine import orphans

    found = orphans.find(run.store)
    if found and not check:
        from ansible_collections.cocoon.microvm.plugins.module_utils._engine import giving_back

        giving_back.remove(run, found)
    return [
        {
            "name": f"nobody ({holder})",
            "changed": True,
            "actions": ["release"],
            "how": "remove",
            "diff": {"before": {"held": words}, "after": {"held": []}},
            "warnings": [],
            "vm": None,
        }
        for holder, words in found.items()
    ]


def _owned(definitions: list[Record], params: t.Mapping[str, t.Any]) -> list[Record]:
    owner = params.get("owner")
    return [{"owner": owner, **definition} if owner else definition for definition in definitions]


def _items(run: Run, definitions: list[Record], params: t.Mapping[str, t.Any], listed: bool) -> list[Item]:
    """The definitions, and those that remove what is pruned."""
    if params.get("prune"):
        definitions = definitions + _pruned(run.store, definitions, params, listed)
    return [Item(definition) for definition in definitions]


def converge_site(params: t.Mapping[str, t.Any], check: bool) -> Record:
    """Make the networks, images and VMs of a host what the options of ``cocoon_site`` say.

    :returns: ``networks`` and ``images``, a result each with ``name changed diff warnings``, what their modules
        answer, and ``failed`` and ``msg`` where it went wrong; ``vms`` as of :func:`converge_vms`.
    :raises InputError: bad arguments, all of them in one; nothing has been touched.
    :raises Deferred: an image is to be had, and *params* leave that to another run.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._engine.site import Share, Site

    options, paths = options_of(params), Paths.from_params(params)
    errors: list[InputError] = []
    shares = [
        Share(part, given)
        for kind in ("network", "image")
        for part, given in _parts(kind, _given(kind, params), options, paths, errors)
    ]
    definitions: list[Record] = []
    try:
        definitions = _owned(validate_all(params["vms"]), params)
    except InputError as exc:
        errors.append(exc)
    raise_all(errors or clashes([share.part for share in shares], definitions))
    run = open_run(params, check)
    items = _items(run, definitions, params, bool(params["vms"]))
    Site(run, shares, items, check, params["unprepared"]).converge()
    return {
        **{f"{kind}s": [_share(share) for share in shares if share.part.kind == kind] for kind in ("network", "image")},
        "vms": [_result(item, check, run.store.paths) for item in items]
        + (_orphans(run, check) if params["prune"] else []),
    }


def _given(kind: str, params: t.Mapping[str, t.Any]) -> list[Record]:
    """The networks or images, each with what the site says for all of them."""
    common = {key: params[key] for key in ("root_dir", "run_dir", "log_dir", "lock_timeout")}
    return [
        {
            **item,
            **common,
            "owner": item["owner"] if item["owner"] is not None else params["owner"],
            "force": item["force"] if item["force"] is not None else params["force"],
        }
        for item in params[f"{kind}s"]
    ]


def _parts(
    kind: str, items: t.Sequence[Record], options: Options, paths: Paths, errors: list[InputError]
) -> t.Iterator[tuple[Part, Record]]:
    """Each network or image in canonical form, with its options; what is wrong with them goes to *errors*."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import engine

    for number, item in enumerate(items):
        part = Part(kind, number, item)
        try:
            if kind == "network":
                part = Part(kind, number, {**engine.checked(item, paths), "state": item["state"]})
            else:
                from ansible_collections.cocoon.microvm.plugins.module_utils._images import manager

                manager.wanted_of(item, options.lock_timeout, options.progress)
        except InputError as exc:
            errors.append(InputError(exc.message, part.at(exc.option or "name"), exc.remedy))
        yield part, item


def _share(share: Share) -> Record:
    """The result of a network or an image."""
    result: Record = {
        "name": share.part.definition["name"],
        "changed": False,
        "diff": {"before": {}, "after": {}},
        "warnings": [],
        **share.answer,
    }
    if share.error is not None:
        result.update(failed=True, msg=str(share.error))
    return result


def _pruned(store: Store, definitions: t.Sequence[Record], params: t.Mapping[str, t.Any], listed: bool) -> list[Record]:
    records = store.vm_records()
    force = bool(params.get("force"))
    owner = params.get("owner") or store.store_id
    names = plan_prune(
        definitions, records, owner, elsewhere=params.get("elsewhere") or {}, force=force, emptied=listed
    )
    return [prune_definition(name, owner, force) for name in names]


def tell_unlisted(params: t.Mapping[str, t.Any], answer: Record) -> Record:
    """*answer* with the VMs that are there and not listed, if *params* tell what is wanted elsewhere."""
    if params["elsewhere"] is None:
        return answer
    found = _unlisted(params, [result["name"] for result in answer["results"]])
    warnings = [
        f"VM '{vm['name']}' is here, not listed, and left alone, because it is wanted on {vm['wanted_on']}"
        for vm in found
        if vm["wanted_on"]
    ]
    return {**answer, "unlisted": found, "warnings": [*answer["warnings"], *warnings]}


def _unlisted(params: t.Mapping[str, t.Any], listed: t.Container[str]) -> list[Record]:
    """The owner's VMs that are there and not *listed*: ``name state wanted_on``.

    :param params: the module's parameters; ``elsewhere`` has the hosts that VMs are wanted on, by name.
    """
    store = Store.load(Paths.from_params(params))
    if store is None:
        return []
    owner, elsewhere = params.get("owner") or store.store_id, params.get("elsewhere") or {}
    return [
        {"name": name, "state": record["state"], "wanted_on": elsewhere.get(name)}
        for record in store.vm_records()
        for name in [record["config"]["name"]]
        if record.get("owner") == owner and name not in listed and record["state"] != REMOVED
    ]


def _result(item: Item, check: bool, paths: Paths) -> Record:
    plan = (item.whole if item.plan else None) or item.plan
    actions = ["pull"] if item.pulled else []
    actions += (plan.actions if plan else []) if check else item.done
    if item.unplanned:
        actions.append(UNPLANNED)
    result: Record = {
        "name": item.name,
        "changed": bool(actions),
        "actions": actions,
        "how": plan.how if plan else None,
        "diff": plan.diff if plan and not item.held else {"before": {}, "after": {}},
        "warnings": [*item.warnings, *(plan.warnings if plan else [])],
        "vm": view(item.record, paths),
        "address": _address(item.record, plan if check else None),
    }
    if item.held and item.record:
        result.update(held=True, undo=undo(item.record))
    if not check and not serves(item):
        result["down"] = True
    if item.seconds is not None:
        result["boot_seconds"] = item.seconds
    if item.error is not None:
        result.update(failed=True, msg=str(item.error))
    return result


def _address(record: Record | None, plan: Plan | None) -> str | None:
    """The first address of a VM, as it is or as *plan* has it."""
    step = plan.step(SetNics) if plan else None
    if plan and step:
        chosen = next((change.after for change in plan.changes if change.option == "nics[0].ip"), None)
        return next((nic.get("ip") for nic in step.nics[:1]), None) or chosen
    nics = (record or {}).get("network_configs") or [{}]
    return t.cast("str | None", (nics[0].get("network") or {}).get("ip"))


__all__ = ["CocoonError", "converge_site", "converge_vms", "tell_unlisted"]
