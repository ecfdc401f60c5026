# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The QEMU command line, as tables."""

from __future__ import annotations

import dataclasses
import json
import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import (
    Disk,
    Launch,
    Nic,
    Resume,
    guest_uuid,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import commandline
from ansible_collections.cocoon.microvm.plugins.module_utils._types import MIB

FDS = {"qmp": 5, "console": 6, "agent": 7}
VM_ID = "abcdefghijklmnopqrstuvwxyz"
LAUNCH = Launch(
    vm_id=VM_ID,
    name="web1",
    uid=1,
    gid=1,
    cpu=2,
    memory=128 * MIB,
    accel="tcg",
    pins={"machine": "pc-q35-7.2", "cpu_model": "qemu64-v1,ssse3=on"},
    ram_path="/ram/a,b",
    run_dir="/run/x",
    console_log="/log/x/console.log",
    hypervisor_log="/log/x/hypervisor.log",
    boot={"kernel_path": "/boot/vmlinuz", "initrd_path": "/boot/initrd.img", "cmdline": "console=ttyS0 a=b,c"},
)


def build(**changes: t.Any) -> list[str]:
    return commandline.build("/usr/bin/qemu", dataclasses.replace(LAUNCH, **changes), FDS)


def values(words: list[str], option: str) -> list[str]:
    return [words[index + 1] for index, word in enumerate(words) if word == option]


def devices(words: list[str]) -> list[dict[str, str]]:
    found = []
    for value in values(words, "-device"):
        found.append(dict(pair.split("=", 1) for pair in value.split(",")))
    return found


def by_driver(words: list[str], driver: str) -> list[dict[str, str]]:
    return [device for device in devices(words) if device["driver"] == driver]


def data_disk(name: str) -> Disk:
    return Disk(name, f"/d/{name}", removable=True)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"a": 1, "b": "x,y"}, "a=1,b=x,,y"),
        ({"a": True, "b": False, "c": None}, "a=on,b=off"),
        ({"romfile": ""}, "romfile="),
    ],
)
def test_keyval(options: dict[str, t.Any], text: str) -> None:
    assert commandline.keyval(options) == text


def test_the_words_that_never_change() -> None:
    words = build()
    assert words[0] == "/usr/bin/qemu"
    for word in ("-nodefaults", "-no-user-config", "-S"):
        assert word in words
    assert values(words, "-display") == ["none"]
    assert values(words, "-sandbox") == ["on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    assert values(words, "-cpu") == ["qemu64-v1,ssse3=on,enforce=on"]
    assert values(words, "-m") == [f"size={128 * MIB}B"]
    assert values(words, "-machine")[0].startswith("type=pc-q35-7.2,memory-backend=ram,")
    assert values(words, "-kernel") == ["/boot/vmlinuz"]
    assert values(words, "-initrd") == ["/boot/initrd.img"]
    assert values(words, "-append") == ["console=ttyS0 a=b,c"]


def test_pure() -> None:
    assert build() == build()


def test_the_id_stands_in_the_command_line() -> None:
    words = build(ram_path="/ram", run_dir="/r", console_log="/c", hypervisor_log="/h")
    assert VM_ID in " ".join(words)


def test_ram_is_a_shared_named_file() -> None:
    ram = values(build(), "-object")[0]
    assert ram == f"memory-backend-file,id=ram,mem-path=/ram/a,,b,size={128 * MIB},share=on,dump=off"


@pytest.mark.parametrize(("accel", "text"), [("tcg", "accel=tcg,tb-size=128"), ("kvm", "accel=kvm")])
def test_accel(accel: str, text: str) -> None:
    assert values(build(accel=accel), "-accel") == [text]


def test_sockets_are_the_launchers() -> None:
    chardevs = values(build(), "-chardev")
    assert chardevs == [
        "socket,id=qmp,fd=5,server=on,wait=off",
        "socket,id=console,fd=6,server=on,wait=off,logfile=/log/x/console.log,logappend=on",
        "socket,id=agent,fd=7,server=on,wait=off",
    ]
    assert by_driver(build(), "virtserialport")[0]["name"] == "org.qemu.guest_agent.0"


def test_read_only_disk() -> None:
    node = commandline.disk_node(Disk("cocoon-layer0", "/blob,1.erofs", read_only=True, direct=True))
    assert node["read-only"] is True and node["file"]["read-only"] is True
    assert node["discard"] == node["file"]["discard"] == "ignore"
    assert node["cache"]["direct"] is False, "layers come from the page cache, which all VMs share"
    assert node["file"]["filename"] == "/blob,1.erofs"
    assert node["file"]["locking"] == "on"


@pytest.mark.parametrize(("direct", "aio"), [(True, "native"), (False, "threads")])
def test_writable_disk(direct: bool, aio: str) -> None:
    node = commandline.disk_node(Disk("cocoon-cow", "/cow.raw", direct=direct))
    assert node["driver"] == "raw"
    assert node["discard"] == node["file"]["discard"] == "unmap"
    assert node["cache"]["direct"] is node["file"]["cache"]["direct"] is direct
    assert node["file"]["aio"] == aio


@pytest.mark.parametrize(
    ("disk", "backing"),
    [
        (Disk("r", "/o", format="qcow2"), None),
        (Disk("r", "/o", format="qcow2", backing="/b", backing_format="raw"), ("raw", "/b", False)),
        (Disk("r", "/o", format="qcow2", backing="/b"), ("qcow2", "/b", True)),
    ],
)
def test_qcow2_header_is_not_asked_for_its_backing_file(disk: Disk, backing: tuple[str, str, bool] | None) -> None:
    node = commandline.disk_node(disk)
    assert "backing" in node
    if backing is None:
        assert node["backing"] is None
        return
    driver, path, chained = backing
    below = node["backing"]
    assert (below["driver"], below["file"]["filename"]) == (driver, path)
    assert below["read-only"] is below["file"]["read-only"] is True
    assert ("backing" in below and below["backing"] is None) is chained


def test_disks_in_the_command_line() -> None:
    words = build(disks=(Disk("cocoon-layer0", "/l", read_only=True), data_disk("data"), Disk("cocoon-cow", "/c")))
    nodes = [json.loads(value)["node-name"] for value in values(words, "-blockdev")]
    assert nodes == ["node-cocoon-layer0", "node-data", "node-cocoon-cow"]
    layer, data, cow = by_driver(words, "virtio-blk-pci")
    assert (layer["serial"], layer["bus"], layer["addr"]) == ("cocoon-layer0", "pcie.0", "0x04.0")
    assert (cow["serial"], cow["bus"], cow["addr"]) == ("cocoon-cow", "pcie.0", "0x04.1")
    assert (data["serial"], data["bus"]) == ("data", "port0")
    assert {disk["queue-size"] for disk in (layer, data, cow)} == {"512"}
    assert not any("bootindex" in disk for disk in (layer, data, cow))


def test_first_disk_boots_when_there_is_no_kernel() -> None:
    words = build(boot={}, disks=(Disk("root", "/r", format="qcow2"), Disk("two", "/t")))
    assert "-kernel" not in words and "-append" not in words
    assert [disk.get("bootindex") for disk in by_driver(words, "virtio-blk-pci")] == ["0", None]


@pytest.mark.parametrize(("removable", "nics", "ports"), [(0, 0, 8), (3, 1, 8), (4, 1, 16), (16, 1, 24), (16, 14, 32)])
def test_root_ports(removable: int, nics: int, ports: int) -> None:
    words = build(
        disks=tuple(data_disk(f"d{number}") for number in range(removable)),
        nics=tuple(Nic(f"02:00:00:00:00:{number:02x}", (10 + number,)) for number in range(nics)),
    )
    found = by_driver(words, "pcie-root-port")
    assert [port["id"] for port in found] == [f"port{number}" for number in range(ports)]
    assert len({port["addr"] for port in found}) == ports
    assert len({port["chassis"] for port in found}) == ports


def test_no_two_devices_share_a_place() -> None:
    disks = [Disk(f"cocoon-layer{number}", f"/l{number}", read_only=True) for number in range(40)]
    words = build(
        disks=tuple(disks + [data_disk(f"d{number}") for number in range(16)]),
        nics=tuple(Nic(f"02:00:00:00:00:{number:02x}", (10 + number,)) for number in range(14)),
        balloon=0,
        watchdog=True,
    )
    places = [(device.get("bus"), device.get("addr")) for device in devices(words) if device.get("bus")]
    assert len(places) == len(set(places))
    slots = {addr.split(".")[0] for _bus, addr in places if addr}
    assert {"0x00", "0x1f"}.isdisjoint(slots), "the chipset's own"


@pytest.mark.parametrize(
    ("nic", "netdev", "device"),
    [
        (
            Nic("02:00:00:00:00:01", (9,), 256),
            "tap,id=net0,fds=9,vhost=off",
            {"mq": None, "vectors": None, "rx_queue_size": "256", "tx_queue_size": "256", "host_mtu": None},
        ),
        (
            Nic("02:00:00:00:00:01", (9, 10, 11), 1024, 1400),
            "tap,id=net0,fds=9:10:11,vhost=off",
            {
                "mq": "on",
                "vectors": "8",
                "rx_queue_size": "1024",
                "tx_queue_size": "256",
                "host_mtu": "1400",
                "romfile": "",
            },
        ),
    ],
)
def test_nic(nic: Nic, netdev: str, device: dict[str, str | None]) -> None:
    words = build(nics=(nic,))
    assert values(words, "-netdev") == [netdev]
    found = by_driver(words, "virtio-net-pci")[0]
    assert {key: found.get(key) for key in device} == device
    assert found["mac"] == nic.mac


def test_nics_stand_in_order() -> None:
    words = build(nics=(Nic("02:00:00:00:00:01", (9,)), Nic("02:00:00:00:00:02", (10,))))
    assert [nic["bus"] for nic in by_driver(words, "virtio-net-pci")] == ["port0", "port1"]


def test_nics_are_where_they_were() -> None:
    """In their ports; those of a machine that an earlier version saved beside them."""
    nics = (Nic("02:00:00:00:00:01", (9,)), Nic("02:00:00:00:00:02", (10,)))
    words = resumed(resume=dataclasses.replace(SAVED, layout={**LAYOUT, "nics": [0, 5]}), nics=nics)
    assert [nic["bus"] for nic in by_driver(words, "virtio-net-pci")] == ["port0", "port5"]
    found = by_driver(resumed(nics=nics), "virtio-net-pci")
    assert [(nic["bus"], nic["addr"]) for nic in found] == [("pcie.0", "0x10"), ("pcie.0", "0x11")]
    with pytest.raises(InputError, match="2 NICs, and 1 in its saved state"):
        resumed(resume=dataclasses.replace(SAVED, layout={**LAYOUT, "nics": [0]}), nics=nics)


@pytest.mark.parametrize("balloon", [None, 0, 16 * MIB])
def test_balloon_only_when_asked_for(balloon: int | None) -> None:
    found = by_driver(build(balloon=balloon), "virtio-balloon-pci")
    assert len(found) == (balloon is not None)
    for device in found:
        assert device["deflate-on-oom"] == "on"
        assert "free-page-reporting" not in device


def test_room_for_vcpus() -> None:
    """A disk has the queues of all that there can be: one that came later has to be the same where it is saved."""
    for changes, smp, queues in (({}, "cpus=2,maxcpus=2", "2"), ({"cpu_max": 4}, "cpus=2,maxcpus=4", "4")):
        words = build(cpu=2, disks=(data_disk("a"),), **changes)
        cores = smp.rpartition("=")[2]
        assert values(words, "-smp") == [f"{smp},sockets=1,cores={cores},threads=1"]
        assert [disk["num-queues"] for disk in by_driver(words, "virtio-blk-pci")] == [queues]


@pytest.mark.parametrize("watchdog", [False, True])
def test_watchdog(watchdog: bool) -> None:
    words = build(watchdog=watchdog)
    assert len(by_driver(words, "i6300esb")) == watchdog
    assert values(words, "-action") == (["watchdog=reset"] if watchdog else [])


def test_guest_data() -> None:
    words = build(guest_data={"login": "/vms/x/login,1"})
    assert values(words, "-fw_cfg") == ["name=opt/cocoon/login,file=/vms/x/login,,1"]


@pytest.mark.parametrize(
    ("changes", "error", "option"),
    [
        ({"cpu": 0}, InputError, "cpu"),
        ({"cpu": 241}, InputError, "cpu"),
        ({"memory": MIB + 1}, InputError, "memory"),
        ({"memory": 0}, InputError, "memory"),
        ({"balloon": 128 * MIB}, InputError, "balloon"),
        ({"balloon": -1}, InputError, "balloon"),
        ({"boot": {}}, InputError, "image"),
        ({"boot": {"firmware_path": "/fw"}, "disks": (Disk("a", "/a"),)}, InputError, "firmware"),
        ({"nics": (Nic("02:00:00:00:00:01", (9,), 128),)}, InputError, "queue_size"),
        ({"nics": (Nic("02:00:00:00:00:01", (9,), 300),)}, InputError, "queue_size"),
        ({"nics": tuple(Nic("02:00:00:00:00:01", (9,)) for _one in range(15))}, InputError, "nics"),
        ({"disks": (Disk("a", "/a", queue_size=100),)}, InputError, "disk_queue_size"),
        ({"disks": (Disk("a", "/a", queue_size=2048),)}, InputError, "disk_queue_size"),
        ({"disks": (Disk("a" * 21, "/a"),)}, InputError, "data_disks"),
        ({"disks": (Disk("", "/a"),)}, InputError, "data_disks"),
        ({"disks": tuple(data_disk(f"d{number}") for number in range(17))}, InputError, "data_disks"),
        ({"disks": tuple(Disk(f"l{number}", "/a") for number in range(97))}, InputError, "image"),
    ],
)
def test_what_qemu_cannot_take(changes: dict[str, t.Any], error: type[Exception], option: str) -> None:
    with pytest.raises(error) as caught:
        build(**changes)
    assert caught.value.option == option  # type: ignore[attr-defined]


def test_uuid_is_the_vms_own() -> None:
    assert guest_uuid(VM_ID) == guest_uuid(VM_ID)
    assert guest_uuid(VM_ID) != guest_uuid(VM_ID[::-1])


def test_a_port_for_the_guest_s_last_word() -> None:
    assert values(build(), "-serial") == ["chardev:console"]
    words = build(status_log="/log/x,y/status.log")
    assert values(words, "-serial") == ["chardev:console", "chardev:status"]
    assert "file,id=status,path=/log/x,,y/status.log,append=on" in values(words, "-chardev")


# ------------------------------------------------------------------------------------- going on from a saved state

LAYOUT = {"ports": 8, "slots": {}, "version": "7.2.22"}
TWO = {**LAYOUT, "slots": {"data": 3}}
SAVED = Resume(folder="/saved", memory="/saved/me,m", shared=True, layout=LAYOUT)


def resumed(
    rom: bool = False, resume: Resume = SAVED, fds: dict[str, int] | None = None, **changes: t.Any
) -> list[str]:
    fds = FDS if fds is None else fds
    launch = dataclasses.replace(LAUNCH, resume=resume, **changes)
    return commandline.build("/usr/bin/qemu", launch, fds, rom)


def ram(words: list[str]) -> dict[str, str]:
    (found,) = [value for value in values(words, "-object") if value.startswith("memory-backend-file,")]
    return dict(pair.split("=", 1) for pair in found.replace(",,", "\0").split(",")[1:])


def test_a_saved_state_is_waited_for() -> None:
    assert "-incoming" not in build()
    assert values(resumed(), "-incoming") == ["defer"] and resumed()[-2:] == ["-incoming", "defer"]
    assert "-S" in resumed()
    assert "/saved/vmstate" not in " ".join(resumed()), "it is handed over as a descriptor"


@pytest.mark.parametrize(
    ("shared", "rom", "expected"),
    [
        (True, False, {"mem-path": "/saved/me\0m", "share": "off"}),
        (True, True, {"mem-path": "/saved/me\0m", "share": "off", "readonly": "on", "rom": "off"}),
        # its own RAM file, which the launcher has filled
        (False, False, {"mem-path": "/ram/a\0b", "share": "on"}),
        (False, True, {"mem-path": "/ram/a\0b", "share": "on"}),
    ],
    ids=["mapped", "mapped-read-only", "copied", "copied-by-a-newer-qemu"],
)
def test_memory_of_a_saved_state(shared: bool, rom: bool, expected: dict[str, str]) -> None:
    common = {"id": "ram", "size": str(LAUNCH.memory), "dump": "off"}
    assert ram(resumed(rom, dataclasses.replace(SAVED, shared=shared))) == {**common, **expected}


def test_memory_that_is_in_the_stream() -> None:
    found = ram(resumed(resume=dataclasses.replace(SAVED, memory=None, shared=False)))
    assert (found["mem-path"], found["share"]) == ("/ram/a\0b", "on")


def test_rom_is_for_mapped_memory_alone() -> None:
    """A VM that boots writes its RAM file, whatever the binary can do."""
    assert commandline.build("/usr/bin/qemu", LAUNCH, FDS, True) == build()


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        ({"a": 0, "b": 1, "c": 2}, {"a": "port0", "b": "port1", "c": "port2"}),
        ({"a": 5, "b": 0, "c": 7}, {"a": "port5", "b": "port0", "c": "port7"}),  # unplugged and plugged since its boot
        ({"a": 1, "b": 2, "c": 3, "gone": 0}, {"a": "port1", "b": "port2", "c": "port3"}),
    ],
)
def test_disks_are_where_they_were(slots: dict[str, int], expected: dict[str, str]) -> None:
    disks = tuple(data_disk(name) for name in "abc")
    words = resumed(resume=dataclasses.replace(SAVED, layout={**LAYOUT, "slots": slots}), disks=disks)
    found = {disk["serial"]: disk["bus"] for disk in by_driver(words, "virtio-blk-pci")}
    assert found == expected


def test_fixed_disks_do_not_depend_on_the_layout() -> None:
    disks = (Disk("cocoon-layer0", "/l", read_only=True), Disk("cocoon-cow", "/c"), data_disk("data"))
    places = [
        {disk["serial"]: disk.get("addr") for disk in by_driver(words, "virtio-blk-pci")}
        for words in (build(disks=disks), resumed(resume=dataclasses.replace(SAVED, layout=TWO), disks=disks))
    ]
    assert places[0] == places[1] == {"cocoon-layer0": "0x04.0", "cocoon-cow": "0x04.1", "data": None}


@pytest.mark.parametrize(("ports", "disks"), [(8, 0), (8, 6), (16, 1)])
def test_as_many_ports_as_there_were(ports: int, disks: int) -> None:
    """And not as many as the disks of now would have at a boot."""
    layout = {"ports": ports, "slots": {f"d{number}": number for number in range(disks)}, "version": "7.2.22"}
    words = resumed(
        resume=dataclasses.replace(SAVED, layout=layout),
        disks=tuple(data_disk(f"d{number}") for number in range(disks)),
    )
    assert len(by_driver(words, "pcie-root-port")) == ports


def test_a_line_for_the_new_identity() -> None:
    """The character device is there from the start; its port is plugged in when there is something to say."""
    held = dataclasses.replace(SAVED, hold=True)
    words = resumed(resume=held, fds={**FDS, "identity": 8})
    assert "socket,id=identity,fd=8,server=on,wait=off" in values(words, "-chardev")
    assert [port["name"] for port in by_driver(words, "virtserialport")] == ["org.qemu.guest_agent.0"]
    assert not any("identity" in value for value in values(build(), "-chardev"))
    device = commandline.identity_device()
    assert (device["bus"], device["chardev"], device["name"]) == ("serial.0", "identity", "org.cocoon.identity")
    assert device["id"] == "identity"


def test_every_start_is_another_generation() -> None:
    for words in (build(), resumed()):
        (device,) = by_driver(words, "vmgenid")
        assert device["guid"] == "auto"


def test_the_same_machine_but_for_what_goes_on() -> None:
    """What a saved state does not name has to be as it was: a device more or less, and it does not load."""
    disks = (Disk("cocoon-cow", "/c"), data_disk("data"))
    options: dict[str, t.Any] = {
        "disks": disks,
        "nics": (Nic("02:00:00:00:00:01", (9,)),),
        "balloon": 0,
        "watchdog": True,
    }
    layout = {"ports": 8, "slots": {"data": 1}, "nics": [0], "version": "7.2.22"}
    assert devices(build(**options)) == devices(resumed(resume=dataclasses.replace(SAVED, layout=layout), **options))


def test_uefi_is_flash_on_no_bus() -> None:
    """Code that all VMs share, variables of the VM's own; every device stays where it is without them."""
    disks = (
        Disk("cocoon-cow", "/o.qcow2", format="qcow2"),
        Disk("cocoon-cidata", "/c", read_only=True),
        data_disk("d"),
    )
    by_bios = build(boot={}, disks=disks)
    by_uefi = build(boot={"firmware_path": "/code,1.fd"}, folder="/vm", disks=disks)
    assert devices(by_uefi) == devices(by_bios)
    extra = [json.loads(value) for value in values(by_uefi, "-blockdev") if value not in values(by_bios, "-blockdev")]
    assert [(node["node-name"], node["file"]["filename"], node["read-only"]) for node in extra] == [
        ("flash-code", "/code,1.fd", True),
        ("flash-vars", "/vm/OVMF_VARS.fd", False),
    ]
    (machine,) = values(by_uefi, "-machine")
    assert machine.endswith(",pflash0=flash-code,pflash1=flash-vars")
    assert "pflash" not in values(by_bios, "-machine")[0]
    bootable = [device for device in by_driver(by_uefi, "virtio-blk-pci") if "bootindex" in device]
    assert [device["serial"] for device in bootable] == ["cocoon-cow"]


@pytest.mark.parametrize(
    ("limits", "found"),
    [
        ({}, {}),
        ({"total": {"rate": 5, "burst": 7}}, {"bps": 5, "bps_max": 7}),
        ({"total": {"rate": 5, "iops": 3}}, {"bps": 5, "bps_max": 5, "iops": 3, "iops_max": 3}),
        ({"read": {"rate": 5}, "write": {"iops": 3}}, {"bps_rd": 5, "bps_rd_max": 5, "iops_wr": 3, "iops_wr_max": 3}),
    ],
)
def test_how_fast_a_disk_is(limits: dict[str, dict[str, int]], found: dict[str, int]) -> None:
    """The command wants all averages, and what is 0 has no limit."""
    none = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
    assert commandline.throttle("data", limits) == {
        **{"id": "/machine/peripheral/disk-data/virtio-backend"},
        **none,
        **found,
    }


WINDOWS: dict[str, t.Any] = {
    "windows": True,
    "boot": {"firmware_path": "/usr/share/OVMF/OVMF_CODE.fd"},
    "folder": "/vms/x",
    "disks": (Disk("cocoon-cow", "/vms/x/overlay.qcow2", format="qcow2", backing="/images/w.qcow2"),),
}


@pytest.mark.parametrize("accel", ["kvm", "tcg"])
def test_windows_finds_what_it_asks_for(accel: str) -> None:
    """An emulated CPU has nothing of Hyper-V, as QEMU does that by KVM."""
    words = commandline.build("/qemu", dataclasses.replace(LAUNCH, accel=accel, **WINDOWS), FDS)
    found = {words[index]: words[index + 1] for index in range(len(words) - 1) if words[index].startswith("-")}
    assert ("hv-relaxed=on,hv-vapic=on" in found["-cpu"] and "hv-spinlocks=0x1fff" in found["-cpu"]) == (accel == "kvm")
    assert found["-cpu"].startswith(f"{LAUNCH.pins['cpu_model']},enforce=on")
    assert found["-rtc"] == "base=localtime,driftfix=slew"
    assert "hpet=off" in found["-machine"] and "pflash0=" in found["-machine"]
    others = commandline.build("/qemu", LAUNCH, FDS)
    assert "base=utc" in others and not any("hv-" in word or "hpet" in word for word in others)


@pytest.mark.parametrize(
    ("change", "option"), [({"boot": {"kernel_path": "/k"}}, "windows"), ({"balloon": 0}, "balloon")]
)
def test_what_windows_does_not_go_with(change: dict[str, t.Any], option: str) -> None:
    with pytest.raises(InputError) as caught:
        commandline.build("/qemu", dataclasses.replace(LAUNCH, **{**WINDOWS, **change}), FDS)
    assert caught.value.option == option
