# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the rest of the engine needs of networks. Looking is file reads and ioctls; only a change costs more."""

from __future__ import annotations

from ansible_collections.cocoon.microvm.plugins.module_utils._network import leases
from ansible_collections.cocoon.microvm.plugins.module_utils._network.leases import (
    REMOVING,
    allocate,
    attach,
    check_wanted,
    choose_ip,
    detach,
    lease,
    lease_holder,
    read_record,
    users,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._network.ports import (
    Port,
    check_free,
    check_ports,
    parse_port,
    publish,
    unpublish,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, locked
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

__all__ = [
    "Port",
    "allocate",
    "attach",
    "check_free",
    "check_ports",
    "check_wanted",
    "choose_ip",
    "detach",
    "ensure",
    "lease",
    "lease_holder",
    "load",
    "missing",
    "parse_port",
    "publish",
    "purge",
    "release",
    "sync",
    "unpublish",
    "users",
]

# Held for one call of nft at most, by each of those who wait.
LOCK_TIMEOUT = 60.0


def load(store: Store, name: str) -> Record | None:
    """The network *name*, or ``None`` if it is not there or is being removed."""
    network_id = store.index("network").lookup(name)
    record = read_record(store, network_id) if network_id else None
    return None if record is None or record.get("phase") == REMOVING else record


def release(store: Store, network_id: str, ip: str, vm_id: str) -> None:
    """Give *ip* back if the VM has it; it is not found there any more."""
    if leases.lease_holder(store, network_id, ip) == vm_id:
        from ansible_collections.cocoon.microvm.plugins.module_utils._network import serving

        serving.withdraw(store, network_id, ip)
        leases.release(store, network_id, ip, vm_id)


def purge(store: Store, vm_id: str) -> bool:
    """Take everything from a VM on every network: for records whose writer died. Looks at all leases.

    :return: whether published ports were among it (:func:`sync` is due then).
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import serving

    serving.withdraw_all(store, vm_id)
    return leases.purge(store, vm_id)


def missing(store: Store, network: Record) -> list[str]:
    """What the kernel lacks of a network; empty in the usual case.

    :raises ConflictError: an interface that is not ours has the bridge's name.
    :raises NotFoundError: the bridge of an adopted network is not there.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import firewall, kernel

    found = kernel.missing(network)
    if network["adopted"]:
        return found
    found += firewall.missing(store)
    if leases.is_served(network) or leases.was_served(store, network["id"]):
        from ansible_collections.cocoon.microvm.plugins.module_utils._network import serving

        found += serving.missing(store, network)
    return found


def ensure(store: Store, network: Record, timeout: float = LOCK_TIMEOUT) -> bool:
    """Bring bridge, address, forwarding, rules and dnsmasq up where they are missing (after a reboot, say).

    :return: whether anything was to be done.
    :raises BusyError: others kept the lock for *timeout* seconds.
    :raises ConflictError: an interface that is not ours has the bridge's name.
    :raises NotFoundError: the bridge of an adopted network is not there.
    :raises ToolError: nft or dnsmasq is missing, or refused what it is told.
    """
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


def sync(store: Store, timeout: float = LOCK_TIMEOUT) -> bool:
    """Load the rules for all networks and published ports if they are not loaded; once per batch.

    :return: whether anything was to be done.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import firewall

    with locked(store.paths, firewall.lock_names(), timeout):
        return firewall.apply(store)
