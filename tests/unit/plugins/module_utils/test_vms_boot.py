# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import BootStyle
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import boot

STYLE = BootStyle("ttyS0")

IMAGE = {
    "id": "sha256:aa",
    "type": "oci",
    "layers": ["l0", "l1"],
    "boot": {"kernel_path": "/k", "initrd_path": "/i"},
}
RECORD = {
    "id": "abcdefghij",
    "image_type": "oci",
    "config": {"name": "web1"},
    "kernel_args": "quiet",
    "data_disks": [{"name": "db", "size": 1, "fstype": "ext4"}],
    "network_configs": [
        {"network": {"ip": "10.0.0.2", "gateway": "10.0.0.1", "prefix": 24}, "dns": ["10.0.0.53"]},
        {},
        {"network": {"ip": "10.9.0.2", "gateway": "", "prefix": 30}, "dns": []},
    ],
}


def test_the_command_line_is_the_contract() -> None:
    assert boot.kernel_command_line(RECORD, IMAGE, STYLE) == (
        "console=ttyS0 loglevel=3 panic=5 boot=cocoon-overlay cocoon.layers=cocoon-layer1,cocoon-layer0"
        " cocoon.cow=cocoon-cow rw net.ifnames=0 cocoon.hostname=web1"
        " ip=10.0.0.2::10.0.0.1:255.255.255.0:web1:eth0:off:10.0.0.53"
        " ip=10.9.0.2:::255.255.255.252:web1:eth2:off quiet"
    )


def test_a_driver_adds_its_words() -> None:
    style = dataclasses.replace(STYLE, console="hvc0", words=("clocksource=kvm-clock", "reboot=k"))
    line = boot.kernel_command_line(RECORD, IMAGE, style)
    assert line.startswith("console=hvc0 loglevel=3 ")
    assert " rw clocksource=kvm-clock reboot=k net.ifnames=0 " in line


def test_disks_by_their_places() -> None:
    """Where a hypervisor gives serials of its own; the layers are still named top first."""
    line = boot.kernel_command_line(RECORD, IMAGE, dataclasses.replace(STYLE, disks="path"))
    assert " cocoon.layers=/dev/vdb,/dev/vda cocoon.cow=/dev/vdc " in line


@pytest.mark.parametrize(("place", "path"), [(0, "/dev/vda"), (25, "/dev/vdz"), (26, "/dev/vdaa"), (52, "/dev/vdba")])
def test_names_of_places(place: int, path: str) -> None:
    assert boot.disk_path(place) == path


def test_a_name_that_is_no_host_name() -> None:
    named = {**RECORD, "config": {"name": "Deb_Two.7"}}
    line = boot.kernel_command_line(named, IMAGE, STYLE)
    assert " cocoon.hostname=Deb-Two.vm-7 " in line and ":Deb-Two.vm-7:eth0:" in line and "Deb_Two" not in line


def test_without_nics_the_name_is_all_that_is_said_about_the_network() -> None:
    line = boot.kernel_command_line({**RECORD, "network_configs": [], "kernel_args": ""}, IMAGE, STYLE)
    assert line.endswith("cocoon.cow=cocoon-cow rw cocoon.hostname=web1")


def test_what_a_kernel_would_cut_off_is_refused() -> None:
    routes = [{"to": f"10.{number}.0.0/16", "via": "10.0.0.1"} for number in range(40)]
    nics = [{**RECORD["network_configs"][0], "routes": routes}]
    with pytest.raises(InputError, match="takes 2047") as caught:
        boot.kernel_command_line({**RECORD, "network_configs": nics * 2}, IMAGE, STYLE)
    assert caught.value.option == "kernel_args, nics"


def test_disks_stand_in_device_order() -> None:
    configs = boot.storage_configs(RECORD, IMAGE, Paths())
    assert [(item["path"], item["ro"], item["serial"], item["role"]) for item in configs] == [
        ("/var/lib/cocoon-microvm/images/blobs/l0.erofs", True, "cocoon-layer0", "layer"),
        ("/var/lib/cocoon-microvm/images/blobs/l1.erofs", True, "cocoon-layer1", "layer"),
        ("/var/lib/cocoon-microvm/vms/abcdefghij/cow.raw", False, "cocoon-cow", "cow"),
        ("/var/lib/cocoon-microvm/vms/abcdefghij/data-db.raw", False, "db", "data"),
    ]


def test_data_disks_say_what_is_on_them_and_where_it_is() -> None:
    disks = [{"name": "db", "size": 1, "fstype": "ext4"}, {"name": "raw", "size": 1, "fstype": "none"}]
    found = boot.storage_configs({**RECORD, "data_disks": disks}, IMAGE, Paths())[-2:]
    assert [(item["fstype"], item.get("mount_point")) for item in found] == [("ext4", "/mnt/db"), ("none", None)]


def test_a_disk_image_brings_its_own_kernel() -> None:
    assert boot.boot_config(RECORD, {"type": "cloudimg", "boot": None}, STYLE) == {}
    configs = boot.storage_configs({**RECORD, "image_type": "cloudimg"}, {"type": "cloudimg", "layers": []}, Paths())
    assert configs[0]["path"].endswith("/overlay.qcow2")


def test_the_volume_of_the_first_boot_comes_last(tmp_path: Path) -> None:
    paths, record, image = (
        Paths(str(tmp_path)),
        {**RECORD, "image_type": "cloudimg"},
        {"type": "cloudimg", "layers": []},
    )
    without = boot.storage_configs(record, image, paths)
    volume = tmp_path / "vms" / RECORD["id"] / "cidata.img"
    volume.parent.mkdir(parents=True)
    volume.touch()
    assert boot.storage_configs(record, image, paths) == [
        *without,
        {"path": str(volume), "ro": True, "serial": "cocoon-cidata", "role": "cidata"},
    ]
