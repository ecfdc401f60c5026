# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The QEMU command line: a pure function of a launch and the numbers of the descriptors passed on.

Every PCI address is given, so that a guest, and a snapshot of it, sees the same machine at each start:

===========  =======================================================
slot         what
===========  =======================================================
0x01         rng, virtio-serial, balloon, watchdog (functions 0 to 3)
0x02, 0x03   root ports, eight to a slot: NICs, removable disks, then spares
0x04 - 0x0f  fixed disks, eight to a slot
0x10, 0x11   more root ports
===========  =======================================================

A machine that was saved by an earlier version has its NICs beside the root ports, one to a slot from 0x10 on.
"""

from __future__ import annotations

import json
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import (
    Disk,
    DiskLimits,
    Launch,
    Layout,
    Limits,
    Nic,
    guest_uuid,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.files import VARIABLES
from ansible_collections.cocoon.microvm.plugins.module_utils._types import MIB

SERIAL_LENGTH = 20
IDENTITY = "identity"
# A descriptor among the sockets, and the number that it has as a file of QEMU's.
PIPE, PIPE_SET = "pipe", 1
QUEUE_SIZES = tuple(1 << bits for bits in range(1, 11))
NIC_QUEUE_SIZES = (256, 512, 1024)
# All that QEMU has for a TAP: older releases cut a larger value down, newer ones refuse it.
TAP_TX_QUEUE_SIZE = 256
Options = dict[str, t.Any]

# More hits QEMU's interrupt remapping limit on q35.
MAX_CPUS = 240

SYSTEM_SLOT = 0x01
DISK_SLOT = 0x04
# Of NICs that are in no root port, one to a slot.
NIC_SLOT = 0x10
PORT_SLOTS = (0x02, 0x03, 0x10, 0x11)
FUNCTIONS = 8
SPARE_PORTS = 4
MAX_PORTS = len(PORT_SLOTS) * FUNCTIONS
MAX_REMOVABLE = 16
MAX_FIXED_DISKS = (NIC_SLOT - DISK_SLOT) * FUNCTIONS
MAX_NICS = 14
LIMITS = Limits(
    cpus=MAX_CPUS,
    nics=MAX_NICS,
    fixed_disks=MAX_FIXED_DISKS,
    removable_disks=MAX_REMOVABLE,
    command_line=2047,  # of an x86 kernel
    nic_queues=NIC_QUEUE_SIZES,
    disk_queues=QUEUE_SIZES,
)

# What the VM's uid may still ask of the kernel is what QEMU needs to run, no more.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
# The default takes up to 1 GiB of translated code per VM, which no admission check would see.
TCG_CACHE_MIB = 128
# What of Hyper-V a guest finds that looks for it; all of it can be saved, and be had of Linux 4.20 and newer.
ENLIGHTENMENTS: Options = {
    **dict.fromkeys(("hv-relaxed", "hv-vapic", "hv-vpindex", "hv-runtime", "hv-synic", "hv-time", "hv-stimer"), True),
    "hv-spinlocks": "0x1fff",
}
MAKER = {"manufacturer": "Cocoon", "product": "microVM"}

Sockets = t.Mapping[str, t.Union[int, str]]


def keyval(options: t.Mapping[str, t.Any]) -> str:
    """``driver=x,id=y`` with QEMU's escape for commas; ``None`` is left out."""
    words = []
    for key, value in options.items():
        if value is None:
            continue
        text = ("on" if value else "off") if isinstance(value, bool) else str(value)
        words.append(f"{key}={text.replace(',', ',,')}")
    return ",".join(words)


def device_id(serial: str) -> str:
    return f"disk-{serial}"


def node_name(serial: str) -> str:
    return f"node-{serial}"


def port_id(number: int) -> str:
    return f"port{number}"


def function_address(slot: int, number: int) -> Options:
    """The place of function *number* (counted on over slots) from *slot* on."""
    return {"addr": f"{slot + number // FUNCTIONS:#04x}.{number % FUNCTIONS:x}", "multifunction": True}


def port_count(devices: int) -> int:
    """Root ports for so many NICs and removable disks and four spares, or as many as there can be; whole slots."""
    slots = -(-(devices + SPARE_PORTS) // FUNCTIONS)
    return min(slots * FUNCTIONS, MAX_PORTS)


def check(launch: Launch) -> None:
    """Refuse what QEMU cannot take.

    :raises InputError: naming the option.
    """
    if not 1 <= launch.cpu <= MAX_CPUS:
        raise InputError(f"{launch.cpu} vCPUs", "cpu", f"QEMU takes 1 to {MAX_CPUS}.")
    if launch.memory <= 0 or launch.memory % MIB:
        raise InputError(f"{launch.memory} bytes", "memory", "Give a whole number of MiB.")
    if launch.balloon is not None and not 0 <= launch.balloon < launch.memory:
        raise InputError("the balloon takes all of the memory", "balloon", "Give less than memory.")
    if not launch.boot.get("kernel_path") and not launch.disks:
        raise InputError("nothing to boot from", "image", "Give an image with a kernel or a disk.")
    if launch.windows and not launch.boot.get("firmware_path"):
        raise InputError("Windows boots by UEFI", "windows", "Give an image with a disk, and firmware: uefi.")
    if launch.windows and launch.balloon is not None:
        raise InputError("Windows guests have no balloon", "balloon", "Leave it out.")
    if launch.boot.get("firmware_path") and not launch.folder:
        raise InputError("UEFI without a file for its variables", "firmware", "Start the VM again.")
    if len(launch.nics) > MAX_NICS:
        raise InputError(f"{len(launch.nics)} NICs", "nics", f"QEMU takes {MAX_NICS}.")
    for nic in launch.nics:
        check_nic(nic)
    for disk in launch.disks:
        check_disk(disk)
    fixed = sum(not disk.removable for disk in launch.disks)
    if fixed > MAX_FIXED_DISKS:
        raise InputError(f"{fixed} image layers and disks", "image", f"QEMU takes {MAX_FIXED_DISKS}.")
    if len(launch.disks) - fixed > MAX_REMOVABLE:
        raise InputError(f"{len(launch.disks) - fixed} data disks", "data_disks", f"QEMU takes {MAX_REMOVABLE}.")
    known = places(launch.resume.layout).get("nics") if launch.resume else None
    if known is not None and len(known) != len(launch.nics):
        raise InputError(f"{len(launch.nics)} NICs, and {len(known)} in its saved state", "nics", "Give it as many.")


def check_nic(nic: Nic) -> None:
    if nic.queue_size not in NIC_QUEUE_SIZES:
        raise InputError(f"{nic.queue_size} is not a NIC queue size of QEMU", "queue_size", "Use 256, 512 or 1024.")


def check_disk(disk: Disk) -> None:
    if disk.queue_size not in QUEUE_SIZES:
        raise InputError(
            f"{disk.queue_size} is not a disk queue size", "disk_queue_size", "Use a power of two from 2 to 1024."
        )
    if not disk.serial or len(disk.serial.encode()) > SERIAL_LENGTH:
        raise InputError(f"'{disk.serial}' is not a disk serial", "data_disks", "Use 1 to 20 characters.")


def _file(path: str, read_only: bool, direct: bool) -> Options:
    return {
        "driver": "file",
        "filename": path,
        "read-only": read_only,
        # A second QEMU on the same disk is refused by the kernel, whatever our records say.
        "locking": "on",
        "aio": "native" if direct else "threads",
        "discard": "ignore" if read_only else "unmap",
        "cache": {"direct": direct, "no-flush": False},
    }


def disk_node(disk: Disk) -> Options:
    """The block node of *disk*, as ``-blockdev`` and ``blockdev-add`` take it."""
    direct = disk.direct and not disk.read_only
    node: Options = {
        "driver": disk.format,
        "node-name": node_name(disk.serial),
        "read-only": disk.read_only,
        "discard": "ignore" if disk.read_only else "unmap",
        "cache": {"direct": direct, "no-flush": False},
        "file": _file(disk.path, disk.read_only, direct),
    }
    if disk.format == "qcow2":
        # Named here, or named not to be: what the header says is the guest's word after an escape.
        node["backing"] = _backing(disk)
    return node


def _backing(disk: Disk) -> Options | None:
    if disk.backing is None:
        return None
    node: Options = {
        "driver": disk.backing_format,
        "read-only": True,
        "file": _file(disk.backing, True, False),
    }
    if disk.backing_format == "qcow2":
        node["backing"] = None
    return node


def most_cpus(launch: Launch) -> int:
    return max(launch.cpu, launch.cpu_max)


def disk_device(disk: Disk, place: Options, queues: int) -> Options:
    """The virtio device of *disk*, as ``-device`` (by :func:`keyval`) and ``device_add`` take it.

    :param queues: as many as the machine can have vCPUs, whatever it has now: a saved disk keeps its own.
    """
    return {
        "driver": "virtio-blk-pci",
        "id": device_id(disk.serial),
        "drive": node_name(disk.serial),
        "serial": disk.serial,
        "queue-size": disk.queue_size,
        "num-queues": queues,
        "disable-legacy": "on",
        **place,
    }


THROTTLE = "block_set_io_throttle"
# What QEMU calls them.
THROTTLED = {"total": "", "read": "_rd", "write": "_wr"}


def throttle(serial: str, limits: DiskLimits) -> Options:
    """Arguments of :data:`THROTTLE`: what is 0 has no limit. What comes at once is a second's worth of *max*."""
    # The device has it behind its PCI part.
    found: Options = {"id": f"/machine/peripheral/{device_id(serial)}/virtio-backend"}
    for kind, suffix in THROTTLED.items():
        limit = limits.get(kind, {})
        for unit, average, most in (("bps", "rate", "burst"), ("iops", "iops", "iops")):
            found[f"{unit}{suffix}"] = limit.get(average, 0)
            if average in limit:
                found[f"{unit}{suffix}_max"] = limit.get(most, limit[average])
    return found


class _Places(t.TypedDict):
    ports: int
    slots: dict[str, int]
    version: str


class Places(_Places, total=False):
    """What a saved machine's layout says: how many root ports there are, and which disk and which NIC was in which.

    Without ``nics`` an earlier version made the machine, and its NICs are in none.
    """

    nics: list[int]


def places(layout: Layout) -> Places:
    """A layout that :meth:`QemuDriver.save` gave, or that a schema has let pass."""
    return t.cast(Places, layout)


def removable_ports(launch: Launch) -> dict[str, int]:
    """The root port of each removable disk: where it was when the state was saved, else behind the NICs."""
    removable = [disk.serial for disk in launch.disks if disk.removable]
    if launch.resume is None:
        return {serial: number for number, serial in enumerate(removable, len(launch.nics))}
    slots = places(launch.resume.layout)["slots"]
    return {serial: slots[serial] for serial in removable}


def _disks(launch: Launch) -> list[str]:
    words = []
    fixed = 0
    ports = removable_ports(launch)
    for index, disk in enumerate(launch.disks):
        if disk.removable:
            place: Options = {"bus": port_id(ports[disk.serial])}
        else:
            place = {"bus": "pcie.0", **function_address(DISK_SLOT, fixed)}
            fixed += 1
        device = disk_device(disk, place, most_cpus(launch))
        if index == 0 and not launch.boot.get("kernel_path"):
            device["bootindex"] = 0
        words += ["-blockdev", json.dumps(disk_node(disk)), "-device", keyval(device)]
    return words


def _ports(launch: Launch) -> list[str]:
    words = []
    count = port_count(len(launch.nics) + sum(disk.removable for disk in launch.disks))
    for number in range(places(launch.resume.layout)["ports"] if launch.resume else count):
        port: Options = {
            "driver": "pcie-root-port",
            "id": port_id(number),
            "bus": "pcie.0",
            **function_address(PORT_SLOTS[number // FUNCTIONS], number % FUNCTIONS),
            "chassis": number + 1,
            "slot": number + 1,
            # Nothing here uses I/O ports, and sixteen windows of them do not fit.
            "io-reserve": 0,
        }
        words += ["-device", keyval(port)]
    return words


def nic_id(number: int) -> str:
    return f"nic{number}"


def identity_device() -> Options:
    """The port that is plugged in when a guest is told who it is now, as ``device_add`` takes it."""
    return {
        "driver": "virtserialport",
        "id": IDENTITY,
        "bus": "serial.0",
        "chardev": IDENTITY,
        "name": "org.cocoon.identity",
    }


def netdev_id(number: int) -> str:
    return f"net{number}"


def nic_place(launch: Launch, number: int) -> Options:
    """Where a NIC is: first of all, so that it stays there whatever disks come, or where it was when it was saved."""
    if launch.resume is None:
        return {"bus": port_id(number)}
    known = places(launch.resume.layout).get("nics")
    if known is None:
        return {"bus": "pcie.0", "addr": f"{NIC_SLOT + number:#04x}"}
    return {"bus": port_id(known[number])}


def nic_device(number: int, nic: Nic, place: Options) -> Options:
    """The virtio device of *nic*, as ``-device`` (by :func:`keyval`) and ``device_add`` take it."""
    pairs = len(nic.fds) or nic.pairs
    return {
        "driver": "virtio-net-pci",
        "id": nic_id(number),
        "netdev": netdev_id(number),
        "mac": nic.mac,
        **place,
        **({"mq": True, "vectors": 2 * pairs + 2} if pairs > 1 else {}),
        "rx_queue_size": nic.queue_size,
        "tx_queue_size": TAP_TX_QUEUE_SIZE,
        **({"host_mtu": nic.mtu} if nic.mtu else {}),
        "disable-legacy": "on",
        "romfile": "",
    }


def _nic(launch: Launch, number: int) -> list[str]:
    nic = launch.nics[number]
    tap: Options = {"fds": ":".join(map(str, nic.fds))}
    if not nic.fds:
        tap = {"ifname": nic.tap, "script": "no", "downscript": "no", "queues": nic.pairs}
    netdev = keyval({"id": netdev_id(number), **tap, "vhost": False})
    device = nic_device(number, nic, nic_place(launch, number))
    return ["-netdev", f"tap,{netdev}", "-device", keyval(device)]


def _system_devices(launch: Launch, sockets: Sockets) -> list[str]:
    def place(function: int) -> Options:
        return {"bus": "pcie.0", **function_address(SYSTEM_SLOT, function)}

    virtio: Options = {"disable-legacy": "on"}
    words = [
        # A new one at each start, so that a kernel which knows the device does not repeat its random numbers.
        *("-device", keyval({"driver": "vmgenid", "guid": "auto", "id": "generation"})),
        "-object",
        keyval({"qom-type": "rng-random", "id": "rng", "filename": "/dev/urandom"}),
        "-device",
        keyval({"driver": "virtio-rng-pci", "rng": "rng", **place(0), **virtio}),
        "-device",
        keyval({"driver": "virtio-serial-pci", "id": "serial", **place(1), **virtio}),
        "-chardev",
        listening("agent", sockets),
        "-device",
        keyval({"driver": "virtserialport", "bus": "serial.0", "chardev": "agent", "name": "org.qemu.guest_agent.0"}),
    ]
    if launch.balloon is not None:
        # Free page reporting stays off: it punches holes in memory that a snapshot may share.
        balloon = {"driver": "virtio-balloon-pci", "id": "balloon", "deflate-on-oom": True}
        words += ["-device", keyval({**balloon, **place(2), **virtio})]
    if launch.watchdog:
        words += ["-device", keyval({"driver": "i6300esb", "id": "watchdog", **place(3)})]
        words += ["-action", "watchdog=reset"]
    return words


def listening(name: str, sockets: Sockets, **more: t.Any) -> str:
    """A character device on a socket that the launcher has bound."""
    bound = sockets[name]
    where = "fd" if isinstance(bound, int) else "path"
    return "socket," + keyval({"id": name, where: bound, "server": True, "wait": False, **more})


def _boot(launch: Launch) -> list[str]:
    kernel = launch.boot.get("kernel_path")
    if not kernel:
        return ["-boot", "strict=on"]
    words = ["-kernel", kernel, "-append", launch.boot.get("cmdline") or ""]
    initrd = launch.boot.get("initrd_path")
    return [*words, "-initrd", initrd] if initrd else words


# Names of the flash: code that all VMs share, and the VM's own variables.
FLASH = ("flash-code", "flash-vars")


def _flash(launch: Launch) -> list[str]:
    """The block nodes of the UEFI firmware; the machine takes them by name. They are on no bus."""
    code = launch.boot.get("firmware_path")
    if not code:
        return []
    words = []
    for name, path, read_only in zip(FLASH, (code, os.path.join(launch.folder, VARIABLES)), (True, False)):
        node = {"driver": "raw", "node-name": name, "read-only": read_only, "file": _file(path, read_only, False)}
        words += ["-blockdev", json.dumps(node)]
    return words


def _memory(launch: Launch, rom: bool) -> Options:
    """The file behind the guest's RAM: its own, or a snapshot's, of which it changes only its own copy."""
    ram: Options = {"id": "ram", "mem-path": launch.ram_path, "size": launch.memory, "share": True, "dump": False}
    if launch.resume and launch.resume.shared:
        ram.update({"mem-path": launch.resume.memory, "share": False})
        if rom:  # the file may be read-only then, and the guest's memory is not
            ram.update({"readonly": True, "rom": "off"})
    return ram


def _smp(launch: Launch) -> Options:
    most = most_cpus(launch)
    return {"cpus": launch.cpu, "maxcpus": most, "sockets": 1, "cores": most, "threads": 1}


def _cpu(launch: Launch) -> str:
    """The model, and what Windows asks of a hypervisor; an emulated CPU has nothing of it."""
    hyper_v = ENLIGHTENMENTS if launch.windows and launch.accel == "kvm" else {}
    return ",".join(filter(None, (f"{launch.pins['cpu_model']},enforce=on", keyval(hyper_v))))


def _rtc(launch: Launch) -> Options:
    """Windows takes the clock's time for the local one, and has to be given ticks that it missed."""
    return {"base": "localtime", "driftfix": "slew"} if launch.windows else {"base": "utc"}


def _machine(launch: Launch, rom: bool) -> list[str]:
    machine = {"type": launch.pins["machine"], "memory-backend": "ram", "usb": False, "vmport": "off"}
    # Not there, not probed by the guest's kernel: each costs boot time.
    machine.update({"smbus": False, "sata": False, "i8042": False})
    if launch.windows:
        machine["hpet"] = False  # slower than what it finds of Hyper-V
    if launch.boot.get("firmware_path"):
        machine.update({"pflash0": FLASH[0], "pflash1": FLASH[1]})
    accel = {"accel": launch.accel, "tb-size": TCG_CACHE_MIB if launch.accel == "tcg" else None}
    return [
        *("-machine", keyval(machine)),
        *("-accel", keyval(accel)),
        *("-cpu", _cpu(launch)),
        *("-smp", keyval(_smp(launch))),
        *("-m", f"size={launch.memory}B"),
        *("-object", "memory-backend-file," + keyval(_memory(launch, rom))),
    ]


def _console(launch: Launch, sockets: Sockets) -> list[str]:
    """A serial port with a socket for people, and a pipe to who keeps its log."""
    pipe = sockets.get(PIPE)
    held = [] if pipe is None else ["-add-fd", f"fd={pipe},set={PIPE_SET}"]
    log = launch.console_log if pipe is None else f"/dev/fdset/{PIPE_SET}"
    return [
        *held,
        *("-chardev", listening("console", sockets, logfile=log, logappend=True)),
        *("-serial", "chardev:console"),
    ]


def _status(launch: Launch) -> list[str]:
    """A second serial port, for the guest's last word: it needs no driver that could be missing or late."""
    if launch.status_log is None:
        return []
    device = keyval({"id": "status", "path": launch.status_log, "append": True})
    return ["-chardev", f"file,{device}", "-serial", "chardev:status"]


def _identity(sockets: Sockets) -> list[str]:
    """The line on which a guest that goes on as another one is told so; its port is plugged in when it is."""
    return ["-chardev", listening(IDENTITY, sockets)] if IDENTITY in sockets else []


def build(binary: str, launch: Launch, sockets: Sockets, rom: bool = False) -> list[str]:
    """The argument vector.

    The VM's id stands in it (SMBIOS serial number), which is what proves a process ours.

    :param sockets: of ``qmp``, ``console``, ``agent`` and perhaps ``identity``: the number of the listening
        descriptor, or the path for QEMU to listen at. ``pipe``: that of the descriptor that the console is written to,
        if not to its log.
    :param rom: this QEMU maps a file that it may only read as memory that the guest may write.
    :raises InputError: a value that QEMU cannot take, naming the option.
    """
    check(launch)
    words = [
        binary,
        *("-name", keyval({"guest": launch.name, "debug-threads": True})),
        *("-uuid", guest_uuid(launch.vm_id)),
        *("-smbios", keyval({"type": 1, **MAKER, "serial": launch.serial or launch.vm_id})),
        *("-nodefaults", "-no-user-config", "-display", "none", "-S"),
        *("-sandbox", SANDBOX),
        *("-msg", "timestamp=on"),
        *_flash(launch),
        *_machine(launch, rom),
        *("-rtc", keyval(_rtc(launch))),
        *("-chardev", listening("qmp", sockets)),
        *("-mon", "chardev=qmp,mode=control"),
        *_console(launch, sockets),
        *_status(launch),
        *_boot(launch),
        *_system_devices(launch, sockets),
        *_identity(sockets),
        *_ports(launch),
        *_disks(launch),
    ]
    for number in range(len(launch.nics)):
        words += _nic(launch, number)
    for name in sorted(launch.guest_data):
        words += ["-fw_cfg", keyval({"name": f"opt/cocoon/{name}", "file": launch.guest_data[name]})]
    return [*words, "-incoming", "defer"] if launch.resume else words
