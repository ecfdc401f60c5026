# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives in the Go engine's form, on the hypervisor that they are of."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.cocoon.microvm.tests.integration.support import go_archive
from ansible_collections.cocoon.microvm.tests.lab.conftest import Site


def test_a_vm_boots_from_disks_of_the_go_engine(site: Site, driver: str, tmp_path: Path) -> None:
    """Its memory is refused: the archive does not say which EROFS files that goes with."""
    (image,) = site.module("cocoon_image_info", name="tiny")["images"]
    archive = go_archive.write(tmp_path / "go.tar.gz", driver, image["layers"][0], image["digest"])
    site.lab.copy(archive, "/root/go.tar.gz")
    name, words = f"go-{driver}", {"state": "imported", "path": "/root/go.tar.gz"}
    refused = site.module("cocoon_snapshot", name=name, **words)
    assert refused["failed"] and "does not say which EROFS files" in refused["msg"], refused
    taken = site.module("cocoon_snapshot", name=name, **words, disks_only=True)
    assert not taken["failed"] and taken["changed"], taken
    made = site.vm(name, snapshot=name, state="started", wait_for="agent", timeout=400)["vm"]
    assert (made["hypervisor"], made["state"]) == (driver, "running")
    # Where disks have no serial numbers of ours, the guest mounts none by itself.
    mount = "mkdir -p /mnt/data; [ -e /mnt/data/note ] || mount -t ext4 /dev/vdc /mnt/data"
    read = f"{mount}; cat /root/note /mnt/data/note; echo ours > /root/note; sync"
    found = site.module("cocoon_exec", name=name, shell=read, agent_timeout=60)
    assert found["stdout_lines"] == ["of the Go engine"] * 2, found
    assert site.vm(name, state="absent", force=True)["changed"]
    assert not site.module("cocoon_snapshot", name=name, state="absent")["failed"]
