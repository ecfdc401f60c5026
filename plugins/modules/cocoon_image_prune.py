#!/usr/bin/python
# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: cocoon_image_prune
short_description: Remove images of microVMs that nothing uses
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - Removes the images in the store of a host that no VM and no snapshot uses, whether they have names or not, and
    what interrupted pulls, downloads and imports have kept. The host's default kernel stays.
  - In check mode it says exactly what would go, and how much space that gives back.
options:
  keep:
    description:
      - Names or digests of images that stay; C(*), C(?) and C([...]) stand for other characters. A
        warning says which of them no image has.
    type: list
    elements: str
    default: []
  owner:
    description:
      - Only images of this owner; those of all owners where omitted.
    type: str
  older_than:
    description:
      - Only images whose record has not changed for so many seconds. A name that comes or goes is a change.
    type: int
    default: 0
  downloads:
    description:
      - Remove what interrupted pulls from registries, downloads by URL and imports have kept, too. Those under way are
        left alone.
    type: bool
    default: true
extends_documentation_fragment:
  - cocoon.microvm.store
  - cocoon.microvm.attributes
seealso:
  - module: cocoon.microvm.cocoon_image
  - module: cocoon.microvm.cocoon_image_info
"""

EXAMPLES = r"""
---
- name: Remove what nothing uses, but for our own base images
  cocoon.microvm.cocoon_image_prune:
    keep:
      - base-*
    older_than: 604800

- name: What would go
  cocoon.microvm.cocoon_image_prune:
  check_mode: true
  register: unused
"""

RETURN = r"""
images:
  description: Images that were removed, or would be in check mode.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Digest by which the image was known.
      type: str
      returned: success
      sample: sha256:3c9d8f2b1f0a4f1c2f4ab4c56b1d1bfa0a6c1f4d9b2f7a8d5e6c7b8a9f0e1d2c
    names:
      description: The names that it had.
      type: list
      elements: str
      returned: success
      sample: [debian]
    size:
      description: Bytes that its files took, with those that other images still use.
      type: int
      returned: success
      sample: 104857600
downloads:
  description:
    - What had been interrupted, and had kept something that was removed.
    - A pull by the hex digest of its manifest; a download by its URL without the query, or by a hash where nothing
        says which it was; an import by the image's digest, or by the name of the folder that it worked in.
  returned: success
  type: list
  elements: str
  sample: [https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2]
reclaimed:
  description: Bytes that were given back, or would be.
  returned: success
  type: int
  sample: 94371840
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cocoon.microvm.plugins.module_utils._api import images
from ansible_collections.cocoon.microvm.plugins.module_utils._argspec import store_options
from ansible_collections.cocoon.microvm.plugins.module_utils._module import run_module

OPTIONS = {
    "keep": {"type": "list", "elements": "str", "default": []},
    "owner": {"type": "str"},
    "older_than": {"type": "int", "default": 0},
    "downloads": {"type": "bool", "default": True},
}


def main() -> None:
    spec = {**OPTIONS, **store_options()}
    run_module(AnsibleModule(argument_spec=spec, supports_check_mode=True), images.prune)


if __name__ == "__main__":
    main()
