# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The networks, images and VMs of a host in one go, in the order that ``_planning.site`` explains.

One that fails fails alone, with the VMs that need it. Check mode goes the same way, with what would be there or gone by
then in place of what is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._engine import batch
from ansible_collections.cocoon.microvm.plugins.module_utils._engine.batch import Item
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    ChangeRefusedError,
    CocoonError,
    ConflictError,
    StateError,
    ToolError,
    UnsupportedError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._network import converging as networks
from ansible_collections.cocoon.microvm.plugins.module_utils._network import plan as network_plan
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.site import (
    ABSENT,
    Key,
    Part,
    blocked,
    lets_go,
    undefined,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import ImageRecord

# In the record of a network that check mode plans with: no ID that one could have.
TO_COME = "to-come"


@dataclasses.dataclass
class Share:
    """A network or an image on its way to a result. *params* are its options, with where the store is."""

    part: Part
    params: t.Mapping[str, t.Any]
    answer: Record = dataclasses.field(default_factory=dict)
    error: CocoonError | None = None
    settled: bool = False


class Site:
    """One run over all that a host is to have.

    :param unprepared: in check mode, the host has yet to get what the engine works with: what cannot be planned
        without is said, and no failure.
    """

    def __init__(
        self, run: Run, shares: t.Sequence[Share], items: t.Sequence[Item], check: bool, unprepared: bool = False
    ) -> None:
        self.run = run
        self.shares = shares
        self.items = items
        self.check = check
        self.unprepared = check and unprepared
        self.failed: dict[Key, CocoonError] = {}
        self._leaving: set[str] = set()

    def converge(self) -> None:
        """Make it so, or in check mode find out what would be done; results are left in shares and items."""
        absent = [item for item in self.items if item.definition.get("state") == ABSENT]
        others = [item for item in self.items if item not in absent]
        self._go("image")
        self._come("image")
        self._part_with(absent)
        self._go("network")
        self._come("network")
        self._converge_vms(absent if self.check else [], others)
        for share in self.shares:
            if share.part.goes and not share.settled:
                self._settle(share, self._gone_by_then(share, others))

    def _part_with(self, absent: t.Sequence[Item]) -> None:
        """Remove the VMs that are to go, or in check mode take them for gone."""
        if self.check:
            index = self.run.store.index("vm")
            self._leaving = {vm_id for item in absent for vm_id in [index.lookup(item.name)] if vm_id}
        elif absent:
            batch.converge(self.run, absent, check=False)
            if any(item.done for item in absent):
                self._changed()

    def _converge_vms(self, absent: t.Sequence[Item], others: t.Sequence[Item]) -> None:
        ready = []
        for item in others:
            error = blocked(item.definition, self.failed)
            if error is None:
                ready.append(item)
            else:
                item.record, item.error = self.run.store.vm_record(item.name), error
        batch.converge(self.run, [*absent, *ready], self.check)
        for item in ready:
            kept = undefined(item.record, item.definition) if item.record and item.error is None else None
            item.warnings += [kept] if kept else []
        for item in ready if self.unprepared else ():
            if isinstance(item.error, (ToolError, UnsupportedError)):
                item.warnings.append(f"VM '{item.name}' cannot be planned before the host is prepared: {item.error}")
                item.error, item.unplanned = None, True

    def _go(self, kind: str) -> None:
        """What nobody uses goes first, so that others can have its subnet or space."""
        for share in self.shares:
            if share.part.kind == kind and share.part.goes:
                self._settle(share, self._leaving, patiently=True)

    def _come(self, kind: str) -> None:
        for share in self.shares:
            if share.part.kind == kind and not share.part.goes:
                self._settle(share, self._leaving)

    def _settle(self, share: Share, without: t.Collection[str], patiently: bool = False) -> None:
        """Converge one network or image.

        :param without: ids of VMs that would be gone by then, in check mode.
        :param patiently: leave what is used to another try.
        """
        try:
            share.answer = (
                self._network(share, without) if share.part.kind == "network" else self._image(share, without)
            )
        except (CocoonError, OSError) as exc:
            error = batch.explained(exc, share.part.kind)
            if patiently and _in_use(error):
                return
            if self.unprepared and isinstance(error, ToolError):
                share.answer = _unplanned(share, error)
                self._expect_unplanned(share.part)
            else:
                share.error = self.failed[share.part.key] = error
        share.settled = True
        if share.answer.get("changed") and not self.check:
            self._changed()

    def _changed(self) -> None:
        """Nothing is left to another run from here on: it would not tell of what has been done in this one."""
        self.run.options.progress.most = None

    def _network(self, share: Share, without: t.Collection[str]) -> Record:
        gone = networks.Gone(without, [other.part.definition["name"] for other in self.shares if _is_gone(other)])
        answer = networks.converge(share.params, self.check, gone if self.check else networks.Gone())
        if self.check and answer["changed"]:
            there = answer["network"]
            self.run.expect_network(share.part.definition["name"], {"id": TO_COME, **there} if there else None)
        return answer

    def _image(self, share: Share, without: t.Container[str]) -> Record:
        from ansible_collections.cocoon.microvm.plugins.module_utils._images import converging as images
        from ansible_collections.cocoon.microvm.plugins.module_utils._images.wanted import wanted_of

        options = self.run.options
        wanted = wanted_of(share.params, options.lock_timeout, options.progress)
        foreseen = images.Foreseen(without, self.run.expected_images) if self.check else images.NOTHING
        outcome = images.converge(self.run.store.paths, wanted, self.check, foreseen)
        if self.check and outcome.changed:
            self.run.expect_image(wanted.name, outcome.expected)
        found = dataclasses.asdict(outcome)
        del found["expected"]
        return found

    def _expect_unplanned(self, part: Part) -> None:
        """Plan VMs with what nothing is known of yet, unless there is one of the name."""
        name = part.definition["name"]
        if part.kind == "image" and self._image_there(name) is None:
            from ansible_collections.cocoon.microvm.plugins.module_utils._images import converging as images

            self.run.expect_image(name, images.unseen("unknown"))
        elif part.kind == "network":
            with contextlib.suppress(StateError):  # a damaged one is there
                if self.run.network(name) is None:
                    made = network_plan.target(part.definition, None, None)
                    self.run.expect_network(name, {"id": TO_COME, **made})

    def _image_there(self, name: str) -> ImageRecord | None:
        from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images

        return images.find(self.run.store, name)

    def _gone_by_then(self, share: Share, others: t.Sequence[Item]) -> set[str]:
        """In check mode, the VMs that would not use it any more."""
        if not self.check:
            return set()
        name = share.part.definition["name"]
        image = self._image_there(name) if share.part.kind == "image" else None
        key = (share.part.kind, image["digest"] if image else name)
        return self._leaving | {
            item.record["id"]
            for item in others
            if item.record and item.plan and item.error is None and lets_go(item.plan, key)
        }


def _is_gone(share: Share) -> bool:
    return share.part.goes and share.settled and share.error is None


def _in_use(error: CocoonError) -> bool:
    """Whether a removal was refused because of users, who may be about to leave."""
    return (isinstance(error, ChangeRefusedError) and error.option == "state") or (
        isinstance(error, ConflictError) and error.option == "name"
    )


def _unplanned(share: Share, error: CocoonError) -> Record:
    """What is said in check mode of what cannot be planned on a host without its tools."""
    name = share.part.definition["name"]
    return {
        "changed": True,
        share.part.kind: None,
        "diff": {"before": {}, "after": {"name": name}},
        "warnings": [f"{share.part.kind} '{name}' cannot be planned before the host is prepared: {error}"],
    }
