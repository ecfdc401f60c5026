# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A line to something in a guest that speaks in lines: bounded in length and in time, both ways at once."""

from __future__ import annotations

import json
import select
import socket
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import GuestTimeoutError, HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.replies import parse_json

PIECE = 1 << 18
# Of a document; each costs memory that is many times its length.
MOST_VALUES = 50_000
# What is shown of a guest's words.
MOST_WORDS = 200


class AgentError(HypervisorError):
    """The guest's agent refused something, or what it says makes no sense."""


class AgentClosedError(AgentError):
    """The guest's agent, or the hypervisor between it and us, hung up."""


class Line:
    """A connected socket. What comes from it is the guest's word: nothing of it is believed but its length."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._socket.setblocking(False)
        self._received = bytearray()
        self._searched = 0
        self._outgoing = bytearray()
        self._deaf = False
        # Called before each wait: gives us more to send.
        self.feed: t.Callable[[], None] | None = None

    def send(self, data: bytes) -> None:
        """Have *data* sent while we listen."""
        self._outgoing += data

    @property
    def unsent(self) -> int:
        return len(self._outgoing)

    def send_document(self, document: t.Mapping[str, t.Any]) -> None:
        self.send(json.dumps(document).encode() + b"\n")

    def read_line(self, deadline: float, limit: int) -> bytes:
        """The next line, without its end.

        :raises GuestTimeoutError: it is not there in time. :raises AgentError: it is longer than *limit*.
        """
        return self._read(b"\n", deadline, limit, keep=True)

    def skip_past(self, mark: bytes, deadline: float) -> None:
        """Drop all up to *mark*, however much it is."""
        self._read(mark, deadline, 0, keep=False)

    def _read(self, mark: bytes, deadline: float, limit: int, keep: bool) -> bytes:
        while True:
            end = self._received.find(mark, self._searched)
            if end >= 0:
                found = bytes(self._received[:end]) if keep else b""
                del self._received[: end + 1]
                self._searched = 0
                if len(found) > limit:
                    raise AgentError(f"the guest's agent said a line of more than {limit} bytes")
                return found
            if not keep:
                self._received.clear()
            elif len(self._received) > limit:
                raise AgentError(f"the guest's agent said a line of more than {limit} bytes")
            self._searched = len(self._received)
            self.exchange(deadline)

    def exchange(self, deadline: float) -> None:
        """Wait until something comes or goes, and take or give it."""
        if self.feed and not self._deaf:
            self.feed()
        poller = select.poll()
        poller.register(self._socket, select.POLLIN | (select.POLLOUT if self._outgoing else 0))
        left = deadline - time.monotonic()
        events = poller.poll(max(0, int(left * 1000) + 1)) if left > 0 else []
        if not events:
            raise GuestTimeoutError("the guest's agent does not answer")
        try:
            if events[0][1] & select.POLLOUT:
                self._pass_on()
            if events[0][1] & ~select.POLLOUT:
                data = self._socket.recv(PIECE)
                if not data:
                    raise AgentClosedError("the guest's agent hung up")
                self._received += data
        except BlockingIOError:
            pass
        except OSError as exc:
            raise AgentClosedError(f"the guest's agent hung up: {exc.strerror}") from exc

    def _pass_on(self) -> None:
        """What cannot be sent any more is dropped: there may be last words to hear."""
        try:
            del self._outgoing[: self._socket.send(self._outgoing[:PIECE])]
        except ConnectionError:
            self._deaf = True
            self._outgoing.clear()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def document_of(line: bytes) -> dict[str, t.Any]:
    """The JSON object that a line is.

    :raises AgentError: it is none.
    """
    if sum(line.count(mark) for mark in b"[{,") > MOST_VALUES:
        raise AgentError(f"the guest's agent says a document of more than {MOST_VALUES} values")
    try:
        document = parse_json(line)
    except ValueError as exc:
        raise AgentError("the guest's agent says something that is no JSON") from exc
    if not isinstance(document, dict):
        raise AgentError("the guest's agent says something that is no JSON object")
    return document
