# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One VM of a store: its record and how that is written, where its files are, its process, and its hypervisor."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import boot
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Driver
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import ImageRecord, SavedMemory, VmRecord


class Vm:
    """The VM of *record*, in a run.

    :param record: what the others who hold it see changed, too; nothing of it is on disk before :meth:`write`.
    """

    def __init__(self, run: Run, record: VmRecord) -> None:
        self.run = run
        self.record = record
        self.paths = run.store.paths

    @property
    def id(self) -> str:
        return self.record["id"]

    @property
    def name(self) -> str:
        return self.record["config"]["name"]

    @property
    def uid(self) -> int:
        """The user that its hypervisor runs as, and that owns its files."""
        return self.record["uid"]

    @property
    def dir(self) -> str:
        return self.paths.vm_dir(self.id)

    @property
    def run_dir(self) -> str:
        return self.paths.vm_run(self.id)

    @property
    def system_disk(self) -> str:
        return boot.system_disk(self.record, self.paths)

    def data_disk(self, name: str) -> str:
        return boot.data_disk(self.id, name, self.paths)

    @property
    def ram(self) -> str:
        """The file of the guest's memory while it runs."""
        return boot.ram_path(self.record, self.paths)

    def file(self, name: str) -> str:
        """A file of its own, by the name that it has in its directory."""
        return os.path.join(self.dir, name)

    @property
    def driver(self) -> Driver:
        return self.run.driver(self.record["hypervisor"])

    @property
    def image(self) -> ImageRecord:
        """:raises NotFoundError: it has gone."""
        return self.run.known_image(self.record["image_id"])

    def process(self) -> Process | None:
        """Its hypervisor's process, if that is alive and proven ours."""
        return Process.find(self.record.get("process"))

    def runs(self) -> bool:
        """Whether its hypervisor's process is there."""
        process = self.process()
        if process is not None:
            process.close()
        return process is not None

    @property
    def saved(self) -> SavedMemory:
        """What it goes on from at its next start; asked of a VM that does."""
        return t.cast("SavedMemory", self.record["resume"])

    def write(self, **fields: t.Any) -> None:
        """Write its record, with these *fields*."""
        self.record.update(t.cast("VmRecord", fields))
        self.run.store.write_vm(self.record)

    def set_state(self, state: str, reason: str = "", **fields: t.Any) -> None:
        """Write a transition and its reason."""
        self.write(**{**fields, "state": state, "reason": reason, "updated_at": types.now()})

    def mark(self, place: str) -> None:
        """Say where between two side effects the run is; see :class:`Run`."""
        self.run.mark(place)
