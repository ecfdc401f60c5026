# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Releases of a hypervisor that lie side by side, as the role ``host`` installs them: ``<name>/<release>/<name>``."""

from __future__ import annotations

import contextlib
import os
import re
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, UnsupportedError


def beside(binary: str) -> t.Iterator[str]:
    """*binary*, then the programs of its name in the folders beside its own, the newest releases first."""
    yield binary
    folder, name = os.path.split(os.path.realpath(binary))
    parent, own = os.path.split(folder)
    if os.path.basename(parent) != name:  # it was put there in another way
        return
    for other in sorted(os.listdir(parent), key=_numbers, reverse=True):
        path = os.path.join(parent, other, name)
        if other != own and os.path.isfile(path) and os.access(path, os.X_OK):
            yield path


def _numbers(folder: str) -> list[int]:
    """Of the release in ``<version>-<digest>``."""
    return [int(number) for number in re.findall("[0-9]+", folder.partition("-")[0])]


def taking_up(who: str, binary: str, version_of: t.Callable[[str], str], there: str, alike: int) -> str:
    """The first of them that takes up what the release *there* of *who* has saved.

    :param alike: how many numbers of their versions have to be the same.
    :raises UnsupportedError: it is not here.
    """
    for path in beside(binary):
        with contextlib.suppress(CocoonError, OSError):  # one that does not run
            if version_of(path).split(".")[:alike] == there.split(".")[:alike]:
                return path
    raise UnsupportedError(
        f"it was saved by {who} {there}, and this host has {version_of(binary)}",
        "hypervisor",
        "A state is taken up by the release that saved it: install that one beside it with the role host.",
    )
