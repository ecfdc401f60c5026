# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the Debian (or Ubuntu) image from fetched packages with mmdebstrap: one rootfs tar.

Needs root and no network: the packages become a flat apt repository in the cache, and that
is mmdebstrap's only mirror. Their digests were taken when apt had verified them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packages import common_options, digest, read_manifest, verified

DPKG_OPTIONS = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    # Disks are found by sysfs, so the initramfs does without udev and its seconds on an emulated CPU.
    "path-exclude=/usr/share/initramfs-tools/hooks/udev",
    "path-exclude=/usr/share/initramfs-tools/scripts/init-*/udev",
    # What the hardware database describes is not in a machine like this.
    "path-exclude=/usr/lib/udev/hwdb.d/*",
    "path-exclude=/lib/udev/hwdb.d/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
]


def host_sources(suite: str) -> str:
    """sources.list lines for the guest: where the host gets *suite*, its updates and its security fixes from."""
    words = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    found: dict[tuple[str, str], dict[str, None]] = {}
    for line in subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines():
        uri, release, component = line.split()
        if release in (suite, f"{suite}-updates", f"{suite}-security"):
            found.setdefault((uri, release), {})[component] = None
    return "".join(f"deb {uri} {release} {' '.join(parts)}\n" for (uri, release), parts in sorted(found.items()))


def make_repository(debs: list[Path], repository: Path) -> None:
    """A flat apt repository of hard links (else copies) to packages."""
    index = []
    for source in debs:
        # apt asks for the name in the index, and reads %3a there as a colon.
        name = source.name.replace("%3a", ":")
        try:
            os.link(source, repository / name)
        except OSError:
            shutil.copy2(source, repository / name)
        fields = subprocess.check_output(["dpkg-deb", "--field", str(source)], text=True).rstrip()
        index.append(f"{fields}\nFilename: ./{name}\nSize: {source.stat().st_size}\nSHA256: {digest(source)}\n")
    (repository / "Packages").write_text("\n".join(index))


def ar_time(path: Path) -> int:
    """The time in the first member header of an ar archive (a .deb)."""
    with path.open("rb") as stream:
        header = stream.read(8 + 60)
    return int(header[8 + 16 : 8 + 28] or b"0")


def merged_usr_hook(debs: list[Path]) -> list[str]:
    """What merges /bin, /sbin and /lib into /usr where the release's base-files does not do it."""
    for path in debs:
        if path.name.startswith("base-files_"):
            listing = subprocess.check_output(["dpkg-deb", "--contents", str(path)], text=True)
            return [] if " ./bin -> usr/bin" in listing else ["--hook-directory=/usr/share/mmdebstrap/hooks/merged-usr"]
    raise SystemExit("the packages hold no base-files")


@contextmanager
def scratch_directory(cache: Path) -> Iterator[str]:
    """A directory of this build alone; what a killed build left goes first."""
    with (cache / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        mounts = Path("/proc/self/mounts").read_text()
        for old in cache.glob("build-*"):
            if f" {old}/" not in mounts:
                shutil.rmtree(old)
        with tempfile.TemporaryDirectory(prefix="build-", dir=cache) as scratch:
            yield scratch


def build(cache: Path, manifest: dict, output: Path) -> None:
    spec = manifest["spec"]
    hooks = Path(__file__).resolve().parent / "guest" / "debian"
    sources = manifest["sources"] or host_sources(spec["suite"])
    debs = verified(cache, manifest)
    environment = {
        **os.environ,
        "SOURCE_DATE_EPOCH": str(max(map(ar_time, debs))),
        "COCOON_SOURCES": sources,
        "LC_ALL": "C",
        "DEBIAN_FRONTEND": "noninteractive",
    }
    with scratch_directory(cache) as scratch:
        # apt's unprivileged user has no business here, but mmdebstrap's tree must be passable.
        os.chmod(scratch, 0o755)
        repository = Path(scratch, "repository")
        repository.mkdir()
        make_repository(debs, repository)
        command = [
            "mmdebstrap",
            "--quiet",
            "--mode=root",
            "--variant=apt",
            "--format=tar",
            f"--architectures={manifest['arch']}",
            f"--include={','.join(manifest['install'])}",
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=Acquire::Languages "none"',
            *[f"--dpkgopt={option}" for option in DPKG_OPTIONS],
            *merged_usr_hook(debs),
            f'--essential-hook={hooks / "essential"} "$1"',
            f'--customize-hook={hooks / "customize"} "$1"',
            spec["suite"],
            str(output),
            f"deb [trusted=yes] copy:{repository} ./",
        ]
        result = subprocess.run(
            command,
            env={**environment, "TMPDIR": scratch},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if result.returncode:
        raise SystemExit(f"mmdebstrap failed:\n{result.stdout.strip()[-4000:]}")
    print(result.stdout)


def main() -> None:
    if os.geteuid() != 0:
        raise SystemExit("this image is built as root only: run the role with become: true")
    parser = common_options(__doc__)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    manifest = read_manifest(options.cache, options.key)
    temporary = options.output.with_name(f".{options.output.name}.new.tar")
    try:
        build(options.cache, manifest, temporary)
        os.replace(temporary, options.output)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
