# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The VMs of a host, one or many."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._api.answers import Answer, Params, of_many
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._engine import batch as batches
from ansible_collections.cocoon.microvm.plugins.module_utils._engine.batch import Item
from ansible_collections.cocoon.microvm.plugins.module_utils._engine.opening import open_run
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.changes import undo
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.definition import validate_all
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import REMOVED, Plan
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.prune import plan_prune, prune_definition
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.steps import SetNics
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import showing
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import VmRecord

# The action of a VM that check mode cannot plan, as its host has yet to be prepared.
UNPLANNED = "unknown"


def converge(params: Params, check: bool) -> Answer:
    """Make one VM what the options of ``cocoon_vm`` say.

    :returns: its result, as of :func:`converge_vms`.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import vm_options

    return converge_vms(params, [{option: params[option] for option in vm_options()}], check, option=None)[0]


def converge_all(params: Params, check: bool) -> Answer:
    """Make the VMs of a host what the options of ``cocoon_vms`` say.

    :returns: the answer of :func:`answers.of_many`, with ``unlisted`` where *params* tell what is wanted elsewhere.
    """
    return tell_unlisted(params, of_many({"vms": converge_vms(params, params["vms"], check)}))


def converge_vms(
    params: Params,
    items: t.Sequence[Params],
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
    definitions = owned(validate_all(items, option), params)
    run = open_run(params, check, mark)
    batch = items_of(run, definitions, params, bool(items))
    batches.converge(run, batch, check)
    return results_of(run, batch, check, params)


def results_of(run: Run, items: t.Sequence[Item], check: bool, params: Params) -> list[Record]:
    """What came of each, and of what belongs to nobody where *params* prune."""
    results = [_result(item, check, run.store.paths) for item in items]
    results += _orphans(run, check) if params.get("prune") else []
    if results:
        results[0]["warnings"] += run.warnings
    return results


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


def owned(definitions: list[Record], params: Params) -> list[Record]:
    """The definitions, whose VMs are the task's owner's unless they say another."""
    owner = params.get("owner")
    return [{"owner": owner, **definition} if owner else definition for definition in definitions]


def items_of(run: Run, definitions: list[Record], params: Params, listed: bool) -> list[Item]:
    """The definitions, and those that remove what is pruned."""
    if params.get("prune"):
        definitions = definitions + _pruned(run.store, definitions, params, listed)
    return [Item(definition) for definition in definitions]


def _pruned(store: Store, definitions: t.Sequence[Record], params: Params, listed: bool) -> list[Record]:
    records = store.vm_records()
    force = bool(params.get("force"))
    owner = params.get("owner") or store.store_id
    names = plan_prune(
        definitions, records, owner, elsewhere=params.get("elsewhere") or {}, force=force, emptied=listed
    )
    return [prune_definition(name, owner, force) for name in names]


def tell_unlisted(params: Params, answer: Record) -> Record:
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


def _unlisted(params: Params, listed: t.Container[str]) -> list[Record]:
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
        "vm": showing.view(item.record, paths),
        "address": _address(item.record, plan if check else None),
    }
    if item.held and item.record:
        result.update(held=True, undo=undo(item.record))
    if not check and not batches.serves(item):
        result["down"] = True
    if item.seconds is not None:
        result["boot_seconds"] = item.seconds
    if item.error is not None:
        result.update(failed=True, msg=str(item.error))
    return result


def _address(record: VmRecord | None, plan: Plan | None) -> str | None:
    """The first address of a VM, as it is or as *plan* has it."""
    step = plan.step(SetNics) if plan else None
    if plan and step:
        chosen = next((change.after for change in plan.changes if change.option == "nics[0].ip"), None)
        return next((nic.get("ip") for nic in step.nics[:1]), None) or chosen
    nics = (record or {}).get("network_configs") or [{}]
    return (nics[0].get("network") or {}).get("ip")
