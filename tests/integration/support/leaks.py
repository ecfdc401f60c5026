# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find what tests leave behind: processes, interfaces, namespaces, mounts, firewall tables, control groups, files."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.cocoon.microvm.plugins.module_utils._network import forwarding
from ansible_collections.cocoon.microvm.tests.integration.support.machine import PREFIX, TOKEN, WORK

DEFAULT_DIRS = ("/var/lib/cocoon-microvm", "/run/cocoon-microvm", "/var/log/cocoon-microvm")
SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/forwarding",
    "net/ipv6/conf/all/forwarding",
    "vm/overcommit_memory",
)
TEMPORARY = ("/tmp", "/var/tmp")
# Names that are the collection's or the tests', whoever made them.
MARKS = ("cmv", "cocoon", "ansible_", "ansible-")


def read(path: str) -> str:
    """A file's text; empty when it has gone or may not be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def names(path: str) -> list[str]:
    """A folder's entries; none when it is not there."""
    try:
        return os.listdir(path)
    except OSError:
        return []


def namespaces() -> dict[int, str]:
    """The inode of each named network namespace."""
    found = {}
    for name in names("/run/netns"):
        try:
            found[os.stat(f"/run/netns/{name}").st_ino] = name
        except OSError:
            continue
    return found


def processes() -> Iterator[tuple[int, str, str, int]]:
    """Every process that is alive: its number, command line, environment and network namespace."""
    for name in names("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        words = read(f"/proc/{name}/cmdline").replace("\0", " ").strip()
        state = read(f"/proc/{name}/stat").rpartition(")")[2].split()
        if not words or not state or state[0] in "ZX":
            continue
        try:
            netns = os.stat(f"/proc/{name}/ns/net").st_ino
        except OSError:
            netns = 0
        yield int(name), words, read(f"/proc/{name}/environ"), netns


def own_processes() -> dict[int, str]:
    """The processes of this session: by environment, by a path on the command line, or by network namespace."""
    spaces = {inode for inode, name in namespaces().items() if name.startswith(PREFIX)}
    mark = f"{TOKEN[0]}={TOKEN[1]}\0"
    found = {}
    for number, words, environ, netns in processes():
        if mark in environ or f"{PREFIX}-" in words or netns in spaces:
            found[number] = words
    return found


def tables() -> list[str]:
    """The nftables tables of this network namespace."""
    try:
        done = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False, timeout=30)
    except FileNotFoundError:
        return []
    return done.stdout.splitlines()


def notes() -> list[str]:
    """What is noted of forwarding in network namespaces, when the engine has dropped what is of no use any more."""
    if os.geteuid() == 0:
        with forwarding._registry():
            pass
    return names(forwarding.REGISTRY)


def mounts() -> list[str]:
    """Where something is mounted."""
    return [line.split()[4] for line in read("/proc/self/mountinfo").splitlines()]


def snapshot() -> set[str]:
    """Everything on the machine that a test could leave behind, except processes."""
    things = {f"interface {name}" for _index, name in socket.if_nameindex()}
    things |= {f"network namespace {name}" for name in names("/run/netns")}
    # Elsewhere a machine mounts for its own reasons, such as logins and containers.
    things |= {f"mount {path}" for path in mounts() if path.startswith((*DEFAULT_DIRS, *TEMPORARY, str(WORK)))}
    things |= {f"nftables {table}" for table in tables()}
    things |= {f"note on forwarding {name}" for name in notes()}
    things |= {f"sysctl {name}={read(f'/proc/sys/{name}').strip()}" for name in SYSCTLS}
    for folder in DEFAULT_DIRS:
        things |= {f"file {folder}/{name}" for name in names(folder)}
    for folder in TEMPORARY:
        things |= {f"file {folder}/{name}" for name in names(folder) if name.startswith(MARKS)}
    for folder, folders, _files in os.walk("/sys/fs/cgroup"):
        things |= {f"control group {folder}/{name}" for name in folders if "cocoon" in name}
    return things


def left(before: set[str], strict: bool, patience: float = 5) -> list[str]:
    """What has appeared since a snapshot.

    :param strict: nothing else was changing the machine, so anything new counts; else only what carries our prefix.
    :param patience: seconds to wait for processes that are ending anyway.
    """
    deadline = time.monotonic() + patience
    while True:
        alive = own_processes()
        new = sorted(snapshot() - before)
        found = [f"process {number}: {words[:200]}" for number, words in sorted(alive.items())]
        found += [thing for thing in new if strict or PREFIX in thing]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def clean() -> None:
    """Remove what this session left, so that the next one starts clean. Called after it was reported."""
    for number in own_processes():
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            pass
    for path in sorted(mounts(), reverse=True):
        if PREFIX in path:
            subprocess.run(["umount", "-l", path], check=False, stdin=subprocess.DEVNULL)
    for name in names("/run/netns"):
        if name.startswith(PREFIX):
            subprocess.run(["ip", "netns", "del", name], check=False, stdin=subprocess.DEVNULL)
    for folder in Path("/var/tmp").glob(f"{PREFIX}-*"):
        shutil.rmtree(folder, ignore_errors=True)
