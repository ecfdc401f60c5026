# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of the modules, on the controller: by the same argument spec, and by the same checks of values."""

from __future__ import annotations

import typing as t

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.errors import UnsupportedError

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.definition import validate_all
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import OPTIONS, vm_options
from ansible_collections.cocoon.microvm.plugins.plugin_utils._definitions import Definition, plain

# Options whose values no message may repeat, as Ansible's do where a value is of a wrong type.
HIDDEN = tuple(row.name for row in OPTIONS.values() if row.spec.get("no_log"))


def problems(definitions: t.Sequence[Definition]) -> list[str]:
    """What is wrong with VM definitions: first with the options, and where those are right, with their values."""
    found: list[str] = []
    items: list[dict[str, t.Any]] = []
    validator = ArgumentSpecValidator({**vm_options(), "count": {"type": "int"}})
    for number, definition in enumerate(definitions):
        place = f"vms[{number}] ({definition.get('name')}): "
        result = validator.validate(plain(definition))
        found += [place + _said(definition, error) for error in result.errors]
        items.append(result.validated_parameters)
    if not found:
        try:
            validate_all(items)
        except InputError as exc:
            found.append(str(exc))
    return found


def _said(definition: Definition, error: Exception) -> str:
    """Ansible's own words, whole and without secrets: it names options that it does not know, and says no more."""
    message = f"unknown options: {error}" if isinstance(error, UnsupportedError) else str(error)
    if any(definition.get(option) and str(definition[option]) in message for option in HIDDEN):
        return "a secret option is of a wrong type"
    return message
