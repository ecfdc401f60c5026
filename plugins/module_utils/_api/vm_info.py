# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the VMs of a host are like."""

from __future__ import annotations

from ansible_collections.cocoon.microvm.plugins.module_utils._api.answers import Answer, Params
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import showing


def info(params: Params, _check: bool) -> Answer:
    """The VMs, or those named: ``vms``, and ``kept_disks`` of VMs that were removed."""
    return {"changed": False, **showing.vm_info(params)}
