# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The socket of a running Cloud Hypervisor, and how its guest is. Small, as every look at a running VM needs it."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import keeping
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.rest import TURN, Rest

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Endpoints, RunState

API = "api.sock"
BASE = "/api/v1"
WHO = "Cloud Hypervisor"
MEANINGS: t.Final[t.Mapping[str, RunState]] = {
    "Created": "paused",
    "Running": "running",
    "Paused": "paused",
    "Shutdown": "shutdown",
}


def api_path(run_dir: str) -> str:
    return os.path.join(run_dir, API)


def endpoints(run_dir: str) -> Endpoints:
    """People attach to who keeps its console, and has the other ends of its standard input and output."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Endpoints

    return Endpoints(api_path(run_dir), keeping.socket_path(run_dir))


def client(run_dir: str, timeout: float = TURN) -> Rest:
    """The API of the VM of *run_dir*: its socket was made by us, in a folder that is root's alone."""
    return Rest(api_path(run_dir), WHO, BASE, timeout=timeout)


def info(rest: Rest) -> dict[str, t.Any]:
    """What it says of its VM.

    :raises HypervisorError: nothing sensible.
    """
    answer = rest.look("/vm.info")
    if isinstance(answer, dict) and answer.get("state") in MEANINGS and isinstance(answer.get("config"), dict):
        return answer
    raise HypervisorError(f"{WHO} says nothing sensible of its VM")


def ask(run_dir: str, timeout: float) -> RunState:
    """How the guest is.

    :raises HypervisorError: it cannot be told.
    """
    return MEANINGS[info(client(run_dir, timeout))["state"]]
