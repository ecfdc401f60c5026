# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Releases of a hypervisor that lie side by side, as the role ``host`` installs them: ``<name>/<release>/<name>``."""

from __future__ import annotations

import os
import typing as t


def beside(binary: str) -> t.Iterator[str]:
    """*binary*, then the programs of its name in the folders beside its own, the newest names first."""
    yield binary
    folder, name = os.path.split(os.path.realpath(binary))
    parent, own = os.path.split(folder)
    if os.path.basename(parent) != name:  # it was put there in another way
        return
    for other in sorted(os.listdir(parent), reverse=True):
        path = os.path.join(parent, other, name)
        if other != own and os.path.isfile(path) and os.access(path, os.X_OK):
            yield path


def matching(binary: str, fits: t.Callable[[str], bool]) -> str | None:
    """The first of them that *fits*."""
    return next((path for path in beside(binary) if fits(path)), None)
