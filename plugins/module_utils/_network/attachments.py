# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the rest of the engine needs of networks. Looking is file reads and ioctls; only a change costs more."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._network import backends, leases, namespaces
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

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkRecord

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
    "unplug",
    "unpublish",
    "users",
]

# Held for one call of nft at most, by each of those who wait.
LOCK_TIMEOUT = 60.0


def load(store: Store, name: str) -> NetworkRecord | None:
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


def missing(store: Store, network: NetworkRecord) -> list[str]:
    """What the host lacks of a network; empty in the usual case.

    :raises ConflictError: an interface that is not ours has the bridge's name.
    :raises NotFoundError: the bridge of an adopted network is not there.
    """
    return backends.of(network).missing(store, network)


def ensure(store: Store, network: NetworkRecord, timeout: float = LOCK_TIMEOUT) -> bool:
    """Bring up what the host lacks of a network (after a reboot, say).

    :return: whether anything was to be done.
    :raises BusyError: others kept a lock for *timeout* seconds.
    :raises ConflictError: an interface that is not ours has the bridge's name.
    :raises NotFoundError: the bridge of an adopted network, or the conflist, is not there.
    :raises ToolError: nft, dnsmasq or a plugin is missing, or refused what it is told.
    """
    return backends.of(network).ensure(store, network, timeout)


def unplug(store: Store, vm_id: str, keep: t.Container[tuple[str, int]] = ()) -> list[str]:
    """Have what plugins made for a VM taken down, but for the NICs *keep*, each a network's id and a place.

    :return: what went wrong, in words; it is kept on record, and tried again by whoever comes next.
    """
    if not leases.is_attached(store, vm_id) and not os.path.lexists(namespaces.path_of(vm_id)):
        return []
    from ansible_collections.cocoon.microvm.plugins.module_utils._network.backends import cni

    return cni.unplug(store, vm_id, keep)


def sync(store: Store, timeout: float = LOCK_TIMEOUT) -> bool:
    """Load the rules for all networks and published ports if they are not loaded; once per batch.

    :return: whether anything was to be done.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import firewall

    with locked(store.paths, firewall.lock_names(), timeout):
        return firewall.apply(store)
