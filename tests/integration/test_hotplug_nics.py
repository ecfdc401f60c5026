# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NICs that come to a running guest, change and go, without a restart: one tiny guest for all of it, and a clone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.tests.integration.support import audit
from ansible_collections.cocoon.microvm.tests.integration.support.engine import TINY, Engine
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns
from ansible_collections.cocoon.microvm.tests.integration.support.networking import carries_much
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules, Result

BOOT = 300
GUEST = {"image": TINY, "cpu": 1, "memory": "96M", "storage": "64M", "accel": "tcg", "state": "started"}
NETWORKS: dict[str, dict[str, Any]] = {
    "one": {"subnet": "10.87.0.0/24", "nat": True, "dns": ["192.0.2.1"]},
    "two": {"subnet": "10.88.0.0/24", "nat": False, "dns": ["192.0.2.2"]},
    "asks": {"subnet": "10.89.0.0/24", "dhcp": True, "nat": False},
}
ONE: dict[str, Any] = {"network": "one"}
TWO: dict[str, Any] = {"network": "two", "routes": [{"to": "10.99.0.0/16", "via": "10.88.0.9"}]}
ASKS: dict[str, Any] = {"network": "asks", "dhcp": True}
LOOK = "ip -4 -o addr; ip route; cat /etc/resolv.conf"


class Site:
    """A host with three networks, and a guest that is never restarted."""

    def __init__(self, engine: Engine, run: Modules) -> None:
        self.engine = engine
        self.run = run

    def vm(self, *nics: dict[str, Any], **options: Any) -> Result:
        definition = {**GUEST, "name": "web", "nics": list(nics), "timeout": BOOT, **options}
        return self.run("cocoon_vm", run_timeout=BOOT + 60, **definition)

    def record(self, name: str = "web") -> dict[str, Any]:
        return dict(self.engine.record(name) or {})

    def guest(self, script: str, name: str = "web") -> str:
        return str(self.run("cocoon_exec", name=name, shell=script)["stdout"])

    def pings(self, name: str = "web") -> list[bool]:
        """Whether the host reaches the guest over each of its NICs."""
        ips = [config["network"]["ip"] for config in self.record(name)["network_configs"]]
        script = "for ip; do ping -n -q -c1 -W20 $ip > /dev/null && echo yes || echo no; done"
        return [word == "yes" for word in self.engine.netns.run("sh", "-c", script, "sh", *ips).split()]


@pytest.fixture(scope="module", name="site")
def fixture_site(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    tiny_image: Path,
) -> Iterator[Site]:
    netns, dirs = make_netns(), make_store()
    site = Site(Engine(netns, dirs), modules(netns, dirs))
    site.run("cocoon_image", name=TINY, source=str(tiny_image))
    for name, options in NETWORKS.items():
        site.run("cocoon_network", name=name, **options)
    site.vm(ONE, wait_for="agent")
    yield site
    audit.clean(site.engine)
    for name in NETWORKS:
        site.run("cocoon_network", name=name, state="absent")


def wrong(site: Site) -> list[str]:
    """What on the host fits no record; the server of addresses has a folder of its own."""
    return [problem for problem in audit.wrong(site.engine) if problem != "nobody's: run networks"]


def has(text: str, *words: str) -> bool:
    return any(all(word in line for word in words) for line in text.splitlines())


def test_nics_come_change_and_go(site: Site) -> None:
    pid = site.record()["pid"]
    plan = site.run("cocoon_vm", check=True, **GUEST, name="web", nics=[ONE, TWO])
    assert (plan["how"], plan["actions"]) == ("live", ["set_nics", "plug_nics"]), plan
    added = site.vm(ONE, TWO, ASKS)
    assert added["actions"] == plan["actions"] and not site.vm(ONE, TWO, ASKS).changed
    assert site.pings() == [True, True, True]
    first, second, third = (config["network"]["ip"] for config in site.record()["network_configs"])
    found = site.guest(LOOK)
    assert has(found, "eth0", f"{first}/24") and has(found, "eth1", f"{second}/24") and has(found, "eth2", third), found
    assert has(found, "10.99.0.0/16 via 10.88.0.9 dev eth1") and found.count("default") == 1, found
    assert has(found, "default via 10.87.0.1 dev eth0"), found
    assert has(found, "nameserver 192.0.2.1") and has(found, "nameserver 192.0.2.2"), found
    carries_much(site.engine.netns, second, site.guest)
    # The one in the middle is exchanged, and goes by the name that the one before it had.
    site.vm(ONE, {"network": "asks"}, ASKS)
    found = site.guest(LOOK)
    assert has(found, "eth1", "10.89.0.") and not has(found, "10.88.0."), found
    assert not has(found, "nameserver 192.0.2.2") and has(found, "nameserver 192.0.2.1"), found
    assert site.pings() == [True, True, True]
    site.vm(ONE)
    found = site.guest(LOOK)
    assert not has(found, "eth1") and not has(found, "eth2") and has(found, "default via 10.87.0.1 dev eth0"), found
    assert site.pings() == [True] and site.record()["pid"] == pid
    assert not wrong(site)


def test_another_way_out(site: Site) -> None:
    """Of the NIC that stays only its route goes, and the ports lead to the other one."""
    nics = [{**ONE, "default_route": False}, {**TWO, "default_route": True, "gateway": "10.88.0.1"}]
    site.vm(*nics)
    found = site.guest(LOOK)
    assert found.count("default") == 1 and has(found, "default via 10.88.0.1 dev eth1"), found
    site.vm(ONE)
    found = site.guest(LOOK)
    assert found.count("default") == 1 and has(found, "default via 10.87.0.1 dev eth0"), found
    assert site.pings() == [True]


def test_the_first_one_goes(site: Site) -> None:
    """Also the one that it has booted with can be another one."""
    pid = site.record()["pid"]
    site.vm(TWO, ONE)
    found = site.guest(LOOK)
    assert has(found, "default via 10.87.0.1 dev eth1") and has(found, "10.99.0.0/16 via 10.88.0.9 dev eth0"), found
    assert site.pings() == [True, True]
    site.vm(ONE)
    assert site.pings() == [True] and site.record()["pid"] == pid


def test_a_clone_has_what_came(site: Site) -> None:
    site.vm(ONE, TWO)
    site.run("cocoon_snapshot", name="warm", vm="web")
    # One that stands still is told who it is when it goes on, and not waited for before.
    site.vm(ONE, TWO, name="twin", snapshot="warm", image=None, state="paused")
    assert site.pings() == [True, True] and site.record("twin")["identity_pending"]
    site.vm(ONE, TWO, name="twin", image=None)
    assert site.pings("twin") == [True, True] and site.pings() == [True, True]
    # It goes on as its source would.
    site.vm(ONE, name="twin", image=None)
    assert site.pings("twin") == [True]
    site.vm(ONE)
    site.run("cocoon_vm", name="twin", state="absent", force=True)
    site.run("cocoon_snapshot", name="warm", state="absent")


def test_two_that_run_swap(site: Site) -> None:
    """MACs and addresses pass from one to the other in one run, and no guest is restarted for it."""
    site.vm(ONE, name="peer", wait_for="agent")
    names = ("web", "peer")
    before = {name: site.record(name) for name in names}
    nics = {name: before[name]["network_configs"][0] for name in names}
    swapped = [
        {**GUEST, "name": one, "nics": [{**ONE, "mac": nics[other]["mac"], "ip": nics[other]["network"]["ip"]}]}
        for one, other in (names, names[::-1])
    ]
    site.run("cocoon_vms", vms=swapped, run_timeout=BOOT)
    assert not site.run("cocoon_vms", vms=swapped, run_timeout=BOOT).changed
    assert site.pings("web") == site.pings("peer") == [True]
    assert [site.record(name)["pid"] for name in names] == [before[name]["pid"] for name in names]
    assert nics["web"]["mac"] in site.guest("cat /sys/class/net/eth0/address", "peer")
    site.run("cocoon_vm", name="peer", state="absent", force=True)
    assert not wrong(site)


def test_what_stands_still_is_restarted(site: Site) -> None:
    """A guest that is paused hears of nothing."""
    site.run("cocoon_vm", name="web", state="paused")
    refused = site.run("cocoon_vm", name="web", state="present", nics=[ONE, TWO], ok=False)
    assert "needs a restart of the running VM" in refused["msg"], refused
    site.vm(ONE)
    assert site.pings() == [True]


def test_killed_anywhere(site: Site) -> None:
    """At each place of an exchange; what comes after makes it whole, and nothing leaks."""
    pid, place, killed = site.record()["pid"], 0, True
    web = {**GUEST, "name": "web", "timeout": BOOT}
    while killed:
        killed = site.engine.vms({**web, "nics": [ONE, TWO]}, kill_at=place).killed
        wanted = [ONE, TWO] if place % 2 else [ONE, {"network": "asks"}]
        site.engine.vm(**web, nics=wanted)
        assert not site.engine.vm(**web, nics=wanted)["changed"]
        problems = wrong(site)
        assert not problems, f"killed at {place}: {problems}"
        assert site.pings() == [True, True], f"killed at {place}"
        site.engine.vm(**web, nics=[ONE])
        place += 1
    assert place > 6 and site.record()["pid"] == pid
