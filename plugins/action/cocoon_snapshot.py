# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives that are on the controller, and a word now and then of how far an export or import has got."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError
from ansible_collections.cocoon.microvm.plugins.plugin_utils._progress import ProgressAction

MODULE = "cocoon.microvm.cocoon_snapshot"
ARCHIVES = ("exported", "imported")


class ActionModule(ProgressAction):
    """Fetch what is exported, copy what is to be imported, and watch the module."""

    def act(self, arguments: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """The module's result."""
        local, state = arguments.pop("local_path", None), arguments.get("state", "present")
        if state not in ARCHIVES or (local and arguments.get("path")):
            if local:
                return {"failed": True, "msg": f"local_path: {WRONG}"}
            return self.plain(MODULE, arguments, task_vars)
        if not local:
            return self.watched(MODULE, arguments, task_vars)
        path = os.path.abspath(os.path.expanduser(str(local)))
        if state == "exported":
            return self._out(arguments, path, task_vars)
        return self._in(arguments, path, task_vars)

    def _out(self, arguments: dict[str, t.Any], local: str, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """Export to a file of the target's that goes again, and fetch it."""
        found = self._execute_module(
            module_name=f"{MODULE}_info", module_args=_store(arguments, names=[arguments["name"]]), task_vars=task_vars
        )
        snapshots = found.get("snapshots") or []
        if snapshots and _id_of(local) == snapshots[0]["id"]:
            return {"changed": False, "actions": [], "snapshot": snapshots[0], "vm": None}
        if os.path.lexists(local) and _id_of(local) is None and not arguments.get("force"):
            return {
                "failed": True,
                "msg": f"local_path: {local} is there, and is no archive of a snapshot. Set force: true.",
            }
        if self._task.check_mode:
            return {"changed": True, "actions": ["export"], "snapshot": snapshots[0] if snapshots else None, "vm": None}
        with self.folder(task_vars) as folder:
            path = self._connection._shell.join_path(folder, "snapshot")
            done = self.watched(MODULE, {**arguments, "path": path}, task_vars)
            if done.get("failed"):
                return done
            fetched = self._action("fetch", {"src": path, "dest": local, "flat": True}, task_vars)
            if fetched.get("failed"):
                return fetched
            os.chmod(local, 0o600)
            return {**done, "archive": {**done["archive"], "path": local}}

    def _in(self, arguments: dict[str, t.Any], local: str, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """Copy an archive to the target, import it from there, and remove the copy."""
        if not os.path.isfile(local):
            return {"failed": True, "msg": f"local_path: there is no file {local} on the controller."}
        found = self._execute_module(
            module_name=f"{MODULE}_info", module_args=_store(arguments, names=[arguments["name"]]), task_vars=task_vars
        )
        for snapshot in found.get("snapshots") or []:
            if _id_of(local) in (snapshot["id"], snapshot.get("source_id")):
                return {"changed": False, "actions": [], "snapshot": snapshot, "vm": None}
        if self._task.check_mode:
            return {"changed": True, "actions": ["import"], "snapshot": None, "vm": None}
        with self.folder(task_vars) as folder:
            path = self._connection._shell.join_path(folder, "snapshot")
            copied = self._action("copy", {"src": local, "dest": path, "mode": "0600"}, task_vars)
            if copied.get("failed"):
                return copied
            return self.watched(MODULE, {**arguments, "path": path}, task_vars)

    def _action(self, name: str, arguments: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """The result of another action with the connection of this one."""
        task = self._task.copy()
        task.args = arguments
        action = self._shared_loader_obj.action_loader.get(
            f"ansible.builtin.{name}",
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._templar,
            shared_loader_obj=self._shared_loader_obj,
        )
        return dict(action.run(task_vars=task_vars))


WRONG = "it names an archive on the controller, for state: exported or imported, in place of path."


def _store(arguments: t.Mapping[str, t.Any], **more: t.Any) -> dict[str, t.Any]:
    """The options that say where the store is."""
    return {**{key: arguments[key] for key in ("root_dir", "run_dir", "log_dir") if key in arguments}, **more}


def _id_of(path: str) -> str | None:
    """The id of the snapshot in an archive of the controller's; ``None`` if it is none."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import archive

    try:
        return str(archive.peek(path).get("id"))
    except (CocoonError, OSError):
        return None
