# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The planner: each row of the change table, each state, each permission, and the laws that hold for all."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    ChangeRefusedError,
    CocoonError,
    InputError,
    NotFoundError,
    UnsupportedError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Limits
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import changes as table
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import steps as kinds
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.changes import disk_fields
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.definition import normalise
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import (
    HALTS,
    Context,
    Observed,
    changed_login,
    digest_login,
    login_digests,
    secret_digests,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import (
    OPTIONS,
    PLAIN,
    fields_of,
    with_values,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.prune import plan_prune, prune_definition
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.settings import asked
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.vm import compare_once, needs, plan_vm
from ansible_collections.cocoon.microvm.plugins.module_utils._types import GIB, MIB

PASSWORD = "hunter2-and-more"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBmqYFSlcXefdyXqNU+fZmC7wOFCNTX23nukQzizt6Lk someone@example"

UP = Observed(running=True)
DOWN = Observed()
HALTED = Observed(running=True, halted="io-error")


@dataclasses.dataclass(frozen=True)
class Caps:
    uefi: bool = False
    qcow2: bool = True
    hotplug_disks: bool = True
    hotplug_nics: bool = True
    live_disk_resize: bool = True
    live_disk_limits: bool = True
    read_write_limits: bool = True
    balloon: bool = True
    watchdog: bool = True
    guest_data: bool = True
    data_device: bool = True
    ram_file: bool = True
    agent: bool = True
    live_cpus: bool = True


@dataclasses.dataclass(frozen=True)
class Probe:
    available: bool = True
    reason: str | None = None
    accels: tuple = ("kvm", "tcg")
    firmware: tuple = ("uefi", "bios")
    remedy: str | None = None
    uefi_remedy: str | None = "Install ovmf."


def image(name, hex_id, disk=None, kernel=True, features=("user", "password", "ssh_keys")):
    return {
        "id": f"sha256:{hex_id}",
        "digest": f"sha256:{hex_id}",
        "name": name,
        "type": "cloudimg" if disk else "oci",
        "boot": {"kernel_path": "/k", "initrd_path": "/i"} if kernel and not disk else None,
        "disk": disk,
        "features": list(features),
    }


IMAGES = {
    "tiny": image("tiny", "aa"),
    "tiny-alias": image("tiny-alias", "aa"),
    "debian": image("debian", "bb"),
    "plain": image("plain", "cc", features=()),
    "no-kernel": image("no-kernel", "dd", kernel=False),
    "cloud": image("cloud", "ee", disk={"hex": "ee", "format": "qcow2", "virtual_size": 3 * GIB}, features=()),
    "big": image("big", "ff", disk={"hex": "ff", "format": "raw", "virtual_size": 20 * GIB}, features=()),
}
IMAGES.update({record["digest"]: record for record in list(IMAGES.values())})
NETWORKS = {
    "lab": {"name": "lab", "subnet": "10.1.0.0/24", "gateway": "10.1.0.1"},
    "dmz": {"name": "dmz", "subnet": "10.2.0.0/24", "gateway": "10.2.0.1"},
    "flat": {"name": "flat", "subnet": None, "gateway": None},
    "dual": {"name": "dual", "subnet": "10.6.0.0/24", "gateway": "10.6.0.1", "subnet6": "fd00:1::/64"},
}


class Host:
    """Fills a context with what ``needs`` asks for, so that a look-up beyond it fails the test."""

    def __init__(self, caps=None, probes=None, auto=("qemu",), images=None, limits=None):
        self.caps = caps or {
            "qemu": Caps(),
            "firecracker": Caps(qcow2=False, guest_data=False, data_device=False, hotplug_disks=False),
        }
        self.probes = probes or {name: Probe() for name in self.caps}
        self.auto = auto
        self.limits = limits or {}
        self.images = IMAGES if images is None else images

    def context(self, record, definition, observed):
        wanted = needs(record, definition, observed)
        drivers = {*wanted.drivers, *(self.auto if "auto" in wanted.drivers else ())}
        return Context(
            images={name: self.images.get(name) for name in wanted.images},
            networks={name: NETWORKS.get(name) for name in wanted.networks},
            probes={name: self.probes[name] for name in drivers if name in self.probes},
            capabilities={name: self.caps[name] for name in drivers if name in self.caps},
            limits=self.limits,
            auto=self.auto if "auto" in wanted.drivers else (),
            owner_default="store-1",
        )

    def plan(self, record, definition, observed=DOWN):
        definition = normalise({"name": "web1", **definition})
        before = copy.deepcopy(record)
        plan = plan_vm(record, observed, definition, self.context(record, definition, observed))
        compared = compare_once(record, definition)
        assert plan == plan_vm(record, observed, definition, self.context(record, definition, observed), compared)
        assert record == before, "the planner changed its input"
        return plan


HOST = Host()
DEAF = Host(caps={"qemu": Caps(agent=False)})


def made(state="running", **changes):
    """A record of a VM that is there; keys of ``config`` may be given bare."""
    record = {
        "id": "a" * 26,
        "hypervisor": "qemu",
        "state": state,
        "config": {
            "name": "web1",
            "cpu": 2,
            "memory": GIB,
            "storage": 10 * GIB,
            "queue_size": 512,
            "disk_queue_size": 512,
            "image": "tiny",
            "network": "lab",
            "no_direct_io": False,
            "windows": False,
        },
        "network_configs": [
            {"network_name": "lab", "mac": "02:00:00:00:00:01", "network": {"ip": "10.1.0.2", "prefix": 24}}
        ],
        "image_type": "oci",
        "image_id": "sha256:aa",
        "image_digest": "sha256:aa",
        "owner": "store-1",
        "labels": {"tier": "web"},
        "accel": "kvm",
        "kernel_args": "",
        "watchdog": True,
        "cpu_max": 0,
        "balloon": None,
        "ports": ["8080:80"],
        "data_disks": [{"name": "data1", "size": GIB, "fstype": "ext4"}],
        "detached_disks": [],
        "login": login_digests({"user": "admin", "password": PASSWORD, "ssh_keys": [KEY]}, "salt"),
    }
    for key, value in changes.items():
        (record["config"] if key in record["config"] else record)[key] = value
    return record


# What describes made() in full.
SAME = {
    "image": "tiny",
    "cpu": 2,
    "memory": "1G",
    "storage": "10G",
    "queue_size": 512,
    "disk_queue_size": 512,
    "network": "lab",
    "nics": [{"mac": "02:00:00:00:00:01", "ip": "10.1.0.2"}],
    "ports": ["8080:80/tcp"],
    "data_disks": [{"name": "data1", "size": "1G", "fstype": "ext4"}],
    "user": "admin",
    "password": PASSWORD,
    "ssh_keys": [KEY],
    "kernel_args": "",
    "labels": {"tier": "web"},
    "owner": "store-1",
    "hypervisor": "auto",
    "accel": "auto",
    "no_direct_io": False,
    "windows": False,
    "balloon": "off",
    "watchdog": True,
}


def steps(plan):
    return [step.name for step in plan.steps]


RANKS = {kind.name: kind.rank for kind in vars(kinds).values() if isinstance(kind, type) and hasattr(kind, "name")}


def in_order(names):
    return sorted(names, key=RANKS.__getitem__)


# ----------------------------------------------------------------- a model of the executor


def _nic_configs(nics):
    chosen = {"lab": "10.1.0.77", "dmz": "10.2.0.77", "flat": None, "dual": "10.6.0.77"}
    return [
        {
            "network_name": nic["network"],
            "mac": nic["mac"] or "02:00:00:00:00:77",
            "network": {"ip": nic["ip"] or chosen[nic["network"]]},
            **asked(nic),
        }
        for nic in nics
    ]


def _take(record, wanted):
    config, beside = fields_of(wanted, [row.name for row in OPTIONS.values() if row.at])
    record.update(beside, config={"name": wanted["name"], **config})
    record.update({key: wanted[key] for key in ("image_id", "image_digest")})
    record["login"] = login_digests(wanted, "pepper")
    record["network_configs"] = _nic_configs(wanted["nics"])
    record["image_type"] = IMAGES[wanted["image"]]["type"]


def _disks(record, key):
    return {disk["name"]: disk for disk in record.get(key) or ()}


def _apply_step(record, running, step):
    record = copy.deepcopy(record)
    attached, detached = (_disks(record, "data_disks"), _disks(record, "detached_disks")) if record else ({}, {})
    if isinstance(step, kinds.Create):
        record = record or {"id": "b" * 26}
        _take(record, step.wanted)
        for disk in step.wanted["data_disks"]:
            attached[disk["name"]] = {key: disk[key] for key in ("name", "size", "fstype")}
            detached.pop(disk["name"], None)
        record.update(state="created")
        record.pop("bare", None), record.pop("phase", None)
    elif isinstance(step, kinds.Rebuild):
        assert not running, "a rebuild of a running VM"
        _take(record, step.wanted)
        record.pop("phase", None)
    elif isinstance(step, kinds.Start):
        assert step.memory == record["config"]["memory"]
        record.update(state="running", restarting=False)
        running = True
    elif isinstance(step, kinds.Stop):
        record.update(state="stopped", restarting=step.restart)
        running = False
    elif isinstance(step, kinds.Configure):
        record = with_values(record, step.values)
    elif isinstance(step, kinds.SetLogin):
        assert not (running and step.told), "a guest hears of it at a start"
        record["login"] = changed_login(record["login"], step.values, "pepper")
    elif isinstance(step, kinds.SetSecretEnv):
        record["secret_env"] = secret_digests(step.values, "pepper")
    elif isinstance(step, kinds.GrowSystemDisk):
        assert not running, "the system disk grows offline"
        assert step.size > record["config"]["storage"]
        record["config"]["storage"] = step.size
    elif isinstance(step, kinds.GrowDataDisk):
        assert step.size > attached[step.disk]["size"]
        attached[step.disk]["size"] = step.size
    elif isinstance(step, kinds.AddDisk):
        assert step.disk["name"] not in attached
        assert step.disk["reattach"] == (step.disk["name"] in detached)
        attached[step.disk["name"]] = disk_fields(step.disk)
        detached.pop(step.disk["name"], None)
    elif isinstance(step, kinds.SetDiskLimits):
        (attached[step.disk] if step.disk else record)["limits"] = step.limits
    elif isinstance(step, kinds.DropDisk):
        disk = attached.pop(step.disk, None) or detached.pop(step.disk)
        if not step.delete:
            detached[step.disk] = disk
    elif isinstance(step, kinds.SetBalloon):
        assert running
        record["balloon"] = step.balloon
    elif isinstance(step, kinds.SetCpus):
        assert running and step.cpu <= record["cpu_max"]
        record["config"]["cpu"] = step.cpu
    elif isinstance(step, kinds.SetNics):
        assert not running, "NICs change offline"
        record["network_configs"] = _nic_configs(step.nics)
        record["config"]["network"] = step.network
        record["ports"] = record["ports"] if step.ports is None else step.ports
        assert record["network_configs"] or not record["ports"], "ports without a NIC"
    elif isinstance(step, kinds.SetPorts):
        record["ports"] = step.ports
    elif isinstance(step, kinds.Remove):
        assert not running, "a running VM is removed"
        kept = {} if step.delete_data_disks else {**detached, **attached}
        if not kept:
            return None, False
        return {**record, "state": "removed", "data_disks": [], "detached_disks": list(kept.values())}, False
    else:
        assert isinstance(step, kinds.Resume)
    record["data_disks"], record["detached_disks"] = list(attached.values()), list(detached.values())
    return record, running


def apply(record, observed, plan):
    """What the executor makes of a plan: (record, observed)."""
    running = observed.running
    for step in plan.steps:
        record, running = _apply_step(record, running, step)
    paused = observed.paused and running and not {"stop", "start", "resume"} & set(steps(plan))
    return record, Observed(running, paused)


# ------------------------------------------------------------------------- nothing to do


@pytest.mark.parametrize(
    "record, observed, state",
    [
        (made(), UP, "present"),
        (made(), UP, "started"),
        (made("stopped"), DOWN, "present"),
        (made("stopped"), DOWN, "stopped"),
        (made("created"), DOWN, "stopped"),
        (made("error"), DOWN, "stopped"),
        (made(), DOWN, "present"),
    ],
)
@pytest.mark.parametrize("definition", [{}, SAME, {**SAME, "recreate": True, "allow_restart": True, "force": True}])
def test_nothing_differs(record, observed, state, definition):
    plan = HOST.plan(record, {**definition, "state": state}, observed)
    assert (steps(plan), plan.changed, plan.action, plan.changes) == ([], False, "none", ())
    assert plan.diff == {"before": {}, "after": {}}
    assert not plan.warnings


def test_a_run_without_change_asks_for_the_name_of_the_image_and_nothing_else():
    definition = normalise({"name": "web1", "state": "started", **SAME})
    wanted = needs(made(), definition, UP)
    assert (wanted.images, wanted.networks, wanted.drivers, wanted.driver) == (("tiny",), (), (), False)


@pytest.mark.parametrize("option", sorted(SAME))
def test_omitted_options_are_not_compared(option):
    definition = {key: value for key, value in SAME.items() if key != option}
    assert not HOST.plan(made(), {**definition, "state": "started"}, UP).changed


def test_absent_of_what_is_not_there():
    assert HOST.plan(None, {"state": "absent"}).action == "none"


# ------------------------------------------------------------------- the rows of the table

DISK_VM = {
    "image": "cloud",
    "image_type": "cloudimg",
    "image_id": "sha256:ee",
    "image_digest": "sha256:ee",
    "firmware": "bios",
}

DISK = {"name": "data1", "size": "1G", "fstype": "ext4"}
NEW_DISK = {"name": "new", "size": "64M"}
OLD_DISK = {"name": "old", "size": 64 * MIB, "fstype": "ext4"}
CONTAINER_VM = {"env": {"A": "1"}, "secret_env": secret_digests({"PASSWORD": "old", "SAME": "x"}, "salt")}
NO_HOTPLUG = Caps(hotplug_disks=False, live_disk_resize=False, live_disk_limits=False)

# (what, record changes, definition, how on a running VM, steps besides the power)
ROWS = [
    ("cpu", {}, {"cpu": 4}, "restart", ["configure"]),
    ("cpu beyond cpu_max", {"cpu_max": 4}, {"cpu": 6, "cpu_max": 6}, "restart", ["configure"]),
    ("cpu within cpu_max", {"cpu_max": 4}, {"cpu": 4}, "live", ["set_cpus"]),
    ("fewer cpu", {"cpu_max": 4}, {"cpu": 1}, "restart", ["configure"]),
    ("cpu_max", {}, {"cpu_max": 4}, "restart", ["configure"]),
    ("memory", {}, {"memory": "2G"}, "restart", ["configure"]),
    ("memory down", {}, {"memory": "512M"}, "restart", ["configure"]),
    ("queue_size", {}, {"queue_size": 256}, "restart", ["configure"]),
    ("disk_queue_size", {}, {"disk_queue_size": 128}, "restart", ["configure"]),
    ("no_direct_io", {}, {"no_direct_io": True}, "restart", ["configure"]),
    ("kernel_args", {}, {"kernel_args": "quiet"}, "restart", ["configure"]),
    ("entrypoint", CONTAINER_VM, {"entrypoint": ["/bin/app"]}, "restart", ["configure"]),
    ("command", CONTAINER_VM, {"command": "serve --port 80"}, "restart", ["configure"]),
    ("env", CONTAINER_VM, {"env": {"A": "2"}}, "restart", ["configure"]),
    ("env gone", CONTAINER_VM, {"env": {}}, "restart", ["configure"]),
    ("secret_env", CONTAINER_VM, {"secret_env": {"PASSWORD": "new"}}, "restart", ["set_secret_env"]),
    ("secret_env gone", CONTAINER_VM, {"secret_env": {}}, "restart", ["set_secret_env"]),
    ("working_dir", CONTAINER_VM, {"working_dir": "/srv"}, "restart", ["configure"]),
    ("hostname", {}, {"hostname": "db.example"}, "restart", ["configure"]),
    ("hostname of a disk image", DISK_VM, {"hostname": "db"}, "rebuild", ["rebuild"]),
    ("watchdog", {}, {"watchdog": False}, "restart", ["configure"]),
    ("memory_backing", {}, {"memory_backing": "disk"}, "restart", ["configure"]),
    ("snapshot", {}, {"snapshot": "warm"}, "refused", []),
    ("accel", {}, {"accel": "tcg"}, "restart", ["configure"]),
    ("firmware", DISK_VM, {"firmware": "uefi"}, "restart", ["configure"]),
    ("restore_mode", {}, {"restore_mode": "copy"}, "live", ["configure"]),
    ("restore_mode back", {"restore_mode": "on_demand"}, {"restore_mode": "copy"}, "live", ["configure"]),
    ("balloon on", {}, {"balloon": "256M"}, "restart", ["configure"]),
    ("balloon off", {"balloon": 256 * MIB}, {"balloon": "off"}, "restart", ["configure"]),
    ("balloon size", {"balloon": 256 * MIB}, {"balloon": "128M"}, "live", ["set_balloon"]),
    ("limits", {}, {"limits": {"total": {"rate": "10M"}}}, "live", ["set_disk_limits"]),
    ("limits gone", {"limits": {"total": {"iops": 9}}}, {"limits": {}}, "live", ["set_disk_limits"]),
    ("disk limits", {}, {"data_disks": [{**DISK, "limits": {"read": {"iops": 9}}}]}, "live", ["set_disk_limits"]),
    ("storage grows", {}, {"storage": "12G"}, "restart", ["grow_system_disk"]),
    ("storage shrinks", {}, {"storage": "5G"}, "refused", []),
    ("labels", {}, {"labels": {"tier": "db"}}, "live", ["configure"]),
    ("labels gone", {}, {"labels": {}}, "live", ["configure"]),
    ("owner", {}, {"owner": "other"}, "refused", []),
    ("owner by force", {}, {"owner": "other", "force": True}, "live", ["configure"]),
    ("ports", {}, {"ports": ["8081:80"]}, "live", ["set_ports"]),
    ("ports gone", {}, {"ports": []}, "live", ["set_ports"]),
    ("network", {}, {"network": "dmz"}, "restart", ["set_nics"]),
    ("nic mac", {}, {"nics": [{"mac": "02:00:00:00:00:09"}]}, "restart", ["set_nics"]),
    ("nic ip", {}, {"nics": [{"ip": "10.1.0.9"}]}, "restart", ["set_nics"]),
    ("nic network", {}, {"nics": [{"network": "dmz"}]}, "restart", ["set_nics"]),
    ("nic added", {}, {"nics": [{}, {"network": "flat"}]}, "restart", ["set_nics"]),
    ("nic metric", {}, {"nics": [{"metric": 5}]}, "restart", ["set_nics"]),
    ("nic ip6", {}, {"nics": [{"network": "dual", "ip6": "fd00:1::5"}]}, "restart", ["set_nics"]),
    ("nic limits", {}, {"nics": [{"limits": {"tx": {"rate": "10M"}}}]}, "restart", ["set_nics"]),
    ("nic route", {}, {"nics": [{"routes": [{"to": "10.9.0.0/16"}]}]}, "restart", ["set_nics"]),
    ("nic no way out", {}, {"nics": [{"default_route": False}]}, "restart", ["set_nics"]),
    ("nics gone", {}, {"nics": [], "ports": []}, "restart", ["set_nics"]),
    ("nics and ports", {}, {"nics": [{"network": "dmz"}], "ports": ["81:80"]}, "restart", ["set_nics"]),
    ("disk added", {}, {"data_disks": [DISK, NEW_DISK]}, "live", ["add_disk"]),
    ("disk dropped", {}, {"data_disks": []}, "restart", ["drop_disk"]),
    ("disk unplugged", {}, {"data_disks": [{**DISK, "attached": False}]}, "live", ["drop_disk"]),
    ("disk deleted", {}, {"data_disks": [], "force": True}, "live", ["drop_disk"]),
    ("disk grows", {}, {"data_disks": [{**DISK, "size": "2G"}]}, "live", ["grow_data_disk"]),
    ("disk shrinks", {}, {"data_disks": [{**DISK, "size": "512M"}]}, "refused", []),
    ("disk fstype", {}, {"data_disks": [{**DISK, "fstype": "none"}]}, "refused", []),
    ("disk back", {"detached_disks": [OLD_DISK]}, {"data_disks": [DISK, {"name": "old"}]}, "live", ["add_disk"]),
    (
        "disk back smaller",
        {"detached_disks": [OLD_DISK]},
        {"data_disks": [DISK, {"name": "old", "size": "32M"}]},
        "refused",
        [],
    ),
    ("kept disk deleted", {"detached_disks": [OLD_DISK]}, {"data_disks": [DISK], "force": True}, "live", ["drop_disk"]),
    ("image", {}, {"image": "debian"}, "rebuild", ["rebuild"]),
    ("image, other name", {}, {"image": "tiny-alias"}, "live", ["configure"]),
    ("image, by digest", {}, {"image": "sha256:bb"}, "rebuild", ["rebuild"]),
    ("windows", DISK_VM, {"windows": True, "image": "big", "storage": "20G"}, "rebuild", ["rebuild"]),
    ("hypervisor", {}, {"hypervisor": "firecracker", "user": "admin"}, "rebuild", ["rebuild"]),
]
# For rows whose rebuild the usual driver could not do.
ABLE = Host(caps={"qemu": Caps(uefi=True), "firecracker": Caps(uefi=True)})
# Login data stay as they are where they cannot reach the guest: no refusal, and rows of their own.
LOGIN_ROWS = [
    ("user", {"user": "root"}),
    ("password", {"password": "another"}),
    ("ssh_keys", {"ssh_keys": [KEY, KEY.replace("example", "other")]}),
    ("ssh_keys gone", {"ssh_keys": []}),
]
TELLS = {"image": {"relogin": True}, "disk": {"image_type": "cloudimg"}}
# Options of each row that the message of a refusal names.
IDS = [row[0] for row in ROWS]


def _row_plan(row, observed, **options):
    _what, record, definition, _how, _steps = row
    state = "running" if observed.running else "stopped"
    return ABLE.plan(made(state, **record), {**definition, **options}, observed)


@pytest.mark.parametrize("state", ["present", "started"])
@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_row_on_a_running_vm(row, state):
    _what, _record, _definition, how, inner = row
    needed = {"restart": "allow_restart", "rebuild": "recreate"}.get(how)
    other = {"restart": "recreate", "rebuild": "allow_restart"}.get(how, "recreate")
    if how != "live":
        for permissions in ({}, {other: True}):
            with pytest.raises(ChangeRefusedError) as caught:
                _row_plan(row, UP, state=state, **permissions)
            assert caught.value.option and caught.value.remedy
            assert needed is None or f"{needed}: true" in caught.value.remedy
    if how == "refused":
        with pytest.raises(ChangeRefusedError):
            _row_plan(row, UP, state=state, allow_restart=True, recreate=True)
        return
    plan = _row_plan(row, UP, state=state, **({needed: True} if needed else {}))
    expected = inner if how == "live" else ["stop", *inner, "start"]
    assert steps(plan) == in_order(expected)
    assert how in [change.how for change in plan.changes]
    assert plan.restarts == (how != "live")
    assert plan.action == ("rebuild" if how == "rebuild" else "update")


@pytest.mark.parametrize("state, power", [("present", []), ("stopped", []), ("started", ["start"])])
@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_row_on_a_stopped_vm_needs_no_restart(row, state, power):
    _what, _record, definition, how, inner = row
    if how == "refused":
        with pytest.raises(ChangeRefusedError):
            _row_plan(row, DOWN, state=state, recreate=True)
        return
    if how == "rebuild":
        with pytest.raises(ChangeRefusedError):
            _row_plan(row, DOWN, state=state)
    plan = _row_plan(row, DOWN, state=state, **({"recreate": True} if how == "rebuild" else {}))
    inner = ["configure" if step in ("set_balloon", "set_cpus") else step for step in inner]
    assert steps(plan) == in_order([*inner, *power])
    assert "restart" not in [change.how for change in plan.changes]
    assert not plan.restarts


@pytest.mark.parametrize("state", ["stopped", "restarted"])
@pytest.mark.parametrize("row", [row for row in ROWS if row[3] in ("live", "restart")], ids=lambda row: row[0])
def test_row_within_a_stop_that_is_asked_for_needs_no_permission(row, state):
    plan = _row_plan(row, UP, state=state)
    inner = ["configure" if step in ("set_balloon", "set_cpus") else step for step in row[4]]
    expected = ["stop", *inner, *(["start"] if state == "restarted" else [])]
    assert steps(plan) == in_order(expected)
    assert plan.state_after == ("running" if state == "restarted" else "stopped")


@pytest.mark.parametrize(
    "name",
    [*("disk added", "disk dropped", "disk unplugged", "disk grows", "disk back"), *("limits gone", "disk limits")],
)
def test_disks_restart_where_the_driver_cannot_hotplug(name):
    row = ROWS[IDS.index(name)]
    host = Host(caps={"qemu": NO_HOTPLUG})
    with pytest.raises(ChangeRefusedError, match="restart"):
        host.plan(made(**row[1]), row[2], UP)
    plan = host.plan(made(**row[1]), {**row[2], "allow_restart": True}, UP)
    assert steps(plan) == ["stop", *row[4], "start"]
    assert [change.how for change in plan.changes] == ["restart"]


@pytest.mark.parametrize(("option", "value"), [("balloon", "64M"), ("firmware", "bios"), ("user", "x")])
def test_what_is_not_for_windows_does_not_come_later(option, value):
    record = made(**{**DISK_VM, "firmware": "uefi"})
    record["config"]["windows"] = True
    with pytest.raises(UnsupportedError, match="Windows guests") as caught:
        ABLE.plan(record, {option: value, "allow_restart": True, "recreate": True}, UP)
    assert caught.value.option == option


def test_how_a_memory_is_taken_up_is_refused_by_name():
    """What its driver does not do, and what a balloon would spoil."""
    reads = Host(caps={"qemu": Caps(ram_file=False)})
    new = {"image": "tiny", "hypervisor": "qemu"}
    for record, definition, observed in ((None, new, DOWN), (made(), {"allow_restart": True}, UP)):
        assert reads.plan(record, {**definition, "restore_mode": "on_demand", "balloon": "64M"}, observed).changed
        with pytest.raises(UnsupportedError, match="qemu reads a saved memory as its guest needs it") as caught:
            reads.plan(record, {**definition, "restore_mode": "copy"}, observed)
        assert caught.value.option == "restore_mode"
        with pytest.raises(InputError, match="punches holes") as caught:
            HOST.plan(record, {**definition, "restore_mode": "on_demand", "balloon": 0}, observed)
        assert caught.value.option == "restore_mode"
    with pytest.raises(InputError, match="punches holes"):
        HOST.plan(made(restore_mode="on_demand"), {"balloon": "64M", "allow_restart": True}, UP)


@pytest.mark.parametrize("kind", ["read", "write", "total"])
@pytest.mark.parametrize("option", ["limits", "data_disks"])
def test_what_a_driver_does_not_tell_apart_is_refused_by_name(kind, option):
    """Of a new VM, of one that is there, and of one whose disks come along to another driver."""
    limits = {kind: {"rate": "10M"}}
    definition = {"limits": limits} if option == "limits" else {"data_disks": [{**DISK, "limits": limits}]}
    host = Host(caps={"qemu": Caps(read_write_limits=False)})
    cases = [(None, {"image": "tiny", "hypervisor": "qemu", **definition}, DOWN), (made(), definition, UP)]
    for record, wanted, observed in cases:
        if kind == "total":
            assert host.plan(record, wanted, observed).changed
            continue
        with pytest.raises(UnsupportedError, match="qemu does not tell reads from writes") as caught:
            host.plan(record, wanted, observed)
        assert caught.value.option == option
    mine = ABLE.plan(made("stopped"), definition, DOWN)
    record, observed = apply(made("stopped"), DOWN, mine)
    if kind != "total":
        with pytest.raises(UnsupportedError, match="does not tell reads from writes"):
            host.plan(record, {"recreate": True, "image": "debian"}, observed)


@pytest.mark.parametrize("observed", [UP, DOWN], ids=["up", "down"])
@pytest.mark.parametrize("state", ["present", "started", "stopped", "restarted"])
@pytest.mark.parametrize("row", [row for row in ROWS if row[3] != "refused"], ids=lambda row: row[0])
def test_applied_once_the_plan_is_empty(row, state, observed):
    options = {**row[2], "state": state, "recreate": True, "allow_restart": True}
    record = made("running" if observed.running else "stopped", **row[1])
    plan = ABLE.plan(record, options, observed)
    assert plan.changed
    assert plan.diff["before"] != plan.diff["after"]
    record, after = apply(record, observed, plan)
    assert record["state"] == plan.state_after
    assert after.running == (plan.state_after == "running")
    again = ABLE.plan(record, options, after)
    if state == "restarted":
        assert (steps(again), again.changes) == (["stop", "start"], ())
    else:
        assert (steps(again), again.changed) == ([], False)


def test_pairs_of_rows_do_not_disturb_each_other():
    rows = [row for row in ROWS if row[3] != "refused"]
    for first, second in itertools.combinations(rows, 2):
        options = {**first[2], **second[2]}
        if set(first[2]) & set(second[2]) or "hypervisor" in options or {"nics", "network"} <= set(options):
            continue
        if DISK_VM in (first[1], second[1]) and {"kernel_args", "image"} & set(options):
            continue  # for images of another kind
        if CONTAINER_VM in (first[1], second[1]) and "rebuild" in (first[3], second[3]):
            continue  # from an image that boots a system of its own
        options.update(recreate=True, allow_restart=True, state="started")
        record = made(**first[1], **{key: value for key, value in second[1].items() if key not in first[1]})
        plan = ABLE.plan(record, options, UP)
        assert [step.name for step in plan.steps] == in_order(steps(plan))
        record, observed = apply(record, UP, plan)
        assert not ABLE.plan(record, options, observed).changed, (first[0], second[0])


def test_several_problems_come_together():
    with pytest.raises(ChangeRefusedError) as caught:
        HOST.plan(made(), {"cpu": 4, "memory": "2G", "image": "debian", "storage": "1G", "labels": {}}, UP)
    text = str(caught.value)
    assert caught.value.option == "storage, cpu, memory, image"
    for part in (
        "cpu (2 -> 4), memory (1G -> 2G) need a restart",
        "image (tiny -> debian) needs a rebuild",
        "storage (10G -> 1G): a system disk never shrinks",
        "allow_restart: true",
        "recreate: true",
    ):
        assert part in text
    assert "labels" not in text


def test_recreate_covers_the_restart_that_it_contains():
    plan = HOST.plan(made(), {"cpu": 4, "image": "debian", "recreate": True}, UP)
    assert steps(plan) == ["stop", "configure", "rebuild", "start"]
    with pytest.raises(ChangeRefusedError, match="cpu"):
        HOST.plan(made(), {"cpu": 4, "recreate": True}, UP)


def test_a_rebuild_keeps_identity_and_data():
    plan = HOST.plan(made("stopped"), {"image": "debian", "storage": "12G", "recreate": True})
    wanted = plan.wanted
    assert steps(plan) == ["rebuild"]
    assert plan.steps[0].wanted is wanted
    assert wanted["nics"] == [{"network": "lab", "mac": "02:00:00:00:00:01", "ip": "10.1.0.2"}]
    assert [disk["name"] for disk in wanted["data_disks"]] == ["data1"]
    assert (wanted["storage"], wanted["image_digest"], wanted["accel"]) == (12 * GIB, "sha256:bb", "kvm")
    assert any("user, password, ssh_keys" in warning for warning in plan.warnings)


def test_an_image_that_moved_on_is_a_warning_or_a_rebuild():
    record = made(image_digest="sha256:00", image_id="sha256:00")
    plan = HOST.plan(record, {"image": "tiny", "state": "started"}, UP)
    assert not plan.changed and "recreate" in plan.warnings[0]
    plan = HOST.plan(record, {"image": "tiny", "state": "started", "recreate": True}, UP)
    assert steps(plan) == ["stop", "rebuild", "start"]
    assert plan.diff["before"]["image"] == "tiny (sha256:00)"
    record, observed = apply(record, UP, plan)
    assert not HOST.plan(record, {"image": "tiny", "state": "started", "recreate": True}, observed).changed


def test_an_image_whose_name_is_gone_disturbs_nobody():
    host = Host(images={"sha256:aa": IMAGES["tiny"]})
    assert not host.plan(made(), {"image": "tiny"}, UP).changed
    plan = host.plan(made("stopped"), {"image": "tiny", "user": "root", "recreate": True})
    assert plan.wanted["image_digest"] == "sha256:aa"
    with pytest.raises(NotFoundError, match="image"):
        host.plan(made(), {"image": "debian", "recreate": True}, UP)


def test_recreate_without_a_difference_does_nothing():
    assert not HOST.plan(made(), {**SAME, "recreate": True, "state": "started"}, UP).changed


# --------------------------------------------------------------------------- NICs and disks


def test_nics_that_stay_keep_mac_and_address():
    plan = HOST.plan(made("stopped"), {"nics": [{"network": "lab"}, {"network": "dmz"}]})
    assert plan.steps[0].nics == [
        {"network": "lab", "mac": "02:00:00:00:00:01", "ip": "10.1.0.2"},
        {"network": "dmz", "mac": None, "ip": None},
    ]
    plan = HOST.plan(made("stopped"), {"network": "dmz"})
    nics = [{"network": "dmz", "mac": "02:00:00:00:00:01", "ip": None}]
    assert plan.steps == (kinds.SetNics(nics, "dmz", None),)


def test_a_network_gives_a_nic_to_a_vm_that_had_neither():
    record = made("stopped", network=None, network_configs=[], ports=[])
    assert HOST.plan(record, {"network": "lab"}).steps[0].nics == [{"network": "lab", "mac": None, "ip": None}]
    record = made("stopped", network_configs=[], ports=[])  # nics: [] at creation
    assert not HOST.plan(record, {"network": "lab"}).changed


def test_a_default_network_that_no_nic_uses_is_only_recorded():
    record = made(network="dmz")
    plan = HOST.plan(record, {"network": "flat"}, UP)
    assert (steps(plan), plan.changes[0].how) == (["configure"], "live")


@pytest.mark.parametrize(
    "force, before, after",
    [(False, ["data1"], ["data1"]), (True, ["data1"], [])],
)
def test_a_dropped_disk_is_kept_without_force(force, before, after):
    record = made("stopped")
    plan = HOST.plan(record, {"data_disks": [], "force": force})
    assert plan.steps == (kinds.DropDisk("data1", force),)
    record, _observed = apply(record, DOWN, plan)
    assert [disk["name"] for disk in record["detached_disks"]] == after


@pytest.mark.parametrize("record", [made(), made("paused"), made("hibernated", resume={"memory": "copy"})])
def test_a_disk_that_a_guest_may_be_using_stays_unless_somebody_lets_it_go(record):
    observed = Observed(running=record["state"] != "hibernated", paused=record["state"] == "paused")
    options = {"state": "present" if observed.running else "started"}
    with pytest.raises(ChangeRefusedError, match="needs a restart") as caught:
        HOST.plan(record, {**options, "data_disks": []}, observed)
    for way in ("allow_restart: true", "attached: false", "force: true deletes it"):
        assert way in caught.value.remedy
    over = HOST.plan(record, {**options, "data_disks": [], "allow_restart": True}, observed)
    assert steps(over) == ["stop", "drop_disk", "start"] and not over.step(kinds.DropDisk).delete
    for words, deleted in (
        ({"data_disks": [{**DISK, "attached": False}]}, False),
        ({"data_disks": [], "force": True}, True),
    ):
        plan = HOST.plan(record, {**options, **words}, observed)
        assert "stop" not in steps(plan) and plan.step(kinds.DropDisk).delete is deleted


@pytest.mark.parametrize("mounted, how", [(frozenset(), "live"), ({"other"}, "live"), ({"data1"}, None), (None, None)])
def test_an_agent_can_say_that_a_disk_is_free(mounted, how):
    observed = Observed(running=True, mounted=mounted)
    if how is None:
        with pytest.raises(ChangeRefusedError, match="allow_restart"):
            HOST.plan(made(), {"data_disks": []}, observed)
    else:
        assert [change.how for change in HOST.plan(made(), {"data_disks": []}, observed).changes] == [how]


def test_a_disk_that_is_listed_as_not_attached_is_kept_and_not_made():
    off = {"data_disks": [{**DISK, "attached": False}, {**NEW_DISK, "attached": False}], "force": True}
    record, observed = apply(made(), UP, HOST.plan(made(), off, UP))
    assert [disk["name"] for disk in record["detached_disks"]] == ["data1"]
    assert not HOST.plan(record, off, observed).changed
    assert steps(HOST.plan(record, {"data_disks": [DISK]}, observed)) == ["add_disk"]
    assert HOST.plan(None, {"image": "tiny", **off}).wanted["data_disks"] == []
    with pytest.raises(ChangeRefusedError, match="never shrinks"):
        HOST.plan(record, {"data_disks": [{**DISK, "size": "16M", "attached": False}]}, observed)


@pytest.mark.parametrize("name", ["cow", "overlay", "system", "storage", "cidata", "layer0", "data", "ram", "resume"])
@pytest.mark.parametrize("observed", [UP, DOWN], ids=["up", "down"])
def test_a_data_disk_may_bear_any_word_as_its_name(name, observed):
    state = "running" if observed.running else "stopped"
    record = made(state, data_disks=[{"name": name, "size": GIB, "fstype": "ext4"}])
    plan = HOST.plan(record, {"data_disks": [{"name": name, "size": "2G"}]}, observed)
    assert plan.steps == (kinds.GrowDataDisk(name, 2 * GIB),)
    after, _observed = apply(record, observed, plan)
    assert after["config"] == record["config"]
    assert after["data_disks"] == [{"name": name, "size": 2 * GIB, "fstype": "ext4"}]


def test_a_disk_comes_back_grown():
    record = made("stopped", data_disks=[], detached_disks=[OLD_DISK])
    plan = HOST.plan(record, {"data_disks": [{"name": "old", "size": "128M"}]})
    assert plan.steps[0].disk == {"name": "old", "size": 128 * MIB, "fstype": "ext4", "reattach": True}


def test_a_new_disk_needs_a_size():
    with pytest.raises(InputError) as caught:
        HOST.plan(made(), {"data_disks": [DISK, {"name": "new"}]}, UP)
    assert caught.value.option == "data_disks[1].size"


def test_growing_live_says_what_is_left_to_do_in_the_guest():
    plan = HOST.plan(made(), {"data_disks": [{**DISK, "size": "2G"}]}, UP)
    assert "file system" in plan.warnings[0]
    assert not HOST.plan(made("stopped"), {"data_disks": [{**DISK, "size": "2G"}]}).warnings


# ----------------------------------------------------------------------------------- states


@pytest.mark.parametrize(
    "record, observed, state, expected, after",
    [
        (made("stopped"), DOWN, "started", ["start"], "running"),
        (made("created"), DOWN, "started", ["start"], "running"),
        (made("error"), DOWN, "started", ["start"], "running"),
        (made("running"), DOWN, "started", ["start"], "running"),  # crashed, or the host rebooted
        (made("running"), DOWN, "stopped", ["stop"], "stopped"),  # the record is set right
        (made("running"), UP, "stopped", ["stop"], "stopped"),
        (made("running"), UP, "restarted", ["stop", "start"], "running"),
        (made("stopped"), DOWN, "restarted", ["start"], "running"),
        (made("running"), DOWN, "restarted", ["start"], "running"),
        (made("stopped"), UP, "started", ["start"], "running"),  # killed between spawn and record
        (made("error"), UP, "started", ["start"], "running"),
        (made("running"), Observed(True, True), "started", ["resume"], "running"),
        (made("running"), Observed(True, True), "present", [], "paused"),
        (made("running"), Observed(True, True), "stopped", ["stop"], "stopped"),
        (made("running"), HALTED, "started", ["resume"], "running"),
        (made("running"), HALTED, "present", [], "error"),
        (made("running"), HALTED, "stopped", ["stop"], "stopped"),
        (made("running"), HALTED, "restarted", ["stop", "start"], "running"),
        (made("running"), HALTED, "absent", ["stop", "remove"], "absent"),
        (made("stopped", restarting=True), DOWN, "present", ["start"], "running"),  # killed inside a restart
        (made("stopped", restarting=True), DOWN, "stopped", [], "stopped"),
        (made("running"), UP, "absent", ["stop", "remove"], "absent"),
        (made("running"), DOWN, "absent", ["remove"], "absent"),
        (made("error"), DOWN, "absent", ["remove"], "absent"),
        (None, DOWN, "present", ["create"], "created"),
        (None, DOWN, "stopped", ["create"], "created"),
        (None, DOWN, "started", ["create", "start"], "running"),
        (None, DOWN, "restarted", ["create", "start"], "running"),
    ],
)
def test_power(record, observed, state, expected, after):
    plan = HOST.plan(record, {"state": state, "image": "tiny"}, observed)
    assert (steps(plan), plan.state_after) == (expected, after)
    assert plan.changed == bool(expected)
    assert not expected or plan.diff["before"] != plan.diff["after"]
    assert plan.restarts == ("stop" in expected and "start" in expected)
    record, observed = apply(record, observed, plan)
    if state != "restarted":
        assert not HOST.plan(record, {"state": state, "image": "tiny"}, observed).changed


@pytest.mark.parametrize("force", [False, True])
def test_stop_says_whether_to_ask_the_guest_and_whether_it_comes_back(force):
    assert HOST.plan(made(), {"state": "stopped", "force": force}, UP).steps[0] == kinds.Stop(force, False)
    assert HOST.plan(made(), {"state": "restarted", "force": force}, UP).steps[0] == kinds.Stop(force, True)


# ------------------------------------------------------------- what killed runs leave behind

BARE = {"id": "c" * 26, "state": "creating", "config": {"name": "web1"}, "bare": True}
HALF = [
    BARE,
    made("creating"),
    made("created", phase="create"),
    made("error", phase="create"),
    made("stopped", phase="remove", data_disks=[]),
    made("removed", data_disks=[]),
    made("creating", kept_disks=[{"name": "data1", "size": GIB, "fstype": "ext4"}]),
]


@pytest.mark.parametrize("record", HALF)
@pytest.mark.parametrize("state", ["present", "started", "stopped", "restarted"])
def test_half_made_is_made_again(record, state):
    plan = HOST.plan(record, {"image": "tiny", "network": "lab", "state": state})
    expected = ["create", *(["start"] if state in ("started", "restarted") else [])]
    assert (steps(plan), plan.action) == (expected, "create")
    assert plan.step(kinds.Create).wanted is plan.wanted


@pytest.mark.parametrize("record", [record for record in HALF if record["state"] != "removed"])
def test_half_made_can_be_removed(record):
    assert steps(HOST.plan(record, {"state": "absent"})) == ["remove"]


def test_a_removal_that_was_cut_short_keeps_the_disks_it_was_to_keep():
    record = made("stopped", phase="remove")
    plan = HOST.plan(record, {"image": "tiny", "data_disks": [{"name": "data1"}]})
    assert plan.wanted["data_disks"] == [{"name": "data1", "size": GIB, "fstype": "ext4", "reattach": True}]
    record, _observed = apply(record, DOWN, plan)
    assert [disk["name"] for disk in record["data_disks"]] == ["data1"]
    definition = {"image": "tiny", "data_disks": [{"name": "data1", "size": "64M"}], "force": True}
    plan = HOST.plan(made("stopped", phase="remove"), definition)
    assert plan.step(kinds.Create).delete_kept
    assert plan.wanted["data_disks"] == [{"name": "data1", "size": 64 * MIB, "fstype": "ext4", "reattach": False}]


def test_half_made_stands_in_for_what_is_left_out():
    record = made("creating", cpu=7, network_configs=[], nics=[{"network": "dmz", "ip": "10.2.0.9"}])
    wanted = HOST.plan(record, {"state": "started"}).wanted
    assert (wanted["cpu"], wanted["image"], wanted["hypervisor"]) == (7, "tiny", "qemu")
    assert wanted["nics"] == [{"network": "dmz", "mac": None, "ip": "10.2.0.9"}]
    assert wanted["data_disks"] == [{"name": "data1", "size": GIB, "fstype": "ext4", "reattach": False}]


@pytest.mark.parametrize(
    "definition", [{}, {"image": "debian"}, {"image": "debian", "recreate": True}, {"image": "tiny"}]
)
def test_a_rebuild_that_was_cut_short_is_finished(definition):
    record = made("stopped", phase="rebuild", image="debian", image_digest="sha256:bb")
    plan = HOST.plan(record, {**definition, "state": "started"})
    assert (steps(plan), plan.action) == (["rebuild", "start"], "rebuild")
    record, observed = apply(record, DOWN, plan)
    assert not HOST.plan(record, {**definition, "state": "started"}, observed).changed


def test_a_detach_that_was_cut_short_of_its_deletion_is_finished():
    record = made(data_disks=[], detached_disks=[OLD_DISK])
    assert not HOST.plan(record, {"data_disks": []}, UP).changed
    plan = HOST.plan(record, {"data_disks": [], "force": True}, UP)
    assert plan.steps == (kinds.DropDisk("old", True),)


# ----------------------------------------------------------------------------------- absent


def test_absent_keeps_data_disks_and_creation_takes_them_up():
    record = made()
    plan = HOST.plan(record, {"state": "absent"}, UP)
    assert plan.steps[-1] == kinds.Remove(False)
    assert "data1" in plan.warnings[0] and plan.diff["after"] == {"data_disks": "kept", "state": "absent"}
    record, observed = apply(record, UP, plan)
    assert not HOST.plan(record, {"state": "absent"}).changed
    again = HOST.plan(record, {"image": "tiny", "state": "started", "data_disks": [{"name": "data1"}]})
    assert steps(again) == ["create", "start"] and again.state_before == "absent"
    assert again.wanted["data_disks"] == [{"name": "data1", "size": GIB, "fstype": "ext4", "reattach": True}]
    assert again.wanted["cpu"] == 2 and again.wanted["user"] is None
    with pytest.raises(ChangeRefusedError, match="shrinks"):
        HOST.plan(record, {"image": "tiny", "data_disks": [{"name": "data1", "size": "16M"}]})
    gone = HOST.plan(record, {"state": "absent", "force": True})
    assert gone.steps == (kinds.Remove(True),)
    assert apply(record, observed, gone)[0] is None


def test_absent_with_force_deletes_data_disks():
    plan = HOST.plan(made(), {"state": "absent", "force": True}, UP)
    assert plan.steps == (kinds.Stop(True), kinds.Remove(True))
    assert not plan.warnings


def test_absent_respects_the_owner_when_one_is_given():
    with pytest.raises(ChangeRefusedError, match="owner"):
        HOST.plan(made(), {"state": "absent", "owner": "other"}, UP)
    assert HOST.plan(made(), {"state": "absent", "owner": "other", "force": True}, UP).changed
    assert HOST.plan(made(), {"state": "absent", "owner": "store-1"}, UP).changed


# ----------------------------------------------------------------------------------- create


def test_create_applies_the_defaults():
    wanted = HOST.plan(None, {"image": "tiny"}).wanted
    assert wanted == {
        "name": "web1", "hypervisor": "qemu", "accel": "kvm", "image": "tiny", "image_id": "sha256:aa",
        "image_digest": "sha256:aa", "cpu": 2, "cpu_max": 0, "memory": GIB, "storage": 10 * GIB, "queue_size": 512,
        "disk_queue_size": 512, "network": None, "nics": [], "ports": [], "data_disks": [], "user": None,
        "password": None, "ssh_keys": None, "kernel_args": "", "labels": {}, "owner": "store-1",
        "entrypoint": [], "command": [], "env": {}, "secret_env": {}, "working_dir": "",
        "hostname": "", "limits": {}, "restore_mode": None,
        "no_direct_io": False, "windows": False, "balloon": None, "watchdog": True,
        "user_data": None, "firmware": None, "memory_backing": "ram",
    }  # fmt: skip


def test_create_then_nothing():
    definition = {key: value for key, value in SAME.items() if key != "name"}
    plan = HOST.plan(None, {**definition, "state": "started"})
    record, observed = apply(None, DOWN, plan)
    assert not HOST.plan(record, {**definition, "state": "started"}, observed).changed
    assert plan.diff["before"] == {"state": "absent"}
    assert plan.diff["after"]["memory"] == "1G" and plan.diff["after"]["state"] == "running"


def test_create_with_a_network_makes_one_nic():
    wanted = HOST.plan(None, {"image": "tiny", "network": "lab"}).wanted
    assert wanted["nics"] == [{"network": "lab", "mac": None, "ip": None}]


def test_a_disk_image_larger_than_the_default_gets_its_size():
    assert HOST.plan(None, {"image": "big"}).wanted["storage"] == 20 * GIB
    assert HOST.plan(None, {"image": "cloud"}).wanted["storage"] == 10 * GIB


NO_UEFI = Host(probes={"qemu": Probe(firmware=("bios",))})


@pytest.mark.parametrize(
    "host, made_for, options, chosen",
    [
        (HOST, None, {}, "bios"),  # from before that was looked at
        (HOST, [], {}, "bios"),
        (HOST, ["bios"], {}, "bios"),
        (HOST, ["uefi", "bios"], {}, "uefi"),
        (HOST, ["uefi"], {}, "uefi"),
        (HOST, ["uefi", "bios"], {"firmware": "bios"}, "bios"),
        (HOST, ["bios"], {"firmware": "uefi"}, "uefi"),
        (NO_UEFI, ["uefi", "bios"], {}, "bios"),
        (NO_UEFI, ["uefi"], {}, None),
        (NO_UEFI, ["bios"], {"firmware": "uefi"}, None),
    ],
)
def test_what_boots_a_disk(host, made_for, options, chosen):
    record = {**IMAGES["cloud"], "disk": {**IMAGES["cloud"]["disk"], "firmware": made_for}}
    host = Host(caps={"qemu": Caps(uefi=True)}, probes=host.probes, images={"cloud": record})
    if chosen is None:
        with pytest.raises(UnsupportedError, match="UEFI for qemu is not installed") as caught:
            host.plan(None, {"image": "cloud", **options})
        assert caught.value.option == "firmware" and "ovmf" in caught.value.remedy
    else:
        assert host.plan(None, {"image": "cloud", **options}).wanted["firmware"] == chosen


@pytest.mark.parametrize("firmware", ["uefi", "bios"])
def test_firmware_is_for_disks(firmware):
    host = Host(caps={"qemu": Caps(uefi=True)})
    for record, observed in ((None, DOWN), (made(), UP)):
        with pytest.raises(UnsupportedError, match="boots its kernel directly"):
            host.plan(record, {"image": "tiny", "firmware": firmware, "allow_restart": True}, observed)


def test_login_data_of_disks_goes_on_a_volume():
    host = Host(caps={"qemu": Caps(guest_data=False)})
    login = {"user": "me", "password": "x", "ssh_keys": [KEY], "user_data": "#cloud-config\n{}"}
    assert host.plan(None, {"image": "cloud", **login}).wanted["user"] == "me"
    with pytest.raises(UnsupportedError, match="takes no user_data"):
        HOST.plan(None, {"image": "tiny", "user_data": "#!/bin/sh"})


def test_login_data_goes_where_the_image_looks_for_it():
    """By a device, or before an initramfs, which those of an earlier version do not know."""
    host = Host(
        caps={"qemu": Caps(data_device=False)},
        images={**IMAGES, "new": image("new", "0a", features=("user", "password", "ssh_keys", "data"))},
    )
    assert host.plan(None, {"image": "new", "user": "me"}).wanted["user"] == "me"
    with pytest.raises(UnsupportedError, match="^user: hypervisor qemu has no device for guest data.*build it anew"):
        host.plan(None, {"image": "tiny", "user": "me"})
    assert host.plan(None, {"image": "tiny"}).wanted["user"] is None
    both = Host(caps={"cloud-hypervisor": Caps(data_device=False), "qemu": Caps()}, auto=("cloud-hypervisor", "qemu"))
    assert both.plan(None, {"image": "tiny", "user": "me"}).wanted["hypervisor"] == "qemu"


def test_no_watchdog_by_default_where_the_driver_has_none():
    host = Host(caps={"qemu": Caps(watchdog=False)})
    assert host.plan(None, {"image": "tiny"}).wanted["watchdog"] is False


@pytest.mark.parametrize(
    "definition, host, error, option, text",
    [
        ({}, HOST, InputError, "image", "create"),
        ({"image": "nope"}, HOST, NotFoundError, "image", "cocoon_image"),
        ({"image": "tiny", "network": "nope"}, HOST, NotFoundError, "network", "cocoon_network"),
        ({"image": "tiny", "nics": [{"network": "nope"}]}, HOST, NotFoundError, "nics[0].network", "cocoon_network"),
        ({"image": "tiny", "nics": [{}]}, HOST, InputError, "nics[0].network", "network"),
        ({"image": "tiny", "nics": [{"network": "lab", "ip": "10.9.0.2"}]}, HOST, InputError, "nics[0].ip", "subnet"),
        ({"image": "tiny", "nics": [{"network": "lab", "ip": "10.1.0.1"}]}, HOST, InputError, "nics[0].ip", "gateway"),
        ({"image": "tiny", "nics": [{"network": "lab", "ip": "10.1.0.0"}]}, HOST, InputError, "nics[0].ip", "first"),
        ({"image": "tiny", "nics": [{"network": "lab", "ip": "10.1.0.255"}]}, HOST, InputError, "nics[0].ip", "last"),
        ({"image": "tiny", "nics": [{"network": "flat", "ip": "10.1.0.5"}]}, HOST, InputError, "nics[0].ip", "subnet"),
        ({"image": "tiny", "ports": ["80:80"]}, HOST, UnsupportedError, "ports", "NIC"),
        ({"image": "tiny", "ports": ["80:80"], "network": "flat"}, HOST, UnsupportedError, "ports", "subnet"),
        ({"image": "tiny", "wait_for": "ping"}, HOST, UnsupportedError, "wait_for", "NIC"),
        ({"image": "tiny", "wait_for": "agent"}, DEAF, UnsupportedError, "wait_for", "way to an agent"),
        ({"image": "tiny", "data_disks": [{"name": "d"}]}, HOST, InputError, "data_disks[0].size", "size"),
        ({"image": "tiny", "windows": True}, HOST, UnsupportedError, "windows", "Linux"),
        ({"image": "cloud", "windows": True}, HOST, UnsupportedError, "windows", "qemu"),
        ({"image": "cloud", "windows": True, "user": "x"}, HOST, UnsupportedError, "user", "Windows"),
        ({"image": "cloud", "windows": True, "balloon": 0}, HOST, UnsupportedError, "balloon", "Windows"),
        ({"image": "cloud", "windows": True, "firmware": "bios"}, HOST, UnsupportedError, "firmware", "by UEFI"),
        ({"image": "tiny", "balloon": "1000M"}, HOST, InputError, "balloon", "memory"),
        ({"image": "tiny", "cpu": 4, "cpu_max": 3}, HOST, InputError, "cpu", "cpu_max"),
        ({"image": "tiny", "cpu_max": 3}, Host(caps={"qemu": Caps(live_cpus=False)}), UnsupportedError, "cpu_max",
         "qemu"),
        ({"image": "plain", "user": "admin"}, HOST, UnsupportedError, "user", "image 'plain' takes no user"),
        ({"image": "plain", "password": "x"}, HOST, UnsupportedError, "password", "plain"),
        ({"image": "plain", "ssh_keys": [KEY]}, HOST, UnsupportedError, "ssh_keys", "plain"),
        ({"image": "no-kernel"}, HOST, UnsupportedError, "image", "kernel"),
        ({"image": "cloud", "kernel_args": "quiet"}, HOST, UnsupportedError, "kernel_args", "disk image"),
        ({"image": "cloud", "command": "x"}, HOST, UnsupportedError, "command", "boots a system of its own"),
        ({"image": "tiny", "secret_env": {"A": "x"}}, HOST, UnsupportedError, "secret_env", "without a kernel"),
        ({"image": "cloud", "storage": "2G"}, HOST, InputError, "storage", "at least 3G"),
        ({"image": "cloud", "hypervisor": "firecracker"}, HOST, UnsupportedError, "image", "firecracker"),
        ({"image": "tiny", "user": "x", "hypervisor": "firecracker"}, HOST, UnsupportedError, "user", "firecracker"),
        ({"image": "tiny", "balloon": "64M"}, Host(caps={"qemu": Caps(balloon=False)}), UnsupportedError,
         "balloon", "qemu"),
        ({"image": "tiny", "watchdog": True}, Host(caps={"qemu": Caps(watchdog=False)}), UnsupportedError,
         "watchdog", "qemu"),
        ({"image": "tiny", "hypervisor": "qemu"}, Host(probes={"qemu": Probe(False, "no qemu binary", ())}),
         UnsupportedError, "hypervisor", "no qemu binary"),
        ({"image": "tiny", "accel": "kvm"}, Host(probes={"qemu": Probe(accels=("tcg",))}, auto=("qemu",)),
         UnsupportedError, "accel", "usable: tcg"),
        ({"image": "tiny"}, Host(auto=()), UnsupportedError, "hypervisor", "no hypervisor"),
    ],
)  # fmt: skip
def test_creation_that_cannot_be(definition, host, error, option, text):
    with pytest.raises(error) as caught:
        host.plan(None, {**definition, "state": "started"})
    assert caught.value.option == option
    assert text in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("halted", HALTS)
def test_a_guest_that_was_stopped_is_no_running_one(halted):
    """It hears no power button, so nobody waits for it; where it is not to go on, the task says what is the matter."""
    observed = Observed(running=True, halted=halted)
    for state in ("stopped", "restarted", "absent"):
        plan = HOST.plan(made("running"), {"state": state, "image": "tiny"}, observed)
        assert plan.state_before == "error" and plan.steps[0].force
    quiet = HOST.plan(made("running"), {"state": "present"}, observed)
    assert not quiet.changed and halted in quiet.warnings[0] and "state: started" in quiet.warnings[0]
    assert HOST.plan(made("running"), {"state": "started"}, observed).diff == {
        "before": {"state": "error"},
        "after": {"state": "running"},
    }


BOTH = {"firecracker": Caps(qcow2=False, guest_data=False, data_device=False, balloon=False), "qemu": Caps()}


@pytest.mark.parametrize(
    ("definition", "probes", "hypervisor", "accel"),
    [
        ({"image": "tiny"}, {}, "firecracker", "kvm"),
        ({"image": "cloud"}, {}, "qemu", "kvm"),
        ({"image": "tiny", "user": "me"}, {}, "qemu", "kvm"),
        ({"image": "tiny", "balloon": "64M"}, {}, "qemu", "kvm"),
        ({"image": "tiny", "balloon": "off"}, {}, "firecracker", "kvm"),
        ({"image": "tiny", "accel": "tcg"}, {}, "qemu", "tcg"),
        ({"image": "tiny"}, {"firecracker": Probe(False, "not found", ())}, "qemu", "kvm"),
    ],
)
def test_auto_is_the_first_that_fits(definition, probes, hypervisor, accel):
    found = {"firecracker": Probe(accels=("kvm",)), "qemu": Probe(), **probes}
    plan = Host(caps=BOTH, probes=found, auto=("firecracker", "qemu")).plan(None, definition)
    assert (plan.wanted["hypervisor"], plan.wanted["accel"]) == (hypervisor, accel)


def test_auto_keeps_what_was_chosen():
    begun = {**made("creating"), "phase": "create", "accel": "tcg"}
    assert Host(caps=BOTH, auto=("firecracker", "qemu")).plan(begun, {"image": "tiny"}).wanted["hypervisor"] == "qemu"


def test_a_default_that_the_driver_lacks_is_no_reason_against_it():
    host = Host(caps={"firecracker": Caps(watchdog=False), "qemu": Caps()}, auto=("firecracker", "qemu"))
    plan = host.plan(None, {"image": "tiny"})
    assert (plan.wanted["hypervisor"], plan.wanted["watchdog"]) == ("firecracker", False)
    assert host.plan(None, {"image": "tiny", "watchdog": True}).wanted["hypervisor"] == "qemu"


class HostWithKernel(Host):
    def context(self, record, definition, observed):
        return dataclasses.replace(super().context(record, definition, observed), default_kernel=True)


def test_what_runs_a_command_needs_a_driver_that_can_tell_it_to_the_guest():
    images = {"app": {**IMAGES["tiny"], "boot": None}}
    host = HostWithKernel(caps=BOTH, images=images, auto=("firecracker", "qemu"))
    assert host.plan(None, {"image": "app"}).wanted["hypervisor"] == "qemu"
    with pytest.raises(UnsupportedError, match="firecracker cannot tell a guest what to run") as caught:
        host.plan(None, {"image": "app", "hypervisor": "firecracker"})
    assert caught.value.option == "image"


SMALL = Limits(4, nics=2, fixed_disks=3, removable_disks=1, command_line=99, nic_queues=(256,), disk_queues=(16,))
FITS = {"image": "layered", "cpu": 4, "queue_size": 256, "disk_queue_size": 16}


@pytest.mark.parametrize(
    ("options", "option", "words"),
    [
        ({}, None, ""),
        ({"cpu": 5}, "cpu", "qemu takes 4 vCPUs and not 5"),
        ({"network": "lab", "nics": [{}, {}, {}]}, "nics", "qemu takes 2 NICs and not 3"),
        ({"data_disks": [{"name": n, "size": "1G"} for n in "ab"]}, "data_disks", "takes 1 data disks and not 2"),
        ({"image": "high"}, "image", "qemu takes 1 image layers and not 2"),
        ({"queue_size": 512}, "queue_size", "no queues of 512"),
        ({"disk_queue_size": 512}, "disk_queue_size", "no queues of 512"),
    ],
)
def test_what_a_driver_has_no_room_for(options, option, words):
    images = {"layered": {**IMAGES["tiny"], "layers": ["a"]}, "high": {**IMAGES["tiny"], "layers": ["a", "b"]}}
    host = Host(limits={"qemu": SMALL}, images=images)
    if option is None:
        assert host.plan(None, {**FITS, **options}).action == "create"
        return
    with pytest.raises(UnsupportedError, match=words) as caught:
        host.plan(None, {**FITS, **options})
    assert caught.value.option == option


TIGHT = Limits(4, 4, 6, 4, 99, nic_queues=(128, 256), disk_queues=(1024,), devices=4)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({}, None),
        ({"network": "lab", "nics": [{}, {}]}, None),
        ({"network": "lab", "nics": [{}, {}, {}]}, "nics"),
        ({"network": "lab", "nics": [{}], "balloon": "64M"}, None),
        ({"data_disks": [{"name": n, "size": "1G"} for n in "ab"], "balloon": "64M"}, "data_disks"),
        ({"network": "lab", "nics": [{}, {}], "balloon": "64M"}, "nics"),
    ],
)
def test_devices_that_share_their_room(options, option):
    images = {"layered": {**IMAGES["tiny"], "layers": ["a"]}}
    host = Host(limits={"qemu": TIGHT}, images=images)
    if option is None:
        assert host.plan(None, {"image": "layered", **options}).action == "create"
        return
    with pytest.raises(UnsupportedError, match="qemu takes 4 devices in all and not 5: 2 disks of the image") as caught:
        host.plan(None, {"image": "layered", **options})
    assert caught.value.option == option


def test_a_default_depth_that_a_driver_lacks_is_dropped_and_a_wish_refused():
    host = Host(limits={"qemu": TIGHT})
    wanted = host.plan(None, {"image": "tiny"}).wanted
    assert (wanted["queue_size"], wanted["disk_queue_size"]) == (256, 1024)
    assert host.plan(None, {"image": "tiny", "queue_size": 256}).wanted["queue_size"] == 256
    with pytest.raises(UnsupportedError, match="no queues of 512.*Use one of 128, 256"):
        host.plan(None, {"image": "tiny", "queue_size": 512})


@pytest.mark.parametrize(
    ("options", "option"),
    [({"cpu": 5}, "cpu"), ({"queue_size": 1024}, "queue_size"), ({"disk_queue_size": 16}, "disk_queue_size")],
)
def test_a_vm_that_is_there_has_no_room_either(options, option):
    with pytest.raises(UnsupportedError, match="hypervisor qemu") as caught:
        Host(limits={"qemu": TIGHT}).plan(made(), options)
    assert caught.value.option == option


def test_memory_in_a_file_is_not_for_every_driver():
    host = Host(caps={"qemu": Caps(ram_file=False)})
    assert host.plan(None, {"image": "tiny", "memory_backing": "ram"}).action == "create"
    with pytest.raises(UnsupportedError, match="qemu keeps a guest's memory in no file") as caught:
        host.plan(None, {"image": "tiny", "memory_backing": "disk"})
    assert caught.value.option == "memory_backing"


@pytest.mark.parametrize(
    "definition, host, expected",
    [
        ({}, HOST, ("qemu", "kvm")),
        ({"accel": "tcg"}, HOST, ("qemu", "tcg")),
        ({"hypervisor": "qemu"}, Host(probes={"qemu": Probe(accels=("tcg",))}), ("qemu", "tcg")),
        ({"hypervisor": "firecracker"}, HOST, ("firecracker", "kvm")),
    ],
)
def test_choice_of_driver(definition, host, expected):
    wanted = host.plan(None, {"image": "tiny", **definition}).wanted
    assert (wanted["hypervisor"], wanted["accel"]) == expected


@pytest.mark.parametrize(
    "record, definition, host, option",
    [
        (made("stopped"), {"balloon": "64M"}, Host(caps={"qemu": Caps(balloon=False)}), "balloon"),
        (made("stopped", watchdog=False), {"watchdog": True}, Host(caps={"qemu": Caps(watchdog=False)}), "watchdog"),
        (made("stopped", image_type="cloudimg"), {"kernel_args": "quiet"}, HOST, "kernel_args"),
        (made("stopped", own_kernel=True), {"env": {"A": "x"}}, HOST, "env"),
        (made("stopped", balloon=512 * MIB), {"memory": "512M"}, HOST, "balloon"),
        (made("stopped", cpu_max=3), {"cpu": 4}, HOST, "cpu"),
        (made("stopped"), {"cpu_max": 1}, HOST, "cpu"),
        (made("stopped"), {"network": "flat"}, HOST, "ports"),
        (made("stopped"), {"network": "nope"}, HOST, "network"),
        (made("stopped"), {"state": "started"}, Host(probes={"qemu": Probe(False, "gone", ())}), "hypervisor"),
        (made("stopped"), {"state": "started"}, Host(probes={"qemu": Probe(accels=("tcg",))}), "accel"),
        (made("stopped"), {"image": "plain", "user": "admin", "recreate": True}, HOST, "user"),
    ],
)
def test_changes_that_cannot_be(record, definition, host, option):
    with pytest.raises(CocoonError) as caught:
        host.plan(record, definition)
    assert caught.value.option == option


def test_accel_can_be_given_up_where_kvm_is_gone():
    host = Host(probes={"qemu": Probe(accels=("tcg",))})
    assert steps(host.plan(made("stopped"), {"state": "started", "accel": "tcg"})) == ["configure", "start"]


# ---------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    "record, definition",
    [
        (None, {**SAME, "state": "started"}),
        (made(), {**SAME, "password": PASSWORD + "!", "ssh_keys": [KEY + "!"], "recreate": True}),
        (made(), {**SAME, "password": PASSWORD + "!"}),
        (made(relogin=True), {**SAME, "password": PASSWORD + "!", "allow_restart": True}),
    ],
)
def test_secrets_are_nowhere_to_be_seen(record, definition):
    plan = HOST.plan(record, definition, UP if record else DOWN)
    text = repr(plan) + json.dumps(plan.diff) + json.dumps(plan.actions) + repr(plan.steps)
    told = plan.step(kinds.SetLogin)
    given = plan.wanted or (told.values if told else None)
    assert given is None or given["password"].startswith(PASSWORD), "the executor has to have it"
    assert "password" in text and PASSWORD not in text


OTHER_KEY = KEY.replace("example", "another")


def test_a_diff_shows_which_user_and_which_keys():
    change = {"user": "ops", "ssh_keys": [OTHER_KEY, KEY], "recreate": True}
    plan = HOST.plan(made("stopped"), change)
    assert plan.diff["before"] == {"user": "admin", "ssh_keys": [KEY]}
    rebuild = "rebuild (system disk made anew)"
    assert plan.diff["after"] == {
        "user": "ops",
        "ssh_keys": [OTHER_KEY, KEY],
        "how": {"vm": rebuild, "user": rebuild, "ssh_keys": rebuild},
    }
    old = made("stopped", login={key: value for key, value in made()["login"].items() if key != "public"})
    assert "only its digest" in HOST.plan(old, change).diff["before"]["ssh_keys"]
    (warning,) = HOST.plan(made(), {"ssh_keys": [OTHER_KEY]}, UP).warnings
    words = "ssh_keys (+ ssh-ed25519 …3nukQzizt6Lk someone@another, - ssh-ed25519 …3nukQzizt6Lk someone@example)"
    assert words in warning


@pytest.mark.parametrize("kind", [*TELLS, None])
@pytest.mark.parametrize("row", LOGIN_ROWS, ids=lambda row: row[0])
def test_login_data_that_a_guest_cannot_be_told_of_hold_nothing_up(row, kind):
    option = next(iter(row[1]))
    record = made(**TELLS.get(kind, {}))
    for permissions in ({}, {"recreate": True} if kind else {"allow_restart": True}):
        plan = HOST.plan(record, {**row[1], "labels": {}, "state": "started", **permissions}, UP)
        assert steps(plan) == ["configure"] and [change.option for change in plan.changes] == ["labels"]
        (warning,) = plan.warnings
        assert f"{option} (" in warning and "accept_login: true" in warning and "'web1'" in warning
        assert ("allow_restart: true" if kind else "recreate: true") in warning
    assert not HOST.plan(record, row[1], UP).changed


@pytest.mark.parametrize("kind", TELLS)
@pytest.mark.parametrize("row", LOGIN_ROWS, ids=lambda row: row[0])
def test_login_data_reach_a_guest_that_looks_for_them_at_its_next_start(row, kind):
    for observed, options, expected, how in (
        (UP, {"allow_restart": True}, ["stop", "set_login", "start"], "restart"),
        (UP, {"state": "restarted"}, ["stop", "set_login", "start"], "restart"),
        (UP, {"state": "stopped"}, ["stop", "set_login"], "offline"),
        (DOWN, {"state": "started"}, ["set_login", "start"], "offline"),
        (DOWN, {}, ["set_login"], "offline"),
        (UP, {"accept_login": True}, ["set_login"], "live"),
    ):
        record = made("running" if observed.running else "stopped", **TELLS[kind])
        plan = HOST.plan(record, {**row[1], **options}, observed)
        assert (steps(plan), plan.warnings) == (expected, ()), (options, plan.warnings)
        assert {change.how for change in plan.changes} == {how}
        assert plan.step(kinds.SetLogin).told == ("accept_login" not in options)
        record, after = apply(record, observed, plan)
        state = options.get("state", "present")
        assert not HOST.plan(record, {**row[1], "state": "started" if state == "restarted" else state}, after).changed


def test_login_data_are_part_of_what_is_made_anew():
    change = {"ssh_keys": [OTHER_KEY], "recreate": True}
    assert steps(HOST.plan(made(), change, UP)) == ["stop", "rebuild", "start"]
    plan = HOST.plan(made(relogin=True), {**change, "image": "debian"}, UP)
    assert steps(plan) == ["stop", "rebuild", "start"] and plan.wanted["ssh_keys"] == [OTHER_KEY]
    assert not any("goes on with" in warning for warning in plan.warnings)


def test_user_data_are_for_the_first_boot_alone():
    record = made(image_type="cloudimg")
    (warning,) = HOST.plan(record, {"user_data": "#!/bin/sh"}, UP).warnings
    assert "first boot" in warning and "recreate: true" in warning
    assert steps(HOST.plan(record, {"user_data": "#!/bin/sh", "accept_login": True}, UP)) == ["set_login"]


def test_changed_login_keeps_what_is_not_given():
    before = login_digests({"user": "admin", "password": PASSWORD, "ssh_keys": [KEY]}, "salt")
    after = changed_login(before, {"ssh_keys": [OTHER_KEY]}, "pepper")
    assert after == login_digests({"user": "admin", "password": PASSWORD, "ssh_keys": [OTHER_KEY]}, "salt")
    assert changed_login({}, {"user": "ops"}, "pepper") == login_digests({"user": "ops"}, "pepper")


@pytest.mark.parametrize(
    "definition, observed, how, hows",
    [
        ({"cpu": 4, "labels": {}}, UP, "restart", {"cpu": "restart", "labels": "live"}),
        ({"labels": {}}, UP, "live", {"labels": "live"}),
        ({"cpu": 4}, DOWN, "offline", {"cpu": "offline"}),
        (
            {"image": "debian", "cpu": 4},
            UP,
            "rebuild (system disk made anew)",
            {"image": "rebuild (system disk made anew)", "cpu": "restart"},
        ),
    ],
)
def test_a_diff_says_how(definition, observed, how, hows):
    permissions = {"allow_restart": True, "recreate": True}
    plan = HOST.plan(made("running" if observed.running else "stopped"), {**definition, **permissions}, observed)
    assert plan.how == how and plan.diff["after"]["how"] == {"vm": how, **hows}
    assert any("'web1': its system disk is made anew" in text for text in plan.warnings) == ("image" in definition)


def test_what_changes_no_option_has_its_action_for_how():
    assert HOST.plan(None, {"image": "tiny"}).how == "create"
    assert HOST.plan(made("stopped"), {"state": "started"}).how == "start"
    assert HOST.plan(made(), {"state": "restarted"}, UP).how == "restart"
    assert HOST.plan(made(), {"state": "present"}, UP).how is None


def test_login_digests():
    assert digest_login("a", "x") != digest_login("b", "x")
    assert digest_login("a", ["k1", "k2"]) == digest_login("a", ["k2 ", "k1", "k1"])
    login = login_digests({"user": "admin", "password": None}, "salt")
    assert login == {
        "salt": "salt",
        "digests": {"user": digest_login("salt", "admin")},
        "public": {"user": "admin"},
    }


def test_login_that_was_never_given_differs_but_no_keys_are_no_keys():
    record = made("stopped", login={"salt": "s", "digests": {}})
    assert "password" in HOST.plan(record, {"password": PASSWORD}).warnings[0]
    assert not HOST.plan(record, {"ssh_keys": []}).changed


@pytest.mark.parametrize("moving, words", [({"to": "hv1"}, "to hv1"), ({"from": "hv2"}, "here from hv2")])
@pytest.mark.parametrize("definition", [{"state": "started"}, {"state": "absent", "force": True}, {"cpu": 2}])
@pytest.mark.parametrize("state", ["stopped", "creating"])
def test_a_vm_on_its_way_is_touched_by_nothing_else(state, definition, moving, words):
    with pytest.raises(ChangeRefusedError, match=words):
        HOST.plan(made(state, moving={"token": "x", **moving}), definition)


# ------------------------------------------------------------------------------------ prune


@pytest.mark.parametrize(
    "listed, options, expected",
    [
        (["web1"], {}, ["db1"]),
        (["web1", "db1"], {}, []),
        (["other"], {}, ["db1", "web1"]),
        (["web1"], {"force": True}, ["db1", "old"]),
        (["web1"], {"force": True, "elsewhere": {"db1": "hv2", "old": "hv2"}}, []),
        ([], {"emptied": True}, ["db1", "web1"]),  # count: 0 for all that is listed
    ],
)
def test_prune(listed, options, expected):
    records = [
        {"config": {"name": "web1"}, "owner": "us", "state": "running"},
        {"config": {"name": "db1"}, "owner": "us", "state": "stopped"},
        {"config": {"name": "theirs"}, "owner": "them", "state": "running"},
        {"config": {"name": "nobody"}, "state": "creating"},
        {"config": {"name": "leaving"}, "owner": "us", "state": "hibernated", "moving": {"to": "hv2"}},
        {"config": {"name": "old"}, "owner": "us", "state": "removed"},
    ]
    assert plan_prune([{"name": name} for name in listed], records, "us", **options) == expected
    assert prune_definition("db1", "us")["owner"] == "us"


def test_a_pruned_vm_that_changed_hands_stays_even_with_force():
    record = {"id": "x", "config": {"name": "db1"}, "owner": "them", "state": "stopped"}
    with pytest.raises(ChangeRefusedError, match="belongs to 'them'"):
        plan_vm(record, Observed(), prune_definition("db1", "us", force=True), Context())


def test_a_nic_does_not_inherit_what_another_one_asks_for():
    nics = [{"network_name": "a", "mac": mac, "network": {"ip": ip}} for mac, ip in (("m1", ".5"), ("m2", ".6"))]
    wanted = table.wanted_nics(
        {"config": {"network": "a"}, "network_configs": nics},
        {"nics": [{"mac": "m2", "ip": ".6"}, {"network": "a"}]},
    )
    assert [(nic["mac"], nic["ip"]) for nic in wanted] == [("m2", ".6"), (None, None)]


@pytest.mark.parametrize("definitions, flags", [([], {}), ([{"name": "a"}], {"limited": True}),
                                                ([{"name": "a"}], {"incomplete": True})])  # fmt: skip
def test_prune_is_refused(definitions, flags):
    with pytest.raises(ChangeRefusedError) as caught:
        plan_prune(definitions, [{"config": {"name": "b"}, "owner": "us", "state": "running"}], "us", **flags)
    assert caught.value.option == "prune" and caught.value.remedy


def test_a_balloon_of_nothing_is_no_balloon_that_is_off():
    for before, after, shown in ((None, "0", ("off", "0")), (0, "off", ("0", "off"))):
        plan = HOST.plan(made("stopped", balloon=before), {"balloon": after})
        assert (plan.diff["before"]["balloon"], plan.diff["after"]["balloon"]) == shown


def test_more_vcpus_reach_a_running_guest_that_has_room_for_them():
    have = made("running", cpu_max=4)
    plan = HOST.plan(have, {"cpu": 3}, UP)
    assert steps(plan) == ["set_cpus"] and plan.how == "live"
    assert plan.diff["after"]["cpu"] == 3 and "online" in plan.warnings[0]
    lacking = Host(caps={"qemu": Caps(live_cpus=False)})
    with pytest.raises(ChangeRefusedError, match="restart"):
        lacking.plan(have, {"cpu": 3}, UP)
    again = HOST.plan(have, {"cpu": 6, "cpu_max": 8, "allow_restart": True}, UP)
    assert steps(again) == ["stop", "configure", "start"] and not any("online" in word for word in again.warnings)


# ------------------------------------------------------------------------- the documentation


def _documented():
    """``{option: {how, …}}`` from the table in docs/changes.md."""
    folder = os.path.dirname(os.path.abspath(__file__))
    while not os.path.exists(os.path.join(folder, "galaxy.yml")):
        folder = os.path.dirname(folder)
    rows = {}
    with open(os.path.join(folder, "docs", "changes.md"), encoding="utf-8") as stream:
        for line in stream:
            match = re.match(r"^\| (`[^|]*?`) *\|[^|]*\| *(live|restart|rebuild|refused)\b", line)
            if match:
                for option in re.findall(r"`([a-z_]+)", match.group(1)):
                    rows.setdefault(option, set()).add(match.group(2))
    return rows


def test_the_documentation_has_every_row():
    documented = _documented()
    for option in PLAIN:
        assert documented[option.name] == {option.how, option.of_disk or option.how}, option.name
        assert any(option.name in row[2] for row in ROWS), f"{option.name} has no row here"
    found = {"user_data": {"rebuild"}}
    for _what, definition in LOGIN_ROWS:
        for record in ({}, *TELLS.values()):
            plan = HOST.plan(made(**record), {**definition, "allow_restart": True, "recreate": True}, UP)
            found.setdefault(next(iter(definition)), set()).update(change.how for change in plan.changes)
    for row in ROWS:
        for observed, permissions in ((UP, {"allow_restart": True, "recreate": True}), (UP, {})):
            try:
                plan = _row_plan(row, observed, **permissions)
            except ChangeRefusedError:
                continue
            for change in plan.changes:
                found.setdefault(re.split(r"\W", change.option)[0], set()).add(change.how)
        if row[3] == "refused":
            found.setdefault(re.split(r"\W", next(iter(row[2])))[0], set()).add("refused")
    for option, hows in found.items():
        assert hows <= documented[option], option
    assert set(found) == set(documented)


# ---------------------------------------------------------------------------------- purity


def test_importing_the_planner_takes_in_nothing_beyond_the_standard_library():
    code = (
        "import sys; import ansible_collections.cocoon.microvm.plugins.module_utils._planning.vm as vm;"
        "print([name for name in ('ansible', 'yaml', 'pyroute2', 'jsonschema', 'requests', 'subprocess', 'socket')"
        " if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "[]", done.stderr


# ------------------------------------------------------------------------- NICs that come and go while it runs


MORE = {"nics": [{}, {"network": "flat"}]}


def taking(**fields):
    """A running VM whose guest takes NICs that come and go."""
    return made("running", hotplug_nics=True, **fields)


@pytest.mark.parametrize("state", ["present", "started"])
def test_nics_come_to_a_running_guest(state):
    plan = HOST.plan(taking(), {"state": state, **MORE}, Observed(running=True))
    assert (plan.how, steps(plan), plan.restarts) == ("live", ["set_nics", "plug_nics"], False)


@pytest.mark.parametrize(
    ("fields", "observed", "state"),
    [
        ({"hotplug_nics": False}, Observed(running=True), "present"),
        ({}, Observed(running=True, paused=True), "present"),
        ({}, Observed(running=True), "paused"),
        ({"identity_pending": ["02:00:00:00:00:09"]}, Observed(running=True), "started"),
    ],
)
def test_a_guest_that_cannot_be_told_is_restarted(fields, observed, state):
    record = {**taking(), **fields}
    with pytest.raises(ChangeRefusedError, match="needs a restart of the running VM"):
        HOST.plan(record, {"state": state, **MORE}, observed)


def test_nics_of_a_vm_that_does_not_run_need_no_plugging():
    assert steps(HOST.plan(made("stopped"), {"state": "present", **MORE}, Observed())) == ["set_nics"]
    assert "plug_nics" not in steps(HOST.plan(taking(), {"state": "restarted", **MORE}, Observed(running=True)))


def test_what_was_cut_short_is_finished():
    record = taking(untold_nics=["02:00:00:00:00:01"])
    plan = HOST.plan(record, {"state": "started"}, Observed(running=True))
    assert (plan.action, steps(plan)) == ("repair", ["plug_nics"])
    assert steps(HOST.plan(record, {"state": "present"}, Observed(running=True, paused=True))) == []


# ------------------------------------------------------------------------------------ NICs that were unplugged


UNPLUGGED = Observed(running=True, nics={"nics[0]": "not on cm-lab"})


@pytest.mark.parametrize("state", ["present", "started"])
def test_a_nic_that_was_unplugged_is_a_change(state):
    plan = HOST.plan(made("running"), {"state": state}, UNPLUGGED)
    assert (plan.action, steps(plan), plan.restarts) == ("repair", ["mend_nics"], False)
    how = {"vm": "repair", "nics[0]": "live"}
    assert plan.diff == {"before": {"nics[0]": "not on cm-lab"}, "after": {"nics[0]": "in order", "how": how}}
    plan = HOST.plan(made("running"), {"state": state, "labels": {"a": "b"}}, UNPLUGGED)
    assert (plan.action, steps(plan)) == ("update", ["configure", "mend_nics"])


@pytest.mark.parametrize("options", [{"state": "stopped"}, {"state": "restarted"}, {"cpu": 7, "allow_restart": True}])
def test_a_vm_that_stops_needs_no_mending(options):
    assert "mend_nics" not in steps(HOST.plan(made("running"), options, UNPLUGGED))


def test_a_tap_that_is_gone_is_a_warning():
    plan = HOST.plan(made("running"), {"state": "started"}, Observed(running=True, lost=("nics[1]",)))
    assert not plan.changed and "nics[1] is gone" in plan.warnings[0]


# ------------------------------------------------------------------------------------ a console that nobody keeps


UNKEPT = Observed(running=True, console_lost=True)


@pytest.mark.parametrize("state", ["present", "started"])
def test_a_console_that_nobody_keeps_is_a_change(state):
    plan = HOST.plan(made("running"), {"state": state}, UNKEPT)
    assert (plan.action, steps(plan), plan.restarts) == ("repair", ["mend_console"], False)
    how = {"vm": "repair", "console": "live"}
    assert plan.diff == {"before": {"console": "its log has no keeper"}, "after": {"console": "in order", "how": how}}


@pytest.mark.parametrize("options", [{"state": "stopped"}, {"state": "restarted"}, {"cpu": 7, "allow_restart": True}])
def test_a_vm_that_stops_needs_no_keeper(options):
    assert "mend_console" not in steps(HOST.plan(made("running"), options, UNKEPT))
