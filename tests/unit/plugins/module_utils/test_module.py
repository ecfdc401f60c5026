# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all modules check before they begin."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

from ansible_collections.cocoon.microvm.plugins.module_utils import _module
from ansible_collections.cocoon.microvm.plugins.module_utils._argspec import admission_options, store_options
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, InputError

COLLECTION = pathlib.Path(_module.__file__).parents[2]
SPEC = {"source": {"type": "path"}, "local_path": {"type": "path"}, "name": {"type": "str"}, "path": {"type": "path"}}


@pytest.mark.parametrize("path", ["save.tar", "./save.tar", "../save.tar", "images/", "C:/save.tar"])
def test_paths_that_begin_nowhere(path: str) -> None:
    with pytest.raises(InputError, match="source: .* is a path from nowhere.*Write the whole path") as caught:
        _module.check_paths({"name": "a", "source": path}, SPEC)
    assert caught.value.option == "source"


def test_paths_in_a_list_name_their_item() -> None:
    spec = {"images": {"type": "list", "elements": "dict", "options": SPEC}}
    with pytest.raises(InputError, match=r"images\[1\] \(b\): source: 'x' is a path from nowhere"):
        _module.check_paths({"images": [{"name": "a", "source": "/x"}, {"name": "b", "source": "x"}]}, spec)
    _module.check_paths({"images": None}, spec)


def test_options_within_options_are_looked_at() -> None:
    """However deep: a NIC in a list of a VM in a list has limits, each of which is a mapping of its own."""
    inner = {"rx": {"type": "dict", "options": SPEC}}
    spec = {"nics": {"type": "list", "elements": "dict", "options": {"limits": {"type": "dict", "options": inner}}}}
    for good in ({"nics": [{"limits": {"rx": {"source": "/x"}}}]}, {"nics": [{"limits": None}]}, {"nics": [{}]}):
        _module.check_paths(good, spec)
    with pytest.raises(InputError, match="x") as caught:
        _module.check_paths({"nics": [{"name": "a", "limits": {"rx": {"source": "x"}}}]}, spec)
    assert caught.value.option == "nics[0] (a): limits.rx.source"


@pytest.mark.parametrize(
    "params",
    [
        {"source": "/srv/save.tar", "path": None},
        {"source": "docker://nginx"},
        {"source": "https://example.com/disk.qcow2"},
        {"source": "file:///srv/disk.qcow2"},
        {"local_path": "save.tar"},
        {"name": "save.tar", "unknown": "x"},
        {"source": "/srv/größe.tar"},
    ],
)
def test_paths_that_are_taken(params: dict[str, str]) -> None:
    _module.check_paths(params, SPEC)


@pytest.mark.parametrize("path", ["/srv/gr\\xf6\\xdfe", "file:///srv/gr\\xf6\\xdfe", "FILE:///srv/gr%C3%B6%C3%9Fe"])
def test_where_python_writes_names_in_ascii(path: str) -> None:
    """A path with an umlaut is refused in words, and one without is taken."""
    script = (
        f"from {_module.__name__} import check_paths\n"
        f"for path in ('/srv/a', 'https://b/%C3%B6', '{path}'):\n"
        "    check_paths({'root_dir': path}, {'root_dir': {'type': 'path'}})\n"
        "    print(path, flush=True)\n"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **ascii_only},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "/srv/a\nhttps://b/%C3%B6\n"
    assert "root_dir: Python writes names of files as ascii here" in done.stderr and "Set LC_ALL" in done.stderr
    assert CocoonError.__name__ not in done.stderr and "UnicodeEncodeError" not in done.stderr


def test_the_roles_pass_every_option_of_a_site() -> None:
    tasks = yaml.safe_load((COLLECTION / "roles/vms/tasks/main.yml").read_text())
    passed = next(task["cocoon.microvm.cocoon_site"] for task in tasks if "cocoon.microvm.cocoon_site" in task)
    options = {*documented("cocoon_site"), *store_options(), *admission_options()}
    assert set(passed) == options


def documented(module: str) -> set[str]:
    text = (COLLECTION / f"plugins/modules/{module}.py").read_text()
    return set(yaml.safe_load(text.split('"""')[1])["options"])


def test_a_store_is_removed_whatever_of_its_own_is_left_in_it() -> None:
    """What the role may remove beside the objects, by the paths that the engine makes."""
    task = yaml.safe_load((COLLECTION / "roles/vms/tasks/remove_store.yml").read_text())
    own = re.compile(f"/({next(step['vars']['vms_own'] for step in task if 'vms_own' in step.get('vars', {}))})$")
    paths = Paths("/store", "/run/store", "/log")
    made = [getattr(paths, name) for name, value in vars(Paths).items() if isinstance(value, property)]
    assert paths.moves in made and [path for path in made if not own.search(path)] == []


@pytest.mark.parametrize(
    ("folder", "shown"),
    [("plugins/modules", "`{}`"), ("plugins/filter", "`{}`"), ("playbooks", "`cocoon.microvm.{}`")],
)
def test_the_index_of_the_docs_names_everything(folder: str, shown: str) -> None:
    index = (COLLECTION / "docs/README.md").read_text(encoding="utf-8")
    names = [path.stem for path in (COLLECTION / folder).iterdir() if path.suffix in (".py", ".yml")]
    assert names and [name for name in names if shown.format(name) not in index] == []


def test_every_module_is_in_the_action_group() -> None:
    groups = yaml.safe_load((COLLECTION / "meta/runtime.yml").read_text())["action_groups"]
    assert set(groups["cocoon"]) == {path.stem for path in (COLLECTION / "plugins/modules").glob("*.py")}
