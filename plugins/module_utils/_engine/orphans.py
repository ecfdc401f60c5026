# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a store holds for VMs and snapshots that are not in it any more: somebody has removed a folder by hand.

This looks through the whole store. Nothing but the doctor and a prune comes here.
"""

from __future__ import annotations

import contextlib
import os
import re
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._network import guard, leases
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store

ID_RE = re.compile(r"[a-z2-7]{26}\Z")
# A TAP bears the beginning of its VM's id.
TAP_RE = re.compile(r"cm([a-z2-7]{8})-[0-9]+\Z")


def find(store: Store) -> dict[str, list[str]]:
    """What is held for nobody, in words, by the id that it bears, or by the TAP that it is for.

    Who takes something has a name before, and a folder; so what is held is looked at first, and then who there is.
    """
    held: dict[str, list[str]] = {}
    for holder, words in _holdings(store):
        held.setdefault(holder, []).append(words)
    known = {holder for kind in ("vm", "snapshot", "network") for _name, holder in store.index(kind).entries()}
    for folder in ("vms", "snapshots", "networks"):
        known.update(_names(os.path.join(store.paths.root, folder)))
    return {holder: words for holder, words in sorted(held.items()) if _is_nobody(holder, known)}


def _is_nobody(holder: str, known: set[str]) -> bool:
    tap = TAP_RE.match(holder)
    if tap:
        return not any(vm_id.startswith(tap.group(1)) for vm_id in known)
    return bool(ID_RE.match(holder)) and holder not in known


def _names(path: str) -> list[str]:
    return [name for name in sorted(os.listdir(path)) if not name.endswith(".tmp")] if os.path.isdir(path) else []


def _holdings(store: Store) -> t.Iterator[tuple[str, str]]:
    """(id, words) of each thing that bears the id of its holder."""
    networks = os.path.join(store.paths.root, "networks")
    for network in _names(networks):
        for kind, word in (
            *(("leases", "address"), (leases.CHOSEN6, "address")),
            *(("ports", "port"), ("users", "use of network")),
        ):
            folder = os.path.join(networks, network, kind)
            for name in _names(folder):
                holder = leases.holder(os.path.join(folder, name)) or (name if kind == "users" else "")
                yield holder, f"{word} {network if kind == 'users' else name}"
        for name in _names(os.path.join(networks, network, leases.ATTACHMENTS)):
            holder, _dash, interface = name.rpartition("-")
            yield holder, f"interface {interface} on network {network}, which plugins have made"
    pins = os.path.join(store.paths.images, "users")
    for image in _names(pins):
        for holder in _names(os.path.join(pins, image)):
            yield holder, f"use of image {image[:12]}"
    for kind in ("mac", "uid"):
        for name, holder in store.index(kind).entries():
            yield holder, f"{kind} {name}"
    with contextlib.suppress(OSError):  # a kernel that does not say
        for tap in guard.guarded(store):
            yield tap, f"rules of TAP {tap}"
    for folder in (store.paths.run, store.paths.ram, os.path.join(store.paths.run, "networks")):
        for name in _names(folder):
            yield name, f"{os.path.join(folder, name)}"
