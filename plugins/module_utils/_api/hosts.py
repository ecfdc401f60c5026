# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host is like, and what it lacks."""

from __future__ import annotations

from ansible_collections.cocoon.microvm.plugins.module_utils._api.answers import Answer, Params
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._doctor import FAIL, examine
from ansible_collections.cocoon.microvm.plugins.module_utils._host import as_result, gather


def info(params: Params, _check: bool) -> Answer:
    """The facts and the checks of the doctor: ``ok checks host``."""
    facts = gather(Paths.from_params(params))
    checks = examine(facts)
    good = all(check["status"] != FAIL for check in checks)
    return {"changed": False, "ok": good, "checks": checks, "host": as_result(facts)}
