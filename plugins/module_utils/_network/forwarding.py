# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Forwarding of the host's uplinks: on while some network needs it, and off again if it was off before.

Linux decides by the interface that a packet comes in through, so packets from guests need it on their
bridge, and the answers need it on the uplink. The global switch is left alone: it would turn every
interface of the host into a router's.

Stores share the uplinks, so who needs one is noted in one place per network namespace, outside the
stores: ``<REGISTRY>/<boot>-<netns>/<interface>/user-<store id>``, and ``switched`` beside it if it was off.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import struct
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._network import links
from ansible_collections.cocoon.microvm.plugins.module_utils._process import boot_id
from ansible_collections.cocoon.microvm.plugins.module_utils._state import (
    Store,
    read_json,
    remove_file,
    remove_tree,
    write_json,
)

REGISTRY = "/run/cocoon-microvm-forwarding"
ROUTES = "/proc/thread-self/net/route"
ROUTES6 = "/proc/thread-self/net/ipv6_route"
SO_NETNS_COOKIE = 71
RTF_UP = 0x1
RTF_REJECT = 0x200
# 0.0.0.0/0, and the two halves that some VPN clients put before it.
DEFAULT_MASKS = ("00000000", "00000080")


def uplinks() -> tuple[str, ...]:
    """Interfaces of the default routes of the main table, sorted."""
    found = set()
    with open(ROUTES, encoding="ascii") as stream:
        next(stream, None)
        for line in stream:
            fields = line.split()
            flags = int(fields[3], 16)
            if fields[7] in DEFAULT_MASKS and flags & RTF_UP and not flags & RTF_REJECT and fields[0] != "*":
                found.add(fields[0])
    return tuple(sorted(found))


def uplinks6() -> tuple[str, ...]:
    """Interfaces of the default routes of IPv6, sorted. That the host forwards it is up to its administrator."""
    found = set()
    with contextlib.suppress(FileNotFoundError), open(ROUTES6, encoding="ascii") as stream:
        for line in stream:
            fields = line.split()
            flags = int(fields[8], 16)
            if fields[0] == "0" * 32 and fields[1] == "00" and flags & RTF_UP and not flags & RTF_REJECT:
                found.add(fields[9])
    return tuple(sorted(found - {"lo"}))


def host_forwards() -> bool:
    """Whether the administrator made the whole host a router."""
    return links.get_sysctl("ipv4", "all", "forwarding") == "1"


def _namespace() -> str:
    """A name for this boot's current network namespace that is never used again."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            key = struct.unpack("=Q", probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0]
        except OSError:  # before Linux 5.14
            key = os.stat("/proc/thread-self/ns/net").st_ino
    return f"{boot_id()[:8]}-{key}"


def _directory(name: str = "") -> str:
    return os.path.join(REGISTRY, _namespace(), name)


@contextlib.contextmanager
def _registry() -> t.Iterator[str]:
    """Hold the lock of this namespace's notes; what is empty afterwards is removed."""
    path = _directory().rstrip("/")
    while True:
        try:
            os.makedirs(path, 0o700, exist_ok=True)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # somebody else removed it in between
        fcntl.flock(fd, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(fd)):
                break
        os.close(fd)  # removed by the one before us
    try:
        _prune(os.path.basename(path))
        yield path
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(path)
            os.rmdir(REGISTRY)
        os.close(fd)


def _prune(mine: str) -> None:
    """Drop the notes of other namespaces that no store will come back for: of an earlier boot, or of stores gone."""
    for name in os.listdir(REGISTRY):
        path = os.path.join(REGISTRY, name)
        if name == mine:
            continue
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # in use: leave it
            folders = [os.path.join(path, interface) for interface in os.listdir(path)]
            needed = any(_is_needed(folder, entry) for folder in folders for entry in os.listdir(folder))
            if not needed or not name.startswith(boot_id()[:8]) or _is_gone(folders):
                remove_tree(path)


def _inode() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def _is_gone(folders: t.Iterable[str]) -> bool:
    """Whether the namespace of these notes is one that no process and no mount has any more, as far as we see.

    Notes of earlier versions do not name it.
    """
    inodes = set()
    for path in (os.path.join(folder, entry) for folder in folders for entry in os.listdir(folder)):
        with contextlib.suppress(StateError):
            inodes.add((read_json(path) or {}).get("netns"))
    inodes.discard(None)
    return bool(inodes) and not inodes & _living()


def _living() -> set[int]:
    """The network namespaces that there are, by inode: of processes, and those that are mounted, with a name."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            found.add(os.stat(f"/proc/{name}/ns/net").st_ino)
    with open("/proc/self/mountinfo", encoding="utf-8") as stream:
        found |= {int(match) for match in re.findall(r" net:\[([0-9]+)\] ", stream.read())}
    return found


def needs_work(store: Store, wanted: t.Iterable[str]) -> bool:
    """Whether an uplink in *wanted* is not on or not noted as needed, or one that is not wanted is noted."""
    names = set(wanted)
    for name in names:
        if links.get_sysctl("ipv4", name, "forwarding") == "0":
            return True
        if not os.path.exists(os.path.join(_directory(name), f"user-{store.store_id}")):
            return True
    return bool(set(_noted(store)) - names)


def _noted(store: Store) -> list[str]:
    """Uplinks that this store is noted to need."""
    try:
        entries = os.listdir(_directory())
    except FileNotFoundError:
        return []
    return [name for name in entries if os.path.exists(os.path.join(_directory(name), f"user-{store.store_id}"))]


def guarded(names: t.Iterable[str]) -> tuple[str, ...]:
    """Those whose forwarding is on only because some store needs it."""
    if host_forwards():
        return ()
    return tuple(sorted(name for name in names if _is_ours(name)))


def _is_ours(name: str) -> bool:
    if links.get_sysctl("ipv4", name, "forwarding") == "0":
        return True  # it will be, once it is on
    return os.path.exists(os.path.join(_directory(name), "switched"))


def claim(store: Store, wanted: t.Iterable[str]) -> None:
    """Note that the store needs these uplinks, and which of them are off now. Comes before :func:`switch_on`."""
    with _registry() as path:
        for name in wanted:
            directory = os.path.join(path, name)
            os.makedirs(directory, 0o700, exist_ok=True)
            note = {"root_dir": store.paths.root, "netns": _inode()}
            write_json(os.path.join(directory, f"user-{store.store_id}"), note)
            if links.get_sysctl("ipv4", name, "forwarding") == "0":
                write_json(os.path.join(directory, "switched"), {"by": store.store_id})


def switch_on(wanted: t.Iterable[str]) -> None:
    for name in wanted:
        links.set_sysctl("ipv4", name, "forwarding", "1")


def release(store: Store, keep: t.Iterable[str] = ()) -> None:
    """The store needs no uplinks but *keep*; those that nobody needs go back to what they were."""
    if not set(_noted(store)) - set(keep):
        return
    with _registry() as path:
        for name in sorted(set(os.listdir(path)) - set(keep)):
            directory = os.path.join(path, name)
            mine = f"user-{store.store_id}"
            if any(_is_needed(directory, entry) for entry in os.listdir(directory) if entry != mine):
                remove_file(os.path.join(directory, mine))
                continue
            # Our note goes last, so that we come back for what a killed process has not done.
            if os.path.exists(os.path.join(directory, "switched")) and not host_forwards():
                links.set_sysctl("ipv4", name, "forwarding", "0")
            remove_file(os.path.join(directory, "switched"))
            remove_tree(directory)


def _is_needed(directory: str, entry: str) -> bool:
    """Whether *entry* is the note of a store that is still there."""
    if not entry.startswith("user-") or entry.endswith(".tmp"):
        return False
    try:
        note = read_json(os.path.join(directory, entry)) or {}
    except StateError:  # nobody can tell whose it was
        return False
    try:
        document = read_json(os.path.join(str(note.get("root_dir")), "store.json")) or {}
    except StateError:  # it waits for a backup
        return True
    return entry == f"user-{document.get('store_id')}"
