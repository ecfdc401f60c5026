# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From inventory variables to lists of definitions: merging over groups, and VMs that are hosts themselves.

Nothing here guesses: what cannot be meant is an error that names the variable or the host.
"""

from __future__ import annotations

import typing as t
from collections.abc import Mapping, Sequence

Definition = dict[str, t.Any]

HOST_VARIABLE = "cocoon_host"
VM_VARIABLE = "cocoon_vm"
LIST_VARIABLE = "cocoon_vms"


class DefinitionError(Exception):
    """A definition in the inventory that cannot be meant; the message names its variable or host."""


def plain(value: t.Any) -> t.Any:
    """*value* with plain dicts and lists, so that nothing is templated, or changed in place, later on."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(inner) for inner in value]
    return value


def kind(value: t.Any) -> str:
    """What a value is, in words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "a dictionary"
    return "a list" if isinstance(value, Sequence) else "something else"


def misread_names(arguments: Mapping[str, t.Any]) -> str | None:
    """What is wrong with the names in a task's options that are no text to YAML: the modules would be given another.

    :returns: nothing, if they are all text.
    """
    named = [("name", arguments)]
    for option in ("networks", "images", "vms"):
        named += [(f"{option}[{number}].name", item) for number, item in enumerate(_items(arguments.get(option)))]
    for place, options in named:
        name = options.get("name") if isinstance(options, Mapping) else None
        if name is not None and not isinstance(name, str):
            return (
                f"{place}: '{name}' is {kind(name)} to YAML, which makes 83 of 0123, and true of on. Put the name into"
                " quotation marks, or through the filter string."
            )
    return None


def _items(value: t.Any) -> Sequence[t.Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else ()


def merge(base: Mapping[str, t.Any], over: Mapping[str, t.Any], keep_null: bool = False) -> Definition:
    """*base* overridden by *over*: dictionaries merge, everything else is replaced, ``None`` takes a key away.

    :param keep_null: leave ``None`` in its place, for another merge with what lies below.
    """
    merged = dict(base)
    for key, value in over.items():
        if value is None and not keep_null:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            inner = merged.get(key)
            merged[key] = merge(inner if isinstance(inner, Mapping) else {}, value, keep_null)
        else:
            merged[key] = plain(value)
    return merged


def ordered(names: t.Iterable[str], base: str) -> list[str]:
    """The order of merging: ``<base>_<suffix>`` sorted by name, then *base* itself, which has the last word."""
    return sorted(names, key=lambda name: (name == base, name))


def _named(variable: str, name: t.Any, definition: t.Any) -> Definition:
    """One definition with its name in it."""
    if definition is None:
        definition = {}
    if not isinstance(name, str):  # 0123 is 83 to YAML, and on is true
        raise DefinitionError(f"{variable}: the name '{name}' is {kind(name)} to YAML: put it into quotation marks")
    if not isinstance(definition, Mapping):
        raise DefinitionError(f"{variable}: '{name}' must be a dictionary of options, not {kind(definition)}")
    if str(definition.get("name", name)) != str(name):
        raise DefinitionError(f"{variable}: '{name}' says that its name is '{definition['name']}'")
    return {**definition, "name": str(name)}


def by_name(variable: str, value: t.Any) -> dict[str, Definition]:
    """The definitions of one variable, a dictionary by name or a list of items with ``name``.

    :raises DefinitionError: neither of the two, an item without a name, or a name twice.
    """
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return {str(name): _named(variable, name, definition) for name, definition in value.items()}
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise DefinitionError(f"{variable} must be a dictionary by name, or a list of items with 'name'")
    found: dict[str, Definition] = {}
    for number, item in enumerate(value, 1):
        if not isinstance(item, Mapping) or item.get("name") in (None, ""):
            raise DefinitionError(f"{variable}: item {number} has no 'name'")
        name = str(item["name"])
        if name in found:
            raise DefinitionError(f"{variable}: '{name}' is there twice")
        found[name] = _named(variable, item["name"], item)
    return found


def merge_variables(
    variables: Mapping[str, t.Any], base: str, defaults: t.Any = None, keep_null: bool = False
) -> list[Definition]:
    """All definitions of *base* and its suffixed variables, merged by name, in the order of their first mention.

    :param defaults: options that apply where a definition does not have them.
    :param keep_null: leave ``None`` in its place, for :func:`with_defaults`.
    """
    merged: dict[str, Definition] = {}
    for variable in ordered(variables, base):
        for name, definition in by_name(variable, variables[variable]).items():
            merged[name] = merge(merged.get(name) or merge({}, defaults or {}), definition, keep_null)
    return list(merged.values())


def with_defaults(definitions: t.Iterable[Definition], defaults: t.Any) -> list[Definition]:
    """Each definition over *defaults*, of which its nulls take options away.

    :raises DefinitionError: *defaults* is not a dictionary, or a name is there twice.
    """
    defaults = {} if defaults is None else defaults
    if not isinstance(defaults, Mapping):
        raise DefinitionError("cocoon_defaults must be a dictionary of options")
    if "name" in defaults:
        raise DefinitionError("cocoon_defaults cannot have a 'name'")
    found: dict[str, Definition] = {}
    for definition in definitions:
        name = definition["name"]
        if name in found:
            raise DefinitionError(
                f"VM '{name}' is defined twice for the same hypervisor: in cocoon_vms and as an inventory host"
            )
        found[name] = merge(merge({}, defaults), definition)
    return list(found.values())


def suffixed(variables: t.Iterable[str], base: str) -> list[str]:
    """Those of *variables* that are *base* or ``<base>_<suffix>``, in the order of merging."""
    return ordered((name for name in variables if name == base or str(name).startswith(f"{base}_")), base)


def declared(variables: Mapping[str, t.Any], base: str) -> list[str]:
    """The names that *base* and its suffixed variables have, sorted."""
    return sorted({name for variable in suffixed(variables, base) for name in by_name(variable, variables[variable])})


def vm_names(definition: Definition) -> list[str]:
    """The names of the VMs that a definition stands for: with ``count`` as many, ``<name>-1`` and so on."""
    count = definition.get("count")
    if count is None:
        return [definition["name"]]
    try:
        return [f"{definition['name']}-{number}" for number in range(1, int(count) + 1)]
    except (TypeError, ValueError):
        raise DefinitionError(f"VM '{definition['name']}': count '{count}' is not a number") from None


# What tells which VMs a definition stands for, and whether they are wanted.
OUTLINE = ("name", "state", "count")


def _outlined(value: t.Any) -> t.Any:
    """A variable's definitions with no more than their outlines: what is not looked at cannot fail to template."""
    if isinstance(value, Mapping):
        return {name: _outline(definition) for name, definition in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_outline(definition) for definition in value]
    return value


def _outline(definition: t.Any) -> t.Any:
    if not isinstance(definition, Mapping):
        return definition
    return {key: definition[key] for key in OUTLINE if key in definition}


def inventory_names(
    hostvars: Mapping[str, Mapping[str, t.Any]], vm_hosts: Mapping[str, t.Sequence[str]], hypervisor: str
) -> dict[str, str]:
    """What the inventory says of the VMs of *hypervisor*: the wanted state by name.

    :param vm_hosts: VM hosts by hypervisor.
    :raises DefinitionError: a definition that cannot be meant.
    """
    variables = hostvars[hypervisor]
    values = {name: _outlined(variables[name]) for name in suffixed(variables, LIST_VARIABLE)}
    listed = merge_variables(values, LIST_VARIABLE, keep_null=True)
    for host in vm_hosts.get(hypervisor) or ():
        found = hostvars[host]
        listed.append(host_definition(host, {name: _outline(found[name]) for name in vm_variables(found)}, True))
    base = _outline(variables.get("cocoon_defaults") or {})
    return {
        name: str(found.get("state") or "started")
        for definition in listed
        for found in [merge(base, definition)]
        for name in vm_names(found)
    }


def wanted_elsewhere(defined: Mapping[str, Mapping[str, str]], here: str) -> dict[str, str]:
    """The VMs that other hypervisors than *here* want, by name, each with its hypervisor.

    :param defined: wanted states by name by hypervisor, see :func:`inventory_names`.
    """
    others = ((host, names) for host, names in defined.items() if host != here)
    return {name: host for host, names in others for name, state in names.items() if state != "absent"}


def misplaced(
    defined: Mapping[str, Mapping[str, str]],
    here: str,
    existing: t.Container[str],
    there: Mapping[str, t.Iterable[str]],
) -> dict[str, str]:
    """The VMs that *here* would make anew although they are on another hypervisor, which the inventory does not list
    them for any more; by name, each with that hypervisor.

    :param existing: the VMs that are on *here*.
    :param there: names of the VMs that are on the others, by hypervisor.
    """
    wanted = {name for name, state in defined[here].items() if state != "absent" and name not in existing}
    return {
        name: host
        for host, names in there.items()
        if host != here
        for name in names
        if name in wanted and name not in defined.get(host, {})
    }


def vm_variables(variables: Mapping[str, t.Any]) -> list[str]:
    """The names of the variables that make up the VM of an inventory host, in the order of merging."""
    return suffixed(variables, VM_VARIABLE)


def invert(hostvars: Mapping[str, Mapping[str, t.Any]], hypervisors: t.Container[str] = ()) -> dict[str, list[str]]:
    """Which inventory hosts are VMs of which hypervisor: ``{"hv1": ["web1", "web2"]}``.

    :param hypervisors: hosts that may inherit ``cocoon_vm`` without being VMs.
    :raises DefinitionError: a VM without a hypervisor, or with one that is not in the inventory.
    """
    found: dict[str, list[str]] = {}
    for host in hostvars:
        variables = hostvars[host]
        if HOST_VARIABLE not in variables:
            if VM_VARIABLE in variables and host not in hypervisors:
                raise DefinitionError(f"host '{host}' has {VM_VARIABLE} but no {HOST_VARIABLE}: name its hypervisor")
            continue
        hypervisor = variables[HOST_VARIABLE]
        if not isinstance(hypervisor, str) or hypervisor not in hostvars:
            raise DefinitionError(f"host '{host}': {HOST_VARIABLE} '{hypervisor}' is not a host of the inventory")
        if hypervisor == host:
            raise DefinitionError(f"host '{host}' cannot be its own hypervisor ({HOST_VARIABLE})")
        found.setdefault(hypervisor, []).append(host)
    return found


def host_definition(host: str, variables: Mapping[str, t.Any], keep_null: bool = False) -> Definition:
    """The VM that the inventory host *host* is; its name is the host's unless ``cocoon_vm`` says otherwise.

    :param keep_null: leave ``None`` in its place, for :func:`with_defaults`.
    """
    names = vm_variables(variables)
    if not names:
        raise DefinitionError(f"host '{host}' has {HOST_VARIABLE} but no {VM_VARIABLE}")
    merged: Definition = {"name": host}
    for variable in names:
        value = variables[variable]
        if value is not None and not isinstance(value, Mapping):
            raise DefinitionError(f"host '{host}': {variable} must be a dictionary of options")
        merged = merge(merged, value or {}, keep_null)
    return {**merged, "name": str(merged.get("name") or host)}


def host_definitions(hostvars: Mapping[str, Mapping[str, t.Any]], hosts: t.Iterable[str]) -> list[Definition]:
    """The VMs that the inventory hosts *hosts* are, for :func:`with_defaults`."""
    return [host_definition(host, hostvars[host], keep_null=True) for host in hosts]
