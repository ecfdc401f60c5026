# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that what is tested has begun, and that outlive it."""

from __future__ import annotations

import os


def reap() -> None:
    """Return once none is left."""
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        return
