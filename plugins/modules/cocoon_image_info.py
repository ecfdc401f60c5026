#!/usr/bin/python
# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: cocoon_image_info
short_description: Look at images of microVMs
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - Gives the images in the store of a host, with who uses them, what they take, and what they share.
options:
  name:
    description:
      - Name or digest of one image; all of them where omitted.
    type: str
extends_documentation_fragment:
  - cocoon.microvm.store
  - cocoon.microvm.attributes.info
seealso:
  - module: cocoon.microvm.cocoon_image
"""

EXAMPLES = r"""
---
- name: All images
  cocoon.microvm.cocoon_image_info:
  register: images

- name: Who uses the image debian
  cocoon.microvm.cocoon_image_info:
    name: debian
  register: debian
"""

RETURN = r"""
images:
  description:
    - The images, by name; an empty list if there are none, or none of that name.
    - Records as M(cocoon.microvm.cocoon_image) gives them, with more beside.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Digest by which the image is known.
      type: str
      returned: success
      sample: sha256:3c9d8f2b1f0a4f1c2f4ab4c56b1d1bfa0a6c1f4d9b2f7a8d5e6c7b8a9f0e1d2c
    name:
      description: The name under which it was imported, or another; empty if none is left.
      type: str
      returned: success
      sample: debian
    state:
      description: V(error) of an image whose record is damaged; of it little else is known. Others have none.
      type: str
      returned: if it is damaged
      sample: error
    reason:
      description: What is wrong with it and what to do.
      type: str
      returned: if it is damaged
      sample: The record is missing. Put it back from a backup, or import the image again.
    names:
      description: All of its names.
      type: list
      elements: str
      returned: success
      sample: [debian]
    size:
      description: Bytes that its files take.
      type: int
      returned: success
      sample: 104857600
    shared_size:
      description: Bytes of them that other images use as well, and that stay if this one goes.
      type: int
      returned: success
      sample: 0
    users:
      description: The VMs and snapshots that use it.
      type: list
      elements: dict
      returned: success
      sample:
        - {id: 6p2hq7w3ovx4n5m6k7j2r3s4t5, description: vm web1}
    blobs:
      description:
        - Its files. The kind is V(erofs) for a layer, V(qcow2) or V(raw) for a disk, and V(boot) for kernel and initrd.
      type: list
      elements: dict
      returned: success
      sample:
        - digest: sha256:3c9d8f2b1f0a4f1c2f4ab4c56b1d1bfa0a6c1f4d9b2f7a8d5e6c7b8a9f0e1d2c
          kind: erofs
          size: 94371840
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cocoon.microvm.plugins.module_utils._api import image_info
from ansible_collections.cocoon.microvm.plugins.module_utils._argspec import store_options
from ansible_collections.cocoon.microvm.plugins.module_utils._module import run_module


def main() -> None:
    spec = {"name": {"type": "str"}, **store_options()}
    run_module(AnsibleModule(argument_spec=spec, supports_check_mode=True), image_info.info)


if __name__ == "__main__":
    main()
