# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images that bring no kernel: container images as microVMs, on the default kernel, which the role host installs.

And one that brings its own, in layers as a container image has them.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import stat
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.tests.integration.support import containers, images, registry
from ansible_collections.cocoon.microvm.tests.integration.support.lab import address
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns, command
from ansible_collections.cocoon.microvm.tests.integration.support.networking import inside
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules, Playbooks, Result

KERNEL = "cocoon/kernel"
KEPT = "secret_env.json"
SMALL = {"cpu": 1, "memory": "128M", "storage": "128M", "accel": "tcg"}
BOOT = 120.0
WEB = {
    "name": "web",
    "image": "nginx",
    "network": "hub",
    "state": "started",
    "wait_for": "port",
    "wait_port": 80,
    "timeout": int(BOOT),
}
NAME_SERVERS = ["10.94.0.53", "10.94.0.54"]
Record = dict[str, Any]


class Containers:
    """A store with the default kernel and a network, and VMs of container images in it."""

    def __init__(self, netns: Netns, store: Mapping[str, str], module: Modules, folder: Path) -> None:
        self.netns, self.store, self.module, self.folder = netns, store, module, folder

    def image(self, name: str, layout: Path) -> Record:
        return dict(self.module("cocoon_image", name=name, source=str(layout))["image"])

    def busybox(self, name: str, script: str, files: Mapping[str, Any] | None = None, **config: Any) -> Record:
        """An image with nothing but a busybox and *files*, which runs *script*."""
        config = {"Entrypoint": ["/bin/sh", "-c", script], "Env": ["PATH=/bin"], **config}
        return self.image(name, containers.layout(self.folder / name, [containers.busybox_layer(files)], **config))

    def vm(self, name: str, /, *, ok: bool | None = True, **options: Any) -> Result:
        given = {"image": name, **SMALL, **options} if options.get("state") != "absent" else options
        return self.module("cocoon_vm", ok=ok, name=name, **given)

    def serving(self, name: str, port: int, **options: Any) -> Record:
        """A running VM whose port answers."""
        wait = {"wait_for": "port", "wait_port": port, "timeout": int(BOOT)}
        return dict(self.vm(name, state="started", network="lab", **wait, **options)["vm"])

    def find(self, name: str) -> Record:
        return dict(self.module("cocoon_vm_info", names=[name])["vms"][0])

    def ended(self, name: str, **options: Any) -> tuple[Record, str]:
        """A VM that is started and goes off by itself, and what was on its console."""
        self.vm(name, state="started", **options)
        return self.off(name)

    def off(self, name: str) -> tuple[Record, str]:
        """A VM that goes off by itself, and what was on its console."""
        deadline = time.monotonic() + BOOT
        while (record := self.find(name))["state"] == "running":
            assert time.monotonic() < deadline, self.console(record)[-2000:]
            time.sleep(0.2)
        return record, self.console(record)

    def stopped(self, name: str) -> Record:
        """A VM that the power button has ended in time, with its file systems clean."""
        result = self.vm(name, state="stopped", image=None)
        record = dict(result["vm"])
        assert record["state"] == "stopped" and record["reason"] != "powered off", record["reason"]
        self.clean(record)
        return record

    def clean(self, record: Record) -> None:
        """Whether the system disk needs no recovery."""
        header = command("dumpe2fs", "-h", self.path("root", "vms", record["id"], "cow.raw"))
        assert "needs_recovery" not in header and re.search(r"state:\s+clean", header), header

    def path(self, kind: str, *parts: str) -> Path:
        return Path(self.store[f"{kind}_dir"], *parts)

    def console(self, record: Record) -> str:
        return self.path("log", record["id"], "console.log").read_text(errors="replace").replace("\r", "")

    def remove_everything(self) -> None:
        names = [vm["config"]["name"] for vm in self.module("cocoon_vm_info")["vms"]]
        absent = [{"name": name, "state": "absent", "force": True} for name in names]
        if absent:
            self.module("cocoon_vms", vms=absent)
        for image in self.module("cocoon_image_info")["images"]:
            self.module("cocoon_image", name=image["id"], state="absent")
        for network in self.module("cocoon_network_info")["networks"]:
            self.module("cocoon_network", name=network["name"], state="absent")


@pytest.fixture(scope="module", name="kernel")
def fixture_kernel(scratch: Path) -> Path:
    """The tar with the default kernel and initramfs, as the role host builds it."""
    return images.built("kernel", scratch)


@pytest.fixture(scope="module", name="lab")
def fixture_lab(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    kernel: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Containers]:
    netns, store = make_netns(), make_store()
    lab = Containers(netns, store, modules(netns, store), tmp_path_factory.mktemp("containers"))
    try:
        lab.module("cocoon_image", name=KERNEL, source=str(kernel))
        lab.module("cocoon_network", name="lab", subnet="10.94.0.0/24", nat=False, dns=NAME_SERVERS)
        yield lab
    finally:
        lab.remove_everything()


@contextlib.contextmanager
def connected(lab: Containers, vm: Record, port: int) -> Iterator[socket.socket]:
    """A connection to a guest."""
    sock = inside(lab.netns, socket.socket, socket.AF_INET, socket.SOCK_STREAM)
    with sock:
        sock.settimeout(30)
        sock.connect((address(vm), port))
        yield sock


def ask(lab: Containers, vm: Record, port: int, question: bytes, size: int = 65536) -> bytes:
    """Send something, and give the beginning of the answer."""
    with connected(lab, vm, port) as sock:
        sock.sendall(question)
        return sock.recv(size)


def get(lab: Containers, vm: Record, path: str) -> bytes:
    """All that a guest's web server answers."""
    with connected(lab, vm, 80) as sock:
        sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        return b"".join(iter(lambda: sock.recv(4096), b""))


def test_nginx_serves(lab: Containers) -> None:
    """By its command and stop signal, its logs on the console; it ends with the power button."""
    lab.image("nginx", containers.nginx(lab.folder / "nginx"))
    result = lab.vm(
        "nginx", state="started", network="lab", wait_for="port", wait_port=80, timeout=int(BOOT), memory="96M"
    )
    vm = result["vm"]
    print(f"nginx serves {result['boot_seconds']} s after the start")
    assert get(lab, vm, "/").endswith(b"it serves\n")
    found = lab.find("nginx")
    assert (found["state"], found["exit_code"]) == ("running", None)
    assert '"GET / HTTP/1.0" 200' in lab.console(vm)
    began = time.monotonic()
    stopped = lab.stopped("nginx")
    assert time.monotonic() - began < 20
    assert (stopped["exit_code"], stopped["reason"]) == (0, "exited with code 0")
    assert "signal 3 (SIGQUIT) received" in lab.console(stopped)
    assert lab.find("nginx")["exit_code"] == 0


@pytest.mark.skipif(registry.binary() is None, reason="needs docker-registry: run `make setup`")
def test_from_a_name_to_a_server_in_one_task(
    lab: Containers, make_store: Callable[[], dict[str, str]], kernel: Path, scratch: Path
) -> None:
    """As the README shows it: the image is pulled, here from what the host's settings name as Docker Hub's mirror."""
    folder = lab.folder / "hub"
    folder.mkdir()
    hub = registry.Registry(lab.netns, folder, 5000, None, False)
    try:
        layout = containers.nginx(lab.folder / "nginx-pushed")
        target = f"docker://{hub.host}/library/nginx:latest"
        lab.netns.run("skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}", target)
        store = make_store()
        tasks: list[Record] = [
            {"cocoon_image": {"name": KERNEL, "source": str(kernel)}},
            {"cocoon_network": {"name": "hub", "subnet": "10.95.0.0/24", "nat": False}},
            {"name": "Predict", "cocoon_vm": {**WEB, **SMALL}, "check_mode": True},
            {"name": "Serve", "cocoon_vm": {**WEB, **SMALL}},
            {"name": "Again", "cocoon_vm": WEB},
            {"name": "Typo", "cocoon_vm": {"name": "web2", "image": "ngimx"}, "ignore_errors": True},
            {
                "name": "Typo by far",
                "cocoon_vm": {"name": "web2", "image": "x", "pull": "never"},
                "ignore_errors": True,
            },
            {"cocoon_vm": {"name": "web", "state": "absent", "force": True}},
            {"cocoon_network": {"name": "hub", "state": "absent"}},
        ]
        full = [{key if key[:7] != "cocoon_" else f"cocoon.microvm.{key}": task[key] for key in task} for task in tasks]
        defaults = {"group/cocoon.microvm.cocoon": {**store, "lock_timeout": 60}}
        plays = [{"hosts": "all", "gather_facts": False, "module_defaults": defaults, "tasks": full}]
        run = Playbooks(registry.mirrored(hub), scratch, {})(plays)
    finally:
        hub.stop()
    assert run.result("Predict")["actions"] == run.result("Serve")["actions"] == ["pull", "create", "start"]
    assert run.result("Serve")["boot_seconds"] > 0 and not run.result("Again").changed
    assert run.result("Typo")["msg"].startswith(
        "image: there is no image 'ngimx' on this host, and it cannot be pulled: "
    )
    assert "docker.io/library/ngimx" in run.result("Typo")["msg"]
    assert run.result("Typo by far")["msg"].startswith("image: there is no image 'x'. ")


def test_redis_keeps_its_data(lab: Containers) -> None:
    """As a user of its own, in a working directory that is that user's; over a stop and a start."""
    lab.image("redis", containers.redis(lab.folder / "redis"))
    vm = lab.serving("redis", 6379)
    assert ask(lab, vm, 6379, b"PING\r\n") == b"+PONG\r\n"
    assert ask(lab, vm, 6379, b"CONFIG GET dir\r\n").endswith(b"/data\r\n")
    assert ask(lab, vm, 6379, b"SET kept yes\r\n") == b"+OK\r\n"
    # The host's hand is in the image's root, where there is not even a shell.
    assert lab.module("cocoon_exec", name="redis", argv=["redis-server", "--version"])["stdout"].startswith("Redis")
    assert lab.stopped("redis")["exit_code"] == 0
    vm = lab.serving("redis", 6379)
    assert ask(lab, vm, 6379, b"GET kept\r\n") == b"$3\r\nyes\r\n"
    lab.vm("redis", state="absent", force=True)


USERS = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n",
    "etc/group": b"root:x:0:\napps:x:1001:\nextra:x:77:x,app\nother:x:78:root\n",
}
WORDS = ["a\nb", "", "--x=*", "Áü€\x01\\n '\"", "$(poweroff)"]
TELL = """
for word in "$@"; do printf '<%s>\\n' "$word"; done
busybox id; pwd; busybox env; echo "group $(busybox id -G)"; ulimit -n; echo to > /dev/stdout; echo err > /dev/stderr
busybox cat /etc/hosts /etc/resolv.conf /etc/hostname; busybox hostname
busybox mount | busybox grep /mnt/; busybox head -c 4 /mnt/data1/note; : > /tmp/here && echo can write
"""


def test_the_command_gets_what_the_image_says(lab: Containers) -> None:
    """Words of any content, environment, user with all groups, working directory, name, name servers, data disk."""
    config = {
        "Entrypoint": ["sh", "-c", TELL + "exit 3", "sh"],
        "Cmd": WORDS,
        "Env": ["X=a b\nc", "EMPTY=", "PATH=/nowhere:/bin"],
        "User": "app",
        "WorkingDir": "/srv/some where",
    }
    files = {**USERS, "etc/resolv.conf": "/run/systemd/resolve/stub-resolv.conf"}
    lab.busybox("tell", "", files, **config)
    record, text = lab.ended("tell", network="lab", data_disks=[{"name": "data1", "size": "32M"}])
    for word in WORDS:
        assert f"<{word}>\n" in text
    assert "uid=1000(app) gid=1001(apps) groups=77(extra),1001(apps)\n/srv/some where\n" in text
    assert "X=a b\nc\n" in text and "EMPTY=\n" in text and "HOME=/home/app\n" in text and "HOSTNAME=tell\n" in text
    assert "1048576\nto\nerr\n" in text
    assert "127.0.0.1 localhost\n" in text and "127.0.1.1 tell\n" in text
    assert "".join(f"nameserver {server}\n" for server in NAME_SERVERS) + "tell\ntell\n" in text
    assert re.search(r"/dev/vd\w on /mnt/data1 type ext4", text) and "can write" in text
    assert "cocoon: exit 3\n" in text
    assert (record["state"], record["exit_code"], record["reason"]) == ("stopped", 3, "exited with code 3")
    lab.clean(record)
    # What info found is written down by the next run that has something to do.
    assert lab.stopped("tell")["exit_code"] == 3
    assert not lab.vm("tell", state="stopped").changed


def test_the_command_gets_what_the_vm_says(lab: Containers) -> None:
    """Other words and variables than the image's; a secret is in the guest, and nowhere that others can see."""

    def told(check: bool = False, diff: bool = False, **options: Any) -> Record:
        vm = {"name": "told", "image": "told", **SMALL, **options}
        return dict(lab.module("cocoon_vms", vms=[vm], check=check, diff=diff)["results"][0])

    script = 'echo "<$*> $A $B $SECRET"; busybox pwd; exit 4'
    lab.busybox("told", "", Entrypoint=["sh", "-c", "exit 1"], Env=["PATH=/bin", "A=image", "B=image"], WorkingDir="/w")
    secret = "s3cret-with-'quotes'-and $signs"
    given: Record = {
        "entrypoint": ["sh", "-c", script, "sh"],
        "command": "one 'two words'",
        "env": {"A": "vm"},
        "secret_env": {"SECRET": secret},
        "working_dir": "/vm",
    }
    results = [told(check=True, diff=True, **given), told(diff=True, **given)]
    record, text = lab.ended("told")
    assert f"<one two words> vm image {secret}\n/vm\n" in text and record["exit_code"] == 4, text
    results += [told(**given), record]
    assert results[2]["changed"] is False and secret not in json.dumps(results)
    folder = lab.path("root", "vms", record["id"])
    holding = [path for path in folder.iterdir() if path.suffix != ".raw" and secret in path.read_text("utf-8")]
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in holding} == {"run.bin": 0o400, KEPT: 0o400}
    taken = lab.module("cocoon_snapshot", name="told", vm="told")["snapshot"]
    assert [taken[key] for key in ("entrypoint", "env")] == [given["entrypoint"], given["env"]]
    kept = lab.path("root", "snapshots", taken["id"])
    assert not [path for path in kept.rglob("*.json") if secret in path.read_text("utf-8")]
    changed = told(diff=True, entrypoint=[], env={}, secret_env={"SECRET": "another one"})
    assert changed["actions"] == ["configure", "set_secret_env"] and "another one" not in json.dumps(changed)
    assert changed["diff"]["after"]["secret_env"] == {"SECRET": "(changed)"}
    assert lab.ended("told")[0]["exit_code"] == 1  # the image's again
    lab.vm("told", state="absent", force=True)
    lab.module("cocoon_snapshot", name="told", state="absent")


@pytest.mark.parametrize(
    ("name", "config", "code", "words"),
    [
        ("killed", {"Entrypoint": ["/bin/sh", "-c", "kill -9 $$"]}, 137, ""),
        ("nothing", {"Entrypoint": ["not-there"]}, 127, "not-there: there is no such program in the image"),
        ("nobody", {"User": "nobody"}, 126, "the image has no user 'nobody'"),
        (
            "numbers",
            {"Entrypoint": ["sh", "-c", "busybox hostname; exit $(busybox id -u)"], "User": "7:8"},
            7,
            "numbers\n",
        ),
    ],
)
def test_how_a_command_ends(lab: Containers, name: str, config: Record, code: int, words: str) -> None:
    """Without any NIC, and with no more than a shell in the image."""
    lab.busybox(name, "exit 0", **config)
    record, text = lab.ended(name)
    assert record["exit_code"] == code, text
    assert f"cocoon: ready {name}\n" in text and f"cocoon: exit {code}\n" in text
    assert words in text.partition("cocoon: ready")[2].partition("\n")[2]
    lab.clean(record)
    lab.vm(name, state="absent", force=True)


@pytest.mark.parametrize(("code", "remedy"), [(137, "It was killed: the guest may want more memory."), (3, "console")])
def test_a_wait_for_a_command_that_ends(lab: Containers, code: int, remedy: str) -> None:
    """The error says how, and not that the hypervisor has gone."""
    name = f"brief{code}"
    lab.busybox(name, f"exit {code}")
    wait = {"wait_for": "port", "wait_port": 80, "timeout": int(BOOT)}
    said = lab.vm(name, ok=False, state="started", network="lab", **wait)["msg"]
    assert f"its command ended with exit code {code} while the task waited for TCP port 80 of 10.94." in said
    assert remedy in said and "hypervisor" not in said
    lab.vm(name, state="absent", force=True)


def test_a_file_that_is_no_program_for_this_machine(lab: Containers) -> None:
    """It is not given to a shell, which would find words in it."""
    program = b"\x7fELF\x02\x01".ljust(18, b"\0") + (21).to_bytes(2, "little") + bytes(200)
    lab.busybox("foreign", "", {"probe": program}, Entrypoint=["/probe"])
    record, text = lab.ended("foreign")
    assert record["exit_code"] == 126, text
    assert "cannot run the command: /probe: it is a program for ppc64, and this is " in text
    assert "(exec format error)" in text and "not found" not in text
    lab.vm("foreign", state="absent", force=True)


ODD = """
for name in hostname hosts resolv.conf; do busybox stat -c '%n %F' /etc/$name; done
for name in run tmp mnt; do echo "$name $(busybox readlink /$name)"; done
busybox hostname
trap 'echo asked; exit 5' TERM; echo waiting; while :; do busybox sleep 0.1; done
"""


def test_what_is_odd_in_an_image_ends_no_boot(lab: Containers) -> None:
    """Folders, and links out of the root, where our init writes and mounts; a stop signal that nobody knows."""
    name = "Odd_One."
    folder = (0, 0, 0o755)
    files = {
        **{"etc": folder, "etc/resolv.conf": folder, "etc/hosts": folder, "etc/hostname": "/nowhere/else"},
        **{"etc/machine-id": folder, "var": folder, "run": "/var/run", "tmp": "/var/tmp", "mnt": "media"},
    }
    lab.busybox("odd", ODD, files, StopSignal="SIGFOO")
    wait = {"wait_for": "console", "wait_pattern": "waiting", "timeout": int(BOOT)}
    lab.vm(name, image="odd", state="started", network="lab", **wait)
    record = lab.find(name)
    text = lab.console(record)
    assert "/etc/hostname regular file\n/etc/hosts directory\n/etc/resolv.conf directory\n" in text
    assert "run var/run\ntmp var/tmp\nmnt media\n" in text
    assert "\nOdd-One\n" in text and text.count("is a folder, and is left as it is") == 2
    assert "stop signal 'SIGFOO' is not known" in text
    assert lab.stopped(name)["exit_code"] == 5
    assert "\nasked\n" in lab.console(record)
    lab.vm(name, state="absent", force=True)


def test_a_guest_that_panicked_is_seen(lab: Containers) -> None:
    """By whoever asks for the VM, and by the doctor, until it is up again."""
    lab.busybox("sad", "while :; do busybox sleep 0.1; done")
    lab.vm("sad", image="sad", state="started", kernel_args="rdinit=/nowhere panic=0")
    deadline = time.monotonic() + BOOT
    while "panicked" not in (lab.find("sad").get("reason") or ""):
        assert time.monotonic() < deadline, lab.console(lab.find("sad"))
        time.sleep(0.2)
    record = lab.find("sad")
    assert record["state"] == "running" and record["reason"].startswith("its guest's kernel panicked: ")
    checks = {row["name"]: row for row in lab.module("cocoon_host_info")["checks"]}
    assert "sad (its kernel panicked: " in checks["guests"]["detail"], checks["guests"]
    wait = {"wait_for": "console", "wait_pattern": "cocoon: ready", "timeout": int(BOOT)}
    lab.vm("sad", state="restarted", kernel_args="", force=True, **wait)
    assert "panicked" not in (lab.find("sad").get("reason") or "")
    lab.vm("sad", state="absent", force=True)


def test_orphans_are_taken_in(lab: Containers) -> None:
    """Processes whose parents have gone leave no zombie; a child's signals do not end the machine."""
    script = """
        for turn in 1 2 3 4 5 6 7 8; do (busybox true & busybox sleep 0.2 &) ; done
        trap 'echo got hup' HUP; kill -HUP 1; busybox sleep 1
        echo zombies $(busybox grep -l '^State:.Z' /proc/[0-9]*/status 2>&- | busybox wc -l)
        while :; do busybox sleep 1; done
    """
    lab.busybox("orphans", script)
    lab.vm("orphans", state="started", wait_for="console", wait_pattern="zombies 0", timeout=int(BOOT))
    text = lab.console(lab.find("orphans"))
    assert "got hup\n" in text
    lab.vm("orphans", state="absent", force=True)


def test_the_power_button_does_not_wait_for_ever(lab: Containers) -> None:
    """A command that ignores it is killed in time for clean file systems; so is what it leaves."""
    script = "trap '' TERM; (trap '' TERM; while :; do busybox sleep 1; done) & while :; do busybox sleep 1; done"
    lab.busybox("deaf", script)
    lab.vm("deaf", state="started", kernel_args="cocoon.grace=2", wait_for="console", timeout=int(BOOT))
    assert lab.stopped("deaf")["exit_code"] == 137


def test_an_exit_code_gets_past_all_that_is_printed(lab: Containers) -> None:
    """The console's log holds less than a megabyte, of which the newest, and a container prints to it."""
    lab.busybox("chatty", "busybox head -c 1200000 /dev/zero | busybox tr '\\0' x; exit 5")
    record, text = lab.ended("chatty")
    assert "cocoon: exit 5\n" in text
    assert record["exit_code"] == 5


def test_an_image_with_an_init_of_its_own(lab: Containers) -> None:
    """It is process 1, with /run in memory, and is told of the power button."""
    inittab = (
        "::sysinit:/bin/sh -c 'echo init is $(busybox readlink /proc/1/exe); busybox grep \" /run \" /proc/mounts'\n"
    )
    inittab += "::respawn:/bin/busybox httpd -f -p 80\n::shutdown:/bin/busybox echo init ends\n"
    files = {"sbin/init": "/bin/busybox", "sbin/poweroff": "/bin/busybox", "etc/inittab": inittab.encode()}
    lab.busybox("init", "", files, Entrypoint=None, Cmd=["/sbin/init"])
    vm = lab.serving("init", 80)
    text = lab.console(vm)
    assert "init is /bin/busybox\n" in text and "tmpfs /run tmpfs" in text
    result = lab.vm("init", state="stopped")
    assert result["vm"]["reason"] == "shut down" and result["vm"]["exit_code"] is None
    assert "init ends" in lab.console(vm)
    lab.vm("init", state="absent", force=True)


OWN_INIT = b"#!/bin/busybox sh\necho process $$ is $0\nbusybox sleep 1\nexec busybox poweroff -f\n"
FALSE_INIT = {"sbin/init": "/bin/busybox"}
WHAT_RUNS: dict[str, tuple[Record, list[str] | None, str, int | None]] = {
    "shell-or-init": ({"sbin/init": OWN_INIT}, ["sh"], "process 1 is /sbin/init", None),
    "no-command": ({**FALSE_INIT, "lib/systemd/systemd": OWN_INIT}, None, "process 1 is /lib/systemd/systemd", None),
    "no-real-init": (FALSE_INIT, ["/bin/sh"], "cocoon: exit 0", 0),
    "application": ({"sbin/init": OWN_INIT}, ["sh", "-c", "exit 5"], "cocoon: exit 5", 5),
}


def test_an_init_runs_where_the_command_is_a_mere_shell(lab: Containers) -> None:
    """Or nothing. An application runs whatever is below it, and busybox's init counts for nothing."""
    for name, (files, words, _text, _code) in WHAT_RUNS.items():
        lab.busybox(name, "", files, Entrypoint=None, Cmd=words)
    lab.module("cocoon_vms", vms=[{"name": name, "image": name, **SMALL, "state": "started"} for name in WHAT_RUNS])
    for name, (_files, _words, expected, code) in WHAT_RUNS.items():
        record, text = lab.off(name)
        assert f"{expected}\n" in text and ("process 1" in text) == (code is None), text
        assert record["exit_code"] == code
    lab.module("cocoon_vms", vms=[{"name": name, "state": "absent", "force": True} for name in WHAT_RUNS])


def test_layers_with_a_kernel_of_their_own(lab: Containers, tiny_image: Path) -> None:
    """It boots that kernel, not the default one, nor the one that an upper layer has removed."""
    image = lab.image("guest", containers.guest(lab.folder / "guest", tiny_image))
    vm = lab.serving("guest", 80)
    assert len(image["layers"]) == 4 and vm["boot_config"]["kernel_path"] == image["boot"]["kernel_path"]
    assert get(lab, vm, "/").endswith(b"\r\n\r\nguest\n") and b" 404 " in get(lab, vm, "/old")
    assert lab.stopped("guest")["reason"] == "shut down"
    lab.vm("guest", state="absent", force=True)


FOLDERS = "busybox stat -c '%n %a %u:%g' /spool /home /home/app /home/app/new /other"
LOOK = f"""
{FOLDERS}; echo "id <$(busybox cat /etc/machine-id)>"
busybox mkdir -p /home/app/kept; busybox chmod 710 /spool; echo mine > /etc/machine-id
"""


def test_folders_that_a_layer_only_implies(lab: Containers) -> None:
    """They are as the layers below have them, from the first boot on; what the guest then makes of them stays.

    Layers of nothing, more than one of them, are no trouble.
    """
    below = {"spool": (0, 0, 0o1777), "home/app": (1000, 1001, 0o700), "etc/machine-id": b"image"}
    above = containers.layer({"spool/x": b"", "home/app/new/x": b"", "other/x": b""})
    layers = [b"", containers.busybox_layer(below), b"", above]
    config = {"Entrypoint": ["/bin/sh", "-c", LOOK], "Env": ["PATH=/bin"]}
    lab.image("implied", containers.layout(lab.folder / "implied", layers, **config))
    rest = "/home 755 0:0\n/home/app 700 1000:1001\n/home/app/new 755 0:0\n/other 755 0:0\n"
    record, text = lab.ended("implied")
    assert f"/spool 1777 0:0\n{rest}id <>\n" in text
    record, text = lab.ended("implied")
    assert f"/spool 710 0:0\n{rest}id <mine>\n" in text
    lab.clean(record)
    # What is rebuilt has them as well.
    newer = containers.layer({"spool/y": b""})
    lab.image("implied", containers.layout(lab.folder / "newer", [*layers, newer], **config))
    assert lab.vm("implied", recreate=True, allow_restart=True).changed
    record, text = lab.ended("implied")
    assert f"/spool 1777 0:0\n{rest}id <>\n" in text
    lab.vm("implied", state="absent", force=True)


def test_folders_that_a_layer_only_implies_in_a_cocoon_image(lab: Containers, tiny_image: Path) -> None:
    """With a kernel and an initramfs of the image's own."""
    below = containers.layer({"spool": (0, 0, 0o1777), "home/app": (1000, 1001, 0o700)})
    show = f"#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'\n{FOLDERS}\n".encode()
    files = {"spool/x": b"", "home/app/new/x": b"", "other/x": b"", "srv/www/cgi-bin/show": show}
    layers = [tiny_image.read_bytes(), below, containers.layer(files)]
    image = lab.image("implied-tiny", containers.layout(lab.folder / "implied-tiny", layers))
    assert image["boot"]
    vm = lab.serving("implied-tiny", 80)
    expected = b"/spool 1777 0:0\n/home 755 0:0\n/home/app 700 1000:1001\n/home/app/new 755 0:0\n/other 755 0:0\n"
    assert get(lab, vm, "/cgi-bin/show").endswith(expected)
    lab.vm("implied-tiny", state="absent", force=True)


def test_an_image_with_nothing_to_run(lab: Containers) -> None:
    lab.busybox("empty", "", Entrypoint=None)
    record, text = lab.ended("empty")
    assert "cocoon: boot failed: the image has no command and no init\n" in text
    assert record["exit_code"] is None


def test_a_data_disk_that_comes_later(lab: Containers) -> None:
    """The command sees it mounted, larger when it grows, and gone when it is detached."""
    script = """
        before=
        while :; do
            now=$(busybox df -k /mnt/late 2>&- | busybox awk '$6 == "/mnt/late" { print int($2 / 1024) "M" }')
            [ "$now" = "$before" ] || echo "late is <$now>"
            before=$now
            busybox usleep 100000
        done
    """
    lab.busybox("disks", script)
    waits: Record = {"wait_for": "console", "state": "started", "timeout": int(BOOT)}
    vm = lab.vm("disks", **waits)["vm"]
    lab.vm("disks", data_disks=[{"name": "late", "size": "32M"}])
    lab.vm("disks", wait_pattern="late is <2[0-9]M>", **waits)
    lab.vm("disks", data_disks=[{"name": "late", "size": "64M"}])
    lab.vm("disks", wait_pattern="late is <[4-6][0-9]M>", **waits)
    assert "allow_restart" in lab.vm("disks", ok=False, data_disks=[])["msg"]
    lab.vm("disks", data_disks=[{"name": "late", "size": "64M", "attached": False}])
    lab.vm("disks", wait_pattern="late is <>", **waits)
    assert lab.find("disks")["pid"] == vm["pid"]
    lab.vm("disks", state="absent", force=True)


def test_clones_are_told_who_they_are(lab: Containers) -> None:
    """A clone of a running container serves from its own address, under its own name."""
    lab.busybox("warm", "exec busybox nc -ll -p 80 -e /bin/busybox hostname")
    lab.serving("warm", 80)
    lab.module("cocoon_snapshot", name="warm", vm="warm")
    try:
        clone = lab.module("cocoon_vm", name="clone1", snapshot="warm", state="started", timeout=int(BOOT))["vm"]
        assert ask(lab, clone, 80, b"") == b"clone1\n"
        assert clone["exit_code"] is None
        assert lab.stopped("clone1")["exit_code"] == 143
    finally:
        for name in ("clone1", "warm"):
            lab.vm(name, state="absent", force=True)
        lab.module("cocoon_snapshot", name="warm", state="absent")


def test_a_prune_leaves_the_default_kernel(lab: Containers) -> None:
    removed = lab.module("cocoon_image_prune", check=True)["images"]
    assert removed and KERNEL not in [name for image in removed for name in image["names"]]


def test_without_a_default_kernel(
    make_store: Callable[[], dict[str, str]], modules: Callable[..., Modules], lab: Containers
) -> None:
    """The image is taken all the same; a VM of it is refused, with what to do."""
    module = modules(lab.netns, make_store())
    image = module("cocoon_image", name="app", source=str(lab.folder / "empty"))["image"]
    assert image["boot"] is None and image["config"]["env"] == ["PATH=/bin"]
    for check in (True, False):
        failure = module("cocoon_vm", ok=False, check=check, name="app", image="app", state="started", **SMALL)
        assert re.search(r"image 'app' brings no kernel.*Run the role cocoon\.microvm\.host", failure["msg"])
    assert module("cocoon_vm_info")["vms"] == []
    (row,) = [row for row in module("cocoon_host_info")["checks"] if row["name"] == "default kernel"]
    assert row["status"] == "WARN"
    module("cocoon_image", name="app", state="absent")


def test_a_new_kernel_is_for_the_next_start(lab: Containers, kernel: Path) -> None:
    """A running VM has the old one still; a VM that finds none any more says so, and can be started later."""
    lab.busybox("steady", "while :; do busybox sleep 1; done")
    first = lab.vm("steady", state="started", wait_for="console", timeout=int(BOOT))["vm"]["boot_config"]
    newer = lab.folder / "newer.tar"
    with tarfile.open(kernel) as old, tarfile.open(newer, "w") as new:
        for member in old:
            stream = old.extractfile(member) if member.isreg() else None
            content = stream.read() + bytes(512) if stream and "initrd" in member.name else None
            if content:
                member.size = len(content)
                new.addfile(member, io.BytesIO(content))
            else:
                new.addfile(member, stream)
    assert lab.module("cocoon_image", name=KERNEL, source=str(newer)).changed
    assert not lab.vm("steady", state="started").changed
    assert lab.find("steady")["boot_config"] == first
    lab.vm("steady", state="stopped", force=True)
    lab.module("cocoon_image", name=KERNEL, state="absent")
    failure = lab.vm("steady", state="started", ok=False)
    assert "no default kernel" in failure["msg"] and lab.find("steady")["state"] == "error"
    lab.module("cocoon_image", name=KERNEL, source=str(newer))
    again = lab.vm("steady", state="started", wait_for="console", timeout=int(BOOT))["vm"]
    assert again["boot_config"]["initrd_path"] != first["initrd_path"]
    lab.vm("steady", state="absent", force=True)
    lab.module("cocoon_image", name=KERNEL, source=str(kernel))


def test_the_role_host_installs_the_kernel_once(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    scratch: Path,
) -> None:
    """From packages that have been fetched, without a network; check mode and a second run change nothing."""
    netns, store = make_netns(), make_store()
    module = modules(netns, store)
    playbooks = Playbooks(netns, scratch, {f"cocoon_{name}": path for name, path in store.items()})
    play = [{"hosts": "all", "gather_facts": False, "roles": ["cocoon.microvm.host"]}]
    variables = {
        "cocoon_kernel": True,
        "cocoon_owner": "tests",
        "host_show_table": True,
        "host_kernel_file": str(scratch / "kernel" / "kernel.tar"),
        "image_cache_dir": str(images.CACHE),
    }
    planned = playbooks(play, variables=variables, check=True)
    assert planned.total("changed") == 1 and not Path(store["root_dir"]).exists(), planned.output
    first = playbooks(play, variables=variables)
    assert re.search(
        r"default kernel +PASS", str(first.result("cocoon.microvm.host : Show what the doctor says")["msg"])
    )
    found = module("cocoon_host_info")["host"]["default_kernel"]
    image = module("cocoon_image_info")["images"][0]
    assert (image["name"], image["id"], image["owner"]) == (KERNEL, found["id"], "tests")
    again = playbooks(play, variables=variables)
    assert again.total("changed") == 0, again.output
    ran = [task["task"] for task in again.tasks if task["outcome"] != "skipped"]
    assert not [task for task in ran if task.startswith("cocoon.microvm.image")] and len(ran) < 6, ran
    module("cocoon_image", name=KERNEL, state="absent")
