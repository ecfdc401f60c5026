# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moving a process into a systemd scope of its own, so that it outlives the login that started it.

``systemd-run --scope`` would do it from within, as root, between our fork and the hypervisor's exec;
asking systemd to adopt the running process needs no such window, and no tool. The one request is
``StartTransientUnit`` of org.freedesktop.systemd1.Manager, sent over systemd's own socket (root may)
or the system bus.
"""

from __future__ import annotations

import os
import socket
import struct
import time

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError

SYSTEMD = "/run/systemd/system"
PRIVATE_SOCKET = "/run/systemd/private"
SYSTEM_BUS = "/run/dbus/system_bus_socket"
SLICE = "cocoon-microvm.slice"
MAX_REPLY = 1 << 16
CALL, RETURN, FAILURE = 1, 2, 3


def present() -> bool:
    """Whether systemd is this host's init."""
    return os.path.isdir(SYSTEMD)


def unit_name(vm_id: str, pid: int) -> str:
    """One name for each start: the scope of the previous one may still be on its way out."""
    return f"cocoon-microvm-{vm_id}-{pid}.scope"


def adopt(vm_id: str, pid: int, description: str, timeout: float = 10.0) -> str:
    """Have systemd move *pid* into a transient scope; gives the scope's name.

    :raises HypervisorError: systemd refused, or cannot be reached.
    """
    unit = unit_name(vm_id, pid)
    body = _start_transient_unit(unit, pid, description)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            private = os.path.exists(PRIVATE_SOCKET)
            sock.connect(PRIVATE_SOCKET if private else SYSTEM_BUS)
            _authenticate(sock)
            if not private:
                _call(sock, 1, "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
            _call(
                sock,
                2,
                "org.freedesktop.systemd1",
                "/org/freedesktop/systemd1",
                "org.freedesktop.systemd1.Manager",
                "StartTransientUnit",
                "ssa(sv)a(sa(sv))",
                body,
            )
    except OSError as exc:
        raise HypervisorError(f"systemd did not answer the request for {unit}: {exc.strerror or exc}") from exc
    return unit


def wait_adopted(pid: int, unit: str, timeout: float = 10.0) -> None:
    """Return once *pid* is in *unit*; systemd does it in a job of its own and tells only bus clients.

    :raises HypervisorError: it did not get there in time.
    """
    deadline = time.monotonic() + timeout
    while not in_unit(pid, unit):
        if time.monotonic() > deadline:
            raise HypervisorError(f"systemd did not move process {pid} into {unit} within {timeout:g} s")
        time.sleep(0.005)


def in_unit(pid: int, unit: str) -> bool:
    with open(f"/proc/{pid}/cgroup", encoding="utf-8") as stream:
        return any(line.rstrip("\n").endswith("/" + unit) for line in stream)


# D-Bus, as much as one request takes: little endian, everything aligned to its own size.


class _Writer:
    def __init__(self) -> None:
        self.data = bytearray()

    def pad(self, size: int) -> None:
        self.data += bytes(-len(self.data) % size)

    def uint32(self, value: int) -> None:
        self.pad(4)
        self.data += struct.pack("<I", value)

    def string(self, text: str) -> None:
        raw = text.encode()
        self.uint32(len(raw))
        self.data += raw + b"\0"

    def signature(self, text: str) -> None:
        self.data += bytes([len(text)]) + text.encode() + b"\0"

    def begin(self, alignment: int) -> int:
        """Open an array whose elements are aligned to *alignment*; gives what :meth:`end` wants."""
        self.uint32(0)
        place = len(self.data)
        self.pad(alignment)
        return place

    def end(self, place: int, alignment: int) -> None:
        start = place + (-place % alignment)
        struct.pack_into("<I", self.data, place - 4, len(self.data) - start)

    def text_property(self, name: str, value: str) -> None:
        self.pad(8)
        self.string(name)
        self.signature("s")
        self.string(value)


def _start_transient_unit(unit: str, pid: int, description: str) -> bytes:
    body = _Writer()
    body.string(unit)
    body.string("fail")
    properties = body.begin(8)
    body.text_property("Description", description)
    body.text_property("Slice", SLICE)
    body.text_property("CollectMode", "inactive-or-failed")
    body.pad(8)
    body.string("PIDs")
    body.signature("au")
    pids = body.begin(4)
    body.uint32(pid)
    body.end(pids, 4)
    body.end(properties, 8)
    body.end(body.begin(8), 8)
    return bytes(body.data)


def _authenticate(sock: socket.socket) -> None:
    sock.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
    reply = b""
    while not reply.endswith(b"\r\n") and len(reply) < 1024:
        data = sock.recv(1024)
        if not data:
            break
        reply += data
    if not reply.startswith(b"OK "):
        raise HypervisorError("systemd did not accept the connection")
    sock.sendall(b"BEGIN\r\n")


def _call(
    sock: socket.socket,
    serial: int,
    destination: str,
    path: str,
    interface: str,
    member: str,
    signature: str = "",
    body: bytes = b"",
) -> None:
    """Send a method call and wait for its answer.

    :raises HypervisorError: with the error that came back.
    """
    message = _Writer()
    message.data += struct.pack("<BBBBII", ord("l"), CALL, 0, 1, len(body), serial)
    fields = message.begin(8)
    for code, type_code, value in ((1, "o", path), (2, "s", interface), (3, "s", member), (6, "s", destination)):
        message.pad(8)
        message.data.append(code)
        message.signature(type_code)
        message.string(value)
    if signature:
        message.pad(8)
        message.data.append(8)
        message.signature("g")
        message.signature(signature)
    message.end(fields, 8)
    message.pad(8)
    sock.sendall(bytes(message.data) + body)
    while True:
        kind, reply_to, reply = _receive(sock)
        if kind == FAILURE and reply_to == serial:
            length = struct.unpack_from("<I", reply)[0] if len(reply) >= 4 else 0
            raise HypervisorError(f"systemd refused {member}: {reply[4 : 4 + length].decode(errors='replace')}")
        if kind == RETURN and reply_to == serial:
            return


def _receive(sock: socket.socket) -> tuple[int, int, bytes]:
    """Type, serial replied to, and body of the next message."""
    head = _read(sock, 16)
    order = "<" if head[:1] == b"l" else ">"
    length, _serial, fields_length = struct.unpack_from(order + "III", head, 4)
    padded = fields_length + (-fields_length % 8)
    if length > MAX_REPLY or padded > MAX_REPLY:
        raise HypervisorError("systemd sent an answer that is too long")
    fields = _read(sock, padded)
    return head[1], _reply_serial(fields[:fields_length], order), _read(sock, length)


def _reply_serial(fields: bytes, order: str) -> int:
    """The field REPLY_SERIAL (code 5, type u) of a header."""
    place = 0
    while place + 4 <= len(fields):
        code, kind = fields[place], fields[place + 2 : place + 3]
        place += 4
        if kind == b"u":
            value = struct.unpack_from(order + "I", fields, place)[0]
            if code == 5:
                return int(value)
            place += 4
        elif kind == b"g":
            place += fields[place] + 2
        else:
            place += struct.unpack_from(order + "I", fields, place)[0] + 5
        place += -place % 8
    return 0


def _read(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise HypervisorError("systemd closed the connection")
        data += part
    return data
