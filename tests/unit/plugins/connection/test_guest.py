# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection plugin's way over a hypervisor: by Ansible's own plugins, with doubles of ssh and sudo below them."""

from __future__ import annotations

import os
import sys
import typing as t
from pathlib import Path

import pytest
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.playbook.play_context import PlayContext

from ansible_collections.cocoon.microvm.plugins.connection.guest import Connection
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.tests.unit.agents import Cocoon, Server, make_vm

PASSWORD = "a password"
SUDO = """\
#!/bin/sh
echo "A lecture of the host's."
while :; do case $1 in -p) printf %s "$2" >&2; shift 2;; -u) shift 2;; -*) shift;; *) break;; esac; done
IFS= read -r given
[ "$given" = "{password}" ] || exit 1
exec "$@"
"""
SSH = """\
#!/bin/sh
for word; do echo "$word" >> {log}; done
[ "$1" != -o ] || [ "$2" != ControlPersist ] || exit 0
exec /bin/sh -c "$word"
"""


class Way:
    """Makes connections to a guest over a hypervisor with some variables."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "ssh.log"
        places = {f"{name}_dir": str(folder / name) for name in ("root", "run", "log")}
        self.store = Store.open(Paths.from_params(places))
        self.variables = {f"cocoon_{name}": path for name, path in places.items()}
        self.sudo = self.program("sudo", SUDO.format(password=PASSWORD))
        self.ssh = self.program("ssh", SSH.format(log=self.log))

    def program(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
        return str(path)

    def to(self, vm: str = "web1", **variables: t.Any) -> Connection:
        found = Connection(PlayContext())
        options = {"host": "hv1", "vm": vm, "remote_addr": vm, "agent_timeout": 5, "command_timeout": 20}
        found.get_option = {**options, "max_size": 1 << 20}.__getitem__  # type: ignore[assignment,method-assign]
        given = {"ansible_python_interpreter": sys.executable, "ansible_ssh_executable": self.ssh}
        found._hosts = {"hv1": {**self.variables, **given, **variables}}
        return found


@pytest.fixture(name="way")
def fixture_way(tmp_path_factory: pytest.TempPathFactory) -> Way:
    """In a folder of a short name, as there are sockets in it."""
    return Way(tmp_path_factory.mktemp("w"))


BY_SUDO = {"ansible_become": True, "ansible_become_password": PASSWORD}
OVER = {
    "itself": {"ansible_connection": "local"},
    "sudo": {"ansible_connection": "local", **BY_SUDO},
    "ssh": {"ansible_user": "root"},
    "ssh and sudo": {"ansible_user": "admin", "ansible_become_password": PASSWORD},
    "no pipelining": {"ansible_user": "admin", "ansible_become_password": PASSWORD, "ansible_ssh_pipelining": False},
}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as hypervisors do")
@pytest.mark.parametrize("over", OVER)
def test_the_way_to_a_guest(way: Way, over: str) -> None:
    """What the guest refuses fails the task; a guest that is not there is one that cannot be reached."""
    folder = make_vm(way.store, "web1", "firecracker", "own")
    with Server(folder / "vsock.sock", Cocoon().serve, parallel=True):
        guest = way.to(ansible_become_exe=way.sudo, **OVER[over])
        assert guest.exec_command("cat; echo told >&2; exit 3", b"asked") == (3, b"asked", b"told\n")
        with pytest.raises(AnsibleError, match="(?i)no such file") as caught:
            guest.fetch_file("/not/there", str(way.folder / "back"))
        assert not isinstance(caught.value, AnsibleConnectionFailure)
    with pytest.raises(AnsibleConnectionFailure, match="there is no VM 'web2'"):
        way.to("web2", ansible_become_exe=way.sudo, **OVER[over]).exec_command("true")


def test_what_leads_to_the_host(way: Way) -> None:
    """Its address, port, user, key and options, by its variables."""
    where = {"ansible_host": "192.0.2.7", "ansible_port": 2222, "ansible_user": "root"}
    how = {"ansible_ssh_private_key_file": "/a/key", "ansible_ssh_common_args": "-o ProxyJump=bastion"}
    with pytest.raises(AnsibleConnectionFailure):
        way.to("web2", **where, **how).exec_command("true")
    words = way.log.read_text(encoding="utf-8").splitlines()
    assert {"192.0.2.7", "Port=2222", 'User="root"', 'IdentityFile="/a/key"', "ProxyJump=bastion"} <= set(words)


@pytest.mark.parametrize(
    ("variables", "environment", "becomes"),
    [
        ({"ansible_user": "root"}, {}, False),
        ({"ansible_ssh_user": "root"}, {}, False),
        ({"ansible_user": "admin"}, {}, True),
        ({}, {}, True),
        ({}, {"ANSIBLE_REMOTE_USER": "root"}, False),
        ({"ansible_user": "admin"}, {"ANSIBLE_REMOTE_USER": "root"}, True),
        ({"ansible_user": "admin", "ansible_become": "off"}, {}, False),
        ({"ansible_user": "root", "ansible_become": "yes"}, {}, True),
        ({"ansible_user": "root", "ansible_become": 0}, {}, False),
        ({"ansible_connection": "local", "ansible_user": "admin"}, {}, os.geteuid() != 0),
    ],
)
def test_who_has_to_become_root(
    way: Way,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, t.Any],
    environment: dict[str, str],
    becomes: bool,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (way.to(**variables)._connect()._host.become is not None) is becomes
