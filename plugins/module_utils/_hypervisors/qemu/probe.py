# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this host's QEMU is: its binary, its version, its machine and a CPU model."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError, UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.cache import Answer
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.kvm import host_vendor
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.qmp import Qmp
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.replies import printable

BINARIES = ("qemu-system-x86_64", "qemu-kvm", "/usr/libexec/qemu-kvm")
SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The oldest release that this driver has been run with.
MINIMUM = (7, 2)
TIMEOUT = 20.0

# All that x86-64-v2 asks for, by name, because `enforce` fails under TCG for the models that have it.
BASELINE = "qemu64-v1,svm=off,cx16=on,lahf-lm=on,popcnt=on,ssse3=on,sse4.1=on,sse4.2=on"
# Under KVM the first of these that the host has in full; a version of a model never changes.
KVM_MODELS = {
    "GenuineIntel": ("Haswell-v4", "Nehalem-v2", "Nehalem-v1"),
    "AuthenticAMD": ("EPYC-v2", "EPYC-v1"),
}


def find_binary() -> str | None:
    """The path of QEMU, or ``None``; RHEL keeps it out of PATH."""
    for name in BINARIES:
        path = shutil.which(name, path=os.environ.get("PATH", "") + ":" + SEARCH)
        if path:
            return os.path.realpath(path)
    return None


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
