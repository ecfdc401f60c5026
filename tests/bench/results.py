# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Results: rows of numbers with their aims, printed as a table and written as JSON."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Row:
    """One line of the table: what was measured, each run of it, and what it should be."""

    item: str
    what: str
    unit: str
    runs: list[float]
    aim: str = ""
    met: bool | None = None
    other: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle one of our runs."""
        return statistics.median(self.runs)

    def as_json(self) -> dict[str, Any]:
        """All of it, for the file."""
        result: dict[str, Any] = {"item": self.item, "what": self.what, "unit": self.unit, "median": self.median}
        result |= {"runs": self.runs, "aim": self.aim, "met": self.met}
        if self.other:
            result["libvirt"] = {"median": statistics.median(self.other), "runs": self.other}
            result["times_faster"] = statistics.median(self.other) / self.median
        return result

    def cells(self) -> list[str]:
        """The row as text."""
        spread = f"{number(min(self.runs))} to {number(max(self.runs))}"
        other = times = ""
        if self.other:
            middle = statistics.median(self.other)
            other, times = f"{number(middle)} {self.unit}", f"{middle / self.median:.0f} x"
        verdict = {True: "met", False: "MISSED", None: ""}[self.met]
        return [self.item, self.what, f"{number(self.median)} {self.unit}", spread, other, times, self.aim, verdict]


HEAD = ["", "What", "Median", "Range", "libvirt", "Faster", "Aim", ""]


def number(value: float) -> str:
    """Three digits that mean something."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def table(rows: Iterable[Row]) -> str:
    """The rows in the columns of a Markdown table."""
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]

    def joined(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([joined(HEAD), rule, *(joined(line) for line in lines[1:])])


def first_line(*words: str) -> str:
    """The first line that a program prints."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return ""
    return (done.stdout or done.stderr).partition("\n")[0].strip()


def field_of(path: str, name: str) -> str:
    """A value from a file of "name: value" or "name=value" lines."""
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        key, found, value = line.partition(":" if ":" in line else "=")
        if found and key.strip() == name:
            return value.strip().strip('"')
    return ""


def machine(folder: Path) -> dict[str, Any]:
    """The machine that was measured, in words that fit any machine.

    :param folder: where the store lies, for its file system.
    """
    import ansible.release

    memory = int(field_of("/proc/meminfo", "MemTotal").split()[0]) >> 10
    filesystem = first_line("findmnt", "-no", "FSTYPE", "-T", str(folder))
    libvirt = first_line("libvirtd", "--version") if shutil.which("libvirtd") else ""
    return {
        "processor": field_of("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "memory_mib": memory,
        "system": field_of("/etc/os-release", "PRETTY_NAME"),
        "kernel": platform.release().partition("-")[0],
        "file_system": filesystem,
        "kvm": os.access("/dev/kvm", os.R_OK | os.W_OK),
        "qemu": first_line("qemu-system-x86_64", "--version"),
        "python": platform.python_version(),
        "ansible_core": ansible.release.__version__,
        "libvirt": libvirt,
    }


def sentence(about: dict[str, Any]) -> str:
    """The machine in one line."""
    return (
        f"{about['cores']} cores ({about['processor']}), {about['memory_mib'] / 1024:.0f} GiB, {about['system']}, "
        f"Linux {about['kernel']}, {about['file_system']}, {about['qemu']}, Python {about['python']}, "
        f"ansible-core {about['ansible_core']}" + (f", {about['libvirt']}" if about["libvirt"] else "")
    )
