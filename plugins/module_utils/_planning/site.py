# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The networks, images and VMs of a host as one: what of them cannot be meant together, and who needs what.

What goes first frees what comes. Images come first of all, as they are what takes longest and takes nothing away;
then VMs go, then networks; then networks come, and the VMs on them; and last goes what VMs have used until then.
"""

from __future__ import annotations

import ipaddress
import json
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.definition import place
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import Definition, Plan, is_made
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import (
    DEFAULTS,
    OPTIONS,
    SIZES,
    value_of,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.steps import Remove, SetNics
from ansible_collections.cocoon.microvm.plugins.module_utils._types import format_size

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import VmRecord

ABSENT = "absent"
#: A kind, ``network`` or ``image``, and a name.
Key = tuple[str, str]


class Part(t.NamedTuple):
    """A network or an image of a site, in the canonical form of its options."""

    kind: str
    number: int
    definition: Definition

    @property
    def key(self) -> Key:
        return self.kind, self.definition["name"]

    @property
    def goes(self) -> bool:
        return self.definition.get("state") == ABSENT

    def at(self, option: str) -> str:
        """One of its options, as an error names it: ``networks[0] (lab): subnet``."""
        return place(f"{self.kind}s", self.number, self.definition["name"]) + option


def clashes(parts: t.Sequence[Part], vms: t.Sequence[Definition]) -> list[InputError]:
    """What cannot be meant together: names, bridges and subnets given twice, and VMs on what is to go.

    :param parts: the networks and the images. :param vms: the VMs, in canonical form.
    """
    errors = _twice(parts) + _overlaps([part for part in parts if part.kind == "network" and not part.goes])
    going = {part.key for part in parts if part.goes}
    for definition in vms:
        if definition.get("state") != ABSENT:
            errors += [
                InputError(
                    f"is to be absent, and VM '{definition['name']}' is to have it",
                    f"{key[0]}s ({key[1]})",
                    f"Give the VM another {key[0]}, or let the {key[0]} stay.",
                )
                for key in needed(definition)
                if key in going
            ]
    return errors


def _twice(parts: t.Sequence[Part]) -> list[InputError]:
    """Names, and bridges, that two of a kind have."""
    errors = []
    seen: dict[tuple[str, str], str] = {}
    for part in parts:
        unique = [("name", part.kind, part.definition["name"])]
        if part.definition.get("bridge") and not part.goes:
            unique.append(("bridge", "bridge", part.definition["bridge"]))
        for option, kind, value in unique:
            where = part.at(option)
            first = seen.setdefault((kind, value), where)
            if first != where:
                errors.append(InputError(f"'{value}' is given already by {first}", where, "Give it once."))
    return errors


def _overlaps(networks: t.Sequence[Part]) -> list[InputError]:
    """Subnets that share addresses; on bridges that are only used they may."""
    errors = []
    seen: list[tuple[ipaddress.IPv4Network, str]] = []
    for part in networks:
        text = part.definition.get("subnet")
        if not text or part.definition.get("adopted"):
            continue
        subnet, where = ipaddress.IPv4Network(text), part.at("subnet")
        for other, first in seen:
            if subnet.overlaps(other):
                errors.append(InputError(f"{subnet} overlaps {other} of {first}", where, "Use another subnet."))
                break
        seen.append((subnet, where))
    return errors


def needed(definition: Definition) -> list[Key]:
    """The image and the networks that a VM's definition names."""
    keys = [("image", definition["image"])] if definition.get("image") else []
    nics = definition.get("nics")
    names = [definition.get("network")] if nics is None else [_network(nic, definition) for nic in nics]
    return keys + [("network", name) for name in dict.fromkeys(names) if name]


def _network(nic: t.Mapping[str, t.Any], definition: t.Mapping[str, t.Any]) -> str | None:
    return nic.get("network") or definition.get("network")


def blocked(definition: Definition, failed: t.Mapping[Key, CocoonError]) -> CocoonError | None:
    """Why a VM is left as it is: what it needs could not be had. One that is to go needs nothing."""
    if definition.get("state") == ABSENT:
        return None
    for key in needed(definition):
        if key in failed:
            kind, name = key
            return CocoonError(f"left as it is, because of {kind} '{name}', which failed", remedy="Mend that first.")
    return None


def lets_go(plan: Plan, key: Key) -> bool:
    """Whether a VM uses a network (by name) or an image (by digest) no more when its plan has been carried out."""
    if plan.wanted is None and plan.step(Remove):
        return True
    kind, name = key
    if kind == "image":
        return plan.wanted is not None and plan.wanted.get("image_digest") not in (None, name)
    networks = _networks_after(plan)
    return networks is not None and name not in networks


def _networks_after(plan: Plan) -> list[str | None] | None:
    """The networks of a VM's NICs by then; ``None`` if they stay as they are."""
    nics = plan.step(SetNics)
    if nics is not None:
        return [nic.get("network") or nics.network for nic in nics.nics]
    if plan.wanted is not None and plan.wanted.get("nics") is not None:
        return [_network(nic, plan.wanted) for nic in plan.wanted["nics"]]
    return None


# What a VM may have without anybody having asked for it: by its image, its driver, or its NICs.
BY_ITSELF = ("network", "firmware", "storage", "watchdog")


def undefined(record: VmRecord, definition: Definition) -> str | None:
    """What a VM keeps although its definition says nothing of it (any more), and how to take that away.

    An option that is omitted is not compared, so that one which was taken out of an inventory stays as it was.
    """
    if definition.get("state") == ABSENT or not is_made(record):
        return None
    # A clone has from its snapshot what that had.
    cloned = bool(definition.get("snapshot") or record.get("snapshot_id"))
    found = {
        name: default
        for name, default in DEFAULTS.items()
        if name not in definition
        and name not in BY_ITSELF
        and OPTIONS[name].at
        and not (cloned and OPTIONS[name].machine)
        if value_of(record, name) not in (None, default)
    }
    if not cloned and "data_disks" not in definition and record.get("data_disks"):
        found["data_disks"] = []
    if not found:
        return None
    words = ", ".join(f"{name}: {_plainly(name, default)}" for name, default in found.items())
    return (
        f"VM '{definition['name']}' keeps what is recorded and not defined (any more): {', '.join(found)}."
        f" To take it away, say {words}"
    )


def _plainly(name: str, value: t.Any) -> str:
    """A value as one writes it into YAML."""
    if value is None:
        return "off"
    if name in SIZES:
        return format_size(value)
    return json.dumps(value)
