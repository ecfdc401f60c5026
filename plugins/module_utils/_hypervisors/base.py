# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engine asks of a hypervisor, and nothing else: the seam between it and the drivers."""

from __future__ import annotations

import dataclasses
import socket
import typing as t
import uuid

from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import BootConfig

UUID_SPACE = uuid.UUID("6f0a9a1c-52c5-4a2f-9b1d-0b8d5a3ee0c4")

# What a VM's record keeps of its machine, by the driver's own keys: recorded once, never resolved again.
Pins = t.Mapping[str, str]
# Where a saved machine's devices are, in the driver's words.
Layout = t.Mapping[str, object]

DiskLimits = t.Mapping[str, t.Mapping[str, int]]

# What a file of a saved machine is: its devices, or its RAM, which clones may share.
STATE: t.Final = "state"
MEMORY: t.Final = "memory"
Role = t.Literal["state", "memory"]

# How a guest is, whatever its hypervisor calls it.
RunState = t.Literal["running", "paused", "io-error", "internal-error", "guest-panicked", "watchdog", "shutdown"]

# What becomes of a VM when its guest does it.
Outcome = t.Literal["ends", "restarts", "stands", "ignored"]


def guest_uuid(vm_id: str) -> str:
    """The UUID that the guest of a VM has for its machine's."""
    return str(uuid.uuid5(UUID_SPACE, vm_id))


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """What a driver can do; the planner refuses the rest before anything is touched."""

    uefi: bool = False
    bios: bool = False
    qcow2: bool = False
    hotplug_disks: bool = False
    hotplug_nics: bool = False
    agent: bool = False
    balloon: bool = False
    watchdog: bool = False
    live_disk_resize: bool = False
    live_disk_limits: bool = False
    # Limits of a disk's reads and writes for themselves; every driver has those of both together.
    read_write_limits: bool = False
    snapshots: bool = False
    live_disk_copy: bool = False
    live_cpus: bool = False
    guest_data: bool = False
    # That goes by a device of its own, and not before an initramfs; a container has one to say how it ended, too.
    data_device: bool = False
    # The guest's RAM is a file, which can be on a disk; else it is the process's own memory.
    ram_file: bool = False


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much a driver can do; the planner refuses what is beyond.

    :param fixed_disks: image layers, the system disk and the volume for the first boot.
    :param removable_disks: data disks.
    :param command_line: bytes of the kernel's command line.
    :param nic_queues: depths that a NIC's queue may have.
    :param disk_queues: depths that a disk's queue may have.
    :param devices: disks of all kinds, NICs and a balloon together; ``None``: each counts for itself.
    """

    cpus: int
    nics: int
    fixed_disks: int
    removable_disks: int
    command_line: int
    nic_queues: tuple[int, ...]
    disk_queues: tuple[int, ...]
    devices: int | None = None


@dataclasses.dataclass(frozen=True)
class GuestActions:
    """What becomes of a VM when its guest powers off, reboots or panics."""

    poweroff: Outcome
    reboot: Outcome
    panic: Outcome


@dataclasses.dataclass(frozen=True)
class BootStyle:
    """What a kernel that is booted directly is told of the machine.

    :param console: the device of the console.
    :param words: of the kernel's command line, beside the contract's.
    :param disks: how layers and system disk are named there.
    :param kernel: the form that it is taken in: as distributions have it, or the ELF file within.
    """

    console: str
    words: tuple[str, ...] = ()
    disks: t.Literal["serial", "path"] = "serial"
    kernel: t.Literal["bzimage", "elf"] = "bzimage"


@dataclasses.dataclass(frozen=True)
class Endpoints:
    """Sockets of a running VM: of the hypervisor's API, and of the console where people can attach to it."""

    api: str
    console: str | None = None


@dataclasses.dataclass(frozen=True)
class Channel:
    """The way to the agent inside a guest.

    :param path: the unix socket on this host.
    :param port: what is to be connected to beyond that socket, if the kind has ports.
    :param uid: the user who must have begun to listen at that socket, where the hypervisor makes it itself.
    """

    kind: t.Literal["virtio-serial", "vsock"]
    path: str
    port: int | None = None
    uid: int | None = None


@dataclasses.dataclass(frozen=True)
class Firmware:
    """What a disk is booted by.

    :param code: the file that all VMs share.
    :param own: names of files in the VM's folder, each with the file that it is copied from where it is not there.
    """

    code: str
    own: t.Mapping[str, str] = dataclasses.field(default_factory=dict)


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
    :param limits: how fast it may be: ``total``, or ``read`` and ``write`` or one of them, each with ``rate`` (bytes a
        second), ``burst`` (bytes at once) and ``iops``, as far as they are limited.
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
    limits: DiskLimits = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Nic:
    """One virtio NIC on a TAP, as :attr:`Driver.nic_by` has it.

    :param fds: TAP queues that are open already, one per queue pair; they stay the caller's, who closes them once the
        VM has been started.
    :param tap: the name of the TAP; of one that is opened by name, in the network namespace of the VM's :class:`Jail`.
    :param pairs: queue pairs of a TAP without *fds*.
    :param queue_size: virtqueue depth, a power of two from 256 to 1024.
    """

    mac: str
    fds: tuple[int, ...] = ()
    queue_size: int = 512
    mtu: int | None = None
    tap: str = ""
    pairs: int = 1


@dataclasses.dataclass(frozen=True)
class Resume:
    """Where a VM goes on from, instead of booting: the same devices in the same places, and their state.

    :param folder: has the files of the saved machine, which only we read, under the names that they were saved by.
    :param memory: the one with the guest's RAM; ``None`` if its state has it too.
    :param shared: map *memory* as it is, and keep what the guest changes to itself; else it is copied to its own RAM.
    :param layout: what :meth:`Driver.save` said of the devices' places.
    :param hold: keep the NICs' links down until :meth:`Driver.admit`: the guest takes itself for another one.
    """

    folder: str
    memory: str | None
    shared: bool
    layout: Layout
    hold: bool = False


@dataclasses.dataclass(frozen=True)
class SavedFile:
    """One file of a machine that is being saved.

    :param name: what it is called in a snapshot.
    :param path: where it lies now. The VM's user may be able to write it, so it is copied from there.
    """

    name: str
    role: Role
    path: str


@dataclasses.dataclass(frozen=True)
class Saving:
    """What is wanted of :meth:`Driver.save`.

    :param inbox: an empty folder; where :attr:`Driver.writes_inbox` says so, the VM's user's own.
    :param copy: copies what has to be of the same instant: the files that it is given, and disks. What lies in
        *inbox* already where the caller wants it is named, too.
    :param ram: the file that the guest's RAM is shared with; ``None``: the RAM becomes part of the state.
    :param limit: bytes of state beyond which the hypervisor is not believed.
    :param disks: serials of raw disks, and descriptors of empty files of their size, which are filled with what
        the disks have at that instant, while the guest runs on.
    :param stay: leave the guest stopped in the end: the process is about to be ended.
    :param machine: write the machine's state; else only *copy* is called, with no files, at one instant all the same.
    :param after: called once the guest goes on, by a driver that has still something to copy then. Never raises.
    """

    inbox: str
    copy: t.Callable[[t.Sequence[SavedFile]], None]
    ram: str | None
    limit: int
    disks: t.Sequence[tuple[str, int]] = ()
    stay: bool = False
    machine: bool = True
    after: t.Callable[[], None] | None = None


@dataclasses.dataclass(frozen=True)
class Saved:
    """What came of :meth:`Driver.save`.

    :param layout: where the devices are, in the driver's words.
    :param version: of the hypervisor that saved them.
    :param paused_seconds: how long the guest stood still.
    """

    layout: Layout
    version: str
    paused_seconds: float


@dataclasses.dataclass(frozen=True)
class SavedState:
    """A saved machine, as far as a hypervisor has to know it to tell whether it can take it up."""

    pins: Pins
    layout: Layout


@dataclasses.dataclass(frozen=True)
class Launch:
    """All that a driver needs to start one VM. Sizes in bytes.

    :param groups: supplementary groups, one for each image blob that the VM may read.
    :param pins: as :meth:`Driver.pin` gave them when the VM was created.
    :param boot: ``kernel_path``, ``initrd_path`` and ``cmdline``; without a kernel the first disk is booted, by the
        UEFI in ``firmware_path`` or else by BIOS.
    :param folder: the VM's own, with the files that :meth:`Driver.firmware` named.
    :param run_dir: root's own (0700) directory of the VM; holds its sockets.
    :param guest_data: names of items for the guest, each with the file that holds its content.
    :param status_log: file that takes what the guest writes to its second channel; ``None`` for no such channel.
    :param balloon: bytes that the balloon takes; ``None`` for no balloon.
    :param cpu_max: vCPUs that it can come to have while it runs; none beyond *cpu* if that is less.
    :param windows: its guest is Windows: what of a hypervisor that knows, and a clock of the host's local time.
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
    pins: Pins
    ram_path: str
    run_dir: str
    console_log: str
    hypervisor_log: str
    boot: BootConfig = dataclasses.field(default_factory=lambda: t.cast("BootConfig", {}))
    folder: str = ""
    groups: tuple[int, ...] = ()
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    guest_data: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    balloon: int | None = None
    watchdog: bool = False
    cpu_max: int = 0
    windows: bool = False
    file_limit: int | None = None
    resume: Resume | None = None
    status_log: str | None = None
    serial: str = ""


@dataclasses.dataclass(frozen=True)
class Jail:
    """What a hypervisor process can reach.

    :param enter: called in the network namespace that was made for it, before it is there; leaves there what it is to
        find by name. ``None``: there is nothing in it.
    :param groups: its supplementary groups.
    :param files: paths in a root of its own, each with what is bound there; ``None``: the host's root, where the rights
        of its user are all that it has.
    :param devices: device nodes in a root of its own.
    :param folder: the directory of its own that it may make files in; ``None``: it makes none.
    """

    groups: tuple[int, ...] = ()
    enter: t.Callable[[], None] | None = None
    files: t.Mapping[str, str] | None = None
    devices: tuple[str, ...] = ()
    folder: str | None = None


@dataclasses.dataclass(frozen=True)
class Probe:
    """What was found of a hypervisor on this host; *reason* says why it is not available, *remedy* what to do about it.

    *firmware*: what a disk can be booted by here, ``uefi`` and ``bios``; *uefi_remedy* says how to have the former.
    """

    name: str
    binary: str | None = None
    version: str | None = None
    available: bool = False
    reason: str | None = None
    accels: tuple[str, ...] = ()
    firmware: tuple[str, ...] = ()
    remedy: str | None = None
    uefi_remedy: str | None = None


class ArchiveForm(t.Protocol):
    """What a driver has in ``cocoon.json``, the document of a snapshot that goes into an archive.

    All that it reads there comes from elsewhere, and some of it goes into a command line: so the schemas.
    """

    # JSON Schemas (Draft 7) of fields beside the Go engine's, all of which are required; and of the layout.
    properties: t.ClassVar[t.Mapping[str, t.Any]]
    layout: t.ClassVar[t.Mapping[str, t.Any]]

    def words(self, record: t.Mapping[str, t.Any]) -> Record:
        """Those fields, of a snapshot's record."""

    def version(self, document: Record) -> str:
        """The hypervisor that saved it."""

    def problems(self, layout: Layout, disks: t.Sequence[str]) -> list[str]:
        """What does not hold together in the layout of a machine with the data disks *disks*."""


class Driver(t.Protocol):
    """One hypervisor. Stateless: a running VM is addressed by its run_dir."""

    name: t.ClassVar[str]
    capabilities: t.ClassVar[Capabilities]
    limits: t.ClassVar[Limits]
    # Asked before TAPs are made. By name: a TAP of the VM's user in the VM's own network namespace.
    nic_by: t.ClassVar[t.Literal["fd", "name"]]
    # Keys of the pins in the records of VMs and snapshots.
    pinned: t.ClassVar[tuple[str, ...]]
    # Files of a saved machine by their names in a snapshot. All others in a snapshot are disks.
    saved_files: t.ClassVar[t.Mapping[str, Role]]
    # Whether the hypervisor's process makes those files itself, in a folder of its user's.
    writes_inbox: t.ClassVar[bool]
    # Files in a VM's folder that are the driver's own, and part of the machine as its disks are.
    own_files: t.ClassVar[tuple[str, ...]]
    # What a guest's poweroff, reboot and panic mean.
    guest_actions: t.ClassVar[GuestActions]

    def probe(self) -> Probe:
        """What is here; never raises."""

    def pin(self, accel: str) -> Pins:
        """What is to stay as it is for a VM that is made now: :attr:`pinned`.

        :raises UnsupportedError: *accel* does not work here, or the hypervisor is not installed.
        """

    def repin(self, accel: str) -> Pins:
        """Of :meth:`pin`, what another accelerator changes for a VM that is there."""

    def version(self) -> str:
        """Of the hypervisor on this host.

        :raises UnsupportedError: it is not installed.
        """

    def boot_style(self, accel: str) -> BootStyle:
        """What a kernel is told of the machine."""

    def endpoints(self, run_dir: str) -> Endpoints:
        """The sockets of a running VM."""

    def agent_listens(self, run_dir: str) -> bool:
        """Whether anybody in the guest has opened the way to its agent; false where the hypervisor cannot tell."""

    def firmware(self, folder: str) -> Firmware:
        """The UEFI for the VM of *folder*, where files of its own may be there already.

        :raises UnsupportedError: there is none here, or none that goes with them.
        """

    def confine(self, launch: Launch) -> Jail:
        """What the process of *launch* is to reach, and no more."""

    def dry_run(self, launch: Launch) -> list[str]:
        """What :meth:`start` would run and ask, each as a line for a shell; pure but for the probe.

        :raises InputError: a value that the hypervisor cannot take.
        """

    def start(
        self, launch: Launch, jail: Jail, on_nics_open: t.Callable[[Process], None] | None = None, timeout: float = 60.0
    ) -> Process:
        """The running process, its guest running.

        :param on_nics_open: called with the process when it holds its TAPs, and before the guest runs.
        :raises HypervisorError: with the last lines of the hypervisor's log; nothing is left but the logs.
        """

    def status(self, run_dir: str) -> RunState:
        """How the guest is.

        :raises BusyError: another task talks to the hypervisor. :raises HypervisorError: it does not answer.
        """

    def powerdown(self, run_dir: str) -> None:
        """Press the power button; the guest may ignore it."""

    def reset(self, run_dir: str) -> None:
        """Press the reset button."""

    def pause(self, run_dir: str) -> None:
        """Stop the vCPUs."""

    def resume(self, run_dir: str) -> None:
        """Let the vCPUs go on, whatever stopped them; a guest that cannot go on boots anew."""

    def attach_disk(self, run_dir: str, disk: Disk) -> None:
        """Hot-add *disk*; nothing happens if a disk of that serial is there.

        :raises ResourceError: no free slot.
        """

    def detach_disk(self, run_dir: str, serial: str, timeout: float) -> None:
        """Hot-remove a disk, with the guest's agreement; nothing happens if it is not there.

        :raises GuestTimeoutError: the guest did not let go of it in *timeout* seconds.
        """

    def frees_nics(self, layout: Layout | None) -> bool:
        """Whether NICs can come to and go from a machine that runs.

        :param layout: of the saved state that it went on from; ``None`` for one that has booted.
        """

    def plugged_nics(self, run_dir: str) -> list[int]:
        """The NICs that can be unplugged, by their places."""

    def attach_nic(self, run_dir: str, number: int, nic: Nic) -> None:
        """Hot-add a NIC, its link down until :meth:`admit`; nothing happens if one is in that place.

        :raises ResourceError: no free slot.
        """

    def detach_nic(self, run_dir: str, number: int, timeout: float) -> None:
        """Hot-remove a NIC, with the guest's agreement, and close its TAP; nothing happens if it is not there.

        :raises GuestTimeoutError: the guest did not let go of it in *timeout* seconds.
        """

    def resize_disk(self, run_dir: str, serial: str, size: int) -> None:
        """Grow a disk to *size* bytes, file and device; the guest sees it at once.

        :raises HypervisorError: it is larger than that, as no disk ever shrinks.
        """

    def limit_disk(self, run_dir: str, serial: str, limits: DiskLimits) -> None:
        """Have a disk of a running VM be as fast as *limits* say from now on; see :class:`Disk`."""

    def set_balloon(self, run_dir: str, taken: int) -> None:
        """Ask the guest's balloon to take *taken* bytes of its memory."""

    def add_cpus(self, run_dir: str, count: int) -> None:
        """Give a running guest more vCPUs, *count* in all; nothing happens if it has as many.

        :raises HypervisorError: it has more.
        """

    def save(self, run_dir: str, wanted: Saving) -> Saved:
        """Stop the guest, write its machine's state into the inbox, have it copied, let the guest go on.

        It goes on, too, if anything fails, or if this process is killed in between.

        :raises HypervisorError: the state could not be written.
        """

    def reads_only(self) -> bool:
        """Whether clones can map a snapshot's RAM file without the right to write to it."""

    def check_resume(self, saved: SavedState) -> None:
        """Whether this host's hypervisor can take up *saved*.

        :raises UnsupportedError: with the reason.
        """

    def archive_form(self) -> ArchiveForm:
        """What snapshots say of the machine in an archive."""

    def announce(self, run_dir: str, message: bytes) -> socket.socket:
        """Tell a resumed guest who it is now; its answer comes through the socket."""

    def check_macs(self, run_dir: str, macs: t.Sequence[str]) -> None:
        """Whether the guest's NICs have the addresses *macs*, in order.

        :raises HypervisorError: one has another.
        """

    def admit(self, run_dir: str, nics: int) -> None:
        """Raise the links of a guest that was held."""


class VsockDriver(Driver):
    """One that reaches into its guests by their vsock, and cannot tell what they do with what they are given."""

    def agent_listens(self, run_dir: str) -> bool:
        """It does not know."""
        return False

    def reads_only(self) -> bool:
        return True

    def announce(self, run_dir: str, message: bytes) -> socket.socket:
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import vsock

        return vsock.announce(vsock.channel(vsock.own(run_dir)), message)

    def check_macs(self, run_dir: str, macs: t.Sequence[str]) -> None:
        """It does not know what addresses its guest has given itself; the network lets no others through."""

    def admit(self, run_dir: str, nics: int) -> None:
        """A guest that was held has links all the time; they lead nowhere before its TAPs are on their bridges."""


# Of a release, as it goes into messages.
VERSION: t.Final[t.Mapping[str, t.Any]] = {"type": "string", "pattern": r"^[0-9]{1,4}(\.[0-9]{1,4}){1,3}\Z"}


class VersionForm:
    """What snapshots say in ``cocoon.json`` of a machine that goes on where the same release is."""

    properties: t.ClassVar[t.Mapping[str, t.Any]] = {"hypervisor_version": VERSION}
    layout: t.ClassVar[t.Mapping[str, t.Any]] = {
        "type": "object",
        "required": ["version"],
        "properties": {"version": VERSION},
        "additionalProperties": False,
    }

    def words(self, record: t.Mapping[str, t.Any]) -> Record:
        return {"hypervisor_version": record["hypervisor_version"]}

    def version(self, document: Record) -> str:
        return str(document["hypervisor_version"])

    def problems(self, layout: Layout, disks: t.Sequence[str]) -> list[str]:
        return []


def fresh_pins(driver: Driver, accel: str) -> Record:
    """Fields of the record of a VM that is made now: its pins, and the version of the hypervisor that gave them."""
    return {**driver.pin(accel), "hypervisor_version": driver.version()}


def pins_of(driver: Driver, record: t.Mapping[str, t.Any]) -> dict[str, str]:
    """The pins in the record of a VM or a snapshot."""
    return {key: record[key] for key in driver.pinned if record.get(key) is not None}


def saved_state(driver: Driver, pins: t.Mapping[str, t.Any], layout: Layout) -> SavedState:
    """A saved machine.

    :param pins: the record of the VM or of the snapshot.
    """
    return SavedState(pins_of(driver, pins), layout)
