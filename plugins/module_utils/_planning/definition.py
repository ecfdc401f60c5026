# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VM definitions: what a user wrote, checked and brought into one form, with only the keys that were given."""

from __future__ import annotations

import re
import shlex
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._network.settings import MAX_ROUTES, check_route
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import login, user_data
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.defaults import (
    DEFAULTS,
    DISK_UNIT,
    MAX_CPU,
    MAX_DATA_DISKS,
    MAX_NICS,
    MEMORY_UNIT,
    MIN_CPU,
    MIN_MEMORY,
    MIN_STORAGE,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import BIOS, UEFI, Definition, Secret
from ansible_collections.cocoon.microvm.plugins.module_utils._types import (
    DISK_NAME_RE,
    HYPERVISORS,
    MIB,
    MIN_DATA_DISK,
    USER_RE,
    check_host_name,
    check_ip,
    check_mac,
    check_name,
    format_size,
    parse_size,
)

STATES = ("present", "started", "stopped", "restarted", "paused", "hibernated", "absent")
OFF_WORDS = ("off", "false", "no", "none")
MAX_KERNEL_ARGS = 1024
MAX_COUNT = 1000
MAX_WORD = 64 << 10
MAX_METRIC = (1 << 32) - 1

_PORT_RE = re.compile(r"^(?:([0-9]{1,3}(?:\.[0-9]{1,3}){3}):)?([0-9]{1,5}):([0-9]{1,5})(?:/(tcp|udp))?\Z")
_IMAGE_RE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,254}\Z")
_SNAPSHOT_RE = re.compile(r"^[a-zA-Z0-9][a-zA-Z0-9._:/-]{0,62}\Z")
_VARIABLE_RE = re.compile(r"^[A-Za-z_][A-Za-z0-9_.-]{0,255}\Z")
_CONTROL_RE = re.compile(r"[\x00-\x1f\x7f]")

Check = t.Callable[[t.Any, str], t.Any]


def normalise(item: t.Mapping[str, t.Any], prefix: str = "") -> Definition:
    """A definition from the module parameters of one VM.

    Keys that are ``None`` were not given and are dropped, inside ``nics`` and ``data_disks`` too. Sizes become
    bytes, MACs lower case, ports ``[ip:]8080:80[/udp]``; the password becomes a :class:`Secret`.

    :param prefix: put before the option's name in an error, such as ``vms[3].``.
    :raises InputError: names the option.
    """
    definition: Definition = {}
    for option, value in item.items():
        if value is None:
            continue
        check = _CHECKS.get(option)
        if check is None:
            raise InputError("is not an option of a VM", prefix + option, f"The options are {', '.join(_CHECKS)}.")
        definition[option] = check(value, prefix + option)
    if "name" not in definition:
        raise InputError("is missing", prefix + "name", "Every VM needs a name.")
    if definition.get("disks_only") and "snapshot" not in definition:
        raise InputError("is for clones", prefix + "disks_only", "Name a snapshot to clone, or leave it out.")
    if "user_data" in definition and any(option in definition for option in ("user", "password", "ssh_keys")):
        user_data.check_accounts(definition["user_data"], prefix + "user_data")
    return definition


def validate_all(items: t.Sequence[t.Mapping[str, t.Any]], option: str | None = "vms") -> list[Definition]:
    """The definitions of one task; all their errors in one, and what two of them may not share.

    :param option: the list's name for errors (``vms[3].cpu``); ``None`` for a module of one VM.
    :raises InputError: every bad option of every item; names, MACs, addresses or host ports given twice.
    """
    named: list[tuple[str, Definition]] = []
    errors: list[InputError] = []
    for number, item in enumerate(items):
        prefix = f"{option}[{number}]." if option else ""
        try:
            named += [(prefix, definition) for definition in _several(item, prefix)]
        except InputError as exc:
            errors.append(exc)
    if not errors:
        errors = _clashes(named)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise InputError("; ".join(str(error).rstrip(".") for error in errors))
    return [definition for _prefix, definition in named]


def _several(item: t.Mapping[str, t.Any], prefix: str) -> list[Definition]:
    """The definitions that one item stands for: with ``count`` as many, called ``<name>-1`` and so on."""
    definition = normalise({option: value for option, value in item.items() if option != "count"}, prefix)
    if item.get("count") is None:
        return [definition]
    count = _integer(1, MAX_COUNT)(item["count"], f"{prefix}count")
    names = [check_name(f"{definition['name']}-{number}", f"{prefix}name") for number in range(1, count + 1)]
    return [{**definition, "name": name} for name in names]


def _clashes(definitions: list[tuple[str, Definition]]) -> list[InputError]:
    """What is given twice although there can be one of it on a host."""
    errors = []
    seen: dict[tuple[str, ...], tuple[str, str]] = {}
    for prefix, definition in definitions:
        for key, text, where in _unique(definition):
            mine = (definition["name"], prefix + where)
            holder, first = seen.setdefault(key, mine)
            if (holder, first) != mine:
                errors.append(InputError(f"{text} is given already by {first}", prefix + where, "Give it once."))
    return errors + _port_clashes(definitions)


def _unique(definition: Definition) -> t.Iterator[tuple[tuple[str, ...], str, str]]:
    yield ("name", definition["name"]), f"'{definition['name']}'", "name"
    if definition.get("state") == "absent":
        return
    for index, nic in enumerate(definition.get("nics", ())):
        if "mac" in nic:
            yield ("mac", nic["mac"]), nic["mac"], f"nics[{index}].mac"
        if "ip" in nic:
            network = nic.get("network") or definition.get("network") or f"of {definition['name']}"
            yield ("ip", network, nic["ip"]), nic["ip"], f"nics[{index}].ip"


def _port_clashes(definitions: list[tuple[str, Definition]]) -> list[InputError]:
    """Host ports published twice; no address means all of them, so it clashes with any."""
    errors = []
    taken: dict[tuple[int, str], list[tuple[str | None, str]]] = {}
    for prefix, definition in definitions:
        if definition.get("state") == "absent":
            continue
        for index, port in enumerate(definition.get("ports", ())):
            where = f"{prefix}ports[{index}]"
            address, host_port, _guest_port, protocol = split_port(port, where)
            others = taken.setdefault((host_port, protocol), [])
            for other, first in others:
                if address is None or other is None or address == other:
                    errors.append(InputError(f"{port} clashes with {first}", where, "Publish on another host port."))
                    break
            others.append((address, where))
    return errors


def split_port(text: str, option: str = "ports") -> tuple[str | None, int, int, str]:
    """(host address or ``None`` for all, host port, guest port, ``tcp`` or ``udp``) of ``[ip:]8080:80[/udp]``.

    :raises InputError: anything else.
    """
    match = _PORT_RE.match(text)
    if not match:
        hint = "Write it in quotes: YAML reads a bare 8080:22 as a number" if text.isdigit() else "Write it"
        raise InputError(f"'{text}' is not a port to publish", option, f"{hint} as '8080:80' or '10.0.0.1:53:53/udp'.")
    address, host, guest, protocol = match.groups()
    for number in (host, guest):
        if not 1 <= int(number) <= 65535:
            raise InputError(f"{number} is not a port number", option, "Ports go from 1 to 65535.")
    address = check_ip(address, option) if address else None
    return (None if address == "0.0.0.0" else address), int(host), int(guest), protocol or "tcp"


def _port(value: t.Any, option: str) -> str:
    address, host, guest, protocol = split_port(str(value).strip(), option)
    return f"{address + ':' if address else ''}{host}:{guest}{'/udp' if protocol == 'udp' else ''}"


def _choice(*choices: str) -> Check:
    def check(value: t.Any, option: str) -> str:
        if value not in choices:
            raise InputError(f"'{value}' is not known", option, f"Choose one of {', '.join(choices)}.")
        return str(value)

    return check


def _whole(value: t.Any, option: str) -> int:
    if isinstance(value, bool) or not re.match(r"^[0-9]{1,18}\Z", str(value)):
        raise InputError(f"'{value}' is not a whole number", option, "Write digits only.")
    return int(value)


def _integer(minimum: int, maximum: int) -> Check:
    def check(value: t.Any, option: str) -> int:
        number = _whole(value, option)
        if not minimum <= number <= maximum:
            raise InputError(f"{number} is out of range", option, f"It goes from {minimum} to {maximum}.")
        return number

    return check


def _queue(name: str, minimum: int) -> Check:
    def check(value: t.Any, option: str) -> int:
        number = _whole(value, option)
        if number == 0:  # the Go engine's word for its default
            return int(DEFAULTS[name])
        if not minimum <= number <= 1024 or number & (number - 1):
            raise InputError(f"{number} is not a queue size", option, f"Use a power of two from {minimum} to 1024.")
        return number

    return check


def _seconds(value: t.Any, option: str) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if isinstance(value, bool) or not 0 <= seconds <= 86400 * 7:
        raise InputError(f"'{value}' is not a time in seconds", option, "Use a number of seconds, at most a week.")
    return seconds


def _flag(value: t.Any, option: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"'{value}' is not true or false", option, "Write true or false.")
    return value


def _size(minimum: int, unit: int) -> Check:
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


def _balloon(value: t.Any, option: str) -> t.Any:
    """``off`` or bytes; YAML turns a bare ``off`` into false."""
    if value is True:
        raise InputError("needs a size", option, "Say how much memory the balloon takes, such as 256M, or off.")
    if value is False or str(value).strip().lower() in OFF_WORDS:
        return "off"
    return _size(0, MIB)(value, option)


def _line(what: str, maximum: int, empty: bool = False) -> Check:
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


def _name(value: t.Any, option: str) -> str:
    return check_name(str(value), option)


def _image(value: t.Any, option: str) -> str:
    if not _IMAGE_RE.match(str(value)):
        raise InputError(f"'{value}' is not an image's name or digest", option, "Name one as cocoon_image does.")
    return str(value)


def _snapshot(value: t.Any, option: str) -> str:
    if not _SNAPSHOT_RE.match(str(value)):
        raise InputError(f"'{value}' is not a snapshot's name", option, "Name one as cocoon_snapshot does.")
    return str(value)


def _kernel_args(value: t.Any, option: str) -> str:
    return " ".join(_line("the kernel command line", MAX_KERNEL_ARGS, empty=True)(value, option).split())


def _words(value: t.Any, option: str) -> list[str]:
    """A list of words, or text that is split into them as a shell would."""
    if isinstance(value, str):
        try:
            value = shlex.split(value)
        except ValueError as exc:
            raise InputError(f"cannot be split into words: {exc}", option, "Write it as a list of words.") from None
    return _list(value, option, _word)


def _word(value: t.Any, option: str) -> str:
    if isinstance(value, (bool, dict, list, tuple)) or value is None:
        raise InputError("is not a word", option, 'Put it into quotation marks: "true".')
    if "\0" in str(value) or len(str(value).encode()) > MAX_WORD:
        raise InputError(f"is not a word of at most {format_size(MAX_WORD)}", option, "Have the guest read a file.")
    return str(value)


def _environment(value: t.Any, option: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise InputError("is not a mapping", option, "Give variables as NAME: value.")
    for name in value:
        if not _VARIABLE_RE.match(str(name)):
            raise InputError(f"'{name}' is not the name of a variable", option, "Use letters, digits and underscores.")
    return {str(name): _word(entry, f"{option}.{name}") for name, entry in value.items()}


def _secret_environment(value: t.Any, option: str) -> dict[str, Secret]:
    return {name: Secret(entry) for name, entry in _environment(value, option).items()}


def _working_dir(value: t.Any, option: str) -> str:
    text = _line("the folder", 4096, empty=True)(value, option)
    if text and not text.startswith("/"):
        raise InputError(f"'{text}' is not an absolute path", option, "Begin it with a slash.")
    return text


def _user(value: t.Any, option: str) -> str:
    if not USER_RE.match(str(value)):
        raise InputError(
            f"'{value}' is not a user name", option, "Use lower case letters, digits, _ and -, at most 32."
        )
    return str(value)


def _password(value: t.Any, option: str) -> Secret:
    return Secret(login.check_password(_line("the password", 1024)(value, option), option))


def _ssh_keys(value: t.Any, option: str) -> list[str]:
    texts = _list(value, option, lambda text, where: login.keys(str(text), where), 256)
    return [key for found in texts for key in found]


def _hostname(value: t.Any, option: str) -> str:
    return check_host_name(str(value), option) if value != "" else ""


def _user_data(value: t.Any, option: str) -> Secret:
    return Secret(user_data.check(value, option))


def _list(value: t.Any, option: str, check: Check, maximum: int = 1024) -> list[t.Any]:
    if not isinstance(value, (list, tuple)):
        raise InputError("is not a list", option, "Write a list, even of one.")
    if len(value) > maximum:
        raise InputError(f"{len(value)} are too many", option, f"At most {maximum} are possible.")
    return [check(entry, f"{option}[{index}]") for index, entry in enumerate(value)]


def _mapping(value: t.Any, option: str, checks: t.Mapping[str, Check]) -> Definition:
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


def _nics(value: t.Any, option: str) -> list[Definition]:
    return _list(value, option, lambda entry, where: _mapping(entry, where, _NIC_CHECKS), MAX_NICS)


def _routes(value: t.Any, option: str) -> list[Definition]:
    routes = _list(value, option, lambda entry, where: _mapping(entry, where, _ROUTE_CHECKS), MAX_ROUTES)
    seen: set[tuple[str, int]] = set()
    for index, route in enumerate(routes):
        where = f"{option}[{index}].to"
        if "to" not in route:
            raise InputError("is missing", where, "Say where the route leads, such as 10.0.0.0/8.")
        key = (route["to"], route.get("metric", 0))
        if key in seen:
            raise InputError(f"{route['to']} is there twice", where, "Give one of them a metric.")
        seen.add(key)
    return routes


def _disk_name(value: t.Any, option: str) -> str:
    if not DISK_NAME_RE.match(str(value)):
        raise InputError(
            f"'{value}' is not a disk name",
            option,
            "Use lower case letters, digits, _ and -, at most 20, beginning with a letter and not with cocoon-.",
        )
    return str(value)


def _data_disks(value: t.Any, option: str) -> list[Definition]:
    disks = _list(value, option, lambda entry, where: _mapping(entry, where, _DISK_CHECKS), MAX_DATA_DISKS)
    seen = set()
    for index, disk in enumerate(disks):
        where = f"{option}[{index}].name"
        if "name" not in disk:
            raise InputError("is missing", where, "Every data disk needs a name.")
        if disk["name"] in seen:
            raise InputError(f"'{disk['name']}' is there twice", where, "Give every data disk a name of its own.")
        seen.add(disk["name"])
    return disks


def _ports(value: t.Any, option: str) -> list[str]:
    return _list(value, option, _port, 256)


def _labels(value: t.Any, option: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise InputError("is not a mapping", option, "Give labels as key: value.")
    return {_LABEL(key, option): _LABEL_VALUE(entry, f"{option}.{key}") for key, entry in value.items()}


def _pattern(value: t.Any, option: str) -> str:
    try:
        re.compile(str(value))
    except re.error as exc:
        raise InputError(f"'{value}' is not a regular expression: {exc}", option, "Escape its special signs.") from None
    return str(value)


_LABEL = _line("a label", 256)
_LABEL_VALUE = _line("a label's value", 4096, empty=True)

_ROUTE_CHECKS: dict[str, Check] = {
    "to": lambda value, option: check_route(str(value), option),
    "via": lambda value, option: check_ip(str(value), option),
    "metric": _integer(1, MAX_METRIC),
}
_NIC_CHECKS: dict[str, Check] = {
    "network": _name,
    "mac": lambda value, option: check_mac(str(value), option),
    "ip": lambda value, option: check_ip(str(value), option),
    "default_route": _flag,
    "gateway": lambda value, option: check_ip(str(value), option),
    "metric": _integer(1, MAX_METRIC),
    "routes": _routes,
}
_DISK_CHECKS: dict[str, Check] = {
    "name": _disk_name,
    "size": _size(MIN_DATA_DISK, DISK_UNIT),
    "fstype": _choice("ext4", "none"),
    "attached": _flag,
}
_CHECKS: dict[str, Check] = {
    "name": _name,
    "state": _choice(*STATES),
    "hypervisor": _choice("auto", *HYPERVISORS),
    "accel": _choice("auto", "kvm", "tcg"),
    "image": _image,
    "snapshot": _snapshot,
    "cpu": _integer(MIN_CPU, MAX_CPU),
    "memory": _size(MIN_MEMORY, MEMORY_UNIT),
    "memory_backing": _choice("ram", "disk"),
    "storage": _size(MIN_STORAGE, DISK_UNIT),
    "queue_size": _queue("queue_size", 256),
    "disk_queue_size": _queue("disk_queue_size", 16),
    "network": _name,
    "nics": _nics,
    "ports": _ports,
    "data_disks": _data_disks,
    "user": _user,
    "password": _password,
    "ssh_keys": _ssh_keys,
    "user_data": _user_data,
    "hostname": _hostname,
    "firmware": _choice(UEFI, BIOS),
    "kernel_args": _kernel_args,
    "entrypoint": _words,
    "command": _words,
    "env": _environment,
    "secret_env": _secret_environment,
    "working_dir": _working_dir,
    "labels": _labels,
    "owner": _line("the owner", 256),
    "no_direct_io": _flag,
    "windows": _flag,
    "balloon": _balloon,
    "watchdog": _flag,
    "wait_for": _choice("process", "console", "ping", "port"),
    "wait_port": _integer(1, 65535),
    "wait_pattern": _pattern,
    "timeout": _seconds,
    "stop_timeout": _seconds,
    "pull": _choice("missing", "always", "never"),
    "allow_restart": _flag,
    "disks_only": _flag,
    "recreate": _flag,
    "force": _flag,
}
