# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cloud image as distributions publish them: a disk that boots by UEFI only, and a Debian that asks cloud-init.

Made from the packages that `make setup` fetched, without a network, loop devices or anything mounted: mmdebstrap makes
the tree, mkfs.ext4 takes it, mtools fills the EFI system partition, sfdisk describes both.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ansible_collections.cocoon.microvm.tests.integration.support.machine import (
    COLLECTION,
    WORK,
    command,
    one_at_a_time,
)

CACHE = WORK / "image-packages"
FILES = COLLECTION / "roles" / "image" / "files"
MIB = 1 << 20
ESP_START, ESP_SIZE = 1 * MIB, 96 * MIB
ROOT_SIZE = 1024 * MIB
# The second partition table takes the last 33 sectors.
TAIL = 1 * MIB
ESP, LINUX = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
BOOT_LOADER = "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
# There is no package of locales.
CLOUD_CONFIG = "locale: false\n"
# What a guest is made of; the manifest has more, as it is that of the role's flavour with these on top.
PACKAGES = (
    *("cloud-guest-utils", "cloud-init", "dbus", "e2fsprogs", "fdisk", "initramfs-tools", "iproute2", "kmod"),
    *(
        "openssh-server",
        "python3",
        "python3-apt",
        "qemu-guest-agent",
        "sudo",
        "systemd",
        "systemd-boot-efi",
        "systemd-sysv",
        "udev",
        "usr-is-merged",
    ),
)


def manifest() -> tuple[str, dict]:
    """The name and the content of the list of packages.

    :raises AssertionError: it was never fetched.
    """
    found = sorted(CACHE.glob("cloud.*.json"), key=os.path.getmtime)
    assert found, "the packages of the cloud image are missing: run make setup"
    return found[-1].name, json.loads(found[-1].read_text(encoding="utf-8"))


def built(scratch: Path) -> Path:
    """The qcow2 file, built if there is none of this recipe and these packages.

    :param scratch: a folder for temporary files.
    """
    name, packages = manifest()
    recipe = hashlib.sha256(Path(__file__).read_bytes() + name.encode() + json.dumps(packages).encode())
    target = WORK / "images" / f"cloud-{recipe.hexdigest()[:16]}.qcow2"
    with one_at_a_time(target) as missing:
        if missing:
            with tempfile.TemporaryDirectory(prefix="cloud-", dir=scratch) as folder:
                result = build(Path(folder), packages)
                shutil.move(result, target.with_suffix(".new"))
            target.with_suffix(".new").replace(target)
    for old in target.parent.glob("cloud-*.qcow2"):
        if old != target:
            old.unlink()
    return target


def build(folder: Path, packages: Mapping) -> Path:
    """A compressed qcow2 file in *folder*."""
    folder.chmod(0o755)
    tree = folder / "tree"
    debootstrap(folder, packages, tree)
    esp, root, disk = folder / "esp", folder / "root", folder / "disk.raw"
    fill_esp(tree, esp)
    command("mkfs.ext4", "-q", "-F", "-L", "root", "-d", tree, root, f"{ROOT_SIZE >> 10}k", timeout=300)
    root_start = ESP_START + ESP_SIZE
    with disk.open("wb") as stream:
        stream.truncate(root_start + ROOT_SIZE + TAIL)
    table = (
        f"label: gpt\nstart={ESP_START // 512}, size={ESP_SIZE // 512}, type={ESP}\n"
        f"start={root_start // 512}, size={ROOT_SIZE // 512}, type={LINUX}\n"
    )
    subprocess.run(["sfdisk", "-q", disk], input=table, text=True, check=True, capture_output=True)
    for source, offset in ((esp, ESP_START), (root, root_start)):
        words = ["dd", f"if={source}", f"of={disk}", "bs=1M", f"seek={offset // MIB}", "conv=notrunc,sparse"]
        command(*words, timeout=300)
    result = folder / "cloud.qcow2"
    command("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", disk, result, timeout=300)
    return result


def debootstrap(folder: Path, packages: Mapping, tree: Path) -> None:
    """A tree of Debian packages, nothing started and nobody able to log in."""
    sys.path.insert(0, str(FILES))
    try:
        import build_debian
        from packages import verified
    finally:
        sys.path.remove(str(FILES))
    repository = folder / "repository"
    repository.mkdir()
    debs = verified(CACHE, dict(packages))
    build_debian.make_repository(debs, repository)
    kernel = [name for name in packages["install"] if name.startswith("linux-image-")]
    hook = folder / "customize"
    hook.write_text(CUSTOMIZE, encoding="utf-8")
    words = [
        *("mmdebstrap", "--quiet", "--mode=root", "--variant=apt", "--format=directory"),
        f"--architectures={packages['arch']}",
        f"--include={','.join([*PACKAGES, *kernel])}",
        '--aptopt=APT::Install-Recommends "false"',
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt={option}" for option in build_debian.DPKG_OPTIONS if "initramfs" not in option),
        *build_debian.merged_usr_hook(debs),
        f'--customize-hook=sh {hook} "$1"',
        *(packages["spec"]["suite"], str(tree), f"deb [trusted=yes] copy:{repository} ./"),
    ]
    env = {**os.environ, "TMPDIR": str(folder), "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(words, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert not done.returncode, f"mmdebstrap failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"


CUSTOMIZE = f"""set -eu
root=$1
printf 'LABEL=root / ext4 rw 0 1\\n' > "$root/etc/fstab"
printf '%s' '{CLOUD_CONFIG}' > "$root/etc/cloud/cloud.cfg.d/90-tests.cfg"
chroot "$root" systemctl enable --quiet systemd-networkd.service
chroot "$root" systemctl mask --quiet systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer \\
    e2scrub_all.timer fstrim.timer
: > "$root/etc/machine-id"
rm -f "$root/etc/hostname" "$root"/etc/ssh/ssh_host_* "$root/var/lib/dbus/machine-id"
rm -f "$root"/etc/apt/sources.list.d/*
sed -i 's/^root:[^:]*:/root:*:/' "$root/etc/shadow"
"""


def fill_esp(tree: Path, esp: Path) -> None:
    """The EFI system partition: systemd-boot where firmware looks first, the kernel and the initrd."""
    kernel = next((tree / "boot").glob("vmlinuz-*"))
    initrd = next((tree / "boot").glob("initrd.img-*"))
    entry = esp.with_name("entry.conf")
    entry.write_text(
        "title Debian\nlinux /vmlinuz\ninitrd /initrd.img\noptions root=LABEL=root ro console=ttyS0 net.ifnames=0\n",
        encoding="utf-8",
    )
    loader = esp.with_name("loader.conf")
    loader.write_text("timeout 0\n", encoding="utf-8")
    command("mformat", "-i", esp, "-C", "-T", str(ESP_SIZE // 512), "-v", "ESP", "::")
    command("mmd", "-i", esp, "::/EFI", "::/EFI/BOOT", "::/loader", "::/loader/entries")
    for source, target in (
        (tree / BOOT_LOADER, "EFI/BOOT/BOOTX64.EFI"),
        (kernel, "vmlinuz"),
        (initrd, "initrd.img"),
        (loader, "loader/loader.conf"),
        (entry, "loader/entries/debian.conf"),
    ):
        command("mcopy", "-i", esp, source, f"::/{target}")
