# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the values of options have to be like: each check gives the value in the form that is compared and kept."""

from __future__ import annotations

import contextlib
import re
import shlex
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.defaults import MAX_DATA_DISKS, MAX_NICS
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import Definition, Secret
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.settings import MAX_ROUTES, check_route, is_6
from ansible_collections.cocoon.microvm.plugins.module_utils._types import (
    DISK_NAME_RE,
    MIB,
    USER_RE,
    check_host_name,
    check_ip,
    check_ip6,
    check_labels,
    check_mac,
    check_name,
    format_size,
    parse_size,
)

OFF_WORDS = ("off", "false", "no", "none")
MAX_KERNEL_ARGS = 1024
MAX_WORD = 64 << 10
MAX_PORTS = 1024
MAX_METRIC = (1 << 32) - 1
MAX_VLAN = 4094
# What comes at once may be a packet of 64 KiB that is cut up later.
MIN_RATE, MIN_BURST, MAX_BURST = 8 << 10, 128 << 10, (1 << 32) - 1
# A request of a guest's to its disk may be of a MiB: slower, and it takes it for broken.
MIN_DISK_RATE, MAX_DISK_RATE, MAX_IOPS = 64 << 10, 1 << 40, 100_000_000

_PORT_RE = re.compile(r"^(?:([0-9]{1,3}(?:\.[0-9]{1,3}){3}):)?([0-9]{1,5}):([0-9]{1,5})(?:/(tcp|udp))?\Z")
_RANGE_RE = re.compile(
    r"^([0-9.]+:)?([0-9]{1,5})-([0-9]{1,5}):([0-9]{1,5})-([0-9]{1,5})(/(?:tcp|udp))?\Z",
)
_IMAGE_RE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,254}\Z")
_SNAPSHOT_RE = re.compile(r"^[a-zA-Z0-9][a-zA-Z0-9._:/-]{0,62}\Z")
_VARIABLE_RE = re.compile(r"^[A-Za-z_][A-Za-z0-9_.-]{0,255}\Z")
_CONTROL_RE = re.compile(r"[\x00-\x1f\x7f]")

Check = t.Callable[[t.Any, str], t.Any]


def split_port(text: str, option: str = "ports") -> tuple[str | None, int, int, str]:
    """(host address or ``None`` for all, host port, guest port, ``tcp`` or ``udp``) of ``[ip:]8080:80[/udp]``.

    :raises InputError: anything else.
    """
    match = _PORT_RE.match(text)
    if not match:
        raise InputError(f"'{text}' is not a port to publish", option, _port_hint(text))
    address, host, guest, protocol = match.groups()
    for number in (host, guest):
        if not 1 <= int(number) <= 65535:
            raise InputError(f"{number} is not a port number", option, "Ports go from 1 to 65535.")
    address = check_ip(address, option) if address else None
    return (None if address == "0.0.0.0" else address), int(host), int(guest), protocol or "tcp"


def _port_hint(text: str) -> str:
    if not text.isdigit():
        return "Write it as '8080:80' or '10.0.0.1:53:53/udp'."
    if len(text) < 6 and 1 <= int(text) <= 65535:
        other = "80" if text == "8080" else "8080"
        return f"Name two ports, the host's and the guest's: '{text}:{text}' or '{other}:{text}'."
    return "Put it into quotation marks, '8080:22': YAML reads a bare 8080:22 as one number."


def port(value: t.Any, option: str) -> str:
    address, host, guest, protocol = split_port(str(value).strip(), option)
    return f"{address + ':' if address else ''}{host}:{guest}{'/udp' if protocol == 'udp' else ''}"


def port_range(value: t.Any, option: str) -> list[str]:
    """The ports that ``8000-8010:9000-9010`` stands for, or the one that is given."""
    text = str(value).strip()
    match = _RANGE_RE.match(text)
    if not match:
        return [port(text, option)]
    address, first, last, guest_first, guest_last, protocol = match.groups()
    count = int(last) - int(first)
    if count < 0 or count != int(guest_last) - int(guest_first):
        raise InputError(
            f"'{text}' does not lead as many ports to as many", option, "Write it as '8000-8010:9000-9010'."
        )
    if count >= MAX_PORTS:
        raise InputError(f"'{text}' has {count + 1} ports", option, f"At most {MAX_PORTS} are possible.")
    return [
        port(f"{address or ''}{int(first) + step}:{int(guest_first) + step}{protocol or ''}", option)
        for step in range(count + 1)
    ]


def choice(*choices: str) -> Check:
    def check(value: t.Any, option: str) -> str:
        if value not in choices:
            raise InputError(f"'{value}' is not known", option, f"Choose one of {', '.join(choices)}.")
        return str(value)

    return check


def whole(value: t.Any, option: str) -> int:
    if isinstance(value, bool) or not re.match(r"^[0-9]{1,18}\Z", str(value)):
        raise InputError(f"'{value}' is not a whole number", option, "Write digits only.")
    return int(value)


def integer(minimum: int, maximum: int) -> Check:
    def check(value: t.Any, option: str) -> int:
        number = whole(value, option)
        if not minimum <= number <= maximum:
            raise InputError(f"{number} is out of range", option, f"It goes from {minimum} to {maximum}.")
        return number

    return check


def queue(minimum: int, default: int) -> Check:
    def check(value: t.Any, option: str) -> int:
        number = whole(value, option)
        if number == 0:  # the Go engine's word for its default
            return default
        if not minimum <= number <= 1024 or number & (number - 1):
            raise InputError(f"{number} is not a queue size", option, f"Use a power of two from {minimum} to 1024.")
        return number

    return check


def seconds(value: t.Any, option: str) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if isinstance(value, bool) or not 0 <= seconds <= 86400 * 7:
        raise InputError(f"'{value}' is not a time in seconds", option, "Use a number of seconds, at most a week.")
    return seconds


def flag(value: t.Any, option: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"'{value}' is not true or false", option, "Write true or false.")
    return value


def size(minimum: int, unit: int) -> Check:
    def check(value: t.Any, option: str) -> int:
        if isinstance(value, bool):
            raise InputError(f"'{value}' is not a size", option, "Use a whole number with K, M, G or T, such as 512M.")
        size = parse_size(value, option, minimum)
        if size % unit:
            raise InputError(f"{value} is not a multiple of {format_size(unit)}", option, "Round it.")
        if size >= 1 << 56:
            raise InputError(f"{value} is too large", option, "No host has that much.")
        return size

    return check


def balloon(value: t.Any, option: str) -> t.Any:
    """``off`` or bytes; YAML turns a bare ``off`` into false."""
    if value is True:
        raise InputError("needs a size", option, "Say how much memory the balloon takes, such as 256M, or off.")
    if value is False or str(value).strip().lower() in OFF_WORDS:
        return "off"
    return size(0, MIB)(value, option)


def line(what: str, maximum: int, empty: bool = False) -> Check:
    """One line of printable text; the value is not repeated in the error, it may be a secret."""

    def check(value: t.Any, option: str) -> str:
        if isinstance(value, (dict, list, tuple)):
            raise InputError(f"{what} is one line of text, not a list or a mapping", option, "Write a string.")
        text = str(value)
        if not text.strip() and not empty:
            raise InputError(f"{what} is empty", option, "Leave the option out instead.")
        if _CONTROL_RE.search(text) or len(text) > maximum:
            raise InputError(
                f"{what} is too long or not one line", option, f"Use one line of at most {maximum} characters."
            )
        return text

    return check


def name(value: t.Any, option: str) -> str:
    if isinstance(value, (dict, list, tuple)):
        raise InputError("is not a name", option, "Write one word.")
    return check_name(str(value), option)


def image(value: t.Any, option: str) -> str:
    if not _IMAGE_RE.match(str(value)):
        raise InputError(f"'{value}' is not an image's name or digest", option, "Name one as cocoon_image does.")
    return str(value)


def snapshot(value: t.Any, option: str) -> str:
    if not _SNAPSHOT_RE.match(str(value)):
        raise InputError(f"'{value}' is not a snapshot's name", option, "Name one as cocoon_snapshot does.")
    return str(value)


def kernel_args(value: t.Any, option: str) -> str:
    return " ".join(line("the kernel command line", MAX_KERNEL_ARGS, empty=True)(value, option).split())


def words(value: t.Any, option: str) -> list[str]:
    """A list of words, or text that is split into them as a shell would."""
    if isinstance(value, str):
        try:
            value = shlex.split(value)
        except ValueError as exc:
            raise InputError(f"cannot be split into words: {exc}", option, "Write it as a list of words.") from None
    return list_of(value, option, word)


def word(value: t.Any, option: str) -> str:
    if isinstance(value, (bool, dict, list, tuple)) or value is None:
        raise InputError("is not a word", option, 'Put it into quotation marks: "true".')
    if "\0" in str(value) or len(str(value).encode()) > MAX_WORD:
        raise InputError(f"is not a word of at most {format_size(MAX_WORD)}", option, "Have the guest read a file.")
    return str(value)


def environment(value: t.Any, option: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise InputError("is not a mapping", option, "Give variables as NAME: value.")
    for name in value:
        if not _VARIABLE_RE.match(str(name)):
            raise InputError(f"'{name}' is not the name of a variable", option, "Use letters, digits and underscores.")
    return {str(name): word(entry, f"{option}.{name}") for name, entry in value.items()}


def secret_environment(value: t.Any, option: str) -> dict[str, Secret]:
    return {name: Secret(entry) for name, entry in environment(value, option).items()}


def working_dir(value: t.Any, option: str) -> str:
    text = line("the folder", 4096, empty=True)(value, option)
    if text and not text.startswith("/"):
        raise InputError(f"'{text}' is not an absolute path", option, "Begin it with a slash.")
    return text


def user(value: t.Any, option: str) -> str:
    if not USER_RE.match(str(value)):
        raise InputError(
            f"'{value}' is not a user name", option, "Use lower case letters, digits, _ and -, at most 32."
        )
    return str(value)


def password(value: t.Any, option: str) -> Secret:
    from ansible_collections.cocoon.microvm.plugins.module_utils._planning import login

    return Secret(login.check_password(line("the password", 1024)(value, option), option))


def ssh_keys(value: t.Any, option: str) -> list[str]:
    """Ansible makes a list of the text of a file, at its commas, which options and comments of keys may have."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._planning import login

    try:
        texts = list_of(value, option, lambda text, where: login.keys(str(text), where), 256)
    except InputError:
        if not isinstance(value, list) or len(value) < 2:
            raise
        with contextlib.suppress(InputError):
            return login.keys(",".join(map(str, value)), option)
        raise
    return [key for found in texts for key in found]


def hostname(value: t.Any, option: str) -> str:
    return check_host_name(str(value), option) if value != "" else ""


def user_data(value: t.Any, option: str) -> Secret:
    from ansible_collections.cocoon.microvm.plugins.module_utils._planning import user_data as cloud

    return Secret(cloud.check(value, option))


def list_of(value: t.Any, option: str, check: Check, maximum: int = 1024) -> list[t.Any]:
    if not isinstance(value, (list, tuple)):
        raise InputError("is not a list", option, "Write a list, even of one.")
    if len(value) > maximum:
        raise InputError(f"{len(value)} are too many", option, f"At most {maximum} are possible.")
    return [check(entry, f"{option}[{index}]") for index, entry in enumerate(value)]


def mapping_of(value: t.Any, option: str, checks: t.Mapping[str, Check]) -> Definition:
    if not isinstance(value, dict):
        raise InputError("is not a mapping", option, f"Give {', '.join(checks)}.")
    result = {}
    for key, entry in value.items():
        if entry is None:
            continue
        if key not in checks:
            raise InputError("is not an option here", f"{option}.{key}", f"Give {', '.join(checks)}.")
        result[key] = checks[key](entry, f"{option}.{key}")
    return result


def nics(checks: t.Mapping[str, Check]) -> Check:
    return lambda value, option: list_of(value, option, lambda entry, where: mapping_of(entry, where, checks), MAX_NICS)


def routes(value: t.Any, option: str) -> list[Definition]:
    routes = list_of(value, option, lambda entry, where: mapping_of(entry, where, _ROUTE_CHECKS), MAX_ROUTES)
    seen: set[tuple[str, int]] = set()
    for index, route in enumerate(routes):
        where = f"{option}[{index}].to"
        if "to" not in route:
            raise InputError("is missing", where, "Say where the route leads, such as 10.0.0.0/8.")
        if route.get("via") and is_6(route["via"]) != is_6(route["to"]):
            raise InputError(
                f"{route['via']} is no next hop to {route['to']}", f"{option}[{index}].via", "Name one of its family."
            )
        key = (route["to"], route.get("metric", 0))
        if key in seen:
            raise InputError(f"{route['to']} is there twice", where, "Give one of them a metric.")
        seen.add(key)
    return routes


def limits(value: t.Any, option: str) -> Definition:
    return mapping_of(value, option, {"rx": _limit, "tx": _limit})


def _limit(value: t.Any, option: str) -> Definition:
    found = mapping_of(value, option, {"rate": size(MIN_RATE, 1), "burst": size(MIN_BURST, 1)})
    if "rate" not in found:
        raise InputError("is missing", f"{option}.rate", "Say how many bytes a second, such as 10M.")
    if found.get("burst", 0) > MAX_BURST:
        raise InputError(f"{found['burst']} is too large", f"{option}.burst", "The kernel takes less than 4G.")
    return {"burst": min(max(found["rate"] // 10, MIN_BURST), MAX_BURST), **found}


def disk_limits(value: t.Any, option: str) -> Definition:
    """``{total|read|write: {rate, burst, iops}}``; ``{}`` for none."""
    found = mapping_of(value, option, dict.fromkeys(("total", "read", "write"), _disk_limit))
    if "total" in found and len(found) > 1:
        raise InputError("limits reads and writes together", f"{option}.total", "Give it alone, or read and write.")
    return found


def _disk_limit(value: t.Any, option: str) -> Definition:
    rate = size(MIN_DISK_RATE, 1)
    found = mapping_of(value, option, {"rate": rate, "burst": rate, "iops": integer(1, MAX_IOPS)})
    if not found:
        raise InputError("says nothing", option, "Give rate, iops or both.")
    if "burst" in found and "rate" not in found:
        raise InputError("is missing", f"{option}.rate", "Say how many bytes a second, such as 10M.")
    for field in ("rate", "burst"):
        if found.get(field, 0) > MAX_DISK_RATE:
            raise InputError(f"{found[field]} is too large", f"{option}.{field}", "At most 1T is possible.")
    if found.get("burst", found.get("rate", 0)) < found.get("rate", 0):
        raise InputError("is less than what comes in a second", f"{option}.burst", "Give at least rate.")
    return {**({"burst": found["rate"]} if "rate" in found else {}), **found}


def disk_name(value: t.Any, option: str) -> str:
    if not DISK_NAME_RE.match(str(value)):
        raise InputError(
            f"'{value}' is not a disk name",
            option,
            "Use lower case letters, digits, _ and -, at most 20, beginning with a letter and not with cocoon-.",
        )
    return str(value)


def mac(value: t.Any, option: str) -> str:
    return check_mac(str(value), option)


def address(value: t.Any, option: str) -> str:
    return check_ip(str(value), option)


def address6(value: t.Any, option: str) -> str:
    return check_ip6(str(value), option)


def gateway6(value: t.Any, option: str) -> str:
    """A next hop, which may be an address of the link."""
    import ipaddress

    try:
        found = ipaddress.IPv6Address(str(value).strip())
    except ValueError:
        raise InputError(f"'{value}' is not an IPv6 address", option, "Write it as fd00:1:2:3::1 or fe80::1.") from None
    if found.is_link_local and "%" not in str(value):
        return str(found)
    return address6(value, option)


def next_hop(value: t.Any, option: str) -> str:
    return gateway6(value, option) if is_6(str(value)) else address(value, option)


def data_disks(checks: t.Mapping[str, Check]) -> Check:
    """Data disks of these fields, each with a name of its own."""

    def check(value: t.Any, option: str) -> list[Definition]:
        disks = list_of(value, option, lambda entry, where: mapping_of(entry, where, checks), MAX_DATA_DISKS)
        _check_disk_names(disks, option)
        return disks

    return check


def _check_disk_names(disks: t.Sequence[Definition], option: str) -> None:
    seen = set()
    for index, disk in enumerate(disks):
        where = f"{option}[{index}].name"
        if "name" not in disk:
            raise InputError("is missing", where, "Every data disk needs a name.")
        if disk["name"] in seen:
            raise InputError(f"'{disk['name']}' is there twice", where, "Give every data disk a name of its own.")
        seen.add(disk["name"])


def ports(value: t.Any, option: str) -> list[str]:
    found = [single for several in list_of(value, option, port_range, MAX_PORTS) for single in several]
    if len(found) > MAX_PORTS:
        raise InputError(f"{len(found)} ports are too many", option, f"At most {MAX_PORTS} are possible.")
    return found


def labels(value: t.Any, option: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise InputError("is not a mapping", option, "Give labels as key: value.")
    return check_labels(value, option)


def pattern(value: t.Any, option: str) -> str:
    try:
        re.compile(str(value))
    except re.error as exc:
        raise InputError(f"'{value}' is not a regular expression: {exc}", option, "Escape its special signs.") from None
    return str(value)


_ROUTE_CHECKS: dict[str, Check] = {
    "to": lambda value, option: check_route(str(value), option),
    "via": next_hop,
    "metric": integer(1, MAX_METRIC),
}
