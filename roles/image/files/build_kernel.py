# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the kernel and the initramfs that images without a kernel boot with: one tar with both."""

from __future__ import annotations

import json
from pathlib import Path

from pieces import Packages, Tree, add_busybox, add_modules, add_perl_library, add_program, build, write_cpio

# Loaded in this order, with what they depend on; a kernel may lack those with a "?".
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
# Perl runs the command (container/supervise), hears the host (common/agent, vsock), sets a clone's clock (identity).
PROGRAMS = ["usr/bin/perl", "usr/sbin/resize2fs"]
GUEST_FILES = {
    "container/init": ("init", 0o755),
    "container/supervise": ("usr/lib/cocoon-microvm/supervise", 0o755),
    "container/power": ("usr/lib/cocoon-microvm/acpi/PWRF/00000080", 0o755),
    "container/shutdown": ("usr/lib/cocoon-microvm/shutdown", 0o755),
    "common/agent": ("usr/lib/cocoon-microvm/agent", 0o644),
    "common/overlay": ("usr/lib/cocoon-microvm/overlay", 0o644),
    "common/disks": ("usr/lib/cocoon-microvm/disks", 0o644),
    "common/identity": ("usr/lib/cocoon-microvm/identity", 0o644),
    "common/nic": ("usr/lib/cocoon-microvm/nic", 0o644),
    "common/vsock": ("usr/lib/cocoon-microvm/vsock", 0o644),
    "tiny/functions": ("usr/lib/cocoon-microvm/functions", 0o644),
    "tiny/hotplug": ("usr/lib/cocoon-microvm/hotplug", 0o755),
    "tiny/dhcp": ("usr/lib/cocoon-microvm/dhcp", 0o755),
    "tiny/clone": ("usr/lib/cocoon-microvm/clone", 0o644),
}
# First lines that files of a collection must not have.
INTERPRETERS = {"container/supervise": b"#!/usr/bin/perl\n", "container/shutdown": b"#!/bin/busybox sh\n"}
DIRECTORIES = ("dev", "etc", "mnt", "proc", "root", "run", "srv/www", "sys", "tmp", "usr/bin")
LINKS = {"bin": "usr/bin", "sbin": "usr/bin", "lib64": "usr/lib64", "usr/sbin": "bin"}


def build_initramfs(packages: Packages, version: str, guest: Path) -> bytes:
    tree = Tree()
    for directory in DIRECTORIES:
        tree.directory(directory)
    for path, target in LINKS.items():
        tree.link(path, target)
    for program in PROGRAMS:
        add_program(tree, packages, program)
    add_busybox(tree, packages, "usr/bin")
    add_perl_library(tree, packages)
    for name, (path, mode) in GUEST_FILES.items():
        tree.file(path, INTERPRETERS.get(name, b"") + (guest / name).read_bytes(), mode)
    add_modules(tree, packages, version, MODULES)
    return write_cpio(tree)


def build_boot(packages: Packages, version: str, guest: Path) -> Tree:
    tree = Tree()
    tree.file(f"boot/vmlinuz-{version}", packages.get(f"boot/vmlinuz-{version}"))
    tree.file(f"boot/initrd.img-{version}", build_initramfs(packages, version, guest))
    # What is said here of an image is of those that boot with this one.
    marker = json.dumps({"version": 1, "features": ["nics", "data"]}) + "\n"
    tree.file("usr/lib/cocoon-microvm/image.json", marker.encode())
    return tree


if __name__ == "__main__":
    build(__doc__, build_boot)
