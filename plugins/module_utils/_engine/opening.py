# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a module's parameters to a run over the store that they name."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._progress import Progress
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.module_utils._types import parse_size
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import DOCKER_HUB, Options, Run


def options_of(params: t.Mapping[str, t.Any]) -> Options:
    """Run options from module parameters."""
    return Options(
        lock_timeout=float(params["lock_timeout"]),
        memory_reserve=parse_size(params["memory_reserve"], "memory_reserve"),
        memory_overcommit=_overcommit(params, "memory_overcommit", 1.0),
        disk_overcommit=_overcommit(params, "disk_overcommit", 0.1),
        parallel=max(1, params.get("parallel") or Options.parallel),
        max_unavailable=max(1, params.get("max_unavailable") or Options.max_unavailable),
        hold_restarts=bool(params.get("hold_restarts")),
        progress=Progress.from_params(params),
        never_pull=frozenset(
            [*(params.get("never_pull") or ()), *(image["name"] for image in params.get("images") or ())]
        ),
        # Only a site has the option: the modules of one noun do with a bare name what Docker does.
        default_registry=params.get("default_registry", DOCKER_HUB),
    )


def _overcommit(params: t.Mapping[str, t.Any], option: str, least: float) -> float:
    value = float(params[option])
    if not least <= value <= 1000:
        raise InputError(f"{value} is out of range", option, f"It goes from {least:g} to 1000.")
    return value


def open_run(params: t.Mapping[str, t.Any], check: bool, mark: t.Callable[[str], None] | None = None) -> Run:
    """A run over the store that *params* name, made if it is not there, unless it is only looked at."""
    options = options_of(params)
    paths = Paths.from_params(params)
    paths.check()
    store = (Store.load(paths) or _unmade(paths)) if check else Store.open(paths)
    return Run(store, options, mark)


def _unmade(paths: Paths) -> Store:
    """A store that a real run would make: check mode on a fresh host plans against nothing."""
    return Store(paths, "(new store)", 0, 0, {})
