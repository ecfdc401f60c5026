# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What NICs give back, and what the host is to forget with it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._network import attachments, neighbours
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import reserve


def nic(ip: str, mac: str, network: str = "n") -> dict[str, Any]:
    return {"network_id": network, "bridge_dev": f"br-{network}", "mac": mac, "network": {"ip": ip}}


@pytest.mark.parametrize(
    ("keep", "released", "forgotten"),
    [
        ([], ["10.0.0.2"], ["br-n 10.0.0.2"]),
        ([nic("10.0.0.2", "02:00:00:00:00:01")], [], []),
        ([nic("10.0.0.2", "02:00:00:00:00:09")], [], ["br-n 10.0.0.2"]),
        ([nic("10.0.0.3", "02:00:00:00:00:01")], ["10.0.0.2"], ["br-n 10.0.0.2"]),
        ([nic("10.0.0.2", "02:00:00:00:00:01", "other")], ["10.0.0.2"], ["br-n 10.0.0.2"]),
    ],
    ids=("gone", "as it was", "another MAC", "another address", "another network"),
)
def test_the_host_forgets_an_address_that_is_not_there_any_more(
    keep: list[dict[str, Any]], released: list[str], forgotten: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, list[str]] = {"released": [], "forgotten": []}
    monkeypatch.setattr(attachments, "release", lambda _store, _network, ip, _vm: found["released"].append(ip))
    monkeypatch.setattr(attachments, "detach", lambda *_all: None)
    monkeypatch.setattr(neighbours, "forget", lambda link, ip: found["forgotten"].append(f"{link} {ip}"))
    index = SimpleNamespace(release=lambda *_all: None)
    run = SimpleNamespace(store=SimpleNamespace(index=lambda _kind: index))
    gone = [nic("10.0.0.2", "02:00:00:00:00:01")]
    reserve.give_back_nics(cast(Any, run), cast(Any, {"id": "vm"}), cast(Any, gone), cast(Any, keep))
    assert found == {"released": released, "forgotten": forgotten}
