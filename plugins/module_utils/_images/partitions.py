# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a disk is made to be booted by, as its first sectors tell."""

from __future__ import annotations

import struct
import uuid

SECTOR = 512
# A protective boot sector, the header of the partition table, and its 128 entries.
TABLE = 34 * SECTOR
CODE = 440
ENTRIES, ENTRY = 446, 16
EFI_TYPE, GPT_TYPE = 0xEF, 0xEE
GPT = b"EFI PART"
LARGE_SECTOR = 4096
ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le
MAX_ENTRIES = 128


def for_large_sectors(table: bytes) -> bool:
    """Whether the disk is partitioned for sectors of 4096 bytes, and so says nothing to whoever reads 512 at a time."""
    protected = (
        any(table[ENTRIES + ENTRY * number + 4] == GPT_TYPE for number in range(4)) if len(table) > 512 else False
    )
    return protected and not table.startswith(GPT, SECTOR) and table.startswith(GPT, LARGE_SECTOR)


def firmware(table: bytes) -> list[str]:
    """Of ``uefi`` and ``bios`` those that find something to start; both in many cloud images.

    :param table: the first :data:`TABLE` bytes of the disk, or as many as it has.
    """
    found = ["uefi"] if _has_esp(table) else []
    if table[510:512] == b"\x55\xaa" and any(table[:CODE]):
        found.append("bios")
    return found


def _has_esp(table: bytes) -> bool:
    """Whether there is an EFI system partition, in a table of either kind."""
    if table[510:512] != b"\x55\xaa":
        return False
    kinds = [table[ENTRIES + ENTRY * number + 4] for number in range(4)]
    if EFI_TYPE in kinds:
        return True
    header = table[SECTOR : 2 * SECTOR]
    if not header.startswith(GPT) or len(header) < 92:
        return False
    start, count, size = struct.unpack("<QII", header[72:88])
    if not 0 < size <= SECTOR or start * SECTOR >= TABLE:
        return False
    first = start * SECTOR
    return any(
        table[first + size * number : first + size * number + 16] == ESP for number in range(min(count, MAX_ENTRIES))
    )
