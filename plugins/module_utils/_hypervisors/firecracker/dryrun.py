# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a start comes to, as lines for a shell."""

from __future__ import annotations

import json
import shlex
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import shell, vsock
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Jail, Launch
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.firecracker import places
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.firecracker.calls import Call


def lines(launch: Launch, jail: Jail, argv: t.Sequence[str], calls: t.Sequence[Call]) -> list[str]:
    """What its root has in it, the process there as the VM's user, and what it is asked."""
    folder = vsock.own(launch.run_dir)
    binds = {**{device: device for device in jail.devices}, **(jail.files or {}), places.RUN: folder}
    return [
        shell.folder(launch, folder),
        *(f"# in its root {shlex.quote(place)} is {shlex.quote(source)}" for place, source in binds.items()),
        *(f"# in its network namespace: a TAP {nic.tap} that is its user's" for nic in launch.nics),
        shell.process(launch, jail, argv) + " &",
        shell.await_socket(places.api_path(launch.run_dir)),
        *(_curl(launch, call) for call in calls),
    ]


def _curl(launch: Launch, call: Call) -> str:
    body = json.dumps(call.body, sort_keys=True)
    where = ["--unix-socket", places.api_path(launch.run_dir), f"http://localhost{call.target}"]
    return shlex.join(["curl", "-sSf", "-X", call.method, "-H", "Content-Type: application/json", "-d", body, *where])
