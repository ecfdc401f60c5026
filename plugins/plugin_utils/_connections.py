# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the controller reaches a VM that is an inventory host: at its address or by its agent, through its hypervisor."""

from __future__ import annotations

import re
import shlex
import typing as t
from collections.abc import Mapping

from ansible_collections.cocoon.microvm.plugins.plugin_utils._definitions import DefinitionError, host_definition

Variables = t.Mapping[str, t.Any]
# What we have found out, and what the inventory said before.
OURS = "cocoon_reached"
# What the inventory says for VMs that are reached through the agents inside them, and the plugin for that.
WANTED, GUEST, PLUGIN = "cocoon_connection", "guest", "cocoon.microvm.guest"
# Where a VM has no address that is known: a name that no resolver knows (RFC 2606), as the VM's own might be somebody
# else's.
NOWHERE = "cocoon-knows-no-address.invalid"
# Connections that start commands on the controller itself: no jump is needed from there.
LOCAL = ("local", "ansible.builtin.local")
# What says a line of a known_hosts file to ssh, which runs it without a shell.
ECHO = "/bin/echo"
KEY_RE = re.compile(r"(?:ssh-ed25519|ecdsa-sha2-nistp[0-9]{3}|ssh-rsa) [A-Za-z0-9+/]+={0,3}\Z")
KINDS = ("ssh-ed25519", "ecdsa-sha2-", "ssh-rsa")


def address_of(record: Variables) -> str | None:
    """The first address of a VM record."""
    for nic in record.get("network_configs") or []:
        address = (nic.get("network") or {}).get("ip")
        if address:
            return str(address)
    return None


def _first(variables: Variables, *names: str) -> t.Any:
    for name in names:
        if variables.get(name):
            return variables[name]
    return None


def jump_arguments(name: str, hypervisor: Variables, ssh_args: str) -> list[str]:
    """ssh arguments that go through the hypervisor; none where the controller is the hypervisor itself.

    A ProxyCommand of our own, as ProxyJump would not take the hypervisor's key and options along.

    :param ssh_args: ansible's own arguments for ssh.
    """
    if hypervisor.get("ansible_connection") in LOCAL:
        return []
    command = ["ssh", "-W", "%h:%p", "-o", "BatchMode=yes"]
    port = _first(hypervisor, "ansible_port", "ansible_ssh_port")
    user = _first(hypervisor, "ansible_user", "ansible_ssh_user")
    key = _first(hypervisor, "ansible_ssh_private_key_file", "ansible_private_key_file")
    if port:
        command += ["-p", str(port)]
    if user:
        command += ["-l", str(user)]
    if key:
        command += ["-i", str(key)]
    command += shlex.split(str(hypervisor.get("ansible_ssh_args") or ssh_args))
    for option in ("ansible_ssh_common_args", "ansible_ssh_extra_args"):
        command += shlex.split(str(hypervisor.get(option) or ""))
    command.append(str(_first(hypervisor, "ansible_host", "ansible_ssh_host") or name))
    return ["-o", f"ProxyCommand={shlex.join(command)}"]


def ssh_arguments(record: Variables, name: str, hypervisor: Variables, ssh_args: str) -> str:
    """The value of ``ansible_ssh_common_args`` for a VM.

    Its host key is filed under the VM's id, not its address: a VM that is created anew at the same
    address is a new host, and a key that changes without that is still an alarm. Where the guest has named its key on
    its console, that one alone is good, also after a rebuild.
    """
    alias = f"cocoon-{record['id']}"
    arguments = ["-o", f"HostKeyAlias={alias}"]
    key = _host_key(record)
    if key:
        arguments += ["-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile=/dev/null"]
        arguments += ["-o", "GlobalKnownHostsFile=/dev/null", "-o", f"KnownHostsCommand={ECHO} {alias} {key}"]
    else:
        arguments += ["-o", "StrictHostKeyChecking=accept-new"]
    return shlex.join([*jump_arguments(name, hypervisor, ssh_args), *arguments])


def _host_key(record: Variables) -> str | None:
    """The best of the keys that the guest has named; nothing that ssh could take for anything else."""
    keys = [str(key) for key in record.get("host_keys") or [] if KEY_RE.match(str(key))]
    return next((key for kind in KINDS for key in keys if key.startswith(kind)), None)


def connection(
    host: str, variables: Variables, record: Variables, name: str, hypervisor: Variables, ssh_args: str = ""
) -> dict[str, t.Any]:
    """The inventory variables of the VM host *host*; what the inventory says itself is left alone."""
    address = address_of(record)
    ours = variables.get(OURS) or {}
    ssh = ssh_arguments(record, name, hypervisor, ssh_args)
    theirs = ours.get("user_args", variables.get("ansible_ssh_common_args") or "")
    found: dict[str, t.Any] = {"ansible_ssh_common_args": f"{theirs} {ssh}".strip()}
    if variables.get("ansible_host") in (None, ours.get("address")):
        found["ansible_host"] = address
    user = host_definition(host, variables).get("user")
    if user and variables.get("ansible_user") in (None, ours.get("user")):
        found["ansible_user"] = str(user)
    # ansible's own path is made from address, port and user, and two hypervisors may use the same addresses.
    found["ansible_control_path"] = f"%(directory)s/cocoon-{record['id'][:16]}-%%r"
    found[OURS] = {"address": address, "user": user, "user_args": theirs, "id": record["id"]}
    return found


def _by_agent(host: str, variables: Variables) -> bool:
    """Whether a VM is reached through the agent inside it: then its address does not matter.

    :raises DefinitionError: neither that nor by ssh.
    """
    wanted = variables.get(WANTED)
    if wanted not in (None, "ssh", GUEST):
        raise DefinitionError(f"host '{host}': {WANTED} is 'ssh' or '{GUEST}', and not '{wanted}'")
    return wanted == GUEST and variables.get("ansible_connection") in (None, PLUGIN)


def _records(result: t.Any) -> list[Variables]:
    """The VM records of a registered result: ``cocoon_vms`` has them by name, ``cocoon_vm_info`` in a list."""
    vms = (result or {}).get("vms") or []
    return [record for record in (vms.values() if isinstance(vms, Mapping) else vms) if record]


def _unreached(variables: Variables) -> dict[str, t.Any] | None:
    """The variables of a VM host whose address is not known; ``None`` where the inventory says how to reach it."""
    ours = variables.get(OURS) or {}
    if variables.get("ansible_host") not in (None, ours.get("address")):
        return None
    theirs = ours.get("user_args", variables.get("ansible_ssh_common_args") or "")
    closed = {**ours, "address": NOWHERE, "user_args": theirs, "id": None}
    return {"ansible_host": NOWHERE, "ansible_ssh_common_args": theirs, OURS: closed}


def connections(
    hostvars: Mapping[str, Variables],
    hosts: Mapping[str, t.Sequence[str]],
    results: Mapping[str, str],
    variable: str,
    ssh_args: str = "",
) -> list[dict[str, t.Any]]:
    """What ``add_host`` takes for each VM host: how it is reached, or that it cannot be.

    A VM host that this run has not learned the address of must not be reached by its bare name, which may be that of
    another machine. One that an earlier play of the run has found stays as it is, and so does one that has no address
    of ours.

    :param hosts: VM hosts by hypervisor.
    :param results: by hypervisor, the inventory host whose *variable* holds the result with its VM records.
    """
    found = []
    for hypervisor in hosts:
        holder = results.get(hypervisor)
        records = _records(hostvars[holder].get(variable)) if holder else []
        known = {(record.get("config") or {}).get("name"): record for record in records}
        for host in hosts[hypervisor]:
            name = host_definition(host, hostvars[host])["name"]
            record = known.get(name)
            if _by_agent(host, hostvars[host]):
                found.append({"host": host, "variables": {"ansible_connection": PLUGIN, "cocoon_guest_vm": name}})
            elif record and address_of(record):
                variables = connection(host, hostvars[host], record, hypervisor, hostvars[hypervisor], ssh_args)
                found.append({"host": host, "variables": variables})
            elif record is None and (holder or not hostvars[host].get(OURS)):
                closed = _unreached(hostvars[host])
                found += [{"host": host, "variables": closed}] if closed else []
    return found
