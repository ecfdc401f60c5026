# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""kill -9 of a run at each step of what it does with a real hypervisor, as the integration tests have it with QEMU.

They share one VM.
"""

from __future__ import annotations

import pytest

from ansible_collections.cocoon.microvm.tests.lab.conftest import Site

CASES = ("start", "stop", "remove", "save", "clone")


@pytest.mark.parametrize("case", CASES)
def test_the_next_run_copes(site: Site, driver: str, case: str) -> None:
    found = site.inside("killing", driver, case)
    assert not found["problems"], "\n\n".join(found["problems"])
    assert len(found["marks"]) > 2, found


def test_nothing_is_left(site: Site, driver: str) -> None:
    assert site.inside("killing", driver, "end")["problems"] == []
