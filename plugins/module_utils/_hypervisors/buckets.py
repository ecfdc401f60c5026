# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits of a disk as token buckets, which reads and writes share: one for bytes, and one for operations."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import UnsupportedError

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import DiskLimits

Bucket = dict[str, int]


def buckets(limits: DiskLimits) -> dict[str, Bucket]:
    """``bandwidth`` and ``ops``, what is limited of them: ``size`` tokens, all of which come in ``refill_time`` ms.

    :raises UnsupportedError: reads or writes for themselves.
    """
    if set(limits) - {"total"}:
        raise UnsupportedError("it does not tell reads from writes of a disk", "limits", "Give a total.")
    limit = limits.get("total", {})
    found = {}
    if "rate" in limit:
        burst = limit.get("burst", limit["rate"])
        found["bandwidth"] = {"size": burst, "refill_time": max(1, round(burst * 1000 / limit["rate"]))}
    if "iops" in limit:
        found["ops"] = {"size": limit["iops"], "refill_time": 1000}
    return found
