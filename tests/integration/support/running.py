# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run modules and playbooks as a user would, and read what they returned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.cocoon.microvm.tests.integration.support.machine import (
    COLLECTIONS,
    TOKEN,
    Netns,
    target_python,
)

HERE = Path(__file__).resolve().parent


class Result(dict[str, Any]):
    """What a module returned."""

    @property
    def changed(self) -> bool:
        """Whether it reported a change."""
        return bool(self.get("changed"))

    @property
    def failed(self) -> bool:
        """Whether it failed."""
        return bool(self.get("failed"))


def module_side(folder: Path) -> Path:
    """A folder with what AnsiballZ would send of ansible, for an interpreter that has none."""
    import ansible

    target = folder / "ansible"
    if not target.is_dir():
        target.mkdir(parents=True)
        (target / "__init__.py").touch()
        for name in ("module_utils", "release.py"):
            (target / name).symlink_to(Path(ansible.__path__[0]) / name)
    return folder


class Modules:
    """Runs one module as its own process, without a controller: fast, and with a process that a test can kill."""

    def __init__(self, netns: Netns | None, defaults: Mapping[str, Any], folder: Path) -> None:
        """
        :param netns: where to run; None is the tests' own network namespace.
        :param defaults: parameters of every call, such as the store's folders.
        :param folder: for temporary files.
        """
        self.netns = netns
        self.defaults = dict(defaults)
        self.folder = folder

    def with_defaults(self, **defaults: Any) -> Modules:
        """The same runner with other defaults."""
        return Modules(self.netns, {**self.defaults, **defaults}, self.folder)

    def start(
        self,
        what: str,
        /,
        *,
        check: bool = False,
        diff: bool = False,
        env: Mapping[str, str] | None = None,
        **params: Any,
    ) -> subprocess.Popen[str]:
        """Start a module and do not wait. Its process is the module's own: it has the number to kill."""
        arguments = {key: value for key, value in {**self.defaults, **params}.items() if value is not None}
        arguments.update(
            _ansible_check_mode=check,
            _ansible_diff=diff,
            _ansible_no_log=False,
            _ansible_remote_tmp=str(self.folder),
            _ansible_tmpdir=None,
            _ansible_module_name=f"cocoon.microvm.{what}",
            _ansible_verbosity=0,
        )
        paths = [str(COLLECTIONS)]
        if target_python() != sys.executable:
            paths.append(str(module_side(self.folder / "module-side")))
        words = [*(self.netns.enter() if self.netns else ()), target_python(), str(HERE / "run_module.py"), what]
        child = subprocess.Popen(
            words,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), TOKEN[0]: TOKEN[1], **(env or {})},
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdin is not None
        child.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
        child.stdin.close()
        child.stdin = None
        return child

    @staticmethod
    def finish(child: subprocess.Popen[str], timeout: float = 300) -> Result:
        """Wait for a module.

        :raises AssertionError: it returned no JSON document.
        """
        try:
            out, err = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            child.kill()
            out, err = child.communicate()
            raise AssertionError(f"the module was still running after {timeout} s: {out}\n{err}") from None
        try:
            return Result(json.loads(out))
        except ValueError:
            raise AssertionError(f"no result, status {child.returncode}:\n{out}\n{err}") from None

    def __call__(
        self,
        what: str,
        /,
        *,
        check: bool = False,
        diff: bool = False,
        ok: bool | None = True,
        run_timeout: float = 300,
        env: Mapping[str, str] | None = None,
        **params: Any,
    ) -> Result:
        """Run a module to its end.

        :param what: the module, without its collection: cocoon_vm.
        :param ok: what is expected: success, failure (False) or either (None).
        :param params: the module's own; None leaves one out.
        """
        result = self.finish(self.start(what, check=check, diff=diff, env=env, **params), run_timeout)
        if ok is not None and result.failed is ok:
            wanted = "succeed" if ok else "fail"
            raise AssertionError(f"{what} was to {wanted}: {json.dumps(result, indent=1, default=str)}")
        return result


@dataclass
class Run:
    """One run of ansible-playbook."""

    status: int
    output: str
    tasks: list[dict[str, Any]] = field(default_factory=list)
    stats: dict[str, dict[str, int]] = field(default_factory=dict)

    def total(self, name: str) -> int:
        """A column of the recap, summed over hosts: ok, changed, failures, unreachable, skipped."""
        return sum(host.get(name, 0) for host in self.stats.values())

    def results(self, task: str, host: str | None = None) -> list[Result]:
        """What the tasks of a name returned, in order."""
        return [
            Result(entry["result"])
            for entry in self.tasks
            if entry["task"] == task and host in (None, entry["host"]) and entry["outcome"] != "skipped"
        ]

    def result(self, task: str, host: str | None = None) -> Result:
        """What the one task of a name returned."""
        found = self.results(task, host)
        assert len(found) == 1, f"{len(found)} results of {task!r} in\n{self.output}"
        return found[0]


class Playbooks:
    """Runs ansible-playbook in a network namespace."""

    def __init__(self, netns: Netns | None, folder: Path, variables: Mapping[str, Any]) -> None:
        self.netns = netns
        self.folder = folder
        self.variables = dict(variables)

    def inventory(self, content: Any) -> Path:
        """Write an inventory: the default is this machine, by a local connection."""
        import yaml

        if isinstance(content, Path):
            return content
        if content is None:
            content = {"all": {"hosts": {"hv1": {"ansible_connection": "local"}}}}
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        folder = Path(tempfile.mkdtemp(dir=self.folder, prefix="inventory-"))
        path = folder / "hosts.yml"
        path.write_text(text, encoding="utf-8")
        return path

    def environment(self, record: Path, extra: Mapping[str, str] | None) -> dict[str, str]:
        """Ansible's settings for a test: everything it writes lies in the test's own folder."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "PYTHONPATH"))}
        env.update(
            ANSIBLE_CALLBACKS_ENABLED="record",
            ANSIBLE_CALLBACK_PLUGINS=str(HERE / "callback_plugins"),
            ANSIBLE_COLLECTIONS_PATH=str(COLLECTIONS),
            ANSIBLE_COLLECTIONS_SCAN_SYS_PATH="false",
            ANSIBLE_HOME=str(self.folder / "ansible-home"),
            ANSIBLE_HOST_KEY_CHECKING="false",
            ANSIBLE_LOCALHOST_WARNING="false",
            ANSIBLE_NOCOLOR="true",
            ANSIBLE_PIPELINING="true",
            ANSIBLE_RETRY_FILES_ENABLED="false",
            # The master connections of ssh are gone soon after the run, even those to a guest that is gone: they would
            # count as left behind. They are named by host and user, which other namespaces have as well.
            ANSIBLE_SSH_ARGS=(
                "-o ControlMaster=auto -o ControlPersist=2s -o UserKnownHostsFile=/dev/null"
                " -o ServerAliveInterval=15 -o ServerAliveCountMax=4"
            ),
            ANSIBLE_SSH_CONTROL_PATH_DIR=str(self.folder / "cp"),
            COCOON_TEST_RECORD=str(record),
            LC_ALL="C.UTF-8",
            PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        )
        env[TOKEN[0]] = TOKEN[1]
        env.update(extra or {})
        return env

    def __call__(
        self,
        playbook: str | Sequence[Mapping[str, Any]] | Path,
        inventory: Any = None,
        *options: str,
        ok: bool | None = True,
        check: bool = False,
        diff: bool = False,
        variables: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        run_timeout: float = 900,
    ) -> Run:
        """Run a playbook.

        :param playbook: its text, its plays, a file, or a full name such as cocoon.microvm.site.
        :param inventory: text, a structure, a file, or None for this machine alone.
        :param options: more for the command line, such as "--limit", "hv1".
        :param ok: what is expected: success, failure (False) or either (None).
        """
        import yaml

        folder = Path(tempfile.mkdtemp(dir=self.folder, prefix="run-"))
        if isinstance(playbook, str) and "\n" not in playbook:
            what = playbook
        elif isinstance(playbook, Path):
            what = str(playbook)
        else:
            path = folder / "playbook.yml"
            path.write_text(playbook if isinstance(playbook, str) else yaml.safe_dump(list(playbook)), encoding="utf-8")
            what = str(path)
        given = folder / "variables.json"
        # Few tests need the default kernel, which takes the role host some seconds.
        base = {"ansible_python_interpreter": target_python(), "cocoon_kernel": False}
        merged = {**base, **self.variables, **(variables or {})}
        if "ansible_python_interpreter" in str(inventory):  # its hosts have one each
            merged.pop("ansible_python_interpreter")
        given.write_text(json.dumps(merged), encoding="utf-8")
        words = [*(self.netns.enter() if self.netns else ())]
        words += [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(self.inventory(inventory)), what]
        words += ["-e", f"@{given}", *(["--check"] if check else []), *(["--diff"] if diff else []), *options]
        record = folder / "record.jsonl"
        done = subprocess.run(
            words,
            cwd=folder,
            env=self.environment(record, env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=run_timeout,
        )
        run = read_record(record, done.returncode, done.stdout)
        if ok is not None and (run.status == 0) is not ok:
            raise AssertionError(f"ansible-playbook returned {run.status}:\n{shortened(run.output)}")
        return run


def shortened(text: str, limit: int = 12000) -> str:
    """A text's beginning and end: a failed bulk task says everything twice."""
    return text if len(text) <= limit else f"{text[: limit // 2]}\n[...]\n{text[-limit // 2 :]}"


def read_record(record: Path, status: int, output: str) -> Run:
    """What the callback plugin wrote."""
    run = Run(status, output)
    if record.exists():
        for line in record.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if "stats" in entry:
                run.stats = entry["stats"]
            else:
                run.tasks.append(entry)
    return run
