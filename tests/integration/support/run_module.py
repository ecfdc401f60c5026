# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs one module as AnsiballZ would, from the files as they lie: run_module.py NAME <arguments.json"""

from __future__ import annotations

import runpy
import sys

from ansible.module_utils import basic


def main() -> None:
    """The arguments come on standard input, as a module gets them."""
    name = sys.argv[1]
    basic._ANSIBLE_ARGS = sys.stdin.buffer.read()
    basic._ANSIBLE_PROFILE = "legacy"
    sys.argv = [name]
    full = f"ansible_collections.cocoon.microvm.plugins.modules.{name}"
    runpy.run_module(full, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
