# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of a plan: each class carries its data, its place among the others, and what it takes of the host.

The order is by rank: what frees comes before what takes, the record before what acts on it. Of a VM that goes on from
a saved state, what touches its devices has to wait until it runs.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import DataDisk, VmRecord

# Between the guest that runs again and what makes it stand still.
AFTER_RESUME = 170


@dataclasses.dataclass(frozen=True, repr=False)
class Step:
    """One thing for the executor to do; idempotent."""

    name: t.ClassVar[str]
    rank: t.ClassVar[int]
    # A saved state knows the device as it was: on a VM that goes on from one, the step is for when it runs.
    on_device: t.ClassVar[bool] = False
    # The option to blame for a lack of disk.
    disk_option: t.ClassVar[str] = "data_disks"

    def __str__(self) -> str:
        """``grow_data_disk data1``: fit for a result, no secret in it."""
        return f"{self.name} {self.subject}".rstrip()

    def __repr__(self) -> str:
        """For all of them, as dataclasses would take time to make one for each at every import."""
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    @property
    def subject(self) -> str:
        """What of the VM it is done to, if that needs saying."""
        return ""

    def place(self, resumed: bool) -> int:
        """Where it comes; *resumed*: the VM goes on from a saved state, if it is started at all."""
        return AFTER_RESUME if resumed and self.on_device else self.rank

    def more_disk(self, record: VmRecord) -> int:
        """Bytes that the VM's disks may come to hold beyond what it is promised."""
        return 0


class Restore(Step):
    """Finish a restore that was killed."""

    name = "restore"
    rank = 10


@dataclasses.dataclass(frozen=True, repr=False)
class Stop(Step):
    """:param restart: it comes up again. :param keep: a start is undone, and the saved state stays."""

    name = "stop"
    rank = 20
    force: bool = False
    restart: bool = False
    keep: bool = False


@dataclasses.dataclass(frozen=True, repr=False)
class Remove(Step):
    name = "remove"
    rank = 30
    delete_data_disks: bool = False


@dataclasses.dataclass(frozen=True, repr=False)
class Create(Step):
    """Make a VM; what is left of one before is taken apart with the allocation.

    :param wanted: every option with its value.
    :param delete_kept: data disks of a VM that is half removed go.
    """

    name = "create"
    rank = 40
    disk_option = "storage"
    wanted: Record = dataclasses.field(default_factory=dict)
    delete_kept: bool = False

    def more_disk(self, record: VmRecord) -> int:
        kept = record.get("detached_disks") if record.get("state") == "removed" else None
        return disk_bytes(self.wanted, kept) - int(record.get("promised_disk", 0))


class DiskStep(Step):
    """What is done to one data disk. No dataclass, which takes time to make: each of those says ``disk`` itself."""

    on_device = True
    disk: str

    @property
    def subject(self) -> str:
        return self.disk


@dataclasses.dataclass(frozen=True, repr=False)
class DropDisk(DiskStep):
    """Unplug a data disk. :param delete: its file goes as well."""

    name = "drop_disk"
    rank = 50
    disk: str
    delete: bool = False


@dataclasses.dataclass(frozen=True, repr=False)
class SetNics(Step):
    """Other NICs, and the VM's ports with them; of a VM that runs those go that are not to be.

    :param nics: ``{network, mac, ip}`` each. :param ports: the ports from then on; ``None`` = as before.
    """

    name = "set_nics"
    rank = 60
    nics: t.Sequence[Record]
    network: str | None
    ports: t.Sequence[str] | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class GrowSystemDisk(Step):
    name = "grow_system_disk"
    rank = 70
    on_device = True
    disk_option = "storage"
    size: int

    def more_disk(self, record: VmRecord) -> int:
        return self.size - int(record["config"]["storage"])


@dataclasses.dataclass(frozen=True, repr=False)
class GrowDataDisk(DiskStep):
    name = "grow_data_disk"
    rank = 80
    disk: str
    size: int

    def more_disk(self, record: VmRecord) -> int:
        return sum(self.size - disk["size"] for disk in record.get("data_disks") or () if disk["name"] == self.disk)


@dataclasses.dataclass(frozen=True, repr=False)
class AddDisk(Step):
    """:param disk: ``{name, size, fstype, reattach}``, and its ``limits``, if it has any."""

    name = "add_disk"
    rank = 90
    on_device = True
    disk: Record

    @property
    def subject(self) -> str:
        return str(self.disk["name"])

    def more_disk(self, record: VmRecord) -> int:
        kept = {disk["name"]: disk["size"] for disk in record.get("detached_disks") or ()}
        return int(self.disk["size"] - kept.get(self.disk["name"], 0))


@dataclasses.dataclass(frozen=True, repr=False)
class SetDiskLimits(DiskStep):
    """:param disk: empty for the system disk. :param limits: ``{}`` for none."""

    name = "set_disk_limits"
    rank = 95
    disk: str
    limits: t.Mapping[str, t.Mapping[str, int]]


@dataclasses.dataclass(frozen=True, repr=False)
class Configure(Step):
    """Options that the record keeps and that take effect at the next start, or only stand there."""

    name = "configure"
    rank = 100
    values: t.Mapping[str, t.Any]


@dataclasses.dataclass(frozen=True, repr=False)
class SetSecretEnv(Step):
    name = "set_secret_env"
    rank = 110
    values: t.Mapping[str, str]


@dataclasses.dataclass(frozen=True, repr=False)
class SetLogin(Step):
    """Other login data. :param told: the guest is told at its next start; else it knows already."""

    name = "set_login"
    rank = 115
    values: t.Mapping[str, t.Any]
    told: bool = True


@dataclasses.dataclass(frozen=True, repr=False)
class SetBalloon(Step):
    name = "set_balloon"
    rank = 120
    on_device = True
    balloon: int


@dataclasses.dataclass(frozen=True, repr=False)
class SetCpus(Step):
    """More vCPUs for a running guest."""

    name = "set_cpus"
    rank = 125
    on_device = True
    cpu: int


@dataclasses.dataclass(frozen=True, repr=False)
class Rebuild(Step):
    """A new system disk. :param wanted: every option with its value."""

    name = "rebuild"
    rank = 130
    disk_option = "storage"
    wanted: Record

    def more_disk(self, record: VmRecord) -> int:
        return int(self.wanted["storage"] - record["config"].get("storage", 0))


@dataclasses.dataclass(frozen=True, repr=False)
class SetPorts(Step):
    name = "set_ports"
    rank = 140
    ports: t.Sequence[str]


@dataclasses.dataclass(frozen=True, repr=False)
class Start(Step):
    """:param memory: bytes that it takes of the host."""

    name = "start"
    rank = 150
    memory: int = 0


class MendNics(Step):
    """Plug the NICs of a running VM in again."""

    name = "mend_nics"
    rank = 152


class MendConsole(Step):
    """Have somebody keep the console of a running VM again."""

    name = "mend_console"
    rank = 153


class Resume(Step):
    name = "resume"
    rank = 155


class PlugNics(Step):
    """Plug NICs into a running VM that it lacks. Its guest is told of them as :class:`Identify` says."""

    name = "plug_nics"
    rank = 158


class Identify(Step):
    """Tell a clone who it is: done with the guests of the round that are waited for."""

    name = "identify"
    rank = 160


class Pause(Step):
    name = "pause"
    rank = 180


class Hibernate(Step):
    name = "hibernate"
    rank = 190


def ordered(steps: t.Iterable[Step], resumed: bool = False) -> list[Step]:
    """*steps* as they are to be done."""
    return sorted(steps, key=lambda step: (step.place(resumed), step.rank))


def disk_bytes(wanted: Record, kept: t.Sequence[DataDisk] | None) -> int:
    """What the disks of a new VM may come to hold, with those that are *kept* from before."""
    disks = {disk["name"]: disk["size"] for disk in [*(kept or ()), *(wanted.get("data_disks") or ())]}
    return int(wanted["storage"]) + sum(disks.values())
