# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Passwords and keys get into the guest and nowhere else: no output, diff, log, process list or readable file."""

from __future__ import annotations

import json
import re
import secrets
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.tests.integration.support.lab import (
    BOOT,
    SMALL,
    Key,
    Lab,
    boot_files,
    make_key,
    make_lab,
)
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules, Playbooks, Run
from ansible_collections.cocoon.microvm.tests.integration.support.watch import (
    CommandLines,
    contains,
    fake_journal,
    regular_files,
)

PASSWORD = f"pw-{secrets.token_hex(12)}"
OTHER = f"pw-{secrets.token_hex(12)}"
# Looked up in the environment: ansible gets them in a way that leaves no trace of its own.
LOGIN = {
    "password": "{{ lookup('ansible.builtin.env', 'COCOON_TEST_PASSWORD') }}",
    "ssh_keys": ["{{ lookup('ansible.builtin.env', 'COCOON_TEST_KEY') }}"],
}
CRYPT = "$6$"
VM = {**SMALL, "name": "one", "user": "ops", **LOGIN}
CONVERGE = "cocoon.microvm.vms : Converge networks, images and VMs"
WAITED = {"state": "started", "wait_for": "port", "timeout": BOOT}


@dataclass
class Bench:
    """A lab, and playbooks whose every trace is looked at."""

    lab: Lab
    playbooks: Playbooks
    environment: dict[str, str]
    given: Key
    hashes: set[str]

    def run(self, *tasks: dict[str, Any], password: str = PASSWORD, options: tuple[str, ...] = (), **named: Any) -> Run:
        """Run tasks as verbosely as anybody does, and look for secrets in all that others can see."""
        play = {"hosts": "hv1", "gather_facts": False, "tasks": list(tasks)}
        play["module_defaults"] = {"group/cocoon.microvm.cocoon": self.lab.store}
        environment = {**self.environment, "COCOON_TEST_PASSWORD": password, **named.pop("env", {})}
        with CommandLines() as lines:
            run = self.playbooks([play], named.pop("inventory", None), "-vvv", *options, env=environment, **named)
        self.check(run, lines)
        return run

    @property
    def journal(self) -> Path:
        return Path(self.environment["COCOON_TEST_JOURNAL"])

    def secrets(self) -> list[str]:
        """All that nobody may see; a public key is no secret."""
        for path in self.lab.path("root", "vms").glob("*/login.json"):
            self.hashes.add(json.loads(path.read_text(encoding="utf-8"))["password"] or CRYPT)
        return [PASSWORD, OTHER, CRYPT, *self.hashes]

    def check(self, run: Run, lines: CommandLines) -> None:
        """
        :raises AssertionError: a secret is in the output, the results, the journal, a command line or a file.
        """
        hidden = self.secrets()
        assert not [line for line in run.output.splitlines() if any(secret in line for secret in hidden)]
        assert not [entry for entry in run.tasks if any(secret in json.dumps(entry) for secret in hidden)]
        assert not contains(self.journal, hidden)
        assert any(b"run_module" in words or b"ansible" in words for words in lines.seen)
        assert lines.holding(hidden) == []
        folders = [Path(folder) for folder in self.lab.store.values()]
        # What only the VM itself and root can read may hold what the guest was given, and nothing else may.
        ram = self.lab.path("run", "ram")
        readable = [
            path
            for path, status in regular_files(*folders, self.playbooks.folder)
            if status.st_mode & stat.S_IROTH
            or not (path.name in ("login.json", "secret_env.json") or path.suffix == ".raw" or ram in path.parents)
        ]
        assert len(readable) > 10
        # Three characters are also found by chance, in compressed images.
        whole = [secret for secret in hidden if secret != CRYPT]
        assert [path for path in readable if contains(path, whole)] == []


@pytest.fixture(scope="module")
def bench(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    tiny_image: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Bench]:
    """A lab whose modules believe that they write to systemd's journal."""
    folder = tmp_path_factory.mktemp("secrets")
    netns = make_netns()
    with make_lab(netns, make_store(), modules, tiny_image, folder) as lab:
        given = make_key(folder, "given")
        environment = {**fake_journal(folder), "COCOON_TEST_KEY": given.public}
        (folder / "plays").mkdir()
        variables = {f"vms_{name}": path for name, path in lab.store.items()}
        yield Bench(lab, Playbooks(netns, folder / "plays", variables), environment, given, set())


def task(name: str, **options: Any) -> dict[str, Any]:
    """A task with cocoon_vm whose failure ends nothing."""
    return {"name": name, "cocoon.microvm.cocoon_vm": {**VM, **options}, "ignore_errors": True}


def failed(run: Run, name: str) -> bool:
    """Whether the task of that name failed."""
    return [entry["outcome"] for entry in run.tasks if entry["task"] == name] == ["ignored"]


def login_file(bench: Bench, name: str = "one") -> Path:
    vm = bench.lab.module("cocoon_vm_info", names=[name])["vms"][0]
    return bench.lab.path("root", "vms", vm["id"], "login.json")


def test_check_mode_shows_nothing(bench: Bench) -> None:
    """Nor does it leave anything. Without pipelining, modules go through files."""
    run = bench.run(task("make", **WAITED), check=True, diff=True, env={"ANSIBLE_PIPELINING": "false"})
    assert run.result("make").changed and not failed(run, "make")
    assert "Invoked with" in bench.journal.read_text(encoding="utf-8")
    assert list(bench.lab.path("root", "vms").iterdir()) == []


@pytest.fixture(scope="module")
def one(bench: Bench) -> dict[str, Any]:
    """A guest with a user, a password and a key, from a playbook with a diff."""
    run = bench.run(task("make", **WAITED), diff=True)
    assert run.result("make")["actions"] == ["create", "start"]
    assert "+++ after" in run.output and "(hidden)" in run.output, run.output
    return dict(run.result("make")["vm"])


def test_only_the_vms_own_user_can_read_the_login_data(bench: Bench, one: dict[str, Any]) -> None:
    """It holds a hash and no password, and is not the record's."""
    path = login_file(bench)
    status = path.lstat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o400, one["uid"], one["uid"])
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content.pop("password").startswith(CRYPT)
    assert re.fullmatch("[0-9a-f]{16}", content.pop("version"))
    assert content == {"user": "ops", "ssh_keys": [bench.given.public]}
    record = path.with_name("vm.json").read_text(encoding="utf-8")
    assert all(secret not in record for secret in bench.secrets())


def test_the_guest_takes_the_password_and_the_key(bench: Bench, one: dict[str, Any]) -> None:
    """Of the user, not of root; and no others."""
    bench.lab.key, own = bench.given, bench.lab.key
    try:
        assert bench.lab.ssh(one, "id -un", user="ops").output == "ops\n"
        assert bench.lab.ssh(one, "id -un").status == 255
    finally:
        bench.lab.key = own
    assert bench.lab.ssh(one, "id -un", user="ops").status == 255
    assert bench.lab.ssh(one, "id -un", user="ops", password=PASSWORD).output == "ops\n"
    for user, password in (("ops", OTHER), ("ops", ""), ("root", PASSWORD)):
        assert bench.lab.ssh(one, "id -un", user=user, password=password).status == 255


def test_without_a_password_nobody_has_one(bench: Bench) -> None:
    """Root is let in by its key, and its password is no password's hash."""
    vm = bench.lab.started("locked")
    try:
        assert bench.lab.ssh(vm, "grep ^root: /etc/shadow").output.split(":")[1] in ("*", "!", "!*")
        for password in ("", "root", PASSWORD):
            assert bench.lab.ssh(vm, "id -un", password=password).status == 255
        assert json.loads(login_file(bench, "locked").read_text(encoding="utf-8"))["password"] is None
    finally:
        bench.lab.vm("locked", state="absent", force=True)


def broken_image(bench: Bench, source: Path) -> str:
    """Import an image and spoil its kernel: a hypervisor that is to start it ends."""
    boot = boot_files(source, bench.lab.folder)
    image = bench.lab.module("cocoon_image", name="broken", source=str(source), **boot)["image"]
    Path(image["boot"]["kernel_path"]).write_bytes(bytes(4096))
    return "broken"


def test_no_failure_shows_anything(bench: Bench, one: dict[str, Any], tiny_image: Path) -> None:
    """A bad argument, a guest that stays silent, a hypervisor that does not start, and a change that is refused."""
    two = {**VM, "name": "two", "image": broken_image(bench, tiny_image), "state": "started"}
    run = bench.run(
        task("bad argument", memory="10Q"),
        task("silent guest", state="started", wait_for="console", wait_pattern="never to be seen", timeout=1),
        {"name": "bad start", "cocoon.microvm.cocoon_vms": {"vms": [two]}, "ignore_errors": True},
        diff=True,
    )
    assert "memory" in run.result("bad argument")["msg"]
    assert "waited 1 s" in run.result("silent guest")["msg"]
    assert all(failed(run, name) for name in ("bad argument", "silent guest", "bad start"))
    failure = run.result("bad start")
    assert failure["failed_vms"] == ["two"] and "did not start" in failure["msg"]
    bench.lab.vm("two", state="absent", force=True)


def test_another_password_waits_for_the_next_start_and_the_same_is_no_change(bench: Bench, one: dict[str, Any]) -> None:
    run = bench.run(task("same", **WAITED), diff=True)
    assert not run.result("same").changed and not failed(run, "same")
    run = bench.run(task("other", **WAITED), password=OTHER, diff=True)
    assert not failed(run, "other") and not run.result("other").changed
    assert "password" in run.output and "accept_login: true" in run.output and OTHER not in run.output
    assert bench.lab.ssh(one, "id -un", user="ops", password=PASSWORD).output == "ops\n"


def test_the_variables_of_a_container(bench: Bench, tiny_image: Path, tmp_path: Path) -> None:
    """One that is made, one that is changed, and one that is refused, as its image runs no command."""
    with tarfile.open(tmp_path / "bare.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("etc"))
    bench.lab.module("cocoon_image", name="bare", source=str(tmp_path / "bare.tar"))
    bench.lab.module("cocoon_image", name="cocoon/kernel", source=str(tiny_image))
    box = {**SMALL, "name": "box", "secret_env": {"DB": LOGIN["password"]}}
    make = {"name": "make", "cocoon.microvm.cocoon_vms": {"vms": [{**box, "image": "bare"}]}}
    run = bench.run(make, {**task("refused"), "cocoon.microvm.cocoon_vm": {**box, "name": "other"}}, diff=True)
    assert run.result("make").changed and failed(run, "refused") and "DB" in run.output and "(hidden)" in run.output
    assert "secret_env" in run.result("refused")["msg"]
    assert bench.run(make, diff=True).total("changed") == 0
    assert bench.run(make, diff=True, password=OTHER).result("make")["results"][0]["actions"] == ["set_secret_env"]
    bench.lab.vm("box", state="absent", force=True)
    for image in ("bare", "cocoon/kernel"):
        bench.lab.module("cocoon_image", name=image, state="absent")


@pytest.mark.parametrize("shape", ["list", "hosts"])
def test_inventories_show_nothing(bench: Bench, one: dict[str, Any], shape: str) -> None:
    """The roles hand definitions on: as variables of the hypervisor, and as those of hosts that are VMs."""
    definition = {**{key: value for key, value in VM.items() if key != "name"}, **WAITED}
    hypervisor: dict[str, Any] = {"ansible_connection": "local"}
    hosts: dict[str, Any] = {"hv1": hypervisor}
    if shape == "list":
        hypervisor["cocoon_vms"] = [{"name": "one", **definition}]
    else:
        hosts["one"] = {"cocoon_host": "hv1", "cocoon_vm": definition}
    inventory = {"all": {"hosts": hosts, "children": {"hypervisors": {"hosts": {"hv1": {}}}}}}
    role = {"name": "role", "ansible.builtin.include_role": {"name": "cocoon.microvm.vms"}}
    run = bench.run(role, inventory=inventory, diff=True)
    assert run.total("changed") == 0 and run.result(CONVERGE)["vms"]["one"]["state"] == "running"
    run = bench.run(role, inventory=inventory, diff=True, password=OTHER)
    assert run.total("changed") == 0 and "accept_login: true" in run.output


def test_login_data_goes_once_the_guest_has_shut_down(bench: Bench, one: dict[str, Any]) -> None:
    """It has served; the guest keeps what it was given."""
    assert login_file(bench).exists()
    run = bench.run(task("stop", state="stopped", stop_timeout=60))
    assert run.result("stop")["vm"]["reason"] == "shut down"
    assert not login_file(bench).exists()
    run = bench.run(task("start", **WAITED))
    assert not failed(run, "start")
    assert bench.lab.ssh(run.result("start")["vm"], "id -un", user="ops", password=PASSWORD).output == "ops\n"


def test_a_guest_that_may_restart_has_the_new_password(bench: Bench, one: dict[str, Any]) -> None:
    run = bench.run(task("restart", **WAITED, allow_restart=True), password=OTHER, diff=True)
    assert run.result("restart").changed and not failed(run, "restart")
    vm = run.result("restart")["vm"]
    assert bench.lab.ssh(vm, "id -un", user="ops", password=OTHER).output == "ops\n"
    assert bench.lab.ssh(vm, "id -un", user="ops", password=PASSWORD).status == 255
    assert login_file(bench).exists()
