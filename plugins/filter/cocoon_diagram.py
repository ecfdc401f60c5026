# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_diagram
short_description: Draw the networks of hosts
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - Makes a picture of networks, what they lead to, the VMs on them with their addresses, and published ports.
options:
  _input:
    description: Lists of networks, as M(cocoon.microvm.cocoon_network_info) returns them, by the names of the hosts.
    type: dict
    required: true
  format:
    description: A flowchart of Mermaid, as text, or an image.
    type: str
    choices: [mermaid, svg]
    default: mermaid
seealso:
  - module: cocoon.microvm.cocoon_network_info
"""

EXAMPLES = r"""
---
- name: Look at the networks
  cocoon.microvm.cocoon_network_info:
  register: found

- name: Draw them
  ansible.builtin.copy:
    content: "{{ {inventory_hostname: found.networks} | cocoon.microvm.cocoon_diagram('svg') }}"
    dest: "{{ playbook_dir }}/networks.svg"
    mode: "0644"
  delegate_to: localhost
"""

RETURN = r"""
---
_value:
  description: The picture.
  type: str
"""

import typing as t
from collections.abc import Mapping

from ansible.errors import AnsibleFilterError

from ansible_collections.cocoon.microvm.plugins.plugin_utils import _diagram


def cocoon_diagram(networks: t.Any, format: str = "mermaid") -> str:
    """Draw the networks of hosts."""
    writers = {"mermaid": _diagram.mermaid, "svg": _diagram.svg}
    if format not in writers:
        raise AnsibleFilterError(f"cocoon_diagram knows no format '{format}', only {', '.join(writers)}")
    if not isinstance(networks, Mapping):
        raise AnsibleFilterError("cocoon_diagram takes a dictionary of lists of networks, by the names of the hosts")
    try:
        hosts = [_diagram.host_of(str(name), found) for name, found in networks.items()]
    except (KeyError, TypeError, AttributeError) as exc:
        raise AnsibleFilterError(f"cocoon_diagram takes what cocoon_network_info returns, not this: {exc}") from exc
    return writers[format](hosts)


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_diagram": cocoon_diagram}
