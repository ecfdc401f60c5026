# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a start comes to, as lines for a shell."""

from __future__ import annotations

import shlex
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import shell, vsock
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Jail, Launch


def lines(launch: Launch, jail: Jail, argv: t.Sequence[str]) -> list[str]:
    """The RAM file, TAPs, and the process; its guest starts with it."""
    held = [f"# its NIC {number} is {nic.tap}, handed over as a descriptor" for number, nic in enumerate(launch.nics)]
    return [
        shell.folder(launch, launch.run_dir),
        shell.folder(launch, vsock.own(launch.run_dir)),
        *shell.ram(launch),
        *(held if launch.resume else shell.taps(launch)),
        shell.process(launch, jail, argv) + f" >> {shlex.quote(launch.console_log)} &",
    ]
