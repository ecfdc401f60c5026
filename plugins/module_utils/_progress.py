# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far something long has got, in a file that the controller looks at meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import time

INTERVAL = 0.25


class Progress:
    """Writes ``{"what": text, "done": bytes, "total": bytes}``, a few times a second at most.

    :param path: the file; ``None`` to write nothing.
    :param what: what is being done, in a word or two.
    """

    def __init__(self, path: str | None, what: str) -> None:
        self.path = path
        self.what = what
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.path is None or now < self._next:
            return
        self._next = now + INTERVAL
        with contextlib.suppress(OSError):  # nothing depends on it
            self._write({"what": self.what, "done": done, "total": total})

    def _write(self, document: dict[str, object]) -> None:
        temporary = f"{self.path}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o600), "w", encoding="ascii") as stream:
            json.dump(document, stream)
        os.rename(temporary, str(self.path))
