# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a definition, an image, the networks and a driver fit together; the full set of options of a VM."""

from __future__ import annotations

import ipaddress
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    ChangeRefusedError,
    InputError,
    MissingImageError,
    NotFoundError,
    UnsupportedError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import settings
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.changes import (
    added_disk,
    attached_disks,
    current,
    wanted_disk,
    wanted_nics,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.defaults import MIN_MEMORY
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import (
    BIOS,
    PHASE_REMOVE,
    REBUILD,
    REFUSED,
    REMOVED,
    RESTORE_ON_DEMAND,
    SECRETS,
    UEFI,
    Context,
    Definition,
    LimitsLike,
    is_made,
    left_disks,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import (
    CONTAINER,
    DEFAULTS,
    NEEDY,
    NONE,
    OPTIONS,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._types import format_size

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import (
        ImageRecord,
        NetworkRecord,
        VmRecord,
    )

# What a VM that keeps its system disk can come to need of its driver.
CHANGEABLE = tuple(row.name for row in NEEDY if row.name != "image" and row.how != REBUILD)

# Of an image without a kernel.
NO_DEVICE = "has no device for guest data, and this image looks for it nowhere else: build it anew by the role image"
NO_COMMANDS = "cannot tell a guest what to run, as an image without a kernel needs it"


def required_capabilities(definition: t.Mapping[str, t.Any], image: ImageRecord | None) -> dict[str, str]:
    """``{option: the driver capability that it needs}``; what ``hypervisor: auto`` has to look for."""
    disk = bool(image and image.get("disk"))
    needed = {
        row.name: row.needs
        for row in NEEDY
        if (disk if row.name == "image" else row.name in definition and row.asks(definition[row.name]))
    }
    if not disk:  # a disk finds them on a volume, which any driver can attach
        way = "guest_data" if image is None or "data" in image.get("features", ()) else "data_device"
        needed.update((option, way) for option in SECRETS if definition.get(option))
    if image and not disk and not image.get("boot"):  # what it runs is told by the host
        needed["image"] = "guest_data"
    if definition.get("wait_for") == "agent":
        needed["wait_for"] = "agent"
    return needed


def _can(context: Context, hypervisor: str, capability: str) -> bool:
    return bool(getattr(context.capabilities[hypervisor], capability))


def check_capabilities(hypervisor: str, needed: t.Mapping[str, str], context: Context) -> None:
    """:raises UnsupportedError: the driver lacks something; names the option and the driver."""
    for option, capability in needed.items():
        if not _can(context, hypervisor, capability):
            lacks = NO_COMMANDS if (option, capability) == ("image", "guest_data") else OPTIONS[option].lacks
            lacks = NO_DEVICE if capability == "data_device" else lacks
            raise UnsupportedError(
                f"hypervisor {hypervisor} {lacks}",
                option,
                "Use another hypervisor, or do without the option.",
            )


def check_limits(wanted: Definition, image: ImageRecord, context: Context) -> None:
    """:raises UnsupportedError: more than the driver has room for; names the option and the driver."""
    limits = context.limits.get(wanted["hypervisor"])
    if limits is not None:
        _check_counts(wanted["hypervisor"], {**wanted, "image": image}, limits)
        _check_devices(wanted, image, limits.devices)
    disks = {option: wanted[option] for option in ("limits", "data_disks")}  # which come along in a rebuild
    check_capabilities(wanted["hypervisor"], required_capabilities(disks, None), context)


def _check_counts(hypervisor: str, asked: Definition, limits: LimitsLike) -> None:
    """:param asked: the options to look at, ``image`` as its record.

    :raises UnsupportedError: more than the driver has room for.
    """
    counts = (
        ("cpu", "vCPUs", asked.get("cpu") or 0, limits.cpus),
        ("cpu_max", "vCPUs", asked.get("cpu_max") or 0, limits.cpus),
        ("nics", "NICs", len(asked.get("nics") or ()), limits.nics),
        ("data_disks", "data disks", len(attached_disks(asked)), limits.removable_disks),
        # beside the system disk and a volume for the first boot
        ("image", "image layers", len((asked.get("image") or {}).get("layers") or ()), limits.fixed_disks - 2),
    )
    for option, what, count, most in counts:
        if count > most:
            raise UnsupportedError(
                f"hypervisor {hypervisor} takes {most} {what} and not {count}",
                option,
                "Take fewer, or another hypervisor.",
            )
    for option, sizes in _queues(limits).items():
        if asked.get(option) and asked[option] not in sizes:
            raise UnsupportedError(
                f"hypervisor {hypervisor} has no queues of {asked[option]}",
                option,
                f"Use one of {', '.join(map(str, sizes))}.",
            )


def _check_devices(wanted: Definition, image: ImageRecord, most: int | None) -> None:
    """:raises UnsupportedError: more than *most* devices in all."""
    counts = {
        "data_disks": len(wanted.get("data_disks") or ()),
        "nics": len(wanted.get("nics") or ()),
        "balloon": int(wanted["balloon"] is not None),
        "image": len(image.get("layers") or ()) + 1,  # and the system disk
    }
    if most is not None and sum(counts.values()) > most:
        raise UnsupportedError(
            f"hypervisor {wanted['hypervisor']} takes {most} devices in all and not {sum(counts.values())}:"
            f" {counts['image']} disks of the image, {counts['data_disks']} data disks, {counts['nics']} NICs"
            + (" and a balloon" if counts["balloon"] else ""),
            next((option for option, count in counts.items() if count), "image"),
            "Take fewer, or another hypervisor.",
        )


def _queues(limits: LimitsLike) -> dict[str, t.Sequence[int]]:
    """The depths that the queues of an option can have."""
    return {"queue_size": limits.nic_queues, "disk_queue_size": limits.disk_queues}


def _settle_queues(wanted: Definition, given: t.Container[str], context: Context) -> None:
    """A default depth that a driver does not have is that of its own which comes nearest; a wish is refused later."""
    limits = context.limits.get(wanted["hypervisor"])
    for option, sizes in _queues(limits).items() if limits else ():
        if option not in given and wanted[option] not in sizes:
            wanted[option] = min(sizes, key=lambda size: abs(size - wanted[option]))


def check_driver(hypervisor: str, accel: str, context: Context) -> None:
    """:raises UnsupportedError: the hypervisor is not usable on this host, or not with that accelerator."""
    probe = context.probes[hypervisor]
    if not probe.available:
        raise UnsupportedError(
            f"{hypervisor} cannot be used on this host: {probe.reason or 'not found'}",
            "hypervisor",
            probe.remedy or "Choose another one.",
        )
    if accel not in probe.accels:
        usable = ", ".join(probe.accels) or "none"
        raise UnsupportedError(
            f"{hypervisor} cannot use {accel} on this host (usable: {usable})",
            "accel",
            f"Choose another accelerator: {usable}." if probe.accels else "Choose another hypervisor.",
        )


def choose_driver(
    old: Definition, definition: Definition, needed: t.Mapping[str, str], context: Context
) -> tuple[str, str]:
    """(hypervisor, accel) of a VM to make or rebuild. What was resolved once is not resolved again.

    :param needed: from :func:`required_capabilities`; what ``auto`` has to have.

    :raises UnsupportedError: nothing fits, or what is asked for cannot be used here.
    """
    hypervisor, accel = definition.get("hypervisor", "auto"), definition.get("accel", "auto")
    if hypervisor == "auto":
        hypervisor = old.get("hypervisor") or resolve_auto(needed, accel, context)
    if accel == "auto":
        usable = context.probes[hypervisor].accels
        recorded = old.get("accel") if old.get("hypervisor") == hypervisor else None
        accel = recorded or ("kvm" if "kvm" in usable or not usable else usable[0])
    check_driver(hypervisor, accel, context)
    return hypervisor, accel


def resolve_auto(needed: t.Mapping[str, str], accel: str, context: Context) -> str:
    """The first hypervisor that works here, with *accel*, and has all that the options and the image need.

    Where none has, the one that comes nearest: what it lacks is named where that is looked at.

    :raises UnsupportedError: none works here.
    """
    works = [name for name in context.auto if context.probes[name].available]
    speeds = [name for name in works if accel in ("auto", *context.probes[name].accels)]
    fits = [
        name
        for name in speeds
        if all(getattr(context.capabilities[name], capability) for capability in needed.values())
    ]
    for names in (fits, speeds, works):
        if names:
            return names[0]
    reasons = [f"{name}: {context.probes[name].reason or 'not found'}" for name in context.auto]
    remedies = [remedy for remedy in (context.probes[name].remedy for name in context.auto) if remedy]
    raise UnsupportedError(
        "no hypervisor can be used on this host" + (f" ({'; '.join(reasons)})" if reasons else ""),
        "hypervisor",
        remedies[0] if remedies else "Run the role cocoon.microvm.host, which installs one.",
    )


def find_image(record: VmRecord | None, name: str | None, context: Context) -> ImageRecord:
    """The image to make or rebuild a VM from: the one of that *name*, else the one that the VM was made from.

    :raises InputError: none is named. :raises MissingImageError: the store has no such image.
    """
    if not name:
        raise InputError("is needed to create the VM", "image", "Name an image of the host's store.")
    image = context.images[name]
    if image is None and record and record.get("state") != REMOVED and record["config"].get("image") == name:
        image = context.images.get(record.get("image_digest") or "")  # its name is gone, the VM holds the content
    if image is None:
        raise MissingImageError(f"there is no image '{name}'", "image", "Add it with cocoon_image first.")
    return image


def no_kernel(name: str) -> UnsupportedError:
    """The error for an image that brings no kernel to a host without a default one."""
    return UnsupportedError(
        f"image '{name}' brings no kernel, and this host has no default kernel for it",
        "image",
        "Run the role cocoon.microvm.host, which installs one, or import the image with kernel and initrd.",
    )


def check_image(wanted: Definition, image: ImageRecord, context: Context) -> None:
    """:raises UnsupportedError: the image cannot do what the options ask. :raises InputError: a disk too small."""
    if image.get("unseen"):  # it is still to come, and nobody has looked into it
        return
    name, disk = wanted["image"], image.get("disk")
    boots = bool(disk or (image.get("boot") or {}).get("kernel_path"))
    check_container(wanted, name, boots)
    if not boots and not context.default_kernel:
        raise no_kernel(name)
    if not disk:
        if wanted.get("windows"):
            raise UnsupportedError(f"image '{name}' boots a Linux kernel", "windows", "Use a disk image with Windows.")
        _check_features(wanted, image)
        return
    if wanted.get("windows"):
        check_windows(wanted)
    if wanted["kernel_args"]:
        raise _no_kernel_args(name)
    if wanted["storage"] < (disk.get("virtual_size") or 0):
        raise InputError(
            f"{format_size(wanted['storage'])} is smaller than the disk of image '{name}'",
            "storage",
            f"Give at least {format_size(disk['virtual_size'])}.",
        )


def check_windows(asked: t.Mapping[str, t.Any]) -> None:
    """:raises UnsupportedError: options that are not for Windows guests."""
    for option in SECRETS:
        if asked.get(option):
            raise UnsupportedError("Windows guests take no login data", option, "Leave it out.")
    if asked.get("balloon") not in (None, "off"):
        raise UnsupportedError("Windows guests have no balloon", "balloon", "Leave it out.")
    if asked.get("firmware") == BIOS:
        raise UnsupportedError("Windows guests boot by UEFI", "firmware", "Leave it out, or use uefi.")


def check_container(wanted: Definition, image: str, boots: bool) -> None:
    """:raises UnsupportedError: the image *boots* a system of its own, and is to run a command."""
    for option in (*CONTAINER, "secret_env"):
        if boots and wanted.get(option):
            raise UnsupportedError(
                f"image '{image}' boots a system of its own, and not a command",
                option,
                "Leave the option out, or use a container image without a kernel.",
            )


def _check_features(wanted: Definition, image: ImageRecord) -> None:
    """:raises UnsupportedError: the image takes no login data, or not all that is given."""
    for option in SECRETS:
        if not wanted.get(option) or option in (image.get("features") or ()):
            continue
        remedy = "Leave the option out, or use an image that does, as the role cocoon.microvm.image builds."
        if option == "user_data":
            remedy = "Leave the option out, or use a cloud image: a disk with cloud-init."
        raise UnsupportedError(f"image '{wanted['image']}' takes no {option}", option, remedy)


def choose_firmware(wanted: Definition, image: ImageRecord, context: Context) -> str | None:
    """``uefi`` or ``bios`` for a disk image, ``None`` for one whose kernel is booted directly.

    What is not asked for is UEFI where the disk is made for it and the host has it, else BIOS.

    :raises UnsupportedError: it cannot be had.
    """
    disk, asked = image.get("disk"), wanted["firmware"]
    if not disk:
        if asked:
            raise _no_firmware(wanted["image"])
        return None
    here = context.probes[wanted["hypervisor"]].firmware
    made_for = disk.get("firmware") or [BIOS]
    if asked is None:
        usable = [firmware for firmware in (UEFI, BIOS) if firmware in made_for and firmware in here]
        asked = UEFI if wanted.get("windows") else (usable or made_for)[0]
    check_firmware(wanted["hypervisor"], asked, context)
    return str(asked)


def check_firmware(hypervisor: str, firmware: str, context: Context) -> None:
    """:raises UnsupportedError: the host has no UEFI."""
    if firmware == UEFI and UEFI not in context.probes[hypervisor].firmware:
        raise UnsupportedError(
            f"UEFI for {hypervisor} is not installed on this host",
            "firmware",
            context.probes[hypervisor].uefi_remedy or "Use firmware: bios, or another hypervisor.",
        )


def _no_firmware(image: str) -> UnsupportedError:
    return UnsupportedError(
        f"image '{image}' boots its kernel directly, without firmware", "firmware", "Leave the option out."
    )


def _no_kernel_args(image: str) -> UnsupportedError:
    return UnsupportedError(
        f"image '{image}' is a disk image, whose boot loader chooses the kernel arguments",
        "kernel_args",
        "Set it to an empty string, or use an image that boots its kernel directly.",
    )


def check_balloon(balloon: int | None, memory: int) -> None:
    """:raises InputError: a balloon that leaves the guest less than the smallest memory."""
    if balloon and balloon > memory - MIN_MEMORY:
        raise InputError(
            f"{format_size(balloon)} of {format_size(memory)} leaves the guest less than {format_size(MIN_MEMORY)}",
            "balloon",
            "Take a smaller balloon or more memory.",
        )


def check_restore_mode(mode: str | None, balloon: int | None, hypervisor: str, context: Context) -> None:
    """:raises InputError: the guest's balloon would spoil the file of memory that it goes on from."""
    if mode == RESTORE_ON_DEMAND and balloon is not None and _can(context, hypervisor, "ram_file"):
        raise InputError(
            "a balloon punches holes into the file of memory that its guest goes on from",
            "restore_mode",
            "Use copy, or no balloon.",
        )


def check_cpus(cpu: int, cpu_max: int) -> None:
    """:raises InputError: more vCPUs than the VM can ever have."""
    if 0 < cpu_max < cpu:
        raise InputError(f"{cpu} vCPUs are more than cpu_max, {cpu_max}", "cpu", "Raise cpu_max, or set it to 0.")


def check_nics(nics: t.Sequence[Definition], context: Context, given: bool) -> None:
    """:param given: the NICs come from ``nics`` and not from ``network``.

    :raises NotFoundError: an unknown network. :raises InputError: an address or a way that the network does not have.
    """
    for index, nic in enumerate(nics):
        name = nic["network"]
        network = context.networks[name]
        if network is None:
            option = f"nics[{index}].network" if given else "network"
            raise NotFoundError(f"there is no network '{name}'", option, "Create it with cocoon_network first.")
        if nic["ip"] is not None:
            _check_address(nic["ip"], network, f"nics[{index}].ip")
    settings.check(nics, [context.networks[nic["network"]] for nic in nics])


def _check_address(address: str, network: NetworkRecord, option: str) -> None:
    if not network.get("subnet") and settings.gives_addresses(network):
        return  # whether it can be had, its plugins know
    if not network.get("subnet"):
        raise InputError(f"network '{network['name']}' has no subnet", option, "Leave the address out.")
    subnet = ipaddress.IPv4Network(network["subnet"])
    reserved = [str(subnet.network_address), str(subnet.broadcast_address)] if subnet.prefixlen < 31 else []
    if ipaddress.IPv4Address(address) not in subnet or address in [*reserved, network.get("gateway")]:
        raise InputError(
            f"{address} is not an address for a guest in network '{network['name']}' ({subnet})",
            option,
            "Choose one inside the subnet, other than its gateway, first and last address.",
        )


def check_reach(definition: Definition, nics: t.Sequence[Definition], ports: t.Sequence[str], context: Context) -> None:
    """:raises UnsupportedError: ports, or a wait over the network, of a VM without an address."""
    for nic in nics:
        network = context.networks.get(nic["network"]) or {}
        if nic["ip"] or settings.gives_addresses(network):
            return
    remedy = "Give the VM a NIC on a network with a subnet."
    if ports:
        raise UnsupportedError(
            "the VM has no address to publish ports of", "ports", f"{remedy[:-1]}, or set ports: []."
        )
    if definition.get("wait_for") in ("ping", "port"):
        raise UnsupportedError("the VM has no address that could answer", "wait_for", remedy)


def new_vm(record: VmRecord | None, definition: Definition, context: Context) -> Definition:
    """Every option of a VM to create: what is given, else what a half-made record says, else the defaults.

    ``nics`` are ``{network, mac, ip}`` (``None`` = choose), ``data_disks`` ``{name, size, fstype, reattach}``,
    ``balloon`` bytes or ``None``, ``user``, ``password`` and ``ssh_keys`` the given ones or ``None``; besides the
    options ``image_id`` and ``image_digest``.

    :raises CocoonError: they do not fit together.
    """
    old = current(record) if record and not is_made(record) and record.get("state") != REMOVED else {}
    wanted = _settle(record, old, definition, context)
    wanted["nics"] = new_nics(record, definition)
    wanted["data_disks"] = _new_disks(record, definition)
    check_limits(wanted, find_image(record, wanted["image"], context), context)
    check_nics(wanted["nics"], context, "nics" in definition)
    check_reach(definition, wanted["nics"], wanted["ports"], context)
    return wanted


def rebuilt_vm(record: VmRecord, definition: Definition, context: Context) -> Definition:
    """Every option of a VM that gets a new system disk; the shape of :func:`new_vm`."""
    wanted = _settle(record, current(record), definition, context)
    wanted["nics"] = wanted_nics(record, definition)
    disks = {disk["name"]: disk for disk in [*(record.get("detached_disks") or ()), *(record.get("data_disks") or ())]}
    if "data_disks" in definition:
        wanted["data_disks"] = [
            wanted_disk(disks.get(disk["name"]), disk, where) for where, disk in attached_disks(definition)
        ]
    else:
        wanted["data_disks"] = [dict(disk, reattach=True) for disk in record.get("data_disks") or ()]
    check_limits(wanted, find_image(record, wanted["image"], context), context)
    return wanted


def _settle(record: VmRecord | None, old: Definition, definition: Definition, context: Context) -> Definition:
    """Everything but NICs and data disks."""
    given = {option: value for option, value in definition.items() if option in DEFAULTS or option == "owner"}
    wanted: Definition = {**DEFAULTS, "owner": context.owner_default, **old, **given, "name": definition["name"]}
    wanted["balloon"] = None if wanted["balloon"] == "off" else wanted["balloon"]
    wanted["image"] = definition.get("image") or old.get("image")
    image = find_image(record, wanted["image"], context)
    if "storage" not in definition and "storage" not in old:
        wanted["storage"] = max(wanted["storage"], (image.get("disk") or {}).get("virtual_size") or 0)
    wanted["image_id"], wanted["image_digest"] = image["id"], image["digest"]
    waits = {option: definition[option] for option in ("wait_for",) if option in definition}
    asked = {"balloon": "off", **old, **given, **waits}  # a default that a driver lacks is no reason against it
    hypervisor, accel = choose_driver(old, definition, required_capabilities(asked, image), context)
    wanted["hypervisor"], wanted["accel"] = hypervisor, accel
    if "firmware" not in definition and record and record.get("image_digest") != image["digest"]:
        wanted["firmware"] = None  # what the former image was booted by does not bind this one
    for row in NEEDY:
        if row.instead is not NONE and row.name not in definition and not _can(context, hypervisor, row.needs):
            wanted[row.name] = row.instead
    _settle_queues(wanted, definition, context)
    check_image(wanted, image, context)
    check_capabilities(hypervisor, required_capabilities({**wanted, **waits}, image), context)
    wanted["firmware"] = choose_firmware(wanted, image, context)
    check_balloon(wanted["balloon"], wanted["memory"])
    check_restore_mode(wanted["restore_mode"], wanted["balloon"], hypervisor, context)
    check_cpus(wanted["cpu"], wanted["cpu_max"])
    return wanted


def new_nics(record: VmRecord | None, definition: Definition) -> list[Definition]:
    """The NICs of a VM to create; those that a half-made record was given, if the definition names none."""
    if record and record.get("state") != REMOVED and "nics" not in definition and "network" not in definition:
        recorded = {"network": record.get("config", {}).get("network"), "nics": record.get("nics")}
        definition = {option: value for option, value in recorded.items() if value is not None}
    return wanted_nics(None, definition)


def _new_disks(record: VmRecord | None, definition: Definition) -> list[Definition]:
    """The data disks of a VM to create; kept ones of a removed VM of that name come back.

    :raises ChangeRefusedError: a kept disk would shrink or be formatted anew.
    """
    kept, begun = {}, {}
    if record:
        begun = {disk["name"]: disk for disk in record.get("data_disks") or ()}
        kept = left_disks(record)
        if record.get("phase") == PHASE_REMOVE:
            deleted = definition.get("force") or record.get("delete_data_disks")
            kept, begun = ({} if deleted else {**begun, **kept}), {}
    if "data_disks" not in definition:
        return [dict(disk, reattach=disk["name"] in kept) for disk in begun.values()]
    disks = []
    for where, disk in attached_disks(definition):
        difference = added_disk(kept.get(disk["name"]), {**begun.get(disk["name"], {}), **disk}, where)
        if difference.how == REFUSED:
            what, remedy = difference.reason
            raise ChangeRefusedError(
                f"{difference.before} to {difference.after}, on the disk kept from before: {what}",
                difference.option,
                f"{remedy[0].upper()}{remedy[1:]}; state: absent with force: true deletes the kept disk.",
            )
        disks.append(wanted_disk(kept.get(disk["name"]), {**begun.get(disk["name"], {}), **disk}, where))
    return disks


def check_update(record: VmRecord, definition: Definition, context: Context) -> None:
    """Whether the given options suit a VM that keeps its system disk.

    :raises UnsupportedError: the driver or the image cannot. :raises InputError: the balloon is too large.
    """
    check_container(definition, record["config"].get("image", ""), bool(record.get("own_kernel")))
    if definition.get("kernel_args") and record.get("image_type") == "cloudimg":
        raise _no_kernel_args(record["config"].get("image", ""))
    if record["config"].get("windows"):
        check_windows(definition)
    limits = context.limits.get(record["hypervisor"])
    if limits is not None:
        _check_counts(record["hypervisor"], {key: value for key, value in definition.items() if key != "image"}, limits)
    changed = {
        option: capability
        for option, capability in required_capabilities(definition, None).items()
        if option in (*CHANGEABLE, "wait_for")
    }
    if definition.get("firmware") and record.get("image_type") != "cloudimg":
        raise _no_firmware(record["config"].get("image", ""))
    if changed:
        check_capabilities(record["hypervisor"], changed, context)
    if definition.get("firmware"):
        check_firmware(record["hypervisor"], definition["firmware"], context)
    cpus = {"cpu": record["config"]["cpu"], "cpu_max": record.get("cpu_max", 0), **definition}
    check_cpus(cpus["cpu"], cpus["cpu_max"])
    asked = definition.get("balloon", record.get("balloon"))
    balloon = None if asked == "off" else asked
    mode = definition.get("restore_mode", record.get("restore_mode"))
    check_restore_mode(mode, balloon, record["hypervisor"], context)
    check_balloon(balloon, definition.get("memory", record["config"]["memory"]))
