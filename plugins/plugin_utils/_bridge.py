# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of our runtime that a hypervisor host is sent to talk to a guest's agent, and how that is started there.

Nothing is left on the host: the files come on standard input, in an archive that is kept in memory.
"""

from __future__ import annotations

import functools
import io
import json
import os
import typing as t
import zipfile

PACKAGE = "ansible_collections/cocoon/microvm/plugins/module_utils"
# What a request needs and no more; a test runs one with just these.
MODULES = (
    *("_config", "_errors", "_process", "_records", "_state", "_types"),
    *("_guest/agent", "_guest/cocoon_agent", "_guest/line", "_guest/standard_agent"),
    *("_hypervisors/base", "_hypervisors/channels", "_hypervisors/replies", "_hypervisors/rest"),
    *("_hypervisors/qemu/sockets", "_hypervisors/vsock"),
    *("_engine/bridge", "_vms/guests"),
)
# What stands before an answer; before that may be what the host and become say to who logs in.
MARK = "the cocoon answers:"
# Short, as it is in a list of processes. The archive is in memory that goes with the process.
START = (
    "import os,sys;i=sys.stdin.buffer;n=int(i.readline());f=os.memfd_create('cocoon');"
    "os.write(f,i.read(n));sys.path.insert(0,'/proc/self/fd/%d'%f);"
    "from ansible_collections.cocoon.microvm.plugins.module_utils._engine.bridge import main;main(i)"
)


@functools.lru_cache(maxsize=1)
def archive() -> bytes:
    """Our files as Python imports them."""
    from ansible_collections.cocoon.microvm.plugins import module_utils

    root = next(iter(module_utils.__path__))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bundle:
        for package in sorted({parent for name in MODULES for parent in _parents(f"{PACKAGE}/{name}")}):
            bundle.writestr(zipfile.ZipInfo(f"{package}/__init__.py"), b"")
        for name in MODULES:
            with open(os.path.join(root, f"{name}.py"), "rb") as stream:
                bundle.writestr(zipfile.ZipInfo(f"{PACKAGE}/{name}.py"), stream.read(), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: end + 1]) for end in range(len(parts))]


def message(request: t.Mapping[str, t.Any], data: bytes) -> bytes:
    """What the program reads."""
    files = archive()
    return b"%d\n" % len(files) + files + json.dumps({**request, "mark": MARK}).encode() + b"\n" + data


def parse(output: bytes) -> tuple[dict[str, t.Any], bytes]:
    """The answer.

    :raises ValueError: it is none.
    """
    _said, _mark, answer = output.partition(f"{MARK}\n".encode())
    head, _newline, data = answer.partition(b"\n")
    document = json.loads(head)
    if not isinstance(document, dict):
        raise ValueError("no answer")
    return document, data
