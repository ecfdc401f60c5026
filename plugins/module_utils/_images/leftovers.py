# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What pulls and downloads that were interrupted have left, for others to go on from or to remove."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import BusyError
from ansible_collections.cocoon.microvm.plugins.module_utils._images.staging import held_by
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, locked, remove_file, remove_tree

# What nobody came back for in so long is given up (seconds).
ABANDONED = 7 * 86400


@dataclasses.dataclass(frozen=True)
class Leftover:
    """What there is of one transfer, perhaps one that is under way.

    :param name: what users see.
    :param lock: who is at work on it holds this.
    :param paths: files and folders.
    """

    name: str
    lock: str
    paths: tuple[str, ...]

    @property
    def abandoned(self) -> bool:
        """Whether nobody has gone on with it for a week."""
        return time.time() - max(map(_changed, self.paths), default=0.0) > ABANDONED


def give_up(store: Store, left: Leftover, check_mode: bool = False) -> int | None:
    """Remove it if nobody is at work on it.

    :returns: the bytes that this gives back, or would; ``None`` if somebody is, or nothing is there any more.
    """
    with contextlib.suppress(BusyError), locked(store.paths, [left.lock], 0):
        paths = [path for path in left.paths if os.path.lexists(path)]
        if not paths:
            return None
        size = sum(map(_size, paths))
        for path in paths if not check_mode else ():
            if os.path.isdir(path):
                remove_tree(path)
            else:
                remove_file(path)
        return size
    return None


def _size(path: str) -> int:
    """Bytes that it takes; a part of a disk has holes."""
    if os.path.isdir(path):
        return held_by(path)[1]
    status = os.lstat(path)
    return min(status.st_size, status.st_blocks * 512)


def _changed(path: str) -> float:
    with contextlib.suppress(FileNotFoundError):
        return os.lstat(path).st_mtime
    return 0.0
