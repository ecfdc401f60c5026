# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages of the roles name the variables that the user knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.filter.cocoon_said import FilterModule
from ansible_collections.cocoon.microvm.plugins.plugin_utils import _said

ROLE = Path(_said.__file__).resolve().parents[2] / "roles" / "vms"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("web1: max_unavailable: not restarted", "web1: cocoon_max_unavailable: not restarted"),
        ("memory_reserve: '5 apples' is not a size", "cocoon_memory_reserve: '5 apples' is not a size"),
        ("memory_overcommit: 4 lets it", "cocoon_memory_overcommit: 4 lets it"),
        ("needs a restart: set allow_restart: true", "needs a restart: set -e cocoon_allow_restart=true"),
        ("Set force to change it all the same.", "Set -e cocoon_force=true to change it all the same."),
        ("set force: true (or recreate: true)", "set -e cocoon_force=true (or -e cocoon_recreate=true)"),
        ("there is no network 'a'. Create it with cocoon_network first.", "there is no network 'a'. List it in"),
        ("parallel: 0 is no number", "cocoon_parallel: 0 is no number"),
        ("web1: prune: refused", "web1: cocoon_prune: refused"),
        # What is the user's own word already, or no option.
        ("cocoon_max_unavailable: 1", "cocoon_max_unavailable: 1"),
        ("restarted in parallel: two of them", "restarted in parallel: two of them"),
        ("vms[0] (web1): cpu: is out of range", "vms[0] (web1): cpu: is out of range"),
        ("cannot read /srv/root_dir/vm.json", "cannot read /srv/root_dir/vm.json"),
        ("image 'force' is used", "image 'force' is used"),
    ],
)
def test_words(said: str, shown: str) -> None:
    found = FilterModule().filters()["cocoon_said"](said)
    assert found.startswith(shown)
    assert FilterModule().filters()["cocoon_said"](found) == found


def test_every_variable_is_one_of_the_role() -> None:
    """Each name that a message may come to is set by the inventory."""
    defaults = (ROLE / "defaults" / "main.yml").read_text(encoding="utf-8")
    for name in (*_said.PERMISSIONS, *_said.SETTINGS, *_said.BLAMED):
        assert f"cocoon_{name} " in defaults, name


def test_every_failure_of_the_role_is_told_so() -> None:
    """What a module has said reaches the user through the filter."""
    found = [
        f"{path.name}: {line}"
        for path in (ROLE / "tasks").glob("*.yml")
        for line in path.read_text(encoding="utf-8").splitlines()
        if ".msg | default(" in line and "gave no answer" in line
    ]
    assert len(found) > 1 and [line for line in found if "cocoon_said" not in line] == []
