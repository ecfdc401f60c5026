# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CNI plugins, run one after the other as the specification has it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ToolError
from ansible_collections.cocoon.microvm.plugins.module_utils._network.cni import conflists, results
from ansible_collections.cocoon.microvm.plugins.module_utils._network.cni.conflists import Conflist
from ansible_collections.cocoon.microvm.plugins.module_utils._process import SEARCH_PATH
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

# For one plugin; those that ask a server somewhere take their time.
TIMEOUT = 60.0
WITHOUT_RESULT = ("0.3.0", "0.3.1")  # whose DEL is not told what ADD gave


class Call(t.NamedTuple):
    """One interface of one VM, as plugins are told of it.

    :param capabilities: what they are told if they want to, by capability. :param lock: held as long as one runs.
    """

    vm_id: str
    ifname: str
    netns: str
    args: str
    folders: t.Sequence[str]
    capabilities: Record
    lock: int

    def environment(self, command: str) -> dict[str, str]:
        return {
            **{"PATH": SEARCH_PATH, "LC_ALL": "C", "CNI_COMMAND": command, "CNI_CONTAINERID": self.vm_id},
            **{"CNI_NETNS": self.netns, "CNI_IFNAME": self.ifname, "CNI_ARGS": self.args},
            "CNI_PATH": ":".join(self.folders),
        }


def config_of(conflist: Conflist, plugin: Record, capabilities: Record, previous: Record | None) -> Record:
    """What one plugin of a list is told. Pure."""
    wanted = plugin.get("capabilities") or {}
    runtime = {key: value for key, value in capabilities.items() if wanted.get(key) is True}
    found = {key: value for key, value in plugin.items() if key not in ("capabilities", "runtimeConfig")}
    return {
        **found,
        **{"name": conflist.name, "cniVersion": conflist.version},
        **({"runtimeConfig": runtime} if runtime else {}),
        **({"prevResult": previous} if previous is not None else {}),
    }


def add(conflist: Conflist, call: Call) -> Record:
    """Have the interface made; what the last plugin says of it.

    :raises CocoonError: one is missing, failed, printed no result, or took too long. Nothing is taken back.
    """
    previous: Record | None = None
    for plugin in conflist.plugins:
        config = config_of(conflist, plugin, call.capabilities, previous)
        previous = results.read(_run(conflist, plugin["type"], "ADD", call, config), plugin["type"])
    return previous or {}


def delete(conflist: Conflist, call: Call, result: Record | None) -> None:
    """Have the interface taken down, by all the plugins, whether one of them fails or not.

    :param result: what ADD gave, if it came to that.
    :raises CocoonError: the first thing that went wrong.
    """
    previous = None if conflist.version in WITHOUT_RESULT else result
    failed = None
    for plugin in reversed(conflist.plugins):
        try:
            _run(conflist, plugin["type"], "DEL", call, config_of(conflist, plugin, call.capabilities, previous))
        except Exception as exc:
            failed = failed or exc
    if failed:
        raise failed


def _run(conflist: Conflist, kind: str, command: str, call: Call, config: Record) -> bytes:
    """What a plugin prints. It is in a session of its own, so that what it has started goes with it."""
    path = conflists.plugin_path(kind, call.folders)
    where = f"the CNI plugin '{kind}' of conflist '{conflist.name}'"
    try:
        process = subprocess.Popen(  # pylint: disable=consider-using-with,ansible-bad-function  # no AnsibleModule here
            [path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=call.environment(command),
            start_new_session=True,
            pass_fds=(call.lock,),
        )
    except OSError as exc:
        raise ToolError(f"{where} cannot be run: {exc.strerror}", "conflist", f"See to {path}.") from exc
    try:
        output, errors = process.communicate(json.dumps(config).encode(), timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        said = _end(process)
        raise ToolError(
            f"{where} did not finish {command} within {TIMEOUT:g} s{said}", "conflist", "See what it waits for."
        ) from None
    if process.returncode:
        raise ToolError(
            f"{where} failed at {command} ({process.returncode}): {_said(output, errors)}",
            "conflist",
            "See to what it says.",
        )
    return output


def _end(process: subprocess.Popen[bytes]) -> str:
    """End it and what it has started; what it had said until then."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        _output, errors = process.communicate(timeout=5)
        return f": {_tail(errors)}" if errors.strip() else ""
    return ""


def _said(output: bytes, errors: bytes) -> str:
    """Why a plugin failed: the error that it prints by the specification, and what else it says."""
    document = None
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(output)
    words = []
    if isinstance(document, dict) and document.get("msg"):
        words = [str(document[key])[:500] for key in ("msg", "details") if document.get(key)]
        words.append(f"code {document.get('code')}")
    elif output.strip():
        words = [_tail(output)]
    return "; ".join([*words, *([_tail(errors)] if errors.strip() else [])]) or "it said nothing"


def _tail(data: bytes) -> str:
    return " | ".join(data.decode(errors="replace").strip().splitlines()[-5:])[-1000:]
