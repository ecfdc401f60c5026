# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Words of one hypervisor stand in its driver's folder alone; and what each driver has declared."""

from __future__ import annotations

import dataclasses
import re
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import base, channels, registry
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.defaults import MAX_CPU, MAX_NICS

ROOT = Path(base.__file__).parents[1]
# Protocols, devices, files, options and machines of hypervisors. A name in the list of all values is no such word.
WORDS = re.compile(
    r"qmp|qemu|fw_cfg|fwcfg|ovmf|edk2|aavmf|seabios|\bq35\b|pc-q35|pc-i440|i440fx|cpu_model|opt/cocoon|vmstate|"
    r"[\"']machine[\"']|virtserialport|org\.qemu|chardev|blockdev-|ch-remote|vmm\.|api-socket|vm\.(?:create|boot|add)|"
    r"api_socket|hvc0|ttyS0|no_timer_check|postmigrate|cloud.?hypervisor|firecracker",
    re.IGNORECASE,
)
# Programs and packages that are used beside the hypervisor, and the field of a list that users see.
MAY = re.compile(r"qemu-img|qemu-utils|qemu-guest-agent|_ask_qemu|Cloud Hypervisor and Firecracker")
LISTS = re.compile(r"^(?:HYPERVISORS = |\s*\"hypervisor\": \{\"type\")")


def lines(root: Path) -> t.Iterator[tuple[str, str]]:
    for path in sorted(root.rglob("*.py")):
        if "_hypervisors" in path.parts:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            yield f"{path.relative_to(root)}:{number}", line


def foreign(line: str) -> list[str]:
    """Words of one hypervisor in a line of the engine."""
    return [] if LISTS.match(line) else WORDS.findall(MAY.sub("", line))


def test_the_engine_has_no_word_of_one_hypervisor() -> None:
    assert [f"{place}: {line.strip()}" for place, line in lines(ROOT) if foreign(line)] == []


@pytest.mark.parametrize(
    "line",
    [
        'path = os.path.join(run_dir, "qmp.sock")',
        'fw_cfg = {"opt/cocoon/login": login}',
        'return os.path.join(paths.vm_dir(vm_id), "OVMF_VARS.fd")',
        'machine=record["machine"],',
        'if config.get("hypervisor") != "qemu":',
        '"console=ttyS0",',
        "# Firecracker wants an ELF kernel",
    ],
)
def test_such_words_are_found(line: str) -> None:
    assert foreign(line)


@pytest.mark.parametrize(
    "line",
    [
        'HYPERVISORS = ("qemu", "cloud-hypervisor", "firecracker")',
        'command = ["qemu-img", "create", "-q"]',
        'package="qemu-utils"',
        '"The guest runs qemu-guest-agent."',
    ],
)
def test_such_words_may_be(line: str) -> None:
    assert not foreign(line)


@pytest.mark.parametrize("name", registry.DRIVERS)
def test_what_a_driver_declares(name: str) -> None:
    driver = registry.driver(name, Paths())
    assert driver.name == name and name in types.HYPERVISORS
    assert driver.nic_by in ("fd", "name")
    assert set(driver.saved_files.values()) <= {base.STATE, base.MEMORY}
    assert base.STATE in driver.saved_files.values() or not driver.capabilities.snapshots
    assert dict(registry.saved_files(name)) == dict(driver.saved_files)
    assert not set(driver.saved_files) & set(driver.own_files)
    limits = driver.limits
    assert limits.cpus > 0 and limits.nics > 0 and limits.fixed_disks > 2 and limits.command_line >= 1024
    assert {256, 512, 1024} & set(limits.nic_queues) and {256, 512, 1024} & set(limits.disk_queues)
    ends = driver.guest_actions
    assert {ends.poweroff, ends.reboot, ends.panic} <= {"ends", "restarts", "stands", "ignored"}
    assert driver.endpoints("/run/x").api.startswith("/run/x/")
    style = driver.boot_style("tcg")
    assert style.console and style.disks in ("serial", "path") and style.kernel in ("bzimage", "elf")
    assert limits.devices is None or limits.devices > 2


@pytest.mark.parametrize("name", registry.DRIVERS)
def test_the_way_to_an_agent(name: str, tmp_path: Path) -> None:
    """It is had without the driver, from those that say they have one."""
    (tmp_path / "own").mkdir()
    if registry.driver(name, Paths()).capabilities.agent:
        assert channels.guest_channel(name, str(tmp_path)).path.startswith(f"{tmp_path}/")
    else:
        with pytest.raises(UnsupportedError, match="no way to an agent"):
            channels.guest_channel(name, str(tmp_path))


@pytest.mark.parametrize("name", registry.DRIVERS)
def test_the_way_to_a_console(name: str, tmp_path: Path) -> None:
    """The driver's; where an older release started a VM without, there is none."""
    found = registry.driver(name, Paths()).endpoints(str(tmp_path)).console
    assert found and channels.console(name, str(tmp_path)) is None
    Path(found).touch()
    assert channels.console(name, str(tmp_path)) == found


@pytest.mark.parametrize("name", registry.DRIVERS)
def test_pins_are_taken_from_records_by_their_keys(name: str) -> None:
    driver = registry.driver(name, Paths())
    record = {**{key: f"it-{key}" for key in driver.pinned}, "accel": "tcg", "hypervisor_version": "1"}
    assert base.pins_of(driver, record) == {key: f"it-{key}" for key in driver.pinned}
    assert base.pins_of(driver, {"accel": "tcg"}) == {}
    assert base.saved_state(driver, record, {"a": 1}) == base.SavedState(base.pins_of(driver, record), {"a": 1})


def test_a_vms_uuid_stays() -> None:
    """It is in the guests' machine-ids and in their SMBIOS; another one would be another machine."""
    assert base.guest_uuid("abcdefghijklmnopqrstuvwxyz") == "c2b773f8-a856-5d29-bfe2-d6fd197f987f"


# What the capabilities and limits are called in docs/hypervisors.md.
WORDS_OF = {
    "uefi": "disk images, by UEFI; Windows",
    "bios": "disk images, by BIOS",
    "qcow2": "system disks over an image (qcow2)",
    "guest_data": "logins and user data of images with a kernel; images without one (containers)",
    "data_device": "the same by a device, which images and default kernels of earlier versions need",
    "hotplug_disks": "data disks attached and detached while the VM runs",
    "hotplug_nics": "NICs added, changed and removed while the VM runs",
    "live_disk_resize": "data disks grown while the VM runs",
    "live_disk_limits": "`limits` of disks changed while the VM runs",
    "read_write_limits": "`limits` of a disk's reads, or writes, alone",
    "live_cpus": "vCPUs added while the VM runs (`cpu_max`)",
    "balloon": "`balloon`",
    "watchdog": "`watchdog`",
    "snapshots": "snapshots of a running VM, clones, `hibernated`",
    "live_disk_copy": "snapshots that copy disks while the guest runs on",
    "agent": "a way to an agent in the guest",
    "ram_file": "`memory_backing: disk`, `restore_mode: copy`",
}
COUNTS = {
    "cpus": "vCPUs",
    "nics": "NICs",
    "fixed_disks": "image layers",
    "removable_disks": "data disks",
    "command_line": "characters of the kernel's command line",
}


def table() -> str:
    """What each driver can do, and how much of it, as Markdown."""
    drivers = [registry.driver(name, Paths()) for name in registry.DRIVERS]
    rows = [["", *(f"`{driver.name}`" for driver in drivers)], ["---"] * (len(drivers) + 1)]
    for name, words in WORDS_OF.items():
        rows.append([words, *("yes" if getattr(driver.capabilities, name) else "no" for driver in drivers)])
    for name, words in COUNTS.items():
        # Beside the layers there are the system disk and the volume for the first boot.
        spare = 2 if name == "fixed_disks" else 0
        most = {"cpus": MAX_CPU, "nics": MAX_NICS}.get(name, 1 << 20)
        rows.append([words, *(str(min(most, getattr(driver.limits, name) - spare)) for driver in drivers)])
    for name, words in (("nic_queues", "`queue_size`"), ("disk_queues", "`disk_queue_size`")):
        sizes = [getattr(driver.limits, name) for driver in drivers]
        rows.append([words, *(" to ".join(map(str, sorted({found[0], found[-1]}))) for found in sizes)])
    shared = [driver.limits.devices for driver in drivers]
    rows.append(["disks, NICs and balloon in all", *("" if most is None else str(most) for most in shared)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def test_the_docs_say_what_drivers_declare() -> None:
    declared = {field.name for field in dataclasses.fields(base.Capabilities)}
    assert set(WORDS_OF) == declared
    text = (ROOT.parents[1] / "docs" / "hypervisors.md").read_text(encoding="utf-8")
    assert table() in text, f"docs/hypervisors.md is to have this table:\n{table()}"
