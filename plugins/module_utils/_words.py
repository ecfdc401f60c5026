# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values in messages: as users write them, who know YAML and not Python."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping


def plainly(value: t.Any) -> str:
    """A value on one line. What a dictionary leaves open is left out."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {plainly(item)}" for key, item in value.items() if item is not None) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(plainly, value)) + "]"
    return str(value)


def invalid(error: t.Any) -> str:
    """Where in a document what is that its JSON schema has something against; jsonschema itself shows it in Python."""
    where = ".".join(str(part) for part in error.absolute_path) or "the whole"
    return f"{where[:80]}: {_broken(error)[:200]}"


def _broken(error: t.Any) -> str:
    rule, wanted, value = error.validator, error.validator_value, error.instance
    if rule == "type":
        return f"not of type {wanted if isinstance(wanted, str) else ' or '.join(wanted)}"
    if rule == "required":
        return f"{', '.join(key for key in wanted if key not in value)} is missing"
    if rule == "additionalProperties":
        known = error.schema.get("properties", {})
        return f"{', '.join(str(key) for key in value if key not in known)} is not expected there"
    if rule == "enum":
        return f"none of {', '.join(map(plainly, wanted))}"
    if rule == "pattern":
        return f"does not match {wanted}"
    return f"against the rule {rule}: {plainly(wanted)}"
