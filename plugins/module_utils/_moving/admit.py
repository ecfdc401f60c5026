# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether VMs that would come here fit, all of them together, before the first of them is touched."""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    CocoonError,
    NotFoundError,
    ResourceError,
    UnsupportedError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._moving import common
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import settings
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import is_made
from ansible_collections.cocoon.microvm.plugins.module_utils._types import HIBERNATED, MIB, Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import admission, reserve
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkConfig


@dataclasses.dataclass
class Taken:
    """What the VMs that have been looked at already would take."""

    memory: int = 0
    disk: int = 0
    addresses: set[tuple[str, str]] = dataclasses.field(default_factory=set)


def admit(run: Run, passports: t.Sequence[Record], networks: t.Mapping[str, str]) -> list[Record]:
    """For each VM ``name problems memory reason image``: if it fits, how it would come, if its image is missing.

    :param networks: what a network of the other host is called here, where that is another name.
    """
    taken = Taken()
    return [_judge(run, found, networks, taken) for found in passports]


def room(run: Run) -> Record:
    """What there is for VMs: ``memory disk`` in bytes, not promised yet, ``cpus networks``."""
    if not os.path.isdir(run.store.paths.root):
        raise NotFoundError(
            "nothing has been set up on this host yet", "root_dir", "Run the playbook site on it first."
        )
    info = os.statvfs(run.store.paths.root)
    limit = int(info.f_bavail * info.f_frsize * run.options.disk_overcommit)
    return {
        "memory": max(0, admission.free_memory(run)[0]),
        "disk": max(0, min(common.room(run), limit - admission.promised_disk(run))),
        "cpus": os.cpu_count() or 1,
        "networks": [name for name, _id in run.store.index("network").entries()],
    }


def _judge(run: Run, found: Record, networks: t.Mapping[str, str], taken: Taken) -> Record:
    problems: list[str] = []
    here = run.store.vm_record(found["config"]["name"])
    coming = here is not None and here["id"] == found["id"] and bool(here.get("moved") or here.get("moving"))
    remains = here is not None and here.get("bare") and here["id"] == found["id"]  # of a run that was killed
    if here is not None and not coming and not remains:
        problems.append("there is another VM of that name here" if is_made(here) else "something of that name is here")
    reason = None
    if coming:  # it was admitted when it came, and holds what it needs
        pass
    elif found.get("runs") or found["state"] == HIBERNATED:
        reason = _why_not_with_memory(run, found, networks)
        if reason and found["state"] == HIBERNATED:
            problems.append(f"its saved memory cannot be taken up here: {reason}")
    for check in () if coming else (_networks, _disk, _memory):
        try:
            check(run, found, networks, taken)
        except CocoonError as exc:
            problems.append(str(exc))
    image = run.image(found["image_digest"])
    return {
        "name": found["config"]["name"],
        "problems": problems,
        "memory": bool(found.get("runs") or found["state"] == HIBERNATED) and reason is None,
        "reason": reason or "",
        "image": image is None,
    }


def _networks(run: Run, found: Record, networks: t.Mapping[str, str], _taken: Taken) -> None:
    here = [run.known_network(networks.get(nic["network"], nic["network"])) for nic in found["nics"]]
    settings.check(found["nics"], here)


def _disk(run: Run, found: Record, _networks: t.Mapping[str, str], taken: Taken) -> None:
    wanted = disk_bytes(found)
    admission.check_disk(run, admission.promised_disk(run) + taken.disk, wanted, "storage")
    taken.disk += wanted
    free = common.room(run)
    if found.get("allocated", 0) * 2 > free:  # the archive, and what is in it
        raise ResourceError(f"moving it takes {2 * found['allocated'] // MIB}M of disk, and {free // MIB}M are free")


def _memory(run: Run, found: Record, _networks: t.Mapping[str, str], taken: Taken) -> None:
    if not found.get("runs"):
        return
    size = found["config"]["memory"]
    admission.check_memory(run, size, admission.free_memory(run)[0] - taken.memory)
    taken.memory += admission.promise(run, size)


def disk_bytes(found: Record) -> int:
    """What the VM's disks may come to hold."""
    disks = [*found.get("data_disks", ()), *found.get("detached_disks", ())]
    return int(found["config"]["storage"]) + sum(int(disk["size"]) for disk in disks)


def _why_not_with_memory(run: Run, found: Record, networks: t.Mapping[str, str]) -> str | None:
    """Why a machine cannot go on here from its memory; ``None`` if it can."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._vms.capture import cpu_vendor
    from ansible_collections.cocoon.microvm.plugins.module_utils._vms.resuming import check_blobs

    # Of one that still runs, it will be the hypervisor that runs it which saves it.
    layout = (found.get("resume") or {}).get("layout") or {"version": found.get("version") or "0"}
    here = run.image(found["image_digest"])
    try:
        check_machine(run, found, layout)
        same_nics(run, found, networks)
        if here is not None:
            check_blobs(run, here["id"], found.get("blob_digests"), "its memory", "name")
    except CocoonError as exc:
        return exc.message
    if found["accel"] == "kvm" and found.get("cpu_vendor") not in (None, cpu_vendor()):
        return f"its CPU is by {found['cpu_vendor']}, and the one here by {cpu_vendor()}"
    return None


def check_machine(run: Run, found: Record, layout: Record) -> None:
    """:raises CocoonError: the saved machine cannot be had here."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._vms.resuming import check_driver

    driver = run.driver(found["hypervisor"])
    probe = driver.probe()
    if not probe.available or found["accel"] not in probe.accels:
        raise UnsupportedError(f"{found['hypervisor']} with {found['accel']} does not work here", "hypervisor")
    check_driver(driver, found["pins"], layout)


def same_nics(run: Run, found: Record, networks: t.Mapping[str, str]) -> list[NetworkConfig]:
    """The NICs here, with the MACs and the addresses that they have.

    :raises CocoonError: an address cannot be had here, or an MTU.
    """
    for index, nic in enumerate(found["nics"]):
        network = run.known_network(networks.get(nic["network"], nic["network"]))
        if (network.get("mtu") or 0) != nic.get("mtu", 0) and not network.get("conflist"):
            raise UnsupportedError(f"network '{network['name']}' has another MTU here", f"nics[{index}].network")
    configs = plan_nics(run, found, networks)
    for config, nic in zip(configs, found["nics"]):
        config["mtu"] = nic.get("mtu", 0)
        config["num_queues"] = nic.get("num_queues") or config["num_queues"]
    return configs


def plan_nics(
    run: Run, found: Record, networks: t.Mapping[str, str], without: t.Container[str] = ()
) -> list[NetworkConfig]:
    """The NICs here. *without*: addresses that cannot be had, for which others are chosen."""
    nics = [
        {
            **nic,
            "network": networks.get(nic["network"], nic["network"]),
            "ip": None if nic["ip"] in without else nic["ip"],
        }
        for nic in ({"ip": None, **nic} for nic in found["nics"])
    ]
    return reserve.plan_nics(run, {"id": found["id"], "config": found["config"]}, nics)


def taken_addresses(run: Run, found: Record, networks: t.Mapping[str, str]) -> set[str]:
    """Those of a VM's addresses that its networks cannot give it here."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import attachments

    lost = set()
    for nic in found["nics"]:
        network = run.known_network(networks.get(nic["network"], nic["network"]))
        try:
            if nic.get("ip"):
                attachments.choose_ip(run.store, network, found["id"], nic["ip"])
        except CocoonError:
            lost.add(nic["ip"])
    return lost
