# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs on their way from one host to another."""

from __future__ import annotations

from ansible_collections.cocoon.microvm.plugins.module_utils._api.answers import Answer, Params
from ansible_collections.cocoon.microvm.plugins.module_utils._moving import converging


def converge(params: Params, check: bool) -> Answer:
    """Do the step of a move that the options of ``cocoon_vm_move`` say: ``changed``, and what the step tells.

    :raises CocoonError: it could not be done; what that means for the VM, the step says.
    """
    return converging.converge(params, check)
