# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine in a process of its own, with a clock around it: reads a job as JSON, writes the timings as JSON.

{"params": {...}, "batches": [[VM options, ...], {options of cocoon_snapshot}, ...], "repeat": 5, "sync": true,
"still": false}

The options of a batch go through the argument spec first, outside the measured time. With "sync": false nothing is
flushed to disk: that is for filling a store, never for measuring. With "still": true a hypervisor is held still as soon
as it runs: twenty guests that boot on two cores would be measured in place of the engine.

"running" is when the last hypervisor of a batch acknowledged that its guest goes, counted from the batch's beginning.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

BEGAN = time.perf_counter()


class Waits:
    """Time that passes in some functions, added up."""

    def __init__(self) -> None:
        self.spent = 0.0

    def around(self, function: Any) -> Any:
        """The same function, with its time added up."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent += time.perf_counter() - began

        return timed


def hold_still() -> None:
    """Stop each hypervisor after its start, and let it go when it is to end."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.driver import QemuDriver
    from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process

    start, end = QemuDriver.start, Process.end

    def started(*args: Any, **kwargs: Any) -> Process:
        process = start(*args, **kwargs)
        process.signal(signal.SIGSTOP)
        return process

    def ended(process: Process, *args: Any, **kwargs: Any) -> None:
        process.signal(signal.SIGCONT)
        end(process, *args, **kwargs)

    QemuDriver.start = started  # type: ignore[method-assign]
    Process.end = ended  # type: ignore[assignment,method-assign]


class Starts:
    """When the driver last came back from starting a hypervisor, whose guest was acknowledged to run."""

    def __init__(self) -> None:
        self.last: float | None = None

    def watch(self) -> None:
        """Note the time after each start."""
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.driver import QemuDriver

        start = QemuDriver.start

        def started(*args: Any, **kwargs: Any) -> Any:
            process = start(*args, **kwargs)
            self.last = time.perf_counter()
            return process

        QemuDriver.start = started  # type: ignore[method-assign]


def cpu() -> float:
    """Processor seconds of this process and of the tools that it has called and waited for."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def typed(spec: dict[str, Any], items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items as the argument spec hands them to the engine."""
    from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

    validator = ArgumentSpecValidator(spec)
    result = []
    for item in items:
        checked = validator.validate(item)
        if checked.error_messages:
            raise SystemExit(f"{item.get('name')}: {'; '.join(checked.error_messages)}")
        result.append(checked.validated_parameters)
    return result


def prepared(params: dict[str, Any], batch: Any) -> Callable[[], dict[str, Any]]:
    """A batch, ready to be carried out: of VMs if it is a list, of one snapshot otherwise."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._api.vms import converge_vms
    from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import vm_options

    if isinstance(batch, dict):
        from ansible_collections.cocoon.microvm.plugins.module_utils._engine.snapshots import converge
        from ansible_collections.cocoon.microvm.plugins.modules.cocoon_snapshot import OPTIONS

        options = {**params, **typed(OPTIONS, [batch])[0]}

        def snapshot() -> dict[str, Any]:
            done = converge(options, False)
            seen = {key: (done["snapshot"] or {}).get(key) for key in ("id", "size", "paused_seconds", "seconds")}
            return {"changed": int(done["changed"]), "failed": [], "snapshot": seen, "archive": done.get("archive")}

        return snapshot
    definitions = typed(vm_options(), batch)

    def vms() -> dict[str, Any]:
        results = converge_vms(params, definitions, False)
        return {
            "changed": sum(bool(entry["changed"]) for entry in results),
            "failed": [f"{entry['name']}: {entry['msg']}" for entry in results if entry.get("failed")],
        }

    return vms


def main() -> None:
    """Run the batches one after the other; measure each."""
    job = json.load(sys.stdin)
    if not job.get("sync", True):
        os.fsync = lambda fd: None
    from ansible_collections.cocoon.microvm.plugins.module_utils import _process
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import qmp

    if job.get("still"):
        hold_still()
    waits, flushes, starts = Waits(), Waits(), Starts()
    starts.watch()
    os.fsync = flushes.around(os.fsync)
    # The engine blocks on a hypervisor in two places only: reading its replies, and waiting for its end.
    qmp.Qmp._receive = waits.around(qmp.Qmp._receive)  # type: ignore[method-assign]
    _process.Process.wait = waits.around(_process.Process.wait)  # type: ignore[method-assign]
    imported = time.perf_counter() - BEGAN
    runs = []
    for _turn in range(job.get("repeat", 1)):
        for batch in job["batches"]:
            carry_out = prepared(job["params"], batch)
            waits.spent, flushes.spent, starts.last = 0.0, 0.0, None
            used, before = cpu(), time.perf_counter()
            done = carry_out()
            wall = time.perf_counter() - before
            runs.append(
                {
                    **done,
                    "wall": wall,
                    "cpu": cpu() - used,
                    "waited": waits.spent,
                    "flushed": flushes.spent,
                    "running": None if starts.last is None else starts.last - before,
                }
            )
    json.dump({"import": imported, "runs": runs}, sys.stdout)


if __name__ == "__main__":
    main()
