# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A network's own dnsmasq, for names and DHCP: seen to, told of guests, ended.

Guests come and go by a file each, so that what one costs does not depend on how many there are; all of them follow from
the leases of the network. An instance is known by its identity as hypervisors are, and one that nobody has noted, as
the run that started it was killed, by its user and its command line.
"""

from __future__ import annotations

import contextlib
import grp
import hashlib
import os
import pwd
import shutil
import signal
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import StateError, ToolError
from ansible_collections.cocoon.microvm.plugins.module_utils._network import dnsmasq, leases, links
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import subnets
from ansible_collections.cocoon.microvm.plugins.module_utils._process import (
    SEARCH_PATH,
    Process,
    identify,
    processes_by_uid,
    run_tool,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._state import (
    Store,
    locked,
    make_runtime_directories,
    read_json,
    remove_file,
    remove_tree,
    write_json,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkRecord

# What it drops to: its package's user, else the one that every distribution has.
USERS = ("dnsmasq", "nobody")
LOCK_TIMEOUT = 60.0
FOLDERS = (dnsmasq.HOSTS, dnsmasq.RESERVED)
FORMER = "former"  # reservations that are no more


def check_installed(network: NetworkRecord) -> None:
    """:raises ToolError: the network needs dnsmasq, and it is not there."""
    if leases.is_served(network) and shutil.which(dnsmasq.PROGRAM, path=SEARCH_PATH) is None:
        option = next(key for key in ("names", "dhcp", "subnet6") if network.get(key))
        raise ToolError(
            f"{dnsmasq.PROGRAM} is not installed", option, f"Install {dnsmasq.PACKAGE}, or run cocoon.microvm.host."
        )


def missing(store: Store, network: NetworkRecord) -> list[str]:
    """What is not as it should be: ``dnsmasq``, ``names``. Files and a pidfd are looked at, after a crash processes."""
    if not leases.is_served(network):
        return ["dnsmasq"] if leases.was_served(store, network["id"]) else []
    note = _note(store, network["id"])
    process = _find(store, network["id"], note)
    if process is None:
        return ["dnsmasq"]
    process.close()
    if not _is_current(store, network, note or {}):
        return ["dnsmasq"]
    lacking, surplus = _differences(store, network)
    return ["names"] if lacking or surplus else []


def ensure(store: Store, network: NetworkRecord) -> None:
    """Have it run with what the network says now, and know the guests that there are.

    :raises ToolError: it is missing, or does not start. :raises BusyError: others kept its lock.
    """
    if not missing(store, network):
        return
    with locked(store.paths, [f"dnsmasq:{network['id']}"], LOCK_TIMEOUT):
        if not leases.is_served(network):
            _end(store, network["id"])
            return
        check_installed(network)
        _make_folders(store.paths, network["id"])
        lacking, surplus = _differences(store, network)
        for entry in lacking:
            _write_entry(store.paths, network, entry)
        _remove_entries(store.paths, network["id"], surplus)
        note = _note(store, network["id"])
        process = _find(store, network["id"], note)
        if process is not None and _is_current(store, network, note or {}):
            with process:
                process.signal(signal.SIGHUP)
            return
        if process is not None:
            process.close()
        _restart(store, network)


def stop(store: Store, network_id: str) -> None:
    """End it, and remove what it had outside of the network's folder. Idempotent."""
    with locked(store.paths, [f"dnsmasq:{network_id}"], LOCK_TIMEOUT):
        _end(store, network_id)


# -- guests ---------------------------------------------------------------------------------------------------------


def publish(store: Store, network: NetworkRecord, ip: str) -> None:
    """Have a guest be found by name, and given its address when it asks, as the record of its VM says by now.

    Its lease is taken already. Where nothing runs yet, what starts it will see the lease.
    """
    if not leases.is_served(network) or not os.path.isdir(leases.runtime(store.paths, network["id"])):
        return
    with locked(store.paths, [f"dnsmasq:{network['id']}"], LOCK_TIMEOUT):
        entry = entry_of(store, network, ip)
        if entry is None:
            return
        others = _is_others(store.paths, network["id"], entry)
        fresh = _write_entry(store.paths, network, entry)
        # It gives an address to nobody else while its old lease stands. What it is just writing of its leases may be
        # missed here, so addresses that it had for others are known without, too.
        if network.get("dhcp") and (others or _leased(store, network["id"]).get(ip, entry.mac) != entry.mac):
            _restart(store, network)
        elif not fresh:
            _reread(store, network["id"])


def withdraw(store: Store, network_id: str, ip: str) -> None:
    """Let a guest be found no more."""
    if _remove_entries(store.paths, network_id, [ip]):
        _reread(store, network_id)


def _is_others(paths: Paths, network_id: str, entry: dnsmasq.Entry) -> bool:
    """Whether somebody else had the address since the instance began."""
    folder = leases.runtime(paths, network_id)
    texts = [_text(os.path.join(folder, kind, entry.ip)) for kind in (dnsmasq.RESERVED, FORMER)]
    return any(text not in (None, dnsmasq.reservation(entry)) for text in texts)


def withdraw_all(store: Store, vm_id: str) -> None:
    """Let a guest be found on no network, by a look at all leases."""
    for _name, network_id in leases.every(store):
        if os.path.isdir(leases.runtime(store.paths, network_id)):
            for ip in leases.names(store, network_id, "leases"):
                if leases.lease_holder(store, network_id, ip) == vm_id:
                    withdraw(store, network_id, ip)


def entry_of(store: Store, network: NetworkRecord, ip: str) -> dnsmasq.Entry | None:
    """The NIC that an address is leased for; ``None`` if its VM's record says nothing of it (yet)."""
    with contextlib.suppress(StateError):
        vm = store.load_vm(leases.lease_holder(store, network["id"], ip) or "") or {}
        for config in [*(vm.get("network_configs") or ()), *(vm.get("planned_nics") or ())]:
            if config.get("network_id") == network["id"] and (config.get("network") or {}).get("ip") == ip:
                name = vm["config"]["name"]
                return dnsmasq.Entry(ip, config["mac"], name, subnets.address6(network, config))
    return None


def _differences(store: Store, network: NetworkRecord) -> tuple[list[dnsmasq.Entry], list[str]]:
    """Guests whose files are not there, and addresses of files whose guests are not."""
    folder = leases.runtime(store.paths, network["id"])
    # A lease is there before its file, and gone after it.
    there = [_listed(os.path.join(folder, name)) for name in FOLDERS]
    leased = set(leases.names(store, network["id"], "leases"))
    wanted = [entry_of(store, network, ip) for ip in sorted(leased.difference(there[0] & there[1]))]
    return [entry for entry in wanted if entry], sorted((there[0] | there[1]) - leased)


def _listed(folder: str) -> set[str]:
    return {name for name in os.listdir(folder) if not name.startswith(".")} if os.path.isdir(folder) else set()


def _write_entry(paths: Paths, network: NetworkRecord, entry: dnsmasq.Entry) -> bool:
    """Write what it reads of a guest; whether there was nothing before, which it notices by itself."""
    folder, fresh = leases.runtime(paths, network["id"]), True
    for kind, text in (
        (dnsmasq.HOSTS, dnsmasq.host_lines(network, entry)),
        (dnsmasq.RESERVED, dnsmasq.reservation(entry)),
    ):
        path = os.path.join(folder, kind, entry.ip)
        before = _text(path)
        fresh = fresh and before is None
        if before != text:
            _write(path, text, os.stat(folder).st_gid)
    return fresh


def _write(path: str, text: str, gid: int) -> None:
    """Whole or not at all, and for the group to read. What begins with a dot is not looked at by dnsmasq."""
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o640), "w") as stream:
        os.fchown(stream.fileno(), 0, gid)
        os.fchmod(stream.fileno(), 0o640)
        stream.write(text)
    os.replace(temporary, path)


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def _remove_entries(paths: Paths, network_id: str, addresses: t.Iterable[str]) -> bool:
    """Whether any were there. Who had an address is remembered, see :func:`publish`."""
    folder, found = leases.runtime(paths, network_id), False
    for ip in addresses:
        hosts, reserved = (os.path.join(folder, kind, ip) for kind in FOLDERS)
        found = found or os.path.lexists(hosts) or os.path.lexists(reserved)
        remove_file(hosts)
        with contextlib.suppress(FileNotFoundError):
            os.replace(reserved, os.path.join(folder, FORMER, ip))
    return found


# -- the process ----------------------------------------------------------------------------------------------------


def _place(store: Store, network_id: str) -> dnsmasq.Place:
    account = _account()
    group = grp.getgrgid(account.pw_gid).gr_name
    path = leases.directory(store, network_id, "dnsmasq.leases")
    return dnsmasq.Place(leases.runtime(store.paths, network_id), path, account.pw_name, group)


def _account() -> pwd.struct_passwd:
    for name in USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ToolError(f"the host has no user {' or '.join(USERS)}", remedy=f"Install {dnsmasq.PACKAGE}.")


def _note_path(store: Store, network_id: str) -> str:
    return leases.directory(store, network_id, leases.NOTE)


def _note(store: Store, network_id: str) -> Record | None:
    """What is noted of an instance; nothing of use if that cannot be read."""
    try:
        return read_json(_note_path(store, network_id))
    except StateError:
        return {}


def _find(store: Store, network_id: str, note: Record | None) -> Process | None:
    """The instance that was noted, or the one that systemd has started in its place when it crashed."""
    process = Process.find(note.get("process")) if note else None
    if process is not None or not note:
        return process
    from ansible_collections.cocoon.microvm.plugins.module_utils import _scope as scope

    return next(iter(_scan(_config_path(store, network_id))), None) if scope.present() else None


def _is_current(store: Store, network: NetworkRecord, note: Record) -> bool:
    """Whether what runs was started for the network as it is, and for the bridge that is there."""
    text = dnsmasq.config(network, _place(store, network["id"]))
    return {key: note.get(key) for key in ("config", "bridge", "served")} == _started_for(network, text)


def _started_for(network: NetworkRecord, text: str) -> Record:
    """What is noted of an instance beside its process; of that the rules are made should the record be damaged."""
    served = {key: network.get(key) for key in leases.SERVED}
    return {"config": _digest(text), "bridge": links.index_of(network["bridge"]), "served": served}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _make_folders(paths: Paths, network_id: str) -> None:
    make_runtime_directories(paths)
    top, gid = leases.runtime(paths, network_id), _account().pw_gid
    os.makedirs(os.path.dirname(top), 0o711, exist_ok=True)
    os.chmod(os.path.dirname(top), 0o711)
    for path in (top, *(os.path.join(top, name) for name in (*FOLDERS, FORMER))):
        os.makedirs(path, 0o750, exist_ok=True)
        os.chown(path, 0, gid)
        os.chmod(path, 0o750)


def _restart(store: Store, network: NetworkRecord) -> None:
    """End what runs, and start it anew with the leases that still hold."""
    _end_processes(store, network["id"])
    place = _place(store, network["id"])
    for name in _listed(os.path.join(place.folder, FORMER)):
        remove_file(os.path.join(place.folder, FORMER, name))
    config, text = _config_path(store, network["id"]), dnsmasq.config(network, place)
    _write(config, text, os.stat(place.folder).st_gid)
    entries = [entry_of(store, network, ip) for ip in leases.names(store, network["id"], "leases")]
    for entry in filter(None, entries):
        _write_entry(store.paths, network, entry)
    stale = dnsmasq.outdated(network, _leased(store, network["id"]), filter(None, entries))
    if stale:
        _write(place.leases, dnsmasq.without(_text(place.leases) or "", stale), 0)
    _start(network, config)
    process = next(iter(_scan(config)), None)
    if process is None:
        raise ToolError(f"dnsmasq of network '{network['name']}' ended at once", remedy="See what the system log says.")
    with process:
        _adopt(network, process.pid)
        note = {"process": identify(process.pid), **_started_for(network, text)}
        write_json(_note_path(store, network["id"]), note)


def _start(network: NetworkRecord, config: str) -> None:
    """It goes to the background by itself once it listens, and says on its standard error why it cannot.

    Where systemd runs, it is a service, which is started again when it crashes. One that does not start there does not
    without it either, and says why; if it does, it is taken for what it is.
    """
    from ansible_collections.cocoon.microvm.plugins.module_utils import _scope as scope

    command = [dnsmasq.PROGRAM, f"--conf-file={config}"]
    if scope.present():
        unit, words = scope.service_name(network["id"]), f"names and addresses of network {network['name']}"
        with contextlib.suppress(ToolError):
            run_tool(scope.service(unit, command, words), timeout=60, package="systemd")
            return
    try:
        run_tool(command, timeout=60, package=dnsmasq.PACKAGE)
    except ToolError as exc:
        if "already in use" in exc.message:
            exc.remedy = "Another name or DHCP server of the host listens on all addresses: bind it to its own ones."
        raise


def _adopt(network: NetworkRecord, pid: int) -> None:
    """Where systemd runs, it is not part of the login, or of the service, that this run belongs to."""
    from ansible_collections.cocoon.microvm.plugins.module_utils import _scope as scope

    if scope.present() and not scope.in_unit(pid, scope.service_name(network["id"])):
        unit = scope.adopt(network["id"], (pid,), f"names and addresses of network {network['name']}")
        scope.wait_adopted(pid, unit)


def other_leases(store: Store, network: NetworkRecord) -> list[Record]:
    """Who has got an address of ``dhcp_range``, as dnsmasq notes it; what VMs had that are gone is there for hours."""
    text = _text(leases.directory(store, network["id"], "dnsmasq.leases")) if network.get("dhcp") else None
    leased = set(leases.names(store, network["id"], "leases"))
    found = dnsmasq.list_leases(text or "")
    return [item for item in found if item["ip"] not in leased and dnsmasq.is_for_others(network, item["ip"])]


def _leased(store: Store, network_id: str) -> dict[str, str]:
    """The MACs that dnsmasq has leased addresses to, by address."""
    return dnsmasq.read_leases(_text(leases.directory(store, network_id, "dnsmasq.leases")) or "")


def _reread(store: Store, network_id: str) -> None:
    process = _find(store, network_id, _note(store, network_id))
    if process is not None:
        with process:
            process.signal(signal.SIGHUP)


def _config_path(store: Store, network_id: str) -> str:
    return os.path.join(leases.runtime(store.paths, network_id), dnsmasq.CONFIG)


def _scan(config: str) -> list[Process]:
    """What runs with that configuration, whether anybody has noted it or not."""
    word, uid = f"--conf-file={config}".encode(), _account().pw_uid
    found = []
    for process in Process.scan(uid, processes_by_uid().get(uid, ())):
        if word in _words(process.pid):
            found.append(process)
        else:
            process.close()
    return found


def _words(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as stream:
            return stream.read().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def _end_processes(store: Store, network_id: str) -> None:
    from ansible_collections.cocoon.microvm.plugins.module_utils import _scope as scope

    if scope.present():
        scope.stop_service(scope.service_name(network_id))
    noted = Process.find((_note(store, network_id) or {}).get("process"))
    for process in (noted, *_scan(_config_path(store, network_id))):
        if process is not None:
            with process:
                process.end()


def _end(store: Store, network_id: str) -> None:
    # The note goes last: while it is there, somebody has something to end.
    if leases.was_served(store, network_id):
        _end_processes(store, network_id)
        remove_tree(leases.runtime(store.paths, network_id))
        remove_file(_note_path(store, network_id))


def left_over(store: Store) -> list[str]:
    """Networks' ids of instances that are there although their networks are not; see the doctor."""
    # A network is there before its instance.
    there = _listed(os.path.join(store.paths.run, "networks"))
    return sorted(there.difference(network_id for _name, network_id in leases.every(store)))
