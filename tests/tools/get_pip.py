# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands where ansible-test keeps its downloaded get-pip.py: installs the pip that comes with the interpreter.

The versions that ansible-test asks for on the command line are left aside: any pip that understands its requirement
files will do, and the environment drops pip again once they are installed.
"""

from __future__ import annotations

import ensurepip

if __name__ == "__main__":
    ensurepip.bootstrap(upgrade=True)
