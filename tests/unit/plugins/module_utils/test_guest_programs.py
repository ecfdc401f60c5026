# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts of the programs in our guests, on this machine: what can be tried without being process 1."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import typing as t
from pathlib import Path

import pytest

import ansible_collections.cocoon.microvm as collection

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
SHELLS = [
    path
    for path in sorted(GUEST.rglob("*"))
    if path.is_file() and path.name not in (*BUILDING, "supervise") and not path.suffix
]


def special_writes(text: str) -> list[str]:
    """Lines in which a special built-in of the shell is given a redirection."""
    return [line.strip() for line in text.splitlines() if SPECIAL_RE.search(line) and line.strip()[0] != "#"]


@pytest.mark.parametrize("path", SHELLS, ids=lambda path: str(path.relative_to(GUEST)))
def test_no_write_ends_a_shell(path: Path) -> None:
    """A shell ends where a special built-in cannot write, and process 1 must not. One opens a port, in a subshell."""
    found = special_writes(path.read_text(encoding="utf-8"))
    assert found == (['exec 3<> "$device"'] if path.name == "identity" else [])


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
