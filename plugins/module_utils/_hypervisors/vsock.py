# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way into a guest by its vsock: a socket of the hypervisor's on this host, and ports of the guest's behind it.

On the agent's port a request and its answer are a line of JSON each.
"""

from __future__ import annotations

import json
import os
import socket
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import BusyError, HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.rest import connect

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Channel

# The guest's address on its own vsock, which no other VM is on.
CID = 3
AGENT_PORT = 1024
SOCKET = "vsock.sock"
# In a VM's run_dir, which only root can enter: a folder of the VM's user's, for what the process makes itself.
OWN = "own"
TIMEOUT = 5.0
MAX_GREETING = 32


def own(run_dir: str) -> str:
    return os.path.join(run_dir, OWN)


def channel(folder: str) -> Channel:
    """The way to the agent of a guest, by the socket that its hypervisor makes in *folder*.

    Root made that for the hypervisor's user, who cannot give it away: what listens there is to be that user's.

    :raises FileNotFoundError: the VM does not run.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Channel

    return Channel("vsock", os.path.join(folder, SOCKET), AGENT_PORT, os.lstat(folder).st_uid)


def request(port: int | None) -> bytes:
    """What the hypervisor wants to hear before the guest does."""
    return f"CONNECT {port}\n".encode()


def dial(way: Channel, deadline: float) -> socket.socket:
    """A connection to what listens in the guest.

    :raises BusyError: nobody listens there, or not yet. :raises OSError: nor does the hypervisor.
    :raises HypervisorError: it is not the hypervisor.
    """
    line = connect(way.path, way.uid, max(0.01, deadline - time.monotonic()))
    try:
        line.sendall(request(way.port))
        _await_greeting(line, way.port, deadline)
    except BaseException:
        line.close()
        raise
    return line


def _await_greeting(line: socket.socket, port: int | None, deadline: float) -> None:
    """``OK <number>``, byte by byte, as what follows is not ours to read."""
    greeting = b""
    while not greeting.endswith(b"\n"):
        try:
            line.settimeout(max(0.01, deadline - time.monotonic()))
            data = line.recv(1)
        except (TimeoutError, socket.timeout, ConnectionResetError):
            data = b""
        greeting += data
        if not data or len(greeting) > MAX_GREETING:
            raise BusyError(f"nobody in the guest listens at port {port} of its vsock")
    if not greeting.startswith(b"OK "):
        raise HypervisorError("the hypervisor sent something that is not a greeting")


def announce(way: Channel, message: bytes) -> socket.socket:
    """Tell a guest who it is now; its answer comes through the socket.

    :raises BusyError: nobody listens there, or not yet. :raises HypervisorError: it cannot be told.
    """
    words = json.dumps({"type": "identity", "message": message.decode()}).encode() + b"\n"
    try:
        line = dial(way, time.monotonic() + TIMEOUT)
        try:
            line.sendall(words)
        except OSError:
            line.close()
            raise
    except OSError as exc:
        raise HypervisorError(f"the hypervisor does not let us into its guest: {exc.strerror or exc}") from exc
    line.setblocking(False)
    return line
