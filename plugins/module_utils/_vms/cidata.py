# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a disk image is told at its first boot: a NoCloud volume, as cloud-init and its likes read it.

``cidata.json`` beside the VM's record, root's alone, is what the task gave: login data with a crypt hash for the
password, and ``user_data``. From it, and from what the record says by then of addresses and disks, ``cidata.img``
is made at each start until the first boot is over: the guest has said so on its console, or has shut down cleanly.
Then both go. A guest without the volume would ask the servers of clouds for minutes, and take itself for another
machine in the end; so it writes down at its first boot, as cloud-init's own configuration, which instance it is. A
clone finds there who its source was, which counts for more than what a volume says of the instance. The machine's
serial number counts for still more: while the volume is there, it says who the clone is.
"""

from __future__ import annotations

import json
import os
import shlex
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _disks
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import user_data as user_data_text
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.settings import netplan, settings_of
from ansible_collections.cocoon.microvm.plugins.module_utils._state import read_json, remove_file, write_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record, host_name
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import boot

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import SnapshotRecord, VmRecord

SEED = "cidata.json"
VOLUME = "cidata.img"
# In lists ours come after the user's, mappings are merged, and of two plain values the user's stays.
MERGE = "list(append)+dict(no_replace,recurse_list)+str()"
# Where the user's accounts are a mapping, ours is one of it; to a list nothing is done.
MERGE_MAPPING = "dict(no_replace)"
# After those that images bring along: the last one that sets a key wins.
CONFIG_FILE = "/etc/cloud/cloud.cfg.d/99-cocoon.cfg"
TOLD = "cocoon: first boot done"
# Whoever logged in until now does so no longer; whoever does from now on has an account.
ACCOUNT = """\
if [ -n "$former" ]; then
    rm -f "$(getent passwd "$former" | cut -d: -f6)/.ssh/authorized_keys"
    printf '%s:*\\n' "$former" | chpasswd -e
    rm -f /etc/sudoers.d/90-cocoon
fi
id "$user" > /dev/null 2>&1 || useradd --create-home --shell /bin/bash "$user"
[ "$user" = root ] || (umask 227; echo "$user ALL=(ALL) NOPASSWD:ALL" > /etc/sudoers.d/90-cocoon)
home=$(getent passwd "$user" | cut -d: -f6)
mkdir -p "$home/.ssh\""""
# As cloud-init's ssh_pwauth does it, where sshd looks into that folder.
PASSWORDS = """\
if [ -d /etc/ssh/sshd_config.d ]; then
    echo "PasswordAuthentication yes" > /etc/ssh/sshd_config.d/10-cocoon-password.conf
    [ "$user" != root ] || echo "PermitRootLogin yes" > /etc/ssh/sshd_config.d/10-cocoon.conf
fi"""
OWN = """\
chown -R "$user:" "$home/.ssh"
! command -v restorecon > /dev/null || restorecon -R "$home/.ssh\""""
MOUNT_OPTIONS = "defaults,nofail,x-systemd.device-timeout=30s"


def volume_path(paths: Paths, vm_id: str) -> str:
    return boot.cidata_volume(vm_id, paths)


def seed_path(paths: Paths, vm_id: str) -> str:
    return os.path.join(paths.vm_dir(vm_id), SEED)


def takes(record: VmRecord) -> bool:
    """Whether the VM's image is one that asks for such a volume."""
    return record.get("image_type") == "cloudimg" and not record["config"].get("windows")


def write_seed(paths: Paths, record: VmRecord, login: Record) -> None:
    """Keep what the first boot is to be given; an earlier volume goes.

    :param login: ``user``, ``password`` (a crypt hash), ``ssh_keys`` and ``user_data``, each only if it was given.
    """
    remove_file(volume_path(paths, record["id"]))
    _expect(paths, record, login)


def expect_boot(paths: Paths, record: VmRecord, resumes: bool) -> None:
    """Have a clone told at its next boot who it is: another instance to cloud-init, with accounts as they are.

    :param resumes: it goes on from a saved memory first, and the machine there has the volume that its source had.
    """
    if not resumes:
        remove_file(volume_path(paths, record["id"]))
    _expect(paths, record, {})


def change_login(paths: Paths, record: VmRecord, login: Record) -> None:
    """Have the next boot find other login data: the first one among all that it is told, a later one alone.

    :param login: as for :func:`write_seed`; besides ``former``, who logged in until now.
    """
    if taken(paths, record):
        settle(paths, record)
    waiting = read_json(seed_path(paths, record["id"]))
    remove_file(volume_path(paths, record["id"]))
    _expect(paths, record, {**({"again": True} if waiting is None else waiting), **login})


def _expect(paths: Paths, record: VmRecord, login: Record) -> None:
    record["cidata_given"] = False
    # The log of the console outlives rebuilds: only the boot that has this very word in its volume ends the matter.
    seed = {**login, "word": os.urandom(8).hex()}
    write_json(seed_path(paths, record["id"]), seed, mode=0o400)


def prepare(paths: Paths, record: VmRecord) -> None:
    """Before a boot: make the volume from the seed, unless an earlier boot has taken it; idempotent.

    :raises ToolError: mtools is missing. :raises ResourceError: no space left.
    """
    if taken(paths, record):
        settle(paths, record)
    seed = read_json(seed_path(paths, record["id"]))
    if seed is None:
        return
    files = {
        "meta-data": _json(meta_data(record)),
        "user-data": changed_accounts(seed) if seed.get("again") else user_data(record, seed),
        "network-config": _json(netplan(settings_of(record))),
    }
    _disks.create_volume(volume_path(paths, record["id"]), "CIDATA", files, record["uid"])
    record["cidata_given"] = True


def taken(paths: Paths, record: VmRecord) -> bool:
    """Whether the guest has said on its console that its cloud-init is through with the volume."""
    seed = read_json(seed_path(paths, record["id"])) if record.get("cidata_given") else None
    if not seed:
        return False
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.console import read

    return f"{TOLD} {seed['word']}".encode() in read(paths.console_log(record["id"]))


def settle(paths: Paths, record: VmRecord) -> None:
    """After the first boot: what the guest was given it has taken, and is kept nowhere else."""
    remove_file(volume_path(paths, record["id"]))
    if record.get("cidata_given"):  # a clone that only went on from its snapshot still has its first boot before it
        remove_file(seed_path(paths, record["id"]))


def forget(paths: Paths, record: VmRecord) -> None:
    """The system disk that all this was for goes."""
    for path in (volume_path(paths, record["id"]), seed_path(paths, record["id"])):
        remove_file(path)


def due(paths: Paths, record: VmRecord) -> bool:
    """Whether the system disk is still as it came, from the image or from a snapshot, and has not met its volume."""
    seed = None if record.get("cidata_given") else read_json(seed_path(paths, record["id"]))
    return seed is not None and not seed.get("again")


def retain(paths: Paths, record: VmRecord, snapshot: SnapshotRecord) -> None:
    """After the disks were put back to a snapshot's: the first boot, or what comes after it, is that of the snapshot.

    Its volume, if it has one, stays as it is until that boot is over.
    """
    if VOLUME not in snapshot["files"]:
        remove_file(volume_path(paths, record["id"]))
    if not snapshot.get("first_boot_due"):
        remove_file(seed_path(paths, record["id"]))
    elif not due(paths, record):  # the login data may be gone by now
        _expect(paths, record, read_json(seed_path(paths, record["id"])) or {})


def serial_number(paths: Paths, record: VmRecord) -> str:
    """What the machine's serial number is for cloud-init to read, where that is needed, else nothing.

    https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html
    """
    clone = record.get("snapshot_id") and record.get("cidata_given")
    if not clone or not os.path.lexists(volume_path(paths, record["id"])):
        return ""
    return f"ds=nocloud;i={record['id']};h={host_name(record)}"


def _json(document: t.Any) -> bytes:
    """JSON is YAML, which is what cloud-init reads, but for escaped halves of characters beyond 16 bits."""
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def meta_data(record: VmRecord) -> Record:
    return {"instance-id": record["id"], "local-hostname": host_name(record)}


def cloud_config(record: VmRecord, seed: Record) -> Record:
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


def mounts(record: VmRecord) -> list[list[str]]:
    """Data disks with a file system at ``/mnt/<name>``, as in other guests."""
    return [
        [f"/dev/disk/by-id/virtio-{disk['name']}", f"/mnt/{disk['name']}", disk["fstype"], MOUNT_OPTIONS, "0", "2"]
        for disk in record.get("data_disks") or []
        if disk["fstype"] != "none"
    ]


def later_boots(record: VmRecord, seed: Record) -> str:
    """What the guest keeps of the volume, as a file of cloud-init's configuration.

    It has ``user_data``, parts of which cloud-init runs at each boot, and keeps itself; and no login data.
    https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html
    """
    given = {"user_data": seed["user_data"]} if seed.get("user_data") else {}
    source = {
        "meta-data": meta_data(record),
        "user-data": _message(record, cloud_config(record, given), given.get("user_data")).decode(),
        "network-config": json.dumps(netplan(settings_of(record))),
    }
    # ds-identify is a shell script that reads this line, and does not look for clouds where it names one source.
    return f"datasource_list: [NoCloud, None]\ndatasource: {json.dumps({'NoCloud': source}, ensure_ascii=False)}\n"


def user_data(record: VmRecord, seed: Record) -> bytes:
    """What the first boot is told: accounts and mounts, what to keep for later boots, and to say when it is done."""
    ours = cloud_config(record, seed)
    kept = {"path": CONFIG_FILE, "permissions": "0600", "content": later_boots(record, seed)}
    ours["write_files"] = [*ours.get("write_files", []), kept]
    # Once this is said the power may go, and nothing of it is told again: so it is on disk first.
    ours["runcmd"] = [["sh", "-c", f"sync; echo '{TOLD} {seed['word']}' > /dev/console"]]
    return _message(record, ours, seed.get("user_data"))


def changed_accounts(seed: Record) -> bytes:
    """What a later boot is told, and takes for what the first one was told: other login data.

    To cloud-init the instance is the one that it was, so nothing is done again but what is done at each boot. A text
    among these commands is part of a script, and never the argument of a process.
    """
    name = seed.get("user", "root")
    lines = ["umask 077", f"user={shlex.quote(name)}", f"former={shlex.quote(seed.get('former') or '')}", ACCOUNT]
    if "ssh_keys" in seed:
        lines += ["cat > \"$home/.ssh/authorized_keys\" << 'END'", *seed["ssh_keys"], "END"]
    if seed.get("password"):
        lines += ["chpasswd -e << 'END'", f"{name}:{seed['password']}", "END", PASSWORDS]
    lines += [OWN, f"sync; echo '{TOLD} {seed['word']}' > /dev/console"]
    return _cloud_config({"bootcmd": ["\n".join(lines)]})


def _message(record: VmRecord, config: Record, given: str | None) -> bytes:
    """Our cloud-config; with ``user_data`` both, as a multipart message whose parts cloud-init merges."""
    if not given:
        return _cloud_config(config)
    from email.mime.multipart import MIMEMultipart

    message = MIMEMultipart(boundary=f"cocoon-{record['id']}")
    if user_data_text.is_message(given):  # text in a part would be one part, of no kind that cloud-init knows
        message.attach(user_data_text.message(given))
    else:  # cloud-init looks at its first line to learn what it is
        message.attach(_part("user-data", "plain", given))
    message.attach(_part("cocoon", "cloud-config", _cloud_config(config).decode(), MERGE))
    if config.get("users"):
        accounts = {user["name"]: {key: user[key] for key in user if key != "name"} for user in config["users"]}
        text = _cloud_config({"users": accounts}).decode()
        message.attach(_part("cocoon-users", "cloud-config", text, MERGE_MAPPING))
    return message.as_bytes()


def _cloud_config(config: Record) -> bytes:
    return b"#cloud-config\n" + _json(config)


def _part(name: str, subtype: str, text: str, merge: str | None = None) -> t.Any:
    from email.mime.text import MIMEText

    part = MIMEText(text, subtype, "utf-8")
    part.add_header("Content-Disposition", "attachment", filename=name)
    if merge:
        part.add_header("Merge-Type", merge)
    return part
