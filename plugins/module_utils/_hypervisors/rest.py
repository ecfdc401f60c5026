# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client of a REST API on a unix socket.

The process on the other side may be under a guest's control, and so may the folder that its socket lies in: a socket is
held before anything is sent to it, and replies are bounded in size and time. Nothing is ever asked a second time: a
call whose answer is lost may have been carried out.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import stat
import struct
import threading
import time
import typing as t
import urllib.parse

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError, ToolError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.replies import parse_json, printable

MAX_REPLY = 1 << 20
MAX_HEAD = 16 << 10
TURN = 10.0
RECEIVE = 65536
CREDENTIALS = struct.Struct("=iII")

Answer = tuple[int, bytes]


class RestError(HypervisorError):
    """The hypervisor refused a call, with HTTP's *status*; *body* is what it said, fit for a message."""

    def __init__(self, who: str, call: str, status: int, body: str) -> None:
        super().__init__(f"{who} refused {call}: {body or f'status {status}'}")
        self.status = status
        self.body = body


class RestClosedError(HypervisorError):
    """The hypervisor ended, or closed the connection. What was asked may have been done."""


class RestTimeoutError(HypervisorError):
    """The hypervisor did not answer in time. What was asked may have been done, or may yet be."""


class Rest:
    """The API at the socket *path*. Each call is a connection of its own.

    :param who: what the hypervisor is called in messages.
    :param base: of the API, in front of each call's target.
    :param uid: the user who must have made the socket, where the hypervisor makes it itself.
    """

    def __init__(self, path: str, who: str, base: str = "", uid: int | None = None, timeout: float = TURN) -> None:
        self.path = path
        self.who = who
        self.base = base
        self.uid = uid
        self.timeout = timeout

    def get(self, target: str, timeout: float | None = None) -> t.Any:
        return self.call("GET", target, None, timeout)

    def put(self, target: str, body: t.Any = None, timeout: float | None = None) -> t.Any:
        return self.call("PUT", target, body, timeout)

    def patch(self, target: str, body: t.Any, timeout: float | None = None) -> t.Any:
        return self.call("PATCH", target, body, timeout)

    def call(self, method: str, target: str, body: t.Any = None, timeout: float | None = None) -> t.Any:
        """What the call answers; ``None`` for an empty answer.

        :raises RestError: refused.
        :raises RestClosedError: nobody listens, or the hypervisor ended before it had answered.
        :raises RestTimeoutError: no whole answer in *timeout* seconds.
        :raises HypervisorError: nonsense, more than is sane, or a socket that is not the hypervisor's.
        """
        limit = self.timeout if timeout is None else timeout
        return self._meaning(method, target, self._ask(method, target, body, limit))

    def look(self, target: str, timeout: float | None = None) -> t.Any:
        """What a GET answers, without the library: a run that changes nothing has no time to import it.

        :raises HypervisorError: as :meth:`call`.
        """
        return self._directly("GET", target, b"", (), timeout)

    def hand(self, target: str, body: t.Any, fds: t.Sequence[int], timeout: float | None = None) -> t.Any:
        """A PUT with descriptors beside it, which the library cannot send.

        :raises HypervisorError: as :meth:`call`.
        """
        return self._directly("PUT", target, json.dumps(body).encode(), fds, timeout)

    def _directly(self, method: str, target: str, content: bytes, fds: t.Sequence[int], timeout: float | None) -> t.Any:
        """As :meth:`call`, of JSON that is put together, and without the library."""
        limit = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        kind = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n" if content else ""
        data = f"{method} {self.base}{target} HTTP/1.1\r\nHost: localhost\r\n{kind}\r\n".encode() + content
        try:
            with connect(self.path, self.uid, limit) as line:
                sent = socket.send_fds(line, [data], list(fds)) if fds else 0
                line.sendall(data[sent:])
                return self._meaning(method, target, _read_reply(line, deadline))
        except (TimeoutError, socket.timeout, BlockingIOError):
            raise self._too_late(method, target, limit) from None
        except OSError as exc:
            raise self._closed(method, target, exc.strerror or str(exc)) from exc

    def _ask(self, method: str, target: str, body: t.Any, timeout: float) -> Answer:
        """The answer, had on a thread: a library's time limit is of one read, and not of a reply that drips."""
        _load()  # on a slow host it takes longer than an answer may
        answers: queue.SimpleQueue[Answer | BaseException] = queue.SimpleQueue()

        def work() -> None:
            try:
                with hold(self.path, self.uid) as path:
                    answers.put(_request(method, path, self.base + target, body, timeout))
            except BaseException as exc:  # pylint: disable=broad-exception-caught  # it is raised below
                answers.put(exc)

        threading.Thread(target=work, name=f"{method} {target}", daemon=True).start()
        try:
            answer = answers.get(timeout=timeout)
        except queue.Empty:
            raise self._too_late(method, target, timeout) from None
        if isinstance(answer, (TimeoutError, socket.timeout)):
            raise self._too_late(method, target, timeout)
        if isinstance(answer, OSError):
            raise self._closed(method, target, answer.strerror or str(answer)) from answer
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _meaning(self, method: str, target: str, answer: Answer) -> t.Any:
        status, content = answer
        call = f"{method} {target}"
        if len(content) > MAX_REPLY:
            raise HypervisorError(f"{self.who} answered {call} with more than {MAX_REPLY >> 20} MiB")
        if not 200 <= status < 300:
            raise RestError(self.who, call, status, printable(content.decode(errors="replace"), 1000))
        if not content:
            return None
        try:
            return parse_json(content)
        except ValueError:
            said = printable(content[:80].decode(errors="replace"))
            raise HypervisorError(f"{self.who} answered {call} with something that is not JSON: {said}") from None

    def _too_late(self, method: str, target: str, timeout: float) -> RestTimeoutError:
        return RestTimeoutError(
            f"{self.who} did not answer {method} {target} within {timeout:g} s",
            remedy="It hangs, or the host is very busy; try again, or stop the VM by force.",
        )

    def _closed(self, method: str, target: str, reason: str) -> RestClosedError:
        return RestClosedError(f"{self.who} at {self.path} did not answer {method} {target}: {printable(reason)}")


@contextlib.contextmanager
def hold(path: str, uid: int | None = None) -> t.Iterator[str]:
    """A name for the socket that is at *path* now, whatever is put there later.

    :param uid: the user who must have begun to listen there.
    :raises HypervisorError: a link, or something else that is not a socket; or another user's.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise HypervisorError(
                f"{path} is not a socket: something else was put in its place",
                remedy="Stop the VM by force, and look into it: its guest may have taken over its hypervisor.",
            )
        held = f"/proc/self/fd/{fd}"
        if uid is not None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
                line.settimeout(TURN)
                line.connect(held)
                _check_listener(line, path, uid)
        yield held
    finally:
        os.close(fd)


def connect(path: str, uid: int | None = None, timeout: float = TURN) -> socket.socket:
    """A connection to the socket that is at *path* now.

    :param uid: the user who must have begun to listen there.
    :param timeout: of each thing that is done with it, in seconds; nought: it never waits.
    :raises OSError: nobody listens. :raises HypervisorError: as :func:`hold`.
    """
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        line.settimeout(timeout)
        with hold(path) as held:
            line.connect(held)
        if uid is not None:
            _check_listener(line, path, uid)
    except BaseException:
        line.close()
        raise
    return line


def _check_listener(line: socket.socket, path: str, uid: int) -> None:
    options = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    listener = CREDENTIALS.unpack(options)[1]
    if listener != uid:
        raise HypervisorError(
            f"the process that listens at {path} is of user {listener}, and not of {uid}",
            remedy="Stop the VM by force, and look into it: its guest may have taken over its hypervisor.",
        )


def _load() -> None:
    """Import the library.

    :raises ToolError: it is not installed.
    """
    try:
        import requests_unixsocket  # noqa: F401  # pylint: disable=unused-import
    except ImportError as exc:
        raise ToolError(
            f"Python's {exc.name} is missing on this host", remedy="Install python3-requests-unixsocket."
        ) from exc


def _request(method: str, path: str, target: str, body: t.Any, timeout: float) -> Answer:
    """One call, whose answer may be one byte longer than we take.

    :raises OSError: the connection was not had, or was lost.
    """
    import http.client

    import requests
    import requests_unixsocket
    import urllib3

    url = f"http+unix://{urllib.parse.quote(path, safe='')}{target}"
    try:
        with requests_unixsocket.Session() as session:
            session.trust_env = False  # no proxy, and nobody's passwords
            session.headers.update({"Accept": "application/json", "Accept-Encoding": "identity"})
            with session.request(method, url, json=body, timeout=timeout, stream=True, allow_redirects=False) as reply:
                if reply.status_code != 204 and "Content-Length" not in reply.headers:
                    raise OSError("it ended within its answer")  # which the library takes for the end of one
                return reply.status_code, reply.raw.read(MAX_REPLY + 1, decode_content=False)
    except requests.exceptions.Timeout as exc:
        raise TimeoutError from exc
    except requests.exceptions.RequestException as exc:
        raise OSError(_reason(exc)) from exc
    except urllib3.exceptions.TimeoutError as exc:
        raise TimeoutError from exc
    except (urllib3.exceptions.HTTPError, http.client.HTTPException) as exc:
        raise OSError(_reason(exc)) from exc


def _reason(exc: BaseException) -> str:
    """The kernel's word for what happened, beneath what libraries have made of it."""
    seen: set[int] = set()
    pending: list[t.Any] = [exc]
    while pending:
        found = pending.pop()
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        pending += [*found.args, getattr(found, "reason", None), found.__cause__, found.__context__]
    while exc.args and isinstance(exc.args[0], BaseException):
        exc = exc.args[0]
    return ": ".join(str(word).rstrip(".") for word in exc.args) or type(exc).__name__


def _read_reply(line: socket.socket, deadline: float) -> Answer:
    """Status and body of a reply that says how long it is.

    :raises OSError: the connection was lost. :raises HypervisorError: not HTTP.
    """
    data = b""
    length: int | None = None
    end = -1
    while length is None or len(data) < end + length:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        line.settimeout(left)
        received = line.recv(RECEIVE)
        if not received:
            raise ConnectionResetError("it closed the connection")
        data += received
        if length is None:
            end = data.find(b"\r\n\r\n") + 4
            if end >= 4:
                length = _content_length(data[:end])
            elif len(data) > MAX_HEAD:
                raise HypervisorError("the hypervisor sent something that is not HTTP")
    return _status(data), data[end : end + length]


def _status(data: bytes) -> int:
    words = data.split(b"\r\n", 1)[0].split(b" ")
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit() or len(words[1]) != 3:
        raise HypervisorError("the hypervisor sent something that is not HTTP")
    return int(words[1])


def _content_length(head: bytes) -> int:
    for row in head.split(b"\r\n")[1:]:
        name, _colon, value = row.partition(b":")
        digits = value.strip()
        if name.strip().lower() == b"content-length" and digits.isdigit() and len(digits) < 10:
            return min(int(digits), MAX_REPLY + 1)
    return 0
