# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small synchronous QMP client.

The process on the other side may be under a guest's control: replies are bounded in size, number
and time, and what they say is never trusted further than the call needs.
"""

from __future__ import annotations

import collections
import json
import select
import socket
import struct
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import BusyError, HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.replies import parse_json, printable

MAX_LINE = 1 << 20
MAX_EVENTS = 256
RECEIVE = 65536

Message = dict[str, t.Any]


class QmpError(HypervisorError):
    """The hypervisor refused a command; *kind* is QMP's error class."""

    def __init__(self, command: str, kind: str, description: str) -> None:
        super().__init__(f"QEMU refused {command}: {description}")
        self.kind = kind
        self.description = description


class QmpClosedError(HypervisorError):
    """The hypervisor ended, or closed the connection."""


def parse(line: bytes) -> Message:
    """One QMP message.

    :raises HypervisorError: not a JSON object.
    """
    try:
        message = parse_json(line)
    except ValueError:
        said = printable(line[:80].decode(errors="replace"))
        raise HypervisorError(f"the hypervisor sent something that is not QMP: {said}") from None
    if not isinstance(message, dict):
        raise HypervisorError("the hypervisor sent something that is not QMP")
    return message


class Qmp:
    """One connection to a QMP socket. QEMU serves one client at a time.

    :param pidfd: watched beside the socket, so that a hypervisor that dies is noticed at once.
    """

    def __init__(self, sock: socket.socket, pidfd: int | None = None) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._pidfd = pidfd
        self._buffer = bytearray()
        self._scanned = 0
        self._events: collections.deque[Message] = collections.deque()
        self._size = 0  # of the last message, in bytes
        self._kept = 0  # bytes of all events so far
        self._serial = 0
        self.greeting: Message = {}

    @classmethod
    def connect(cls, path: str, timeout: float, pidfd: int | None = None) -> Qmp:
        """A connection that is past the greeting and in command mode.

        :param timeout: seconds to wait for our turn.
        :raises HypervisorError: nobody listens at *path*.
        :raises BusyError: no greeting in time.
        """
        deadline = time.monotonic() + timeout
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # A full backlog blocks a connect; only the socket's own time limit ends that.
            seconds, fraction = divmod(max(timeout, 0.001), 1)
            sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(fraction * 1e6))
            )
            sock.connect(path)
            client = cls(sock, pidfd)
            client.negotiate(deadline - time.monotonic())
        except (BlockingIOError, TimeoutError, socket.timeout):
            sock.close()
            raise BusyError(
                f"{path} did not answer within {timeout:g} s",
                remedy="Another task is using it, or the hypervisor hangs; try again, or stop the VM by force.",
            ) from None
        except OSError as exc:
            sock.close()
            raise QmpClosedError(f"no hypervisor listens at {path}: {exc.strerror or exc}") from exc
        except BaseException:
            sock.close()
            raise
        return client

    def negotiate(self, timeout: float) -> None:
        """Read the greeting and leave capabilities mode.

        QEMU may send an event to a connection that it has just taken before it greets: of what was before we came.

        :raises TimeoutError: no greeting in time.
        """
        deadline = time.monotonic() + timeout
        message = self._receive(deadline)
        while "event" in message:
            self._keep(message)
            message = self._receive(deadline)
        self._events.clear()
        if not isinstance(message.get("QMP"), dict):
            raise HypervisorError("the hypervisor sent something that is not a QMP greeting")
        self.greeting = message["QMP"]
        self.execute("qmp_capabilities", timeout=deadline - time.monotonic())

    def version(self) -> str:
        """``7.2.22``, from the greeting."""
        parts = self.greeting.get("version", {}).get("qemu", {})
        return ".".join(str(int(parts.get(name, 0))) for name in ("major", "minor", "micro"))

    def execute(
        self,
        command: str,
        arguments: t.Mapping[str, t.Any] | None = None,
        timeout: float = 10.0,
        fds: t.Sequence[int] = (),
    ) -> t.Any:
        """The command's return value; events that come in between are kept for :meth:`wait_event`.

        :param fds: descriptors to send with it (``getfd``, ``add-fd``).
        :raises QmpError: refused.
        :raises QmpClosedError: the hypervisor is gone.
        :raises HypervisorError: no answer in *timeout* seconds, or nonsense.
        """
        deadline = time.monotonic() + timeout
        self._serial += 1
        request: Message = {"execute": command, "id": self._serial}
        if arguments:
            request["arguments"] = arguments
        try:
            self._send(json.dumps(request).encode() + b"\n", fds, deadline)
            while True:
                message = self._receive(deadline)
                if "event" in message:
                    self._keep(message)
                elif message.get("id") == self._serial:
                    break
                else:
                    raise HypervisorError(f"the hypervisor answered {command} with something else")
        except TimeoutError:
            raise HypervisorError(f"the hypervisor did not answer {command} within {timeout:g} s") from None
        if "return" in message:
            return message["return"]
        error = message.get("error")
        if not isinstance(error, dict):
            raise HypervisorError(f"the hypervisor answered {command} with neither a result nor an error")
        raise QmpError(command, printable(error.get("class"), 80), printable(error.get("desc")))

    def wait_event(self, name: str, timeout: float, **data: t.Any) -> Message | None:
        """The data of the first event *name* that has all of *data*, or ``None`` after *timeout* seconds."""
        deadline = time.monotonic() + timeout
        while True:
            while self._events:
                event = self._events.popleft()
                seen = event.get("data")
                seen = seen if isinstance(seen, dict) else {}
                if event["event"] == name and all(seen.get(key) == value for key, value in data.items()):
                    return seen
            try:
                message = self._receive(deadline)
            except TimeoutError:
                return None
            if "event" in message:
                self._keep(message)

    def _keep(self, event: Message) -> None:
        self._kept += self._size
        if len(self._events) >= MAX_EVENTS or self._kept > MAX_LINE:
            raise HypervisorError("the hypervisor floods its control socket with events")
        self._events.append(event)

    def _send(self, data: bytes, fds: t.Sequence[int], deadline: float) -> None:
        while data:
            try:
                sent = socket.send_fds(self._sock, [data], list(fds)) if fds else self._sock.send(data)
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline)
                continue
            except OSError as exc:
                raise QmpClosedError(f"the hypervisor closed its control socket: {exc.strerror}") from exc
            data, fds = data[sent:], ()

    def _receive(self, deadline: float) -> Message:
        """The next message; TimeoutError if none is complete by *deadline*."""
        while True:
            end = self._buffer.find(b"\n", self._scanned)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                self._scanned = 0
                self._size = len(line)
                if line.strip():
                    return parse(line)
                continue
            self._scanned = len(self._buffer)
            if self._scanned > MAX_LINE:
                raise HypervisorError(f"the hypervisor sent a reply of more than {MAX_LINE >> 20} MiB")
            self._wait(select.POLLIN, deadline)
            try:
                data = self._sock.recv(RECEIVE)
            except BlockingIOError:
                continue
            except OSError as exc:
                raise QmpClosedError(f"the hypervisor closed its control socket: {exc.strerror}") from exc
            if not data:
                raise QmpClosedError("the hypervisor closed its control socket")
            self._buffer += data

    def _wait(self, events: int, deadline: float) -> None:
        """Wait for the socket, or for the end of the process, or for the deadline; whichever comes first."""
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        poller = select.poll()
        poller.register(self._sock, events)
        if self._pidfd is not None:
            poller.register(self._pidfd, select.POLLIN)
        ready = dict(poller.poll(max(1, int(remaining * 1000))))
        if not ready:
            raise TimeoutError
        if self._sock.fileno() not in ready:
            raise QmpClosedError("the hypervisor ended")

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Qmp:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
