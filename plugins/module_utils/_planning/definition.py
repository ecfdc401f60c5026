# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VM definitions: what a user wrote, checked and brought into one form, with only the keys that were given."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.checks import integer, split_port
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import Definition
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import OPTIONS
from ansible_collections.cocoon.microvm.plugins.module_utils._types import check_name

MAX_COUNT = 1000


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
        row = OPTIONS.get(option)
        if row is None:
            raise InputError("is not an option of a VM", prefix + option, f"The options are {', '.join(OPTIONS)}.")
        definition[option] = row.check(value, prefix + option)
    if "name" not in definition:
        raise InputError("is missing", prefix + "name", "Every VM needs a name.")
    if definition.get("disks_only") and "snapshot" not in definition:
        raise InputError("is for clones", prefix + "disks_only", "Name a snapshot to clone, or leave it out.")
    if "user_data" in definition and any(option in definition for option in ("user", "password", "ssh_keys")):
        from ansible_collections.cocoon.microvm.plugins.module_utils._planning import user_data

        user_data.check_accounts(definition["user_data"], prefix + "user_data")
    return definition


def validate_all(items: t.Sequence[t.Mapping[str, t.Any]], option: str | None = "vms") -> list[Definition]:
    """The definitions of one task; all their errors in one, and what two of them may not share.

    :param option: the list's name for errors (``vms[3] (web4): cpu``); ``None`` for a module of one VM.
    :raises InputError: every bad option of every item; names, MACs, addresses or host ports given twice.
    """
    named: list[tuple[str, Definition]] = []
    errors: list[InputError] = []
    for number, item in enumerate(items):
        prefix = place(option, number, item.get("name"))
        try:
            named += [(prefix, definition) for definition in _several(item, prefix)]
        except InputError as exc:
            errors.append(exc)
    raise_all(errors or _clashes(named))
    return [definition for _prefix, definition in named]


def raise_all(errors: t.Sequence[InputError]) -> None:
    """:raises InputError: there are any: all of them in one."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise InputError("; ".join(str(error).rstrip(".") for error in errors))


def place(option: str | None, number: int, name: t.Any) -> str:
    """What stands before an option's name in an error: ``vms[3] (web4): ``."""
    if not option:
        return ""
    return f"{option}[{number}] ({name}): " if name and isinstance(name, str) else f"{option}[{number}]."


def _several(item: t.Mapping[str, t.Any], prefix: str) -> list[Definition]:
    """The definitions that one item stands for: with ``count`` as many, also none, called ``<name>-1`` and so on."""
    definition = normalise({option: value for option, value in item.items() if option != "count"}, prefix)
    if item.get("count") is None:
        return [definition]
    count = integer(0, MAX_COUNT)(item["count"], f"{prefix}count")
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
        network = nic.get("network") or definition.get("network") or f"of {definition['name']}"
        for key in ("ip", "ip6"):
            if key in nic:
                yield ("ip", network, nic[key]), nic[key], f"nics[{index}].{key}"


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
