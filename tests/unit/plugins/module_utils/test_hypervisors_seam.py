# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Words of one hypervisor stand in its driver's folder alone; and what each driver has declared."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import base, registry

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
    assert driver.guest_channel("/run/x").path.startswith("/run/x/")
    style = driver.boot_style("tcg")
    assert style.console and style.disks in ("serial", "path") and style.kernel in ("bzimage", "elf")
    assert limits.devices is None or limits.devices > 2


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
