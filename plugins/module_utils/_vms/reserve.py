# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a VM holds besides its files: name, uid, MACs, addresses, ports, its image and networks.

Everything is an exclusive create that names the VM's id, and the record that lists it is written
first: whoever finds the record of a process that died knows what may be held, and gives it back.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ConflictError, InputError, ResourceError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import settings
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.changes import disk_fields
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import login_digests
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import OPTIONS, fields_of
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.steps import disk_bytes
from ansible_collections.cocoon.microvm.plugins.module_utils._state import hashed, remove_file, remove_tree
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import boot
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.admission import promise_disk
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import (
        ImageRecord,
        NetworkConfig,
        NetworkRecord,
        VmRecord,
    )

MAX_ATTEMPTS = 64


def login_of(wanted: Record) -> Record:
    """What the record keeps of login data: digests with a salt of their own."""
    return login_digests(wanted, os.urandom(16).hex())


def fresh_record(run: Run, wanted: Record, image: ImageRecord) -> VmRecord:
    """A record in state ``creating`` for what is wanted; nothing is reserved yet."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import fresh_pins
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import kernel

    stamp = types.now()
    driver = run.driver(wanted["hypervisor"])
    config, beside = fields_of(wanted, (row.name for row in OPTIONS.values() if row.at))
    record = {
        "id": types.new_id(),
        "state": types.CREATING,
        "config": {"name": wanted["name"], **config, "network": wanted["network"] or ""},
        "pid": 0,
        "network_configs": [],
        "storage_configs": [],
        "first_booted": False,
        "snapshot_ids": {},
        "created_at": stamp,
        "updated_at": stamp,
        **beside,
        **fresh_pins(driver, wanted["accel"]),
        **_source(run, wanted),
        "image_id": image["id"],
        "image_type": image["type"],
        "image_digest": image["digest"],
        "own_kernel": not kernel.needed(image),
        "nics": wanted["nics"],
        "data_disks": [disk_fields(disk) for disk in wanted["data_disks"]],
        "detached_disks": [],
        "login": login_of(wanted),
        "relogin": "relogin" in image["features"],
        "host_keys": [],
        "promised_disk": disk_bytes(wanted, None),
    }
    return t.cast("VmRecord", record)


def _source(run: Run, wanted: Record) -> Record:
    """What a clone's record says of its snapshot, and the machine that it has to have if it goes on from its memory."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import store as snapshots

    if not wanted.get("snapshot_id"):
        return {}
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import pins_of

    snapshot = snapshots.load_by_id(run.store, wanted["snapshot_id"]) or {}
    full = snapshot.get("kind") == snapshots.FULL and not wanted.get("disks_only")
    pins = pins_of(run.driver(snapshot["hypervisor"]), snapshot) if full else {}
    return {"snapshot": wanted["snapshot"], "snapshot_id": wanted["snapshot_id"], **pins}


def _free_uid(run: Run, vm_id: str) -> int:
    """A uid of its own for each VM, from the lower half of the store's range."""
    count = run.store.uid_count // 2
    start = int(hashed(vm_id), 16)
    index = run.store.index("uid")
    for attempt in range(count):
        uid = run.store.uid_start + (start + attempt) % count
        if index.lookup(str(uid)) is None:
            return uid
    raise ResourceError(f"all {count} user ids of the store are taken", remedy="Remove VMs, or use a second root_dir.")


def plan_nics(run: Run, record: VmRecord, nics: t.Sequence[Record]) -> list[NetworkConfig]:
    """The NICs of a VM: MACs, addresses, and which of them is the guest's way out.

    The planner has said what a NIC keeps: what is left open there is chosen anew.
    """
    configs: list[NetworkConfig] = []
    for index, nic in enumerate(nics):
        configs.append(_plan_nic(run, record, index, nic, configs))
    route_nics(run, configs)
    return configs


def route_nics(run: Run, configs: t.Sequence[NetworkConfig]) -> None:
    """Which NIC is the guest's way out, as its networks are now."""
    settings.route(configs, [network_of(run, config) for config in configs])


def network_of(run: Run, config: NetworkConfig) -> NetworkRecord:
    """The network of a NIC, as that NIC has it."""
    return settings.as_seen(run.known_network(config["network_name"]), config)


def _plan_nic(run: Run, record: VmRecord, index: int, nic: Record, others: t.Sequence[NetworkConfig]) -> NetworkConfig:
    """MAC and address of one NIC: those given, else new ones."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import attachments, backends

    name = nic.get("network") or record["config"]["network"]
    if not name:
        raise InputError(
            f"nics[{index}] names no network", f"nics[{index}].network", "Name one there, or in 'network'."
        )
    network = run.known_network(name)
    config: NetworkConfig = {
        "tap": f"cm{record['id'][:8]}-{index}",
        "mac": nic.get("mac") or _free_mac(run, f"{record['id']}/{index}"),
        "num_queues": record["config"]["cpu"] * 2,
        "queue_size": record["config"]["queue_size"],
        "backend": network["backend"],
        "bridge_dev": network["bridge"],
        "network_id": network["id"],
        "network_name": name,
        "mtu": network.get("mtu") or 0,
        "dns": settings.servers(network),
        "dns_search": settings.domains(network),
        "isolated": bool(network.get("isolated")),
        **t.cast("NetworkConfig", settings.asked(nic)),
    }
    backends.of(network).place(config, record["id"])
    subnet = network.get("subnet")
    if subnet:
        wanted, seed = nic.get("ip"), address_seed(record["config"]["name"], index)
        taken = [config["network"]["ip"] for config in others if config.get("network")]
        address = attachments.choose_ip(run.store, network, seed, wanted, taken, record["id"] if wanted else None)
        prefix = int(subnet.rpartition("/")[2])
        config["network"] = {"ip": address, "gateway": "", "prefix": prefix}
    elif nic.get("ip") and settings.gives_addresses(network):  # the start asks for it
        config["network"] = {"ip": nic["ip"], "gateway": "", "prefix": 0}
    elif nic.get("ip"):
        raise InputError(
            f"network '{name}' has no subnet", f"nics[{index}].ip", "Give the network a subnet, or leave ip out."
        )
    return config


def address_seed(name: str, index: int) -> str:
    """Where the search for a free address begins, so that a NIC has the same one whenever that is free."""
    return f"{name}/{index}"


def _free_mac(run: Run, seed: str) -> str:
    index = run.store.index("mac")
    for attempt in range(MAX_ATTEMPTS):
        mac = types.derive_mac(seed, attempt)
        if index.lookup(mac) is None:
            return mac
    raise ResourceError("found no free MAC address", remedy="Give one in nics[].mac.")


def take_nics(run: Run, record: VmRecord, configs: t.Sequence[NetworkConfig]) -> None:
    """Reserve MACs, addresses and networks of *configs*, which the record on disk lists already."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import attachments

    for index, config in enumerate(configs):
        try:
            run.store.index("mac").reserve(config["mac"], record["id"])
        except ConflictError as exc:
            raise ConflictError(exc.message, f"nics[{index}].mac", "Choose another one, or leave it out.") from exc
        network = run.known_network(config["network_name"])
        attachments.attach(run.store, network["id"], record["id"])
        run.mark("create.mac")
        if config.get("network", {}).get("ip") and network.get("subnet"):
            attachments.lease(run.store, network, config["network"]["ip"], record["id"])
            run.mark("create.lease")
        if config.get("ip6"):
            try:
                attachments.lease(run.store, network, config["ip6"], record["id"])
            except ConflictError as exc:
                raise ConflictError(exc.message, f"nics[{index}].ip6", exc.remedy or "") from exc
            run.mark("create.lease6")


def serve_nics(run: Run, record: VmRecord) -> None:
    """Have the NICs be found by name, and given their addresses when they ask; the record on disk lists them."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import serving

    for config in record["network_configs"]:
        if config.get("network", {}).get("ip"):
            serving.publish(run.store, run.known_network(config["network_name"]), config["network"]["ip"])
            run.mark("create.name_served")


def give_back_nics(
    run: Run, record: VmRecord, configs: t.Sequence[NetworkConfig], keep: t.Sequence[NetworkConfig] = ()
) -> None:
    """Release what *configs* hold and *keep* does not."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import attachments, neighbours

    kept_macs = {config["mac"] for config in keep}
    kept_ips = {(config["network_id"], ip) for config in keep for ip in _addresses(config)}
    kept_places = {(config["network_id"], ip, config["mac"]) for config in keep for ip in _addresses(config)}
    kept_networks = {config["network_id"] for config in keep}
    for config in configs:
        for address in _addresses(config):
            if (config["network_id"], address) not in kept_ips:
                attachments.release(run.store, config["network_id"], address, record["id"])
            if (config["network_id"], address, config["mac"]) not in kept_places:
                neighbours.forget(config.get("bridge_dev") or "", address)
        if config["mac"] not in kept_macs:
            run.store.index("mac").release(config["mac"], record["id"])
        if config["network_id"] not in kept_networks:
            attachments.detach(run.store, config["network_id"], record["id"])


def _addresses(config: NetworkConfig) -> list[str]:
    """The addresses that a NIC has a lease of."""
    return [ip for ip in ((config.get("network") or {}).get("ip"), config.get("ip6")) if ip]


def drop_guards(run: Run, configs: t.Iterable[NetworkConfig]) -> None:
    """Of NICs that are gone for good, or whose VM is, nothing is left in the firewall."""
    taps = {config["tap"] for config in configs}
    if taps:
        from ansible_collections.cocoon.microvm.plugins.module_utils._network import guard

        guard.remove(run.store, sorted(taps))


def port_target(nics: t.Sequence[t.Mapping[str, t.Any]], networks: t.Sequence[NetworkRecord | None]) -> int | None:
    """Which NIC published ports lead to: the way out, as answers go there, else the first that has an address.

    :param nics: definitions or records of NICs. :param networks: the network of each.
    """
    reachable = [index for index, network in enumerate(networks) if network and settings.gives_addresses(network)]
    ways = [index for index in settings.ways_out(nics, networks) if index in reachable]
    return next(iter(ways or reachable), None)


def take_ports(run: Run, record: VmRecord) -> None:
    """Publish the record's ports; the firewall follows with the run's next sync."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import attachments

    if not record.get("ports"):
        return
    configs = record.get("network_configs") or []
    networks = [run.known_network(config["network_name"]) for config in configs]
    target = port_target(configs, networks)
    if target is None:
        raise InputError("no NIC has an address to publish ports for", "ports", "Use a network with a subnet.")
    address = (configs[target].get("network") or {}).get("ip") or ""
    attachments.publish(run.store, networks[target], record["id"], address, record["ports"])
    run.networks_changed = True


def all_ports(record: VmRecord) -> list[str]:
    """The record's ports, and those of a change that may not have come to its end."""
    return list(dict.fromkeys([*(record.get("ports") or []), *(record.get("planned_ports") or [])]))


def give_back_ports(run: Run, record: VmRecord, ports: t.Sequence[str], keep: t.Iterable[str] = ()) -> None:
    """Withdraw *ports*, on whichever network they are, but for those whose host port is one of *keep*, too."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import attachments

    networks = {config["network_id"] for config in record.get("network_configs") or []}
    if not ports or not networks:
        return
    kept = {port.key for port in attachments.check_ports(keep)}
    dropped = [str(port) for port in map(attachments.parse_port, ports) if port.key not in kept]
    for network_id in networks:
        attachments.unpublish(run.store, network_id, record["id"], dropped)
    run.networks_changed = True


def reserve(run: Run, wanted: Record, kept: VmRecord | None = None) -> VmRecord:
    """Take everything a new VM holds. The host's lock and the VM's are held.

    The name comes first, as it is what the next run looks up; then the record, which lists all
    that may be taken after it.

    :param kept: the record of a removed VM of that name whose data disks wait for this one.
    :raises CocoonError: something is taken or unknown; what was reserved until then is given back.
    """
    record = fresh_record(run, wanted, run.known_image(wanted["image"]))
    if kept is not None:
        names = {disk["name"] for disk in record["data_disks"]}
        record["id"], record["uid"] = kept["id"], kept["uid"]
        record["detached_disks"] = [disk for disk in kept["detached_disks"] if disk["name"] not in names]
        record["kept_disks"] = kept["detached_disks"]
        record["promised_disk"] = disk_bytes(wanted, kept["detached_disks"])
    else:
        record["uid"] = _free_uid(run, record["id"])
    record["network_configs"] = plan_nics(run, record, record["nics"])
    promise_disk(run, record["id"], record["promised_disk"])
    run.store.index("vm").reserve(wanted["name"], record["id"])
    run.mark("create.name")
    try:
        _reserve_rest(run, record)
    except Exception:
        if kept is not None:
            release_all_but_disks(run, record, [disk["name"] for disk in kept["detached_disks"]])
            run.store.write_vm(kept)
        else:
            release(run, record)
        raise
    return record


def reserve_moved(run: Run, record: VmRecord) -> None:
    """Take everything for a VM that comes from another host, under the id that it has. The host's lock is held.

    :param record: complete but for ``uid``, which it gets here.
    :raises CocoonError: something is taken or unknown; what was reserved until then is given back.
    """
    record["uid"] = _free_uid(run, record["id"])
    promise_disk(run, record["id"], record["promised_disk"])
    run.store.index("vm").reserve(record["config"]["name"], record["id"])
    run.mark("create.name")
    try:
        _reserve_rest(run, record)
    except Exception:
        release(run, record)
        raise


def _reserve_rest(run: Run, record: VmRecord) -> None:
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images

    directory = run.store.paths.vm_dir(record["id"])
    os.makedirs(directory, 0o710, exist_ok=True)
    os.chown(directory, 0, record["uid"])
    os.chmod(directory, 0o710)  # whatever the umask of this task is
    image = run.known_image(record["image_id"])
    record["storage_configs"] = boot.storage_configs(record, image, run.store.paths)
    run.store.write_vm(record)
    run.mark("create.record")
    run.store.index("uid").reserve(str(record["uid"]), record["id"])
    run.mark("create.uid")
    images.pin(run.store, record["image_id"], record["id"])
    run.mark("create.image")
    take_nics(run, record, record["network_configs"])
    serve_nics(run, record)
    take_ports(run, record)
    run.mark("create.ports")


def unpin_images(run: Run, record: VmRecord) -> None:
    """Let go of the images that a rebuild held besides the VM's own."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images

    for image_id in record["held_images"]:
        if image_id != record["image_id"]:
            images.unpin(run.store, image_id, record["id"])
    record["held_images"] = []
    run.store.write_vm(record)


def _release_holdings(run: Run, record: VmRecord) -> None:
    """Ports, addresses, MACs, networks, image: all but the name, the uid and the files."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images

    if record.get("lost"):
        from ansible_collections.cocoon.microvm.plugins.module_utils._vms import salvage

        salvage.release(run, record["id"])
        run.sync_networks()
    give_back_ports(run, record, all_ports(record))
    run.mark("remove.ports")
    if record.get("snapshot_id"):
        from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import store as snapshots

        snapshots.forget_clone(run.store, record["snapshot_id"], record["id"])
    nics = [*(record.get("network_configs") or []), *(record.get("planned_nics") or [])]
    drop_guards(run, nics)
    give_back_nics(run, record, nics)
    run.mark("remove.lease")
    for image_id in {record.get("image_id"), *(record.get("held_images") or [])}:
        if image_id is not None:
            images.unpin(run.store, image_id, record["id"])
    run.mark("remove.image")


def release_all_but_disks(run: Run, record: VmRecord, disks: t.Iterable[str]) -> None:
    """Give back everything but the name, the uid and those data disks. Idempotent."""
    _release_holdings(run, record)
    directory = run.store.paths.vm_dir(record["id"])
    kept = {"vm.json", *(os.path.basename(boot.data_disk(record["id"], disk, run.store.paths)) for disk in disks)}
    remove_tree(os.path.join(directory, "resume"))
    for name in os.listdir(directory):
        if name not in kept:
            remove_file(os.path.join(directory, name))
    run.mark("remove.files")


def _remove_files(directory: str) -> None:
    """The record goes last: files without one would be those of a VM that has lost it."""
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                remove_tree(entry.path)
            elif entry.name != "vm.json":
                remove_file(entry.path)
    remove_tree(directory)


def release(run: Run, record: VmRecord) -> None:
    """Give back everything a record may hold, its directory and its name last. Idempotent."""
    _release_holdings(run, record)
    if record.get("uid"):
        run.store.index("uid").release(str(record["uid"]), record["id"])
    run.mark("remove.uid")
    _remove_files(run.store.paths.vm_dir(record["id"]))
    run.mark("remove.files")
    run.store.index("vm").release(record["config"]["name"], record["id"])
    run.mark("remove.name")
