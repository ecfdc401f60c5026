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


class DefinitionError(Exception):
    """A definition in the inventory that cannot be meant; the message names its variable or host."""


def plain(value: t.Any) -> t.Any:
    """*value* with plain dicts and lists, so that nothing is templated, or changed in place, later on."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(inner) for inner in value]
    return value


def merge(base: Mapping[str, t.Any], over: Mapping[str, t.Any]) -> Definition:
    """*base* overridden by *over*: dictionaries merge, everything else is replaced, ``None`` takes a key away."""
    merged = dict(base)
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            inner = merged.get(key)
            merged[key] = merge(inner if isinstance(inner, Mapping) else {}, value)
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
    if not isinstance(definition, Mapping):
        raise DefinitionError(f"{variable}: '{name}' must be a dictionary of options, not {type(definition).__name__}")
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
        if not isinstance(item, Mapping) or not item.get("name"):
            raise DefinitionError(f"{variable}: item {number} has no 'name'")
        name = str(item["name"])
        if name in found:
            raise DefinitionError(f"{variable}: '{name}' is there twice")
        found[name] = _named(variable, name, item)
    return found


def merge_variables(variables: Mapping[str, t.Any], base: str, defaults: t.Any = None) -> list[Definition]:
    """All definitions of *base* and its suffixed variables, merged by name, in the order of their first mention.

    :param defaults: options that apply where a definition does not have them.
    """
    merged: dict[str, Definition] = {}
    for variable in ordered(variables, base):
        for name, definition in by_name(variable, variables[variable]).items():
            merged[name] = merge(merged.get(name) or merge({}, defaults or {}), definition)
    return list(merged.values())


def with_defaults(definitions: t.Iterable[Definition], defaults: t.Any) -> list[Definition]:
    """Each definition over *defaults*.

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


def needing(definitions: t.Iterable[Definition], images: t.Container[str], networks: t.Container[str]) -> list[str]:
    """Names of the VMs that need one of *images* or *networks*, which are not there yet."""
    found = []
    for definition in definitions:
        nics = definition.get("nics") or [{}]
        used = [nic.get("network") or definition.get("network") for nic in nics if isinstance(nic, Mapping)]
        if definition.get("image") in images or any(network in networks for network in used):
            found.append(definition["name"])
    return found


def vm_variables(variables: Mapping[str, t.Any]) -> list[str]:
    """The names of the variables that make up the VM of an inventory host, in the order of merging."""
    names = (name for name in variables if name == VM_VARIABLE or str(name).startswith(f"{VM_VARIABLE}_"))
    return ordered(names, VM_VARIABLE)


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


def host_definition(host: str, variables: Mapping[str, t.Any]) -> Definition:
    """The VM that the inventory host *host* is; its name is the host's unless ``cocoon_vm`` says otherwise."""
    names = vm_variables(variables)
    if not names:
        raise DefinitionError(f"host '{host}' has {HOST_VARIABLE} but no {VM_VARIABLE}")
    merged: Definition = {"name": host}
    for variable in names:
        value = variables[variable]
        if value is not None and not isinstance(value, Mapping):
            raise DefinitionError(f"host '{host}': {variable} must be a dictionary of options")
        merged = merge(merged, value or {})
    return {**merged, "name": str(merged.get("name") or host)}


def host_definitions(hostvars: Mapping[str, Mapping[str, t.Any]], hosts: t.Iterable[str]) -> list[Definition]:
    """The VMs that the inventory hosts *hosts* are."""
    return [host_definition(host, hostvars[host]) for host in hosts]
