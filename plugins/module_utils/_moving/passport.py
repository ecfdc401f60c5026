# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a VM's record goes to another host with it, and whether what has come from one can be believed.

All that a definition is compared with goes along, so that the same definition finds nothing to change. What a host
holds for a VM (uid, process, leases, paths) does not.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.changes import current_nics
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.checks import (
    MAX_DISK_RATE,
    MAX_IOPS,
    MAX_METRIC,
    MAX_PORTS,
    MAX_VLAN,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.defaults import MAX_CPU, MAX_NICS, MIN_CPU
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.definition import normalise
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import is_suspended
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import ARCHIVED, OPTIONS
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.settings import MAX_ROUTES
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import document
from ansible_collections.cocoon.microvm.plugins.module_utils._types import (
    CREATED,
    HIBERNATED,
    HYPERVISORS,
    STOPPED,
    Record,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._words import invalid

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Driver
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import VmRecord

FILE = "passport.json"
MAX_BYTES = 1 << 20
MAX_DETACHED = 256
ID_RE = re.compile(r"[a-z2-7]{26}")
# Every option that the record keeps beside the Go engine's config, and what else a VM is.
CARRIED = (
    *("id", "config", "first_booted", "created_at", "hypervisor_version", "snapshot", "snapshot_id", "image_type"),
    *("image_digest", "own_kernel", "data_disks", "detached_disks", "login", "relogin", "secret_env", "cidata_given"),
    "host_keys",
    *("exit_code", "identity_pending", "ready", "blob_digests"),
    *(row.name for row in OPTIONS.values() if row.at == "record"),
)

_FLAG: Record = {"type": "boolean"}
_NUMBER: Record = {"type": "integer", "minimum": 0, "maximum": 1 << 20}
_MAC: Record = {"type": "string", "pattern": r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z"}
_NAME: Record = {"type": "string", "pattern": document.NAME}


def _or_null(schema: Record) -> Record:
    return {"anyOf": [schema, {"type": "null"}]}


_DIGESTS: Record = {"type": "object", "additionalProperties": {"type": "string", "maxLength": 256}}
# What it holds goes nowhere but into comparisons.
_DIGESTED: Record = {"type": "object", "properties": {"digests": _DIGESTS}}
_RATE: Record = {"type": "integer", "minimum": 1, "maximum": MAX_DISK_RATE}
_LIMIT: Record = {
    "type": "object",
    "properties": {"rate": _RATE, "burst": _RATE, "iops": {"type": "integer", "minimum": 1, "maximum": MAX_IOPS}},
    "additionalProperties": False,
}
_LIMITS: Record = {
    "type": "object",
    "properties": dict.fromkeys(("total", "read", "write"), _LIMIT),
    "additionalProperties": False,
}
_DISK: Record = {**document.DISK, "properties": {**document.DISK["properties"], "limits": _LIMITS}}
_DISKS: Record = {**document.OURS["properties"]["data_disks"], "items": _DISK}
_CONFIG: Record = {
    "type": "object",
    "required": ["name", "cpu", "memory", "storage", "image"],
    "properties": {
        "name": _NAME,
        "cpu": {"type": "integer", "minimum": MIN_CPU, "maximum": MAX_CPU},
        "memory": document.SIZE,
        "storage": document.SIZE,
        "image": {"type": "string", "maxLength": 4096},
        "queue_size": _NUMBER,
        "disk_queue_size": _NUMBER,
        "network": {"type": "string", "maxLength": 63},
        "no_direct_io": _FLAG,
        "windows": _FLAG,
    },
    "additionalProperties": False,
}
# Of a NIC, what nobody asks for, and a saved machine has.
KEPT = ("mtu", "num_queues")
_NIC: Record = {
    "type": "object",
    "required": ["network", "mac"],
    "properties": {
        "network": _NAME,
        "mac": _MAC,
        "ip": _or_null({"type": "string", "maxLength": 15}),
        "ip6": {"type": "string", "maxLength": 39},
        "mtu": _NUMBER,
        # Absent where an earlier version wrote it.
        "num_queues": document.NIC["properties"]["num_queues"],
        "default_route": _FLAG,
        "dhcp": _FLAG,
        "limits": {"type": "object", "maxProperties": 2},
        "vlan": {"type": "integer", "minimum": 1, "maximum": MAX_VLAN},
        "gateway": {"type": "string", "maxLength": 15},
        "gateway6": {"type": "string", "maxLength": 39},
        "metric": {"type": "integer", "minimum": 0, "maximum": MAX_METRIC},
        "routes": {"type": "array", "maxItems": MAX_ROUTES, "items": {"type": "object"}},
    },
    "additionalProperties": False,
}
_BLOBS: Record = document.OURS["properties"]["blob_digests"]
_RESUME: Record = {
    "type": "object",
    "required": ["memory", "layout"],
    "properties": {
        "memory": {"enum": ["copy", "stream"]},
        "layout": {"type": "object"},
        "hold": _FLAG,
        "macs": _or_null({"type": "array", "items": _MAC}),
        "blob_digests": _or_null(_BLOBS),
    },
    "additionalProperties": False,
}
SCHEMA: Record = {
    "type": "object",
    "required": ["id", "hypervisor", "config", "accel", "pins", "image_type", "image_digest", "nics"],
    "properties": {
        "id": {"type": "string", "pattern": r"^[a-z2-7]{26}\Z"},
        "hypervisor": {"enum": list(HYPERVISORS)},
        "state": {"enum": [CREATED, STOPPED, HIBERNATED]},
        "config": _CONFIG,
        "first_booted": _FLAG,
        "created_at": {"type": "string", "maxLength": 64},
        "owner": {"type": "string", "maxLength": 256},
        "labels": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 4096}},
        "accel": {"enum": ["kvm", "tcg"]},
        "pins": {"type": "object"},
        "hostname": {"type": "string", "maxLength": 253, "pattern": r"^[A-Za-z0-9.-]*\Z"},
        "version": {"type": "string", "maxLength": 32},
        "hypervisor_version": _or_null({"type": "string", "maxLength": 32}),
        "snapshot": _or_null({"type": "string", "maxLength": 63}),
        "snapshot_id": _or_null({"type": "string", "pattern": r"^[a-z2-7]{26}\Z"}),
        **ARCHIVED,
        **{key: document.OURS["properties"][key] for key in ("image_type", "image_digest")},
        "own_kernel": _or_null(_FLAG),
        "firmware": _or_null({"enum": ["uefi", "bios"]}),
        "ports": {"type": "array", "maxItems": MAX_PORTS, "items": {"type": "string", "maxLength": 64}},
        "limits": _LIMITS,
        "data_disks": _DISKS,
        # What is detached does not count as attached, but somebody has to have detached it.
        "detached_disks": {**_DISKS, "maxItems": MAX_DETACHED},
        "balloon": _or_null(document.SIZE),
        "memory_backing": {"enum": ["ram", "disk"]},
        "restore_mode": _or_null({"enum": ["copy", "on_demand"]}),
        "login": _DIGESTED,
        "relogin": _FLAG,
        "host_keys": {"type": "array", "maxItems": 8, "items": {"type": "string", "maxLength": 2048}},
        "secret_env": _or_null(_DIGESTED),
        "cidata_given": _or_null(_FLAG),
        "exit_code": _or_null({"type": "integer"}),
        "identity_pending": _or_null({"type": "array", "items": _MAC}),
        "ready": _or_null({"type": "object"}),
        "nics": {"type": "array", "maxItems": MAX_NICS, "items": _NIC},
        "resume": _or_null(_RESUME),
        "cpu_vendor": {"type": "string", "maxLength": 64},
        "blob_digests": _or_null(_BLOBS),
        "allocated": document.SIZE,
        "runs": _FLAG,
    },
    "additionalProperties": False,
}


def issue(record: VmRecord, driver: Driver) -> Record:
    """What goes along of *record*. Whether it runs, and what it takes, stands there when somebody has looked."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import pins_of

    found = {key: value for key, value in record.items() if key in CARRIED}
    suspended = is_suspended(record)
    state = HIBERNATED if suspended else (STOPPED if record.get("first_booted") else CREATED)
    saved = _resume(record) if suspended else None
    return {**found, "pins": pins_of(driver, record), "state": state, "nics": _nics(record), "resume": saved}


def _nics(record: VmRecord) -> list[Record]:
    configs = record.get("network_configs") or ()
    kept = [{"mtu": config.get("mtu") or 0, "num_queues": config["num_queues"]} for config in configs]
    return [{**nic, **more} for nic, more in zip(current_nics(record), kept)]


def _resume(record: VmRecord) -> Record:
    """The saved state that the VM goes on from; memory that it shares on this host is its own on another."""
    saved = record["resume"] or {}
    memory = "copy" if saved["memory"] == "map" else saved["memory"]
    more = {key: saved.get(key) for key in ("macs", "blob_digests")}
    return {"memory": memory, "layout": saved["layout"], "hold": bool(saved.get("hold")), **more}


def check(found: t.Any, driver: t.Callable[[str], Driver]) -> Record:
    """*found* if it is a passport.

    :param driver: gives the driver of a hypervisor, which knows what its own fields may be.
    :raises InputError: naming the field that is wrong.
    """
    import jsonschema

    try:
        jsonschema.validate(found, SCHEMA, cls=jsonschema.Draft7Validator)
        form = driver(found["hypervisor"]).archive_form()
        pinned = driver(found["hypervisor"]).pinned
        properties = {key: form.properties[key] for key in pinned}
        pins = {"properties": properties, "required": list(pinned), "additionalProperties": False}
        resume = {"properties": {"layout": form.layout}} if found.get("resume") else {}
        own = {"properties": {"pins": pins, "resume": resume}}
        jsonschema.validate(found, own, cls=jsonschema.Draft7Validator)
    except jsonschema.ValidationError as exc:
        raise InputError(
            f"what has come of the VM is not valid ({invalid(exc)})",
            "path",
            "Move it between hosts that are managed by the same version of the collection.",
        ) from None
    asked = normalise({"name": found["config"]["name"], "nics": [_asked(nic) for nic in found["nics"]]})
    nics = [{**nic, "mtu": 0, **_kept(given)} for nic, given in zip(asked["nics"], found["nics"])]
    return {**found, "nics": nics}


def _asked(nic: Record) -> Record:
    return {key: value for key, value in nic.items() if key not in KEPT}


def _kept(nic: Record) -> Record:
    return {key: nic[key] for key in KEPT if key in nic}
