# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A store with the tiny image and a network, and guests in it that can be logged in to."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.cocoon.microvm.tests.integration.support.machine import TOKEN, Netns, command
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules, Result

# What a guest of the tiny image needs, and no more.
SMALL = {"image": "tiny", "cpu": 1, "memory": "96M", "storage": "256M", "network": "lab"}
BOOT = 120
SSH_OPTIONS = (
    "-oBatchMode=no",
    "-oConnectTimeout=20",
    "-oGlobalKnownHostsFile=/dev/null",
    "-oIdentitiesOnly=yes",
    "-oLogLevel=ERROR",
    "-oNumberOfPasswordPrompts=1",
    "-oStrictHostKeyChecking=no",
    "-oUserKnownHostsFile=/dev/null",
)


@dataclass(frozen=True)
class Key:
    """A key pair for ssh."""

    private: Path
    public: str


def make_key(folder: Path, name: str = "key") -> Key:
    """A new key pair in *folder*."""
    path = folder / name
    command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path)
    return Key(path, path.with_suffix(".pub").read_text(encoding="utf-8").strip())


@dataclass(frozen=True)
class Answer:
    """What a command over ssh gave."""

    status: int
    output: str
    errors: str


def ssh_words(user: str, ip: str, key: Key | None = None, port: int = 22) -> list[str]:
    """An ssh command line, by key or else by password."""
    words = ["ssh", "-F", "/dev/null", *SSH_OPTIONS, f"-p{port}"]
    if key:
        words += ["-oPreferredAuthentications=publickey", "-i", str(key.private)]
    else:
        words += ["-oPubkeyAuthentication=no", "-oPreferredAuthentications=password"]
    return [*words, f"{user}@{ip}"]


@dataclass
class Lab:
    """A store and the namespace that its hypervisors and bridges are in."""

    netns: Netns
    store: dict[str, str]
    module: Modules
    folder: Path
    key: Key

    def vm(self, name: str, /, *, ok: bool | None = True, **options: Any) -> Result:
        """Run cocoon_vm with a small guest's options under those given; None leaves one out."""
        merged = {**SMALL, **options} if options.get("state") != "absent" else options
        return self.module("cocoon_vm", ok=ok, name=name, **merged)

    def started(self, name: str, /, **options: Any) -> dict[str, Any]:
        """A guest that answers to the lab's key: its record."""
        given = {"state": "started", "wait_for": "port", "timeout": BOOT, "ssh_keys": [self.key.public], **options}
        return dict(self.vm(name, **given)["vm"])

    def ssh(
        self,
        vm: Mapping[str, Any],
        *words: str,
        user: str = "root",
        password: str | None = None,
        timeout: float = 90,
    ) -> Answer:
        """Run a command in a guest, logged in by key, or by *password*."""
        env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", TOKEN[0]: TOKEN[1]}
        if password is not None:
            env.update(SSH_ASKPASS=str(self.askpass()), SSH_ASKPASS_REQUIRE="force", COCOON_TEST_SECRET=password)
        line = ssh_words(user, address(vm), None if password is not None else self.key)
        done = subprocess.run(
            [*self.netns.enter(), *line, shlex.join(words) if len(words) > 1 else words[0]],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def askpass(self) -> Path:
        """A program that answers ssh's question with what stands in its environment."""
        path = self.folder / "askpass"
        if not path.exists():
            path.write_text('#!/bin/sh\nprintf "%s\\n" "$COCOON_TEST_SECRET"\n', encoding="utf-8")
            path.chmod(0o755)
        return path

    def path(self, kind: str, *parts: str) -> Path:
        """A path in the store: path("log", vm_id, "console.log")."""
        return Path(self.store[f"{kind}_dir"], *parts)

    def store_document(self) -> dict[str, Any]:
        """What store.json says."""
        return dict(json.loads(self.path("root", "store.json").read_text(encoding="utf-8")))

    def remove_everything(self) -> None:
        """Take all VMs, images and networks away."""
        found = self.module("cocoon_vm_info")["vms"]
        absent = [{"name": vm["config"]["name"], "state": "absent", "force": True} for vm in found]
        if absent:
            self.module("cocoon_vms", vms=absent)
        for image in self.module("cocoon_image_info")["images"]:
            self.module("cocoon_image", name=image["id"], state="absent")
        for network in self.module("cocoon_network_info")["networks"]:
            self.module("cocoon_network", name=network["name"], state="absent")


def address(vm: Mapping[str, Any]) -> str:
    """The address of a guest's first NIC."""
    return str(vm["network_configs"][0]["network"]["ip"])


def boot_files(source: Path, folder: Path) -> dict[str, Any]:
    """The kernel of an image, and its initramfs with a few bytes more: boot files that no other image has."""
    with tarfile.open(source) as archive:
        found = {}
        for option, name in (("kernel", "vmlinuz"), ("initrd", "initrd.img")):
            entry = next(entry for entry in archive if Path(entry.name).name.startswith(name) and entry.isreg())
            content = archive.extractfile(entry)
            assert content is not None
            (folder / name).write_bytes(content.read() + (bytes(512) if option == "initrd" else b""))
            found[option] = str(folder / name)
    return found


@contextlib.contextmanager
def make_lab(
    netns: Netns,
    store: dict[str, str],
    modules: Callable[..., Modules],
    image: Path,
    folder: Path,
    name: str = "tiny",
) -> Iterator[Lab]:
    """A lab, and at the end nothing of it.

    :param folder: for keys and temporary files; must be there.
    :param name: what the image is called.
    """
    runner = modules(netns, store)
    lab = Lab(netns, store, runner, folder, make_key(folder))
    try:
        runner("cocoon_network", name="lab", subnet="10.91.0.0/24", nat=False)
        runner("cocoon_image", name=name, source=str(image))
        yield lab
    finally:
        lab.remove_everything()
