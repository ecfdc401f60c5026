# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""State files: JSON documents replaced atomically, names reserved by exclusive creates, locks by flock.

Nothing here scans: the cost of one change does not depend on how many objects a store has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import BusyError, ConflictError, StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._records import damaged_vm, read_vm
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record, new_id

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import VmRecord

LAYOUT = 1
MAX_DOCUMENT = 16 << 20
# Above the container ranges that systemd reserves and below 2^31 (systemd's UIDS-GIDS document).
UID_BASE = 0x70000000
UID_RANGE = 65536
UID_SLOTS = 4096
RESTORE_STORE = (
    "Put it back from a backup. Its store_id is the owner of the records, where none was given; uid_start is"
    f" {UID_BASE} and a multiple of {UID_RANGE}, up to the least of the numbers that the entries of index/uid name."
)
# A kind of record.
Kind = t.TypeVar("Kind")
ASK_DOCTOR = "cocoon_host_info lists what is damaged."
DAMAGED_VM = "Put it back from a backup, or remove the VM by its name (state: absent), which keeps its data disks."


def read_json(path: str) -> Record | None:
    """The document at *path*, or ``None`` if there is none.

    :raises StateError: not a regular file, too large, or not a JSON object.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise StateError(f"cannot read {path}: {exc.strerror}") from exc
    try:
        data = os.read(fd, MAX_DOCUMENT)
    finally:
        os.close(fd)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise StateError(f"{path} is damaged: {exc}", remedy="Restore it from a backup or remove the object.") from exc
    if not isinstance(document, dict):
        raise StateError(f"{path} is damaged: not a JSON object")
    return document


def read_record(path: str, reader: t.Callable[[Record], Kind], object_id: str, folder: bool = False) -> Kind | None:
    """The record of an object by its kind's *reader*, or ``None`` if there is no document.

    :param folder: the object has a folder, in which the record is written first and removed last.
    :raises StateError: it is damaged, or the object has files and no document.
    """
    document = read_json(path)
    if document is None:
        if folder and _has_files(os.path.dirname(path)):
            raise StateError(f"{path} is missing")
        return None
    try:
        if document.get("id") != object_id:
            raise StateError("it is of another object")
        return reader(document)
    except StateError as exc:
        raise StateError(f"{path} is damaged: {exc.message}") from None


def _has_files(directory: str) -> bool:
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        return any(entry.is_file(follow_symlinks=False) and not entry.name.endswith(".tmp") for entry in entries)
    return False


_deferred = threading.local()


@contextlib.contextmanager
def directories_synced_once() -> t.Iterator[None]:
    """Make what this thread creates in here durable at the end, each directory once and not once a file.

    Journalling file systems keep the order of creations, so a power cut in between loses a tail of
    them and never something from the middle.
    """
    _deferred.paths = set()
    try:
        yield
    finally:
        paths, _deferred.paths = _deferred.paths, None
        for path in sorted(paths):
            with contextlib.suppress(FileNotFoundError):
                fsync_dir(path)


def fsync_dir(path: str) -> None:
    """Make the entries of a directory durable, now or at the end of :func:`directories_synced_once`."""
    waiting = getattr(_deferred, "paths", None)
    if waiting is not None:
        waiting.add(path)
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _fill(fd: int, document: t.Mapping[str, t.Any]) -> None:
    """Write a document into a new file; the descriptor stays open."""
    with os.fdopen(fd, "wb", closefd=False) as stream:
        stream.write(json.dumps(document, indent=1, sort_keys=True).encode())
    os.fsync(fd)


def write_json(path: str, document: t.Mapping[str, t.Any], mode: int = 0o600, locked: bool = False) -> None:
    """Replace *path* atomically and durably.

    :param locked: nobody else can be writing it, so a temporary file that is there is a dead writer's.
    """
    temporary = f"{path}.tmp" if locked else f"{path}.{os.getpid()}.{new_id()[:8]}.tmp"
    if locked:
        remove_file(temporary)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        _fill(fd, document)
        os.rename(temporary, path)
    except BaseException:
        remove_file(temporary)
        raise
    finally:
        os.close(fd)
    fsync_dir(os.path.dirname(path))


def create_json(path: str, document: t.Mapping[str, t.Any], mode: int = 0o600) -> bool:
    """Create *path* whole or not at all; ``False`` if it is there already."""
    fd, temporary = _open_nameless(os.path.dirname(path), mode)
    try:
        _fill(fd, document)
        # Given a dir_fd Python calls linkat, which follows the link to the file; the path is absolute.
        os.link(temporary, path, src_dir_fd=fd, follow_symlinks=True)
    except FileExistsError:
        return False
    finally:
        os.close(fd)
        if not temporary.startswith("/proc/"):
            os.unlink(temporary)
    fsync_dir(os.path.dirname(path))
    return True


def _open_nameless(directory: str, mode: int) -> tuple[int, str]:
    """A new file without a name, which goes with whoever dies before it gets one; and a path to link it by.

    File systems that know no such files (some overlays) get one with a name.
    """
    try:
        fd = os.open(directory, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, mode)
        return fd, f"/proc/self/fd/{fd}"
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    temporary = os.path.join(directory, f"{os.getpid()}.{new_id()[:8]}.tmp")
    return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode), temporary


def remove_file(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_tree(path: str) -> None:
    """Remove a directory of ours; rmtree does not follow links, and what is gone already is fine."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        if os.path.isdir(path):  # something inside went away under us: another removal of the same object
            shutil.rmtree(path, ignore_errors=True)


def own_folder(path: str, uid: int) -> None:
    """A folder that is for a VM's user alone, also where a run was killed before it had given it away."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    os.chown(path, uid, uid, follow_symlinks=False)


def hashed(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


class Index:
    """Reservations of one kind: ``index/<kind>/<sha256 of the name>`` holds the name and the owner's id."""

    def __init__(self, paths: Paths, kind: str) -> None:
        self.kind = kind
        self.directory = paths.index(kind)

    def path(self, name: str) -> str:
        return os.path.join(self.directory, hashed(name))

    def lookup(self, name: str) -> str | None:
        """The id that holds *name*, or ``None``."""
        entry = read_json(self.path(name))
        if entry is None:
            return None
        if not isinstance(entry.get("id"), str):
            raise StateError(f"{self.path(name)} is damaged: it names no {self.kind}", remedy=ASK_DOCTOR)
        return t.cast(str, entry["id"])

    def reserve(self, name: str, object_id: str) -> None:
        """Take *name* for *object_id*; taking it again for the same id is fine.

        :raises ConflictError: somebody else holds it.
        """
        if create_json(self.path(name), {"name": name, "id": object_id}):
            return
        holder = self.lookup(name)
        if holder != object_id:
            raise ConflictError(f"{self.kind} '{name}' is taken by {holder}")

    def release(self, name: str, object_id: str) -> None:
        """Give *name* back if *object_id* holds it."""
        if self.lookup(name) == object_id:
            remove_file(self.path(name))

    def entries(self) -> list[tuple[str, str]]:
        """All (name, id) pairs, sorted; only for listings and prune. Those that cannot be read the doctor finds."""
        found = []
        try:
            files = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        for file in files:
            if file.endswith(".tmp"):
                continue
            with contextlib.suppress(StateError):
                entry = read_json(os.path.join(self.directory, file)) or {}
                if isinstance(entry.get("name"), str) and isinstance(entry.get("id"), str):
                    found.append((entry["name"], entry["id"]))
        return sorted(found)


@dataclasses.dataclass
class Store:
    """An open store: its paths, its id and its uid range."""

    paths: Paths
    store_id: str
    uid_start: int
    uid_count: int
    document: Record

    @classmethod
    def load(cls, paths: Paths) -> Store | None:
        """The store at *paths*, or ``None`` where nothing has been set up yet (check mode, info modules)."""
        document = read_json(paths.store_file)
        if document is None:
            _refuse_headless(paths)
            return None
        if document.get("layout") != LAYOUT:
            raise StateError(
                f"{paths.store_file} has {_layout_words(document)}, this version knows {LAYOUT}",
                "root_dir",
                "Use the version of the collection that wrote it.",
            )
        if not isinstance(document.get("store_id"), str) or not isinstance(document.get("uid_start"), int):
            raise StateError(f"{paths.store_file} is damaged: it is not whole", "root_dir", RESTORE_STORE)
        return cls(paths, document["store_id"], document["uid_start"], document["uid_count"], document)

    @classmethod
    def open(cls, paths: Paths) -> Store:
        """The store at *paths*, made if it is not there."""
        store = cls.load(paths)
        if store is None:
            make_directories(paths)
            store_id = new_id()
            slot = int(hashed(store_id), 16) % UID_SLOTS
            create_json(
                paths.store_file,
                {
                    "layout": LAYOUT,
                    "store_id": store_id,
                    "uid_start": UID_BASE + slot * UID_RANGE,
                    "uid_count": UID_RANGE,
                },
            )
            store = cls.load(paths)
        if store is None:
            raise StateError(f"{paths.store_file} vanished while it was being made")
        make_runtime_directories(paths)
        return store

    def index(self, kind: str) -> Index:
        return Index(self.paths, kind)

    def vm_record(self, name: str) -> VmRecord | None:
        """The record of the VM *name*.

        A name that is reserved but has no document yet (a process died in between) gives a bare
        record in state ``creating``.
        """
        vm_id = self.index("vm").lookup(name)
        return None if vm_id is None else self.load_vm(vm_id, name) or _bare(vm_id, name)

    def vm_records(self) -> list[VmRecord]:
        """Every VM's record, by name, as :meth:`vm_record` gives it."""
        return [self.load_vm(vm_id, name) or _bare(vm_id, name) for name, vm_id in self.index("vm").entries()]

    def load_vm(self, vm_id: str, name: str | None = None) -> VmRecord | None:
        """The record of a VM, or ``None`` if there is none; if it is damaged, what stands for it."""
        try:
            return read_record(os.path.join(self.paths.vm_dir(vm_id), "vm.json"), read_vm, vm_id, folder=True)
        except StateError as exc:
            return damaged_vm(vm_id, name or vm_id, f"{exc.message}. {DAMAGED_VM}")

    def vm_name(self, vm_id: str) -> str | None:
        """The name of a VM, as far as it is known."""
        record = self.load_vm(vm_id)
        return None if record is None else record["config"]["name"]

    def write_vm(self, record: VmRecord) -> None:
        """Replace a VM's record. The VM's lock is held."""
        write_json(os.path.join(self.paths.vm_dir(record["id"]), "vm.json"), record, locked=True)


def _refuse_headless(paths: Paths) -> None:
    """Another identity would give the users of the VMs that are there to others, and nobody would own those VMs.

    :raises StateError: there is no store.json over a store that has something in it.
    """
    for kind in INDEX_KINDS:
        with contextlib.suppress(FileNotFoundError):
            if os.listdir(paths.index(kind)):
                raise StateError(
                    f"{paths.store_file} is missing, and there are {kind}s in the store", "root_dir", RESTORE_STORE
                )


def _layout_words(document: Record) -> str:
    return f"layout {document['layout']}" if "layout" in document else "no layout"


def _bare(vm_id: str, name: str) -> VmRecord:
    return {"id": vm_id, "state": "creating", "config": {"name": name}, "bare": True}


INDEX_KINDS = ("vm", "snapshot", "image", "network", "mac", "uid")


def make_directories(paths: Paths) -> None:
    """The directories of a store, 0711 (to pass through, not to list) or 0700 (only we)."""
    for path in (paths.root, *(os.path.join(paths.root, name) for name in ("vms", "snapshots", "images", "networks"))):
        os.makedirs(path, 0o711, exist_ok=True)
        os.chmod(path, 0o711)
    for path in (paths.locks, os.path.join(paths.root, "index"), *(paths.index(kind) for kind in INDEX_KINDS)):
        os.makedirs(path, 0o700, exist_ok=True)
        os.chmod(path, 0o700)


def make_runtime_directories(paths: Paths) -> None:
    """run_dir and log_dir, which a reboot may have taken."""
    for path, mode in ((paths.run, 0o711), (paths.log, 0o711)):
        os.makedirs(path, mode, exist_ok=True)
        os.chmod(path, mode)


@contextlib.contextmanager
def locked(
    paths: Paths,
    names: t.Iterable[str],
    timeout: float,
    shared: t.Iterable[str] = (),
    activity: t.Callable[[], object] | None = None,
) -> t.Iterator[None]:
    """Hold the locks *names* (``vm:web1``, ``network:lab``, ``image:…``, ``host``), taken in sorted order.

    The files are never deleted, so that a lock is one inode for ever.

    :param timeout: seconds to wait in all.
    :param shared: locks to hold beside others who only read.
    :param activity: something that changes while the holder gets on; then *timeout* is for how long it may not.
    :raises BusyError: somebody else held one of them for all that time.
    """
    with contextlib.ExitStack() as stack:
        deadline = time.monotonic() + timeout
        alone = set(names)
        for name in sorted(alone | set(shared)):
            path = os.path.join(paths.locks, name if name == "host" else f"{name.split(':', 1)[0]}-{hashed(name)}")
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, fd)
            flock(fd, name, deadline, timeout, fcntl.LOCK_EX if name in alone else fcntl.LOCK_SH, activity)
        yield


def flock(
    fd: int,
    name: str,
    deadline: float,
    timeout: float,
    kind: int = fcntl.LOCK_EX,
    activity: t.Callable[[], object] | None = None,
) -> None:
    """flock with a deadline. flock knows none of its own, so wait in short steps that grow to 10 ms."""
    pause, before = 0.001, None
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return
        except OSError as exc:
            if exc.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                raise
        if time.monotonic() >= deadline:
            if activity and before != (before := activity()):
                deadline = time.monotonic() + timeout
                continue
            raise BusyError(
                f"{name} is busy, waited {timeout:g} s", "lock_timeout", "Another task is changing it; try again."
            )
        time.sleep(pause)
        pause = min(pause * 2, 0.01)
