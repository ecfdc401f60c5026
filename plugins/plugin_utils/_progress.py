# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a module that takes long, and show meanwhile how far it has got."""

from __future__ import annotations

import contextlib
import json
import time
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.cocoon.microvm.plugins.plugin_utils._definitions import misread_names

# Seconds: how often to look whether the module has ended, and to say how far it is on a log that keeps every line.
LOOK = 0.5
SAY = 5.0
# The variable that sets the latter.
INTERVAL = "cocoon_progress_interval"
LIMIT = 7 * 86400
LIMITED = "refused under --limit, where the list may be incomplete. Run the playbook without --limit."
UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def amount(size: float) -> str:
    """``1.5 GiB``."""
    for unit, name in UNITS:
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} B"


def words(seen: t.Mapping[str, t.Any], still: float = 0) -> str:
    """The line for what a module has written: bytes, percent, parts, and speed and time left or what goes on beside.

    :param still: seconds for which it has been the same.
    """
    done, total, speed = (int(seen.get(key) or 0) for key in ("done", "total", "speed"))
    text = f"{seen.get('what', 'working')}: {amount(done)}"
    if total:
        text += f" of {amount(total)} ({min(100, 100 * done // total)} %)"
    if int(seen.get("parts") or 0) > 1:
        text += f", {seen.get('part')} of {seen['parts']} layers"
    if seen.get("note"):
        return f"{text}, {seen['note']}" + (f" for {duration(still)}" if still >= 1 else "")
    if speed:
        text += f", {amount(speed)}/s"
    if total > done and speed:
        text += f", {duration((total - done) / speed)} left"
    return text


def duration(seconds: float) -> str:
    """``42 s`` or ``3 min 20 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class NamedAction(ActionBase):
    """An action that sees names before Ansible makes text of them, which is when it can still tell what was meant."""

    _supports_async = True
    _supports_check_mode = True

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """The result of the task."""
        result = super().run(tmp, task_vars)
        wrong = misread_names(self._task.args)
        if wrong:
            return {**result, "failed": True, "changed": False, "msg": wrong}
        return {**result, **self.act(dict(self._task.args), task_vars or {})}

    def act(self, arguments: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """What the task does with its *arguments*, which may be changed."""
        raise NotImplementedError

    def plain(self, module: str, arguments: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """The result of *module*, run as a task without an action is."""
        return dict(
            self._execute_module(
                module_name=module, module_args=arguments, task_vars=task_vars, wrap_async=self._task.async_val
            )
        )


class ProgressAction(NamedAction):
    """An action whose module is given ``progress_file``, and is watched while it runs."""

    def watched(self, module: str, arguments: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """The result of *module*, run beside us.

        Where it is not to be watched, or cannot be, it is run as any other.
        """
        if self._unwatched(task_vars):
            return self.plain(module, arguments, task_vars)
        with self.folder(task_vars) as folder:
            path = self._connection._shell.join_path(folder, "progress.json")
            self._task.async_val = LIMIT
            try:
                arguments = {**arguments, "progress_file": path}
                begun = self._execute_module(
                    module_name=module, module_args=arguments, task_vars=task_vars, wrap_async=True
                )
            finally:
                self._task.async_val = 0
            if not begun.get("ansible_job_id"):
                return dict(begun)
            return self._follow(begun, path, task_vars)

    def _unwatched(self, task_vars: dict[str, t.Any]) -> bool:
        """In check mode nothing takes long, and a task that is asynchronous itself has nobody to look at it."""
        return bool(self._task.check_mode or self._task.async_val or not self._interval(task_vars))

    def _interval(self, task_vars: dict[str, t.Any]) -> float:
        """Seconds between two lines, 0 for none.

        :raises AnsibleActionFail: it is no number.
        """
        value = self._templar.template(task_vars.get(INTERVAL, SAY))
        try:
            return max(0.0, float(value))
        except (TypeError, ValueError):
            raise AnsibleActionFail(f"{INTERVAL}: '{value}' is no number. Give seconds, or 0 for no lines.") from None

    @contextlib.contextmanager
    def folder(self, task_vars: dict[str, t.Any]) -> t.Iterator[str]:
        """A folder on the target for as long as it is needed.

        Not the connection's own, which whatever runs asynchronously takes along when it ends.

        :raises AnsibleActionFail: it cannot be made.
        """
        arguments = {"state": "directory", "prefix": "cocoon-microvm-"}
        made = self._module("ansible.builtin.tempfile", arguments, task_vars)
        if not made.get("path"):
            raise AnsibleActionFail(f"cannot make a folder on the target: {made.get('msg')}")
        try:
            yield str(made["path"])
        finally:
            self._module("ansible.builtin.file", {"path": made["path"], "state": "absent"}, task_vars)

    def _module(self, name: str, arguments: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """The result of a module that is run as any other."""
        return dict(
            self._execute_module(module_name=name, module_args=arguments, task_vars=task_vars, wrap_async=False)
        )

    def _follow(self, begun: t.Mapping[str, t.Any], path: str, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        display, job = Display(), str(begun["ansible_job_id"])
        said, every = time.monotonic(), self._interval(task_vars)
        seen: dict[str, t.Any] = {}
        since, before = said, ""
        while True:
            time.sleep(LOOK)
            status = self._ask(job, "status", task_vars)
            if status.get("finished") or status.get("failed"):
                self._ask(job, "cleanup", task_vars)
                return {key: value for key, value in status.items() if key not in ASYNC_KEYS}
            now = time.monotonic()
            if now - said >= every:
                said = now
                last, seen = seen, self._read(path)
                since = since if seen == last else now
                line = f"{task_vars.get('inventory_hostname', '')}: {words(seen, now - since)}" if seen else ""
                if line and line != before:  # nothing moved: somebody else is at it, or a tool that tells nothing
                    display.display(line)
                before = line

    def _ask(self, job: str, mode: str, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        arguments = {
            "jid": job,
            "mode": mode,
            "_async_dir": self.get_shell_option("async_dir", default="~/.ansible_async"),
        }
        return self._module("ansible.legacy.async_status", arguments, task_vars)

    def _read(self, path: str) -> dict[str, t.Any]:
        words = self._connection._shell.quote(path)
        answer = self._low_level_execute_command(f"cat {words} 2>/dev/null || true", sudoable=True)
        try:
            seen = json.loads(answer.get("stdout") or "{}")
        except ValueError:
            return {}
        return seen if isinstance(seen, dict) else {}


class DeferringAction(ProgressAction):
    """An action whose module is run, and where it has much to do, again, and is watched.

    Watching takes a few more questions: not for what changes nothing, as most runs do.
    """

    MODULE: t.ClassVar[str]
    #: Bytes that are over before there would be anything to tell.
    BRIEF: t.ClassVar[int]

    def act(self, arguments: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """The module's result."""
        if self._unwatched(task_vars):
            return self.plain(self.MODULE, arguments, task_vars)
        first = self.plain(self.MODULE, {**arguments, "defer_above": self.BRIEF}, task_vars)
        return self.watched(self.MODULE, arguments, task_vars) if first.get("deferred") else first


class PruningAction(DeferringAction):
    """An action whose module may prune, which it must not where its list may lack what the limit leaves out."""

    def act(self, arguments: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """The module's result."""
        if boolean(arguments.get("prune", False), strict=False) and task_vars.get("ansible_limit"):
            return {"failed": True, "changed": False, "msg": f"prune: {LIMITED}"}
        return super().act(arguments, task_vars)


ASYNC_KEYS = (
    "ansible_job_id",
    "results_file",
    "started",
    "finished",
    "stdout",
    "stderr",
    "stdout_lines",
    "stderr_lines",
)
