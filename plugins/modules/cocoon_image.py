#!/usr/bin/python
# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: cocoon_image
short_description: Manage images of microVMs
version_added: 0.1.0
author: The cocoon.microvm authors (@cocoonstack)
description:
  - Takes images into the store of a host, from a registry, a tar of a root file system, an OCI layout or archive, an
    archive of C(docker save), or a disk. What a file is, its content says and not its name.
  - An image is known by a digest. The same image under two names, or the same layer in two images, is kept once.
  - A root file system boots by the kernel and initrd that it brings in C(/boot), or by those given with
    O(kernel) and O(initrd), or else by the host's default kernel, as container images do. A disk boots by itself,
    through the BIOS.
  - A file that has not changed since the last run is not read again; its size, inode and times tell.
  - Sources are taken for hostile. Archives that reach out of their own tree, disks that refer to other files, and
    documents with wrong digests are refused, and nothing of them is kept.
requirements:
  - mkfs.erofs (erofs-utils) 1.5 or newer, for root file systems
  - zstd, for what is compressed with it
  - qemu-img (qemu-utils), for qcow2 and VMDK
  - skopeo 1.9 or newer, for registries
  - jsonschema (Python), for container images
extends_documentation_fragment:
  - cocoon.microvm.image
  - cocoon.microvm.store
  - cocoon.microvm.store.progress
  - cocoon.microvm.attributes
seealso:
  - module: cocoon.microvm.cocoon_image_info
  - module: cocoon.microvm.cocoon_image_prune
  - module: cocoon.microvm.cocoon_vm
"""

EXAMPLES = r"""
---
- name: An image from a registry
  cocoon.microvm.cocoon_image:
    name: docker.io/library/nginx:1.27

- name: The same under a name of our own, and moved when the tag moves
  cocoon.microvm.cocoon_image:
    name: web
    source: docker://nginx:1.27
    pull: always

- name: An image of a private registry with a certificate of its own
  cocoon.microvm.cocoon_image:
    name: registry.example.com:5000/team/app:v2
    registry_user: ci
    registry_password: "{{ vault_registry_password }}"
    ca_path: /etc/ssl/example-ca.pem

- name: An image from a tar with a kernel in /boot
  cocoon.microvm.cocoon_image:
    name: debian
    source: /srv/images/debian.tar.zst
    checksum: sha256:3c9d8f2b1f0a4f1c2f4ab4c56b1d1bfa0a6c1f4d9b2f7a8d5e6c7b8a9f0e1d2c

- name: An image from a tar without one
  cocoon.microvm.cocoon_image:
    name: app
    source: /srv/images/app.tar
    kernel: /boot/vmlinuz-6.1.0-13-cloud-amd64
    initrd: /srv/images/initrd.img

- name: An image out of an OCI layout
  cocoon.microvm.cocoon_image:
    name: ubuntu:24.04
    source: /srv/images/layout
    tag: "24.04"

- name: A cloud image, as Debian publishes it
  cocoon.microvm.cocoon_image:
    name: debian:12
    source: https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2
    checksum: https://cloud.debian.org/images/cloud/bookworm/latest/SHA512SUMS

- name: A disk
  cocoon.microvm.cocoon_image:
    name: appliance
    source: /srv/images/appliance.qcow2
    labels:
      team: edge

- name: Remove it
  cocoon.microvm.cocoon_image:
    name: appliance
    state: absent
"""

RETURN = r"""
image:
  description: The image's record; V(null) if it is absent, or in check mode if it has not been imported yet.
  returned: success
  type: dict
  contains:
    id:
      description: Digest by which the image is known.
      type: str
      returned: success
      sample: sha256:3c9d8f2b1f0a4f1c2f4ab4c56b1d1bfa0a6c1f4d9b2f7a8d5e6c7b8a9f0e1d2c
    digest:
      description: The same.
      type: str
      returned: success
      sample: sha256:3c9d8f2b1f0a4f1c2f4ab4c56b1d1bfa0a6c1f4d9b2f7a8d5e6c7b8a9f0e1d2c
    name:
      description: The name under which it was imported, or another if that is gone.
      type: str
      returned: success
      sample: debian
    names:
      description: All of its names.
      type: list
      elements: str
      returned: success
      sample: [debian]
    type:
      description: V(oci) for layers that boot with a kernel, V(cloudimg) for a disk.
      type: str
      returned: success
      sample: oci
    size:
      description: Bytes that its files take in the store.
      type: int
      returned: success
      sample: 104857600
    platform:
      description: What it runs on.
      type: str
      returned: success
      sample: linux/amd64
    created:
      description: When it was built, if an OCI image says so.
      type: str
      returned: when known
      sample: "2026-03-01T09:30:00Z"
    layers:
      description: Hex digests of its layers, bottom first.
      type: list
      elements: str
      returned: success
      sample: [3c9d8f2b1f0a4f1c2f4ab4c56b1d1bfa0a6c1f4d9b2f7a8d5e6c7b8a9f0e1d2c]
    boot:
      description: Its kernel and initrd; V(null) for a disk, and for what boots with the host's default kernel.
      type: dict
      returned: success
      sample:
        kernel_path: /var/lib/cocoon-microvm/images/boot/77d0/vmlinuz
        initrd_path: /var/lib/cocoon-microvm/images/boot/77d0/initrd.img
    config:
      description: What it runs where it boots with the host's default kernel.
      type: dict
      returned: for an OCI image
      sample: {entrypoint: [], cmd: [nginx, -g, daemon off;], env: [], user: "", working_dir: "", stop_signal: SIGQUIT}
    disk:
      description:
        - Hex digest, format and virtual size in bytes of a disk, and C(firmware), a list of what it is made to be
          booted by, V(uefi) and V(bios); else V(null).
      type: dict
      returned: success
      sample: null
    features:
      description: Which login options of a VM the image takes.
      type: list
      elements: str
      returned: success
      sample: [user, password, ssh_keys]
    source:
      description:
        - Where it came from at its first import, what kind that was, and its digest.
        - Of a registry also the full name as C(reference), and as C(reference_digest) what that led to, which is an
          index if the image is there for several platforms.
      type: dict
      returned: success
      sample:
        path: /srv/images/debian.tar.zst
        kind: tar
        digest: sha256:3c9d8f2b1f0a4f1c2f4ab4c56b1d1bfa0a6c1f4d9b2f7a8d5e6c7b8a9f0e1d2c
    owner:
      description: Who it belongs to.
      type: str
      returned: success
      sample: demo
    labels:
      description: The labels.
      type: dict
      returned: success
      sample: {}
    created_at:
      description: When it was imported (RFC 3339).
      type: str
      returned: success
      sample: "2026-03-01T09:30:00.000000Z"
    updated_at:
      description: When its record last changed (RFC 3339).
      type: str
      returned: success
      sample: "2026-03-01T09:30:00.000000Z"
deferred:
  description: Whether nothing was done because of O(defer_above).
  returned: when it is so
  type: bool
  sample: true
actions:
  description:
    - What was done, or would be in check mode; of V(import), V(tag), V(update), V(untag) and V(remove).
  returned: success
  type: list
  elements: str
  sample: [import, tag]
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cocoon.microvm.plugins.module_utils._api import images
from ansible_collections.cocoon.microvm.plugins.module_utils._argspec import (
    IMAGE_RULES,
    image_options,
    progress_options,
    store_options,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._module import run_module


def main() -> None:
    spec = {**image_options(), **progress_options(), **store_options()}
    run_module(AnsibleModule(argument_spec=spec, supports_check_mode=True, **IMAGE_RULES), images.converge)


if __name__ == "__main__":
    main()
