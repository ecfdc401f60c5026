# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A prune gives back what is held for nobody, see :mod:`orphans`."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._engine.orphans import TAP_RE
from ansible_collections.cocoon.microvm.plugins.module_utils._engine.steps import discard, unplug
from ansible_collections.cocoon.microvm.plugins.module_utils._network import guard, serving
from ansible_collections.cocoon.microvm.plugins.module_utils._state import locked
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import salvage
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm


def remove(run: Run, found: t.Iterable[str]) -> None:
    """End what runs of these, and give back what is held for them. Idempotent."""
    networks = serving.left_over(run.store)
    for holder in found:
        if holder in networks:
            serving.stop(run.store, holder)
        if TAP_RE.match(holder):
            guard.remove(run.store, [holder])
        if holder in networks or TAP_RE.match(holder):
            continue
        vm = Vm(run, salvage.rebuilt(run, {"id": holder, "bare": True, "config": {"name": holder}}))
        unplug(vm)
        with locked(run.store.paths, ["host"], run.options.lock_timeout):
            discard(vm)
            run.mark("orphans.one")
    run.sync_networks()
