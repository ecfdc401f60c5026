# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes each result of a run as a line of JSON, for the tests to read."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: record
type: notification
short_description: Record results for the tests
description:
  - Writes one line of JSON for each result to the file that the environment variable E(COCOON_TEST_RECORD) names.
author: The cocoon.microvm authors
"""


class CallbackModule(CallbackBase):
    """One line a result, and one with the recap."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "record"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._began: dict[tuple[str, str], float] = {}

    def _write(self, entry: dict[str, Any]) -> None:
        with open(os.environ["COCOON_TEST_RECORD"], "a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry, default=str) + "\n")

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """A task begins on a host."""
        self._began[host.get_name(), task._uuid] = time.monotonic()

    def _result(self, result: Any, outcome: str) -> None:
        began = self._began.pop((result._host.get_name(), result._task._uuid), None)
        self._write(
            {
                "task": result._task.get_name(),
                "action": result._task.action,
                "host": result._host.get_name(),
                "outcome": outcome,
                "seconds": None if began is None else time.monotonic() - began,
                "result": result._result,
            }
        )

    def v2_runner_on_ok(self, result: Any) -> None:
        """A task succeeded."""
        self._result(result, "ok")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """A task failed."""
        self._result(result, "ignored" if ignore_errors else "failed")

    def v2_runner_on_skipped(self, result: Any) -> None:
        """A task was skipped."""
        self._result(result, "skipped")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """A host could not be reached."""
        self._result(result, "unreachable")

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """The recap."""
        self._write({"stats": {host: stats.summarize(host) for host in stats.processed}})
