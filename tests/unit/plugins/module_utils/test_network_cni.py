# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CNI without plugins: which conflist is meant, what its plugins are told, and what their results mean for a guest."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    ChangeRefusedError,
    CocoonError,
    InputError,
    NotFoundError,
    StateError,
    ToolError,
    UnsupportedError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._network import backends, plan
from ansible_collections.cocoon.microvm.plugins.module_utils._network.backends import cni
from ansible_collections.cocoon.microvm.plugins.module_utils._network.cni import (
    attachments,
    conflists,
    plugins,
    results,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._network.cni.attachments import Wish
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import settings
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.plugin_utils import _diagram as diagram

PORTS = {"type": "portmap", "capabilities": {"portMappings": True, "mac": False}}
LIST = conflists.Conflist("pods", "1.0.0", ({"type": "bridge", "bridge": "br0"}, PORTS))
IN_BOX = {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/cmv-x"}
ENDS = [{"name": "br0"}, {"name": "veth1", "mac": "02:00:00:00:00:02"}, IN_BOX]
OUT = {"dst": "0.0.0.0/0"}


# -- networks -------------------------------------------------------------------------------------------------------


def target(record: Record | None = None, **options: t.Any) -> Record:
    return plan.target(plan.define({"name": "pods", **options}), record, "me")


def test_a_network_of_plugins() -> None:
    made = target(type="cni", conflist="podman", dns=["192.0.2.53"])
    assert (made["backend"], made["conflist"], made["cni_conf_dir"]) == ("cni", "podman", "/etc/cni/net.d")
    assert made["cni_bin_dir"] == ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"]
    assert (made["bridge"], made["subnet"], made["nat"], made["dns"]) == ("", None, False, ["192.0.2.53"])
    assert backends.of(made).__name__.endswith(".cni")
    shown = plan.public(made)
    assert "bridge" not in shown and "nat" not in shown and shown["backend"] == "cni"
    assert target()["backend"] == "bridge" and target()["conflist"] is None
    assert backends.of(target()).__name__.endswith(".bridge")
    # What is there stays as it is, whatever is left out.
    assert target(made) == made and target(made, type="cni") == made
    assert target(made, cni_bin_dir=["/opt/plugins/"])["cni_bin_dir"] == ["/opt/plugins"]


@pytest.mark.parametrize(
    ("options", "option", "words"),
    [
        ({"type": "cni"}, "conflist", "is needed"),
        ({"conflist": "podman"}, "conflist", "Use type: cni"),
        ({"type": "bridge", "cni_conf_dir": "/etc/cni/net.d"}, "cni_conf_dir", "Use type: cni"),
        ({"type": "cni", "conflist": "../x"}, "conflist", "not a conflist's name"),
        ({"type": "cni", "conflist": "x\n"}, "conflist", "not a conflist's name"),
        ({"type": "cni", "conflist": "x", "cni_conf_dir": "net.d"}, "cni_conf_dir", "not a folder's path"),
        ({"type": "cni", "conflist": "x", "cni_bin_dir": ["/a:/b"]}, "cni_bin_dir", "not a folder's path"),
        ({"type": "cni", "conflist": "x", "cni_bin_dir": []}, "cni_bin_dir", "names no folder"),
        *(
            ({"type": "cni", "conflist": "x", **given}, option, "is for bridges")
            for option, given in {
                **{"bridge": {"bridge": "br0"}, "adopt": {"adopt": True}, "uplink": {"uplink": "eth1"}},
                **{"subnet": {"subnet": "10.0.0.0/24"}, "gateway": {"gateway": "10.0.0.1"}, "nat": {"nat": False}},
                **{"dhcp": {"dhcp": True}, "names": {"names": True}, "vlan_filtering": {"vlan_filtering": True}},
                **{"isolated": {"isolated": False}, "anti_spoofing": {"anti_spoofing": True}, "mtu": {"mtu": 1400}},
                **{"subnet6": {"subnet6": "fd00:1::/64"}, "reserved": {"reserved": ["10.0.0.9"]}},
            }.items()
        ),
    ],
)
def test_options_that_do_not_go_together(options: Record, option: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        target(**options)
    assert caught.value.option == option


def test_what_is_never_changed() -> None:
    made = target(type="cni", conflist="podman")
    with pytest.raises(ChangeRefusedError, match="of type cni"):
        target(made, type="bridge")
    with pytest.raises(ChangeRefusedError, match="of type bridge"):
        target(target(subnet="10.0.0.0/24"), type="cni", conflist="podman")
    used = plan.Facts(record={**made, "id": "x"}, users=("web1",))
    with pytest.raises(ChangeRefusedError, match="conflist: cannot change from podman to other"):
        plan.plan_present(plan.define({"name": "pods", "conflist": "other"}), used, "me")
    assert plan.plan_present(plan.define({"name": "pods", "cni_bin_dir": ["/x"]}), used, "me").action == "update"


# -- conflists ------------------------------------------------------------------------------------------------------


def write(folder: Path, file: str, document: t.Any) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    (folder / file).write_text(text, encoding="utf-8")


def test_conflists_by_name(tmp_path: Path) -> None:
    plugin = {"type": "bridge"}
    write(tmp_path, "20-b.conflist", {"cniVersion": "1.0.0", "name": "pods", "plugins": [plugin, PORTS]})
    write(tmp_path, "30-c.conflist", {"cniVersion": "0.4.0", "name": "pods", "plugins": [plugin]})
    write(tmp_path, "10-a.conf", {"cniVersion": "0.3.1", "name": "one", "type": "ptp", "ipam": {"type": "static"}})
    write(tmp_path, "00-x.conflist", "{")
    write(tmp_path, "README", "not one")
    found = conflists.load(str(tmp_path), "pods")
    assert (found.version, len(found.plugins)) == ("1.0.0", 2)
    assert found.takes("portMappings") and not found.takes("mac") and not found.takes("ips")
    alone = conflists.load(str(tmp_path), "one")
    assert alone.plugins == ({"type": "ptp", "ipam": {"type": "static"}},)
    assert conflists.plugins_of(alone) == ["ptp", "static"]
    assert conflists.of_record(json.loads(json.dumps(found.record()))) == found
    with pytest.raises(NotFoundError, match="there are one, pods, and .*00-x.conflist cannot be read"):
        conflists.load(str(tmp_path), "other")
    with pytest.raises(StateError, match="it is not JSON"):
        conflists.load(str(tmp_path), "x")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"cniVersion": "0.2.0", "plugins": [{"type": "a"}]}, "is of cniVersion 0.2.0"),
        ({"plugins": [{"type": "a"}]}, "is of cniVersion none"),
        ({"cniVersion": 1, "plugins": [{"type": "a"}]}, "is of cniVersion none"),
        ({"cniVersion": "1.0.0"}, "has no plugins"),
        ({"cniVersion": "1.0.0", "plugins": []}, "has no plugins"),
        ({"cniVersion": "1.0.0", "plugins": {"type": "a"}}, "has no plugins"),
        ({"cniVersion": "1.0.0", "plugins": ["a"]}, "without a type"),
        ({"cniVersion": "1.0.0", "plugins": [{"type": "../sh"}]}, "without a type"),
        ({"cniVersion": "1.0.0", "plugins": [{"type": "a", "capabilities": []}]}, "capabilities"),
    ],
)
def test_conflists_that_mean_nothing(tmp_path: Path, document: Record, words: str) -> None:
    write(tmp_path, "x.conflist", {"name": "x", **document})
    with pytest.raises(StateError, match=words) as caught:
        conflists.load(str(tmp_path), "x")
    assert caught.value.option == "conflist"


# -- what plugins are told ------------------------------------------------------------------------------------------


def test_what_each_plugin_is_told() -> None:
    wish = Wish("02:00:00:00:00:01", "10.0.0.5", 24, ("8080:80", "192.0.2.1:53:5353/udp"))
    told = attachments.capabilities(wish)
    assert attachments.capabilities(wish._replace(cidr6="fd00::5/64"))["ips"] == ["10.0.0.5/24", "fd00::5/64"]
    assert told["portMappings"] == [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "192.0.2.1"},
    ]
    assert (told["ips"], told["mac"]) == (["10.0.0.5/24"], wish.mac)
    first = plugins.config_of(LIST, LIST.plugins[0], told, None)
    assert first == {"type": "bridge", "bridge": "br0", "name": "pods", "cniVersion": "1.0.0"}
    second = plugins.config_of(LIST, PORTS, told, {"ips": []})
    assert second == {
        **{"type": "portmap", "name": "pods", "cniVersion": "1.0.0", "prevResult": {"ips": []}},
        "runtimeConfig": {"portMappings": told["portMappings"]},
    }
    assert attachments.arguments(LIST, wish) == f"IgnoreUnknown=1;IP=10.0.0.5;MAC={wish.mac}"
    static = conflists.Conflist("s", "1.0.0", ({"type": "bridge", "ipam": {"type": "static"}},))
    assert attachments.arguments(static, wish) == f"IgnoreUnknown=1;MAC={wish.mac}"
    fresh = Wish(wish.mac, None, 0, ())
    assert attachments.arguments(LIST, fresh) == f"IgnoreUnknown=1;MAC={wish.mac}"
    assert attachments.capabilities(fresh) == {"mac": wish.mac}


@pytest.mark.parametrize(
    ("changes", "matches"),
    [
        ({}, True),
        ({"ip": None}, True),
        ({"ip": "10.0.0.6"}, False),
        ({"cidr6": "fd00::5/64"}, True),
        ({"cidr6": "fd00::6/64"}, False),
        ({"mac": "02:00:00:00:00:09"}, False),
        ({"ports": ("8081:80",)}, False),
    ],
)
def test_interfaces_that_are_as_they_are_to_be(changes: Record, matches: bool) -> None:
    note = {"state": attachments.ADDED, "mac": "02:00:00:00:00:01", "ip": "10.0.0.5", "ports": ["8080:80"]}
    note["cidr6"] = "fd00::5/64"
    wish = Wish("02:00:00:00:00:01", "10.0.0.5", 24, ("8080:80",))._replace(**changes)
    assert attachments.matches(note, wish) is matches
    assert not attachments.matches({**note, "state": attachments.ADDING}, wish)


# -- what results mean ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "meant"),
    [
        ({}, {}),
        ({"interfaces": ENDS, "ips": []}, {}),
        # 0.3 and 0.4 say the version of an address.
        (
            {"interfaces": ENDS, "ips": [{"version": "4", "interface": 2, "address": "10.0.0.5/24"}]},
            {"ip": "10.0.0.5", "prefix": 24, "subnet": "10.0.0.0/24", "gateway": None, "routes": []},
        ),
        (
            {"ips": [{"address": "fd00::5/64"}, {"address": "10.0.0.5/24", "gateway": "10.0.0.1"}], "routes": [OUT]},
            {
                **{"ip": "10.0.0.5", "prefix": 24, "subnet": "10.0.0.0/24", "gateway": "10.0.0.1", "routes": []},
                **{"ip6": "fd00::5", "prefix6": 64, "gateway6": None},
            },
        ),
        (
            {
                "ips": [{"address": "10.0.0.5/24"}, {"address": "fd00::5/64", "gateway": "fd00::1"}],
                "routes": [{"dst": "::/0"}, {"dst": "fd00:8::/64"}, {"dst": "fd00::/64"}],
            },
            {
                **{"ip": "10.0.0.5", "prefix": 24, "subnet": "10.0.0.0/24", "gateway": None},
                **{"ip6": "fd00::5", "prefix6": 64, "gateway6": "fd00::1"},
                "routes": [{"to": "fd00:8::/64", "via": "fd00::1"}],
            },
        ),
        # As Calico has it: next hops outside of the subnet, and those of the link.
        (
            {
                "ips": [{"address": "10.0.0.5/32", "gateway": "169.254.1.1"}, {"address": "fd00::5/128"}],
                "routes": [OUT, {"dst": "::/0", "gw": "fe80::1"}],
            },
            {
                **{"ip": "10.0.0.5", "prefix": 32, "subnet": "10.0.0.5/32", "gateway": "169.254.1.1", "routes": []},
                **{"ip6": "fd00::5", "prefix6": 128, "gateway6": "fe80::1", "onlink": True},
            },
        ),
        (
            {"ips": [{"address": "fd00::5/64", "gateway": "fe80::1"}], "routes": [{"dst": "::/0"}, OUT]},
            {"ip6": "fd00::5", "prefix6": 64, "gateway6": "fe80::1", "routes": []},
        ),
        (
            {
                "ips": [{"address": "10.0.0.5/24", "gateway": "10.0.0.1"}],
                "routes": [
                    *({"dst": "::/0", "gw": "fd00::1"}, {"dst": "10.0.0.0/24"}, {"dst": "10.7.0.0/16"}),
                    *({"dst": "10.8.0.0/16", "gw": "10.0.0.8", "mtu": 1400}, {**OUT, "gw": "10.0.0.2"}),
                ],
            },
            {
                **{"ip": "10.0.0.5", "prefix": 24, "subnet": "10.0.0.0/24", "gateway": "10.0.0.2"},
                "routes": [{"to": "10.7.0.0/16", "via": "10.0.0.1"}, {"to": "10.8.0.0/16", "via": "10.0.0.8"}],
            },
        ),
        # Addresses of other interfaces are not the guest's.
        ({"interfaces": ENDS, "ips": [{"interface": 0, "address": "10.0.0.1/24"}]}, {}),
    ],
)
def test_what_a_result_means(result: Record, meant: Record) -> None:
    assert results.offer(result, "eth0", "bridge") == {"dns": [], "dns_search": [], **meant}


def test_names_of_a_result() -> None:
    dns = {"nameservers": ["fd00::1", "192.0.2.53"], "domain": "Lab.example.", "search": []}
    found = results.offer({"dns": dns}, "eth0", "bridge")
    assert found == {"dns": ["fd00::1", "192.0.2.53"], "dns_search": ["lab.example"]}


@pytest.mark.parametrize(
    "result",
    [
        {"ips": [{"address": "10.0.0.300/24"}]},
        {"ips": [{"address": 7}]},
        {"ips": [{}]},
        {"ips": [{"address": "10.0.0.5/24", "gateway": "x"}]},
        {"ips": [{"address": "10.0.0.5/24", "gateway": "fd00::1"}]},
        {"ips": [{"address": "10.0.0.5/24"}], "routes": [{**OUT, "gw": "fd00::1"}]},
        {"interfaces": [], "ips": [{"address": "10.0.0.5/24"}], "routes": [{}]},
        {"interfaces": ENDS, "ips": [{"interface": 9, "address": "10.0.0.5/24"}]},
        {"dns": {"nameservers": ["x"]}},
        {"dns": {"search": ["a b"]}},
        {"dns": {"search": [7]}},
        {"dns": "x"},
    ],
)
def test_results_that_cannot_be_meant(result: Record) -> None:
    with pytest.raises(ToolError, match="the CNI plugin 'bridge' printed a wrong result"):
        results.offer(result, "eth0", "bridge")


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"ips": [{"address": "10.0.0.5/24"}], "routes": [OUT]}, "without a next hop"),
        (
            {"ips": [{"address": "10.0.0.5/24", "gateway": "10.0.0.1"}], "routes": [{"dst": "10.9.0.0/16"}] * 17},
            "or too many",
        ),
    ],
)
def test_results_that_guests_cannot_be_told(result: Record, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        results.offer(result, "eth0", "bridge")


@pytest.mark.parametrize("data", [b"", b"hello", b"[]", b"\xff", b"[" * 100_000, b'{"ips": {}}', b'{"routes": [1]}'])
def test_what_is_no_result(data: bytes) -> None:
    with pytest.raises(CocoonError, match="the CNI plugin 'rogue' printed"):
        results.read(data, "rogue")


# -- what a guest is told -------------------------------------------------------------------------------------------


def told(network: Record, **result: t.Any) -> settings.GuestNic:
    found = results.offer(result, "eth0", "bridge")
    config: t.Any = {"mac": IN_BOX["mac"], "network_name": "pods"}
    cni._take(config, {**found, "mtu": 1400})
    seen = settings.as_seen(network, config)
    config.update(mtu=seen.get("mtu") or 0, dns=settings.servers(seen), dns_search=settings.domains(seen))
    settings.route([config], [seen])
    return settings.settings_of({"network_configs": [config]})[0]


def test_what_a_guest_is_told() -> None:
    network = {**target(type="cni", conflist="podman"), "name": "pods"}
    ips = [{"address": "10.0.0.5/24", "gateway": "10.0.0.1"}]
    nic = told(network, ips=ips, routes=[OUT, {"dst": "10.7.0.0/16"}])
    assert (nic.address, nic.gateway, nic.mtu, nic.way_out) == ("10.0.0.5/24", "10.0.0.1", 1400, True)
    assert [str(route) for route in nic.routes] == ["10.7.0.0/16@10.0.0.1@"] and nic.dns == settings.DEFAULT_DNS
    # Without a default route there is none, and nobody to ask.
    inside = told(network, ips=ips)
    assert (inside.gateway, inside.way_out, inside.dns) == (None, False, ())
    named = told(network, ips=ips, routes=[OUT], dns={"nameservers": ["192.0.2.1"], "search": ["lab"]})
    assert (named.dns, named.search) == (("192.0.2.1",), ("lab",))
    assert told({**network, "dns": ["192.0.2.9"]}, ips=ips).dns == ("192.0.2.9",)
    dual = told(network, ips=[*ips, {"address": "fd00::5/64", "gateway": "fd00::1"}], routes=[OUT, {"dst": "::/0"}])
    assert (dual.address, dual.address6, dual.gateway6, dual.only6) == ("10.0.0.5/24", "fd00::5/64", "fd00::1", False)
    six = told(network, ips=[{"address": "fd00::5/64", "gateway": "fd00::1"}], routes=[{"dst": "::/0"}])
    assert (six.address, six.only6, six.asks, six.gateway6) == (None, True, False, "fd00::1")
    assert six.dns == settings.DEFAULT_DNS6
    asking = told(network)
    assert (
        asking.address is None
        and asking.way_out
        and settings.kernel_words([asking], "one") == ["cocoon.nic=eth0,mtu=1400"]
    )


@pytest.mark.parametrize("given", [{"vlan": 7}, {"limits": {"tx": {"rate": 1000}}}, {"dhcp": True}])
def test_what_plugins_see_to(given: Record) -> None:
    network = {**target(type="cni", conflist="podman"), "name": "pods"}
    with pytest.raises(InputError, match="made by the plugins of conflist 'podman'") as caught:
        settings.check([given], [network])
    assert caught.value.option == f"nics[0].{next(iter(given))}"
    assert settings.gives_addresses(network)


def test_a_picture() -> None:
    network = {"name": "pods", "conflist": "podman", "adopted": True, "bridge": "", "users": [{"name": "web1"}]}
    leases = [{"vm": "web1", "ip": "10.0.0.5"}]
    found = diagram.mermaid([diagram.host_of("hv1", [{**network, "leases": leases}])])
    assert 'conflist podman"' in found and '"CNI"' in found and "10.0.0.5" in found
