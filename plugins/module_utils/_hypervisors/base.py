# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engine asks of a hypervisor, and nothing else: the seam between it and the drivers."""

from __future__ import annotations

import dataclasses
import socket
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.plugins.module_utils._types import BootConfig


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """What a driver can do; the planner refuses the rest before anything is touched."""

    uefi: bool = False
    bios: bool = False
    qcow2: bool = False
    hotplug_disks: bool = False
    hotplug_nics: bool = False
    virtio_serials: bool = False
    balloon: bool = False
    watchdog: bool = False
    live_disk_resize: bool = False
    snapshots: bool = False
    live_disk_copy: bool = False
    fw_cfg: bool = False


@dataclasses.dataclass(frozen=True)
class Disk:
    """One virtio disk.

    :param serial: what the guest finds it by, at most 20 characters; also the handle of the running API.
    :param path: a file that the VM's uid (or one of its groups) can open.
    :param format: ``raw`` or ``qcow2``.
    :param direct: bypass the host's page cache.
    :param queue_size: virtqueue depth, a power of two from 2 to 1024.
    :param backing: the file below a qcow2 overlay; the overlay's own header is not believed.
    :param removable: can be detached while the VM runs (data disks).
    """

    serial: str
    path: str
    read_only: bool = False
    format: str = "raw"
    direct: bool = False
    queue_size: int = 512
    backing: str | None = None
    backing_format: str = "qcow2"
    removable: bool = False


@dataclasses.dataclass(frozen=True)
class Nic:
    """One virtio NIC on TAP queues that are open already.

    :param fds: one per queue pair; they stay the caller's, who closes them once the VM has been started.
    :param queue_size: virtqueue depth, a power of two from 256 to 1024.
    """

    mac: str
    fds: tuple[int, ...]
    queue_size: int = 512
    mtu: int | None = None


@dataclasses.dataclass(frozen=True)
class Resume:
    """Where a VM goes on from, instead of booting: the same devices in the same places, and their state.

    :param state: file of the devices' state, which only we read.
    :param memory: file of the guest's RAM; ``None`` if *state* has it too.
    :param shared: map *memory* as it is, and keep what the guest changes to itself; else it is copied to its own RAM.
    :param layout: what :meth:`Driver.save` said of the devices' places.
    :param hold: keep the NICs' links down until :meth:`Driver.admit`: the guest takes itself for another one.
    """

    state: str
    memory: str | None
    shared: bool
    layout: t.Mapping[str, t.Any]
    hold: bool = False


@dataclasses.dataclass(frozen=True)
class Saved:
    """What came of :meth:`Driver.save`.

    :param layout: where the devices are, and who saved them, in the driver's words; has the ``version``.
    :param paused_seconds: how long the guest stood still.
    """

    layout: dict[str, t.Any]
    paused_seconds: float


@dataclasses.dataclass(frozen=True)
class Launch:
    """All that a driver needs to start one VM. Sizes in bytes.

    :param groups: supplementary groups, one for each image blob that the VM may read.
    :param machine: as :meth:`Driver.pin` gave it when the VM was created.
    :param boot: ``kernel_path``, ``initrd_path`` and ``cmdline``; without a kernel the first disk is booted, by the
        UEFI in ``firmware_path`` or else by BIOS.
    :param firmware_vars: the VM's own file with the variables of its UEFI.
    :param run_dir: root's own (0700) directory of the VM; holds its sockets.
    :param fw_cfg: item name (``opt/…``) to the file that holds its content.
    :param status_log: file that takes what the guest writes to a second serial port; ``None`` for no such port.
    :param balloon: bytes that the balloon takes; ``None`` for no balloon.
    :param file_limit: the largest file that the process may make, its RAM and disks included; ``None`` for no limit.
    :param resume: a saved state to go on from instead of booting.
    :param serial: the machine's serial number (SMBIOS); the VM's id if empty.
    """

    vm_id: str
    name: str
    uid: int
    gid: int
    cpu: int
    memory: int
    accel: str
    machine: str
    cpu_model: str
    ram_path: str
    run_dir: str
    console_log: str
    hypervisor_log: str
    boot: BootConfig = dataclasses.field(default_factory=BootConfig)
    groups: tuple[int, ...] = ()
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    fw_cfg: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    balloon: int | None = None
    watchdog: bool = False
    file_limit: int | None = None
    resume: Resume | None = None
    firmware_vars: str | None = None
    status_log: str | None = None
    serial: str = ""


@dataclasses.dataclass(frozen=True)
class Probe:
    """What was found of a hypervisor on this host; *reason* says why it is not available.

    *firmware*: what a disk can be booted by here, ``uefi`` and ``bios``.
    """

    name: str
    binary: str | None = None
    version: str | None = None
    available: bool = False
    reason: str | None = None
    accels: tuple[str, ...] = ()
    firmware: tuple[str, ...] = ()


class Driver(t.Protocol):
    """One hypervisor. Stateless: a running VM is addressed by its run_dir."""

    name: str
    capabilities: Capabilities

    def probe(self) -> Probe:
        """What is here; never raises."""

    def pin(self, accel: str) -> dict[str, str]:
        """``machine``, ``cpu_model`` and ``hypervisor_version``, recorded when a VM is created.

        :raises UnsupportedError: *accel* does not work here, or the hypervisor is not installed.
        """

    def uefi(self, store_size: int | None = None) -> tuple[str, str]:
        """Paths of the UEFI code, and of an empty variable store for it.

        :param store_size: bytes of the store that the VM has already.
        :raises UnsupportedError: there is none here.
        """

    def command(self, launch: Launch, fds: t.Mapping[str, int]) -> list[str]:
        """The argument vector; pure.

        :param fds: the descriptor numbers of the sockets that :meth:`start` passes on.
        :raises InputError: a value that the hypervisor cannot take.
        """

    def start(self, launch: Launch, timeout: float = 60.0) -> Process:
        """The running process, its guest running.

        :raises HypervisorError: with the last lines of the hypervisor's log; nothing is left but the logs.
        """

    def status(self, run_dir: str) -> str:
        """``running``, ``paused``, ``shutdown``, … in the hypervisor's words."""

    def powerdown(self, run_dir: str) -> None:
        """Press the power button; the guest may ignore it."""

    def reset(self, run_dir: str) -> None:
        """Press the reset button."""

    def pause(self, run_dir: str) -> None:
        """Stop the vCPUs."""

    def resume(self, run_dir: str) -> None:
        """Let the vCPUs go on."""

    def attach_disk(self, run_dir: str, disk: Disk) -> None:
        """Hot-add *disk*; nothing happens if a disk of that serial is there.

        :raises ResourceError: no free slot.
        """

    def detach_disk(self, run_dir: str, serial: str, timeout: float) -> None:
        """Hot-remove a disk, with the guest's agreement; nothing happens if it is not there.

        :raises GuestTimeoutError: the guest did not let go of it in *timeout* seconds.
        """

    def resize_disk(self, run_dir: str, serial: str, size: int) -> None:
        """Grow a disk to *size* bytes, file and device; the guest sees it at once.

        :raises HypervisorError: it is larger than that, as no disk ever shrinks.
        """

    def set_balloon(self, run_dir: str, taken: int) -> None:
        """Ask the guest's balloon to take *taken* bytes of its memory."""

    def save(
        self,
        run_dir: str,
        state: int,
        inside: t.Callable[[], None],
        *,
        shared: bool,
        limit: int,
        disks: t.Sequence[tuple[str, int]] = (),
        stay: bool = False,
    ) -> Saved:
        """Stop the guest, write the devices' state to the descriptor *state*, call *inside*, let the guest go on.

        It goes on, too, if anything fails, or if this process is killed in between.

        :param inside: copies what has to be of the same instant: RAM file and disks.
        :param shared: the RAM is in a file that *inside* copies; else it becomes part of the state.
        :param limit: bytes of state beyond which the hypervisor is not believed.
        :param disks: serials of raw disks, and descriptors of empty files of their size, which are filled with what
            the disks have at that instant, while the guest runs on.
        :param stay: leave the guest stopped in the end: the process is about to be ended.
        :raises HypervisorError: the state could not be written.
        """

    def check_resume(self, machine: str, layout: t.Mapping[str, t.Any]) -> None:
        """Whether this host's hypervisor can load a state of *machine* (see :meth:`pin`) with that *layout*.

        :raises UnsupportedError: with the reason.
        """

    def announce(self, run_dir: str, message: bytes) -> socket.socket:
        """Tell a resumed guest who it is now; its answer comes through the socket."""

    def check_macs(self, run_dir: str, macs: t.Sequence[str]) -> None:
        """Whether the guest's NICs have the addresses *macs*, in order.

        :raises HypervisorError: one has another.
        """

    def admit(self, run_dir: str, nics: int) -> None:
        """Raise the links of a guest that was held."""
