# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sockets that a hypervisor makes itself: when one is there, and who listens."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.rest import (
    CREDENTIALS,
    RestClosedError,
    hold,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process

IN_CREATE = 0x100
EVENTS = 4096
TIMEOUT = 10.0
# Between a socket's name and its first listener there is no event, and next to no time.
MOMENT = 0.002


class Watch:
    """What is made in a folder from now on."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0 or libc.inotify_add_watch(self._fd, os.fsencode(folder), IN_CREATE) < 0:
            reason = os.strerror(ctypes.get_errno())
            self.close()
            raise HypervisorError(
                f"cannot watch {folder}: {reason}", remedy="Raise the sysctl fs.inotify.max_user_instances."
            )

    def wait_listening(self, name: str, process: Process, deadline: float) -> None:
        """Return once somebody listens at the socket *name*.

        :raises RestClosedError: *process* ended first. :raises HypervisorError: it is too late, or no socket.
        """
        path = os.path.join(self.folder, name)
        while not _listens(path):
            left = deadline - time.monotonic()
            if left <= 0:
                raise HypervisorError("it did not open its API in time", remedy="The host is very busy: fewer at once.")
            moment = MOMENT if os.path.lexists(path) else left
            ready = select.select([self._fd, process.pidfd], [], [], min(moment, left))[0]
            if process.pidfd in ready:
                raise RestClosedError("it ended before it opened its API")
            if self._fd in ready:
                os.read(self._fd, EVENTS)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _listens(path: str) -> bool:
    try:
        listener(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


def listener(path: str) -> int:
    """The process that began to listen at a socket, even if it stands still.

    :raises OSError: nobody does. :raises HypervisorError: that is no socket.
    """
    with hold(path) as held, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(TIMEOUT)
        line.connect(held)
        options = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    return t.cast(int, CREDENTIALS.unpack(options)[0])
