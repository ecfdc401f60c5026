# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The images of the role image, booted by plain QEMU: what a guest does by itself, whatever starts it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._vms import guest_data
from ansible_collections.cocoon.microvm.tests.integration.support import images
from ansible_collections.cocoon.microvm.tests.integration.support.machine import COLLECTION, TOKEN, Netns, command
from ansible_collections.cocoon.microvm.tests.integration.support.running import Playbooks

GATEWAY, ADDRESS = "10.99.7.1", "10.99.7.2"
STATIC = f"ip={ADDRESS}::{GATEWAY}:255.255.255.0:guest:eth0:off:{GATEWAY}:9.9.9.9"
CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16"
FEATURES = ["user", "password", "ssh_keys", "relogin", "nics", "data"]
HASH = "$5$saltsaltsaltsalt$t.vPDvl6SlYYyhlsbA7jMm5nvmdu0Y3hdEhTcuVgUx2"
# Long enough for a busy machine without KVM; nothing waits this long when all is well.
BOOT = 300


@dataclass
class Kit:
    """An image as a hypervisor takes it: kernel, initramfs, layer; and a key pair for its guests."""

    folder: Path
    netns: Netns
    key: Path
    cow: Path = field(init=False)
    data: Path = field(init=False)

    def __post_init__(self) -> None:
        self.cow, self.data = self.folder / "cow.raw", self.folder / "data.raw"
        self.fresh()

    def fresh(self) -> None:
        """Empty disks, as for a new machine."""
        for path, size in ((self.cow, 1 << 30), (self.data, 32 << 20)):
            path.unlink(missing_ok=True)
            make_ext4(path, size)

    def login(self, **data: object) -> Path:
        """A file with login data."""
        path = self.folder / "login.json"
        path.write_text(json.dumps(data))
        return path

    def initrd(self, login: Path | None) -> Path:
        """The initramfs, with login data before it."""
        plain = self.folder / "initrd.img"
        if login is None:
            return plain
        found = self.folder / "login-and-initrd.img"
        found.write_bytes(guest_data.archive({guest_data.LOGIN_ITEM: login.read_bytes()}) + plain.read_bytes())
        return found

    def public_key(self) -> str:
        return self.key.with_suffix(".pub").read_text().strip()

    def ssh(self, script: str, user: str = "root", check: bool = True) -> str:
        """Run a command in the guest."""
        options = [
            "-oBatchMode=yes",
            "-oStrictHostKeyChecking=no",
            "-oUserKnownHostsFile=/dev/null",
            "-oLogLevel=ERROR",
        ]
        return self.netns.run(
            "ssh",
            "-i",
            self.key,
            *options,
            "-oConnectTimeout=60",
            f"{user}@{ADDRESS}",
            script,
            check=check,
            timeout=180,
        )


def make_ext4(path: Path, size: int) -> None:
    with path.open("wb") as stream:
        stream.truncate(size)
    command("mkfs.ext4", "-F", "-m", "0", "-q", "-E", "lazy_itable_init=1,lazy_journal_init=1,discard", path)


class Guest:
    """A running QEMU with the devices of the engine's guests, started and stopped by hand."""

    def __init__(self, kit: Kit, memory: int, login: Path | None, cow: bool, before: bool) -> None:
        self.kit = kit
        self.console, self.qmp_path = kit.folder / "console.log", kit.folder / "qmp.sock"
        self.console.unlink(missing_ok=True)
        disks = [("cocoon-layer0", kit.folder / "layer.erofs", ",read-only=on"), ("data1", kit.data, "")]
        if cow:
            disks.insert(1, ("cocoon-cow", kit.cow, ""))
        line = [
            *("qemu-system-x86_64", "-M", "q35,accel=tcg", "-cpu", CPU, "-m", str(memory), "-nodefaults"),
            *("-no-user-config", "-display", "none", "-qmp", f"unix:{self.qmp_path},server=on,wait=off"),
            *("-chardev", f"file,id=serial,path={self.console}", "-serial", "chardev:serial"),
            *("-kernel", str(kit.folder / "vmlinuz"), "-initrd", str(kit.initrd(login if before else None)), "-append"),
            "console=ttyS0 loglevel=3 boot=cocoon-overlay cocoon.layers=cocoon-layer0 cocoon.cow=cocoon-cow rw "
            f"net.ifnames=0 cocoon.hostname=guest {STATIC}",
            *("-netdev", "tap,id=net0,ifname=guest0,script=no,downscript=no"),
            *("-device", "virtio-net-pci,netdev=net0,mac=52:54:00:99:07:02", "-device", "virtio-rng-pci"),
            *("-device", "pcie-root-port,id=spare0,slot=1"),
        ]
        for number, (serial, path, extra) in enumerate(disks):
            line += ["-drive", f"if=none,id=d{number},format=raw,file={path}{extra}"]
            line += ["-device", f"virtio-blk-pci,drive=d{number},serial={serial}"]
        if login and not before:
            line += ["-fw_cfg", f"name=opt/cocoon/login,file={login}"]
        env = {**os.environ, TOKEN[0]: TOKEN[1]}
        self.process = subprocess.Popen(
            [*kit.netns.enter(), *line], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env
        )

    def wait_line(self, text: str, timeout: float = BOOT) -> float:
        """Wait for a line on the console. :returns: seconds that it took."""
        began = time.monotonic()
        while text not in self.text():
            if self.process.poll() is not None and text not in self.text():
                assert self.process.stderr is not None
                raise AssertionError(f"QEMU ended: {self.process.stderr.read().decode()}\n{self.text()[-2000:]}")
            assert time.monotonic() - began < timeout, f"no {text!r} after {timeout} s:\n{self.text()[-2000:]}"
            time.sleep(0.05)
        return time.monotonic() - began

    def text(self) -> str:
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def qmp(self, execute: str, **arguments: object) -> None:
        """One command of QEMU's monitor; raises if it is refused."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(str(self.qmp_path))
            stream = sock.makefile("rw")
            stream.readline()
            for document in ({"execute": "qmp_capabilities"}, {"execute": execute, "arguments": arguments}):
                stream.write(json.dumps(document) + "\n")
                stream.flush()
                while True:
                    reply = json.loads(stream.readline())
                    assert "error" not in reply, reply
                    if "return" in reply:
                        break

    def power_button(self, timeout: float = 180) -> None:
        """Press it; the guest must then end by itself, and leave its root file system clean."""
        self.qmp("system_powerdown")
        assert self.process.wait(timeout) == 0
        header = command("dumpe2fs", "-h", self.kit.cow)
        assert "needs_recovery" not in header and "Filesystem state:         clean" in header


@contextmanager
def booted(kit: Kit, memory: int, login: Path | None = None, cow: bool = True, before: bool = False) -> Iterator[Guest]:
    """A guest that is gone afterwards, whatever happens.

    :param before: it has its login data before its initramfs, as where there is no device for it.
    """
    guest = Guest(kit, memory, login, cow, before)
    try:
        yield guest
    finally:
        if guest.process.poll() is None:
            guest.process.kill()
        guest.process.wait()


@pytest.fixture(scope="module", name="link")
def fixture_link(make_netns: Callable[[], Netns]) -> Netns:
    """A namespace with a TAP that has the gateway's address."""
    netns = make_netns()
    netns.run("ip", "tuntap", "add", "guest0", "mode", "tap", "vnet_hdr")
    netns.run("ip", "addr", "add", f"{GATEWAY}/24", "dev", "guest0")
    netns.run("ip", "link", "set", "guest0", "up")
    return netns


def unpack(image: Path, scratch: Path, netns: Netns) -> Kit:
    """Make a kit of an image's tar."""
    folder = scratch / image.stem
    tree = folder / "tree"
    tree.mkdir(parents=True)
    command("tar", "-xf", image, "-C", tree, "--numeric-owner", timeout=300)
    command("mkfs.erofs", "-zlz4", "-T0", folder / "layer.erofs", tree, timeout=600)
    for pattern, name in (("vmlinuz-*", "vmlinuz"), ("initrd.img-*", "initrd.img")):
        (source,) = (tree / "boot").glob(pattern)
        shutil.copy(source, folder / name)
    shutil.rmtree(tree)
    key = folder / "key"
    command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    return Kit(folder, netns, key)


@pytest.fixture(scope="module", name="tiny")
def fixture_tiny(tiny_image: Path, scratch: Path, link: Netns) -> Kit:
    return unpack(tiny_image, scratch, link)


@pytest.fixture(scope="module", name="debian")
def fixture_debian(debian_image: Path, scratch: Path, link: Netns) -> Kit:
    return unpack(debian_image, scratch, link)


def members(image: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(image) as archive:
        return {member.name.removeprefix("./"): member for member in archive}


def text_of(image: Path, name: str) -> str:
    with tarfile.open(image) as archive:
        for member in archive:
            if member.name.removeprefix("./") == name:
                stream = archive.extractfile(member)
                assert stream is not None
                return stream.read().decode()
    raise AssertionError(f"{image} holds no {name}")


@pytest.mark.parametrize("flavour", ["tiny_image", "debian_image"])
def test_an_image_holds_what_it_needs_and_no_secret(flavour: str, request: pytest.FixtureRequest) -> None:
    image: Path = request.getfixturevalue(flavour)
    names = members(image)
    for stem in ("boot/vmlinuz-", "boot/initrd.img-"):
        assert len([name for name in names if name.startswith(stem)]) == 1
    marker = json.loads(text_of(image, "usr/lib/cocoon-microvm/image.json"))
    assert marker == {"version": 1, "features": FEATURES}
    assert not [name for name in names if "host_key" in name or name.endswith("authorized_keys")]
    assert "etc/machine-id" not in names or names["etc/machine-id"].size == 0
    for line in text_of(image, "etc/shadow").splitlines():
        assert line.split(":")[1][0] in "*!", f"an account that is not locked: {line.split(':')[0]}"
    assert names["etc/shadow"].mode & 0o027 == 0
    if "etc/hostname" in names:
        assert text_of(image, "etc/hostname") == "cocoon\n"


def test_a_tiny_guest_lives(tiny: Kit, scratch: Path) -> None:
    """One boot: network, login, a play, data disk, hot plug, growth, services, power button."""
    keys = [tiny.public_key(), f'{tiny.public_key()} a "comment" with ü']
    with booted(tiny, 96, tiny.login(user="root", password=None, ssh_keys=keys)) as guest:
        guest.wait_line("cocoon: ready guest")
        tiny.netns.run("ping", "-c", "1", "-W", "30", ADDRESS)
        assert tiny.ssh("hostname; cat /proc/sys/kernel/hostname") == "guest\nguest\n"
        assert tiny.ssh("cat /etc/resolv.conf") == f"nameserver {GATEWAY}\nnameserver 9.9.9.9\n"
        assert f"default via {GATEWAY}" in tiny.ssh("ip route")
        assert tiny.ssh("grep ^root: /etc/shadow").startswith("root:*:")
        assert len(tiny.ssh("cat /root/.ssh/authorized_keys").splitlines()) == 2
        assert "/dev/vdc /mnt/data1 ext4" in tiny.ssh("cat /proc/mounts")
        assert tiny.netns.run("curl", "-s", f"http://{ADDRESS}/") == "guest\n"

        # A play, too: there is no Python, so by the module raw.
        login_vars = {
            "ansible_host": ADDRESS,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(tiny.key),
        }
        play = {"hosts": "guest", "gather_facts": False, "tasks": [{"name": "Ask", "ansible.builtin.raw": "hostname"}]}
        run = Playbooks(tiny.netns, scratch, {})([play], {"all": {"hosts": {"guest": login_vars}}})
        assert run.result("Ask")["stdout"].strip() == "guest"

        hot = tiny.folder / "hot.raw"
        make_ext4(hot, 32 << 20)
        file = {"driver": "file", "filename": str(hot)}
        guest.qmp("blockdev-add", driver="raw", file=file, **{"node-name": "hot"})
        guest.qmp("device_add", driver="virtio-blk-pci", drive="hot", id="hot", serial="late", bus="spare0")
        until(lambda: "/mnt/late ext4" in tiny.ssh("cat /proc/mounts"))
        guest.qmp("block_resize", device="d1", size=2 << 30)
        until(lambda: blocks(tiny, "/run/cocoon/cow") > 1900 * 1024)

        tiny.ssh("echo kept > /root/note; echo kept > /mnt/data1/note")
        guest.power_button()
    assert "cocoon: ready guest" in guest.text()


def until(condition: Callable[[], bool], timeout: float = 60) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout
        time.sleep(0.2)


def blocks(kit: Kit, directory: str) -> int:
    """Size of a mounted file system, in KiB."""
    return int(kit.ssh(f"df -k {directory} | tail -1").split()[1])


def test_a_second_boot_keeps_what_the_first_made(tiny: Kit) -> None:
    tiny.fresh()
    with booted(tiny, 128, tiny.login(user="root", password=None, ssh_keys=[tiny.public_key()])) as guest:
        guest.wait_line("cocoon: ready")
        before = tiny.ssh("echo kept > /mnt/data1/note; md5sum /etc/dropbear/*_host_key")
        guest.power_button()
    # Login data is for the first boot: other data later changes nothing.
    with booted(tiny, 128, tiny.login(user="intruder", password=None, ssh_keys=[])) as guest:
        guest.wait_line("cocoon: ready")
        assert tiny.ssh("md5sum /etc/dropbear/*_host_key") == before
        assert tiny.ssh("cat /mnt/data1/note; grep -c intruder /etc/passwd || true") == "kept\n0\n"
        tiny.ssh("poweroff", check=False)
        assert guest.process.wait(180) == 0


def test_a_user_with_a_password(tiny: Kit) -> None:
    tiny.fresh()
    login = tiny.login(user="alice", password=HASH, ssh_keys=[tiny.public_key()])
    with booted(tiny, 128, login, before=True) as guest:
        guest.wait_line("cocoon: ready")
        assert tiny.ssh("id -un; pwd", user="alice") == "alice\n/home/alice\n"
        assert tiny.ssh("cat /etc/shadow", user="alice", check=False) == ""
        assert "Permission denied" in ssh_error(tiny, "root")
        guest.power_button()
    assert f"alice:{HASH}:" in command("debugfs", "-R", "cat /upper/etc/shadow", tiny.cow)
    assert HASH not in guest.text()


def ssh_error(kit: Kit, user: str) -> str:
    try:
        kit.ssh("true", user=user)
    except AssertionError as error:
        return str(error)
    return ""


def test_a_boot_that_cannot_work_says_why(tiny: Kit) -> None:
    with booted(tiny, 128, cow=False) as guest:
        guest.wait_line("cocoon: boot failed: no disk cocoon-cow")
        assert guest.process.wait(120) == 0  # and gives its memory back


# Of a machine with a vsock, which this one is not: what listens there passes on what it hears, as is done here.
ASK_AGENT = """
import socket
with socket.socket(socket.AF_UNIX) as line:
    line.settimeout(60)
    line.connect("/run/cocoon-agent.sock")
    line.sendall(b'\\xff{"execute": "guest-sync-delimited", "arguments": {"id": 7}}\\n')
    said = b""
    while not said.endswith(b'\\xff{"return": 7}\\n'):
        said += line.recv(1000) or exit(said)
"""


def test_a_play_runs_in_a_debian_guest(debian: Kit, scratch: Path) -> None:
    """Over ssh, as an ordinary user who may become root."""
    login = debian.login(user="ops", password=None, ssh_keys=[debian.public_key()])
    guest_vars = {
        "ansible_host": ADDRESS,
        "ansible_user": "ops",
        "ansible_become": True,
        "ansible_ssh_private_key_file": str(debian.key),
    }
    tasks = [
        {"name": "Ping", "ansible.builtin.ping": None},
        {"name": "Who", "ansible.builtin.command": "id -un", "changed_when": False},
        {"name": "Socket", "ansible.builtin.service": {"name": "cocoon-agent.socket", "state": "started"}},
        {"name": "Agent", "ansible.builtin.command": {"cmd": "python3 -", "stdin": ASK_AGENT}},
        {"name": "Failed units", "ansible.builtin.command": "systemctl --failed --no-legend", "changed_when": False},
    ]
    with booted(debian, 512, login, before=True) as guest:
        guest.wait_line("cocoon: ready guest")
        play = [{"hosts": "guest", "gather_facts": False, "tasks": tasks}]
        variables = {"ansible_python_interpreter": "/usr/bin/python3"}
        inventory = {"all": {"hosts": {"guest": guest_vars}}}
        run = Playbooks(debian.netns, scratch, variables)(play, inventory, run_timeout=600)
        assert run.result("Ping")["ping"] == "pong"
        assert run.result("Who")["stdout"] == "root"
        assert run.result("Failed units")["stdout"] == ""
        state = debian.ssh("hostname; cat /etc/resolv.conf /proc/mounts /etc/machine-id", user="ops")
        assert state.startswith(f"guest\nnameserver {GATEWAY}\nnameserver 9.9.9.9\n")
        assert "/dev/vdc /mnt/data1 ext4" in state
        assert len(state.splitlines()[-1]) == 32
        guest.power_button()


def test_building_again_changes_nothing_and_gives_the_same_bytes(
    tiny_image: Path, scratch: Path, make_netns: Callable[[], Netns]
) -> None:
    """Without a network, from the packages that are there."""
    target = scratch / "again.tar"
    playbooks = Playbooks(make_netns(), scratch, {})
    book = COLLECTION / "tests" / "integration" / "support" / "build_image.yml"
    variables = {"flavour": "tiny", "target": str(target), "cache": str(images.CACHE)}

    def build() -> int:
        return playbooks(book, variables=variables, run_timeout=300).total("changed")

    assert build()
    first = target.read_bytes()
    assert first == tiny_image.read_bytes()
    assert not build()
    target.unlink()
    assert build()
    assert target.read_bytes() == first
