# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the suites named on the command line, all of them to their end, and sum up."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from common import ToolError, main_wrapper
from lint import lint
from report import Report, summary
from stage import stage
from suites import brief_lab, integration, lab, quick, sanity, unit

SUITES = {
    **{"lint": lint, "sanity": sanity, "unit": unit, "integration": integration},
    **{"lab": lab, "brief-lab": brief_lab, "quick": quick},
}


def main() -> int:
    """:returns: the exit status: 1 if anything failed."""
    names = sys.argv[1:]
    unknown = [name for name in names if name not in SUITES]
    if unknown or not names:
        raise ToolError(f"usage: check.py {'|'.join(SUITES)}...")
    stage()
    reports: list[Report] = []
    for name in names:
        try:
            reports += SUITES[name]()
        except ToolError as error:
            reports.append(Report(name, failures=[str(error)]))
    return summary(reports)


if __name__ == "__main__":
    main_wrapper(main)
