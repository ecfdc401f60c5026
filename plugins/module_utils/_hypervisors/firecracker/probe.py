# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this host's Firecracker is."""

from __future__ import annotations

import os
import re
import shutil

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError, ToolError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import private
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.cache import Answer
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.replies import printable
from ansible_collections.cocoon.microvm.plugins.module_utils._process import run_tool

NAME = "firecracker"
SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The oldest release that this driver has been made for: it can be told what a snapshot's vsock is (1.16).
MINIMUM = (1, 16, 1)
VERSION = re.compile(r"\AFirecracker v([0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4})(?:-\S+)?\s")
TIMEOUT = 20.0


def find_binary() -> str | None:
    path = shutil.which(NAME, path=os.environ.get("PATH", "") + ":" + SEARCH)
    return os.path.realpath(path) if path else None


def inspect(binary: str) -> Answer:
    """``version`` of *binary*, and the ``libraries`` that it needs in its root.

    :raises HypervisorError: it is not one for this machine, or it does not run.
    """
    try:
        libraries = private.libraries(binary)
        said = run_tool([binary, "--version"], timeout=TIMEOUT).decode(errors="replace")
    except ToolError as exc:
        raise HypervisorError(f"{binary} does not run: {exc.message}") from exc
    except OSError as exc:
        raise HypervisorError(f"{binary} does not run: {exc.strerror}") from exc
    found = VERSION.search(said)
    if not found:
        raise HypervisorError(f"{binary} does not say which Firecracker it is: {printable(said, 80)}")
    return {"version": found.group(1), "libraries": libraries}


def version_tuple(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def too_old(version: str) -> str | None:
    """Why *version* is not served, or ``None``."""
    if version_tuple(version) >= MINIMUM:
        return None
    least = ".".join(map(str, MINIMUM))
    return f"Firecracker {version} is older than {least}, the oldest release that is supported"
