# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NICs that come to a running VM, and go from it.

A NIC is known by its place, as its TAP and its device are. One that differs in what its device or its wire is made of
goes, and comes anew; what only its guest has to know is told, as to a clone: a NIC is on its network when its guest
has answered, and not before.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._planning.settings import ASKED, settings_of
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import power, reserve
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkConfig

# Seconds for a guest to let go of a NIC; one that runs takes a fraction of one.
LET_GO = 30.0
# What a device and its wire are made of.
MADE_OF: t.Final = ("mac", "network_id", "vlan", "limits")


def _same(old: NetworkConfig, new: NetworkConfig) -> bool:
    return all(old.get(key) == new.get(key) for key in MADE_OF)


def kept(vm: Vm, planned: t.Sequence[NetworkConfig]) -> list[NetworkConfig]:
    """The NICs that a running VM is to have: one that stays is as its device and its guest have it."""
    found = list(planned)
    for number, old in enumerate(vm.record["network_configs"][: len(planned)]):
        new = planned[number]
        if _same(old, new):
            stays = {key: value for key, value in old.items() if key not in ASKED}
            stays.update({key: value for key, value in new.items() if key in ASKED})
            if new.get("network") and not old.get("offered"):
                stays["network"] = new["network"]
            found[number] = t.cast("NetworkConfig", stays)
    reserve.route_nics(vm.run, found)
    return found


def pull(vm: Vm, new: t.Sequence[NetworkConfig]) -> None:
    """Take the NICs out of a running VM that are not among those that are to be.

    :raises CocoonError: its guest, or its hypervisor, does not let go of one.
    """
    for number, config in enumerate(vm.record["network_configs"]):
        if number >= len(new) or not _same(config, new[number]):
            vm.driver.detach_nic(vm.run_dir, number, LET_GO)
            vm.mark("set_nics.pulled_one")


def untold(vm: Vm, new: list[NetworkConfig]) -> list[str]:
    """The MACs of those NICs that a running VM is to be given, or whose guest is to set them up in another way."""
    record, told = vm.record, vm.record.get("untold_nics") or ()
    old = record["network_configs"]
    before, after = settings_of(record), settings_of({"network_configs": new})
    found = []
    for number, config in enumerate(new):
        stays = number < len(old) and _same(old[number], config) and before[number] == after[number]
        if not stays or config["mac"] in told:
            found.append(config["mac"])
    return found


def lacking(vm: Vm) -> list[str]:
    """The MACs of those NICs on record that the running VM has not."""
    present = vm.driver.plugged_nics(vm.run_dir)
    return [config["mac"] for number, config in enumerate(vm.record["network_configs"]) if number not in present]


def plug(vm: Vm) -> None:
    """Plug NICs in that the VM lacks, on networks that are ready; no guest hears of them yet."""
    power.guard_nics(vm.run, [vm.record])
    present = vm.driver.plugged_nics(vm.run_dir)
    for number, config in enumerate(vm.record["network_configs"]):
        if number in present:
            continue
        fds: list[int] = []
        try:
            nic = power.nic_of(vm.driver, config, fds, hold=True)
            vm.mark("plug_nics.tap")
            vm.driver.attach_nic(vm.run_dir, number, nic)
        finally:
            for fd in fds:
                os.close(fd)
        vm.mark("plug_nics.one")
