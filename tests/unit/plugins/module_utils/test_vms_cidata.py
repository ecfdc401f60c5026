# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a cloud image is told at its first boot."""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import types
import typing as t

import pytest
import yaml

from ansible_collections.cocoon.microvm.plugins.module_utils import _disks
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import login
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.definition import normalise
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.settings import netplan, settings_of
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import cidata, storage
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm

RECORD: dict[str, t.Any] = {
    "id": "a" * 26,
    "image_type": "cloudimg",
    "config": {"name": "web1", "windows": False},
    "uid": 0,
    "network_configs": [
        {"mac": "02:00:00:00:00:01", "network": {"ip": "10.1.0.2", "gateway": "10.1.0.1", "prefix": 24}, "mtu": 1400},
        {"mac": "02:00:00:00:00:02", "network": {"ip": "10.2.0.2", "gateway": "", "prefix": 16}, "dns": ["192.0.2.1"]},
        {"mac": "02:00:00:00:00:03", "network": {"ip": "10.3.0.2", "prefix": 24}, "dns": []},
        {"mac": "02:00:00:00:00:04"},
    ],
    "data_disks": [
        {"name": "db", "size": 1 << 30, "fstype": "ext4"},
        {"name": "blank", "size": 1 << 30, "fstype": "none"},
    ],
}
WORD = {"word": "0123456789abcdef"}


def test_network_by_mac() -> None:
    found = netplan(settings_of(RECORD))
    assert found["version"] == 2
    nics = found["ethernets"]
    assert [nics[name]["match"]["macaddress"][-1] for name in ("eth0", "eth1", "eth2", "eth3")] == list("1234")
    assert nics["eth0"] == {
        "match": {"macaddress": "02:00:00:00:00:01"},
        "set-name": "eth0",
        "mtu": 1400,
        "addresses": ["10.1.0.2/24"],
        "routes": [{"to": "0.0.0.0/0", "via": "10.1.0.1"}],
        "nameservers": {"addresses": ["8.8.8.8", "1.1.1.1"]},
    }
    assert "routes" not in nics["eth1"] and nics["eth1"]["nameservers"] == {"addresses": ["192.0.2.1"]}
    assert "nameservers" not in nics["eth2"]
    assert nics["eth3"]["dhcp4"] is True and "addresses" not in nics["eth3"]


def test_names() -> None:
    named = {**RECORD, "config": {"name": "web_1."}}
    assert cidata.meta_data(named)["local-hostname"] == "web-1"
    assert cidata.meta_data(RECORD) == {"instance-id": "a" * 26, "local-hostname": "web1"}


@pytest.mark.parametrize(
    ("seed", "user"),
    [
        (
            {"ssh_keys": ["ssh-ed25519 A"]},
            {"name": "root", "lock_passwd": True, "ssh_authorized_keys": ["ssh-ed25519 A"]},
        ),
        ({"password": "$6$x"}, {"name": "root", "lock_passwd": False, "hashed_passwd": "$6$x"}),
        (
            {"user": "me", "password": "$6$x"},
            {
                "name": "me",
                "lock_passwd": False,
                "hashed_passwd": "$6$x",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "shell": "/bin/bash",
            },
        ),
    ],
)
def test_accounts(seed: dict[str, t.Any], user: dict[str, t.Any]) -> None:
    found = cidata.cloud_config(RECORD, seed)
    assert found["users"] == [user]
    assert found.get("disable_root") is (False if user["name"] == "root" else None)
    assert found.get("ssh_pwauth") is (True if "password" in seed else None)


def test_a_hash_is_given_as_it_is(tmp_path: t.Any) -> None:
    """And a password as its hash, to guests of both kinds."""
    given = f"$y$j9T$saltsalt${'z' * 43}"
    for kind, name in (("cloudimg", "cidata.json"), ("oci", "login.json")):
        for password in (given, "plain", "$ecret$"):
            run = types.SimpleNamespace(store=types.SimpleNamespace(paths=Paths(str(tmp_path))))
            record = {**RECORD, "image_type": kind, "uid": os.getuid()}
            (tmp_path / "vms" / record["id"]).mkdir(parents=True, exist_ok=True)
            storage.give_login(Vm(t.cast(t.Any, run), record), {"user": "me", "password": password})
            document = json.loads((tmp_path / "vms" / record["id"] / name).read_text())
            assert (document["password"] == given) is (password == given)
            assert login.is_hash(document["password"])


def test_nobody_without_login_data() -> None:
    assert cidata.cloud_config(RECORD, {})["users"] == []
    assert "users" not in cidata.cloud_config(RECORD, {"user_data": "#cloud-config\n"})


def test_data_disks_with_a_file_system_are_mounted() -> None:
    (mount,) = cidata.cloud_config(RECORD, {})["mounts"]
    assert mount[:3] == ["/dev/disk/by-id/virtio-db", "/mnt/db", "ext4"]
    assert "nofail" in mount[3]


def test_both_kinds_of_user_data() -> None:
    alone = cidata.user_data(RECORD, {"user": "me", **WORD}).decode()
    assert alone.startswith("#cloud-config\n")
    assert json.loads(alone.partition("\n")[2])["users"][0]["name"] == "me"
    given = "#cloud-config\nhostname: größer\n"
    message = email.message_from_bytes(cidata.user_data(RECORD, {"user": "me", "user_data": given, **WORD}))
    assert message.get_content_type() == "multipart/mixed"
    theirs, ours, accounts = message.get_payload()
    assert theirs.get_payload(decode=True).decode() == given
    assert accounts["Merge-Type"] == cidata.MERGE_MAPPING
    assert "me" in json.loads(accounts.get_payload(decode=True).partition(b"\n")[2])["users"]
    assert ours.get_content_type() == "text/cloud-config" and ours["Merge-Type"] == cidata.MERGE
    text = ours.get_payload(decode=True).decode()
    assert json.loads(text.partition("\n")[2])["users"][0]["name"] == "me"


@pytest.mark.skipif(not shutil.which("mformat"), reason="needs mtools")
def test_the_volume(tmp_path: t.Any) -> None:
    path = tmp_path / "cidata.img"
    files = {"meta-data": b"{}\n", "user-data": b"x" * 3_000_000, "network-config": b"net"}
    import os

    if os.geteuid():
        pytest.skip("needs root: it gives the file away")
    _disks.create_volume(str(path), "CIDATA", files, os.getuid())
    assert path.stat().st_mode & 0o777 == 0o400 and path.stat().st_size < 6 << 20
    for name, data in files.items():
        assert subprocess.run(["mtype", "-i", path, f"::{name}"], capture_output=True, check=True).stdout == data
    assert b"CIDATA" in subprocess.run(["mlabel", "-s", "-i", path, "::"], capture_output=True, check=True).stdout


def test_from_seed_to_shutdown(tmp_path: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = Paths(str(tmp_path))
    folder = tmp_path / "vms" / RECORD["id"]
    folder.mkdir(parents=True)
    made: list[dict[str, bytes]] = []

    def create(path: str, label: str, files: dict[str, bytes], uid: int) -> None:
        made.append(files)
        (folder / "cidata.img").write_text(label)

    monkeypatch.setattr(_disks, "create_volume", create)
    record = dict(RECORD)
    cidata.prepare(paths, record)
    assert not made and not (folder / "cidata.img").exists()
    cidata.write_seed(paths, record, {"user": "me"})
    assert (folder / "cidata.json").stat().st_mode & 0o777 == 0o400
    for count in (1, 2):  # at each start until the guest shuts down
        cidata.prepare(paths, record)
        assert len(made) == count
    cidata.settle(paths, record)
    assert list(folder.iterdir()) == []
    cidata.prepare(paths, record)  # a later boot
    assert len(made) == 2 and not (folder / "cidata.img").exists()
    cidata.expect_boot(paths, record, resumes=True)
    cidata.settle(paths, record)  # it went on from its snapshot and shut down: its own first boot is still to come
    assert [path.name for path in folder.iterdir()] == ["cidata.json"]
    cidata.prepare(paths, record)
    assert b'"me"' not in made[-1]["user-data"]
    cidata.forget(paths, record)
    assert list(folder.iterdir()) == []


def test_the_guest_says_when_it_is_done(tmp_path: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it ended afterwards; and what the VM said before it was rebuilt does not count."""
    paths = Paths(str(tmp_path), log=str(tmp_path / "log"))
    folder = tmp_path / "vms" / RECORD["id"]
    folder.mkdir(parents=True)
    console = tmp_path / "log" / RECORD["id"] / "console.log"
    console.parent.mkdir(parents=True)
    told: list[str] = []

    def create(path: str, label: str, files: dict[str, bytes], uid: int) -> None:
        told.append(json.loads(files["user-data"].partition(b"\n")[2])["runcmd"][-1][-1])
        (folder / "cidata.img").write_text(label)

    monkeypatch.setattr(_disks, "create_volume", create)
    record = dict(RECORD)
    for _again in range(2):
        cidata.write_seed(paths, record, {"user": "me"})
        assert not cidata.taken(paths, record)
        cidata.prepare(paths, record)
        assert not cidata.taken(paths, record)
        with console.open("a") as stream:
            stream.write(f"noise {told[-1].split(chr(39))[1]}\r\nlogin:")
        assert cidata.taken(paths, record)
        cidata.prepare(paths, record)
        assert list(folder.iterdir()) == []
    assert len(set(told)) == len(told) == 2


@pytest.mark.parametrize("boots", [0, 1])
def test_other_login_data_of_a_later_boot(tmp_path: t.Any, boots: int) -> None:
    """Before the first boot is over they are a part of what it is told; after it they are all."""
    paths = Paths(str(tmp_path), str(tmp_path / "run"), str(tmp_path / "log"))
    record = {**RECORD, "cidata_given": bool(boots)}
    os.makedirs(paths.vm_dir(record["id"]))
    if not boots:
        cidata.write_seed(paths, record, {"user": "ops", "user_data": "#!/bin/sh\n"})
    cidata.change_login(paths, record, {"user": "dev", "ssh_keys": ["ssh-ed25519 AAAA $(x)"], "former": "ops"})
    with open(cidata.seed_path(paths, record["id"]), encoding="utf-8") as stream:
        seed = json.load(stream)
    assert seed["user"] == "dev" and ("again" in seed, "user_data" in seed) == (bool(boots), not boots)
    assert cidata.due(paths, record) == (not boots)
    assert not record["cidata_given"]


def test_what_a_later_boot_runs(tmp_path: t.Any) -> None:
    """In a root of its own, with a shell's functions in place of what makes accounts."""
    seed = {"user": "dev", "former": "ops", "password": "$6$salt$hash", "ssh_keys": ["ssh-ed25519 AAAA $(x) `y`"]}
    told = yaml.safe_load(cidata.changed_accounts({**seed, **WORD, "again": True}))
    (script,) = told.pop("bootcmd")
    assert not told
    for user in ("dev", "ops"):
        (tmp_path / user / ".ssh").mkdir(parents=True)
    (tmp_path / "ops" / ".ssh" / "authorized_keys").write_text("old\n")
    script = script.replace("/etc/", f"{tmp_path}/").replace("/dev/console", f"{tmp_path}/console")
    tools = f"""
    getent() {{ echo "$2:x:1:1::{tmp_path}/$2:/bin/sh"; }}
    id() {{ false; }}
    useradd() {{ echo "useradd $*"; }}
    chpasswd() {{ cat; }}
    chown() {{ echo "chown $*"; }}
    """
    (tmp_path / "sudoers.d").mkdir()
    (tmp_path / "ssh" / "sshd_config.d").mkdir(parents=True)
    done = subprocess.run(["sh", "-eu", "-c", tools + script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "ops:*",
        "useradd --create-home --shell /bin/bash dev",
        "dev:$6$salt$hash",
        f"chown -R dev: {tmp_path}/dev/.ssh",
    ]
    assert not (tmp_path / "ops" / ".ssh" / "authorized_keys").exists()
    assert (tmp_path / "dev" / ".ssh" / "authorized_keys").read_text() == seed["ssh_keys"][0] + "\n"
    assert (tmp_path / "sudoers.d" / "90-cocoon").read_text() == "dev ALL=(ALL) NOPASSWD:ALL\n"
    assert (tmp_path / "console").read_text() == f"{cidata.TOLD} {WORD['word']}\n"


def test_what_later_boots_find_in_the_guest() -> None:
    """As cloud-init reads it, and as its ds-identify does, line by line."""
    seed = {"user": "me", "password": "$6$x", "ssh_keys": ["k \U0001f511"], **WORD}
    for given in (None, "#cloud-config\nbootcmd: [date]\n# gr\u00f6\u00dfer\n"):
        text = cidata.later_boots(RECORD, {**seed, "user_data": given})
        assert text.splitlines()[0] == "datasource_list: [NoCloud, None]"
        assert "$6$x" not in text and "k " not in text
        source = yaml.safe_load(text)["datasource"]["NoCloud"]
        assert source["meta-data"] == cidata.meta_data(RECORD)
        assert yaml.safe_load(source["network-config"]) == netplan(settings_of(RECORD))
        if given:
            theirs, ours = email.message_from_string(source["user-data"]).get_payload()
            assert theirs.get_payload(decode=True).decode() == given
            assert b"runcmd" not in ours.get_payload(decode=True)
        else:
            assert yaml.safe_load(source["user-data"])["users"] == []
        first = cidata.user_data(RECORD, {**seed, "user_data": given})
        parts = [part.get_payload(decode=True) for part in email.message_from_bytes(first).walk()] if given else [first]
        told = yaml.safe_load(parts[-2] if given else parts[0])
        assert told["write_files"][-1] == {"path": cidata.CONFIG_FILE, "permissions": "0600", "content": text}
        assert told["users"][0]["ssh_authorized_keys"] == seed["ssh_keys"]


@pytest.mark.parametrize("due", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("files", [{}, {"cidata.img": 1}])
def test_restored(tmp_path: t.Any, due: bool, given: bool, files: dict[str, t.Any]) -> None:
    """A volume of the snapshot stays as it is; what had its first boot before it was taken has no other."""
    paths = Paths(str(tmp_path))
    folder = tmp_path / "vms" / RECORD["id"]
    folder.mkdir(parents=True)
    record = dict(RECORD)
    cidata.write_seed(paths, record, {"user": "me"})
    before = json.loads((folder / "cidata.json").read_text())
    (folder / "cidata.img").write_text("x")
    record["cidata_given"] = given
    cidata.retain(paths, record, {"files": files, "first_boot_due": due})
    assert (folder / "cidata.img").exists() is bool(files)
    assert (folder / "cidata.json").exists() is cidata.due(paths, record) is due
    if due:
        after = json.loads((folder / "cidata.json").read_text())
        assert after["user"] == "me" and (after["word"] != before["word"]) is given


def test_a_clone_is_told_by_the_serial_number(tmp_path: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """But neither while it goes on from its source's memory nor after its own first boot; and nobody else."""
    paths = Paths(str(tmp_path))
    (tmp_path / "vms" / RECORD["id"]).mkdir(parents=True)
    monkeypatch.setattr(_disks, "create_volume", lambda path, label, files, uid: open(path, "w").close())
    record = {**RECORD, "snapshot_id": "s"}
    cidata.expect_boot(paths, record, resumes=False)
    assert cidata.serial_number(paths, record) == ""
    cidata.prepare(paths, record)
    assert cidata.serial_number(paths, record) == f"ds=nocloud;i={'a' * 26};h=web1"
    assert cidata.serial_number(paths, {**record, "snapshot_id": None}) == ""
    cidata.settle(paths, record)
    assert cidata.serial_number(paths, record) == ""


MESSAGE = 'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="B"\n\n--B\n{}\n--B--\n'
PART = "Content-Type: text/cloud-config\n\n#cloud-config\nusers: {}\n"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "#cloud-config\n",
            "#!/bin/sh",
            "## template: jinja\n#cloud-config",
            "#Cloud-Config",
            "#cloud-config-archive",
        ),
        *("#include\nhttp://192.0.2.1/x", "#cloud-boothook\n#!/bin/sh", "#part-handler\n"),
        *(MESSAGE.format(PART), PART, "Merge-Type: list()\n" + PART, "From nobody Thu Jan  1\n" + PART),
        MESSAGE.format("\n#!/bin/sh\n"),  # a part without headers is plain text, and says what it is
        MESSAGE.format(PART).replace("\n", "\r\n"),
        MESSAGE.format("Content-Type: text/part-handler\n\n#part-handler\n--B\n\nits own"),
    ],
)
def test_user_data_is_taken(text: str) -> None:
    found = normalise({"name": "a", "user_data": text})["user_data"]
    assert found == text and text not in repr(found)
    assert normalise({"name": "a", "user_data": "\ufeff\n" + text})["user_data"] == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "packages: [secret]", {"secret": []}, "#cloud-config\0secret", "#!" + "x" * (1 << 20), "#cloud-confg\n"),
        *("secret: 1\nother: 2\n", "Content-Type: text/plain\n\nsecret", "MIME-Version: 1.0\n\nsecret"),
        *("Content-Type: multipart/mixed\n\n--B\nsecret\n--B--\n", MESSAGE.format("\nsecret")),
    ],
)
def test_user_data_is_refused(text: t.Any) -> None:
    with pytest.raises(InputError) as caught:
        normalise({"name": "a", "user_data": text})
    assert caught.value.option == "user_data" and "secret" not in str(caught.value)


@pytest.mark.parametrize("form", ["#cloud-config\nusers: {}\n", "## template: jinja\n#cloud-config\nusers: {}", PART])
def test_accounts_that_nothing_can_be_put_beside(form: str) -> None:
    for users in ("bob", "default, bob", '"bob"', "", "null", "~", "# none\npackages: []", "|\n bob"):
        item = {"name": "a", "user_data": form.format(users)}
        assert normalise(item)
        for given in ({"user": "me"}, {"password": "x"}):
            with pytest.raises(InputError, match="Write users as a list") as caught:
                normalise({**item, **given}, "vms[1].")
            assert caught.value.option == "vms[1].user_data"
    for users in ("[]", "{bob: true}", "\n- bob", "  # all\n\n  # and\n  - bob", "\n  bob: true", "&x [bob]", "*x"):
        assert normalise({"name": "a", "user": "me", "user_data": form.format(users)})
