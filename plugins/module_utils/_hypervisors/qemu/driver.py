# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The QEMU driver."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import socket
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _scope as scope
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    BusyError,
    CocoonError,
    GuestTimeoutError,
    HypervisorError,
    ResourceError,
    UnsupportedError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import guard, keeper, kvm
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import launch as launcher
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import (
    MEMORY,
    STATE,
    ArchiveForm,
    BootStyle,
    Capabilities,
    Disk,
    DiskLimits,
    Driver,
    Endpoints,
    Firmware,
    GuestActions,
    Jail,
    Launch,
    Layout,
    Nic,
    Pins,
    Probe,
    Resume,
    RunState,
    Saved,
    SavedFile,
    SavedState,
    Saving,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.cache import binary_key, cached
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import (
    commandline,
    dryrun,
    firmware,
    migration,
    probe,
    runstate,
    sockets,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.files import (
    MEMORY_FILE,
    SAVED,
    STATE_FILE,
    VARIABLES,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.qmp import Qmp, QmpClosedError, QmpError
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process

REMEDY = "Install qemu-system-x86 (Debian, Ubuntu) or qemu-kvm (RHEL), or run the role cocoon.microvm.host."
TURN = 10.0
# Where QEMU keeps what was added by an id.
DEVICES = "/machine/peripheral"
# A guest that is still booting overlooks a request to let go of a device.
UNPLUG_REPEAT = 3.0


class QemuDriver(Driver):
    """QEMU with a q35 machine, under KVM or TCG.

    :param binary: instead of the one that is found.
    """

    name = "qemu"
    capabilities = Capabilities(
        uefi=True,
        bios=True,
        qcow2=True,
        hotplug_disks=True,
        hotplug_nics=True,
        agent=True,
        balloon=True,
        watchdog=True,
        live_disk_resize=True,
        live_disk_limits=True,
        read_write_limits=True,
        snapshots=True,
        live_disk_copy=True,
        live_cpus=True,
        guest_data=True,
        data_device=True,
        ram_file=True,
    )
    limits = commandline.LIMITS
    nic_by: t.ClassVar[t.Literal["fd", "name"]] = "fd"
    pinned = ("machine", "cpu_model")
    saved_files = SAVED
    writes_inbox = False
    own_files = (VARIABLES,)
    guest_actions = GuestActions(poweroff="ends", reboot="restarts", panic="ignored")

    def __init__(self, paths: Paths, binary: str | None = None) -> None:
        self.paths = paths
        self._binary = binary

    def binary(self) -> str:
        """:raises UnsupportedError: QEMU is not installed."""
        path = self._binary or probe.find_binary()
        if path is None:
            raise UnsupportedError("QEMU is not installed", "hypervisor", REMEDY)
        return path

    def _facts(self) -> dict[str, t.Any]:
        binary = self.binary()
        return cached(self.paths, f"facts {binary_key(binary)}", lambda: probe.inspect(binary))

    def probe(self) -> Probe:
        try:
            binary = self.binary()
            facts = self._facts()
        except (CocoonError, OSError) as exc:
            problem = exc.message if isinstance(exc, CocoonError) else str(exc)
            return Probe(self.name, self._binary or probe.find_binary(), reason=problem, remedy=REMEDY)
        reason = probe.too_old(facts["version"])
        on_kvm = reason is None and kvm.kvm_problem(self.paths) is None and "cpu_model" in self._model(facts, "kvm")
        accels = ("kvm", "tcg") if on_kvm else ("tcg",)
        firmwares = ("uefi", "bios") if firmware.available() else ("bios",)
        return Probe(
            self.name,
            binary,
            facts["version"],
            reason is None,
            reason,
            accels,
            firmwares,
            remedy=REMEDY if reason else None,
            uefi_remedy=firmware.REMEDY,
        )

    def version(self) -> str:
        return str(self._facts()["version"])

    def boot_style(self, accel: str) -> BootStyle:
        # On a busy host the timer's interrupts may come too late for the kernel's test of them, and it gives up. With
        # KVM it does not test.
        return BootStyle("ttyS0", ("no_timer_check",) if accel == "tcg" else ())

    def endpoints(self, run_dir: str) -> Endpoints:
        return sockets.endpoints(run_dir)

    def firmware(self, folder: str) -> Firmware:
        variables = os.path.join(folder, VARIABLES)
        found = firmware.find(os.lstat(variables).st_size if os.path.lexists(variables) else None)
        return Firmware(found.code, {VARIABLES: found.variables})

    def _model(self, facts: dict[str, t.Any], accel: str) -> dict[str, t.Any]:
        """``cpu_model``, or the ``problem`` that there is with *accel*."""
        binary = self.binary()
        return cached(
            self.paths,
            f"model {accel} {binary_key(binary)}",
            lambda: probe.choose_model(binary, facts["machine"], accel),
        )

    def pin(self, accel: str) -> Pins:
        problem = kvm.kvm_problem(self.paths) if accel == "kvm" else None
        if problem:
            raise UnsupportedError(problem, "accel", "Use tcg or auto.")
        facts = self._facts()
        model = self._model(facts, accel)
        if "problem" in model:
            raise UnsupportedError(f"QEMU does not start with {accel}: {model['problem']}", "accel")
        return {"machine": facts["machine"], "cpu_model": model["cpu_model"]}

    def repin(self, accel: str) -> Pins:
        return {"cpu_model": self.pin(accel)["cpu_model"]}  # the machine stays

    def command(self, launch: Launch, bound: commandline.Sockets) -> list[str]:
        """The argument vector; pure but for the probe. *bound* as :func:`commandline.build` has it."""
        rom = bool(launch.resume and launch.resume.shared and self._facts()["rom"])
        return commandline.build(self.binary(), launch, bound, rom)

    def confine(self, launch: Launch) -> Jail:
        # All that it uses it is given as a descriptor, or may open by the rights of its user and groups.
        return Jail(groups=launch.groups + (kvm.kvm_group() if launch.accel == "kvm" else ()))

    def dry_run(self, launch: Launch) -> list[str]:
        held = (sockets.IDENTITY,) if launch.resume and launch.resume.hold else ()
        bound = {name.partition(".")[0]: os.path.join(launch.run_dir, name) for name in (*sockets.ALWAYS, *held)}
        return dryrun.lines(launch, self.confine(launch), self.command(launch, bound))

    def reads_only(self) -> bool:
        """Whether clones can map a snapshot's RAM file without the right to write to it."""
        return bool(self._facts()["rom"])

    def check_resume(self, saved: SavedState) -> None:
        facts = self._facts()
        machine, version = saved.pins["machine"], commandline.places(saved.layout)["version"]
        if probe.version_tuple(facts["version"]) < probe.version_tuple(version):
            raise UnsupportedError(
                f"it was saved by QEMU {version}, and this host has {facts['version']}, which is older",
                "hypervisor",
                "A state is taken up by the release that saved it, or a newer one: upgrade QEMU on this host.",
            )
        if machine not in facts["machines"]:
            raise UnsupportedError(
                f"it was saved with the machine {machine}, which QEMU {facts['version']} of this host lacks",
                "hypervisor",
                "Use a host with a QEMU that has this machine; distributions name theirs differently.",
            )

    def start(
        self, launch: Launch, jail: Jail, on_nics_open: t.Callable[[Process], None] | None = None, timeout: float = 60.0
    ) -> Process:
        deadline = time.monotonic() + timeout
        with keeper.beside(launch) as kept:
            return self._start(launch, jail, kept, on_nics_open, deadline)

    def _start(
        self,
        launch: Launch,
        jail: Jail,
        kept: keeper.Kept,
        on_nics_open: t.Callable[[Process], None] | None,
        deadline: float,
    ) -> Process:
        begun = time.monotonic()
        try:
            process = self._spawn(launch, jail, kept.pipe)
        except BaseException:
            _clean(launch)
            raise
        try:
            if on_nics_open:  # it was born with them
                on_nics_open(process)
            # systemd works while QEMU starts up.
            pids = (process.pid, kept.pid)
            unit = scope.adopt(launch.vm_id, pids, f"microVM {launch.name}") if scope.present() else None
            self._run(launch, process, deadline)
            if unit:
                scope.wait_adopted(process.pid, unit)
        except BaseException as exc:
            # One that hung up is on its way out: its last words and its status are what the user needs.
            status = launcher.kill(process, 2.0 if isinstance(exc, QmpClosedError) else 0.0)
            process.close()
            _clean(launch)
            if isinstance(exc, HypervisorError):
                raise _start_error(launch, exc, status) from exc
            if isinstance(exc, BusyError):
                raise HypervisorError(
                    f"QEMU of '{launch.name}' did not come up within {deadline - begun:.0f} s{_log_words(launch)}"
                ) from exc
            raise
        return process

    def _spawn(self, launch: Launch, jail: Jail, pipe: int) -> Process:
        with contextlib.ExitStack() as stack:
            fds = {commandline.PIPE: pipe}
            held = (sockets.IDENTITY,) if launch.resume and launch.resume.hold else ()
            for name in (*sockets.ALWAYS, *held):
                sock = launcher.listen(os.path.join(launch.run_dir, name))
                stack.callback(sock.close)
                fds[name.partition(".")[0]] = sock.fileno()
            argv = self.command(launch, fds)
            launcher.create_ram(launch.ram_path, launch.memory, launch.uid, launch.gid)
            if launch.resume and launch.resume.memory and not launch.resume.shared:
                launcher.fill_ram(launch.ram_path, launch.resume.memory)
            log = launcher.open_log(launch.hypervisor_log, 0, 0, launcher.KEEP_LOG)
            stack.callback(os.close, log)
            passed = [*fds.values(), *(fd for nic in launch.nics for fd in nic.fds)]
            limit = resource.RLIM_INFINITY if launch.file_limit is None else launch.file_limit
            return launcher.spawn(argv, launch.uid, launch.gid, jail.groups, passed, log, limit, jail.enter)

    @staticmethod
    def _run(launch: Launch, process: Process, deadline: float) -> None:
        """Greet QEMU and let the guest go."""
        with Qmp.connect(sockets.qmp_path(launch.run_dir), deadline - time.monotonic(), process.pidfd) as qmp:
            if launch.resume:
                _load(qmp, launch, deadline)
            elif launch.balloon:
                qmp.execute("balloon", {"value": launch.memory - launch.balloon}, deadline - time.monotonic())
            for disk in launch.disks:
                if disk.limits:
                    qmp.execute(commandline.THROTTLE, commandline.throttle(disk.serial, disk.limits))
            qmp.execute("cont", timeout=max(1.0, deadline - time.monotonic()))
            status = qmp.execute("query-status", timeout=max(1.0, deadline - time.monotonic()))
            if not isinstance(status, dict) or status.get("status") != "running":
                raise HypervisorError(f"the guest of '{launch.name}' does not run after its start")

    # What can be asked of a running VM.

    @staticmethod
    def connect(run_dir: str, timeout: float = TURN) -> Qmp:
        """A QMP connection to the VM of *run_dir*.

        :raises BusyError: another task held it for *timeout* seconds.
        :raises HypervisorError: it does not run.
        """
        return Qmp.connect(sockets.qmp_path(run_dir), timeout)

    def status(self, run_dir: str) -> RunState:
        return runstate.ask(run_dir, TURN)

    def agent_listens(self, run_dir: str) -> bool:
        with self.connect(run_dir) as qmp:
            found = qmp.execute("query-chardev")
        ends = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
        return any(entry.get("label") == "agent" and entry.get("frontend-open") is True for entry in ends)

    def powerdown(self, run_dir: str) -> None:
        self._simple(run_dir, "system_powerdown")

    def reset(self, run_dir: str) -> None:
        self._simple(run_dir, "system_reset")

    def pause(self, run_dir: str) -> None:
        self._simple(run_dir, "stop")

    def resume(self, run_dir: str) -> None:
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import backup

        with self.connect(run_dir) as qmp:
            runstate.go_on(qmp)
            backup.clean(qmp)  # or a run that was killed while it saved holds what it wrote to

    def save(self, run_dir: str, wanted: Saving) -> Saved:
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import backup

        state = os.path.join(wanted.inbox, STATE_FILE)
        files = [SavedFile(STATE_FILE, STATE, state)] if wanted.machine else []
        if wanted.machine and wanted.ram is not None:
            files.append(SavedFile(MEMORY_FILE, MEMORY, wanted.ram))
        with self.connect(run_dir) as qmp:
            _unplug_identity(qmp)
            backup.clean(qmp)
            ports = _root_ports(qmp)
            loose = any(_is_nic(name) and name not in ports.values() for name in _devices(qmp))
            status = runstate.word(qmp)
            if status == "postmigrate":  # saved before while it stood still: QEMU saves no guest twice at one instant
                qmp.execute("cont")
                qmp.execute("stop")
            runs = status == "running"
            if wanted.machine:
                migration.prepare(qmp, ignore_shared=wanted.ram is not None)
            watch = (migration.GUARD, sockets.qmp_path(run_dir))
            stop, go_on = (functools.partial(qmp.execute, command) for command in ("stop", "cont"))
            with guard.standing_still(runs, watch, stop, go_on, wanted.stay) as still:
                if wanted.machine:
                    migration.write_file(qmp, state, wanted.limit)
                wanted.copy(files)
                if wanted.disks:
                    backup.begin(qmp, wanted.disks)
            if wanted.after:
                wanted.after()
            if wanted.disks:
                backup.finish(qmp, wanted.disks)
            version = qmp.version()
        return Saved(_layout(ports, loose, version), version, still.seconds)

    def archive_form(self) -> ArchiveForm:
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.archive import QemuArchive

        return QemuArchive()

    def announce(self, run_dir: str, message: bytes) -> socket.socket:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            line.settimeout(TURN)
            with self.connect(run_dir) as qmp:
                # First, or the message goes to the port of an earlier one, and with it.
                _unplug_identity(qmp)
                _have_line(qmp, os.path.join(run_dir, sockets.IDENTITY))
                line.connect(os.path.join(run_dir, sockets.IDENTITY))
                line.sendall(message)
                qmp.execute("device_add", commandline.identity_device())
        except OSError as exc:
            line.close()
            raise HypervisorError(f"the hypervisor does not pass the new identity on: {exc.strerror}") from exc
        except BaseException:
            line.close()
            raise
        line.setblocking(False)
        return line

    def check_macs(self, run_dir: str, macs: t.Sequence[str]) -> None:
        with self.connect(run_dir) as qmp:
            filters = qmp.execute("query-rx-filter")
            seen = {entry.get("name"): entry.get("main-mac") for entry in filters if isinstance(entry, dict)}
            for number, mac in enumerate(macs):
                if seen.get(commandline.nic_id(number)) != mac:
                    raise HypervisorError(
                        f"NIC {number} has the address {seen.get(commandline.nic_id(number))} and not {mac}"
                    )

    def admit(self, run_dir: str, nics: int) -> None:
        with self.connect(run_dir) as qmp:
            for number in range(nics):
                qmp.execute("set_link", {"name": commandline.nic_id(number), "up": True})
            _unplug_identity(qmp)

    def _simple(self, run_dir: str, command: str) -> None:
        with self.connect(run_dir) as qmp:
            qmp.execute(command)

    def attach_disk(self, run_dir: str, disk: Disk) -> None:
        commandline.check_disk(disk)
        with self.connect(run_dir) as qmp:
            ports = _root_ports(qmp)
            if commandline.device_id(disk.serial) in ports.values():
                return
            free = _free_port(ports, "disk", "data_disks")
            # A node without a device is what an attach that was cut short leaves.
            _remove_node(qmp, disk.serial)
            qmp.execute("blockdev-add", commandline.disk_node(disk))
            try:
                qmp.execute("device_add", commandline.disk_device(disk, {"bus": free}, len(_cpu_slots(qmp))))
            except BaseException:
                with contextlib.suppress(QmpClosedError):
                    _remove_node(qmp, disk.serial)
                raise
            if disk.limits:
                qmp.execute(commandline.THROTTLE, commandline.throttle(disk.serial, disk.limits))

    def detach_disk(self, run_dir: str, serial: str, timeout: float) -> None:
        with self.connect(run_dir) as qmp:
            if not _unplug(qmp, commandline.device_id(serial), timeout):
                raise GuestTimeoutError(
                    f"the guest did not let go of the disk '{serial}' within {timeout:g} s",
                    "data_disks",
                    "Unmount it in the guest first, or restart the VM (allow_restart).",
                )
            _remove_node(qmp, serial)

    def plugged_nics(self, run_dir: str) -> list[int]:
        with self.connect(run_dir) as qmp:
            found = [device for device in _root_ports(qmp).values() if device and _is_nic(device)]
        return sorted(int(device[3:]) for device in found)

    def frees_nics(self, layout: Layout | None) -> bool:
        return layout is None or "nics" in layout

    def attach_nic(self, run_dir: str, number: int, nic: Nic) -> None:
        commandline.check_nic(nic)
        with self.connect(run_dir) as qmp:
            ports = _root_ports(qmp)
            if commandline.nic_id(number) in ports.values():
                return
            free = _free_port(ports, "NIC", "nics")
            # Of an attach that was cut short, and closed with its TAP.
            _remove_netdev(qmp, number)
            names = [f"tap{queue}" for queue in range(len(nic.fds))]
            for name, fd in zip(names, nic.fds):
                qmp.execute("getfd", {"fdname": name}, fds=[fd])
            netdev = {"type": "tap", "id": commandline.netdev_id(number), "fds": ":".join(names), "vhost": False}
            qmp.execute("netdev_add", netdev)
            try:
                qmp.execute("device_add", commandline.nic_device(number, nic, {"bus": free}))
                # Its guest has nothing to send before it has been told who it is there.
                qmp.execute("set_link", {"name": commandline.nic_id(number), "up": False})
            except BaseException:
                with contextlib.suppress(QmpClosedError):
                    _remove_netdev(qmp, number)
                raise

    def detach_nic(self, run_dir: str, number: int, timeout: float) -> None:
        with self.connect(run_dir) as qmp:
            if not _unplug(qmp, commandline.nic_id(number), timeout):
                raise GuestTimeoutError(
                    f"the guest did not let go of its NIC {number} within {timeout:g} s",
                    "nics",
                    "Try again once it has booted, or restart the VM (allow_restart).",
                )
            _remove_netdev(qmp, number)

    def resize_disk(self, run_dir: str, serial: str, size: int) -> None:
        node = commandline.node_name(serial)
        with self.connect(run_dir) as qmp:
            present = _node_size(qmp, node)
            if size < present:
                raise HypervisorError(f"disk '{serial}' has {present} bytes, it never shrinks to {size}")
            qmp.execute("block_resize", {"node-name": node, "size": size}, timeout=60.0)

    def limit_disk(self, run_dir: str, serial: str, limits: DiskLimits) -> None:
        with self.connect(run_dir) as qmp:
            qmp.execute(commandline.THROTTLE, commandline.throttle(serial, limits))

    def set_balloon(self, run_dir: str, taken: int) -> None:
        with self.connect(run_dir) as qmp:
            summary = qmp.execute("query-memory-size-summary")
            memory = summary.get("base-memory") if isinstance(summary, dict) else None
            if not isinstance(memory, int) or not 0 <= taken < memory:
                raise HypervisorError(f"a balloon cannot take {taken} bytes of this VM")
            qmp.execute("balloon", {"value": memory - taken})

    def add_cpus(self, run_dir: str, count: int) -> None:
        with self.connect(run_dir) as qmp:
            slots = _cpu_slots(qmp)
            present = sum("qom-path" in slot for slot in slots)
            if not present <= count <= len(slots):
                raise HypervisorError(f"a VM of {present} vCPUs does not come to have {count} while it runs")
            # In their order, as they are where the machine is taken up again.
            for number, slot in enumerate(slots[present:count], present):
                qmp.execute("device_add", {"driver": slot["type"], "id": f"cpu{number}", **slot["props"]})


def _node_size(qmp: Qmp, node: str) -> int:
    """Bytes of a disk as its guest sees it.

    :raises HypervisorError: there is no such disk, or its size is not told.
    """
    nodes = qmp.execute("query-named-block-nodes", {"flat": True})
    found = [entry for entry in nodes if isinstance(entry, dict)] if isinstance(nodes, list) else []
    entry = next((entry for entry in found if entry.get("node-name") == node), {})
    image = entry.get("image")
    size = image.get("virtual-size") if isinstance(image, dict) else None
    if not isinstance(size, int):
        raise HypervisorError(f"the hypervisor does not tell the size of its disk '{node}'")
    return size


def _load(qmp: Qmp, launch: Launch, deadline: float) -> None:
    """Make a QEMU that waits for it the VM whose state was saved; its guest does not run yet."""
    resume = t.cast(Resume, launch.resume)
    migration.prepare(qmp, ignore_shared=resume.memory is not None)
    migration.read_in(qmp, os.path.join(resume.folder, STATE_FILE), max(1.0, deadline - time.monotonic()))
    if resume.hold:
        for number in range(len(launch.nics)):
            qmp.execute("set_link", {"name": commandline.nic_id(number), "up": False})


def _unplug_identity(qmp: Qmp) -> None:
    """Take the port away that an announcement plugged in; fine if there is none."""
    try:
        qmp.execute("device_del", {"id": commandline.IDENTITY})
    except QmpError:
        return
    # Until it is wholly gone its line is in use.
    qmp.wait_event("DEVICE_DELETED", UNPLUG_REPEAT, device=commandline.IDENTITY)


def _clean(launch: Launch) -> None:
    launcher.clean(launch.run_dir, (*sockets.ALWAYS, sockets.IDENTITY), launch.ram_path)


def _start_error(launch: Launch, exc: HypervisorError, status: int | None) -> HypervisorError:
    """*exc* with what QEMU said before it ended."""
    remedy = exc.remedy
    words = _log_words(launch)
    if "O_DIRECT" in words:
        remedy = "The file system knows no direct I/O: set no_direct_io: true."
    cause = f": {exc.message}"
    if isinstance(exc, QmpClosedError) and status is not None:
        cause = f" (exit status {status})"
    return HypervisorError(f"QEMU of '{launch.name}' did not start{cause}{words}", exc.option, remedy)


def _log_words(launch: Launch) -> str:
    words = launcher.log_tail(launch.hypervisor_log)
    return f"; the last lines of {launch.hypervisor_log}: {words}" if words else ""


def _cpu_slots(qmp: Qmp) -> list[dict[str, t.Any]]:
    """The places for vCPUs, one core each, in their order; those that are taken have a path.

    :raises HypervisorError: it does not tell them.
    """
    said = qmp.execute("query-hotpluggable-cpus")
    found = [slot for slot in said if isinstance(slot, dict)] if isinstance(said, list) else []
    if not found or not all(isinstance(slot.get("props"), dict) and "core-id" in slot["props"] for slot in found):
        raise HypervisorError("the hypervisor does not tell its vCPUs")
    return sorted(found, key=lambda slot: int(slot["props"]["core-id"]))


def _port_number(port: str) -> int:
    return int(port[len("port") :])


def _devices(qmp: Qmp) -> list[str]:
    """The ids of all devices that have one."""
    entries = qmp.execute("qom-list", {"path": DEVICES})
    return [str(entry.get("name")) for entry in entries if isinstance(entry, dict)]


def _root_ports(qmp: Qmp) -> dict[str, str | None]:
    """Each of our root ports, and the id of the disk or NIC in it.

    By QEMU's own objects: what is behind a bridge is for the guest to configure, and nothing until its firmware has.
    """
    names = _devices(qmp)
    ports: dict[str, str | None] = {name: None for name in names if name.startswith("port") and name[4:].isdecimal()}
    for name in names:
        if name.startswith(commandline.device_id("")) or _is_nic(name):
            with contextlib.suppress(QmpError):  # unplugged in between
                bus = qmp.execute("qom-get", {"path": f"{DEVICES}/{name}", "property": "parent_bus"})
                port = str(bus).rpartition("/")[2]
                if port in ports:
                    ports[port] = name
    return ports


def _is_nic(device: str) -> bool:
    return device.startswith("nic") and device[3:].isdecimal()


def _free_port(ports: t.Mapping[str, str | None], kind: str, option: str) -> str:
    """:raises ResourceError: there is none."""
    free = next((port for port in sorted(ports, key=_port_number) if ports[port] is None), None)
    if free is None:
        raise ResourceError(
            f"the VM has no free slot for another {kind}", option, "Restart it (allow_restart) for more."
        )
    return free


def _layout(ports: t.Mapping[str, str | None], loose: bool, version: str) -> Layout:
    """Where the devices of a machine are that is being saved: :class:`commandline.Places`.

    :param loose: its NICs are in no port.
    """
    found = {device: _port_number(port) for port, device in ports.items() if device}
    nics = {device: port for device, port in found.items() if _is_nic(device)}
    slots = {device[len(commandline.device_id("")) :]: port for device, port in found.items() if device not in nics}
    layout = {"ports": len(ports), "slots": slots, "version": version}
    if loose:
        return layout
    return {**layout, "nics": [nics[commandline.nic_id(number)] for number in range(len(nics))]}


def _unplug(qmp: Qmp, device: str, timeout: float) -> bool:
    """Have the guest let go of a device; whether it has in *timeout* seconds."""
    deadline = time.monotonic() + timeout
    while device in _root_ports(qmp).values():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        # Refused while an earlier request is pending: then its end is what we wait for.
        with contextlib.suppress(QmpError):
            qmp.execute("device_del", {"id": device})
        qmp.wait_event("DEVICE_DELETED", min(UNPLUG_REPEAT, left), device=device)
    return True


def _remove_netdev(qmp: Qmp, number: int) -> None:
    """Close the TAP of a NIC that is gone; fine if that is, too."""
    try:
        qmp.execute("netdev_del", {"id": commandline.netdev_id(number)})
    except QmpError as exc:
        if "not found" not in exc.description:
            raise


def _have_line(qmp: Qmp, path: str) -> None:
    """Have there be the line on which a guest is told who it is: one that has booted was not begun with it."""
    if os.path.lexists(path):
        return
    sock = launcher.listen(path)
    try:
        qmp.execute("getfd", {"fdname": commandline.IDENTITY}, fds=[sock.fileno()])
        address = {"type": "fd", "data": {"str": commandline.IDENTITY}}
        backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
        qmp.execute("chardev-add", {"id": commandline.IDENTITY, "backend": backend})
    except BaseException:
        os.unlink(path)
        raise
    finally:
        sock.close()


def _remove_node(qmp: Qmp, serial: str) -> None:
    """Drop the block node of a disk that no device uses; fine if there is none."""
    try:
        qmp.execute("blockdev-del", {"node-name": commandline.node_name(serial)})
    except QmpError as exc:
        if "find node" not in exc.description:
            raise
