# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Container images for the tests, as OCI layouts.

nginx, redis   of Debian's packages that `make setup` fetched, built by umoci
guest          a Cocoon image in layers, built by umoci
layout         any other, such as of a busybox: written here, so that nothing stands in the way of what is in it
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.cocoon.microvm.tests.integration.support.images import CACHE
from ansible_collections.cocoon.microvm.tests.integration.support.machine import command

# What a container has no use for, and what depends on that.
WITHOUT = (
    "adduser debconf dpkg init-system-helpers iproute2 logrotate lsb-base nginx-common passwd perl-base procps"
    " sensible-utils sysvinit-utils tar"
).split()
UNUSED = re.compile(r"^\./(usr/share/(doc|man|info|locale|lintian|bug)|etc/(init\.d|systemd)|lib/systemd)(/|$)")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def packages() -> dict[str, Path]:
    """The fetched packages, by name."""
    (manifest,) = CACHE.glob("containers.*.json")
    debs = json.loads(manifest.read_text(encoding="utf-8"))["debs"]
    return {item["file"].partition("_")[0]: CACHE / "debs" / item["file"] for item in debs}


def needed(names: Iterable[str]) -> list[Path]:
    """Packages with all that they depend on, but for what is not needed to run them."""
    known, found, waiting = packages(), {}, list(names)
    while waiting:
        name = waiting.pop()
        if name in found or name in WITHOUT or name not in known:
            continue
        found[name] = known[name]
        fields = command("dpkg-deb", "-f", known[name], "Depends", "Pre-Depends")
        waiting += re.findall(r"(?:^|[,|:]\s*)([a-z0-9][a-z0-9+.-]+)", fields, re.MULTILINE)
    return [found[name] for name in sorted(found)]


def package_layer(names: Iterable[str]) -> bytes:
    """A layer with what is in packages."""
    out = io.BytesIO()
    seen: set[str] = set()
    with tarfile.open(fileobj=out, mode="w") as layer:
        for deb in needed(names):
            data = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], capture_output=True, check=True).stdout
            with tarfile.open(fileobj=io.BytesIO(data)) as package:
                for member in package:
                    if not UNUSED.match(member.name) and member.name not in seen:
                        seen.add(member.name)
                        layer.addfile(member, package.extractfile(member) if member.isreg() else None)
        for folder in ("lib", "lib64"):  # links of the distribution's, where its packages use none but /usr
            if not any(name.startswith(f"./{folder}/") for name in seen) and any(
                name.startswith(f"./usr/{folder}/") for name in seen
            ):
                link = tarfile.TarInfo(f"./{folder}")
                link.type, link.linkname = tarfile.SYMTYPE, f"usr/{folder}"
                layer.addfile(link)
    return out.getvalue()


def layer(files: Mapping[str, bytes | str | tuple[int, int, int] | None]) -> bytes:
    """A layer of files: bytes are a program or text (mode 0755), a text is a link's target, numbers are the owner,
    group and mode of a folder, and None takes away what a lower layer has."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as target:
        for path, content in files.items():
            folder, _slash, name = path.rpartition("/")
            info = tarfile.TarInfo(path if content is not None else f"{folder}/.wh.{name}")
            info.mode = 0o755
            if isinstance(content, tuple):
                info.type = tarfile.DIRTYPE
                info.uid, info.gid, info.mode = content
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            data = content if isinstance(content, bytes) else b""
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))
    return out.getvalue()


def layout(folder: Path, layers: Sequence[bytes], **config: Any) -> Path:
    """An OCI layout of one image, with the ``config`` of its OCI config."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes) -> dict[str, Any]:
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"digest": f"sha256:{name}", "size": len(data)}

    kind = "application/vnd.oci.image"
    described = [{"mediaType": f"{kind}.layer.v1.tar", **put(data)} for data in layers]
    document = {
        "architecture": ARCHITECTURES[os.uname().machine],
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [item["digest"] for item in described]},
    }
    config_item = {"mediaType": f"{kind}.config.v1+json", **put(json.dumps(document).encode())}
    manifest = put(json.dumps({"schemaVersion": 2, "config": config_item, "layers": described}).encode())
    index = {"schemaVersion": 2, "manifests": [{"mediaType": f"{kind}.manifest.v1+json", **manifest}]}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}', encoding="utf-8")
    return folder


def umoci_layout(folder: Path, changes: Sequence[bytes | Iterable[str]], *config: str) -> Path:
    """An OCI layout of one image that umoci builds: a layer for each change of its tree, which is a tar that is
    unpacked over it, or the names of files that are removed."""
    image, bundle = f"{folder}:latest", folder.with_name(f"{folder.name}.bundle")
    command("umoci", "init", "--layout", folder)
    command("umoci", "new", "--image", image)
    command("umoci", "unpack", "--image", image, bundle)
    for change in changes:
        if isinstance(change, bytes):
            subprocess.run(["tar", "-xp", "-C", bundle / "rootfs"], input=change, check=True)
        else:
            for name in change:
                (bundle / "rootfs" / name).unlink()
        command("umoci", "repack", "--refresh-bundle", "--image", image, bundle)
    command("umoci", "config", "--image", image, *config)
    shutil.rmtree(bundle)
    return folder


def busybox_layer(more: Mapping[str, bytes | str | tuple[int, int, int] | None] | None = None) -> bytes:
    """A layer with a static busybox, a shell of it, and nothing of a distribution."""
    with tarfile.open(fileobj=io.BytesIO(_data_of("busybox-static"))) as package:
        (program,) = [member for member in package if member.isreg() and member.name.endswith("bin/busybox")]
        stream = package.extractfile(program)
        assert stream is not None
        files: dict[str, Any] = {"bin/busybox": stream.read()}
    return layer({**files, "bin/sh": "busybox", **(more or {})})


def _data_of(name: str) -> bytes:
    (manifest,) = CACHE.glob("kernel.*.json")
    debs = [item["file"] for item in json.loads(manifest.read_text(encoding="utf-8"))["debs"]]
    (file,) = [file for file in debs if file.startswith(f"{name}_")]
    return subprocess.run(["dpkg-deb", "--fsys-tarfile", CACHE / "debs" / file], capture_output=True, check=True).stdout


PATH = "--config.env=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NGINX = b"""user www-data;
worker_processes 1;
error_log /dev/stderr notice;
pid /var/run/nginx.pid;
events { worker_connections 64; }
http {
    access_log /dev/stdout;
    server { listen 80; root /srv/www; }
}
"""


def nginx(folder: Path) -> Path:
    """As the official image is: by command and stop signal, from packages and a layer of configuration."""
    top = layer(
        {
            "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/usr/sbin/nologin\n",
            "etc/group": b"root:x:0:\nwww-data:x:33:\n",
            "etc/nginx/nginx.conf": NGINX,
            "srv/www/index.html": b"it serves\n",
            "var/lib/nginx": (33, 33, 0o755),
            "var/log/nginx": (33, 33, 0o755),
            "var/run": (0, 0, 0o755),
        }
    )
    config = [f"--config.cmd={word}" for word in ("nginx", "-g", "daemon off;")]
    return umoci_layout(folder, [package_layer(["nginx"]), top], *config, "--config.stopsignal=SIGQUIT", PATH)


def redis(folder: Path) -> Path:
    """A server of an ordinary user, who owns the working directory, with an entrypoint and arguments to it."""
    top = layer(
        {
            "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nredis:x:999:999::/data:/bin/false\n",
            "etc/group": b"root:x:0:\nredis:x:999:\n",
            "data": (999, 999, 0o750),
        }
    )
    config = ["--config.entrypoint=redis-server", "--config.cmd=--protected-mode", "--config.cmd=no"]
    config += ["--config.user=redis", "--config.workingdir=/data", PATH]
    return umoci_layout(folder, [package_layer(["redis-server"]), top], *config)


OLD = {"boot/initrd.img-9-old": b"no initramfs", "boot/vmlinuz-9-old": b"no kernel", "srv/www/old": b"old\n"}


def guest(folder: Path, source: Path) -> Path:
    """A guest image in four layers: what is old, the system, its kernel and initramfs, and the removal of what is old.

    :param source: the image's tar.
    """
    system, boot = io.BytesIO(), io.BytesIO()
    with tarfile.open(source) as whole, tarfile.open(fileobj=system, mode="w") as rest:
        with tarfile.open(fileobj=boot, mode="w") as kernel:
            for member in whole:
                part = kernel if member.name.startswith("boot/") else rest
                part.addfile(member, whole.extractfile(member) if member.isreg() else None)
    return umoci_layout(folder, [layer(OLD), system.getvalue(), boot.getvalue(), OLD])
