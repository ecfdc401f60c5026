# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the snapshots of a host are like."""

from __future__ import annotations

from ansible_collections.cocoon.microvm.plugins.module_utils._api.answers import Answer, Params
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import store as snapshots
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.module_utils._types import ERROR


def info(params: Params, _check: bool) -> Answer:
    """The snapshots, those named or those of one VM: ``snapshots``, oldest first."""
    store = Store.load(Paths.from_params(params))
    if store is None:
        return {"changed": False, "snapshots": []}
    names, vm, owner = params.get("names"), params.get("vm"), params.get("owner")
    chosen = [
        record
        for record in snapshots.all_records(store, (snapshots.COMPLETE, ERROR))
        if (not names or record["name"] in names)
        and (not vm or record.get("vm") == vm)
        and (not owner or record.get("owner") == owner)
    ]
    return {"changed": False, "snapshots": [snapshots.shown(store, record) for record in chosen]}
