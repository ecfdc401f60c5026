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
