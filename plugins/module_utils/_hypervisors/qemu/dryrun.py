# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a start comes to, as lines for a shell."""

from __future__ import annotations

import json
import os
import shlex
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import shell
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Jail, Launch, Resume
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import commandline, sockets
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu.files import STATE_FILE


def lines(launch: Launch, jail: Jail, argv: t.Sequence[str]) -> list[str]:
    """The RAM file, TAPs, the process, and the words that let the guest go."""
    return [
        shell.folder(launch, launch.run_dir),
        *shell.ram(launch),
        shell.file(launch, launch.console_log),
        *shell.taps(launch),
        shell.process(launch, jail, argv) + " &",
        shell.await_socket(sockets.qmp_path(launch.run_dir)),
        *([_load(launch.resume)] if launch.resume else []),
        *(
            _say(launch, commandline.THROTTLE, commandline.throttle(disk.serial, disk.limits))
            for disk in launch.disks
            if disk.limits
        ),
        _say(launch, "cont"),
    ]


def _load(resume: Resume) -> str:
    state = os.path.join(resume.folder, STATE_FILE)
    return f"# {shlex.quote(state)} is handed over as a descriptor: getfd, migrate-incoming fd:state"


def _say(launch: Launch, command: str, arguments: t.Mapping[str, t.Any] | None = None) -> str:
    """One command to the monitor, which wants to be greeted first."""
    said = {"execute": command, **({"arguments": arguments} if arguments else {})}
    words = [json.dumps(word) for word in ({"execute": "qmp_capabilities"}, said)]
    target = f"UNIX-CONNECT:{sockets.qmp_path(launch.run_dir)}"
    return f"printf '%s\\n' {shlex.join(words)} | socat -t 2 - {shlex.quote(target)}"
