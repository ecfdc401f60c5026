# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a definition may say, as tables."""

from __future__ import annotations

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.definition import (
    normalise,
    split_port,
    validate_all,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._types import GIB, MIB

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBmqYFSlcXefdyXqNU+fZmC7wOFCNTX23nukQzizt6Lk someone@example"
ECDSA = (
    "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBK2AoDodDRPhz1icCkZVruQJR1YV"
    "kYIcBmCRBYJN0/jHwktPJfY5llFn3h0JxXZfFQ9aZk0VfV040dMbp8O6U2s= someone@example"
)
OPTIONS = 'from="10.0.0.0/8,192.0.2.1",command="echo \\"a b\\" #" '
BLOB = KEY.split()[1]
HASHES = (
    "$1$Zc4p/2Q1$3rQG8Jb8nKn1GJm1sJcZp/",
    f"$5$rounds=5000$saltsalt${'a' * 43}",
    f"$6$saltsalt${'./aZ' * 21}ab",
    f"$2b$12${'x' * 53}",
    f"$y$j9T$F5Jx5fExrKuPp53xLKQ..1${'z' * 43}",
)


@pytest.mark.parametrize(
    "option, value, expected",
    [
        ("memory", "512M", 512 * MIB),
        ("memory", "2GiB", 2 * GIB),
        ("memory", 64 * MIB, 64 * MIB),
        ("storage", str(10 * GIB), 10 * GIB),
        ("cpu", 1, 1),
        ("cpu", "4", 4),
        ("queue_size", 0, 512),
        ("disk_queue_size", 128, 128),
        ("balloon", "off", "off"),
        ("balloon", "False", "off"),  # what a bare off has become on its way through YAML and the argument spec
        ("balloon", False, "off"),
        ("balloon", "256M", 256 * MIB),
        ("balloon", "0", 0),
        ("memory", "1.5G", 1536 * MIB),
        ("labels", {"tier": ""}, {"tier": ""}),
        ("kernel_args", "  quiet   panic=1 ", "quiet panic=1"),
        ("kernel_args", "", ""),
        ("command", "serve --name 'a b' \"c\"", ["serve", "--name", "a b", "c"]),
        ("command", ["serve", 80, "a,b"], ["serve", "80", "a,b"]),
        ("entrypoint", "", []),
        ("env", {"A": 1, "B_C": "x=y z", "E": ""}, {"A": "1", "B_C": "x=y z", "E": ""}),
        ("secret_env", {"PASSWORD": "it's"}, {"PASSWORD": "it's"}),
        ("working_dir", "/srv/www", "/srv/www"),
        ("working_dir", "", ""),
        ("ports", ["8080:80", "53:53/udp", "80:80/tcp", "0.0.0.0:1:1", "10.0.0.1:2:2", " 3:3 "],
         ["8080:80", "53:53/udp", "80:80", "1:1", "10.0.0.1:2:2", "3:3"]),
        ("ports", ["8000-8002:80-82/udp", "10.0.0.1:5-6:7-8", "9:9"],
         ["8000:80/udp", "8001:81/udp", "8002:82/udp", "10.0.0.1:5:7", "10.0.0.1:6:8", "9:9"]),
        ("ports", ["5-5:6-6"], ["5:6"]),
        ("nics", [{"network": "lab", "mac": "02-00-00-AA-00-01", "ip": None}],
         [{"network": "lab", "mac": "02:00:00:aa:00:01"}]),
        ("nics", [], []),
        ("data_disks", [{"name": "data1", "size": "16M", "fstype": None}], [{"name": "data1", "size": 16 * MIB}]),
        ("data_disks", [{"name": "d", "fstype": "none"}], [{"name": "d", "fstype": "none"}]),
        ("ssh_keys", [f" {KEY}\n"], [KEY]),
        ("ssh_keys", [], []),
        ("ssh_keys", [f"# who may\r\n\r\n{KEY}\r\n", ECDSA], [KEY, ECDSA]),
        ("ssh_keys", [f"ssh-ed25519\t{BLOB}"], [f"ssh-ed25519\t{BLOB}"]),
        ("ssh_keys", f'from="a,b",no-pty {KEY}\n{ECDSA} me, at home\n'.split(","),
         [f'from="a,b",no-pty {KEY}', f"{ECDSA} me, at home"]),
        ("ssh_keys", [OPTIONS + KEY, f"no-pty {ECDSA} grün"], [OPTIONS + KEY, f"no-pty {ECDSA} grün"]),
        *(("password", text, text) for text in (*HASHES, "$ecret$", "$6", "pa$6$ss")),
        ("labels", {"tier": "web", 1: 2}, {"tier": "web", "1": "2"}),
        ("labels", {}, {}),
        ("hostname", "web-1.example", "web-1.example"),
        ("hostname", "", ""),
        ("image", "sha256:00ff", "sha256:00ff"),
        ("image", "ghcr.io/x/y:24.04", "ghcr.io/x/y:24.04"),
        ("watchdog", False, False),
        ("timeout", 30, 30.0),
    ],
)  # fmt: skip
def test_values(option, value, expected):
    definition = normalise({"name": "web1", option: value})
    assert definition == {"name": "web1", option: expected}
    again = normalise(definition)
    assert again == definition, "a definition is its own normal form"


@pytest.mark.parametrize(
    "option, value, where, text",
    [
        ("name", "-web", "name", "letter or digit"),
        ("name", "web1\n", "name", "not a valid name"),
        ("name", "x" * 64, "name", "63"),
        ("state", "paused?", "state", "started"),
        ("hypervisor", "xen", "hypervisor", "qemu"),
        ("accel", "hax", "accel", "tcg"),
        ("image", "../../etc/passwd", "image", "image"),
        ("image", "", "image", "image"),
        ("cpu", 0, "cpu", "1 to 240"),
        ("cpu", "two", "cpu", "whole number"),
        ("cpu", True, "cpu", "whole number"),
        ("memory", "10Q", "memory", "512M"),
        ("memory", "32M", "memory", "64M"),
        ("memory", "65.5M", "memory", "multiple of 1M"),
        ("memory", str(64 * MIB + 1), "memory", "multiple of 1M"),
        ("memory", "99999999T", "memory", "too large"),
        ("storage", "1M", "storage", "16M"),
        ("storage", str(GIB + 512), "storage", "multiple of 4K"),
        ("queue_size", 100, "queue_size", "power of two"),
        ("queue_size", 128, "queue_size", "256"),
        ("disk_queue_size", 2048, "disk_queue_size", "1024"),
        ("network", "a/b", "network", "letters"),
        ("nics", {"network": "lab"}, "nics", "list"),
        ("nics", ["lab"], "nics[0]", "mapping"),
        ("nics", [{"network": "lab", "speed": 3}], "nics[0].speed", "network, mac, ip"),
        ("nics", [{}, {"mac": "01:00:00:00:00:01"}], "nics[1].mac", "multicast"),
        ("nics", [{"mac": "00:00:00:00:00:00"}], "nics[0].mac", "made up"),
        ("nics", [{"metric": 0}], "nics[0].metric", "from 1"),
        ("nics", [{"vlan": 4095}], "nics[0].vlan", "to 4094"),
        ("limits", {"total": {}}, "limits.total", "rate, iops or both"),
        ("limits", {"total": {"rate": "1M"}, "read": {"rate": "1M"}}, "limits.total", "alone"),
        ("limits", {"rx": {"rate": "1M"}}, "limits.rx", "total, read, write"),
        ("limits", {"read": {"rate": "32K"}}, "limits.read.rate", "64K"),
        ("limits", {"read": {"rate": "2T"}}, "limits.read.rate", "1T"),
        ("limits", {"write": {"rate": "2M", "burst": "1M"}}, "limits.write.burst", "at least rate"),
        ("limits", {"write": {"burst": "1M"}}, "limits.write.rate", "bytes a second"),
        ("limits", {"write": {"iops": 0}}, "limits.write.iops", "from 1"),
        ("data_disks", [{"name": "a", "limits": {"all": {}}}], "data_disks[0].limits.all", "total, read, write"),
        ("nics", [{"limits": {"rx": {}}}], "nics[0].limits.rx.rate", "bytes a second"),
        ("nics", [{"limits": {"tx": {"rate": "1K"}}}], "nics[0].limits.tx.rate", "8K"),
        ("nics", [{"limits": {"rx": {"rate": "1M", "burst": "64K"}}}], "nics[0].limits.rx.burst", "128K"),
        ("nics", [{"limits": {"tx": {"rate": "1M", "burst": "4G"}}}], "nics[0].limits.tx.burst", "less than 4G"),
        ("nics", [{"limits": {"both": {"rate": "1M"}}}], "nics[0].limits.both", "rx, tx"),
        ("nics", [{"routes": [{"via": "10.0.0.1"}]}], "nics[0].routes[0].to", "leads"),
        ("nics", [{"routes": [{"to": "0.0.0.0/0"}]}], "nics[0].routes[0].to", "default_route"),
        ("nics", [{"routes": [{"to": "10.0.0.0/8"}, {"to": "10.0.0.0/8"}]}], "nics[0].routes[1].to", "metric"),
        ("nics", [{"routes": [{"to": "10.0.0.0/8"}] * 17}], "nics[0].routes", "At most 16"),
        ("nics", [{"mac": "02:00"}], "nics[0].mac", "02:00:00:12:34:56"),
        ("nics", [{"ip": "10.0.0"}], "nics[0].ip", "IPv4"),
        ("nics", [{"ip6": "10.0.0.1"}], "nics[0].ip6", "IPv6"),
        ("nics", [{"ip6": "fe80::1"}], "nics[0].ip6", "no address of a machine"),
        ("nics", [{"ip6": "fd00::1%eth0"}], "nics[0].ip6", "no address of a machine"),
        ("nics", [{}] * 9, "nics", "At most 8"),
        ("ports", ["8000-8010:80"], "ports[0]", "8080:80"),
        ("ports", ["8000-8010:9000-9009"], "ports[0]", "as many"),
        ("ports", ["8010-8000:8010-8000"], "ports[0]", "as many"),
        ("ports", ["65530-65540:1-11"], "ports[0]", "1 to 65535"),
        ("ports", ["1-60000:1-60000"], "ports[0]", "At most 1024"),
        ("ports", ["1-1000:1-1000", "2001-2100:1-100"], "ports", "At most 1024"),
        ("ports", ["\u0668080:80"], "ports[0]", "8080:80"),
        ("ports", ["8080"], "ports[0]", "Name two ports, the host's and the guest's: '8080:8080' or '80:8080'"),
        ("ports", ["22"], "ports[0]", "the host's and the guest's: '22:22' or '8080:22'"),
        ("ports", ["484822"], "ports[0]", "YAML reads a bare 8080:22 as one number"),
        ("ports", ["80:80", "0:80"], "ports[1]", "1 to 65535"),
        ("ports", ["80:70000"], "ports[0]", "65535"),
        ("ports", ["300.0.0.1:80:80"], "ports[0]", "IPv4"),
        ("ports", ["80:80/sctp"], "ports[0]", "8080:80"),
        ("data_disks", [{"size": "1G"}], "data_disks[0].name", "name"),
        ("data_disks", [{"name": "Data"}], "data_disks[0].name", "lower case"),
        ("data_disks", [{"name": "cocoon-cow"}], "data_disks[0].name", "cocoon-"),
        ("data_disks", [{"name": "d" * 21}], "data_disks[0].name", "20"),
        ("data_disks", [{"name": "d", "size": "15M"}], "data_disks[0].size", "16M"),
        ("data_disks", [{"name": "d", "fstype": "xfs"}], "data_disks[0].fstype", "ext4"),
        ("data_disks", [{"name": "d"}, {"name": "d"}], "data_disks[1].name", "twice"),
        ("user", "Admin", "user", "lower case"),
        ("password", "", "password", "Leave the option out"),
        ("password", "a\nroot:b", "password", "one line"),
        ("ssh_keys", KEY, "ssh_keys", "list"),
        ("ssh_keys", ["ssh-ed25519"], "ssh_keys[0]", "authorized_keys"),
        ("ssh_keys", [KEY, f"{KEY}\n# x\nssh-rsa"], "ssh_keys[1]", "line 3 is not a public key"),
        ("ssh_keys", [f"ssh-rsa {BLOB}"], "ssh_keys[0]", "not a public key"),  # another type than it is of
        ("ssh_keys", [KEY[:60]], "ssh_keys[0]", "Write it whole"),
        ("ssh_keys", ["ssh-ed25519 AAAA x"], "ssh_keys[0]", "not a public key"),
        ("ssh_keys", ["ssh-ed25519 someone@example"], "ssh_keys[0]", "not a public key"),
        ("ssh_keys", [f'from="10.0.0.1 {KEY}'], "ssh_keys[0]", "not a public key"),
        ("ssh_keys", [BLOB], "ssh_keys[0]", "authorized_keys"),
        ("ssh_keys", [f"{KEY} \x1b[0m"], "ssh_keys[0]", "not text"),
        ("ssh_keys", [" \n# none\n"], "ssh_keys[0]", "no public key"),
        ("ssh_keys", ["---- BEGIN SSH2 PUBLIC KEY ----"], "ssh_keys[0]", "ssh-keygen -i"),
        *(("password", text[:-1], "password", "whole hash") for text in HASHES),
        ("password", "$6$x", "password", "whole hash"),
        ("password", HASHES[2] + "\n", "password", "one line"),
        ("ssh_keys", ["-----BEGIN OPENSSH PRIVATE KEY-----"], "ssh_keys[0]", ".pub"),
        ("kernel_args", "a\nb", "kernel_args", "one line"),
        ("kernel_args", "x" * 1025, "kernel_args", "1024"),
        ("command", "say 'a", "command", "list of words"),
        ("command", {"a": 1}, "command", "is not a list"),
        ("command", ["a", True], "command[1]", "quotation marks"),
        ("entrypoint", ["a\0b"], "entrypoint[0]", "is not a word"),
        ("env", ["A=1"], "env", "NAME: value"),
        ("env", {"A=B": "1"}, "env", "letters, digits"),
        ("env", {"A": None}, "env.A", "quotation marks"),
        ("env", {"A": "x" * 70000}, "env.A", "64K"),
        ("secret_env", {"A": False}, "secret_env.A", "quotation marks"),
        ("working_dir", "srv", "working_dir", "slash"),
        ("labels", ["a"], "labels", "key: value"),
        ("labels", {"a": {"b": 1}}, "labels.a", "not a mapping"),
        ("labels", {"a": None}, "labels.a", "not nothing. Put it into quotation marks"),
        ("labels", {"a": True}, "labels.a", "not true or false"),
        ("labels", {True: "a"}, "labels", "not true or false"),
        ("labels", {"a": "b\nc"}, "labels.a", "one line"),
        ("labels", {" ": "b"}, "labels", "empty"),
        ("network", "False", "network", "quotation marks"),
        ("network", ["a"], "network", "is not a name"),
        ("owner", " ", "owner", "empty"),
        ("hostname", "web_1", "hostname", "hyphens"),
        ("hostname", "10.0.0.1", "hostname", "not digits"),
        ("watchdog", "maybe", "watchdog", "true or false"),
        ("balloon", True, "balloon", "256M"),
        ("balloon", "1.0001M", "balloon", "whole number"),
        ("wait_for", "smoke", "wait_for", "agent"),
        ("wait_port", 0, "wait_port", "65535"),
        ("wait_pattern", "(", "wait_pattern", "regular expression"),
        ("timeout", -1, "timeout", "seconds"),
        ("stop_timeout", "soon", "stop_timeout", "seconds"),
        ("stop_timeout", float("nan"), "stop_timeout", "seconds"),
        ("colour", "red", "colour", "not an option"),
    ],
)
def test_bad_values(option, value, where, text):
    with pytest.raises(InputError) as caught:
        normalise({"name": "web1", option: value}, "vms[2].")
    assert caught.value.option == f"vms[2].{where}"
    assert text in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("option", ["password", "ssh_keys"])
def test_a_bad_secret_is_not_repeated(option):
    secret = "hunter2\nhunter2"
    with pytest.raises(InputError) as caught:
        normalise({"name": "web1", option: secret if option == "password" else [secret]})
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(normalise({"name": "web1", "password": "hunter2", "user_data": "#!hunter2"}))


def test_only_given_keys_are_left():
    assert normalise({"name": "web1", "cpu": None, "nics": None, "labels": None}) == {"name": "web1"}
    with pytest.raises(InputError, match="name: is missing"):
        normalise({"name": None})


@pytest.mark.parametrize(
    "first, second, text",
    [
        ({}, {"name": "web1"}, "vms[1] (web1): name: 'web1' is given already by vms[0] (web1): name"),
        ({"state": "absent"}, {"name": "web1"}, "vms[1] (web1): name"),
        ({"nics": [{"mac": "02:00:00:00:00:0a"}]}, {"nics": [{}, {"mac": "02:00:00:00:00:0A"}]},
         "vms[1] (web2): nics[1].mac"),
        ({"network": "lab", "nics": [{"ip": "10.1.0.2"}]}, {"nics": [{"network": "lab", "ip": "10.1.0.2"}]},
         "vms[1] (web2): nics[0].ip"),
        ({"nics": [{"network": "lab", "ip": "10.1.0.2"}, {"network": "lab", "ip": "10.1.0.2"}]}, {},
         "vms[0] (web1): nics[1].ip"),
        ({"ports": ["80:80"]}, {"ports": ["81:80", "80:8080"]}, "vms[1] (web2): ports[1]: 80:8080 clashes with"),
        ({"ports": ["80:80"]}, {"ports": ["10.0.0.1:80:80"]}, "vms[1] (web2): ports[0]"),
        ({"ports": ["80:80", "80:81"]}, {}, "vms[0] (web1): ports[1]"),
        ({"ports": ["80-90:80-90"]}, {"ports": ["85:1"]}, "vms[1] (web2): ports[0]: 85:1 clashes with"),
    ],
)  # fmt: skip
def test_what_two_items_may_not_share(first, second, text):
    with pytest.raises(InputError) as caught:
        validate_all([{"name": "web1", **first}, {"name": "web2", **second}])
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "first, second",
    [
        ({"nics": [{"network": "lab", "ip": "10.1.0.2"}]}, {"nics": [{"network": "dmz", "ip": "10.1.0.2"}]}),
        ({"ports": ["80:80"]}, {"ports": ["80:80/udp", "81:80"]}),
        ({"ports": ["10.0.0.1:80:80"]}, {"ports": ["10.0.0.2:80:80"]}),
        ({"ports": ["80:80"], "state": "absent"}, {"ports": ["80:80"]}),
        ({"nics": [{"mac": "02:00:00:00:00:0a"}]}, {"nics": [{"mac": "02:00:00:00:00:0a"}], "state": "absent"}),
    ],
)
def test_what_two_items_may_share(first, second):
    assert len(validate_all([{"name": "web1", **first}, {"name": "web2", **second}])) == 2


def test_all_errors_come_together():
    with pytest.raises(InputError) as caught:
        validate_all([{"name": "a", "cpu": 0}, {"name": "b"}, {"name": "c", "memory": "10Q"}])
    assert "vms[0] (a): cpu" in str(caught.value) and "vms[2] (c): memory" in str(caught.value)
    with pytest.raises(InputError) as caught:
        validate_all([{"name": "a", "cpu": 0}], None)
    assert caught.value.option == "cpu"


def test_split_port():
    assert split_port("10.0.0.1:53:5353/udp") == ("10.0.0.1", 53, 5353, "udp")
    assert split_port("8080:80") == (None, 8080, 80, "tcp")


def test_count_of_none_stands_for_no_vm():
    assert validate_all([{"name": "web", "count": 0, "cpu": 1}]) == []
    assert [item["name"] for item in validate_all([{"name": "web", "count": 2}, {"name": "db", "count": 0}])] == [
        "web-1",
        "web-2",
    ]
    with pytest.raises(InputError, match="0 to 1000"):
        validate_all([{"name": "web", "count": -1 + 1002}])


def test_an_item_without_a_name_is_called_by_its_number():
    with pytest.raises(InputError) as caught:
        validate_all([{"name": "web1"}, {"cpu": 1}])
    assert caught.value.option == "vms[1].name"
