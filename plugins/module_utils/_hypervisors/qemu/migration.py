# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of QEMU's devices, out of it and into it, by its migration stream through a pipe.

A pipe is the one channel that all releases know, that a QEMU which may not open files can be given,
and that bounds what it writes. RAM in a file that is shared stays out of the stream (``x-ignore-shared``).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.qmp import Qmp
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.replies import printable

STREAM = "state"
CHUNK = 1 << 20
# No network is in between, so nothing is to be held back.
UNLIMITED = 1 << 50
SAVE_TIMEOUT = 600.0
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# What a guard.Guard runs, with the path of QMP's socket. Waits until its input ends. One byte says that all went well;
# without it whoever held the other end is dead or has got no further, and the guest that it stopped is let go on.
GUARD = """
import json, os, socket, sys, time
if not os.read(0, 1):
    for attempt in range(50):
        try:
            line = socket.socket(socket.AF_UNIX)
            line.settimeout(20)
            line.connect(sys.argv[1])
            stream = line.makefile("rb")
            stream.readline(1 << 16)
            for command in ("qmp_capabilities", "cont"):
                line.sendall(json.dumps({"execute": command}).encode())
                answer = {"event": ""}
                while "event" in answer:
                    answer = json.loads(stream.readline(1 << 20))
                answer["return"]  # refused while a migration comes to its end
            break
        except (FileNotFoundError, ConnectionRefusedError):
            break  # it has ended
        except (OSError, ValueError, KeyError):
            time.sleep(0.2)
"""


def prepare(qmp: Qmp, ignore_shared: bool) -> None:
    """Set the channel up, before the guest is stopped or loaded."""
    capabilities = {"x-ignore-shared": ignore_shared, "events": True}
    states = [{"capability": name, "state": value} for name, value in capabilities.items()]
    qmp.execute("migrate-set-capabilities", {"capabilities": states})
    qmp.execute("migrate-set-parameters", {"max-bandwidth": UNLIMITED})


class _Pump(threading.Thread):
    """Copies from one descriptor to another until the end, or until *limit* bytes, then closes those it owns."""

    def __init__(self, source: int, target: int, owned: t.Sequence[int], limit: int) -> None:
        super().__init__(daemon=True)
        self._source, self._target, self._owned, self._left = source, target, owned, limit
        self.error: OSError | None = None
        self.overrun = False
        self.start()

    def run(self) -> None:
        try:
            while True:
                data = os.read(self._source, CHUNK)
                self._left -= len(data)
                self.overrun = self._left < 0
                if not data or self.overrun:
                    return
                view = memoryview(data)
                while view:
                    view = view[os.write(self._target, view) :]
        except OSError as exc:
            self.error = exc
        finally:
            for fd in self._owned:
                os.close(fd)


def _hand_over(qmp: Qmp, theirs: int, ours: int) -> None:
    """Give QEMU its end of the pipe."""
    try:
        qmp.execute("getfd", {"fdname": STREAM}, fds=[theirs])
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)


def write_out(qmp: Qmp, target: int, limit: int, timeout: float = SAVE_TIMEOUT) -> None:
    """Write the devices' state of a guest that stands still to the descriptor *target*.

    :param limit: bytes at most.
    :raises HypervisorError: QEMU could not, or wrote too much. :raises OSError: *target* took no more.
    """
    ours, theirs = os.pipe()
    _hand_over(qmp, theirs, ours)
    pump = _Pump(ours, target, (ours,), limit)
    try:
        qmp.execute("migrate", {"uri": f"fd:{STREAM}"})
        problem = _await_end(qmp, timeout)
        if problem:
            with contextlib.suppress(HypervisorError):  # or its end stops a guest that was let go on meanwhile
                qmp.execute("migrate_cancel")
    except HypervisorError as exc:
        with contextlib.suppress(HypervisorError):  # or the pump waits for ever for what is not going to come
            qmp.execute("closefd", {"fdname": STREAM})
        problem = exc.message
    pump.join(timeout)
    if pump.error is not None:
        raise pump.error
    problem = "it is larger than it can be" if pump.overrun else problem
    if problem:
        raise HypervisorError(f"the state of the VM could not be saved: {problem}")


def write_file(qmp: Qmp, path: str, limit: int) -> None:
    """:func:`write_out` to a new file of ours at *path*."""
    fd = os.open(path, NEW, 0o600)
    try:
        write_out(qmp, fd, limit)
    finally:
        os.close(fd)


def read_in(qmp: Qmp, source: str, timeout: float) -> None:
    """Load the devices' state in the file *source* into a QEMU that waits for it.

    :raises HypervisorError: it does not fit, or is damaged.
    """
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    theirs, ours = os.pipe()
    try:
        _hand_over(qmp, theirs, ours)
    except BaseException:
        os.close(fd)
        raise
    _Pump(fd, ours, (fd, ours), os.fstat(fd).st_size)
    qmp.execute("migrate-incoming", {"uri": f"fd:{STREAM}"})
    problem = _await_end(qmp, timeout)
    if problem:
        raise HypervisorError(f"the saved state could not be loaded: {problem}")


def _await_end(qmp: Qmp, timeout: float) -> str | None:
    """Wait for the end of a migration; what went wrong, if anything did."""
    deadline = time.monotonic() + timeout
    while True:
        event = qmp.wait_event("MIGRATION", deadline - time.monotonic())
        if event is None:
            return f"not done within {timeout:g} s"
        if event.get("status") == "completed":
            return None
        if event.get("status") in ("failed", "cancelled"):
            return _reason(qmp)


def _reason(qmp: Qmp) -> str:
    answer = qmp.execute("query-migrate")
    text = answer.get("error-desc") if isinstance(answer, dict) else None
    return printable(text) if text else "QEMU gives no reason; its log may"
