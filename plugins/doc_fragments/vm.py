# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import textwrap

# One text for the options of cocoon_vm and the suboptions of cocoon_vms, as there is one argument spec.
_OPTIONS = r"""
name:
  description:
    - Name of the VM, unique in its store. Its guest's host name is made of it, see O(hostname).
    - Letters, digits, dots, underscores and hyphens, at most 63, beginning with a letter or digit.
  type: str
  required: true
state:
  description:
    - V(present) creates a VM that is missing and applies changed options, and never changes the power state.
    - V(started) and V(stopped) do what V(present) does, and see to the power state.
    - V(restarted) stops and starts the VM, creating it if it is missing, and always reports a change.
    - V(paused) is V(started) with the guest standing still; V(started) lets it go on.
    - V(hibernated) saves the memory of a running VM to disk and ends it, and V(started) goes on from there. V(stopped)
      would lose that memory, and is refused without O(force).
    - V(absent) stops the VM and removes it with its system disk. Its data disks are kept for the next VM of that name
      and deleted only with O(force).
  type: str
  choices: [present, started, stopped, restarted, paused, hibernated, absent]
  default: present
hypervisor:
  description:
    - The hypervisor to run the VM.
    - V(auto), which is also what applies at creation when the option is omitted, takes the best that the host has
      and that fits the image and the options. The choice is recorded and not made again.
  type: str
  choices: [auto, qemu, cloud-hypervisor, firecracker]
accel:
  description:
    - Whether the CPU is virtualised by KVM or emulated (TCG).
    - V(auto), or omitted at creation, takes KVM where it works.
  type: str
  choices: [auto, kvm, tcg]
image:
  description:
    - Name or digest of an image, see M(cocoon.microvm.cocoon_image). Required to create a VM without O(snapshot).
    - An image that the host's store does not have is pulled from a registry, see O(pull).
  type: str
snapshot:
  description:
    - Name of a snapshot to make the VM from instead of an image, see M(cocoon.microvm.cocoon_snapshot).
    - If it has the memory of a running VM, the clone goes on from there at its first start, with its own name, MACs,
      addresses and disks. It shares the pages of memory that neither changes.
    - CPUs, memory, disks, image and devices are the snapshot's. O(storage), O(data_disks) and O(balloon) may grow or be
      added to; anything else that differs is refused. Of a snapshot without memory, only the disks and the image are
      fixed.
    - Applies at creation only. A later difference is refused.
  type: str
cpu:
  description:
    - Number of virtual CPUs; 2 where omitted at creation.
    - More of them, up to O(cpu_max), reach a running guest without a restart.
  type: int
cpu_max:
  description:
    - Number of virtual CPUs that the VM can come to have while it runs, by a larger O(cpu); V(0), which is also what
      applies at creation when the option is omitted, for none beyond O(cpu).
    - A guest uses a new CPU when it has brought it online. The images of the role P(cocoon.microvm.image#role) do so by
      themselves.
  type: int
memory:
  description:
    - Memory, such as V(512M) or V(1.5G), or bytes; V(1G) where omitted at creation.
  type: str
memory_backing:
  description:
    - Where the file of the guest's memory is while the VM runs.
    - V(ram), also where omitted at creation, is a tmpfs. V(disk) is the VM's directory. On a file system with reflinks
      (XFS, btrfs) snapshots of such a VM pause its guest the shortest, at the price of memory that is written back to
      the disk all the time.
  type: str
  choices: [ram, disk]
restore_mode:
  description:
    - How a saved memory is taken up, by the first start of a clone, by a restore, and by a start after V(hibernated).
    - V(copy) copies it before the guest goes on, which takes as long as reading all of it. V(on_demand) lets the guest
      go on at once, which reads what it needs from the file of the saved memory; clones of one snapshot share it.
    - Where omitted, clones do the latter and the others the former, as the memory of a VM that has its own can be saved
      faster. Firecracker always goes on V(on_demand), and V(copy) is refused there.
    - V(on_demand) is refused beside O(balloon) on the others. Memory that was saved of a guest that had gone on like
      this itself is not in a file under QEMU, so it is read beforehand, with a warning.
  type: str
  choices: [copy, on_demand]
storage:
  description:
    - Size of the system disk, such as V(20G); V(10G) where omitted at creation. It can grow, never shrink.
  type: str
limits:
  description:
    - How fast the system disk is. V({}) takes a limit away; what O(data_disks) have, they say themselves.
    - It is about what the VM writes, and what it has written or reads of a disk image. What it reads of an image's
      layers comes from files that all VMs share, mostly out of the host's memory, and has no limit.
    - Another limit reaches a running VM without a restart where the hypervisor can.
  type: dict
  suboptions:
<limits:4>
queue_size:
  description:
    - Depth of the virtio queues of NICs, a power of two; 0 means the hypervisor's default.
  type: int
disk_queue_size:
  description:
    - Depth of the virtio queues of disks, a power of two; 0 means the hypervisor's default.
  type: int
no_direct_io:
  description:
    - Use the host's page cache for writable disks.
  type: bool
windows:
  description:
    - The guest is Windows, on a disk image that brings virtio drivers and boots by UEFI.
    - It finds what it asks of Hyper-V where KVM runs it, and its clock has the local time of the host. It is told
      nothing, and has no balloon. Only QEMU boots disks.
  type: bool
network:
  description:
    - Name of the network of every NIC that names none itself, see M(cocoon.microvm.cocoon_network).
    - A VM with this option and without O(nics) has one NIC.
  type: str
nics:
  description:
    - The network interfaces, complete and in order; V([]) means none.
  type: list
  elements: dict
  suboptions:
    network:
      description: Name of the network; O(network) of the VM where omitted.
      type: str
    mac:
      description: MAC address; made up and kept where omitted.
      type: str
    ip:
      description:
        - IPv4 address from the network's subnet; allocated and kept where omitted.
        - Of a network of CNI plugins, what they are asked for at the VM's start; what they give where omitted.
      type: str
    ip6:
      description:
        - IPv6 address from the C(subnet6) of the network, see M(cocoon.microvm.cocoon_network), which the guest is told
          and has instead of the one that follows from its MAC. Not kept where omitted.
        - Other addresses that follow from MACs are refused, as the NICs with those MACs have them.
      type: str
    default_route:
      description:
        - V(true) leads the guest's default route over this NIC, and V(false) never does.
        - Where no NIC says V(true), it leads over the first whose network leads out. That is a network with NAT, an
          adopted bridge with a gateway or without a subnet, or a NIC with a O(nics[].gateway) of its own.
        - More than one NIC may say V(true) if their O(nics[].metric) differ.
        - What this and the next four options are where omitted is not kept from earlier; they are compared as a whole.
      type: bool
    gateway:
      description: Next hop of the default route and of O(nics[].routes); the network's gateway where omitted.
      type: str
    gateway6:
      description:
        - The same of IPv6, an address of the network's or of the link (V(fe80::1)).
        - This and IPv6 routes are for NICs that are told their IPv6 address, by O(nics[].ip6) or as the network has
          C(addresses6=static).
      type: str
    metric:
      description: Metric of the default route over this NIC. The smallest counts.
      type: int
    routes:
      description: Other ways over this NIC.
      type: list
      elements: dict
      suboptions:
        to:
          description: The subnet that the route leads to, such as V(10.0.0.0/8) or V(fd00:8::/32).
          type: str
          required: true
        via:
          description: Next hop, a neighbour in the NIC's network; the NIC's gateway where omitted.
          type: str
        metric:
          description: Metric of the route.
          type: int
    dhcp:
      description:
        - V(true) has the guest ask by DHCP for the address that it is given anyway. Needs C(dhcp) of the network, see
          M(cocoon.microvm.cocoon_network).
        - Otherwise the guest is told, if the network has a subnet.
      type: bool
    vlan:
      description:
        - The VLAN that the NIC is in, 1 to 4094. The guest knows nothing of it.
        - The network has C(vlan_filtering) and no subnet, see M(cocoon.microvm.cocoon_network), or is an adopted bridge
          that keeps VLANs apart.
      type: int
    limits:
      description:
        - How fast the NIC is. What is too much waits a little on its way to the guest, and is dropped on its way from
          it.
      type: dict
      suboptions:
        rx:
          description: What the guest receives.
          type: dict
          suboptions:
            rate:
              description: Bytes a second, such as V(10M). At least V(8K).
              type: str
              required: true
            burst:
              description:
                - Bytes at once, less than V(4G); what comes in a tenth of a second where omitted, and not less than
                  V(128K).
              type: str
        tx:
          description: What the guest sends.
          type: dict
          suboptions:
            rate:
              description: Bytes a second, such as V(10M). At least V(8K).
              type: str
              required: true
            burst:
              description:
                - Bytes at once, less than V(4G); what comes in a tenth of a second where omitted, and not less than
                  V(128K).
              type: str
ports:
  description:
    - Ports of the host that lead to the guest, such as V(8080:80), V(5353:53/udp), V(192.0.2.1:443:443) or
      V(8000-8010:9000-9010). At most 1024.
    - They go to the NIC of the default route, whose network must have NAT, or a plugin for ports. The list is complete.
  type: list
  elements: str
data_disks:
  description:
    - Disks beside the system disk. The list is complete. A disk that is dropped from it is detached and its file kept,
      so that naming it again brings it back; it is deleted only with O(force).
    - A running guest may be using a disk that is dropped, so this needs O(allow_restart), or O(force), which pulls the
      disk out at once and deletes it. To keep a disk that you have unmounted in the guest, list it with
      O(data_disks[].attached=false).
    - The guest finds a disk at C(/dev/disk/by-id/virtio-NAME).
  type: list
  elements: dict
  suboptions:
    name:
      description: Name and serial number of the disk, at most 20 characters.
      type: str
      required: true
    size:
      description: Size such as V(10G), at least V(16M). It can grow, never shrink.
      type: str
      required: true
    fstype:
      description: The file system to make when the disk is created; V(ext4) where omitted.
      type: str
      choices: [ext4, none]
    limits:
      description:
        - How fast the disk is; V({}) takes a limit away. Where omitted it is as it was.
        - Snapshots have none. A clone has those of its own definition.
      type: dict
      suboptions:
<limits:8>
    attached:
      description:
        - Whether the VM has the disk; V(true) where omitted. With V(false) the disk is unplugged, also while the VM
          runs, and kept. Unmount it in the guest first, as what the guest has not yet written is lost.
        - A disk that is not there is not made for V(false).
      type: bool
balloon:
  description:
    - Adds a memory balloon that takes this much memory from the guest and gives it back to the host.
    - V(0) adds the device and takes nothing; V(off), or omitted at creation, means no balloon.
  type: str
watchdog:
  description:
    - A hardware watchdog that resets a guest that opened it and no longer answers. VMs have one where the hypervisor
      does, unless this is V(false).
  type: bool
kernel_args:
  description:
    - Added to the kernel command line. Only for images that carry their kernel.
  type: str
entrypoint:
  description:
    - Words to begin the command of a container image with, in place of its own; the words that the image has after
      these are left out, too. A list, or text that is split into words as a shell would.
    - This and the next four options are for images that bring no kernel. What is empty is as the image has it.
  type: raw
command:
  description:
    - Words that follow the entrypoint, in place of the image's. A list, or text that is split as a shell would; no
      shell runs.
  type: raw
env:
  description:
    - Environment variables of the command, added to those of the image or in place of them. Diffs and results show
      them.
  type: dict
secret_env:
  description:
    - Environment variables whose values no log, diff or result shows, where they are blotted out like any secret of
      Ansible's. So what is short and no secret belongs into O(env).
    - They are compared, and kept where root alone and the VM itself can read them. Snapshots do not have them, and a
      clone is given its own.
  type: dict
working_dir:
  description:
    - The folder to run the command in.
  type: str
hostname:
  description:
    - What the guest calls itself, letters, digits and hyphens in labels between dots; not a number.
    - Where omitted or empty, it is O(name) with underscores as hyphens, without hyphens at the ends of labels, and with
      C(vm-) before a last label that is a number.
    - A disk image hears of it at its first boot only.
  type: str
user:
  description:
    - Login user to be made at the first boot; V(root) where O(ssh_keys) or O(password) are given without it.
    - Login options apply at creation and need an image that takes them. Disk images do by cloud-init.
    - Other ones later reach the guest at a start of the VM, where its image looks for them (disk images, and those that
      the role C(image) builds). Until then, and with other images, each run warns that they differ.
  type: str
password:
  description:
    - Password of O(user), or its crypt hash (C($6$…), C($y$…), C($5$…), C($2b$…)), which is taken as it is. There is no
      default password; none means locked.
    - The record keeps a salted digest, by which a later difference is seen.
  type: str
ssh_keys:
  description:
    - Public keys that may log in as O(user). Each is a key or the text of an C(authorized_keys) file, with its comments
      and options. What is no public key is refused.
  type: list
  elements: str
user_data:
  description:
    - For cloud images, what cloud-init is to do besides, at the first boot. Its first line says what it is, such as
      C(#cloud-config) or C(#!/bin/sh); or it is a MIME message of such parts.
    - It goes beside what is made of the other options. In a C(#cloud-config), lists such as C(users) and C(mounts) are
      joined with those, mappings are merged, and of plain values the ones given here apply. C(users) as text is refused
      beside O(user), O(password) and O(ssh_keys).
    - Without O(user), O(password) and O(ssh_keys), accounts are left to it.
  type: str
firmware:
  description:
    - What boots a disk image, UEFI or BIOS.
    - Where omitted at creation, V(uefi) if the disk has an EFI system partition and the host has OVMF, and V(bios)
      otherwise. The choice is recorded.
  type: str
  choices: [uefi, bios]
labels:
  description:
    - Labels of your own. The dictionary is complete.
  type: dict
owner:
  description:
    - Who the VM belongs to; the store's ID where omitted at creation. Another owner's VM is changed only with O(force).
  type: str
wait_for:
  description:
    - What to wait for after a start.
    - V(process) waits for the hypervisor to run the VM, and is what applies where omitted.
    - V(console) waits for O(wait_pattern) on the console.
    - V(ping) waits for an answer to an ICMP echo request.
    - V(port) waits for TCP port O(wait_port) to accept a connection.
    - V(agent) waits for the agent in the guest to answer, which needs no network.
  type: str
  choices: [process, console, ping, port, agent]
wait_port:
  description:
    - TCP port for O(wait_for=port); 22 where omitted.
  type: int
wait_pattern:
  description:
    - Regular expression for O(wait_for=console); a login prompt where omitted.
  type: str
timeout:
  description:
    - Seconds to wait for O(wait_for); 120 where omitted.
  type: int
stop_timeout:
  description:
    - Seconds that the guest has to shut down before it is powered off; 30 where omitted, and 120 for O(windows).
  type: int
pull:
  description:
    - When to ask a registry for O(image), whose name is understood as C(docker run) does. V(nginx) is
      V(docker.io/library/nginx:latest).
    - V(missing), which holds where omitted, if the VM is to be made and the host's store has no image of that name.
    - V(always) in every run, to see whether the tag has moved. A VM that is there stays as it is until O(recreate).
    - V(never) not at all.
    - An image that needs credentials or other options is for M(cocoon.microvm.cocoon_image).
  type: str
  choices: [missing, always, never]
disks_only:
  description:
    - With O(snapshot), clone its disks and leave the memory that it has, so that the clone boots.
    - For snapshots whose memory does not suit this host, see M(cocoon.microvm.cocoon_snapshot).
  type: bool
allow_restart:
  description:
    - Allow changes that need the running VM to restart.
  type: bool
recreate:
  description:
    - Allow changes that need a new system disk. What the old one held is lost. Addresses and data disks are kept.
    - Nothing is rebuilt where no difference needs it.
  type: bool
accept_login:
  description:
    - Record O(user), O(password), O(ssh_keys) and O(user_data) as given, for you have changed them in the guest.
    - Nothing reaches the guest by this.
  type: bool
force:
  description:
    - Power off without asking the guest, delete data disks that are dropped from O(data_disks) or belong to a VM
      that is removed, and change VMs of another owner.
  type: bool
"""


_LIMIT = r"""
<kind>:
  description: <words>
  type: dict
  suboptions:
    rate:
      description: Bytes a second, such as V(10M). At least V(64K).
      type: str
    burst:
      description: Bytes at once after a while of quiet; not less than V(rate), which it is where omitted.
      type: str
    iops:
      description: Operations a second.
      type: int
"""
_KINDS = {
    "total": "Reads and writes together. Each hypervisor has it.",
    "read": "What the guest reads. Only QEMU tells it from what is written.",
    "write": "What the guest writes. Only QEMU tells it from what is read.",
}


def _limits(text: str) -> str:
    """Put the suboptions of a disk's limits where *text* has a mark with the number of spaces before them."""
    found = "".join(_LIMIT.lstrip().replace("<kind>", kind).replace("<words>", words) for kind, words in _KINDS.items())
    for spaces in (4, 8):
        text = text.replace(f"<limits:{spaces}>\n", textwrap.indent(found, " " * spaces))
    return text


_OPTIONS = _limits(_OPTIONS)

# Only where there is a list to put them into.
_COUNT = r"""
count:
  description:
    - Makes this item stand for so many VMs of the same kind, called C(NAME-1), C(NAME-2) and so on; V(0) for none.
    - With a smaller number later, pruning removes those that are too many.
  type: int
"""


def _nested(option: str, text: str) -> str:
    """The same options one level down; O(name) becomes O(vms[].name)."""
    inner = text.replace("O(", f"O({option}[].")
    return f"options:\n  {option}:\n    suboptions:\n{textwrap.indent(inner, ' ' * 6)}"


class ModuleDocFragment:
    # The options of one VM. Annotated, because the sanity test `yamllint` reads plain assignments as literals.
    DOCUMENTATION: str = f"options:\n{textwrap.indent(_OPTIONS, '  ')}"

    # The same as suboptions of C(vms).
    LIST: str = _nested("vms", _OPTIONS + _COUNT)
