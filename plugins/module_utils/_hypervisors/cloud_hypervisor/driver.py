# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Cloud Hypervisor driver: direct boot under KVM."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import resource
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _scope as scope
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    GuestTimeoutError,
    HypervisorError,
    ResourceError,
    UnsupportedError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import guard, keeper, kvm, releases, vsock
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import launch as launcher
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import (
    ArchiveForm,
    BootStyle,
    Capabilities,
    Disk,
    DiskLimits,
    Endpoints,
    Firmware,
    GuestActions,
    Jail,
    Launch,
    Layout,
    Nic,
    Pins,
    Probe,
    RunState,
    Saved,
    SavedState,
    Saving,
    VersionForm,
    VsockDriver,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.cache import binary_key, cached
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.cloud_hypervisor import (
    commandline,
    dryrun,
    files,
    probe,
    runstate,
    saving,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.rest import Rest, RestClosedError, RestError
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.plugins.module_utils._state import own_folder, remove_tree

# While it starts, and while a guest lets go of a disk, there is no event to wait for.
TURN = 0.005
LOOK_AGAIN = 0.05
# A guest that is still booting overlooks a request to let go of a device.
UNPLUG_REPEAT = 3.0
# It does one thing at a time, and some take long on a busy host.
SLOW = 60.0
# RAM that is in no file has to be written.
SAVE_TIMEOUT = 600.0


class CloudHypervisorDriver(VsockDriver):
    """Cloud Hypervisor v52 and newer.

    :param binary: instead of the one that is found.
    """

    name = "cloud-hypervisor"
    capabilities = Capabilities(
        hotplug_disks=True,
        agent=True,
        hotplug_nics=True,
        balloon=True,
        watchdog=True,
        live_disk_resize=True,
        live_cpus=True,
        guest_data=True,
        snapshots=True,
        ram_file=True,
    )
    limits = commandline.LIMITS
    nic_by: t.ClassVar[t.Literal["fd", "name"]] = "fd"
    pinned = ()
    saved_files = files.SAVED
    writes_inbox = True
    own_files = ()
    guest_actions = GuestActions(poweroff="ends", reboot="restarts", panic="ignored")

    def __init__(self, paths: Paths, binary: str | None = None) -> None:
        self.paths = paths
        self._binary = binary

    def binary(self) -> str:
        """:raises UnsupportedError: Cloud Hypervisor is not installed."""
        path = self._binary or probe.find_binary()
        if path is None:
            raise UnsupportedError("Cloud Hypervisor is not installed", "hypervisor", probe.REMEDY)
        return path

    def version(self) -> str:
        return self._version_of(self.binary())

    def _version_of(self, binary: str) -> str:
        facts = cached(self.paths, f"version {binary_key(binary)}", lambda: probe.inspect(binary))
        if "problem" in facts:
            raise UnsupportedError(facts["problem"], "hypervisor", probe.REMEDY)
        return str(facts["version"])

    def probe(self) -> Probe:
        binary = self._binary or probe.find_binary()
        try:
            version = self.version()
        except UnsupportedError as exc:
            return Probe(self.name, binary, reason=exc.message, remedy=probe.REMEDY)
        except OSError as exc:
            return Probe(self.name, binary, reason=str(exc), remedy=probe.REMEDY)
        old = probe.too_old(version)
        if old:
            return Probe(self.name, binary, version, reason=old, remedy=probe.REMEDY)
        problem = kvm.kvm_problem(self.paths)
        if problem:
            return Probe(
                self.name, binary, version, reason=f"it needs KVM: {problem}", remedy="Use qemu, which does without."
            )
        return Probe(self.name, binary, version, available=True, accels=("kvm",))

    def pin(self, accel: str) -> Pins:
        found = self.probe()
        if not found.available:
            raise UnsupportedError(str(found.reason), "hypervisor", found.remedy)
        if accel not in found.accels:
            raise UnsupportedError(f"Cloud Hypervisor has no {accel}", "accel", "Use kvm or auto, or hypervisor: qemu.")
        return {}

    def repin(self, accel: str) -> Pins:
        return self.pin(accel)

    def boot_style(self, accel: str) -> BootStyle:
        return BootStyle("ttyS0")

    def endpoints(self, run_dir: str) -> Endpoints:
        return runstate.endpoints(run_dir)

    def firmware(self, folder: str) -> Firmware:
        raise UnsupportedError("Cloud Hypervisor boots kernels only", "firmware", "Use hypervisor: qemu.")

    def confine(self, launch: Launch) -> Jail:
        # All that it uses it is given as a descriptor, or may open by the rights of its user and groups.
        return Jail(groups=launch.groups + kvm.kvm_group())

    def dry_run(self, launch: Launch) -> list[str]:
        api, own = runstate.api_path(launch.run_dir), vsock.own(launch.run_dir)
        if launch.resume:
            folder = os.path.join(launch.folder, saving.TAKING_UP)
            argv = commandline.build_resume(self._binary_for(launch.resume.layout), launch, api, folder)
        else:
            argv = commandline.build(self.binary(), launch, api, os.path.join(own, vsock.SOCKET))
        return dryrun.lines(launch, self.confine(launch), argv)

    def start(
        self, launch: Launch, jail: Jail, on_nics_open: t.Callable[[Process], None] | None = None, timeout: float = 60.0
    ) -> Process:
        # What people type it reads from a terminal only; what its guest prints goes past that, into the pipe.
        with keeper.beside(launch, "terminal") as kept:
            return self._start(launch, jail, kept, on_nics_open, time.monotonic() + timeout)

    def _start(
        self,
        launch: Launch,
        jail: Jail,
        kept: keeper.Kept,
        on_nics_open: t.Callable[[Process], None] | None,
        deadline: float,
    ) -> Process:
        try:
            process = self._spawn(launch, jail, kept)
        except BaseException:
            _clean(launch)
            raise
        try:
            if on_nics_open:  # it was born with them
                on_nics_open(process)
            # systemd works while the hypervisor starts up.
            pids = (process.pid, kept.pid)
            unit = scope.adopt(launch.vm_id, pids, f"microVM {launch.name}") if scope.present() else None
            _await_guest(launch, deadline)
            saving.taken_up(launch)
            if unit:
                scope.wait_adopted(process.pid, unit)
        except BaseException as exc:
            # One that hung up is on its way out: its last words and its status are what the user needs.
            status = launcher.kill(process, 2.0 if isinstance(exc, RestClosedError) else 0.0)
            process.close()
            _clean(launch)
            if isinstance(exc, HypervisorError):
                raise _start_error(launch, exc, status) from exc
            raise
        return process

    def _spawn(self, launch: Launch, jail: Jail, kept: keeper.Kept) -> Process:
        with contextlib.ExitStack() as stack:
            api = launcher.listen(runstate.api_path(launch.run_dir))
            stack.callback(api.close)
            own = _open_own(launch)
            stack.callback(os.close, own)
            argv = self._argv(launch, api.fileno(), f"/proc/self/fd/{own}/{vsock.SOCKET}")
            launcher.create_ram(launch.ram_path, launch.memory, launch.uid, launch.gid)
            if launch.resume and launch.resume.memory and not launch.resume.shared:
                launcher.fill_ram(launch.ram_path, launch.resume.memory)
            log = launcher.open_log(launch.hypervisor_log, 0, 0, launcher.KEEP_LOG)
            stack.callback(os.close, log)
            passed = [api.fileno(), own, *kept.held, *(fd for nic in launch.nics for fd in nic.fds)]
            limit = resource.RLIM_INFINITY if launch.file_limit is None else launch.file_limit
            ends = (kept.input, kept.pipe)
            return launcher.spawn(argv, launch.uid, launch.gid, jail.groups, passed, log, limit, jail.enter, *ends)

    def _argv(self, launch: Launch, api: int, socket_path: str) -> list[str]:
        if launch.resume is None:
            return commandline.build(self.binary(), launch, api, socket_path)
        binary = self._binary_for(launch.resume.layout)
        return commandline.build_resume(binary, launch, api, saving.take_up(launch, socket_path))

    # What can be asked of a running VM.

    def status(self, run_dir: str) -> RunState:
        return runstate.ask(run_dir, SLOW)

    def powerdown(self, run_dir: str) -> None:
        runstate.client(run_dir, SLOW).put("/vm.power-button")

    def reset(self, run_dir: str) -> None:
        runstate.client(run_dir, SLOW).put("/vm.reboot")

    def pause(self, run_dir: str) -> None:
        rest = runstate.client(run_dir, SLOW)
        if runstate.info(rest)["state"] != "Paused":  # which it refuses to do again
            rest.put("/vm.pause")

    def resume(self, run_dir: str) -> None:
        rest = runstate.client(run_dir, SLOW)
        state = runstate.info(rest)["state"]
        if state == "Paused":
            rest.put("/vm.resume")
        elif state in ("Created", "Shutdown"):
            rest.put("/vm.boot")

    # Saved machines.

    def save(self, run_dir: str, wanted: Saving) -> Saved:
        rest = runstate.client(run_dir, SLOW)
        runs = runstate.info(rest)["state"] == "Running"
        version = _running_version(rest)
        watch = (guard.CALL, runstate.api_path(run_dir), guard.request("PUT", f"{runstate.BASE}/vm.resume"))
        pause, resume = (functools.partial(rest.put, target) for target in ("/vm.pause", "/vm.resume"))
        with guard.standing_still(runs, watch, pause, resume, wanted.stay) as still:
            if wanted.machine:
                rest.put("/vm.snapshot", {"destination_url": f"file://{wanted.inbox}"}, SAVE_TIMEOUT)
            wanted.copy(saving.saved_files(wanted.inbox, wanted.ram, wanted.limit) if wanted.machine else [])
        return Saved({"version": version}, version, still.seconds)

    def check_resume(self, saved: SavedState) -> None:
        self._binary_for(saved.layout)

    def _binary_for(self, layout: Layout) -> str:
        """The release that takes up what another may have saved.

        :raises UnsupportedError: it is not here.
        """
        there = str(layout["version"])
        return releases.taking_up("Cloud Hypervisor", self.binary(), self._version_of, there, alike=1)

    def archive_form(self) -> ArchiveForm:
        return VersionForm()

    def attach_disk(self, run_dir: str, disk: Disk) -> None:
        commandline.check_disk(disk)
        rest = runstate.client(run_dir, SLOW)
        present = _devices(rest)
        if commandline.disk_id(disk.serial) in present:
            return
        with _slot("disk", "data_disks"):
            rest.put("/vm.add-disk", commandline.disk_config(disk))

    def detach_disk(self, run_dir: str, serial: str, timeout: float) -> None:
        if not _unplug(runstate.client(run_dir, SLOW), commandline.disk_id(serial), timeout):
            raise GuestTimeoutError(
                f"the guest did not let go of the disk '{serial}' within {timeout:g} s",
                "data_disks",
                "Unmount it in the guest first, or restart the VM (allow_restart).",
            )

    def frees_nics(self, layout: Layout | None) -> bool:
        return True

    def plugged_nics(self, run_dir: str) -> list[int]:
        found = _devices(runstate.client(run_dir, SLOW))
        return [number for number in range(commandline.LIMITS.nics) if commandline.nic_id(number) in found]

    def attach_nic(self, run_dir: str, number: int, nic: Nic) -> None:
        commandline.check_nic(nic)
        rest = runstate.client(run_dir, SLOW)
        if commandline.nic_id(number) not in _devices(rest):
            with _slot("NIC", "nics"):
                rest.hand("/vm.add-net", commandline.net_config(number, nic), nic.fds)

    def detach_nic(self, run_dir: str, number: int, timeout: float) -> None:
        if not _unplug(runstate.client(run_dir, SLOW), commandline.nic_id(number), timeout):
            raise GuestTimeoutError(
                f"the guest did not let go of its NIC {number} within {timeout:g} s",
                "nics",
                "Try again once it has booted, or restart the VM (allow_restart).",
            )

    def resize_disk(self, run_dir: str, serial: str, size: int) -> None:
        rest = runstate.client(run_dir, SLOW)
        present = _disk_size(rest, serial)
        if size < present:  # it would cut it off
            raise HypervisorError(f"disk '{serial}' has {present} bytes, it never shrinks to {size}")
        rest.put("/vm.resize-disk", {"id": commandline.disk_id(serial), "desired_size": size})

    def limit_disk(self, run_dir: str, serial: str, limits: DiskLimits) -> None:
        raise UnsupportedError("Cloud Hypervisor limits no disk of a running VM anew", "limits", "Restart it.")

    def set_balloon(self, run_dir: str, taken: int) -> None:
        runstate.client(run_dir, SLOW).put("/vm.resize", {"desired_balloon": taken})

    def add_cpus(self, run_dir: str, count: int) -> None:
        rest = runstate.client(run_dir, SLOW)
        cpus = runstate.info(rest)["config"].get("cpus")
        present = cpus.get("boot_vcpus") if isinstance(cpus, dict) else None  # as they are now, whatever the name
        if not isinstance(present, int) or present > count:
            raise HypervisorError(f"a VM of {present} vCPUs does not come to have {count} while it runs")
        if present < count:
            rest.put("/vm.resize", {"desired_vcpus": count})


def _open_own(launch: Launch) -> int:
    """The folder that the process makes its sockets in, which it cannot reach by a path: empty, and opened."""
    folder = vsock.own(launch.run_dir)
    remove_tree(folder)
    own_folder(folder, launch.uid)
    return os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _running_version(rest: Rest) -> str:
    """Of the process, which may be older than what a new VM would get.

    :raises HypervisorError: it does not tell.
    """
    answer = rest.look("/vmm.ping")
    said = answer.get("version") if isinstance(answer, dict) else None
    found = re.match(r"v?([0-9]{1,4}(?:\.[0-9]{1,4}){1,3})", said) if isinstance(said, str) else None
    if found is None:
        raise HypervisorError(f"{runstate.WHO} does not tell its version")
    return found.group(1)


def _devices(rest: Rest) -> set[str]:
    """Ids of the devices that the guest has, those that it has been asked to let go of among them."""
    tree = runstate.info(rest).get("device_tree")
    if not isinstance(tree, dict):
        raise HypervisorError(f"{runstate.WHO} does not tell its devices")
    return set(tree)


@contextlib.contextmanager
def _slot(kind: str, option: str) -> t.Iterator[None]:
    """:raises ResourceError: there is none for what is added within."""
    try:
        yield
    except RestError as exc:
        if "NoAvailablePciDeviceSlot" in exc.body or "available PCI device slot" in exc.body:
            raise ResourceError(
                f"the VM has no free slot for another {kind}", option, "Use fewer disks or NICs."
            ) from exc
        raise


def _unplug(rest: Rest, device: str, timeout: float) -> bool:
    """Have the guest let go of a device, which it is asked for once at least; whether it has in *timeout* seconds."""
    deadline = time.monotonic() + timeout
    ask_again = 0.0
    while device in _devices(rest):
        now = time.monotonic()
        if ask_again and now >= deadline:
            return False
        if now >= ask_again:
            _let_go(rest, device)
            ask_again = now + UNPLUG_REPEAT
        time.sleep(LOOK_AGAIN)
    return True


def _let_go(rest: Rest, device: str) -> None:
    """Ask the guest to let go of a device; fine if it just does, when half of the device is still told of."""
    try:
        rest.put("/vm.remove-device", {"id": device})
    except RestError as exc:
        if "Failed to find device" not in exc.body:
            raise


def _disk_size(rest: Rest, serial: str) -> int:
    """Bytes of a raw disk's file.

    :raises HypervisorError: there is no such disk.
    """
    disks = runstate.info(rest)["config"].get("disks")
    found = [disk for disk in disks if isinstance(disk, dict)] if isinstance(disks, list) else []
    path = next((disk.get("path") for disk in found if disk.get("id") == commandline.disk_id(serial)), None)
    if isinstance(path, str):
        with contextlib.suppress(OSError, ValueError):
            return os.lstat(path).st_size
    raise HypervisorError(f"the VM has no disk '{serial}'")


def _await_guest(launch: Launch, deadline: float) -> None:
    """Wait until the guest runs; a hypervisor that ends hangs up, as nobody else holds its socket."""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise HypervisorError("it did not come up in time")
        try:
            if runstate.info(runstate.client(launch.run_dir, left))["state"] == "Running":
                return
        except RestError as exc:
            if exc.status >= 500 and "NotCreated" not in exc.body and "not created" not in exc.body:
                raise
        time.sleep(TURN)


def _clean(launch: Launch) -> None:
    saving.taken_up(launch)
    remove_tree(vsock.own(launch.run_dir))
    launcher.clean(launch.run_dir, (runstate.API,), launch.ram_path)


def _start_error(launch: Launch, exc: HypervisorError, status: int | None) -> HypervisorError:
    """*exc* with what the hypervisor said before it ended."""
    log = launcher.log_tail(launch.hypervisor_log)
    words = f"; the last lines of {launch.hypervisor_log}: {log}" if log else ""
    cause = f": {exc.message}"
    if isinstance(exc, RestClosedError) and status is not None:
        cause = f" (exit status {status})"
    return HypervisorError(f"Cloud Hypervisor of '{launch.name}' did not start{cause}{words}", exc.option, exc.remedy)
