# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine's face: the only thing that modules call, a file for what each is about.

Each call takes the parameters of a module, and whether only to look, and gives what the task is answered. What never
changes anything has a file of its own where the rest would be packed, and sent to the host, for nothing.
"""
