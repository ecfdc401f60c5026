# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the tiny image from fetched packages: one rootfs tar with kernel and initramfs."""

from __future__ import annotations

import json
from pathlib import Path

from pieces import Packages, Tree, add_busybox, add_modules, add_perl_library, add_program, build, write_cpio

# Loaded by the initramfs, in this order, with what they depend on. A kernel may have one built
# in; those with a "?" it may lack.
MODULES = [
    "virtio_pci",
    "?virtio_mmio",
    "virtio_blk",
    "erofs",
    "overlay",
    "ext4",
    "?crc32c_generic",
    "virtio_net",
    "?virtio_rng",
    "qemu_fw_cfg",
    "evdev",
    "button",
    "?virtio_console",
    "?virtio_balloon",
    "?i6300esb",
    "?vmgenid",
    "?vmw_vsock_virtio_transport",
]
# Perl is there for ioctls and a vsock, and hears the host: see guest/common/identity, vsock and agent.
BINARIES = ["usr/sbin/dropbear", "usr/bin/dropbearkey", "usr/sbin/resize2fs", "usr/bin/perl"]
# Where guest files of this role go, with their modes.
GUEST_FILES = {
    "tiny/rcS": ("etc/init.d/rcS", 0o755),
    "tiny/rcK": ("etc/init.d/rcK", 0o755),
    "tiny/inittab": ("etc/inittab", 0o644),
    "tiny/functions": ("usr/lib/cocoon-microvm/functions", 0o644),
    "common/disks": ("usr/lib/cocoon-microvm/disks", 0o644),
    "tiny/hotplug": ("usr/lib/cocoon-microvm/hotplug", 0o755),
    "common/login": ("usr/lib/cocoon-microvm/login", 0o755),
    "common/login.awk": ("usr/lib/cocoon-microvm/login.awk", 0o644),
    "tiny/dhcp": ("usr/lib/cocoon-microvm/dhcp", 0o755),
    "common/agent": ("usr/lib/cocoon-microvm/agent", 0o644),
    "common/identity": ("usr/lib/cocoon-microvm/identity", 0o644),
    "common/nic": ("usr/lib/cocoon-microvm/nic", 0o644),
    "common/vsock": ("usr/lib/cocoon-microvm/vsock", 0o644),
    "tiny/clone": ("usr/lib/cocoon-microvm/clone", 0o644),
}
TEXTS = {
    "etc/passwd": (0o644, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"),
    "etc/group": (0o644, "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    "etc/shadow": (0o600, "root:*:20000:0:99999:7:::\nnobody:*:20000:0:99999:7:::\n"),
    "etc/shells": (0o644, "/bin/sh\n/bin/ash\n"),
    "etc/nsswitch.conf": (0o644, "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"),
    "etc/acpi/PWRF/00000080": (0o755, "#!/bin/sh\nexec /etc/init.d/rcK now\n"),
    "usr/lib/cocoon-microvm/image.json": (
        0o644,
        json.dumps({"version": 1, "features": ["user", "password", "ssh_keys", "relogin", "nics", "data"]}) + "\n",
    ),
}
DIRECTORIES = {
    "boot": 0o755,
    "dev": 0o755,
    "proc": 0o555,
    "sys": 0o555,
    "run": 0o755,
    "tmp": 0o1777,
    "root": 0o700,
    "home": 0o755,
    "mnt": 0o755,
    "srv/www": 0o755,
    "etc/dropbear": 0o700,
    "var/lib/cocoon-microvm": 0o755,
    "var/log": 0o755,
    "usr/bin": 0o755,
    "usr/lib": 0o755,
}
LINKS = {
    "bin": "usr/bin",
    "sbin": "usr/bin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
    "usr/sbin": "bin",
    "var/run": "../run",
    "etc/mtab": "../proc/mounts",
}


def build_initramfs(packages: Packages, version: str, guest: Path) -> bytes:
    tree = Tree()
    for directory in ("dev", "proc", "sys", "run", "root"):
        tree.directory(directory)
    add_busybox(tree, packages, "bin")
    tree.link("usr/bin", "../bin")
    tree.link("sbin", "bin")
    tree.file("init", (guest / "tiny/initramfs-init").read_bytes(), 0o755)
    tree.file("lib/overlay", (guest / "common/overlay").read_bytes())
    add_modules(tree, packages, version, MODULES)
    return write_cpio(tree)


def build_rootfs(packages: Packages, version: str, guest: Path) -> Tree:
    tree = Tree()
    for path, mode in DIRECTORIES.items():
        tree.directory(path, mode)
    for path, target in LINKS.items():
        tree.link(path, target)
    for path in BINARIES:
        add_program(tree, packages, path)
    add_perl_library(tree, packages)
    add_busybox(tree, packages, "usr/bin")
    for name, (path, mode) in GUEST_FILES.items():
        tree.file(path, (guest / name).read_bytes(), mode)
    for path, (mode, text) in TEXTS.items():
        tree.file(path, text.encode(), mode)
    tree.file("etc/os-release", os_release(version))
    tree.file(f"boot/vmlinuz-{version}", packages.get(f"boot/vmlinuz-{version}"), 0o644)
    tree.file(f"boot/initrd.img-{version}", build_initramfs(packages, version, guest), 0o644)
    return tree


def os_release(version: str) -> bytes:
    return f'NAME="Cocoon tiny"\nID=cocoon-tiny\nPRETTY_NAME="Cocoon tiny (Linux {version})"\n'.encode()


if __name__ == "__main__":
    build(__doc__, build_rootfs)
