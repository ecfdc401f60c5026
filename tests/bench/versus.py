# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""4. The same work by community.libvirt.virt: same guests, same network namespace, QEMU without KVM on both sides.

libvirtd runs without an init system, in mounts of its own over its system folders, so that nothing of the machine's own
libvirt is touched and nothing is left.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from common import WORK, ToolError, environment, run, say
from fleet import BenchError, Fleet, seconds
from results import Row

# The daemon and its QEMU driver alone: without the parts that make it a service of the machine.
PACKAGES = ["libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients", "python3-libvirt", "python3-lxml"]
SYSTEM_PYTHON = "/usr/bin/python3"
FOLDERS = {"etc": "/etc/libvirt", "lib": "/var/lib/libvirt", "log": "/var/log/libvirt", "cache": "/var/cache/libvirt"}
QEMU_CONF = """
cgroup_controllers = []
dynamic_ownership = 0
group = "root"
namespaces = []
remember_owner = 0
security_driver = "none"
stdio_handler = "file"
user = "root"
"""
DOMAIN = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='b'>{memory}</memory>
  <vcpu>{cpu}</vcpu>
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>{emulator}</emulator>
{disks}
    <interface type='bridge'>
      <mac address='{mac}'/>
      <source bridge='{bridge}'/>
      <model type='virtio'/>
    </interface>
    <serial type='file'><source path='{console}'/></serial>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='none'/>
  </devices>
</domain>
"""
DISK = """    <disk type='file' device='disk'>
      <driver name='qemu' type='{format}'/>
      <source file='{path}'/>
      <target dev='vd{letter}' bus='virtio'/>
      {mode}
      <serial>{serial}</serial>
    </disk>"""


def packages(names: Sequence[str]) -> None:
    """Install those packages of the distribution that are missing."""
    state = "${db:Status-Status}"
    missing = [
        name
        for name in names
        if run(["dpkg-query", "-W", "-f", state, name], check=False, quiet=True).stdout != "installed"
    ]
    if missing:
        say(f"   installing {', '.join(missing)} ...")
        env = environment({"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"})
        options = ["-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0", "-qq"]
        run(["apt-get", *options, "update"], env=env)
        run(["apt-get", *options, "install", "-y", "--no-install-recommends", *missing], env=env, quiet=True)


def install() -> Path:
    """libvirt from the distribution, and its collection from the registry of Python packages.

    :returns: a collections path that holds community.libvirt.
    """
    packages(PACKAGES)
    folder = WORK / "libvirt"
    if not (folder / "ansible_collections" / "community" / "libvirt" / "plugins").is_dir():
        fetch_collection(folder)
    return folder


def fetch_collection(folder: Path) -> None:
    """Take community.libvirt out of the package that bundles it, or else ask the collections' own registry."""
    say("   fetching community.libvirt ...")
    folder.mkdir(parents=True, exist_ok=True)
    wheels = folder / "wheels"
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d"]
    if run([*pip, wheels, "ansible"], check=False).returncode == 0:
        with zipfile.ZipFile(next(wheels.glob("ansible-*.whl"))) as archive:
            prefix = "ansible_collections/community/libvirt/"
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith(prefix)])
        shutil.rmtree(wheels)
        return
    galaxy = Path(sys.executable).parent / "ansible-galaxy"
    run([galaxy, "collection", "install", "community.libvirt", "-p", folder])


class Libvirtd:
    """libvirtd in the fleet's network namespace."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.fleet, self.folder = fleet, folder
        self.socket = folder / "run" / "libvirt-sock"
        self.child: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """What clients connect to."""
        return f"qemu+unix:///system?socket={self.socket}"

    def __enter__(self) -> Libvirtd:
        for name in ("run", "system-run", *FOLDERS):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "etc" / "qemu.conf").write_text(QEMU_CONF, encoding="utf-8")
        config = self.folder / "libvirtd.conf"
        lines = [f'unix_sock_dir = "{self.folder / "run"}"', 'auth_unix_rw = "none"', 'auth_unix_ro = "none"']
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        binds = []
        for name, path in {**FOLDERS, "system-run": "/run/libvirt"}.items():
            binds.append(f"mkdir -p {path} && mount --bind {self.folder / name} {path}")
        binds += self.users()
        script = " && ".join([*binds, f"exec libvirtd --config {config} --pid-file {self.folder / 'libvirtd.pid'}"])
        log = (self.folder / "libvirtd.log").open("wb")
        words = [*self.fleet.netns.enter(), "unshare", "--mount", "sh", "-c", script]
        self.child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 60
        while subprocess.run(["virsh", "-q", "-c", self.uri, "version"], capture_output=True, check=False).returncode:
            if time.monotonic() > deadline or self.child.poll() is not None:
                raise ToolError(f"libvirtd did not start: {(self.folder / 'libvirtd.log').read_text()[-800:]}")
            time.sleep(0.2)
        return self

    def users(self) -> list[str]:
        """Commands that show libvirtd the user that its package for services would have added to the machine."""
        commands = []
        for name, line in (
            ("passwd", "libvirt-qemu:x:64055:64055::/:/bin/false\n"),
            ("group", "libvirt-qemu:x:64055:\n"),
        ):
            real = Path("/etc") / name
            copy = self.folder / name
            text = real.read_text(encoding="utf-8")
            copy.write_text(text if "\nlibvirt-qemu:" in text else text + line, encoding="utf-8")
            commands.append(f"mount --bind {copy} {real}")
        return commands

    def __exit__(self, *exception: object) -> None:
        listed = run(["virsh", "-q", "-c", self.uri, "list", "--name"], check=False, quiet=True).stdout.split()
        for name in listed:
            run(["virsh", "-q", "-c", self.uri, "destroy", name], check=False, quiet=True)
        if self.child:
            self.child.terminate()
            self.child.wait(30)


def domain(record: dict[str, Any], folder: Path) -> tuple[str, str]:
    """One of our VMs as a libvirt domain, with a copy of its disk.

    :returns: its name and its XML.
    """
    config, boot = record["config"], record["boot_config"]
    disks = []
    for index, disk in enumerate(record["storage_configs"]):
        path = disk["path"]
        if not disk.get("ro"):
            path = str(folder / f"{config['name']}-{index}.raw")
            run(["cp", "--sparse=always", disk["path"], path])
        values = {"path": escape(path), "letter": "abcdefgh"[index], "format": disk.get("format") or "raw"}
        mode = "<readonly/>" if disk.get("ro") else ""
        disks.append(DISK.format(**values, mode=mode, serial=escape(disk.get("serial") or f"disk{index}")))
    nic = record["network_configs"][0]
    name = f"bench-{config['name']}"
    return name, DOMAIN.format(
        name=name,
        memory=config["memory"],
        cpu=config["cpu"],
        machine=record["machine"],
        kernel=escape(boot["kernel_path"]),
        initrd=escape(boot["initrd_path"]),
        cmdline=escape(boot["cmdline"]),
        emulator=shutil.which("qemu-system-x86_64") or "",
        disks="\n".join(disks),
        mac=nic["mac"],
        bridge=nic["bridge_dev"],
        console=folder / f"{name}.log",
    )


def libvirt(fleet: Fleet, scratch: Path, runs: int) -> list[Row]:
    """Both sides in turn, so that whatever else the machine does meets both."""
    collections = install()
    folder = scratch / "lv"
    folder.mkdir()
    # Started once: the record then says what they boot with.
    fleet.engine([fleet.vms(fleet.size, state="started"), fleet.named(fleet.size, state="stopped", force=True)])
    records = fleet.module("cocoon_vm_info")["vms"]
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    with Libvirtd(fleet, folder) as daemon:
        domains = dict(domain(record, folder) for record in records)
        fleet.clear()
        for turn in range(runs):
            say(f"   ours, run {turn + 1} of {runs} ...")
            our_turn(fleet, ours)
            say(f"   libvirt's, run {turn + 1} of {runs} ...")
            their_turn(fleet, daemon, domains, collections, theirs)
    rows = []
    for name, values in ours.items():
        ratio = sorted(theirs[name])[len(theirs[name]) // 2] / sorted(values)[len(values) // 2]
        rows.append(Row("4", f"{fleet.size} VMs: {name}", "s", values, "10 x faster", ratio >= 10, other=theirs[name]))
    return rows


def await_guests(consoles: list[Path], limit: float = 300) -> None:
    """The comparison means something only if the same guests come up there, too."""
    deadline = time.monotonic() + limit
    waiting = list(consoles)
    while waiting:
        waiting = [path for path in waiting if b"cocoon: ready" not in path.read_bytes()]
        if waiting and time.monotonic() > deadline:
            raise BenchError(f"libvirt's guests do not come up: see {waiting[0]}")
        time.sleep(0.5)


def our_turn(fleet: Fleet, times: dict[str, list[float]]) -> None:
    """Create and start, nothing to change, stop; each one task, the last two when the guests are up."""
    started = fleet.vms(fleet.size, state="started", wait_for="process")
    for name, items in (
        ("define and start", started),
        ("no change", started),
        ("forced stop", fleet.named(fleet.size, state="stopped", force=True)),
    ):
        run_ = fleet.play([fleet.bulk("vms", items)])
        if bool(run_.total("changed")) is (name == "no change"):
            raise BenchError(f"{name}: changed={run_.total('changed')}")
        times.setdefault(name, []).extend(seconds(run_, "vms"))
        if name == "define and start":
            fleet.await_guests()
    fleet.clear()


def their_turn(
    fleet: Fleet, daemon: Libvirtd, domains: dict[str, str], collections: Path, times: dict[str, list[float]]
) -> None:
    """The same as a loop over community.libvirt.virt, which knows one VM a task."""

    def task(title: str, loop: list[Any], **arguments: str) -> dict[str, Any]:
        module = {"community.libvirt.virt": {"uri": daemon.uri, **arguments}}
        return {"name": title, **module, "loop": loop, "loop_control": {"label": "{{ item.name | default(item) }}"}}

    names = list(domains)
    define = task("define", [{"name": name, "xml": xml} for name, xml in domains.items()], command="define")
    define["community.libvirt.virt"]["xml"] = "{{ item.xml }}"
    start = task("start", names, name="{{ item }}", state="running")
    stop = task("stop", names, name="{{ item }}", state="destroyed")
    undefine = task("undefine", names, name="{{ item }}", command="undefine")
    path = f"{collections}{os.pathsep}{WORK}"
    for name, tasks in (
        ("define and start", [define, start]),
        ("no change", [define, start]),
        ("forced stop", [stop]),
        ("", [undefine]),
    ):
        result = fleet.play(tasks, target=SYSTEM_PYTHON, env={"ANSIBLE_COLLECTIONS_PATH": path})
        if name == "define and start":
            await_guests([daemon.folder / f"{domain_name}.log" for domain_name in names])
        if name:
            spent = sum(value for entry in tasks for value in seconds(result, entry["name"]))
            times.setdefault(name, []).append(spent)
