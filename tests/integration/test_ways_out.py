# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests with several NICs: one default route, over the NIC that published ports lead to, in every kind of guest.

So it is with IPv6, where they are told their addresses.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._network import links
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import subnets
from ansible_collections.cocoon.microvm.tests.integration.support import cloud_image, containers, images
from ansible_collections.cocoon.microvm.tests.integration.support.lab import Key, make_key, ssh_words
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns
from ansible_collections.cocoon.microvm.tests.integration.support.networking import address, inside, plug, route
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules, Result

UPLINK, NEIGHBOUR = "198.51.100.2", "198.51.100.1"
UPLINK6, NEIGHBOUR6, CHOSEN6 = "2001:db8:1::2", "2001:db8:1::1", "fd00:96::77"
OTHER6 = {"subnet6": "fd00:96::/64"}
LOOK = "ip route; echo IPv6; ip -6 addr; ip -6 route"
BOOT = 900
# The NIC that leads nowhere comes first, so that a guest that takes the first, or the last, is found out.
NICS: list[dict[str, Any]] = [
    {"network": "lab", "routes": [{"to": "10.77.0.0/16", "via": "10.94.0.9", "metric": 7}]},
    {"network": "pub", "routes": [{"to": "fd00:77::/64"}, {"to": "fd00:78::/64", "via": "fe80::9", "metric": 9}]},
    {"network": "other", "dhcp": True, "ip6": CHOSEN6},
]
SMALL = {"cpu": 1, "memory": "96M", "storage": "64M", "accel": "tcg", "nics": NICS, "timeout": BOOT}


@dataclass
class Site:
    """A host with three networks, of which one leads out, and a neighbour on its uplink."""

    run: Modules
    netns: Netns
    outside: Netns
    key: Key
    ports: int = 8100

    def vm(self, name: str, guest_port: int = 22, **options: Any) -> tuple[Result, int]:
        """A running VM, and the port of the host that leads to it."""
        self.ports += 1
        wait = {"state": "started", "wait_for": "port", "wait_port": guest_port}
        published = [f"{self.ports}:{guest_port}"]
        made = self.run("cocoon_vm", name=name, run_timeout=BOOT + 60, **{"ports": published, **wait, **options})
        return made, self.ports

    def ssh(self, port: int, script: str, user: str = "root") -> str:
        """Run a script in a guest, from the neighbour and by the published port."""
        words = [*ssh_words(user, UPLINK, self.key, port), script]
        deadline = time.monotonic() + BOOT
        while True:
            try:
                return self.outside.run(*words, timeout=BOOT).strip()
            except AssertionError as exc:  # a busy machine may be slower than ssh is patient
                if "timed out" not in str(exc) or time.monotonic() > deadline:
                    raise

    def fetch(self, port: int) -> str:
        """What a guest's web server answers the neighbour."""
        with inside(self.outside, socket.create_connection, (UPLINK, port), 60) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return b"".join(iter(lambda: sock.recv(4096), b"")).decode().partition("\r\n\r\n")[2]

    def image(self, name: str, source: Path) -> None:
        self.run("cocoon_image", name=name, source=str(source))


def check_routes(text: str, metric: bool = True) -> None:
    """One default route, and the extra one of the first NIC."""
    text, out = text.partition("IPv6")[0], "10.95.0.1 dev eth1"
    lines = [" ".join(line.split()) for line in text.splitlines()]
    defaults = [line for line in lines if line.startswith("default")]
    assert len(defaults) == 1 and f"via {out}" in defaults[0], text
    extra = [line for line in lines if line.startswith("10.77.0.0/16")]
    assert len(extra) == 1 and "via 10.94.0.9 dev eth0" in extra[0], text
    assert not metric or "metric 7" in extra[0], text


def check_ways6(text: str, metric: bool = True) -> None:
    """The ways of IPv6 that the second NIC was told by hand."""
    lines = [" ".join(line.split()) for line in text.partition("IPv6")[2].splitlines()]
    assert any(line.startswith("fd00:77::/64 via fd00:95::1 dev eth1") for line in lines), text
    other = next((line for line in lines if line.startswith("fd00:78::/64 via fe80::9 dev eth1")), "")
    assert other and (not metric or "metric 9 " in f"{other} "), text


def check_ipv6(site: Site, name: str, text: str, metric: str = "", hears: bool = False) -> list[str]:
    """The guest has the addresses that its record says, and no others but by routers; the host reaches them."""
    found = text.partition("IPv6")[2]
    nics = site.run("cocoon_vm_info", name=name)["vms"][0]["network_configs"]
    told = [nic["network6"]["ip"] for nic in nics if nic.get("network6")]
    words = [word.partition("/")[0] for line in found.splitlines() if "inet6 fd" in line for word in line.split()]
    others = [nic for nic in nics if nic["network_name"] == "other" and (hears or not nic.get("ip6"))]
    heard = [subnets.address6(OTHER6, {"mac": nic["mac"]}) for nic in others]
    assert {word for word in words if word.startswith("fd")} - set(heard) == set(told), text
    defaults = [" ".join(line.split()) for line in found.splitlines() if line.startswith("default")]
    way = next(index for index, nic in enumerate(nics) if nic["network_name"] == "pub")
    assert len(defaults) == 1 and f"via fd00:95::1 dev eth{way}" in defaults[0] and metric in defaults[0], text
    for ip in told:
        assert ping6(site.netns, ip), ip
    return told


def ping6(netns: Netns, ip: str) -> bool:
    words = [*netns.enter(), "ping", "-6", "-n", "-c", "1", "-w", "20", ip]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def check_asked(site: Site, name: str, port: int) -> None:
    """The third NIC has got, by asking, the address that the record says."""
    nic = site.run("cocoon_vm_info", name=name)["vms"][0]["network_configs"][2]
    script = f"for n in 1 2 3 4 5 6 7 8 9; do ip route | grep -w {nic['network']['ip']} && break; sleep 2; done"
    assert "dev eth2" in site.ssh(port, script)


def check_comes_and_goes(site: Site, name: str, nics: list[dict[str, Any]]) -> None:
    """One more NIC while it runs, which the host reaches it by, and which is gone afterwards; the others stay."""
    before = site.run("cocoon_vm_info", name=name)["vms"][0]
    found = site.run("cocoon_vm", name=name, nics=[*nics, {"network": "lab"}], timeout=BOOT, run_timeout=BOOT + 60)[
        "vm"
    ]
    assert found["pid"] == before["pid"] and len(found["network_configs"]) == len(nics) + 1
    for config in found["network_configs"]:
        site.netns.run("ping", "-n", "-q", "-c", "1", "-w", "60", config["network"]["ip"])
    site.run("cocoon_vm", name=name, nics=nics, timeout=BOOT, run_timeout=BOOT + 60)
    links = len(site.run("cocoon_exec", name=name, shell="ls /sys/class/net")["stdout_lines"])
    assert links == len(nics) + 1  # and lo
    for config in before["network_configs"]:
        site.netns.run("ping", "-n", "-q", "-c", "1", "-w", "60", config["network"]["ip"])


@pytest.fixture(scope="module", name="site")
def fixture_site(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    tiny_image: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    netns, outside = make_netns(), make_netns()
    plug(netns, "up0", outside, "out0")
    address(netns, "up0", f"{UPLINK}/24")
    address(outside, "out0", f"{NEIGHBOUR}/24")
    route(netns, "default", "via", NEIGHBOUR)
    for where, link, ip in ((netns, "up0", UPLINK6), (outside, "out0", NEIGHBOUR6)):
        where.run("ip", "addr", "add", f"{ip}/64", "dev", link, "nodad")
    netns.run("ip", "-6", "route", "add", "default", "via", NEIGHBOUR6)
    inside(netns, links.set_sysctl, "ipv6", "all", "forwarding", "1")
    site = Site(modules(netns, make_store()), netns, outside, make_key(tmp_path_factory.mktemp("keys")))
    site.run("cocoon_network", name="lab", subnet="10.94.0.0/24", nat=False)
    pub = {"subnet": "10.95.0.0/24", "subnet6": "fd00:95::/64", "addresses6": "static", "routing6": "nat"}
    site.run("cocoon_network", name="pub", dns=["192.0.2.53"], dns_search=["pub.example"], **pub)
    site.run("cocoon_network", name="other", subnet="10.96.0.0/24", dhcp=True, names=True, **OTHER6)
    site.image("tiny", tiny_image)
    yield site
    names = [vm["config"]["name"] for vm in site.run("cocoon_vm_info")["vms"]]
    site.run("cocoon_vms", vms=[{"name": name, "state": "absent", "force": True} for name in names])
    for snapshot in site.run("cocoon_snapshot_info")["snapshots"]:
        site.run("cocoon_snapshot", name=snapshot["name"], state="absent")
    for image in site.run("cocoon_image_info")["images"]:
        site.run("cocoon_image", name=image["id"], state="absent")
    for name in ("lab", "pub", "other"):
        site.run("cocoon_network", name=name, state="absent")


@pytest.fixture(autouse=True)
def one_at_a_time(site: Site) -> Iterator[None]:
    yield
    running = [vm["config"]["name"] for vm in site.run("cocoon_vm_info")["vms"]]
    site.run("cocoon_vms", vms=[{"name": name, "state": "absent", "force": True} for name in running])


def test_tiny_and_its_clone(site: Site) -> None:
    options = {"image": "tiny", "ssh_keys": [site.key.public], **SMALL}
    made, port = site.vm("one", **options)
    found = site.ssh(port, LOOK)
    check_routes(found)
    check_ways6(found)
    assert len(check_ipv6(site, "one", found)) == 2
    check_asked(site, "one", port)
    named = site.ssh(port, f"nslookup one.other 10.96.0.1 | tail -n +3; ping -6 -c1 -W9 {NEIGHBOUR6}")
    assert "10.96." in named and CHOSEN6 in named and "1 packets received" in named, named
    taken = site.run("cocoon_vm", name="thief", image="tiny", nics=[{"network": "other", "ip6": CHOSEN6}], ok=False)
    assert f"nics[0].ip6: {CHOSEN6} on network 'other' belongs to VM 'one'" in taken["msg"]
    resolver = site.ssh(port, "cat /etc/resolv.conf")
    assert resolver.count("nameserver") == 1  # pub's, as nobody has to ask for any
    assert "search pub.example" in resolver
    again, _port = site.vm("one", **{**options, "ports": made["vm"]["ports"]})
    assert not again.changed
    site.run("cocoon_snapshot", name="warm", vm="one")
    # The clone's networks are in another order, and with it the way out.
    pub = {"network": "pub", "mac": "02:00:00:00:77:01"}
    nics: list[dict[str, Any]] = [{"network": "other", "dhcp": True}, {"network": "lab"}, pub]
    _clone, port = site.vm("two", snapshot="warm", nics=nics, timeout=BOOT)
    found = site.ssh(port, LOOK)
    assert len(check_ipv6(site, "two", found)) == 1
    found = found.partition("IPv6")[0]
    assert found.count("default") == 1 and "default via 10.96.0.1 dev eth0" in found, found
    assert "10.77." not in found
    # A change of the way out is a change of NICs, and the port goes with it.
    nics[2]["default_route"] = True
    moved, port = site.vm("two", nics=nics, allow_restart=True, timeout=BOOT)
    assert moved.changed
    found = site.ssh(port, "ip route")
    assert found.count("default") == 1 and "default via 10.95.0.1 dev eth2" in found, found


def test_a_container(site: Site, scratch: Path, tmp_path: Path) -> None:
    site.image("cocoon/kernel", images.built("kernel", scratch))
    script = f"mkdir -p /www; ({LOOK}) > /www/index.html; exec httpd -f -p 80 -h /www"
    config = {"Entrypoint": ["/bin/sh", "-c", script], "Env": ["PATH=/bin"]}
    site.image("web", containers.layout(tmp_path / "web", [containers.busybox_layer(None)], **config))
    _made, port = site.vm("box", 80, image="web", **{**SMALL, "memory": "128M", "storage": "128M"})
    found = site.fetch(port)
    check_routes(found)
    check_ways6(found)
    check_ipv6(site, "box", found)
    check_comes_and_goes(site, "box", NICS)


def test_a_debian_and_its_clone(site: Site, debian_image: Path) -> None:
    site.image("debian", debian_image)
    options = {**SMALL, "memory": "384M", "storage": "1G"}
    _made, port = site.vm("deb", image="debian", ssh_keys=[site.key.public], **options)
    found = site.ssh(port, LOOK)
    check_routes(found)
    check_ways6(found)
    assert len(check_ipv6(site, "deb", found)) == 2
    assert "search pub.example" in site.ssh(port, "cat /etc/resolv.conf")
    site.run("cocoon_snapshot", name="deb", vm="deb")
    nics = [{"network": "other", "default_route": False}, {"network": "lab"}, {"network": "pub", "metric": 42}]
    _clone, port = site.vm("deb2", snapshot="deb", nics=nics, timeout=BOOT)
    found = site.ssh(port, LOOK)
    check_ipv6(site, "deb2", found, "metric 42")
    found = found.partition("IPv6")[0]
    assert found.count("default") == 1 and "default via 10.95.0.1 dev eth2" in found, found
    assert "metric 42" in found and "10.77." not in found, found
    check_comes_and_goes(site, "deb2", nics)


def test_a_cloud_image(site: Site, scratch: Path) -> None:
    site.image("cloud", cloud_image.built(scratch))
    options = {**SMALL, "cpu": 2, "memory": "512M", "storage": "3G"}
    _made, port = site.vm("cloud", image="cloud", user="alice", ssh_keys=[site.key.public], **options)
    # Without netplan, this cloud-init hands no metrics on to systemd-networkd.
    found = site.ssh(port, LOOK, "alice")
    check_routes(found, metric=False)
    check_ways6(found, metric=False)
    # Nor does it have networkd leave advertisements alone.
    check_ipv6(site, "cloud", found, hears=True)
