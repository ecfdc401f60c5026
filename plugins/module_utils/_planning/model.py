# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the planner takes and gives: plain data, nothing that touches a host."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._types import CREATING

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._planning.steps import Step
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import (
        DataDisk,
        ImageRecord,
        NetworkRecord,
        SnapshotRecord,
        VmRecord,
    )

    S = t.TypeVar("S", bound=Step)

Definition = dict[str, t.Any]

# What is left of a VM whose data disks were kept when it was removed: a record in this state that
# lists them under ``detached_disks``. To a user the VM does not exist; created again, it gets them back.
REMOVED = "removed"

# Values of a record's ``phase`` that a killed run may leave and that the next plan acts on.
PHASE_CREATE = "create"
PHASE_START = "start"
PHASE_REBUILD = "rebuild"
PHASE_REMOVE = "remove"
PHASE_SAVE = "save"
PHASE_HIBERNATE = "hibernate"
PHASE_RESTORE = "restore"

# A record's ``memory_mode`` while its VM maps the RAM file of a snapshot and keeps its own changes to itself.
PRIVATE = "private"

# How a saved memory is taken up: copied before the guest goes on, or read from its file as the guest needs it.
RESTORE_COPY = "copy"
RESTORE_ON_DEMAND = "on_demand"

# What is wanted of a guest's file systems while the disks of its VM are copied.
FREEZE_AUTO = "auto"
FREEZE_REQUIRED = "required"
FREEZE_NO = "no"

# What a hypervisor stops a guest for, which then stands still until somebody lets it go on.
HALTS: t.Mapping[str, str] = {
    "io-error": "a disk of it could not be read or written; see to the space on the host",
    "internal-error": "the hypervisor could not go on with it",
    "guest-panicked": "its kernel gave up",
    "watchdog": "its watchdog was not answered",
    "shutdown": "it shut down, and its hypervisor did not end",
}

# How a change is made; also the words of docs/changes.md.
LIVE = "live"
OFFLINE = "offline"
RESTART = "restart"
REBUILD = "rebuild"
REFUSED = "refused"
MADE_BY = (LIVE, OFFLINE, RESTART, REBUILD)

# How a rebuild is shown: nobody shall take it for one change among others.
SHOWN_HOW = {REBUILD: "rebuild (system disk made anew)"}

# What reaches a guest at its first boot only; of these the record keeps digests, and what is no secret in clear.
SECRETS = ("user", "password", "ssh_keys", "user_data")
PUBLIC = ("user", "ssh_keys")
# What a guest that looks for it takes at later starts as well.
RELOGIN = ("user", "password", "ssh_keys")

# What a disk image can be booted by.
UEFI, BIOS = "uefi", "bios"


class Secret(str):
    """A string that does not show itself inside a repr, and so not in a traceback of a dict that holds it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'********'"


class ProbeLike(t.Protocol):
    """What a look at the host said about one hypervisor."""

    @property
    def available(self) -> bool: ...

    @property
    def reason(self) -> str | None: ...

    @property
    def accels(self) -> t.Sequence[str]: ...

    @property
    def firmware(self) -> t.Sequence[str]: ...

    @property
    def remedy(self) -> str | None: ...

    @property
    def uefi_remedy(self) -> str | None: ...


class LimitsLike(t.Protocol):
    """How much a driver can do."""

    @property
    def cpus(self) -> int: ...

    @property
    def nics(self) -> int: ...

    @property
    def fixed_disks(self) -> int: ...

    @property
    def removable_disks(self) -> int: ...

    @property
    def nic_queues(self) -> t.Sequence[int]: ...

    @property
    def disk_queues(self) -> t.Sequence[int]: ...

    @property
    def devices(self) -> int | None: ...


@dataclasses.dataclass(frozen=True)
class Observed:
    """What the host says about a VM's process, whatever its record says.

    :param mounted: the data disks that the guest uses, by its agent's word; ``None`` = nobody says.
    :param nics: which NICs of a running VM are not plugged in as they should be, and what is wrong, in words.
    :param lost: NICs whose host side is gone, which only a restart brings back.
    :param halted: what stopped the guest, one of :data:`HALTS`; ``None`` = nothing, or somebody who asked for it.
    :param console_lost: what keeps the log of a running VM's console is gone.
    """

    running: bool = False
    paused: bool = False
    mounted: frozenset[str] | None = None
    nics: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    lost: tuple[str, ...] = ()
    halted: str | None = None
    console_lost: bool = False


@dataclasses.dataclass(frozen=True)
class Context:
    """What a plan may look at besides the record; holds what :func:`needs` asked for and no more.

    :param images: image records by the name or digest asked for, ``None`` = not in the store.
    :param networks: network records by name, ``None`` = not there.
    :param snapshots: records of complete snapshots by name, ``None`` = not there.
    :param probes: by hypervisor name.
    :param capabilities: by hypervisor name; the options say which of its attributes they need.
    :param limits: by hypervisor name.
    :param auto: the hypervisors that ``auto`` may come to, the best first.
    :param owner_default: the owner of what gives none.
    :param default_kernel: the host has a kernel for images that bring none; told only if one of *images* does.
    """

    images: t.Mapping[str, ImageRecord | None] = dataclasses.field(default_factory=dict)
    networks: t.Mapping[str, NetworkRecord | None] = dataclasses.field(default_factory=dict)
    snapshots: t.Mapping[str, SnapshotRecord | None] = dataclasses.field(default_factory=dict)
    probes: t.Mapping[str, ProbeLike] = dataclasses.field(default_factory=dict)
    capabilities: t.Mapping[str, object] = dataclasses.field(default_factory=dict)
    limits: t.Mapping[str, LimitsLike] = dataclasses.field(default_factory=dict)
    auto: tuple[str, ...] = ()
    owner_default: str = ""
    default_kernel: bool = False


@dataclasses.dataclass(frozen=True)
class Needs:
    """What to load into a :class:`Context` before planning.

    :param images: names or digests to resolve.
    :param networks: names to load.
    :param drivers: hypervisors to probe; ``auto`` = all that there are.
    :param snapshots: names to load, and to ask again with.
    """

    images: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    drivers: tuple[str, ...] = ()
    snapshots: tuple[str, ...] = ()

    @property
    def driver(self) -> bool:
        return bool(self.drivers)


@dataclasses.dataclass(frozen=True)
class Change:
    """One option that differs. *before* and *after* are fit to be shown; secrets are masked in them."""

    option: str
    before: t.Any
    after: t.Any
    how: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run does to one VM, and what check mode says it would do.

    :param action: ``none create rebuild update restart start stop pause resume hibernate restore identify
        repair remove``.
    :param wanted: for a create or rebuild, every option with its value.
    :param restarts: a running VM goes down and comes back (counts toward ``max_unavailable``).
    """

    name: str
    action: str
    steps: tuple[Step, ...] = ()
    changes: tuple[Change, ...] = ()
    wanted: Definition | None = None
    warnings: tuple[str, ...] = ()
    state_before: str = "absent"
    state_after: str = "absent"
    restarts: bool = False

    @property
    def changed(self) -> bool:
        return bool(self.steps)

    def step(self, kind: type[S]) -> S | None:
        """The first step of that kind, if there is one."""
        return next((step for step in self.steps if isinstance(step, kind)), None)

    @property
    def actions(self) -> list[str]:
        """The steps in words, for results."""
        return [str(step) for step in self.steps]

    @property
    def diff(self) -> dict[str, dict[str, t.Any]]:
        """``{"before": {option: value}, "after": {…}}``, only what differs; empty dicts without a change.

        ``after`` has besides, under ``how``, how each option is changed, and under ``vm`` there what that does to
        the VM as a whole.
        """
        before: dict[str, t.Any] = {}
        after: dict[str, t.Any] = {}
        if not self.changed:
            return {"before": before, "after": after}
        for change in self.changes:
            if change.how != "create":
                before[change.option] = change.before
            after[change.option] = change.after
        if self.state_before != self.state_after:
            before["state"], after["state"] = self.state_before, self.state_after
        elif self.action == "restart":
            before["state"], after["state"] = self.state_before, f"{self.state_after} (restarted)"
        elif not self.changes:  # a record or an interrupted step is set right; nothing else differs
            before["state"], after["state"] = f"{self.state_before} (unfinished)", self.state_after
        hows = {
            change.option: SHOWN_HOW.get(change.how, change.how) for change in self.changes if change.how in MADE_BY
        }
        if self.how in SHOWN_HOW.values() or hows:
            after["how"] = {"vm": self.how, **hows}
        return {"before": before, "after": after}

    @property
    def how(self) -> str | None:
        """What happens to the VM in a word: ``create``, ``remove``, how its changes are made, or its action."""
        if self.action not in ("update", "rebuild"):
            return self.action if self.changed else None
        hows = {change.how for change in self.changes}
        word = REBUILD if self.action == REBUILD else next((how for how in (RESTART, LIVE) if how in hows), OFFLINE)
        return SHOWN_HOW.get(word, word)


def digest_login(salt: str, value: t.Any) -> str:
    """The salted digest that a record keeps of a login option; of a list, order and repeats do not count."""
    import hmac

    if isinstance(value, (list, tuple)):
        text = json.dumps(sorted({str(item).strip() for item in value}))
    else:
        text = str(value)
    return hmac.new(salt.encode(), text.encode(), hashlib.sha256).hexdigest()


def login_digests(definition: t.Mapping[str, t.Any], salt: str) -> dict[str, t.Any]:
    """A record's ``login``: ``{"salt", "digests": {option: digest}, "public": {option: value}}`` of what is given."""
    given = {option: definition[option] for option in SECRETS if definition.get(option) is not None}
    return {
        "salt": salt,
        "digests": {option: digest_login(salt, value) for option, value in given.items()},
        "public": {option: given[option] for option in PUBLIC if option in given},
    }


def changed_login(login: t.Mapping[str, t.Any], values: t.Mapping[str, t.Any], salt: str) -> dict[str, t.Any]:
    """A record's ``login`` with other *values* of some options; *salt* for a record that has none yet."""
    salt = login.get("salt") or salt
    new = login_digests(values, salt)
    return {"salt": salt, **{key: {**login.get(key, {}), **new[key]} for key in ("digests", "public")}}


def secret_digests(values: t.Mapping[str, str], salt: str) -> dict[str, t.Any]:
    """A record's ``secret_env``: ``{"salt", "digests": {variable: digest}}``."""
    return {"salt": salt, "digests": {name: digest_login(salt, value) for name, value in values.items()}}


def same_login(login: t.Mapping[str, t.Any], option: str, value: t.Any) -> bool:
    """Whether *value* is what *option* was at creation (constant time)."""
    import hmac

    recorded = login.get("digests", {}).get(option)
    return recorded is not None and hmac.compare_digest(recorded, digest_login(login.get("salt", ""), value))


def is_made(record: VmRecord | None) -> bool:
    """Whether there is a VM to change; no: none, half made, half removed, or removed but for its data disks."""
    return (
        record is not None
        and not record.get("bare")
        and not record.get("damaged")
        and record.get("state") not in (CREATING, REMOVED)
        and record.get("phase") not in (PHASE_CREATE, PHASE_REMOVE)
    )


def left_disks(record: VmRecord | None) -> dict[str, DataDisk]:
    """The data disks by name that an earlier VM left; a creation that was cut short has them under ``kept_disks``."""
    both = [*(record.get("kept_disks") or ()), *(record.get("detached_disks") or ())] if record else []
    return {disk["name"]: disk for disk in both}


def halt_reason(halted: str) -> str:
    """Why a guest stands still, in words."""
    return f"the guest stands still ({halted}): {HALTS.get(halted, 'nobody asked for it')}"


def is_suspended(record: VmRecord) -> bool:
    """Whether a VM that does not run goes on from a saved state at its next start."""
    return bool(record.get("resume"))
