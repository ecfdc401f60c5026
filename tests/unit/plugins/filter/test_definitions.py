# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re
import typing as t

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.cocoon.microvm.plugins.filter.cocoon_declared import cocoon_declared
from ansible_collections.cocoon.microvm.plugins.filter.cocoon_definitions import cocoon_definitions
from ansible_collections.cocoon.microvm.plugins.filter.cocoon_elsewhere import cocoon_elsewhere
from ansible_collections.cocoon.microvm.plugins.filter.cocoon_exclusions import cocoon_exclusions
from ansible_collections.cocoon.microvm.plugins.filter.cocoon_inventory_vms import cocoon_inventory_vms
from ansible_collections.cocoon.microvm.plugins.filter.cocoon_merge import cocoon_merge
from ansible_collections.cocoon.microvm.plugins.filter.cocoon_problems import cocoon_problems
from ansible_collections.cocoon.microvm.plugins.filter.cocoon_vm_hosts import cocoon_vm_hosts
from ansible_collections.cocoon.microvm.plugins.plugin_utils._definitions import misread_names
from ansible_collections.cocoon.microvm.plugins.plugin_utils._problems import site_problems

Vars = dict[str, t.Any]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        pytest.param({}, [], id="nothing"),
        pytest.param({"cocoon_vms": None}, [], id="null"),
        pytest.param({"cocoon_vms": {"a": None}}, [{"name": "a"}], id="a name alone"),
        pytest.param({"cocoon_vms": [{"name": "a", "cpu": 1}]}, [{"name": "a", "cpu": 1}], id="list"),
        pytest.param(
            {"cocoon_vms": {"a": {"cpu": 1}}, "cocoon_vms_z": {"a": {"cpu": 2, "memory": "1G"}}},
            [{"name": "a", "cpu": 1, "memory": "1G"}],
            id="the variable without a suffix has the last word",
        ),
        pytest.param(
            {"cocoon_vms_2": {"a": {"cpu": 2}}, "cocoon_vms_1": {"a": {"cpu": 1}, "b": {}}},
            [{"name": "a", "cpu": 2}, {"name": "b"}],
            id="suffixes in the order of their names",
        ),
        pytest.param(
            {
                "cocoon_vms_x": {"a": {"labels": {"x": "1", "y": "1"}}},
                "cocoon_vms": [{"name": "a", "labels": {"y": "2"}}],
            },
            [{"name": "a", "labels": {"x": "1", "y": "2"}}],
            id="a list and a dictionary merge deeply",
        ),
        pytest.param(
            {"cocoon_vms_x": {"a": {"ports": ["1:1", "2:2"]}}, "cocoon_vms": {"a": {"ports": ["3:3"]}}},
            [{"name": "a", "ports": ["3:3"]}],
            id="lists are replaced",
        ),
        pytest.param(
            {"cocoon_vms_x": {"a": {"memory": "1G", "cpu": 1}}, "cocoon_vms": {"a": {"memory": None}}},
            [{"name": "a", "cpu": 1}],
            id="null takes a key away",
        ),
    ],
)
def test_merging(variables: Vars, expected: list[Vars]) -> None:
    assert cocoon_merge(variables, "cocoon_vms") == expected


def test_merging_with_defaults_and_without_touching_the_sources() -> None:
    defaults = {"state": "present", "labels": {"a": "1"}}
    variables = {"cocoon_vms": {"a": {"labels": {"b": "2"}}, "b": {"state": "absent"}}}
    merged = cocoon_merge(variables, "cocoon_vms", defaults)
    assert merged[0] == {"name": "a", "state": "present", "labels": {"a": "1", "b": "2"}}
    assert merged[1]["state"] == "absent"
    merged[0]["labels"]["c"] = "3"
    assert defaults == {"state": "present", "labels": {"a": "1"}}
    assert variables["cocoon_vms"]["a"] == {"labels": {"b": "2"}}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("web1", "cocoon_vms_x must be a dictionary by name"),
        (3, "cocoon_vms_x must be a dictionary by name"),
        ([{"cpu": 1}], "cocoon_vms_x: item 1 has no 'name'"),
        (["web1"], "cocoon_vms_x: item 1 has no 'name'"),
        ([{"name": "a"}, {"name": "a"}], "cocoon_vms_x: 'a' is there twice"),
        ({"a": "1G"}, "cocoon_vms_x: 'a' must be a dictionary"),
        ({"a": {"name": "b"}}, "'a' says that its name is 'b'"),
    ],
)
def test_what_cannot_be_meant_names_the_variable(value: t.Any, words: str) -> None:
    with pytest.raises(AnsibleFilterError, match=words):
        cocoon_merge({"cocoon_vms": {"ok": {}}, "cocoon_vms_x": value}, "cocoon_vms")


INVENTORY: dict[str, Vars] = {
    "hv1": {"cocoon_vms": {}},
    "hv2": {},
    "web1": {"cocoon_host": "hv1", "cocoon_vm": {"memory": "1G"}},
    "web2": {"cocoon_host": "hv2", "cocoon_vm": {"name": "other"}, "cocoon_vm_base": {"memory": "2G", "cpu": 1}},
    "web3": {"cocoon_host": "hv1", "cocoon_vm": None, "cocoon_vm_base": {"image": "tiny"}},
    "router": {},
}


def test_inversion() -> None:
    assert cocoon_vm_hosts(INVENTORY) == {"hv1": ["web1", "web3"], "hv2": ["web2"]}


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ({"cocoon_host": "hv9", "cocoon_vm": {}}, "host 'x': cocoon_host 'hv9' is not a host of the inventory"),
        ({"cocoon_host": None, "cocoon_vm": {}}, "is not a host of the inventory"),
        ({"cocoon_host": ["hv1"], "cocoon_vm": {}}, "is not a host of the inventory"),
        ({"cocoon_host": "x", "cocoon_vm": {}}, "cannot be its own hypervisor"),
        ({"cocoon_vm": {}}, "host 'x' has cocoon_vm but no cocoon_host"),
    ],
)
def test_hosts_that_cannot_be_meant(host: Vars, words: str) -> None:
    with pytest.raises(AnsibleFilterError, match=words):
        cocoon_vm_hosts({**INVENTORY, "x": host})


def test_a_hypervisor_may_inherit_a_vm() -> None:
    assert "hv3" not in str(cocoon_vm_hosts({**INVENTORY, "hv3": {"cocoon_vm": {}}}, ["hv3"]))


def test_definitions_of_both_kinds_over_defaults() -> None:
    listed = [{"name": "a", "memory": "4G"}]
    defaults = {"state": "started", "memory": "512M", "accel": None}
    assert cocoon_definitions(listed, INVENTORY, ["web1", "web2", "web3"], defaults) == [
        {"name": "a", "state": "started", "memory": "4G"},
        {"name": "web1", "state": "started", "memory": "1G"},
        {"name": "other", "state": "started", "memory": "2G", "cpu": 1},
        {"name": "web3", "state": "started", "memory": "512M", "image": "tiny"},
    ]


@pytest.mark.parametrize(
    ("listed", "hosts", "defaults", "words"),
    [
        ([{"name": "web1"}], ["web1"], {}, "VM 'web1' is defined twice"),
        ([], ["router"], {}, "host 'router' has cocoon_host but no cocoon_vm"),
        ([], [], ["x"], "cocoon_defaults must be a dictionary"),
        ([], [], {"name": "x"}, "cannot have a 'name'"),
    ],
)
def test_definitions_that_cannot_be_meant(listed: list[Vars], hosts: list[str], defaults: t.Any, words: str) -> None:
    with pytest.raises(AnsibleFilterError, match=words):
        cocoon_definitions(listed, INVENTORY, hosts, defaults)


def test_a_vm_host_with_something_else_than_options() -> None:
    with pytest.raises(AnsibleFilterError, match="host 'x': cocoon_vm must be a dictionary"):
        cocoon_definitions([], {"x": {"cocoon_host": "hv1", "cocoon_vm": "tiny"}}, ["x"])


def test_names_that_a_host_declares() -> None:
    variables = {"cocoon_images": {"b": None}, "cocoon_images_x": [{"name": "a"}, {"name": "b"}], "cocoon_imagery": 1}
    assert cocoon_declared(variables, "cocoon_images") == ["a", "b"]
    with pytest.raises(AnsibleFilterError, match="quotation marks"):
        cocoon_declared({"cocoon_images": {83: None}}, "cocoon_images")


def test_a_null_takes_away_what_the_defaults_give() -> None:
    listed = cocoon_merge(
        {"cocoon_vms_x": {"a": {"cpu": 2, "memory": None}}, "cocoon_vms": {"a": {"cpu": None, "labels": {"x": None}}}},
        "cocoon_vms",
        keep_null=True,
    )
    hostvars = {"w": {"cocoon_vm": {"memory": None}, "cocoon_vm_x": {"memory": "1G"}}}
    defaults = {"cpu": 1, "memory": "512M", "labels": {"x": "1", "y": "2"}}
    assert cocoon_definitions(listed, hostvars, ["w"], defaults) == [
        {"name": "a", "labels": {"y": "2"}},
        {"name": "w", "cpu": 1, "labels": {"x": "1", "y": "2"}},
    ]


WHOLE: dict[str, Vars] = {
    "hv1": {"cocoon_vms": {"a": {"memory": "1G"}}, "cocoon_vms_ci": [{"name": "runner", "count": 2}]},
    "hv2": {"cocoon_vms": {"a": None, "b": {"state": "stopped"}}, "cocoon_defaults": {"state": "absent"}},
    "hv3": {},
    "web1": {"cocoon_host": "hv1", "cocoon_vm": {"name": "web"}},
    "web2": {"cocoon_host": "hv2", "cocoon_vm": {"state": None}},
}


def test_what_the_whole_inventory_wants() -> None:
    hosts = cocoon_vm_hosts(WHOLE)
    assert cocoon_inventory_vms(WHOLE, ["hv1", "hv2", "hv3"], hosts) == {
        "hv1": {"a": "started", "runner-1": "started", "runner-2": "started", "web": "started"},
        "hv2": {"a": "absent", "b": "stopped", "web2": "started"},
        "hv3": {},
    }


class Untemplated(dict[str, t.Any]):
    """A definition of which only the outline can be had."""

    def __getitem__(self, key: str) -> t.Any:
        if key == "memory":
            raise AssertionError("not to be looked at")
        return super().__getitem__(key)


def test_an_option_that_is_not_looked_at_cannot_fail_to_template() -> None:
    broken = {"hv1": {"cocoon_vms": {"a": Untemplated(memory="{{ no_such }}")}}}
    assert cocoon_inventory_vms(broken, ["hv1"], {}) == {"hv1": {"a": "started"}}


@pytest.mark.parametrize("value", [3, {"a": {"count": "many"}}])
def test_an_inventory_that_cannot_be_meant_names_the_hypervisor(value: t.Any) -> None:
    with pytest.raises(AnsibleFilterError, match="hypervisor 'hv1': "):
        cocoon_inventory_vms({"hv1": {"cocoon_vms": value}}, ["hv1"], {})


DEFINED = {"hv1": {"web1": "started", "old": "absent"}, "hv2": {"listed": "started", "gone": "absent"}, "hv3": {}}


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        ("hv1", {"listed": "hv2"}),
        ("hv2", {"web1": "hv1"}),
        ("hv3", {"web1": "hv1", "listed": "hv2"}),
    ],
)
def test_what_is_wanted_elsewhere(here: str, expected: Vars) -> None:
    assert cocoon_elsewhere(DEFINED, here) == expected


@pytest.mark.parametrize(
    ("existing", "there", "expected"),
    [
        pytest.param([], {"hv2": ["web1"]}, {"web1": "hv2"}, id="it was moved in the inventory"),
        pytest.param(["web1"], {"hv2": ["web1"]}, {}, id="it is here already"),
        pytest.param([], {"hv1": ["web1"], "hv2": ["old", "other"]}, {}, id="others are none of its business"),
        pytest.param([], {"hv3": ["web1"], "hv9": []}, {"web1": "hv3"}, id="a third one has it"),
    ],
)
def test_what_would_be_made_anew(existing: list[str], there: Vars, expected: Vars) -> None:
    assert cocoon_elsewhere(DEFINED, "hv1", existing, there) == expected


@pytest.mark.parametrize("state", ["started", "absent"])
def test_a_vm_that_its_hypervisor_lists_is_its_own(state: str) -> None:
    defined = {"hv1": {"probe": "started"}, "hv2": {"probe": state}}
    assert cocoon_elsewhere(defined, "hv1", [], {"hv2": ["probe"]}) == {}


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("", []),
        ("all", []),
        ("all:!web1", ["web1"]),
        ("all,!web[1:3],!~db.*", ["web[1:3]", "~db.*"]),
        ("hv1:&prod:!old", ["old"]),
    ],
)
def test_exclusions(limit: str, expected: list[str]) -> None:
    assert cocoon_exclusions(limit) == expected


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({True: {}}, "the name 'True' is true or false to YAML: put it into quotation marks"),
        ({83: {}}, "the name '83' is a number to YAML"),
        ([{"name": False}], "the name 'False' is true or false to YAML"),
        ([{"name": 83}], "the name '83' is a number to YAML"),
        ({"web1": "tiny"}, "'web1' must be a dictionary of options, not text"),
        ({"web1": ["tiny"]}, "'web1' must be a dictionary of options, not a list"),
        ({"web1": 3}, "'web1' must be a dictionary of options, not a number"),
        ([{"name": ""}], "item 1 has no 'name'"),
        ([{"cpu": 1}], "item 1 has no 'name'"),
    ],
)
def test_what_yaml_made_of_names_and_definitions(value: t.Any, words: str) -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        cocoon_merge({"cocoon_vms": value}, "cocoon_vms")
    assert f"cocoon_vms: {words}" in str(caught.value)


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        ({"memroy": "128M"}, ": unknown options: memroy. Supported"),
        ({"nics": [{"netwrok": "lab"}]}, "nics.netwrok"),
        ({"memory": "1.5"}, "memory: '1.5' is not a size"),
        ({"cpu": "two"}, "cpu"),
        ({"ports": ["8080"]}, "ports[0]: '8080' is not a port to publish. Name two ports"),
        ({"state": "up"}, "state"),
        ({"count": "some"}, "count"),
        ({"password": {"vault": "hunter2"}, "memroy": 1}, "memroy"),
        ({"name": "-a"}, "name"),
    ],
)
def test_problems_name_the_vm(definition: Vars, words: str) -> None:
    good = {"name": "db1", "cpu": 2, "memory": "1.5G", "labels": {"a": "b"}, "count": 0}
    (line,) = cocoon_problems([good, {"name": "web2", **definition}])
    assert line.startswith(f"vms[1] ({definition.get('name', 'web2')}): ") and words in line
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"networks": [{"name": "lab", "subnte": "10.1.0.0/24"}]}, "networks[0] (lab): unknown options: subnte."),
        ({"images": [{"name": "a"}, {"name": "b", "pull": "now"}]}, "images[1] (b): value of pull must be one of"),
        ({"images": [{"name": "a", "registry_user": "me"}]}, "images[0] (a): parameters are required together"),
        ({"images": [{"name": "a", "registry_password": ["hunter2"]}]}, None),
        ({"vms": [{"memory": "1G"}]}, "vms[0].missing required arguments: name"),
        ({"vms": "no list", "networks": ["no dictionary"]}, None),
    ],
)
def test_problems_of_a_site_name_the_item(arguments: Vars, line: str | None) -> None:
    found = site_problems(arguments)
    assert not any("hunter2" in words for words in found)
    assert line is None or (len(found) == 1 and found[0].startswith(line)), found


def test_no_problems() -> None:
    definition: Vars = {"name": "web1", "image": "tiny", "nics": [{"network": "lab"}], "command": "a b", "force": True}
    assert cocoon_problems([definition]) == cocoon_problems([]) == []
    assert definition == {**definition} and "cpu" not in definition
    assert "given already" in cocoon_problems([definition, definition])[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, None),
        ({"name": "0123"}, None),
        ({"name": "on", "vms": None}, None),
        ({"vms": "not a list"}, None),
        ({"vms": [{"name": "a"}, "b", {}]}, None),
        ({"name": 83}, "name: '83' is a number to YAML"),
        ({"name": 1.1}, "name: '1.1' is a number to YAML"),
        ({"name": True}, "name: 'True' is true or false to YAML"),
        ({"vms": [{"name": "a"}, {"name": 83}]}, r"vms\[1\].name: '83' is a number"),
    ],
)
def test_names_before_they_are_text(arguments: dict[str, t.Any], message: str | None) -> None:
    found = misread_names(arguments)
    assert (found is None) if message is None else re.match(message, str(found))
