# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""IPv6 beside IPv4: namespaces that make their addresses from what the network's own router says."""

from __future__ import annotations

import select
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ConflictError, UnsupportedError
from ansible_collections.cocoon.microvm.plugins.module_utils._network import (
    attachments,
    kernel,
    links,
    listing,
    serving,
)
from ansible_collections.cocoon.microvm.tests.integration.support import asking
from ansible_collections.cocoon.microvm.tests.integration.support.hosts import Host, MakeNetns, make_host
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns, command
from ansible_collections.cocoon.microvm.tests.integration.support.networking import inside, plug

MAC, SUBNET, GATEWAY = "02:00:00:00:00:01", "fd00:90::/64", "fd00:90::1"
OWN = "fd00:90::ff:fe00:1"
UPLINK, NEIGHBOUR, INTERNET = "2001:db8:1::2", "2001:db8:1::1", "2001:db8:2::1"
ANSWER, SILENCE = 10.0, 0.4


@pytest.fixture(name="host")
def fixture_host(make_netns: MakeNetns, make_store: Callable[[], dict[str, str]]) -> Iterator[Host]:
    """A host that forwards IPv6 and has a way out with it."""
    if shutil.which("dnsmasq") is None or not links.has_ipv6():
        pytest.skip("needs dnsmasq and IPv6")
    host = make_host(make_netns, make_store())
    for netns, link, cidr in (
        (host.netns, "up0", UPLINK),
        (host.outside, "out0", NEIGHBOUR),
        (host.outside, "lo", None),
    ):
        command(
            "ip", "-n", netns.name, "addr", "add", f"{cidr or INTERNET}/{64 if cidr else 128}", "dev", link, "nodad"
        )
    command("ip", "-n", host.outside.name, "link", "set", "lo", "up")
    command("ip", "-n", host.netns.name, "-6", "route", "add", "default", "via", NEIGHBOUR)
    yield host
    for name in ("lab", "other"):
        host.network(name, state="absent", force=True)


def forward(host: Host, value: str) -> None:
    inside(host.netns, links.set_sysctl, "ipv6", "all", "forwarding", value)


def newcomer(host: Host) -> Netns:
    """A guest with that MAC, which is told nothing."""
    netns = host.make_netns()
    port = f"g{netns.name.rpartition('-')[2]}"
    plug(host.netns, port, netns, "eth0")
    command("ip", "-n", netns.name, "link", "set", "eth0", "down")
    inside(netns, links.set_sysctl, "ipv6", "eth0", "accept_dad", "0")
    command("ip", "-n", netns.name, "link", "set", "eth0", "address", MAC)
    command("ip", "-n", host.netns.name, "link", "set", port, "master", "cm-lab")
    command("ip", "-n", netns.name, "link", "set", "eth0", "up")
    return netns


def has(netns: Netns, ip: str, wait: float = ANSWER) -> bool:
    """Whether the guest comes to have the address."""
    index = inside(netns, links.index_of, "eth0")
    deadline = time.monotonic() + wait
    while not inside(netns, kernel.has_address6, index, ip):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def reaches(source: Netns, target: Netns, ip: str, wait: float = ANSWER) -> str | None:
    """Whom the target sees when the source connects."""
    with inside(target, socket.create_server, ("::", 80), family=socket.AF_INET6) as server:
        with inside(source, socket.socket, socket.AF_INET6, socket.SOCK_STREAM) as client:
            client.setblocking(False)
            try:
                client.connect_ex((ip, 80))
            except OSError:
                return None
            if not select.select([server], [], [], wait)[0]:
                return None
            connection, peer = server.accept()
            connection.close()
            return str(peer[0])


def test_dual_stack(host: Host) -> None:
    forward(host, "0")
    with pytest.raises(UnsupportedError, match="routing6: the host does not forward.*net.ipv6.conf.all.forwarding=1"):
        host.network("lab", subnet="10.90.0.0/24", subnet6=SUBNET, routing6="nat")
    assert attachments.load(host.store, "lab") is None and inside(host.netns, kernel.kind, "cm-lab") is None
    host.network("lab", subnet="10.90.0.0/24", subnet6=SUBNET, names=True, dhcp=True)
    assert not host.network("lab")["changed"]
    with pytest.raises(ConflictError, match="subnet6: .* overlaps .*network 'lab'"):
        host.network("other", subnet="10.91.0.0/24", subnet6=SUBNET)
    with pytest.raises(ConflictError, match="subnet6: .* interface up0"):
        host.network("other", subnet="10.91.0.0/24", subnet6="2001:db8:1::/64")
    # Without a way out there are addresses, and no default route.
    guest = newcomer(host)
    assert has(guest, OWN)
    assert "default" not in guest.run("ip", "-6", "route")
    assert reaches(host.netns, guest, OWN)
    guest.run("ping", "-6", "-c", "1", "-W", "5", GATEWAY)
    assert reaches(guest, host.netns, GATEWAY, wait=SILENCE) is None
    # Behind the host's address, and then under its own.
    forward(host, "1")
    assert host.network("lab", routing6="nat")["changed"]
    until_route(guest)
    assert reaches(guest, host.outside, INTERNET) == UPLINK
    assert host.network("lab", routing6="routed")["changed"] and not host.network("lab")["changed"]
    command("ip", "-n", host.outside.name, "-6", "route", "add", SUBNET, "via", UPLINK)
    assert reaches(guest, host.outside, INTERNET) == OWN
    assert reaches(host.outside, guest, OWN, wait=SILENCE) is None
    named(host, guest)
    damaged(host, guest)
    # What somebody has taken away comes back, and it goes when it is not wanted.
    command("ip", "-n", host.netns.name, "-6", "addr", "del", f"{GATEWAY}/64", "dev", "cm-lab")
    assert host.network("lab", check=True)["diff"]["before"]["host"] == {"ipv6": "missing"}
    assert host.network("lab")["changed"] and reaches(guest, host.outside, INTERNET) == OWN
    assert host.network("lab", subnet6="", routing6="none")["changed"]
    assert inside(host.netns, links.get_sysctl, "ipv6", "cm-lab", "disable_ipv6") == "1"


def damaged(host: Host, guest: Netns) -> None:
    """The run of another network leaves one alone that cannot be read: its guests go on with all that they have."""
    host.network("other", subnet="10.91.0.0/24")
    rules, path = host.rules(), Path(host.store.paths.object_dir("network", host.record("lab")["id"]), "network.json")
    whole = path.read_bytes()
    path.write_bytes(whole[:60])
    assert not host.network("other")["changed"] and host.rules() == rules
    assert reaches(guest, host.outside, INTERNET) == OWN
    path.write_bytes(whole)


def until_route(guest: Netns) -> None:
    """A router that says more than before says it at once."""
    deadline = time.monotonic() + ANSWER
    while "default" not in guest.run("ip", "-6", "route"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def named(host: Host, guest: Netns) -> None:
    """A VM's name leads to both of its addresses, which the listing tells."""
    network, ip = host.record("lab"), "10.90.0.10"
    host.vm("web1", [{"network_id": network["id"], "mac": MAC, "network": {"ip": ip, "prefix": 24}}], "web1")
    inside(host.netns, attachments.lease, host.store, network, ip, "web1")
    inside(host.netns, serving.publish, host.store, network, ip)
    deadline = time.monotonic() + ANSWER
    while asking.name(guest, GATEWAY, "web1.lab", kind=asking.AAAA) != OWN:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (told,) = inside(host.netns, listing.describe, {**host.dirs, "name": "lab"})
    assert [(lease["ip"], lease["ip6"]) for lease in told["leases"]] == [(ip, OWN)]
    inside(host.netns, attachments.release, host.store, network["id"], ip, "web1")
    shutil.rmtree(host.store.paths.vm_dir("web1"))
