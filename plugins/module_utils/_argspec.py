# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Argument specs that several modules share. Those of a VM's options are in the options' table."""

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


def bulk_options() -> Spec:
    """How to go about many VMs at once, whose they are, and whether those that are not listed go."""
    return {
        "prune": {"type": "bool", "default": False},
        "force": {"type": "bool", "default": False},
        "owner": {"type": "str"},
        "elsewhere": {"type": "dict"},
        "parallel": {"type": "int", "default": 16},
        "max_unavailable": {"type": "int", "default": 1},
        "hold_restarts": {"type": "bool", "default": False},
    }


def network_options() -> Spec:
    """The options of a network."""
    return {
        "name": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "type": {"type": "str", "choices": ["bridge", "cni"]},
        "conflist": {"type": "str"},
        "cni_conf_dir": {"type": "path"},
        "cni_bin_dir": {"type": "list", "elements": "path"},
        "bridge": {"type": "str"},
        "adopt": {"type": "bool"},
        "uplink": {"type": "str"},
        "vlan_filtering": {"type": "bool"},
        "subnet": {"type": "str"},
        "gateway": {"type": "str"},
        "subnet6": {"type": "str"},
        "addresses6": {"type": "str", "choices": ["advertised", "static"]},
        "routing6": {"type": "str", "choices": ["none", "nat", "routed"]},
        "range_start": {"type": "str"},
        "range_end": {"type": "str"},
        "reserved": {"type": "list", "elements": "str"},
        "nat": {"type": "bool"},
        "isolated": {"type": "bool"},
        "anti_spoofing": {"type": "bool"},
        "mtu": {"type": "int"},
        "dns": {"type": "list", "elements": "str"},
        "dns_search": {"type": "list", "elements": "str"},
        "names": {"type": "bool"},
        "dhcp": {"type": "bool"},
        "dhcp_range": {"type": "str"},
        "owner": {"type": "str"},
        "labels": {"type": "dict"},
        "force": {"type": "bool"},
    }


def image_options() -> Spec:
    """The options of an image; see :data:`IMAGE_RULES`."""
    return {
        "name": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "source": {"type": "path"},
        "kernel": {"type": "path"},
        "initrd": {"type": "path"},
        "checksum": {"type": "str"},
        "tag": {"type": "str"},
        "pull": {"type": "str", "choices": ["missing", "always", "never"], "default": "missing"},
        "platform": {"type": "str"},
        "registry_user": {"type": "str"},
        "registry_password": {"type": "str", "no_log": True},
        "auth_file": {"type": "path", "aliases": ["authfile"]},
        "ca_path": {"type": "path"},
        "validate_certs": {"type": "bool", "default": True, "aliases": ["tls_verify"]},
        "mirror": {"type": "str"},
        "max_size": {"type": "str"},
        "owner": {"type": "str"},
        "labels": {"type": "dict"},
        "force": {"type": "bool"},
    }


# Which options of an image go with which.
IMAGE_RULES: dict[str, t.Any] = {
    "mutually_exclusive": [("registry_user", "auth_file")],
    "required_together": [("registry_user", "registry_password")],
}
