# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
name: cocoon_pending
short_description: VMs that need an image or network that is not there yet
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - In check mode, images and networks that a real run would make are not there, and VMs that need them cannot be
    planned. This names these VMs.
options:
  _input:
    description: VM definitions, as P(cocoon.microvm.cocoon_definitions#filter) gives them.
    type: list
    elements: dict
    required: true
  images:
    description: Names of images.
    type: list
    elements: str
    required: true
  networks:
    description: Names of networks.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
---
- name: Show who waits for the image tiny
  ansible.builtin.debug:
    msg: "{{ [{'name': 'web1', 'image': 'tiny'}] | cocoon.microvm.cocoon_pending(['tiny'], []) }}"
"""

RETURN = r"""
---
_value:
  description: The names of the VMs.
  type: list
  elements: str
"""

import typing as t

from ansible_collections.cocoon.microvm.plugins.plugin_utils._definitions import Definition, needing


def cocoon_pending(definitions: list[Definition], images: list[str], networks: list[str]) -> list[str]:
    """Names of VMs that need one of the images or networks."""
    return needing(definitions, images, networks)


class FilterModule:
    """The filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"cocoon_pending": cocoon_pending}
