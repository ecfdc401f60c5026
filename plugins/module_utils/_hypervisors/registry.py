# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drivers by name, each imported only when it is asked for; and what ``auto`` means on this host."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Driver
from ansible_collections.cocoon.microvm.plugins.module_utils._types import HYPERVISORS

# In the order in which `auto` tries them.
DRIVERS = ("qemu",)
ACCELS = ("auto", "kvm", "tcg")


def driver(name: str, paths: Paths) -> Driver:
    """The driver *name*.

    :raises UnsupportedError: a hypervisor that has no driver.
    :raises InputError: not a hypervisor.
    """
    if name == "qemu":
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.driver import QemuDriver

        return QemuDriver(paths)
    if name in HYPERVISORS:
        raise UnsupportedError(f"there is no driver for {name} yet", "hypervisor", _choices())
    raise InputError(f"'{name}' is not a hypervisor", "hypervisor", _choices())


def _choices() -> str:
    return f"Available: {', '.join(DRIVERS)}, auto."


def kvm_usable(paths: Paths) -> bool:
    """Whether this host can run a guest on KVM."""
    return kvm_problem(paths) is None


def kvm_problem(paths: Paths) -> str | None:
    """Why KVM cannot be used on this host, or ``None``."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import kvm

    return kvm.kvm_problem(paths)


def resolve_accel(paths: Paths, name: str, accel: str) -> str:
    """``kvm`` or ``tcg`` for the driver *name*.

    :raises UnsupportedError: the hypervisor is not installed, or the accelerator cannot be used.
    """
    if accel not in ACCELS:
        raise InputError(f"'{accel}' is not an accelerator", "accel", f"Use one of {', '.join(ACCELS)}.")
    found = driver(name, paths).probe()
    if not found.available:
        raise UnsupportedError(
            f"{name} cannot be used here: {found.reason}", "hypervisor", "The role cocoon.microvm.host installs it."
        )
    if accel == "auto":
        return found.accels[0]
    if accel not in found.accels:
        raise UnsupportedError(
            f"{accel} cannot be used here: {kvm_problem(paths) or 'this QEMU lacks it'}",
            "accel",
            f"Use {' or '.join(found.accels)}, or auto.",
        )
    return accel


def missing(name: str, paths: Paths, needs: t.Iterable[str]) -> list[str]:
    """The capabilities among *needs* that the driver *name* lacks."""
    capabilities = driver(name, paths).capabilities
    return [need for need in needs if not getattr(capabilities, need)]


def resolve(paths: Paths, name: str, accel: str, needs: t.Iterable[str] = ()) -> tuple[str, str]:
    """The driver and accelerator for a new VM.

    :param name: a hypervisor or ``auto``: the first one that has all of *needs* and works here.
    :param needs: names of :class:`Capabilities` fields; a mapping names the option behind each.
    :raises UnsupportedError: naming the option that cannot be had.
    """
    options = dict(needs) if isinstance(needs, t.Mapping) else dict.fromkeys(needs, "hypervisor")
    problem: UnsupportedError | None = None
    for candidate in DRIVERS if name == "auto" else (name,):
        lacking = missing(candidate, paths, options)
        if lacking:
            problem = problem or UnsupportedError(f"the driver {candidate} has no {lacking[0]}", options[lacking[0]])
            continue
        try:
            return candidate, resolve_accel(paths, candidate, accel)
        except UnsupportedError as exc:
            problem = problem or exc
    raise problem or UnsupportedError("there is no driver to choose from", "hypervisor")


def resolve_auto(paths: Paths, accel: str, needs: t.Iterable[str] = ()) -> tuple[str, str]:
    """What ``hypervisor: auto`` means here; see :func:`resolve`."""
    return resolve(paths, "auto", accel, needs)
