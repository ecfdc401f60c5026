# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""7. Images from a local registry, with TLS and a password, against the same by hand; the first boot of one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from common import run, say
from fleet import VM, BenchError, Fleet, seconds
from results import Row

from ansible_collections.cocoon.microvm.tests.integration.support import containers, images
from ansible_collections.cocoon.microvm.tests.integration.support.registry import (
    PASSWORD,
    USER,
    Authority,
    Registry,
    auth_file,
    hexes,
    layer,
    put,
)

# What the layers are made of: files of this machine, many of them small. 150 MB or more, compressed.
FOLDERS = (
    ("usr/share/doc", "usr/share/man", "usr/share/perl"),
    ("usr/lib/python3", "usr/lib/python3.11", "usr/lib/python3.12", "usr/lib/python3.13"),
    ("usr/lib/git-core", "usr/lib/x86_64-linux-gnu/perl", "usr/lib/gcc"),
)
NAME = "bench/app:v1"


def measure(fleet: Fleet, scratch: Path, runs: int) -> list[Row]:
    """Pull and convert; then pull again what has not changed."""
    folder = scratch / "registry"
    folder.mkdir()
    authority = Authority(folder / "ca")
    registry = Registry(fleet.netns, folder, 5443, authority.sign("bench"), True)
    access = _Access(fleet, registry, authority, auth_file(folder / "auth.json", registry.host))
    try:
        size = _push(access, folder / "layout")
        say(f"   an image of {size >> 20} MB in {len(FOLDERS) + 1} layers ...")
        ours: list[float] = []
        hand: list[float] = []
        umoci: list[float] = []
        for _turn in range(runs):  # in turns, so that all meet the machine in the same mood
            hand.append(_by_hand(access, scratch / "hand"))
            ours.append(_pull(access))
            umoci.append(_unpacked(access, scratch / "hand"))
        again = _again(access, runs)
    finally:
        registry.stop()
        shutil.rmtree(folder)
    serves = _first_boots(fleet, scratch, runs)
    ratio = [statistics.median(ours) / statistics.median(hand)]
    return [
        Row("7", f"pull and convert {size >> 20} MB", "s", ours),
        Row("7", "skopeo copy, tar and mkfs.erofs by hand", "s", hand),
        Row("7", "skopeo copy and umoci unpack", "s", umoci),
        Row("7", "pull and convert against by hand", "x", ratio, "1.1 x", ratio[0] <= 1.1),
        Row("7", "pull again, unchanged: above ping", "s", again, "0.5 s", statistics.median(again) <= 0.5),
        Row("7", "first boot of nginx until it serves", "s", serves),
    ]


class _Access:
    """How the registry is spoken to, by us and by hand."""

    def __init__(self, fleet: Fleet, registry: Registry, authority: Authority, auth: Path) -> None:
        self.fleet, self.registry, self.auth = fleet, registry, auth
        self.location = f"{registry.host}/{NAME}"
        self.env = {**os.environ, "SSL_CERT_FILE": str(authority.certificate)}
        self.options = {
            "name": self.location,
            "registry_user": USER,
            "registry_password": PASSWORD,
            "ca_path": str(authority.certificate),
            "lock_timeout": 600,
            **fleet.dirs,
        }

    def skopeo(self, *words: str) -> None:
        run([*self.registry.netns.enter(), "skopeo", "copy", "--quiet", *words], env=self.env, quiet=True)


def _push(access: _Access, layout: Path) -> int:
    """An image of a kernel and of what this machine has. :returns: its compressed size."""
    boot = layer(("boot/vmlinuz", os.urandom(8 << 20)), ("boot/initrd.img", os.urandom(24 << 20)))
    layers = [put(layout, boot, "application/vnd.oci.image.layer.v1.tar")]
    diffs = hexes([boot])
    packed = layout / "layer.tar"
    for folders in FOLDERS:
        there = [folder for folder in folders if Path("/", folder).is_dir()]
        run(["tar", "-C", "/", "-cf", packed, "--warning=no-file-changed", *there], quiet=True)
        diffs.append(run(["sha256sum", packed], quiet=True).stdout.split()[0])
        run(["gzip", "-n", "-6", packed], quiet=True)
        data = Path(f"{packed}.gz")
        layers.append(put(layout, data.read_bytes(), "application/vnd.oci.image.layer.v1.tar+gzip"))
        data.unlink()
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}
    config["rootfs"] = {"type": "layers", "diff_ids": [f"sha256:{name}" for name in diffs]}
    document: dict[str, Any] = {"schemaVersion": 2, "layers": layers}
    document["config"] = put(layout, json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json")
    top = put(layout, json.dumps(document).encode(), "application/vnd.oci.image.manifest.v1+json")
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    access.skopeo(
        f"--dest-authfile={access.auth}",
        "--dest-oci-accept-uncompressed-layers",
        f"oci:{layout}",
        f"docker://{access.location}",
    )
    return sum(int(item["size"]) for item in layers)


def _pull(access: _Access) -> float:
    """From nothing to an image in the store. :returns: seconds."""
    began = time.monotonic()
    if not access.fleet.module("cocoon_image", run_timeout=3600, **access.options).changed:
        raise BenchError("the image was there before it was pulled")
    took = time.monotonic() - began
    access.fleet.module("cocoon_image", name=access.location, state="absent")
    return took


def _by_hand(access: _Access, folder: Path) -> float:
    """What one would do without us, durable as ours is. :returns: seconds."""
    began = time.monotonic()
    layout, tree = folder / "layout", folder / "tree"
    folder.mkdir()
    access.skopeo(f"--src-authfile={access.auth}", f"docker://{access.location}", f"oci:{layout}:it")
    blobs = layout / "blobs" / "sha256"
    top = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    for item in json.loads((blobs / top.partition(":")[2]).read_text())["layers"]:
        tree.mkdir()
        blob = folder / f"{item['digest'][7:]}.erofs"
        run(["tar", "-C", tree, "--xattrs", "-xf", blobs / item["digest"][7:]], quiet=True)
        run(["mkfs.erofs", "-zlz4hc", "-C4096", "-T0", blob, tree], quiet=True)
        shutil.rmtree(tree)
        with blob.open("rb") as stream:
            os.fsync(stream.fileno())
    took = time.monotonic() - began
    shutil.rmtree(folder)
    return took


def _unpacked(access: _Access, folder: Path) -> float:
    """What a runtime of containers does: all layers in one tree, and nothing converted. :returns: seconds."""
    began = time.monotonic()
    folder.mkdir()
    access.skopeo(f"--src-authfile={access.auth}", f"docker://{access.location}", f"oci:{folder / 'layout'}:it")
    run(["umoci", "unpack", "--image", f"{folder / 'layout'}:it", folder / "bundle"], quiet=True)
    run(["sync", "-f", folder], quiet=True)
    took = time.monotonic() - began
    shutil.rmtree(folder)
    return took


def _first_boots(fleet: Fleet, scratch: Path, runs: int) -> list[float]:
    """From the start of the hypervisor until nginx serves, each time with a new VM. :returns: seconds."""
    fleet.module("cocoon_image", name="cocoon/kernel", source=str(images.built("kernel", scratch)))
    fleet.module("cocoon_image", name="nginx", source=str(containers.nginx(scratch / "nginx")))
    vm = {**VM, "name": "nginx", "image": "nginx", "state": "started", "wait_for": "port", "wait_port": 80}
    found = []
    for _turn in range(runs):
        found.append(float(fleet.module("cocoon_vm", **vm)["boot_seconds"]))
        fleet.module("cocoon_vm", name="nginx", state="absent", force=True)
    return found


def _again(access: _Access, runs: int) -> list[float]:
    """A task that asks for an image that has not changed. :returns: seconds above a ping task."""
    fleet = access.fleet
    fleet.module("cocoon_image", run_timeout=3600, **access.options)
    ping = {"name": "ping", "ansible.builtin.ping": {}}
    pull = {"name": "pull", "cocoon.microvm.cocoon_image": {**access.options, "pull": "always"}}
    played = fleet.play([ping, *[ping, pull] * runs])
    with contextlib.suppress(KeyError):
        if played.total("changed"):
            raise BenchError("a pull that was to change nothing changed something")
    fleet.module("cocoon_image", name=access.location, state="absent")
    floor = statistics.median(seconds(played, "ping")[1:])
    return [value - floor for value in seconds(played, "pull")]
