# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the networks, images and VMs of a host mean together."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import Plan
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.site import (
    Part,
    blocked,
    clashes,
    lets_go,
    needed,
    undefined,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.steps import Remove, SetNics

Record = dict[str, t.Any]


def parts(networks: t.Sequence[Record] = (), images: t.Sequence[Record] = ()) -> list[Part]:
    return [
        Part(kind, number, item)
        for kind, items in (("network", networks), ("image", images))
        for number, item in enumerate(items)
    ]


@pytest.mark.parametrize(
    ("networks", "images", "vms", "line"),
    [
        (
            [{"name": "a"}, {"name": "a"}],
            [],
            [],
            "networks[1] (a): name: 'a' is given already by networks[0] (a): name",
        ),
        ([], [{"name": "a"}, {"name": "a"}], [], "images[1] (a): name: 'a' is given already"),
        ([{"name": "a"}], [{"name": "a"}], [], None),
        (
            [{"name": "a", "subnet": "10.0.0.0/16"}, {"name": "b", "subnet": "10.0.7.0/24"}],
            [],
            [],
            "networks[1] (b): subnet: 10.0.7.0/24 overlaps 10.0.0.0/16 of networks[0] (a): subnet",
        ),
        (
            [{"name": "a", "subnet": "10.0.0.0/16", "state": "absent"}, {"name": "b", "subnet": "10.0.7.0/24"}],
            [],
            [],
            None,
        ),
        (
            [{"name": "a", "subnet": "10.0.0.0/16", "adopted": True}, {"name": "b", "subnet": "10.0.7.0/24"}],
            [],
            [],
            None,
        ),
        ([{"name": "a", "bridge": "br0"}, {"name": "b", "bridge": "br0"}], [], [], "networks[1] (b): bridge: 'br0'"),
        (
            [{"name": "a", "state": "absent"}],
            [],
            [{"name": "web", "nics": [{"network": "a"}]}],
            "networks (a): is to be absent, and VM 'web' is to have it",
        ),
        ([], [{"name": "i", "state": "absent"}], [{"name": "web", "image": "i"}], "images (i): is to be absent"),
        ([], [{"name": "i", "state": "absent"}], [{"name": "web", "image": "i", "state": "absent"}], None),
    ],
)
def test_what_cannot_be_meant_together(
    networks: list[Record], images: list[Record], vms: list[Record], line: str | None
) -> None:
    found = [str(error) for error in clashes(parts(networks, images), vms)]
    assert (len(found) == 1 and found[0].startswith(line)) if line else not found, found


@pytest.mark.parametrize(
    ("definition", "keys"),
    [
        ({}, []),
        ({"image": "new"}, [("image", "new")]),
        ({"image": "i", "network": "lab"}, [("image", "i"), ("network", "lab")]),
        ({"nics": [{"network": "a"}, {"network": "b"}, {"network": "a"}]}, [("network", "a"), ("network", "b")]),
        ({"network": "lab", "nics": [{"network": "a"}]}, [("network", "a")]),
        ({"network": "lab", "nics": [{"mac": "02:00:00:00:00:01"}]}, [("network", "lab")]),
        ({"network": "lab", "nics": []}, []),
    ],
)
def test_what_a_vm_needs(definition: Record, keys: list[tuple[str, str]]) -> None:
    assert needed(definition) == keys


def test_a_vm_is_left_as_it_is_where_what_it_needs_failed() -> None:
    failed = {("network", "lab"): CocoonError("no")}
    assert "network 'lab'" in str(blocked({"name": "web", "network": "lab"}, failed))
    assert blocked({"name": "web", "network": "lab", "state": "absent"}, failed) is None
    assert blocked({"name": "web", "image": "lab"}, failed) is None


@pytest.mark.parametrize(
    ("plan", "key", "goes"),
    [
        (Plan("web", "none"), ("network", "lab"), False),
        (Plan("web", "remove", (Remove(),)), ("network", "lab"), True),
        (Plan("web", "remove", (Remove(),)), ("image", "sha256:1"), True),
        (Plan("web", "update", (SetNics([{"network": "b"}], "lab"),)), ("network", "lab"), True),
        (Plan("web", "update", (SetNics([{"network": None}], "lab"),)), ("network", "lab"), False),
        (Plan("web", "update", (SetNics([{"network": "b"}], "lab"),)), ("image", "sha256:1"), False),
        (
            Plan("web", "rebuild", wanted={"nics": [{"network": "b"}], "image_digest": "sha256:2"}),
            ("network", "b"),
            False,
        ),
        (Plan("web", "rebuild", wanted={"nics": [], "image_digest": "sha256:2"}), ("network", "b"), True),
        (Plan("web", "rebuild", wanted={"nics": [], "image_digest": "sha256:2"}), ("image", "sha256:1"), True),
        (Plan("web", "rebuild", wanted={"nics": [], "image_digest": "sha256:1"}), ("image", "sha256:1"), False),
    ],
)
def test_what_a_vm_lets_go(plan: Plan, key: tuple[str, str], goes: bool) -> None:
    assert lets_go(plan, key) is goes


MADE: Record = {
    "id": "a",
    "state": "running",
    "config": {"name": "web", "cpu": 2, "memory": 2 << 30, "image": "i", "network": "lab", "storage": 20 << 30},
    "ports": ["8080:80"],
    "labels": {},
    "data_disks": [],
    "balloon": None,
    "watchdog": False,
}


@pytest.mark.parametrize(
    ("record", "definition", "kept"),
    [
        ({}, {}, "ports: [], memory: 1G"),
        ({}, {"ports": ["8080:80"], "memory": 1 << 30}, None),
        ({}, {"ports": [], "memory": 2 << 30}, None),
        ({"balloon": 1 << 30, "labels": {"a": "b"}}, {"ports": [], "memory": 1}, "balloon: off, labels: {}"),
        ({"data_disks": [{"name": "db"}]}, {"ports": [], "memory": 1}, "data_disks: []"),
        ({"snapshot_id": "s", "data_disks": [{"name": "db"}]}, {}, "ports: []"),
        ({}, {"state": "absent"}, None),
        ({"state": "creating"}, {}, None),
    ],
)
def test_what_a_vm_keeps_that_nobody_defines(record: Record, definition: Record, kept: str | None) -> None:
    found = undefined({**MADE, **record}, {"name": "web", **definition})
    assert (found is None) if kept is None else found is not None
    assert sorted((found or "").partition(" say ")[2].split(", ")) == sorted((kept or "").split(", "))
