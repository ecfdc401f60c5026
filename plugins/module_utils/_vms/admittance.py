# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A clone's way onto its network: it is let on when its NICs have its own addresses, and not a packet before."""

from __future__ import annotations

import socket
import time

from ansible_collections.cocoon.microvm.plugins.module_utils._guest import identity
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.wait import DEFAULT_TIMEOUT
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import guest_uuid
from ansible_collections.cocoon.microvm.plugins.module_utils._network import backends
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm


def newcomer(vm: Vm, definition: Record) -> identity.Newcomer | None:
    """The guest of a VM as one to be told who it is; ``None`` if it does not run."""
    process = vm.process()
    if process is None:
        return None
    record, driver, run_dir = vm.record, vm.driver, vm.run_dir
    macs = [config["mac"] for config in record["network_configs"]]

    def tell() -> socket.socket:
        message = identity.message(record, record["identity_pending"] or [], guest_uuid(vm.id))
        return driver.announce(run_dir, message)

    def admit() -> None:
        driver.check_macs(run_dir, macs)
        for config in record["network_configs"]:
            backends.of(config).join(config)
        driver.admit(run_dir, len(macs))

    timeout = float(definition.get("timeout") or DEFAULT_TIMEOUT)
    return identity.Newcomer(vm.name, process, tell, admit, time.monotonic() + timeout)
