# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""KVM on this host: whether an unprivileged process can run an ordinary guest on it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.cache import cached

KVM_NODE = "/dev/kvm"
MODULES = "/sys/module"
VENDOR_MODULES = ("kvm_intel", "kvm_amd")
CPUINFO = "/proc/cpuinfo"
CPU_KEYS = ("vendor_id", "cpu family", "model", "stepping")
KVM_API_VERSION = 12
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_CREATE_VCPU = 0xAE41


def kvm_problem(paths: Paths, modules: str = MODULES, node: str = KVM_NODE) -> str | None:
    """Why KVM is of no use on this host, or ``None`` if it is of use.

    The node alone proves nothing: it is there on hosts that cannot run an ordinary guest.
    """
    loaded = [name for name in VENDOR_MODULES if os.path.isdir(os.path.join(modules, name))]
    try:
        info = os.stat(node)
    except OSError:
        info = None
    if not loaded:
        there = f"{node} is there, but " if info else ""
        return f"{there}neither kvm_intel nor kvm_amd is loaded"
    if info is None:
        return f"{loaded[0]} is loaded, but there is no {node}"
    if not info.st_mode & stat.S_IWOTH and not (info.st_mode & stat.S_IWGRP and info.st_gid):
        return f"{node} is not open to a group, so no unprivileged process can use it (chown root:kvm, chmod 0660)"
    answer = cached(paths, f"kvm {loaded[0]}", lambda: {"problem": _create_vm(node)})
    return t.cast("str | None", answer["problem"])


def kvm_group(node: str = KVM_NODE) -> tuple[int, ...]:
    """The group that an unprivileged hypervisor needs for KVM, if it needs one."""
    info = os.stat(node)
    return () if info.st_mode & stat.S_IWOTH else (info.st_gid,)


def _create_vm(node: str) -> str | None:
    """Make a VM with one vCPU and drop it again; the reason if that fails."""
    opened: list[int] = []
    try:
        opened.append(os.open(node, os.O_RDWR | os.O_CLOEXEC))
        if fcntl.ioctl(opened[0], KVM_GET_API_VERSION, 0) != KVM_API_VERSION:
            return f"{node} speaks an unknown version of KVM's API"
        opened.append(fcntl.ioctl(opened[0], KVM_CREATE_VM, 0))
        opened.append(fcntl.ioctl(opened[1], KVM_CREATE_VCPU, 0))
    except OSError as exc:
        hint = "; another hypervisor may hold the CPU's virtualisation" if exc.errno == errno.EBUSY else ""
        return f"{node} does not make a VM: {exc.strerror}{hint}"
    finally:
        for fd in reversed(opened):
            os.close(fd)
    return None


def host_vendor() -> str:
    return _cpu().get("vendor_id", "")


def host_cpu() -> str:
    """What a machine is bound to that was saved with all that this host's CPU has; empty if it does not tell."""
    found = _cpu()
    return " ".join(found[key] for key in CPU_KEYS) if found.keys() >= set(CPU_KEYS) else ""


def _cpu() -> dict[str, str]:
    """What the kernel says of the first CPU."""
    found = {}
    with open(CPUINFO, encoding="utf-8") as stream:
        for line in stream:
            if not line.strip():
                break
            key, _colon, value = line.partition(":")
            found[key.strip()] = value.strip()
    return found
