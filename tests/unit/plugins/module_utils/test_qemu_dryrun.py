# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a start comes to, as a shell takes it."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Disk, Launch, Nic, Resume
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.driver import QemuDriver

LAUNCH = Launch(
    vm_id="abcdefghijklmnopqrstuvwxyz",
    name="web 1",
    uid=70001,
    gid=70002,
    cpu=2,
    memory=128 << 20,
    accel="tcg",
    pins={"machine": "pc-q35-7.2", "cpu_model": "qemu64-v1,ssse3=on"},
    ram_path="/run/x/ram's/a",
    run_dir="/run/x/vm",
    console_log="/log/x/console.log",
    hypervisor_log="/log/x/hypervisor.log",
    boot={"kernel_path": "/boot/vmlinuz", "initrd_path": "/boot/initrd.img", "cmdline": "console=ttyS0 a=b,c"},
    groups=(70003, 70004),
    disks=(Disk("cocoon-cow", "/vms/x/cow.raw"),),
    nics=(Nic("02:00:00:00:00:01", tap="cmabcdefgh-0", pairs=2),),
    guest_data={"login": "/vms/x/login.json"},
)


SLOW = {"read": {"rate": 1 << 20, "burst": 3 << 20}, "write": {"iops": 100}}


@pytest.fixture(name="driver")
def fixture_driver() -> QemuDriver:
    return QemuDriver(Paths(), "/usr/bin/qemu-system-x86_64")


def test_lines(driver: QemuDriver) -> None:
    """Each is words for a shell, and the process is the one that a start makes, but for what it is handed open."""
    _folder, ram, owner, log, tap, up, process, wait, talk = driver.dry_run(LAUNCH)
    assert tap == "ip tuntap add dev cmabcdefgh-0 mode tap user 70001 vnet_hdr multi_queue"
    assert up == "ip link set cmabcdefgh-0 up" and wait == "until [ -S /run/x/vm/qmp.sock ]; do sleep 0.1; done"
    assert shlex.split(ram) == ["truncate", "-s", "134217728", "/run/x/ram's/a"]
    assert shlex.split(owner) == ["chown", "70001:70002", "/run/x/ram's/a"]
    assert shlex.split(log)[1:] == ["-m", "0600", "-o", "70001", "-g", "70002", "/dev/null", "/log/x/console.log"]
    words = shlex.split(process)
    assert words[:8] == ["setpriv", "--reuid", "70001", "--regid", "70002", "--groups", "70003,70004", "--no-new-privs"]
    started = driver.command(LAUNCH, {"qmp": 5, "console": 6, "agent": 7})
    begin = words.index("/usr/bin/qemu-system-x86_64")
    differ = [(ours, theirs) for ours, theirs in zip(words[begin:], started) if ours != theirs]
    assert [ours.partition(",server")[0] for ours, _theirs in differ] == [
        "socket,id=qmp,path=/run/x/vm/qmp.sock",
        "socket,id=console,path=/run/x/vm/console.sock",
        "socket,id=agent,path=/run/x/vm/agent.sock",
    ]
    assert "tap,id=net0,ifname=cmabcdefgh-0,script=no,downscript=no,queues=2,vhost=off" in words
    assert words[-1] == "&" and len(words[begin:-1]) == len(started)
    assert shlex.split(talk)[2:4] == ['{"execute": "qmp_capabilities"}', '{"execute": "cont"}']


def test_a_saved_state_is_a_remark(driver: QemuDriver) -> None:
    resume = Resume("/vms/x/resume", None, False, {"ports": 8, "slots": {}, "version": "7.2.0"}, hold=True)
    lines = driver.dry_run(dataclasses.replace(LAUNCH, resume=resume))
    assert [line for line in lines if line.startswith("#")] == [
        "# /vms/x/resume/vmstate is handed over as a descriptor: getfd, migrate-incoming fd:state"
    ]
    assert "/run/x/vm/identity.sock" in lines[6]


def test_a_vm_without_groups(driver: QemuDriver) -> None:
    assert "--clear-groups" in shlex.split(driver.dry_run(dataclasses.replace(LAUNCH, groups=()))[6])


def test_limits_come_before_the_guest_runs(driver: QemuDriver) -> None:
    slow = dataclasses.replace(LAUNCH, disks=(Disk("cocoon-cow", "/vms/x/cow.raw", limits=SLOW),))
    throttle, cont = driver.dry_run(slow)[-2:]
    assert '"block_set_io_throttle"' in throttle and '"cont"' in cont
    assert "disk-cocoon-cow/virtio-backend" in throttle and '"bps_rd": 1048576' in throttle
