# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""10. A VM's NIC on the host: made and given back, on a bridge and by CNI plugins, beside commands that do the same."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import versus
from fleet import BenchError, Fleet
from measures import timed
from results import Row
from versus import packages

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Nic
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.driver import QemuDriver
from ansible_collections.cocoon.microvm.plugins.module_utils._network import guard, tap
from ansible_collections.cocoon.microvm.plugins.module_utils._network.backends import cni
from ansible_collections.cocoon.microvm.plugins.module_utils._network.cni import plugins
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.module_utils._types import new_id
from ansible_collections.cocoon.microvm.tests.integration.support.machine import command
from ansible_collections.cocoon.microvm.tests.integration.support.networking import inside

FOLDERS = ("/usr/lib/cni", "/opt/cni/bin")
MANY = 100
# For local experiments (IEEE 802).
ETHERTYPE = b"\x88\xb5"
QUEUES = (1, 2)
PAYLOAD, WINDOW, WINDOWS, TRIPS = 1400, 64, 100, 500
BRIDGE_AIM, CNI_AIM = 5.0, 30.0


def measure(fleet: Fleet, scratch: Path, runs: int) -> list[Row]:
    """NICs of either kind; each is made and given back in every turn."""
    packages(["containernetworking-plugins"])
    folder = next(path for path in FOLDERS if os.access(f"{path}/bridge", os.X_OK))
    rows = inside(fleet.netns, _on_bridge, fleet, runs)
    rows += inside(fleet.netns, _by_plugins, fleet, folder, runs)
    return [*rows, *_while_it_runs(fleet, scratch, runs)]


def _while_it_runs(fleet: Fleet, scratch: Path, runs: int) -> list[Row]:
    """A NIC that comes to a running guest, and goes: by our driver and virsh in turn, to QEMUs with the same guest.

    Ours is the engine's call in a process that is there; virsh is one, so what it takes to do nothing stands beside it.
    """
    versus.install()
    folder = scratch / "hot"
    folder.mkdir()
    fleet.engine([fleet.vms(1, state="started", wait_for="port", timeout=600)])
    record = fleet.module("cocoon_vm_info")["vms"][0]
    driver, run_dir = QemuDriver(Paths.from_params(fleet.dirs)), str(Path(fleet.dirs["run_dir"]) / record["id"])
    times: dict[str, list[float]] = {name: [] for name in ("made", "gone", "their made", "their gone", "nothing")}
    with versus.Libvirtd(fleet, folder) as daemon:
        name, xml = versus.domain(record, folder)
        path = folder / "domain.xml"
        # libvirt keeps no port free by itself.
        root = "<devices><controller type='pci' index='0' model='pcie-root'/>"
        spare = root + 12 * "<controller type='pci' model='pcie-root-port'/>"
        path.write_text(xml.replace("<devices>", spare), encoding="utf-8")
        virsh = ["virsh", "-q", "-c", daemon.uri]
        command(*virsh, "create", path)
        versus.await_guests([folder / f"{name}.log"])
        config = _config(_network(fleet, "bench"), 0)
        mac = "52:54:00:be:ff:01"
        attach = ["attach-interface", name, "bridge", config["bridge_dev"], "--model", "virtio", "--mac", mac, "--live"]
        for _turn in range(runs):
            times["made"].append(_ms(lambda: inside(fleet.netns, _plug, driver, run_dir, config)))
            times["gone"].append(_ms(lambda: driver.detach_nic(run_dir, 1, 60)))
            times["their made"].append(_ms(lambda: command(*virsh, *attach)))
            times["their gone"].append(_ms(lambda: _detach(virsh, name, mac)))
            times["nothing"].append(_ms(lambda: command(*virsh, "version")))
    fleet.clear()
    return [
        _row("a NIC of a running guest: plugged in, off its bridge until the guest is told", times["made"]),
        _row("a NIC of a running guest: until the guest has let go of it", times["gone"]),
        _row("the same by virsh: plugged in", times["their made"]),
        _row("the same by virsh: until the guest has let go of it", times["their gone"]),
        _row("virsh that asks for a version", times["nothing"]),
    ]


def _plug(driver: QemuDriver, run_dir: str, config: Any) -> None:
    fds = tap.open_tap(config, 1, attached=False)
    try:
        driver.attach_nic(run_dir, 1, Nic(config["mac"], tuple(fds)))
    finally:
        _close(fds)


def _detach(virsh: list[str], name: str, mac: str) -> None:
    """virsh asks and does not wait: the domain has it no more when the guest has let go."""
    command(*virsh, "detach-interface", name, "bridge", "--mac", mac, "--live")
    deadline = time.monotonic() + 60
    while mac in command(*virsh, "domiflist", name):
        if time.monotonic() > deadline:
            raise BenchError("libvirt's guest does not let go of its NIC")
        time.sleep(0.01)


def _on_bridge(fleet: Fleet, runs: int) -> list[Row]:
    network, store = _network(fleet, "bench"), _store(fleet)
    turns = [_bridge_turn(store, network) for _turn in range(runs)]
    by_ip = [_by_ip(network["bridge"]) for _turn in range(runs)]
    made, many, ruled, gone = zip(*turns)
    paths = {pairs: [_bridge_path(network, pairs) for _turn in range(runs)] for pairs in QUEUES}
    return [
        _row("a NIC on a bridge: made", made, BRIDGE_AIM),
        _row(f"{MANY} NICs at once, each", many, BRIDGE_AIM),
        _row("its rules against spoofing, one call of nft a batch", ruled),
        _row("a NIC on a bridge: given back (the kernel's own time)", gone),
        _row("the same by ip: made", [made for made, _gone in by_ip]),
        _row("the same by ip: given back", [gone for _made, gone in by_ip]),
        *(row for pairs in QUEUES for row in _path_rows("bridge", pairs, paths[pairs])),
    ]


def _bridge_turn(store: Store, network: Any) -> tuple[float, float, float, float]:
    """One NIC, many, the rules of one, and its end."""
    fds: list[int] = []
    config, more = _config(network, 0), [_config(network, number) for number in range(1, MANY + 1)]
    nic = guard.Nic(config, network, ("10.231.0.9",))
    made = _ms(lambda: fds.extend(tap.open_tap(config, 1)))
    ruled = _ms(lambda: guard.ensure(store, [nic]))
    guard.remove(store, [config["tap"]])
    gone = _ms(lambda: _close(fds))
    many = _ms(lambda: [fds.extend(tap.open_tap(one, 1)) for one in more]) / MANY
    _close(fds)
    return made, many, ruled, gone


def _by_ip(bridge: str) -> tuple[float, float]:
    """What a script would call: in one process each, as a script has it."""
    made = [
        ("tuntap", "add", "cmbench", "mode", "tap", "vnet_hdr"),
        ("link", "set", "cmbench", "address", "fe:54:00:00:00:01", "master", bridge, "up"),
    ]
    return _ms(lambda: [command("ip", *words) for words in made]), _ms(lambda: command("ip", "link", "del", "cmbench"))


def _by_plugins(fleet: Fleet, folder: str, runs: int) -> list[Row]:
    """Our own time around the plugins': it passes in the namespace, the files, the TAP and the redirect."""
    network, store = _cni_network(fleet, folder), _store(fleet)
    turns = [_plugin_turn(store, network) for _turn in range(runs)]
    made, gone, their_made, their_gone = zip(*turns)
    paths = {pairs: [_plugin_path(store, network, pairs) for _turn in range(runs)] for pairs in QUEUES}
    return [
        _row("a NIC by CNI plugins: made, beyond their own time", made, CNI_AIM),
        _row("a NIC by CNI plugins: given back, beyond their own time", gone, CNI_AIM),
        _row("the plugins' own time: made", their_made),
        _row("the plugins' own time: given back", their_gone),
        *(row for pairs in QUEUES for row in _path_rows("redirect to a veth", pairs, paths[pairs])),
    ]


class Pod:
    """A NIC by plugins, as a VM's start makes it and its removal takes it down."""

    def __init__(self, store: Store, network: Any, number: int) -> None:
        self.store, self.network, self.vm_id = store, network, new_id()
        self.config = {**_config(network, number), "bridge_dev": ""}
        self.fds: list[int] = []
        cni.place(self.config, self.vm_id)

    def attach(self, pairs: int = 1) -> list[int]:
        cni.plug(self.store, self.network, self.config, (), False)
        self.fds = cni.open_tap(self.config, pairs, True)
        return self.fds

    def detach(self) -> None:
        _close(self.fds)
        cni.unplug(self.store, self.vm_id)


def _plugin_turn(store: Store, network: Any) -> tuple[float, float, float, float]:
    """(ours, ours, theirs, theirs) of a NIC made and given back."""
    pod = Pod(store, network, 0)
    with _plugins_timed() as first:
        made = _ms(pod.attach)
    with _plugins_timed() as second:
        gone = _ms(pod.detach)
    return made - sum(first), gone - sum(second), sum(first), sum(second)


def _plugin_path(store: Store, network: Any, pairs: int) -> tuple[float, float]:
    pods = [Pod(store, network, number) for number in (1, 2)]
    try:
        return _path([pod.attach(pairs) for pod in pods], [pod.config["mac"] for pod in pods])
    finally:
        for pod in pods:
            pod.detach()


# -- the way of a frame ---------------------------------------------------------------------------------------------


def _bridge_path(network: Any, pairs: int) -> tuple[float, float]:
    configs = [_config(network, number) for number in (1, 2)]
    ends = [tap.open_tap(config, pairs) for config in configs]
    try:
        return _path(ends, [config["mac"] for config in configs])
    finally:
        for fds in ends:
            _close(fds)


def _path(fds: list[list[int]], macs: list[str]) -> tuple[float, float]:
    """(Gbit/s, us for there and back) from one guest's NIC to another's, as their hypervisors would see them.

    Frames go in and come out by the TAPs' descriptors: emulated guests would be measured, and not the way.

    :param fds: of each side, one a queue.
    """
    sides = [bytes.fromhex(mac.replace(":", "")) for mac in macs]
    there, back = (bytes(10) + sides[to] + sides[1 - to] + ETHERTYPE + bytes(PAYLOAD) for to in (1, 0))
    _open_way(fds, there, back)
    bulk = timed(lambda: [_pass(fds[0], fds[1], there, WINDOW) for _turn in range(WINDOWS)])
    trips = timed(lambda: [(_pass(fds[0], fds[1], there, 1), _pass(fds[1], fds[0], back, 1)) for _trip in range(TRIPS)])
    return WINDOW * WINDOWS * (PAYLOAD + 14) * 8 / bulk / 1e9, trips / TRIPS * 1e6


def _open_way(fds: list[list[int]], there: bytes, back: bytes) -> None:
    """Have both ends seen by bridges; ports let frames through when the kernel has looked at their carriers."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with suppress(BenchError):
            _pass(fds[0], fds[1], there, 1, patience=0.1)
            _pass(fds[1], fds[0], back, 1, patience=0.1)
            return
    raise BenchError("no frame comes through")


def _pass(senders: list[int], receivers: list[int], frame: bytes, count: int, patience: float = 5) -> None:
    """Send so many frames, by all queues in turn, and take as many; what else goes by (neighbour discovery, say) is
    passed over."""
    for turn in range(count):
        os.write(senders[turn % len(senders)], frame)
    deadline = time.monotonic() + patience
    while count:
        ready = select.select(receivers, [], [], max(0, deadline - time.monotonic()))[0]
        if not ready:
            raise BenchError(f"{count} frames did not come through")
        for fd in ready:
            count -= os.read(fd, 65536)[10:] == frame[10:]


def _path_rows(way: str, pairs: int, paths: list[tuple[float, float]]) -> list[Row]:
    way += "" if pairs == 1 else f", {pairs} queues"
    return [
        Row("10", f"frames of {PAYLOAD} bytes from NIC to NIC by {way}", "Gbit/s", [rate for rate, _trip in paths]),
        Row("10", f"there and back by {way}", "us", [trip for _rate, trip in paths]),
    ]


@contextmanager
def _plugins_timed() -> Iterator[list[float]]:
    """Add up what passes in the plugins' processes, in ms."""
    spent: list[float] = []
    execute = plugins._run

    def timed_one(*arguments: Any, **named: Any) -> Any:
        began = time.monotonic()
        try:
            return execute(*arguments, **named)
        finally:
            spent.append((time.monotonic() - began) * 1000)

    plugins._run = timed_one
    try:
        yield spent
    finally:
        plugins._run = execute


def _cni_network(fleet: Fleet, folder: str) -> Any:
    conflists = fleet.folder / "net.d"
    conflists.mkdir()
    ipam = {"type": "host-local", "dataDir": str(fleet.folder / "ipam"), "ranges": [[{"subnet": "10.232.0.0/24"}]]}
    bridge = {"type": "bridge", "bridge": "cnbench0", "isGateway": True, "ipam": ipam}
    document = {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}
    (conflists / "10-pods.conflist").write_text(json.dumps(document), encoding="utf-8")
    options = {"type": "cni", "conflist": "pods", "cni_conf_dir": str(conflists), "cni_bin_dir": [folder]}
    fleet.module("cocoon_network", name="pods", state="present", **options)
    return _network(fleet, "pods")


def _network(fleet: Fleet, name: str) -> Any:
    store = _store(fleet)
    path = store.paths.object_dir("network", store.index("network").lookup(name) or "")
    with open(os.path.join(path, "network.json"), encoding="utf-8") as stream:
        return json.load(stream)


def _store(fleet: Fleet) -> Store:
    store = Store.load(Paths.from_params(fleet.dirs))
    if store is None:
        raise BenchError("the store has gone")
    return store


def _config(network: Any, number: int) -> Any:
    mac = f"52:54:00:be:{number >> 8:02x}:{number & 255:02x}"
    return {"tap": f"cmbench{number}", "mac": mac, "bridge_dev": network.get("bridge"), "network_id": network["id"]}


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def _ms(action: Callable[[], object]) -> float:
    return timed(action) * 1000


def _row(what: str, runs: Sequence[float], aim: float | None = None) -> Row:
    row = Row("10", what, "ms", list(runs), "" if aim is None else f"{aim:g} ms")
    row.met = None if aim is None else row.median <= aim
    return row
