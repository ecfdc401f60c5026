# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils import _doctor as doctor
from ansible_collections.cocoon.microvm.plugins.module_utils._firewalls import Firewall
from ansible_collections.cocoon.microvm.plugins.module_utils._host import LIBRARIES, TOOLS, Facts

QEMU = {
    **{"name": "qemu", "version": "7.2.22", "available": True, "reason": None},
    **{"firmware": ("uefi", "bios"), "uefi_remedy": "Install ovmf."},
}
NO_QEMU = {**QEMU, "available": False, "reason": "not found", "remedy": "Install qemu-system-x86."}
PYTHON = {"executable": "/usr/bin/python3", "version": "3.11.2", "distribution_packages": True}
STORE = {"exists": True, "layout": 1, "counts": {"vms": 3, "images": 1}}
GOOD = Facts(
    architecture="x86_64",
    kernel="6.1.0-18-amd64",
    python=PYTHON,
    hypervisors=[QEMU, {"name": "firecracker", "version": None, "available": False, "reason": "not found"}],
    kvm={"usable": True, "reason": None},
    tools={name: {"path": f"/usr/bin/{name}", "version": "1.0"} for name in TOOLS},
    libraries=dict.fromkeys(LIBRARIES, "1.0"),
    tun=True,
    bridge=True,
    memory={"total": 8 << 30, "available": 7 << 30},
    disk={"path": "/var/lib/x", "total": 60 << 30, "free": 40 << 30},
    closed={},
    firewalls=[],
    nft_error=None,
    systemd=True,
    store=STORE,
    uid_overlaps=[],
    default_kernel={"updated_at": "2026-11-23T10:00:00Z"},
)


def outcome(**changes: t.Any) -> dict[str, doctor.Check]:
    """The checks that are not PASS, by name."""
    checks = doctor.examine(dataclasses.replace(GOOD, **changes))
    return {check["name"]: check for check in checks if check["status"] != doctor.PASS}


def test_a_good_host() -> None:
    checks = doctor.examine(GOOD)
    assert {check["status"] for check in checks} == {doctor.PASS}
    assert all(check["remedy"] is None and check["detail"] for check in checks)
    names = [check["name"] for check in checks]
    assert len(names) == len(set(names))


def tools(**missing: None) -> dict[str, t.Any]:
    return {**GOOD.tools, **{name.replace("_", "-") if name == "qemu_img" else name: None for name in missing}}


@pytest.mark.parametrize(
    ("changes", "name", "status", "words"),
    [
        ({"architecture": "aarch64"}, "architecture", "FAIL", "x86-64"),
        ({"kernel": "5.3.18-lp"}, "kernel", "FAIL", "5.4"),
        ({"kernel": "4.18.0-553.el8.x86_64"}, "kernel", "FAIL", "5.4"),
        ({"python": {**PYTHON, "version": "3.8.10"}}, "python", "FAIL", "ansible_python_interpreter"),
        (
            {"hypervisors": [NO_QEMU]},
            "hypervisor",
            "FAIL",
            "Install qemu-system-x86",
        ),
        ({"hypervisors": [{**QEMU, "firmware": ("bios",)}]}, "uefi", "WARN", "Install ovmf"),
        ({"tools": tools(mcopy=None)}, "mformat", "WARN", "Install mtools"),
        ({"kvm": {"usable": False, "reason": "there is no /dev/kvm"}}, "kvm", "WARN", "virtualisation"),
        ({"libraries": {**GOOD.libraries, "pyroute2": None}}, "pyroute2", "FAIL", "Install python3-pyroute2"),
        ({"libraries": {**GOOD.libraries, "jsonschema": None}}, "jsonschema", "FAIL", "Install python3-jsonschema"),
        (
            {"libraries": {**GOOD.libraries, "requests_unixsocket": None}},
            "requests-unixsocket",
            "WARN",
            "Install python3-requests-unixsocket",
        ),
        ({"tools": tools(qemu_img=None)}, "qemu-img", "FAIL", "Install qemu-utils"),
        ({"tools": {**GOOD.tools, "mkfs.erofs": None}}, "mkfs.erofs", "FAIL", "Install erofs-utils"),
        ({"tools": tools(resize2fs=None)}, "mkfs.ext4", "FAIL", "Install e2fsprogs"),
        ({"tools": tools(nft=None)}, "nft", "FAIL", "Install nftables"),
        ({"tools": tools(dnsmasq=None)}, "dnsmasq", "WARN", "Install dnsmasq-base"),
        ({"tools": tools(zstd=None)}, "zstd", "WARN", "Install zstd"),
        ({"tools": tools(skopeo=None)}, "skopeo", "WARN", "Install skopeo"),
        ({"nft_error": "Operation not permitted"}, "nftables", "FAIL", "nf_tables"),
        (
            {"firewalls": [Firewall("docker", "iptables-nft FORWARD", [["iptables", "-i", "cm +"]], [])]},
            *("forwarding", "WARN", "host_firewall: open, by: iptables -i 'cm +'"),
        ),
        ({"tun": False}, "tun", "FAIL", "modprobe tun"),
        ({"halted": {"web1": "io-error"}}, "guests", "WARN", "state: started"),
        ({"bridge": False}, "bridge", "WARN", "module bridge"),
        ({"memory": {"total": 1 << 30, "available": 100 << 20}}, "memory", "WARN", "512M"),
        ({"disk": {**GOOD.disk, "free": 1 << 20}}, "disk", "WARN", "root_dir"),
        ({"closed": {"root_dir": "/root"}}, "directories", "FAIL", "chmod o+x /root"),
        ({"uid_overlaps": ["/etc/subuid: joe:1:9"]}, "uids", "WARN", "subordinate"),
        ({"default_kernel": None}, "default kernel", "WARN", "container images"),
        ({"store": {"exists": True, "error": "store.json is damaged"}}, "store", "FAIL", "store.json"),
        ({"damaged": ["/x/network.json is damaged: it is cut off"]}, "documents", "FAIL", "backup"),
        ({"orphans": {"a" * 26: ["address 10.0.0.2"]}}, "leftovers", "WARN", "prune"),
    ],
)
def test_each_thing_that_is_wrong_has_a_remedy(changes: dict[str, t.Any], name: str, status: str, words: str) -> None:
    found = outcome(**changes)
    assert list(found) == [name]
    assert found[name]["status"] == status
    assert words in found[name]["remedy"]
    assert found[name]["detail"]


def test_a_firewall_that_lets_guests_pass_is_no_trouble() -> None:
    wall = Firewall("docker", "iptables-nft FORWARD", [], [["iptables-nft", "-D"]])
    (row,) = [row for row in doctor.examine(dataclasses.replace(GOOD, firewalls=[wall])) if row["name"] == "forwarding"]
    assert row["status"] == doctor.PASS and row["detail"] == "let through by docker (iptables-nft FORWARD)"


def test_no_hypervisor_at_all() -> None:
    found = outcome(hypervisors=[])
    assert list(found) == ["hypervisor", "uefi"]
    assert "Run the role cocoon.microvm.host" in str(found["hypervisor"]["remedy"])


def test_libraries_of_an_interpreter_that_packages_do_not_reach() -> None:
    python = {**PYTHON, "executable": "/opt/venv/bin/python", "distribution_packages": False}
    found = outcome(python=python, libraries={**GOOD.libraries, "pyroute2": None})
    assert found["pyroute2"]["remedy"] == "Run /opt/venv/bin/python -m pip install pyroute2."
    assert "/opt/venv/bin/python" in found["pyroute2"]["detail"]


def test_a_host_without_a_store_or_systemd_is_fine() -> None:
    assert outcome(store={"exists": False, "root_dir": "/var/lib/x"}, systemd=False) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("6.1.0-18-amd64", (6, 1, 0)), ("5.4", (5, 4)), ("6.18.44-fc-v669", (6, 18, 44)), ("3.9.18", (3, 9, 18))],
)
def test_versions_compare_as_numbers(text: str, expected: tuple[int, ...]) -> None:
    assert doctor.numbers(text) == expected
