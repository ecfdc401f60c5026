# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where distributions keep UEFI for QEMU's q35: the code, which all VMs share, and an empty variable store.

Without Secure Boot, which wants system management mode and starts slower.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import UnsupportedError

# Code and variables belong together by their sizes: flash of 4 MiB, or of 2 MiB in older releases.
PAIRS = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),  # Debian 12, Ubuntu 22.04 and newer
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),  # Fedora, RHEL
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),  # Arch
)
REMEDY = "Install ovmf (RHEL family: edk2-ovmf), or run the role cocoon.microvm.host."


class Firmware(t.NamedTuple):
    """Paths of the code and of the empty variable store that goes with it."""

    code: str
    variables: str


def available(pairs: t.Iterable[tuple[str, str]] = PAIRS) -> list[Firmware]:
    """What is installed, the best first."""
    return [Firmware(*pair) for pair in pairs if all(map(os.path.isfile, pair))]


def find(store_size: int | None = None, pairs: t.Iterable[tuple[str, str]] = PAIRS) -> Firmware:
    """The firmware for a VM.

    :param store_size: bytes of the variable store that the VM has already; ``None`` for a new one.
    :raises UnsupportedError: none is installed, or none that goes with that store.
    """
    for firmware in available(pairs):
        if store_size is None or os.path.getsize(firmware.variables) == store_size:
            return firmware
    what = "UEFI firmware is not installed"
    if store_size is not None and available(pairs):
        what = f"no UEFI firmware with a variable store of {store_size} bytes, which the VM has, is installed"
    raise UnsupportedError(what, "firmware", REMEDY)
