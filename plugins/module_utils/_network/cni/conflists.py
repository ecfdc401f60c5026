# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Conflists: found by their names, checked, and turned into what each of their plugins is told."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError, NotFoundError, StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import NetworkRecord

# Whose results are lists of interfaces and addresses; older ones have another form.
VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
SUFFIXES = (".conflist", ".conf", ".json")
TYPE_RE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
NAME_RE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
MAX_SIZE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Conflist:
    """A network of the CNI's: its name, the version that its plugins speak, and their configurations, in order."""

    name: str
    version: str
    plugins: tuple[Record, ...]

    def record(self) -> Record:
        """What is kept of it, so that what was set up by it can be taken down, whatever becomes of its file."""
        return {"name": self.name, "version": self.version, "plugins": list(self.plugins)}

    def takes(self, capability: str) -> bool:
        """Whether one of the plugins wants to be told that."""
        return any((plugin.get("capabilities") or {}).get(capability) is True for plugin in self.plugins)


def of_record(item: t.Mapping[str, t.Any]) -> Conflist:
    return Conflist(item["name"], item["version"], tuple(item["plugins"]))


def of_network(network: NetworkRecord) -> Conflist:
    """That of a network of type ``cni``; as :func:`load`."""
    return load(network["cni_conf_dir"] or "", network["conflist"] or "")


def load(folder: str, name: str) -> Conflist:
    """The conflist of that name, as it says itself, or else of the file that is called so.

    :raises NotFoundError: there is none; the message names those there are.
    :raises StateError: it cannot be read, or means nothing.
    """
    known, broken = _scan(folder)
    if name in known:
        return _checked(known[name], name)
    for path, why in broken.items():
        if os.path.splitext(os.path.basename(path))[0].endswith(name):
            raise StateError(f"{path} {why}", "conflist", "Mend the file, or name another conflist.")
    there = f"there are {', '.join(sorted(known))}" if known else "there is none"
    unread = f", and {', '.join(sorted(broken))} cannot be read" if broken else ""
    raise NotFoundError(
        f"no conflist '{name}' is in {folder}: {there}{unread}", "conflist", "Name one of cni_conf_dir."
    )


def _scan(folder: str) -> tuple[dict[str, tuple[str, Record]], dict[str, str]]:
    """(path, document) of each conflist by its name, the first that has it; and what is wrong with the other files."""
    try:
        files = sorted(os.listdir(folder))
    except OSError as exc:
        raise NotFoundError(
            f"{folder} cannot be read: {exc.strerror}", "cni_conf_dir", "Name the folder that conflists are in."
        ) from exc
    known: dict[str, tuple[str, Record]] = {}
    broken = {}
    for file in sorted(files, key=lambda file: not file.endswith(SUFFIXES[0])):
        path = os.path.join(folder, file)
        if not file.endswith(SUFFIXES):
            continue
        try:
            document = _read(path)
            known.setdefault(_name(document), (path, document))
        except (OSError, ValueError) as exc:
            broken[path] = f"is no conflist: {exc.strerror if isinstance(exc, OSError) else exc}"
    return known, broken


def _read(path: str) -> Record:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as stream:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is not a file")
        data = stream.read(MAX_SIZE + 1)
    if len(data) > MAX_SIZE:
        raise ValueError("it is too long")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"it is not JSON ({exc})") from None
    if not isinstance(document, dict):
        raise ValueError("it is not an object")
    return document


def _name(document: Record) -> str:
    name = document.get("name")
    if not isinstance(name, str) or not NAME_RE.match(name):
        raise ValueError("it has no name")
    return name


def _checked(found: tuple[str, Record], name: str) -> Conflist:
    path, document = found
    plugins = document.get("plugins")
    if plugins is None and "type" in document:  # one plugin alone, without a list around it
        plugins = [{key: value for key, value in document.items() if key not in ("name", "cniVersion")}]
    version = document.get("cniVersion")
    wrong = None
    if version not in VERSIONS:
        said = version if isinstance(version, str) else "none"
        wrong = f"is of cniVersion {said[:20]}, and can be of {', '.join(VERSIONS)}"
    elif not isinstance(plugins, list) or not plugins:
        wrong = "has no plugins"
    elif not all(isinstance(item, dict) and TYPE_RE.match(str(item.get("type", ""))) for item in plugins):
        wrong = "has a plugin without a type"
    elif not all(isinstance(item.get("capabilities", {}), dict) for item in plugins):
        wrong = "has a plugin whose capabilities are no object"
    if wrong:
        raise StateError(f"conflist '{name}' ({path}) {wrong}", "conflist", "Mend the file, or name another conflist.")
    return Conflist(name, t.cast(str, version), tuple(t.cast("list[Record]", plugins)))


def plugin_path(kind: str, folders: t.Sequence[str]) -> str:
    """Where a plugin is.

    :raises NotFoundError: it is in none of the folders.
    """
    for folder in folders:
        path = os.path.join(folder, kind)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise NotFoundError(
        f"the CNI plugin '{kind}' is not in {', '.join(folders)}",
        "cni_bin_dir",
        "Install containernetworking-plugins, or name the folder that it is in.",
    )


def plugins_of(conflist: Conflist) -> list[str]:
    """The plugins that it needs, those for addresses too."""
    found = []
    for plugin in conflist.plugins:
        ipam = plugin.get("ipam")
        kinds = [plugin["type"], ipam.get("type") if isinstance(ipam, dict) else None]
        found += [kind for kind in kinds if kind]
    for kind in found:
        if not isinstance(kind, str) or not TYPE_RE.match(kind):
            raise StateError(f"conflist '{conflist.name}' has an ipam without a type", "conflist", "Mend the file.")
    return list(dict.fromkeys(found))


def check_folder(path: str, option: str) -> str:
    """:raises InputError: it is not an absolute path that can stand in a list of paths."""
    if not path.startswith("/") or ":" in path or "\n" in path or "\0" in path:
        raise InputError(f"'{path}' is not a folder's path", option, "Write it as /etc/cni/net.d.")
    return os.path.normpath(path)
