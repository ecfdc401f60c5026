# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines as Cloud Hypervisor saves them, and the folder that one is taken up from.

RAM in a file that is shared is not saved by it, and the file is copied. A clone's RAM is its own, and comes as ranges
one after the other, which is how the file would have them: so a saved machine is the same two files always.

``config.json`` is never taken from what was saved, where it could name any file of the host's, but made of the launch.
"""

from __future__ import annotations

import json
import os
import stat
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import (
    MEMORY,
    STATE,
    Launch,
    Resume,
    SavedFile,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.cloud_hypervisor import commandline
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.cloud_hypervisor.files import (
    CONFIG_FILE,
    MEMORY_FILE,
    RANGES_FILE,
    STATE_FILE,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.replies import parse_json
from ansible_collections.cocoon.microvm.plugins.module_utils._sparse import copy_data
from ansible_collections.cocoon.microvm.plugins.module_utils._state import remove_tree

# A few hundred kilobytes for a small machine.
MAX_STATE = 64 << 20
WITHOUT_RANGES = "state.settled"
TAKING_UP = "taking-up"
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def saved_files(inbox: str, ram: str | None, limit: int) -> list[SavedFile]:
    """What lies in *inbox*, which is the VM's user's, as a saved machine.

    :param ram: the file that the guest's RAM is shared with; ``None``: it is in *inbox*, too.
    :param limit: bytes beyond which the hypervisor is not believed.
    :raises HypervisorError: it is not as it should be.
    """
    uid = os.lstat(inbox).st_uid
    state = os.path.join(inbox, STATE_FILE)
    document = _read_state(state, uid)
    manager, ranges = _memory_of(document)
    if bool(ranges) != (ram is None):
        raise _strange("its RAM is not where it should be")
    if ram is None:
        ram = os.path.join(inbox, RANGES_FILE)
        size = os.lstat(ram).st_size
        if size > limit:
            raise _strange("it is larger than it can be")
        end = _end_of(manager, ranges)
        if size != end:  # a clone that maps it would die where it ends
            raise _strange(f"its RAM has {size} bytes and not {end}")
        state = os.path.join(inbox, WITHOUT_RANGES)
        _write_settled(state, document, manager, uid)
    return [SavedFile(STATE_FILE, STATE, state), SavedFile(MEMORY_FILE, MEMORY, ram)]


def _strange(why: str) -> HypervisorError:
    return HypervisorError(f"the state of the VM could not be saved: {why}")


def _read_state(path: str, uid: int) -> t.Any:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
        info = os.fstat(stream.fileno())
        if not stat.S_ISREG(info.st_mode) or info.st_uid != uid:
            raise _strange("something else was put in its place")
        content = stream.read(MAX_STATE + 1)
    if len(content) > MAX_STATE:
        raise _strange("it is larger than it can be")
    try:
        return parse_json(content)
    except ValueError:
        raise _strange("it is not JSON") from None


def _memory_of(document: t.Any) -> tuple[dict[str, t.Any], list[t.Any]]:
    """What is said of the memory, and the ranges of it that were written."""
    try:
        manager = parse_json(document["snapshots"]["memory-manager"]["snapshot_data"]["state"])
        return manager, list(manager["memory_ranges"]["data"])
    except (KeyError, TypeError, ValueError):
        raise _strange("this release has another form of it") from None


def _end_of(manager: t.Mapping[str, t.Any], ranges: t.Sequence[t.Any]) -> int:
    """Bytes of the ranges, one after the other, which is what the file of the zone would be.

    :raises HypervisorError: it is not.
    """
    try:
        places = {place["gpa"]: (place["file_offset"], place["size"]) for place in manager["guest_ram_mappings"]}
        end = 0
        for found in ranges:
            if places.pop(found["gpa"]) != (end, found["length"]):
                raise _strange("its RAM is in another order")
            end += found["length"]
    except (KeyError, TypeError):
        raise _strange("this release has another form of it") from None
    if places:
        raise _strange("some of its RAM is missing")
    return end


def _write_settled(path: str, document: t.Any, manager: dict[str, t.Any], uid: int) -> None:
    """The state of a machine whose RAM is in a file."""
    manager["memory_ranges"]["data"] = []
    document["snapshots"]["memory-manager"]["snapshot_data"]["state"] = json.dumps(manager)
    fd = os.open(path, NEW, 0o600)
    with open(fd, "w", encoding="utf-8") as stream:
        os.fchown(fd, uid, uid)
        json.dump(document, stream)


def take_up(launch: Launch, socket_path: str) -> str:
    """Make the folder that the process of *launch* goes on from, which it can read; where it is."""
    resume = t.cast(Resume, launch.resume)
    folder = os.path.join(launch.folder, TAKING_UP)
    remove_tree(folder)
    os.mkdir(folder, 0o700)
    _give(os.path.join(folder, CONFIG_FILE), launch.gid, json.dumps(commandline.config(launch, socket_path)).encode())
    source = os.open(os.path.join(resume.folder, STATE_FILE), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _give(os.path.join(folder, STATE_FILE), launch.gid, source)
    finally:
        os.close(source)
    os.chown(folder, 0, launch.gid)
    os.chmod(folder, 0o710)
    return folder


def _give(path: str, gid: int, content: bytes | int) -> None:
    """A file for the VM's user to read, with some bytes or with those of a descriptor."""
    fd = os.open(path, NEW, 0o600)
    try:
        if isinstance(content, int):
            copy_data(content, fd)
        else:
            os.write(fd, content)
        os.fchown(fd, 0, gid)
        os.fchmod(fd, 0o440)
    finally:
        os.close(fd)


def taken_up(launch: Launch) -> None:
    """The process has read it, or will not any more."""
    if launch.resume:
        remove_tree(os.path.join(launch.folder, TAKING_UP))
