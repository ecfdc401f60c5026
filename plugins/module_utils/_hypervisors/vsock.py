# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way into a guest by its vsock: a socket of the hypervisor's on this host, and ports of the guest's behind it.

On the agent's port a request and its answer are a line of JSON each.
"""

from __future__ import annotations

import json
import socket
import time

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import BusyError, HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.rest import hold

# The guest's address on its own vsock, which no other VM is on.
CID = 3
AGENT_PORT = 1024
SOCKET = "vsock.sock"
TIMEOUT = 5.0
MAX_GREETING = 32


def connect(path: str, uid: int, port: int = AGENT_PORT) -> socket.socket:
    """A connection to what listens at *port* in the guest.

    :param uid: the user who must have made the socket.
    :raises BusyError: nobody listens there, or not yet. :raises HypervisorError: there is no such socket.
    """
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        line.settimeout(TIMEOUT)
        with hold(path, uid) as held:
            line.connect(held)
        line.sendall(f"CONNECT {port}\n".encode())
        _await_greeting(line, port)
    except OSError as exc:
        line.close()
        raise HypervisorError(f"the hypervisor does not let us into its guest: {exc.strerror or exc}") from exc
    except BaseException:
        line.close()
        raise
    return line


def _await_greeting(line: socket.socket, port: int) -> None:
    """``OK <number>``, byte by byte, as what follows is not ours to read."""
    deadline = time.monotonic() + TIMEOUT
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


def announce(path: str, uid: int, message: bytes) -> socket.socket:
    """Tell a guest who it is now; its answer comes through the socket.

    :raises BusyError: nobody listens there, or not yet. :raises HypervisorError: it cannot be told.
    """
    line = connect(path, uid)
    try:
        line.sendall(json.dumps({"type": "identity", "message": message.decode()}).encode() + b"\n")
    except OSError as exc:
        line.close()
        raise HypervisorError(f"the hypervisor does not pass the new identity on: {exc.strerror}") from exc
    line.setblocking(False)
    return line
