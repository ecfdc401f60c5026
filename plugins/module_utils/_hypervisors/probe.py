# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this host can run: the QEMU binary, its version, its machine, a CPU model, and KVM.

Asking costs a process or two, so answers are kept under run_dir (gone at reboot, as they should be),
each under a key made of what it depends on.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import stat
import subprocess
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError, UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qmp import Qmp, printable
from ansible_collections.cocoon.microvm.plugins.module_utils._process import boot_id
from ansible_collections.cocoon.microvm.plugins.module_utils._state import hashed, read_json, write_json

BINARIES = ("qemu-system-x86_64", "qemu-kvm", "/usr/libexec/qemu-kvm")
SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The oldest release that this driver has been run with.
MINIMUM = (7, 2)
TIMEOUT = 20.0

KVM_NODE = "/dev/kvm"
MODULES = "/sys/module"
VENDOR_MODULES = ("kvm_intel", "kvm_amd")
KVM_API_VERSION = 12
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_CREATE_VCPU = 0xAE41

# All that x86-64-v2 asks for, by name, because `enforce` fails under TCG for the models that have it.
BASELINE = "qemu64-v1,svm=off,cx16=on,lahf-lm=on,popcnt=on,ssse3=on,sse4.1=on,sse4.2=on"
# Under KVM the first of these that the host has in full; a version of a model never changes.
KVM_MODELS = {
    "GenuineIntel": ("Haswell-v4", "Nehalem-v2", "Nehalem-v1"),
    "AuthenticAMD": ("EPYC-v2", "EPYC-v1"),
}

Answer = dict[str, t.Any]


def find_binary() -> str | None:
    """The path of QEMU, or ``None``; RHEL keeps it out of PATH."""
    for name in BINARIES:
        path = shutil.which(name, path=os.environ.get("PATH", "") + ":" + SEARCH)
        if path:
            return os.path.realpath(path)
    return None


def cached(paths: Paths, key: str, ask: t.Callable[[], Answer]) -> Answer:
    """The answer kept under *key*, else what *ask* gives."""
    directory = os.path.join(paths.run, "cache")
    path = os.path.join(directory, hashed(f"{boot_id()} {key}")[:32] + ".json")
    found = read_json(path) if os.path.isdir(directory) else None
    if found is None:
        found = ask()
        # Where there is no store yet (check mode, a first look) nothing is created for our sake, and a
        # problem is not kept: it may be mended at any time.
        if not found.get("problem") and os.path.isdir(paths.run) and os.access(paths.run, os.W_OK):
            os.makedirs(directory, 0o700, exist_ok=True)
            write_json(path, found)
    return found


def binary_key(binary: str) -> str:
    info = os.stat(binary)
    return f"{binary} {info.st_mtime_ns} {info.st_size} {info.st_ino}"


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
    with open("/proc/cpuinfo", encoding="utf-8") as stream:
        for line in stream:
            if line.startswith("vendor_id"):
                return line.partition(":")[2].strip()
    return ""


class _Probe:
    """A QEMU without a guest, answering questions on a socket pair."""

    def __init__(self, binary: str, *arguments: str) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(  # pylint: disable=consider-using-with,ansible-bad-function  # a dialogue
                [
                    binary,
                    *("-nodefaults", "-no-user-config", "-display", "none", "-S", *arguments),
                    *("-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                env={"PATH": SEARCH, "LC_ALL": "C"},
            )
        self.qmp = Qmp(ours)

    def __enter__(self) -> Qmp:
        try:
            self.qmp.negotiate(TIMEOUT)
        except (HypervisorError, TimeoutError) as exc:
            self.__exit__()
            words = self.errors.decode(errors="replace").strip().splitlines()[-3:]
            raise HypervisorError(" | ".join(words) or str(exc) or "no answer") from exc
        return self.qmp

    def __exit__(self, *_exc: object) -> None:
        self.qmp.close()
        self.process.kill()
        self.errors = self.process.communicate()[1]


def inspect(binary: str) -> Answer:
    """``version`` of *binary*, the ``machine`` behind the name q35, all ``machines``, and ``rom``.

    ``rom`` says whether it can map a file that it may only read as memory that the guest may write.
    """
    with _Probe(binary, "-M", "none") as qmp:
        machines = qmp.execute("query-machines")
        memory = qmp.execute("qom-list-properties", {"typename": "memory-backend-file"})
        return {
            "version": qmp.version(),
            "machine": pick_machine(machines),
            "machines": sorted(str(machine["name"]) for machine in machines),
            "rom": any(entry.get("name") == "rom" for entry in memory),
        }


def pick_machine(machines: list[Answer]) -> str:
    """The versioned machine that q35 stands for; distributions name theirs differently.

    :raises UnsupportedError: none of them is a q35.
    """
    for machine in machines:
        if machine.get("alias") == "q35":
            return str(machine["name"])
    named = sorted(
        (str(machine["name"]) for machine in machines if "q35-" in str(machine["name"])),
        key=lambda name: [int(number) for number in re.findall(r"[0-9]+", name)],
    )
    if not named:
        raise UnsupportedError("this QEMU has no q35 machine", "hypervisor", "Install the full x86 system emulator.")
    return named[-1]


def pick_model(definitions: list[Answer], vendor: str) -> str:
    """The best pinned CPU model that KVM on this host gives in full."""
    whole = {entry.get("name") for entry in definitions if entry.get("unavailable-features") == []}
    for name in KVM_MODELS.get(vendor, ()):
        if name in whole:
            return name
    return BASELINE


def choose_model(binary: str, machine: str, accel: str) -> Answer:
    """``cpu_model`` for *accel*, proven by a machine made with it; else the ``problem``."""
    problem = ""
    try:
        for model in _candidates(binary, accel):
            try:
                with _Probe(binary, "-M", machine, "-accel", accel, "-cpu", f"{model},enforce=on", "-m", "16") as qmp:
                    qmp.execute("query-status")
                return {"cpu_model": model}
            except HypervisorError as exc:
                problem = str(exc)
    except HypervisorError as exc:
        problem = str(exc)
    return {"problem": printable(problem)}


def _candidates(binary: str, accel: str) -> list[str]:
    """CPU models to try, the best one first."""
    if accel != "kvm":
        return [BASELINE]
    with _Probe(binary, "-M", "none", "-accel", accel) as qmp:
        return [pick_model(qmp.execute("query-cpu-definitions"), host_vendor()), BASELINE]


def version_tuple(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def too_old(version: str) -> str | None:
    """Why *version* is not served, or ``None``."""
    if version_tuple(version) >= MINIMUM:
        return None
    return f"QEMU {version} is older than {'.'.join(map(str, MINIMUM))}, the oldest release that is supported"
