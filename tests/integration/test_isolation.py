# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest that took over its hypervisor finds on the host: its own disks, its own image, and nothing else."""

from __future__ import annotations

import os
import socket
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.tests.integration.support import intruder
from ansible_collections.cocoon.microvm.tests.integration.support.intruder import Process, as_intruder
from ansible_collections.cocoon.microvm.tests.integration.support.lab import Lab, address, boot_files, make_lab
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns
from ansible_collections.cocoon.microvm.tests.integration.support.networking import inside
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules

Record = dict[str, Any]
LISTENERS = 3


def other_image(source: Path, folder: Path) -> Path:
    """A copy of an image with one more file: another layer."""
    target = folder / "other.tar"
    target.write_bytes(source.read_bytes())
    with tarfile.open(target, "a") as archive:
        archive.addfile(tarfile.TarInfo("etc/other"))
    return target


@pytest.fixture(scope="module")
def lab(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    tiny_image: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Lab]:
    """A store with two images."""
    folder = tmp_path_factory.mktemp("isolation")
    with make_lab(make_netns(), make_store(), modules, tiny_image, folder) as lab:
        boot = boot_files(tiny_image, folder)
        lab.module("cocoon_image", name="other", source=str(other_image(tiny_image, folder)), **boot)
        yield lab


@pytest.fixture(scope="module")
def guests(lab: Lab) -> tuple[Record, Record]:
    """Two guests that run: ours, which is hostile, and its neighbour, of another owner and image.

    Two vCPUs each, which makes their TAPs ones that take further queues.
    """
    disks = [{"name": "data", "size": "16M"}]
    login = {"ssh_keys": [lab.key.public], "password": "not to be seen"}
    given: Record = {"state": "started", "accel": "tcg", "cpu": 2, "data_disks": disks, **login}
    ours = lab.vm("ours", owner="us", **given)["vm"]
    neighbour = lab.vm("neighbour", owner="them", image="other", **given)["vm"]
    return ours, neighbour


def allowed(lab: Lab, vm: Record) -> intruder.Found:
    """Everything in the store's folders that a VM's own process has any right to."""
    folder = lab.path("root", "vms", vm["id"])
    image = lab.module("cocoon_image_info", name=vm["config"]["image"])["images"][0]
    blobs = [disk["path"] for disk in vm["storage_configs"] if disk["ro"]]
    writable = [folder / "cow.raw", folder / "data-data.raw", lab.path("run", "ram", vm["id"])]
    return {
        **{str(path): ["read", "write", "chmod"] for path in writable},
        **{str(path): ["read"] for path in [*blobs, *image["boot"].values()]},
        str(folder / "login.json"): ["read", "chmod"],
    }


def test_of_all_files_only_its_own_can_be_opened(lab: Lab, guests: tuple[Record, Record]) -> None:
    """Every path of the store is tried, as it was found by root, and so are the host's private files."""
    for vm in guests:
        paths = intruder.everything(*(Path(folder) for folder in lab.store.values()))
        neighbours = [path for path in paths if any(other["id"] in path for other in guests if other is not vm)]
        kinds = {stat.S_IFMT(os.lstat(path).st_mode) for path in neighbours}
        assert kinds == {stat.S_IFREG, stat.S_IFDIR, stat.S_IFSOCK, stat.S_IFIFO} and len(neighbours) > 12, neighbours
        paths += [path for path in intruder.HOST_FILES if os.path.exists(path)]
        assert "/etc/shadow" in paths
        assert as_intruder(Process(vm["pid"]), intruder.try_paths(paths)) == allowed(lab, vm)


def test_other_users_processes_are_out_of_reach(guests: tuple[Record, Record]) -> None:
    """No signal, no trace, no memory, no environment, no descriptor: not of the neighbour and not of anybody else."""
    ours, neighbour = guests
    process = Process(ours["pid"])
    pids = intruder.others(process.ids("Uid")[0])
    assert {neighbour["pid"], os.getpid()} <= set(pids)
    assert as_intruder(process, intruder.try_processes(pids)) == {}
    # The same attempts do succeed where they may.
    assert as_intruder(process, intruder.try_processes([ours["pid"]])) != {}


def test_other_guests_interfaces_are_out_of_reach(lab: Lab, guests: tuple[Record, Record]) -> None:
    """Wherever everybody may open /dev/net/tun, the descriptor is good for nothing."""
    ours, neighbour = guests
    bridge = neighbour["network_configs"][0]["bridge_dev"]
    links = [bridge, "cmnew0", *(vm["network_configs"][0]["tap"] for vm in guests)]
    assert all(vm["network_configs"][0]["num_queues"] > 2 for vm in guests)
    # Opened in the namespace of the TAPs, as root, so that nothing depends on this host's mode of it.
    attempt = inside(lab.netns, intruder.try_interfaces, links)
    assert as_intruder(Process(ours["pid"]), attempt) == {}


def test_nothing_of_the_hosts_network_is_there(lab: Lab, guests: tuple[Record, Record]) -> None:
    """What listens on the host's loopback or on its bridge can be reached by its users, and not by a hypervisor."""
    ours, neighbour = guests
    gateway = neighbour["network_configs"][0]["network"]["gateway"]
    bridge = neighbour["network_configs"][0]["bridge_dev"]
    name = f"\0{lab.netns.name}"
    with inside(lab.netns, listen, ("127.0.0.1", 0)) as loopback, inside(lab.netns, listen, (gateway, 0)) as outside:
        with inside(lab.netns, listen, name) as abstract:
            places = [loopback.getsockname(), outside.getsockname(), (name, 0), (address(neighbour), 22)]
            assert abstract.getsockname()
            attempt = intruder.try_sockets(places, bridge)
            assert set(inside(lab.netns, attempt)) >= {f"connect to {place[0]!r} {place[1]}" for place in places[:3]}
            assert as_intruder(Process(ours["pid"]), attempt) == {}


def listen(place: tuple[str, int] | str) -> socket.socket:
    """A socket that listens on an address, or under an abstract name."""
    sock = socket.socket(socket.AF_UNIX if isinstance(place, str) else socket.AF_INET, socket.SOCK_STREAM)
    sock.bind(place)
    sock.listen()
    return sock


def test_the_accelerator_is_there_only_for_those_who_use_it(guests: tuple[Record, Record]) -> None:
    """A hypervisor under TCG has no business at /dev/kvm."""
    path = "/dev/kvm"
    if not os.path.exists(path):
        pytest.skip(f"this machine has no {path}")
    if os.stat(path).st_mode & stat.S_IRWXO:
        pytest.skip(f"this machine lets everybody open {path}")
    for vm in guests:
        assert as_intruder(Process(vm["pid"]), intruder.try_paths([path])) == {}


def test_hypervisors_run_without_rights(lab: Lab, guests: tuple[Record, Record]) -> None:
    """A uid of its own each, no capabilities, no new privileges, and seccomp, in every thread."""
    store = lab.store_document()
    half = store["uid_count"] // 2
    uids = set()
    for vm in guests:
        threads = Process(vm["pid"]).threads
        assert len(threads) > 1
        for thread in threads:
            status = thread.status
            assert [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0, 0, 0, 0]
            assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
            uid = thread.ids("Uid")[0]
            assert thread.ids("Uid") == thread.ids("Gid") == [uid] * 4
            assert store["uid_start"] <= uid < store["uid_start"] + half
            # One group for each layer and boot folder of its image, and none of the host's.
            assert all(half <= group - store["uid_start"] < 2 * half for group in thread.ids("Groups"))
            uids.add(uid)
    assert len(uids) == len(guests)
    groups = [set(Process(vm["pid"]).ids("Groups")) for vm in guests]
    assert groups[0].isdisjoint(groups[1])


def test_hypervisors_hold_no_descriptors_but_their_own(lab: Lab, guests: tuple[Record, Record]) -> None:
    """Nothing that the module had open came along: no lock, no record, no pipe to it, no neighbour's TAP."""
    for vm in guests:
        queues = vm["network_configs"][0]["num_queues"] // 2
        own = {path for path, found in allowed(lab, vm).items() if "read" in found and not path.endswith("login.json")}
        own |= {str(lab.path("log", vm["id"], "hypervisor.log")), "/dev/null", "/dev/urandom", "/dev/net/tun"}
        own.add(str(lab.path("run", vm["id"], "console.pipe")))
        leads = list(Process(vm["pid"]).descriptors().values())
        files = [path for path in leads if path.startswith("/")]
        assert set(files) <= own, set(files) - own
        assert files.count("/dev/net/tun") == queues
        assert sum(path.startswith("socket:") for path in leads) == LISTENERS
        rest = [path for path in leads if not path.startswith(("/", "socket:", "anon_inode:"))]
        assert rest == [], rest
