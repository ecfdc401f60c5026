# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way from a VM's record to the agent inside its guest, as those need it that only look."""

from __future__ import annotations

import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, ConflictError, NotFoundError
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.agent import Access
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import VmRecord

T = t.TypeVar("T")
R = t.TypeVar("R")


def access(paths: Paths, record: VmRecord) -> Access:
    """The way to the agent in a VM's guest.

    :raises UnsupportedError: its hypervisor has none. :raises ConflictError: it does not run.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.agent import Access
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.channels import guest_channel

    run_dir = paths.vm_run(record["id"])
    try:
        return Access(guest_channel(record["hypervisor"], run_dir), run_dir)
    except FileNotFoundError:
        raise _not_running(record["config"]["name"]) from None


def facts_of(paths: Paths, records: t.Sequence[VmRecord], patience: float) -> list[Record | None]:
    """What the guests of running VMs say of themselves; ``{"error": why}`` of one that says nothing.

    :param records: as they have just been looked at.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest import agent as agents
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.facts import gather

    def one(record: VmRecord) -> Record | None:
        if record.get("state") != types.RUNNING:
            return None
        try:
            agent = agents.find(access(paths, record), time.monotonic() + patience)
            return gather(agent, time.monotonic() + patience)
        except (CocoonError, OSError) as exc:
            return {"error": str(exc)}

    return in_all(one, records)


def in_all(one: t.Callable[[T], R], items: t.Sequence[T], parallel: int = 16) -> list[R]:
    """What *one* gives for each of them, so many at once."""
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(max(1, min(parallel, len(items)))) as pool:
        return list(pool.map(one, items))


def running(store: Store | None, name: str) -> VmRecord:
    """The record of a VM whose guest can answer.

    :raises NotFoundError: there is no such VM. :raises ConflictError: it does not run, or stands still.
    """
    record = store.vm_record(name) if store else None
    if record is None or record.get("state") == "removed":
        raise NotFoundError(f"there is no VM '{name}'", "names")
    process = None if record.get("state") == types.HIBERNATED else Process.find(record.get("process"))
    if process is None:
        raise _not_running(name)
    process.close()
    if record.get("state") == types.PAUSED:
        raise ConflictError(f"VM '{name}' is paused", "names", "Start it first.")
    return record


def _not_running(name: str) -> ConflictError:
    return ConflictError(f"VM '{name}' does not run", "names", "Start it first, with wait_for: agent.")
