# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TAPs for guests: not persistent, so that they vanish with the hypervisor that holds them.

There are two ways to a hypervisor. Most take open descriptors (:func:`open_tap`). One that opens a TAP itself, by its
name, finds a persistent one in a network namespace of its VM's own (:func:`make_named`); once it holds it, the TAP is
made to vanish with it and moved to its bridge (:func:`take_over`), so that it is like any other from then on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    CocoonError,
    ConflictError,
    HypervisorError,
    NotFoundError,
    ResourceError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._network import links, namespaces, netlink, shaping, wires
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkConfig

TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
TUNSETOWNER = 0x400454CC
IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_TUN_EXCL = 0x8000
MAX_PAIRS = 256
# Bursts to a guest wait here rather than being dropped; the Go engine's value.
QUEUE_LENGTH = 10000
RTM_NEWQDISC = 36
TCA_KIND = 1
TC_H_ROOT = 0xFFFFFFFF
CREATE_OR_REPLACE = 0x100 | 0x400


def open_tap(config: NetworkConfig, pairs: int, attached: bool = True) -> list[int]:
    """Make the TAP ``config["tap"]``, put it on the bridge ``config["bridge_dev"]`` and bring it up.

    :param pairs: queue pairs; more than one makes a multi-queue TAP.
    :param attached: else it stays off the bridge until :func:`join_bridge`.
    :return: one close-on-exec descriptor a queue pair. The TAP is gone when the last one is closed.
    :raises ConflictError: an interface of that name is there already.
    :raises NotFoundError: no such bridge, or no /dev/net/tun.
    """
    name = config["tap"]
    pairs = max(1, min(pairs, MAX_PAIRS))
    fds: list[int] = []
    try:
        for queue in range(pairs):
            fds.append(_open_queue(name, multi=pairs > 1, first=queue == 0))
        _configure(config, attached)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return fds


def _open_queue(name: str, multi: bool, first: bool) -> int:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise NotFoundError(
            f"cannot open /dev/net/tun: {exc.strerror}", remedy="Load the kernel module tun (modprobe tun)."
        ) from exc
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    if multi:
        flags |= IFF_MULTI_QUEUE
    if first:
        # Without this, a multi-queue TAP that another process holds would take us in as one more queue.
        flags |= IFF_TUN_EXCL
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        # A TAP without an owner takes anybody's queues, and on most hosts everybody may open /dev/net/tun.
        fcntl.ioctl(fd, TUNSETOWNER, 0)
    except OSError as exc:
        os.close(fd)
        if exc.errno in (errno.EBUSY, errno.EEXIST, errno.EINVAL) and links.index_of(name) is not None:
            raise ConflictError(
                f"the interface {name} is there already",
                remedy="A hypervisor that still runs may hold it; end it, or remove the interface.",
            ) from exc
        raise ResourceError(f"cannot make the TAP {name}: {exc.strerror}") from exc
    except BaseException:
        os.close(fd)
        raise
    return fd


def make_named(config: NetworkConfig, uid: int) -> None:
    """Make a TAP of one queue in the current network namespace that a process of *uid* can open by its name.

    It stays until :func:`take_over`, or until the namespace goes.

    :raises ConflictError: an interface of that name is there already. :raises NotFoundError: no /dev/net/tun.
    """
    fd = _open_queue(config["tap"], multi=False, first=True)
    try:
        # Without an owner it would be anybody's.
        fcntl.ioctl(fd, TUNSETOWNER, uid)
        fcntl.ioctl(fd, TUNSETPERSIST, 1)
    except OSError as exc:
        raise ResourceError(f"cannot make the TAP {config['tap']}: {exc.strerror}") from exc
    finally:
        os.close(fd)


def take_over(config: NetworkConfig, process: Process, attached: bool = True) -> None:
    """Move a TAP that *process* has opened by its name here, and have it vanish when the process ends.

    :param process: in a network namespace of its own; its TAP comes to the current one, and to its bridge.
    :param attached: else it stays off the bridge until :func:`join_bridge`.
    :raises HypervisorError: the process does not hold it. :raises CocoonError: the kernel refuses it.
    """
    name = config["tap"]
    number = _held(process, name)
    if number is None:
        raise HypervisorError(f"the hypervisor has not opened the TAP {name}")
    try:
        fd = process.fetch(number)
        try:
            fcntl.ioctl(fd, TUNSETPERSIST, 0)
        finally:
            os.close(fd)
        with open("/proc/thread-self/ns/net", "rb") as here, open(f"/proc/{process.pid}/ns/net", "rb") as there:
            code = namespaces.within(there.fileno(), lambda: wires.move(name, here.fileno()))
    except OSError as exc:
        raise CocoonError(f"cannot take over the TAP {name}: {exc.strerror}") from exc
    if code:
        raise CocoonError(f"cannot move the TAP {name} to its bridge: {os.strerror(code)}")
    _configure(config, attached)


def _held(process: Process, name: str) -> int | None:
    """The process's descriptor of that TAP."""
    folder = f"/proc/{process.pid}/fdinfo"
    for number in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError), open(os.path.join(folder, number), encoding="ascii") as stream:
            if f"iff:\t{name}\n" in stream.read():
                return int(number)
    return None


def _tap_mac(guest_mac: str | None) -> str | None:
    """A MAC for the host's side. High, so that a bridge that takes the lowest MAC of its ports keeps its own."""
    if not guest_mac:
        return None
    first = "fe" if not guest_mac.lower().startswith("fe") else "fa"
    return first + guest_mac[2:]


def join_bridge(config: NetworkConfig) -> None:
    """Put a TAP that was kept off its bridge on it.

    :raises NotFoundError: the bridge is gone. :raises CocoonError: the TAP is.
    """
    with links.Control() as control:
        try:
            if config.get("bridge_dev"):
                _bridge_mtu(control, config["bridge_dev"])
                if config.get("vlan"):  # not up before it is in its VLAN
                    control.set_down(config["tap"])
                _attach(control, config)
                control.set_up(config["tap"])
        except OSError as exc:
            raise CocoonError(f"cannot put the TAP {config['tap']} on its bridge: {exc.strerror}") from exc


def _configure(config: NetworkConfig, attached: bool) -> None:
    name, bridge = config["tap"], config.get("bridge_dev")
    with links.Control() as control:
        try:
            # The host talks to the bridge, never to the TAP: no IPv6 address of the host's on a guest's wire.
            links.set_sysctl("ipv6", name, "disable_ipv6", "1")
            mac = _tap_mac(config.get("mac"))
            if mac:
                control.set_mac(name, mac)
            # A port with another MTU would change that of a bridge that follows its ports.
            mtu = _bridge_mtu(control, bridge) if bridge else config.get("mtu")
            if mtu:
                control.set_mtu(name, mtu)
            limit = (config.get("limits") or {}).get("rx")
            if limit:
                _limit(links.index_of(name) or 0, limit)
            if limit or _set_noqueue(links.index_of(name) or 0):
                control.set_queue_length(name, QUEUE_LENGTH)
            if bridge and attached:
                _attach(control, config)
            control.set_up(name)
        except OSError as exc:
            raise CocoonError(f"cannot set up the TAP {name}: {exc.strerror}") from exc


def _limit(index: int, limit: t.Mapping[str, int]) -> None:
    code = shaping.shape(index, limit)
    if code:
        raise ResourceError(
            f"the kernel does not limit what a NIC receives: {os.strerror(code)}",
            "limits",
            "Load its module sch_tbf (modprobe sch_tbf), or leave rx out.",
        )


def _set_noqueue(index: int) -> bool:
    """Do without a queueing discipline, before the TAP is up; whether the kernel agreed.

    A multi-queue TAP has 256 transmit queues, whatever is asked for, and the default discipline gives
    each of them rings of the queue length: 61 MB and 0.26 s a TAP. The TAP's own ring is all that counts.
    """
    body = struct.pack("=BxxxiIII", socket.AF_UNSPEC, index, 0, TC_H_ROOT, 0)
    body += netlink.attribute(TCA_KIND, b"noqueue\0")
    return netlink.ask(netlink.ROUTE, RTM_NEWQDISC, body, CREATE_OR_REPLACE) == 0


def _bridge_mtu(control: links.Control, bridge: str) -> int:
    with contextlib.suppress(OSError):
        return control.mtu(bridge)
    raise NotFoundError(f"the bridge {bridge} is not there", "network", "Run cocoon_network for this network.")


def _attach(control: links.Control, config: NetworkConfig) -> None:
    bridge, index = config["bridge_dev"], links.index_of(config["tap"]) or 0
    try:
        control.add_port(bridge, index)
    except OSError as exc:
        if exc.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            raise ConflictError(f"{bridge} is not a bridge", "bridge", "Name a Linux bridge.") from exc
        if exc.errno != errno.EBUSY:  # it is on the bridge already, and what else it needs may be lacking
            raise
    if config.get("vlan"):
        _set_vlan(config, index)
    if config.get("isolated"):
        code = wires.set_port(index, isolated=True)
        if code:
            raise OSError(code, os.strerror(code))


def _set_vlan(config: NetworkConfig, index: int) -> None:
    bridge = config["bridge_dev"]
    if not wires.filters(links.index_of(bridge) or 0):
        raise ConflictError(
            f"the bridge {bridge} keeps no VLANs apart",
            "vlan",
            f"Run ip link set {bridge} type bridge vlan_filtering 1.",
        )
    code = wires.set_vlan(index, config["vlan"])
    if code:
        raise OSError(code, os.strerror(code))
