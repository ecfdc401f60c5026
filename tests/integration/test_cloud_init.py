# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Debian's own cloud-init makes of user_data, together with what we tell a guest ourselves."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.cocoon.microvm.plugins.module_utils._planning.definition import normalise
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import cidata
from ansible_collections.cocoon.microvm.tests.integration.support import cloud_init
from ansible_collections.cocoon.microvm.tests.integration.support.machine import COLLECTION, WORK

RECORD: dict[str, Any] = {
    "id": "a" * 26,
    "config": {"name": "web1"},
    "network_configs": [],
    "data_disks": [{"name": "db", "fstype": "ext4"}],
}
KEY = "ssh-ed25519 AAAA"
LOGIN = {"user": "ops", "ssh_keys": [KEY]}
MULTIPART = """\
Content-Type: multipart/mixed; boundary="B"
MIME-Version: 1.0

--B
Content-Type: text/cloud-config

#cloud-config
packages: [first]
--B
Content-Type: multipart/alternative; boundary="C"

--C
Content-Type: text/plain
Content-Transfer-Encoding: 8bit

#cloud-config
# Größe 😀
motd: Größe 😀
users:
  - name: bob
--C--
--B
Content-Type: text/x-shellscript
Content-Disposition: attachment; filename="hi.sh"
Content-Transfer-Encoding: base64

IyEvYmluL3NoCmVjaG8gaGkK
--B--
"""
SINGLE = "MIME-Version: 1.0\nContent-Type: text/cloud-config\n\n#cloud-config\npackages: [single]\n"
BARE = SINGLE.partition("\n")[2]  # without MIME-Version, cloud-init alone takes it for text
START = ["systemctl", "start", "qemu-guest-agent"]
ARCHIVE = "#cloud-config-archive\n- {type: text/cloud-config, content: 'packages: [archived]'}\n"


@pytest.fixture(scope="module", params=["bookworm", "trixie"], name="tree")
def fixture_tree(request: pytest.FixtureRequest) -> Path:
    """cloud-init of Debian 12 and of Debian 13."""
    try:
        return cloud_init.fetched(request.param, WORK / "cloud-init" / request.param)
    except (OSError, subprocess.SubprocessError) as exc:
        pytest.skip(f"needs cloud-init of Debian {request.param}, which apt-get cannot fetch here: {exc}")


def told(tree: Path, texts: Sequence[str], login: dict[str, Any]) -> list[cloud_init.Reading]:
    """What the guest makes of definitions' user_data and login data. The same of theirs is left for later boots."""
    seeds = []
    for text in texts:
        given = normalise({"name": "web1", "user_data": text})["user_data"]
        seeds.append({"user_data": str(given), "word": "w0rd", **login})
    found = cloud_init.read(
        tree,
        [cidata.user_data(RECORD, seed) for seed in seeds]
        + [
            yaml.safe_load(cidata.later_boots(RECORD, seed))["datasource"]["NoCloud"]["user-data"].encode()
            for seed in seeds
        ],
    )
    first, later = found[: len(texts)], found[len(texts) :]
    for now, then in zip(first, later):
        assert now.config["mounts"][-1][1] == "/mnt/db" and now.config["runcmd"][-1][-1].endswith("/dev/console")
        assert now.config["write_files"][-1]["path"] == cidata.CONFIG_FILE
        theirs = len(now.parts) - (2 if login else 1)
        assert now.parts[:theirs] == then.parts[:-1]
    return first


def test_parts_of_a_message(tree: Path) -> None:
    for found in told(tree, [MULTIPART, MULTIPART.replace("\n", "\r\n")], LOGIN):
        assert found.config["packages"] == ["first"]
        assert found.config["motd"] == "Größe 😀" and set(found.users) == {"bob", "ops"}
        assert found.users["ops"]["ssh_authorized_keys"] == [KEY]
        assert ("text/x-shellscript", "#!/bin/sh\necho hi\n") in found.parts
    for found in told(tree, [SINGLE, BARE], LOGIN):
        assert found.config["packages"] == ["single"] and set(found.users) == {"ops"}


def test_each_kind(tree: Path) -> None:
    kinds = {
        "#cloud-config\npackages: [one]\n": "text/cloud-config",
        "\ufeff#cloud-config\r\npackages: [one]\r\n": "text/cloud-config",
        "\n#Cloud-Config\npackages: [one]\n": "text/cloud-config",
        "#!/bin/sh\necho\n": "text/x-shellscript",
        "#cloud-boothook\n#!/bin/sh\n": "text/cloud-boothook",
        ARCHIVE: "text/cloud-config",
        "## template: jinja\n#cloud-config\n{}\n": "text/jinja2",
    }
    for found, kind in zip(told(tree, list(kinds), LOGIN), kinds.values()):
        assert found.parts[0][0] == kind, found
        assert found.users["ops"]["ssh_authorized_keys"] == [KEY]


def test_an_agent_that_is_asked_for(tree: Path) -> None:
    """As the page about cloud images has it: what comes from a mirror is started before we hear that all is done."""
    page = (COLLECTION / "docs" / "cloud-images.md").read_text(encoding="utf-8")
    (block,) = [block for block in page.split("```yaml\n")[1:] if "qemu-guest-agent" in block.partition("```")[0]]
    (found,) = told(tree, [yaml.safe_load(block.partition("```")[0])["user_data"]], LOGIN)
    assert found.config["packages"] == ["qemu-guest-agent"]
    assert [START] == found.config["runcmd"][:-1]


def test_accounts_beside_ours(tree: Path) -> None:
    cases = {
        "{bob: true}": {"bob"},
        "\n  bob:\n    shell: /bin/zsh\n  default: true": {"bob", "debian"},
        "{name: bob}": set(),  # a slip: it makes no account in cloud-init alone, either
        "{ops: {gecos: Operator}}": set(),
        "[bob]": {"bob"},
        "\n- default\n- name: bob": {"bob", "debian"},
        "[]": set(),
        "&all [bob]": {"bob"},
    }
    texts = [f"#cloud-config\nusers: {users}\n" for users in cases]
    for (users, others), found in zip(cases.items(), told(tree, texts, {**LOGIN, "password": "$6$x"})):
        assert set(found.users) == {"ops", *others}, users
        ours = found.users["ops"]
        assert ours["ssh_authorized_keys"] == [KEY] and ours["hashed_passwd"] == "$6$x" and ours["lock_passwd"] is False
        assert ours.get("gecos") == ("Operator" if "gecos" in users else None)


def test_their_accounts_alone(tree: Path) -> None:
    (found,) = told(tree, ["#cloud-config\nusers: default, bob\n"], {})
    assert set(found.users) == {"debian", "bob"}
