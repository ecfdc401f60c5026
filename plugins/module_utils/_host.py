# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts of a hypervisor host. Looks, never changes, and works before there is a store."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import shutil
import subprocess
import sys
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _firewalls as firewalls
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths, closed_directories
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.plugins.module_utils._state import INDEX_KINDS, Store, read_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import HYPERVISORS, RUNNING, Record

# How each tool tells its version.
TOOLS: dict[str, tuple[str, ...]] = {
    "qemu-img": ("--version",),
    "mkfs.erofs": ("-V",),
    "mkfs.ext4": ("-V",),
    "e2fsck": ("-V",),
    "resize2fs": (),
    "nft": ("--version",),
    "dnsmasq": ("--version",),
    "zstd": ("--version",),
    "skopeo": ("--version",),
    "openssl": ("version",),
    "mformat": ("--version",),
    "mcopy": (),
}
# Import name and the name under which it is distributed.
LIBRARIES = {"pyroute2": "pyroute2", "jsonschema": "jsonschema", "requests_unixsocket": "requests-unixsocket"}
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KINDS = {"vms": "vm", "images": "image", "networks": "network", "snapshots": "snapshot"}
SUBORDINATE_FILES = ("/etc/subuid", "/etc/subgid")


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the checks look at. Sizes in bytes.

    :param tools: by name, ``{"path": …, "version": …}`` or ``None``.
    :param libraries: by import name, the version or ``None``.
    :param closed: by option, the first directory on the way to it that other users cannot pass.
    :param firewalls: others that drop forwarded packets.
    :param nft_error: why nft could not list chains, if so.
    :param default_kernel: the image with the kernel for images that bring none.
    :param halted: of VMs whose guests do nothing though nobody asked for it, the name and why.
    :param orphans: what is held for VMs and snapshots that are not there, in words, by their ids, or by TAPs.
    :param damaged: documents that cannot be read, each with what is wrong.
    :param plugins: networks whose CNI conflist or plugins are not as they have to be, each with what is wrong.
    :param uid_overlaps: lines of the subordinate id files that meet the store's uid range.
    """

    architecture: str
    kernel: str
    python: Record
    hypervisors: list[Record]
    kvm: Record
    tools: dict[str, Record | None]
    libraries: dict[str, str | None]
    tun: bool
    bridge: bool
    memory: Record
    disk: Record
    closed: dict[str, str]
    firewalls: list[firewalls.Firewall]
    nft_error: str | None
    systemd: bool
    store: Record
    uid_overlaps: list[str]
    default_kernel: Record | None = None
    halted: dict[str, str] = dataclasses.field(default_factory=dict)
    orphans: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    damaged: list[str] = dataclasses.field(default_factory=list)
    plugins: dict[str, str] = dataclasses.field(default_factory=dict)


def gather(paths: Paths) -> Facts:
    """Everything at once."""
    store, document = _store(paths)
    tools = {name: _tool(name, arguments) for name, arguments in TOOLS.items()}
    walls, nft_error = _other_firewalls(document)
    return Facts(
        architecture=platform.machine(),
        kernel=platform.release(),
        python=python_facts(),
        hypervisors=[_hypervisor(name, paths) for name in HYPERVISORS],
        kvm=_kvm(paths),
        tools=tools,
        libraries={name: library_version(name, LIBRARIES[name]) for name in LIBRARIES},
        tun=os.path.exists("/dev/net/tun"),
        bridge=_has_module("bridge"),
        memory=_memory(),
        disk=_disk(paths.root),
        closed=closed_directories(paths),
        firewalls=walls,
        nft_error=nft_error,
        systemd=os.path.isdir("/run/systemd/system"),
        store=store,
        uid_overlaps=_uid_overlaps(document),
        default_kernel=_default_kernel(document),
        halted=_halted(document),
        orphans=_orphans(document),
        damaged=damaged_documents(document),
        plugins=_lacking_plugins(document),
    )


def as_result(facts: Facts) -> Record:
    """The facts as ``cocoon_host_info`` returns them."""
    result = dataclasses.asdict(facts)
    looked_at = ("closed", "halted", "orphans", "damaged", "nft_error", "uid_overlaps", "plugins")
    for internal in ("tun", "bridge", *looked_at):
        del result[internal]
    return result


def _output(argv: t.Sequence[str]) -> str:
    """Standard output and error of a tool that only tells its version; nothing if it fails to run."""
    try:
        done = subprocess.run(  # pylint: disable=ansible-bad-function  # there is no AnsibleModule here
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=10,
            check=False,
            env={"PATH": SEARCH_PATH, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")


def first_version(text: str) -> str | None:
    """The first thing in *text* that looks like a version."""
    found = re.search(r"[0-9]+\.[0-9]+(?:\.[0-9]+)*", text)
    return found.group(0) if found else None


def _tool(name: str, arguments: t.Sequence[str]) -> Record | None:
    path = shutil.which(name, path=SEARCH_PATH)
    if path is None:
        return None
    return {"path": path, "version": first_version(_output([path, *arguments])) if arguments else None}


def python_facts() -> Record:
    """The interpreter that runs the modules, and whether distribution packages reach it."""
    virtual = sys.prefix != sys.base_prefix
    packaged = sys.base_prefix == "/usr" and not (virtual and not _sees_system_packages())
    return {
        "executable": sys.executable,
        "version": platform.python_version(),
        "virtual_environment": virtual,
        "distribution_packages": packaged,
    }


def _sees_system_packages() -> bool:
    try:
        with open(os.path.join(sys.prefix, "pyvenv.cfg"), encoding="utf-8") as stream:
            return bool(re.search(r"^include-system-site-packages\s*=\s*true", stream.read(), re.MULTILINE | re.I))
    except OSError:
        return False


def library_version(module: str, distribution: str) -> str | None:
    """The version of a library in this interpreter, ``unknown`` if it does not say; it is found, not imported."""
    from importlib import metadata, util

    if util.find_spec(module) is None:
        return None
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


def _hypervisor(name: str, paths: Paths) -> Record:
    """What the driver finds; where there is no driver, what can be seen of the binary."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import registry

    try:
        return dataclasses.asdict(registry.driver(name, paths).probe())
    except CocoonError as exc:
        binary = shutil.which(name, path=SEARCH_PATH)
        version = first_version(_output([binary, "--version"])) if binary else None
        return {
            "name": name,
            "binary": binary,
            "version": version,
            "available": False,
            "reason": str(exc),
            "accels": (),
            "firmware": (),
            "remedy": None,
            "uefi_remedy": None,
        }


def _kvm(paths: Paths) -> Record:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import registry

    problem = registry.kvm_problem(paths)
    return {"usable": problem is None, "reason": problem}


def _memory() -> Record:
    found = {}
    with open("/proc/meminfo", encoding="ascii") as stream:
        for line in stream:
            name, _colon, rest = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                found[name] = int(rest.split()[0]) * 1024
    return {"total": found.get("MemTotal", 0), "available": found.get("MemAvailable", 0)}


def existing_parent(path: str) -> str:
    """*path*, or the nearest directory above it that exists."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _disk(root: str) -> Record:
    info = os.statvfs(existing_parent(root))
    return {"path": root, "total": info.f_blocks * info.f_frsize, "free": info.f_bavail * info.f_frsize}


def _has_module(name: str) -> bool:
    """Whether the kernel has *name*, built in, loaded, or on disk."""
    if os.path.exists(f"/sys/module/{name}"):
        return True
    for index in ("modules.builtin", "modules.dep"):
        try:
            with open(f"/lib/modules/{platform.release()}/{index}", encoding="utf-8") as stream:
                if any(f"/{name}.ko" in line.split(":", 1)[0] for line in stream):
                    return True
        except OSError:
            continue
    return False


def _other_firewalls(store: Store | None) -> tuple[list[firewalls.Firewall], str | None]:
    """Other firewalls that drop what is forwarded, and why nft cannot say if it cannot."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import leases

    records = [leases.seen(store, network_id, name) for name, network_id in leases.every(store)] if store else []
    bridges = [record["bridge"] for record in records if record and record.get("bridge") and not record["adopted"]]
    tools = {name for name in firewalls.TOOLS if shutil.which(name, path=SEARCH_PATH)}
    return firewalls.look(bridges, tools, _output)


def _store(paths: Paths) -> tuple[Record, Store | None]:
    """The store's facts, and the store itself if there is one."""
    base = {"root_dir": paths.root, "run_dir": paths.run, "log_dir": paths.log}
    try:
        store = Store.load(paths)
    except StateError as exc:
        return {**base, "exists": True, "error": str(exc)}, None
    if store is None:
        return {**base, "exists": False}, None
    counts = {noun: _count(paths.index(kind)) for noun, kind in KINDS.items()}
    return {
        **base,
        "exists": True,
        "id": store.store_id,
        "layout": store.document["layout"],
        "uid_start": store.uid_start,
        "uid_count": store.uid_count,
        "counts": counts,
    }, store


def _count(directory: str) -> int:
    try:
        return sum(not name.endswith(".tmp") for name in os.listdir(directory))
    except FileNotFoundError:
        return 0


def _default_kernel(store: Store | None) -> Record | None:
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import kernel

    try:
        record = kernel.find(store) if store else None
    except StateError:  # among the documents that are damaged
        record = None
    return {key: record[key] for key in ("id", "owner", "labels", "updated_at")} if record else None


def _halted(store: Store | None) -> dict[str, str]:
    """VMs whose hypervisor has stopped the guest, or whose kernel has given up, each with what for."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.console import panicked
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.runstates import run_state

    found = {}
    for name, vm_id in store.index("vm").entries() if store else ():
        record = store.load_vm(vm_id) if store else None
        process = Process.find(record.get("process")) if record and record.get("state") == RUNNING else None
        if store and record and process:
            process.close()
            said = run_state(record["hypervisor"], store.paths.vm_run(vm_id))
            if said not in (None, "running", "paused"):
                found[name] = str(said)
            elif why := panicked(store.paths.console_log(vm_id)):
                found[name] = f"its kernel panicked: {why}"
    return found


def _orphans(store: Store | None) -> dict[str, list[str]]:
    from ansible_collections.cocoon.microvm.plugins.module_utils._engine import orphans

    try:
        return orphans.find(store) if store else {}
    except StateError as exc:
        return {"damaged": [str(exc)]}


def _lacking_plugins(store: Store | None) -> dict[str, str]:
    """Networks that plugins make, and what is wrong with these, by name."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import leases

    found = {}
    for name, network_id in leases.every(store) if store else ():
        record = leases.seen(store, network_id, name) if store else None
        if record and record.get("conflist"):
            from ansible_collections.cocoon.microvm.plugins.module_utils._network.backends import cni

            try:
                cni.check_host(record)
            except CocoonError as exc:
                found[name] = exc.message
    return found


def damaged_documents(store: Store | None) -> list[str]:
    """Every document of the store that cannot be read, in words."""
    from ansible_collections.cocoon.microvm.plugins.module_utils import _records

    if store is None:
        return []
    found: list[str] = []
    for kind in INDEX_KINDS:
        folder = store.paths.index(kind)
        for name in _listed(folder):
            found += _damage(os.path.join(folder, name), _named)
    for noun, file, reader in (
        ("vms", "vm.json", _records.read_vm),
        ("snapshots", "snapshot.json", _records.read_snapshot),
        ("networks", "network.json", _records.read_network),
    ):
        for name in _listed(os.path.join(store.paths.root, noun)):
            found += _damage(os.path.join(store.paths.root, noun, name, file), reader)
    found += _damaged_holdings(store)
    for name in _listed(os.path.join(store.paths.images, "records")):
        found += _damage(os.path.join(store.paths.images, "records", name), _records.read_image)
    return found


def _damaged_holdings(store: Store) -> list[str]:
    """What says which VM has an address, a port, or a network."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import leases, ports
    from ansible_collections.cocoon.microvm.plugins.module_utils._network.cni import attachments

    found: list[str] = []
    networks = os.path.join(store.paths.root, "networks")
    for network in _listed(networks):
        for kind, reader in (
            ("leases", _held),
            (leases.CHOSEN6, _held),
            ("ports", ports.read_port),
            ("users", _held),
            (attachments.FOLDER, attachments.check),
        ):
            folder = os.path.join(networks, network, kind)
            for name in _listed(folder):
                found += _damage(os.path.join(folder, name), reader)
    return found


def _held(entry: Record) -> Record:
    if not isinstance(entry.get("vm_id"), str):
        raise StateError("it names no VM")
    return entry


def _listed(folder: str) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.endswith(".tmp")) if os.path.isdir(folder) else []


def _named(entry: Record) -> Record:
    if not isinstance(entry.get("name"), str) or not isinstance(entry.get("id"), str):
        raise StateError("it names nothing")
    return entry


def _damage(path: str, reader: t.Callable[[Record], object]) -> list[str]:
    try:
        document = read_json(path)
        if document is not None:
            reader(document)
    except StateError as exc:
        return [exc.message if path in exc.message else f"{path}: {exc.message}"]
    return []


def _uid_overlaps(store: Store | None) -> list[str]:
    found: list[str] = []
    if store is None:
        return found
    for file in SUBORDINATE_FILES:
        try:
            with open(file, encoding="utf-8") as stream:
                text = stream.read()
        except OSError:
            continue
        found += [f"{file}: {line}" for line in overlaps(text, store.uid_start, store.uid_count)]
    return found


def overlaps(text: str, start: int, count: int) -> list[str]:
    """Lines of a subordinate id file whose range meets the given one."""
    found = []
    for line in text.splitlines():
        match = re.match(r"[^:#]+:([0-9]+):([0-9]+)\s*\Z", line)
        if match and int(match.group(1)) < start + count and start < int(match.group(1)) + int(match.group(2)):
            found.append(line)
    return found
