#!/usr/bin/python
# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cocoon_snapshot
short_description: Manage snapshots of microVMs
version_added: 0.1.0
author:
  - The cocoon.microvm authors (@cocoonstack)
description:
  - Takes snapshots of microVMs, puts a VM back to one, moves them between hosts as archives, and removes them.
  - A snapshot of a running VM has its memory, its devices and all of its writable disks at one instant. The guest
    stands still meanwhile, which is as long as copying its used memory takes, and next to nothing where the store is
    on a file system with reflinks. With O(disks_only) it has the disks alone, of file systems that the guest's agent
    freezes for that instant (O(freeze)). A snapshot of a stopped VM has its disks.
  - New VMs are cloned from a snapshot with the option O(cocoon.microvm.cocoon_vm#module:snapshot) of
    M(cocoon.microvm.cocoon_vm) and M(cocoon.microvm.cocoon_vms).
options:
  name:
    description:
      - Name of the snapshot, unique in its store.
      - Letters, digits and any of V(._-:/), at most 63, beginning with a letter or digit.
    type: str
    required: true
  state:
    description:
      - V(present) takes the snapshot if there is none of that name, or with O(replace) in any case.
      - V(absent) removes it. Its clones stay, as they have links of their own to what they use of it.
      - V(restored) puts O(vm) back to where it stood, with its MACs, addresses and networks of now. The VM runs
        afterwards if the snapshot has its memory, or if it ran before. Always a change. The snapshot is verified and
        its disks are copied before the VM is touched.
      - V(exported) writes it to the archive O(path) on the target, unless that holds it already.
      - V(imported) registers the snapshot in the archive O(path) on the target under O(name), unless it is there.
    type: str
    choices: [present, absent, restored, exported, imported]
    default: present
  vm:
    description:
      - Name of the VM. Required to take a snapshot; of one that is there, it has to be the VM that it was taken of.
    type: str
  description:
    description:
      - What it is for, in your own words.
    type: str
  labels:
    description:
      - Labels of your own. The dictionary is complete.
    type: dict
  owner:
    description:
      - Who the snapshot belongs to; the store's ID where omitted when it is taken.
      - Where given, another owner's snapshot is changed or removed only with O(force).
    type: str
  keep:
    description:
      - With O(state=present), how many snapshots of the VM to keep, this one included. The oldest ones go, but none
        that has clones.
    type: int
  max_age:
    description:
      - With O(state=present), remove older snapshots of the VM, but none that has clones. Such as V(12h), V(7d), V(4w).
    type: str
  replace:
    description:
      - With O(state=present), take the snapshot anew if there is one of that name; always a change. The old one goes
        when the new one is whole, so there must be room for both.
      - O(description), O(labels) and O(owner) stay as they were where they are omitted. One that VMs were cloned from
        is not replaced.
    type: bool
  path:
    description:
      - The archive of O(state=exported) and O(state=imported), a file on the target.
    type: path
  local_path:
    description:
      - The archive of O(state=exported) and O(state=imported) as a file on the controller, instead of O(path). It is
        fetched from, or copied to, the target by the action of this module.
    type: path
  progress_file:
    description:
      - Where to write how far an export or import has got. The action of this module sets it, and shows what is there.
    type: path
  compression:
    description:
      - How to pack with O(state=exported). V(gzip) and V(none) are forms that the Go engine knows, too.
    type: str
    choices: [gzip, none, zstd]
    default: gzip
  checksum:
    description:
      - C(sha256:) and 64 hex digits that the archive of O(state=imported) must have.
    type: str
  disks_only:
    description:
      - With O(state=present), take the disks of a running VM and not its memory. What a snapshot has that is there is
        not looked at.
      - With O(state=restored) and O(state=imported), take the disks of a snapshot and leave the memory that it has.
        The VM, or a clone, boots from them.
      - A memory can only be taken up where the EROFS files of the image are the very same, which another version of
        erofs-utils makes otherwise, and where hypervisor and CPU suit it. The disks can be had anywhere.
    type: bool
  freeze:
    description:
      - With O(state=present) and O(disks_only=true), whether the file systems of a running guest stand still while its
        disks are copied. Its agent freezes them, which writes out all that they hold, and thaws them as soon as the
        guest goes on, whatever becomes of this task.
      - With V(auto) they do where an agent that can do it answers within two seconds; else the disks are as after a
        power cut, and RV(snapshot.frozen) is V(false). With V(required) nothing is taken then. With V(no) no agent is
        asked.
      - V(auto) where omitted. A snapshot with memory needs nothing like it, nor does one of a VM that does not run.
    type: str
    choices: [auto, required, 'no']
  restore_mode:
    description:
      - With O(state=restored), how the memory of the snapshot is taken up this time.
      - V(copy), which holds where omitted unless O(cocoon.microvm.cocoon_vm#module:restore_mode) of the VM says
        otherwise, copies it before the guest goes on. V(on_demand) lets the guest go on at once, and reads the
        snapshot's file as it needs it.
      - See O(cocoon.microvm.cocoon_vm#module:restore_mode) for what each takes and costs.
    type: str
    choices: [copy, on_demand]
  force:
    description:
      - Change or remove a snapshot of another owner.
      - With O(state=exported), replace a file at O(path) that is something else.
    type: bool
requirements:
  - zstd, to pack or unpack with it
  - jsonschema (Python), to import
extends_documentation_fragment:
  - cocoon.microvm.attributes
  - cocoon.microvm.store
  - cocoon.microvm.store.admission
seealso:
  - module: cocoon.microvm.cocoon_snapshot_info
  - module: cocoon.microvm.cocoon_vm
"""

EXAMPLES = r"""
- name: A golden VM, as it runs
  cocoon.microvm.cocoon_snapshot:
    name: warm
    vm: golden
    description: All services up, caches filled

- name: Thirty clones of it, within seconds
  cocoon.microvm.cocoon_vms:
    vms:
      - name: runner
        count: 30
        state: started
        snapshot: warm

- name: A nightly snapshot, of which a week is kept
  cocoon.microvm.cocoon_snapshot:
    name: "db1-{{ '%Y%m%d' | ansible.builtin.strftime }}"
    vm: db1
    keep: 7

- name: Something to go back to, taken anew before each upgrade
  cocoon.microvm.cocoon_snapshot:
    name: before-upgrade
    vm: web1
    replace: true

- name: A backup of a database's disks as it runs, which is not taken if they cannot be brought to rest
  cocoon.microvm.cocoon_snapshot:
    name: backup/db1
    vm: db1
    disks_only: true
    freeze: required
    replace: true

- name: Back to where it stood
  cocoon.microvm.cocoon_snapshot:
    name: before-upgrade
    vm: web1
    state: restored

- name: Into a file
  cocoon.microvm.cocoon_snapshot:
    name: warm
    state: exported
    path: /srv/export/warm.tar.zst
    compression: zstd

- name: Into a file on the controller
  cocoon.microvm.cocoon_snapshot:
    name: warm
    state: exported
    local_path: ~/snapshots/warm.tar.gz

- name: Out of it, on another host
  cocoon.microvm.cocoon_snapshot:
    name: warm
    state: imported
    path: /srv/import/warm.tar.zst
"""

RETURN = r"""
snapshot:
  description: The record; V(null) if it is absent, or in check mode if it has not been taken yet.
  returned: success
  type: dict
  contains:
    id:
      description: ID of the snapshot.
      type: str
      sample: 3kq5n7c2v4m6x8z0b1d9f5h7tj
    name:
      description: Its name.
      type: str
      sample: warm
    description:
      description: What it is for.
      type: str
      sample: All services up
    vm:
      description: Name of the VM that it was taken of.
      type: str
      sample: golden
    parent:
      description: ID of the snapshot that this VM was cloned from, else V(null).
      type: str
      sample: null
    kind:
      description: V(full) with memory, V(disks) without.
      type: str
      sample: full
    frozen:
      description:
        - Whether the file systems of the running guest stood still when its disks were copied, by its agent's word.
        - V(null) with memory, of a VM that did not run, and where nobody knows.
      type: bool
      sample: true
    size:
      description: Bytes that it takes on disk; less where the file system shares blocks.
      type: int
      sample: 157286400
    files:
      description: Its files, with size, allocated bytes and time of change.
      type: dict
      sample: {}
    paused_seconds:
      description: How long the guest stood still.
      type: float
      sample: 0.24
    seconds:
      description: How long it took in all.
      type: float
      sample: 0.6
    clones:
      description: Names of the VMs that were cloned from it and are still there.
      type: list
      elements: str
      sample: [runner-1, runner-2]
    created_at:
      description: When it was taken (RFC 3339).
      type: str
      sample: "2026-03-01T09:30:00.000000Z"
vm:
  description: The record of its VM, if that is there.
  returned: success
  type: dict
archive:
  description: The archive that was written or read, with its C(path), C(digest) and C(size).
  returned: with O(state=exported) and O(state=imported), when something was done
  type: dict
  sample:
    path: /srv/export/warm.tar.zst
    digest: sha256:3c9d8f2b1f0a4f1c2f4ab4c56b1d1bfa0a6c1f4d9b2f7a8d5e6c7b8a9f0e1d2c
    size: 52428800
actions:
  description:
    - What was done, or would be in check mode; of V(take), V(replace), V(update), V(remove), V(restore), V(export),
      V(import), and V(prune NAME) for those that were beyond O(keep) or O(max_age).
  returned: success
  type: list
  elements: str
  sample: [take, prune web1-20260301]
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cocoon.microvm.plugins.module_utils._api import snapshots
from ansible_collections.cocoon.microvm.plugins.module_utils._argspec import admission_options, store_options
from ansible_collections.cocoon.microvm.plugins.module_utils._module import run_module

OPTIONS = {
    "name": {"type": "str", "required": True},
    "state": {
        "type": "str",
        "choices": ["present", "absent", "restored", "exported", "imported"],
        "default": "present",
    },
    "vm": {"type": "str"},
    "description": {"type": "str"},
    "labels": {"type": "dict"},
    "owner": {"type": "str"},
    "keep": {"type": "int"},
    "max_age": {"type": "str"},
    "replace": {"type": "bool"},
    "path": {"type": "path"},
    "local_path": {"type": "path"},
    "progress_file": {"type": "path"},
    "compression": {"type": "str", "choices": ["gzip", "none", "zstd"], "default": "gzip"},
    "checksum": {"type": "str"},
    "disks_only": {"type": "bool"},
    "freeze": {"type": "str", "choices": ["auto", "required", "no"]},
    "restore_mode": {"type": "str", "choices": ["copy", "on_demand"]},
    "force": {"type": "bool"},
}


def main() -> None:
    module = AnsibleModule(
        argument_spec={**OPTIONS, **store_options(), **admission_options()},
        mutually_exclusive=[("path", "local_path")],
        supports_check_mode=True,
    )
    run_module(module, snapshots.converge)


if __name__ == "__main__":
    main()
