# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The scope around a hypervisor; systemd itself is met in tests/integration/test_systemd.py."""

from __future__ import annotations

import os
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils import _scope as scope
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import HypervisorError, ToolError


def test_the_request_has_as_many_properties_as_it_says() -> None:
    words = scope.request("cocoon-microvm-abc-7.scope", (7, 8), "microVM web1")
    call = words[words.index("StartTransientUnit") :]
    assert call[1] == "ssa(sv)a(sa(sv))"
    assert call[2:5] == ["cocoon-microvm-abc-7.scope", "fail", "4"]
    assert call[5:] == [
        *("Description", "s", "microVM web1"),
        *("Slice", "s", "cocoon-microvm.slice"),
        *("CollectMode", "s", "inactive-or-failed"),
        *("PIDs", "au", "2", "7", "8"),
        "0",
    ]


def test_a_refusal_names_the_unit_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> bytes:
        raise ToolError("busctl failed (1): Call failed: Access denied")

    monkeypatch.setattr(scope, "run_tool", refuse)
    with pytest.raises(HypervisorError, match=r"cocoon-microvm-abc-7.scope: busctl failed .* dbus"):
        scope.adopt("abc", (7, 8), "x")


def test_a_process_that_is_not_moved_is_an_error() -> None:
    assert not scope.in_unit(os.getpid(), "no.scope")
    with pytest.raises(HypervisorError, match="did not move"):
        scope.wait_adopted(os.getpid(), "no.scope", -1)


def test_a_server_is_started_again_when_it_crashes() -> None:
    unit = scope.service_name("abc")
    words = scope.service(unit, ["dnsmasq", "--conf-file=/x"], "names of network lab")
    assert words[:3] == ["systemd-run", "--quiet", "--unit=cocoon-microvm-abc.service"]
    assert {"--property=Type=forking", "--property=Restart=on-failure", "--slice=cocoon-microvm.slice"} <= set(words)
    assert words[-3:] == ["--", "dnsmasq", "--conf-file=/x"]
