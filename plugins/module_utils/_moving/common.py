# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the two halves of a move keep what they have, and how one proves to the other what it has done.

A VM on its way has ``moving`` in its record, on both hosts, under one token::

    {"token": …, "to": "hv1", "was": "running", "since": …}      where it was: it is not started or changed any more
    {"token": …, "from": "hv2", "since": …}                      where it goes: nor here, but by the move

``root_dir/moves/<id>/`` holds the archive on its way out (``out/``) or in (``in/``), and its unpacked files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ChangeRefusedError, NotFoundError
from ansible_collections.cocoon.microvm.plugins.module_utils._state import hashed, locked, remove_tree
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Run
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.saving import RESERVE

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import VmRecord

ARCHIVE = "archive"


def folder(run: Run, object_id: str, *parts: str) -> str:
    """A path below the folder of one move."""
    return os.path.join(run.store.paths.moves, object_id, *parts)


def fresh_folder(run: Run, object_id: str, part: str, reader: int | None) -> str:
    """A new, empty folder for one way of a move.

    :param reader: the uid that may get in, and whose it is then; only root without it.
    """
    for path in (run.store.paths.moves, folder(run, object_id)):
        os.makedirs(path, 0o711, exist_ok=True)
        os.chmod(path, 0o711)
    path = folder(run, object_id, part)
    remove_tree(path)
    os.mkdir(path, 0o700)
    if reader is not None:
        os.chown(path, reader, -1)
    return path


def clear(run: Run, object_id: str) -> None:
    """Nothing of a move's files is left."""
    remove_tree(folder(run, object_id))
    with contextlib.suppress(OSError):
        os.rmdir(run.store.paths.moves)


def compression() -> str:
    """What an archive on its way is compressed with."""
    return "zstd" if shutil.which("zstd") else "gzip"


def room(run: Run) -> int:
    """Bytes that an archive may unpack to."""
    info = os.statvfs(run.store.paths.root)
    return max(0, info.f_bavail * info.f_frsize - RESERVE)


def receipt(token: str, vm_id: str, what: str) -> str:
    """The word that *what* (``settled`` or ``discarded``) has been done to a VM: only who has done it gives it."""
    return hashed(f"{token}/{vm_id}/{what}")


@contextlib.contextmanager
def vm_locked(run: Run, name: str) -> t.Iterator[VmRecord | None]:
    """The VM's record, with its lock held."""
    with locked(run.store.paths, [f"vm:{name}"], run.options.lock_timeout):
        yield run.store.vm_record(name)


def known(record: VmRecord | None, name: str) -> VmRecord:
    """:raises NotFoundError: there is no such VM."""
    if record is None:
        raise NotFoundError(f"there is no VM '{name}'", "name", "See what there is with cocoon_vm_info.")
    return record


def check_token(record: VmRecord, token: str | None) -> Record:
    """What the record says of the move that *token* stands for.

    :raises ChangeRefusedError: it is not on its way, or another move has it.
    """
    moving: Record = record.get("moving") or {}
    if not moving or moving["token"] != token:
        raise ChangeRefusedError(
            f"VM '{record['config']['name']}' is not on the move that this step belongs to",
            "token",
            "Run the playbook again from its beginning: it finds out how far things are.",
        )
    return moving
