# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sockets of a running QEMU, in its run_dir. Small, as every look at a running VM needs it."""

from __future__ import annotations

import os
import typing as t

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Channel, Endpoints

QMP = "qmp.sock"
CONSOLE = "console.sock"
AGENT = "agent.sock"
# Only of one whose guest is to be told who it is now.
IDENTITY = "identity.sock"
ALWAYS = (QMP, CONSOLE, AGENT)


def qmp_path(run_dir: str) -> str:
    return os.path.join(run_dir, QMP)


def endpoints(run_dir: str) -> Endpoints:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Endpoints

    return Endpoints(qmp_path(run_dir), os.path.join(run_dir, CONSOLE))


def guest_channel(run_dir: str) -> Channel:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Channel

    return Channel("virtio-serial", os.path.join(run_dir, AGENT))
