# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unpacks a checked archive into a directory of ours."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat

from ansible_collections.cocoon.microvm.plugins.module_utils._images import tarball
from ansible_collections.cocoon.microvm.plugins.module_utils._images.findings import (
    AUFS,
    OPAQUE,
    OPAQUE_XATTR,
    WHITEOUT,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._images.tarball import BadArchive, Member

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# mkfs.erofs cuts longer ones when it walks a tree, and then misses the file.
MAX_NAME = 254
NODES = {tarball.CHAR: 0o020000, tarball.BLOCKDEV: 0o060000, tarball.FIFO: 0o010000}


def raw(name: str) -> bytes:
    """The bytes of a name, as they stand in the archive, whatever this process' locale is."""
    return name.encode("utf-8", "surrogateescape")


class Tree:
    """Unpacks members into an empty directory of ours.

    Every step from the root down is opened without following links, so that nothing can land elsewhere.
    """

    def __init__(self, path: str) -> None:
        self._root = os.open(path, DIRECTORY_FLAGS)
        self._parent: tuple[str, int] = ("", self._root)
        self._whiteouts: set[str] = set()

    def close(self) -> None:
        self._enter("", self._root)
        os.close(self._root)

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def add(self, member: Member) -> None:
        """Make one member.

        :raises BadArchive: it would need something that is not there, or replace a directory.
        """
        try:
            self._add(member)
        except BadArchive:
            raise
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
                raise
            raise BadArchive(f"'{member.path}' ({member.kind}) cannot be unpacked: {exc.strerror}") from exc

    def _add(self, member: Member) -> None:
        folder, name = posixpath.split(member.path)
        if name.startswith(WHITEOUT):
            self._add_whiteout(folder, name)
            return
        if not name:
            self._dress(self._root, member)
            return
        if len(raw(name)) > MAX_NAME:
            raise BadArchive(
                f"'{member.path}' has a name of more than {MAX_NAME} bytes, which this host's erofs-utils cannot take",
                "Install erofs-utils 1.8 or newer.",
            )
        parent = self._open(folder, create=True)
        self._clear(parent, name, member)
        if member.kind == tarball.DIRECTORY:
            self._add_directory(parent, name, member)
        elif member.kind == tarball.FILE:
            self._add_file(parent, name, member)
        elif member.kind == tarball.HARDLINK:
            self._add_link(parent, name, member)
        else:
            self._add_special(parent, name, member)

    def _clear(self, parent: int, name: str, member: Member) -> None:
        """A later member of the same name replaces the earlier one, except that directories stay."""
        if member.kind == tarball.DIRECTORY and self._is_directory(parent, name):
            return
        try:
            os.unlink(raw(name), dir_fd=parent)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            raise BadArchive(f"'{member.path}' replaces a directory of the same archive") from None

    @staticmethod
    def _is_directory(parent: int, name: str) -> bool:
        try:
            fd = os.open(raw(name), DIRECTORY_FLAGS, dir_fd=parent)
        except OSError:
            return False
        os.close(fd)
        return True

    def _add_directory(self, parent: int, name: str, member: Member) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(raw(name), 0o700, dir_fd=parent)
        fd = os.open(raw(name), DIRECTORY_FLAGS, dir_fd=parent)
        try:
            self._dress(fd, member)
            if member.path in self._whiteouts:  # hidden and made anew in one layer
                os.setxattr(fd, OPAQUE_XATTR, b"y")
        finally:
            os.close(fd)

    def _add_file(self, parent: int, name: str, member: Member) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(raw(name), flags, 0o600, dir_fd=parent)
        try:
            for data in member.data:
                if data.count(0) == len(data):
                    os.lseek(fd, len(data), os.SEEK_CUR)
                    continue
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            os.ftruncate(fd, member.size)
            self._dress(fd, member)
        finally:
            os.close(fd)

    def _add_link(self, parent: int, name: str, member: Member) -> None:
        folder, target = posixpath.split(member.link)
        try:
            source = self._walk(folder)
        except FileNotFoundError:
            raise tarball.bad_link(member) from None
        try:
            os.link(raw(target), raw(name), src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except (FileNotFoundError, PermissionError) as exc:
            raise tarball.bad_link(member, directory=isinstance(exc, PermissionError)) from None
        finally:
            os.close(source)

    def _add_special(self, parent: int, name: str, member: Member) -> None:
        if member.kind == tarball.SYMLINK:
            os.symlink(raw(member.link), raw(name), dir_fd=parent)
        else:
            os.mknod(raw(name), NODES[member.kind] | 0o600, os.makedev(*member.device), dir_fd=parent)
        os.chown(raw(name), member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        if member.kind != tarball.SYMLINK:
            os.chmod(raw(name), member.mode, dir_fd=parent)  # no link: made above, by us
        for key, value in member.xattrs.items():
            os.setxattr(b"/proc/self/fd/%d/%s" % (parent, raw(name)), raw(key), value, follow_symlinks=False)

    def _add_whiteout(self, folder: str, name: str) -> None:
        if name == OPAQUE:
            os.setxattr(self._open(folder, create=True), OPAQUE_XATTR, b"y")
            return
        if name.startswith(AUFS):
            return
        parent = self._open(folder, create=True)
        target = name[len(WHITEOUT) :]
        if not target or target in (".", ".."):
            raise BadArchive(f"'{posixpath.join(folder, name)}' is a whiteout of nothing")
        self._whiteouts.add(posixpath.join(folder, target))
        if self._is_directory(parent, target):
            os.setxattr(self._open(posixpath.join(folder, target)), OPAQUE_XATTR, b"y")
            return
        with contextlib.suppress(FileExistsError):  # what the layer brings itself stays
            os.mknod(raw(target), 0o020000, os.makedev(0, 0), dir_fd=parent)

    @staticmethod
    def _dress(fd: int, member: Member) -> None:
        os.fchown(fd, member.uid, member.gid)
        os.fchmod(fd, member.mode)  # after the owner: that clears setuid
        for key, value in member.xattrs.items():
            os.setxattr(fd, raw(key), value)

    def _open(self, folder: str, create: bool = False) -> int:
        """A descriptor of *folder*, kept until the next one: members of one folder come together."""
        if folder != self._parent[0]:
            self._enter(folder, self._walk(folder, create))
        return self._parent[1]

    def _enter(self, folder: str, fd: int) -> None:
        if self._parent[1] != self._root:
            os.close(self._parent[1])
        self._parent = (folder, fd)

    def _walk(self, folder: str, create: bool = False) -> int:
        fd = os.dup(self._root)
        path = ""
        for part in folder.split("/") if folder else ():
            path = posixpath.join(path, part)
            try:
                if create:
                    self._imply(fd, part, path)
                step = os.open(raw(part), DIRECTORY_FLAGS, dir_fd=fd)
            except NotADirectoryError:
                raise BadArchive(f"'{folder}' goes through {self._what(fd, part)} of the same archive") from None
            finally:
                os.close(fd)
            fd = step
        return fd

    def _imply(self, parent: int, name: str, path: str) -> None:
        """Make a folder that the archive only implies, if it is not there."""
        if path in self._whiteouts and not self._is_directory(parent, name):
            os.unlink(raw(name), dir_fd=parent)  # removed and made anew in one layer
            os.mkdir(raw(name), 0o755, dir_fd=parent)
            fd = os.open(raw(name), DIRECTORY_FLAGS, dir_fd=parent)
            os.setxattr(fd, OPAQUE_XATTR, b"y")
            os.close(fd)
            return
        with contextlib.suppress(FileExistsError):
            os.mkdir(raw(name), 0o755, dir_fd=parent)

    @staticmethod
    def _what(parent: int, name: str) -> str:
        mode = os.lstat(raw(name), dir_fd=parent).st_mode
        return f"the symbolic link '{name}'" if stat.S_ISLNK(mode) else f"'{name}', which is no directory"
