# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: guest
short_description: Run tasks inside microVMs that have no network and no ssh
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - Runs tasks in a guest through the agent inside it, by way of its hypervisor host, over that host's own connection.
  - Tasks run as root. With C(become) they run as another user.
  - Nothing is installed on the hypervisor host, and nothing is left there.
requirements:
  - Python 3.9 or newer, and root, on the hypervisor host
  - an agent in the guest
options:
  host:
    description: The hypervisor, as the inventory calls it.
    type: str
    required: true
    vars:
      - name: cocoon_host
  vm:
    description: The name of the VM; that of the inventory host where omitted.
    type: str
    vars:
      - name: cocoon_guest_vm
  remote_addr:
    description: The inventory host.
    type: str
    default: inventory_hostname
    vars:
      - name: inventory_hostname
  agent_timeout:
    description: Seconds that the agent has to answer.
    type: int
    default: 30
    vars:
      - name: cocoon_guest_agent_timeout
  command_timeout:
    description: Seconds that a command has. It is killed then.
    type: int
    default: 3600
    vars:
      - name: cocoon_guest_command_timeout
  max_size:
    description: Bytes that a file may have which is fetched or put.
    type: int
    default: 268435456
    vars:
      - name: cocoon_guest_max_size
"""

import os
import shlex
import typing as t

from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.connection import ConnectionBase
from ansible.plugins.loader import become_loader, connection_loader
from ansible.utils.display import Display

from ansible_collections.cocoon.microvm.plugins.plugin_utils import _bridge
from ansible_collections.cocoon.microvm.plugins.plugin_utils._connections import LOCAL

display = Display()
# Where the store of the hypervisor is, by the variables that the roles know.
PLACES = {"root_dir": "cocoon_root_dir", "run_dir": "cocoon_run_dir", "log_dir": "cocoon_log_dir"}
PYTHON = "/usr/bin/python3"
# Ansible waits for its prompts there; root is asked for nothing.
SHELL = "/bin/sh"


class Connection(ConnectionBase):
    """A connection through the connection of another host."""

    transport = "cocoon.microvm.guest"
    has_pipelining = True
    has_tty = False

    def __init__(self, play_context: t.Any, *args: t.Any, **kwargs: t.Any) -> None:
        super().__init__(play_context, *args, **kwargs)
        self._connected: bool = False
        self._hosts: t.Mapping[str, t.Any] = {}
        self._host: t.Any = None
        self._host_variables: t.Mapping[str, t.Any] = {}

    def _resolve_option_variables(self, variables: t.Any, templar: t.Any) -> t.Any:
        """Ours, and the variables of the other hosts: one of them is our way."""
        self._hosts = variables.get("hostvars") or {}
        return super()._resolve_option_variables(variables, templar)

    def _connect(self) -> Connection:
        if self._connected:
            return self
        name = self.get_option("host")
        if name not in self._hosts:
            raise AnsibleConnectionFailure(f"cocoon_host: the inventory has no host '{name}'")
        self._host_variables = self._hosts[name]
        self._host = self._connection_of(name, self._host_variables)
        self._connected = True
        return self

    def _connection_of(self, name: str, variables: t.Mapping[str, t.Any]) -> t.Any:
        """The host's own connection, with the way to become root there."""
        kind = variables.get("ansible_connection") or "ssh"
        if kind == self.transport:
            raise AnsibleConnectionFailure(f"'{name}' is reached through a guest itself")
        context = self._play_context.copy()
        context.connection, context.remote_addr = kind, variables.get("ansible_host") or name
        found = connection_loader.get(kind, context, task_uuid=None, ansible_playbook_pid=str(os.getppid()))
        if found is None:
            raise AnsibleConnectionFailure(f"there is no connection plugin '{kind}', which '{name}' has")
        given = {"inventory_hostname": name, "ansible_host": name, **_of(variables, "connection", found._load_name)}
        # Else local gives a command that asks for a password a terminal to read from, and it never sees our request.
        found.set_options(var_options=given, direct={"pipelining": True})
        if _needs_root(found, kind, variables):
            method = variables.get("ansible_become_method") or "sudo"
            become = become_loader.get(method)
            if become is None:
                raise AnsibleConnectionFailure(f"there is no become plugin '{method}', which '{name}' has")
            become.set_options(var_options=_of(variables, "become", become._load_name))
            found.set_become_plugin(become)
        return found

    def _ask(self, data: bytes = b"", **request: t.Any) -> tuple[dict[str, t.Any], bytes]:
        """Have one request answered by the guest, through the host."""
        self._connect()
        asked = {
            "vm": self.get_option("vm") or self.get_option("remote_addr"),
            "agent_timeout": self.get_option("agent_timeout"),
            "timeout": self.get_option("command_timeout"),
            **{option: self._host_variables.get(variable) for option, variable in PLACES.items()},
            **request,
        }
        python = self._host_variables.get("ansible_python_interpreter") or PYTHON
        if str(python).startswith("auto"):
            python = PYTHON
        command = shlex.join([str(python), "-I", "-c", _bridge.START])
        if self._host.become is not None:
            command = self._host.become.build_become_command(command, self._host._shell)
        code, output, errors = self._host.exec_command(command, in_data=_bridge.message(asked, data), sudoable=True)
        try:
            head, content = _bridge.parse(output)
        except ValueError:
            words = (errors or output).decode(errors="replace").strip()[-500:]
            raise AnsibleConnectionFailure(
                f"the hypervisor '{self.get_option('host')}' cannot ask the guest (exit code {code}): {words}"
            ) from None
        if "error" in head:
            # A guest that answered is reached: what it cannot do fails the task, and the host goes on.
            raise (AnsibleError if head.get("reached") else AnsibleConnectionFailure)(str(head["error"]))
        return head, content

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Run a command in the guest."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        display.vvv(f"EXEC {cmd}", host=self.get_option("remote_addr"))
        head, printed = self._ask(in_data or b"", do="exec", argv=[SHELL, "-c", cmd])
        return int(head["rc"]), printed[: head["stdout"]], printed[head["stdout"] :]

    def put_file(self, in_path: str, out_path: str) -> None:
        """Copy a file into the guest."""
        super().put_file(in_path, out_path)
        if not os.path.exists(in_path):
            raise AnsibleFileNotFound(f"there is no file '{in_path}'")
        if os.path.getsize(in_path) > self.get_option("max_size"):
            raise AnsibleError(f"'{in_path}' has more than {self.get_option('max_size')} bytes (cocoon_guest_max_size)")
        with open(in_path, "rb") as stream:
            self._ask(stream.read(), do="put", path=out_path)

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Copy a file out of the guest."""
        super().fetch_file(in_path, out_path)
        _head, content = self._ask(do="fetch", path=in_path, limit=self.get_option("max_size"))
        with open(out_path, "wb") as stream:
            stream.write(content)

    def close(self) -> None:
        """Let go of the host."""
        if self._host is not None:
            self._host.close()
            self._host = None
        self._connected = False

    def reset(self) -> None:
        """The same."""
        self.close()


def _of(variables: t.Mapping[str, t.Any], kind: str, plugin: str) -> dict[str, t.Any]:
    """Those of a host's variables that a plugin takes."""
    return {name: variables[name] for name in C.config.get_plugin_vars(kind, plugin) if name in variables}


def _needs_root(connection: t.Any, kind: str, variables: t.Mapping[str, t.Any]) -> bool:
    """Whether who logs in to the host, as far as is known, is somebody else."""
    given = variables.get("ansible_become")
    if given is not None:
        return boolean(given)
    if kind in LOCAL:
        return os.geteuid() != 0
    try:
        return bool(connection.get_option("remote_user") != "root")
    except KeyError:  # it has no such option
        return True
