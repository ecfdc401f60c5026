# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drivers by name, each imported only when it is asked for."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._types import HYPERVISORS

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Driver, Role

# In the order in which `auto` tries them: the one that can do most comes first.
DRIVERS = ("qemu", "cloud-hypervisor", "firecracker")


def driver(name: str, paths: Paths) -> Driver:
    """The driver *name*.

    :raises UnsupportedError: a hypervisor that has no driver.
    :raises InputError: not a hypervisor.
    """
    if name == "qemu":
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.driver import QemuDriver

        return QemuDriver(paths)
    if name == "cloud-hypervisor":
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.cloud_hypervisor.driver import (
            CloudHypervisorDriver,
        )

        return CloudHypervisorDriver(paths)
    if name == "firecracker":
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.firecracker.driver import (
            FirecrackerDriver,
        )

        return FirecrackerDriver(paths)
    if name in HYPERVISORS:
        raise UnsupportedError(f"there is no driver for {name} yet", "hypervisor", _choices())
    raise InputError(f"'{name}' is not a hypervisor", "hypervisor", _choices())


def saved_files(name: str) -> t.Mapping[str, Role]:
    """The files of a saved machine, see :attr:`Driver.saved_files`; none of a hypervisor without a driver."""
    if name == "qemu":
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.files import SAVED

        return SAVED
    if name == "cloud-hypervisor":
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.cloud_hypervisor.files import SAVED

        return SAVED
    if name == "firecracker":
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.firecracker.files import SAVED

        return SAVED
    return {}


def _choices() -> str:
    return f"Available: {', '.join(DRIVERS)}, auto."


def kvm_problem(paths: Paths) -> str | None:
    """Why KVM cannot be used on this host, or ``None``."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import kvm

    return kvm.kvm_problem(paths)
