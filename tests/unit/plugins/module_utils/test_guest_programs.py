# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts of the programs in our guests, on this machine: what can be tried without being process 1."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import typing as t
from pathlib import Path

import pytest

import ansible_collections.cocoon.microvm as collection
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.settings import (
    GuestNic,
    Route,
    identity_lines,
)
from ansible_collections.cocoon.microvm.tests.unit.agents import OUR_AGENT, Server, Vsock

GUEST = Path(next(iter(collection.__path__))) / "roles" / "image" / "files" / "guest"
SOURCE = (GUEST / "container" / "supervise").read_text(encoding="utf-8")
NEEDS_PERL = pytest.mark.skipif(not shutil.which("perl"), reason="needs perl")
SIZE_64, LITTLE, BIG = b"\x02", b"\x01", b"\x02"
OTHER = {"x86_64": 183, "aarch64": 62}.get(os.uname().machine, 62)


def perl(code: str, *words: str) -> str:
    """What *code* prints after the functions of `supervise`, without what that does by itself."""
    head, rest = SOURCE.split("my $name = shift;")
    functions = rest[rest.index("sub main {") :]
    done = subprocess.run(
        ["perl", "-e", f"{head}\nmy ($name, $ours, $image);\n{functions}\n{code}", "--", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode and not done.stderr, done.stderr
    return done.stdout


@NEEDS_PERL
@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("TERM", 15), ("SIGTERM", 15), ("sigquit", 3), ("Winch", 28), ("SIGUSR1", 10), ("SIGHUP", 1), ("KILL", 9)),
        *(("3", 3), ("09", 9), ("64", 64), ("SIGRTMIN", 34), ("SIGRTMIN+3", 37), ("rtmin+1", 35), ("RTMIN+30", 64)),
        *(("RTMAX", 64), ("SIGRTMAX-2", 62), ("SIGIOT", 6), ("CLD", 17), ("SYS", 31)),
        *(("0", 0), ("65", 0), ("RTMIN+31", 0), ("RTMAX-31", 0), ("SIGFOO", 0), ("TERM\n", 0), ("-9", 0), ("", 0)),
        *(("__WARN__", 0), ("SIGSIGTERM", 0), ("RTMIN-1", 0), ("999", 0)),
    ],
)
def test_stop_signals(text: str, number: int) -> None:
    assert perl("print signal_number($ARGV[0])", text) == str(number)


def elf(machine: int, order: bytes = LITTLE, rest: bytes = b"") -> bytes:
    number = machine.to_bytes(2, "little" if order == LITTLE else "big")
    return b"\x7fELF" + SIZE_64 + order + bytes(10) + number.join((b"\2\0", b"")) + rest.rjust(100, b"\0")


@NEEDS_PERL
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (elf(OTHER), "126 it is a program for .*, and this is .* \\(exec format error\\)"),
        (elf(22, BIG), "126 it is a program for s390x, .*exec format error"),
        (elf(4711), "126 it is a program for machine 4711, .*exec format error"),
        (b"#!/bin/sh\r\necho\r\n", "127 its first line ends with a carriage return.*CRLF"),
        (b"#! /usr/bin/env sh\r\n", "127 its first line ends with a carriage return"),
        (b"", "126 it is empty"),
        (b"MZ\x90\x00\x03", "126 it is no program \\(exec format error\\)"),
        (b"#!{folder}/foreign -x\n", "126 its interpreter .*/foreign: it is a program for"),
        (b"#!/not/there\n", ""),  # the kernel says so
        (b"#!/bin/sh\necho \r\n", ""),
        (b"echo without a first line\n", ""),
        (b"\x7fELF", ""),
    ],
)
def test_what_no_kernel_runs(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "foreign").write_bytes(elf(OTHER))
    path = tmp_path / "program"
    path.write_bytes(data.replace(b"{folder}", str(tmp_path).encode()))
    assert re.fullmatch(said and f"{said}.*", perl("print join ' ', cannot_run($ARGV[0])", str(path)))


@NEEDS_PERL
def test_programs_of_this_machine(tmp_path: Path) -> None:
    for path in ("/bin/sh", shutil.which("perl") or "", "/not/there"):
        assert perl("print join ' ', cannot_run($ARGV[0])", path) == ""
    assert perl("print join ' ', cannot_run($ARGV[0])", str(tmp_path)) == "126 it is a folder"


@NEEDS_PERL
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"#!/not/there -x\n", "127 {path}: its interpreter /not/there is not in the image"),
        (b"#! \t/not/there\n", "127 {path}: its interpreter /not/there is not in the image"),
        (b"#!/bin/sh\r\n", "127 {path}: its first line ends with a carriage return"),
    ],
)
def test_what_is_not_there(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "program"
    path.write_bytes(data)
    path.chmod(0o755)
    found = perl("eval { run_program($ARGV[0], 'program') }; print $@", str(path))
    assert found.startswith(said.format(path=path))


@NEEDS_PERL
def test_a_loader_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "program"
    data = Path("/bin/sh").resolve().read_bytes()
    loader = t.cast("re.Match[bytes]", re.search(rb"\0(/lib[!-~]*ld[!-~]*)\0", data[:4096])).group(1)
    path.write_bytes(data.replace(loader, b"/not" + loader[4:], 1))
    path.chmod(0o755)
    found = perl("eval { run_program($ARGV[0], 'program') }; print $@", str(path))
    assert found.startswith(f"127 {path}: its loader /not{loader[4:].decode()} is not in the image")
    assert perl("run_program('/bin/sh', 'sh', '-c', 'echo ran')") == "ran\n"


BUILT_IN = "|".join(
    [":", r"\.", *"eval export readonly set shift trap unset times return break continue exit exec".split()]
)
SPECIAL_RE = re.compile(rf"(?:^|[;&|({{!]|\bthen|\belse|\bdo)\s*(?:{BUILT_IN})(?:\s(?:[^;&|#$\n]|\$(?!\())*)?[<>]")
# Run when an image is built, and no process 1 then.
BUILDING = ("customize", "essential")
PERL = ("supervise", "agent", "vsock")
SHELLS = [
    path
    for path in sorted(GUEST.rglob("*"))
    if path.is_file() and path.name not in (*BUILDING, *PERL) and not path.suffix
]


def special_writes(text: str) -> list[str]:
    """Lines in which a special built-in of the shell is given a redirection."""
    return [line.strip() for line in text.splitlines() if SPECIAL_RE.search(line) and line.strip()[0] != "#"]


@pytest.mark.parametrize("path", SHELLS, ids=lambda path: str(path.relative_to(GUEST)))
def test_no_write_ends_a_shell(path: Path) -> None:
    """A shell ends where a special built-in cannot write, and process 1 must not. One opens a port, in a subshell."""
    found = special_writes(path.read_text(encoding="utf-8"))
    assert found == (["exec 3<&0 < /dev/null", 'exec 3<> "$device"'] if path.name == "identity" else [])


def test_what_counts_as_special() -> None:
    for line in (": > /etc/x", '[ -e x ] || : > "$1/x"', "then : >> x", "exec < x", "if true; then unset a 2> x"):
        assert special_writes(line) == [line]
    for line in ("true > x", "echo : > x", "# : > x", "set -- $(od x 2> y)", "exec /bin/x", "a=${b:-c} > x"):
        assert special_writes(line) == []


@pytest.mark.parametrize(
    ("serial", "mounted"),
    [
        ("data", True),
        ("my-data_1", True),
        ("", False),
        ("cocoon-cow", False),
        ("cocoon-layer0", False),
        # Where serials are made of numbers nobody knows which disk is a layer.
        ("26214418", False),
        ("0a", False),
        ("../../etc", False),
        ("Data", False),
    ],
)
def test_which_disks_are_mounted_by_their_serials(tmp_path: Path, serial: str, mounted: bool) -> None:
    script = (
        f". {GUEST}/common/disks; serial_of() {{ serial=$1; }}; measure() {{ used=1; }};"
        ' mkdir() { :; }; grow() { :; }; mount() { echo "$*"; }; mount_data "$1"'
    )
    done = subprocess.run(["sh", "-c", script, "sh", serial], stdout=subprocess.PIPE, text=True, check=True)
    assert bool(done.stdout) == mounted


ECHO = """exec 3<&0 < /dev/null
while read -r line <&3; do
    case $line in
    end) break ;;
    hang) sleep 9 ;;
    bad) echo 'error "no" \\ seed' >&3; exit 1 ;;
    quiet) exit 1 ;;
    esac
done
echo ok >&3
"""


@NEEDS_PERL
@pytest.mark.parametrize(
    ("request_line", "answer"),
    [
        ('{"type": "identity", "message": "cocoon-identity 1\\nend\\n"}\n', "ok"),
        ('{"message":"bad\\nend\\n","type":"identity"}\n', 'error "no" \\ seed'),
        ('{"type": "identity", "message": "quiet\\n"}\n', "error half a request"),
        ('{"type": "identity", "message": "hang\\n"}\n', "error it took too long"),
        ('{"type": "identity", "message": "\\u0041"}\n', "error no message"),
        ('{"type": "identity"}\n', "error no message"),
        ('{"type": "exec", "message": "a"}\n', "error no such request: exec"),
        ("nonsense\n", "error no type"),
        ("a" * 70000 + "\n", "error too long a request"),
        ("no end", "error it took too long"),
    ],
)
def test_who_listens_at_the_vsock(tmp_path: Path, request_line: str, answer: str) -> None:
    """Whatever one request is like, the next one is answered."""
    with Vsock(tmp_path, ["true"], ["sh", "-c", ECHO]) as guest:
        assert ask(guest, request_line) == {"type": "identity", "answer": answer}
        assert ask(guest, '{"type": "identity", "message": "end\\n"}\n')["answer"] == "ok"


@NEEDS_PERL
@pytest.mark.parametrize("cid", [1, 3, 7])
def test_only_the_host_is_heard(tmp_path: Path, cid: int) -> None:
    with Vsock(tmp_path, ["true"], cid=cid) as guest, guest.connect() as somebody:
        assert somebody.recv(1) == b""


def ask(guest: Vsock, line: str) -> t.Any:
    with guest.connect() as host:
        host.sendall(line.encode())
        return json.loads(host.makefile("rb").readline())


SYNC = b'{"execute": "guest-sync", "arguments": {"id": %d}}\n'
IDENTITY = '{"type": "identity", "message": "end\\n"}\n'


def sync(host: socket.socket, number: int, before: bytes = b"") -> None:
    """Have the agent say a number."""
    host.sendall(before + SYNC % number)
    assert json.loads(host.makefile("rb").readline()) == {"return": number}


@NEEDS_PERL
def test_the_agent_and_clones_are_at_the_same_vsock(tmp_path: Path) -> None:
    """Whoever has said nothing yet, or half of it, is in nobody's way; nor is the agent in that of a clone."""
    with Vsock(tmp_path, OUR_AGENT, ["sh", "-c", ECHO]) as guest, guest.connect(), guest.connect() as slow:
        slow.sendall(IDENTITY[:9].encode())
        with guest.connect() as host:
            sync(host, 1)
            assert ask(guest, IDENTITY)["answer"] == "ok"
            sync(host, 2)
            slow.sendall(IDENTITY[9:].encode())
            assert json.loads(slow.makefile("rb").readline())["answer"] == "ok"
            sync(host, 3)


@NEEDS_PERL
def test_who_comes_last_has_the_agent(tmp_path: Path) -> None:
    """A connection that a snapshot has kept is of nobody; half of what it said, and the answers to it, are as well."""
    with Vsock(tmp_path, OUR_AGENT) as guest, guest.connect() as gone:
        gone.sendall(SYNC % 1 + b'{"execute": "guest-ping"}\n' * 2000 + b'{"execute": "gue')
        with guest.connect() as host:
            host.sendall(b"\xff" + SYNC.replace(b"-sync", b"-sync-delimited") % 2)
            stream, said = host.makefile("rb"), b""
            while b"\xff" not in said:
                said = stream.readline()
            assert json.loads(said.rpartition(b"\xff")[2]) == {"return": 2}
            with contextlib.suppress(ConnectionResetError):
                while gone.recv(1 << 16):
                    pass
            sync(host, 3)


@NEEDS_PERL
def test_an_agent_that_ends_is_started_again(tmp_path: Path) -> None:
    with Vsock(tmp_path, ["sh", "-c", "read line; echo heard; exit 1"]) as guest:
        for _time in range(2):
            with guest.connect() as host:
                host.sendall(SYNC % 1)
                assert host.makefile("rb").read() == b"heard\n"


@NEEDS_PERL
def test_an_agent_that_listens_has_a_connection_for_each_client(tmp_path: Path) -> None:
    def serve(client: socket.socket) -> None:
        heard = client.makefile("rb").readline()
        client.sendall(heard)

    with Vsock(tmp_path, [str(tmp_path / "agent")]) as guest:
        with guest.connect() as host:  # nobody is there yet
            host.sendall(SYNC % 1)
            assert host.recv(1) == b""
        with Server(tmp_path / "agent", serve) as server:
            for number in range(2):
                with guest.connect() as host:
                    host.sendall(SYNC % number)
                    assert host.makefile("rb").read() == b"\xff" + SYNC % number
            assert server.clients == 2


# -- NICs -----------------------------------------------------------------------------------------------------------

FAR = GuestNic(
    "eth0",
    "02:00:00:00:00:01",
    *("10.0.0.5/32", "169.254.1.1", "fd00:1::5/128", "fe80::1"),
    onlink=True,
    metric=7,
    routes=(Route("10.9.0.0/16", "169.254.1.2"), Route("fd00:9::/64", "fe80::2", 3)),
    dns=("192.0.2.53", "2001:db8::53"),
    search=("lab",),
)
ASKING = GuestNic("eth0", "02:00:00:00:00:01", address6="fd00:1::5/64", gateway6="fd00:1::1", way_out=False)
ALONE = GuestNic("eth0", "02:00:00:00:00:01", address6="fd00:1::5/64", only6=True)
PLAIN = GuestNic("eth0", "02:00:00:00:00:01", "10.0.0.5/24", "10.0.0.1", dns=("192.0.2.53", "192.0.2.54"))


def in_a_guest(files: t.Sequence[str], nic: GuestNic, call: str, stubs: str = "") -> list[str]:
    """What the scripts of a guest do about a NIC that they are told of as a clone is."""
    said = identity_lines([nic], ["old"])
    _nic, _old, _mac, *words = said[-1].split()
    options = said[0].partition(" ")[2] if len(said) > 1 else "-"
    parts = [(GUEST / name).read_text(encoding="utf-8").replace(". /usr/lib/cocoon-microvm/nic", "") for name in files]
    done = subprocess.run(
        ["sh", "-c", "\n".join([*parts, stubs, f'{call} eth0 "$@"', 'printf "%s" "$servers"']), "sh", *words, options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode and not done.stderr, done.stderr
    return [line for line in done.stdout.splitlines() if line]


STUBS = """
ip() { echo "ip $*"; }
ifconfig() { echo "ifconfig $*"; }
configure_dhcp() { echo asks; }
heed_routers() { :; }
"""


@pytest.mark.parametrize(
    ("nic", "done"),
    [
        (
            FAR,
            [
                "ifconfig eth0 10.0.0.5 netmask 255.255.255.255 broadcast + up",
                "ip -4 route add 169.254.1.1 dev eth0",
                "ip -4 route add 0.0.0.0/0 via 169.254.1.1 dev eth0 metric 7",
                "ip -6 addr add fd00:1::5/128 dev eth0",
                "ip -6 route add fe80::1 dev eth0",
                "ip -6 route add ::/0 via fe80::1 dev eth0 metric 7",
                "ip -4 route add 169.254.1.2 dev eth0",
                "ip -4 route add 10.9.0.0/16 via 169.254.1.2 dev eth0",
                "ip -6 route add fe80::2 dev eth0",
                "ip -6 route add fd00:9::/64 via fe80::2 dev eth0 metric 3",
                *("search lab", "nameserver 192.0.2.53", "nameserver 2001:db8::53"),
            ],
        ),
        (
            ASKING,
            ["asks", "ip -6 addr add fd00:1::5/64 dev eth0", "ip -6 route add ::/0 via fd00:1::1 dev eth0"],
        ),
        (ALONE, ["ifconfig eth0 up", "ip -6 addr add fd00:1::5/64 dev eth0"]),
        (
            PLAIN,
            [
                "ifconfig eth0 10.0.0.5 netmask 255.255.255.0 broadcast + up",
                "ip -4 route add 0.0.0.0/0 via 10.0.0.1 dev eth0",
                *("nameserver 192.0.2.53", "nameserver 192.0.2.54"),
            ],
        ),
    ],
)
def test_what_a_tiny_guest_does_with_a_nic(nic: GuestNic, done: list[str]) -> None:
    assert in_a_guest(["common/nic", "tiny/functions"], nic, "set_nic", STUBS) == done


@pytest.mark.parametrize(
    ("nic", "sections"),
    [
        (
            FAR,
            [
                "[Network] ConfigureWithoutCarrier=yes Address=10.0.0.5/32 Domains=lab DNS=192.0.2.53",
                "[Route] Destination=0.0.0.0/0 Gateway=169.254.1.1 Metric=7 GatewayOnLink=yes",
                "[Route] Destination=10.9.0.0/16 Gateway=169.254.1.2 GatewayOnLink=yes",
                "[Route] Destination=fd00:9::/64 Gateway=fe80::2 Metric=3 GatewayOnLink=yes",
                "[Network] Address=fd00:1::5/128 IPv6AcceptRA=no DNS=2001:db8::53",
                "[Route] Destination=::/0 Gateway=fe80::1 Metric=7 GatewayOnLink=yes",
            ],
        ),
        (
            ASKING,
            [
                "[Network] DHCP=ipv4",
                "[DHCPv4] ClientIdentifier=mac UseGateway=no",
                "[DHCPv6] DUIDType=link-layer",
                "[IPv6AcceptRA] UseGateway=no",
                "[Network] Address=fd00:1::5/64 IPv6AcceptRA=no",
                "[Route] Destination=::/0 Gateway=fd00:1::1",
            ],
        ),
        (
            ALONE,
            ["[Network] ConfigureWithoutCarrier=yes", "[Network] Address=fd00:1::5/64 IPv6AcceptRA=no"],
        ),
        (
            PLAIN,
            [
                "[Network] ConfigureWithoutCarrier=yes Address=10.0.0.5/24 DNS=192.0.2.53 DNS=192.0.2.54",
                "[Route] Destination=0.0.0.0/0 Gateway=10.0.0.1",
            ],
        ),
    ],
)
def test_the_unit_of_a_nic_in_a_debian_guest(nic: GuestNic, sections: list[str], tmp_path: Path) -> None:
    (tmp_path / "address").write_text("02:00:00:00:00:01\n", encoding="ascii")
    units = tmp_path / "units"
    units.write_text(
        (GUEST / "debian/units")
        .read_text(encoding="utf-8")
        .replace("/run/systemd/network", str(tmp_path))
        .replace("/sys/class/net/$1", str(tmp_path)),
        encoding="utf-8",
    )
    assert in_a_guest(["common/nic", str(units)], nic, "write_unit") == []
    text = (tmp_path / "10-cocoon-eth0.network").read_text(encoding="utf-8")
    found = [" ".join(part.split()) for part in text.split("\n\n")]
    assert found == ["[Match] MACAddress=02:00:00:00:00:01", *sections]
