# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guest images for the tests, by the role image, from the packages that `make setup` fetched."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ansible_collections.cocoon.microvm.tests.integration.support.machine import (
    COLLECTION,
    PREFIX,
    WORK,
    command,
    make_netns,
    one_at_a_time,
)
from ansible_collections.cocoon.microvm.tests.integration.support.running import Playbooks

HERE = Path(__file__).resolve().parent
CACHE = WORK / "image-packages"


def role_digest() -> str:
    """A digest of everything that the images are made of, the distribution's packages aside."""
    role = COLLECTION / "roles" / "image"
    total = hashlib.sha256((HERE / "host_packages.yml").read_bytes())
    for path in sorted(role.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            total.update(f"{path.relative_to(role)}\0".encode() + path.read_bytes())
    return total.hexdigest()[:16]


def built(name: str, scratch: Path) -> Path:
    """The tar of an image, built if there is none of this version of the role.

    :param name: tiny or debian, the flavours; or host, a Debian with all that a hypervisor host needs.
    :param scratch: a folder for temporary files.
    """
    target = WORK / "images" / f"{name}-{role_digest()}.tar"
    with one_at_a_time(target) as missing:
        if missing:
            build(name, target, scratch)
    for old in target.parent.glob(f"{name}-*.tar"):
        if old != target:
            old.unlink()
    return target


def build(name: str, target: Path, scratch: Path) -> None:
    """Build an image under a name of this process's own, and rename it."""
    building = target.with_name(f"building-{os.getpid()}-{name}.tar")
    # Nothing to download from: the build has to do with what is there.
    netns = make_netns(f"{PREFIX}-image")
    try:
        flavour = "debian" if name == "host" else name
        variables = {"image": name, "flavour": flavour, "target": str(building), "cache": str(CACHE)}
        Playbooks(netns, scratch, {})(HERE / "build_image.yml", variables=variables, run_timeout=600)
        building.replace(target)
    finally:
        for leftover in target.parent.glob(f"{building.name}*"):
            leftover.unlink()
        command("ip", "netns", "del", netns.name, check=False)
