# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a suite found, and the summary over all of them."""

from __future__ import annotations

import xml.etree.ElementTree
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from common import say

FEW = 4


@dataclass
class Report:
    """The outcome of one suite, or of one run of it."""

    name: str
    passed: int = 0
    failures: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    # What was not run and is no test that a runner could count, such as a missing interpreter.
    missing: list[str] = field(default_factory=list)
    spent: float = 0.0

    def line(self) -> str:
        """One line, like a test runner's own."""
        counts = f"{self.passed} passed, {len(self.failures)} failed, {len(self.skipped)} skipped"
        return f"{self.name}: {counts} in {self.spent:.1f} s"


def from_junit(report: Report, path: Path) -> None:
    """Add what pytest wrote. A run that left no results, or no test, has failed."""
    try:
        root = xml.etree.ElementTree.parse(path).getroot()
    except (FileNotFoundError, xml.etree.ElementTree.ParseError):
        report.failures.append(f"{report.name}: the test runner left no results")
        return
    cases = list(root.iter("testcase"))
    if not cases:
        report.failures.append(f"{report.name}: no test was found")
    for case in cases:
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            report.failures.append(name)
        elif skip is not None:
            report.skipped.append(f"{name}: {skip.get('message') or 'no reason given'}")
        else:
            report.passed += 1


def grouped(lines: Iterable[str]) -> list[str]:
    """Each reason once, with the tests that it skipped; the many parameters of one test become a number."""
    reasons: dict[str, dict[str, set[str]]] = {}
    for line in lines:
        name, _colon, reason = line.partition(": ")
        test, _bracket, parameters = name.partition("[")
        reasons.setdefault(reason, {}).setdefault(test, set()).add(parameters.rstrip("]"))
    result = []
    for reason, tests in reasons.items():
        result.append(f"  {reason}")
        for test, parameters in tests.items():
            few = len(parameters) <= FEW
            names = [f"{test}[{value}]" if value else test for value in sorted(parameters)]
            result += [f"    - {name}" for name in (names if few else [f"{test}, {len(parameters)} parameter sets"])]
    return result


def summary(reports: list[Report]) -> int:
    """Print all results; the last line is the total.

    :returns: the exit status.
    """
    missing = list(dict.fromkeys(reason for report in reports for reason in report.missing))
    skipped = [line for report in reports for line in report.skipped]
    failures = [(report.name, line) for report in reports for line in report.failures]
    say("\n" + "=" * 78)
    if skipped or missing:
        say("Not run, and why:")
        for line in grouped(skipped):
            say(line)
        for reason in missing:
            say(f"  {reason}")
    else:
        say("Nothing was skipped.")
    if failures:
        say("Failed:")
        for name, line in failures:
            say(f"  {name}: {line}")
    for report in reports:
        say(report.line())
    passed = sum(report.passed for report in reports)
    say(f"{passed} passed, {len(failures)} failed, {len(skipped)} skipped")
    return 1 if failures else 0
