# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways into running VMs, by their hypervisors: apart from the drivers, of which who takes them has no use."""

from __future__ import annotations

import os
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
    """The socket of a running VM's console, see :class:`Endpoints`; ``None``: an older release started it without."""
    if name == "qemu":
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import sockets

        found = sockets.endpoints(run_dir).console
    elif name == "firecracker":
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.firecracker import places

        found = places.endpoints(run_dir).console
    elif name == "cloud-hypervisor":
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.cloud_hypervisor import runstate

        found = runstate.endpoints(run_dir).console
    else:
        return None
    return found if found and os.path.lexists(found) else None
