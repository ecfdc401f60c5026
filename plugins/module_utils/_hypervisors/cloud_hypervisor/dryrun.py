# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a start comes to, as lines for a shell."""

from __future__ import annotations

import shlex
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Jail, Launch


def lines(launch: Launch, jail: Jail, argv: t.Sequence[str]) -> list[str]:
    """The RAM file, and the process as the VM's user with nothing but its groups; its guest starts with it."""
    groups = ["--groups", ",".join(map(str, jail.groups))] if jail.groups else ["--clear-groups"]
    user = ["--reuid", str(launch.uid), "--regid", str(launch.gid), *groups]
    rights = ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    return [
        shlex.join(["install", "-d", "-m", "0700", "-o", str(launch.uid), "-g", str(launch.gid), launch.run_dir]),
        shlex.join(["truncate", "-s", str(launch.memory), launch.ram_path]),
        shlex.join(["chown", f"{launch.uid}:{launch.gid}", launch.ram_path]),
        shlex.join(["setpriv", *user, *rights, *argv]) + f" >> {shlex.quote(launch.console_log)} &",
    ]
