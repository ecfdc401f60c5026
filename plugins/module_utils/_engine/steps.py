# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of a plan, carried out. Each is idempotent and leaves the state files true before and after."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import steps
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import (
    PHASE_HIBERNATE,
    PHASE_REBUILD,
    PHASE_REMOVE,
    PHASE_RESTORE,
    PHASE_SAVE,
    REMOVED,
    SECRETS,
    changed_login,
    is_made,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import REBUILT, with_values
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import store as snapshots
from ansible_collections.cocoon.microvm.plugins.module_utils._state import locked, remove_file, remove_tree
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import (
    admission,
    asking,
    cidata,
    container,
    mounts,
    nics,
    power,
    reserve,
    resuming,
    salvage,
    saving,
    storage,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import (
        DataDisk,
        NetworkConfig,
        VmRecord,
    )


# Seconds that a guest has to shut down where nobody says how many; Windows has much to do first.
STOPS, WINDOWS_STOPS = 30.0, 120.0


class Job:
    """One VM on its way through the steps of its plan."""

    def __init__(self, run: Run, record: VmRecord | None, controls: Record) -> None:
        self.run = run
        self.record = record
        self.controls = controls
        self.promised = False
        self.begun: float | None = None
        self.done: list[str] = []

    @property
    def known(self) -> VmRecord:
        if self.record is None:
            raise StateError("the plan has a step for a VM that does not exist")
        return self.record

    @property
    def vm(self) -> Vm:
        return Vm(self.run, self.known)


def recover(job: Job) -> None:
    """Before the steps of a plan, take back what a killed run began and what none of them may come back to."""
    record = job.record
    if record is None or not is_made(record):
        return
    power.end_strays(record)  # or a step takes the VM for one that does not run
    if record.get("phase") == PHASE_HIBERNATE:
        finish_hibernation(job)
    if record.get("phase") == PHASE_SAVE:
        go_on(job)
    if record.get("phase") != PHASE_RESTORE:  # that has a step of its own, unless the VM goes anyway
        from ansible_collections.cocoon.microvm.plugins.module_utils._vms import restoring

        restoring.tidy(job.vm)
        tidy(job)


def tidy(job: Job) -> None:
    """Let go of what a change that is over, or did not come about, held."""
    vm, record = job.vm, job.known
    if record.get("held_images") and record.get("phase") != PHASE_REBUILD:
        reserve.unpin_images(vm.run, record)
    if not record.get("resume"):  # a start was killed when it had been taken up
        resuming.forget(vm)
    storage.settle(vm)


def go_on(job: Job) -> None:
    """Let a guest run that a killed run stopped to save it."""
    vm, record = job.vm, job.known
    if vm.runs() and record["state"] == types.RUNNING:
        vm.driver.resume(vm.run_dir)
        asking.wake(vm, power.AGENT)
    if record["state"] != types.HIBERNATED:
        resuming.forget(vm)
    vm.write(phase=None)


def reserve_job(job: Job, wanted: Record, starts: bool) -> None:
    """Allocate a new VM: admission first, then everything it holds. The host's lock is held."""
    run, kept = job.run, None
    if job.record is not None:  # kept disks, or what a process that died left behind
        kept = abandon(job.vm)
        job.record = None
    vm = Vm(run, reserve.reserve(run, wanted, kept))
    if starts:
        try:
            admission.promise_memory(run, vm.id, vm.uid, wanted["memory"])
        except Exception:
            abandon(vm)
            raise
        job.promised = True
    job.record = vm.record
    vm.mark("create.memory")


def leftover_disks(vm: Vm) -> list[DataDisk]:
    """The data disks of a VM that is not (or not any more) there, which must outlive its record."""
    record = vm.record
    if record.get("delete_data_disks"):
        return []
    disks = [*(record.get("data_disks") or []), *(record.get("detached_disks") or [])]
    if record["state"] == types.CREATING:
        disks = record.get("kept_disks") or []
    return [disk for disk in disks if os.path.lexists(vm.data_disk(disk["name"]))]


def abandon(vm: Vm) -> VmRecord | None:
    """Take a half-made or half-removed VM apart; gives the record that keeps its data disks, if any."""
    if salvage.is_lost(vm.record):
        vm = Vm(vm.run, salvage.rebuilt(vm.run, vm.record))
    if vm.record["state"] == REMOVED and not vm.record.get("delete_data_disks"):
        return vm.record
    disks = leftover_disks(vm)
    if not disks:
        discard(vm)
        return None
    keep_disks(vm, disks)
    return vm.record


def create(job: Job, step: steps.Create) -> None:
    """Make the files of a VM that reserve_job has allocated."""
    vm, run, record, wanted = job.vm, job.run, job.known, step.wanted
    login = {key: wanted[key] for key in SECRETS if wanted.get(key)}
    try:
        if wanted.get("snapshot_id"):
            _clone(vm, wanted.get("disks_only", False))
        else:
            storage.create_disks(vm, login or None)
        if wanted.get("secret_env"):
            container.keep_secrets(vm.paths, record, wanted["secret_env"])
        run.sync_networks()
        made = record.copy()  # until it is written down that it is made, it is not
        Vm(run, made).set_state(types.CREATED, "created", kept_disks=[])
    except Exception:
        unplug(vm)
        with locked(vm.paths, ["host"], run.options.lock_timeout):
            abandon(vm)
        job.record = None
        raise
    record.update(made)
    vm.mark("create.done")


def _clone(vm: Vm, disks_only: bool) -> None:
    """The disks of a VM that is made from a snapshot, whose lock is held, and the memory that it goes on from."""
    run, record = vm.run, vm.record
    snapshot = run.snapshot(record["snapshot"], disks_only)
    if snapshot is None or snapshot["id"] != record["snapshot_id"]:
        raise StateError(f"snapshot '{record['snapshot']}' has gone", "snapshot", "Take it again with cocoon_snapshot.")
    run.verify(snapshot)
    resuming.check_snapshot(run, snapshot, record, "snapshot")
    resuming.clone_disks(vm, snapshot)
    for disk in record["data_disks"]:  # beside those of a snapshot of disks alone there may be new and larger ones
        before = next((item["size"] for item in snapshot["data_disks"] if item["name"] == disk["name"]), 0)
        storage.create_data_disk(vm, disk, before)
    if cidata.takes(record):
        cidata.expect_boot(vm.paths, record, resumes=snapshot["kind"] == snapshots.FULL)
    if record["config"]["storage"] > snapshot["storage"]:
        storage.grow_file(vm, vm.system_disk, record["config"]["storage"], "ext4")


def _end(vm: Vm) -> None:
    """No process, socket, RAM or log of this VM from here on."""
    # A removal that was killed may have given the uid back, and another VM may have it by now.
    if vm.record.get("uid") and vm.run.store.index("uid").lookup(str(vm.uid)) == vm.id:
        process = vm.process()
        if process is not None:
            with process:
                process.end()
        power.end_unrecorded(vm)  # what is released from here on must be held by nobody
    power.clear_runtime(vm)
    unplug(vm)
    mounts.unmount(vm.paths.vm_log(vm.id))
    remove_tree(vm.paths.vm_log(vm.id))
    vm.mark("remove.runtime")


def unplug(vm: Vm) -> None:
    """Have plugins take down what they made for the VM, once a run: that they fail does not keep it here.

    It may take them long: before the host's lock is taken, where that is to come.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import attachments

    if vm.id not in vm.run.unplugged:
        vm.run.unplugged.add(vm.id)
        vm.run.warnings += _kept(attachments.unplug(vm.run.store, vm.id))


def _kept(failed: t.Iterable[str]) -> list[str]:
    return [f"{words} What it holds is kept on record; the next run, or a prune, tries again." for words in failed]


def discard(vm: Vm) -> None:
    """Take a VM apart, whatever is there of it. The host's lock is held."""
    _end(vm)
    mounts.unmount_unused(vm.paths.ram)
    if vm.record.get("promised_disk"):
        with contextlib.suppress(OSError):  # a full file system: the ledger is too high until it is counted anew
            admission.promise_disk(vm.run, vm.id, 0)
    reserve.release(vm.run, vm.record)


def start(job: Job, _step: steps.Start) -> None:
    vm, run = job.vm, job.run
    try:
        if vm.record.get("planned_nics"):  # a change of NICs was cut short
            _settle_nics(vm)
        power.ready_networks(vm)
        _follow_way_out(vm)
        run.sync_networks()
    except (CocoonError, OSError):
        if job.promised:
            power.clear_runtime(vm)
        raise
    job.begun = power.start(vm, promised=job.promised)
    job.promised = False


def _follow_way_out(vm: Vm) -> None:
    """Publish the ports on the NIC that is the guest's way out from this start on: its networks may have changed."""
    run, record = vm.run, vm.record
    before = [config.get("way_out") for config in record["network_configs"]]
    reserve.route_nics(run, record["network_configs"])
    if record.get("ports") and before != [config["way_out"] for config in record["network_configs"]]:
        with locked(vm.paths, ["host"], run.options.lock_timeout):
            reserve.give_back_ports(run, record, record["ports"])
            reserve.take_ports(run, record)


def stop(job: Job, step: steps.Stop) -> None:
    vm = job.vm
    # Known before it is down, so that it comes up again after a crash.
    if vm.record.get("restarting", False) != step.restart:
        vm.write(restarting=step.restart)
        vm.mark("stop.begun")
    timeout = job.controls.get("stop_timeout")
    usual = WINDOWS_STOPS if vm.record["config"].get("windows") else STOPS
    power.stop(vm, usual if timeout is None else float(timeout), step.force, step.keep)


def remove(job: Job, step: steps.Remove) -> None:
    """Remove a VM. Its data disks are kept, under its name, unless their deletion is allowed."""
    if salvage.is_lost(job.known):
        job.record = salvage.rebuilt(job.run, job.known)
    vm, run, record = job.vm, job.run, job.known
    if not record.get("bare"):
        delete = step.delete_data_disks or bool(record.get("delete_data_disks"))  # what was begun is finished
        vm.set_state(record["state"], "removing", phase=PHASE_REMOVE, delete_data_disks=delete)
    vm.mark("remove.record")
    if reserve.all_ports(record):  # before the record goes, which is what the next run knows of them
        reserve.give_back_ports(run, record, reserve.all_ports(record))
        run.sync_networks()
        vm.mark("remove.unpublished")
    _end(vm)  # an unmount takes the kernel a while, so not under the host's lock
    with locked(vm.paths, ["host"], run.options.lock_timeout):
        disks = leftover_disks(vm)
        if disks:
            keep_disks(vm, disks)
        else:
            discard(vm)
    job.record = None


def make_room(job: Job) -> None:
    """On a full file system a VM that is to go loses its system disk first, so that the rest can be written down."""
    if job.record is not None and not job.record.get("bare"):
        remove_file(job.vm.system_disk)


def keep_disks(vm: Vm, disks: list[DataDisk]) -> None:
    """Take a VM apart but for its data disks, which wait for a VM of the same name."""
    _end(vm)
    mounts.unmount_unused(vm.paths.ram)
    reserve.release_all_but_disks(vm.run, vm.record, [disk["name"] for disk in disks])
    size = sum(disk["size"] for disk in disks)
    admission.promise_disk(vm.run, vm.id, size)
    vm.set_state(
        REMOVED,
        "removed, data disks kept",
        phase=None,
        restarting=False,
        network_configs=[],
        planned_nics=[],
        storage_configs=[],
        ports=[],
        planned_ports=[],
        image_id=None,
        held_images=[],
        data_disks=[],
        detached_disks=disks,
        kept_disks=[],
        promised_disk=size,
    )
    vm.mark("remove.kept")


def configure(job: Job, step: steps.Configure) -> None:
    """Change options that take effect at the next start, or are only kept."""
    keep(job, step.values)


def keep(job: Job, values: t.Mapping[str, t.Any]) -> None:
    """Have the record say that these options have these values, and what follows from them."""
    vm, record = job.vm, job.known
    record.update(with_values(record, values))
    if "accel" in values:
        record.update(t.cast("VmRecord", vm.driver.repin(record["accel"])))
    if "cpu" in values:
        for config in record["network_configs"]:
            config["num_queues"] = record["config"]["cpu"] * 2
    if "queue_size" in values:
        for config in record["network_configs"]:
            config["queue_size"] = record["config"]["queue_size"]
    vm.write(updated_at=types.now())
    vm.mark("configure.done")


def set_secret_env(job: Job, step: steps.SetSecretEnv) -> None:
    """Other secrets for the command of a container, from its next start on."""
    vm = job.vm
    container.keep_secrets(vm.paths, vm.record, step.values)
    vm.mark("secret_env.file")
    vm.write()
    vm.mark("secret_env.done")


def set_login(job: Job, step: steps.SetLogin) -> None:
    """Other login data, from the guest's next start on, or as it has them by now."""
    vm = job.vm
    before = vm.record.get("login") or {}
    login = changed_login(before, step.values, os.urandom(16).hex())
    if step.told:
        # A change that was killed here is made again: what it has left stays a difference.
        former = before.get("public", {}).get("user", "root") if before.get("digests") else None
        changing = Vm(vm.run, {**vm.record, "login": login})
        same = former == login["public"].get("user", "root")
        storage.change_login(changing, dict(step.values), None if same else former)
        vm.record["cidata_given"] = changing.record.get("cidata_given", False)
        vm.mark("login.file")
    vm.write(login=login)
    vm.mark("login.done")


def grow_system_disk(job: Job, step: steps.GrowSystemDisk) -> None:
    storage.grow_system_disk(job.vm, step.size)


def grow_data_disk(job: Job, step: steps.GrowDataDisk) -> None:
    storage.grow_data_disk(job.vm, step.disk, step.size)


def add_disk(job: Job, step: steps.AddDisk) -> None:
    storage.add_disk(job.vm, step.disk)


def set_disk_limits(job: Job, step: steps.SetDiskLimits) -> None:
    storage.set_limits(job.vm, step.disk, step.limits)


def drop_disk(job: Job, step: steps.DropDisk) -> None:
    storage.drop_disk(job.vm, step.disk, step.delete)


def set_balloon(job: Job, step: steps.SetBalloon) -> None:
    vm = job.vm
    if vm.runs():
        vm.driver.set_balloon(vm.run_dir, step.balloon)
    vm.mark("set_balloon.asked")
    keep(job, {"balloon": step.balloon})


def set_cpus(job: Job, step: steps.SetCpus) -> None:
    """More vCPUs. Its NICs keep the queues that they have until it is started anew."""
    vm = job.vm
    if vm.runs():
        vm.driver.add_cpus(vm.run_dir, step.cpu)
    vm.mark("set_cpus.asked")
    vm.record["config"]["cpu"] = step.cpu
    vm.write(updated_at=types.now())
    vm.mark("set_cpus.done")


def set_nics(job: Job, step: steps.SetNics) -> None:
    """Other NICs, and their ports: what both lists share is kept, the rest released or taken.

    While it lasts the record lists the new ones under ``planned_nics``, so that whoever comes after
    a crash can give them back, and the old ones still stand where the planner compares them. Of a VM that runs those
    go first that are not to be; what it is to be given or told after that stands under ``untold_nics``.
    """
    vm, run, record = job.vm, job.run, job.known
    old, live = list(record["network_configs"]), vm.runs()
    default = record["config"]["network"] if step.network is None else step.network
    with locked(vm.paths, ["host"], run.options.lock_timeout):
        new = _plan_nics(vm, [{"network": default, **nic} for nic in step.nics])
    untold = []
    if live:
        new = nics.kept(vm, new)
        untold = nics.untold(vm, new)
        try:
            nics.pull(vm, new)
        except CocoonError:
            with locked(vm.paths, ["host"], run.options.lock_timeout):
                reserve.give_back_nics(run, record, new, keep=old)
            gone = nics.lacking(vm)
            vm.write(planned_nics=[], untold_nics=gone or record.get("untold_nics"))
            raise
        vm.mark("set_nics.pulled")
    with locked(vm.paths, ["host"], run.options.lock_timeout):
        reserve.give_back_ports(run, record, reserve.all_ports(record))
        record["config"]["network"] = default
        ports = list(record.get("ports") or []) if step.ports is None else list(step.ports)
        fields: Record = {"network_configs": new, "planned_nics": old, "nics": list(step.nics)}
        vm.write(**fields, ports=ports, planned_ports=[], untold_nics=untold or None)
        vm.mark("set_nics.written")
    _settle_nics(vm)
    vm.mark("set_nics.done")


def _plan_nics(vm: Vm, wanted: t.Sequence[Record]) -> list[NetworkConfig]:
    """Take what other NICs need beside those that there are. The host's lock is held.

    :raises CocoonError: it cannot be had; nothing has changed.
    """
    run, record = vm.run, vm.record
    old = list(record["network_configs"])
    reserve.give_back_nics(run, record, record.get("planned_nics") or [], keep=old)
    new = reserve.plan_nics(run, record, wanted)
    vm.write(planned_nics=new)
    vm.mark("set_nics.planned")
    try:
        reserve.take_nics(run, record, new)
    except CocoonError:
        reserve.give_back_nics(run, record, new, keep=old)
        vm.write(planned_nics=[])
        raise
    vm.mark("set_nics.taken")
    return new


def plug_nics(job: Job, _step: steps.PlugNics) -> None:
    """Plug NICs into a running VM that it lacks, each off its network until its guest has been told."""
    if job.vm.runs():
        power.ready_networks(job.vm)
        nics.plug(job.vm)
        job.run.sync_networks()


def _settle_nics(vm: Vm) -> None:
    """Give back NICs that the record lists besides its own, and publish its own and its ports."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import attachments

    run, record = vm.run, vm.record
    # As in unplug.
    vm.run.warnings += _kept(attachments.unplug(run.store, vm.id, plugged(record["network_configs"])))
    with locked(vm.paths, ["host"], run.options.lock_timeout):
        reserve.give_back_nics(run, record, record["planned_nics"], keep=record["network_configs"])
        kept = {config["tap"] for config in record["network_configs"]}
        reserve.drop_guards(run, [config for config in record["planned_nics"] if config["tap"] not in kept])
        reserve.serve_nics(run, record)
        reserve.take_ports(run, record)
        run.sync_networks()
        vm.mark("set_nics.settled")
        vm.write(planned_nics=[])


def plugged(configs: t.Iterable[t.Mapping[str, t.Any]]) -> set[tuple[str, int]]:
    """The NICs of a VM as :func:`attachments.unplug` knows them."""
    return {(config["network_id"], index) for index, config in enumerate(configs) if config.get("netns_path")}


def set_ports(job: Job, step: steps.SetPorts) -> None:
    """Publish other ports. Until the firewall knows them they are ``planned_ports``."""
    vm, run, record, ports = job.vm, job.run, job.known, list(step.ports)
    before = list(record.get("ports") or [])
    with locked(vm.paths, ["host"], run.options.lock_timeout):
        record["planned_ports"] = [*(record.get("planned_ports") or []), *ports]
        vm.write()
        vm.mark("set_ports.planned")
        try:
            reserve.take_ports(run, {**record, "ports": ports})
        except CocoonError:
            reserve.give_back_ports(run, record, record["planned_ports"], keep=before)
            vm.write(planned_ports=[])
            raise
        vm.mark("set_ports.taken")
        reserve.give_back_ports(run, record, reserve.all_ports(record), keep=ports)
    run.sync_networks()
    vm.mark("set_ports.synced")
    vm.write(ports=ports, planned_ports=[])
    if vm.runs() and not record.get("identity_pending"):
        power.tell_ports(vm)
    vm.mark("set_ports.done")


def rebuild(job: Job, step: steps.Rebuild) -> None:
    """A new system disk from the wanted image; id, MACs, addresses and data disks stay."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import fresh_pins
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import kernel
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images

    vm, run, record, wanted = job.vm, job.run, job.known, step.wanted
    image = run.known_image(wanted["image"])
    storage.promise_system_disk(vm, wanted["storage"])
    record["held_images"] = sorted({record["image_id"], image["id"], *(record.get("held_images") or [])})
    vm.write()
    vm.mark("rebuild.begun")
    images.pin(run.store, image["id"], vm.id)
    vm.mark("rebuild.image")
    record.update(
        with_values(record, {name: wanted[name] for name in (*REBUILT, "image", "storage", "accel", "firmware")})
    )
    vm.write(
        image_id=image["id"],
        image_type=image["type"],
        image_digest=image["digest"],
        own_kernel=not kernel.needed(image),
        login=reserve.login_of(wanted),
        relogin="relogin" in image["features"],
        host_keys=[],
        first_booted=False,
        phase=PHASE_REBUILD,
        **fresh_pins(run.driver(wanted["hypervisor"]), wanted["accel"]),
    )
    vm.mark("rebuild.record")
    login = {key: wanted[key] for key in SECRETS if wanted.get(key)}
    storage.rebuild_system_disk(vm, login or None)
    reserve.unpin_images(run, record)
    vm.mark("rebuild.unpinned")
    vm.set_state(types.STOPPED, "rebuilt", phase=None)
    vm.mark("rebuild.done")


def mend_nics(job: Job, _step: steps.MendNics) -> None:
    """Plug the NICs of a running VM in again, on bridges that may have been made anew."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import backends

    vm, run, record = job.vm, job.run, job.known
    for config in record["network_configs"]:
        run.ensure_network(config["network_name"])
    power.guard_nics(run, [record])
    for config in record["network_configs"]:
        backends.of(config).mend(run.store, config, run.known_network(config["network_name"]))
        vm.mark("mend_nics.one")


def mend_console(job: Job, _step: steps.MendConsole) -> None:
    power.mend_console(job.vm)


def resume(job: Job, _step: steps.Resume) -> None:
    vm = job.vm
    vm.driver.resume(vm.run_dir)
    vm.set_state(types.RUNNING, "resumed")
    asking.set_time(vm, power.AGENT)


def pause(job: Job, _step: steps.Pause) -> None:
    vm = job.vm
    vm.driver.pause(vm.run_dir)
    vm.set_state(types.PAUSED, "paused")


def hibernate(job: Job, _step: steps.Hibernate) -> None:
    """Save a VM's memory and devices, and end it; its disks stay where they are."""
    vm, run, record = job.vm, job.run, job.known
    if record["state"] == types.HIBERNATED:  # a killed run got as far as this
        finish_hibernation(job)
        return
    saving.check_space(vm, memory=True, disks=False)
    path = resuming.make_folder(vm)
    try:
        saved, _stood = saving.save_running(vm, path, disks=False, stay=True)
        resuming.settle_hibernation(vm, saved)
        asleep = record.copy()
        Vm(run, asleep).set_state(types.HIBERNATED, "hibernated", phase=PHASE_HIBERNATE)
    except BaseException:
        with contextlib.suppress(CocoonError, OSError):  # else the next run does it: what failed first is what is told
            go_on(job)
        raise
    record.update(asleep)
    vm.mark("hibernate.record")
    finish_hibernation(job)


def finish_hibernation(job: Job) -> None:
    """End the process of a VM whose memory is safe."""
    vm = job.vm
    process = vm.process()
    if process is not None:
        with process:
            process.end(grace=0)
    vm.mark("hibernate.process")
    power.rest_nics(vm)
    power.clear_runtime(vm)
    vm.set_state(types.HIBERNATED, "hibernated", **power.not_running())
    vm.mark("hibernate.done")


def restore(job: Job, _step: steps.Restore) -> None:
    finish_restore(job)


def finish_restore(job: Job) -> None:
    """Carry a restore that a killed run began to its end."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._vms import restoring

    restoring.go_on(job.vm)
    tidy(job)


# What tells a guest who it is comes with the guests of the round that are waited for.
EXECUTORS: dict[type[steps.Step], t.Callable[[Job, t.Any], None]] = {
    steps.Restore: restore,
    steps.Stop: stop,
    steps.Remove: remove,
    steps.Create: create,
    steps.DropDisk: drop_disk,
    steps.SetNics: set_nics,
    steps.GrowSystemDisk: grow_system_disk,
    steps.GrowDataDisk: grow_data_disk,
    steps.AddDisk: add_disk,
    steps.SetDiskLimits: set_disk_limits,
    steps.Configure: configure,
    steps.SetSecretEnv: set_secret_env,
    steps.SetLogin: set_login,
    steps.SetBalloon: set_balloon,
    steps.SetCpus: set_cpus,
    steps.Rebuild: rebuild,
    steps.SetPorts: set_ports,
    steps.Start: start,
    steps.MendNics: mend_nics,
    steps.PlugNics: plug_nics,
    steps.MendConsole: mend_console,
    steps.Resume: resume,
    steps.Pause: pause,
    steps.Hibernate: hibernate,
}
