# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The running VMs of a network, seen from the network: whether their NICs are on it."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._network import backends, guard, leases, wires
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkConfig, NetworkRecord


def running(store: Store, network: NetworkRecord) -> t.Iterator[tuple[str, int, guard.Nic]]:
    """(VM, place, NIC) of each NIC that a running VM has on the network."""
    for vm_id in leases.users(store, network["id"]):
        record = store.load_vm(vm_id) or {}
        if not wires.is_settled(record):
            continue
        process = Process.find(record.get("process"))
        if process is None:
            continue
        process.close()
        configs = record["network_configs"]
        for index, nic in enumerate(guard.nics(configs, lambda _config: network)):
            if nic.config.get("network_id") == network["id"]:
                yield record["config"]["name"], index, nic


def _labelled(store: Store, network: NetworkRecord) -> t.Iterator[tuple[str, guard.Nic]]:
    """(what to call it, NIC) of each of these."""
    for vm, index, nic in running(store, network):
        yield f"nics[{index}] of {vm}", nic


def troubles(store: Store, network: NetworkRecord) -> dict[str, str]:
    """What is wrong with those NICs and can be mended, in words; usually nothing."""
    links: wires.Wires | None = None
    found = {}
    for label, nic in _labelled(store, network):
        links = wires.look() if links is None else links
        wrong = backends.of(nic.config).faults(nic.config, network, links) + guard.faults(store.store_id, nic)
        if wrong and wires.GONE not in wrong:  # what is gone only a restart brings back
            found[label] = ", ".join(wrong)
    return found


def mend(store: Store, network: NetworkRecord) -> None:
    """Put the NICs of running VMs back on the network.

    :raises CocoonError: the kernel refuses it.
    """
    for label in troubles(store, network):
        # Looked up again: in between the VM may have ended, and begun anew as somebody who is to be kept off.
        nic = dict(_labelled(store, network)).get(label)
        if nic is not None:
            guard.ensure(store, [nic])
            backends.of(nic.config).mend(store, t.cast("NetworkConfig", nic.config), network)
