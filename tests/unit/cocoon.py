# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A double of the Cocoon agent of published images: a command for each connection, lines of JSON.

The standard library alone: as a program it listens at port 1024 of a guest's vsock.
"""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import threading
import typing as t

PORT = 1024
PIECE = 32 << 10


def answer(stream: t.BinaryIO, heard: t.Callable[[dict[str, t.Any]], object] = lambda _asked: None) -> None:
    """Carry out what one connection asks for; *heard* gets it."""

    def say(**document: t.Any) -> None:
        stream.write(json.dumps(document).encode() + b"\n")
        stream.flush()

    try:
        asked = json.loads(stream.readline())
    except ValueError:
        return
    if asked.get("type") != "exec":
        say(type="error", message=f'expected first frame type "exec" or "reseed", got "{asked.get("type", "")}"')
        return
    heard(asked)
    data = b""
    for line in stream:
        frame = json.loads(line)
        if frame["type"] == "stdin_close":
            break
        data += base64.b64decode(frame["data"])
    try:
        child = subprocess.Popen(
            asked["argv"], env=asked["env"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError as exc:
        say(type="error", message=f"start: {exc}")
        return
    say(type="started", pid=child.pid)
    printed = child.communicate(data)
    for kind, text in zip(("stdout", "stderr"), printed):
        for start in range(0, len(text), PIECE):
            say(type=kind, data=base64.b64encode(text[start : start + PIECE]).decode())
    say(type="exit", **({"exit_code": child.returncode} if child.returncode else {}))


def one(client: socket.socket) -> None:
    with client, client.makefile("rwb") as stream:
        answer(t.cast(t.BinaryIO, stream))


def main() -> None:
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, PORT))
    listener.listen(8)
    while True:
        threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()


if __name__ == "__main__":
    main()
