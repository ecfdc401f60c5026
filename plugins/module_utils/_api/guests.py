# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is inside the VMs of a host."""

from __future__ import annotations

from ansible_collections.cocoon.microvm.plugins.module_utils._api.answers import Answer, Params, of_commands
from ansible_collections.cocoon.microvm.plugins.module_utils._engine import guests


def run(params: Params, check: bool) -> Answer:
    """Run the command of ``cocoon_exec`` in many guests.

    :returns: ``changed results``, and where there is one guest, what came of it at the top.
    :raises InputError: bad arguments; nothing has run.
    """
    return of_commands(guests.run_in_all(params, check))
