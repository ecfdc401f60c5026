# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways into running VMs, by their hypervisors: apart from the drivers, of which who takes them has no use."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import UnsupportedError

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Channel


def guest_channel(name: str, run_dir: str) -> Channel:
    """The way to the agent inside a guest.

    :raises UnsupportedError: there is none. :raises FileNotFoundError: the VM does not run.
    """
    if name == "qemu":
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import sockets

        return sockets.guest_channel(run_dir)
    if name in ("cloud-hypervisor", "firecracker"):
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import vsock

        return vsock.channel(vsock.own(run_dir))
    raise UnsupportedError(f"{name} has no way to an agent in the guest", "hypervisor", "Use another one, or ssh.")


def console(name: str, run_dir: str) -> str | None:
    """The socket of a running VM's console, see :class:`Endpoints`."""
    if name == "qemu":
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import sockets

        return sockets.endpoints(run_dir).console
    if name == "firecracker":
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.firecracker import places

        return places.endpoints(run_dir).console
    return None
