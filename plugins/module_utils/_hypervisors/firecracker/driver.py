# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Firecracker driver: machines that boot a kernel from raw disks, under KVM.

What it lacks is declared, and not tried: disks that come and go, data for the guest.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import resource
import shutil
import signal
import stat
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _scope as scope
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    CocoonError,
    HypervisorError,
    UnsupportedError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import (
    guard,
    keeper,
    kvm,
    listening,
    private,
    releases,
    vsock,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import launch as launcher
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import (
    MEMORY,
    STATE,
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
    Role,
    RunState,
    Saved,
    SavedFile,
    SavedState,
    Saving,
    VsockDriver,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.cache import binary_key, cached
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.firecracker import (
    calls,
    dryrun,
    files,
    places,
    probe,
    runstate,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.rest import RestClosedError
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process, real_uid
from ansible_collections.cocoon.microvm.plugins.module_utils._state import own_folder, remove_file, remove_tree

REMEDY = "Install a release of Firecracker as /usr/local/bin/firecracker (1.16.1 or newer)."
TURN = 10.0
# All of the RAM is written.
SAVE_TIMEOUT = 600.0
# A pause that is not followed by a save does that.
NO_VSOCK = "its guest may not be reached by vsock until the VM is restarted"
FILES: t.Final[tuple[tuple[str, Role], ...]] = ((files.STATE_FILE, STATE), (files.MEMORY_FILE, MEMORY))
VERSION = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4}){1,3}")
# What a guard.Guard runs, with the process that is about to be stopped.
GO_ON = """
import os, signal, sys
process = os.pidfd_open(int(sys.argv[1]))
if not os.read(0, 1):
    signal.pidfd_send_signal(process, signal.SIGCONT)
"""
# Seconds until a process that was stopped stands still with all of its threads, and between two looks at it.
STANDS, LOOK = 10.0, 0.002
OWN_DISK = re.compile(rf"^{places.MACHINES}/([A-Za-z0-9_-]{{1,64}})/[^/]+\Z")
DEVICES = ("/dev/kvm", "/dev/net/tun", "/dev/urandom")


class FirecrackerDriver(VsockDriver):
    """Firecracker, under KVM.

    :param binary: instead of the one that is found.
    """

    name = "firecracker"
    capabilities = Capabilities(
        balloon=True, live_disk_resize=True, live_disk_limits=True, snapshots=True, agent=True, guest_data=True
    )
    limits = calls.LIMITS
    nic_by: t.ClassVar[t.Literal["fd", "name"]] = "name"
    pinned = ()
    saved_files = files.SAVED
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

    def _facts(self, path: str | None = None) -> dict[str, t.Any]:
        binary = path or self.binary()
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
        return self._version_of(self.binary())

    def _version_of(self, binary: str) -> str:
        return str(self._facts(binary)["version"])

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

    def firmware(self, folder: str) -> Firmware:
        raise UnsupportedError("firecracker boots nothing by UEFI", "firmware", "Use another hypervisor.")

    def confine(self, launch: Launch) -> Jail:
        boot = [path for path in (launch.boot.get("kernel_path"), launch.boot.get("initrd_path")) if path]
        seen = [*boot, *(disk.path for disk in launch.disks)]
        binary = self._binary_for(launch.resume.layout) if launch.resume else self.binary()
        memory = {places.MEMORY: launch.resume.memory} if launch.resume and launch.resume.memory else {}
        return Jail(
            groups=launch.groups,
            files={
                places.BINARY: binary,
                **self._facts(binary)["libraries"],
                places.LOG: launch.hypervisor_log,
                **{places.inside(launch, path): path for path in seen},
                places.INBOX: self.paths.inbox(launch.vm_id),
                **memory,
            },
            devices=DEVICES,
            folder=vsock.own(launch.run_dir),
        )

    def command(self, launch: Launch) -> list[str]:
        socket_path, log = f"{places.RUN}/{places.API}", ("--log-path", places.LOG, "--level", "Warning")
        return [places.BINARY, "--id", launch.vm_id, "--api-sock", socket_path, *log]

    def dry_run(self, launch: Launch) -> list[str]:
        asked = [*_before_nics(launch), _last(launch)]
        return dryrun.lines(launch, self.confine(launch), self.command(launch), asked)

    def start(
        self, launch: Launch, jail: Jail, on_nics_open: t.Callable[[Process], None] | None = None, timeout: float = 60.0
    ) -> Process:
        with keeper.beside(launch, "pipe") as kept:
            return self._start(launch, jail, kept, on_nics_open, time.monotonic() + timeout)

    def _start(
        self,
        launch: Launch,
        jail: Jail,
        kept: keeper.Kept,
        on_nics_open: t.Callable[[Process], None] | None,
        deadline: float,
    ) -> Process:
        asked = _before_nics(launch)
        try:
            folder = self._make_folders(launch)
            with listening.Watch(folder) as watch:
                process = self._spawn(launch, jail, kept)
                try:
                    pids = (process.pid, kept.pid)
                    unit = scope.adopt(launch.vm_id, pids, f"microVM {launch.name}") if scope.present() else None
                    watch.wait_listening(places.API, process, deadline)
                    self._ask(launch, asked, deadline)
                    remove_file(os.path.join(folder, places.STATE))  # it has been read
                    if on_nics_open:
                        on_nics_open(process)
                    self._ask(launch, [_last(launch)], deadline)
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

    def _spawn(self, launch: Launch, jail: Jail, kept: keeper.Kept) -> Process:
        log = launcher.open_log(launch.hypervisor_log, launch.uid, launch.gid, launcher.KEEP_LOG)
        limit = resource.RLIM_INFINITY if launch.file_limit is None else launch.file_limit

        def enter() -> None:
            if jail.enter is not None:
                jail.enter()
            private.enter(jail, launch.uid)

        try:
            argv = self.command(launch)
            ends = (kept.input, kept.pipe)
            return launcher.spawn(argv, launch.uid, launch.gid, jail.groups, (), log, limit, enter, *ends)
        finally:
            os.close(log)

    def _make_folders(self, launch: Launch) -> str:
        """The folders that the process makes its sockets in, empty, and what it saves; where the former is."""
        folder, inbox = vsock.own(launch.run_dir), self.paths.inbox(launch.vm_id)
        remove_tree(folder)
        os.mkdir(folder, 0o700)
        if launch.resume:  # as long as nobody else can reach in
            state = os.path.join(folder, places.STATE)
            shutil.copyfile(os.path.join(launch.resume.folder, files.STATE_FILE), state)
            os.chown(state, launch.uid, launch.gid)
        for path in (folder, inbox):
            own_folder(path, launch.uid)
        return folder

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
        if runstate.ask(run_dir, TURN) == "paused":  # it was saved while it stood still
            self._say(run_dir, calls.RESUME)

    def resize_disk(self, run_dir: str, serial: str, size: int) -> None:
        vm_id = os.path.basename(run_dir)
        name = "cow.raw" if serial == "cocoon-cow" else f"data-{serial}.raw"
        inside = f"{places.MACHINES}/{_machine_id(run_dir)}/{name}"
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
        self._say(run_dir, calls.grown(serial, inside))

    def limit_disk(self, run_dir: str, serial: str, limits: DiskLimits) -> None:
        self._say(run_dir, calls.limited(serial, limits))

    def set_balloon(self, run_dir: str, taken: int) -> None:
        self._say(run_dir, calls.balloon(taken))

    @staticmethod
    def _say(run_dir: str, call: calls.Call, timeout: float = TURN) -> None:
        try:
            places.connect(run_dir, timeout).call(call.method, call.target, call.body)
        except OSError as exc:
            raise HypervisorError(f"Firecracker does not run: {exc.strerror}") from exc

    @staticmethod
    def _signal(run_dir: str, number: signal.Signals) -> None:
        """Signal the process that listens at the API, which may stand still: the kernel says which one it is.

        :raises HypervisorError: nobody does, or not its user.
        """
        try:
            uid = os.lstat(vsock.own(run_dir)).st_uid
            pid = listening.listener(places.api_path(run_dir))
            with Process(pid, os.pidfd_open(pid)) as process:
                if real_uid(pid) != uid:
                    raise HypervisorError(f"process {pid} is not the hypervisor of this VM")
                process.signal(number)
        except OSError as exc:
            raise HypervisorError(f"Firecracker does not run: {exc.strerror}") from exc

    # Saved machines.

    def save(self, run_dir: str, wanted: Saving) -> Saved:
        """The process writes all of the RAM; what has been saved, its vsock survives, unlike a mere pause."""
        if not wanted.machine:
            return self._copy(run_dir, wanted)
        runs = not self._stands(run_dir)
        layout = _layout(run_dir) if runs else self._awoken(run_dir)
        go_on = guard.request(calls.RESUME.method, calls.RESUME.target, calls.RESUME.body)
        watch = (guard.CALL, places.api_path(run_dir), go_on)
        pause, resume = (functools.partial(self._say, run_dir, call) for call in (calls.PAUSE, calls.RESUME))
        with guard.standing_still(runs, watch, pause, resume, wanted.stay) as still:
            try:
                self._say(run_dir, calls.SAVE, SAVE_TIMEOUT)
            except HypervisorError as exc:
                raise HypervisorError(f"{exc.message}; {NO_VSOCK}", exc.option, exc.remedy) from exc
            wanted.copy(_saved_files(wanted.inbox, wanted.limit))
        return Saved(layout, layout["version"], still.seconds)

    def _copy(self, run_dir: str, wanted: Saving) -> Saved:
        """All of the process stands still for the disks: a pause that is not followed by a save costs the vsock."""
        runs = not self._stands(run_dir)
        pid = listening.listener(places.api_path(run_dir))

        def stop() -> None:
            self._signal(run_dir, signal.SIGSTOP)
            _await_standing(pid)

        go_on = functools.partial(self._signal, run_dir, signal.SIGCONT)
        with guard.standing_still(runs, (GO_ON, str(pid)), stop, go_on, wanted.stay) as still:
            wanted.copy([])
        return Saved({}, "", still.seconds)

    def _awoken(self, run_dir: str) -> dict[str, str]:
        """Have one that stands still stand by its vCPUs, so that its process can be asked; :func:`_layout`.

        :raises HypervisorError: it does not answer; it stands as it did.
        """
        self._signal(run_dir, signal.SIGCONT)
        try:
            self._say(run_dir, calls.PAUSE)
            return _layout(run_dir)
        except BaseException:
            with contextlib.suppress(HypervisorError):
                self._signal(run_dir, signal.SIGSTOP)
            raise

    def _stands(self, run_dir: str) -> bool:
        """Whether the guest stands still: its process does, or its vCPUs."""
        try:
            with open(f"/proc/{listening.listener(places.api_path(run_dir))}/stat", encoding="utf-8") as stream:
                stopped = stream.read().rpartition(")")[2].split()[0] in ("T", "t")
        except OSError as exc:
            raise HypervisorError(f"Firecracker does not run: {exc.strerror}") from exc
        return stopped or runstate.ask(run_dir, TURN) == "paused"

    def check_resume(self, saved: SavedState) -> None:
        self._binary_for(saved.layout)
        there, here = saved.layout.get("cpu"), kvm.host_cpu()
        if there and there != here:  # it would go on, and its guest would meet a CPU that it does not know
            raise UnsupportedError(
                f"it was saved on a CPU '{there}' (vendor, family, model, stepping), and this host has '{here}'",
                "hypervisor",
                "Take it up on a host with the same CPU, or take its disks alone.",
            )

    def _binary_for(self, layout: Layout) -> str:
        """The release that takes up what another may have saved.

        :raises UnsupportedError: it is not here.
        """
        there = str(layout["version"])
        return releases.taking_up("Firecracker", self.binary(), self._version_of, there, alike=2)

    def archive_form(self) -> ArchiveForm:
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.firecracker.archive import (
            FirecrackerArchive,
        )

        return FirecrackerArchive()

    # What it lacks.

    def attach_disk(self, run_dir: str, disk: Disk) -> None:
        raise UnsupportedError("firecracker attaches no disks to a running VM", "data_disks", "Restart it.")

    def add_cpus(self, run_dir: str, count: int) -> None:
        raise UnsupportedError("firecracker adds no vCPUs to a running VM", "cpu", "Restart it.")

    def detach_disk(self, run_dir: str, serial: str, timeout: float) -> None:
        raise UnsupportedError("firecracker detaches no disks from a running VM", "data_disks", "Restart it.")

    def frees_nics(self, layout: Layout | None) -> bool:
        return False

    def plugged_nics(self, run_dir: str) -> list[int]:
        return []

    def attach_nic(self, run_dir: str, number: int, nic: Nic) -> None:
        raise UnsupportedError("firecracker attaches no NICs to a running VM", "nics", "Restart it.")

    def detach_nic(self, run_dir: str, number: int, timeout: float) -> None:
        raise UnsupportedError("firecracker detaches no NICs from a running VM", "nics", "Restart it.")


def _before_nics(launch: Launch) -> list[calls.Call]:
    """All that is asked until it holds its TAPs."""
    return calls.load(launch) if launch.resume else [*calls.machine(launch), *calls.nics(launch)]


def _last(launch: Launch) -> calls.Call:
    """What lets the guest run."""
    return calls.RESUME if launch.resume else calls.START


def _look(run_dir: str, target: str) -> dict[str, t.Any]:
    """What a GET answers.

    :raises HypervisorError: nobody answers, or not as the document has it.
    """
    try:
        answer = places.connect(run_dir, TURN).look(target)
    except OSError as exc:
        raise HypervisorError(f"Firecracker does not run: {exc.strerror}") from exc
    return answer if isinstance(answer, dict) else {}


def _layout(run_dir: str) -> dict[str, str]:
    """What a saved machine is bound to."""
    layout = {"version": _running_version(run_dir), "id": _machine_id(run_dir)}
    cpu = kvm.host_cpu()
    return {**layout, "cpu": cpu} if cpu else layout


def _running_version(run_dir: str) -> str:
    """Of the process, which may be older than what a new VM would get.

    :raises HypervisorError: it does not tell.
    """
    found = VERSION.match(str(_look(run_dir, "/").get("vmm_version")))
    if found is None:
        raise HypervisorError("Firecracker does not tell its version")
    return found.group()


def _machine_id(run_dir: str) -> str:
    """The id that the paths of its disks have: it is its source's in a clone.

    :raises HypervisorError: it does not tell.
    """
    drives = _look(run_dir, "/vm/config").get("drives")
    listed = drives if isinstance(drives, list) else []
    paths = [drive.get("path_on_host") for drive in listed if isinstance(drive, dict)]
    found = {match.group(1) for match in map(OWN_DISK.match, filter(None, map(str, paths))) if match}
    if len(found) != 1:
        raise HypervisorError("Firecracker does not tell its disks")
    return found.pop()


def _saved_files(inbox: str, limit: int) -> list[SavedFile]:
    """What it has written. Whether that is a machine shows when it is taken up.

    :raises HypervisorError: more than it can be.
    """
    found = [SavedFile(name, role, os.path.join(inbox, name)) for name, role in FILES]
    if any(os.lstat(file.path).st_size > limit for file in found):
        raise HypervisorError("the state of the VM could not be saved: it is larger than it can be")
    return found


def clean(launch: Launch) -> None:
    """Remove what a process that has ended leaves."""
    remove_tree(vsock.own(launch.run_dir))
    launcher.clean(launch.run_dir, (), launch.ram_path)


def _start_error(launch: Launch, exc: HypervisorError, status: int | None) -> HypervisorError:
    """*exc* with what Firecracker said before it ended."""
    words = launcher.log_tail(launch.hypervisor_log)
    said = f"; the last lines of {launch.hypervisor_log}: {words}" if words else ""
    cause = f": {exc.message}"
    if isinstance(exc, RestClosedError) and status is not None:
        cause = f" (exit status {status})"
    return HypervisorError(f"Firecracker of '{launch.name}' did not start{cause}{said}", exc.option, exc.remedy)


def _await_standing(pid: int) -> None:
    """Wait until no thread of a process that was told to stop is at anything any more.

    :raises HypervisorError: one is.
    """
    deadline = time.monotonic() + STANDS
    while True:
        try:
            if all(_word(pid, thread) in ("T", "t") for thread in os.listdir(f"/proc/{pid}/task")):
                return
        except FileNotFoundError as exc:
            raise HypervisorError("Firecracker does not run") from exc
        if time.monotonic() > deadline:
            raise HypervisorError("Firecracker does not stand still")
        time.sleep(LOOK)


def _word(pid: int, thread: str) -> str:
    """The kernel's word for what a thread does; ``T`` of one that has just ended."""
    try:
        with open(f"/proc/{pid}/task/{thread}/stat", encoding="utf-8") as stream:
            return stream.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "T"
