# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks copied while the guest runs on: backup jobs that begin at one instant keep what was there then.

The targets are files of ours, opened for QEMU, which may open none itself.
"""

from __future__ import annotations

import contextlib
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError, ResourceError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.commandline import node_name
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.qmp import Qmp, QmpError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.replies import printable

PREFIX = "copy-"
FIRST_SET = 1000
TIMEOUT = 6 * 3600.0
CANCEL_TIMEOUT = 30.0

# Serial of a disk, and the descriptor of an empty file of its size.
Targets = t.Sequence[tuple[str, int]]


def clean(qmp: Qmp) -> None:
    """Take away what a killed run left: its jobs, their targets, their descriptors."""
    deadline = time.monotonic() + CANCEL_TIMEOUT
    while True:
        jobs = [str(job.get("device")) for job in qmp.execute("query-block-jobs") if isinstance(job, dict)]
        ours = [job for job in jobs if job.startswith(PREFIX)]
        if not ours or time.monotonic() > deadline:
            break
        for job in ours:
            with contextlib.suppress(QmpError):
                qmp.execute("block-job-cancel", {"device": job, "force": True})
        qmp.wait_event("BLOCK_JOB_CANCELLED", 1.0)
    _drop_targets(qmp)


def _drop_targets(qmp: Qmp) -> None:
    for node in qmp.execute("query-named-block-nodes", {"flat": True}):
        name = str(node.get("node-name")) if isinstance(node, dict) else ""
        if name.startswith(PREFIX):
            with contextlib.suppress(QmpError):
                qmp.execute("blockdev-del", {"node-name": name})
    for entry in qmp.execute("query-fdsets"):
        number = entry.get("fdset-id") if isinstance(entry, dict) else None
        if isinstance(number, int) and number >= FIRST_SET:
            with contextlib.suppress(QmpError):
                qmp.execute("remove-fd", {"fdset-id": number})


def begin(qmp: Qmp, targets: Targets) -> None:
    """Begin to copy the disks of a guest that stands still; it may go on when this returns.

    :raises QmpError: this QEMU does not do it; nothing has begun.
    """
    with contextlib.suppress(QmpError):  # newer releases: the end of a migration has put the disks to sleep
        qmp.execute("blockdev-set-active", {"active": True})
    try:
        for number, (serial, fd) in enumerate(targets, FIRST_SET):
            qmp.execute("add-fd", {"fdset-id": number}, fds=[fd])
            qmp.execute("blockdev-add", _target(serial, number))
        actions = [{"type": "blockdev-backup", "data": _job(serial)} for serial, _fd in targets]
        qmp.execute("transaction", {"actions": actions})
    except QmpError:
        _drop_targets(qmp)
        raise


def _target(serial: str, number: int) -> dict[str, t.Any]:
    file = {"driver": "file", "filename": f"/dev/fdset/{number}", "locking": "off", "discard": "unmap"}
    return {"driver": "raw", "node-name": PREFIX + serial, "discard": "unmap", "detect-zeroes": "unmap", "file": file}


def _job(serial: str) -> dict[str, t.Any]:
    return {"job-id": PREFIX + serial, "device": node_name(serial), "target": PREFIX + serial, "sync": "full"}


def finish(qmp: Qmp, targets: Targets, timeout: float = TIMEOUT) -> None:
    """Wait until the copies are whole.

    :raises ResourceError: no space left for one. :raises HypervisorError: one could not be made, or takes too long.
    """
    deadline = time.monotonic() + timeout
    waiting = {PREFIX + serial for serial, _fd in targets}
    problem: HypervisorError | ResourceError | None = None
    while waiting:
        event = qmp.wait_event("BLOCK_JOB_COMPLETED", deadline - time.monotonic())
        if event is None:
            problem = HypervisorError(f"the copy of a disk was not done within {timeout:g} s")
            break
        waiting.discard(str(event.get("device")))
        if event.get("error"):
            problem = problem or _problem(printable(event["error"]))
    clean(qmp)
    if problem is not None:
        raise problem


def _problem(words: str) -> HypervisorError | ResourceError:
    if "No space left" in words or "quota" in words.lower():
        return ResourceError(
            "no space is left for the copy of a disk", "root_dir", "Free some, or use a larger file system."
        )
    return HypervisorError(f"a disk could not be copied: {words}")
