# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives of VMs on their way, by the controller: as files, over any connection, and of any size."""

from __future__ import annotations

import os
import typing as t

from ansible.errors import AnsibleActionFail

from ansible_collections.cocoon.microvm.plugins.plugin_utils._progress import ProgressAction

MODULE = "cocoon.microvm.cocoon_vm_move"
OUT = ("exported", "image_exported")
IN = ("arrived", "image_arrived")
STORE = ("root_dir", "run_dir", "log_dir", "lock_timeout")


class ActionModule(ProgressAction):
    """Take what is exported, bring what is to arrive, and watch the module."""

    def act(self, arguments: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """The module's result."""
        local, state = arguments.pop("local_path", None), arguments.get("state")
        if not local or self._task.check_mode:
            return self.plain(MODULE, arguments, task_vars)
        path = os.path.abspath(os.path.expanduser(str(local)))
        if state in OUT:
            return self._out(arguments, path, task_vars)
        if state in IN:
            return self._in(arguments, path, task_vars)
        raise AnsibleActionFail(f"local_path: it means nothing with state: {state}. Leave it out.")

    def _reader(self) -> int:
        """The uid that the connection is by, whoever the module runs as."""
        answer = self._low_level_execute_command("id -u", sudoable=False)
        text = str(answer.get("stdout") or "").strip()
        if not text.isdigit():
            raise AnsibleActionFail(f"cannot find out the user of the connection: {answer.get('stderr') or text}")
        return int(text)

    def _out(self, arguments: dict[str, t.Any], local: str, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        done = self.watched(MODULE, {**arguments, "reader": self._reader()}, task_vars)
        if done.get("failed"):
            return done
        os.close(os.open(local, os.O_WRONLY | os.O_CREAT, 0o600))
        os.chmod(local, 0o600)
        self._connection.fetch_file(done["archive"]["path"], local)
        return done

    def _in(self, arguments: dict[str, t.Any], local: str, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        place = {key: arguments[key] for key in STORE if key in arguments}
        place.update(state="expected", id=arguments.get("id"), reader=self._reader())
        made = self.plain(MODULE, place, task_vars)
        if made.get("failed"):
            return made
        self._connection.put_file(local, made["path"])
        return self.watched(MODULE, {**arguments, "path": made["path"]}, task_vars)
