# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Firecracker driver: machines that boot a kernel from raw disks, under KVM.

What it lacks is declared, and not tried: saved machines, disks that come and go, data for the guest.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import stat
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    CocoonError,
    HypervisorError,
    UnsupportedError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import kvm, listening, private, scope
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import launch as launcher
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import (
    BootStyle,
    Capabilities,
    Channel,
    Disk,
    Endpoints,
    Firmware,
    GuestActions,
    Jail,
    Launch,
    Pins,
    Probe,
    Role,
    RunState,
    Unsaved,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.cache import binary_key, cached
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.firecracker import (
    calls,
    dryrun,
    places,
    probe,
    runstate,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.rest import RestClosedError
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process, real_uid
from ansible_collections.cocoon.microvm.plugins.module_utils._state import remove_tree

REMEDY = "Install a release of Firecracker as /usr/local/bin/firecracker (1.16.1 or newer)."
TURN = 10.0
DEVICES = ("/dev/kvm", "/dev/net/tun", "/dev/urandom")


class FirecrackerDriver(Unsaved):
    """Firecracker, under KVM.

    :param binary: instead of the one that is found.
    """

    name = "firecracker"
    capabilities = Capabilities(balloon=True, live_disk_resize=True)
    limits = calls.LIMITS
    nic_by: t.ClassVar[t.Literal["fd", "name"]] = "name"
    pinned = ()
    saved_files: t.ClassVar[t.Mapping[str, Role]] = {}
    writes_inbox = True
    own_files = ()
    # There is no power to switch off, and a reset ends it: so does a panic, after which the kernel reboots.
    guest_actions = GuestActions(poweroff="stands", reboot="ends", panic="ends")

    def __init__(self, paths: Paths, binary: str | None = None) -> None:
        self.paths = paths
        self._binary = binary

    def binary(self) -> str:
        """:raises UnsupportedError: Firecracker is not installed."""
        path = self._binary or probe.find_binary()
        if path is None:
            raise UnsupportedError("Firecracker is not installed", "hypervisor", REMEDY)
        return path

    def _facts(self) -> dict[str, t.Any]:
        binary = self.binary()
        return cached(self.paths, f"firecracker {binary_key(binary)}", lambda: probe.inspect(binary))

    def probe(self) -> Probe:
        try:
            binary = self.binary()
            facts = self._facts()
        except (CocoonError, OSError) as exc:
            problem = exc.message if isinstance(exc, CocoonError) else str(exc)
            return Probe(self.name, self._binary or probe.find_binary(), reason=problem, remedy=REMEDY)
        old = probe.too_old(facts["version"])
        no_kvm = kvm.kvm_problem(self.paths)
        remedy = REMEDY if old else "Use a host with KVM, or hypervisor: qemu with accel: tcg." if no_kvm else None
        reason = old or (f"it needs KVM: {no_kvm}" if no_kvm else None)
        accels = ("kvm",) if reason is None else ()
        return Probe(self.name, binary, facts["version"], reason is None, reason, accels, remedy=remedy)

    def version(self) -> str:
        return str(self._facts()["version"])

    def pin(self, accel: str) -> Pins:
        found = self.probe()
        if not found.available:
            raise UnsupportedError(f"firecracker cannot be used: {found.reason}", "hypervisor", found.remedy)
        if accel != "kvm":
            raise UnsupportedError(f"firecracker does not run with {accel}", "accel", "Use kvm or auto.")
        return {}

    def repin(self, accel: str) -> Pins:
        return self.pin(accel)

    def boot_style(self, accel: str) -> BootStyle:
        words = ("reboot=k", "i8042.noaux", "8250.nr_uarts=1", "clocksource=kvm-clock")
        return BootStyle("ttyS0", words, disks="path", kernel="elf")

    def endpoints(self, run_dir: str) -> Endpoints:
        return places.endpoints(run_dir)

    def guest_channel(self, run_dir: str) -> Channel:
        return places.guest_channel(run_dir)

    def firmware(self, folder: str) -> Firmware:
        raise UnsupportedError("firecracker boots nothing by UEFI", "firmware", "Use another hypervisor.")

    def confine(self, launch: Launch) -> Jail:
        boot = [path for path in (launch.boot.get("kernel_path"), launch.boot.get("initrd_path")) if path]
        files = [*boot, *(disk.path for disk in launch.disks)]
        return Jail(
            groups=launch.groups,
            files={
                places.BINARY: self.binary(),
                **self._facts()["libraries"],
                places.CONSOLE: launch.console_log,
                **{places.inside(launch, path): path for path in files},
            },
            devices=DEVICES,
            folder=places.own(launch.run_dir),
        )

    def command(self, launch: Launch) -> list[str]:
        socket_path = f"{places.RUN}/{places.API}"
        return [places.BINARY, "--id", launch.vm_id, "--api-sock", socket_path, "--level", "Warning"]

    def dry_run(self, launch: Launch) -> list[str]:
        asked = [*calls.machine(launch), *calls.nics(launch), calls.START]
        return dryrun.lines(launch, self.confine(launch), self.command(launch), asked)

    def start(
        self, launch: Launch, jail: Jail, on_nics_open: t.Callable[[Process], None] | None = None, timeout: float = 60.0
    ) -> Process:
        deadline = time.monotonic() + timeout
        machine, nics = calls.machine(launch), calls.nics(launch)
        try:
            folder = _make_own(launch)
            with listening.Watch(folder) as watch:
                process = self._spawn(launch, jail)
                try:
                    unit = scope.adopt(launch.vm_id, process.pid, f"microVM {launch.name}") if scope.present() else None
                    watch.wait_listening(places.API, process, deadline)
                    self._ask(launch, [*machine, *nics], deadline)
                    if on_nics_open:
                        on_nics_open(process)
                    self._ask(launch, [calls.START], deadline)
                    if unit:
                        scope.wait_adopted(process.pid, unit)
                except BaseException as exc:
                    # One that hung up is on its way out: its last words and its status are what the user needs.
                    gone = launcher.kill(process, 2.0 if isinstance(exc, RestClosedError) else 0.0)
                    process.close()
                    if isinstance(exc, HypervisorError):
                        raise _start_error(launch, exc, gone) from exc
                    raise
        except BaseException:
            clean(launch)
            raise
        return process

    def _spawn(self, launch: Launch, jail: Jail) -> Process:
        os.close(launcher.open_log(launch.console_log, launch.uid, launch.gid, launcher.KEEP_CONSOLE))
        log = launcher.open_log(launch.hypervisor_log, 0, 0, launcher.KEEP_LOG)
        limit = resource.RLIM_INFINITY if launch.file_limit is None else launch.file_limit

        def enter() -> None:
            if jail.enter is not None:
                jail.enter()
            private.enter(jail, launch.uid)

        try:
            argv = self.command(launch)
            return launcher.spawn(argv, launch.uid, launch.gid, jail.groups, (), log, limit, enter)
        finally:
            os.close(log)

    @staticmethod
    def _ask(launch: Launch, asked: t.Sequence[calls.Call], deadline: float) -> None:
        api = places.connect(launch.run_dir, TURN)
        for call in asked:
            api.call(call.method, call.target, call.body, max(1.0, deadline - time.monotonic()))

    # What can be asked of a running VM.

    def status(self, run_dir: str) -> RunState:
        return runstate.ask(run_dir, TURN)

    def powerdown(self, run_dir: str) -> None:
        """The keys that ask a guest to end: an init that is told of them stops in order, and reboots."""
        self._say(run_dir, calls.CTRL_ALT_DEL)

    def reset(self, run_dir: str) -> None:
        raise UnsupportedError("firecracker cannot reset a machine", "hypervisor", "Stop and start the VM.")

    def pause(self, run_dir: str) -> None:
        """Stop the process and not the vCPUs: of these its vsock would not recover."""
        self._signal(run_dir, signal.SIGSTOP)

    def resume(self, run_dir: str) -> None:
        self._signal(run_dir, signal.SIGCONT)

    def resize_disk(self, run_dir: str, serial: str, size: int) -> None:
        vm_id = os.path.basename(run_dir)
        name = "cow.raw" if serial == "cocoon-cow" else f"data-{serial}.raw"
        fd = os.open(os.path.join(self.paths.vm_dir(vm_id), name), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise HypervisorError(f"disk '{serial}' is no file")
            if size < info.st_size:
                raise HypervisorError(f"disk '{serial}' has {info.st_size} bytes, it never shrinks to {size}")
            os.ftruncate(fd, size)
        finally:
            os.close(fd)
        self._say(run_dir, calls.grown(vm_id, name, serial))

    def set_balloon(self, run_dir: str, taken: int) -> None:
        self._say(run_dir, calls.balloon(taken))

    @staticmethod
    def _say(run_dir: str, call: calls.Call) -> None:
        try:
            places.connect(run_dir, TURN).call(call.method, call.target, call.body)
        except OSError as exc:
            raise HypervisorError(f"Firecracker does not run: {exc.strerror}") from exc

    @staticmethod
    def _signal(run_dir: str, number: signal.Signals) -> None:
        """Signal the process that listens at the API, which may stand still: the kernel says which one it is.

        :raises HypervisorError: nobody does, or not its user.
        """
        try:
            uid = os.lstat(places.own(run_dir)).st_uid
            pid = listening.listener(places.api_path(run_dir))
            with Process(pid, os.pidfd_open(pid)) as process:
                if real_uid(pid) != uid:
                    raise HypervisorError(f"process {pid} is not the hypervisor of this VM")
                process.signal(number)
        except OSError as exc:
            raise HypervisorError(f"Firecracker does not run: {exc.strerror}") from exc

    # What it lacks.

    def attach_disk(self, run_dir: str, disk: Disk) -> None:
        raise UnsupportedError("firecracker attaches no disks to a running VM", "data_disks", "Restart it.")

    def detach_disk(self, run_dir: str, serial: str, timeout: float) -> None:
        raise UnsupportedError("firecracker detaches no disks from a running VM", "data_disks", "Restart it.")


def _make_own(launch: Launch) -> str:
    """The folder that the process makes its sockets in, empty."""
    folder = places.own(launch.run_dir)
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder, 0o700)
    os.chown(folder, launch.uid, launch.gid)
    return folder


def clean(launch: Launch) -> None:
    """Remove what a process that has ended leaves."""
    remove_tree(places.own(launch.run_dir))
    launcher.clean(launch.run_dir, (), launch.ram_path)


def _start_error(launch: Launch, exc: HypervisorError, status: int | None) -> HypervisorError:
    """*exc* with what Firecracker said before it ended."""
    words = launcher.log_tail(launch.hypervisor_log)
    said = f"; the last lines of {launch.hypervisor_log}: {words}" if words else ""
    cause = f": {exc.message}"
    if isinstance(exc, RestClosedError) and status is not None:
        cause = f" (exit status {status})"
    return HypervisorError(f"Firecracker of '{launch.name}' did not start{cause}{said}", exc.option, exc.remedy)
