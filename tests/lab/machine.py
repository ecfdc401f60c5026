# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab: a Debian 13 machine that has KVM, on any computer.

QEMU's TCG emulates AMD's virtualisation with nested paging, so its guest is a real KVM host, and a fresh target
machine. QEMU is Debian 13's, in a tree of its own; the machine is another tree, on a disk that is thrown away.

``machine.py up`` leaves one running to be looked at: it says how to get in. ``machine.py down`` ends it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PACKAGES = {
    "qemu": ["qemu-system-x86", "qemu-utils"],
    "host": [
        *("udev", "kmod", "openssh-server", "linux-image-amd64", "initramfs-tools", "zstd"),
        *("python3", "python3-pyroute2", "python3-jsonschema", "python3-requests-unixsocket"),
        *("iproute2", "iputils-ping", "nftables", "dnsmasq-base", "e2fsprogs", "erofs-utils", "util-linux", "procps"),
        *("qemu-utils", "qemu-system-x86", "strace", "curl", "socat", "jq"),
    ],
}
MEMORY_MIB = 6144
DISK = "8G"
# 45 where it has two processors for itself.
BOOT_SECONDS = 600
# Its process 1. systemd takes minutes where this machine is busy, and then gives up what took too long. What we do with
# systemd is tried elsewhere.
INIT = """#!/usr/bin/python3 -IS
import os
import subprocess


def run(line):
    subprocess.run(line.split(), check=False)


os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
for kind, place in (("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run"), ("tmpfs", "/tmp")):
    run(f"mount -t {kind} {kind} {place}")
run("mount -t devtmpfs devtmpfs /dev")
for kind, place in (("devpts", "/dev/pts"), ("tmpfs", "/dev/shm"), ("cgroup2", "/sys/fs/cgroup")):
    os.makedirs(place, exist_ok=True)
    run(f"mount -t {kind} {kind} {place}")
os.makedirs("/run/sshd")
run("modprobe -a kvm_amd tun virtio_net virtio_rng bridge nf_tables")
run("chgrp kvm /dev/kvm")
run("chmod 0660 /dev/kvm")
run("ip link set lo up")
run("hostname lab")
for name in os.listdir("/sys/class/net"):
    if os.path.exists(f"/sys/class/net/{name}/device"):
        run(f"ip addr add 10.0.2.15/24 dev {name}")
        run(f"ip link set {name} up")
subprocess.Popen(["/usr/sbin/sshd", "-D"])
while True:
    os.wait()
"""
SSH = (
    *("-oBatchMode=yes", "-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", "-oLogLevel=ERROR"),
    *("-oConnectTimeout=20", "-oControlMaster=auto", "-oControlPersist=600"),
)


class LabError(Exception):
    """Why there is no lab."""


def run(*words: str | Path, timeout: float = 900, stdin: bytes | None = None) -> str:
    """:raises LabError: the command failed. :returns: its standard output."""
    try:
        done = subprocess.run(
            [str(word) for word in words],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise LabError(f"{words[0]}: {exc}") from exc
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise LabError(f"{' '.join(map(str, words))[:200]} returned {done.returncode}: {said[-2000:]}")
    return done.stdout.decode(errors="replace")


def mirror() -> str:
    """Where this machine has Debian's packages from."""
    for line in run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").splitlines():
        if "security" not in line:
            return line.strip()
    raise LabError("apt knows no archive of Debian")


def tree(folder: Path, name: str, end: float) -> Path:
    """A Debian 13 with the packages of *name*, made once."""
    target = folder / name
    if not target.is_dir():
        new = folder / f"{name}.new"
        shutil.rmtree(new, ignore_errors=True)
        options = ["--quiet", "--variant=apt", '--aptopt=APT::Install-Recommends "false"']
        words = ["mmdebstrap", *options, f"--include={','.join(PACKAGES[name])}", "trixie", new, mirror()]
        # It takes down what it has mounted, if it is asked to end.
        run("timeout", "--kill-after=30", f"{max(1, min(1200, end - time.monotonic())):.0f}", *words, timeout=1300)
        new.rename(target)
    return target


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def key(folder: Path) -> Path:
    """The private key that opens the machine."""
    path = folder / "key"
    if not path.exists():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path)
    return path


def furnish(host: Path, public: str) -> None:
    """The few settings that make the tree a machine on this network."""
    write(host / "etc/hostname", "lab\n")
    write(host / "etc/hosts", "127.0.0.1 localhost lab\n")
    write(host / "etc/ssh/sshd_config.d/lab.conf", "UseDNS no\nPermitRootLogin prohibit-password\nMaxSessions 64\n")
    write(host / "usr/sbin/lab-init", INIT, 0o755)
    write(host / "root/.ssh/authorized_keys", public, 0o600)
    (host / "root/.ssh").chmod(0o700)
    initramfs(host)


def initramfs(host: Path) -> None:
    """Have the tree's initramfs know its disk and no other: the ordinary one takes a minute on an emulated CPU."""
    write(host / "etc/initramfs-tools/conf.d/lab", "MODULES=list\nCOMPRESS=gzip\n")
    write(host / "etc/initramfs-tools/modules", "virtio_pci\nvirtio_blk\next4\n")
    for udev in (host / "usr/share/initramfs-tools").glob("**/udev"):
        udev.unlink()
    run("chroot", host, "update-initramfs", "-u")


def build(folder: Path, end: float) -> Path:
    """The tree of QEMU, with the machine's disk, kernel and initramfs in its folder /lab.

    :param end: the time (monotonic) at which it is given up.
    :raises LabError: it cannot be made here.
    """
    if os.getuid():
        raise LabError("the lab needs root, for trees of Debian")
    folder.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        qemu, host = pool.map(lambda name: tree(folder, name, end), ("qemu", "host"))
    inside = qemu / "lab"
    disk = inside / "host.img"
    if not disk.exists():
        inside.mkdir(exist_ok=True)
        private = key(folder)
        furnish(host, private.with_suffix(".pub").read_text(encoding="utf-8"))
        for name in ("vmlinuz", "initrd.img"):
            shutil.copyfile(max((host / "boot").glob(f"{name}-*")), inside / name)
        new = inside / "host.img.new"
        new.unlink(missing_ok=True)
        run("mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-d", host, new, DISK)
        new.rename(disk)
    return qemu


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Lab:
    """A running machine, which answers to ssh on loopback."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.key = key(folder)

    def options(self) -> list[str]:
        """Of ssh, the host aside."""
        return [*SSH, f"-oControlPath={self.folder}/ssh-%p", "-i", str(self.key), "-p", str(self.port)]

    def ssh(self, command: str, timeout: float = 120, stdin: bytes | None = None) -> str:
        """Run a line of shell there. :returns: its standard output."""
        return run("ssh", *self.options(), "root@127.0.0.1", command, timeout=timeout, stdin=stdin)

    def copy(self, source: Path, target: str) -> None:
        """Copy a file there, executable if it is; not again what is there."""
        with contextlib.suppress(LabError):
            if self.ssh(f"sha256sum {target}").split()[:1] == run("sha256sum", source).split()[:1]:
                return
        mode = oct(source.stat().st_mode & 0o777)[2:]
        words = ["ssh", *self.options(), "root@127.0.0.1", f"cat > {target} && chmod {mode} {target}"]
        with source.open("rb") as stream:
            done = subprocess.run(words, stdin=stream, check=False, timeout=600)
        if done.returncode:
            raise LabError(f"{source} could not be copied into the lab")

    def await_ssh(self, process: subprocess.Popen[bytes], end: float) -> None:
        """:raises LabError: it does not come up."""
        deadline = min(time.monotonic() + BOOT_SECONDS, end)
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise LabError(f"QEMU ended: see {self.folder}/qemu.log")
            with contextlib.suppress(LabError):
                self.ssh("true", timeout=30)
                return
            time.sleep(2)
        raise LabError(f"the lab did not answer to ssh in time: see {self.folder}/qemu/lab/console.log")


def command_line(root: Path, port: int) -> list[str]:
    """QEMU in its tree: two vCPUs with nested SVM, and a network that leads to this machine's loopback alone."""
    return [
        *("nice", "-n", "2", "chroot", str(root), "/usr/bin/qemu-system-x86_64"),
        *("-name", "cocoon-lab", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "EPYC,+svm,+npt"),
        *("-smp", "2", "-m", str(MEMORY_MIB)),
        *("-kernel", "/lab/vmlinuz", "-initrd", "/lab/initrd.img"),
        *("-append", "root=/dev/vda rw console=ttyS0 no_timer_check mitigations=off init=/usr/sbin/lab-init"),
        *("-drive", "file=/lab/host.img,format=raw,if=virtio,cache=unsafe,snapshot=on"),
        *("-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"),
        *("-device", "virtio-net-pci,netdev=net", "-device", "virtio-rng-pci"),
        *("-serial", "file:/lab/console.log"),
    ]


def start(folder: Path, end: float = math.inf) -> tuple[Lab, subprocess.Popen[bytes]]:
    """:raises LabError: it cannot be made, or does not come up, or not before *end* (monotonic)."""
    root = build(folder, end)
    lab = Lab(folder, free_port())
    with (folder / "qemu.log").open("wb") as log:
        process = subprocess.Popen(
            command_line(root, lab.port), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        lab.await_ssh(process, end)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return lab, process


@contextlib.contextmanager
def running(folder: Path, end: float = math.inf) -> Iterator[Lab]:
    """A lab for as long as it lasts.

    :raises LabError: there is none before *end* (monotonic).
    """
    lab, process = start(folder, end)
    try:
        yield lab
    finally:
        process.kill()
        process.wait()


def main(words: Sequence[str]) -> int:
    """:returns: the exit status."""
    folder = Path(os.environ.get("COCOON_LAB_DIR") or Path(__file__).parents[2] / ".work" / "lab")
    state = folder / "running"
    if words == ["up"]:
        lab, process = start(folder)
        state.write_text(f"{process.pid} {lab.port}\n", encoding="utf-8")
        print("ssh", *lab.options(), "root@127.0.0.1")
        return 0
    if words == ["down"] and state.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(state.read_text(encoding="utf-8").split()[0]), signal.SIGKILL)
        state.unlink()
        return 0
    print("usage: machine.py up|down", file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LabError as error:
        sys.exit(f"error: {error}")
