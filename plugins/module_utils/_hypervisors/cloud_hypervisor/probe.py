# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this host's Cloud Hypervisor is: its binary and its version."""

from __future__ import annotations

import os
import re
import shutil

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ToolError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.cache import Answer
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.replies import printable
from ansible_collections.cocoon.microvm.plugins.module_utils._process import run_tool

BINARY = "cloud-hypervisor"
SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Older ones take no descriptors of TAPs at a restore, and their security fixes have ended.
MINIMUM = (52, 0)
VERSION = re.compile(r"^cloud-hypervisor v?([0-9]{1,4}(?:\.[0-9]{1,4}){1,3})(?:-\S*)?\s*\Z")
REMEDY = "Install Cloud Hypervisor v52 or newer as /usr/local/bin/cloud-hypervisor, from a release of the project."


def find_binary() -> str | None:
    """The path of Cloud Hypervisor, or ``None``."""
    path = shutil.which(BINARY, path=os.environ.get("PATH", "") + ":" + SEARCH)
    return os.path.realpath(path) if path else None


def inspect(binary: str) -> Answer:
    """``version`` of *binary*, or the ``problem`` that there is with it."""
    try:
        said = run_tool([binary, "--version"], timeout=20.0, package=BINARY).decode(errors="replace").strip()
    except (ToolError, OSError) as exc:
        reason = exc.message if isinstance(exc, ToolError) else exc.strerror or exc
        return {"problem": f"{binary} does not run: {printable(reason)}"}
    found = VERSION.match(said.partition("\n")[0])  # what follows is of no use
    if not found:
        return {"problem": f"{binary} does not tell its version: '{printable(said, 80)}'"}
    return {"version": found.group(1)}


def too_old(version: str) -> str | None:
    """Why *version* is not served, or ``None``."""
    if tuple(int(part) for part in version.split(".")) >= MINIMUM:
        return None
    return f"Cloud Hypervisor {version} is too old, v{'.'.join(map(str, MINIMUM))} is the oldest that is served"
