# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One nftables table a store: worked out from the state files, compared, loaded.

Callers hold the lock ``firewall:table`` to load, as the later of two loads must know what the other knew.
"""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._network import forwarding, guard, leases, nftables, ports
from ansible_collections.cocoon.microvm.plugins.module_utils._network.ruleset import Inputs, Ruleset, render, table_name
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkRecord


def networks(store: Store) -> list[NetworkRecord]:
    """Networks with a bridge of ours that are not being removed, by name; damaged ones as the kernel has them."""
    found = []
    for name, network_id in leases.every(store):
        record = leases.seen(store, network_id, name)
        if record and not record["adopted"] and record.get("phase") != leases.REMOVING:
            found.append(record)
    return sorted(found, key=lambda record: str(record["name"]))


def _inputs(store: Store) -> Inputs:
    nets = networks(store)
    nat = [net for net in nets if net["nat"]]
    uplinks = forwarding.uplinks() if nat else ()
    # An uplink that is a bridge of ours (a route through a guest) is none.
    bridges = {net["bridge"] for net in nets}
    uplinks = tuple(name for name in uplinks if name not in bridges)
    uplinks6 = forwarding.uplinks6() if any(net["routing6"] != "none" for net in nets) else ()
    return Inputs(
        networks=tuple(nets),
        ports=tuple(port for net in nat for port in ports.published(store, net["id"])),
        uplinks=uplinks,
        guarded=forwarding.guarded(uplinks),
        uplinks6=tuple(name for name in uplinks6 if name not in bridges),
    )


def _wanted(store: Store) -> tuple[Ruleset | None, tuple[str, ...]]:
    inputs = _inputs(store)
    return render(table_name(store.store_id), inputs), inputs.uplinks


def missing(store: Store) -> list[str]:
    """What is not as it should be: ``rules``, ``uplink``."""
    ruleset, uplinks = _wanted(store)
    found = []
    table = table_name(store.store_id)
    gone = nftables.is_absent(table) and nftables.is_absent(table, nftables.BRIDGE) if ruleset is None else False
    if not (nftables.is_loaded(ruleset) if ruleset else gone):
        found.append("rules")
    if forwarding.needs_work(store, uplinks):
        found.append("uplink")
    return found


def apply(store: Store) -> bool:
    """Make it so; whether anything was to be done. The rules are there before the packets can be."""
    lacking = missing(store)
    if not lacking:
        return False
    ruleset, uplinks = _wanted(store)
    if "uplink" in lacking and uplinks:
        forwarding.claim(store, uplinks)
        ruleset, uplinks = _wanted(store)
    if ruleset is None:
        forwarding.release(store)
        nftables.remove(table_name(store.store_id))
        guard.remove_all(store)
        return True
    if not nftables.is_loaded(ruleset):
        nftables.load(ruleset.text)
    forwarding.switch_on(uplinks)
    forwarding.release(store, uplinks)
    return True


def lock_names() -> list[str]:
    return ["firewall:table"]
