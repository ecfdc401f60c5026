# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest's way onto its networks: a clone, or a NIC that came while its VM ran, is let on when it is as it should be,
and not a packet before."""

from __future__ import annotations

import socket
import time

from ansible_collections.cocoon.microvm.plugins.module_utils._guest import identity
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.wait import DEFAULT_TIMEOUT
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import guest_uuid
from ansible_collections.cocoon.microvm.plugins.module_utils._network import backends
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm

UNTOLD = (
    "its guest did not answer when it was told of its NICs, so those that are new are kept off their networks; its"
    " image may lack the handler for it (docs/guest-images.md); with state: restarted it learns of them at its boot"
)


def newcomer(vm: Vm, definition: Record) -> identity.Newcomer | None:
    """The guest of a VM as one to be told who it is, or of its NICs; ``None`` if it does not run."""
    process = vm.process()
    if process is None:
        return None
    record, driver, run_dir = vm.record, vm.driver, vm.run_dir
    macs = [config["mac"] for config in record["network_configs"]]

    def tell() -> socket.socket:
        return driver.announce(run_dir, _message(vm))

    def admit() -> None:
        driver.check_macs(run_dir, macs)
        for config in record["network_configs"]:
            if record.get("identity_pending") or config["mac"] in (record.get("untold_nics") or ()):
                backends.of(config).join(config)
        driver.admit(run_dir, len(macs))

    deadline = time.monotonic() + float(definition.get("timeout") or DEFAULT_TIMEOUT)
    if record.get("identity_pending"):
        return identity.Newcomer(vm.name, process, tell, admit, deadline)
    return identity.Newcomer(vm.name, process, tell, admit, deadline, UNTOLD, patient=True)


def _message(vm: Vm) -> bytes:
    record = vm.record
    if record.get("identity_pending"):
        return identity.message(record, record["identity_pending"] or [], guest_uuid(vm.id))
    return identity.nics_message(record, record.get("untold_nics") or [])
