# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside the lab: what a guest that took over its hypervisor finds there.

``python3 -m …tests.lab.intruding ID NEIGHBOUR`` tries with the rights of the first
VM's process all that there is, and prints, as JSON, what it could do and what the process itself has.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

from ansible_collections.cocoon.microvm.tests.integration.support import intruder
from ansible_collections.cocoon.microvm.tests.integration.support.intruder import Process, as_intruder
from ansible_collections.cocoon.microvm.tests.lab.killing import DIRS, Here

Facts = dict[str, Any]


def record(vm_id: str) -> Facts:
    text = Path(DIRS["root_dir"], "vms", vm_id, "vm.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def reached(ours: Facts) -> intruder.Found:
    """What the process may do with any path of the store, and with the host's private ones."""
    paths = intruder.everything(*(Path(folder) for folder in DIRS.values()))
    paths += [path for path in (*intruder.HOST_FILES, "/root/.ssh", "/dev/vda1") if os.path.exists(path)]
    return dict(as_intruder(Process(ours["pid"]), intruder.try_paths(paths)))


def seen(pid: int) -> Facts | None:
    """Files and devices below the process's root, the files by what they are on the host; None if it has the host's."""
    root = f"/proc/{pid}/root"
    if os.path.samefile(root, "/"):
        return None
    files, devices = {}, []
    for place, _inner, names in os.walk(root):
        for name in names:
            path = os.path.join(place, name)
            info = os.lstat(path)
            if stat.S_ISREG(info.st_mode):
                files[path[len(root) :]] = [info.st_dev, info.st_ino]
            elif stat.S_ISCHR(info.st_mode):
                devices.append(path[len(root) :])
    return {"files": files, "devices": sorted(devices)}


def own_files(vm: Facts) -> list[list[int]]:
    """Device and inode of all that is a VM's own: its folders, its disks and what it boots."""
    places = [Path(DIRS["root_dir"], "vms", vm["id"]), *(Path(DIRS[kind], vm["id"]) for kind in ("run_dir", "log_dir"))]
    found = [path for place in places for path in place.rglob("*")]
    found += [Path(item["path"]) for item in vm["storage_configs"]]
    found += [Path(path) for key, path in vm["boot_config"].items() if key.endswith("_path")]
    found.append(Path(DIRS["run_dir"], "ram", vm["id"]))
    infos = [path.stat() for path in found if path.is_file()]
    return sorted([info.st_dev, info.st_ino] for info in infos)


def descriptors(pid: int) -> Facts:
    """The process's open files by device and inode, its devices, and how many there are of each other kind."""
    files, devices, rest = [], [], {}
    for number, lead in Process(pid).descriptors().items():
        info = os.stat(f"/proc/{pid}/fd/{number}")
        if stat.S_ISREG(info.st_mode):
            files.append([lead, info.st_dev, info.st_ino])
        elif stat.S_ISCHR(info.st_mode):
            devices.append(lead)
        else:
            kind = lead.partition(":")[0]
            rest[kind] = rest.get(kind, 0) + 1
    return {"files": files, "devices": sorted(set(devices)), "rest": rest}


def main(vm_id: str, neighbour_id: str) -> None:
    """Try it all."""
    ours, neighbour = record(vm_id), record(neighbour_id)
    process = Process(ours["pid"])
    uid = process.ids("Uid")[0]
    link = neighbour["network_configs"][0]
    tuns = intruder.try_interfaces([link["bridge_dev"], link["tap"], "cmnew0"])
    sockets = intruder.try_sockets([(link["network"]["gateway"], 22), (link["network"]["ip"], 22)], link["bridge_dev"])
    found = {
        "reached": reached(ours),
        "processes": as_intruder(process, intruder.try_processes(intruder.others(uid))),
        "own": as_intruder(process, intruder.try_processes([ours["pid"]])),
        "interfaces": as_intruder(process, tuns),
        "sockets": as_intruder(process, sockets),
        "sockets of root": sockets(),
        "links": Here("lab").run("nsenter", f"--net=/proc/{ours['pid']}/ns/net", "ip", "-o", "link").splitlines(),
        "threads": [thread.status for thread in process.threads],
        "neighbour": {key: Process(neighbour["pid"]).ids(key) for key in ("Uid", "Groups")},
        "root": seen(ours["pid"]),
        "own files": own_files(ours),
        "neighbour's files": own_files(neighbour),
        "descriptors": descriptors(ours["pid"]),
        "storage": ours["storage_configs"],
        "boot": ours["boot_config"],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
