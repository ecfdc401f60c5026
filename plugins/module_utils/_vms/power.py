# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting and stopping: the record says what is about to happen before it does, and what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._disks import await_tools, create_copy
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import BusyError, CocoonError, UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import keeping
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import settings
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.fit import no_kernel
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import PHASE_START, PRIVATE
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process, boot_id, identify
from ansible_collections.cocoon.microvm.plugins.module_utils._state import locked, remove_file, remove_tree, write_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import (
    asking,
    boot,
    cidata,
    container,
    guest_data,
    reserve,
    resuming,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.admission import promise_memory
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.mounts import mount_log
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Disk, Driver, Launch, Nic
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import (
        BootConfig,
        ImageRecord,
        NetworkConfig,
        NetworkRecord,
        StorageConfig,
        VmRecord,
    )

# Seconds between two pushes of the power button.
PRESS_AGAIN = 2.0
CLOSING = 2.0
# For an agent to answer; what has none has the power button.
AGENT = 2.0
QCOW2_OVERHEAD = 64 << 20


def end_strays(record: VmRecord) -> None:
    """End processes of a start whose writer died before it could record them."""
    if record.get("phase") != PHASE_START or record.get("phase_boot_id") != boot_id():
        return
    _end_all(Process.scan(record["uid"]))


def end_unrecorded(vm: Vm) -> None:
    """End what else runs as the VM's user, which is nobody else's.

    Under seccomp a hypervisor cannot fork, so there is nothing unless something went badly wrong:
    one look at the host at the beginning of a round is enough.
    """
    _end_all(Process.scan(vm.uid, vm.run.processes().get(vm.uid, ())))


def _end_all(processes: t.Iterable[Process]) -> None:
    """:raises HypervisorError: one does not end."""
    for process in processes:
        with process:
            process.end(grace=0)


def clear_runtime(vm: Vm) -> None:
    """Sockets and RAM of a VM that does not run; what it said is in its logs from here on."""
    keeping.await_end(vm.paths.console_log(vm.id), vm.record.get("uid"))
    remove_tree(vm.run_dir)
    # The first is the promise of its memory, whatever file holds it.
    for path in (vm.paths.ram_file(vm.id), vm.ram):
        remove_file(path)


def mend_console(vm: Vm) -> None:
    """Have somebody keep what a running VM prints, if nobody does.

    :raises HypervisorError: that cannot be had.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils import _scope as scope
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import keeper
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.launch import cut_log

    # A hypervisor may have filled the logs' file system with complaints that nobody takes what its guest prints.
    cut_log(vm.paths.hypervisor_log(vm.id))
    hypervisor = vm.process()
    if hypervisor is None:  # it has just ended, and needs nobody
        return
    with hypervisor:
        pid = keeper.mend(vm.paths.console_log(vm.id), vm.run_dir, vm.uid, hypervisor)
    if pid and scope.present():
        # One of its own: systemd lets nobody into a scope that has begun.
        scope.wait_adopted(pid, scope.adopt(vm.id, (pid,), f"console of microVM {vm.record['config']['name']}"))
    vm.mark("mend_console.done")


def start(vm: Vm, promised: bool = False) -> float:
    """Start the hypervisor of a VM that does not run; gives the monotonic time of its spawn.

    :param promised: the RAM file has been made already, in the allocation of this run.
    :raises HypervisorError: it did not start; the record says ``error`` and why.
    """
    run, record = vm.run, vm.record
    running = vm.process()
    if running is not None:
        running.close()
        vm.set_state(types.RUNNING, "", phase=None, restarting=False)
        return time.monotonic()
    end_strays(record)
    if not promised:
        with locked(vm.paths, ["host"], run.options.lock_timeout):
            clear_runtime(vm)
            promise_memory(run, vm.id, vm.uid, record["config"]["memory"])
    vm.mark("start.memory")
    resumes, driver = bool(record.get("resume")), vm.driver
    try:
        process, begun = _begin(vm, driver)
    except (CocoonError, OSError) as exc:
        clear_runtime(vm)
        reason = exc.message if isinstance(exc, CocoonError) else str(exc)
        vm.set_state(types.ERROR, reason, phase=None, process=None, pid=0)
        raise
    vm.mark("start.process")
    with process:
        vm.set_state(
            types.RUNNING,
            pid=process.pid,
            process=identify(process.pid),
            socket_path=driver.endpoints(vm.run_dir).api,
            started_at=types.now(),
            first_booted=True,
            phase=None,
            restarting=False,
            ready=None,
            **_taken_up(record, driver),
        )
    vm.mark("start.running")
    if resumes:
        resuming.forget(vm)
        if not record["identity_pending"]:  # a clone is told with all the rest
            asking.set_time(vm, AGENT)
    return begun


def _begin(vm: Vm, driver: Driver) -> tuple[Process, float]:
    """Put together what the VM starts from, write down that it starts, and do it; as :func:`_spawn`."""
    record = vm.record
    if record.get("resume"):
        resuming.check(vm)
        resuming.check_driver(driver, record, vm.saved["layout"])
        resuming.choose(vm)
        resuming.give_memory(vm)
    image = _bootable(vm)
    record["blob_digests"] = vm.run.blob_digests(record["image_id"])
    layout = vm.saved["layout"] if record.get("resume") else None
    record["hotplug_nics"] = "nics" in image["features"] and driver.frees_nics(layout)
    _refresh_nics(vm)
    style, limit = driver.boot_style(record["accel"]), driver.limits.command_line
    record["boot_config"] = {**boot.boot_config(record, image, style, limit), **_firmware(vm)}
    if style.kernel == "elf" and "kernel_path" in record["boot_config"]:
        record["boot_config"]["kernel_path"] = _unpacked_kernel(vm.run, record["boot_config"]["kernel_path"])
    if not record.get("resume"):
        cidata.prepare(vm.paths, record)
    record["storage_configs"] = boot.storage_configs(record, image, vm.paths)
    for item in record["storage_configs"]:
        if not item["ro"]:
            await_tools(item["path"], vm.uid)
    vm.set_state(record["state"], "starting", phase=PHASE_START, phase_boot_id=boot_id())
    vm.mark("start.record")
    guard_nics(vm.run, [record])
    return _spawn(vm, image)


def _taken_up(record: VmRecord, driver: Driver) -> Record:
    """Fields of a VM that has just been started: what became of the state that it was to go on from."""
    saved = record.get("resume") or {}
    private = saved.get("memory") == resuming.MAP or not driver.capabilities.ram_file
    return {
        "resume": None,
        "memory_mode": PRIVATE if private else None,
        "identity_pending": saved["macs"] if saved.get("hold") else None,
        "untold_nics": None,
    }


def _refresh_nics(vm: Vm) -> None:
    """What the network says of its guests reaches them at their next start."""
    for config in vm.record["network_configs"]:
        network = reserve.network_of(vm.run, config)
        config["mtu"], config["isolated"] = network.get("mtu") or 0, bool(network.get("isolated"))
        config["dns"], config["dns_search"] = settings.servers(network), settings.domains(network)
        if not vm.record.get("resume"):  # a guest that was given vCPUs while it ran has the queues of its boot
            config["num_queues"] = vm.record["config"]["cpu"] * 2
    reserve.route_nics(vm.run, vm.record["network_configs"])


def ready_networks(vm: Vm) -> None:
    """Have there be what the VM's NICs are put on, and write down what came of it: an address that plugins gave, say.

    :raises CocoonError: it cannot be had.
    """
    for config in vm.record["network_configs"]:
        vm.run.ensure_network(config["network_name"])
    plug_nics(vm)


def plug_nics(vm: Vm) -> None:
    """As :func:`ready_networks`, of networks that are there."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import backends

    record, changed = vm.record, False
    before = [(config.get("network6") or {}).get("ip") for config in record["network_configs"]]
    asked = [nic.get("ip") for nic in record.get("nics") or ()]
    for index, (config, network, ports) in enumerate(_ported(vm)):
        # A guest that goes on has the address that it has.
        stays = bool(record.get("resume") or (asked[index] if index < len(asked) else None))
        if backends.of(config).plug(vm.run.store, network, config, ports, stays):
            changed = True
            vm.mark("start.plugged")
        if record.get("resume"):
            _check_mtu(config, index)
            _check_ip6(config, index, before[index])
    if changed:
        reserve.route_nics(vm.run, record["network_configs"])
        vm.write()
        if record.get("ports"):  # which are known by the guest's address
            with locked(vm.paths, ["host"], vm.run.options.lock_timeout):
                reserve.take_ports(vm.run, record)


def _check_mtu(config: NetworkConfig, index: int) -> None:
    """:raises UnsupportedError: plugins gave a guest that goes on another MTU than it has."""
    offered = config.get("offered")
    mtu, before = (offered or {}).get("mtu") or 0, config.get("mtu") or 0
    if offered and mtu != before:
        raise UnsupportedError(
            f"network '{config['network_name']}' has an MTU of {mtu or 'default'}, and the guest goes on with one of"
            f" {before or 'default'}",
            f"nics[{index}].network",
            "Give it the same MTU in its conflist.",
        )


def _check_ip6(config: NetworkConfig, index: int, before: str | None) -> None:
    """:raises UnsupportedError: plugins gave a guest that goes on another IPv6 address than it has."""
    given = (config.get("network6") or {}).get("ip")
    if before and given != before:
        raise UnsupportedError(
            f"network '{config['network_name']}' gives {given or 'no IPv6 address'}, and the guest goes on with"
            f" {before}",
            f"nics[{index}].network",
            "Have the plugin with the ipam host-local take the capability ips in its conflist.",
        )


def _ported(vm: Vm) -> list[tuple[NetworkConfig, NetworkRecord, list[str]]]:
    """Each NIC with its network, and the published ports that lead to it."""
    configs = vm.record["network_configs"]
    target = reserve.port_target(configs, [reserve.network_of(vm.run, config) for config in configs])
    ports = list(vm.record.get("ports") or ())
    return [
        (config, vm.run.known_network(config["network_name"]), ports if index == target else [])
        for index, config in enumerate(configs)
    ]


def tell_ports(vm: Vm) -> None:
    """The published ports of a VM that runs are others."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import backends

    for config, network, ports in _ported(vm):
        backends.of(config).tell_ports(vm.run.store, network, config, ports)


def rest_nics(vm: Vm) -> None:
    """Nothing of a VM that has stopped is on its networks."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import backends

    for config in vm.record["network_configs"]:
        backends.of(config).rest(config)


def guard_nics(run: Run, records: t.Iterable[VmRecord]) -> None:
    """See to it that these VMs can send only what is theirs, before their NICs are on their bridges.

    :raises ToolError: nft is missing or refused the rules.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import guard

    def network_of(config: guard.Config) -> NetworkRecord:
        return run.known_network(config["network_name"])

    guard.ensure(run.store, [nic for record in records for nic in guard.nics(record["network_configs"], network_of)])


def _bootable(vm: Vm) -> ImageRecord:
    """The VM's image with the kernel that it boots with; where that is not its own, the guest is told what to run.

    :raises UnsupportedError: there is no kernel.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import kernel

    record, image = vm.record, vm.image
    if not kernel.needed(image):
        record.pop("exit_code", None)
        return image
    default = kernel.find(vm.run.store)
    if default is None:
        raise no_kernel(record["config"]["image"])
    if not (vm.driver.capabilities.data_device or "data" in default["features"]):
        raise UnsupportedError(
            f"the default kernel is of an earlier version, whose guests cannot be told by {vm.driver.name} what to run",
            "hypervisor",
            "Run the role cocoon.microvm.host, which builds it anew, or use another hypervisor.",
        )
    container.prepare(vm.paths, record, image)
    return {**image, "boot": default["boot"], "features": default["features"]}


def _unpacked_kernel(run: Run, path: str) -> str:
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import kernel

    found = kernel.unpacked(run.store, path, run.options.lock_timeout)
    run.mark("start.kernel")
    return found


def _firmware(vm: Vm) -> BootConfig:
    """The UEFI of a VM that boots by it, and the files of its own that it wants, made at the VM's first start.

    :raises UnsupportedError: it is not installed any more.
    """
    if vm.record.get("firmware") != "uefi":
        return {}
    found = vm.driver.firmware(vm.dir)
    for name, source in found.own.items():
        path = vm.file(name)
        if not os.path.lexists(path):
            create_copy(source, path, vm.uid)
            vm.mark("start.firmware")
    return {"firmware_path": found.code}


def _spawn(vm: Vm, image: ImageRecord) -> tuple[Process, float]:
    """Open the TAPs, start the process, and let go of the TAPs: they live as long as the process."""
    record = vm.record
    fds: list[int] = []
    try:
        driver = vm.driver
        hold = bool((record.get("resume") or {}).get("hold"))
        nics = [nic_of(driver, config, fds, hold) for config in record["network_configs"]]
        vm.mark("start.tap")
        os.makedirs(vm.run_dir, 0o700, exist_ok=True)
        mount_log(vm.paths.vm_log(vm.id))
        guest_data.leave(vm)
        begun = time.monotonic()
        launch = launch_of(vm, image, nics)
        _note(vm, launch)
        process = _start(driver, launch, record["network_configs"], hold)
        return process, begun
    finally:
        for fd in fds:
            os.close(fd)


def _note(vm: Vm, launch: Launch) -> None:
    """Keep what the start comes to as lines for a shell, which finds TAPs by their names and not opened."""
    named = dataclasses.replace(launch, nics=tuple(dataclasses.replace(nic, fds=()) for nic in launch.nics))
    lines = vm.driver.dry_run(named)
    if vm.driver.nic_by == "fd":
        lines += [_joined(config) for config in vm.record["network_configs"]]
    with contextlib.suppress(OSError):  # a guest can fill its logs' file system
        write_json(vm.paths.launch_lines(vm.id), {"lines": lines}, locked=True)


def _joined(config: NetworkConfig) -> str:
    """How its TAP is had onto its network by hand."""
    if config.get("bridge_dev"):
        return f"ip link set {config['tap']} master {config['bridge_dev']}"
    return f"# {config['tap']} is joined with what the plugins of network {config['network_name']} have made"


def _start(driver: Driver, launch: Launch, configs: t.Sequence[NetworkConfig], hold: bool) -> Process:
    """The process; a driver that opens TAPs by their names finds them where the process is, and gives them up to us."""
    jail = driver.confine(launch)
    if driver.nic_by == "fd":
        return driver.start(launch, jail)
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import backends
    from ansible_collections.cocoon.microvm.plugins.module_utils._network.tap import make_named

    def make() -> None:
        for config in configs:
            make_named(config, launch.uid)

    def take(process: Process) -> None:
        for config in configs:
            backends.of(config).take_over(config, process, not hold)

    return driver.start(launch, dataclasses.replace(jail, enter=make), take)


def nic_of(driver: Driver, config: NetworkConfig, opened: list[int], hold: bool) -> Nic:
    """A NIC on a TAP of its own, which is kept off the bridge while the guest takes itself for another one."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Nic
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import backends

    pairs = max(1, config["num_queues"] // 2) if driver.nic_by == "fd" else 1
    fds = backends.of(config).open_tap(config, pairs, not hold) if driver.nic_by == "fd" else []
    opened += fds
    return Nic(
        mac=config["mac"],
        fds=tuple(fds),
        queue_size=config["queue_size"],
        mtu=config.get("mtu") or None,
        tap=config["tap"],
        pairs=pairs,
    )


def launch_of(vm: Vm, image: ImageRecord, nics: t.Sequence[Nic]) -> Launch:
    """Everything the driver needs to know about one start."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Launch, pins_of
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images

    record = vm.record
    config = record["config"]
    return Launch(
        vm_id=vm.id,
        name=config["name"],
        uid=vm.uid,
        gid=vm.uid,
        groups=(*images.gids(vm.run.store, image), *resuming.groups(vm)),
        cpu=config["cpu"],
        memory=config["memory"],
        accel=record["accel"],
        pins=pins_of(vm.driver, record),
        boot=guest_data.boot_of(vm),
        disks=tuple(disk_of(vm, item) for item in record["storage_configs"]),
        nics=tuple(nics),
        ram_path=vm.ram,
        folder=vm.dir,
        run_dir=vm.run_dir,
        console_log=vm.paths.console_log(vm.id),
        hypervisor_log=vm.paths.hypervisor_log(vm.id),
        guest_data=guest_data.for_device(vm),
        status_log=guest_data.status_log(vm),
        balloon=record.get("balloon"),
        watchdog=bool(record.get("watchdog")),
        cpu_max=record.get("cpu_max", 0),
        windows=bool(config.get("windows")),
        file_limit=file_limit(record),
        resume=resuming.resume_of(vm),
        serial=cidata.serial_number(vm.paths, record),
    )


def file_limit(record: VmRecord, *disks: int) -> int:
    """How large the hypervisor may make a file: its RAM or its largest disk, with what qcow2 adds to it.

    :param disks: sizes of those that come on top.
    """
    sizes = [*disks, *(disk["size"] for disk in record.get("data_disks") or [])]
    largest = max(record["config"]["memory"], record["config"]["storage"], *sizes)
    return int(largest + largest // 16 + QCOW2_OVERHEAD)


def raise_file_limit(process: Process, record: VmRecord, *disks: int) -> None:
    """Before a disk is attached or grows: let the running hypervisor write what the record allows by now."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.launch import limit_files

    limit_files(process.pid, file_limit(record, *disks))


def disk_of(vm: Vm, item: StorageConfig) -> Disk:
    """The driver's view of one entry of storage_configs."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Disk

    qcow2 = item["path"].endswith(".qcow2")
    backing = _backing(vm) if qcow2 else None
    return Disk(
        removable=not item["serial"].startswith("cocoon-"),
        backing_format=backing.rpartition(".")[2] if backing else "qcow2",
        serial=item["serial"],
        path=item["path"],
        read_only=item["ro"],
        format="qcow2" if qcow2 else "raw",
        direct=not item["ro"] and not vm.record["config"]["no_direct_io"] and _takes_direct_io(item["path"]),
        queue_size=vm.record["config"]["disk_queue_size"],
        backing=backing,
        limits=limits_of(vm.record, item["serial"]),
    )


def limits_of(record: VmRecord, serial: str) -> t.Mapping[str, t.Mapping[str, int]]:
    """How fast a disk may be: the system disk, or a data disk. What an image's layers have is nobody's to limit."""
    if serial == boot.COW_SERIAL:
        return record.get("limits") or {}
    disks = [*(record.get("data_disks") or ()), *(record.get("detached_disks") or ())]
    return next((disk.get("limits") or {} for disk in disks if disk["name"] == serial), {})


def _takes_direct_io(path: str) -> bool:
    """Whether the file system does O_DIRECT; tmpfs of older kernels does not."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _backing(vm: Vm) -> str:
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images

    disk = vm.image["disk"]
    return images.blob_path(vm.run.store, disk["hex"], "." + disk["format"])


def stop(vm: Vm, timeout: float, force: bool, keep: bool = False) -> None:
    """Shut a VM down: ask the guest, then end the process after *timeout* seconds, or at once with *force*.

    :param keep: undo a start that was cut short; the saved state that the VM was to go on from stays.
    """
    record = vm.record
    end_strays(record)
    asked = False
    process = vm.process()
    if process is not None:
        with process:
            asked = not force and _shut_down(vm, process, timeout)
            vm.mark("stop.asked")
            if not asked:
                process.end()
    vm.mark("stop.process")
    rest_nics(vm)
    clear_runtime(vm)
    vm.mark("stop.runtime")
    if asked:
        remove_file(vm.file(guest_data.LOGIN_FILE))
    remove_file(vm.file(guest_data.INITRD_FILE))
    # A machine that goes on from its saved state another time still has the volume.
    if not keep and (asked or cidata.taken(vm.paths, record)):
        cidata.settle(vm.paths, record)
    reason = "shut down" if asked else ("powered off" if process is not None else "the hypervisor was gone")
    if not keep:
        resuming.forget(vm)
    ended = {"reason": reason, **container.outcome(vm.paths, record)}
    vm.set_state(record["state"] if keep else types.STOPPED, **not_running(), **ended)
    vm.mark("stop.record")


def not_running() -> Record:
    """Fields of a VM whose process is gone."""
    now = ("process", "phase", "ready", "memory_mode", "identity_pending", "untold_nics", "hotplug_nics")
    return {**dict.fromkeys(now), "pid": 0, "socket_path": "", "stopped_at": types.now()}


def _shut_down(vm: Vm, process: Process, timeout: float) -> bool:
    """Have the guest shut itself down, by its agent or else by the power button, which is pressed until it is off.

    A guest that is still booting has no agent yet, and misses the first times.
    """
    deadline = time.monotonic() + timeout
    if asking.shut_down(vm, min(AGENT, timeout / 4)) and process.wait(min(PRESS_AGAIN, timeout / 2)):
        return True
    while True:
        try:
            vm.driver.powerdown(vm.run_dir)
        except BusyError:
            pass  # somebody else talks to it; press again
        except CocoonError:
            return process.wait(CLOSING)  # its control socket is closed: it is about to end, or it is broken
        left = deadline - time.monotonic()
        if process.wait(min(PRESS_AGAIN, max(0.0, left))):
            return True
        if left <= PRESS_AGAIN:
            return False
