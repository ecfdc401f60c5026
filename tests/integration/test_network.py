# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks with real bridges, rules and packets. Namespaces stand for the host, for what is outside, and for guests."""

from __future__ import annotations

import fcntl
import os
import resource
import select
import shutil
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._engine import giving_back, orphans
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    ChangeRefusedError,
    CocoonError,
    ConflictError,
    HypervisorError,
    NotFoundError,
    ToolError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import launch
from ansible_collections.cocoon.microvm.plugins.module_utils._network import (
    attachments,
    converging,
    forwarding,
    guard,
    kernel,
    links,
    listing,
    neighbours,
    nftables,
    wires,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._network.tap import make_named, open_tap, take_over
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Options, Run
from ansible_collections.cocoon.microvm.tests.integration.support.hosts import (
    INTERNET,
    UPLINK,
    Host,
    MakeNetns,
    make_host,
)
from ansible_collections.cocoon.microvm.tests.integration.support.machine import COLLECTIONS, Netns, command
from ansible_collections.cocoon.microvm.tests.integration.support.networking import (
    address,
    in_child,
    inside,
    ping,
    ping_blocked,
    plug,
    route,
    tcp_blocked,
    tcp_reaches,
    udp_blocked,
    udp_reaches,
)
from ansible_collections.cocoon.microvm.tests.integration.support.packets import OPENER, arp_request
from ansible_collections.cocoon.microvm.tests.integration.support.running import Playbooks

TAP = "cmtestaaaa-0"


@pytest.fixture()
def host(make_netns: MakeNetns, make_store: Callable[[], dict[str, str]]) -> Host:
    return make_host(make_netns, make_store())


@pytest.fixture()
def lab(host: Host) -> Host:
    """A host with the network lab."""
    host.network("lab", subnet="10.90.0.0/24")
    return host


# -- traffic --------------------------------------------------------------------------------------------------------


def test_guests_get_out_behind_the_host(lab: Host) -> None:
    one = lab.guest("lab", 10)
    assert tcp_reaches(one.netns, lab.outside, INTERNET, 80) == UPLINK
    assert udp_reaches(one.netns, lab.outside, INTERNET, 53)
    assert ping(one.netns, INTERNET)


def test_nobody_outside_gets_to_guests(lab: Host) -> None:
    one = lab.guest("lab", 10)
    route(lab.outside, "10.90.0.0/24", "via", UPLINK)
    assert tcp_blocked(lab.outside, one.netns, one.ip, 80)
    assert udp_blocked(lab.outside, one.netns, one.ip, 53)
    lab.netns.run("nft", "flush", "ruleset")  # so it was the rules that stopped them
    assert tcp_reaches(lab.outside, one.netns, one.ip, 80) == "198.51.100.1"


# As firewalld has it: the policy is accept, and the last rule rejects.
WALLS = """
table inet wall {
    chain through { type filter hook forward priority 10; policy drop; }
}
table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority 11; policy accept;
        ct state established,related accept
        iifname lo accept
        reject with icmpx type admin-prohibited
    }
}
"""


def test_other_firewalls_are_opened_where_somebody_says_so(lab: Host, scratch: Path) -> None:
    """Docker's, an old iptables, rules of somebody's own, and those of firewalld, each of which drops."""
    docker = ["iptables-nft -P FORWARD DROP", "iptables-nft -N DOCKER-USER", "iptables-nft -A FORWARD -j DOCKER-USER"]
    for line in (*docker, "iptables-legacy -P FORWARD DROP"):
        lab.netns.run(*line.split())
    (scratch / "walls.nft").write_text(WALLS, encoding="ascii")
    lab.netns.run("nft", "-f", scratch / "walls.nft")
    one = lab.guest("lab", 10)
    lab.publish("lab", lab.vm("web1"), one.ip, "8080:80")
    assert tcp_blocked(one.netns, lab.outside, INTERNET, 80)
    folders = {f"cocoon_{name}": path for name, path in lab.dirs.items()}
    play = Playbooks(lab.netns, scratch, {**folders, "cocoon_install": False})
    role = [{"hosts": "all", "gather_facts": False, "roles": ["cocoon.microvm.host"]}]

    def said(firewall: str) -> Any:
        run = play(role, variables={"cocoon_firewall": firewall}, ok=None)
        checks = run.result("cocoon.microvm.host : Look at the host with them")["checks"]
        return next(check for check in checks if check["name"] == "forwarding")

    assert said("open")["status"] == "PASS"
    assert tcp_reaches(one.netns, lab.outside, INTERNET, 80) == UPLINK
    assert tcp_reaches(lab.outside, one.netns, UPLINK, 8080, at=80)
    shut = said("closed")
    assert shut["status"] == "WARN" and "docker (iptables-nft FORWARD)" in shut["detail"], shut
    assert "inet wall through" in shut["detail"] and "host_firewall: open" in shut["remedy"], shut
    assert tcp_blocked(one.netns, lab.outside, INTERNET, 80)
    assert "cocoon-microvm" not in lab.rules() + lab.netns.run("iptables-legacy", "-S")


def test_networks_do_not_reach_each_other(lab: Host) -> None:
    lab.network("other", subnet="10.90.1.0/24")
    one, two, three = lab.guest("lab", 10), lab.guest("lab", 11), lab.guest("other", 10)
    assert tcp_reaches(one.netns, two.netns, two.ip, 80) == one.ip
    assert tcp_blocked(one.netns, three.netns, three.ip, 80)
    assert tcp_blocked(three.netns, one.netns, one.ip, 80)
    assert ping_blocked(one.netns, "10.90.1.1")


def test_guests_get_to_the_host_by_ping_of_the_gateway_only(lab: Host) -> None:
    one = lab.guest("lab", 10)
    assert ping(one.netns, "10.90.0.1")
    assert tcp_blocked(one.netns, lab.netns, "10.90.0.1", 22)
    assert tcp_blocked(one.netns, lab.netns, UPLINK, 22)
    assert udp_blocked(one.netns, lab.netns, "10.90.0.1", 53)
    assert tcp_reaches(lab.netns, one.netns, one.ip, 80) == "10.90.0.1"
    assert tcp_reaches(lab.outside, lab.netns, UPLINK, 22)  # what is not a guest is left alone


def test_guests_cannot_lie_about_their_subnet(lab: Host) -> None:
    one = lab.guest("lab", 10)
    address(one.netns, "lo", "192.0.2.77/32")
    command("ip", "-n", one.netns.name, "route", "replace", "default", "via", "10.90.0.1", "src", "192.0.2.77")
    assert udp_blocked(one.netns, lab.outside, INTERNET, 53)
    lab.netns.run("nft", "flush", "ruleset")
    assert udp_reaches(one.netns, lab.outside, INTERNET, 53, reply=False)


@pytest.mark.parametrize("ip", ("10.88.0.5", "fd00:88::5"))
def test_the_host_forgets_where_an_address_was(make_netns: Callable[[], Netns], ip: str) -> None:
    """Until then it would send to the old MAC what is for whoever has the address next."""
    netns = make_netns()
    netns.run("ip", "link", "add", "nb0", "type", "bridge")
    netns.run("ip", "link", "set", "nb0", "up")
    for one in (ip, f"{ip}0"):
        netns.run("ip", "neigh", "add", one, "lladdr", "02:00:00:00:00:05", "dev", "nb0", "nud", "reachable")
    for _again in range(2):
        inside(netns, neighbours.forget, "nb0", ip)
        known = [line.split()[0] for line in netns.run("ip", "neigh", "show", "dev", "nb0").splitlines()]
        assert known == [f"{ip}0"]
    inside(netns, neighbours.forget, "nb1", ip)


def test_a_network_without_nat_stays_inside(host: Host) -> None:
    host.network("inside", subnet="10.90.0.0/24", nat=False)
    one = host.guest("inside", 10)
    assert tcp_blocked(one.netns, host.outside, INTERNET, 80)
    assert tcp_reaches(host.netns, one.netns, one.ip, 80)
    assert host.sysctl("conf/up0/forwarding") == "0"
    assert host.network("inside", nat=True)["changed"]
    assert tcp_reaches(one.netns, host.outside, INTERNET, 80) == UPLINK
    host.network("inside", nat=False)
    assert tcp_blocked(one.netns, host.outside, INTERNET, 81)
    assert host.sysctl("conf/up0/forwarding") == "0"


# -- published ports ------------------------------------------------------------------------------------------------


def test_published_ports(lab: Host) -> None:
    one, vm = lab.guest("lab", 10), lab.vm("vm1")
    lab.publish("lab", vm, one.ip, "8080:80", "5353:53/udp", f"{UPLINK}:8443:443")
    for source in (lab.outside, lab.netns):
        assert tcp_reaches(source, one.netns, UPLINK, 8080, at=80)
        assert udp_reaches(source, one.netns, UPLINK, 5353, at=53)
        assert tcp_reaches(source, one.netns, UPLINK, 8443, at=443)
        assert tcp_blocked(source, one.netns, UPLINK, 8081, at=80)
    assert tcp_reaches(lab.outside, one.netns, UPLINK, 8080, at=80) == "198.51.100.1"
    assert inside(lab.netns, attachments.unpublish, lab.store, lab.record("lab")["id"], vm, ["8080:80"])
    assert inside(lab.netns, attachments.sync, lab.store)
    assert tcp_blocked(lab.outside, one.netns, UPLINK, 8080, at=80)
    assert udp_reaches(lab.outside, one.netns, UPLINK, 5353, at=53)


def test_published_ports_on_the_loopback(lab: Host) -> None:
    """The host reaches them there, and nobody else; what is for it alone is not published elsewhere."""
    command("ip", "-n", lab.netns.name, "link", "set", "lo", "up")
    one = lab.guest("lab", 10)
    lab.publish("lab", lab.vm("vm1"), one.ip, "8080:80", "127.0.0.1:8081:81", "5353:53/udp")
    assert tcp_reaches(lab.netns, one.netns, "127.0.0.1", 8080, at=80) == "10.90.0.1"
    assert tcp_reaches(lab.netns, one.netns, "127.0.0.1", 8081, at=81) == "10.90.0.1"
    assert udp_reaches(lab.netns, one.netns, "127.0.0.1", 5353, at=53)
    assert tcp_blocked(lab.outside, one.netns, UPLINK, 8081, at=81)
    assert tcp_blocked(lab.netns, one.netns, UPLINK, 8081, at=81)
    found = {name: lab.sysctl(f"conf/{name}/route_localnet") for name in ("all", "default", "lo", "up0", "cm-lab")}
    assert found == {**dict.fromkeys(found, "0"), "cm-lab": "1"}
    lab.netns.run("sysctl", "-q", "net.ipv4.conf.cm-lab.route_localnet=0")
    assert lab.network("lab")["diff"]["before"]["host"] == {"forwarding": "missing"}
    assert lab.sysctl("conf/cm-lab/route_localnet") == "1"


def datagram(mac: str, gateway: str, source: str, target: str, port: int) -> bytes:
    """A frame with a UDP datagram, behind the header that a TAP with IFF_VNET_HDR has."""
    udp = struct.pack("!HHHH", 5000, port, 12, 0) + b"evil"
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    head = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(udp), 0, 0, 64, 17)
    total = sum(struct.unpack("!9H", head + addresses))
    total = (total >> 16) + (total & 0xFFFF)
    ip = head + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + addresses
    return bytes(10) + bytes.fromhex((gateway + mac).replace(":", "")) + b"\x08\x00" + ip + udp


@pytest.mark.parametrize(("source", "target"), [("10.90.0.10", "127.0.0.1"), ("127.0.0.1", "10.90.0.1")])
def test_guests_do_not_get_to_the_loopback(lab: Host, source: str, target: str) -> None:
    """Not although their bridge routes for it; without the rules they would."""
    command("ip", "-n", lab.netns.name, "link", "set", "lo", "up")
    mac, gateway = "02:00:00:00:00:01", kernel.bridge_mac(lab.record("lab")["id"])
    (fd,) = inside(lab.netns, open_tap, {"tap": TAP, "mac": mac, "bridge_dev": "cm-lab"}, 1)
    server = inside(lab.netns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    with server:
        server.bind((target, 5300))
        exchange([fd], arp_request(mac, "10.90.0.10", "10.90.0.1"))

        def hears() -> bool:
            for _attempt in range(5):
                os.write(fd, datagram(mac, gateway, source, target, 5300))
                if select.select([server], [], [], 0.1)[0]:
                    return server.recv(16) == b"evil"
            return False

        assert not hears()
        lab.netns.run("nft", "flush", "ruleset")
        if target == "127.0.0.1":  # from a loopback address nothing is taken from outside, rules or not
            assert hears()
    os.close(fd)


@pytest.mark.parametrize("way", ["rx", "tx"])
def test_a_nic_is_as_fast_as_it_may_be(lab: Host, way: str) -> None:
    """One guest sends at once what takes five seconds; the other receives the burst and little more."""
    limit = {way: {"rate": 100 << 10, "burst": 128 << 10}}
    configs: list[Any] = [
        {"tap": f"cmlimit{index}-0", "mac": f"02:00:00:00:00:0{index}", "bridge_dev": "cm-lab"} for index in range(2)
    ]
    configs[0 if way == "tx" else 1]["limits"] = limit
    fds = [inside(lab.netns, open_tap, config, 1)[0] for config in configs]
    network = {**lab.record("lab"), "anti_spoofing": False}
    inside(lab.netns, guard.ensure, lab.store, [guard.Nic(config, network, ()) for config in configs])
    frame = bytes(10) + b"\xff" * 6 + bytes.fromhex(configs[0]["mac"].replace(":", "")) + b"\x88\xb5" + bytes(1400)
    deadline = time.monotonic() + 10
    while not select.select([fds[1]], [], [], 0.1)[0]:  # the bridge needs a moment for its ports
        os.write(fds[0], frame)
        assert time.monotonic() < deadline
    for _number in range(450):
        os.write(fds[0], frame)
    heard = 0
    while select.select([fds[1]], [], [], 0.2)[0] and time.monotonic() < deadline:
        heard += len(os.read(fds[1], 4096)) > 1400
    assert 50 < heard < 250, heard
    assert inside(lab.netns, lambda: wires.faults(configs[1], network, wires.look())) == []
    for fd in fds:
        os.close(fd)
    inside(lab.netns, guard.remove, lab.store, [config["tap"] for config in configs])


def test_traffic_is_counted(lab: Host) -> None:
    mac = "02:00:00:00:00:01"
    (fd,) = inside(lab.netns, open_tap, {"tap": TAP, "mac": mac, "bridge_dev": "cm-lab"}, 1)
    before = inside(lab.netns, wires.look)[TAP].traffic
    request = arp_request(mac, "10.90.0.10", "10.90.0.1")
    exchange([fd], request)
    after = inside(lab.netns, wires.look)[TAP].traffic
    assert after.received_packets > before.received_packets and after.sent_bytes >= before.sent_bytes + 42
    assert after.received_bytes >= before.received_bytes + 42
    os.close(fd)


def test_published_ports_are_no_way_between_networks(lab: Host) -> None:
    lab.network("other", subnet="10.90.1.0/24")
    one, two = lab.guest("lab", 10), lab.guest("other", 10)
    lab.publish("lab", lab.vm("vm1"), one.ip, "8080:80")
    assert tcp_blocked(two.netns, one.netns, UPLINK, 8080, at=80)


def test_a_published_port_has_one_holder(lab: Host) -> None:
    lab.network("other", subnet="10.90.1.0/24")
    lab.publish("lab", lab.vm("vm1"), "10.90.0.10", "8080:80")
    lab.publish("lab", "vm1", "10.90.0.10", "8080:80")
    for network in ("lab", "other"):
        with pytest.raises(ConflictError, match="VM 'name-of-vm1' on network 'lab'"):
            lab.publish(network, lab.vm("vm2"), "10.90.0.11", "8081:80", "8080:80")
    with inside(lab.netns, socket.create_server, ("0.0.0.0", 2022)):
        with pytest.raises(ConflictError, match="2022/tcp is in use by a process of the host"):
            lab.publish("lab", "vm2", "10.90.0.11", "2022:22")
    lab.publish("lab", "vm2", "10.90.0.11", "8081:80", "2022:22", "8080:80/udp")  # nothing was kept of the refused ones
    assert lab.rules().count("2022 : 10.90.0.11") == 1
    with pytest.raises(ChangeRefusedError, match="8080:80"):
        lab.network("lab", nat=False)


def test_200_ports_in_one_load(lab: Host) -> None:
    lab.vm("vm1")
    inside(
        lab.netns,
        attachments.publish,
        lab.store,
        lab.record("lab"),
        "vm1",
        "10.90.0.10",
        [f"{20000 + number}:80" for number in range(200)],
    )
    assert inside(lab.netns, attachments.sync, lab.store)
    assert not inside(lab.netns, attachments.sync, lab.store)
    assert lab.rules().count(": 10.90.0.10 . 80") == 200


# -- what is not ours -----------------------------------------------------------------------------------------------


def test_forwarding_is_never_global_and_everything_is_given_back(host: Host) -> None:
    plug(host.netns, "other0", host.make_netns(), "eth0")
    before = host.footprint()
    host.network("lab", subnet="10.90.0.0/24")
    host.network("more", subnet="10.90.1.0/24", nat=False)
    assert host.sysctl("ip_forward") == "0"
    found = host.footprint()["forwarding"]
    assert {key for key, value in found.items() if value == "1"} == {"conf/cm-lab/forwarding", "conf/up0/forwarding"}
    host.network("more", state="absent")
    assert host.sysctl("conf/up0/forwarding") == "1"
    assert host.network("lab", state="absent")["changed"]
    assert host.footprint() == before
    assert not host.network("lab", state="absent")["changed"]
    assert not os.listdir(os.path.join(host.dirs["root_dir"], "networks"))
    assert not os.listdir(os.path.join(host.dirs["root_dir"], "index", "network"))


def third_network(host: Host) -> Netns:
    """A network of the host's that has nothing to do with ours, and whose packets it forwards."""
    third = host.make_netns()
    plug(host.netns, "third0", third, "eth0")
    address(host.netns, "third0", "192.0.2.1/24")
    address(third, "eth0", "192.0.2.10/24")
    route(third, "default", "via", "192.0.2.1")
    route(host.outside, "192.0.2.0/24", "via", UPLINK)
    inside(host.netns, links.set_sysctl, "ipv4", "third0", "forwarding", "1")
    return third


def test_our_forwarding_opens_no_way_through_the_host(host: Host) -> None:
    third = third_network(host)
    assert udp_blocked(host.outside, third, "192.0.2.10", 53)
    host.network("lab", subnet="10.90.0.0/24")
    assert udp_blocked(host.outside, third, "192.0.2.10", 53)
    assert udp_reaches(third, host.outside, INTERNET, 53, reply=False)
    host.netns.run("nft", "flush", "ruleset")
    assert udp_reaches(host.outside, third, "192.0.2.10", 53)


def test_a_router_stays_a_router(host: Host) -> None:
    third = third_network(host)
    inside(host.netns, links.set_sysctl, "ipv4", "up0", "forwarding", "1")
    host.network("lab", subnet="10.90.0.0/24")
    assert udp_reaches(host.outside, third, "192.0.2.10", 53)
    assert tcp_reaches(host.outside, third, "192.0.2.10", 80)
    host.network("lab", state="absent")
    assert host.sysctl("conf/up0/forwarding") == "1"


def test_two_stores_in_one_namespace(lab: Host, make_store: Callable[[], dict[str, str]]) -> None:
    second = Host(lab.netns, lab.outside, make_store(), lab.make_netns)
    second.network("lab", subnet="10.91.0.0/24")
    assert second.record("lab")["bridge"] != lab.record("lab")["bridge"] == "cm-lab"
    one, two = lab.guest("lab", 10), second.guest("lab", 10)
    second.publish("lab", second.vm("vm1"), two.ip, "8080:80")
    assert tcp_reaches(one.netns, lab.outside, INTERNET, 80) == UPLINK
    assert tcp_reaches(two.netns, lab.outside, INTERNET, 80) == UPLINK
    assert tcp_blocked(one.netns, two.netns, two.ip, 80)
    assert tcp_blocked(two.netns, one.netns, one.ip, 80)
    assert not lab.network("lab")["changed"]
    command("ip", "-n", lab.netns.name, "link", "set", f"g{one.netns.name.rpartition('-')[2]}", "nomaster")
    lab.network("lab", state="absent")
    assert not second.network("lab")["changed"]
    assert tcp_reaches(two.netns, lab.outside, INTERNET, 81) == UPLINK
    assert tcp_reaches(lab.outside, two.netns, UPLINK, 8080, at=80)
    second.network("lab", state="absent", force=True)
    assert lab.sysctl("conf/up0/forwarding") == "0"
    assert "cocoon" not in lab.rules()


def test_adopted_bridges_are_only_used(host: Host) -> None:
    host.netns.run("ip", "link", "add", "br0", "type", "bridge")
    host.netns.run("ip", "link", "set", "br0", "up", "mtu", "1400")
    address(host.netns, "br0", "192.0.2.1/24")
    plug(host.netns, "lan0", host.make_netns(), "eth0")
    # a bridge takes the lowest address of its ports: that of a real card is below a TAP's, a random one may not be
    host.netns.run("ip", "link", "set", "lan0", "address", "02:00:00:00:01:00")
    host.netns.run("ip", "link", "set", "lan0", "master", "br0", "mtu", "1400")
    before, link = host.footprint(), inside(host.netns, links.look, "br0")
    made = host.network("office", adopt=True, bridge="br0", subnet="192.0.2.0/24", range_start="192.0.2.200")
    assert made["changed"] and made["network"]["adopted"] and not made["network"]["nat"]
    assert not host.network("office", adopt=True, bridge="br0", subnet="192.0.2.0/24")["changed"]
    net = host.record("office")
    assert int(inside(host.netns, attachments.choose_ip, host.store, net, "a").rpartition(".")[2]) >= 200
    with pytest.raises(CocoonError, match="192.0.2.1 is the gateway or the host"):
        inside(host.netns, attachments.choose_ip, host.store, net, "a", "192.0.2.1")
    fds = inside(host.netns, open_tap, {"tap": TAP, "bridge_dev": "br0", "mac": "02:00:00:00:00:05"}, 1)
    assert inside(host.netns, links.look, "br0") == link
    os.close(fds[0])
    with pytest.raises(ChangeRefusedError, match="has no NAT"):
        host.publish("office", host.vm("vm1"), "192.0.2.200", "8080:80")
    host.network("office", state="absent")
    assert host.footprint() == before


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"adopt": True, "bridge": "nobr"}, NotFoundError, "nobr is not there"),
        ({"adopt": True, "bridge": "up0"}, ConflictError, "up0 is not a bridge"),
        ({"bridge": "up0"}, ConflictError, "adopt: true"),
        ({"adopt": True, "bridge": "cm-lab"}, ConflictError, "bridge of network 'lab'"),
        ({"subnet": "10.90.0.128/25"}, ConflictError, "network 'lab'"),
        ({"subnet": "198.51.0.0/16"}, ConflictError, "address of the host's interface up0"),
        ({"subnet": "172.16.5.0/24"}, ConflictError, "route of the host through up0"),
    ],
)
def test_what_is_taken_is_refused(lab: Host, options: dict[str, Any], error: type[CocoonError], message: str) -> None:
    route(lab.netns, "172.16.0.0/12", "via", "198.51.100.1")
    before = lab.footprint()
    for check in (True, False):
        with pytest.raises(error, match=message):
            lab.network("new", check=check, **options)
    assert attachments.load(lab.store, "new") is None
    assert lab.store.index("network").lookup("new") is None
    assert lab.footprint() == before


# -- repair ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "missing"),
    [
        (["nft", "flush", "ruleset"], "rules"),
        (["nft", "flush", "table", "inet", "TABLE"], "rules"),
        (["nft", "flush", "chain", "inet", "TABLE", "guest_to_host"], "rules"),
        (["nft", "insert", "rule", "inet", "TABLE", "from_guest", "accept"], "rules"),
        (["ip", "link", "del", "cm-lab"], "bridge"),
        (["ip", "link", "set", "cm-lab", "down"], "up"),
        (["ip", "addr", "flush", "dev", "cm-lab"], "address"),
        (["sysctl", "-qw", "net.ipv4.conf.cm-lab.forwarding=0"], "forwarding"),
        (["sysctl", "-qw", "net.ipv4.conf.up0.forwarding=0"], "uplink"),
        (["sysctl", "-qw", "net.ipv6.conf.cm-lab.disable_ipv6=0"], "ipv6"),
    ],
)
def test_what_others_broke_is_repaired(lab: Host, damage: list[str], missing: str) -> None:
    before = lab.footprint()
    table = f"cocoon_{lab.store.store_id[:8]}"
    lab.netns.run(*[table if word == "TABLE" else word for word in damage])
    predicted = lab.network("lab", check=True)
    assert predicted["changed"] and predicted["diff"]["before"]["host"][missing] == "missing"
    done = lab.network("lab")
    assert (done["action"], done["diff"]) == ("repair", predicted["diff"])
    assert not lab.network("lab")["changed"]
    assert lab.footprint() == before


def test_after_a_reboot_everything_is_back(lab: Host) -> None:
    lab.publish("lab", lab.vm("vm1"), "10.90.0.10", "8080:80")
    before, link = lab.footprint(), inside(lab.netns, links.look, "cm-lab")
    lab.netns.run("ip", "link", "del", "cm-lab")
    lab.netns.run("nft", "flush", "ruleset")
    lab.netns.run("sysctl", "-qw", "net.ipv4.conf.up0.forwarding=0")
    command("rm", "-rf", lab.dirs["run_dir"], inside(lab.netns, forwarding._directory))
    assert inside(lab.netns, attachments.ensure, lab.store, lab.record("lab"))
    assert not inside(lab.netns, attachments.ensure, lab.store, lab.record("lab"))
    assert lab.footprint() == before
    again = inside(lab.netns, links.look, "cm-lab")
    assert link and again and (again.mac, again.address) == (link.mac, link.address)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_while_an_uplink_is_given_back(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the switch and before the note is gone: the next run comes back for it."""
    host.network("lab", subnet="10.90.0.0/24")
    with monkeypatch.context() as patch:
        patch.setattr(forwarding, "remove_file", lambda _path: os.kill(os.getpid(), 9))
        assert in_child(host.netns, lambda: host.network("lab", state="absent")) == -9
    assert host.sysctl("conf/up0/forwarding") == "0"
    assert host.network("lab", state="absent")["changed"]
    assert not inside(host.netns, lambda: os.path.exists(forwarding._directory()))


def test_an_emptied_table_goes_too(host: Host) -> None:
    host.network("lab", subnet="10.90.0.0/24", nat=False)
    host.netns.run("nft", "flush", "table", "inet", f"cocoon_{host.store.store_id[:8]}")
    assert "cocoon_" in host.rules()
    host.network("lab", state="absent")
    assert "cocoon_" not in host.rules()


def test_an_uplink_that_comes_later_or_changes(host: Host) -> None:
    host.netns.run("ip", "route", "del", "default")
    host.network("lab", subnet="10.90.0.0/24")
    assert not host.network("lab")["changed"]
    route(host.netns, "default", "via", "198.51.100.1")
    assert host.network("lab")["diff"]["before"]["host"] == {"rules": "missing", "uplink": "missing"}
    assert tcp_reaches(host.guest("lab", 10).netns, host.outside, INTERNET, 80) == UPLINK
    plug(host.netns, "up1", host.make_netns(), "eth0")
    address(host.netns, "up1", "198.18.0.2/24")
    host.netns.run("ip", "route", "replace", "default", "via", "198.18.0.1")
    assert host.network("lab")["changed"]
    assert (host.sysctl("conf/up0/forwarding"), host.sysctl("conf/up1/forwarding")) == ("0", "1")


def test_a_run_without_a_change_is_cheap(lab: Host) -> None:
    params = {"name": "lab", "subnet": "10.90.0.0/24", "state": "present", "lock_timeout": 1, **lab.dirs}
    script = f"""
        import subprocess, sys
        def refuse(*words, **named):
            raise AssertionError(words)
        subprocess.Popen = refuse
        from ansible_collections.cocoon.microvm.plugins.module_utils._network.converging import converge
        assert converge({params!r}, False)["changed"] is False
        loaded = {{name.rpartition("module_utils.")[2] for name in sys.modules}}
        costly = {{"pyroute2", "ctypes", "ansible", "_network.listing", "_network.serving", "_network.dnsmasq"}}
        assert not costly & loaded, sorted(loaded)
    """
    lab.netns.run("env", f"PYTHONPATH={COLLECTIONS}", sys.executable, "-c", textwrap.dedent(script))


# -- changes --------------------------------------------------------------------------------------------------------


def test_changes_of_a_network_in_use(lab: Host) -> None:
    net = lab.record("lab")
    attachments.attach(lab.store, net["id"], lab.vm("vm1"))
    attachments.lease(lab.store, net, "10.90.0.10", "vm1")
    for options, message in (
        ({"subnet": "10.95.0.0/24"}, "subnet: .*VMs: name-of-vm1"),
        ({"gateway": "10.90.0.254"}, "gateway: .*VMs: name-of-vm1"),
        ({"bridge": "br9"}, "bridge: .*never changed"),
        ({"state": "absent", "force": True}, "name-of-vm1"),
    ):
        for check in (True, False):
            with pytest.raises(ChangeRefusedError, match=message):
                lab.network("lab", check=check, **options)
    done = lab.network("lab", mtu=1400, dns=["192.0.2.53"], labels={"a": 1}, nat=False)
    assert done["changed"] and done["network"]["labels"] == {"a": "1"}
    link = inside(lab.netns, links.look, "cm-lab")
    assert link and link.mtu == 1400
    assert lab.sysctl("conf/cm-lab/forwarding") == "0"
    attachments.release(lab.store, net["id"], "10.90.0.10", "vm1")
    attachments.detach(lab.store, net["id"], "vm1")
    lab.network("lab", subnet="10.95.0.0/24", nat=True)
    link = inside(lab.netns, links.look, "cm-lab")
    assert link and link.address == "10.95.0.1/24"
    assert "10.90." not in str(lab.footprint())
    assert tcp_reaches(lab.guest("lab", 10).netns, lab.outside, INTERNET, 80) == UPLINK


def test_interfaces_of_others_on_the_bridge(lab: Host) -> None:
    one = lab.guest("lab", 10)
    with pytest.raises(ChangeRefusedError, match=f"not ours: g{one.netns.name.rpartition('-')[2]}"):
        lab.network("lab", state="absent")
    assert lab.network("lab", state="absent", force=True)["changed"]


def test_what_fails_leaves_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    before = host.footprint()

    def refuse(_text: str) -> None:
        raise ToolError("nft failed")

    with monkeypatch.context() as patch:
        patch.setattr(nftables, "load", refuse)
        with pytest.raises(ToolError):
            host.network("lab", subnet="10.90.0.0/24")
    assert host.footprint() == before
    assert not os.listdir(os.path.join(host.dirs["root_dir"], "networks"))
    host.network("lab", subnet="10.90.0.0/24")
    made, record = host.footprint(), host.record("lab")
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "activate", lambda _record: refuse(""))
        with pytest.raises(ToolError):
            host.network("lab", subnet="10.95.0.0/24")
    host.network("lab")
    assert host.footprint() == made
    assert host.record("lab")["subnet"] == record["subnet"]


STEPS = {
    "create": ["name", "directory", "record", "bridge", "rules", "kernel", "complete"],
    "update": ["record", "bridge", "rules", "kernel", "complete"],
    "remove": ["marked", "bridge", "rules", "directory", "name"],
}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(("action", "step"), [(action, step) for action, steps in STEPS.items() for step in steps])
@pytest.mark.parametrize("then", ["present", "absent"])
def test_killed_at_any_step(host: Host, monkeypatch: pytest.MonkeyPatch, action: str, step: str, then: str) -> None:
    before = host.footprint()
    options: dict[str, Any] = {"subnet": "10.90.0.0/24"}
    if action != "create":
        host.network("lab", **options)
    if action == "update":
        options = {"subnet": "10.95.0.0/24", "mtu": 1400}
    if action == "remove":
        options = {"state": "absent"}

    def stop(name: str) -> None:
        if name == step:
            os.kill(os.getpid(), 9)

    with monkeypatch.context() as patch:
        patch.setattr(converging, "checkpoint", stop)
        assert in_child(host.netns, lambda: host.network("lab", **options)) == -9
    wanted: dict[str, Any] = {"subnet": "10.90.0.0/24", "mtu": 1500}
    if then == "present":
        host.network("lab", **wanted)
        assert not host.network("lab", **wanted)["changed"]
        assert inside(host.netns, attachments.missing, host.store, host.record("lab")) == []
        assert host.record("lab").get("phase") is None
        assert tcp_reaches(host.guest("lab", 10).netns, host.outside, INTERNET, 80) == UPLINK
    host.network("lab", state="absent", force=True)
    assert not host.network("lab", state="absent")["changed"]
    after = host.footprint()
    assert {**after, "links": [name for name in after["links"] if not name.startswith("g")]} == {
        **before,
        "forwarding": after["forwarding"],
    }
    assert after["forwarding"]["conf/up0/forwarding"] == "0"
    assert not os.listdir(os.path.join(host.dirs["root_dir"], "networks"))
    assert not os.listdir(os.path.join(host.dirs["root_dir"], "index", "network"))


def test_rules_for_nobody_are_found_and_removed(lab: Host) -> None:
    network, here = lab.record("lab"), lab.vm("k" * 26)
    taps = [f"cm{here[:8]}-0", "cmgoneaaaa-0"]
    nics = [guard.Nic({"tap": tap, "mac": "02:00:00:00:00:01", "bridge_dev": "cm-lab"}, network, ()) for tap in taps]
    inside(lab.netns, guard.ensure, lab.store, nics)
    found = inside(lab.netns, orphans.find, lab.store)
    assert found == {taps[1]: [f"rules of TAP {taps[1]}"]}
    inside(lab.netns, giving_back.remove, Run(lab.store, Options()), found)
    assert inside(lab.netns, orphans.find, lab.store) == {}
    assert inside(lab.netns, guard.guarded, lab.store) == taps[:1]
    inside(lab.netns, guard.remove, lab.store, taps[:1])


# -- many at once ---------------------------------------------------------------------------------------------------


def test_sixteen_processes_at_once(lab: Host) -> None:
    script = """
        import sys
        from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
        from ansible_collections.cocoon.microvm.plugins.module_utils._network import attachments
        from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
        store, number = Store.open(Paths(*sys.argv[1:4])), int(sys.argv[4])
        net = attachments.load(store, "lab")
        for vm in range(5):
            ip = attachments.allocate(store, net, f"vm{number}-{vm}", "the same seed")
            attachments.publish(store, net, f"vm{number}-{vm}", ip, [f"{20000 + number * 10 + vm}:80"])
        attachments.sync(store)
    """
    paths = [lab.dirs[f"{name}_dir"] for name in ("root", "run", "log")]
    words = [*lab.netns.enter(), "nice", sys.executable, "-c", textwrap.dedent(script), *paths]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(COLLECTIONS), os.environ.get("PYTHONPATH", "")])}
    running = [subprocess.Popen([*words, str(number)], env=env) for number in range(16)]
    assert [child.wait(120) for child in running] == [0] * 16
    described = inside(lab.netns, listing.describe, {**lab.dirs, "name": "lab"})[0]
    assert len({lease["ip"] for lease in described["leases"]}) == len(described["leases"]) == 80
    assert described["missing"] == []
    assert lab.rules().count(" . 80") == 80


def test_the_same_network_by_many_at_once(host: Host, modules: Callable[..., Any]) -> None:
    run = modules(host.netns, host.dirs)
    running = [run.start("cocoon_network", name="lab", subnet="10.90.0.0/24") for _number in range(6)]
    results = [run.finish(child) for child in running]
    assert [result.get("msg") for result in results] == [None] * 6
    assert [result.changed for result in results].count(True) == 1
    assert len({result["network"]["id"] for result in results}) == 1


# -- TAPs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [1, 4])
def test_tap_carries_frames_and_vanishes(lab: Host, pairs: int) -> None:
    mac = "02:00:00:00:00:01"
    config = {"tap": TAP, "mac": mac, "bridge_dev": "cm-lab"}
    before = inside(lab.netns, links.look, "cm-lab")
    fds = inside(lab.netns, open_tap, config, pairs)
    try:
        assert len(fds) == pairs
        assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in fds)
        with pytest.raises(ConflictError, match=f"{TAP} is there already"):
            inside(lab.netns, open_tap, config, pairs)
        gateway = kernel.bridge_mac(lab.record("lab")["id"])
        reply = exchange(fds, arp_request(mac, "10.90.0.10", "10.90.0.1"))
        assert bytes.fromhex(gateway.replace(":", "")) in reply
        details = lab.netns.run("ip", "-d", "link", "show", TAP)
        assert "persist off" in details and "qdisc noqueue" in details and "qlen 10000" in details
        assert (f"numqueues {pairs}" in details) is (pairs > 1)
        assert inside(lab.netns, links.look, "cm-lab") == before
    finally:
        for fd in fds:
            os.close(fd)
    assert inside(lab.netns, links.index_of, TAP) is None


def exchange(fds: list[int], request: bytes) -> bytes:
    """The ARP reply to a request, on any queue. Asks again: the bridge gets its carrier with its first port."""
    for _attempt in range(50):
        os.write(fds[-1], request)
        while ready := select.select(fds, [], [], 0.2)[0]:
            frame = os.read(ready[0], 4096)
            if frame[22:24] == b"\x08\x06" and frame[30:32] == b"\x00\x02":
                return frame
    raise AssertionError("nobody answered")


def test_tap_on_no_bridge(lab: Host) -> None:
    for bridge, error in (("nobr", NotFoundError), ("up0", ConflictError)):
        with pytest.raises(error, match=bridge):
            inside(lab.netns, open_tap, {"tap": TAP, "mac": "02:00:00:00:00:01", "bridge_dev": bridge}, 2)
        assert inside(lab.netns, links.index_of, TAP) is None


def test_a_tap_that_is_opened_by_name(lab: Host) -> None:
    """In a namespace of its own; nobody else's process can have it, and once taken over it is like any other."""
    private, mac, uid = lab.make_netns(), "02:00:00:00:00:01", 64001
    config = {"tap": TAP, "mac": mac, "bridge_dev": "cm-lab"}
    inside(private, make_named, config, uid)
    assert "persist on user 64001" in private.run("ip", "-d", "link", "show", TAP)
    words = [*private.enter(), sys.executable, "-c", OPENER, TAP]
    others = subprocess.run([*words, "64002"], capture_output=True, text=True, check=False, timeout=60)
    assert "PermissionError" in others.stderr
    mine = subprocess.Popen([*words, str(uid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with mine as opener, Process(opener.pid, os.pidfd_open(opener.pid)) as process:
        assert opener.stdin and opener.stdout
        try:
            assert opener.stdout.readline() == "open\n"
            inside(lab.netns, take_over, config, process)
            assert inside(private, links.index_of, TAP) is None
            details = lab.netns.run("ip", "-d", "link", "show", TAP)
            assert "persist off" in details and "master cm-lab" in details and "link/ether fe:00:00:00:00:01" in details
            gateway = bytes.fromhex(kernel.bridge_mac(lab.record("lab")["id"]).replace(":", ""))
            for _attempt in range(50):
                opener.stdin.write(arp_request(mac, "10.90.0.10", "10.90.0.1").hex() + "\n")
                opener.stdin.flush()
                if gateway in bytes.fromhex(opener.stdout.readline()):
                    break
            else:
                raise AssertionError("nobody answered")
        finally:
            opener.kill()
            opener.wait()
    assert inside(lab.netns, links.index_of, TAP) is None


def test_a_process_finds_a_tap_where_it_is_born(tmp_path: Path) -> None:
    """The launcher makes it, as root, in the namespace that it has made for the process alone."""
    config = {"tap": TAP, "mac": "02:00:00:00:00:01", "bridge_dev": "cm-lab"}
    words = [shutil.which("ip") or "ip", "-d", "link", "show"]
    with open(tmp_path / "log", "w+b") as log:
        process = launch.spawn(
            words, 64001, 64001, (), (), log.fileno(), resource.RLIM_INFINITY, lambda: make_named(config, 64001)
        )
        with process:
            assert launch.exit_status(process) == 0
        log.seek(0)
        seen = log.read().decode()
    assert f"{TAP}:" in seen and "persist on user 64001" in seen
    assert links.index_of(TAP) is None


def test_a_tap_that_nobody_opened(lab: Host) -> None:
    private = lab.make_netns()
    config = {"tap": TAP, "mac": "02:00:00:00:00:01", "bridge_dev": "cm-lab"}
    inside(private, make_named, config, 64001)
    with pytest.raises(ConflictError, match=f"{TAP} is there already"):
        inside(private, make_named, config, 64001)
    with Process(os.getpid(), os.pidfd_open(os.getpid())) as process:
        with pytest.raises(HypervisorError, match="has not opened"):
            inside(lab.netns, take_over, config, process)
    private.run("ip", "link", "del", TAP)


# -- the modules ----------------------------------------------------------------------------------------------------


def test_modules(host: Host, modules: Callable[..., Any]) -> None:
    run = modules(host.netns, host.dirs)
    assert run("cocoon_network_info")["networks"] == []
    predicted = run("cocoon_network", check=True, diff=True, name="lab", subnet="10.90.0.0/24", owner="me")
    assert predicted.changed and not os.path.exists(host.dirs["root_dir"])
    made = run("cocoon_network", diff=True, name="lab", subnet="10.90.0.0/24", owner="me")
    assert (made.changed, made["diff"]) == (True, predicted["diff"])
    assert not run("cocoon_network", name="lab", subnet="10.90.0.0/24").changed
    assert run("cocoon_network", name="lab", ok=False, owner="you")["option"] == "owner"
    assert run("cocoon_network", name="lab", ok=False, subnet="10.0.0.1/24")["msg"] == (
        "subnet: '10.0.0.1/24' has host bits set. Did you mean 10.0.0.0/24?"
    )
    net = host.record("lab")
    host.vm("vm1")
    attachments.attach(host.store, net["id"], "vm1")
    attachments.lease(host.store, net, "10.90.0.10", "vm1")
    host.publish("lab", "vm1", "10.90.0.10", "8080:80")
    (found,) = run("cocoon_network_info", name="lab")["networks"]
    assert found["users"] == [{"id": "vm1", "name": "name-of-vm1"}]
    # Without a record of a VM nobody knows of a NIC.
    unknown = {"ip6": None, "mac": None, "names": []}
    assert found["leases"] == [{"ip": "10.90.0.10", "vm_id": "vm1", "vm": "name-of-vm1", **unknown}]
    assert [port["port"] for port in found["ports"]] == ["8080:80"]
    assert found["missing"] == []
    assert run("cocoon_network_info", name="none")["networks"] == []
    assert "name-of-vm1" in run("cocoon_network", ok=False, name="lab", state="absent")["msg"]
    assert attachments.purge(host.store, "vm1")
    assert run("cocoon_network", name="lab", state="absent").changed
