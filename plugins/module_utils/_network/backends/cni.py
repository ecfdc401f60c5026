# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks that are conflists: CNI plugins make an interface in a namespace of the VM's, which leads to its TAP.

The namespace, the interface and its address last until the VM, or its NIC, is removed, or the host reboots; the TAP
lasts as long as the hypervisor. The guest has the interface's MAC and addresses, and nothing in the namespace does.
"""

from __future__ import annotations

import contextlib
import os
import re
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    ChangeRefusedError,
    CocoonError,
    ConflictError,
    NotFoundError,
    StateError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._network import links, namespaces, tap, wires
from ansible_collections.cocoon.microvm.plugins.module_utils._network.cni import attachments, conflists, results
from ansible_collections.cocoon.microvm.plugins.module_utils._network.cni.attachments import Wish
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkConfig, NetworkRecord

PLACE_RE = re.compile(r"-([0-9]+)\Z")
LEFT_OVER = "attachments"

T = t.TypeVar("T")


# -- networks -------------------------------------------------------------------------------------------------------


def check_host(network: NetworkRecord) -> None:
    """:raises CocoonError: the conflist is not there, cannot be meant, or a plugin of it is not installed."""
    conflist = conflists.of_network(network)
    for kind in conflists.plugins_of(conflist):
        conflists.plugin_path(kind, network["cni_bin_dir"] or ())


def check_ports(network: NetworkRecord) -> None:
    if not conflists.of_network(network).takes("portMappings"):
        raise ChangeRefusedError(
            f"no plugin of conflist '{network['conflist']}' of network '{network['name']}' takes ports",
            "ports",
            "Add the plugin portmap to it, with the capability portMappings, or remove ports.",
        )


def missing(store: Store, network: NetworkRecord) -> list[str]:
    found = [LEFT_OVER] if attachments.leftovers(store, network["id"]) else []
    try:
        check_host(network)
    except StateError:
        found.append("conflist")
    except NotFoundError as exc:
        found.append("plugins" if exc.option == "cni_bin_dir" else "conflist")
    return found


def ensure(store: Store, network: NetworkRecord, timeout: float) -> bool:
    """Try once more to take down what nobody has any more; that it fails again keeps no VM from starting."""
    check_host(network)
    left = attachments.leftovers(store, network["id"])
    for path in left:
        with contextlib.suppress(CocoonError):
            _clear(store, path)
    return bool(left)


def _clear(store: Store, path: str) -> None:
    """DEL of what is left over, and with the last of a VM that is gone its namespace."""
    attachments.delete(path)
    vm_id = os.path.basename(path).rpartition("-")[0]
    if not os.path.isdir(store.paths.vm_dir(vm_id)):
        _remove_if_empty(store, vm_id)


def clear(store: Store, network: NetworkRecord, force: bool) -> None:
    for path in attachments.leftovers(store, network["id"]):
        try:
            _clear(store, path)
        except CocoonError as exc:
            if not force:
                raise ChangeRefusedError(
                    f"the CNI plugins of network '{network['name']}' do not take down what a VM that is gone had:"
                    f" {exc.message}",
                    "state",
                    "Mend that, or use force: true to forget it.",
                ) from exc


# -- NICs -----------------------------------------------------------------------------------------------------------


def given(store: Store, network: NetworkRecord) -> list[Record]:
    found = []
    for note in attachments.every(store, network["id"]):
        ip6 = (note.get("cidr6") or "").partition("/")[0] or None
        if note.get("ip") or ip6:
            found.append({**{key: note.get(key) for key in ("ip", "mac", "vm_id")}, "ip6": ip6})
    return found


def place(config: NetworkConfig, vm_id: str) -> None:
    config["netns_path"] = namespaces.path_of(vm_id)


def plug(store: Store, network: NetworkRecord, config: NetworkConfig, ports: t.Sequence[str], stays: bool) -> bool:
    """Have the interface there, by DEL and ADD if it is not (any more) as it is to be.

    After a reboot the namespace is gone, and the address and the MAC of before are asked for.

    :raises CocoonError: a plugin failed, or gave another address than the guest is to have; that is taken back.
    """
    vm_id, ifname = _vm_id(config), _ifname(config)
    path = attachments.path_of(store, network["id"], vm_id, ifname)
    note, before = attachments.read(path), _seen(config)
    had = config.get("network") or {}
    wish = Wish(config["mac"], had.get("ip") or None, had.get("prefix") or 0, tuple(ports), _cidr6(config))
    if note is None or not attachments.matches(note, wish) or not _is_there(config):
        if note is not None:
            attachments.delete(path)
        note = _add(store, network, config, wish, stays)
    _take(config, _offer(note))
    return _seen(config) != before


def _add(store: Store, network: NetworkRecord, config: NetworkConfig, wish: Wish, stays: bool) -> Record:
    """ADD, the interface as it is to be, and the note of it; or nothing of it all."""
    vm_id, ifname = _vm_id(config), _ifname(config)
    path = attachments.path_of(store, network["id"], vm_id, ifname)
    try:
        note = attachments.add(store, network, vm_id, ifname, wish)
        try:
            note["ways"] = _ways(config, note["result"])
            offer = _offer(note)
            if stays and wish.ip and offer.get("ip") != wish.ip:
                raise ConflictError(
                    f"conflist '{network['conflist']}' gave {offer.get('ip') or 'no address'} and not {wish.ip}",
                    f"nics[{ifname[3:]}].ip",
                    "Use an ipam that gives an address that is asked for (host-local), or leave the address out.",
                )
            note["mtu"] = _inside(config, lambda: _prepare(ifname, config["mac"]))
            cidr6 = f"{offer['ip6']}/{offer['prefix6']}" if offer.get("ip6") else None
            attachments.complete(path, note, offer.get("ip"), cidr6)
        except Exception:
            with contextlib.suppress(CocoonError):
                attachments.delete(path)
            raise
    except Exception:
        _remove_if_empty(store, vm_id)
        raise
    return note


def _ways(config: NetworkConfig, result: Record) -> list[dict[str, str]]:
    """The routes that plugins have made and said nothing of, as Calico does."""
    if result.get("routes") or not result.get("ips"):
        return []
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import kernel

    return _inside(config, lambda: kernel.ways(_ifname(config)))


def _offer(note: Record) -> Record:
    plugin, mtu = note["conflist"]["plugins"][-1]["type"], note.get("mtu") or 0
    result = note["result"] or {}
    return {
        **results.offer({**result, "routes": result.get("routes") or note.get("ways")}, note["ifname"], plugin),
        "mtu": 0 if mtu == wires.DEFAULT_MTU else mtu,
    }


def _take(config: NetworkConfig, offer: Record) -> None:
    """Write what the plugins gave into the NIC: its address, and what its network is to its guest."""
    if offer.get("ip"):
        gateway = (config.get("network") or {}).get("gateway", "")
        config["network"] = {"ip": offer["ip"], "gateway": gateway, "prefix": offer["prefix"]}
    else:
        config.pop("network", None)
    if offer.get("ip6"):
        gateway = (config.get("network6") or {}).get("gateway", "")
        config["network6"] = {"ip": offer["ip6"], "gateway": gateway, "prefix": offer["prefix6"]}
    else:
        config.pop("network6", None)
    config["offered"] = {key: value for key, value in offer.items() if key not in ("ip", "prefix", "ip6", "prefix6")}


def _seen(config: NetworkConfig) -> tuple[t.Any, ...]:
    network = config.get("network") or {}
    return network.get("ip"), network.get("prefix"), _cidr6(config), dict(config.get("offered") or {})


def _cidr6(config: NetworkConfig) -> str | None:
    network = config.get("network6")
    return f"{network['ip']}/{network['prefix']}" if network else None


def _prepare(ifname: str, mac: str) -> int:
    """Make the interface a wire's end: no address, no IPv6, the guest's MAC, and down; its MTU."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import kernel

    index = links.index_of(ifname)
    if index is None:
        raise CocoonError(
            f"the CNI plugins made no interface {ifname}", "conflist", "Use plugins that make one, as bridge does."
        )
    with kernel.route_socket() as ipr:
        ipr.flush_addr(index=index)
    links.set_sysctl("ipv6", ifname, "disable_ipv6", "1")
    with links.Control() as control:
        control.set_down(ifname)
        try:
            if control.mac(ifname) != mac:
                control.set_mac(ifname, mac)
        except OSError as exc:
            raise CocoonError(
                f"the interface {ifname} of the CNI plugins does not take a MAC: {exc.strerror}",
                "conflist",
                "Use a plugin whose interfaces have MACs of their own, such as bridge, ptp or macvlan.",
            ) from exc
        return control.mtu(ifname)


def unplug(store: Store, vm_id: str, keep: t.Container[tuple[str, int]] = ()) -> list[str]:
    """DEL for all that a VM has but *keep*; the namespace goes with the last one. See :func:`attachments.unplug`."""
    failed = []
    for network_id, ifname, path in attachments.of_vm(store, vm_id):
        if (network_id, int(ifname[3:]) if ifname[3:].isdigit() else -1) in keep:
            continue
        try:
            attachments.delete(path)
        except CocoonError as exc:
            failed.append(str(exc))
            with contextlib.suppress(OSError, CocoonError):
                namespaces.inside(namespaces.path_of(vm_id), lambda name=ifname: _delete_link(name))  # type: ignore[misc]
    if not keep:
        namespaces.remove(namespaces.path_of(vm_id))
    return failed


def _delete_link(ifname: str) -> None:
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import kernel

    index = links.index_of(ifname)
    if index is not None:
        with kernel.route_socket() as ipr:
            ipr.link("del", index=index)


def _remove_if_empty(store: Store, vm_id: str) -> None:
    if not attachments.of_vm(store, vm_id):
        namespaces.remove(namespaces.path_of(vm_id))


def rest(config: t.Mapping[str, t.Any]) -> None:
    """The interface is down while the VM is stopped."""
    if not _is_there(config):
        return

    def down() -> None:
        with links.Control() as control, contextlib.suppress(OSError):
            control.set_down(_ifname(config))

    _inside(config, down)


def open_tap(config: NetworkConfig, pairs: int, attached: bool) -> list[int]:
    def make() -> list[int]:
        fds = tap.open_tap(config, pairs, attached)
        try:
            _wire(config, attached)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    return _inside(config, make)


def take_over(config: NetworkConfig, process: Process, attached: bool) -> None:
    def take() -> None:
        tap.take_over(config, process, attached)
        _wire(config, attached)

    _inside(config, take)


def join(config: NetworkConfig) -> None:
    _inside(config, lambda: _wire(config, attached=True))


def _wire(config: t.Mapping[str, t.Any], attached: bool) -> None:
    """In the namespace: interface and TAP are joined, and up."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import redirect

    ends = [links.index_of(name) for name in (_ifname(config), config["tap"])]
    if attached and None not in ends:
        redirect.join(*t.cast("list[int]", ends))
        with links.Control() as control:
            control.set_up(_ifname(config))


def _look(config: t.Mapping[str, t.Any]) -> wires.Wires:
    """The interfaces of the VM's namespace; none if it is gone."""
    if not namespaces.exists(config["netns_path"]):
        return wires.Wires()
    return _inside(config, wires.look)


def look(config: t.Mapping[str, t.Any], _links: wires.Wires) -> wires.Wire | None:
    return _look(config).get(config["tap"])


def faults(config: t.Mapping[str, t.Any], _network: NetworkRecord, _links: wires.Wires) -> list[str]:
    there = _look(config)
    interface, wire = there.get(_ifname(config)), there.get(config["tap"])
    if wire is None:
        return [wires.GONE]
    if interface is None:
        return ["its interface is gone"]
    found = [] if wire.up and interface.up else ["down"]
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import redirect

    joined = _inside(config, redirect.joined)
    if not {interface.index, wire.index} <= joined:
        found.append("not joined to its interface")
    return found


def tell_ports(store: Store, network: NetworkRecord, config: NetworkConfig, ports: t.Sequence[str]) -> None:
    """By DEL and ADD, so the guest is off that network meanwhile."""
    plug(store, network, config, ports, stays=True)
    join(config)


def mend(store: Store, config: NetworkConfig, network: NetworkRecord) -> None:
    """Put the wire together again, and have its interface made anew if that is gone, with the address that it had."""
    tell_ports(store, network, config, _noted_ports(store, network, config))
    with contextlib.suppress(OSError):
        _inside(config, lambda: _up(config["tap"]))


def _up(name: str) -> None:
    with links.Control() as control:
        control.set_up(name)


def _noted_ports(store: Store, network: NetworkRecord, config: NetworkConfig) -> list[str]:
    path = attachments.path_of(store, network["id"], _vm_id(config), _ifname(config))
    return list((attachments.read(path) or {}).get("ports") or ())


# -- where it is ----------------------------------------------------------------------------------------------------


def _inside(config: t.Mapping[str, t.Any], work: t.Callable[[], T]) -> T:
    """:raises NotFoundError: the namespace is gone."""
    try:
        return namespaces.inside(config["netns_path"], work)
    except FileNotFoundError as exc:
        raise NotFoundError(
            f"the network namespace {config['netns_path']} is not there", "network", "Start the VM again."
        ) from exc


def _is_there(config: t.Mapping[str, t.Any]) -> bool:
    """Whether the namespace and the interface in it are."""
    if not namespaces.exists(config["netns_path"]):
        return False
    return _inside(config, lambda: links.index_of(_ifname(config))) is not None


def _vm_id(config: t.Mapping[str, t.Any]) -> str:
    return os.path.basename(config["netns_path"])[len("cmv-") :]


def _ifname(config: t.Mapping[str, t.Any]) -> str:
    """eth<N>, N being the place of the NIC, which its TAP's name bears, too."""
    match = PLACE_RE.search(config["tap"])
    return f"eth{match.group(1) if match else 0}"
