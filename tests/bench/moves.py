# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""9. A VM's disks on their way to another host: out of one store and into another, beside tar and zstd."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fleet import Fleet
from measures import timed
from results import Row

MIB = 1 << 20
# Of a disk that is mostly holes: a half cannot be compressed, the other half is one line of text over and over.
SIZE, WRITTEN = 2048, 256
LINE = b"GET /items/4711/view HTTP/1.1 200\n"
STAYS = {"name": "vm00000"}


def measure(make: Callable[[], Fleet], runs: int) -> list[Row]:
    """The rates of the two halves, by what is written on the disk, and how long a move of a small VM takes."""
    source, target = make(), make()
    source.module("cocoon_vm", **source.vms(1)[0], data_disks=[{"name": "data", "size": f"{SIZE}M", "fstype": "none"}])
    vm = source.module("cocoon_vm_info")["vms"][0]
    folder = Path(source.dirs["root_dir"]) / "vms" / vm["id"]
    _fill(folder / "data-data.raw")
    archive, copy = source.folder / "tar.zst", source.folder / "copy"
    out, into, packed, unpacked = [], [], [], []
    try:
        for _run in range(runs):
            gone, there = _moved(source, target)
            out.append(_rate(gone))
            into.append(_rate(there))
            packed.append(_rate(_shell(f"tar -S -cf - -C {folder} . | zstd -q -1 -f -o {archive}")))
            unpacked.append(_rate(_shell(f"mkdir {copy} && zstd -q -dc {archive} | tar -S -xf - -C {copy}")))
            _shell(f"rm -r {archive} {copy}")
    finally:
        source.clear()
        target.clear()
    return [
        Row("9", f"{WRITTEN} MiB written of {SIZE}, out of a store", "MB/s", out),
        Row("9", "the same by tar -S and zstd -1", "MB/s", packed),
        Row("9", "the same into a store, digests checked", "MB/s", into),
        Row("9", "the same by zstd and tar", "MB/s", unpacked),
    ]


def _fill(disk: Path) -> None:
    """In pieces all over the disk."""
    step = SIZE // WRITTEN * 2 * MIB
    text = LINE * (MIB // len(LINE) + 1)
    with disk.open("r+b") as stream:
        for number in range(WRITTEN // 2):
            stream.seek(number * step)
            stream.write(os.urandom(MIB) + text[:MIB])
        os.fsync(stream.fileno())


def _rate(spent: float) -> float:
    return WRITTEN * MIB / 1e6 / spent


def _shell(line: str) -> float:
    """Seconds that a line takes, until all is on disk."""
    words = ["bash", "-o", "pipefail", "-c", f"{line} && sync -f /var/tmp"]
    return timed(lambda: subprocess.run(words, check=True))


def _moved(source: Fleet, target: Fleet) -> tuple[float, float]:
    """Seconds of the two halves of a move, which is then taken back."""

    def step(fleet: Fleet, state: str, **options: Any) -> dict[str, Any]:
        return dict(fleet.module("cocoon_vm_move", **STAYS, state=state, disk_overcommit=1000, **options))

    gone = step(source, "departed", host="target")
    token, vm_id = gone["token"], gone["vm"]["id"]
    began = time.monotonic()
    sent = step(source, "exported", token=token)["archive"]
    middle = time.monotonic()
    step(target, "arrived", id=vm_id, token=token, host="source", path=sent["path"], checksum=sent["digest"])
    ended = time.monotonic()
    proof = step(target, "discarded", id=vm_id, token=token)["receipt"]
    step(source, "returned", token=token, receipt=proof)
    return middle - began, ended - middle
