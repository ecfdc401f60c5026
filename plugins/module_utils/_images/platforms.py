# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Platforms of images, ``os/architecture[/variant]``, and which of them a VM of this host runs best."""

from __future__ import annotations

import os
import re
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError

# What the kernel and some tools call a machine, and what images do.
MACHINES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "riscv64": "riscv64",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "armv7l": "arm",
}
PLATFORM_RE = re.compile(r"^[a-z0-9]{1,32}/[a-z0-9_]{1,32}(?:/[a-z0-9.]{1,32})?\Z")
# Every VM's CPU has x86-64-v2, and those that run by KVM on a good host have more: an image is kept for all of them.
GUEST_LEVEL = 2
# What an image without a variant is made for.
PLAIN_VARIANTS = {"amd64": "v1", "arm64": "v8", "arm": "v7"}


class Platform(t.NamedTuple):
    """Where an image runs; a part that nobody says is empty."""

    os: str = ""
    architecture: str = ""
    variant: str = ""

    @classmethod
    def of(cls, document: t.Mapping[str, t.Any]) -> Platform:
        """That of a descriptor's ``platform``, or of a config."""
        machine = document.get("architecture", "").lower()
        return cls(document.get("os", "").lower(), MACHINES.get(machine, machine), document.get("variant", "").lower())

    @classmethod
    def parse(cls, text: str) -> Platform:
        """``os/architecture`` or ``os/architecture/variant``."""
        system, machine, *variant = text.split("/")
        return cls(system, MACHINES.get(machine, machine), *variant)

    def __str__(self) -> str:
        return "/".join(part for part in self if part)

    def completed(self, other: Platform) -> Platform:
        """This one, with what only *other* says."""
        return Platform(*(mine or theirs for mine, theirs in zip(self, other)))

    def same_machine(self, other: Platform) -> bool:
        return (self.os, self.architecture) == (other.os, other.architecture)

    def rank(self, wanted: Platform) -> int:
        """How well it runs where *wanted* is asked for; the higher, the better, and 0 for not at all.

        Of x86-64 a level runs wherever the CPU has that or a higher one. Elsewhere a variant that is wanted is that
        one, or one that nobody names, as few configs do.
        """
        if not self.same_machine(wanted):
            return 0
        if self.architecture == "amd64":
            level = _level(self.variant or "v1")
            return level if level <= (_level(wanted.variant) if wanted.variant else GUEST_LEVEL) else 0
        plain = PLAIN_VARIANTS.get(self.architecture, "")
        if (self.variant or plain) == (wanted.variant or plain):
            return 3
        if not self.variant:
            return 2
        return 0 if wanted.variant else 1


def _level(variant: str) -> int:
    """That of x86-64; what is no level is above all that a CPU has."""
    found = re.fullmatch(r"v([1-4])", variant)
    return int(found.group(1)) if found else 5


def host_platform() -> str:
    """The platform of this host, as images name it."""
    machine = os.uname().machine
    return f"linux/{MACHINES.get(machine, machine)}"


def check_platform(platform: str | None) -> str:
    """*platform*, or the host's where none is given.

    :raises InputError: it is not written as ``os/architecture`` or ``os/architecture/variant``.
    """
    if platform is None:
        return host_platform()
    if not PLATFORM_RE.match(platform):
        raise InputError(f"'{platform}' is not a platform", "platform", "Write it as linux/amd64 or linux/arm/v7.")
    return platform
