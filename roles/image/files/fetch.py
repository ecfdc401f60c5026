# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetch the packages of one image recipe into a cache, by apt and nothing else.

Writes ``<cache>/<key>.json``: the list of .deb files (with digests) that the build
then reads, so that a build needs no network. apt runs with its own state below the
cache: the host's package lists, locks and installed packages are left alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from packages import common_options, digest

KERNELS = {
    "debian": {"cloud": "linux-image-cloud-{arch}", "generic": "linux-image-{arch}"},
    "ubuntu": {"cloud": "linux-image-virtual", "generic": "linux-image-generic"},
}
SMALL_PACKAGES = {
    "tiny": ["busybox-static", "dropbear-bin", "e2fsprogs"],
    "kernel": ["busybox-static", "e2fsprogs"],
}
DEBIAN_PACKAGES = [
    "apt",
    "busybox",
    "dbus",
    "e2fsprogs",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "lz4",
    "openssh-server",
    "python3",
    "python3-apt",
    "qemu-guest-agent",
    "sudo",
    "systemd",
    "systemd-sysv",
    "udev",
    "usr-is-merged",
]
NEEDED_MODULES = {"virtio_blk", "virtio_net", "erofs", "overlay", "qemu_fw_cfg", "evdev", "button"}
KERNEL_PACKAGE = re.compile(r"^linux-(image|modules)(-unsigned)?-[0-9]\S*$")


class Apt:
    """apt with private state: an empty list of installed packages, own lists, own cache."""

    def __init__(self, cache: Path, mirror: str, suite: str) -> None:
        self.debs = cache / "debs"
        root = cache / "apt" / hashlib.sha256(f"{suite}\n{mirror}".encode()).hexdigest()[:16]
        self.lists = root / "lists"
        self.empty = root / "empty"
        for directory in (self.debs / "partial", self.lists / "partial", self.empty / "partial"):
            directory.mkdir(parents=True, exist_ok=True)
        (root / "status").write_text("")
        self.options = [
            "-qq",
            f"-oDir::State::status={root / 'status'}",
            f"-oDir::State::extended_states={root / 'extended_states'}",
            f"-oDir::State::lists={self.lists}",
            f"-oDir::Cache::pkgcache={root / 'pkgcache.bin'}",
            f"-oDir::Cache::srcpkgcache={root / 'srcpkgcache.bin'}",
            "-oDebug::NoLocking=1",
            "-oAPT::Sandbox::User=root",
            "-oAPT::Get::Assume-Yes=true",
            "-oAPT::Install-Recommends=false",
            "-oAcquire::Retries=3",
            "-oAcquire::Languages=none",
        ]
        if mirror:
            sources = root / "sources.list"
            sources.write_text(source_lines(mirror, suite))
            self.options += [f"-oDir::Etc::sourcelist={sources}", f"-oDir::Etc::sourceparts={self.empty}"]
        elif not any(self.lists.glob("*_InRelease")):
            self.seed()

    def seed(self) -> None:
        """Start from the host's package lists, which saves fetching them again."""
        for entry in Path("/var/lib/apt/lists").glob("*_*"):
            shutil.copy2(entry, self.lists / entry.name)

    def run(self, tool: str, *arguments: str, directory: Path | None = None) -> str:
        """Run apt with its archives in a directory, which `download` takes as the working directory."""
        directory = directory or self.debs
        command = [tool, *self.options, f"-oDir::Cache::archives={directory}", *arguments]
        result = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
        if result.returncode:
            raise SystemExit(f"{tool} {' '.join(arguments)} failed:\n{result.stderr.strip()[-2000:]}")
        return result.stdout

    def update(self) -> None:
        # A source of the host that does not answer matters only if a package is then
        # missing, and the download below says so.
        try:
            self.run("apt-get", "update")
        except SystemExit as error:
            print(error, file=sys.stderr)

    def depends(self, package: str) -> list[str]:
        output = self.run("apt-cache", "depends", "--important", package)
        return re.findall(r"^\s*Depends: (\S+)$", output, re.M)

    def fetch(self, arguments: list[str]) -> list[str]:
        """Download by apt-get <arguments>; the file names of everything they cover."""
        uris = self.run("apt-get", "--print-uris", *arguments, directory=self.empty)
        names = [fields[1] for fields in re.findall(r"^'([^']+)' (\S+) \d+", uris, re.M)]
        if not names:
            raise SystemExit(f"apt-get {' '.join(arguments)} names no package")
        self.run("apt-get", *arguments)
        return names


def source_lines(mirror: str, suite: str) -> str:
    """sources.list text: full deb lines as they are, a bare URL with the suite and main."""
    lines = [line.strip() for line in mirror.splitlines() if line.strip()]
    return "".join(f"{line}\n" if line.startswith("deb ") else f"deb {line} {suite} main\n" for line in lines)


def kernel_packages(apt: Apt, meta: str) -> list[str]:
    """The packages that hold the kernel and its modules, below the distribution's metapackage."""
    found: list[str] = []
    waiting = [meta]
    while waiting:
        for name in apt.depends(waiting.pop()):
            if KERNEL_PACKAGE.match(name) and name not in found:
                found.append(name)
                waiting.append(name)
    if not found:
        raise SystemExit(f"{meta} depends on no kernel package")
    return found


def module_names(debs: list[Path]) -> set[str]:
    """The modules in kernel packages, those that are built into the kernel included."""
    paths: list[str] = []
    for deb in debs:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as process:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.name.endswith("/modules.builtin") else None
                    paths += content.read().decode().split() if content else [member.name]
    names = (path.rpartition("/")[2] for path in paths)
    return {name.partition(".ko")[0].replace("-", "_") for name in names if ".ko" in name}


def extra_modules(apt: Apt, kernel: list[str], names: list[str]) -> list[str]:
    """The package of the less used modules, where the distribution (Ubuntu) splits them off and one is needed."""
    split = [name for name in kernel if name.startswith("linux-modules-")]
    if not split or NEEDED_MODULES <= module_names([apt.debs / name for name in names if name.startswith("linux-")]):
        return []
    return [name.replace("linux-modules-", "linux-modules-extra-", 1) for name in split]


def fetch_recipe(apt: Apt, spec: dict, meta: str) -> tuple[list[str], list[str]]:
    """(packages to install, file names of all that they need)."""
    install = ["install", "--download-only", "--no-install-recommends"]
    kernel = kernel_packages(apt, meta)
    small = SMALL_PACKAGES.get(spec["flavour"])
    if small:
        # Only the kernel's own files and one of Perl's are taken, so what their packages depend on is left out.
        names = apt.fetch(["download", *kernel, "perl-base", "libcrypt1"])
        extra = extra_modules(apt, kernel, names)
        names += apt.fetch(["download", *extra]) if extra else []
        return small, names + apt.fetch([*install, *small])
    wanted = [*DEBIAN_PACKAGES, meta, *spec["packages"]]
    names = apt.fetch([*install, "?essential", *wanted])
    extra = extra_modules(apt, kernel, names)
    if extra:
        wanted += extra
        names = apt.fetch([*install, "?essential", *wanted])
    return wanted, names


def write_manifest(cache: Path, key: str, manifest: dict) -> bool:
    """Write <key>.json and drop the manifests of other recipes of the same image; True if anything is new."""
    target = cache / f"{key}.json"
    text = json.dumps(manifest, indent=1) + "\n"
    changed = not target.exists() or target.read_text() != text
    if changed:
        temporary = target.with_suffix(".tmp")
        temporary.write_text(text)
        os.replace(temporary, target)
    for other in cache.glob(f"{key.rpartition('.')[0]}.*.json"):
        if re.fullmatch(r"[0-9a-f]{12}", other.name[: -len(".json")].rpartition(".")[2]) and other != target:
            other.unlink()
    return changed


def prune(cache: Path) -> None:
    """Drop packages that no recipe of this cache names any more."""
    wanted = {item["file"] for path in cache.glob("*.json") for item in json.loads(path.read_text())["debs"]}
    for path in (cache / "debs").glob("*.deb"):
        if path.name not in wanted:
            path.unlink()


def main() -> None:
    parser = common_options(__doc__)
    parser.add_argument("--spec", type=json.loads, required=True, help="the recipe as JSON")
    options = parser.parse_args()
    spec = options.spec
    options.cache.mkdir(parents=True, exist_ok=True)
    with (options.cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        arch = subprocess.check_output(["dpkg", "--print-architecture"], text=True).strip()
        apt = Apt(options.cache, spec["mirror"], spec["suite"])
        apt.update()
        install, names = fetch_recipe(apt, spec, KERNELS[spec["vendor"]][spec["kernel"]].format(arch=arch))
        sources = source_lines(spec["mirror"], spec["suite"]) if spec["mirror"] else ""
        debs = [{"file": name, "sha256": digest(apt.debs / name)} for name in sorted(set(names))]
        changed = write_manifest(
            options.cache,
            options.key,
            {"spec": spec, "arch": arch, "sources": sources, "install": install, "debs": debs},
        )
        prune(options.cache)
    print(f"{len(debs)} packages, {'changed' if changed else 'unchanged'}")


if __name__ == "__main__":
    main()
