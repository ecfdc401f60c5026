# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many VMs in one run: planned together, allocated together, launched on a bounded pool, awaited by one poller.

One bad item fails alone. Locks are held while things change and not while guests boot.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import check_directories
from ansible_collections.cocoon.microvm.plugins.module_utils._engine.lookup import plan_item
from ansible_collections.cocoon.microvm.plugins.module_utils._engine.readiness import answered, await_guests
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    CocoonError,
    MissingImageError,
    ResourceError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import exchange
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import Plan, is_made
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.steps import (
    Create,
    Remove,
    SetNics,
    Start,
    Step,
    Stop,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._progress import Deferred
from ansible_collections.cocoon.microvm.plugins.module_utils._state import directories_synced_once, locked
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.showing import observe

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._engine.steps import Job
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import VmRecord


@dataclasses.dataclass
class Item:
    """One definition on its way to a result."""

    definition: Record
    record: VmRecord | None = None
    plan: Plan | None = None
    whole: Plan | None = None  # what is carried out in two halves
    job: Job | None = None
    done: list[str] = dataclasses.field(default_factory=list)
    error: CocoonError | None = None
    seconds: float | None = None
    pulled: bool = False
    unplanned: bool = False  # in check mode: it cannot be known what would be done
    held: bool = False
    warnings: list[str] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        return t.cast(str, self.definition["name"])

    @property
    def pull(self) -> tuple[str, str]:
        """Its image, and when to ask a registry for it."""
        return self.definition.get("image") or "", self.definition.get("pull") or "missing"

    @property
    def restarts(self) -> bool:
        return self.plan is not None and self.plan.restarts

    @property
    def due(self) -> bool:
        return self.error is None and self.plan is not None and self.plan.changed


def plan_items(run: Run, items: t.Sequence[Item]) -> None:
    """Read each record and plan it; what cannot be planned is the item's error."""
    run.forget()
    for item in items:
        item.error = None
        try:
            if item.pull in run.unobtainable:
                raise run.unobtainable[item.pull]
            item.record = run.store.vm_record(item.name)
            item.plan = plan_item(run, item.record, item.definition)
            if {"create", "start"} & {step.name for step in item.plan.steps}:
                check_directories(run.store.paths)
        except Exception as exc:
            item.plan = None
            item.error = explained(exc, "plan")
    due = [item for item in items if item.due]
    if due:
        _foresee(run, due)


def _foresee(run: Run, items: t.Sequence[Item]) -> None:
    """What carrying the plans out would meet; what one that cannot be lets go is not for others."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._engine import forecast

    while True:
        run.count_anew()
        ready = [item for item in items if item.error is None]
        run.passing = exchange.passing((item.record, item.plan) for item in ready if item.plan)
        for item in ready:
            try:
                if item.plan:
                    item.plan = forecast.check(run, item.record, item.plan)
            except Exception as exc:
                item.error = explained(exc, "plan")
        if not any(item.error and item.plan and exchange.gives(item.record, item.plan, run.passing) for item in ready):
            return


def converge(run: Run, items: t.Sequence[Item], check: bool) -> None:
    """Plan everything, then carry it out, restarts a few at a time; results are left in *items*."""
    absent = [item for item in items if item.definition.get("state") == "absent"]
    others = [item for item in items if item not in absent]
    run.leaving = {vm_id for item in absent for vm_id in [run.store.index("vm").lookup(item.name)] if vm_id}
    plan_items(run, [*absent, *others])
    if _obtain_images(run, others, check):
        plan_items(run, [*absent, *others])
    if check:
        return
    # What goes is gone first, so that the others can take its ports, addresses and memory.
    _round(run, [item for item in absent if item.due or item.error])
    if run.leaving:
        run.leaving = set()
        plan_items(run, others)
    _let_go(run, others)
    # What could not be planned is looked at again under the lock: others may be at work on that VM.
    _round(run, [item for item in others if item.error or (item.due and not item.restarts)])
    restarting = [item for item in others if item.due and item.restarts]
    # Whoever is down already counts, so that is known before the first of the others goes down.
    await_guests(run, [item for item in others if item.error is None and not item.done and item not in restarting])
    if run.options.hold_restarts:
        for item in restarting:
            item.held = True
    else:
        _restart(run, restarting, [item for item in others if item not in restarting])


def _let_go(run: Run, items: t.Sequence[Item]) -> None:
    """Have all that passes from one VM to another let go, so that it is free when it is taken."""
    keys = dict(run.passing)
    givers = [item for item in items if item.due and item.plan and exchange.gives(item.record, item.plan, keys)]
    if givers:
        for item in givers:
            item.whole = item.plan
        _round(run, givers, keys)
        for item in givers:
            item.done = [action for action in item.done if action == Stop.name]
        plan_items(run, items)
        for item in givers:
            if item.whole and item.error is None and not item.due:  # that was all of it
                item.done = item.whole.actions


def _obtain_images(run: Run, items: t.Sequence[Item], check: bool) -> bool:
    """Pull the images that are missing, or to be asked for always; whether there were any."""
    due: dict[tuple[str, str], Item] = {}
    for item in items:
        image, when = item.pull
        if image and (when == "always" or (when == "missing" and isinstance(item.error, MissingImageError))):
            due.setdefault(item.pull, item)
    if due:
        from ansible_collections.cocoon.microvm.plugins.module_utils._engine.obtaining import obtain

        for (image, when), first in due.items():
            try:
                first.pulled, first.warnings = obtain(run, image, when, check)
            except Deferred:
                raise
            except Exception as exc:
                run.unobtainable[image, when] = explained(exc, "pull")
            if first.pulled:  # nothing is left to another run from here on: it would not tell of this
                run.options.progress.most = None
    return bool(due)


def serves(item: Item) -> bool:
    """Whether a VM that is to run does, and its guest has answered as was asked for; one that need not is no worry."""
    record = item.record
    if item.definition.get("state") not in ("started", "restarted") or not is_made(record):
        return True
    return record is not None and observe(record).running and answered(record, item.definition)


def _restart(run: Run, items: t.Sequence[Item], others: t.Sequence[Item]) -> None:
    """At most max_unavailable at a time, those first that are down anyway.

    When one does not come back, the rest is left as it is; and so when *others* are down.
    """
    down = [item.name for item in others if items and not serves(item)]
    size = max(1, run.options.max_unavailable) - len(down)
    if size < 1:
        for item in items:
            item.error = CocoonError(
                f"not restarted, because {_quoted(down)} {'is' if len(down) == 1 else 'are'} down already",
                "max_unavailable",
                "Mend that first, then run again.",
            )
        return
    items = sorted(items, key=serves)
    for start in range(0, len(items), size):
        _round(run, items[start : start + size])
        lost = next((item.name for item in items[start : start + size] if item.error), None)
        if lost is not None:
            for item in items[start + size :]:
                item.error = CocoonError(
                    f"not restarted, because '{lost}' did not come back", remedy="Mend that one first, then run again."
                )
            return


def _quoted(names: t.Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _round(run: Run, items: t.Sequence[Item], keys: t.Container[exchange.Key] = ()) -> None:
    """Lock, look again, plan again, execute; then, unlocked, wait for the guests.

    :param keys: only so much of the plans is carried out that these are let go.
    """
    if not items:
        return
    try:
        sources = {f"snapshot:{name}" for item in items for name in [item.definition.get("snapshot")] if name}
        with locked(run.store.paths, [f"vm:{item.name}" for item in items], run.options.lock_timeout, sources):
            plan_items(run, items)
            for item in items if keys else ():
                if item.due and item.plan and item.record and exchange.gives(item.record, item.plan, keys):
                    item.plan = exchange.first_half(item.record, item.plan, keys)
            _execute(run, [item for item in items if item.due])
    except (CocoonError, OSError) as exc:
        for item in items:
            if not item.done:
                item.error = item.error or explained(exc, "preparation")
        return
    if not keys:
        await_guests(run, [item for item in items if item.error is None])


def _execute(run: Run, items: t.Sequence[Item]) -> None:
    from ansible_collections.cocoon.microvm.plugins.module_utils._engine.steps import Job

    for item in items:
        item.job = Job(run, item.record, item.definition)
    _allocate(run, items)
    ready = [item for item in items if item.error is None]
    _guard(run, ready)
    if len(ready) == 1:
        _carry_out(ready[0])
    elif ready:
        import concurrent.futures

        workers = max(1, min(len(ready), run.options.parallel))
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            list(pool.map(_carry_out, ready))
    try:
        run.sync_networks()
    except (CocoonError, OSError) as exc:
        for item in ready:
            item.error = item.error or explained(exc, "firewall")


def _guard(run: Run, items: t.Sequence[Item]) -> None:
    """The firewall for the NICs of all that start, in one go; each start sees to its own if this fails."""
    starting = [item.job.record for item in items if item.job and item.job.record and item.plan and _starts(item.plan)]
    if len(starting) > 1:
        from ansible_collections.cocoon.microvm.plugins.module_utils._vms.power import guard_nics

        with contextlib.suppress(CocoonError, OSError):
            guard_nics(run, starting)


def _starts(plan: Plan) -> bool:
    return plan.step(Start) is not None and plan.step(SetNics) is None


def _explicit_first(item: Item) -> int:
    """Addresses that somebody chose are taken before ours are."""
    nics = (item.plan and item.plan.wanted or {}).get("nics") or []
    return 0 if any(nic.get("ip") or nic.get("mac") for nic in nics) else 1


def _allocate(run: Run, items: t.Sequence[Item]) -> None:
    """Everything that new VMs hold, under one short lock of the host."""
    new = [item for item in items if item.plan and item.plan.step(Create)]
    if not new:
        return
    from ansible_collections.cocoon.microvm.plugins.module_utils._engine.steps import reserve_job, unplug

    for item in new:  # what a killed run left of it
        if item.job is not None and item.job.record is not None:
            unplug(item.job.vm)
    with locked(run.store.paths, ["host"], run.options.lock_timeout), directories_synced_once():
        for item in sorted(new, key=_explicit_first):
            if item.job is None or item.plan is None or item.plan.wanted is None:
                continue
            create = item.plan.step(Create)
            if create is not None and create.delete_kept and item.job.record is not None:
                item.job.record["delete_data_disks"] = True
            try:
                reserve_job(item.job, dict(item.plan.wanted), item.plan.step(Start) is not None)
            except (CocoonError, OSError) as exc:
                item.error = explained(exc, "create")


def explained(exc: Exception, where: str) -> CocoonError:
    """An error for the user; *where* is the step that met it."""
    if isinstance(exc, CocoonError):
        return exc
    if not isinstance(exc, OSError):
        return CocoonError(
            f"{where}: {type(exc).__name__}: {exc}", remedy="This is a defect of the collection: please report it."
        )
    if exc.errno in NO_SPACE:
        return ResourceError(
            f"{where}: no space is left on the file system of the store",
            "root_dir",
            "Free some, or put root_dir on a larger file system.",
        )
    return CocoonError(f"{where}: {exc.strerror}" + (f": {exc.filename}" if exc.filename else ""))


def _by_the_poller(_job: Job, _step: Step) -> None:
    """A step for :func:`await_guests`, once all guests of the round run."""


def _carry_out(item: Item) -> None:
    """The steps of one plan, in order; the first failure ends it."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._engine.steps import EXECUTORS, make_room, recover

    if item.plan is None or item.job is None:
        return
    where = "recovery"
    try:
        recover(item.job)
        for step in item.plan.steps:
            where = step.name
            execute = EXECUTORS.get(type(step), _by_the_poller)
            try:
                execute(item.job, step)
            except OSError as exc:
                if exc.errno not in NO_SPACE or not item.plan.step(Remove):
                    raise
                make_room(item.job)
                execute(item.job, step)
            item.done.append(str(step))
    except Exception as exc:
        item.error = explained(exc, where)
    item.record = item.job.record
