# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether somebody keeps the console of a VM: the keeper's lock on the log says so, and goes with it. Small, as every
look at a running VM needs it.
"""

from __future__ import annotations

import fcntl
import os
import time

from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process

# In the VM's run_dir: where the hypervisor writes to; of one that has no socket of its own for people, where it reads
# from, and the keeper's.
PIPE = "console.pipe"
INPUT = "console.input"
SOCKET = "console.sock"
# Beside the log: the first words of a run that filled it, and what it had last before it was turned over; of a run that
# did not, the end of the run before.
FIRST, BEFORE = ".0", ".1"
# Seconds that a keeper gets to write the last words of a guest that is gone, and between two looks at its lock.
ENDING, LOOK = 5.0, 0.002


def pipe_path(run_dir: str) -> str:
    return os.path.join(run_dir, PIPE)


def socket_path(run_dir: str) -> str:
    return os.path.join(run_dir, SOCKET)


def lost(console_log: str, run_dir: str) -> bool:
    """Whether the keeper of a running VM's console is gone; a VM may have been started without one."""
    return os.path.lexists(pipe_path(run_dir)) and not is_kept(console_log)


def is_kept(console_log: str) -> bool:
    try:
        fd = os.open(console_log, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def await_end(console_log: str, uid: int | None, timeout: float = ENDING) -> None:
    """Return when nobody keeps the console of a VM whose hypervisor is gone; one that does not end is ended.

    :param uid: the VM's, which nobody else has; ``None``: it never came to have one.
    """
    deadline = time.monotonic() + timeout
    while is_kept(console_log):
        if time.monotonic() > deadline:
            for process in Process.scan(uid) if uid else ():
                with process:
                    process.end(grace=0)
            return
        time.sleep(LOOK)
