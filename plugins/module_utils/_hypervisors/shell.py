# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every hypervisor's start comes to, as lines for a shell."""

from __future__ import annotations

import shlex
import typing as t

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Jail, Launch


def folder(launch: Launch, path: str) -> str:
    """A directory of the VM's user's."""
    return shlex.join(["install", "-d", "-m", "0700", "-o", str(launch.uid), "-g", str(launch.gid), path])


def file(launch: Launch, path: str) -> str:
    """An empty file of the VM's user's."""
    owner = ["-o", str(launch.uid), "-g", str(launch.gid)]
    return shlex.join(["install", "-m", "0600", *owner, "/dev/null", path])


def ram(launch: Launch) -> list[str]:
    """The file of the guest's memory."""
    return [
        shlex.join(["truncate", "-s", str(launch.memory), launch.ram_path]),
        shlex.join(["chown", f"{launch.uid}:{launch.gid}", launch.ram_path]),
    ]


def taps(launch: Launch) -> list[str]:
    """TAPs that the VM's user can open by their names; a start opens them itself, and hands them over."""
    found = []
    for nic in launch.nics:
        queues = ["multi_queue"] if nic.pairs > 1 else []
        made = ["ip", "tuntap", "add", "dev", nic.tap, "mode", "tap", "user", str(launch.uid), "vnet_hdr", *queues]
        found += [shlex.join(made), shlex.join(["ip", "link", "set", nic.tap, "up"])]
    return found


def process(launch: Launch, jail: Jail, argv: t.Sequence[str]) -> str:
    """A program as the VM's user, with nothing but its groups."""
    groups = ["--groups", ",".join(map(str, jail.groups))] if jail.groups else ["--clear-groups"]
    user = ["--reuid", str(launch.uid), "--regid", str(launch.gid), *groups]
    rights = ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    return shlex.join(["setpriv", *user, *rights, *argv])


def await_socket(path: str) -> str:
    return f"until [ -S {shlex.quote(path)} ]; do sleep 0.1; done"
