# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a record, a look at the process and a definition to steps: pure, no I/O, no clock."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ChangeRefusedError, StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.changes import (
    Difference,
    compare,
    compare_image,
    current_nics,
    shown,
    wanted_nics,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.defaults import DEFAULT_STATE
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import (
    LIVE,
    OFFLINE,
    PHASE_HIBERNATE,
    PHASE_REBUILD,
    PHASE_REMOVE,
    PHASE_RESTORE,
    PHASE_SAVE,
    PHASE_START,
    REBUILD,
    REFUSED,
    REMOVED,
    RESTART,
    SECRETS,
    Change,
    Context,
    Definition,
    Needs,
    Observed,
    Plan,
    halt_reason,
    is_made,
    is_suspended,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.steps import (
    Configure,
    Create,
    Hibernate,
    Identify,
    MendConsole,
    MendNics,
    Pause,
    PlugNics,
    Rebuild,
    Remove,
    Restore,
    Resume,
    SetCpus,
    SetLogin,
    SetNics,
    Start,
    Step,
    Stop,
    ordered,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._types import (
    CREATED,
    CREATING,
    ERROR,
    HIBERNATED,
    PAUSED,
    RUNNING,
    STOPPED,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._words import plainly

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import SnapshotRecord, VmRecord

# States that a VM is started for.
STARTS = ("started", "restarted", "paused")
# When a guest hears of other login data, and what it takes where it looks for them at its first boot only.
_REACHED = {RESTART: "at a start", REBUILD: "at its first boot"}
_MADE_ANEW = "recreate: true makes its system disk anew"


def needs(
    record: VmRecord | None,
    definition: Definition,
    observed: Observed | None = None,
    snapshots: t.Mapping[str, SnapshotRecord | None] | None = None,
    compared: t.Sequence[Difference] | None = None,
) -> Needs:
    """What :func:`plan_vm` will look up in its context; nothing but the image's name if nothing differs.

    :param observed: without it a VM that is to run is taken to need its driver.
    :param snapshots: those that an earlier answer asked for: what a clone needs, they know.
    :param compared: from :func:`compare_once`.
    :raises InputError: as :func:`plan_vm`.
    """
    state = definition.get("state", DEFAULT_STATE)
    if state == "absent" or (record and record.get("damaged")):
        return Needs()
    if record is None or not is_made(record):
        return _needs_new(record, definition, snapshots)
    differences = compare(record, definition) if compared is None else compared
    rebuild = record.get("phase") == PHASE_REBUILD or any(item.how == REBUILD for item in differences)
    name, digest = definition.get("image"), record.get("image_digest")
    images = [name] if name and name != digest else []
    before = record["config"].get("image")
    maybe = bool(images) and (name != before or definition.get("recreate", False))
    if rebuild or maybe:
        images += [image for image in (name or before, digest) if image]
    networks: list[str] = []
    if _moves_nics(differences):
        networks = [nic["network"] for nic in wanted_nics(record, definition)]
    observed = observed and _restored(record, observed)
    runs = bool(observed and observed.running and record.get("state") in (RUNNING, PAUSED))
    starts = state == "restarted" or (not runs and (state in STARTS or bool(record.get("restarting"))))
    starts = starts or bool(state == "hibernated" and observed and observed.running)
    drivers = []
    if differences or rebuild or maybe or starts:
        asked = definition.get("hypervisor", "auto")
        drivers = [record["hypervisor"]] + ([asked] if asked != "auto" else [])
    return Needs(_unique(images), _unique(networks), _unique(drivers))


def _restored(record: VmRecord, observed: Observed) -> Observed:
    """What is there once a restore that was killed has been finished, which comes before anything else."""
    restore = record.get("restore") if record.get("phase") == PHASE_RESTORE else None
    return Observed(running=restore["runs"]) if restore else observed


def _needs_new(
    record: VmRecord | None, definition: Definition, snapshots: t.Mapping[str, SnapshotRecord | None] | None
) -> Needs:
    """For a VM to create; a half-made record stands in for what the definition leaves out."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._planning import clone
    from ansible_collections.cocoon.microvm.plugins.module_utils._planning.fit import new_nics

    if definition.get("snapshot"):
        if snapshots is None:
            return Needs(snapshots=(definition["snapshot"],))
        definition, _later = clone.inherit(definition, snapshots[definition["snapshot"]])
    config = record.get("config", {}) if record else {}
    begun = record if record and record.get("state") != REMOVED else {}
    images = [definition.get("image") or config.get("image"), begun.get("image_digest")]
    networks = [nic["network"] for nic in new_nics(record, definition)]
    asked = definition.get("hypervisor", "auto")
    if asked == "auto":
        asked = begun.get("hypervisor") or "auto"
    return Needs(_unique(image for image in images if image), _unique(networks), (asked,))


def _moves_nics(differences: t.Iterable[Difference]) -> bool:
    return any(isinstance(step, SetNics) for difference in differences for step in difference.steps)


def _unique(names: t.Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def compare_once(record: VmRecord | None, definition: Definition) -> list[Difference] | None:
    """What :func:`needs` and :func:`plan_vm` both look at; ``None`` where there is nothing to compare with."""
    if record is None or not is_made(record) or definition.get("state") == "absent":
        return None
    return compare(record, definition)


def plan_vm(
    record: VmRecord | None,
    observed: Observed,
    definition: Definition,
    context: Context,
    compared: t.Sequence[Difference] | None = None,
) -> Plan:
    """The steps from what there is to what is wanted, with the diff that they make.

    :param definition: from :func:`normalise`.
    :param compared: from :func:`compare_once`.
    :raises CocoonError: it cannot or may not be done; nothing has been touched.
    """
    _refuse_moving(record)
    state = definition.get("state", DEFAULT_STATE)
    if state == "absent":
        return _plan_absent(record, observed, definition)
    if record and record.get("damaged"):
        raise StateError(record["damaged"])
    if record is None or not is_made(record):
        return _plan_new(record, observed, definition, context)
    return _Existing(record, observed, definition, context, compared).plan()


def _refuse_moving(record: VmRecord | None) -> None:
    """:raises ChangeRefusedError: the VM is on its way between two hosts, and only the move may touch it."""
    moving = (record or {}).get("moving")
    if record and moving:
        other = f"to {moving['to']}" if "to" in moving else f"here from {moving['from']}"
        raise ChangeRefusedError(
            f"VM '{record['config']['name']}' is on its way {other}",
            "name",
            "Let the move come to its end: run the playbook that began it again, or cocoon.microvm.move.",
        )


def current_state(record: VmRecord | None, observed: Observed) -> str:
    """The state in one word, by the process and not by what the record says of it."""
    if record is None or record.get("state") == REMOVED:
        return "absent"
    if observed.running and observed.halted:
        return ERROR
    if observed.running:
        return PAUSED if observed.paused else RUNNING
    state = record.get("state")
    return str(state) if state in (CREATING, CREATED, ERROR, HIBERNATED) else STOPPED


def _plan_absent(record: VmRecord | None, observed: Observed, definition: Definition) -> Plan:
    """A running VM is asked to shut down, then killed after stop_timeout; with force killed at once."""
    name, force = definition["name"], bool(definition.get("force"))
    disks = _disk_names(record)
    removed = record is not None and record.get("state") == REMOVED and record.get("phase") != PHASE_REMOVE
    if record is None or (removed and not (force and disks)):
        return Plan(name, "none")
    owner = definition.get("owner")
    if owner is not None and record.get("owner") not in (None, owner) and (not force or definition.get("pruned")):
        raise ChangeRefusedError(
            f"VM '{name}' belongs to '{record['owner']}'", "owner", "Set force: true to remove it nevertheless."
        )
    # one that stands still hears no power button
    steps: list[Step] = [Stop(force or bool(observed.halted))] if observed.running else []
    steps.append(Remove(force))
    changes = (Change("data_disks", disks, "deleted" if force else "kept", "remove"),) if disks else ()
    warnings: tuple[str, ...] = ()
    if disks and not force:
        warnings = (
            f"the data disks of VM '{name}' are kept ({', '.join(disks)}); a VM of that name takes them up again, "
            "state: absent with force: true deletes them",
        )
    return Plan(name, "remove", tuple(steps), changes, None, warnings, current_state(record, observed), "absent")


def _disk_names(record: VmRecord | None) -> list[str]:
    if record is None:
        return []
    return [disk["name"] for disk in [*(record.get("data_disks") or ()), *(record.get("detached_disks") or ())]]


def _plan_new(record: VmRecord | None, observed: Observed, definition: Definition, context: Context) -> Plan:
    """Create, or finish what a killed run began; create is idempotent and goes on from what the record says."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._planning import clone, fit

    state = definition.get("state", DEFAULT_STATE)
    if state == "hibernated":
        raise ChangeRefusedError("a VM that is not there has nothing to save", "state", "Create it with started first.")
    later: list[Step] = []
    if definition.get("snapshot"):
        source = context.snapshots[definition["snapshot"]]
        definition, later = clone.inherit(definition, source)
        clone.check_kept(record, source or {})
    wanted = fit.new_vm(record, definition, context)
    if definition.get("snapshot"):
        source = context.snapshots[definition["snapshot"]]
        if source and source["kind"] == clone.FULL:
            fit.check_capabilities(wanted["hypervisor"], {"snapshot": "snapshots"}, context)
        wanted = clone.marked(wanted, source, context)
        if definition.get("disks_only"):
            wanted["disks_only"] = True
    removing = record is not None and record.get("phase") == PHASE_REMOVE
    steps: list[Step] = [Create(wanted, delete_kept=removing and bool(definition.get("force")))]
    started = state in STARTS
    if started:
        steps.append(Start(wanted["memory"]))
    elif later:
        raise ChangeRefusedError(
            "a clone grows when it runs, as its memory knows the disks of its snapshot", "state", "Use state: started."
        )
    steps += later
    if state == "paused":
        steps.append(Pause())
    hidden = ("name", "image_id", "snapshot_id")
    changes = tuple(
        Change(option, None, shown(option, value), "create")
        for option, value in wanted.items()
        if option not in hidden and value not in (None, "", [], {})
    )
    return Plan(
        definition["name"],
        "create",
        tuple(ordered(steps, resumed=True)),
        changes,
        wanted,
        (),
        current_state(record, observed),
        (PAUSED if state == "paused" else RUNNING) if started else CREATED,
    )


class _Existing:
    """Planning for a VM that is there."""

    def __init__(
        self,
        record: VmRecord,
        observed: Observed,
        definition: Definition,
        context: Context,
        compared: t.Sequence[Difference] | None,
    ) -> None:
        self.record = record
        observed = _restored(record, observed)
        self.running = observed.running
        self.suspended = is_suspended(record) and not observed.running
        self.observed = observed
        self.definition = definition
        self.context = context
        self.name: str = definition["name"]
        self.state: str = definition.get("state", DEFAULT_STATE)
        image, warning = compare_image(record, definition, context.images)
        differences = compare(record, definition) if compared is None else compared
        self.differences = [*differences, *([image] if image else [])]
        self.warnings = [f"VM '{self.name}': {warning}"] if warning else []
        if observed.halted and self.state in ("present", "paused", "hibernated"):
            self.warnings.append(f"VM '{self.name}': {halt_reason(observed.halted)}; state: started makes it go on")

    def plan(self) -> Plan:
        self._put_off_login()
        changes = [difference.change(self._how(difference)) for difference in self.differences]
        unfinished = self.record.get("phase") == PHASE_REBUILD
        self._permit(changes, unfinished)
        rebuild = unfinished or any(change.how == REBUILD for change in changes)
        stop = (self.running or self.suspended) and (
            rebuild or self._stops() or any(change.how == RESTART for change in changes)
        )
        # present never changes the power state, but it ends a restart that a killed run began
        resumes = self.running or bool(self.record.get("restarting"))
        runs = self.state in STARTS or (self.state in ("present", "hibernated") and resumes)
        wanted = self._rebuilt() if rebuild else None
        steps = self._power_steps(stop, runs) + self._change_steps(stop, wanted)
        if self.running and not stop:
            steps += self._mend_nics(changes) + self._mend_console(changes) + self._plug_nics(steps)
        steps = self._ordered(steps, resumed=self.suspended and not stop)
        names = {step.name for step in steps}
        if self.differences or names & {"start", "hibernate"}:
            self._check("start" in names, rebuild)
        restarts = stop and self.running and "start" in names
        before = current_state(self.record, self.observed)
        return Plan(
            self.name,
            self._action(names, rebuild, changes, restarts),
            tuple(steps),
            tuple(changes),
            wanted,
            tuple(self.warnings),
            before,
            self._state_after(before, names),
            restarts,
        )

    def _put_off_login(self) -> None:
        """Login data that the guest cannot be told of now stays as it is, with a warning; the rest goes on."""
        recreate = bool(self.definition.get("recreate")) or self.record.get("phase") == PHASE_REBUILD
        if recreate and any(self._how(item) == REBUILD for item in self.differences):
            return  # it is part of what is made anew
        restart = self.state == "restarted" or bool(self.definition.get("allow_restart"))
        kept = []
        for item in self.differences:
            how = self._how(item)
            if not item.login or how not in (RESTART, REBUILD) or (how == RESTART and restart):
                kept.append(item)
                continue
            remedy = "allow_restart: true tells its guest over a restart" if how == RESTART else _MADE_ANEW
            self.warnings.append(
                f"VM '{self.name}': its guest goes on with the login data that it has, as {_words(item.change(how))}"
                f" reaches it only {_REACHED[how]}; {remedy}; accept_login: true records what you have changed in the"
                " guest by hand"
            )
        self.differences = kept

    def _mend_nics(self, changes: list[Change]) -> list[Step]:
        """Plug NICs in again that the host has lost track of; a guest that was cut off is a change to tell of."""
        for nic in self.observed.lost:
            self.warnings.append(
                f"VM '{self.name}': the TAP of {nic} is gone from the host, so the guest is cut off there until it is"
                " restarted (state: restarted)"
            )
        changes += [Change(nic, trouble, "in order", LIVE) for nic, trouble in self.observed.nics.items()]
        return [MendNics()] if self.observed.nics else []

    def _plug_nics(self, steps: t.Iterable[Step]) -> list[Step]:
        """What a change of NICs of a running VM ends with, or one that was cut short."""
        untold = bool(self.record.get("untold_nics")) and not self._stands(steps)
        changed = any(isinstance(step, SetNics) for step in steps)
        return [PlugNics()] if changed or untold else []

    def _stands(self, steps: t.Iterable[Step]) -> bool:
        """Whether the guest of a running VM stands still after *steps*, and hears of nothing."""
        still = bool(self.observed.paused or self.observed.halted)
        return self.state == "paused" or (still and not any(isinstance(step, Resume) for step in steps))

    def _mend_console(self, changes: list[Change]) -> list[Step]:
        """What a guest prints is kept by a process, which may have been killed."""
        if not self.observed.console_lost:
            return []
        changes.append(Change("console", "its log has no keeper", "in order", LIVE))
        return [MendConsole()]

    def _stops(self) -> bool:
        """Whether the state asked for means to shut a running VM down, or to drop the memory of a hibernated one.

        :raises ChangeRefusedError: that memory would be lost.
        """
        if self.running:
            return self.state in ("stopped", "restarted")
        saved = self.suspended and self.record.get("state") in (HIBERNATED, ERROR)
        if not saved or self.state not in ("stopped", "restarted"):
            return False
        if not self.definition.get("force"):
            raise ChangeRefusedError(
                f"VM '{self.name}' is hibernated, and {self.state} would lose what is in its memory",
                "state",
                "Use started first, so that it can shut down, or set force: true to lose it.",
            )
        return True

    def _ordered(self, steps: list[Step], resumed: bool) -> list[Step]:
        """:param resumed: the VM goes on from a saved state, if it is started at all.

        :raises ChangeRefusedError: a step needs it to run, and it is not started.
        """
        starts = any(isinstance(step, Start) for step in steps)
        if resumed and not starts and any(step.on_device for step in steps):
            options = ", ".join(difference.option for difference in self.differences)
            raise ChangeRefusedError(
                f"VM '{self.name}' goes on from a saved state, so its devices can be changed only when it runs",
                options,
                "Use state: started in the same task.",
            )
        return ordered(steps, resumed)

    def _rebuilt(self) -> Definition:
        from ansible_collections.cocoon.microvm.plugins.module_utils._planning.fit import rebuilt_vm

        return rebuilt_vm(self.record, self.definition, self.context)

    def _how(self, difference: Difference) -> str:
        """The table's word for a running VM; without a process nothing needs a restart."""
        how = difference.how
        if how != RESTART:
            return how
        if not (self.running or self.suspended) or (self.state == "stopped" and self.running):
            return OFFLINE
        if difference.capability and self._lets_go(difference.pulls) and (self._hears() or not difference.told):
            capabilities = self.context.capabilities[self.record["hypervisor"]]
            if getattr(capabilities, difference.capability):
                return LIVE
        return RESTART

    def _hears(self) -> bool:
        """Whether the guest can be told of NICs that come and go: it runs on, and has a handler for what it is told."""
        record, observed = self.record, self.observed
        stands = not self.running or observed.paused or observed.halted or record.get("identity_pending")
        return self.state in ("present", "started") and not stands and bool(record.get("hotplug_nics"))

    def _lets_go(self, disk: str | None) -> bool:
        """Whether *disk* can be pulled out of the running guest without loss."""
        mounted = self.observed.mounted
        return disk is None or (mounted is not None and disk not in mounted)

    def _permit(self, changes: t.Sequence[Change], rebuilding: bool) -> None:
        """Whether all changes may be made; a rebuild that was begun has lost the old disk and needs no more leave.

        :raises ChangeRefusedError: with all that is refused or lacks its permission, and every remedy.
        """
        recreate = rebuilding or bool(self.definition.get("recreate"))
        restart_allowed = recreate and any(change.how == REBUILD for change in changes)
        restart_allowed = restart_allowed or self.state == "restarted" or bool(self.definition.get("allow_restart"))
        problems, remedies, options = [], [], []
        for difference, change in zip(self.differences, changes):
            if change.how == REFUSED:
                problems.append(f"{_words(change)}: {difference.reason[0]}")
                remedies.append(f"for {change.option}: {difference.reason[1]}")
                options.append(change.option)
        for how, allowed, text, remedy in (
            (RESTART, restart_allowed, "a restart of the running VM", "set allow_restart: true"),
            (REBUILD, recreate, "a rebuild", "set recreate: true, which makes the system disk anew"),
        ):
            lacking = [change for change in changes if change.how == how and not allowed]
            if lacking:
                verb = "needs" if len(lacking) == 1 else "need"
                problems.append(f"{', '.join(map(_words, lacking))} {verb} {text}")
                remedies.append(remedy)
                remedies += self._other_ways(lacking)
                options += [change.option for change in lacking]
        if problems:
            remedy = "; ".join(remedies)
            raise ChangeRefusedError(
                f"VM '{self.name}' stays as it is: {'; '.join(problems)}",
                ", ".join(options),
                f"{remedy[0].upper()}{remedy[1:]}.",
            )

    def _other_ways(self, lacking: t.Sequence[Change]) -> list[str]:
        """What else would do for data disks that only need a restart because the guest may be using them."""
        options = {change.option for change in lacking}
        return [item.reason[1] for item in self.differences if item.pulls and item.option in options]

    def _power_steps(self, stop: bool, runs: bool) -> list[Step]:
        recorded = self.record.get("state")
        steps: list[Step] = [Restore()] if self.record.get("phase") == PHASE_RESTORE else []
        # a record that still says running after a crash or a reboot is set right by the same step,
        # and a start that was cut short is undone by it where it is not taken up again
        unsettled = not self.running and self.record.get("phase") == PHASE_START and not runs
        if stop or unsettled or (self.state == "stopped" and recorded in (RUNNING, PAUSED)):
            force = bool(self.definition.get("force") or self.observed.halted)
            steps.append(Stop(force, runs, keep=self.suspended and not stop))
        starts = runs and (stop or not self.running)
        if starts:
            steps.append(self._start())
        elif not stop and self._goes_on():
            steps.append(Resume())
        elif self.state in STARTS and recorded not in (RUNNING, PAUSED):
            steps.append(self._start())  # it runs, but the record does not say so: a killed or failed start
        if self.running and not stop and self.record.get("identity_pending") and not self._stands(steps):
            steps.append(Identify())
        return steps + self._standing_still(stop, starts)

    def _goes_on(self) -> bool:
        """Whether a guest that stands still is to run: it is asked to, or a killed run stopped it to save it."""
        if self.observed.halted:
            return self.state == "started"
        if not self.observed.paused or self.state in ("paused", "hibernated"):
            return False
        interrupted = self.record.get("phase") == PHASE_SAVE and self.record.get("state") == RUNNING
        return self.state == "started" or interrupted

    def _start(self) -> Start:
        return Start(self.definition.get("memory") or self.record["config"].get("memory", 0))

    def _standing_still(self, stop: bool, starts: bool) -> list[Step]:
        """:raises ChangeRefusedError: a VM that does not run cannot be hibernated."""
        if self.state == "paused" and (starts or stop or self.record.get("state") != PAUSED):
            return [Pause()]
        asleep = self.suspended and not stop and self.record.get("state") == HIBERNATED
        if asleep and self.state in ("present", "hibernated"):
            return [Hibernate()] if self.record.get("phase") == PHASE_HIBERNATE else []
        if self.state != "hibernated":
            return []
        if not self.running:
            raise ChangeRefusedError(
                f"VM '{self.name}' does not run, so it has no memory to save", "state", "Use started first."
            )
        return [Hibernate()]

    def _change_steps(self, stop: bool, wanted: Definition | None) -> list[Step]:
        values: Definition = {}
        login: Definition = {}
        steps: list[Step] = []
        for difference in self.differences:
            if difference.how == REBUILD or (wanted and (difference.option == "storage" or difference.login)):
                continue  # part of what the rebuild makes
            login.update(difference.login)
            if difference.online and (self.running or self.suspended) and not stop:
                steps.append(difference.online)
            else:
                values.update(difference.values)
            steps += difference.steps
            if self.running and not stop and difference.option.endswith("].size"):
                self.warnings.append(
                    f"VM '{self.name}': {difference.option} grew while the VM runs; grow the file system in the guest"
                )
            if isinstance(difference.online, SetCpus) and difference.online in steps:
                self.warnings.append(
                    f"VM '{self.name}': its guest has the new vCPUs when it has brought them online, as the images of"
                    " the role cocoon.microvm.image do by themselves"
                )
        if values:
            steps.append(Configure(values))
        if login:
            steps.append(SetLogin(login, told=not self.definition.get("accept_login")))
        if wanted:
            steps.append(Rebuild(wanted))
            self._warn_of_lost_login()
            self._warn_of_rebuild()
        return steps

    def _warn_of_rebuild(self) -> None:
        causes = [difference.option for difference in self.differences if difference.how == REBUILD]
        self.warnings.append(
            f"VM '{self.name}': its system disk is made anew, and what is on it is lost"
            f" ({', '.join(causes) or 'a rebuild that was begun is finished'})"
        )

    def _warn_of_lost_login(self) -> None:
        digests = (self.record.get("login") or {}).get("digests", {})
        lost = [option for option in SECRETS if option in digests and option not in self.definition]
        if lost:
            self.warnings.append(
                f"VM '{self.name}': {', '.join(lost)} of its creation are not given now, the rebuilt VM has none"
            )

    def _check(self, starts: bool, rebuild: bool) -> None:
        """What the options need of networks and driver; a rebuild has checked the driver already."""
        from ansible_collections.cocoon.microvm.plugins.module_utils._planning import fit

        record, definition = self.record, self.definition
        nics = current_nics(record)
        if _moves_nics(self.differences):
            nics = wanted_nics(record, definition)
            fit.check_nics(nics, self.context, "nics" in definition)
        ports = definition.get("ports", record.get("ports")) if self.differences else None
        if self.differences or starts:
            fit.check_reach(definition if starts else {}, nics, ports or (), self.context)
        if self.differences and not rebuild:
            fit.check_update(record, definition, self.context)
        if starts and not rebuild:
            accel = definition.get("accel", "auto")
            fit.check_driver(record["hypervisor"], record["accel"] if accel == "auto" else accel, self.context)
        if self.state == "hibernated" and self.running:
            fit.check_capabilities(record["hypervisor"], {"state": "snapshots"}, self.context)

    def _action(self, names: set[str], rebuild: bool, changes: t.Sequence[Change], restarts: bool) -> str:
        if rebuild:
            return "rebuild"
        if self.differences:
            return "update"
        if names & {"mend_nics", "mend_console", "plug_nics"}:
            return "repair"
        if self.state == "restarted" or restarts:
            return "restart"
        words = ("hibernate", "start", "stop", "pause", "resume", "restore", "identify")
        return next((name for name in words if name in names), "none")

    def _state_after(self, before: str, names: set[str]) -> str:
        if "hibernate" in names:
            return HIBERNATED
        if "pause" in names:
            return PAUSED
        if names & {"start", "resume"}:
            return RUNNING
        if "stop" in names or "rebuild" in names:
            return STOPPED
        return before


def _words(change: Change) -> str:
    if change.option == "ssh_keys":
        return f"{change.option} ({_key_words(change)})"
    if change.before is None:
        return f"{change.option} ({plainly(change.after)})"
    return f"{change.option} ({plainly(change.before)} -> {plainly(change.after)})"


def _key_words(change: Change) -> str:
    """Which public keys come, and which go."""
    before, after = (value if isinstance(value, list) else [] for value in (change.before, change.after))
    words = [f"+ {_short_key(key)}" for key in after if key not in before]
    words += [f"- {_short_key(key)}" for key in before if key not in after]
    return ", ".join(words if isinstance(change.before, (list, type(None))) else [*words, f"before {change.before}"])


def _short_key(key: str) -> str:
    """What tells a public key from others: its kind, its end, and its comment."""
    kind, _space, rest = key.partition(" ")
    data, _space, comment = rest.partition(" ")
    return f"{kind} …{data[-12:]} {comment}".rstrip()
