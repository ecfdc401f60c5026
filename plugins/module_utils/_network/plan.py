# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to be done with a network: pure functions of definition, record and facts."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    ChangeRefusedError,
    ConflictError,
    InputError,
    NotFoundError,
    StateError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._network.backends import BRIDGE, CNI
from ansible_collections.cocoon.microvm.plugins.module_utils._network.cni import conflists
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import settings, subnets
from ansible_collections.cocoon.microvm.plugins.module_utils._records import GUARDED, UNPLUGGED, UNSERVED, is_damaged
from ansible_collections.cocoon.microvm.plugins.module_utils._types import (
    Record,
    check_ip,
    check_labels,
    check_name,
    is_domain,
)

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkRecord

# What a user can set, in the order of the documentation; names as in the record.
FIELDS = (
    "backend",
    "conflist",
    "cni_conf_dir",
    "cni_bin_dir",
    "bridge",
    "adopted",
    "uplink",
    "vlan_filtering",
    "subnet",
    "gateway",
    "subnet6",
    "addresses6",
    "range_start",
    "range_end",
    "reserved",
    "nat",
    "routing6",
    "isolated",
    "anti_spoofing",
    "mtu",
    "dns",
    "dns_search",
    "names",
    "dhcp",
    "dhcp_range",
    "owner",
    "labels",
)
# Of these, those of a network that the plugins of a conflist make; the rest is for bridges.
PLUGGED = ("backend", "conflist", "cni_conf_dir", "cni_bin_dir", "dns", "dns_search", "owner", "labels")
CONF_DIR, BIN_DIR = "/etc/cni/net.d", ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")
COMMON = ("backend", "dns", "dns_search", "owner", "labels")
# Fields that users know under other names.
OPTION_NAMES = {"backend": "type", "adopted": "adopt"}
BRIDGE_RE = re.compile(r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,14}\Z")
# What every resolver takes of a search list.
MAX_DOMAINS, MAX_SEARCH = 6, 256
# /proc/sys/net/*/conf has these beside the interfaces.
RESERVED_BRIDGES = ("all", "default", "lo")
MIN_PREFIX, MAX_PREFIX = 8, 30
MIN_MTU, MAX_MTU, DEFAULT_MTU = 576, 65521, 1500
UNUSABLE6 = tuple(ipaddress.IPv6Network(text) for text in ("::/8", "fe80::/10", "ff00::/8"))
UNUSABLE = tuple(ipaddress.IPv4Network(text) for text in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3"))

# A network of plugins: nothing of it is ours but the record, as of a bridge that is only used.
_PLUGGED: Record = {
    **{"backend": CNI, "conflist": None, "cni_conf_dir": CONF_DIR, "cni_bin_dir": list(BIN_DIR)},
    **{"bridge": "", "adopted": True, "uplink": None, "vlan_filtering": False},
    **{"subnet": None, "gateway": None, "subnet6": None, "addresses6": "advertised", "routing6": "none"},
    **{"range_start": None, "range_end": None, "reserved": [], "nat": False, "isolated": None, "anti_spoofing": None},
    **{"mtu": None, "dns": [], "dns_search": [], **UNSERVED, "labels": {}},
}

Definition = dict[str, t.Any]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What planning needs to know of the store and the host.

    :param record: the network as recorded, ``None`` if there is none; its phase may be unfinished.
    :param users: names of the VMs that use it.
    :param leases: how many addresses are leased. :param chosen6: how many IPv6 addresses NICs ask for.
    :param ports: its published ports, as users write them.
    :param missing: what the kernel lacks of the recorded network.
    :param nics: NICs of running VMs whose host side is not as it should be, and what is wrong, in words.
    :param foreign_ports: interfaces on its bridge, where there are no users.
    :param bare: the name is reserved, or left-overs are there, without a record.
    """

    record: NetworkRecord | None = None
    users: tuple[str, ...] = ()
    leases: int = 0
    chosen6: int = 0
    ports: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    nics: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    foreign_ports: tuple[str, ...] = ()
    bare: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """``action`` is ``create``, ``update``, ``repair``, ``remove`` or ``none``."""

    action: str
    target: NetworkRecord | None
    before: Record
    after: Record

    @property
    def changed(self) -> bool:
        return self.action != "none"


# -- definition -----------------------------------------------------------------------------------------------------


def define(params: t.Mapping[str, t.Any]) -> Definition:
    """The given options, checked and in canonical form.

    :raises InputError: an option that can never work, alone or with the others given.
    """
    check_name(params["name"])
    given = {key: value for key, value in params.items() if value is not None}
    found: Definition = {
        key: given[key]
        for key in ("nat", "isolated", "anti_spoofing", "names", "dhcp", "vlan_filtering", "owner", "force")
        if key in given
    }
    found["name"] = params["name"]
    found.update(_define_plugins(given))
    if "adopt" in given:
        found["adopted"] = given["adopt"]
    if "bridge" in given:
        found["bridge"] = _check_bridge(given["bridge"])
    if "uplink" in given:
        found["uplink"] = _check_bridge(given["uplink"], "uplink") if given["uplink"] else None
    if "subnet" in given:
        found["subnet"] = check_subnet(given["subnet"])
    if "subnet6" in given:
        found["subnet6"] = check_subnet6(given["subnet6"]) if given["subnet6"].strip() else None
    found.update({key: given[key] for key in ("addresses6", "routing6") if key in given})
    for key in ("gateway", "range_start", "range_end"):
        if key in given:
            found[key] = check_ip(given[key], key)
    if "reserved" in given:
        found["reserved"] = [_check_range(text, "reserved") for text in given["reserved"]]
    if "dhcp_range" in given:
        found["dhcp_range"] = _check_range(given["dhcp_range"], "dhcp_range") if given["dhcp_range"].strip() else None
    if "mtu" in given:
        found["mtu"] = _check_mtu(given["mtu"])
    if "dns" in given:
        found["dns"] = _check_dns(given["dns"])
    if "dns_search" in given:
        found["dns_search"] = _check_domains(given["dns_search"])
    if "labels" in given:
        found["labels"] = check_labels(given["labels"])
    return found


def _define_plugins(given: t.Mapping[str, t.Any]) -> Definition:
    """The options of the plugins of a conflist."""
    found: Definition = {}
    if "type" in given:
        found["backend"] = given["type"]
    if "conflist" in given:
        if not conflists.NAME_RE.match(given["conflist"]):
            name = given["conflist"]
            raise InputError(f"'{name}' is not a conflist's name", "conflist", "Name it as it names itself.")
        found["conflist"] = given["conflist"]
    if "cni_conf_dir" in given:
        found["cni_conf_dir"] = conflists.check_folder(given["cni_conf_dir"], "cni_conf_dir")
    if "cni_bin_dir" in given:
        found["cni_bin_dir"] = [conflists.check_folder(path, "cni_bin_dir") for path in given["cni_bin_dir"]]
        if not found["cni_bin_dir"]:
            raise InputError("names no folder", "cni_bin_dir", "Name those that plugins are in, or leave it out.")
    return found


def _check_bridge(name: str, option: str = "bridge") -> str:
    if not BRIDGE_RE.match(name) or name in RESERVED_BRIDGES:
        raise InputError(
            f"'{name}' is not a name for {'a bridge' if option == 'bridge' else 'an interface'}",
            option,
            "Use at most 15 letters, digits, dots, underscores and hyphens, beginning with a letter or digit.",
        )
    return name


def check_subnet(text: str) -> str:
    """A canonical IPv4 subnet that guests can live in."""
    try:
        subnet = ipaddress.IPv4Network(text.strip(), strict=False)
    except ValueError:
        raise InputError(f"'{text}' is not an IPv4 subnet", "subnet", "Write it as 10.0.0.0/24.") from None
    if "/" not in text or not MIN_PREFIX <= subnet.prefixlen <= MAX_PREFIX:
        raise InputError(f"'{text}' has no usable prefix", "subnet", "Use a prefix from /8 to /30, as in 10.0.0.0/24.")
    if str(subnet.network_address) != text.strip().partition("/")[0]:
        raise InputError(f"'{text}' has host bits set", "subnet", f"Did you mean {subnet}?")
    if any(subnet.overlaps(other) for other in UNUSABLE):
        raise InputError(f"'{text}' is not for guests", "subnet", "Use a private range, such as 10.0.0.0/24.")
    return str(subnet)


def check_subnet6(text: str) -> str:
    """A canonical IPv6 subnet whose guests make their addresses from their MACs."""
    try:
        subnet = ipaddress.IPv6Network(text.strip())
    except ValueError as exc:
        remedy = "Leave out what comes after the prefix." if "host bits" in str(exc) else "Write it as fd00:1:2:3::/64."
        raise InputError(f"'{text}' is not an IPv6 subnet", "subnet6", remedy) from None
    if subnet.prefixlen != subnets.PREFIX6:
        raise InputError(f"'{text}' has no usable prefix", "subnet6", "Use one of 64 bits, as in fd00:1:2:3::/64.")
    if any(subnet.overlaps(other) for other in UNUSABLE6):
        raise InputError(f"'{text}' is not for guests", "subnet6", "Use a private one, such as fd00:1:2:3::/64.")
    return str(subnet)


def _check_range(text: str, option: str) -> str:
    """A canonical range: ``10.0.0.2-10.0.0.9``, or a single address."""
    first, dash, last = (part.strip() for part in text.partition("-"))
    first = check_ip(first, option)
    if not dash:
        return first
    last = check_ip(last, option)
    if ipaddress.IPv4Address(first) > ipaddress.IPv4Address(last):
        raise InputError(f"{last} comes before {first}", option, "Swap the two.")
    return first if first == last else f"{first}-{last}"


def _check_mtu(mtu: int) -> int:
    if not MIN_MTU <= mtu <= MAX_MTU:
        raise InputError(f"{mtu} is not a usable MTU", "mtu", f"Use a value from {MIN_MTU} to {MAX_MTU}.")
    return mtu


def _check_dns(servers: t.Sequence[str]) -> list[str]:
    found = [check_ip(server, "dns") for server in servers]
    if len(found) > settings.MAX_DNS:
        raise InputError(f"{len(found)} servers are given", "dns", f"A guest takes at most {settings.MAX_DNS}.")
    return found


def _check_domains(domains: t.Sequence[str]) -> list[str]:
    found = [domain.strip().rstrip(".").lower() for domain in domains]
    for domain in found:
        if not is_domain(domain):
            raise InputError(f"'{domain}' is not a domain", "dns_search", "Write it as lab.example.com.")
    if len(found) > MAX_DOMAINS or len(" ".join(found)) > MAX_SEARCH:
        raise InputError(
            f"{len(found)} domains are too many",
            "dns_search",
            f"Resolvers take {MAX_DOMAINS}, of {MAX_SEARCH} characters.",
        )
    return list(dict.fromkeys(found))


def default_bridge(name: str, network_id: str | None, taken: bool) -> str | None:
    """``cm-<name>`` where that is a possible and free interface name, else ``cmb-<8 of the id>``."""
    plain = f"cm-{name}"
    if not taken and BRIDGE_RE.match(plain):
        return plain
    return f"cmb-{network_id[:8]}" if network_id else None


# -- target ---------------------------------------------------------------------------------------------------------


def target(definition: Definition, record: NetworkRecord | None, store_id: str | None) -> NetworkRecord:
    """The record as it should be, but for id, bridge of a new network, phase and times.

    :raises InputError: the options do not fit each other or the record.
    """
    wanted = {key: definition[key] for key in FIELDS if key in definition}
    _check_kind(wanted, record)
    if record is None:
        made = _defaults(wanted, store_id)
    else:
        made = {key: t.cast(Record, record).get(key) for key in FIELDS}
        if "subnet" in wanted and wanted["subnet"] != record["subnet"]:
            made.update(gateway=None, range_start=None, range_end=None, reserved=[], dhcp_range=None)
        made.update(wanted)
        if made["subnet"] and not made["gateway"] and not made["adopted"]:
            made["gateway"] = _first(made["subnet"])
    made["name"] = definition["name"]
    if made["backend"] != CNI:
        _check_target(made)
        if made["subnet"]:
            check_room(t.cast("NetworkRecord", made))
    return t.cast("NetworkRecord", made)


def _check_kind(wanted: Definition, record: NetworkRecord | None) -> None:
    """That options of one kind of network do not stand beside the other's."""
    kind = wanted.get("backend") or (record["backend"] if record else BRIDGE)
    if record is not None and kind != record["backend"]:
        raise ChangeRefusedError(
            f"network '{record['name']}' is of type {record['backend']}, and this is never changed",
            "type",
            "Remove the network and create it anew.",
        )
    strange = [key for key in wanted if (key in PLUGGED) != (kind == CNI) and key not in COMMON]
    if strange and kind == CNI:
        option = OPTION_NAMES.get(strange[0], strange[0])
        raise InputError("is for bridges, and this is the conflist's to say", option, "Leave it out with type: cni.")
    if strange:
        raise InputError("is for the plugins of a conflist", strange[0], "Use type: cni, or leave it out.")
    if kind == CNI and not (wanted.get("conflist") or (record or {}).get("conflist")):
        raise InputError("is needed with type: cni", "conflist", "Name a conflist of cni_conf_dir.")


def _first(subnet: str) -> str:
    return str(ipaddress.IPv4Network(subnet).network_address + 1)


def _defaults(wanted: Definition, store_id: str | None) -> Record:
    """What applies at creation to options that are not given."""
    if wanted.get("backend") == CNI:
        return {**_PLUGGED, "owner": store_id, **wanted}
    adopted, subnet = wanted.get("adopted", False), wanted.get("subnet")
    nat = wanted.get("nat", bool(subnet) and not adopted and not wanted.get("uplink"))
    made: Record = {
        "backend": BRIDGE,
        **UNPLUGGED,
        "bridge": None,
        "adopted": adopted,
        "uplink": None,
        "vlan_filtering": False,
        "subnet": subnet,
        "gateway": _first(subnet) if subnet and not adopted else None,
        "subnet6": None,
        "addresses6": subnets.ADVERTISED,
        "routing6": "none",
        "range_start": None,
        "range_end": None,
        "reserved": [],
        "nat": nat,
        **{key: None if adopted else value for key, value in GUARDED.items()},
        "mtu": None,
        "dns": list(settings.DEFAULT_DNS) if nat or (adopted and wanted.get("gateway")) else [],
        "dns_search": [],
        **UNSERVED,
        "owner": store_id,
        "labels": {},
    }
    return {**made, **wanted}


def _check_target(made: Definition) -> None:
    if made["adopted"]:
        if not made["bridge"]:
            raise InputError("is needed with adopt: true", "bridge", "Name the bridge that is to be used.")
        if made["nat"]:
            raise InputError(
                "an adopted bridge is not ours to translate for", "nat", "Use nat: false, or a network of its own."
            )
    elif made["nat"] and not made["subnet"]:
        raise InputError("NAT needs a subnet", "nat", "Give the network a subnet.")
    _check_layer2(made)
    _check_served(made)
    if not made["subnet"]:
        for key in ("gateway", "range_start", "range_end", "reserved"):
            if made[key]:
                raise InputError("needs a subnet", key, "Give the network a subnet.")
        return
    subnet = ipaddress.IPv4Network(made["subnet"])
    for key in ("gateway", "range_start", "range_end"):
        if made[key]:
            address = ipaddress.IPv4Address(made[key])
            if address not in subnet or address in (subnet.network_address, subnet.broadcast_address):
                raise InputError(f"{address} is no host address of {subnet}", key, "Use one of the subnet's addresses.")
    if made["range_start"] and made["range_end"]:
        if ipaddress.IPv4Address(made["range_start"]) > ipaddress.IPv4Address(made["range_end"]):
            raise InputError(f"{made['range_end']} comes before range_start", "range_end", "Swap the two.")
    for key, texts in (("reserved", made["reserved"]), ("dhcp_range", [made["dhcp_range"]])):
        for first, last in subnets.ranges(*filter(None, texts)):
            if first not in subnet or last not in subnet:
                raise InputError(f"{first}-{last} is not in {subnet}", key, "Use addresses of the subnet.")


def _check_layer2(made: Definition) -> None:
    """Whom a bridge of ours leads to without routing."""
    for key in ("uplink", "vlan_filtering"):
        if made[key] and made["adopted"]:
            raise InputError(f"{made['bridge']} is yours", key, "Set it up there.")
    either = "Leave it out, or the uplink."
    for key, trouble, remedy in (
        ("nat", "guests get out by the uplink under their own addresses", either),
        ("dhcp", "it would answer everybody behind the uplink", either),
        ("subnet6", "it would be advertised to everybody behind the uplink", either),
        (
            "subnet",
            "the host would have its gateway's address, which a router behind the uplink has",
            "Leave it out, or put the interface on a bridge yourself, which adopt: true takes with a subnet.",
        ),
    ):
        if made["uplink"] and made[key]:
            raise InputError(trouble, key, remedy)
    if made["uplink"] is not None and made["uplink"] == made["bridge"]:
        raise InputError("is the bridge itself", "uplink", "Name the interface that leads out.")


def check_uplink(
    made: NetworkRecord, link: t.Any, kind: str | None, master: str | None, address6: str | None = None
) -> None:
    """That an interface can be a port of the network's bridge.

    :param link: what it is like, ``None`` if it is not there. :param master: the bridge or bond that it is part of.
    :param address6: an IPv6 address of the host on it, other than that of the link.
    :raises CocoonError: it cannot, or the host, or frames, would be lost.
    """
    name, mtu = made["uplink"], made["mtu"] or DEFAULT_MTU
    if link is None:
        raise NotFoundError(f"there is no interface {name}", "uplink", "Name one that leads out.")
    if kind == "bridge" or master not in (None, made["bridge"]):
        raise ConflictError(
            f"{name} is {'a bridge' if kind == 'bridge' else f'part of {master}'}",
            "uplink",
            "Name another one, or adopt.",
        )
    address = link.address or address6
    if address is not None:
        drop = "" if link.address else f", or take it away (net.ipv6.conf.{name}.disable_ipv6=1)"
        raise ConflictError(
            f"{name} has the address {address} of the host, which could not be reached any more",
            "uplink",
            f"Make a bridge yourself that has the address, and use adopt: true{drop}.",
        )
    if mtu > link.mtu:
        raise InputError(
            f"{mtu} is beyond the {link.mtu} of the uplink {name}", "mtu", f"Use {link.mtu}, or raise that of {name}."
        )


def _check_served(made: Definition) -> None:
    """What dnsmasq is to do on the network."""
    for key in ("names", "dhcp"):
        if made[key] and made["adopted"]:
            raise InputError(
                f"{made['bridge']} is not ours to serve", key, "Leave it to who serves there, or use a network of ours."
            )
        if made[key] and not made["subnet"]:
            raise InputError("needs a subnet", key, "Give the network a subnet.")
    if made["subnet6"] and made["adopted"]:
        raise InputError(
            f"{made['bridge']} is not ours to route for",
            "subnet6",
            "Leave it to the router there, who tells the guests.",
        )
    for key, plain in (("addresses6", subnets.ADVERTISED), ("routing6", "none")):
        if made[key] != plain and not made["subnet6"]:
            raise InputError("needs an IPv6 subnet", key, f"Give the network a subnet6, or use {key}: {plain}.")
    if made["names"] and not is_domain(settings.domain(made)):
        raise InputError(f"'{made['name']}' is no name for a domain", "names", "Give the network another name.")
    if made["names"] and made["gateway"] in made["dns"]:
        raise InputError(
            f"{made['gateway']} is what guests ask already", "dns", "Name the servers that are asked for other names."
        )
    if made["dhcp_range"] and not made["dhcp"]:
        raise InputError("needs DHCP", "dhcp_range", "Use dhcp: true.")
    for first, last in subnets.ranges(made["dhcp_range"]):
        if first <= ipaddress.IPv4Address(made["gateway"]) <= last:
            raise InputError(f"the gateway {made['gateway']} is in it", "dhcp_range", "Leave it out.")


def check_room(made: NetworkRecord, host: str | None = None) -> None:
    """That there is an address for at least one guest.

    :param host: the host's own address on an adopted bridge.
    :raises InputError: all that could be given out is the gateway's and the host's.
    """
    first, last = subnets.bounds(made)
    taken = {int(ipaddress.IPv4Address(ip)) for ip in (made["gateway"], host) if ip}
    free = subnets.Free(made)
    if free.size <= sum(number in free for number in taken):
        if made["reserved"] or made["dhcp_range"]:
            option = "reserved" if made["reserved"] else "dhcp_range"
            raise InputError("no address is left for a guest", option, "Have it leave some.")
        narrowed = made["range_start"] or made["range_end"]
        raise InputError(
            f"no address is left for a guest between {ipaddress.IPv4Address(first)} and {ipaddress.IPv4Address(last)}"
            " but the gateway's and the host's",
            "range_end" if narrowed else "subnet",
            "Widen range_start and range_end." if narrowed else "Use a larger subnet.",
        )


# -- decisions ------------------------------------------------------------------------------------------------------


def public(record: NetworkRecord | None) -> Record:
    """What a diff shows of a network."""
    if record is None:
        return {}
    keys = PLUGGED if record.get("backend") == CNI else FIELDS
    fields = {key: record.get(key) for key in ("name", *keys)}
    return {key: value for key, value in fields.items() if value is not None}


def shown(record: NetworkRecord | None) -> Record | None:
    """The record without what is only bookkeeping."""
    if record is None:
        return None
    return {key: value for key, value in record.items() if key != "phase"}


def plan_present(definition: Definition, facts: Facts, store_id: str | None) -> Plan:
    """What makes the network be as defined.

    :raises InputError: the definition cannot work.
    :raises StateError: its record is damaged.
    :raises ChangeRefusedError: a change that its users would not survive.
    :raises ConflictError: it belongs to another owner.
    """
    record = facts.record
    if record is not None and is_damaged(record):
        raise StateError(record["reason"])
    if record is None:
        made = target(definition, None, store_id)
        return Plan("create", made, {}, public(made))
    made = target(definition, record, store_id)
    old, new = t.cast(Record, record), t.cast(Record, made)
    changes = [key for key in FIELDS if new[key] != old.get(key)]
    check_owner(definition, record)
    _check_changes(new, old, facts, changes)
    before, after = public(record), public({**record, **made})
    if facts.missing or facts.nics or record.get("phase"):
        before["host"] = {**dict.fromkeys(facts.missing, "missing"), **facts.nics} or "unfinished"
        after["host"] = {**dict.fromkeys((*facts.missing, *facts.nics), "present")} or "complete"
    if changes:
        return Plan("update", made, before, after)
    return Plan("repair" if "host" in before else "none", made, before, after)


def _check_changes(made: Record, record: Record, facts: Facts, changes: list[str]) -> None:
    """:raises ChangeRefusedError: a change that is never made, or not while there are users."""
    kind = "an adopted bridge" if record["adopted"] else "a bridge of its own"
    for key, option, has in (
        ("adopted", "adopt", kind),
        ("bridge", "bridge", f"the bridge {record['bridge']}"),
        ("uplink", "uplink", f"the uplink {record['uplink']}" if record["uplink"] else "no uplink"),
    ):
        if key in changes:
            raise ChangeRefusedError(
                f"network '{record['name']}' has {has}, and this is never changed",
                option,
                "Remove the network and create it anew.",
            )
    for key in ("subnet", "gateway", "conflist", "cni_conf_dir"):
        if key in changes and (facts.users or facts.leases):
            raise ChangeRefusedError(
                f"cannot change from {record[key]} to {made[key]} while network '{record['name']}' has {_users(facts)}",
                key,
                "Remove those VMs first, or make another network.",
            )
    if "subnet6" in changes and facts.chosen6:
        raise ChangeRefusedError(
            f"cannot change while NICs of VMs ask for {facts.chosen6} addresses of it",
            "subnet6",
            "Leave ip6 out of those VMs' nics first.",
        )
    if "vlan_filtering" in changes and not made["vlan_filtering"] and facts.users:
        raise ChangeRefusedError(
            f"cannot be switched off while network '{record['name']}' has {_users(facts)}",
            "vlan_filtering",
            "Remove those VMs first.",
        )
    if "nat" in changes and not made["nat"] and facts.ports:
        raise ChangeRefusedError(
            f"cannot be switched off while ports are published on network '{record['name']}': "
            + ", ".join(facts.ports[:10]),
            "nat",
            "Remove ports from its VMs first.",
        )


def _users(facts: Facts) -> str:
    if not facts.users:
        return f"{facts.leases} leased addresses"
    shown = ", ".join(facts.users[:10])
    more = f" and {len(facts.users) - 10} more" if len(facts.users) > 10 else ""
    return f"VMs: {shown}{more}"


def check_owner(definition: Definition, record: NetworkRecord) -> None:
    """:raises ConflictError: the task names an owner, and the network belongs to another."""
    owner = definition.get("owner")
    if owner is not None and owner != record["owner"] and not definition.get("force"):
        raise ConflictError(
            f"network '{record['name']}' belongs to '{record['owner']}'", "owner", "Use force: true to take it over."
        )


def plan_absent(definition: Definition, facts: Facts) -> Plan:
    """What makes the network be gone.

    :raises ChangeRefusedError: VMs use it, or (without ``force``) other interfaces are on its bridge.
    :raises ConflictError: it belongs to another owner.
    """
    record = facts.record
    if record is None:
        leftover: Record = {"name": definition["name"], "host": "unfinished"}
        return Plan("remove", None, leftover, {}) if facts.bare else Plan("none", None, {}, {})
    if not is_damaged(record):  # whose it is, such a one does not tell
        check_owner(definition, record)
    if facts.users:
        raise ChangeRefusedError(
            f"network '{record['name']}' has {_users(facts)}",
            "state",
            "Remove those VMs, or give them another network.",
        )
    if facts.foreign_ports and not definition.get("force"):
        raise ChangeRefusedError(
            f"bridge {record['bridge']} of network '{record['name']}' has interfaces that are not ours: "
            + ", ".join(facts.foreign_ports),
            "state",
            "Take them off the bridge, or use force: true.",
        )
    broken = {"state": record["state"]} if is_damaged(record) else {}
    return Plan("remove", None, {**public(record), **broken}, {})


def check_overlap(name: str, subnet: str, used: t.Iterable[tuple[str, str]]) -> None:
    """That *subnet* of network *name* is free.

    :param used: pairs of a subnet and what has it, in words.
    :raises ConflictError: naming the first that overlaps.
    """
    mine = ipaddress.ip_network(subnet)
    option = "subnet" if mine.version == 4 else "subnet6"
    for other, holder in used:
        if mine.overlaps(ipaddress.ip_network(other)):
            raise ConflictError(
                f"{subnet} of network '{name}' overlaps {other}, which is {holder}", option, "Use another subnet."
            )
