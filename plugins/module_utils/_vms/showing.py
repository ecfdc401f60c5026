# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs as users see them: the record, and what their process and their guest say now.

A module that only looks needs no more than this, and the less it needs the sooner it is there.
"""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import (
    PHASE_SAVE,
    REMOVED,
    Observed,
    halt_reason,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, read_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import VmRecord


def observe(record: VmRecord | None, paths: Paths | None = None) -> Observed:
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


def _run_state(record: VmRecord, paths: Paths) -> str | None:
    """How the guest is, by its hypervisor; ``None`` if the record says that it is on its way, or nobody can tell."""
    if record.get("state") != types.RUNNING or record.get("phase"):
        return None
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.runstates import run_state

    return run_state(record["hypervisor"], paths.vm_run(record["id"]))


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
        "untold_nics",
        "hotplug_nics",
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


def view(record: VmRecord | None, paths: Paths) -> Record | None:
    """A record as users see it: true about the process, without what is only ours to know."""
    if record is None or record.get("state") == "removed":
        return None
    shown: Record = {key: value for key, value in record.items() if key not in PRIVATE}
    if not record.get("pid"):
        return shown
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.console import host_keys, panicked

    observed = observe(record, paths)
    said = host_keys(paths.console_log(record["id"]))
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


def _logs(vm: t.Mapping[str, t.Any], paths: Paths, count: int) -> Record:
    """Where a VM's console is, and the last lines of its logs."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.console import last_lines
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.channels import console

    logs = {"console": paths.console_log(vm["id"]), "hypervisor": paths.hypervisor_log(vm["id"])}
    return {
        "console_path": console(vm["hypervisor"], paths.vm_run(vm["id"])) if vm.get("pid") else None,
        "logs": {name: {"path": path, "lines": last_lines(path, count)} for name, path in logs.items()},
    }


def _launch(path: str) -> list[str] | None:
    try:
        return (read_json(path) or {}).get("lines")
    except StateError:  # cut off, as a guest had filled the logs' file system
        return None


def vm_info(params: t.Mapping[str, t.Any]) -> Record:
    """The VMs of a host, or those named, as they are now: ``vms``, and ``kept_disks`` of VMs that were removed."""
    paths = Paths.from_params(params)
    store = Store.load(paths)
    names, labels, owner = params.get("names"), params.get("labels") or {}, params.get("owner")
    records: list[VmRecord] = []
    if store is not None and names:
        records = [record for name in names for record in [store.vm_record(name)] if record]
    elif store is not None:
        records = store.vm_records()
    chosen = [
        record
        for record in records
        if (not owner or record.get("owner") == owner)
        and all((record.get("labels") or {}).get(key) == value for key, value in labels.items())
    ]
    shown = [found for found in (view(record, paths) for record in chosen) if found is not None]
    if params.get("guest"):
        from ansible_collections.cocoon.microvm.plugins.module_utils._vms.guests import facts_of

        for vm, facts in zip(shown, facts_of(paths, t.cast("list[VmRecord]", shown), float(params["agent_timeout"]))):
            vm["guest"] = facts
    if params.get("launch"):
        for vm in shown:
            vm["launch"] = _launch(paths.launch_lines(vm["id"]))
    if params.get("logs"):
        for vm in shown:
            vm.update(_logs(vm, paths, params["logs"]))
    return {
        "vms": shown,
        "kept_disks": [
            {
                "name": record["config"]["name"],
                "owner": record.get("owner"),
                "disks": [{"name": disk["name"], "size": disk["size"]} for disk in record["detached_disks"]],
            }
            for record in chosen
            if record.get("state") == REMOVED
        ],
    }
