# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Planning with snapshots, as tables: taking and dropping them, clones, and VMs that stand still or are saved."""

from __future__ import annotations

import copy
import types
import typing as t

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    ChangeRefusedError,
    CocoonError,
    InputError,
    NotFoundError,
    UnsupportedError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import clone
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import snapshot as planning
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import steps as kinds
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.definition import normalise
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import (
    PRIVATE,
    Context,
    Definition,
    Observed,
    Plan,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.snapshot import Source, Wanted
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.steps import Step
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.vm import needs, plan_vm
from ansible_collections.cocoon.microvm.plugins.module_utils._types import GIB, MIB, Record

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBmqYFSlcXefdyXqNU+fZmC7wOFCNTX23nukQzizt6Lk me"
DAY = 86400
NOW = 1_800_000_000.0
UP, DOWN, STANDING = Observed(running=True), Observed(), Observed(running=True, paused=True)

# ---------------------------------------------------------------------------------------- taking and dropping them


def taken(name: str = "warm", age: float = 0, **changes: t.Any) -> Record:
    """The record of a complete snapshot, that old."""
    stamp = t.cast(str, planning.time.strftime("%Y-%m-%dT%H:%M:%S", planning.time.gmtime(NOW - age)))
    record: Record = {
        "id": f"id-{name}",
        "name": name,
        "state": "complete",
        "kind": "full",
        "vm": "web1",
        "vm_id": "vm-1",
        "owner": "me",
        "description": "",
        "labels": {},
        "created_at": f"{stamp}.123456Z",
        "hypervisor": "qemu",
        "accel": "tcg",
        "machine": "pc-q35-7.2",
        "image": "tiny",
        "image_id": "sha256:aa",
        "image_digest": "sha256:aa",
        "cpu": 2,
        "memory": GIB,
        "storage": 10 * GIB,
        "queue_size": 512,
        "disk_queue_size": 256,
        "network": "lab",
        "nics": 2,
        "nic_networks": ["lab", "dmz"],
        "nic_configs": [{"mac": "02:00:00:00:00:01", "mtu": 0}, {"mac": "02:00:00:00:00:02", "mtu": 9000}],
        "no_direct_io": False,
        "windows": False,
        "kernel_args": "quiet",
        "entrypoint": [],
        "command": [],
        "env": {},
        "working_dir": "",
        "watchdog": True,
        "cpu_max": 0,
        "firmware": None,
        "balloon": None,
        "data_disks": [{"name": "data1", "size": GIB, "fstype": "ext4"}],
        "files": {},
        "layout": {"version": "7.2.22"},
    }
    return {**record, **changes}


BROKEN: Record = {"id": "id-warm", "name": "warm", "state": "error", "reason": "it is damaged", "files": {}}
VM = {
    **{"id": "vm-1", "state": "running", "hypervisor": "qemu"},
    "network_configs": [{"network_name": "lab"}, {"network_name": "dmz"}],
}


def wanted(state: str = "present", **options: t.Any) -> Wanted:
    return Wanted(**{"name": "warm", "state": state, **options})


def present(record: Record | None, source: Record | None, others: t.Sequence[Record] = (), **options: t.Any) -> t.Any:
    return planning.plan_present(record, source, wanted(**options), others, NOW)


def test_a_running_vm_needs_a_hypervisor_that_saves() -> None:
    with pytest.raises(UnsupportedError) as caught:
        planning.plan_present(None, made(), wanted(vm="web1"), (), NOW, Source(running=True, saves=False))
    assert "hypervisor qemu cannot save a running VM" in str(caught.value) and caught.value.option == "vm"


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(
    ("options", "source", "state", "words"),
    [
        ({}, Source(running=True), "running", "freeze: is for disks alone"),
        ({"disks_only": True}, Source(running=True, freezes=False), "running", "qemu has no way to an agent"),
        ({"disks_only": True}, Source(running=True), "paused", "cannot be frozen: it is paused"),
        ({"disks_only": True}, Source(running=True), "running", ""),
        ({}, Source(), "stopped", ""),  # nothing writes to its disks
    ],
)
def test_file_systems_that_have_to_stand_still(
    options: t.Any, source: Source, state: str, words: str, replace: bool
) -> None:
    asked = wanted(vm="web1", freeze="required", replace=replace, **options)
    before = (taken() if replace else None, {**VM, "state": state})
    if words:
        with pytest.raises(CocoonError, match=words):
            planning.plan_present(*before, asked, (), NOW, source)
    else:
        assert planning.plan_present(*before, asked, (), NOW, source).actions == ("replace" if replace else "take",)


@pytest.mark.parametrize(
    ("kind", "frozen", "words"),
    [
        *(("full", None, "was taken with memory"), ("disks", False, "that did not stand still.*replace: true")),
        *(("disks", True, ""), ("disks", None, "")),  # the last: of a VM that did not run
    ],
)
def test_a_snapshot_that_is_there_was_taken_as_it_has_to_be(kind: str, frozen: bool | None, words: str) -> None:
    there = taken(kind=kind, frozen=frozen)
    assert not present(there, VM, vm="web1", disks_only=True).actions
    if words:
        with pytest.raises(ChangeRefusedError, match=words):
            present(there, VM, vm="web1", freeze="required")
    else:
        assert not present(there, VM, vm="web1", freeze="required").actions


def test_a_snapshot_is_replaced_with_what_was_said_of_it() -> None:
    plan = present(taken(description="x"), VM, vm="web1", replace=True)
    assert plan.before["created_at"].startswith("2027") and plan.after["created_at"] == "now"
    assert plan.after["description"] == "x"
    assert present(taken(description="x"), VM, vm="web1", replace=True, description="").after["description"] == ""
    others = [{**taken("old", 9 * DAY), "clones": []}]
    pruned = present(taken(), VM, others, vm="web1", replace=True, keep=1)
    assert pruned.actions == ("replace", "prune old") and pruned.pruned == ("old",)


@pytest.mark.parametrize(
    ("options", "clones", "words"),
    [
        ({}, (), "vm: is needed"),
        ({"vm": "web2"}, (), "is one of VM 'web1'"),
        ({"vm": "web1", "owner": "other"}, (), "belongs to 'me'"),
        ({"vm": "web1"}, ("runner-1", "runner-2"), "has clones: runner-1, runner-2. Remove those VMs first"),
    ],
)
def test_a_snapshot_that_is_not_replaced(options: t.Any, clones: tuple[str, ...], words: str) -> None:
    with pytest.raises(CocoonError, match=words):
        planning.plan_present(taken(), VM, wanted(replace=True, **options), (), NOW, clones=clones)


def test_a_clone_with_memory_needs_a_hypervisor_that_takes_it_up() -> None:
    unable = types.SimpleNamespace(**{**ABLE, "snapshots": False}, uefi=False)
    with pytest.raises(UnsupportedError) as caught:
        plan(None, capabilities=unable, state="started", snapshot="warm")
    assert "cannot go on from a saved state" in str(caught.value) and caught.value.option == "snapshot"
    assert plan(None, capabilities=unable, state="started", snapshot="cold").changed


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("12h", 43200), ("7d", 7 * DAY), ("2w", 14 * DAY), (" 1d ", DAY), ("0s", 0)],
)
def test_ages(text: str, seconds: int) -> None:
    assert planning.seconds_of(text, "max_age") == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "7 d", "7D", "-1d", "1.5h", "1h30m", "7d\n7d", "9999999999s"])
def test_what_is_no_age(text: str) -> None:
    with pytest.raises(InputError) as caught:
        present(None, VM, vm="web1", max_age=text)
    assert caught.value.option == "max_age"


@pytest.mark.parametrize(
    ("record", "options", "actions"),
    [
        (None, {"vm": "web1", "replace": True}, ("take",)),
        (taken(state="creating"), {"vm": "web1", "replace": True}, ("take",)),
        (taken(), {"vm": "web1", "replace": True}, ("replace",)),
        (taken(vm_id="an earlier one"), {"vm": "web1", "replace": True}, ("replace",)),
        (BROKEN, {"vm": "web1", "replace": True}, ("replace",)),
        (None, {"vm": "web1"}, ("take",)),
        (taken(state="creating"), {"vm": "web1"}, ("take",)),  # of a run that was killed
        (taken(state="removing"), {"vm": "web1"}, ("take",)),
        (taken(), {"vm": "web1"}, ()),
        (taken(), {}, ()),
        (taken(description="x"), {}, ()),
        (taken(), {"description": ""}, ()),
        (taken(), {"description": "x"}, ("update",)),
        (taken(description="x"), {"description": ""}, ("update",)),
        (taken(), {"labels": {}}, ()),
        (taken(), {"labels": {"a": "b"}}, ("update",)),
        (taken(labels={"a": "b"}), {"labels": {"a": "b"}}, ()),
        (taken(labels={"a": "b"}), {"labels": {}}, ("update",)),
        (taken(), {"owner": "me"}, ()),
        (taken(), {"owner": "you", "force": True}, ("update",)),
        (taken(), {"force": True}, ()),
    ],
)
def test_present(record: Record | None, options: Definition, actions: tuple[str, ...]) -> None:
    plan = present(record, VM, **options)
    assert plan.actions == actions
    assert bool(plan.diff["after"]) == bool(actions)
    if record and actions == ("update",):
        again = present({**record, **plan.after}, VM, **{**options, "force": True})
        assert not again.actions


@pytest.mark.parametrize(
    ("record", "vm", "options", "error", "option"),
    [
        (None, None, {}, InputError, "vm"),
        (None, None, {"vm": "web1"}, NotFoundError, "vm"),
        (None, {**VM, "resume": {"memory": "copy"}}, {"vm": "web1"}, ChangeRefusedError, "vm"),
        (taken(), VM, {"vm": "web2"}, ChangeRefusedError, "vm"),
        (taken(), VM, {"owner": "you"}, ChangeRefusedError, "owner"),
        (taken(), VM, {"keep": 0}, InputError, "keep"),
        (taken(), VM, {"keep": -1}, InputError, "keep"),
    ],
)
def test_present_refused(
    record: Record | None, vm: Record | None, options: Definition, error: type[CocoonError], option: str
) -> None:
    with pytest.raises(error) as caught:
        present(record, vm, **options)
    assert caught.value.option == option and caught.value.remedy


def other(name: str, days: float, clones: int = 0, owner: str = "me") -> Record:
    return {**taken(name, days * DAY, owner=owner), "clones": [f"vm-{n}" for n in range(clones)]}


A, B, C, D = other("a", 40), other("b", 30), other("c", 20), other("d", 10)
KEPT = [
    # what there is besides, options, what goes
    ([], {"keep": 1}, []),
    ([A, B, C, D], {}, []),
    ([A, B, C, D], {"keep": 5}, []),
    ([A, B, C, D], {"keep": 4}, ["a"]),
    ([D, B, A, C], {"keep": 2}, ["a", "b", "c"]),
    ([A, B, C, D], {"keep": 1}, ["a", "b", "c", "d"]),
    ([A, other("b", 30, clones=1), C, D], {"keep": 2}, ["a", "c"]),  # it counts, but it stays
    ([other("a", 40, clones=2), B, C], {"keep": 3}, []),
    ([A, B, C, D], {"max_age": "25d"}, ["a", "b"]),
    ([A, B, C, D], {"max_age": "60d"}, []),
    ([A, other("b", 30, clones=1)], {"max_age": "1d"}, ["a"]),
    ([A, B, C, D], {"keep": 4, "max_age": "25d"}, ["a", "b"]),
    ([A, B, C, D], {"keep": 2, "max_age": "35d"}, ["a", "b", "c"]),
    ([A, other("b", 30, owner="you")], {"keep": 1, "owner": "me"}, ["a"]),
    ([A, other("b", 30, owner="you")], {"keep": 1}, ["a", "b"]),
    # what is left of a removal that was killed goes, whatever it is, and does not count
    ([A, {**D, "state": "removing"}], {"keep": 2}, ["d"]),
    ([A, {**other("d", 1, clones=1), "state": "removing"}], {"max_age": "60d"}, ["d"]),
    ([A, {**D, "state": "removing"}], {}, []),
]


@pytest.mark.parametrize(("others", "options", "pruned"), KEPT)
@pytest.mark.parametrize("there", [False, True], ids=["taken-now", "there"])
def test_keep_and_max_age(others: list[Record], options: Definition, pruned: list[str], there: bool) -> None:
    own = taken(age=0)
    known = [*others, {**own, "clones": []}] if there else others
    plan = present(own if there else None, VM, known, vm="web1", **options)
    prunes = tuple(f"prune {name}" for name in pruned)
    assert plan.pruned == tuple(pruned)
    assert plan.actions == (prunes if there else ("take", *prunes))
    assert plan.diff["after"].get("pruned", []) == pruned


def test_keep_never_prunes_the_one_that_is_asked_for() -> None:
    """Even if it is the oldest of all."""
    own = taken(age=90 * DAY)
    plan = present(own, VM, [A, B, {**own, "clones": []}], keep=1, max_age="1d")
    assert plan.pruned == ("a", "b")


@pytest.mark.parametrize(
    ("record", "options", "actions"),
    [
        (None, {}, ()),
        (taken(), {}, ("remove",)),
        (taken(), {"owner": "me"}, ("remove",)),
        (taken(), {"owner": "you", "force": True}, ("remove",)),
        (taken(state="creating"), {}, ("remove",)),
        ({"id": "x", "name": "warm", "state": "creating", "files": {}}, {"owner": "me"}, ("remove",)),
    ],
)
def test_absent(record: Record | None, options: Definition, actions: tuple[str, ...]) -> None:
    plan = planning.plan_absent(record, wanted("absent", **options))
    assert plan.actions == actions
    assert bool(plan.diff["before"]) == bool(actions) and not plan.diff["after"]


def test_absent_of_another_owners() -> None:
    with pytest.raises(ChangeRefusedError, match="belongs to 'me'") as caught:
        planning.plan_absent(taken(), wanted("absent", owner="you"))
    assert caught.value.option == "owner" and "force: true" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("record", "vm", "options"),
    [
        (taken(), VM, {}),
        (taken(), VM, {"vm": "web1"}),
        (taken(kind="disks"), {**VM, "network_configs": []}, {}),  # what is booted finds out by itself
        (taken(), {**VM, "network_configs": []}, {"disks_only": True}),
        (taken(), {**VM, "hypervisor": "firecracker"}, {"disks_only": True}),
        (taken(kind="disks"), {**VM, "hypervisor": "firecracker"}, {}),
    ],
)
@pytest.mark.parametrize("running", [False, True])
def test_restored_is_always_a_change(record: Record, vm: Record, options: Definition, running: bool) -> None:
    plan = planning.plan_restored(record, vm, wanted("restored", **options), running)
    assert plan.actions == ("restore",)
    assert plan.diff["before"] != plan.diff["after"]


@pytest.mark.parametrize(
    ("record", "options", "copies", "error"),
    [
        (taken(), {"restore_mode": "copy"}, True, None),
        (taken(), {"restore_mode": "on_demand"}, True, None),
        (taken(), {"restore_mode": "on_demand"}, False, None),
        (taken(balloon=0), {"restore_mode": "copy"}, True, None),
        (taken(balloon=0), {"restore_mode": "on_demand"}, False, None),
        (taken(balloon=0), {"restore_mode": "on_demand"}, True, InputError),
        (taken(), {"restore_mode": "copy"}, False, UnsupportedError),
        (taken(kind="disks"), {"restore_mode": "copy"}, True, InputError),
        (taken(), {"restore_mode": "copy", "disks_only": True}, True, InputError),
    ],
)
def test_how_a_memory_is_restored(
    record: Record, options: Definition, copies: bool, error: type[CocoonError] | None
) -> None:
    if error is None:
        assert planning.plan_restored(record, VM, wanted("restored", **options), True, copies).actions == ("restore",)
        return
    with pytest.raises(error) as caught:
        planning.plan_restored(record, VM, wanted("restored", **options), True, copies)
    assert caught.value.option == "restore_mode" and caught.value.remedy


@pytest.mark.parametrize(
    ("record", "vm", "options", "error", "option"),
    [
        (None, VM, {}, NotFoundError, "name"),
        (taken(state="creating"), VM, {}, NotFoundError, "name"),
        (taken(state="removing"), VM, {}, NotFoundError, "name"),
        (taken(), None, {}, ChangeRefusedError, "vm"),
        (taken(), {**VM, "id": "vm-2"}, {}, ChangeRefusedError, "vm"),  # one of that name that was made later
        (taken(), VM, {"vm": "web2"}, ChangeRefusedError, "vm"),
        (taken(vm="", vm_id=None), VM, {"vm": "web1"}, ChangeRefusedError, "name"),  # one that was imported
        (taken(), {**VM, "network_configs": VM["network_configs"][:1]}, {}, ChangeRefusedError, "name"),
        (taken(), {**VM, "hypervisor": "firecracker"}, {}, ChangeRefusedError, "name"),
    ],
)
def test_restored_refused(
    record: Record | None, vm: Record | None, options: Definition, error: type[CocoonError], option: str
) -> None:
    with pytest.raises(error) as caught:
        planning.plan_restored(record, vm, wanted("restored", **options), True)
    assert caught.value.option == option and caught.value.remedy


# -------------------------------------------------------------------------------------------------------- clones

FULL, DISKS = taken(), taken("cold", kind="disks")


def inherit(snapshot: Record | None, **options: t.Any) -> tuple[Definition, list[Step]]:
    definition = normalise({"name": "new", "snapshot": "warm", **options})
    before = copy.deepcopy((definition, snapshot))
    found = clone.inherit(definition, snapshot)
    assert (definition, snapshot) == before, "the planner changed its input"
    return found


def refused(snapshot: Record, **options: t.Any) -> ChangeRefusedError:
    with pytest.raises(ChangeRefusedError) as caught:
        inherit(snapshot, **options)
    return caught.value


# option: what the snapshot has, as a user writes it; something else
MACHINE = {
    "cpu": (2, 4),
    "memory": ("1G", "2G"),
    "queue_size": (512, 256),
    "disk_queue_size": (256, 512),
    "no_direct_io": (False, True),
    "windows": (False, True),
    "kernel_args": ("quiet", "quiet debug"),
    "watchdog": (True, False),
    "cpu_max": (0, 4),
    "entrypoint": ([], ["/bin/app"]),
    "command": ("", "serve --all"),
    "env": ({}, {"A": "2"}),
    "working_dir": ("", "/srv"),
}


def test_the_table_is_complete() -> None:
    assert set(clone.MACHINE) - {"firmware"} == set(MACHINE)


@pytest.mark.parametrize("option", MACHINE)
def test_a_clones_machine(option: str) -> None:
    same, different = MACHINE[option]
    for snapshot in (FULL, DISKS):
        assert inherit(snapshot)[0][option] == FULL[option]
        assert inherit(snapshot, **{option: same})[0][option] == FULL[option]
    error = refused(FULL, **{option: different})
    assert error.option == option and "cannot be cloned" in error.message and option in error.message
    assert inherit(DISKS, **{option: different})[0][option] != FULL[option]


@pytest.mark.parametrize(
    ("snapshot", "options", "inherited"),
    [
        (FULL, {}, ("qemu", "tcg")),
        (FULL, {"hypervisor": "auto", "accel": "auto"}, ("qemu", "tcg")),
        (FULL, {"hypervisor": "qemu", "accel": "tcg"}, ("qemu", "tcg")),
        (DISKS, {}, ("qemu", None)),
        (DISKS, {"accel": "kvm"}, ("qemu", "kvm")),
    ],
)
def test_a_clones_hypervisor(snapshot: Record, options: Definition, inherited: tuple[str, str | None]) -> None:
    base, later = inherit(snapshot, **options)
    assert (base["hypervisor"], base.get("accel")) == inherited and not later


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"accel": "kvm"}, "accel"),
        ({"hypervisor": "firecracker"}, "hypervisor"),
        ({"image": "debian"}, "image"),
        ({"storage": "5G"}, "storage"),
        ({"user": "me"}, "user"),
        ({"password": "secret-word"}, "password"),
        ({"ssh_keys": [KEY]}, "ssh_keys"),
        ({"balloon": "256M"}, "balloon"),
        ({"nics": [{"network": "lab"}]}, "nics"),
        ({"nics": []}, "nics"),
        ({"data_disks": [{"name": "other", "size": "1G"}]}, "data_disks"),
        ({"data_disks": [{"name": "data1", "size": "512M"}]}, "data_disks[data1]"),
        ({"data_disks": [{"name": "data1", "size": "1G", "fstype": "none"}]}, "data_disks[data1]"),
    ],
)
def test_what_a_clone_cannot_have(options: Definition, named: str) -> None:
    error = refused(FULL, **options)
    assert error.option == named
    assert "secret-word" not in str(error)


@pytest.mark.parametrize("option", ["user", "password", "ssh_keys"])
def test_login_data_is_the_snapshots_even_without_memory(option: str) -> None:
    value = [KEY] if option == "ssh_keys" else "someone"
    assert refused(DISKS, **{option: value}).option == option


def test_all_that_cannot_be_had_is_named_at_once() -> None:
    error = refused(FULL, cpu=4, memory="2G", image="debian", storage="1G", balloon="128M", nics=[])
    assert error.option == "cpu, memory, image, storage, balloon, nics"
    for word in ("cpu is 2", "1G", "tiny", "does not shrink", "2 NICs"):
        assert word in error.message


def test_no_such_snapshot() -> None:
    with pytest.raises(NotFoundError) as caught:
        inherit(None)
    assert caught.value.option == "snapshot"


@pytest.mark.parametrize("image", [None, "tiny", "sha256:aa"])
def test_a_clones_image_is_the_content_that_its_source_had(image: str | None) -> None:
    base, _later = inherit(FULL, **({"image": image} if image else {}))
    assert base["image"] == "sha256:aa"


NEW = {"name": "new", "size": 64 * MIB, "fstype": "ext4", "reattach": False}


@pytest.mark.parametrize(
    ("options", "later"),
    [
        ({"storage": "10G"}, []),
        ({"storage": "12G"}, [kinds.GrowSystemDisk(12 * GIB)]),
        ({"data_disks": [{"name": "data1"}]}, []),
        ({"data_disks": [{"name": "data1", "size": "1G", "fstype": "ext4"}]}, []),
        ({"data_disks": [{"name": "data1", "size": "2G"}]}, [kinds.GrowDataDisk("data1", 2 * GIB)]),
        ({"data_disks": [{"name": "data1"}, {"name": "new", "size": "64M"}]}, [kinds.AddDisk(NEW)]),
    ],
)
def test_what_a_clone_gets_once_it_runs(options: Definition, later: list[Step]) -> None:
    base, steps = inherit(FULL, **options)
    assert steps == later
    assert base["storage"] == FULL["storage"] and base["data_disks"] == FULL["data_disks"]


def test_a_clones_disks_have_limits_of_their_own() -> None:
    limits = {"total": {"iops": 9}}
    more = {"name": "new", "size": "64M", "limits": limits}
    base, steps = inherit(FULL, limits=limits, data_disks=[{"name": "data1", "limits": limits}, more])
    assert steps == [kinds.AddDisk({**NEW, "limits": limits})] and base["limits"] == limits
    assert base["data_disks"] == [{**FULL["data_disks"][0], "limits": limits}]
    assert "limits" not in FULL["data_disks"][0]


def test_a_new_disk_of_a_clone_needs_a_size() -> None:
    with pytest.raises(InputError) as caught:
        inherit(FULL, data_disks=[{"name": "data1"}, {"name": "new"}])
    assert caught.value.option == "data_disks[1].size"


@pytest.mark.parametrize(
    ("have", "options", "balloon", "later"),
    [
        (None, {}, "off", []),
        (None, {"balloon": "off"}, "off", []),
        (256 * MIB, {}, 256 * MIB, []),
        (256 * MIB, {"balloon": "256M"}, 256 * MIB, []),
        (256 * MIB, {"balloon": "128M"}, 256 * MIB, [kinds.SetBalloon(128 * MIB)]),
    ],
)
def test_a_clones_balloon(have: int | None, options: Definition, balloon: t.Any, later: list[Step]) -> None:
    base, steps = inherit(taken(balloon=have), **options)
    assert (base["balloon"], steps) == (balloon, later)


def test_a_balloon_is_there_or_not() -> None:
    assert refused(taken(balloon=256 * MIB), balloon="off").option == "balloon"


@pytest.mark.parametrize(
    ("options", "networks"),
    [
        ({}, ["lab", "dmz"]),
        ({"network": "other"}, ["other", "dmz"]),
        ({"network": "lab"}, ["lab", "dmz"]),
        ({"nics": [{"network": "dmz"}, {"network": "lab"}]}, ["dmz", "lab"]),
    ],
)
def test_a_clones_networks(options: Definition, networks: list[str]) -> None:
    base, _later = inherit(FULL, **options)
    assert [nic["network"] for nic in base["nics"]] == networks
    assert not any("mac" in nic or "ip" in nic for nic in base["nics"])


def test_without_memory_a_clone_has_the_nics_that_it_is_given() -> None:
    assert inherit(DISKS, nics=[])[0]["nics"] == []
    assert len(inherit(DISKS, nics=[{"network": "lab"}] * 3)[0]["nics"]) == 3


def test_a_source_without_a_network() -> None:
    base, _later = inherit(taken(network="", nic_networks=[], nic_configs=[], nics=0))
    assert base["nics"] == [] and "network" not in base


@pytest.mark.parametrize("key", ["kept_disks", "detached_disks"])
def test_kept_disks_of_an_earlier_vm_are_not_overwritten(key: str) -> None:
    record = {"id": "x", "state": "removed", "config": {"name": "new"}, key: [{"name": "data1", "size": GIB}]}
    with pytest.raises(ChangeRefusedError, match="data1 of an earlier VM") as caught:
        clone.check_kept(record, FULL)
    assert "force: true" in (caught.value.remedy or "")
    clone.check_kept(record, taken(data_disks=[]))
    clone.check_kept(None, FULL)


# --------------------------------------------------------------------------------------- plans of whole VMs

IMAGE = {
    "id": "sha256:aa",
    "digest": "sha256:aa",
    "name": "tiny",
    "type": "oci",
    "boot": {"kernel_path": "/k", "initrd_path": "/i"},
    "disk": None,
    "features": [],
}
IMAGES = dict.fromkeys(("tiny", "sha256:aa"), IMAGE)
IMAGES["other"] = {**IMAGE, "id": "sha256:bb", "digest": "sha256:bb", "name": "other"}
NETWORKS = {
    "lab": {"name": "lab", "subnet": "10.1.0.0/24", "gateway": "10.1.0.1", "mtu": 0},
    "dmz": {"name": "dmz", "subnet": "10.2.0.0/24", "gateway": "10.2.0.1", "mtu": 9000},
    "flat": {"name": "flat", "subnet": None, "gateway": None, "mtu": 1400},
}
ABLE = dict.fromkeys(
    ("bios", "qcow2", "hotplug_disks", "live_disk_resize", "balloon", "watchdog", "guest_data", "snapshots"), True
)
CAPABILITIES = types.SimpleNamespace(**ABLE, uefi=False)
PROBE = types.SimpleNamespace(available=True, reason=None, accels=("kvm", "tcg"), firmware=("bios",))


def plan(
    record: Record | None,
    observed: Observed = DOWN,
    snapshots: t.Sequence[Record] = (FULL, DISKS),
    capabilities: t.Any = CAPABILITIES,
    **definition: t.Any,
) -> Plan:
    """Load what the planner says that it needs, and nothing else, as the executor does."""
    wanted = normalise({"name": "web1", **definition})
    before = copy.deepcopy(record)
    required = needs(record, wanted, observed)
    known = {snapshot["name"]: snapshot for snapshot in snapshots}
    given = {name: known.get(name) for name in required.snapshots}
    if given:
        required = needs(record, wanted, observed, given)
    drivers = {"qemu" if name == "auto" else name for name in required.drivers}
    context = Context(
        images={name: IMAGES.get(name) for name in required.images},
        networks={name: NETWORKS.get(name) for name in required.networks},
        snapshots=given,
        probes=t.cast(t.Any, dict.fromkeys(drivers, PROBE)),
        capabilities=t.cast(t.Any, dict.fromkeys(drivers, capabilities)),
        auto=("qemu",) if "auto" in required.drivers else (),
        owner_default="store-1",
    )
    found = plan_vm(record, observed, wanted, context)
    assert record == before, "the planner changed its input"
    return found


def test_disks_only_is_for_clones_and_is_passed_on() -> None:
    with pytest.raises(InputError) as caught:
        normalise({"name": "web1", "image": "tiny", "disks_only": True})
    assert caught.value.option == "disks_only" and caught.value.remedy
    assert plan(None, snapshot="cold", disks_only=True).diff["after"]["disks_only"] is True
    assert "disks_only" not in (plan(None, snapshot="cold", disks_only=False).wanted or {})


def names(found: Plan) -> list[str]:
    return [step.name for step in found.steps]


CLONES = [
    ({"snapshot": "warm", "state": "present"}, ["create"]),
    ({"snapshot": "warm", "state": "stopped"}, ["create"]),
    ({"snapshot": "warm", "state": "started"}, ["create", "start"]),
    ({"snapshot": "warm", "state": "restarted"}, ["create", "start"]),
    ({"snapshot": "warm", "state": "paused"}, ["create", "start", "pause"]),
    ({"snapshot": "warm", "state": "started", "storage": "12G"}, ["create", "start", "grow_system_disk"]),
    (
        {"snapshot": "warm", "state": "started", "data_disks": [{"name": "data1"}, {"name": "new", "size": "64M"}]},
        ["create", "start", "add_disk"],
    ),
    ({"snapshot": "cold", "state": "present"}, ["create"]),
    ({"snapshot": "cold", "state": "started", "cpu": 4, "memory": "2G"}, ["create", "start"]),
]


@pytest.mark.parametrize(("definition", "expected"), CLONES)
def test_cloning(definition: Definition, expected: list[str]) -> None:
    found = plan(None, **definition)
    assert (names(found), found.action) == (expected, "create")
    assert found.wanted is not None
    assert found.wanted["snapshot"] == definition["snapshot"]
    assert found.wanted["snapshot_id"] == f"id-{definition['snapshot']}"
    assert found.wanted["image"] == "tiny" and found.wanted["image_digest"] == "sha256:aa"
    assert found.diff["after"]["snapshot"] == definition["snapshot"]
    assert "snapshot_id" not in found.diff["after"]


def test_a_clone_that_is_not_started_cannot_grow() -> None:
    with pytest.raises(ChangeRefusedError, match="grows when it runs"):
        plan(None, snapshot="warm", state="present", storage="12G")


def test_a_clone_cannot_begin_hibernated() -> None:
    with pytest.raises(ChangeRefusedError):
        plan(None, snapshot="warm", state="hibernated")


def test_a_clones_networks_have_the_mtu_that_its_guest_goes_on_with() -> None:
    nics = [{"network": "flat"}, {"network": "dmz"}]
    with pytest.raises(InputError, match="MTU of 1400") as caught:
        plan(None, snapshot="warm", nics=nics)
    assert caught.value.option == "nics[0].network"
    assert names(plan(None, snapshot="cold", nics=nics)) == ["create"]


def test_a_clone_needs_its_snapshot_first_and_what_that_says_then() -> None:
    definition = normalise({"name": "new", "snapshot": "warm"})
    assert needs(None, definition).snapshots == ("warm",)
    required = needs(None, definition, None, {"warm": FULL})
    assert (required.images, required.networks, required.drivers) == (("sha256:aa",), ("lab", "dmz"), ("qemu",))
    with pytest.raises(NotFoundError):
        needs(None, definition, None, {"warm": None})


def made(state: str = "running", **changes: t.Any) -> Record:
    """A VM that is there."""
    record: Record = {
        "id": "vm-1",
        "hypervisor": "qemu",
        "state": state,
        "config": {
            **{key: FULL[key] for key in ("cpu", "memory", "storage", "queue_size", "disk_queue_size", "image")},
            **{key: FULL[key] for key in ("network", "no_direct_io", "windows")},
            "name": "web1",
        },
        "network_configs": [{"network_name": "lab", "mac": "02:00:00:00:00:01", "network": {"ip": "10.1.0.2"}}],
        "image_type": "oci",
        **{key: FULL[key] for key in ("image_id", "image_digest", "accel", "kernel_args", "watchdog", "cpu_max")},
        "owner": "store-1",
        "labels": {},
        "balloon": None,
        "ports": [],
        "data_disks": [{"name": "data1", "size": GIB, "fstype": "ext4"}],
        "detached_disks": [],
        "login": {"salt": "", "digests": {}},
    }
    return {**record, **changes}


RESUME = {"memory": "copy", "layout": {}, "disks": {}, "hold": False}
CLONED = made("created", resume={**RESUME, "memory": "map"}, snapshot="warm", snapshot_id="id-warm")
ASLEEP = made("hibernated", resume=RESUME)
FAILED = made("error", resume=RESUME)
RESTORED = made("stopped", resume=RESUME, restarting=True)
SAVING, SAVING_PAUSED = made("running", phase="save"), made("paused", phase="save")
FALLING_ASLEEP = made("hibernated", resume=RESUME, phase="hibernate")
WAKING = made("hibernated", resume=RESUME, phase="start")
STARTING_CLONE = {**CLONED, "phase": "start"}
RESTORING = made("running", phase="restore", restore={"snapshot_id": "id-warm", "runs": True})
RESTORING_STOPPED = made("stopped", phase="restore", restore={"snapshot_id": "id-cold", "runs": False})
STRANGER = made("running", identity_pending=["02:00:00:00:00:09"], memory_mode=PRIVATE)

ROWS: list[tuple[str, Record, Observed, Definition, t.Any]] = [
    # what, record, process, definition, steps or words of the refusal
    ("running", made(), UP, {"state": "paused"}, ["pause"]),
    ("running", made(), UP, {"state": "hibernated"}, ["hibernate"]),
    ("paused", made("paused"), STANDING, {"state": "present"}, []),
    ("paused", made("paused"), STANDING, {"state": "paused"}, []),
    ("paused", made("paused"), STANDING, {"state": "started"}, ["resume"]),
    ("paused", made("paused"), STANDING, {"state": "hibernated"}, ["hibernate"]),
    ("paused", made("paused"), STANDING, {"state": "stopped"}, ["stop"]),
    ("paused", made("paused"), STANDING, {"state": "restarted"}, ["stop", "start"]),
    ("paused", made("paused"), STANDING, {"state": "absent"}, ["stop", "remove"]),
    ("paused clone", {**STRANGER, "state": "paused"}, STANDING, {"state": "present"}, []),
    ("paused clone", {**STRANGER, "state": "paused"}, STANDING, {"state": "started"}, ["resume", "identify"]),
    ("paused, untold", made("paused", untold_nics=["m"]), STANDING, {"state": "present"}, []),
    ("paused, untold", made("paused", untold_nics=["m"]), STANDING, {"state": "started"}, ["resume", "plug_nics"]),
    ("paused, gone", made("paused"), DOWN, {"state": "present"}, []),
    ("paused, gone", made("paused"), DOWN, {"state": "paused"}, ["start", "pause"]),
    ("paused, gone", made("paused"), DOWN, {"state": "stopped"}, ["stop"]),
    ("stopped", made("stopped"), DOWN, {"state": "paused"}, ["start", "pause"]),
    ("stopped", made("stopped"), DOWN, {"state": "hibernated"}, "does not run"),
    ("created", made("created"), DOWN, {"state": "hibernated"}, "does not run"),
    ("error", made("error"), DOWN, {"state": "hibernated"}, "does not run"),
    # a clone that has not been started
    ("clone", CLONED, DOWN, {"state": "present"}, []),
    ("clone", CLONED, DOWN, {"state": "present", "snapshot": "warm"}, []),
    ("clone", CLONED, DOWN, {"state": "present", "snapshot": "cold"}, "a VM is cloned when it is made"),
    ("no clone", made(), UP, {"state": "present", "snapshot": "warm"}, "a VM is cloned when it is made"),
    ("clone", CLONED, DOWN, {"state": "stopped"}, []),
    ("clone", CLONED, DOWN, {"state": "started"}, ["start"]),
    ("clone", CLONED, DOWN, {"state": "restarted"}, ["start"]),
    ("clone", CLONED, DOWN, {"state": "paused"}, ["start", "pause"]),
    ("clone", CLONED, DOWN, {"state": "hibernated"}, "does not run"),
    ("clone", CLONED, DOWN, {"state": "absent"}, ["remove"]),
    # a hibernated VM
    ("hibernated", ASLEEP, DOWN, {"state": "present"}, []),
    ("hibernated", ASLEEP, DOWN, {"state": "hibernated"}, []),
    ("hibernated", ASLEEP, DOWN, {"state": "started"}, ["start"]),
    ("hibernated", ASLEEP, DOWN, {"state": "paused"}, ["start", "pause"]),
    ("hibernated", ASLEEP, DOWN, {"state": "stopped"}, "would lose what is in its memory"),
    ("hibernated", ASLEEP, DOWN, {"state": "restarted"}, "would lose what is in its memory"),
    ("hibernated", ASLEEP, DOWN, {"state": "stopped", "force": True}, ["stop"]),
    ("hibernated", ASLEEP, DOWN, {"state": "restarted", "force": True}, ["stop", "start"]),
    ("hibernated", ASLEEP, DOWN, {"state": "absent"}, ["remove"]),
    ("failed to go on", FAILED, DOWN, {"state": "present"}, []),
    ("failed to go on", FAILED, DOWN, {"state": "started"}, ["start"]),
    ("failed to go on", FAILED, DOWN, {"state": "stopped"}, "would lose what is in its memory"),
    ("failed to go on", FAILED, DOWN, {"state": "stopped", "force": True}, ["stop"]),
    # what a killed run leaves
    ("killed save", SAVING, STANDING, {"state": "present"}, ["resume"]),
    ("killed save", SAVING, STANDING, {"state": "started"}, ["resume"]),
    ("killed save", SAVING, STANDING, {"state": "paused"}, ["pause"]),
    ("killed save", SAVING, STANDING, {"state": "hibernated"}, ["hibernate"]),
    ("killed save", SAVING, STANDING, {"state": "stopped"}, ["stop"]),
    ("killed save", SAVING, STANDING, {"state": "absent"}, ["stop", "remove"]),
    ("killed save of a paused one", SAVING_PAUSED, STANDING, {"state": "present"}, []),
    ("killed save of a paused one", SAVING_PAUSED, STANDING, {"state": "paused"}, []),
    ("killed save of a paused one", SAVING_PAUSED, STANDING, {"state": "started"}, ["resume"]),
    ("killed hibernation", FALLING_ASLEEP, DOWN, {"state": "present"}, ["hibernate"]),
    ("killed hibernation", FALLING_ASLEEP, DOWN, {"state": "hibernated"}, ["hibernate"]),
    ("killed hibernation", FALLING_ASLEEP, DOWN, {"state": "started"}, ["start"]),
    ("killed hibernation", FALLING_ASLEEP, DOWN, {"state": "stopped"}, "would lose what is in its memory"),
    ("killed start", WAKING, DOWN, {"state": "started"}, ["start"]),
    ("killed start", WAKING, DOWN, {"state": "present"}, ["stop"]),
    ("killed start", WAKING, DOWN, {"state": "stopped"}, "would lose what is in its memory"),
    ("killed start of a clone", STARTING_CLONE, DOWN, {"state": "present"}, ["stop"]),
    ("killed start of a clone", STARTING_CLONE, DOWN, {"state": "stopped"}, ["stop"]),
    ("killed start of a clone", STARTING_CLONE, DOWN, {"state": "started"}, ["start"]),
    ("restored, not started", RESTORED, DOWN, {"state": "present"}, ["start"]),
    ("restored, not started", RESTORED, DOWN, {"state": "started"}, ["start"]),
    ("killed restore", RESTORING, DOWN, {"state": "present"}, ["restore"]),
    ("killed restore", RESTORING, UP, {"state": "present"}, ["restore"]),
    ("killed restore", RESTORING, DOWN, {"state": "started"}, ["restore"]),
    ("killed restore", RESTORING, DOWN, {"state": "stopped"}, ["restore", "stop"]),
    ("killed restore", RESTORING, UP, {"state": "restarted"}, ["restore", "stop", "start"]),
    ("killed restore", RESTORING, DOWN, {"state": "paused"}, ["restore", "pause"]),
    ("killed restore", RESTORING, DOWN, {"state": "hibernated"}, ["restore", "hibernate"]),
    ("killed restore", RESTORING, DOWN, {"state": "absent"}, ["remove"]),
    ("killed restore of a stopped one", RESTORING_STOPPED, DOWN, {"state": "present"}, ["restore"]),
    ("killed restore of a stopped one", RESTORING_STOPPED, DOWN, {"state": "started"}, ["restore", "start"]),
    # a clone whose guest does not know yet who it is
    ("stranger", STRANGER, UP, {"state": "present"}, ["identify"]),
    ("stranger", STRANGER, UP, {"state": "started"}, ["identify"]),
    ("stranger", STRANGER, UP, {"state": "paused"}, ["pause"]),
    ("stranger", STRANGER, UP, {"state": "stopped"}, ["stop"]),
    ("stranger", STRANGER, UP, {"state": "hibernated"}, ["identify", "hibernate"]),
    ("stranger, gone", STRANGER, DOWN, {"state": "present"}, []),
    ("paused stranger", {**STRANGER, "state": "paused"}, STANDING, {"state": "started"}, ["resume", "identify"]),
]


def row_id(row: tuple[str, Record, Observed, Definition, t.Any]) -> str:
    return f"{row[0]}-{row[3]['state']}{'-force' if row[3].get('force') else ''}"


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_row(row: tuple[str, Record, Observed, Definition, t.Any]) -> None:
    _what, record, observed, definition, expected = row
    if isinstance(expected, str):
        with pytest.raises(ChangeRefusedError, match=expected) as caught:
            plan(record, observed, **definition)
        assert caught.value.option and caught.value.remedy
        return
    found = plan(record, observed, **definition)
    assert names(found) == expected
    assert found.changed == bool(expected) == (found.action != "none")
    assert not expected or found.diff["before"] != found.diff["after"]


@pytest.mark.parametrize(("record", "keeps"), [(WAKING, True), (STARTING_CLONE, True), (made(phase="start"), False)])
def test_undoing_a_start_does_not_lose_a_saved_memory(record: Record, keeps: bool) -> None:
    step = plan({**record, "state": record["state"]}, state="present").step(kinds.Stop)
    assert step is not None and step.keep == keeps


def test_losing_a_saved_memory_takes_it_all() -> None:
    step = plan(WAKING, state="stopped", force=True).step(kinds.Stop)
    assert step is not None and not step.keep


def test_a_driver_that_cannot_save() -> None:
    able = types.SimpleNamespace(**{**ABLE, "snapshots": False}, uefi=False)
    with pytest.raises(CocoonError, match="cannot save a running VM"):
        plan(made(), UP, capabilities=able, state="hibernated")
    assert names(plan(ASLEEP, capabilities=able, state="hibernated")) == []


def test_what_needs_no_driver_asks_for_none() -> None:
    for record, observed, state in ((ASLEEP, DOWN, "hibernated"), (made("paused"), STANDING, "paused")):
        assert not needs(record, normalise({"name": "web1", "state": state}), observed).driver


# ------------------------------------------------------------------ changes to VMs that go on from a saved state

BIGGER = {"data_disks": [{"name": "data1", "size": "2G"}]}
MORE = {"data_disks": [{"name": "data1"}, {"name": "new", "size": "64M"}]}
FEWER: Definition = {"data_disks": []}
UNPLUGGED = {"data_disks": [{"name": "data1", "attached": False}]}
CHANGES: list[tuple[str, Definition, t.Any, t.Any]] = [
    # what, change, steps of present, steps of started; or words of the refusal
    ("labels", {"labels": {"a": "b"}}, ["configure"], ["configure", "start"]),
    ("ports", {"ports": ["8080:80"]}, ["set_ports"], ["set_ports", "start"]),
    ("cpu", {"cpu": 4}, "allow_restart", "allow_restart"),
    ("cpu", {"cpu": 4, "allow_restart": True}, ["stop", "configure"], ["stop", "configure", "start"]),
    ("memory", {"memory": "2G"}, "allow_restart", "allow_restart"),
    ("kernel_args", {"kernel_args": "debug"}, "allow_restart", "allow_restart"),
    ("storage", {"storage": "12G"}, "allow_restart", "allow_restart"),
    (
        "storage",
        {"storage": "12G", "allow_restart": True},
        ["stop", "grow_system_disk"],
        ["stop", "grow_system_disk", "start"],
    ),
    ("nics", {"nics": [{"network": "dmz"}]}, "allow_restart", "allow_restart"),
    ("balloon", {"balloon": "256M"}, "allow_restart", "allow_restart"),
    ("disk grows", BIGGER, "only when it runs", ["start", "grow_data_disk"]),
    ("disk added", MORE, "only when it runs", ["start", "add_disk"]),
    ("disk dropped", FEWER, "allow_restart", "allow_restart"),
    ("disk unplugged", UNPLUGGED, "only when it runs", ["start", "drop_disk"]),
    ("image", {"image": "other"}, "recreate", "recreate"),
    ("image", {"image": "other", "recreate": True}, ["stop", "rebuild"], ["stop", "rebuild", "start"]),
]


@pytest.mark.parametrize("record", [ASLEEP, CLONED], ids=["hibernated", "clone"])
@pytest.mark.parametrize("state", ["present", "started"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change[0] + ("-allowed" if len(change[1]) > 1 else ""))
def test_changes_of_a_saved_vm(change: tuple[str, Definition, t.Any, t.Any], state: str, record: Record) -> None:
    _what, options, when_present, when_started = change
    expected = when_present if state == "present" else when_started
    if isinstance(expected, str):
        with pytest.raises(CocoonError) as caught:
            plan(record, state=state, **options)
        assert expected in str(caught.value)
        return
    assert names(plan(record, state=state, **options)) == expected


@pytest.mark.parametrize(
    ("record", "state", "expected"),
    [
        (made("stopped"), "present", ["grow_data_disk"]),
        (made("stopped"), "started", ["grow_data_disk", "start"]),  # offline, the file system with it
        (ASLEEP, "started", ["start", "grow_data_disk"]),  # its memory knows the disk as it was
        (CLONED, "started", ["start", "grow_data_disk"]),
        (ASLEEP, "paused", ["start", "grow_data_disk", "pause"]),
    ],
)
def test_disks_grow_before_a_boot_and_after_a_resume(record: Record, state: str, expected: list[str]) -> None:
    assert names(plan(record, state=state, **BIGGER)) == expected


def test_a_balloon_of_a_saved_vm_is_set_when_it_runs() -> None:
    record = {**ASLEEP, "balloon": 256 * MIB}
    assert names(plan(record, state="started", balloon="128M")) == ["start", "set_balloon"]
    with pytest.raises(ChangeRefusedError, match="only when it runs"):
        plan(record, state="present", balloon="128M")


def test_a_paused_vm_stays_paused_through_a_live_change() -> None:
    assert names(plan(made("paused"), STANDING, state="present", labels={"a": "b"})) == ["configure"]
    assert names(plan(made("paused"), STANDING, state="paused", labels={"a": "b"})) == ["configure"]


def test_a_restart_ends_in_the_state_that_is_asked_for() -> None:
    """A change that needs a restart, of VMs that stand still."""
    change = {"cpu": 4, "allow_restart": True}
    assert names(plan(made("paused"), STANDING, state="paused", **change)) == ["stop", "configure", "start", "pause"]
    with pytest.raises(ChangeRefusedError):
        plan(made(), UP, state="paused", cpu=4)
