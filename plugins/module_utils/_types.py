# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and sizes, by the rules of Cocoon's Go ``types`` package and its format notes."""

from __future__ import annotations

import hashlib
import os
import re
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError

MIB = 1 << 20
GIB = 1 << 30

HYPERVISORS = ("qemu", "cloud-hypervisor", "firecracker")

# States of a VM record. The first five are the Go engine's; ours come after them.
CREATING = "creating"
CREATED = "created"
RUNNING = "running"
STOPPED = "stopped"
ERROR = "error"
PAUSED = "paused"
HIBERNATED = "hibernated"

NAME_RE = re.compile(r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}\Z")
LINE_RE = re.compile(r"^[^\x00-\x1f\x7f]*\Z")
LABEL_RE = re.compile(r"^[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?\Z")
NUMBER_RE = re.compile(r"^(?:[0-9]+|0[xX][0-9a-fA-F]*)\Z")
DISK_NAME_RE = re.compile(r"^(?!cocoon-)[a-z][a-z0-9_-]{0,19}\Z")
USER_RE = re.compile(r"^[a-z_][a-z0-9_-]{0,31}\Z")
MAC_RE = re.compile(r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")
NO_MAC = "00:00:00:00:00:00"
SIZE_RE = re.compile(r"^\s*([0-9]{1,18})(?:\.([0-9]{1,9}))?\s*([KMGT]?)(?:i?B)?\s*\Z", re.IGNORECASE)
SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

# What YAML makes of other things than text, in words.
_YAML = {type(None): "nothing", bool: "true or false", dict: "a mapping", list: "a list", tuple: "a list"}
YAML_WORDS = ("True", "False", "None")
MAX_HOST_NAME = 63  # Linux's own limit is 64; a label's is 63
MIN_DATA_DISK = 16 * MIB

Record = dict[str, t.Any]


def parse_size(value: int | str, option: str, minimum: int = 0) -> int:
    """Bytes from ``512M``, ``2G``, ``1.5GiB`` or a plain number of bytes; binary units.

    :raises InputError: not a size, no whole number of bytes, or below *minimum* bytes.
    """
    match = SIZE_RE.match(str(value))
    if not match or (match.group(2) and not match.group(3)):
        raise InputError(f"'{value}' is not a size", option, "Use a number with K, M, G or T, such as 512M or 1.5G.")
    whole, fraction, letter = match.group(1), match.group(2) or "", match.group(3).upper()
    size, rest = divmod(int(whole + fraction) * SIZE_UNITS[letter], 10 ** len(fraction))
    if rest:
        raise InputError(f"{value} is no whole number of bytes", option, f"Say it in a smaller unit than {letter}.")
    if size < minimum:
        raise InputError(f"{value} is too small", option, f"The minimum is {format_size(minimum)}.")
    return size


def format_size(size: int) -> str:
    """The shortest exact form that :func:`parse_size` takes back: ``512M``, ``2G``, ``1000``."""
    for unit in ("T", "G", "M", "K"):
        if size and size % SIZE_UNITS[unit] == 0:
            return f"{size // SIZE_UNITS[unit]}{unit}"
    return str(size)


def check_meant(name: str, option: str) -> None:
    """:raises InputError: the name of anything is what YAML has made of another word."""
    if name in YAML_WORDS:
        raise InputError(
            f"'{name}' is what YAML makes of a bare on, off, yes or no",
            option,
            "Put the name into quotation marks; if it is really called that, choose another one.",
        )


def check_name(name: str, option: str = "name") -> str:
    """*name* if it is a VM, image-free network or snapshot base name by the Go engine's rule."""
    check_meant(name, option)
    if not NAME_RE.match(name):
        raise InputError(
            f"'{name}' is not a valid name",
            option,
            "Use letters, digits, dots, underscores and hyphens, at most 63, beginning with a letter or digit.",
        )
    return name


def check_labels(labels: t.Mapping[t.Any, t.Any], option: str = "labels") -> dict[str, str]:
    """Labels of anything, as text.

    :raises InputError: what YAML has made of words that were meant as text, and what is no line of text.
    """
    return {_label(key, "a label", 256, option): _label_value(key, value, option) for key, value in labels.items()}


def _label_value(key: t.Any, value: t.Any, option: str) -> str:
    return _label(value, "a label's value", 4096, f"{option}.{key}") if value != "" else ""


def _label(value: t.Any, what: str, maximum: int, option: str) -> str:
    if value is None or isinstance(value, (bool, dict, list, tuple)):
        raise InputError(
            f"{what} is text, and not {_YAML.get(type(value))}", option, 'Put it into quotation marks: "yes".'
        )
    text = str(value)
    if not text.strip() or len(text) > maximum or not LINE_RE.match(text):
        raise InputError(f"{what} is empty, too long or not one line", option, f"Use one line of at most {maximum}.")
    return text


def host_name(record: t.Mapping[str, t.Any]) -> str:
    """What a VM calls itself: the ``hostname`` it was given, else its name made one. All that tell a guest ask here."""
    return record.get("hostname") or derive_host_name(record["config"]["name"])


def derive_host_name(name: str) -> str:
    """A VM's name as a host name, which has letters, digits and hyphens, and labels of them between dots.

    Underscores become hyphens; labels lose hyphens at their ends, and go where nothing is left. A last label that
    could be a number, which would be taken for an address, gets ``vm-`` before it.
    """
    labels = [label for label in (part.strip("-") for part in name.replace("_", "-").split(".")) if label]
    if labels and NUMBER_RE.match(labels[-1]):
        labels[-1] = f"vm-{labels[-1]}"
    return ".".join(labels)[:MAX_HOST_NAME].rstrip("-.") or "vm"


def check_host_name(name: str, option: str) -> str:
    """*name* if it is a host name, labels of letters, digits and hyphens, that is no number or address."""
    labels = name.split(".")
    if len(name) > MAX_HOST_NAME or not all(map(LABEL_RE.match, labels)) or NUMBER_RE.match(labels[-1]):
        raise InputError(
            f"'{name}' is not a host name",
            option,
            f"Use letters, digits and hyphens, with dots between labels, at most {MAX_HOST_NAME}; not digits only.",
        )
    return name


def check_mac(mac: str, option: str) -> str:
    """*mac* in lower case with colons; unicast only."""
    text = mac.strip().lower().replace("-", ":")
    if not MAC_RE.match(text):
        raise InputError(f"'{mac}' is not a MAC address", option, "Write it as 02:00:00:12:34:56.")
    if int(text[:2], 16) & 1:
        raise InputError(f"'{mac}' is a multicast MAC address", option, "The first octet must be even.")
    if text == NO_MAC:
        raise InputError(f"'{mac}' is no machine's MAC address", option, "Leave it out, and one is made up.")
    return text


def check_ip(address: str, option: str) -> str:
    """*address* as a canonical IPv4 address."""
    import ipaddress

    try:
        return str(ipaddress.IPv4Address(address.strip()))
    except ValueError:
        raise InputError(f"'{address}' is not an IPv4 address", option, "Write it as 10.0.0.2.") from None


def check_ip6(address: str, option: str) -> str:
    """*address* as a canonical IPv6 address that a machine can have beyond its link."""
    import ipaddress

    try:
        found = ipaddress.IPv6Address(address.strip())
    except ValueError:
        raise InputError(f"'{address}' is not an IPv6 address", option, "Write it as fd00:1:2:3::5.") from None
    if "%" in address or found.is_link_local or found.is_multicast or found.ipv4_mapped:
        raise InputError(f"'{address}' is no address of a machine", option, "Use one such as fd00:1:2:3::5.")
    return str(found)


def is_domain(text: str) -> bool:
    """Whether *text* is the name of a domain, in small letters and without a dot at the end."""
    label = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
    return bool(len(text) <= 253 and re.match(rf"{label}(\.{label})*\Z", text))


def new_id() -> str:
    """26 random base32 characters, lower case (usable in interface, netns and unit names)."""
    import base64

    return base64.b32encode(os.urandom(17)).decode("ascii")[:26].lower()


def derive_mac(seed: str, attempt: int = 0) -> str:
    """A locally administered unicast MAC made from *seed*; another one for each *attempt*."""
    digest = hashlib.sha256(f"{seed}/{attempt}".encode()).digest()
    return "02:" + ":".join(f"{byte:02x}" for byte in digest[:5])


def now() -> str:
    """The time in RFC 3339, UTC, microseconds."""
    return rfc3339(time.time())


def rfc3339(seconds: float) -> str:
    """A time in seconds since 1970 as records have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1e6):06d}Z"
