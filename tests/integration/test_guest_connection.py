# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection plugin, whole: plays through a host's own connection and an agent.

The guest here is this machine, with the agent of our images behind a port as a hypervisor has it: that it is the same
in a real one is shown by test_guest_agent.py, and all that Ansible does needs a Python, which the small guest lacks.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.plugins.plugin_utils import _bridge
from ansible_collections.cocoon.microvm.tests.integration.support.running import Playbooks, Run
from ansible_collections.cocoon.microvm.tests.integration.support.watch import CommandLines
from ansible_collections.cocoon.microvm.tests.unit.agents import Port, Server, make_vm


@pytest.fixture(scope="module", name="dirs")
def fixture_dirs(make_store: Callable[[], dict[str, str]]) -> dict[str, str]:
    """A store of its own."""
    return make_store()


@pytest.fixture(name="play")
def fixture_play(playbook: Playbooks, dirs: dict[str, str]) -> Callable[..., Run]:
    """Runs plays with the variables of that store."""

    def play(plays: Any, inventory: Any, ok: bool = True, **variables: Any) -> Run:
        places = {f"cocoon_{name}": path for name, path in dirs.items()}
        return playbook(plays, inventory, ok=ok, variables={**places, **variables})

    return play


@pytest.fixture(scope="module", name="inventory")
def fixture_inventory(dirs: dict[str, str]) -> Iterator[dict[str, Any]]:
    """A hypervisor with a VM that is this machine."""
    store = Store.open(Paths.from_params(dirs))
    port = Port()
    folder = make_vm(store, "web1")
    with Server(folder / "agent.sock", port.serve):
        yield {
            "all": {
                "children": {
                    "hypervisors": {
                        "hosts": {"hv1": {"ansible_connection": "local"}},
                    },
                    "web": {
                        "hosts": {"web1": {}, "web2": {}},
                        "vars": {
                            "ansible_connection": "cocoon.microvm.guest",
                            "cocoon_host": "hv1",
                            "cocoon_guest_agent_timeout": 5,
                        },
                    },
                },
                "vars": {"ansible_python_interpreter": sys.executable},
            }
        }
    port.close()


def test_what_plays_do(play: Callable[..., Run], inventory: dict[str, Any], tmp_path: Path) -> None:
    """Facts, files both ways, templates, shells and another user, as by ssh."""
    source, made, back = tmp_path / "source", tmp_path / "made", tmp_path / "back"
    content = os.urandom(300_000)
    source.write_bytes(content)
    (tmp_path / "greeting.j2").write_text("hello {{ inventory_hostname }} \N{SNOWMAN}\n", encoding="utf-8")
    tmp_path.chmod(0o755)
    tasks: list[dict[str, Any]] = [
        {"name": "facts", "ansible.builtin.setup": {"gather_subset": ["!all", "min"]}},
        {"name": "copy", "ansible.builtin.copy": {"src": str(source), "dest": str(made), "mode": "0640"}},
        {"name": "again", "ansible.builtin.copy": {"src": str(source), "dest": str(made), "mode": "0640"}},
        {"name": "template", "ansible.builtin.template": {"src": "greeting.j2", "dest": f"{tmp_path}/greeting"}},
        {"name": "shell", "ansible.builtin.shell": {"cmd": "cat; echo out; echo err >&2; exit 3", "stdin": "in"}},
        {"name": "raw", "ansible.builtin.raw": "id -un; kill -TERM $$"},
        # Nobody may not see the Python of these tests; not every machine has sudo.
        {"name": "user", "ansible.builtin.raw": "id -un", "become": True, "become_user": "nobody"},
        {"name": "fetch", "ansible.builtin.fetch": {"src": str(made), "dest": str(back), "flat": True}},
    ]
    tasks[6].update(become_method="ansible.builtin.su", vars={"ansible_become_flags": "-s /bin/sh"})
    for task in tasks[4:6]:
        task["failed_when"] = False
    whole = {
        "hosts": "web1",
        "gather_facts": False,
        "tasks": tasks,
        "vars": {"ansible_remote_tmp": f"{tmp_path}/remote"},
    }
    (tmp_path / "play.yml").write_text(json.dumps([whole]), encoding="utf-8")
    found = play(tmp_path / "play.yml", inventory)
    assert found.result("facts")["ansible_facts"]["ansible_hostname"] == os.uname().nodename.partition(".")[0]
    assert found.result("copy").changed and not found.result("again").changed
    assert hashlib.sha256(made.read_bytes()).digest() == hashlib.sha256(content).digest()
    assert made.stat().st_mode & 0o777 == 0o640 and back.read_bytes() == content
    assert (tmp_path / "greeting").read_text(encoding="utf-8") == "hello web1 \N{SNOWMAN}\n"
    shell, raw = found.result("shell"), found.result("raw")
    assert (shell["rc"], shell["stdout"], shell["stderr"]) == (3, "in\nout", "err")
    assert (raw["rc"], raw["stdout"].strip()) == (128 + 15, "root")
    assert found.result("user")["stdout"].strip() == "nobody"


def test_what_is_not_there_is_told(play: Callable[..., Run], inventory: dict[str, Any]) -> None:
    plays = [{"hosts": "web2", "gather_facts": False, "tasks": [{"name": "raw", "ansible.builtin.raw": "true"}]}]
    found = play(plays, inventory, ok=False)
    assert found.stats["web2"]["unreachable"] == 1 and "there is no VM 'web2'" in found.output
    nowhere = play(plays, inventory, ok=False, cocoon_host="nowhere")
    assert "the inventory has no host 'nowhere'" in nowhere.output


def test_no_secret_is_in_a_list_of_processes(play: Callable[..., Run], inventory: dict[str, Any]) -> None:
    """What runs on the host does not have the command in its arguments; the guest's shell has."""
    tasks = [{"name": "raw", "ansible.builtin.raw": "A=a-secret; sleep 0.2"}]
    with CommandLines() as lines:
        play([{"hosts": "web1", "gather_facts": False, "tasks": tasks}], inventory)
    assert lines.holding([_bridge.START]) and lines.holding(["a-secret"])
    assert not [words for words in lines.holding(["a-secret"]) if b"main(i)" in words]
