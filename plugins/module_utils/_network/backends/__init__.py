# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What carries a network: everything that differs between its kinds, behind one seam."""

from __future__ import annotations

import typing as t

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._network.wires import Wire, Wires
    from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkConfig, NetworkRecord
    from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
    from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

BRIDGE, CNI = "bridge", "cni"


class Backend(t.Protocol):
    """Each is a module. *network* is a network's record, *config* that of a NIC."""

    def check_host(self, network: NetworkRecord) -> None:
        """:raises CocoonError: the host lacks what such a network needs."""

    def check_ports(self, network: NetworkRecord) -> None:
        """:raises ChangeRefusedError: ports cannot be published on it."""

    def missing(self, store: Store, network: NetworkRecord) -> list[str]:
        """What the host lacks of a network, in words; usually nothing."""

    def ensure(self, store: Store, network: NetworkRecord, timeout: float) -> bool:
        """Bring up what is missing; whether there was anything to be done."""

    def clear(self, store: Store, network: NetworkRecord, force: bool) -> None:
        """Before a network without users goes: give back what is left of earlier ones."""

    def given(self, store: Store, network: NetworkRecord) -> list[Record]:
        """The addresses that VMs have there and that are no leases of ours: ``ip mac vm_id``."""

    def place(self, config: NetworkConfig, vm_id: str) -> None:
        """Write into a new NIC where it is to be."""

    def plug(
        self, store: Store, network: NetworkRecord, config: NetworkConfig, ports: t.Sequence[str], stays: bool
    ) -> bool:
        """Before a VM starts, have there be what its NIC is put on; whether *config* has changed by it.

        :param ports: the VM's published ports, if they lead to this NIC. :param stays: its address may not change.
        """

    def rest(self, config: t.Mapping[str, t.Any]) -> None:
        """Of a VM that has stopped, nothing is on the network."""

    def open_tap(self, config: NetworkConfig, pairs: int, attached: bool) -> list[int]:
        """As :func:`tap.open_tap`."""

    def take_over(self, config: NetworkConfig, process: Process, attached: bool) -> None:
        """As :func:`tap.take_over`."""

    def join(self, config: NetworkConfig) -> None:
        """Let a TAP that was kept off its network on it."""

    def look(self, config: t.Mapping[str, t.Any], links: Wires) -> Wire | None:
        """The TAP of a running VM. *links* are the interfaces of the host."""

    def faults(self, config: t.Mapping[str, t.Any], network: NetworkRecord, links: Wires) -> list[str]:
        """What is wrong with the host's side of a running VM's NIC, in words; usually nothing."""

    def tell_ports(self, store: Store, network: NetworkRecord, config: NetworkConfig, ports: t.Sequence[str]) -> None:
        """The published ports of a VM that runs have changed; *ports* are those that lead to this NIC."""

    def mend(self, store: Store, config: NetworkConfig, network: NetworkRecord) -> None:
        """Put it in order."""


def of(item: t.Mapping[str, t.Any]) -> Backend:
    """What carries a network, or a NIC, by its record."""
    if item.get("backend") == CNI:
        from ansible_collections.cocoon.microvm.plugins.module_utils._network.backends import cni

        return cni
    from ansible_collections.cocoon.microvm.plugins.module_utils._network.backends import bridge

    return bridge
