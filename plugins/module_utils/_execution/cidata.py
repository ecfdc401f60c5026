# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a disk image is told at its first boot: a NoCloud volume, as cloud-init and its likes read it.

``cidata.json`` beside the VM's record, root's alone, is what the task gave: login data with a crypt hash for the
password, and ``user_data``. From it, and from what the record says by then of addresses and disks, ``cidata.img``
is made at each start. What was given goes when a guest that has it shuts down cleanly; the volumes of later boots
only say that it is still the same machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _disks
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._execution import boot
from ansible_collections.cocoon.microvm.plugins.module_utils._state import read_json, remove_file, write_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import NetworkConfig, Record

SEED = "cidata.json"
VOLUME = "cidata.img"
SERIAL = "cocoon-cidata"
# In lists ours come after the user's, mappings are merged, and of two plain values the user's stays.
MERGE = "list(append)+dict(no_replace,recurse_list)+str()"
MOUNT_OPTIONS = "defaults,nofail,x-systemd.device-timeout=30s"


def volume_path(paths: Paths, vm_id: str) -> str:
    return os.path.join(paths.vm_dir(vm_id), VOLUME)


def seed_path(paths: Paths, vm_id: str) -> str:
    return os.path.join(paths.vm_dir(vm_id), SEED)


def takes(record: Record) -> bool:
    """Whether the VM's image is one that asks for such a volume."""
    return record.get("image_type") == "cloudimg" and not record["config"].get("windows")


def write_seed(paths: Paths, record: Record, login: Record) -> None:
    """Keep what the first boot is to be given; an earlier volume goes.

    :param login: ``user``, ``password`` (a crypt hash), ``ssh_keys`` and ``user_data``, each only if it was given.
    """
    remove_file(volume_path(paths, record["id"]))
    record["cidata_given"] = False
    write_json(seed_path(paths, record["id"]), login, mode=0o400)


def expect_boot(paths: Paths, record: Record, resumes: bool) -> None:
    """Have a clone told at its next boot who it is: another instance to cloud-init, with accounts as they are.

    :param resumes: it goes on from a saved memory first, and the machine there has the volume that its source had.
    """
    volume = volume_path(paths, record["id"])
    if not resumes:
        remove_file(volume)
    record["cidata_given"] = False
    write_json(seed_path(paths, record["id"]), {}, mode=0o400)


def prepare(paths: Paths, record: Record) -> None:
    """Before a boot: make the volume from the seed, if there is one; idempotent.

    :raises ToolError: mtools is missing. :raises ResourceError: no space left.
    """
    seed = read_json(seed_path(paths, record["id"]))
    if seed is None:
        return
    files = {
        "meta-data": _json(meta_data(record)),
        "user-data": user_data(record, seed),
        "network-config": _json(network_config(record)),
    }
    _disks.create_volume(volume_path(paths, record["id"]), "CIDATA", files, record["uid"])
    record["cidata_given"] = True


def settle(paths: Paths, record: Record) -> None:
    """After a clean shutdown: what the guest was given it has taken, and is kept nowhere else.

    Later boots find a volume of the same instance without any of it. Without one cloud-init would ask servers of
    clouds for minutes, and take the machine for a new one in the end.
    """
    remove_file(volume_path(paths, record["id"]))
    if record.get("cidata_given"):  # a clone that only went on from its snapshot still has its first boot before it
        remove_file(seed_path(paths, record["id"]))
        with contextlib.suppress(OSError):  # a full disk does not keep a VM from being stopped
            write_json(seed_path(paths, record["id"]), {}, mode=0o400)


def forget(paths: Paths, record: Record) -> None:
    """The system disk that all this was for goes."""
    for path in (volume_path(paths, record["id"]), seed_path(paths, record["id"])):
        remove_file(path)


def retain(paths: Paths, record: Record, files: t.Container[str]) -> None:
    """After the disks were put back to a snapshot's: the first boot, or what comes after it, is that of the snapshot.

    :param files: the snapshot's.
    """
    write_json(seed_path(paths, record["id"]), {}, mode=0o400)
    if VOLUME not in files:
        remove_file(volume_path(paths, record["id"]))


def storage_config(paths: Paths, record: Record) -> Record | None:
    """The volume as an entry of ``storage_configs``, if there is one."""
    path = volume_path(paths, record["id"])
    return {"path": path, "ro": True, "serial": SERIAL} if os.path.lexists(path) else None


def _json(document: t.Any) -> bytes:
    """JSON is YAML, which is what cloud-init reads."""
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def meta_data(record: Record) -> Record:
    return {"instance-id": record["id"], "local-hostname": record["config"]["name"]}


def network_config(record: Record) -> Record:
    """Version 2, the NICs found by their MACs and called eth0, eth1, …"""
    nics = enumerate(record.get("network_configs") or [])
    return {"version": 2, "ethernets": {f"eth{index}": _ethernet(config, f"eth{index}") for index, config in nics}}


def _ethernet(config: NetworkConfig, name: str) -> Record:
    found: Record = {"match": {"macaddress": config["mac"]}, "set-name": name}
    if config.get("mtu"):
        found["mtu"] = config["mtu"]
    network = config.get("network")
    if not network or not network.get("ip"):
        return {**found, "dhcp4": True}
    found["addresses"] = [f"{network['ip']}/{network['prefix']}"]
    if network.get("gateway"):
        found["routes"] = [{"to": "0.0.0.0/0", "via": network["gateway"]}]
    servers = list(boot.DEFAULT_DNS if config.get("dns") is None else config["dns"])
    return {**found, "nameservers": {"addresses": servers}} if servers else found


def cloud_config(record: Record, seed: Record) -> Record:
    """Users, data disks and what makes both of use.

    Nobody can log in without login data. With ``user_data`` alone the accounts are its own affair.
    """
    found: Record = {"manage_etc_hosts": "localhost", "mounts": mounts(record)}
    login = {key: seed[key] for key in ("user", "password", "ssh_keys") if seed.get(key)}
    if not login:
        return found if seed.get("user_data") else {**found, "users": []}
    name = login.get("user", "root")
    user: Record = {"name": name, "lock_passwd": not login.get("password")}
    if login.get("password"):
        user["hashed_passwd"] = login["password"]
        found["ssh_pwauth"] = True
    if login.get("ssh_keys"):
        user["ssh_authorized_keys"] = login["ssh_keys"]
    if name == "root":
        found["disable_root"] = False
        if login.get("password"):  # sshd takes keys only from root by default; who gives a password wants to use it
            path = "/etc/ssh/sshd_config.d/10-cocoon.conf"
            found["write_files"] = [{"path": path, "content": "PermitRootLogin yes\n"}]
    else:  # who gets an account on a machine of their own may become root on it
        user.update(sudo="ALL=(ALL) NOPASSWD:ALL", shell="/bin/bash")
    return {**found, "users": [user]}


def mounts(record: Record) -> list[list[str]]:
    """Data disks with a file system at ``/mnt/<name>``, as in other guests."""
    return [
        [f"/dev/disk/by-id/virtio-{disk['name']}", f"/mnt/{disk['name']}", disk["fstype"], MOUNT_OPTIONS, "0", "2"]
        for disk in record.get("data_disks") or []
        if disk["fstype"] != "none"
    ]


def user_data(record: Record, seed: Record) -> bytes:
    """Our cloud-config; with ``user_data`` both, as a multipart message whose parts cloud-init merges."""
    ours = "#cloud-config\n" + _json(cloud_config(record, seed)).decode()
    given = seed.get("user_data")
    if not given:
        return ours.encode()
    from email.mime.multipart import MIMEMultipart
    from email.mime.text import MIMEText

    message = MIMEMultipart(boundary=f"cocoon-{record['id']}")
    part = MIMEText(given, "plain", "utf-8")  # cloud-init looks at its first line to learn what it is
    part.add_header("Content-Disposition", "attachment", filename="user-data")
    message.attach(part)
    part = MIMEText(ours, "cloud-config", "utf-8")
    part.add_header("Content-Disposition", "attachment", filename="cocoon")
    part.add_header("Merge-Type", MERGE)
    message.attach(part)
    return message.as_bytes()
