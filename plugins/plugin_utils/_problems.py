# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of the modules, on the controller: by the same argument spec, and by the same checks of values."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping, Sequence

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.errors import UnsupportedError

from ansible_collections.cocoon.microvm.plugins.module_utils._argspec import (
    IMAGE_RULES,
    Spec,
    image_options,
    network_options,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.definition import place, validate_all
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import OPTIONS, listed_vm_options
from ansible_collections.cocoon.microvm.plugins.plugin_utils._definitions import Definition, plain

# Options whose values no message may repeat, as Ansible's do where a value is of a wrong type.
HIDDEN = (*(row.name for row in OPTIONS.values() if row.spec.get("no_log")), "registry_password")


def problems(definitions: t.Sequence[Definition]) -> list[str]:
    """What is wrong with VM definitions: first with the options, and where those are right, with their values."""
    found, items = _checked("vms", definitions, listed_vm_options())
    if not found:
        try:
            validate_all(items)
        except InputError as exc:
            found.append(str(exc))
    return found


def site_problems(arguments: t.Mapping[str, t.Any]) -> list[str]:
    """What is wrong with the options of a site's networks, images and VMs; their values are the module's to check."""
    kinds: tuple[tuple[str, Spec, dict[str, t.Any]], ...] = (
        ("networks", network_options(), {}),
        ("images", image_options(), IMAGE_RULES),
        ("vms", listed_vm_options(), {}),
    )
    return [
        line for kind, spec, rules in kinds for line in _checked(kind, _listed(arguments.get(kind)), spec, **rules)[0]
    ]


def _listed(value: t.Any) -> t.Sequence[Definition]:
    """The dictionaries of an option; that it is a list of such is the module's to check."""
    items = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    return items if all(isinstance(item, Mapping) for item in items) else ()


def _checked(
    kind: str, definitions: t.Sequence[Definition], spec: t.Mapping[str, t.Any], **rules: t.Any
) -> tuple[list[str], list[dict[str, t.Any]]]:
    """What an argument spec has against some definitions, and what it makes of them."""
    found: list[str] = []
    items: list[dict[str, t.Any]] = []
    validator = ArgumentSpecValidator(spec, **rules)
    for number, definition in enumerate(definitions):
        result = validator.validate(plain(definition))
        found += [place(kind, number, definition.get("name")) + _said(definition, error) for error in result.errors]
        items.append(result.validated_parameters)
    return found, items


def _said(definition: Definition, error: Exception) -> str:
    """Ansible's own words, whole and without secrets: it names options that it does not know, and says no more."""
    message = f"unknown options: {error}" if isinstance(error, UnsupportedError) else str(error)
    if any(definition.get(option) and str(definition[option]) in message for option in HIDDEN):
        return "a secret option is of a wrong type"
    return message
