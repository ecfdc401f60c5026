# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab of a session: booted once, with the collection installed on this side as a user installs it.

``COCOON_LAB_BIN`` names the folder with the hypervisors (default: /opt/cocoon-lab/bin); ``COCOON_LAB_DIR`` where the
lab's trees are kept; ``COCOON_LAB_PORT`` uses a lab that ``machine.py up`` has started. ``COCOON_LAB_MINUTES``: when so
many have gone by, the making of the lab and its boot included, no test begins (default: 20). With ``COCOON_LAB_BRIEF``
all but the most telling tests are left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.tests.integration.support.images import built
from ansible_collections.cocoon.microvm.tests.integration.support.machine import COLLECTION, WORK
from ansible_collections.cocoon.microvm.tests.lab import machine

BINARIES = Path(os.environ.get("COCOON_LAB_BIN") or "/opt/cocoon-lab/bin")
FOLDER = Path(os.environ.get("COCOON_LAB_DIR") or WORK / "lab")
HERE = Path(__file__).resolve().parent
MINUTES = float(os.environ.get("COCOON_LAB_MINUTES") or 20)
END = time.monotonic() + MINUTES * 60
BRIEF = "left out of the brief run of the lab that is a part of `make test`: `make lab` has it"
# To compress a Debian takes the lab's processor more than ten minutes.
MKFS = "/usr/local/sbin/mkfs.erofs"
UNCOMPRESSED = """#!/bin/sh
for word; do
    shift
    case $word in -z* | -C*) ;; *) set -- "$@" "$word" ;; esac
done
exec /usr/bin/mkfs.erofs "$@"
"""
# Seconds for one call of Ansible: an emulated machine with two processors takes minutes to import a whole Debian.
PATIENCE = 1500
PROGRAMS = ("cloud-hypervisor", "ch-remote", "firecracker", "jailer")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the life of a VM under each hypervisor; in a brief run, leave out by name what tells less."""
    items.sort(key=lambda item: item.path.name != "test_drivers.py")
    if not os.environ.get("COCOON_LAB_BRIEF"):
        return
    for item in items:
        if HERE in item.path.parents and not item.get_closest_marker("telling"):
            item.add_marker(pytest.mark.skip(reason=BRIEF))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Leave out what does not fit into the time of the lab, before any fixture begins."""
    if time.monotonic() > END:
        pytest.skip(f"the lab's {MINUTES:g} minutes are over")


class Site:
    """The lab as a user has it: an inventory with one host, and modules that run there."""

    def __init__(self, lab: machine.Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.sent = False
        bins = Path(sys.executable).parent
        self.env = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "PYTHON"))},
            "PATH": f"{bins}:/usr/sbin:/usr/bin:/sbin:/bin",
            "ANSIBLE_COLLECTIONS_PATH": str(folder / "collections"),
            "ANSIBLE_HOME": str(folder / "ansible"),
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_SSH_ARGS": " ".join(machine.SSH),
            "LC_ALL": "C.UTF-8",
        }
        inventory = {
            "all": {
                "hosts": {
                    "lab": {
                        "ansible_host": "127.0.0.1",
                        "ansible_port": lab.port,
                        "ansible_user": "root",
                        "ansible_ssh_private_key_file": str(lab.key),
                        "ansible_python_interpreter": "/usr/bin/python3",
                    }
                }
            }
        }
        (folder / "hosts.json").write_text(json.dumps(inventory), encoding="utf-8")

    def install(self) -> None:
        """Build the collection and install what was built."""
        self._run("ansible-galaxy", "collection", "build", "--force", "--output-path", self.folder, COLLECTION)
        built_now = next(self.folder.glob("cocoon-microvm-*.tar.gz"))
        self._run("ansible-galaxy", "collection", "install", "--force", "-p", self.folder / "collections", built_now)

    def module(self, module: str, /, check: bool = False, **args: Any) -> dict[str, Any]:
        """What a module of the collection returns in the lab."""
        words = ["-i", self.folder / "hosts.json", "lab", "-m", f"cocoon.microvm.{module}"]
        given = ["-a", json.dumps(args)] if args else []
        said = self._run("ansible", *words, *given, *(["--check"] if check else []), ok=(0, 2))
        head, arrow, rest = said.partition(" => {")
        assert arrow, f"{module} gave nothing: {said[-2000:]}"
        try:
            result = json.loads("{" + rest[: rest.rindex("}") + 1])
        except ValueError:
            raise AssertionError(f"{module} gave nonsense: {said[:4000]}") from None
        assert "UNREACHABLE" not in head, result
        return {"failed": "FAILED" in head, **result}

    def vm(self, name: str, /, check: bool = False, **args: Any) -> dict[str, Any]:
        """What `cocoon_vm` returns, which has to work."""
        result = self.module("cocoon_vm", check, name=name, **args)
        assert not result["failed"], result.get("msg", result)
        return result

    def in_guest(self, name: str, module: str, args: str) -> tuple[int, str]:
        """Run a module inside a guest, by the connection plugin. :returns: whether it failed, and what was said."""
        host = {"ansible_connection": "cocoon.microvm.guest", "cocoon_host": "lab"}
        (self.folder / "guests.json").write_text(json.dumps({"all": {"hosts": {name: host}}}), encoding="utf-8")
        words = ["ansible", "-i", self.folder / "hosts.json", "-i", self.folder / "guests.json", name, "-m", module]
        done = self._done(*words, "-a", args)
        return done.returncode, done.stdout + done.stderr

    def inside(self, program: str, *words: str, timeout: float = 600) -> Any:
        """What a program of these tests prints as JSON, run by the lab's own Python from the collection there."""
        if not self.sent:
            packed = subprocess.run(
                ["tar", "-C", self.folder / "collections", "-cz", "ansible_collections"],
                stdout=subprocess.PIPE,
                check=True,
            )
            self.lab.ssh("mkdir -p /root/side && tar -C /root/side -xz", stdin=packed.stdout)
            self.sent = True
        name = f"ansible_collections.cocoon.microvm.tests.lab.{program}"
        return json.loads(self.shell(f"cd /root/side && python3 -m {name} {' '.join(words)}", timeout))

    def shell(self, command: str, timeout: float = 120) -> str:
        return self.lab.ssh(command, timeout)

    def _run(self, *words: str | Path, ok: tuple[int, ...] = (0,)) -> str:
        done = self._done(*words)
        assert done.returncode in ok, f"{words[0]}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    def _done(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in words],
            env=self.env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The lab, with the hypervisors that there are, the image `tiny` and a network."""
    folder = tmp_path_factory.mktemp("lab")
    there = [name for name in PROGRAMS if (BINARIES / name).is_file()]
    if not there:
        pytest.skip(f"{BINARIES} holds none of {', '.join(PROGRAMS)}")
    image = built("tiny", folder)
    with contextlib.ExitStack() as stack:
        port = os.environ.get("COCOON_LAB_PORT")
        try:
            lab = machine.Lab(FOLDER, int(port)) if port else stack.enter_context(machine.running(FOLDER, END))
        except machine.LabError as exc:
            pytest.skip(f"there is no lab: {exc}")
        for name in there:
            lab.copy(BINARIES / name, f"/usr/local/bin/{name}")
        lab.copy(image, "/root/tiny.tar")
        made = Site(lab, folder)
        made.install()
        for name, args in (
            ("cocoon_image", {"name": "tiny", "source": "/root/tiny.tar"}),
            ("cocoon_network", {"name": "lab", "subnet": "10.77.0.0/24", "nat": False}),
        ):
            result = made.module(name, **args)
            assert not result["failed"], result
        yield made


@pytest.fixture(scope="session")
def debian(site: Site) -> str:
    """The name of the image `debian`, whose guests have a systemd, a Python and qemu-guest-agent."""
    site.lab.copy(built("debian", site.folder), "/root/debian.tar")
    site.shell(f"cat > {MKFS} << 'END'\n{UNCOMPRESSED}END\nchmod +x {MKFS}")
    result = site.module("cocoon_image", name="debian", source="/root/debian.tar")
    assert not result["failed"], result
    site.shell(f"rm /root/debian.tar {MKFS}")
    return "debian"


@pytest.fixture(scope="module", params=["cloud-hypervisor", "firecracker"])
def driver(request: pytest.FixtureRequest, site: Site) -> str:
    """Each hypervisor that is here and has a driver; QEMU's guests run in the integration tests."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import registry

    name = str(request.param)
    if name not in registry.DRIVERS:
        pytest.skip(f"{name} has no driver")
    if not (BINARIES / name).is_file():
        pytest.skip(f"{BINARIES} has no {name}")
    return name
