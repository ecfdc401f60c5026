# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drivers by name, and what ``auto`` comes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import registry
from ansible_collections.cocoon.microvm.plugins.module_utils._types import HYPERVISORS


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "run").mkdir()
    return Paths(str(tmp_path / "lib"), str(tmp_path / "run"), str(tmp_path / "log"))


def test_names_of_drivers(paths: Paths) -> None:
    assert set(registry.DRIVERS) == set(HYPERVISORS)
    for name in registry.DRIVERS:
        assert registry.driver(name, paths).name == name
    with pytest.raises(InputError, match="'xen' is not a hypervisor"):
        registry.driver("xen", paths)
