# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest of each hypervisor on a network that real CNI plugins make; those of this machine, which are copied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.tests.lab.conftest import Site

BIN = Path("/usr/lib/cni")
PLUGINS = ("bridge", "host-local", "loopback")
VM = {"image": "tiny", "cpu": 1, "memory": "128M", "storage": "128M", "network": "pods", "balloon": "off"}
IPAM = {"type": "host-local", "ranges": [[{"subnet": "10.22.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}
CONFLIST = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "plugins": [{"type": "bridge", "bridge": "cnl0", "isGateway": True, "ipam": IPAM}],
}


@pytest.fixture(scope="module")
def pods(site: Site) -> str:
    """The name of a network that plugins make."""
    if not all((BIN / name).is_file() for name in PLUGINS):
        pytest.skip("needs the package containernetworking-plugins")
    site.shell("mkdir -p /opt/cni/bin /etc/cni/net.d")
    for name in PLUGINS:
        site.lab.copy(BIN / name, f"/opt/cni/bin/{name}")
    site.lab.ssh("cat > /etc/cni/net.d/10-pods.conflist", stdin=json.dumps(CONFLIST).encode())
    made = site.module("cocoon_network", name="pods", type="cni", conflist="pods", cni_bin_dir=["/opt/cni/bin"])
    assert not made["failed"], made
    return "pods"


def test_a_guest_on_what_plugins_make(site: Site, pods: str, driver: str) -> None:
    """It answers at the address that the plugins gave, also after it has slept; and nothing of theirs is left."""
    name = f"cni-{driver}"
    made = site.vm(name, hypervisor=driver, state="started", wait_for="ping", timeout=400, **VM)["vm"]
    nic = made["network_configs"][0]
    assert nic["network"]["ip"].startswith("10.22.0.")
    assert "1 received" in site.shell(f"ping -c1 -W10 {nic['network']['ip']}")
    assert not site.vm(name, hypervisor=driver, state="started", **VM)["changed"]
    site.vm(name, state="hibernated")
    awake = site.vm(name, state="started", wait_for="ping", timeout=200)["vm"]
    assert awake["network_configs"][0]["network"]["ip"] == nic["network"]["ip"]
    assert site.vm(name, state="absent", force=True)["changed"]
    left = site.shell(
        f"ls /run/netns | grep {made['id']}; ls /var/lib/cni/networks/pods | grep 10.22;"
        " ip -o link show master cnl0; ls /var/lib/cocoon-microvm/networks/*/attachments 2>/dev/null | grep '[0-9]$'"
        " || true"
    )
    assert not left.strip(), left
