# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Having systemd keep what outlives the login that started it: hypervisors in scopes, servers as services.

``systemd-run --scope`` would do it as root between our fork and the hypervisor's exec, where a run
that is killed leaves a process that does not look like ours yet. Asking systemd to adopt the running,
unprivileged process leaves no such moment.
"""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError, ToolError
from ansible_collections.cocoon.microvm.plugins.module_utils._process import run_tool

SYSTEMD = "/run/systemd/system"
SLICE = "cocoon-microvm.slice"


def present() -> bool:
    """Whether systemd is this host's init."""
    return os.path.isdir(SYSTEMD)


def unit_name(object_id: str, pid: int) -> str:
    """One name for each start: the scope of the previous one may still be on its way out."""
    return f"cocoon-microvm-{object_id}-{pid}.scope"


def request(unit: str, pids: t.Sequence[int], description: str) -> list[str]:
    """The call of StartTransientUnit (org.freedesktop.systemd1), as busctl takes it: values behind their types."""
    properties = [
        *("Description", "s", description),
        *("Slice", "s", SLICE),
        *("CollectMode", "s", "inactive-or-failed"),
        *("PIDs", "au", str(len(pids)), *map(str, pids)),
    ]
    manager = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"]
    call = ["StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", "4", *properties, "0"]
    return ["busctl", "--system", "--quiet", "call", *manager, *call]


def adopt(object_id: str, pids: t.Sequence[int], description: str, timeout: float = 10.0) -> str:
    """Have systemd move *pids* into a transient scope; gives the scope's name, which is after the first of them.

    :raises HypervisorError: systemd refused, or cannot be reached.
    """
    unit = unit_name(object_id, pids[0])
    try:
        run_tool(request(unit, pids, description), timeout=timeout, package="systemd")
    except ToolError as exc:
        raise HypervisorError(
            f"systemd did not take process {pids[0]} into {unit}: {exc.message}",
            remedy="See that the package dbus is installed and its socket is active.",
        ) from exc
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


def service_name(object_id: str) -> str:
    return f"cocoon-microvm-{object_id}.service"


def service(unit: str, argv: list[str], description: str) -> list[str]:
    """The call that has systemd start a program that goes to the background, and start it again when it crashes.

    The unit is gone with a reboot, as is all that the program serves.
    """
    properties = ("Type=forking", "Restart=on-failure", "RestartSec=1", "CollectMode=inactive-or-failed")
    words = ["systemd-run", "--quiet", f"--unit={unit}", f"--slice={SLICE}", f"--description={description}"]
    return [*words, *(f"--property={word}" for word in properties), "--", *argv]


def stop_service(unit: str) -> None:
    """End a service, if there is one, and have it not be started again."""
    with contextlib.suppress(ToolError):  # there is none
        run_tool(["systemctl", "stop", "--quiet", unit], timeout=120, package="systemd")


def in_unit(pid: int, unit: str) -> bool:
    with open(f"/proc/{pid}/cgroup", encoding="utf-8") as stream:
        return any(line.rstrip("\n").endswith("/" + unit) for line in stream)
