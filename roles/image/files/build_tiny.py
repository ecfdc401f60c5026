# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the tiny image from fetched packages: one rootfs tar with kernel and initramfs.

Needs no root and no network: packages are read as tar streams (``dpkg-deb --fsys-tarfile``),
never unpacked to disk, and the archives are written file by file. Same packages and same
guest files give the same bytes.
"""
from __future__ import annotations

import io
import json
import lzma
import os
import re
import stat
import struct
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from packages import common_options, read_manifest, verified

# Loaded by the initramfs, in this order, with what they depend on. A kernel may have one built
# in; those with a "?" it may lack.
MODULES = [
    "virtio_pci", "virtio_blk", "erofs", "overlay", "ext4", "?crc32c_generic", "virtio_net", "?virtio_rng",
    "qemu_fw_cfg", "evdev", "button", "?virtio_console", "?virtio_balloon", "?i6300esb", "?vmgenid",
]
BINARIES = ["usr/sbin/dropbear", "usr/bin/dropbearkey", "usr/sbin/resize2fs"]
LOADER_DIRS = ("usr/lib/{triplet}", "usr/lib", "usr/lib64")
TRIPLETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
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
}
TEXTS = {
    "etc/passwd": (0o644, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"),
    "etc/group": (0o644, "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    "etc/shadow": (0o600, "root:*:20000:0:99999:7:::\nnobody:*:20000:0:99999:7:::\n"),
    "etc/shells": (0o644, "/bin/sh\n/bin/ash\n"),
    "etc/nsswitch.conf": (0o644, "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"),
    "etc/acpi/PWRF/00000080": (0o755, "#!/bin/sh\nexec /etc/init.d/rcK now\n"),
    "usr/lib/cocoon-microvm/image.json": (
        0o644, json.dumps({"version": 1, "features": ["user", "password", "ssh_keys"]}) + "\n"),
}
DIRECTORIES = {
    "boot": 0o755, "dev": 0o755, "proc": 0o555, "sys": 0o555, "run": 0o755, "tmp": 0o1777, "root": 0o700,
    "home": 0o755, "mnt": 0o755, "srv/www": 0o755, "etc/dropbear": 0o700, "var/lib/cocoon-microvm": 0o755,
    "var/log": 0o755, "usr/bin": 0o755, "usr/lib": 0o755,
}
LINKS = {
    "bin": "usr/bin", "sbin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "usr/sbin": "bin",
    "var/run": "../run", "etc/mtab": "../proc/mounts",
}


@dataclass(frozen=True)
class Entry:
    """One file of an archive: its mode with the type bits, and its bytes (a link's: the target)."""

    mode: int
    data: bytes = b""


class Tree(dict[str, Entry]):
    """Path -> Entry of a file system to be written; paths are relative, parents come by themselves."""

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self.parents(path)
        self[path] = Entry(stat.S_IFREG | mode, data)

    def link(self, path: str, target: str) -> None:
        self.parents(path)
        self[path] = Entry(stat.S_IFLNK | 0o777, target.encode())

    def directory(self, path: str, mode: int = 0o755) -> None:
        self.parents(path)
        self[path] = Entry(stat.S_IFDIR | mode)

    def parents(self, path: str) -> None:
        parts = path.split("/")[:-1]
        for end in range(1, len(parts) + 1):
            self.setdefault("/".join(parts[:end]), Entry(stat.S_IFDIR | 0o755))


class Packages:
    """The files of all fetched packages, by their merged-/usr path."""

    def __init__(self, debs: list[Path], triplet: str) -> None:
        self.files: dict[str, bytes] = {}
        self.links: dict[str, str] = {}
        self.loader_dirs = [directory.format(triplet=triplet) for directory in LOADER_DIRS]
        self.newest = 0
        for deb in debs:
            self.read(deb)

    def read(self, deb: Path) -> None:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as process:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    self.newest = max(self.newest, int(member.mtime))
                    name = merged(member.name)
                    if name.startswith(("usr/share/", "boot/System.map")):
                        continue
                    content = archive.extractfile(member) if member.isfile() else None
                    if content:
                        self.files[name] = content.read()
                    elif member.issym() or member.islnk():
                        self.links[name] = resolve_link(name, member)
        if process.returncode:
            raise SystemExit(f"cannot read {deb}")

    def get(self, name: str) -> bytes:
        for _hop in range(10):
            if name in self.files:
                return self.files[name]
            if name not in self.links:
                break
            name = self.links[name]
        raise SystemExit(f"the packages hold no {name}")

    def has(self, name: str) -> bool:
        return name in self.files or name in self.links

    def library(self, soname: str) -> str:
        for directory in self.loader_dirs:
            if self.has(f"{directory}/{soname}"):
                return f"{directory}/{soname}"
        raise SystemExit(f"the packages hold no library {soname}")


def merged(name: str) -> str:
    """A package path with /bin, /sbin and /lib* below /usr, whatever the package says."""
    name = name.lstrip("./")
    return f"usr/{name}" if re.match(r"(bin|sbin|lib\w*)/", name) else name


def resolve_link(name: str, member: tarfile.TarInfo) -> str:
    if member.islnk() or member.linkname.startswith("/"):
        return merged(member.linkname)
    return merged(os.path.normpath(os.path.join(os.path.dirname(name), member.linkname)))


def strings_of_dynamic(data: bytes) -> tuple[list[str], str | None]:
    """(needed libraries, loader) of a 64-bit little-endian ELF file."""
    offset, = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQ", data, offset + index * size) for index in range(count)]
    loader, dynamic = None, []
    for kind, _flags, start, _virtual, _physical, length in segments:
        if kind == 3:
            loader = data[start:start + length].rstrip(b"\0").decode()
        elif kind == 2:
            dynamic = [struct.unpack_from("<QQ", data, start + at) for at in range(0, length, 16)]
    table = next((value for tag, value in dynamic if tag == 5), 0)
    for kind, _flags, start, virtual, _physical, length in segments:
        if kind == 1 and virtual <= table < virtual + length:
            table += start - virtual
            break
    needed = [data[table + value:data.index(b"\0", table + value)].decode() for tag, value in dynamic if tag == 1]
    return needed, loader


def add_program(tree: Tree, packages: Packages, path: str) -> None:
    """A program with its loader and every library below it."""
    waiting = [path]
    while waiting:
        name = waiting.pop()
        place = "usr/bin/" + name.rpartition("/")[2] if name.startswith(("usr/bin/", "usr/sbin/")) else name
        if place in tree:
            continue
        data = packages.get(name)
        tree.file(place, data, 0o755)
        needed, loader = strings_of_dynamic(data)
        waiting += [packages.library(soname) for soname in needed]
        if loader:
            waiting.append(merged(loader.lstrip("/")))


def unpack_module(name: str, data: bytes) -> bytes:
    """A kernel module as plain ELF: busybox loads no zstd."""
    if name.endswith(".xz"):
        return lzma.decompress(data)
    if name.endswith(".zst"):
        return subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True).stdout
    return data


class Modules:
    """The kernel's modules: their names, dependencies and bytes."""

    def __init__(self, packages: Packages) -> None:
        self.packages = packages
        self.paths: dict[str, str] = {}
        for path in packages.files:
            match = re.match(r"usr/lib/modules/[^/]+/.*/([^/]+)\.ko(\.xz|\.zst)?$", path)
            if match:
                self.paths[match.group(1).replace("-", "_")] = path
        self.chosen: dict[str, bytes] = {}
        self.depends: dict[str, list[str]] = {}

    def add(self, name: str) -> None:
        if name in self.chosen:
            return
        data = unpack_module(self.paths[name], self.packages.files[self.paths[name]])
        found = re.search(rb"\0depends=([^\0]*)\0", data)
        names = [item.replace("-", "_") for item in found.group(1).decode().split(",") if item] if found else []
        self.chosen[name], self.depends[name] = data, names
        for dependency in names:
            self.add(dependency)

    def choose(self, wanted: list[str]) -> list[str]:
        order = []
        for item in wanted:
            name = item.lstrip("?")
            if name in self.paths:
                self.add(name)
                order.append(name)
            elif item == name and not self.built_in(name):
                raise SystemExit(f"the kernel has no module {name}")
        return order

    def built_in(self, name: str) -> bool:
        return any(path.startswith("usr/lib/modules/") and path.endswith("/modules.builtin")
                   and re.search(rf"/{name}\.ko$", data.decode().replace("-", "_"), re.M)
                   for path, data in self.packages.files.items())

    def closure(self, name: str) -> list[str]:
        """What must be loaded before a module, the nearest first (the order of modules.dep)."""
        found: list[str] = []
        for dependency in self.depends[name]:
            for item in [dependency, *self.closure(dependency)]:
                if item in found:
                    found.remove(item)
                found.append(item)
        return found


def build_initramfs(packages: Packages, version: str, guest: Path) -> bytes:
    modules = Modules(packages)
    order = modules.choose(MODULES)
    tree = Tree()
    for directory in ("dev", "proc", "sys", "run", "root"):
        tree.directory(directory)
    add_busybox(tree, packages, "bin")
    tree.link("usr/bin", "../bin")
    tree.link("sbin", "bin")
    tree.file("init", (guest / "tiny/initramfs-init").read_bytes(), 0o755)
    tree.file("lib/overlay", (guest / "common/overlay").read_bytes())
    tree.file("modules", " ".join(order).encode() + b"\n")
    base = f"lib/modules/{version}"
    dependencies = ""
    for name, data in sorted(modules.chosen.items()):
        tree.file(f"{base}/{name}.ko", data)
        dependencies += f"{name}.ko:" + "".join(f" {item}.ko" for item in modules.closure(name)) + "\n"
    tree.file(f"{base}/modules.dep", dependencies.encode())
    for name in ("modules.alias", "modules.symbols", "modules.builtin"):
        tree.file(f"{base}/{name}", b"")
    return write_cpio(tree)


def add_busybox(tree: Tree, packages: Packages, directory: str) -> None:
    data = next((packages.get(path) for path in ("usr/bin/busybox", "usr/sbin/busybox") if packages.has(path)), None)
    if data is None:
        raise SystemExit("the packages hold no busybox")
    tree.file(f"{directory}/busybox", data, 0o755)
    for applet in applets(data):
        if f"{directory}/{applet}" not in tree:
            tree.link(f"{directory}/{applet}", "busybox")


def applets(data: bytes) -> list[str]:
    """The commands in a static busybox, which lists them itself; run from memory, the disk may be noexec."""
    descriptor = os.memfd_create("busybox")
    try:
        os.write(descriptor, data)
        listing = subprocess.run(["busybox", "--list"], executable=f"/proc/self/fd/{descriptor}",
                                 pass_fds=[descriptor], capture_output=True, text=True, check=True)
    finally:
        os.close(descriptor)
    return [name for name in listing.stdout.split() if name != "busybox"]


def build_rootfs(packages: Packages, version: str, guest: Path) -> Tree:
    tree = Tree()
    for path, mode in DIRECTORIES.items():
        tree.directory(path, mode)
    for path, target in LINKS.items():
        tree.link(path, target)
    for path in BINARIES:
        add_program(tree, packages, path)
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


def kernel_version(packages: Packages) -> str:
    versions = [path[len("boot/vmlinuz-"):] for path in packages.files if path.startswith("boot/vmlinuz-")]
    if len(versions) != 1:
        raise SystemExit(f"expected one kernel in the packages, found {versions or 'none'}")
    return versions[0]


def write_cpio(tree: Tree) -> bytes:
    """A newc archive, uncompressed: an emulated CPU unpacks nothing faster than it copies."""
    out = io.BytesIO()
    items = [*sorted(tree.items()), ("TRAILER!!!", Entry(0))]
    for number, (path, entry) in enumerate(items, 1):
        name = path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
        out.write(b"070701" + b"".join(b"%08x" % field for field in fields) + name)
        out.write(b"\0" * (-out.tell() % 4) + entry.data)
        out.write(b"\0" * (-out.tell() % 4))
    return out.getvalue()


def write_tar(tree: Tree, target: Path, mtime: int) -> None:
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as archive:
        for path, entry in sorted(tree.items()):
            member = tarfile.TarInfo(path)
            member.mode, member.mtime = stat.S_IMODE(entry.mode), mtime
            if stat.S_ISDIR(entry.mode):
                member.type = tarfile.DIRTYPE
            elif stat.S_ISLNK(entry.mode):
                member.type, member.linkname = tarfile.SYMTYPE, entry.data.decode()
            else:
                member.size = len(entry.data)
            archive.addfile(member, io.BytesIO(entry.data) if member.isfile() else None)


def main() -> None:
    parser = common_options(__doc__)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    manifest = read_manifest(options.cache, options.key)
    packages = Packages(verified(options.cache, manifest), TRIPLETS[manifest["arch"]])
    tree = build_rootfs(packages, kernel_version(packages), Path(__file__).parent / "guest")
    temporary = options.output.with_name(f".{options.output.name}.new")
    write_tar(tree, temporary, packages.newest)
    os.replace(temporary, options.output)


if __name__ == "__main__":
    main()
