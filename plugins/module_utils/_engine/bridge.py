# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the connection plugin runs on a hypervisor host: one request for a guest's agent, one answer.

Both are a line of JSON and bytes after it; before the answer stands the ``mark`` that was asked for. The request comes
on standard input, so nothing of it is in a list of processes.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.agent import (
    Agent,
    Command,
    CommandTimeoutError,
    find,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.line import AgentClosedError, AgentError
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import guests

Answer = tuple[dict[str, t.Any], bytes]
SUM_TIMEOUT = 600.0
# What says that the guest has no program for it.
NOT_FOUND = (126, 127)


class Bounded(io.BytesIO):
    """Takes so many bytes and no more."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def write(self, data: t.Any) -> int:
        if self.tell() + len(data) > self.limit:
            raise AgentError(f"the file has more than {self.limit} bytes", remedy="Fetch it over the network.")
        return super().write(data)


def answer(request: t.Mapping[str, t.Any], data: bytes) -> Answer:
    """Do what *request* says, with *data* for the guest."""
    paths = Paths.from_params(request)
    record = guests.running(Store.load(paths), request["vm"])
    agent = find(guests.access(paths, record), time.monotonic() + request["agent_timeout"])
    until = time.monotonic() + request["timeout"]
    if request["do"] == "exec":
        return _run(agent, Command(tuple(request["argv"]), stdin=data), request["timeout"])
    if request["do"] == "put":
        agent.put(request["path"], io.BytesIO(data), until)
        _check(agent, request["path"], data)
        return {}, b""
    target = Bounded(request["limit"])
    agent.fetch(request["path"], target, until)
    _check(agent, request["path"], target.getvalue())
    return {}, target.getvalue()


def _run(agent: Agent, command: Command, timeout: float) -> Answer:
    found = agent.run(command, timeout)
    if found.cut:
        raise AgentError("the command printed more than the agent keeps", remedy="Have it print into a file.")
    return {"rc": found.code, "stdout": len(found.stdout)}, found.stdout + found.stderr


def _check(agent: Agent, path: str, content: bytes) -> None:
    """:raises AgentError: what is in the file is something else. A guest without the program is believed."""
    try:
        found = agent.run(Command(("/bin/sh", "-c", 'sha256sum < "$1"', "sh", path)), SUM_TIMEOUT)
    except AgentError:
        return
    if found.code not in NOT_FOUND and found.stdout.split()[:1] != [hashlib.sha256(content).hexdigest().encode()]:
        raise AgentError(f"the file {path} is not in the guest as it should be: its checksum differs")


def _answered(exc: CocoonError) -> bool:
    """Whether something went wrong in a guest that can be reached."""
    return isinstance(exc, (AgentError, CommandTimeoutError)) and not isinstance(exc, AgentClosedError)


def main(stream: t.BinaryIO) -> None:
    """Answer the request that begins in *stream*."""
    request = json.loads(stream.readline())
    try:
        head, data = answer(request, stream.read())
    except CocoonError as exc:
        exc.option = None  # nobody gave one here
        head, data = {"error": str(exc), "reached": _answered(exc)}, b""
    except OSError as exc:
        head, data = {"error": f"{exc.strerror}: {exc.filename}"}, b""
    sys.stdout.buffer.write(f"{request['mark']}\n{json.dumps(head)}\n".encode() + data)
    sys.stdout.buffer.flush()
