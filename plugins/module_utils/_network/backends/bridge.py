# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks that are bridges, ours or others'. What only a change needs is imported by it."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ChangeRefusedError
from ansible_collections.cocoon.microvm.plugins.module_utils._network import leases, wires
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, locked
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkConfig, NetworkRecord


def check_host(network: NetworkRecord) -> None:
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import serving

    serving.check_installed(network)


def check_ports(network: NetworkRecord) -> None:
    if not network.get("nat"):
        raise ChangeRefusedError(
            f"network '{network['name']}' has no NAT, so ports cannot be published on it",
            "ports",
            "Set nat: true on the network, or remove ports.",
        )


def missing(store: Store, network: NetworkRecord) -> list[str]:
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import firewall, kernel

    found = kernel.missing(network)
    if network["adopted"]:
        return found
    found += firewall.missing(store)
    if leases.is_served(network) or leases.was_served(store, network["id"]):
        from ansible_collections.cocoon.microvm.plugins.module_utils._network import serving

        found += serving.missing(store, network)
    return found


def ensure(store: Store, network: NetworkRecord, timeout: float) -> bool:
    if not missing(store, network):
        return False
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import firewall, kernel, serving

    with locked(store.paths, firewall.lock_names(), timeout):
        # First the bridge without an address, then the rules, then what lets packets pass.
        kernel.create(network)
        firewall.apply(store)
        kernel.activate(network)
    serving.ensure(store, network)
    return True


def clear(_store: Store, _network: NetworkRecord, _force: bool) -> None:
    """TAPs vanish with their VMs."""


def given(_store: Store, _network: NetworkRecord) -> list[Record]:
    return []


def place(_config: NetworkConfig, _vm_id: str) -> None:
    """Its bridge is its network's."""


def plug(_store: Store, _network: NetworkRecord, _config: NetworkConfig, _ports: t.Sequence[str], _stays: bool) -> bool:
    """Bridges are the network's, and TAPs are made by the start."""
    return False


def rest(_config: t.Mapping[str, t.Any]) -> None:
    """TAPs vanish with their VMs."""


def open_tap(config: NetworkConfig, pairs: int, attached: bool) -> list[int]:
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import tap

    return tap.open_tap(config, pairs, attached)


def take_over(config: NetworkConfig, process: Process, attached: bool) -> None:
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import tap

    tap.take_over(config, process, attached)


def join(config: NetworkConfig) -> None:
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import tap

    tap.join_bridge(config)


def look(config: t.Mapping[str, t.Any], links: wires.Wires) -> wires.Wire | None:
    return links.get(config["tap"])


def faults(config: t.Mapping[str, t.Any], network: NetworkRecord, links: wires.Wires) -> list[str]:
    return wires.faults(config, network, links)


def tell_ports(_store: Store, _network: NetworkRecord, _config: NetworkConfig, _ports: t.Sequence[str]) -> None:
    """They are the firewall's."""


def mend(_store: Store, config: NetworkConfig, network: NetworkRecord) -> None:
    wires.mend(config, network)
