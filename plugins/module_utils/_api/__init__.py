# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine's face: the only thing that modules call, a file for what each is about.

Each call takes the parameters of a module, and whether only to look, and gives what the task is answered. What never
changes anything has a file of its own where the rest would be packed, and sent to the host, for nothing.
"""

from __future__ import annotations

import os
import sys
import zipimport


class Importer(zipimport.zipimporter):
    """Names the file of a module without compiling it.

    A module comes to its host in a zip. zipimport compiles all that is imported from one twice, the first time only to
    find out what the file is called: a sixth of what a task that changes nothing costs there.
    """

    def get_filename(self, fullname: str) -> str:
        """:raises ZipImportError: there is no such module."""
        name = fullname.rpartition(".")[2]
        return os.path.join(self.archive, f"{self.prefix}{name}{'/__init__' if self.is_package(fullname) else ''}.py")


def _import_once() -> None:
    """Have what is imported from here on compiled once; this package is the first of ours that a module imports."""
    sys.path_hooks.insert(0, Importer)
    for path, importer in list(sys.path_importer_cache.items()):
        if isinstance(importer, zipimport.zipimporter):
            del sys.path_importer_cache[path]


if isinstance(getattr(__spec__, "loader", None), zipimport.zipimporter):
    _import_once()
