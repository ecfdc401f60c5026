# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a name to a plan: read the record, look at the process, load what the planner says it needs.

This is all that a run without changes does, so it imports nothing that such a run has no use for.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import (
    Context,
    Needs,
    Observed,
    Plan,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.vm import compare_once, needs, plan_vm
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.showing import observe

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import (
        ImageRecord,
        SnapshotRecord,
        VmRecord,
    )


def context(run: Run, required: Needs, snapshots: t.Mapping[str, SnapshotRecord | None]) -> Context:
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


def _default_kernel(run: Run, found: t.Iterable[ImageRecord | None]) -> bool:
    """Whether the host has a default kernel; only looked for if one of the images needs it."""
    if all(image is None or image["type"] != "oci" or image.get("boot") for image in found):
        return False
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import kernel

    return kernel.find(run.store) is not None


def plan_item(run: Run, record: VmRecord | None, definition: Record) -> Plan:
    """The plan that makes the VM of *record* what *definition* says."""
    observed = _with_console(run, record, _with_nics(run, record, observe(record, run.store.paths)))
    compared = compare_once(record, definition)
    required = needs(record, definition, observed, compared=compared)
    disks_only = definition.get("disks_only", False)
    snapshots = {name: run.snapshot(name, disks_only) for name in required.snapshots}
    if snapshots:
        required = needs(record, definition, observed, snapshots)
    return plan_vm(record, observed, definition, context(run, required, snapshots), compared)


def _with_nics(run: Run, record: VmRecord | None, observed: Observed) -> Observed:
    """What there is to see of a running VM's NICs on the host's side, too."""
    if not record or not observed.running:
        return observed
    from ansible_collections.cocoon.microvm.plugins.module_utils._network.wires import GONE

    faults = run.nic_faults(record)
    lost = tuple(nic for nic, wrong in faults.items() if GONE in wrong)
    nics = {nic: ", ".join(wrong) for nic, wrong in faults.items() if nic not in lost}
    return dataclasses.replace(observed, nics=nics, lost=lost)


def _with_console(run: Run, record: VmRecord | None, observed: Observed) -> Observed:
    """Whether what a running VM prints is kept, too."""
    if not record or not observed.running:
        return observed
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import keeping

    paths = run.store.paths
    gone = keeping.lost(paths.console_log(record["id"]), paths.vm_run(record["id"]))
    return dataclasses.replace(observed, console_lost=gone)
