# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of the playbook site, each of which is a tag."""

from __future__ import annotations

import typing as t
from pathlib import Path

import jinja2
import pytest
import yaml
from ansible.plugins.filter import mathstuff

from ansible_collections.cocoon.microvm.plugins import plugin_utils

ROOT = Path(next(iter(plugin_utils.__path__))).resolve().parents[1]
ALL = ["networks", "images", "vms"]


def loaded(path: str) -> t.Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("given", "skipped", "chosen"),
    [
        (["all"], [], ALL),
        (["tagged"], [], ALL),
        (["all"], ["images"], ["networks", "vms"]),
        (["my own"], [], ALL),
        (["vms"], [], ["vms"]),
        (["guests", "images", "host", "networks"], [], ["networks", "images"]),
        (["networks", "vms"], ["vms"], ["networks"]),
    ],
)
def test_what_tags_choose(given: list[str], skipped: list[str], chosen: list[str]) -> None:
    variables = loaded("roles/vms/vars/main.yml")
    environment = jinja2.Environment(autoescape=True)
    environment.filters.update(mathstuff.FilterModule().filters())
    evaluate = environment.compile_expression(variables["vms_chosen"].strip().removeprefix("{{").removesuffix("}}"))
    found = evaluate(vms_steps=variables["vms_steps"], ansible_run_tags=given, ansible_skip_tags=skipped)
    assert list(t.cast("list[str]", found)) == chosen


def test_every_step_is_a_tag_and_documented() -> None:
    """The playbook's tags are those of its first lines and of the docs; what only tells of guests is asked for."""
    tasks = [task for play in loaded("playbooks/site.yml") for task in play["tasks"]]
    tags = {tag for task in tasks for tag in task["tags"]}
    assert tags == {"host", *ALL, "guests", "never"}
    assert all(("never" in task["tags"]) == ("guests" in task["tags"]) for task in tasks)
    guide = (ROOT / "docs" / "inventory.md").read_text(encoding="utf-8").partition("## Steps")[2].partition("## ")[0]
    assert all(f"`{tag}`" in guide for tag in tags - {"never"})


def test_a_step_that_is_left_out_changes_nothing() -> None:
    """Above all, a run without the VMs must not take them for VMs that are not wanted any more."""
    tasks = loaded("roles/vms/tasks/main.yml")
    (site,) = [task["cocoon.microvm.cocoon_site"] for task in tasks if "cocoon.microvm.cocoon_site" in task]
    for option in (*ALL, "prune", "elsewhere"):
        step = option if option in ALL else "vms"
        assert f"'{step}' in vms_chosen" in site[option], option
