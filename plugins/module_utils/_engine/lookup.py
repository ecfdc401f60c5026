# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a name to a plan: read the record, look at the process, load what the planner says it needs.

This is all that a run without changes does, so it imports nothing that such a run has no use for.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import (
    PHASE_SAVE,
    Context,
    Needs,
    Observed,
    Plan,
    halt_reason,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.vm import compare_once, needs, plan_vm
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run


def observe(record: Record | None, paths: Paths | None = None) -> Observed:
    """Whether the VM's process is there, and whether its guest stands still.

    :param paths: where the hypervisor can be asked how its guest is; ``None`` = nobody wants to know.
    """
    # The process of a hibernated VM is on its way out: what is in its memory has been saved.
    if not record or not record.get("process") or record.get("state") == types.HIBERNATED:
        return Observed(running=False, paused=False)
    process = Process.find(record["process"])
    if process is None:
        return Observed(running=False, paused=False)
    with process:
        paused = record.get("state") == types.PAUSED or record.get("phase") == PHASE_SAVE
        said = None if paused or paths is None or process.stopped() else _run_state(record, paths)
    if said in ("running", "paused", None):
        return Observed(running=True, paused=paused or said == "paused")
    return Observed(running=True, halted=said)


def _run_state(record: Record, paths: Paths) -> str | None:
    """How the guest is, by its hypervisor; ``None`` if the record says that it is on its way, or nobody can tell."""
    if record.get("state") != types.RUNNING or record.get("phase"):
        return None
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import registry

    return registry.run_state(record["hypervisor"], paths.vm_run(record["id"]))


def context(run: Run, required: Needs, snapshots: t.Mapping[str, Record | None]) -> Context:
    """Load just what the plan needs."""
    auto: tuple[str, ...] = ()
    if "auto" in required.drivers:
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import registry

        auto = registry.DRIVERS
    drivers = {name: run.driver(name) for name in (*required.drivers, *auto) if name != "auto"}
    found = {name: run.image(name) for name in required.images}
    return Context(
        images=found,
        default_kernel=_default_kernel(run, found.values()),
        networks={name: run.network(name) for name in required.networks},
        snapshots=snapshots,
        probes={name: driver.probe() for name, driver in drivers.items()},
        capabilities={name: driver.capabilities for name, driver in drivers.items()},
        limits={name: driver.limits for name, driver in drivers.items()},
        auto=auto,
        owner_default=run.store.store_id,
    )


def _default_kernel(run: Run, found: t.Iterable[Record | None]) -> bool:
    """Whether the host has a default kernel; only looked for if one of the images needs it."""
    if all(image is None or image["type"] != "oci" or image.get("boot") for image in found):
        return False
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import kernel

    return kernel.find(run.store) is not None


def plan_item(run: Run, record: Record | None, definition: Record) -> Plan:
    """The plan that makes the VM of *record* what *definition* says."""
    observed = _with_nics(run, record, observe(record, run.store.paths))
    compared = compare_once(record, definition)
    required = needs(record, definition, observed, compared=compared)
    disks_only = definition.get("disks_only", False)
    snapshots = {name: run.snapshot(name, disks_only) for name in required.snapshots}
    if snapshots:
        required = needs(record, definition, observed, snapshots)
    return plan_vm(record, observed, definition, context(run, required, snapshots), compared)


def _with_nics(run: Run, record: Record | None, observed: Observed) -> Observed:
    """What there is to see of a running VM's NICs on the host's side, too."""
    if not record or not observed.running:
        return observed
    from ansible_collections.cocoon.microvm.plugins.module_utils._network.wires import GONE

    faults = run.nic_faults(record)
    lost = tuple(nic for nic, wrong in faults.items() if GONE in wrong)
    nics = {nic: ", ".join(wrong) for nic, wrong in faults.items() if nic not in lost}
    return dataclasses.replace(observed, nics=nics, lost=lost)


# What a record holds for us alone.
PRIVATE = frozenset(
    (
        "login",
        "relogin",
        "console_from",
        "process",
        "phase",
        "phase_boot_id",
        "restarting",
        "kept_disks",
        "planned_nics",
        "delete_data_disks",
        "planned_ports",
        "held_images",
        "promised_disk",
        "resume",
        "identity_pending",
        "memory_mode",
        "restore",
        "cidata_given",
        "blob_digests",
        "damaged",
        "lost",
        "own_kernel",
        "secret_env",
    )
)


def view(record: Record | None, paths: Paths) -> Record | None:
    """A record as users see it: true about the process, without what is only ours to know."""
    if record is None or record.get("state") == "removed":
        return None
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.console import host_keys, panicked

    shown = {key: value for key, value in record.items() if key not in PRIVATE}
    if not record.get("pid"):
        return shown
    observed = observe(record, paths)
    said = host_keys(paths.console_log(record["id"]), record.get("console_from", 0))
    if said:  # what it said when it was last waited for may be older
        shown["host_keys"] = said
    if observed.halted:
        shown.update(state=types.ERROR, reason=halt_reason(observed.halted))
    elif observed.paused and record.get("state") == types.RUNNING and not record.get("phase"):
        shown.update(state=types.PAUSED, reason="paused, and not by this collection")
    if not observed.running:
        shown.update(state=types.STOPPED, pid=0, reason="the hypervisor is gone")
        shown.pop("socket_path", None)
        if shown.get("ready"):  # that was of a boot which is over
            shown["ready"] = None
        if "exit_code" in record:
            from ansible_collections.cocoon.microvm.plugins.module_utils._vms import container

            shown.update(container.outcome(paths, record))
    elif record.get("pid") and (why := panicked(paths.console_log(record["id"]))):
        shown.update(reason=f"its guest's kernel panicked: {why}")
    return shown
