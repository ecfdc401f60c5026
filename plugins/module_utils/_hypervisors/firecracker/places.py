# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a Firecracker's files are: its sockets in its run_dir, and all that it sees in its root. Small, as every look
at a running VM needs it.

It makes its sockets itself, so they lie in a folder of its user's, below the one that only root can enter. In its root
the names of files are the Go engine's, as a saved machine has them in it.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import keeping, vsock
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.rest import Rest

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Endpoints, Launch

WHO = "Firecracker"
API = "api.sock"
# Where the process has its own folder of the run_dir.
RUN = "/run"

BINARY = "/firecracker"
LOG = "/hypervisor.log"
# Where it writes what it saves, and has the RAM that it goes on with; the state is in RUN meanwhile.
INBOX, MEMORY = "/inbox", "/memory"
STATE = "state"
SHARED = "/var/lib/cocoon/oci"
MACHINES = "/var/lib/cocoon/run/firecracker"


def api_path(run_dir: str) -> str:
    return os.path.join(vsock.own(run_dir), API)


def endpoints(run_dir: str) -> Endpoints:
    """Its console is its standard input and output, and people attach to who is at the other ends of these."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Endpoints

    return Endpoints(api_path(run_dir), keeping.socket_path(run_dir))


def connect(run_dir: str, timeout: float) -> Rest:
    """Its API, which is the one that its user listens at: root made the folder, and its owner cannot give it away.

    :raises FileNotFoundError: it does not run.
    """
    return Rest(api_path(run_dir), WHO, uid=os.lstat(vsock.own(run_dir)).st_uid, timeout=timeout)


def machine_id(launch: Launch) -> str:
    """The VM's id; of a machine that was saved, that of the first that it was."""
    return launch.vm_id if launch.resume is None else str(launch.resume.layout["id"])


def inside(launch: Launch, path: str) -> str:
    """What a file of the VM, of its image or of its kernel is called in the root."""
    folder, name = os.path.split(path)
    if folder == launch.folder:
        return f"{MACHINES}/{machine_id(launch)}/{name}"
    if path in (launch.boot.get("kernel_path"), launch.boot.get("initrd_path")):
        return f"{SHARED}/boot/{os.path.basename(folder)}/{name}"
    return f"{SHARED}/blobs/{name}"
