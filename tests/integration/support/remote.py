# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hypervisors that are reached over ssh: an sshd in a network namespace, with a cable from the controller's."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.tests.integration.support.lab import Key, make_key
from ansible_collections.cocoon.microvm.tests.integration.support.machine import TOKEN, Netns

SSHD = "/usr/sbin/sshd"
SEPARATION = Path("/run/sshd")


def plug(controller: Netns, hypervisor: Netns, number: int) -> str:
    """A cable between both; the address of the hypervisor's end."""
    name = f"cable{number}"
    ours, theirs = (f"192.0.2.{8 * number + end}" for end in (1, 2))
    controller.run("ip", "link", "add", name, "type", "veth", "peer", "name", name, "netns", hypervisor.name)
    for netns, address in ((controller, ours), (hypervisor, theirs)):
        netns.run("ip", "address", "add", f"{address}/29", "dev", name)
        netns.run("ip", "link", "set", name, "up")
    return theirs


@contextlib.contextmanager
def served(netns: Netns, address: str, folder: Path, key: Key) -> Iterator[dict[str, Any]]:
    """An sshd there for root with that key: the connection variables that lead to it."""
    if not os.access(SSHD, os.X_OK):
        pytest.skip(f"needs {SSHD} (package openssh-server), which plays the hypervisor's")
    made = not SEPARATION.exists()
    SEPARATION.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)
    host = make_key(folder, "host")
    allowed = folder / "authorized_keys"
    allowed.write_text(key.public + "\n", encoding="utf-8")
    options = {
        "AuthorizedKeysFile": allowed,
        "HostKey": host.private,
        "ListenAddress": address,
        "PasswordAuthentication": "no",
        "PidFile": "none",
        "Port": 2222,
        "StrictModes": "no",
        "Subsystem": "sftp internal-sftp",
        "UsePAM": "no",
    }
    config = folder / "sshd_config"
    config.write_text("".join(f"{name} {value}\n" for name, value in options.items()), encoding="utf-8")
    server = subprocess.Popen(
        [*netns.enter(), SSHD, "-D", "-e", "-f", str(config)],
        stderr=subprocess.PIPE,
        env={**os.environ, TOKEN[0]: TOKEN[1]},
    )
    try:
        assert server.stderr is not None
        assert b"listening" in server.stderr.readline().lower()
        yield {
            "ansible_host": address,
            "ansible_port": 2222,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(key.private),
        }
    finally:
        server.terminate()
        server.communicate(timeout=10)
        if made:
            shutil.rmtree(SEPARATION, ignore_errors=True)
