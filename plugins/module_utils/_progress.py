# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far something long has got, in a file that the controller looks at meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import typing as t

INTERVAL = 0.25


class Deferred(Exception):
    """There is more to do than this run is for; nothing of it has been begun."""


class Progress:
    """A run's progress: one stage after the other, of which one is shown.

    :param path: the file; ``None`` to write nothing.
    :param most: bytes that this run is for, any number if ``None``: what takes longer is for one that is watched.
    """

    def __init__(self, path: str | None = None, most: int | None = None) -> None:
        self.path = path
        self.most = most
        self.shown: Stage | None = None
        self._lock = threading.Lock()
        self._next = 0.0

    @classmethod
    def from_params(cls, params: t.Mapping[str, t.Any]) -> Progress:
        """From the options ``progress_file`` and ``defer_above``."""
        return cls(params.get("progress_file"), params.get("defer_above"))

    def expect(self, size: int | None) -> None:
        """Something of *size* bytes, if that is known, is about to be begun.

        :raises Deferred: that is more than this run is for.
        """
        if self.most is not None and (size is None or size > self.most):
            raise Deferred

    def stage(self, what: str, total: int = 0, parts: int = 0, later: bool = False) -> Stage:
        """What is done from now on, and is shown until another is.

        :param what: in a few words, such as ``pulling nginx``.
        :param total: bytes there are to do, 0 if that is not known.
        :param parts: what else there is to count, such as layers.
        :param later: it goes on beside another, and is not shown before it says so.
        """
        stage = Stage(self, what, total, parts)
        if not later:
            self.shown = stage
        return stage

    def write(self, stage: Stage, at_once: bool = False) -> None:
        """Write ``{"what", "done", "total", "part", "parts", "speed", "note"}``, a few times a second at most.

        :param at_once: however short ago the last time was.
        """
        now = time.monotonic()
        if self.path is None or stage is not self.shown or (now < self._next and not at_once):
            return
        if not self._lock.acquire(at_once):
            return
        try:
            self._next = now + INTERVAL
            with contextlib.suppress(OSError):  # nothing depends on it
                self._replace(json.dumps(stage.document(now)))
        finally:
            self._lock.release()

    def _replace(self, text: str) -> None:
        temporary = f"{self.path}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o600), "w", encoding="ascii") as stream:
            stream.write(text)
        os.rename(temporary, str(self.path))


class Stage:
    """Bytes and parts of one stage, counted by any number of threads."""

    def __init__(self, progress: Progress, what: str, total: int, parts: int) -> None:
        self._progress = progress
        self._what = what
        self._total = total
        self._parts = parts
        self._part = 0
        self._note = ""
        self._done = 0
        self._first: int | None = None  # what an earlier run had done says nothing of the speed
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int | None = None) -> None:
        """So many bytes are done, of so many if that is known only now."""
        with self._lock:
            self._first = done if self._first is None else self._first
            self._done = done
            self._total = self._total if total is None else total
        self._progress.write(self)

    def advance(self, count: int) -> None:
        """So many bytes more are done."""
        with self._lock:
            self._first = self._first or 0
            self._done += count
        self._progress.write(self)

    @contextlib.contextmanager
    def noted(self, note: str) -> t.Iterator[None]:
        """Say *note* as well while something goes on that moves none of the figures."""
        self._note = note
        self._progress.write(self, at_once=True)
        try:
            yield
        finally:
            self._note = ""

    def part_done(self) -> None:
        """One more of the parts is done."""
        with self._lock:
            self._part += 1
        self._progress.write(self)

    def show(self) -> None:
        """Show this stage: the one beside it is over."""
        self._progress.shown = self
        self._progress.write(self)

    def document(self, now: float) -> dict[str, object]:
        """What is written; ``speed`` in bytes a second."""
        speed = (self._done - (self._first or 0)) / max(now - self._began, 0.001)
        return {
            "what": self._what,
            "done": self._done,
            "total": self._total,
            "part": self._part,
            "parts": self._parts,
            "speed": int(speed),
            "note": self._note,
        }
