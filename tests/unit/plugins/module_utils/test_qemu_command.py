# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The QEMU command line, as tables."""

from __future__ import annotations

import dataclasses
import json
import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import qemu_command
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Disk, Launch, Nic
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
    machine="pc-q35-7.2",
    cpu_model="qemu64-v1,ssse3=on",
    ram_path="/ram/a,b",
    run_dir="/run/x",
    console_log="/log/x/console.log",
    hypervisor_log="/log/x/hypervisor.log",
    boot={"kernel_path": "/boot/vmlinuz", "initrd_path": "/boot/initrd.img", "cmdline": "console=ttyS0 a=b,c"},
)


def build(**changes: t.Any) -> list[str]:
    return qemu_command.build("/usr/bin/qemu", dataclasses.replace(LAUNCH, **changes), FDS)


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
    assert qemu_command.keyval(options) == text


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
    node = qemu_command.disk_node(Disk("cocoon-layer0", "/blob,1.erofs", read_only=True, direct=True))
    assert node["read-only"] is True and node["file"]["read-only"] is True
    assert node["discard"] == node["file"]["discard"] == "ignore"
    assert node["cache"]["direct"] is False, "layers come from the page cache, which all VMs share"
    assert node["file"]["filename"] == "/blob,1.erofs"
    assert node["file"]["locking"] == "on"


@pytest.mark.parametrize(("direct", "aio"), [(True, "native"), (False, "threads")])
def test_writable_disk(direct: bool, aio: str) -> None:
    node = qemu_command.disk_node(Disk("cocoon-cow", "/cow.raw", direct=direct))
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
    node = qemu_command.disk_node(disk)
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


@pytest.mark.parametrize(("removable", "ports"), [(0, 8), (4, 8), (5, 16), (16, 16)])
def test_root_ports(removable: int, ports: int) -> None:
    words = build(disks=tuple(data_disk(f"d{number}") for number in range(removable)))
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
    assert [nic["addr"] for nic in by_driver(words, "virtio-net-pci")] == ["0x10", "0x11"]


@pytest.mark.parametrize("balloon", [None, 0, 16 * MIB])
def test_balloon_only_when_asked_for(balloon: int | None) -> None:
    found = by_driver(build(balloon=balloon), "virtio-balloon-pci")
    assert len(found) == (balloon is not None)
    for device in found:
        assert device["deflate-on-oom"] == "on"
        assert "free-page-reporting" not in device


@pytest.mark.parametrize("watchdog", [False, True])
def test_watchdog(watchdog: bool) -> None:
    words = build(watchdog=watchdog)
    assert len(by_driver(words, "i6300esb")) == watchdog
    assert values(words, "-action") == (["watchdog=reset"] if watchdog else [])


def test_fw_cfg() -> None:
    words = build(fw_cfg={"opt/cocoon/login": "/vms/x/login,1"})
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
        ({"boot": {"firmware_path": "/fw"}, "disks": (Disk("a", "/a"),)}, UnsupportedError, "image"),
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
    assert qemu_command.guest_uuid(VM_ID) == qemu_command.guest_uuid(VM_ID)
    assert qemu_command.guest_uuid(VM_ID) != qemu_command.guest_uuid(VM_ID[::-1])
