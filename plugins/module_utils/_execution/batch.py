# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many VMs in one run: planned together, allocated together, launched on a bounded pool, awaited by one poller.

One bad item fails alone. Locks are held while things change and not while guests boot.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import errno
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, ResourceError
from ansible_collections.cocoon.microvm.plugins.module_utils._execution.lookup import plan_item
from ansible_collections.cocoon.microvm.plugins.module_utils._execution.run import Run
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import Plan
from ansible_collections.cocoon.microvm.plugins.module_utils._state import directories_synced_once, locked
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._execution.steps import Job
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.wait import Target


@dataclasses.dataclass
class Item:
    """One definition on its way to a result."""

    definition: Record
    record: Record | None = None
    plan: Plan | None = None
    job: Job | None = None
    done: list[str] = dataclasses.field(default_factory=list)
    error: CocoonError | None = None
    seconds: float | None = None

    @property
    def name(self) -> str:
        return t.cast(str, self.definition["name"])

    @property
    def due(self) -> bool:
        return self.error is None and self.plan is not None and self.plan.changed


def plan_items(run: Run, items: t.Iterable[Item]) -> None:
    """Read each record and plan it; what cannot be planned is the item's error."""
    for item in items:
        try:
            item.record = run.store.vm_record(item.name)
            item.plan = plan_item(run, item.record, item.definition)
        except CocoonError as exc:
            item.error = exc


def converge(run: Run, items: t.Sequence[Item], check: bool) -> None:
    """Plan everything, then carry it out, restarts a few at a time; results are left in *items*."""
    plan_items(run, items)
    if check:
        return
    at_once = [item for item in items if item.due and not (item.plan and item.plan.restarts)]
    restarts = [item for item in items if item.due and item.plan and item.plan.restarts]
    _round(run, at_once)
    size = max(1, run.options.max_unavailable)
    for start in range(0, len(restarts), size):
        _round(run, restarts[start : start + size])
    late = [item for item in items if item.error is None and not item.done]
    _await_guests(run, late)


def _round(run: Run, items: t.Sequence[Item]) -> None:
    """Lock, look again, plan again, execute; then, unlocked, wait for the guests."""
    if not items:
        return
    try:
        with locked(run.store.paths, [f"vm:{item.name}" for item in items], run.options.lock_timeout):
            run.forget()
            plan_items(run, items)
            _execute(run, [item for item in items if item.due])
    except (CocoonError, OSError) as exc:
        for item in items:
            item.error = item.error or explained(exc, "lock")
        return
    _await_guests(run, [item for item in items if item.error is None])


def _execute(run: Run, items: t.Sequence[Item]) -> None:
    from ansible_collections.cocoon.microvm.plugins.module_utils._execution.steps import Job

    for item in items:
        item.job = Job(run, item.record, item.definition)
    _allocate(run, items)
    ready = [item for item in items if item.error is None]
    if len(ready) == 1:
        _carry_out(ready[0])
    elif ready:
        workers = max(1, min(len(ready), run.options.parallel))
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            list(pool.map(_carry_out, ready))
    try:
        run.sync_networks()
    except CocoonError as exc:
        for item in ready:
            item.error = item.error or exc


def _explicit_first(item: Item) -> int:
    """Addresses that somebody chose are taken before ours are."""
    nics = (item.plan and item.plan.wanted or {}).get("nics") or []
    return 0 if any(nic.get("ip") or nic.get("mac") for nic in nics) else 1


def _allocate(run: Run, items: t.Sequence[Item]) -> None:
    """Everything that new VMs hold, under one short lock of the host."""
    new = [item for item in items if item.plan and item.plan.step("create")]
    if not new:
        return
    from ansible_collections.cocoon.microvm.plugins.module_utils._execution.steps import reserve_job

    with locked(run.store.paths, ["host"], run.options.lock_timeout), directories_synced_once():
        for item in sorted(new, key=_explicit_first):
            if item.job is None or item.plan is None or item.plan.wanted is None:
                continue
            removal = item.plan.step("remove")
            if removal is not None and removal.args["delete_data_disks"] and item.job.record is not None:
                item.job.record["delete_data_disks"] = True
            try:
                reserve_job(item.job, dict(item.plan.wanted), item.plan.step("start") is not None)
            except (CocoonError, OSError) as exc:
                item.error = explained(exc, "create")


def explained(exc: CocoonError | OSError, where: str) -> CocoonError:
    """An error for the user; *where* is the step that met it."""
    if isinstance(exc, CocoonError):
        return exc
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            f"{where}: no space is left on the file system of the store",
            "root_dir",
            "Free some, or put root_dir on a larger file system.",
        )
    return CocoonError(f"{where}: {exc.strerror}: {exc.filename}")


def _carry_out(item: Item) -> None:
    """The steps of one plan, in order; the first failure ends it.

    The allocation of a new VM has taken apart what was left of one before, so those steps are done.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._execution import power
    from ansible_collections.cocoon.microvm.plugins.module_utils._execution.steps import STEPS

    if item.plan is None or item.job is None:
        return
    if item.job.record is not None:  # before a step takes the VM for one that does not run
        power.end_strays(item.job.record)
    steps = list(item.plan.steps)
    if item.plan.step("create"):
        steps = [step for step in steps if step.name not in ("stop", "remove")]
    for step in steps:
        try:
            STEPS[step.name](item.job, **step.args)
        except (CocoonError, OSError) as exc:
            item.error = explained(exc, step.name)
            break
        item.done.append(str(step))
    item.record = item.job.record


def _await_guests(run: Run, items: t.Sequence[Item]) -> None:
    """Wait for the guests that were started, or whose earlier wait did not come to its end."""
    pairs = [(item, target) for item in items for target in [_target(run, item)] if target is not None]
    if not pairs:
        return
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.wait import wait_all

    try:
        wait_all([target for _item, target in pairs])
        for item, target in pairs:
            _settle(run, item, target)
    finally:
        for _item, target in pairs:
            target.process.close()


def condition_of(definition: Record) -> str:
    """What the record keeps of the condition that a start waited for."""
    kind = definition.get("wait_for") or "process"
    if kind == "port":
        return f"port:{definition.get('wait_port') or 22}"
    if kind == "console":
        return f"console:{definition.get('wait_pattern') or ''}"
    return t.cast(str, kind)


def _target(run: Run, item: Item) -> Target | None:
    """What to wait for, or nothing: no wait asked for, not running, or known to have been met."""
    record, definition = item.record, item.definition
    if not record or not record.get("pid") or definition.get("state") not in ("started", "restarted"):
        return None
    if item.job is None or item.job.begun is None:
        met = (record.get("ready") or {}).get("condition")
        if condition_of(definition) in ("process", met):
            return None
    from ansible_collections.cocoon.microvm.plugins.module_utils._execution import power

    process = power.find_process(record)
    if process is None:
        item.error = CocoonError(f"the hypervisor of '{item.name}' ended right after its start")
        return None
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest import wait

    begun = item.job.begun if item.job and item.job.begun else time.monotonic()
    timeout = float(definition.get("timeout") or wait.DEFAULT_TIMEOUT)
    address = next((c["network"]["ip"] for c in record["network_configs"] if c.get("network", {}).get("ip")), "")
    kind = definition.get("wait_for") or "process"
    if kind in ("ping", "port") and not address:
        process.close()
        item.error = CocoonError(
            "no NIC has an address that is known here", "wait_for", "Use a network with a subnet, or wait_for: console."
        )
        return None
    paths = run.store.paths
    return wait.Target(
        name=item.name,
        vm_id=record["id"],
        condition=kind,
        begun=begun,
        deadline=begun + timeout,
        process=process,
        ip=address,
        port=definition.get("wait_port") or wait.DEFAULT_PORT,
        pattern=definition.get("wait_pattern") or wait.DEFAULT_PATTERN,
        console_socket=f"{paths.vm_run(record['id'])}/console.sock",
        console_log=paths.console_log(record["id"]),
    )


def _settle(run: Run, item: Item, target: Target) -> None:
    """Write down that a guest answered, or make its silence the item's error."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._errors import GuestTimeoutError

    if target.error is not None:
        item.error = GuestTimeoutError(f"VM '{item.name}': {target.error}", "timeout")
        return
    item.seconds = target.seconds
    ready = {"condition": condition_of(item.definition), "seconds": target.seconds}
    with locked(run.store.paths, [f"vm:{item.name}"], run.options.lock_timeout):
        record = run.store.vm_record(item.name)
        if record and item.record and record.get("process") == item.record.get("process"):
            record["ready"] = ready
            run.store.write_vm(record)
            item.record = record
