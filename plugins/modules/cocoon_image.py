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
options:
  name:
    description:
      - Name of the image, unique in its store, by which VMs refer to it.
      - Letters, digits and any of V(._-/:@), at most 255 characters, beginning with a letter or digit.
      - Without O(source), a name that begins with a registry, like V(docker.io/library/nginx:1.27) or
        V(ghcr.io/team/app@sha256:...), is pulled from there.
      - With O(state=absent), also the digest of an image (C(sha256:) and 64 hex digits), for all of its names.
    type: str
    required: true
  state:
    description:
      - V(present) imports the image if it is not in the store, and gives it the name.
      - If the name leads to another image, it moves. The image that had it stays while it has other names, or VMs or
        snapshots that use it, and is removed otherwise.
      - V(absent) takes the name away, and removes the image with its last name. That is refused while a VM or
        snapshot uses it.
    type: str
    choices: [present, absent]
    default: present
  source:
    description:
      - Path on the target of a tar (plain, or compressed with gzip, zstd, xz or bzip2), a directory with an OCI
        layout, an archive of one or of C(docker save), or a qcow2 or raw disk, or a VMDK disk in one file, which is
        made a qcow2. Disks may be compressed as well, or alone in a tar, as in an OVA.
      - Or V(docker://) and the name of an image in a registry, as Docker and Podman write it. V(docker://nginx) is
        V(docker://docker.io/library/nginx:latest).
      - Or an V(https://) or V(file://) URL of such a file; V(http://) only with O(checksum). A download that broke off
        goes on where it ended.
      - May be omitted for an image that is in the store, or whose O(name) says its registry.
    type: path
  kernel:
    description:
      - Path on the target of a kernel to boot a root file system with, instead of any that it brings.
      - Belongs together with O(initrd). The image has a digest made of all three.
    type: path
  initrd:
    description:
      - Path on the target of the initrd for O(kernel).
    type: path
  checksum:
    description:
      - C(sha256:) and 64 hex digits that O(source) must have. For an OCI layout that is the digest of the image's
        manifest; for an archive, either that or the digest of the file; for an image in a registry, that of its
        manifest or of the index that it is in.
      - For a file also C(sha512:) and 128 hex digits, or the V(https://) URL of a list such as C(SHA256SUMS), in which
        the name of the file is looked up.
    type: str
  tag:
    description:
      - Which image of an OCI layout, or of an archive with several, by its full name (V(nginx:1.27), which is the same
        as V(docker.io/library/nginx:1.27)), by its tag alone, or by its digest.
      - Names are C(io.containerd.image.name), C(org.opencontainers.image.ref.name), and the C(RepoTags) of
        C(docker save). What fits several images is refused.
    type: str
  pull:
    description:
      - When to ask the registry for an image, or the server of a URL.
      - V(missing) if the store has no image of that O(name), or one that came from another O(source). Otherwise no
        connection is made.
      - V(always) to see whether the tag has moved, or the file behind the URL has changed; if not, nothing is
        transferred and nothing changes. An image that is named by its digest is not asked for again.
      - V(never) not at all. The store must have an image of that O(name).
    type: str
    choices: [missing, always, never]
    default: missing
  platform:
    description:
      - Which image of a multi-platform one to take, as V(linux/arm64) or V(linux/arm/v7); that for the host where
        omitted.
      - Of the variants of V(linux/amd64), the best for a CPU with x86-64-v2 is taken, as every VM has that. With
        V(linux/amd64/v3), what needs more is taken as well.
    type: str
  registry_user:
    description:
      - User of the registry, or of the O(mirror) if there is one.
    type: str
  registry_password:
    description:
      - The password that belongs to O(registry_user). It is in no file, argument or environment variable of ours.
        Ansible itself keeps the arguments of a task in a folder that only its user can read, while a task runs without
        pipelining or shows its progress.
    type: str
  auth_file:
    description:
      - Path on the target of a file with credentials, as C(podman login --authfile) and C(docker login) make it, in
        place of O(registry_user). Credential helpers that it names are not run.
    type: path
    aliases: [authfile]
  ca_path:
    description:
      - Path on the target of the certificate of the registry's or server's own authority (PEM), or of a directory of
        such.
        Authorities that the host trusts count as well.
    type: path
  validate_certs:
    description:
      - Whether the registry or server must have a certificate that is accepted. V(false) allows plain HTTP, too;
        anybody on the way can then read the credentials and choose the image.
    type: bool
    default: true
    aliases: [tls_verify]
  mirror:
    description:
      - Host of a mirror, with port and path if it has such (V(mirror.example.com:5000/hub)), that is asked in place
        of the registry. The image keeps its name.
      - Mirrors in the host's C(/etc/containers/registries.conf) count as well.
    type: str
  max_size:
    description:
      - The largest file to take, by URL or path, such as V(5G); V(20G) where omitted. It holds for a disk that is
        compressed in it, or made of it, as well. Not for OCI layouts and registries.
    type: str
  owner:
    description:
      - Who the image belongs to; the store's ID where omitted at the import.
      - Where given, another owner's image is changed or removed only with O(force). A further name on it changes
        nothing of it and is always allowed.
    type: str
  labels:
    description:
      - Labels of your own. The dictionary is complete.
    type: dict
  force:
    description:
      - Change or remove an image of another owner.
      - Read O(source) again, even if its size and times are as they were.
      - An image that is used is not removed with this either.
    type: bool
requirements:
  - mkfs.erofs (erofs-utils) 1.5 or newer, for root file systems
  - zstd, for what is compressed with it
  - qemu-img (qemu-utils), for qcow2 and VMDK
  - skopeo 1.9 or newer, for registries
  - jsonschema (Python), for container images
extends_documentation_fragment:
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

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cocoon.microvm.plugins.module_utils._argspec import progress_options, store_options
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._images.manager import Wanted, converge
from ansible_collections.cocoon.microvm.plugins.module_utils._module import run_module
from ansible_collections.cocoon.microvm.plugins.module_utils._progress import Progress
from ansible_collections.cocoon.microvm.plugins.module_utils._types import check_labels

OPTIONS = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "source": {"type": "path"},
    "kernel": {"type": "path"},
    "initrd": {"type": "path"},
    "checksum": {"type": "str"},
    "tag": {"type": "str"},
    "pull": {"type": "str", "choices": ["missing", "always", "never"], "default": "missing"},
    "platform": {"type": "str"},
    "registry_user": {"type": "str"},
    "registry_password": {"type": "str", "no_log": True},
    "auth_file": {"type": "path", "aliases": ["authfile"]},
    "ca_path": {"type": "path"},
    "validate_certs": {"type": "bool", "default": True, "aliases": ["tls_verify"]},
    "mirror": {"type": "str"},
    "max_size": {"type": "str"},
    "owner": {"type": "str"},
    "labels": {"type": "dict"},
    "force": {"type": "bool"},
}


def body(module: AnsibleModule) -> dict[str, t.Any]:
    params = module.params
    wanted = Wanted(
        lock_timeout=params["lock_timeout"],
        progress=Progress.from_params(params),
        **{key: params[key] for key in OPTIONS if key != "labels"},
        labels=None if params["labels"] is None else check_labels(params["labels"]),
    )
    outcome = converge(Paths.from_params(params), wanted, module.check_mode)
    return {
        "changed": outcome.changed,
        "image": outcome.image,
        "actions": outcome.actions,
        "diff": outcome.diff,
        "warnings": outcome.warnings,
    }


def main() -> None:
    spec = {**OPTIONS, **progress_options(), **store_options()}
    module = AnsibleModule(
        argument_spec=spec,
        supports_check_mode=True,
        mutually_exclusive=[("registry_user", "auth_file")],
        required_together=[("registry_user", "registry_password")],
    )
    run_module(module, body)


if __name__ == "__main__":
    main()
