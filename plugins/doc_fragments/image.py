# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import textwrap

# One text for the options of cocoon_image and the suboptions of cocoon_site, as there is one argument spec.
_OPTIONS = r"""
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
"""


def _nested(option: str, text: str) -> str:
    """The options as suboptions of *option*, whose mentions of each other say so."""
    inner = text.replace("O(", f"O({option}[].")
    return f"options:\n  {option}:\n    suboptions:\n{textwrap.indent(inner, ' ' * 6)}"


class ModuleDocFragment:
    # The options of one image. Annotated, because the sanity test `yamllint` reads plain assignments as literals.
    DOCUMENTATION: str = f"options:\n{textwrap.indent(_OPTIONS, '  ')}"

    # The same as suboptions of C(images).
    LIST: str = _nested("images", _OPTIONS)
