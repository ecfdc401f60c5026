# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host with a store, an uplink and what is behind it, all in network namespaces and without guests."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._network import attachments, converging, forwarding
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, write_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import now
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns
from ansible_collections.cocoon.microvm.tests.integration.support.networking import (
    Guest,
    address,
    guest,
    inside,
    plug,
    route,
)

MakeNetns = Callable[[], Netns]
UPLINK = "198.51.100.2"
INTERNET = "203.0.113.1"


@dataclass
class Host:
    """A host: its namespace, one store, and what is outside."""

    netns: Netns
    outside: Netns
    dirs: dict[str, str]
    make_netns: MakeNetns
    vms: list[str] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return Store.open(Paths.from_params(self.dirs))

    def network(self, name: str, check: bool = False, **options: Any) -> dict[str, Any]:
        """What cocoon_network does."""
        params = {"name": name, "state": "present", "lock_timeout": 10, **self.dirs, **options}
        return inside(self.netns, converging.converge, params, check)

    def record(self, name: str) -> dict[str, Any]:
        found = attachments.load(self.store, name)
        assert found
        return found

    def guest(self, name: str, number: int) -> Guest:
        """A pseudo guest with the address that ends in *number*."""
        net = self.record(name)
        base, prefix = net["subnet"].split("/")
        ip = base.rpartition(".")[0] + f".{number}"
        return guest(self.make_netns, self.netns, net["bridge"], f"{ip}/{prefix}", net["gateway"])

    def vm(self, vm_id: str, nics: Sequence[dict[str, Any]] = (), name: str | None = None) -> str:
        """A VM of which only the record exists."""
        os.makedirs(self.store.paths.vm_dir(vm_id), exist_ok=True)
        record = {
            **{"id": vm_id, "hypervisor": "qemu", "state": "stopped", "created_at": now(), "image_type": "oci"},
            "config": {"name": name or f"name-of-{vm_id}", "cpu": 1, "memory": 1 << 27, "storage": 1 << 27},
            **{"login": {}, "labels": {}, "uid": 0, "promised_disk": 0},
        }
        lists = ("storage_configs", "data_disks", "detached_disks", "ports", "nics")
        path = os.path.join(self.store.paths.vm_dir(vm_id), "vm.json")
        write_json(path, {**record, **{key: [] for key in lists}, "network_configs": list(nics)})
        return vm_id

    def publish(self, network: str, vm_id: str, ip: str, *ports: str) -> None:
        inside(self.netns, attachments.publish, self.store, self.record(network), vm_id, ip, ports)
        inside(self.netns, attachments.sync, self.store)

    def sysctl(self, key: str) -> str:
        return inside(self.netns, Path("/proc/sys/net/ipv4", key).read_text).strip()

    def rules(self) -> str:
        return self.netns.run("nft", "list", "ruleset")

    def footprint(self) -> dict[str, Any]:
        """Everything in the namespace that networks have to do with."""
        names = inside(self.netns, socket.if_nameindex)
        keys = [f"conf/{name}/forwarding" for _index, name in names]
        return {
            "links": sorted(name for _index, name in names),
            # Without interface numbers, and without the carrier, which comes and goes with ports.
            "addresses": [line.split()[1:4] for line in self.netns.run("ip", "-4", "-o", "addr").splitlines()],
            "routes": self.netns.run("ip", "-4", "route").replace(" linkdown", ""),
            "rules": self.rules(),
            "forwarding": {key: self.sysctl(key) for key in [*keys, "conf/all/forwarding", "conf/default/forwarding"]},
            "notes": inside(self.netns, lambda: os.path.exists(forwarding._directory())),
        }


def make_host(make_netns: MakeNetns, dirs: dict[str, str]) -> Host:
    """One whose default route leads to another namespace, which has the address INTERNET."""
    netns, outside = make_netns(), make_netns()
    plug(netns, "up0", outside, "out0")
    address(netns, "up0", f"{UPLINK}/24")
    address(outside, "out0", "198.51.100.1/24")
    address(outside, "lo", f"{INTERNET}/32")
    route(netns, "default", "via", "198.51.100.1")
    return Host(netns, outside, dirs, make_netns)
