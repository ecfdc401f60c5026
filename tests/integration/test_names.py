# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and DHCP by a real dnsmasq, asked from namespaces that stand for guests; guests of their own ask elsewhere."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._engine.steps import Job, set_nics
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, ToolError
from ansible_collections.cocoon.microvm.plugins.module_utils._network import (
    attachments,
    converging,
    kernel,
    leases,
    listing,
    serving,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.steps import SetNics
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.plugins.module_utils._state import read_json
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Options, Run
from ansible_collections.cocoon.microvm.tests.integration.support import asking
from ansible_collections.cocoon.microvm.tests.integration.support.hosts import (
    INTERNET,
    UPLINK,
    Host,
    MakeNetns,
    make_host,
)
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns, command
from ansible_collections.cocoon.microvm.tests.integration.support.networking import (
    in_child,
    inside,
    plug,
    route,
)

GATEWAY = "10.90.0.1"
MACS = {"web1": "02:00:00:00:00:01", "web2": "02:00:00:00:00:02", "other": "02:00:00:00:00:99"}
SERVED: dict[str, Any] = {"names": True, "dhcp": True, "dhcp_range": "10.90.0.200-10.90.0.203", "dns": [INTERNET]}


@pytest.fixture(name="lab")
def fixture_lab(make_netns: MakeNetns, make_store: Callable[[], dict[str, str]]) -> Iterator[Host]:
    if shutil.which("dnsmasq") is None:
        pytest.skip("needs dnsmasq")
    host = make_host(make_netns, make_store())
    host.network("lab", subnet="10.90.0.0/24", **SERVED)
    yield host
    host.network("lab", state="absent", force=True)
    assert not instances(host) and not os.listdir(os.path.join(host.dirs["run_dir"], "networks"))


def instances(host: Host) -> list[int]:
    """The dnsmasqs of a store."""
    found = []
    for number in filter(str.isdigit, os.listdir("/proc")):
        if any(host.dirs["run_dir"].encode() in word for word in serving._words(int(number))):
            found.append(int(number))
    return found


def join(host: Host, name: str, ip: str) -> None:
    """A VM has an address on the network, as far as anybody but a guest can tell."""
    network = host.record("lab")
    address = {"ip": ip, "prefix": 24, "gateway": GATEWAY}
    nic = {"network_id": network["id"], "mac": MACS[name], "tap": f"cmtest-{name}", "network": address}
    host.vm(name, [nic], name)
    inside(host.netns, attachments.lease, host.store, network, ip, name)
    inside(host.netns, serving.publish, host.store, network, ip)


def leave(host: Host, name: str, ip: str) -> None:
    inside(host.netns, attachments.release, host.store, host.record("lab")["id"], ip, name)
    shutil.rmtree(host.store.paths.vm_dir(name))


def asker(host: Host, mac: str) -> Netns:
    """A guest with that MAC that has no address yet."""
    netns = host.make_netns()
    port = f"g{netns.name.rpartition('-')[2]}"
    plug(host.netns, port, netns, "eth0")
    command("ip", "-n", netns.name, "link", "set", "eth0", "address", mac)
    command("ip", "-n", host.netns.name, "link", "set", port, "master", "cm-lab")
    return netns


def tells(netns: Netns, name: str, wanted: str) -> bool:
    """Whether the network's server comes to tell that address; it reads what is new when it is told to, not before."""
    deadline = time.monotonic() + 5
    while asking.name(netns, GATEWAY, name) != wanted:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def address_of(netns: Netns) -> str | None:
    given = asking.lease(netns)
    return socket.inet_ntoa(given[asking.ADDRESS]) if given else None


def test_guests_find_each_other(lab: Host) -> None:
    join(lab, "web1", "10.90.0.10")
    one = lab.guest("lab", 11).netns
    for name in ("web1.lab", "web1", "WEB1.Lab"):
        assert tells(one, name, "10.90.0.10") and tells(lab.netns, name, "10.90.0.10")
    assert asking.name(one, GATEWAY, "web2.lab") == ""
    # Other names are asked for outside, and nobody outside gets to it.
    with inside(lab.outside, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((INTERNET, 53))
        asking.name(one, GATEWAY, "www.example.com", wait=0.1)
        assert select.select([server], [], [], 5)[0] and b"\3www\7example\3com\0" in server.recv(512)
    route(lab.outside, GATEWAY, "via", UPLINK)
    assert asking.name(lab.outside, GATEWAY, "web1.lab", wait=0.3) is None
    leave(lab, "web1", "10.90.0.10")
    assert tells(one, "web1.lab", "")


def test_guests_are_given_their_addresses(lab: Host) -> None:
    join(lab, "web1", "10.90.0.10")
    one, two = asker(lab, MACS["web1"]), asker(lab, MACS["web2"])
    given = asking.lease(one)
    assert given and socket.inet_ntoa(given[asking.ADDRESS]) == "10.90.0.10"
    assert socket.inet_ntoa(given[asking.ROUTER]) == socket.inet_ntoa(given[asking.SERVERS]) == GATEWAY
    assert b"\3lab\0" in given[asking.SEARCH] and asking.MTU not in given
    # Who is nobody of ours gets something of the range, where there is one.
    assert (address_of(two) or "").rpartition(".")[2] in ("200", "201", "202", "203")
    (told,) = inside(lab.netns, listing.describe, {**lab.dirs, "name": "lab"})
    assert [(item["ip"], item["mac"], item["names"]) for item in told["leases"]] == [
        ("10.90.0.10", MACS["web1"], ["web1.lab", "web1"])
    ]
    assert [(item["ip"], item["mac"]) for item in told["other_leases"]] == [(address_of(two), MACS["web2"])]
    # An address goes to its next holder at once, although the one before may still use it.
    leave(lab, "web1", "10.90.0.10")
    (told,) = inside(lab.netns, listing.describe, {**lab.dirs, "name": "lab"})
    assert [item["mac"] for item in told["other_leases"]] == [MACS["web2"]], "what a guest had is no address for others"
    join(lab, "web2", "10.90.0.10")
    assert address_of(two) == "10.90.0.10"
    lab.network("lab", dhcp_range="", mtu=1400)
    assert asking.lease(asker(lab, MACS["other"]), wait=1) is None
    given = asking.lease(two)
    assert given and given[asking.MTU] == (1400).to_bytes(2, "big")


def test_a_nic_that_gets_another_mac_keeps_its_address_and_name(lab: Host) -> None:
    join(lab, "web1", "10.90.0.10")
    record = lab.store.load_vm("web1")
    assert record
    record["config"].update(network="lab", queue_size=256)
    nic = {"network": "lab", "ip": "10.90.0.10", "mac": MACS["web2"]}

    def change() -> None:
        set_nics(Job(Run(lab.store, Options()), record, {}), SetNics([nic], None))

    inside(lab.netns, change)
    assert address_of(asker(lab, MACS["web2"])) == "10.90.0.10"
    assert address_of(asker(lab, MACS["web1"])) != "10.90.0.10"
    assert tells(lab.netns, "web1.lab", "10.90.0.10")
    assert not lab.network("lab")["changed"]
    leave(lab, "web1", "10.90.0.10")


def test_what_is_broken_comes_back(lab: Host) -> None:
    join(lab, "web1", "10.90.0.10")
    assert not lab.network("lab")["changed"]
    (first,) = instances(lab)
    note = os.path.join(lab.store.paths.object_dir("network", lab.record("lab")["id"]), "dnsmasq.json")
    folder = leases.runtime(lab.store.paths, lab.record("lab")["id"])

    def crash() -> None:
        process = Process.find((read_json(note) or {})["process"])
        assert process
        process.signal(signal.SIGKILL)
        assert process.wait(10)
        process.close()

    def reboot() -> None:
        crash()
        shutil.rmtree(folder)
        command("ip", "-n", lab.netns.name, "link", "del", "cm-lab")

    broken: dict[str, Callable[[], object]] = {
        "crash": crash,
        "killed before it was noted": lambda: os.remove(note),
        "damaged note": lambda: Path(note).write_text("{", encoding="utf-8"),
        "bridge": lambda: command("ip", "-n", lab.netns.name, "link", "del", "cm-lab"),
        "names": lambda: os.remove(os.path.join(folder, "hosts", "10.90.0.10")),
        "reboot": reboot,
    }
    for what, break_it in broken.items():
        break_it()
        assert lab.network("lab", check=True)["action"] == "repair", what
        assert lab.network("lab")["action"] == "repair", what
        assert not lab.network("lab")["changed"], what
        assert len(instances(lab)) == 1, what
        assert tells(lab.netns, "web1.lab", "10.90.0.10"), what
    assert instances(lab) != [first]


def test_it_is_there_while_it_is_wanted(lab: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {os.stat(f"/proc/{number}").st_uid for number in instances(lab)} == {serving._account().pw_uid} != {0}
    assert lab.network("lab", names=False)["changed"]
    assert asking.name(lab.netns, GATEWAY, "web1.lab", wait=0.3) is None
    assert asking.lease(asker(lab, MACS["other"]))
    with pytest.raises(InputError, match="dhcp_range: needs DHCP"):
        lab.network("lab", dhcp=False)
    assert lab.network("lab", dhcp=False, dhcp_range="")["changed"] and not instances(lab)
    with inside(lab.netns, socket.create_server, ("0.0.0.0", 53)):
        with pytest.raises(ToolError, match="already in use.*bind it to its own"):
            lab.network("lab", names=True)
    assert not lab.record("lab")["names"] and not instances(lab)
    monkeypatch.setattr(serving, "SEARCH_PATH", "/nowhere")
    with pytest.raises(ToolError, match="names: dnsmasq is not installed. Install dnsmasq-base"):
        lab.network("more", subnet="10.90.1.0/24", names=True)
    assert attachments.load(lab.store, "more") is None and inside(lab.netns, kernel.kind, "cm-more") is None


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("step", ["bridge up", "dnsmasq", "noting"])
def test_killed_at_any_step(lab: Host, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """A run that begins, or ends, with an instance goes away itself; the next one begins or ends."""

    def stop(*_found: Any, **_named: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(converging, "checkpoint", lambda name: stop() if name == step else None)
        if step == "noting":
            patch.setattr(serving, "identify", stop)
        assert in_child(lab.netns, lambda: lab.network("more", subnet="10.90.1.0/24", names=True)) == -9
        if step == "dnsmasq":
            assert in_child(lab.netns, lambda: lab.network("lab", state="absent")) == -9
    assert lab.network("lab", subnet="10.90.0.0/24", **SERVED)["changed"] is (step == "dnsmasq")
    assert tells(lab.netns, "web1.lab", "")
    if step == "bridge up":
        assert lab.network("more", names=True, subnet="10.90.1.0/24")["changed"] and len(instances(lab)) == 2
    if step == "noting":  # nobody but the command line knows of it, and now it is not wanted
        lab.network("more", subnet="10.90.1.0/24", names=False)
        assert len(instances(lab)) == 1 and not lab.network("more")["changed"]
    lab.network("more", state="absent")
    assert len(instances(lab)) == 1
