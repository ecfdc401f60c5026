# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The doctor: what a host needs, what it lacks, and what to do about it. Pure functions of the facts."""

from __future__ import annotations

import re
import shlex
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import closed_words
from ansible_collections.cocoon.microvm.plugins.module_utils._host import LIBRARIES, Facts
from ansible_collections.cocoon.microvm.plugins.module_utils._types import GIB, MIB, format_size

PASS = "PASS"
FAIL = "FAIL"
WARN = "WARN"

Check = dict[str, t.Any]

MINIMUM_KERNEL = (5, 4)
MINIMUM_PYTHON = (3, 9)
LOW_MEMORY = 512 * MIB
LOW_DISK = 2 * GIB

# Tools, what they are for, where they come from (Debian and Ubuntu; RHEL family), and how bad it is to lack them.
TOOL_PACKAGES = (
    (("qemu-img",), "disk images", "qemu-utils", "qemu-img", FAIL),
    (("mkfs.erofs",), "image layers", "erofs-utils", "erofs-utils", FAIL),
    (("mkfs.ext4", "e2fsck", "resize2fs"), "system and data disks", "e2fsprogs", "e2fsprogs", FAIL),
    (("nft",), "NAT, published ports and isolation", "nftables", "nftables", FAIL),
    (("dnsmasq",), "networks with names or DHCP", "dnsmasq-base", "dnsmasq", WARN),
    (("zstd",), "images that are compressed with it", "zstd", "zstd", WARN),
    (("skopeo",), "images from registries", "skopeo", "skopeo", WARN),
    (("openssl",), "passwords of guests", "openssl", "openssl", WARN),
    (("mformat", "mcopy"), "what cloud images are told at their first boot", "mtools", "mtools", WARN),
)


def check(name: str, status: str, detail: str, remedy: str | None = None) -> Check:
    """One row of the table. *remedy* says how to fix what is not PASS."""
    return {"name": name, "status": status, "detail": detail, "remedy": None if status == PASS else remedy}


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare by."""
    return tuple(int(part) for part in re.findall(r"[0-9]+", version.split("-")[0])[:3])


def check_architecture(facts: Facts) -> Check:
    good = facts.architecture in ("x86_64", "amd64")
    return check("architecture", PASS if good else FAIL, facts.architecture, "Use an x86-64 host.")


def check_kernel(facts: Facts) -> Check:
    good = numbers(facts.kernel) >= MINIMUM_KERNEL
    return check("kernel", PASS if good else FAIL, facts.kernel, "Boot Linux 5.4 or newer.")


def check_python(facts: Facts) -> Check:
    good = numbers(facts.python["version"]) >= MINIMUM_PYTHON
    remedy = "Set ansible_python_interpreter to Python 3.9 or newer."
    return check("python", PASS if good else FAIL, f"{facts.python['version']} ({facts.python['executable']})", remedy)


def check_libraries(facts: Facts) -> list[Check]:
    """The libraries, in the interpreter that runs the modules. Only the last is for some hypervisors alone."""
    found = []
    for module, distribution in LIBRARIES.items():
        version = facts.libraries[module]
        executable = facts.python["executable"]
        remedy = f"Run {executable} -m pip install {distribution}"
        if facts.python["distribution_packages"]:
            remedy = f"Install python3-{distribution}, or run the role cocoon.microvm.host"
        missing = WARN if module == "requests_unixsocket" else FAIL
        detail = version or f"not found by {executable}"
        if missing == WARN:
            remedy += " (only needed for Cloud Hypervisor and Firecracker)"
        found.append(check(distribution, PASS if version else missing, detail, f"{remedy}."))
    return found


def check_hypervisor(facts: Facts) -> Check:
    """One that works is enough."""
    works = [found for found in facts.hypervisors if found["available"]]
    if works:
        return check("hypervisor", PASS, ", ".join(f"{found['name']} {found['version']}" for found in works))
    served = [found for found in facts.hypervisors if found.get("remedy")]
    reasons = [f"{found['name']}: {found['reason']}" for found in served]
    remedy = next((found["remedy"] for found in served), "Run the role cocoon.microvm.host.")
    return check("hypervisor", FAIL, "; ".join(reasons) or "none", remedy)


def check_uefi(facts: Facts) -> Check:
    """Without it disk images boot by BIOS, if they can."""
    found = any("uefi" in hypervisor.get("firmware", ()) for hypervisor in facts.hypervisors)
    detail = "installed" if found else "not installed; disks that boot by UEFI alone do not boot"
    remedies = [hypervisor["uefi_remedy"] for hypervisor in facts.hypervisors if hypervisor.get("uefi_remedy")]
    remedy = next(iter(remedies), "Run the role cocoon.microvm.host.")
    return check("uefi", PASS if found else WARN, detail, remedy)


def check_kvm(facts: Facts) -> Check:
    if facts.kvm["usable"]:
        return check("kvm", PASS, "works")
    remedy = f"Enable virtualisation in the firmware, or nested virtualisation of the host ({facts.kvm['reason']})."
    return check("kvm", WARN, "not usable; VMs are emulated (TCG), slowly", remedy)


def check_tools(facts: Facts) -> list[Check]:
    found = []
    for names, purpose, debian, redhat, status in TOOL_PACKAGES:
        missing = [name for name in names if not facts.tools.get(name)]
        if missing:
            detail = f"{', '.join(missing)} not found; needed for {purpose}"
            remedy = f"Install {debian} (RHEL family: {redhat}), or run the role cocoon.microvm.host."
            found.append(check(names[0], status, detail, remedy))
        else:
            tool = facts.tools[names[0]] or {}
            found.append(check(names[0], PASS, tool.get("version") or "found"))
    return found


def check_nftables(facts: Facts) -> Check:
    if facts.nft_error:
        return check(
            "nftables", FAIL, facts.nft_error, "Load the kernel module nf_tables, and give root CAP_NET_ADMIN."
        )
    return check("nftables", PASS, "works" if facts.tools.get("nft") else "not asked")


def check_plugins(facts: Facts) -> Check:
    """Only networks of conflists need any."""
    if not facts.plugins:
        return check("cni", PASS, "no network lacks its conflist or a plugin of it")
    remedy = "Install containernetworking-plugins, put the conflist back, or remove the network."
    return check("cni", WARN, "; ".join(f"{name}: {why}" for name, why in sorted(facts.plugins.items())), remedy)


def check_forwarding(facts: Facts) -> Check:
    """An accept of ours does not help against a drop elsewhere: every chain of a hook has its say."""
    if not facts.firewalls:
        return check("forwarding", PASS, "no other firewall drops it")
    shut = [wall for wall in facts.firewalls if wall.open]
    detail = ", ".join(f"{wall.name} ({wall.place})" for wall in shut or facts.firewalls)
    if not shut:
        return check("forwarding", PASS, f"let through by {detail}")
    commands = "; ".join(" ".join(map(shlex.quote, words)) for wall in shut for words in wall.open)
    remedy = (
        "Guests with NAT do not reach the outside. Let the networks' bridges pass there, as the role"
        f" cocoon.microvm.host does with host_firewall: open, by: {commands}"
    )
    return check("forwarding", WARN, f"dropped by {detail}", remedy)


def check_devices(facts: Facts) -> list[Check]:
    tun = check("tun", PASS if facts.tun else FAIL, "/dev/net/tun", "Load the kernel module tun (modprobe tun).")
    detail = "in the kernel" if facts.bridge else "cannot tell whether the kernel has it"
    remedy = "Load the kernel module bridge, if networks cannot be created."
    return [tun, check("bridge", PASS if facts.bridge else WARN, detail, remedy)]


def check_memory(facts: Facts) -> Check:
    available = facts.memory["available"]
    detail = f"{available // MIB} of {facts.memory['total'] // MIB} MiB available"
    remedy = f"Have {format_size(LOW_MEMORY)} available, or few VMs fit."
    return check("memory", PASS if available >= LOW_MEMORY else WARN, detail, remedy)


def check_disk(facts: Facts) -> Check:
    free = facts.disk["free"]
    detail = f"{free / GIB:.1f} of {facts.disk['total'] / GIB:.1f} GiB free"
    return check("disk", PASS if free >= LOW_DISK else WARN, detail, "Free some space, or choose another root_dir.")


def check_directories(facts: Facts) -> Check:
    """VMs run as users of their own, who must be able to pass."""
    if not facts.closed:
        return check("directories", PASS, "VMs can reach theirs")
    words = [closed_words(option, path) for option, path in facts.closed.items()]
    return check("directories", FAIL, "; ".join(detail for detail, _remedy in words), words[0][1])


def check_systemd(facts: Facts) -> Check:
    detail = "VMs run in scopes of their own" if facts.systemd else "not there; VMs are plain processes"
    return check("systemd", PASS, detail)


def check_store(facts: Facts) -> Check:
    store = facts.store
    if store.get("error"):
        return check("store", FAIL, store["error"], "Restore store.json, or use another root_dir.")
    if not store["exists"]:
        return check("store", PASS, f"not made yet ({store['root_dir']})")
    counts = ", ".join(f"{count} {noun}" for noun, count in store["counts"].items())
    return check("store", PASS, f"layout {store['layout']}, {counts}")


def check_guests(facts: Facts) -> Check:
    """A guest that its hypervisor has stopped looks as if it ran."""
    if not facts.halted:
        return check("guests", PASS, "none stands still that should run")
    detail = ", ".join(f"{name} ({halted})" for name, halted in sorted(facts.halted.items()))
    remedy = (
        "Free space on the host, if it is an io-error; then state: started lets them go on. After a panic of its kernel"
        " a guest boots by itself; state: restarted boots one that does not."
    )
    return check("guests", WARN, f"stand still: {detail}", remedy)


def check_documents(facts: Facts) -> Check:
    if not facts.damaged:
        return check("documents", PASS, "can all be read")
    detail = "; ".join(facts.damaged[:10]) + ("; …" if len(facts.damaged) > 10 else "")
    remedy = "Put each back from a backup, or remove what it is of by its name, with state: absent (docs/recovery.md)."
    return check("documents", FAIL, f"{len(facts.damaged)} damaged: {detail}", remedy)


def check_orphans(facts: Facts) -> Check:
    """What a folder that was removed by hand has left."""
    if not facts.orphans:
        return check("leftovers", PASS, "nothing is held for nobody")
    detail = "; ".join(f"{holder}: {', '.join(words)}" for holder, words in facts.orphans.items())
    remedy = "A prune gives it back: cocoon_prune in the inventory, or prune: true of cocoon_vms."
    return check("leftovers", WARN, f"held for nobody: {detail}"[:1000], remedy)


def check_default_kernel(facts: Facts) -> Check:
    """Only container images need it."""
    found = facts.default_kernel
    detail = f"of {found['updated_at'][:10]}" if found else "not there; images without a kernel do not boot"
    remedy = "Run the role cocoon.microvm.host, if you want VMs of container images."
    return check("default kernel", PASS if found else WARN, detail, remedy)


def check_uids(facts: Facts) -> Check:
    if not facts.uid_overlaps:
        return check("uids", PASS, "no other range meets the store's")
    remedy = "Give those users another range of subordinate ids, or remove the store and have it made again."
    return check("uids", WARN, f"the store's range meets {', '.join(facts.uid_overlaps)}", remedy)


def examine(facts: Facts) -> list[Check]:
    """All the checks, in the order of the table."""
    return [
        check_architecture(facts),
        check_kernel(facts),
        check_python(facts),
        *check_libraries(facts),
        check_hypervisor(facts),
        check_kvm(facts),
        check_uefi(facts),
        *check_tools(facts),
        check_nftables(facts),
        check_plugins(facts),
        check_forwarding(facts),
        *check_devices(facts),
        check_memory(facts),
        check_disk(facts),
        check_directories(facts),
        check_systemd(facts),
        check_uids(facts),
        check_store(facts),
        check_documents(facts),
        check_default_kernel(facts),
        check_guests(facts),
        check_orphans(facts),
    ]
