# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # Where the store is.
    DOCUMENTATION = r"""
options:
  root_dir:
    description:
      - Directory of the store, with records, images and disks.
    type: path
    default: /var/lib/cocoon-microvm
  run_dir:
    description:
      - Directory of sockets and guest memory. What is in it does not outlive a reboot.
    type: path
    default: /run/cocoon-microvm
  log_dir:
    description:
      - Directory of hypervisor and console logs.
    type: path
    default: /var/log/cocoon-microvm
  lock_timeout:
    description:
      - How many seconds to wait for another task that is changing the same object, or the host's allocations.
      - Of an image that another task imports, how many seconds nothing may have moved there.
    type: int
    default: 60
requirements:
  - Linux, root on the target host
"""

    # What the actions of modules that may run for long add to their options.
    PROGRESS = r"""
options:
  progress_file:
    description:
      - Where to write how far a pull, download or import has got. The action of this module sets it, and shows what is
        there every few seconds.
    type: path
  defer_above:
    description:
      - Leave an image of which more bytes than this have to be read to another run, and return C(deferred) with nothing
        done. The action of this module sets it, to find out whether there is something to watch.
    type: int
"""

    # Limits that guard the host when VMs are created or started.
    ADMISSION = r"""
options:
  memory_reserve:
    description:
      - Memory that is left to the host. A VM whose memory does not fit into what is available less this
        is not started.
    type: str
    default: 256M
  memory_overcommit:
    description:
      - How many times memory may be promised that VMs have not taken yet.
      - What a VM has been given stays its own. Clones share what they do not change, so a value above V(1.0) is common
        for them; should they all change it, the kernel ends the largest process.
    type: float
    default: 1.0
  disk_overcommit:
    description:
      - How many times the file system's size may be promised to disks.
      - Disks are sparse, so a value above V(1.0) is common where guests do not fill them.
    type: float
    default: 1.0
"""
