# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import shlex
import typing as t

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.cocoon.microvm.plugins.filter.cocoon_connections import cocoon_connections

Vars = dict[str, t.Any]

RECORD = {
    "id": "k3jq5n7c2v4m6x8z0b1d9f5h7t",
    "config": {"name": "web1"},
    "network_configs": [{"tap": "cmx-0"}, {"network": {"ip": "10.0.0.5"}}],
}


def connect(vm: Vars, hypervisor: Vars, result: t.Any = None) -> list[Vars]:
    """What web1 on hv1 gets."""
    result = {"vms": {"web1": RECORD, "gone": None}} if result is None else result
    hostvars = {
        "hv1": {**hypervisor, "vms_result": result},
        "web1": {"cocoon_host": "hv1", "cocoon_vm": {}, **vm},
    }
    return cocoon_connections(hostvars, {"hv1": ["web1"]}, {"hv1": "hv1"})


def variables(vm: Vars, hypervisor: Vars) -> Vars:
    found = connect(vm, hypervisor)
    assert [item["host"] for item in found] == ["web1"]
    return t.cast(Vars, found[0]["variables"])


def proxy(hypervisor: Vars) -> list[str]:
    """The words of the ProxyCommand, unquoted as ansible and then the shell do it."""
    words = shlex.split(variables({}, hypervisor)["ansible_ssh_common_args"])
    command = [word for word in words if word.startswith("ProxyCommand=")]
    return shlex.split(command[0].partition("=")[2]) if command else []


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBmqYFSlcXefdyXqNU+fZmC7wOFCNTX23nukQzizt6Lk"


def options(record: Vars) -> list[str]:
    found = connect({}, {"ansible_connection": "local"}, {"vms": {"web1": record}})
    return shlex.split(found[0]["variables"]["ansible_ssh_common_args"])


def test_a_key_that_the_guest_has_named_is_the_only_one_that_is_good() -> None:
    words = options({**RECORD, "host_keys": ["ssh-rsa AAAAB3", "ssh-rsa x -o ProxyCommand=y", KEY]})
    assert f"KnownHostsCommand=/bin/echo cocoon-{RECORD['id']} {KEY}" in words
    assert {"StrictHostKeyChecking=yes", "UserKnownHostsFile=/dev/null"} <= set(words)
    for keys in ([], ["ssh-rsa x -o ProxyCommand=y"], [f"{KEY}\nx"]):
        words = options({**RECORD, "host_keys": keys})
        assert "StrictHostKeyChecking=accept-new" in words and not any("KnownHosts" in word for word in words)


@pytest.mark.parametrize("connection", ["local", "ansible.builtin.local"])
def test_a_local_hypervisor_needs_no_jump(connection: str) -> None:
    found = variables({}, {"ansible_connection": connection})
    assert found["ansible_host"] == "10.0.0.5"
    assert "Proxy" not in found["ansible_ssh_common_args"]
    assert "HostKeyAlias=cocoon-k3jq5n7c2v4m6x8z0b1d9f5h7t" in found["ansible_ssh_common_args"]


@pytest.mark.parametrize(
    ("hypervisor", "expected"),
    [
        ({}, ["hv1"]),
        ({"ansible_host": "192.0.2.7"}, ["192.0.2.7"]),
        (
            {"ansible_host": "192.0.2.7", "ansible_port": 2222, "ansible_user": "root"},
            ["-p", "2222", "-l", "root", "192.0.2.7"],
        ),
        (
            {"ansible_ssh_private_key_file": "/my keys/id", "ansible_ssh_common_args": "-o 'ProxyJump=a b'"},
            ["-i", "/my keys/id", "-o", "ProxyJump=a b", "hv1"],
        ),
    ],
)
def test_the_jump_goes_as_ansible_goes(hypervisor: Vars, expected: list[str]) -> None:
    assert proxy(hypervisor) == ["ssh", "-W", "%h:%p", "-o", "BatchMode=yes", *expected]


def test_what_the_inventory_says_wins() -> None:
    mine = {"ansible_host": "198.51.100.1", "ansible_user": "me", "cocoon_vm": {"user": "you"}}
    found = variables({**mine, "ansible_ssh_common_args": "-o Compression=yes"}, {})
    assert "ansible_host" not in found
    assert "ansible_user" not in found
    assert found["ansible_ssh_common_args"].startswith("-o Compression=yes -o ")


def test_the_user_of_the_definition() -> None:
    assert variables({"cocoon_vm": {"user": "joe"}}, {})["ansible_user"] == "joe"
    assert "ansible_user" not in variables({}, {})


def test_a_second_time_in_the_same_run_replaces_what_the_first_said() -> None:
    first = variables({"cocoon_vm": {"user": "joe"}, "ansible_ssh_common_args": "-4"}, {})
    moved = {**RECORD, "network_configs": [{"network": {"ip": "10.0.0.6"}}]}
    again = connect({"cocoon_vm": {"user": "joe"}, **first}, {}, {"vms": [moved]})[0]["variables"]
    assert (again["ansible_host"], again["ansible_user"]) == ("10.0.0.6", "joe")
    assert again["ansible_ssh_common_args"] == first["ansible_ssh_common_args"]


def test_two_vms_at_the_same_address_do_not_share_a_connection() -> None:
    one = variables({}, {})["ansible_control_path"]
    other = {**RECORD, "id": "z" * 26}
    two = connect({}, {}, {"vms": [other]})[0]["variables"]["ansible_control_path"]
    assert one != two
    assert one % {"directory": "/cp"} == "/cp/cocoon-k3jq5n7c2v4m6x8z-%r"


@pytest.mark.parametrize("nics", [[], None])
def test_a_vm_that_has_no_address_of_ours_is_left_alone(nics: t.Any) -> None:
    assert connect({}, {}, {"vms": [{**RECORD, "network_configs": nics}]}) == []


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"vms": []},
        {"vms": [{**RECORD, "config": {"name": "another"}}]},
        {"failed": True, "msg": "no answer"},
    ],
)
def test_a_vm_that_is_not_known_is_not_reached_by_its_bare_name(result: Vars) -> None:
    (found,) = connect({"ansible_ssh_common_args": "-4"}, {}, result)
    assert found["variables"]["ansible_host"].endswith(".invalid")
    later = connect({**found["variables"]}, {}, {"vms": [RECORD]})[0]["variables"]
    assert (later["ansible_host"], later["ansible_ssh_common_args"][:4]) == ("10.0.0.5", "-4 -")
    assert connect({"ansible_host": "198.51.100.1"}, {}, result) == []


def test_vms_of_a_hypervisor_that_was_not_asked_are_closed_unless_they_are_known_already() -> None:
    hostvars: dict[str, Vars] = {"hv1": {}, "hv2": {}, "web1": {"cocoon_host": "hv1", "cocoon_vm": {}}}
    (found,) = cocoon_connections(hostvars, {"hv1": ["web1"]}, {"hv2": "hv2"})
    assert found["variables"]["ansible_host"].endswith(".invalid")
    hostvars["web1"].update(variables({}, {}))
    assert cocoon_connections(hostvars, {"hv1": ["web1"]}, {"hv2": "hv2"}) == []


@pytest.mark.parametrize(
    ("hypervisor", "expected"),
    [
        ({}, ["-C", "-o", "StrictHostKeyChecking=no", "hv1"]),
        ({"ansible_ssh_args": "-4", "ansible_ssh_extra_args": "-6"}, ["-4", "-6", "hv1"]),
    ],
)
def test_the_jump_takes_the_runs_ssh_arguments(hypervisor: Vars, expected: list[str]) -> None:
    hostvars = {"hv1": {**hypervisor, "vms_result": {"vms": [RECORD]}}, "web1": {"cocoon_vm": {}}}
    ssh_args = "-C -o StrictHostKeyChecking=no"
    found = cocoon_connections(hostvars, {"hv1": ["web1"]}, {"hv1": "hv1"}, "vms_result", ssh_args)
    words = shlex.split(found[0]["variables"]["ansible_ssh_common_args"])
    assert shlex.split(words[1])[5:] == expected


@pytest.mark.parametrize("result", [None, {"vms": {}}, {"vms": {"web1": {**RECORD, "network_configs": []}}}])
def test_a_vm_that_is_reached_through_its_agent_needs_no_address(result: t.Any) -> None:
    (found,) = connect({"cocoon_connection": "guest", "cocoon_vm": {"name": "w1"}}, {}, result)
    assert found["variables"] == {"ansible_connection": "cocoon.microvm.guest", "cocoon_guest_vm": "w1"}


def test_the_inventory_s_own_connection_stays() -> None:
    (found,) = connect({"cocoon_connection": "guest", "ansible_connection": "paramiko"}, {})
    assert found["variables"]["ansible_host"] == "10.0.0.5" and "ansible_connection" not in found["variables"]
    with pytest.raises(AnsibleFilterError, match="'ssh' or 'guest', and not 'telnet'"):
        connect({"cocoon_connection": "telnet"}, {})
