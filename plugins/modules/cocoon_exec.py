#!/usr/bin/python
# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cocoon_exec
short_description: Run a command inside microVMs
version_added: 0.1.0
author:
  - The cocoon.microvm authors (@cocoonstack)
description:
  - Runs a command in one or many guests of the target host, as root, through the agents inside them. They need no
    network and no ssh.
  - The agent may be qemu-guest-agent, the helper in images of the role P(cocoon.microvm.image#role), or the agent of
    published Cocoon images. Which one answers is found out.
  - A guest's command fails for itself. The task fails in the end if one did, and tells what came of each.
extends_documentation_fragment:
  - cocoon.microvm.attributes
  - cocoon.microvm.store
attributes:
  check_mode:
    details:
      - Says in which guests the command would run. O(creates) and O(removes) are looked at in the guests.
  diff_mode:
    support: none
    details:
      - What a command changes is not known.
options:
  names:
    description:
      - Names of the VMs. They have to run.
    type: list
    elements: str
    required: true
    aliases: [name]
  argv:
    description:
      - The program and its arguments, as they are, without a shell. A program without a slash is looked for along
        V(PATH).
    type: list
    elements: str
  shell:
    description:
      - A line for V(/bin/sh) in the guest.
    type: str
  stdin:
    description:
      - What the command reads. Nothing where omitted.
      - At most 4 MiB where the agent is not Cocoon's.
    type: str
  env:
    description:
      - Environment variables, beside V(PATH), V(HOME), V(USER), V(LOGNAME) and V(LANG), which are always there.
    type: dict
  creates:
    description:
      - A path in the guest. Where it exists, the command does not run.
    type: str
  removes:
    description:
      - A path in the guest. Where it does not exist, the command does not run.
    type: str
  timeout:
    description:
      - Seconds that the command has. It is killed then.
    type: int
    default: 60
  agent_timeout:
    description:
      - Seconds that the agent has to answer, a guest that is still booting included.
    type: int
    default: 30
  parallel:
    description:
      - In how many guests at once.
    type: int
    default: 16
notes:
  - What goes to O(stdin) and O(env) stands in no log and in no list of processes of the host, and is left out of what
    the task returns. Set C(no_log) on the task if the command prints it.
  - Of each of the command's outputs 16 MiB are kept; 4 MiB by the helper in images of the role.
seealso:
  - module: cocoon.microvm.cocoon_vm
"""

EXAMPLES = r"""
- name: What runs in three guests
  cocoon.microvm.cocoon_exec:
    names: [web1, web2, web3]
    argv: [ps, aux]
  register: ran

- name: The first line of each
  ansible.builtin.debug:
    msg: "{{ item.name }}: {{ item.stdout_lines | first }}"
  loop: "{{ ran.results }}"
  loop_control:
    label: "{{ item.name }}"

- name: Give a database its password, once
  cocoon.microvm.cocoon_exec:
    name: db1
    shell: read -r password && printf %s "$password" | initialise --password-file /dev/stdin && touch /var/lib/db/done
    stdin: "{{ db_password }}"
    creates: /var/lib/db/done
"""

RETURN = r"""
results:
  description: What came of the command in each guest, in the order of O(names).
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The VM.
      type: str
    changed:
      description: Whether the command ran, or would run.
      type: bool
    skipped:
      description: Whether it did not run because of O(creates) or O(removes).
      type: bool
    rc:
      description: Its exit code; 128 and more where a signal ended it; null where it did not run.
      type: int
    stdout:
      description: What it printed.
      type: str
    stderr:
      description: What it printed as errors.
      type: str
    stdout_lines:
      description: The lines of it.
      type: list
      elements: str
    stderr_lines:
      description: The lines of it.
      type: list
      elements: str
    truncated:
      description: Whether it printed more than is kept.
      type: bool
    seconds:
      description: How long it ran.
      type: float
    agent:
      description: The agent that answered, V(qemu-guest-agent) or V(cocoon-agent).
      type: str
    failed:
      description: Whether something went wrong in this guest.
      type: bool
    msg:
      description: What went wrong, or why it was skipped.
      type: str
    error:
      description: The kind of error, where the command did not run to its end.
      type: str
failed_vms:
  description: The VMs in which something went wrong.
  returned: failure
  type: list
  elements: str
rc:
  description: As in RV(results), where O(names) has one VM.
  returned: one VM
  type: int
stdout:
  description: As in RV(results), where O(names) has one VM.
  returned: one VM
  type: str
stderr:
  description: As in RV(results), where O(names) has one VM.
  returned: one VM
  type: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cocoon.microvm.plugins.module_utils._api import guests
from ansible_collections.cocoon.microvm.plugins.module_utils._argspec import store_options
from ansible_collections.cocoon.microvm.plugins.module_utils._module import run_module


class ExecModule(AnsibleModule):
    """A module whose answer does not name what the command reads and has around it, however it ends."""

    def exit_json(self, **kwargs: t.Any) -> None:
        self._forget()
        super().exit_json(**kwargs)

    def fail_json(self, msg: str, **kwargs: t.Any) -> None:
        self._forget()
        super().fail_json(msg, **kwargs)

    def _forget(self) -> None:
        self.params.update(stdin=None, env=None)


def main() -> None:
    spec = {
        "names": {"type": "list", "elements": "str", "required": True, "aliases": ["name"]},
        "argv": {"type": "list", "elements": "str"},
        "shell": {"type": "str"},
        "stdin": {"type": "str"},
        "env": {"type": "dict"},
        "creates": {"type": "str"},
        "removes": {"type": "str"},
        "timeout": {"type": "int", "default": 60},
        "agent_timeout": {"type": "int", "default": 30},
        "parallel": {"type": "int", "default": 16},
        **store_options(),
    }
    module = ExecModule(
        argument_spec=spec,
        supports_check_mode=True,
        mutually_exclusive=[("argv", "shell")],
        required_one_of=[("argv", "shell")],
        # Its arguments go to no log.
        no_log=True,
    )
    run_module(module, guests.run)


if __name__ == "__main__":
    main()
