# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which guests of a batch to wait for, and what the record keeps of the answer."""

from __future__ import annotations

import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    CocoonError,
    GuestTimeoutError,
    HypervisorError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._state import locked
from ansible_collections.cocoon.microvm.plugins.module_utils._types import RUNNING, Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._engine.batch import Item as Waiting
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.wait import Target
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import VmRecord


def await_guests(run: Run, items: t.Sequence[Waiting]) -> None:
    """Wait for the guests that were started, or whose earlier wait did not come to its end."""
    introduce(run, [item for item in items if item.job and item.record and awaits_word(item.record)])
    answering = [item for item in items if item.error is None]
    pairs = [(item, target) for item in answering for target in [_target(run, item)] if target is not None]
    if not pairs:
        return
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.wait import wait_all

    try:
        wait_all([target for _item, target in pairs])
        for item, target in pairs:
            try:
                _settle(run, item, target)
            except (CocoonError, OSError) as exc:
                item.error = CocoonError(f"VM '{item.name}' answers, which could not be written down: {exc}")
    except OSError as exc:
        for item, target in pairs:
            item.error = CocoonError(f"cannot wait for {target.awaited}: {exc.strerror}")
    finally:
        for _item, target in pairs:
            target.process.close()


def awaits_word(record: VmRecord) -> bool:
    """Whether a guest is to be told who it is, or of other NICs; one that stands still is told when it goes on."""
    pending = record.get("identity_pending") or record.get("untold_nics")
    return bool(pending) and record.get("state") == RUNNING


def introduce(run: Run, items: t.Sequence[Waiting]) -> None:
    """Tell clones who they are, and others of their NICs, and put each on its networks once it has understood."""
    if not items:
        return
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.identity import tell_all
    from ansible_collections.cocoon.microvm.plugins.module_utils._vms.admittance import newcomer

    pairs = [
        (item, found) for item in items for found in [newcomer(Vm(run, item.record or {}), item.definition)] if found
    ]
    try:
        tell_all([found for _item, found in pairs])
        for item, found in pairs:
            if found.error:
                item.error = GuestTimeoutError(f"VM '{item.name}': {found.error}", "timeout")
                continue
            try:
                _write_down(run, item, identity_pending=None, untold_nics=None)
            except (CocoonError, OSError) as exc:
                item.error = CocoonError(f"VM '{item.name}' is on its networks, which could not be written down: {exc}")
    finally:
        for _item, found in pairs:
            found.process.close()


def _write_down(run: Run, item: Waiting, **fields: t.Any) -> None:
    """Add to the record of a VM, if it is still the one that was waited for."""
    with locked(run.store.paths, [f"vm:{item.name}"], run.options.lock_timeout):
        record = run.store.vm_record(item.name)
        if record and item.record and record.get("process") == item.record.get("process"):
            record.update(t.cast("VmRecord", fields))
            run.store.write_vm(record)
            item.record = record


def condition_of(definition: Record) -> str:
    """What the record keeps of the condition that a start waited for."""
    kind = definition.get("wait_for") or "process"
    if kind == "port":
        return f"port:{definition.get('wait_port') or 22}"
    if kind == "console":
        return f"console:{definition.get('wait_pattern') or ''}"
    return t.cast(str, kind)


def answered(record: VmRecord, definition: Record) -> bool:
    """Whether the guest has answered, since its start, as the definition asks for."""
    return condition_of(definition) in ("process", (record.get("ready") or {}).get("condition"))


def _target(run: Run, item: Waiting) -> Target | None:
    """What to wait for, or nothing: no wait asked for, not running, or known to have been met."""
    record, definition = item.record, item.definition
    if not record or not record.get("pid") or definition.get("state") not in ("started", "restarted"):
        return None
    if item.job is None or item.job.begun is None:
        if answered(record, definition):
            return None
    vm = Vm(run, record)
    process = vm.process()
    if process is None:
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.launch import log_tail

        log = run.store.paths.hypervisor_log(record["id"])
        item.error = HypervisorError(
            f"the hypervisor of '{item.name}' ended right after its start; the last lines of {log}:"
            f" {log_tail(log) or '(none)'}; the console log is {run.store.paths.console_log(record['id'])}"
        )
        return None
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest import wait

    begun = item.job.begun if item.job and item.job.begun else time.monotonic()
    timeout = float(definition["timeout"]) if "timeout" in definition else wait.DEFAULT_TIMEOUT
    address = next((c["network"]["ip"] for c in record["network_configs"] if c.get("network", {}).get("ip")), "")
    kind = definition.get("wait_for") or "process"
    if kind in ("ping", "port") and not address:
        process.close()
        item.error = CocoonError(
            "no NIC has an address that is known here", "wait_for", "Use a network with a subnet, or wait_for: console."
        )
        return None
    paths, agent = run.store.paths, None
    if kind == "agent":
        from ansible_collections.cocoon.microvm.plugins.module_utils._vms import guests

        try:
            agent = guests.access(paths, record)
        except CocoonError as exc:
            process.close()
            item.error = exc
            return None
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
        console_log=paths.console_log(record["id"]),
        agent=agent,
    )


def _settle(run: Run, item: Waiting, target: Target) -> None:
    """Write down that a guest answered, or make its silence the item's error."""
    if target.error is not None:
        item.error = _silence(run, item, target)
        return
    item.seconds = target.seconds
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.console import host_keys

    # A reboot of the host takes the console's log.
    keys = host_keys(target.console_log)
    known = {"host_keys": keys} if keys else {}
    _write_down(run, item, ready={"condition": condition_of(item.definition), "seconds": target.seconds}, **known)


def _silence(run: Run, item: Waiting, target: Target) -> CocoonError:
    """Why a guest did not answer: of a container, how its command ended, if it did."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._vms import container

    code = container.exit_code(run.store.paths, item.record or {})
    if code is None:
        from ansible_collections.cocoon.microvm.plugins.module_utils._guest import agent

        remedy = agent.REMEDY if target.condition == "agent" else None
        return GuestTimeoutError(f"VM '{item.name}': {target.error}", "timeout", remedy)
    said = f"VM '{item.name}': its command ended with exit code {code} while the task waited for {target.awaited}"
    remedy = "What it said before is in the console's log."
    if code == container.KILLED:
        remedy = "It was killed: the guest may want more memory."
    return HypervisorError(f"{said}; the console log is {target.console_log}", remedy=remedy)
