# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks that CNI plugins make: real ones with a real guest, and scripts that do what plugins should not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._api import vms
from ansible_collections.cocoon.microvm.plugins.module_utils._network import links, redirect, tap, wires
from ansible_collections.cocoon.microvm.plugins.module_utils._network.backends import cni
from ansible_collections.cocoon.microvm.plugins.module_utils._network.cni import attachments, plugins
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.plugins.module_utils._types import new_id
from ansible_collections.cocoon.microvm.tests.integration.support import audit
from ansible_collections.cocoon.microvm.tests.integration.support.engine import (
    GUEST,
    IDLE,
    Engine,
    Forked,
    Mark,
    Outcome,
    idle_image,
)
from ansible_collections.cocoon.microvm.tests.integration.support.lab import Key, make_key, ssh_words
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns, command
from ansible_collections.cocoon.microvm.tests.integration.support.networking import (
    address,
    carries_much,
    inside,
    ping,
    plug,
    route,
)
from ansible_collections.cocoon.microvm.tests.integration.support.packets import OPENER, arp_request
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules

BIN = next((path for path in ("/usr/lib/cni", "/opt/cni/bin") if os.access(f"{path}/bridge", os.X_OK)), "")
SUBNET, GATEWAY = "10.99.0.0/24", "10.99.0.1"
HOST, NEIGHBOUR = "198.51.100.2", "198.51.100.1"
# As Calico does it: addresses without a subnet, a gateway that all have, and a result that says nothing of routes.
FAR, GATEWAY6, FAR6 = "169.254.1.1", "fe80::1", "fd00:99::5"
FAR_PLUGIN = f"""[ "$CNI_COMMAND" = ADD ] || {{ cat >/dev/null; exit 0; }}
run() {{ nsenter --net="$CNI_NETNS" ip "$@" >&2; }}
run route add {FAR} dev eth0 && run route add default via {FAR} dev eth0 || exit
run addr add {FAR6}/128 dev eth0 nodad && run -6 route add default via {GATEWAY6} dev eth0 || exit
exec python3 -c '
import json, sys
result = json.load(sys.stdin)["prevResult"]
address = result["ips"][0]
address.update(address=address["address"].split("/")[0] + "/32")
address.pop("gateway")
result["ips"].append({{**address, "address": "{FAR6}/128"}})
print(json.dumps(result))'
"""
VM: dict[str, Any] = {"name": "one", **GUEST, "network": "pods"}


@dataclass
class Pods:
    """A host whose pods are on a bridge of the CNI's."""

    engine: Engine
    run: Modules
    outside: Netns
    folder: Path
    key: Key
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def netns(self) -> Netns:
        return self.engine.netns

    def conflist(self, name: str, *listed: Any, version: str = "1.0.0") -> None:
        document = {"cniVersion": version, "name": name, "plugins": listed}
        (self.folder / "net.d" / f"10-{name}.conflist").write_text(json.dumps(document), encoding="utf-8")

    def plugin(self, name: str, script: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    def network(self, name: str = "pods", **options: Any) -> Any:
        return self.engine.network(name=name, **{**self.options, "conflist": name, **options})

    def refused(self, name: str, **options: Any) -> str:
        outcome = self.engine.start_network(name=name, **{**self.options, "conflist": name, **options}).wait()
        assert outcome.error, outcome.results
        return outcome.error

    def vms(self, *items: Any, kill_at: int | None = None, timeout: float | None = None) -> Outcome:
        """Converge VMs, with marks in between what is done by plugins."""
        return self.start(*items, kill_at=kill_at, timeout=timeout).wait()

    def start(self, *items: Any, kill_at: int | None = None, timeout: float | None = None) -> Forked:

        def job(mark: Mark) -> Any:
            attachments.checkpoint = mark
            plugins.TIMEOUT = timeout or plugins.TIMEOUT
            return vms.converge_vms({**self.engine.dirs, **self.engine.options}, items, False, mark)

        return Forked(self.netns, job, kill_at)

    def fails(self, **item: Any) -> str:
        """The error of a VM that has to fail."""
        outcome = self.vms(item, timeout=1)
        return str(outcome.error or outcome.results[0]["msg"])

    def left(self) -> list[str]:
        """All that plugins hold: addresses, namespaces, ends of veths on the bridge, and what is noted of them."""
        leases = [path.name for path in (self.folder / "ipam").glob("*/10.99.*")]
        spaces = [name for name in os.listdir("/run/netns") if name.startswith("cmv-")]
        ends = [name for name in inside(self.netns, wires.look) if name.startswith("veth")]
        notes = [path.name for path in Path(self.engine.paths.root).glob("networks/*/attachments/*[0-9]")]
        return sorted([*leases, *spaces, *ends, *notes])


@pytest.fixture(scope="module", name="pods")
def fixture_pods(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    scratch: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pods]:
    if not BIN:
        pytest.skip("needs the package containernetworking-plugins")
    netns, outside, folder = make_netns(), make_netns(), scratch / "cni"
    for name in ("net.d", "bin", "ipam"):
        (folder / name).mkdir(parents=True)
    plug(netns, "up0", outside, "out0")
    address(netns, "up0", f"{HOST}/24")
    address(outside, "out0", f"{NEIGHBOUR}/24")
    route(netns, "default", "via", NEIGHBOUR)
    engine = Engine(netns, make_store())
    run = modules(netns, engine.dirs)
    pods = Pods(engine, run, outside, folder, make_key(tmp_path_factory.mktemp("keys")))
    pods.options = {"type": "cni", "cni_conf_dir": str(folder / "net.d"), "cni_bin_dir": [str(folder / "bin"), BIN]}
    ipam = {
        **{"type": "host-local", "dataDir": str(folder / "ipam"), "routes": [{"dst": "0.0.0.0/0"}]},
        "ranges": [[{"subnet": SUBNET}]],
    }
    bridge = {"type": "bridge", "bridge": "cnb0", "isGateway": True, "mtu": 1400, "ipam": ipam}
    pods.conflist("pods", bridge, {"type": "portmap", "capabilities": {"portMappings": True}})
    pods.conflist("bare", {"type": "bridge", "bridge": "cnb0"}, version="0.4.0")
    run("cocoon_image", name=IDLE, **idle_image(scratch))
    pods.network()
    try:
        yield pods
    finally:
        audit.clean(engine)
    assert not audit.held(engine)
    assert not pods.left()


@pytest.fixture(autouse=True, name="clean")
def fixture_clean(pods: Pods) -> Iterator[None]:
    yield
    gone = [{"name": vm["config"]["name"], "state": "absent", "force": True} for vm in pods.engine.store.vm_records()]
    assert not gone or pods.vms(*gone).error is None
    assert not pods.left()


def in_namespace(record: Any) -> Netns:
    return Netns(f"cmv-{record['id']}")


def test_a_guest(pods: Pods, tiny_image: Path) -> None:
    pods.run("cocoon_image", name="tiny", source=str(tiny_image))
    options: dict[str, Any] = {
        **{"name": "web", "image": "tiny", "network": "pods", "cpu": 2, "memory": "96M", "storage": "64M"},
        **{"ssh_keys": [pods.key.public], "ports": ["8022:22"], "state": "started", "accel": "tcg"},
        **{"wait_for": "port", "wait_port": 22, "timeout": 240},
    }
    nic = pods.run("cocoon_vm", **options)["vm"]["network_configs"][0]
    ip = nic["network"]["ip"]
    assert ip.startswith("10.99.0.") and nic["network"]["gateway"] == GATEWAY and nic["network"]["prefix"] == 24
    assert ping(pods.netns, ip) and ping(pods.netns, ip)
    script = f"ping -c1 -W5 {NEIGHBOUR} >/dev/null && cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; ip route"
    route(pods.outside, SUBNET, "via", HOST)
    said = pods.outside.run(*ssh_words("root", HOST, pods.key, 8022), script, timeout=120).split("\n")
    assert said[:2] == [nic["mac"], "1400"] and f"default via {GATEWAY} dev eth0" in said[2]
    # Frames larger than the MTU of either end go through whole, as their checksums are left to who receives them.
    carries_much(pods.netns, ip, lambda script: pods.run("cocoon_exec", name="web", shell=script))
    space = in_namespace(pods.engine.record("web"))
    interface, tap = (inside(space, wires.look)[name] for name in ("eth0", nic["tap"]))
    assert (interface.up, interface.mtu, tap.up, tap.mtu) == (True, 1400, True, 1400)
    details = json.loads(space.run("ip", "-d", "-j", "link", "show", nic["tap"]))[0]
    assert details["txqlen"] == 10000 and details["linkinfo"]["info_data"]["multi_queue"]
    assert nic["mac"] in space.run("ip", "link", "show", "eth0") and "inet" not in space.run("ip", "addr")
    assert not pods.run("cocoon_vm", **options).changed
    shown = pods.run("cocoon_network_info", name="pods")["networks"][0]
    assert shown["leases"][0]["ip"] == ip and shown["ports"][0]["port"] == "8022:22" and shown["missing"] == []
    assert shown["nics"][0]["up"] and shown["nics"][0]["sent"]["packets"] > 0
    _another_comes(pods, options, nic)
    _taken_apart(pods, options, space, nic)
    _cloned(pods, nic)
    pods.run("cocoon_vm", name="web", state="absent", force=True)
    pods.run("cocoon_image", name="tiny", state="absent")


def _another_comes(pods: Pods, options: dict[str, Any], nic: Any) -> None:
    """And goes again, while the guest runs: an ADD and a DEL of its own, and the first one notices nothing of it."""
    before, pid = pods.left(), pods.engine.record("web")["pid"]
    nics = [{"network": "pods"}, {"network": "pods", "ip": "10.99.0.77", "default_route": False}]
    vm = pods.run("cocoon_vm", **options, nics=nics)["vm"]
    first, second = vm["network_configs"]
    assert vm["pid"] == pid and (first["mac"], second["network"]["ip"]) == (nic["mac"], "10.99.0.77")
    assert ping(pods.netns, "10.99.0.77") and ping(pods.netns, nic["network"]["ip"])
    assert not pods.run("cocoon_vm", **options, nics=nics).changed and len(pods.left()) > len(before)
    assert pods.run("cocoon_vm", **options, nics=nics[:1])["vm"]["pid"] == pid
    assert pods.left() == before and ping(pods.netns, nic["network"]["ip"])


def _taken_apart(pods: Pods, options: dict[str, Any], space: Netns, nic: Any) -> None:
    """What somebody breaks under a running guest is seen, and mended without the guest; then other ports."""
    space.run("tc", "qdisc", "del", "dev", "eth0", "ingress")
    told = pods.run("cocoon_vm", **options, diff=True)
    assert told["diff"]["before"]["nics[0]"] == "not joined to its interface"
    assert ping(pods.netns, nic["network"]["ip"])
    space.run("ip", "link", "del", "eth0")
    assert pods.run("cocoon_vm", **options).changed
    assert ping(pods.netns, nic["network"]["ip"]) and not pods.run("cocoon_vm", **options).changed
    pods.run("cocoon_vm", **{**options, "ports": ["8023:22"]})
    assert "ok" in pods.outside.run(*ssh_words("root", HOST, pods.key, 8023), "echo ok", timeout=60)
    pods.run("cocoon_snapshot", name="warm", vm="web")
    pods.run("cocoon_vm", name="web", state="stopped", force=True)
    assert not inside(space, wires.look)["eth0"].up and nic["tap"] not in inside(space, wires.look)


def _cloned(pods: Pods, nic: Any) -> None:
    """A clone is let on with a MAC and addresses of its own, by an ADD of its own."""
    # Each list counts from its own beginning.
    ranges = [[{"subnet": SUBNET, "rangeStart": "10.99.0.100"}]]
    ipam = {"type": "host-local", "dataDir": str(pods.folder / "ipam"), "ranges": ranges}
    pods.plugin("far", FAR_PLUGIN)
    pods.conflist("far", {"type": "bridge", "bridge": "cnb0", "mtu": 1400, "ipam": ipam}, {"type": "far"})
    pods.network("far")
    for cidr in (f"{FAR}/32", "fd00:99::1/128", f"{GATEWAY6}/64"):
        pods.netns.run("ip", "addr", "add", cidr, "dev", "cnb0", *(["nodad"] if ":" in cidr else []))
    pods.netns.run("ip", "route", "add", FAR6, "dev", "cnb0")
    wait = {"state": "started", "wait_for": "port", "wait_port": 22, "timeout": 240, "accel": "tcg"}
    two = pods.run("cocoon_vm", name="two", snapshot="warm", network="far", **wait)["vm"]["network_configs"][0]
    assert (two["network"]["gateway"], two["network"]["prefix"]) == (FAR, 32)
    assert two["network6"] == {"ip": FAR6, "prefix": 128, "gateway": GATEWAY6}
    assert two["mac"] != nic["mac"] and two["network"]["ip"] != nic["network"]["ip"]
    assert (
        ping(pods.netns, two["network"]["ip"])
        and len(inside(in_namespace(pods.engine.record("two")), redirect.joined)) == 2
    )
    script = "cat /sys/class/net/eth*/address; ip route; ip -6 route"
    said = pods.outside.run(*ssh_words("root", two["network"]["ip"], pods.key), script, timeout=60)
    assert two["mac"] in said and nic["mac"] not in said and f"default via {FAR}" in said, said
    assert f"default via {GATEWAY6}" in said, said
    pods.netns.run("ping", "-6", "-n", "-c", "1", "-w", "20", FAR6)
    leased = pods.run("cocoon_network_info", name="far")["networks"][0]["leases"]
    assert [lease["ip6"] for lease in leased] == [FAR6]
    pods.run("cocoon_vm", name="two", state="absent", force=True)
    pods.network("far", state="absent")
    pods.run("cocoon_snapshot", name="warm", state="absent")


def test_a_reboot_and_wishes(pods: Pods) -> None:
    vm = {**VM, "nics": [{"ip": "10.99.0.77", "mac": "02:00:00:00:99:01"}, {}], "state": "started"}
    assert pods.vms(vm).error is None
    record = pods.engine.record("one")
    first, second = record["network_configs"]
    assert (first["network"]["ip"], first["mac"]) == ("10.99.0.77", "02:00:00:00:99:01") and first["way_out"]
    assert second["network"]["ip"] != "10.99.0.77" and not second["way_out"]
    space = in_namespace(record)
    assert sorted(inside(space, wires.look)) == sorted(["lo", "eth0", "eth1", first["tap"], second["tap"]])
    assert len(inside(space, redirect.joined)) == 4
    assert not pods.vms({**vm, "state": "stopped", "force": True}).error
    command("ip", "netns", "del", space.name)  # as a reboot does
    assert pods.vms(vm).error is None
    after = pods.engine.record("one")["network_configs"]
    assert [(nic["network"]["ip"], nic["mac"]) for nic in after] == [
        (nic["network"]["ip"], nic["mac"]) for nic in (first, second)
    ]
    # So it is for a guest that goes on from its memory, where nothing else would do.
    assert pods.vms({**vm, "state": "hibernated"}).error is None
    assert not inside(space, wires.look)["eth0"].up
    command("ip", "netns", "del", space.name)
    assert pods.vms(vm).error is None and pods.engine.record("one")["network_configs"] == after
    # A NIC that goes gives back what it had.
    one = {**vm, "nics": vm["nics"][:1], "allow_restart": True, "stop_timeout": 0}
    assert pods.vms(one).error is None and len(pods.left()) == 4
    taken = pods.fails(**{**VM, "name": "two", "nics": [{"ip": "10.99.0.77"}], "state": "started"})
    assert "10.99.0.77" in taken and len(pods.left()) == 4


def test_no_address_means_dhcp(pods: Pods) -> None:
    pods.network("bare")
    assert pods.vms({**VM, "network": "bare", "state": "started"}).error is None
    record = pods.engine.record("one")
    assert not record["network_configs"][0].get("network") and "ip=" not in record["boot_config"]["cmdline"]
    assert pods.vms({"name": "one", "state": "absent", "force": True}).error is None
    pods.network("bare", state="absent")


def test_a_tap_that_is_opened_by_name(pods: Pods, make_netns: Callable[[], Netns]) -> None:
    """A hypervisor that takes no descriptors gives its TAP up into the VM's namespace, where it is joined."""
    vm_id, uid, private, store = new_id(), 64001, make_netns(), pods.engine.store
    config: Any = {"tap": f"cm{vm_id[:8]}-0", "mac": "02:00:00:00:99:09", "backend": "cni"}
    network = pods.run("cocoon_network_info", name="pods")["networks"][0]
    cni.place(config, vm_id)
    inside(pods.netns, cni.plug, store, network, config, [], False)
    inside(private, tap.make_named, config, uid)
    words = [*private.enter(), sys.executable, "-c", OPENER, config["tap"], str(uid)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as opener:
        assert opener.stdin and opener.stdout
        try:
            assert opener.stdout.readline() == "open\n"
            with Process(opener.pid, os.pidfd_open(opener.pid)) as process:
                inside(pods.netns, cni.take_over, config, process, True)
            bridge = inside(pods.netns, links.look, "cnb0")
            assert bridge and len(inside(Netns(f"cmv-{vm_id}"), redirect.joined)) == 2
            request = arp_request(config["mac"], config["network"]["ip"], GATEWAY).hex()
            for _attempt in range(50):
                opener.stdin.write(f"{request}\n")
                opener.stdin.flush()
                if bytes.fromhex(bridge.mac.replace(":", "")) in bytes.fromhex(opener.stdout.readline()):
                    break
            else:
                raise AssertionError("nobody answered")
        finally:
            opener.kill()
    # Nobody has it any more, so the network's next run takes it down.
    assert pods.network()["action"] == "repair" and not pods.left()


def test_killed_at_every_step(pods: Pods) -> None:
    start, remove = {**VM, "state": "started"}, {"name": "one", "state": "absent", "force": True}
    whole = pods.vms(start).marks
    gone = pods.vms(remove).marks
    assert {"cni.netns", "cni.noted", "cni.added", "cni.complete"} <= set(whole)
    assert {"cni.deleted", "cni.forgotten"} <= set(gone)
    for number, mark in enumerate(whole):
        if mark.startswith("cni.") or mark == "start.plugged":
            assert pods.vms(start, kill_at=number).killed
            assert pods.left()
            assert pods.vms(remove).error is None and not pods.left(), mark
    assert pods.vms(start, kill_at=whole.index("cni.added")).killed
    for mark in ("cni.deleted", "cni.forgotten"):
        assert pods.vms(start).error is None
        assert pods.vms(remove, kill_at=gone.index(mark)).killed
        assert pods.vms(remove).error is None and not pods.left(), mark


TROUBLE = {
    "fails": (
        'echo \'{"cniVersion": "1.0.0", "code": 11, "msg": "no more", "details": "of these"}\'; echo why >&2; exit 1',
        ("no more; of these; code 11; why", "failed at ADD"),
    ),
    "silent": ("exit 3", ("(3): it said nothing",)),
    "garbage": ("echo hello", ("printed what is no result: hello",)),
    "nothing": ("", ("printed what is no result: nothing",)),
    "list": ("echo '{\"ips\": 7}'", ("its ips are no list of objects",)),
    "address": ('echo \'{"ips": [{"address": "10.0.0.300/24"}]}\'', ("printed a wrong result", "10.0.0.300")),
    "way": (
        'echo \'{"ips": [{"address": "10.0.0.5/32"}], "routes": [{"dst": "0.0.0.0/0"}]}\'',
        ("without a next hop",),
    ),
    "absent": ("echo '{}'", ("made no interface eth0",)),
    "hangs": ("echo waiting >&2; sleep 300 & wait", ("did not finish ADD within 1 s: waiting",)),
}


@pytest.mark.parametrize("case", TROUBLE)
def test_plugins_in_trouble(pods: Pods, case: str) -> None:
    """Each comes after a plugin that has made an interface, which is taken down again."""
    script, words = TROUBLE[case]
    ipam = {"type": "host-local", "dataDir": str(pods.folder / "ipam"), "ranges": [[{"subnet": SUBNET}]]}
    first = {"type": "bridge", "bridge": "cnb0", "ipam": ipam}
    pods.plugin("rogue", f'cat >/dev/null; [ "$CNI_COMMAND" = ADD ] || exit 0\n{script}')
    # The interface of the one case is not there, as no plugin makes it.
    pods.conflist("rogues", *([] if case == "absent" else [first]), {"type": "rogue"})
    pods.network("rogues")
    said = pods.fails(**{**VM, "network": "rogues", "state": "started"})
    assert all(word in said for word in words), said
    assert not pods.left()
    assert pods.vms({"name": "one", "state": "absent", "force": True}).error is None
    pods.network("rogues", state="absent")


@pytest.mark.parametrize("last", [{"state": "stopped", "nics": [{"network": "pods"}]}, {"state": "absent"}])
def test_a_slow_del_keeps_nobody_waiting(pods: Pods, last: dict[str, Any]) -> None:
    """While plugins take down what one VM had, another one is made: the host's lock is not held for that."""
    begun, go = pods.folder / "begun", pods.folder / "go"
    wait = f"cat >/dev/null; touch {begun}; until test -e {go}; do sleep 0.05; done; exit 0"
    pods.plugin("slow", f'if [ "$CNI_COMMAND" = DEL ]; then {wait}; fi\n{_LAST}')
    ipam = {"type": "host-local", "dataDir": str(pods.folder / "ipam"), "ranges": [[{"subnet": SUBNET}]]}
    pods.conflist("slow", {"type": "bridge", "bridge": "cnb0", "ipam": ipam}, {"type": "slow"})
    pods.network("slow")
    both = [{"network": "pods"}, {"network": "slow"}]
    for state in ("started", "stopped"):
        assert pods.vms({**VM, "nics": both, "state": state, "force": True}).error is None
    slow = pods.start({**VM, **last, "force": True})
    try:
        deadline = time.monotonic() + 60
        while not begun.exists():
            assert time.monotonic() < deadline, "the plugin is not asked"
            time.sleep(0.02)
        made = pods.vms({**VM, "name": "two", "state": "present"})
        assert made.error is None and made.results[0]["changed"] and not go.exists()
    finally:
        go.touch()
    assert slow.wait().error is None
    assert pods.vms(*({"name": name, "state": "absent", "force": True} for name in ("one", "two"))).error is None
    for path in (begun, go):
        path.unlink()
    pods.network("slow", state="absent")


def test_a_failed_del_is_tried_again(pods: Pods) -> None:
    broken = pods.folder / "broken"
    pods.plugin("flaky", f'if [ "$CNI_COMMAND" = DEL ]; then cat >/dev/null; test ! -e {broken}; exit; fi\n{_LAST}')
    base = {"type": "bridge", "bridge": "cnb0", "ipam": {"type": "host-local", "dataDir": str(pods.folder / "ipam")}}
    base["ipam"]["ranges"] = [[{"subnet": SUBNET}]]  # type: ignore[index]
    pods.conflist("flaky", base, {"type": "flaky"})
    pods.network("flaky")
    broken.touch()
    assert pods.vms({**VM, "network": "flaky", "state": "started"}).error is None
    gone = pods.vms({"name": "one", "state": "absent", "force": True})
    assert "tries again" in gone.results[0]["warnings"][0] and len(pods.left()) == 1
    info = pods.run("cocoon_host_info")
    assert "interface eth0" in next(row["detail"] for row in info["checks"] if row["name"] == "leftovers")
    assert "do not take down" in pods.refused("flaky", state="absent")
    assert pods.network("flaky", check=True)["action"] == "repair" and len(pods.left()) == 1
    broken.unlink()
    assert pods.network("flaky")["action"] == "repair" and not pods.left()
    assert pods.network("flaky")["action"] == "none"
    pods.network("flaky", state="absent")


# What comes in as the result of those before goes out again.
_LAST = "exec python3 -c 'import json, sys; print(json.dumps(json.load(sys.stdin)[\"prevResult\"]))'"


def test_bad_networks(pods: Pods) -> None:
    folder = pods.folder / "net.d"
    said = pods.refused("nowhere")
    assert "no conflist 'nowhere'" in said and "there are bare" in said and "pods" in said
    (folder / "torn.conflist").write_text("{", encoding="utf-8")
    assert "torn.conflist is no conflist: it is not JSON" in pods.refused("torn")
    (folder / "torn.conflist").unlink()
    for name, listed, version, words in (
        ("old", [{"type": "bridge"}], "0.2.0", "is of cniVersion 0.2.0"),
        ("empty", [], "1.0.0", "has no plugins"),
        ("slash", [{"type": "../../bin/sh"}], "1.0.0", "has a plugin without a type"),
        ("lacking", [{"type": "nosuch"}], "1.0.0", "the CNI plugin 'nosuch' is not in"),
        ("ipam", [{"type": "bridge", "ipam": {"type": "nosuch"}}], "1.0.0", "the CNI plugin 'nosuch' is not in"),
    ):
        pods.conflist(name, *listed, version=version)
        assert words in pods.refused(name)
        (folder / f"10-{name}.conflist").unlink()
    assert "cni_conf_dir" in pods.refused("pods2", cni_conf_dir="/nonexistent", conflist="pods")
    assert "is of type cni, and this is never changed" in pods.refused("pods", type="bridge", conflist=None)
    shutil.copy(folder / "10-pods.conflist", pods.folder / "kept")
    (folder / "10-pods.conflist").unlink()
    info = pods.run("cocoon_host_info")
    assert "no conflist 'pods'" in next(row["detail"] for row in info["checks"] if row["name"] == "cni")
    assert pods.run("cocoon_network_info", name="pods")["networks"][0]["missing"] == ["conflist"]
    shutil.move(pods.folder / "kept", folder / "10-pods.conflist")
