# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Argument specs that several modules share. VM options have no defaults: what is omitted is not compared."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import LOG_DIR, ROOT_DIR, RUN_DIR

Spec = dict[str, dict[str, t.Any]]


def store_options() -> Spec:
    """Where the store is and how long to wait for its locks."""
    return {
        "root_dir": {"type": "path", "default": ROOT_DIR},
        "run_dir": {"type": "path", "default": RUN_DIR},
        "log_dir": {"type": "path", "default": LOG_DIR},
        "lock_timeout": {"type": "int", "default": 60},
    }


def progress_options() -> Spec:
    """What actions add, see ``_progress.Progress``."""
    return {"progress_file": {"type": "path"}, "defer_above": {"type": "int"}}


def admission_options() -> Spec:
    """Limits that guard the host when VMs are created or started."""
    return {
        "memory_reserve": {"type": "str", "default": "256M"},
        "memory_overcommit": {"type": "float", "default": 1.0},
        "disk_overcommit": {"type": "float", "default": 1.0},
    }


def nic_options() -> Spec:
    return {
        "network": {"type": "str"},
        "mac": {"type": "str"},
        "ip": {"type": "str"},
        "default_route": {"type": "bool"},
        "gateway": {"type": "str"},
        "metric": {"type": "int"},
        "routes": {
            "type": "list",
            "elements": "dict",
            "options": {
                "to": {"type": "str", "required": True},
                "via": {"type": "str"},
                "metric": {"type": "int"},
            },
        },
    }


def data_disk_options() -> Spec:
    return {
        "name": {"type": "str", "required": True},
        "size": {"type": "str", "required": True},
        "fstype": {"type": "str", "choices": ["ext4", "none"]},
        "attached": {"type": "bool"},
    }


def vm_resources() -> Spec:
    """What a VM is: compared with its record when given."""
    return {
        "hypervisor": {"type": "str", "choices": ["auto", "qemu", "cloud-hypervisor", "firecracker"]},
        "accel": {"type": "str", "choices": ["auto", "kvm", "tcg"]},
        "image": {"type": "str"},
        "snapshot": {"type": "str"},
        "cpu": {"type": "int"},
        "memory": {"type": "str"},
        "memory_backing": {"type": "str", "choices": ["ram", "disk"]},
        "storage": {"type": "str"},
        "queue_size": {"type": "int"},
        "disk_queue_size": {"type": "int"},
        "no_direct_io": {"type": "bool"},
        "windows": {"type": "bool"},
        "network": {"type": "str"},
        "nics": {"type": "list", "elements": "dict", "options": nic_options()},
        "ports": {"type": "list", "elements": "str"},
        "data_disks": {"type": "list", "elements": "dict", "options": data_disk_options()},
        "balloon": {"type": "str"},
        "watchdog": {"type": "bool"},
        "kernel_args": {"type": "str"},
        "entrypoint": {"type": "raw"},
        "command": {"type": "raw"},
        "env": {"type": "dict"},
        "secret_env": {"type": "dict", "no_log": True},
        "working_dir": {"type": "str"},
        "hostname": {"type": "str"},
        "user": {"type": "str"},
        "password": {"type": "str", "no_log": True},
        "ssh_keys": {"type": "list", "elements": "str", "no_log": False},
        "user_data": {"type": "str", "no_log": True},
        "firmware": {"type": "str", "choices": ["uefi", "bios"]},
        "labels": {"type": "dict"},
        "owner": {"type": "str"},
    }


def vm_controls() -> Spec:
    """How a task goes about it: never compared."""
    return {
        "wait_for": {"type": "str", "choices": ["process", "console", "ping", "port"]},
        "wait_port": {"type": "int"},
        "wait_pattern": {"type": "str"},
        "timeout": {"type": "int"},
        "stop_timeout": {"type": "int"},
        "pull": {"type": "str", "choices": ["missing", "always", "never"]},
        "disks_only": {"type": "bool"},
        "allow_restart": {"type": "bool"},
        "recreate": {"type": "bool"},
        "force": {"type": "bool"},
    }


def vm_options() -> Spec:
    """The options of one VM: those of ``cocoon_vm``, and the suboptions of ``cocoon_vms``."""
    return {
        "name": {"type": "str", "required": True},
        "state": {
            "type": "str",
            "choices": ["present", "started", "stopped", "restarted", "paused", "hibernated", "absent"],
            "default": "present",
        },
        **vm_resources(),
        **vm_controls(),
    }
