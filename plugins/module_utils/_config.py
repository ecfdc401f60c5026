# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where things are on a host: one object that knows every path of a store."""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, StateError

ROOT_DIR = "/var/lib/cocoon-microvm"
RUN_DIR = "/run/cocoon-microvm"
LOG_DIR = "/var/log/cocoon-microvm"
# A socket's path ends after 107 bytes: below it come an id of 26 and the socket's name.
MAX_RUN_DIR = 60


@dataclasses.dataclass(frozen=True)
class Paths:
    """The directories of one store."""

    root: str = ROOT_DIR
    run: str = RUN_DIR
    log: str = LOG_DIR

    @classmethod
    def from_params(cls, params: t.Mapping[str, t.Any]) -> Paths:
        """From the options ``root_dir``, ``run_dir`` and ``log_dir``."""
        return cls(
            root=params.get("root_dir") or ROOT_DIR,
            run=params.get("run_dir") or RUN_DIR,
            log=params.get("log_dir") or LOG_DIR,
        )

    def check(self) -> None:
        """:raises InputError: run_dir is too long for the sockets below it."""
        if len(os.fsencode(self.run)) > MAX_RUN_DIR:
            raise InputError(
                f"{self.run} is too long for sockets below it", "run_dir", f"Use at most {MAX_RUN_DIR} characters."
            )

    @property
    def store_file(self) -> str:
        return os.path.join(self.root, "store.json")

    @property
    def locks(self) -> str:
        return os.path.join(self.root, "locks")

    @property
    def images(self) -> str:
        return os.path.join(self.root, "images")

    @property
    def moves(self) -> str:
        """What is on its way from or to another host."""
        return os.path.join(self.root, "moves")

    @property
    def ram(self) -> str:
        """The tmpfs of guest RAM files."""
        return os.path.join(self.run, "ram")

    def index(self, kind: str) -> str:
        return os.path.join(self.root, "index", kind)

    def object_dir(self, kind: str, object_id: str) -> str:
        """``vms/<id>``, ``snapshots/<id>``, ``networks/<id>``."""
        return os.path.join(self.root, kind + "s", object_id)

    def vm_dir(self, vm_id: str) -> str:
        return self.object_dir("vm", vm_id)

    def vm_run(self, vm_id: str) -> str:
        return os.path.join(self.run, vm_id)

    def vm_log(self, vm_id: str) -> str:
        return os.path.join(self.log, vm_id)

    def inbox(self, vm_id: str) -> str:
        """Where a hypervisor that writes files of a machine that it saves makes them: a folder of the VM's user's."""
        return os.path.join(self.vm_dir(vm_id), "inbox")

    def ram_file(self, vm_id: str) -> str:
        return os.path.join(self.ram, vm_id)

    def console_log(self, vm_id: str) -> str:
        return os.path.join(self.vm_log(vm_id), "console.log")

    def hypervisor_log(self, vm_id: str) -> str:
        return os.path.join(self.vm_log(vm_id), "hypervisor.log")

    def launch_lines(self, vm_id: str) -> str:
        """How it was last started."""
        return os.path.join(self.vm_log(vm_id), "launch.json")


def closed_directories(paths: Paths) -> dict[str, str]:
    """By option, the first directory above root_dir, run_dir or log_dir that a VM's own user cannot pass."""
    found = {}
    for option, path in (("root_dir", paths.root), ("run_dir", paths.run), ("log_dir", paths.log)):
        parents = []
        parent = os.path.dirname(os.path.abspath(path))
        while parent != os.path.dirname(parent):
            parents.append(parent)
            parent = os.path.dirname(parent)
        for directory in reversed(parents):
            if os.path.isdir(directory) and not os.stat(directory).st_mode & 0o001:
                found[option] = directory
                break
    return found


def closed_words(option: str, directory: str) -> tuple[str, str]:
    """What is wrong then, and the remedy."""
    return (
        f"{directory}, above {option}, is closed to other users",
        f"Run chmod o+x {directory}, or choose another directory.",
    )


def check_directories(paths: Paths) -> None:
    """:raises StateError: VMs run as users of their own, and could not reach their files."""
    for option, directory in closed_directories(paths).items():
        detail, remedy = closed_words(option, directory)
        raise StateError(f"VMs run as users of their own, and {detail}", option, remedy)
