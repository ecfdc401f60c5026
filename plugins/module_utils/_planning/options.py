# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of a VM, one row each: the only place where a plain option stands.

From here come the argument spec, the check of a value, the default, the comparison with a record, what the record
keeps, what a driver has to be able to do, and what a saved machine fixes: for clones, restores and archives.
docs/changes.md has the same rows in words; a test holds the two together.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._planning import checks
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.defaults import (
    DISK_UNIT,
    MAX_CPU,
    MEMORY_UNIT,
    MIN_CPU,
    MIN_MEMORY,
    MIN_STORAGE,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import (
    BIOS,
    LIVE,
    REBUILD,
    RESTART,
    RESTORE_COPY,
    RESTORE_ON_DEMAND,
    UEFI,
    Definition,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._types import GIB, HYPERVISORS, MIN_DATA_DISK, Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import VmRecord

Spec = dict[str, t.Any]

STATES = ("present", "started", "stopped", "restarted", "paused", "hibernated", "absent")
QUEUE = 512
NONE: t.Any = object()

BOOL: Spec = {"type": "bool"}
INT: Spec = {"type": "int"}
STR: Spec = {"type": "str"}
DICT: Spec = {"type": "dict"}
RAW: Spec = {"type": "raw"}
SECRET: Spec = {"type": "str", "no_log": True}

VARIABLE = r"^[A-Za-z_][A-Za-z0-9_.-]{0,255}\Z"
WORD = {"type": "string", "maxLength": checks.MAX_WORD, "pattern": r"^[^\x00]*\Z"}
WORDS = {"type": "array", "maxItems": 1024, "items": WORD}


@dataclasses.dataclass(frozen=True)
class Option:
    """One option.

    :param spec: for Ansible.
    :param check: gives the value in the form that is compared and kept, or raises InputError.
    :param default: what it is when it was never given; ``NONE`` = that is decided elsewhere.
    :param at: where the record keeps it: ``config``, as the Go engine does, or ``record``, beside that.
    :param how: a change of it on a running VM is made by that; empty: it has a comparison of its own.
    :param of_disk: how it is on a VM whose image is a disk, which hears of it at its first boot only, if otherwise.
    :param auto: ``auto`` matches whatever is recorded.
    :param needs: the capability of the driver that it takes, where *asks* is true of its value.
    :param lacks: what a driver without that cannot do, in words.
    :param instead: the value where it is not given and the driver cannot do it; ``NONE`` = refused.
    :param machine: a saved machine fixes it: for clones and restores, and in archives.
    :param schema: of its field among our own in an archive; those of the Go engine are elsewhere.
    :param container: it is for the command of a container image.
    :param size: it is shown as a size.
    """

    name: str
    spec: Spec
    check: checks.Check
    default: t.Any = NONE
    at: str = ""
    how: str = ""
    of_disk: str = ""
    auto: bool = False
    needs: str = ""
    lacks: str = ""
    asks: t.Callable[[t.Any], bool] = bool
    instead: t.Any = NONE
    machine: bool = False
    schema: Record | None = None
    container: bool = False
    size: bool = False


def _fields(*rows: tuple[str, Spec, checks.Check]) -> tuple[Spec, dict[str, checks.Check]]:
    """The argument spec of suboptions, and their checks."""
    return {name: spec for name, spec, _check in rows}, {name: check for name, _spec, check in rows}


def _word(*words: str, **more: t.Any) -> tuple[Spec, checks.Check]:
    """The spec and the check of one word out of these."""
    return {"type": "str", "choices": list(words), **more}, checks.choice(*words)


def _list(elements: str, **more: t.Any) -> Spec:
    return {"type": "list", "elements": elements, **more}


def _plain(name: str, spec: Spec, check: checks.Check, default: t.Any, how: str = RESTART, **more: t.Any) -> Option:
    """An option that has one value in the record and is compared by it."""
    return Option(name, spec, check, default, more.pop("at", "record"), how, **more)


def _go(name: str, spec: Spec, check: checks.Check, default: t.Any, how: str = RESTART, **more: t.Any) -> Option:
    """One of the Go engine's: it is in its config, and a saved machine has it."""
    return Option(name, spec, check, default, "config", how, machine=True, **more)


def _container(name: str, spec: Spec, check: checks.Check, default: t.Any, schema: Record) -> Option:
    return Option(name, spec, check, default, "record", RESTART, machine=True, container=True, schema=schema)


_METRIC = checks.integer(1, checks.MAX_METRIC)
_ROUTE: Spec = {"to": {"type": "str", "required": True}, "via": STR, "metric": INT}
_LIMIT: Spec = {"type": "dict", "options": {"rate": {"type": "str", "required": True}, "burst": STR}}
_DISK_LIMIT: Spec = {"type": "dict", "options": {"rate": STR, "burst": STR, "iops": INT}}
_DISK_LIMITS: tuple[Spec, checks.Check] = (
    {"type": "dict", "options": dict.fromkeys(("total", "read", "write"), _DISK_LIMIT)},
    checks.disk_limits,
)
_NIC_SPEC, _NIC_CHECKS = _fields(
    ("network", STR, checks.name),
    ("mac", STR, checks.mac),
    ("ip", STR, checks.address),
    ("ip6", STR, checks.address6),
    ("default_route", BOOL, checks.flag),
    ("gateway", STR, checks.address),
    ("gateway6", STR, checks.gateway6),
    ("metric", INT, _METRIC),
    ("routes", _list("dict", options=_ROUTE), checks.routes),
    ("dhcp", BOOL, checks.flag),
    ("vlan", INT, checks.integer(1, checks.MAX_VLAN)),
    ("limits", {"type": "dict", "options": {"rx": _LIMIT, "tx": _LIMIT}}, checks.limits),
)
_DISK_SPEC, _DISK_CHECKS = _fields(
    ("name", {"type": "str", "required": True}, checks.disk_name),
    ("size", {"type": "str", "required": True}, checks.size(MIN_DATA_DISK, DISK_UNIT)),
    ("fstype", *_word("ext4", "none")),
    ("limits", *_DISK_LIMITS),
    ("attached", BOOL, checks.flag),
)

_LOGIN = "cannot pass login data to a guest"
_APART = "does not tell reads from writes where it limits a disk, but takes a total of both"


def tells_apart(limits: t.Mapping[str, t.Any] | None) -> bool:
    """Whether limits of a disk are of reads or writes alone."""
    return bool(limits) and "total" not in t.cast("t.Mapping[str, t.Any]", limits)


_RESOURCES = (
    _plain("hypervisor", *_word("auto", *HYPERVISORS), NONE, REBUILD, auto=True),
    _plain("accel", *_word("auto", "kvm", "tcg"), NONE, auto=True),
    Option("image", STR, checks.image, at="config", needs="qcow2", lacks="cannot use disk images (qcow2)"),
    Option("snapshot", STR, checks.snapshot, lacks="cannot go on from a saved state"),
    # More of them, up to what the running machine has room for, are a comparison of their own.
    _go("cpu", INT, checks.integer(MIN_CPU, MAX_CPU), 2, how=""),
    _plain(
        *("cpu_max", INT, checks.integer(0, MAX_CPU), 0),
        needs="live_cpus",
        lacks="gives a running guest no more vCPUs",
        machine=True,
        schema={"type": "integer", "minimum": 0, "maximum": MAX_CPU},
    ),
    _go("memory", STR, checks.size(MIN_MEMORY, MEMORY_UNIT), GIB, size=True),
    _plain(
        *("memory_backing", *_word("ram", "disk"), "ram"),
        needs="ram_file",
        lacks="keeps a guest's memory in no file",
        asks=lambda value: value == "disk",
    ),
    _plain(
        *("restore_mode", *_word(RESTORE_COPY, RESTORE_ON_DEMAND), None, LIVE),
        needs="ram_file",
        lacks="reads a saved memory as its guest needs it, and copies none beforehand",
        asks=lambda value: value == RESTORE_COPY,
    ),
    # The Go engine's default, as those above.
    Option("storage", STR, checks.size(MIN_STORAGE, DISK_UNIT), 10 * GIB, at="config", size=True),
    # Of the system disk; data disks have their own.
    Option(*("limits", *_DISK_LIMITS, {}), at="record", needs="read_write_limits", lacks=_APART, asks=tells_apart),
    _go("queue_size", INT, checks.queue(256, QUEUE), QUEUE),
    _go("disk_queue_size", INT, checks.queue(16, QUEUE), QUEUE),
    _go("no_direct_io", BOOL, checks.flag, False),
    _go(
        *("windows", BOOL, checks.flag, False, REBUILD),
        needs="uefi",
        lacks="boots no Windows guests, which need UEFI",
    ),
    Option("network", STR, checks.name, None, at="config"),
    Option("nics", _list("dict", options=_NIC_SPEC), checks.nics(_NIC_CHECKS)),
    Option("ports", _list("str"), checks.ports, [], at="record"),
    Option(
        *("data_disks", _list("dict", options=_DISK_SPEC), checks.data_disks(_DISK_CHECKS)),
        needs="read_write_limits",
        lacks=_APART,
        asks=lambda disks: any(tells_apart(disk.get("limits")) for disk in disks or ()),
    ),
    # A balloon exists only when asked for: its holes in a snapshot's RAM file would reach the clones.
    Option(
        *("balloon", STR, checks.balloon, None),
        at="record",
        needs="balloon",
        lacks="has no balloon device",
        asks=lambda value: value not in (None, "off"),
        size=True,
    ),
    _plain(
        *("watchdog", BOOL, checks.flag, True),
        needs="watchdog",
        lacks="has no watchdog device",
        instead=False,
        machine=True,
        schema={"type": "boolean"},
    ),
    _plain(
        *("kernel_args", STR, checks.kernel_args, ""),
        machine=True,
        schema={"type": "string", "maxLength": checks.MAX_KERNEL_ARGS, "pattern": r"^[^\x00-\x1f\x7f]*\Z"},
    ),
    _container("entrypoint", RAW, checks.words, [], WORDS),
    _container("command", RAW, checks.words, [], WORDS),
    _container(
        *("env", DICT, checks.environment, {}),
        {"type": "object", "propertyNames": {"pattern": VARIABLE}, "additionalProperties": WORD},
    ),
    Option("secret_env", {"type": "dict", "no_log": True}, checks.secret_environment, {}),
    _container(
        *("working_dir", STR, checks.working_dir, ""),
        {"type": "string", "maxLength": 4096, "pattern": r"^(/[^\x00-\x1f\x7f]*)?\Z"},
    ),
    _plain("hostname", STR, checks.hostname, "", of_disk=REBUILD),
    Option("user", STR, checks.user, None, lacks=_LOGIN),
    Option("password", SECRET, checks.password, None, lacks=_LOGIN),
    Option("ssh_keys", _list("str", no_log=False), checks.ssh_keys, None, lacks=_LOGIN),
    Option("user_data", SECRET, checks.user_data, None, lacks="cannot pass data to a guest"),
    _plain(
        *("firmware", *_word(UEFI, BIOS), None),
        needs="uefi",
        lacks="boots nothing by UEFI",
        asks=lambda value: value == UEFI,
        machine=True,
    ),
    _plain("labels", DICT, checks.labels, {}, LIVE),
    Option("owner", STR, checks.line("the owner", 256), at="record"),
)
# How a task goes about it: never compared, never recorded.
_CONTROLS = (
    Option(
        "wait_for", *_word("process", "console", "ping", "port", "agent"), lacks="has no way to an agent in the guest"
    ),
    Option("wait_port", INT, checks.integer(1, 65535)),
    Option("wait_pattern", STR, checks.pattern),
    Option("timeout", INT, checks.seconds),
    Option("stop_timeout", INT, checks.seconds),
    Option("pull", *_word("missing", "always", "never")),
    Option("disks_only", BOOL, checks.flag),
    Option("allow_restart", BOOL, checks.flag),
    Option("recreate", BOOL, checks.flag),
    Option("accept_login", BOOL, checks.flag),
    Option("force", BOOL, checks.flag),
)
_NAMES = (
    Option("name", {"type": "str", "required": True}, checks.name),
    Option("state", *_word(*STATES, default="present"), lacks="cannot save a running VM"),
)

OPTIONS: t.Mapping[str, Option] = {row.name: row for row in (*_NAMES, *_RESOURCES, *_CONTROLS)}
# Those whose comparison is that of two values.
PLAIN: tuple[Option, ...] = tuple(row for row in _RESOURCES if row.how)
# What changes with a new system disk.
REBUILT: tuple[str, ...] = tuple(row.name for row in PLAIN if REBUILD in (row.how, row.of_disk))
# What a VM is when an option was never given; applies at creation only.
DEFAULTS: t.Mapping[str, t.Any] = {row.name: row.default for row in _RESOURCES if row.default is not NONE}
CONTAINER: tuple[str, ...] = tuple(row.name for row in _RESOURCES if row.container)
# What the saved state of a running machine fixes; a snapshot of disks alone leaves it open.
MACHINE: tuple[str, ...] = tuple(row.name for row in _RESOURCES if row.machine)
AUTO: tuple[str, ...] = tuple(row.name for row in _RESOURCES if row.auto)
SIZES: tuple[str, ...] = tuple(row.name for row in _RESOURCES if row.size)
NEEDY: tuple[Option, ...] = tuple(row for row in _RESOURCES if row.needs)
# Fields of a machine among our own in an archive.
ARCHIVED: t.Mapping[str, Record] = {row.name: row.schema for row in _RESOURCES if row.schema is not None}


def vm_options() -> Spec:
    """The argument spec of one VM: the options of ``cocoon_vm``, and the suboptions of ``cocoon_vms``."""
    return {row.name: row.spec for row in OPTIONS.values()}


def listed_vm_options() -> Spec:
    """The argument spec of a VM in a list, which may stand for several."""
    return {**vm_options(), "count": {"type": "int"}}


def value_of(record: VmRecord, option: str) -> t.Any:
    """What a VM's record says of an option; ``None`` if it says nothing."""
    return (record.get("config", {}) if OPTIONS[option].at == "config" else record).get(option)


def fields_of(values: t.Mapping[str, t.Any], names: t.Iterable[str]) -> tuple[Record, Record]:
    """(what goes into ``config``, what stands beside it) of a record that has these *values* of *names*."""
    config: Record = {}
    beside: Record = {}
    for name in names:
        (config if OPTIONS[name].at == "config" else beside)[name] = values[name]
    return config, beside


def with_values(record: VmRecord, values: t.Mapping[str, t.Any]) -> VmRecord:
    """A copy of *record* in which these options have these values."""
    config, beside = fields_of(values, values)
    return t.cast("VmRecord", {**record, **beside, "config": {**record.get("config", {}), **config}})


def machine_of(snapshot: t.Mapping[str, t.Any]) -> Definition:
    """What a snapshot says of the options that its machine fixes; an option that came later is as it is by default."""
    return {name: snapshot.get(name, DEFAULTS[name]) for name in MACHINE}


def without_machine() -> Definition:
    """What an archive that says nothing of our own fields has for them."""
    rows = (OPTIONS[name] for name in ARCHIVED)
    return {row.name: row.default if row.instead is NONE else row.instead for row in rows}
