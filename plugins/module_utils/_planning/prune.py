# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which VMs a prune removes."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ChangeRefusedError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import REMOVED, Definition

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import VmRecord


def plan_prune(
    definitions: t.Collection[t.Mapping[str, t.Any]],
    records: t.Iterable[VmRecord],
    owner: str,
    *,
    elsewhere: t.Container[str] = (),
    limited: bool = False,
    incomplete: bool = False,
    emptied: bool = False,
    force: bool = False,
) -> list[str]:
    """The names, sorted, of *owner*'s VMs that are no longer listed.

    :param definitions: the whole list of the task, items in state ``absent`` included.
    :param records: of all VMs of the store.
    :param elsewhere: names of VMs that are wanted on other hosts: one may be on its way there, and these are its disks.
    :param limited: the play runs under ``--limit``, so that the list may lack VMs of other hosts.
    :param emptied: the list had items, and all of them say ``count: 0``.
    :param incomplete: a definition could not be made out (a template failed).
    :param force: data disks go too, those that an earlier removal kept among them.
    :raises ChangeRefusedError: the list cannot be trusted to be whole.
    """
    doubt = None
    if limited:
        doubt = ("the play is limited", "Run it without --limit.")
    elif incomplete:
        doubt = ("a definition failed to template", "Mend the definition first.")
    elif not definitions and not emptied:
        doubt = ("the list of VMs is empty", "Give the VMs that should stay; remove the last with state: absent.")
    if doubt:
        raise ChangeRefusedError(f"refused, because {doubt[0]}: VMs that should stay would go", "prune", doubt[1])
    listed = {definition["name"] for definition in definitions}
    return sorted(
        record["config"]["name"]
        for record in records
        if record.get("owner") == owner
        and record["config"]["name"] not in listed
        and record["config"]["name"] not in elsewhere
        and not record.get("moving")
        and (force or record.get("state") != REMOVED)
    )


def prune_definition(name: str, owner: str, force: bool = False) -> Definition:
    """The definition that removes a pruned VM; its data disks go only with *force*.

    It names the owner, and ``pruned`` keeps *force* from overruling it: the VM may have changed hands
    since it was listed.
    """
    return {"name": name, "state": "absent", "owner": owner, "force": force, "pruned": True}
