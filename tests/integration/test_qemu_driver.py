# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The QEMU driver with real guests: a kernel and a shell on the serial console that does as it is told."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils import _scope as scope
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    BusyError,
    GuestTimeoutError,
    HypervisorError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import keeper, kvm
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import launch as launcher
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Disk, Launch, Nic, guest_uuid
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import commandline, probe, sockets
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import driver as qemu
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.driver import QemuDriver
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.runstates import run_state
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process, identify, start_time
from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import BootConfig
from ansible_collections.cocoon.microvm.plugins.module_utils._types import MIB, new_id
from ansible_collections.cocoon.microvm.tests.integration.support.machine import PREFIX, WORK, command

UID = 0x7ABC0000
BLOB_GROUP = UID + 40000
MEMORY = 128 * MIB
BOOT = 90.0
STEP = 20.0

INIT = """\
#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in virtio_pci virtio_blk virtio_net virtio_console virtio_balloon qemu_fw_cfg; do modprobe $module; done
stty -F /dev/ttyS0 raw -echo
exec < /dev/ttyS0 > /dev/ttyS0 2>&1
echo "@ready"
while read -r line; do eval "$line"; echo "@$?"; done
"""


def cpio(files: dict[str, bytes]) -> bytes:
    """An initramfs archive of executable files (format newc)."""
    data = b""
    for name, content in [*files.items(), ("TRAILER!!!", b"")]:
        fields = [0, 0o100755, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
        head = b"070701" + "".join(f"{field:08X}" for field in fields).encode() + name.encode() + b"\0"
        data += head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
    return data


def tiny_image() -> Path | None:
    """The tar of the tiny image, which holds a kernel and an initramfs with busybox and the virtio modules."""
    given = os.environ.get("COCOON_TEST_IMAGE")
    candidates = [Path(given)] if given else sorted(WORK.glob("images/tiny*.tar"))
    return next((path for path in candidates if path.is_file()), None)


@dataclasses.dataclass
class Lab:
    """A store's directories and a guest to boot."""

    base: Path
    paths: Paths
    driver: QemuDriver
    kernel: str = ""
    initrd: str = ""

    def launch(self, pin: Mapping[str, str] | None = None, **changes: object) -> Launch:
        """A VM of its own directories, like those that the engine makes; *pin* of another machine."""
        vm_id = new_id()
        for path, mode in ((self.paths.vm_run(vm_id), 0o700), (self.paths.vm_log(vm_id), 0o711)):
            os.mkdir(path, mode)
            os.chmod(path, mode)
        os.mkdir(self.paths.vm_dir(vm_id), 0o711)
        pins = {**self.driver.pin("tcg"), **(pin or {})}
        values: dict[str, object] = {
            "vm_id": vm_id,
            "name": "guest",
            "uid": UID,
            "gid": UID,
            "cpu": 1,
            "memory": MEMORY,
            "accel": "tcg",
            "pins": pins,
            "boot": BootConfig(kernel_path=self.kernel, initrd_path=self.initrd, cmdline="console=ttyS0 quiet panic=5"),
            "ram_path": self.paths.ram_file(vm_id),
            "run_dir": self.paths.vm_run(vm_id),
            "console_log": self.paths.console_log(vm_id),
            "hypervisor_log": self.paths.hypervisor_log(vm_id),
            "groups": (BLOB_GROUP,),
        }
        return Launch(**{**values, **changes})  # type: ignore[arg-type]

    def start(self, launch: Launch) -> Process:
        return self.driver.start(launch, self.driver.confine(launch))

    def disk(self, launch: Launch, name: str, size: int = 16 * MIB) -> str:
        """A raw disk file, the VM's own."""
        path = os.path.join(self.paths.vm_dir(launch.vm_id), f"data-{name}.raw")
        with open(path, "wb") as stream:
            stream.truncate(size)
        os.chmod(path, 0o600)
        os.chown(path, launch.uid, launch.gid)
        return path


class Guest:
    """A started VM and the shell on its console."""

    def __init__(self, lab: Lab, launch: Launch, process: Process) -> None:
        self.lab = lab
        self.launch = launch
        self.process = process
        self.run_dir = launch.run_dir
        self.console = socket.socket(socket.AF_UNIX)
        self.console.connect(sockets.endpoints(launch.run_dir).console or "")
        self.seen = b""

    def expect(self, pattern: bytes, timeout: float) -> re.Match[bytes]:
        """Read the console up to *pattern*."""
        deadline = time.monotonic() + timeout
        while True:
            match = re.search(pattern, self.seen, re.DOTALL)
            if match:
                self.seen = self.seen[match.end() :]
                return match
            ready = select.select([self.console], [], [], max(0.0, deadline - time.monotonic()))[0]
            data = self.console.recv(65536) if ready else b""
            if not data:
                log = Path(self.launch.console_log).read_bytes()
                raise AssertionError(f"no {pattern!r} on the console but {self.seen[-500:]!r}; log: {log[-500:]!r}")
            self.seen += data

    def ready(self) -> Guest:
        """Wait for the shell. We connect within a moment of the start, long before it speaks."""
        self.expect(rb"@ready\r?\n", BOOT)
        return self

    def run(self, line: str, timeout: float = STEP) -> str:
        """Output of a shell line in the guest; it must succeed."""
        self.seen = b""
        self.console.sendall(line.encode() + b"\n")
        match = self.expect(rb"(.*?)@(\d+)\r?\n", timeout)
        assert match.group(2) == b"0", (line, match.group(1))
        return match.group(1).decode().replace("\r", "").strip()

    def until(self, line: str, timeout: float = STEP) -> None:
        """Have the guest itself wait until a shell line succeeds."""
        tenths = int(timeout * 10)
        self.run(f"n=0; until {line}; do n=$((n+1)); [ $n -lt {tenths} ] || break; usleep 100000; done; {line}", BOOT)

    def end(self) -> None:
        self.console.close()
        launcher.kill(self.process)
        self.process.close()
        qemu._clean(self.launch)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if os.geteuid():
        pytest.skip("needs root: it starts processes of other users")
    # Another QEMU than the distribution's, to see that the driver gets on with it.
    binary = os.environ.get("COCOON_TEST_QEMU") or probe.find_binary()
    if binary is None:
        pytest.skip("needs QEMU (the role cocoon.microvm.host installs it)")
    base = Path(f"/tmp/{PREFIX}-qemu")
    paths = Paths(str(base / "lib"), str(base / "run"), str(base / "log"))
    for path in (base, base / "lib", base / "lib" / "vms", base / "run", base / "run" / "ram", base / "log"):
        path.mkdir()
        path.chmod(0o711)
    command("mount", "-t", "tmpfs", "-o", "size=1g,mode=0711", "tmpfs", base / "run" / "ram")
    try:
        yield Lab(base, paths, QemuDriver(paths, binary))
    finally:
        command("umount", base / "run" / "ram")
        shutil.rmtree(base)


@pytest.fixture(scope="module")
def bootable(lab: Lab) -> Lab:
    """The lab with a kernel and our own first program appended to the initramfs of the tiny image."""
    image = tiny_image()
    if image is None:
        pytest.skip("needs the tiny image (make setup builds it, COCOON_TEST_IMAGE names another)")
    boot = lab.base / "boot"
    boot.mkdir(0o711)
    with tarfile.open(image) as tar:
        for entry in tar:
            name = os.path.basename(entry.name)
            for wanted in ("vmlinuz", "initrd.img"):
                source = tar.extractfile(entry) if name.startswith(wanted) and entry.isfile() else None
                if source:
                    (boot / wanted).write_bytes(source.read())
    packed = (boot / "initrd.img").read_bytes()
    (boot / "initrd.img").write_bytes(packed + bytes(-len(packed) % 512) + cpio({"init": INIT.encode()}))
    for path in boot.iterdir():
        # As the image store keeps them: readable by a group that only the VMs of the image have.
        os.chown(path, 0, BLOB_GROUP)
        path.chmod(0o440)
    return dataclasses.replace(lab, kernel=str(boot / "vmlinuz"), initrd=str(boot / "initrd.img"))


@contextlib.contextmanager
def running(lab: Lab, launch: Launch) -> Iterator[Guest]:
    guest = Guest(lab, launch, lab.start(launch))
    try:
        yield guest
    finally:
        guest.end()


@pytest.fixture(scope="module")
def guest(bootable: Lab) -> Iterator[Guest]:
    """One guest for all tests that leave it as they found it."""
    launch = bootable.launch(cpu=2, balloon=16 * MIB, watchdog=True)
    login = os.path.join(bootable.paths.vm_dir(launch.vm_id), "login.json")
    Path(login).write_text('{"user": "me, myself"}', encoding="utf-8")
    os.chmod(login, 0o400)
    os.chown(login, launch.uid, launch.gid)
    blob = os.path.join(bootable.paths.vm_dir(launch.vm_id), "layer,0.raw")
    Path(blob).write_bytes(b"layer zero".ljust(MIB, b"\0"))
    os.chown(blob, 0, BLOB_GROUP)
    os.chmod(blob, 0o440)
    launch = dataclasses.replace(
        launch,
        disks=(
            Disk("cocoon-layer0", blob, read_only=True),
            Disk("cocoon-cow", bootable.disk(launch, "cow"), direct=True),
            Disk("first", bootable.disk(launch, "first"), removable=True),
        ),
        guest_data={"login": login},
    )
    with running(bootable, launch) as started:
        yield started.ready()


def serials(guest: Guest) -> set[str]:
    return set(guest.run("for d in /sys/block/vd*; do cat $d/serial; echo; done").split())


def device(serial: str) -> str:
    """Shell words that give the name of the disk *serial* in the guest."""
    return f"$(basename $(dirname $(grep -l '^{serial}$' /sys/block/vd*/serial)))"


def status_fields(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return {key: value.strip() for key, _colon, value in (line.partition(":") for line in lines)}


def test_boots_and_sees_its_devices(guest: Guest) -> None:
    assert guest.lab.driver.status(guest.run_dir) == "running"
    assert serials(guest) == {"cocoon-layer0", "cocoon-cow", "first"}
    assert guest.run(f"head -c 10 /dev/{device('cocoon-layer0')}") == "layer zero"
    assert guest.run("grep -c ^processor /proc/cpuinfo") == "2"
    assert guest.run("cat /sys/firmware/qemu_fw_cfg/by_name/opt/cocoon/login/raw") == '{"user": "me, myself"}'
    assert guest.run("cat /sys/class/virtio-ports/vport*/name") == "org.qemu.guest_agent.0"
    vm_id = guest.launch.vm_id
    assert guest.run("cat /sys/class/dmi/id/product_serial") == vm_id
    assert guest.run("cat /sys/class/dmi/id/product_uuid").lower() == guest_uuid(vm_id)


def test_guest_has_the_features_of_x86_64_v2(guest: Guest) -> None:
    flags = set(guest.run("grep -m1 ^flags /proc/cpuinfo").split())
    assert {"cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2"} <= flags
    assert "svm" not in flags


def test_disks_can_be_written_where_they_should(guest: Guest) -> None:
    guest.run(f"echo kept > /dev/{device('cocoon-cow')} && sync")
    assert Path(guest.launch.disks[1].path).read_bytes()[:4] == b"kept"
    assert guest.run(f"cat /sys/block/{device('cocoon-layer0')}/ro") == "1"
    guest.run(f"! dd if=/dev/zero of=/dev/{device('cocoon-layer0')} bs=512 count=1 2>/dev/null")


def test_hypervisor_is_unprivileged(guest: Guest) -> None:
    fields = status_fields(guest.process.pid)
    assert fields["Uid"].split() == [str(UID)] * 4
    assert fields["Gid"].split() == [str(UID)] * 4
    assert fields["Groups"].split() == [str(BLOB_GROUP)]
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert fields["Seccomp"] == "2"
    assert fields["NoNewPrivs"] == "1"
    assert os.getsid(guest.process.pid) == guest.process.pid


def test_hypervisor_has_only_the_intended_descriptors(guest: Guest) -> None:
    folder = f"/proc/{guest.process.pid}/fd"
    targets = []
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            targets.append(os.readlink(os.path.join(folder, name)))
    files = {target for target in targets if target.startswith("/")}
    launch = guest.launch
    assert files <= {
        *("/dev/null", "/dev/urandom"),
        *(os.path.join(launch.run_dir, "console.pipe"), launch.hypervisor_log, launch.ram_path),
        *(disk.path for disk in launch.disks),
    }
    for name in ("0", "1", "2"):
        assert os.readlink(os.path.join(folder, name)) in ("/dev/null", launch.hypervisor_log)


def test_process_is_found_by_identity_and_by_scan(guest: Guest) -> None:
    found = Process.find(identify(guest.process.pid))
    assert found is not None
    found.close()
    assert guest.process.pid in pids_of(UID)


def test_sockets_are_closed_to_the_hypervisors_own_user(guest: Guest) -> None:
    done = subprocess.run(["ls", guest.run_dir], user=UID, group=UID, extra_groups=[], capture_output=True, check=False)
    assert done.returncode != 0
    assert sorted(os.listdir(guest.run_dir)) == ["agent.sock", "console.pipe", "console.sock", "qmp.sock"]


def test_disk_comes_and_goes_while_the_guest_runs(guest: Guest) -> None:
    driver = guest.lab.driver
    path = guest.lab.disk(guest.launch, "hot", 20 * MIB)
    disk = Disk("hot", path, removable=True, direct=True)
    driver.attach_disk(guest.run_dir, disk)
    guest.until("grep -q '^hot$' /sys/block/vd*/serial")
    assert guest.run(f"cat /sys/block/{device('hot')}/size") == str(20 * MIB // 512)

    driver.attach_disk(guest.run_dir, disk)  # again: as a run that was cut short would
    driver.resize_disk(guest.run_dir, "hot", 32 * MIB)
    guest.until(f'[ "$(cat /sys/block/{device("hot")}/size)" = {32 * MIB // 512} ]')
    assert os.stat(path).st_size == 32 * MIB
    with pytest.raises(HypervisorError, match="never shrinks"):
        driver.resize_disk(guest.run_dir, "hot", 24 * MIB)
    assert os.stat(path).st_size == 32 * MIB
    guest.run(f"echo inside > /dev/{device('hot')} && sync")

    driver.detach_disk(guest.run_dir, "hot", STEP)
    guest.until("! grep -q '^hot$' /sys/block/vd*/serial")
    driver.detach_disk(guest.run_dir, "hot", STEP)
    assert Path(path).read_bytes()[:6] == b"inside"
    assert path not in os.popen(f"ls -l /proc/{guest.process.pid}/fd").read()


def test_disk_that_was_there_at_boot_can_be_detached_and_attached_again(guest: Guest) -> None:
    driver = guest.lab.driver
    disk = guest.launch.disks[2]
    driver.detach_disk(guest.run_dir, disk.serial, STEP)
    guest.until("! grep -q '^first$' /sys/block/vd*/serial")
    driver.attach_disk(guest.run_dir, disk)
    guest.until("grep -q '^first$' /sys/block/vd*/serial")


def test_attach_after_one_that_was_cut_short(guest: Guest) -> None:
    driver = guest.lab.driver
    disk = Disk("half", guest.lab.disk(guest.launch, "half"), removable=True)
    with driver.connect(guest.run_dir) as qmp:
        qmp.execute("blockdev-add", commandline.disk_node(disk))
    driver.attach_disk(guest.run_dir, disk)
    guest.until("grep -q '^half$' /sys/block/vd*/serial")
    driver.detach_disk(guest.run_dir, "half", STEP)


def test_a_disk_file_that_is_not_there_leaves_no_trace(guest: Guest) -> None:
    driver = guest.lab.driver
    with pytest.raises(HypervisorError, match="blockdev-add.*No such file"):
        driver.attach_disk(guest.run_dir, Disk("gone", guest.launch.ram_path + "-gone", removable=True))
    with pytest.raises(HypervisorError, match="blockdev-add.*Permission denied"):
        driver.attach_disk(guest.run_dir, Disk("shadow", "/etc/shadow", read_only=True, removable=True))
    assert serials(guest) == {"cocoon-layer0", "cocoon-cow", "first"}


def test_guest_that_does_not_let_go_of_a_disk(guest: Guest) -> None:
    driver = guest.lab.driver
    driver.pause(guest.run_dir)
    assert driver.status(guest.run_dir) == "paused"
    with pytest.raises(GuestTimeoutError, match="first"):
        driver.detach_disk(guest.run_dir, "first", 0.3)
    driver.resume(guest.run_dir)
    assert driver.status(guest.run_dir) == "running"
    driver.detach_disk(guest.run_dir, "first", STEP)
    driver.attach_disk(guest.run_dir, guest.launch.disks[2])
    guest.until("grep -q '^first$' /sys/block/vd*/serial")


def balloon_reaches(guest: Guest, taken: int) -> bool:
    """Wait until the guest has given *taken* bytes; what it gives it loses from MemFree, not from MemTotal."""
    with guest.lab.driver.connect(guest.run_dir) as qmp:
        deadline = time.monotonic() + STEP
        while qmp.execute("query-balloon")["actual"] != guest.launch.memory - taken:
            if not qmp.wait_event("BALLOON_CHANGE", deadline - time.monotonic()):
                return False
    return True


def test_balloon(guest: Guest) -> None:
    assert balloon_reaches(guest, 16 * MIB), "as asked for at the start"
    free = int(guest.run("awk '/MemFree/ {print $2}' /proc/meminfo"))
    guest.lab.driver.set_balloon(guest.run_dir, 0)
    assert balloon_reaches(guest, 0)
    assert int(guest.run("awk '/MemFree/ {print $2}' /proc/meminfo")) > free + 12 * 1024
    guest.lab.driver.set_balloon(guest.run_dir, 16 * MIB)
    assert balloon_reaches(guest, 16 * MIB)
    with pytest.raises(HypervisorError, match="cannot take"):
        guest.lab.driver.set_balloon(guest.run_dir, MEMORY)


def test_one_client_at_a_time(guest: Guest) -> None:
    with guest.lab.driver.connect(guest.run_dir):
        with pytest.raises(BusyError, match=r"did not answer within 0\.2 s"):
            guest.lab.driver.connect(guest.run_dir, 0.2)
    assert guest.lab.driver.status(guest.run_dir) == "running"


def test_reset_and_power_off(bootable: Lab) -> None:
    launch = bootable.launch()
    with running(bootable, launch) as guest:
        guest.ready()
        guest.run("touch /before")
        bootable.driver.reset(guest.run_dir)
        guest.ready()
        guest.run("! test -e /before")
        pid = guest.process.pid
        guest.console.sendall(b"poweroff -f\n")
        assert guest.process.wait(STEP)
        assert start_time(pid) is None
        with pytest.raises(HypervisorError, match="no hypervisor listens"):
            bootable.driver.status(guest.run_dir)


def test_network_of_two_queues(bootable: Lab) -> None:
    """A TAP that the launcher opened in a namespace of its own; the hypervisor is not in it."""
    netns = f"{PREFIX}-qemu"
    opener = textwrap.dedent(
        """
        import array, fcntl, os, socket, struct, sys
        sock = socket.socket(fileno=int(sys.argv[1]))
        fds = []
        for _pair in range(2):
            fd = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"tap0", 0x0002 | 0x1000 | 0x4000 | 0x0100))
            fds.append(fd)
        socket.send_fds(sock, [b"x"], fds)
        """
    )
    command("ip", "netns", "add", netns)
    fds: list[int] = []
    try:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            subprocess.run(
                ["nsenter", f"--net=/run/netns/{netns}", sys.executable, "-c", opener, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                check=True,
            )
            fds = list(socket.recv_fds(ours, 1, 2)[1])
        command("ip", "-n", netns, "addr", "add", "10.9.8.1/24", "dev", "tap0")
        command("ip", "-n", netns, "link", "set", "tap0", "up")
        nic = Nic("02:00:00:09:08:02", tuple(fds), 512, 1400)
        with running(bootable, bootable.launch(cpu=2, nics=(nic,))) as guest:
            guest.ready()
            guest.run("ip addr add 10.9.8.2/24 dev eth0 && ip link set eth0 up")
            assert guest.run("cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu") == "02:00:00:09:08:02\n1400"
            assert guest.run("ls -d /sys/class/net/eth0/queues/rx-* | wc -l") == "2"
            assert "1 received" in command("ip", "netns", "exec", netns, "ping", "-c1", "-W5", "10.9.8.2")
            for fd in fds:
                os.close(fd)
            fds.clear()
            assert "tap0" in command("ip", "-n", netns, "-o", "link")
        assert "tap0" not in command("ip", "-n", netns, "-o", "link")
    finally:
        for fd in fds:
            os.close(fd)
        command("ip", "netns", "del", netns)


def test_guest_that_writes_its_console_for_ever(bootable: Lab) -> None:
    launch = bootable.launch()
    logs = os.path.dirname(launch.console_log)
    command("mount", "-t", "tmpfs", "-o", "size=1m,mode=0711", "tmpfs", logs)
    try:
        with running(bootable, launch) as guest:
            guest.ready()
            guest.console.sendall(b"while :; do head -c 65536 /dev/zero | tr '\\0' x; done\n")
            guest.expect(b"x{100}", STEP)
            guest.console.close()
            deadline = time.monotonic() + BOOT
            while not os.stat(launch.console_log + ".1").st_size and time.monotonic() < deadline:
                time.sleep(0.05)
            guest.process.wait(0.5)  # it writes on meanwhile
            assert bootable.driver.status(guest.run_dir) == "running"
            sizes = [os.stat(launch.console_log + name).st_size for name in ("", ".0", ".1")]
            assert sizes[1:] == [keeper.MOST] * 2 and 0 < sizes[0] <= keeper.MOST
            assert os.statvfs(logs).f_bavail > 0
        # The next start makes room, and keeps the end of what was there.
        with running(bootable, launch) as guest:
            guest.ready()
            assert os.stat(launch.console_log + ".1").st_size == keeper.MOST
            assert os.stat(launch.console_log).st_size < MIB // 2
    finally:
        command("umount", logs)


def pids_of(uid: int) -> set[int]:
    """The processes of a user; the guest that this file's tests share is one of them."""
    found = Process.scan(uid)
    for process in found:
        process.close()
    return {process.pid for process in found}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pin": {"machine": "pc-q35-0.1"}}, "unsupported machine type"),
        ({"pin": {"cpu_model": "qemu64-v1,avx512f=on"}}, r"avx512f|doesn't support requested feature"),
        ({"boot": {"kernel_path": "/etc/shadow", "cmdline": "quiet"}}, "(?i)could not open.*shadow|permission denied"),
    ],
)
def test_hypervisor_that_dies_at_its_start(lab: Lab, changes: dict[str, object], message: str) -> None:
    launch = lab.launch(**{"boot": {"kernel_path": "/dev/null", "cmdline": ""}, **changes})  # type: ignore[arg-type]
    before = pids_of(launch.uid)
    began = time.monotonic()
    with pytest.raises(HypervisorError, match=message) as caught:
        lab.start(launch)
    assert time.monotonic() - began < 10
    assert "did not start (exit status 1)" in str(caught.value)
    assert pids_of(launch.uid) == before
    assert os.listdir(launch.run_dir) == []
    assert not os.path.exists(launch.ram_path)


def test_file_system_without_direct_io_names_the_option(lab: Lab) -> None:
    """QEMU's own words are put into its log: tmpfs, for one, takes O_DIRECT from Linux 6.6 on."""
    launch = lab.launch()
    Path(launch.hypervisor_log).write_text("qemu: file system may not support O_DIRECT\n", encoding="ascii")
    assert "no_direct_io: true" in str(qemu._start_error(launch, HypervisorError("the hypervisor ended"), 1))


def test_launcher_killed_between_spawn_and_handshake(bootable: Lab) -> None:
    """The next run finds the process by its user; the guest has not run."""
    launch = bootable.launch()
    before = pids_of(launch.uid)
    code = textwrap.dedent(
        """
        import os, pickle, signal, sys
        from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import driver as qemu
        qemu.QemuDriver._run = lambda *_all: os.kill(os.getpid(), signal.SIGKILL)
        paths, launch = pickle.loads(sys.stdin.buffer.read())
        driver = qemu.QemuDriver(paths, sys.argv[1])
        driver.start(launch, driver.confine(launch))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code, bootable.driver.binary()],
        input=pickle.dumps((bootable.paths, launch)),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    left, keepers = pids_of(launch.uid) - before, set[int]()
    deadline = time.monotonic() + 20
    while not keepers:  # it is root until its interpreter is up
        assert time.monotonic() < deadline, left
        left = pids_of(launch.uid) - before
        keepers = {pid for pid in left if keeper.PROGRAM.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()}
    assert len(keepers) == 1 and len(left) == 2
    (process,) = Process.scan(launch.uid, left - keepers)
    (kept,) = Process.scan(launch.uid, keepers)
    with process, kept:
        assert bootable.driver.status(launch.run_dir) == "paused"
        process.end(2.0)
        assert start_time(process.pid) is None
        assert kept.wait(5.0), "the keeper of a console that nobody writes to stays"
    qemu._clean(launch)


def test_same_disk_is_not_opened_twice(bootable: Lab) -> None:
    launch = bootable.launch()
    launch = dataclasses.replace(launch, disks=(Disk("cocoon-cow", bootable.disk(launch, "cow")),))
    other = bootable.launch(disks=launch.disks)
    with running(bootable, launch):
        with pytest.raises(HypervisorError, match="lock"):
            bootable.start(other)


def test_a_guest_that_stood_still_for_want_of_space_goes_on(bootable: Lab) -> None:
    """Its disk is a sparse file that the file system has no room for; the guest is stopped, and loses nothing."""
    launch = bootable.launch()
    small = os.path.join(bootable.paths.vm_dir(launch.vm_id), "small")
    os.mkdir(small, 0o711)
    command("mount", "-t", "tmpfs", "-o", "size=1m,mode=0711", "tmpfs", small)
    try:
        path = os.path.join(small, "data-full.raw")
        with open(path, "wb") as stream:
            stream.truncate(8 * MIB)
        os.chown(path, launch.uid, launch.gid)
        launch = dataclasses.replace(launch, disks=(Disk("full", path, removable=True),))
        with running(bootable, launch) as guest:
            guest.ready()
            line = f"dd if=/dev/urandom of=/it bs=1M count=4; dd if=/it of=/dev/{device('full')} bs=1M"
            guest.console.sendall(f"{line}; sync; echo 3 > /proc/sys/vm/drop_caches\n".encode())
            deadline = time.monotonic() + BOOT
            while run_state("qemu", launch.run_dir, STEP) == "running":
                assert time.monotonic() < deadline
                assert not guest.process.wait(0.1)
            assert bootable.driver.status(launch.run_dir) == "io-error"
            bootable.driver.resume(launch.run_dir)  # no use yet
            command("mount", "-o", "remount,size=16m", small)
            bootable.driver.resume(launch.run_dir)
            guest.expect(rb"@0\r?\n", BOOT)
            assert bootable.driver.status(launch.run_dir) == "running"
            guest.run(f"cmp -n {4 * MIB} /it /dev/{device('full')}")
    finally:
        command("umount", "-l", small)


def test_disk_image_boots_by_bios(lab: Lab) -> None:
    """A boot sector that says hello on the serial port, in a qcow2 overlay of a read-only blob."""
    launch = lab.launch(boot={})
    text = b"hello from the boot sector\r\n\0"
    # mov si,text; next: lodsb; or al,al; jz stop; mov dx,3f8; out dx,al; jmp next; stop: cli; hlt; jmp stop
    program = bytes.fromhex("be137c ac 08c0 7406 baf803 ee ebf5 fa f4 ebfd".replace(" ", ""))
    program = program.ljust(0x13, b"\x90")
    sector = (program + text).ljust(510, b"\0") + b"\x55\xaa"
    folder = lab.paths.vm_dir(launch.vm_id)
    blob, overlay = os.path.join(folder, "blob.raw"), os.path.join(folder, "overlay.qcow2")
    Path(blob).write_bytes(sector.ljust(MIB, b"\0"))
    command("qemu-img", "create", "-q", "-f", "qcow2", "-b", blob, "-F", "raw", overlay)
    os.chown(blob, 0, BLOB_GROUP)
    os.chmod(blob, 0o440)
    os.chown(overlay, launch.uid, launch.gid)
    os.chmod(overlay, 0o600)
    disk = Disk("cocoon-root", overlay, format="qcow2", backing=blob, backing_format="raw")
    with running(lab, dataclasses.replace(launch, disks=(disk,))) as guest:
        deadline = time.monotonic() + BOOT
        while b"hello from the boot sector" not in Path(launch.console_log).read_bytes():
            assert time.monotonic() < deadline
            assert not guest.process.wait(0.02)


def test_pins_are_what_qemu_calls_them(lab: Lab) -> None:
    pins = lab.driver.pin("tcg")
    assert re.fullmatch(r"pc-q35-\S+", pins["machine"])
    assert set(pins) == set(lab.driver.pinned)
    version = lab.driver.version()
    assert re.match(r"\d+\.\d+\.\d+$", version)
    found = lab.driver.probe()
    assert found.available and "tcg" in found.accels and found.version == version


def test_kvm_where_it_works(bootable: Lab) -> None:
    problem = kvm.kvm_problem(bootable.paths)
    if problem:
        pytest.skip(f"needs KVM: {problem}")
    pins = bootable.driver.pin("kvm")
    launch = bootable.launch(accel="kvm", pins=pins)
    with running(bootable, launch) as guest:
        guest.ready()


def test_scope_where_systemd_runs(bootable: Lab) -> None:
    if not scope.present():
        pytest.skip("needs systemd as init")
    launch = bootable.launch()
    with running(bootable, launch) as guest:
        assert scope.in_unit(guest.process.pid, scope.unit_name(launch.vm_id, guest.process.pid))


def test_what_windows_asks_for_is_known() -> None:
    """A name that this QEMU does not know ends it before all else; that emulation has none of it, later."""
    binary = probe.find_binary()
    assert binary is not None
    cpu = f"qemu64-v1,enforce=on,{commandline.keyval(commandline.ENLIGHTENMENTS)}"
    clock = ("-rtc", "base=localtime,driftfix=slew")

    def said(model: str) -> str:
        words = [binary, *("-nodefaults", "-display", "none", "-monitor", "stdio", "-S", "-accel", "tcg"), *clock]
        words += ["-machine", "q35,hpet=off", "-cpu", model]
        done = subprocess.run(words, input="quit\n", capture_output=True, text=True, timeout=60, check=False)
        return done.stderr

    assert "not found" in said(f"{cpu},hv-nonsense=on")
    assert "not found" not in said(cpu) and said("qemu64-v1") == ""
