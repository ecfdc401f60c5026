# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What images are made of here: files of packages, programs, kernel modules; and how they are packed.

Needs no root and no network: packages are read as tar streams (``dpkg-deb --fsys-tarfile``),
never unpacked to disk, and the archives are written file by file. Same packages and same
guest files give the same bytes.
"""

from __future__ import annotations

import io
import lzma
import os
import re
import stat
import struct
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from packages import common_options, read_manifest, verified

LOADER_DIRS = ("usr/lib/{triplet}", "usr/lib", "usr/lib64")
TRIPLETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}


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
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQ", data, offset + index * size) for index in range(count)]
    loader, dynamic = None, []
    for kind, _flags, start, _virtual, _physical, length in segments:
        if kind == 3:
            loader = data[start : start + length].rstrip(b"\0").decode()
        elif kind == 2:
            dynamic = [struct.unpack_from("<QQ", data, start + at) for at in range(0, length, 16)]
    table = next((value for tag, value in dynamic if tag == 5), 0)
    for kind, _flags, start, virtual, _physical, length in segments:
        if kind == 1 and virtual <= table < virtual + length:
            table += start - virtual
            break
    needed = [data[table + value : data.index(b"\0", table + value)].decode() for tag, value in dynamic if tag == 1]
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


def add_perl_library(tree: Tree, packages: Packages) -> None:
    """The one file of Perl's library that our programs use."""
    (path,) = [path for path in packages.files if path.endswith("/perl-base/strict.pm")]
    tree.file(path, packages.get(path))


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
        return any(
            path.startswith("usr/lib/modules/")
            and path.endswith("/modules.builtin")
            and re.search(rf"/{name}\.ko$", data.decode().replace("-", "_"), re.M)
            for path, data in self.packages.files.items()
        )

    def closure(self, name: str) -> list[str]:
        """What must be loaded before a module, the nearest first (the order of modules.dep)."""
        found: list[str] = []
        for dependency in self.depends[name]:
            for item in [dependency, *self.closure(dependency)]:
                if item in found:
                    found.remove(item)
                found.append(item)
        return found


def add_modules(tree: Tree, packages: Packages, version: str, wanted: list[str]) -> None:
    """Kernel modules with what they depend on, and the file ``modules`` with their names in the order to load them."""
    modules = Modules(packages)
    order = modules.choose(wanted)
    tree.file("modules", " ".join(order).encode() + b"\n")
    base = f"lib/modules/{version}"
    dependencies = ""
    for name, data in sorted(modules.chosen.items()):
        tree.file(f"{base}/{name}.ko", data)
        dependencies += f"{name}.ko:" + "".join(f" {item}.ko" for item in modules.closure(name)) + "\n"
    tree.file(f"{base}/modules.dep", dependencies.encode())
    for name in ("modules.alias", "modules.symbols", "modules.builtin"):
        tree.file(f"{base}/{name}", b"")


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
        listing = subprocess.run(
            ["busybox", "--list"],
            executable=f"/proc/self/fd/{descriptor}",
            pass_fds=[descriptor],
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        os.close(descriptor)
    return [name for name in listing.stdout.split() if name != "busybox"]


def kernel_version(packages: Packages) -> str:
    versions = [path[len("boot/vmlinuz-") :] for path in packages.files if path.startswith("boot/vmlinuz-")]
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


def build(description: str | None, make: Callable[[Packages, str, Path], Tree]) -> None:
    """The program of a recipe: *make* gives the tree of packages, the kernel's version and the guest files."""
    parser = common_options(description)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    manifest = read_manifest(options.cache, options.key)
    packages = Packages(verified(options.cache, manifest), TRIPLETS[manifest["arch"]])
    tree = make(packages, kernel_version(packages), Path(__file__).parent / "guest")
    temporary = options.output.with_name(f".{options.output.name}.new")
    write_tar(tree, temporary, packages.newest)
    os.replace(temporary, options.output)
